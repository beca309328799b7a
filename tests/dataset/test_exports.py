"""What other tools export, in the form they write it: read as it comes, or refused in one line that says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset.formats import FORMATS
from dataset.splits import find_split, sort_files
from dataset.table import Table
from dataset_readers import read_dataset, recognise_format
from utils import InputError


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def place(root: Path, *names: str) -> None:
    write(root, dict.fromkeys(names, ""))


def as_rows(table: Table) -> dict[str, list[int]]:
    return {Path(path).name: row for path, row in zip(table.paths, table.targets.tolist(), strict=True)}


# ---- splits ----


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("instance_train", "train"),
        ("instances_Validation", "val"),
        ("valid", "val"),
        ("my-dev.2017", "val"),
        ("instances_test2017", "test"),
        ("train_val", None),
        ("instances_default", None),
        ("contest", None),
    ],
)
def test_the_split_in_a_name(name: str, split: str | None) -> None:
    assert find_split(name) == split


def test_files_without_a_split_are_train_where_none_has_one() -> None:
    both, named = [Path("b.json"), Path("a.json")], Path("my_val.json")
    assert sort_files(both) == {"train": [Path("a.json"), Path("b.json")]}
    assert sort_files([*both, named]) == {"val": [named]}
    assert sort_files([]) == {}


# ---- Roboflow ----


def write_roboflow(root: Path) -> None:
    for split, names in (("train", ("a.jpg", "b.jpg")), ("valid", ("c.jpg",))):
        place(root, *(f"{split}/{name}" for name in names))
        rows = "".join(f"{name}, 0, 1\n" for name in names)
        write(root, {f"{split}/_classes.csv": f"filename, cat, traffic light\n{rows}"})
    place(root, "README.roboflow.txt")


def test_roboflows_valid_is_val(tmp_path: Path) -> None:
    write_roboflow(tmp_path)
    assert recognise_format(tmp_path) == "roboflow"
    assert FORMATS["roboflow"].list_splits(tmp_path) == ["train", "val"]
    table = read_dataset(tmp_path, split="val")
    assert (table.classes, as_rows(table)) == (("cat", "traffic light"), {"c.jpg": [0, 1]})
    assert as_rows(read_dataset(tmp_path, split="train")) == {"a.jpg": [0, 1], "b.jpg": [0, 1]}
    write(tmp_path, {"val/_classes.csv": "filename, cat\nc.jpg, 1\n"})
    with pytest.raises(InputError, match=r"val/_classes\.csv and .*valid/_classes\.csv are both for val: remove one"):
        read_dataset(tmp_path, split="val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filename\na.jpg\n", r"train/_classes\.csv:1: no column of a class beside `filename`"),
        ("filename, cat\na.jpg, 1\nb.jpg, maybe\n", r"_classes\.csv:3: 'maybe' for class 'cat' is none of 1"),
        ("filename, cat, cat\na.jpg, 1, 1\n", r"_classes\.csv:1: column 3: class 'cat' stands here a second time"),
        ("filename, cat\nd.jpg, 1\n", r"1 of 1 images do not exist, the first: .*train/d\.jpg \(.*_classes\.csv:2\)"),
    ],
)
def test_mistakes_in_a_roboflow_csv(tmp_path: Path, text: str, message: str) -> None:
    write_roboflow(tmp_path)
    write(tmp_path, {"train/_classes.csv": text})
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path, split="train")
