"""dataset/formats/: what is taken for a list of this program, by what it holds; those of other tools are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset.formats import FORMATS
from dataset_readers import find_formats, read_dataset
from utils import InputError


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


NAMES = "cat\ndog\nowl\n"
INDEX = "0 cat\n1 dog\n2 owl\n"
# what lies in a folder of another tool
FOREIGN = {
    "names alone, as NIH's": {"test_list.txt": "00000001_000.png\n00000002_000.png\n"},
    "names alone beside classes.txt": {"train_list.txt": "a.jpg\nb.jpg\n", "classes.txt": NAMES},
    "PaddleClas": {"train_list.txt": "a.jpg 3\nb.jpg 0\n", "label_list.txt": INDEX},
    "class names": {"train_list.txt": "a.jpg\tcat\nb.jpg\tdog\n"},
    "PaddleDetection": {"train.txt": "i/a.jpg a/a.xml\n", "label_list.txt": NAMES},
    "PaddleSeg": {"train.txt": "i/a.jpg a/a.png\n", "label.txt": NAMES},
    "names beside label.txt": {"train.txt": "a\nb\n", "label.txt": INDEX},
    "a list": {"train.json": '[{"image": "a.jpg", "labels": ["cat"]}]'},
    "ids and captions": {"val.json": '{"images": [{"id": 1}], "annotations": [{"caption": "a cat"}]}'},
    "FiftyOne": {"train.json": '{"classes": {"0": "cat"}, "labels": {"a": 0}}'},
    "results": {"test.json": json.dumps({"a": [0, 2]})},
    "archives of images": {"train-images.tar": "", "dev-kit.tar": ""},
    "segmentation": {"train/images/a.jpg": "", "train/masks/a.png": ""},
    "detection": {"train/images/a.jpg": "", "train/labels/a.txt": "", "train/cache/x": ""},
    "Annotations": {"train/JPEGImages/a.jpg": "", "train/Annotations/a.xml": ""},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_tools_are_not_taken_for_ours(tmp_path: Path, name: str) -> None:
    write(tmp_path, FOREIGN[name])
    assert find_formats(tmp_path) == []


# a data set of ours with a mistake: its format, and what is said
OURS = {
    "the first line has no TAB": (
        {"train_list.txt": "a.jpg 0,1,0\na.jpg\t0,1,0\n", "classes.txt": NAMES},
        "train_list",
        r"train_list\.txt:1: no TAB between path and labels: 'a\.jpg 0,1,0'",
    ),
    "the first label is a word": (
        {"train_list.txt": "a.jpg\tyes,no,no\n", "classes.txt": NAMES},
        "train_list",
        r"train_list\.txt:1: 'yes' for class 'cat' is none of 1",
    ),
    "labels are words, and label.txt names classes": (
        {"train.txt": "a.jpg\tyes,no,no\n", "label.txt": INDEX},
        "mlcls",
        r"train\.txt:1: 'yes' for class 'cat' is none of 1",
    ),
    "label.txt has no index": (
        {"train.txt": "a.jpg\t0,1,0\n", "label.txt": NAMES},
        "mlcls",
        r"label\.txt:1: 'cat' does not begin with an index .*; names alone belong into classes\.txt",
    ),
    "a wrong value between blanks": (
        {"train.txt": "a.jpg 0 1 2\na.jpg 0 1 0\n", "classes.txt": NAMES},
        "value_list",
        r"train\.txt:1: no TAB between path and labels: 'a\.jpg 0 1 2'",
    ),
    "fewer values than names": (
        {"train.txt": "a.jpg 0 1\n", "classes.txt": NAMES},
        "value_list",
        r"train\.txt:1: 2 labels, but there are 3 classes in classes\.txt",
    ),
    "another number in another line": (
        {"train_list.txt": "a.jpg\t0,1\nb.jpg\t1,1,1\n"},
        "train_list",
        r"train_list\.txt:2: 3 labels, but there are 2 classes in line 1",
    ),
    "one value": (
        {"train_list.txt": "a.jpg\t1\nb.jpg\t0\n"},
        "train_list",
        r"train_list\.txt:1: one value after the path is 1 or 0 for the only class, or the number of a class",
    ),
    "an empty list": ({"train_list.txt": "", "classes.txt": NAMES}, "train_list", r"train_list\.txt lists no images"),
    "JSON that ends too early": (
        {"train.json": '{"classes": ["cat"],\n"images": [["a.jpg", ["cat"]],\n'},
        "classes_json",
        r"train\.json:3: .* this is not JSON",
    ),
    "JSON without classes": (
        {"train.json": '{"images": [["a.jpg", ["cat"]]]}'},
        "classes_json",
        r'train\.json: expected \{"classes"',
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_what_is_ours_with_a_mistake_is_told_the_mistake(tmp_path: Path, name: str) -> None:
    files, format, message = OURS[name]
    write(tmp_path, files | {"a.jpg": "", "b.jpg": ""})
    assert find_formats(tmp_path) == [format]
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path, split="train")


def test_only_a_list_of_ours_among_two_is_read(tmp_path: Path) -> None:
    write(tmp_path, {"train_list.txt": "a.jpg\t1,0\n", "test_list.txt": "a\nb\n", "valid_list.txt": "b.jpg\t0,1\n"})
    write(tmp_path, {"val_list.txt": "b\n", "classes.txt": "cat\ndog\n", "a.jpg": "", "b.jpg": ""})
    assert FORMATS["train_list"].list_splits(tmp_path) == ["train", "val"]
    assert read_dataset(tmp_path, split="val").targets.tolist() == [[0, 1]]


def test_a_class_may_be_called_images(tmp_path: Path) -> None:
    write(tmp_path, {"train/images/a.jpg": "", "train/drawings/b.jpg": ""})
    assert read_dataset(tmp_path, split="train").classes == ("drawings", "images")
