"""tools/split.py: both sides of a split have the same labels, as near as whole images allow."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dataset.formats import FORMATS, WRITABLE
from dataset.stratified_split import choose_rows, describe_split, divide_rows, measure_deviations, split_table
from dataset.table import Table
from dataset.tar_shards import read_bytes
from dataset_readers import list_splits, read_dataset
from tools import split
from tools.split import split_dataset
from utils import InputError


def make_table(num_images: int, shares: list[float], seed: int = 0, groups: tuple[str, ...] | None = None) -> Table:
    """Labels that come together: half of the classes only where the first coin says so."""
    rng = np.random.default_rng(seed)
    probabilities = np.tile(shares, (num_images, 1))
    probabilities[:, ::2] *= 2 * (rng.random((num_images, 1)) < 0.5)
    targets = (rng.random(probabilities.shape) < probabilities).astype(np.int8)
    names = tuple(f"class{index}" for index in range(len(shares)))
    return Table([f"{index}.jpg" for index in range(num_images)], targets, names, groups)


LONG_TAIL = np.geomspace(0.45, 0.002, 20).tolist()


@pytest.mark.parametrize("share", [0.02, 0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("num_images", [100, 1000, 5000])
def test_split_is_stratified_exact_whole_and_the_same_for_a_seed(num_images: int, share: float) -> None:
    table = make_table(num_images, LONG_TAIL)
    rest, part = split_table(table, share, seed=3)
    assert len(part) == round(num_images * share)
    assert sorted(rest.paths + part.paths) == sorted(table.paths)
    rows = {path: row.tolist() for path, row in zip(table.paths, table.targets, strict=True)}
    assert all(rows[path] == row.tolist() for path, row in zip(part.paths, part.targets, strict=True))
    np.testing.assert_allclose(part.targets.sum(axis=0), table.targets.sum(axis=0) * share, atol=1)
    without_label = (table.targets.sum(axis=1) == 0).sum()
    assert (part.targets.sum(axis=1) == 0).sum() == pytest.approx(without_label * share, abs=1)
    assert split_table(table, share, seed=3)[1].paths == part.paths
    assert split_table(table, share, seed=4)[1].paths != part.paths


@pytest.mark.parametrize("num_images", [23, 100, 1000])
def test_folds_share_out_images_and_labels(num_images: int) -> None:
    targets = make_table(num_images, LONG_TAIL).targets
    part_of = divide_rows(targets, 5, seed=3)
    sizes = np.bincount(part_of, minlength=5)
    assert sizes.sum() == num_images
    assert sizes.max() - sizes.min() <= 1
    for part in range(5):
        np.testing.assert_allclose(targets[part_of == part].sum(axis=0), targets.sum(axis=0) / 5, atol=1.5)
    assert np.array_equal(divide_rows(targets, 5, seed=3), part_of)
    assert not np.array_equal(divide_rows(targets, 5, seed=4), part_of)


def test_folds_keep_sources_whole() -> None:
    names = [f"camera {index // 4}" if index < 80 else "" for index in range(100)]
    part_of = divide_rows(make_table(100, [0.5, 0.2]).targets, 4, 0, names)
    for camera in set(names) - {""}:
        assert len(set(part_of[[name == camera for name in names]].tolist())) == 1
    assert np.bincount(part_of).tolist() == pytest.approx([25] * 4, abs=2)
    assert set(divide_rows(np.ones((6, 1), np.int8), 3, 0, ["one"] * 6).tolist()) != {0, 1, 2}


def test_the_part_is_a_random_one() -> None:
    """Over many seeds each image is chosen as often as any other."""
    table = make_table(200, [0.5, 0.2, 0.05])
    chosen = np.mean([choose_rows(table.targets, 0.25, seed) for seed in range(400)], axis=0)
    deviation = np.sqrt(0.25 * 0.75 / 400)
    assert abs(chosen - 0.25).max() < 5 * deviation
    assert chosen.std() < 1.5 * deviation


def test_another_process_makes_the_same_split() -> None:
    code = "import numpy as np; from dataset.stratified_split import choose_rows;"
    code += "t = np.eye(7, dtype=np.int8)[np.arange(100) ** 2 % 7];"
    code += "print(np.flatnonzero(choose_rows(t, 0.3, 5, [f'g{i // 3}' for i in range(100)])).tolist())"
    root = Path(split.__file__).parents[1]
    there = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    targets = np.eye(7, dtype=np.int8)[np.arange(100) ** 2 % 7]
    here = np.flatnonzero(choose_rows(targets, 0.3, 5, [f"g{i // 3}" for i in range(100)])).tolist()
    assert there.strip() == str(here)


def test_unknown_labels_are_neither_present_nor_absent() -> None:
    rng = np.random.default_rng(1)
    table = make_table(2000, [0.4, 0.2, 0.1, 0.05])
    targets = table.targets.copy()
    targets[rng.random(2000) < 0.9, 1] = -1  # known in a tenth of the images only
    targets[:500, 3] = -1
    part = targets[choose_rows(targets, 0.1, 0)]
    for value in (1, 0, -1):
        np.testing.assert_allclose((part == value).sum(axis=0), (targets == value).sum(axis=0) * 0.1, atol=1)


def test_groups_stay_together_and_labels_still_agree() -> None:
    """Labels agree several times better than in parts of random groups."""
    sizes = np.random.default_rng(2).integers(1, 30, 400)
    names = [f"camera {number}" for number, size in enumerate(sizes) for _ in range(size)]
    names = [names[index] for index in np.random.default_rng(3).permutation(len(names))]
    table = make_table(len(names), LONG_TAIL, groups=tuple(names))
    expected = table.targets.sum(axis=0) * 0.2

    def measure(targets: np.ndarray) -> float:
        """Chi-squared of the classes' numbers."""
        return float(((targets.sum(axis=0) - expected) ** 2 / np.maximum(expected, 1)).sum())

    rng, cameras = np.random.default_rng(4), sorted(set(names))
    parts = [np.isin(names, rng.permutation(cameras)[:80]) for _ in range(20)]
    random = np.median([measure(table.targets[part]) for part in parts])
    for groups in (None, [*names]):  # the table's own, or given
        rest, part = split_table(table, 0.2, 0, groups)
        assert rest.groups is not None
        assert part.groups is not None
        assert not set(rest.groups) & set(part.groups)
        assert len(part) == pytest.approx(0.2 * len(table), rel=0.01)
        assert measure(part.targets) < random / 5


def test_images_without_a_group_are_split_one_by_one() -> None:
    table = make_table(300, [0.5, 0.2])
    groups = ["one", "one", *[""] * 298]
    rest, part = split_table(table, 0.5, 0, groups)
    assert len(part) == 150
    assert len({"0.jpg", "1.jpg"} & set(part.paths)) != 1
    assert len({"0.jpg", "1.jpg"} & set(rest.paths)) != 1


@pytest.mark.parametrize(("num_images", "share"), [(0, 0.5), (10, 0.05), (10, 0.1), (10, 0.95), (3, 0.5)])
def test_a_split_with_too_few_images_is_refused(num_images: int, share: float) -> None:
    table = Table([str(i) for i in range(num_images)], np.ones((num_images, 1), dtype=np.int8), ("a",))
    with pytest.raises(InputError, match=r"VAL_SPLIT.* at least 2"):
        split_table(table, share, 0)


def test_a_group_that_leaves_too_little_is_refused() -> None:
    table = Table([str(i) for i in range(10)], np.ones((10, 1), dtype=np.int8), ("a",), ("all",) * 9 + ("rest",))
    with pytest.raises(InputError, match="at least 2"):
        split_table(table, 0.3, 0)


def test_the_most_surprising_deviation_comes_first() -> None:
    targets = np.zeros((100, 2), dtype=np.int8)
    targets[:50, 0] = 1
    targets[:8, 1] = 1
    table = Table([str(i) for i in range(100)], targets, ("often", "rare"))
    parts = {"train": table.select(range(8, 100)), "val": table.select(range(8))}
    first, *_ = deviations = measure_deviations(parts)
    assert len(deviations) == 4
    assert (first.split, first.name, first.found) == ("val", "rare", 8)
    assert first.expected == pytest.approx(8 * 0.08)
    assert str(first) == "rare in val: 8 instead of 0.6 (+1150.0 %)"


# ---- the verb ----

PERCENTS = {"train": 60, "val": 20, "test": 20}


def write_dataset(root: Path, format: str, counts: dict[str, int]) -> None:
    """A data set of single labels, so that every format takes it; an image file's content is its label and number."""
    rng = np.random.default_rng(0)
    for split_name, count in counts.items():
        labels = rng.choice(3, count, p=[0.6, 0.3, 0.1])
        names = [f"{split_name} ü{index:03}.jpg" for index in range(count)]
        table = Table(names, np.eye(3, dtype=np.int8)[labels], ("red", "green", "blue"))
        names = FORMATS[format].name_images(table, names)
        paths = [root / FORMATS[format].images_folder(split_name) / name for name in names]
        for path, name, label in zip(paths, names, labels, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{label} {split_name} {name}")
        FORMATS[format].write(replace(table, paths=[str(path) for path in paths]), root, split_name, names)
        if FORMATS[format].in_shards:
            shutil.rmtree(root / FORMATS[format].images_folder(split_name))


def read_labels(root: Path, format: str, split_name: str | None = None) -> dict[str, list[int]]:
    """What is in each image file, and its labels."""
    table = read_dataset(root, format, split_name)
    contents = [read_bytes(path).decode() for path in table.paths]
    assert len(set(contents)) == len(contents)
    return dict(zip(contents, table.targets.tolist(), strict=True))


def read_tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", WRITABLE)
def test_every_format_is_divided_anew_and_what_was_there_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    write_dataset(tmp_path, format, {"train": 70, "test": 30})
    before, labels = read_tree(tmp_path), read_labels(tmp_path, format)
    split_dataset(tmp_path, "auto", PERCENTS, seed=0)
    assert list_splits(tmp_path, format) == ["train", "val", "test"]
    parts = {name: read_labels(tmp_path, format, name) for name in PERCENTS}
    assert {name: len(part) for name, part in parts.items()} == PERCENTS
    assert parts["train"] | parts["val"] | parts["test"] == labels
    totals = np.sum(list(labels.values()), axis=0)
    for name, part in parts.items():
        np.testing.assert_allclose(np.sum(list(part.values()), axis=0), totals * PERCENTS[name] / 100, atol=2)
    assert not list(tmp_path.glob(".*"))

    printed = capsys.readouterr().out
    counts = [str(sum(row[0] for row in part.values())) for part in parts.values()]
    assert ["red", *counts] in [line.replace("│", " ").split() for line in printed.splitlines()]
    for path in sorted(tmp_path.rglob("*.bak")):
        assert path.relative_to(tmp_path).as_posix() in printed
    assert "SPLIT_SEED 0 drew this; replaced, and kept: " in printed
    undo(printed)
    assert read_tree(tmp_path) == before
    assert read_labels(tmp_path, format) == labels


def undo(printed: str) -> None:
    """Run the commands that split has printed."""
    commands = printed.partition("to undo it: ")[2].strip()
    subprocess.run(["sh", "-c", commands], check=True)


def write_coco(root: Path, files: dict[str, tuple[str, range]]) -> None:
    """{annotation file: (its images' folder, their numbers)}; image n has the class red, green or blue by n % 3."""
    for file, (folder, numbers) in files.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        images = [{"id": number, "file_name": f"{number}.jpg"} for number in numbers]
        for image in images:
            (root / folder / image["file_name"]).write_text(f"{image['id']}")
        boxes = [{"id": n, "image_id": n, "category_id": n % 3 + 7, "bbox": [1, 2, 3, 4]} for n in numbers]
        categories = [{"id": 7 + index, "name": name} for index, name in enumerate(("red", "green", "blue"))]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(json.dumps(content))


COCO = {
    "as it is downloaded": {
        "annotations/instances_train2017.json": ("train2017", range(20)),
        "annotations/instances_val2017.json": ("val2017", range(20, 30)),
    },
    "one file": {"result.json": ("images", range(30))},
    "two of one split": {
        "annotations/instances_train_a.json": ("images", range(20)),
        "annotations/instances_train_b.json": ("images", range(20, 30)),
    },
    "Roboflow": {
        "train/_annotations.coco.json": ("train", range(30)),
        "test/_annotations.coco.json": ("test", range(30, 40)),
    },
}


@pytest.mark.parametrize("layout", COCO)
def test_a_split_of_coco_json_can_be_undone(tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str) -> None:
    write_coco(tmp_path, COCO[layout])
    before, splits = read_tree(tmp_path), list_splits(tmp_path)
    labels = {name: read_labels(tmp_path, "coco_json", name) for name in splits}
    split_dataset(tmp_path, "auto", {"train": 80, "val": 20, "test": 0}, seed=0)
    after = {name: read_labels(tmp_path, "coco_json", name) for name in list_splits(tmp_path)}
    assert {name: len(part) for name, part in after.items() if name != "test"} == {"train": 24, "val": 6}
    assert after["train"] | after["val"] == labels["train"] | labels.get("val", {})
    assert after.get("test") == labels.get("test")
    undo(capsys.readouterr().out)
    assert read_tree(tmp_path) == before
    assert {name: read_labels(tmp_path, "coco_json", name) for name in list_splits(tmp_path)} == labels


def test_the_backups_of_coco_json_alone_put_it_back(tmp_path: Path) -> None:
    write_coco(tmp_path, COCO["as it is downloaded"])
    before = read_tree(tmp_path)
    split_dataset(tmp_path, "auto", {"train": 80, "val": 20, "test": 0}, seed=0)
    for path in tmp_path.rglob("*.bak"):
        path.replace(path.with_suffix(""))
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize(
    ("format", "text", "names"),
    [
        ("huggingface", "file_name,label\n{0}\n", ("metadata.csv", "train", "validation")),
        ("roboflow", "", ("train", "valid")),
    ],
)
def test_folders_that_say_the_split_under_another_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str, text: str, names: tuple[str, ...]
) -> None:
    rows = {f"{folder}/{n}.jpg": "ab"[n % 2] for n in range(20) for folder in (names[-1] if n < 6 else names[-2],)}
    for name in rows:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    if text:
        (tmp_path / "metadata.csv").write_text(
            text.format("\n".join(f"{name},{label}" for name, label in rows.items()))
        )
    for folder in names[-2:] if not text else ():
        cells = [f"{Path(name).name}, {int(label == 'a')}, {int(label == 'b')}" for name, label in rows.items()
                 if name.startswith(f"{folder}/")]  # fmt: skip
        (tmp_path / folder / "_classes.csv").write_text("\n".join(["filename, a, b", *cells]))
    before, labels = read_tree(tmp_path), read_labels(tmp_path, format)
    split_dataset(tmp_path, "auto", {"train": 50, "val": 50, "test": 0}, seed=0)
    parts = {name: read_labels(tmp_path, format, name) for name in ("train", "val")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 10, "val": 10}
    assert parts["train"] | parts["val"] == labels
    undo(capsys.readouterr().out)
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize("format", ["coco_cls", "csv"])
def test_a_dry_run_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str) -> None:
    write_dataset(tmp_path, format, {"train": 70, "test": 30})
    before = read_tree(tmp_path)
    split_dataset(tmp_path, format, PERCENTS, seed=5, dry_run=True)
    dry = capsys.readouterr().out
    assert read_tree(tmp_path) == before
    assert not list(tmp_path.glob(".*"))
    old = ", ".join(path.relative_to(tmp_path).as_posix() for name in ("train", "test")
                    for path in FORMATS[format].files_of_split(tmp_path, name))  # fmt: skip
    assert f"DRY_RUN: nothing is changed; SPLIT_SEED 5 drew this, and would keep as .bak: {old}\n" in dry
    split_dataset(tmp_path, format, PERCENTS, seed=5)
    wet = capsys.readouterr().out
    assert dry.partition("DRY_RUN")[0] == wet.partition("SPLIT_SEED")[0] != ""
    assert {name: len(read_labels(tmp_path, format, name)) for name in PERCENTS} == PERCENTS


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_test_split_that_stays_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], dry_run: bool) -> None:
    line = "the test split of 10 images stays as it is (TEST_PERCENT 0)\n"
    write_dataset(tmp_path, "csv", {"train": 30, "test": 10})
    for percents, is_said in ({"train": 90, "val": 10, "test": 0}, True), ({"train": 90, "val": 0, "test": 10}, False):
        split_dataset(tmp_path, "csv", percents, seed=0, dry_run=dry_run)
        assert (line in capsys.readouterr().out) is is_said


def test_what_lies_in_the_way_of_a_split_stays(tmp_path: Path) -> None:
    write_dataset(tmp_path, "image_folder", {"train": 20})
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "notes.txt").write_text("mine")
    before = read_tree(tmp_path)
    with pytest.raises(InputError, match=r"/val is there already, and no part of what is split: move it away"):
        split_dataset(tmp_path, "image_folder", {"train": 50, "val": 50, "test": 0}, seed=0)
    assert read_tree(tmp_path) == before


def test_a_list_of_images_to_predict_is_not_divided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path, "csv", {"train": 30})
    for number in range(5):
        (tmp_path / f"new {number}.jpg").write_text(f"new {number}")
    (tmp_path / "test.csv").write_text("image_path\n" + "".join(f"new {number}.jpg\n" for number in range(5)))
    before = read_tree(tmp_path)
    with pytest.raises(InputError, match=r"labels of test in .* set TEST_PERCENT = 0, .*, or take its list out of"):
        split_dataset(tmp_path, "auto", PERCENTS, seed=0)
    assert read_tree(tmp_path) == before
    split_dataset(tmp_path, "auto", {"train": 80, "val": 20, "test": 0}, seed=0)
    printed = capsys.readouterr().out
    assert "the test split of 5 images stays as it is (TEST_PERCENT 0)\n" in printed
    assert (tmp_path / "test.csv").read_bytes() == before["test.csv"]
    assert [path.name for path in tmp_path.glob("*.bak")] == ["train.csv.bak"]
    tables = {name: read_dataset(tmp_path, split=name) for name in list_splits(tmp_path)}
    assert {name: len(table) for name, table in tables.items()} == {"train": 24, "val": 6, "test": 5}
    assert tables["test"].classes == tables["train"].classes
    assert tables["test"].targets.tolist() == [[-1, -1, -1]] * 5
    undo(printed)
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_split_without_a_known_label_stays_or_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_dataset(tmp_path, "mlcls", {"train": 20, name: 10})
    file, other = tmp_path / f"{name}.txt", {"val": "test", "test": "val"}[name]
    file.write_text(re.sub(r"\t.*", "\t-1,-1,-1", file.read_text()))
    before = file.read_bytes()
    with pytest.raises(InputError, match=rf"none of the labels of {name} in .*: set {name.upper()}_PERCENT = 0"):
        split_dataset(tmp_path, "mlcls", {"train": 80, "val": 0, "test": 0} | {name: 20}, seed=0)
    split_dataset(tmp_path, "mlcls", {"train": 80, name: 0, other: 20}, seed=0)
    assert f"the {name} split of 10 images stays as it is ({name.upper()}_PERCENT 0)\n" in capsys.readouterr().out
    assert file.read_bytes() == before
    counts = {split_name: len(read_dataset(tmp_path, "mlcls", split_name)) for split_name in PERCENTS}
    assert counts == {"train": 16, other: 4, name: 10}


def test_an_image_in_a_test_split_that_stays_and_in_another(tmp_path: Path) -> None:
    write_dataset(tmp_path, "mlcls", {"train": 20, "test": 10})
    train, test = (tmp_path / f"{name}.txt" for name in ("train", "test"))
    test.write_text(f"{test.read_text()}{train.read_text().splitlines()[0]}\n")
    before = read_tree(tmp_path)
    with pytest.raises(InputError, match=r"1 images are in test, .*\(TEST_PERCENT 0\), and in another .*000\.jpg; rem"):
        split_dataset(tmp_path, "mlcls", {"train": 90, "val": 10, "test": 0}, seed=0)
    assert read_tree(tmp_path) == before
    split_dataset(tmp_path, "mlcls", PERCENTS, seed=0)
    assert sum(len(read_dataset(tmp_path, "mlcls", name)) for name in PERCENTS) == 30, "divided anew, it is in one"


@pytest.mark.parametrize("format", WRITABLE)
def test_a_test_split_stays_as_it_is_without_a_percentage(tmp_path: Path, format: str) -> None:
    write_dataset(tmp_path, format, {"train": 30, "val": 20, "test": 10})
    before = {name: read_labels(tmp_path, format, name) for name in ("train", "val", "test")}
    split_dataset(tmp_path, format, {"train": 90, "val": 10, "test": 0}, seed=0)
    assert read_labels(tmp_path, format, "test") == before["test"]
    train, val = (read_labels(tmp_path, format, name) for name in ("train", "val"))
    assert (len(train), len(val)) == (45, 5)
    assert train | val == before["train"] | before["val"]
    split_dataset(tmp_path, format, {"train": 100, "val": 0, "test": 0}, seed=0)
    assert list_splits(tmp_path, format) == ["train", "test"]
    assert read_labels(tmp_path, format, "train") == before["train"] | before["val"]


def test_a_format_that_is_only_read_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path, "csv", {"train": 10})
    before = read_tree(tmp_path)
    monkeypatch.setitem(FORMATS, "csv", replace(FORMATS["csv"], writer=None))
    with pytest.raises(InputError, match=r"is only read: convert it to another format \(`.* convert --TO csv`"):
        split_dataset(tmp_path, "auto", PERCENTS, seed=0)
    assert read_tree(tmp_path) == before


def test_one_csv_with_a_column_of_splits_keeps_unknown_labels_and_groups(tmp_path: Path) -> None:
    lines = ["image_path,split,a,b,group"]
    for index in range(60):
        (tmp_path / f"{index}.jpg").write_text(str(index))
        split_name = "test" if index < 12 else "train"
        lines.append(f"{index}.jpg,{split_name},{index % 2},{'' if index % 3 else 1},camera{index // 4}")
    (tmp_path / "all.csv").write_text("\n".join(lines))
    before = read_dataset(tmp_path)
    split_dataset(tmp_path, "csv", {"train": 75, "val": 25, "test": 0}, seed=1)
    assert (tmp_path / "all.csv.bak").read_text() == "\n".join(lines)
    parts = {name: read_dataset(tmp_path, split=name) for name in PERCENTS}
    assert {name: len(part) for name, part in parts.items()} == {"train": 36, "val": 12, "test": 12}
    assert not set(parts["train"].groups or ()) & set(parts["val"].groups or ())
    after = {path: row.tolist() for part in parts.values() for path, row in zip(part.paths, part.targets, strict=True)}
    assert after == dict(zip(before.paths, before.targets.tolist(), strict=True))


def test_images_that_would_have_the_same_name_get_the_splits_in_front(tmp_path: Path) -> None:
    write_dataset(tmp_path, "image_folder", {"train": 8, "test": 8})
    for split_name in ("train", "test"):
        for index, path in enumerate(sorted((tmp_path / split_name).rglob("*.jpg"))):
            path.rename(path.with_name(f"{index}.jpg"))
    labels = read_labels(tmp_path, "image_folder")
    split_dataset(tmp_path, "image_folder", {"train": 50, "val": 50, "test": 0} | {"test": 25, "val": 25}, seed=0)
    assert read_labels(tmp_path, "image_folder") == labels


def test_an_image_in_two_lists_ends_up_in_one(tmp_path: Path) -> None:
    write_dataset(tmp_path, "mlcls", {"train": 20, "val": 10})
    train, val = (tmp_path / f"{name}.txt" for name in ("train", "val"))
    shared = train.read_text().splitlines()[0]
    val.write_text(f"{val.read_text()}{shared}\n")
    split_dataset(tmp_path, "auto", {"train": 50, "val": 50, "test": 0}, 0)
    assert sorted((train.read_text() + val.read_text()).splitlines()).count(shared) == 1
    assert (len(read_dataset(tmp_path, split="train")), len(read_dataset(tmp_path, split="val"))) == (15, 15)
    labels = shared.split("\t")[1]
    train.write_text(f"{shared}\n")
    val.write_text(shared.replace(labels, labels[::-1] if labels != "0,1,0" else "1,0,0"))
    with pytest.raises(InputError, match=r"000\.jpg stands twice, in two splits or folders, with different labels"):
        split_dataset(tmp_path, "auto", {"train": 50, "val": 50, "test": 0}, 0)


@pytest.mark.parametrize("format", ["coco_cls", "train_list", "image_folder"])
def test_a_split_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    write_dataset(tmp_path, format, {"train": 20, "test": 10})
    before = read_tree(tmp_path)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(split, "name_backup", stop)  # everything is written, nothing replaced
        with pytest.raises(KeyboardInterrupt):
            split_dataset(tmp_path, format, PERCENTS, seed=0)
    assert read_tree(tmp_path) == before
    split_dataset(tmp_path, format, PERCENTS, seed=0)
    assert len(read_dataset(tmp_path, format, "val")) == 6
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("format", ["coco_cls", "csv", "image_folder"])
def test_a_split_that_ends_between_its_renames_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, number: int, error: BaseException
) -> None:
    write_dataset(tmp_path, format, {"train": 20, "test": 10})
    before, names = read_tree(tmp_path), sorted(tmp_path.rglob("*"))
    rename = Path.rename
    renamed: list[Path] = []

    def rename_or_fail(path: Path, target: Path) -> Path:
        if path.name.startswith("."):  # a file that is being written
            return rename(path, target)
        renamed.append(path)
        if len(renamed) == number:
            raise error
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_or_fail)
        is_system = isinstance(error, OSError)
        message = "cannot write the split of .*: Input/output error" if is_system else None
        with pytest.raises(InputError if is_system else KeyboardInterrupt, match=message):
            split_dataset(tmp_path, format, PERCENTS, seed=0)
    assert len(renamed) == 2 * number - 1, "those before it are taken back"
    assert (read_tree(tmp_path), sorted(tmp_path.rglob("*"))) == (before, names)
    split_dataset(tmp_path, format, PERCENTS, seed=0)
    assert {name: len(read_labels(tmp_path, format, name)) for name in PERCENTS} == {"train": 18, "val": 6, "test": 6}


def test_renames_that_fail_leave_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_text("a")
    moves = [(tmp_path / "a", tmp_path / "new" / "deep" / "a"), (tmp_path / "missing", tmp_path / "other" / "m")]
    with pytest.raises(FileNotFoundError):
        split.rename_all(moves)
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]
    assert capsys.readouterr().err == ""


def test_percentages_that_do_not_fit_are_refused(dataset: Path, tmp_path: Path) -> None:
    before = read_tree(dataset)
    for train, val, test in ((90, 20, 0), (0, 50, 50), (110, -10, 0)):
        with pytest.raises(InputError, match=rf"TRAIN_PERCENT {train}, VAL_PERCENT {val}, TEST_PERCENT {test}: "):
            split_dataset(dataset, "auto", {"train": train, "val": val, "test": test}, 0)
    with pytest.raises(InputError, match="at least 2"):
        split_dataset(dataset, "auto", {"train": 98, "val": 1, "test": 1}, 0)
    write_dataset(tmp_path / "test only", "mlcls", {"test": 9})
    with pytest.raises(InputError, match="has a test split only"):
        split_dataset(tmp_path / "test only", "auto", {"train": 90, "val": 10, "test": 0}, 0)
    assert read_tree(dataset) == before


def test_of_many_classes_the_most_frequent_are_printed() -> None:
    targets = np.eye(300, dtype=np.int8)
    targets[:, 200:] = 1
    table = Table([f"{row}.jpg" for row in range(300)], targets, tuple(f"class{c}" for c in range(300)))
    console = Console(markup=False, width=80)
    with console.capture() as capture:
        console.print(describe_split({"train": table, "val": table.select([0, 1])}))
    lines = [line.split() for line in capture.get().splitlines()]
    assert [words[1] for words in lines if len(words) > 1 and words[1].startswith("class")] == [
        f"class{c}" for c in range(200, 300)
    ]
    assert "(200 rarer classes)" in capture.get()
