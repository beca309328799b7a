"""What `python dataset_tools.py VERB` writes, and what it refuses to touch."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import config
import dataset_tools
import overrides
from dataset import formats, probability_files
from dataset_readers import list_splits, read_dataset
from tools import demo, demo_images, download
from trainer import from_config
from utils import InputError


@pytest.fixture(autouse=True)
def _restore_constants() -> Iterator[None]:
    """Overrides edit the modules' constants: put them back."""
    before = [(module, dict(vars(module))) for module in (config, dataset_tools)]
    yield
    for module, values in before:
        vars(module).update(values)


def draw_demo(root: Path, **constants: int) -> None:
    values = {"DEMO_TRAIN_IMAGES": 12, "DEMO_TEST_IMAGES": 4, "DEMO_IMAGE_SIZE": 64, **constants}
    overridden = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    dataset_tools.main(["demo", "--DATASET_FOLDER", str(root), *overridden])


def read_files(root: Path) -> dict[str, bytes]:
    """Every file under `root` but the marker: its relative path -> its bytes."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != demo.MARKER)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_demo_writes_images_and_labels_that_agree(tmp_path: Path) -> None:
    draw_demo(tmp_path)
    classes = (tmp_path / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert classes == list(demo_images.KINDS)
    for split, count in (("train", 12), ("test", 4)):
        images = sorted((tmp_path / "images" / f"{split}-resized").iterdir())
        labels = sorted((tmp_path / "labels" / split).iterdir())
        assert len(images) == count
        assert [path.stem for path in images] == [path.stem for path in labels]
        assert {path.suffix for path in images} == {".jpg"}
        for image, label in zip(images, labels, strict=True):
            with Image.open(image) as picture:
                assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (64, 64))
            indices = [int(line) for line in label.read_text(encoding="utf-8").splitlines()]
            assert indices == sorted(set(indices))
            assert set(indices) <= set(range(len(classes)))


def test_demo_summary_counts_the_label_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_demo(tmp_path)
    printed = capsys.readouterr().out
    assert f"{tmp_path}: 12 train and 4 test images" in printed
    rows = {line.split()[0]: [int(n) for n in line.split()[1:]] for line in printed.splitlines()[-10:]}
    for index, name in enumerate(demo_images.KINDS):
        shown = [
            sum(
                str(index) in path.read_text(encoding="utf-8").split()
                for path in (tmp_path / "labels" / split).iterdir()
            )
            for split in ("train", "test")
        ]
        assert rows[name] == shown


def test_demo_is_decided_by_the_seed(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        draw_demo(tmp_path / name, DEMO_SEED=seed)
    first, again, other = (read_files(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    images = [name for name in first if name.endswith(".jpg")]
    assert len(images) == 16
    assert all(first[name] != other[name] for name in images)


def test_demo_image_does_not_depend_on_the_counts(tmp_path: Path) -> None:
    draw_demo(tmp_path / "few", DEMO_TRAIN_IMAGES=5, DEMO_TEST_IMAGES=2)
    draw_demo(tmp_path / "more", DEMO_TRAIN_IMAGES=7, DEMO_TEST_IMAGES=3)
    few, more = read_files(tmp_path / "few"), read_files(tmp_path / "more")
    assert len(few) == 2 * (5 + 2) + 1
    assert {name: more[name] for name in few} == few


def test_demo_test_images_are_not_training_images(tmp_path: Path) -> None:
    draw_demo(tmp_path)
    images = [data for name, data in read_files(tmp_path).items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images) == 16


def test_demo_labels_have_a_long_tail() -> None:
    rows = [demo_images.sample_kinds(np.random.default_rng([0, 0, index])) for index in range(3000)]
    targets = np.zeros((len(rows), len(demo_images.KINDS)))
    for index, kinds in enumerate(rows):
        targets[index, kinds] = 1
    shares = targets.mean(0)
    wanted = [share for _, share, _ in demo_images.KINDS.values()]
    np.testing.assert_allclose(shares, wanted, atol=0.03)  # 3 standard deviations of the largest
    assert 4 < shares.max() / shares.min() < 7
    assert 1.8 < targets.sum(1).mean() < 2.3
    assert 0.04 < (targets.sum(1) == 0).mean() < 0.15  # some images show none
    correlations = np.asarray(np.corrcoef(targets.T))[~np.eye(len(shares), dtype=bool)]
    assert 0.05 < correlations.max() < 0.3


@pytest.mark.parametrize("kind", range(len(demo_images.KINDS)), ids=list(demo_images.KINDS))
def test_demo_draws_what_it_labels(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same background with and without an object, no distractors: the object is there, and not tiny."""
    monkeypatch.setattr(demo_images, "draw_distractor", lambda pen, rng, colors: None)
    image, shown = demo_images.draw_image(np.random.default_rng(kind), [kind], 96)
    empty, none = demo_images.draw_image(np.random.default_rng(kind), [], 96)
    assert (shown, none) == ([kind], [])
    change = np.abs(np.asarray(image, dtype=int) - np.asarray(empty, dtype=int)).max(2)
    assert 0.01 < (change > 60).mean() < 0.4


def test_demo_keeps_labelled_objects_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds in one crowded picture: none ends up covered or cut beyond the limit."""
    areas: dict[int, int] = {}
    latest: list[np.ndarray] = []
    cover = demo_images.cover

    def cover_and_keep(owner: np.ndarray, cells: np.ndarray, left: int, top: int, piece: int) -> np.ndarray:
        areas[piece] = int(cells.sum())
        latest.append(cover(owner, cells, left, top, piece))
        return latest[-1]

    monkeypatch.setattr(demo_images, "cover", cover_and_keep)
    kinds = list(range(len(demo_images.KINDS)))
    _, shown = demo_images.draw_image(np.random.default_rng(0), kinds, 96)
    assert shown == kinds
    for kind in kinds:
        assert (latest[-1] == kind).sum() >= demo_images.MIN_VISIBLE * areas[kind] > 0


def test_cover_cuts_at_the_edges() -> None:
    owner = np.full((4, 5), -1)
    cells = np.ones((3, 2), dtype=bool)
    cells[0, 0] = False
    assert (demo_images.cover(owner, cells, 1, 1, 7) == 7).sum() == 5
    assert np.argwhere(demo_images.cover(owner, cells, -1, -1, 7) == 7).tolist() == [[0, 0], [1, 0]]
    assert np.argwhere(demo_images.cover(owner, cells, 4, 2, 7) == 7).tolist() == [[3, 4]]
    assert (demo_images.cover(owner, cells, 9, -9, 7) == -1).all()
    assert (owner == -1).all()


def test_demo_leaves_a_folder_that_it_did_not_draw(tmp_path: Path) -> None:
    foreign = tmp_path / "images" / "train-resized" / "holiday.jpg"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"a photograph")
    with pytest.raises(InputError, match=r"holiday\.jpg was not drawn by demo: choose another DATASET_FOLDER"):
        draw_demo(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [foreign]
    assert foreign.read_bytes() == b"a photograph"


def test_demo_is_drawn_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_demo(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    draw_demo(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert "already" in capsys.readouterr().out


def test_demo_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    draw_demo(tmp_path / "changed", DEMO_TRAIN_IMAGES=14)
    notes = tmp_path / "changed" / "notes.txt"
    notes.write_text("mine")
    draw_demo(tmp_path / "changed", DEMO_SEED=3)
    assert notes.read_text() == "mine"
    notes.unlink()
    draw_demo(tmp_path / "fresh", DEMO_SEED=3)
    assert read_files(tmp_path / "changed") == read_files(tmp_path / "fresh")


@pytest.mark.parametrize("stage", ["drawing", "replacing"])
def test_demo_that_was_interrupted_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    draw_demo(tmp_path / "whole")
    if stage == "replacing":
        draw_demo(tmp_path / "cut", DEMO_SEED=1, DEMO_TRAIN_IMAGES=15)
    draw_image, drawn = demo_images.draw_image, []

    def draw_and_stop(*arguments: object) -> object:
        drawn.append(arguments)
        if len(drawn) == 6:
            raise KeyboardInterrupt
        return draw_image(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(demo, "draw_image", draw_and_stop)
    with pytest.raises(KeyboardInterrupt):
        draw_demo(tmp_path / "cut")
    assert not json.loads((tmp_path / "cut" / demo.MARKER).read_text())["complete"]
    monkeypatch.setattr(demo, "draw_image", draw_image)
    draw_demo(tmp_path / "cut")
    assert read_files(tmp_path / "cut") == read_files(tmp_path / "whole")


def test_demo_refuses_impossible_constants(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="DEMO_TRAIN_IMAGES 1"):
        draw_demo(tmp_path, DEMO_TRAIN_IMAGES=0)
    assert not list(tmp_path.iterdir())


# ---- the other verbs ----


def read_set(root: Path, split: str) -> dict[str, list[int]]:
    """The labels of each image of a split, by the image's bytes."""
    table = read_dataset(root, split=split)
    return {Path(path).read_bytes().hex(): row for path, row in zip(table.paths, table.targets.tolist(), strict=True)}


def run(verb: str, *arguments: str, folder: Path, root: Path) -> None:
    dataset_tools.main([verb, *arguments, f"--LOCAL_ROOT={root}", f"--DATASET_FOLDER={folder}"])


def test_check_tells_pass_or_fail_by_its_exit_status(dataset: Path, tmp_path: Path) -> None:
    run("check", folder=dataset, root=tmp_path)
    result = json.loads((tmp_path / "check" / "check_dataset_result.json").read_text())
    assert result["check_pass"] is True
    (dataset / "images" / "train-resized" / "train005.jpg").write_bytes(b"broken")
    with pytest.raises(SystemExit) as stop:
        run("check", f"--CHECK_FOLDER={tmp_path / 'again'}", folder=dataset, root=tmp_path)
    assert stop.value.code == 1
    result = json.loads((tmp_path / "again" / "check_dataset_result.json").read_text())
    assert result["check_pass"] is False
    assert (tmp_path / "again" / "exclude.txt").read_text().splitlines()[-1] == "images/train-resized/train005.jpg"


def test_check_goes_on_where_training_would_stop(dataset: Path, tmp_path: Path) -> None:
    (dataset / "images" / "train-resized" / "train005.jpg").unlink()
    (dataset / "labels" / "train" / "train006.cls").write_text("9\n")
    with pytest.raises(SystemExit) as stop:
        run("check", folder=dataset, root=tmp_path)
    assert stop.value.code == 1
    result = json.loads((tmp_path / "check" / "check_dataset_result.json").read_text())
    assert [finding["kind"] for finding in result["findings"]][:2] == ["labels", "missing"]
    assert result["attributes"]["train_samples"] == 40
    with pytest.raises(InputError, match="without an image"):
        from_config.read_split("train")


@pytest.mark.parametrize("name", ["--TO", "--to"])
def test_convert_writes_another_format(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    output = tmp_path / "other"
    run("convert", name, "mlcls", f"--OUTPUT_FOLDER={output}", folder=dataset, root=tmp_path)
    assert f"{output}: 40 train, 12 test images as mlcls" in capsys.readouterr().out
    assert (output / "label.txt").read_text() == "0 red\n1 green\n2 blue\n"
    for split in ("train", "test"):
        assert read_set(output, split) == read_set(dataset, split)


def test_split_divides_by_percent(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_set(dataset, "train") | read_set(dataset, "test")
    percents = ("--TRAIN_PERCENT=50", "--VAL_PERCENT=25", "--TEST_PERCENT=25")
    run("split", *percents, "--DRY_RUN=True", folder=dataset, root=tmp_path)
    assert "DRY_RUN: nothing is changed; SPLIT_SEED 0 drew this" in capsys.readouterr().out
    assert list_splits(dataset) == ["train", "test"]
    run("split", *percents, "--DRY_RUN=False", folder=dataset, root=tmp_path)
    parts = [read_set(dataset, split) for split in list_splits(dataset)]
    assert [len(part) for part in parts] == [26, 13, 13]
    assert parts[0] | parts[1] | parts[2] == before
    assert (dataset / "labels" / "train.bak").is_dir()
    printed = capsys.readouterr().out
    assert "largest deviation: " in printed
    assert "labels/train.bak" in printed
    with pytest.raises(InputError, match="TRAIN_PERCENT 50, VAL_PERCENT 10, TEST_PERCENT 0"):
        run("split", "--TRAIN_PERCENT=50", folder=dataset, root=tmp_path)


def test_resize_fills_the_folder_that_training_reads(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    originals = dataset / "images" / "train"
    (dataset / "images" / "train-resized").rename(originals)
    run("resize", "--RESIZE_SHORT_SIDE=18", folder=dataset, root=tmp_path)
    assert f"{config.TRAIN_IMAGES_DIR}: 40 copies written, 0 were there already" in capsys.readouterr().out
    for path in read_dataset(dataset, split="train").paths:
        with Image.open(path) as copy:
            assert copy.size == (24, 18)


def test_curriculum_weighs_by_what_a_model_knows(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two models that are sure of some images, guess at others, are wrong about a third kind, and lack one."""
    table = read_dataset(dataset, split="train")
    kinds = np.arange(len(table) - 1) % 3
    right = table.targets[:-1].astype(float)
    given = np.stack([right, np.full_like(right, 0.5), 1 - right])[kinds, np.arange(len(kinds))]
    files = []
    for name, values in (("one", 0.9 * given + 0.1), ("other", 0.9 * given)):  # on average p is 0.05, 0.5 or 0.95
        lines = [f"{path},{','.join(map(str, row))}" for path, row in zip(table.paths, values.tolist(), strict=False)]
        files.append(tmp_path / f"{name}.csv")
        files[-1].write_text("\n".join(["image_path,red,green,blue", *lines]))
    probabilities = f"--CURRICULUM_PROBABILITIES={files[0]},{files[1]}"
    steps = ["--CURRICULUM_THRESHOLDS=0.8,0.4", "--CURRICULUM_WEIGHTS=1,0.5,0"]
    run("curriculum", probabilities, *steps, folder=dataset, root=tmp_path)
    printed = capsys.readouterr().out
    assert "score from 0.8 on: 13 images (32.5%), weight 1\n" in printed
    assert "score from 0.4 on: 13 images (32.5%), weight 0.5\nscore below: 13 images (32.5%), weight 0\n" in printed
    assert "without a score: 1 images, not listed, which is weight 1" in printed
    written = dict(line.rsplit(",", 1) for line in (tmp_path / "curriculum.txt").read_text().splitlines())
    expected = zip(table.paths, 1 - kinds / 2, strict=False)
    assert {path: float(weight) for path, weight in written.items()} == dict(expected)
    assert probability_files.read_curriculum(table, tmp_path / "curriculum.txt").sum() == 13 * 1.5 + 1
    with pytest.raises(InputError, match=r"CURRICULUM_PROBABILITIES is \(\): set it to files that testing.py wrote"):
        run("curriculum", "--CURRICULUM_PROBABILITIES=()", folder=dataset, root=tmp_path)


@pytest.mark.parametrize("arguments", [["voc2007"], ["--DOWNLOAD", "voc2007"]])
def test_download_takes_the_name_of_a_data_set(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:  # fmt: skip
    fetch = Mock(return_value={split: read_dataset(dataset, split=split) for split in ("train", "test")})
    monkeypatch.setattr(download, "download_dataset", fetch)
    more = ["--RESIZE_SHORT_SIDE=99", "--DOWNLOAD_URLS=http://a,http://b"]
    run("download", *arguments, *more, folder=tmp_path / "voc", root=tmp_path)
    fetch.assert_called_once_with(
        "voc2007", tmp_path / "voc", short_side=99, quality=90, base_urls=("http://a", "http://b")
    )
    assert ["images", "40", "12"] in [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    with pytest.raises(InputError, match=r"DOWNLOAD is 'voc2008' \(did you mean voc2007\?\)"):
        run("download", "voc2008", folder=tmp_path / "voc", root=tmp_path)


def test_choices_are_what_the_registries_hold() -> None:
    choices = {
        constant.name: typing.get_args(constant.annotation) for constant in overrides.list_constants(dataset_tools)
    }
    assert choices["TO"] == formats.WRITABLE
    assert choices["DOWNLOAD"] == tuple(download.PUBLIC_DATASETS)


def test_bad_input_is_one_line(tmp_path: Path, fails: Callable[[Callable[[list[str]], None], list[str]], str]) -> None:
    for verb in ("check", "convert", "split", "resize"):
        message = fails(dataset_tools.main, [verb, f"--DATASET_FOLDER={tmp_path / 'nowhere'}"])
        assert "nowhere" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dmeo"], r"'dmeo' is not a verb \(did you mean demo\?\); dataset_tools.py takes: demo"),
        ([], r"'' is not a verb; dataset_tools.py takes: demo"),
        (["demo", "--DEMO_SED", "1"], r"no constant 'DEMO_SED' \(did you mean DEMO_SEED\?\)"),
    ],
)
def test_unknown_verbs_and_constants_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataset_tools.main(arguments)


def test_help_lists_the_constants_of_demo(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        dataset_tools.main(["--help"])
    assert stop.value.code == 0
    assert "--DEMO_SEED 0" in capsys.readouterr().out


def test_help_explains_every_verb() -> None:
    assert dataset_tools.__doc__ is not None
    explained = [line.split()[0] for line in dataset_tools.__doc__.splitlines() if line.startswith("    ")]
    assert sorted(explained) == sorted(dataset_tools.VERBS)
