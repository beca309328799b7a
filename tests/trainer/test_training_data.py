"""trainer/training_data.py and trainer/from_config.py: which images a run trains and validates on, whatever their
format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import make_small_run, write_dataset
from PIL import Image

import config
import dataset_readers
import dataset_tools
import overrides
import testing
import training
from dataset import stratified_split
from dataset.table import Table
from models import checkpoints
from tools import convert
from tools.split import split_dataset
from trainer import from_config, records, run_files, training_data
from utils import InputError


def read_data(dataset: Path, *options: str) -> training_data.Data:
    overrides.apply([f"--DATASET_FOLDER={dataset}", "--VAL_SPLIT=0.25", *options], config)
    return training_data.read_data()


def test_a_share_of_the_training_images_is_validated_on(shared_dataset: Path) -> None:
    data = read_data(shared_dataset)
    assert (len(data.table), len(data.train), len(data.val), data.format) == (40, 30, 10, "coco_cls")
    assert sorted(data.train.paths + data.val.paths) == data.table.paths


def test_a_promise_for_which_there_are_too_few_images_stops_the_run_before_it_trains(shared_dataset: Path) -> None:
    goal = "--THRESHOLD_GOAL=guaranteed_recall"
    with pytest.raises(InputError, match="it takes 19 validation images or more, and there are 10"):
        read_data(shared_dataset, goal, "--THRESHOLD_RECALL=0.95")
    assert len(read_data(shared_dataset, goal, "--THRESHOLD_RECALL=0.9").val) == 10


@pytest.mark.parametrize("format", ["csv", "mlcls", "classes_json"])
def test_a_data_set_of_another_format_trains_and_is_tested(format: str, shared_dataset: Path, tmp_path: Path) -> None:
    convert.convert_dataset(shared_dataset, "auto", format, tmp_path / "set")
    split_dataset(tmp_path / "set", format, {"train": 70, "val": 30, "test": 0}, 0)
    val = dataset_readers.read_dataset(tmp_path / "set", split="val")
    data = read_data(tmp_path / "set")
    assert data.format == format
    assert sorted(data.val.paths) == sorted(val.paths), "its own, not VAL_SPLIT of the others"
    assert (len(data.train), len(data.val)) == (28, 12)

    arguments = [*make_small_run(tmp_path / "set", tmp_path), "--NUM_EPOCHS=1"]
    training.main(arguments)
    (path,) = tmp_path.glob("trained_models/*/*.pt")
    assert checkpoints.load(path)["dataset"]["num_val"] == 12
    testing.main(arguments)
    result = json.loads((tmp_path / "predictions" / "evaluate_result.json").read_text())
    expected = dataset_readers.read_dataset(shared_dataset, split="test").targets.sum(axis=0)
    assert [entry["positives"] for entry in result["classes"].values()] == expected.tolist()


def test_a_name_whose_parts_are_classes_stops_before_the_training(tmp_path: Path, dataset: Path) -> None:
    (dataset / "classes.txt").write_text("red\ngreen\ngreen, red\n")
    with pytest.raises(InputError, match=r"all parts of 1 class name are classes, too: 'green, red'; in a CSV set"):
        read_data(dataset)


def test_labels_of_no_class_are_left_out_where_the_constants_say_so(tmp_path: Path) -> None:
    rows = [f"{number}.jpg,{name}\n" for number, name in enumerate(["cat", "dog", "cat;dog", "none", "cow;cat"] * 2)]
    for number in range(10):
        (tmp_path / f"{number}.jpg").touch()
    (tmp_path / "train.csv").write_text("image_path,labels\n" + "".join(rows))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = read_data(tmp_path, "--NO_LABEL_NAMES=none", "--UNKNOWN_NAMES=skip")
    assert data.table.classes == ("cat", "dog")
    assert data.table.targets.tolist() == [[1, 0], [0, 1], [1, 1], [0, 0], [1, 0]] * 2


def test_unknown_labels_count_nowhere(dataset: Path, tmp_path: Path) -> None:
    """All that is known of green is absent: no positive of it is trained, tuned or measured."""
    for path in dataset.glob("labels/*/*.cls"):
        path.write_text(path.read_text().replace("1\n", "?1\n"))
    data = read_data(dataset)
    assert (data.table.targets[:, 1] == -1).sum() > 5
    assert not (data.table.targets[:, 1] == 1).any()
    assert data.val.targets[:, 1].min() == -1, "unknown labels, too, are shared out"
    arguments = [*make_small_run(dataset, tmp_path), "--NUM_EPOCHS=1"]
    training.main(arguments)
    testing.main(arguments)
    result = json.loads((tmp_path / "predictions" / "evaluate_result.json").read_text())
    assert result["metrics"]["num_classes_in_mAP"] == 2
    assert (result["classes"]["green"]["positives"], result["classes"]["green"]["AP"]) == (0, None)


def test_excluded_images_are_left_out_of_training_and_validation(dataset: Path, tmp_path: Path) -> None:
    names = ["images/train-resized/train003.jpg", "images/train-resized/train030.jpg"]
    (tmp_path / "exclude.txt").write_text("# copies\n" + "\n".join(names) + "\n")
    data = read_data(dataset, f"--EXCLUDE_LIST={tmp_path / 'exclude.txt'}")
    assert len(data.table) == 38
    assert not {str(dataset / name) for name in names} & set(data.table.paths)


def test_damaged_images_are_an_error_or_left_out(
    dataset: Path, tmp_path: Path, fails: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = dataset / "images" / "train-resized" / "train007.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    arguments = [*make_small_run(dataset, tmp_path), "--NUM_EPOCHS=1"]
    assert f"cannot read image {broken}" in fails(training.main, arguments)
    capsys.readouterr()
    training.main([*arguments, "--BAD_IMAGES=skip"])
    assert "warning: 1 of 40 images are left out: cannot read image" in capsys.readouterr().err
    (path,) = tmp_path.glob("trained_models/*/*.pt")
    counts = checkpoints.load(path)["dataset"]
    assert counts["num_train"] + counts["num_val"] == 39
    table = read_data(dataset, "--BAD_IMAGES=skip", f"--CACHE_FOLDER={tmp_path / 'cache'}").table
    assert str(broken) not in table.paths


def test_validation_images_are_no_training_images(shared_dataset: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    convert.convert_dataset(shared_dataset, "auto", "train_list", root)
    train, test = (root / f"{split}_list.txt" for split in ("train", "test"))
    (root / "val_list.txt").write_text(test.read_text() + train.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"1 images are in train and in val, the first: .*train000\.jpg"):
        read_data(root)
    (root / "val_list.txt").write_text(test.read_text())
    for path in read_data(root).val.paths:
        Path(path).unlink()
        Path(path).write_bytes(b"")
    with pytest.raises(InputError, match="there are 0 validation images that can be read"):
        read_data(root, "--BAD_IMAGES=skip", f"--CACHE_FOLDER={tmp_path / 'cache'}")
    assert len(read_data(shared_dataset, f"--EXTRA_DATASET_FOLDERS={shared_dataset}").table) == 40, "each image once"


def test_images_that_are_trained_on_are_not_tested_on(
    shared_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    convert.convert_dataset(shared_dataset, "auto", "train_list", root)
    model = cast(Any, SimpleNamespace(classes=("red", "green", "blue"), metadata={}))
    train, test = (root / f"{split}_list.txt" for split in ("train", "test"))
    shared = Path(dataset_readers.read_dataset(root, split="train").paths[0])
    overrides.apply([f"--DATASET_FOLDER={root}"], config)
    assert len(from_config.read_test_images(model).paths) == 12
    lines = test.read_text() + train.read_text().splitlines()[0] + "\n"
    test.write_text(lines)
    with pytest.raises(InputError, match=rf"1 images are in train and in test, the first: {re.escape(str(shared))};"):
        from_config.read_test_images(model)
    config.TEST_SPLIT = "train"
    assert len(from_config.read_test_images(model).paths) == 40
    config.TEST_SPLIT = "test"
    test.write_text("".join(f"{line.partition(chr(9))[0]}\t-1,-1,-1\n" for line in lines.splitlines()))
    assert len(from_config.read_test_images(model).paths) == 13, "predicted, and not measured"
    test.write_text(lines)
    (tmp_path / "exclude.txt").write_text(f"{shared}\n")
    config.EXCLUDE_LIST = tmp_path / "exclude.txt"
    assert len(from_config.read_test_images(model).paths) == 13, "it is not trained on"
    config.EXCLUDE_LIST = None
    assert "it is not known" not in capsys.readouterr().err
    train.write_text("nowhere.jpg\t1,0,0\n")
    assert len(from_config.read_test_images(model).paths) == 13
    assert "it is not known whether test images are trained on: 1 of 1 images do not exist" in capsys.readouterr().err


def test_check_reads_what_training_does(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images and labels in folders of their own, and an exclude list that leaves the test images alone."""
    (dataset / "images" / "train-resized").rename(tmp_path / "pictures")
    (tmp_path / "exclude.txt").write_text("images/test-resized/test000.jpg\n")
    options = [f"--DATASET_FOLDER={dataset}", f"--TRAIN_IMAGES_DIR={tmp_path / 'pictures'}"]
    options += [f"--EXCLUDE_LIST={tmp_path / 'exclude.txt'}", f"--CHECK_FOLDER={tmp_path / 'check'}"]
    dataset_tools.main(["check", *options])
    assert "coco_cls, 40 train, 12 test images" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"TRAIN_IMAGES_DIR is .*: split looks in DATASET_FOLDER alone"):
        dataset_tools.main(["split", *options])


def test_other_folders_join_by_the_names_of_their_classes(shared_dataset: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", num_train=6, num_test=2)
    (other / "classes.txt").write_text("blue\nred\ngreen\n")
    data = read_data(shared_dataset, f"--EXTRA_DATASET_FOLDERS={other}")
    assert len(data.table) == 46
    own = dataset_readers.read_dataset(other, split="train")
    joined = dict(zip(data.table.paths, data.table.targets, strict=True))
    for path, row in zip(own.paths, own.targets, strict=True):
        assert joined[path].tolist() == [row[own.classes.index(name)] for name in data.table.classes]
    assert len(from_config.read_split("test")) == 12, "for training only"


def set_labels(dataset: Path, change: Callable[[int, str], str], split: str = "train") -> None:
    """Change the text of each label file of `split`, given its number and text."""
    for number, path in enumerate(sorted((dataset / "labels" / split).iterdir())):
        path.write_text(change(number, path.read_text()))


def test_without_a_label_nothing_is_trained(dataset: Path, tmp_path: Path, fails: Any) -> None:
    set_labels(dataset, lambda number, text: "")
    arguments = make_small_run(dataset, tmp_path)
    message = fails(training.main, arguments)
    assert f"no training image has a label: is TRAIN_LABELS_DIR right? It is {dataset / 'labels' / 'train'}" in message
    assert not list(tmp_path.glob("trained_models/*/*"))
    convert.convert_dataset(dataset, "auto", "csv", tmp_path / "table")
    message = fails(training.main, [*arguments, f"--DATASET_FOLDER={tmp_path / 'table'}"])
    assert f"no training image has a label: is DATASET_FOLDER right? {tmp_path / 'table'} is read as csv" in message
    assert "LABEL_SEPARATOR 'auto'" in message
    set_labels(dataset, lambda number, text: "?0\n?1\n?2\n")
    assert "no label of any training image is known, present or absent: is TRAIN" in fails(training.main, arguments)


def test_teachers_stand_in_for_labels_in_training_alone(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    set_labels(dataset, lambda number, text: "")
    rows = "".join(f"images/train-resized/train{n:03}.jpg,0.9,0.2,0.1\n" for n in range(40))
    (tmp_path / "teacher.csv").write_text(f"path,red,green,blue\n{rows}")
    with pytest.raises(InputError, match=r"no validation image has a label: VAL_SPLIT 0.25 takes 10 of 40 images"):
        read_data(dataset, f"--TEACHER_PROBABILITIES={tmp_path / 'teacher.csv'}")


def test_validation_needs_a_label(dataset: Path) -> None:
    set_labels(dataset, lambda number, text: "0\n" if number == 7 else "")
    with pytest.raises(InputError, match=r"no validation image has a label: VAL_SPLIT .* \(SPLIT_SEED 0\)"):
        read_data(dataset)


def test_seeds_validate_on_the_same_images_unless_split_seed_draws_others(shared_dataset: Path) -> None:
    table = dataset_readers.read_dataset(shared_dataset, split="train")
    drawn = {seed: stratified_split.split_table(table, 0.25, seed)[1].paths for seed in (0, 1)}
    assert drawn[0] != drawn[1]
    for seed in (0, 1, 2):
        assert read_data(shared_dataset, f"--SEED={seed}").val.paths == drawn[0]
    assert read_data(shared_dataset, "--SEED=2", "--SPLIT_SEED=1").val.paths == drawn[1]


def test_names_of_before_split_seed_mean_what_they_meant(shared_dataset: Path, tmp_path: Path) -> None:
    """Then SEED drew the split, MICRO_BATCH_SIZE was no part of a name, and some constants did not exist."""
    newer = {"SPLIT_SEED", *overrides.AS_BEFORE}

    def name(*options: str) -> str:
        data = read_data(shared_dataset, *options)
        return records.name_files(data).checkpoint.stem

    def name_as_before(*options: str) -> str:
        data = read_data(shared_dataset, *options)
        constants = overrides.resolved(config)
        decides = [c.name for c in overrides.list_constants(config) if c.section.endswith("*")]
        identity = {name: constants[name] for name in decides if name not in newer}
        return run_files.name_configuration(constants, identity | {"data": data.table.fingerprint()})

    assert name() == name_as_before()
    assert name("--SEED=1", "--SPLIT_SEED=1") == name_as_before("--SEED=1")
    new = name("--SEED=1")
    assert new not in (name_as_before("--SEED=1"), name("--SEED=1", "--SPLIT_SEED=2"))
    assert "_seed1_" in new
    assert name("--TAKE_OVER_HEAD=False") != name()
    assert name("--FEATURES=own") == name(), "which auto is for a convolutional network"
    assert name("--FEATURES=mean") not in (name(), name("--FEATURES=mean_and_max"))
    dino = "--MODEL_NAME=vit_small_patch14_dinov2"
    assert name(dino, "--FEATURES=own") == name_as_before(dino) != name(dino)
    assert name(dino, "--FEATURES=class_and_mean") == name(dino)
    assert name(dino, "--HEAD=ml_decoder") == name_as_before(dino, "--HEAD=ml_decoder"), "which sees all tokens"
    assert name("--MICRO_BATCH_SIZE=4") not in (name(), name("--MICRO_BATCH_SIZE=8"))
    root = tmp_path / "own"
    convert.convert_dataset(shared_dataset, "auto", "train_list", root)
    (root / "val_list.txt").write_text((root / "test_list.txt").read_text())
    own_split = f"--DATASET_FOLDER={root}"
    assert name(own_split, "--SEED=1", "--SPLIT_SEED=5") == name(own_split, "--SEED=1"), "nothing is drawn"
    assert name(own_split) != name_as_before(own_split), "which did not say which images are in the val split"


def test_the_same_run_of_fewer_epochs_has_the_same_micro_batches(shared_dataset: Path, tmp_path: Path) -> None:
    """BatchNorm in training looks at a micro-batch alone. Runs of before there was the constant had none."""
    folder = f"--TRAINED_MODELS_FOLDER={tmp_path}"
    data = read_data(shared_dataset, folder, "--NUM_EPOCHS=2")
    files, constants = records.name_files(data), overrides.resolved(config)
    files.folder.mkdir(parents=True)
    files.result.touch()

    def find(size: int, of_finished: dict[str, int]) -> tuple[int, Path] | None:
        """What a longer run of this MICRO_BATCH_SIZE finds, where the finished one has that of `of_finished`."""
        theirs = {name: value for name, value in constants.items() if name != "MICRO_BATCH_SIZE"} | of_finished
        dataset = {"fingerprint": data.table.fingerprint()}
        sidecar = {"format": checkpoints.FORMAT, "config": theirs, "dataset": dataset}
        files.checkpoint.with_suffix(".json").write_text(json.dumps(sidecar))
        longer = read_data(shared_dataset, folder, "--NUM_EPOCHS=3", f"--MICRO_BATCH_SIZE={size}")
        return records.find_finished(records.name_files(longer), longer)

    assert find(0, {}) == find(0, {"MICRO_BATCH_SIZE": 0}) == find(4, {"MICRO_BATCH_SIZE": 4}) == (2, files.checkpoint)
    assert find(4, {}) is find(0, {"MICRO_BATCH_SIZE": 4}) is find(8, {"MICRO_BATCH_SIZE": 4}) is None


@pytest.mark.parametrize("value", ["64,64", "(64, 64)", "[64,64]"])
def test_a_square_by_two_numbers_is_the_square_by_one(value: str, shared_dataset: Path) -> None:
    def name(value: str) -> str:
        return records.name_files(read_data(shared_dataset, f"--IMAGE_SIZE={value}")).checkpoint.stem

    assert name(value) == name("64")
    assert name("64").startswith("linear_bn_64px_")
    assert name("64,96").startswith("linear_bn_64x96px_")
    assert name("96,64").startswith("linear_bn_96x64px_")


@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (100, 100)])
def test_the_image_cache_keeps_what_an_oblong_crop_needs(shape: tuple[int, int], tmp_path: Path) -> None:
    """Photographs of up to 16:9, upright or not, have a place; shrunk, they still cover the largest crop."""
    picture = np.random.default_rng(0).integers(0, 256, (4 * shape[0], 4 * shape[1], 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    table = Table([str(tmp_path / "a.png")], np.ones((1, 1), np.int8), ("a",))
    options = ["--IMAGE_SIZE=32,64", "--IMAGE_CACHE=memory", "--CROP_SCALE_MIN=0.25", "--GROWING_IMAGE_SIZES=48"]
    overrides.apply(options, config)
    caches = training_data.open_image_caches(training_data.Data(table, table, table, "csv"))
    assert caches.train is not None
    assert caches.val is not None
    for cache in (caches.train, caches.val):
        cache.select(table.paths).keep(0, picture)
        assert cache.select(table.paths).read(0) is not None, "there is room for it"
    height, width, _ = caches.train.select(table.paths).read(0).shape  # pyright: ignore[reportOptionalMemberAccess]
    assert (height >= 96, width >= 192) == (True, True), "twice the largest size, 48 x 96"
    assert height == 96 or width == 192
    assert caches.val.select(table.paths).read(0).shape == (32, 64, 3)  # pyright: ignore[reportOptionalMemberAccess]


def test_sources_stay_on_one_side(dataset: Path) -> None:
    data = read_data(dataset, r"--GROUP_PATTERN=train\d(\d)\d\.jpg")
    groups = [{Path(path).stem[6] for path in split.paths} for split in (data.train, data.val)]
    assert not groups[0] & groups[1]
    assert np.array([len(data.train), len(data.val)]).tolist() == [30, 10]
