"""trainer/training_data.py and trainer/from_config.py: which images a run trains and validates on, whatever their
format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_small_run, write_dataset

import config
import dataset_readers
import dataset_tools
import overrides
import testing
import training
from models import checkpoints
from tools import convert
from tools.split import split_dataset
from trainer import from_config, training_data
from utils import InputError


def read_data(dataset: Path, *options: str) -> training_data.Data:
    overrides.apply([f"--DATASET_FOLDER={dataset}", "--VAL_SPLIT=0.25", *options], config)
    return training_data.read_data()


def test_a_share_of_the_training_images_is_validated_on(shared_dataset: Path) -> None:
    data = read_data(shared_dataset)
    assert (len(data.table), len(data.train), len(data.val), data.format) == (40, 30, 10, "coco_cls")
    assert sorted(data.train.paths + data.val.paths) == data.table.paths


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
    assert str(broken) not in read_data(dataset, "--BAD_IMAGES=skip").table.paths


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


def test_sources_stay_on_one_side(dataset: Path) -> None:
    data = read_data(dataset, r"--GROUP_PATTERN=train\d(\d)\d\.jpg")
    groups = [{Path(path).stem[6] for path in split.paths} for split in (data.train, data.val)]
    assert not groups[0] & groups[1]
    assert np.array([len(data.train), len(data.val)]).tolist() == [30, 10]
