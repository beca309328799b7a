"""dataset/splits.py: how a split may be called, in every format of this program; what is written has one name."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dataset.formats import FORMATS
from dataset.splits import WORDS
from dataset_readers import read_dataset, recognise_format
from tools.convert import convert_dataset
from tools.split import split_dataset
from utils import InputError

NAMES = {"classes.txt": "cat\ndog\n"}
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def write_photos(root: Path, word: str) -> list[str]:
    photos = [f"photos/{word}{number}.jpg" for number in (1, 2)]
    write(root, dict.fromkeys(photos, ""))
    return photos


def write_train_list(root: Path, word: str) -> None:
    lines = [f"{photo}\t0,1\n" for photo in write_photos(root, word)]
    write(root, NAMES | {f"{word}_list.txt": "".join(lines)})


def write_mlcls(root: Path, word: str) -> None:
    lines = [f"{photo}\t0,1\n" for photo in write_photos(root, word)]
    write(root, {"label.txt": "0 cat\n1 dog\n", f"{word}.txt": "".join(lines)})


def write_value_list(root: Path, word: str) -> None:
    lines = [f"{photo} 0 1\n" for photo in write_photos(root, word)]
    write(root, NAMES | {f"{word}.txt": "".join(lines)})


def write_classes_json(root: Path, word: str) -> None:
    images = [[photo, ["dog"]] for photo in write_photos(root, word)]
    write(root, {f"{word}.json": json.dumps({"classes": ["cat", "dog"], "images": images})})


def write_coco_json(root: Path, word: str) -> None:
    images = [{"id": number, "file_name": f"{word}{number}.jpg"} for number in (1, 2)]
    annotations = [{"id": number, "image_id": number, "category_id": 2} for number in (1, 2)]
    data = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    write(root, {f"annotations/instances_{word}.json": json.dumps(data)})
    write(root, {f"{word}/{image['file_name']}": "" for image in images})


def write_image_folder(root: Path, word: str) -> None:
    write(root, NAMES | {f"{word}/dog/{word}{number}.jpg": "" for number in (1, 2)})


def write_coco_cls(root: Path, word: str) -> None:
    write(root, NAMES | {f"images/{word}-resized/{word}{number}.jpg": "" for number in (1, 2)})
    write(root, {f"labels/{word}/{word}{number}.cls": "1\n" for number in (1, 2)})


def write_webdataset(root: Path, word: str) -> None:
    members = {f"{word}{number}.{ending}": "1" for number in (1, 2) for ending in ("jpg", "cls")}
    write(root, NAMES | members)
    with tarfile.open(root / f"{word}-000000.tar", "w") as tar:
        for member in members:
            tar.add(root / member, member)
            (root / member).unlink()


# each writes a split of two images, dogs both
WRITERS: dict[str, Callable[[Path, str], None]] = {
    "train_list": write_train_list,
    "mlcls": write_mlcls,
    "value_list": write_value_list,
    "classes_json": write_classes_json,
    "coco_json": write_coco_json,
    "image_folder": write_image_folder,
    "coco_cls": write_coco_cls,
    "webdataset": write_webdataset,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("word", ["valid", "validation", "dev", "Valid", "VAL"])
def test_a_split_may_have_any_of_its_names(tmp_path: Path, name: str, word: str) -> None:
    word = word.lower() if name == "webdataset" else word
    for any_word in ("train", word):
        WRITERS[name](tmp_path, any_word)
    assert recognise_format(tmp_path) == name
    assert FORMATS[name].list_splits(tmp_path) == ["train", "val"]
    train, val = (read_dataset(tmp_path, split=split) for split in ("train", "val"))
    assert train.classes == val.classes == ("cat", "dog")
    assert train.targets.tolist() == val.targets.tolist() == [[0, 1], [0, 1]]
    assert word in val.paths[0]
    assert word not in train.paths[0]


@pytest.mark.parametrize("name", WRITERS)
def test_two_names_of_one_split_at_once(tmp_path: Path, name: str) -> None:
    for word in ("train", "val", "valid"):
        WRITERS[name](tmp_path, word)
    assert len(read_dataset(tmp_path, split="train")) == 2
    with pytest.raises(InputError, match=r"val\S* and \S*valid\S* are both for val: remove one"):
        read_dataset(tmp_path, split="val")


def test_a_disk_that_knows_no_capitals_has_one_folder_under_two_names(tmp_path: Path) -> None:
    WRITERS["train_list"](tmp_path, "val")
    (tmp_path / "VAL_list.txt").symlink_to(tmp_path / "val_list.txt")
    assert len(read_dataset(tmp_path, split="val")) == 2


@pytest.mark.parametrize("name", [name for name in WRITERS if FORMATS[name].writer])
def test_splits_that_are_divided_anew_have_the_usual_names(tmp_path: Path, name: str) -> None:
    for word in ("train", "valid"):
        WRITERS[name](tmp_path, word)
    split_dataset(tmp_path, "auto", {"train": 50, "val": 50, "test": 0}, 0)
    tables = [read_dataset(tmp_path, split=split) for split in ("train", "val")]
    assert [len(table) for table in tables] == [2, 2]
    files = [file for split in ("train", "val") for file in FORMATS[name].files_of_split(tmp_path, split)]
    assert not [file for file in files if "valid" in str(file.relative_to(tmp_path))]
    assert list(tmp_path.rglob("*valid*.bak")), "the old one is kept"


@pytest.mark.parametrize("name", [name for name in WRITERS if FORMATS[name].writer and name != "webdataset"])
def test_what_is_written_never_lies_beside_another_name(tmp_path: Path, name: str) -> None:
    for word in ("train", "val"):
        WRITERS["train_list"](tmp_path / "source", word)
    WRITERS[name](tmp_path / "output", "valid")
    for image in (tmp_path / "output").rglob("*.jpg"):
        image.unlink()
    with pytest.raises(InputError, match=r"valid\S* is for val, too: remove it, or call it val"):
        convert_dataset(tmp_path / "source", "auto", name, tmp_path / "output")


def test_every_word_is_of_a_split() -> None:
    assert {*WORDS.values()} == {"train", "val", "test"}
