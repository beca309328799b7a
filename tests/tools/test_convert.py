"""tools/convert.py: from every format through every other one and back the table is the same; nothing is mixed."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataset.formats import FORMATS, WRITABLE
from dataset.table import Table
from dataset.tar_shards import read_bytes, writing
from dataset_readers import list_splits, read_dataset, recognise_format
from tools.convert import convert_dataset, place_images
from utils import InputError

CLASSES = ("person", "traffic light", "dog", "nobody's")  # not in alphabetical order, and one that is never there
ALL = {
    "train": {"a b.jpg": (1, 0, 1, 0), "sub/ü.png": (0, 0, 0, 0), "z.jpg": (0, 1, -1, 0)},
    "val": {"a b.jpg": (0, 0, 1, 0)},  # a name of two splits
    "test": {"é, é.jpg": (-1, -1, -1, 0), "z.z.jpg": (0, 0, 1, 0)},
}
SINGLE = {  # what an image_folder can hold
    "train": {"1.jpg": (0, 0, 1, 0), "dog/2.jpg": (0, 1, 0, 0), "sub/ü.png": (1, 0, 0, 0)},
    "test": {"1.jpg": (1, 0, 0, 0), "é.jpg": (0, 0, 1, 0)},
}
CLASHING = {  # names that only the folder of a class tells apart
    "train": {"dog/1.jpg": (0, 0, 1, 0), "person/1.jpg": (1, 0, 0, 0)},
    "test": {"dog/1.jpg": (0, 0, 1, 0)},
}
KNOWN = {  # what Hugging Face's metadata can hold: nothing unknown
    split: {name: tuple(max(value, 0) for value in row) for name, row in labels.items()}
    for split, labels in ALL.items()
}
SETS = {"all": ALL, "known": KNOWN, "single": SINGLE, "clashing": CLASHING}


def write_dataset(root: Path, name: str, splits: dict[str, dict[str, tuple[int, ...]]]) -> None:
    """A data set as the format `name` writes it; each image file says which it is."""
    format = FORMATS[name]
    for split, labels in splits.items():
        names, targets = list(labels), np.array(list(labels.values()), dtype=np.int8)
        placed = format.name_images(Table(names, targets, CLASSES), names)
        placed = [f"{split}-{path}" for path in placed] if name == "mlcls" else placed
        paths = [root / format.images_folder(split) / path for path in placed]
        for image, file in zip(names, paths, strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{split} {image}")
        format.write(Table([str(path) for path in paths], targets, CLASSES), root, split, placed)
        if format.in_shards:
            shutil.rmtree(root / format.images_folder(split))


def read_all(root: Path) -> dict[str, tuple[list[str], list[list[int]], list[str]]]:
    """{split: (the images' paths in the data set, targets, what is in the images)}, the classes checked."""
    tables = {split: read_dataset(root, split=split) for split in list_splits(root)}
    assert all(table.classes == CLASSES for table in tables.values())
    return {
        split: (
            [os.path.relpath(path, root) for path in table.paths],
            table.targets.tolist(),
            [read_bytes(path).decode() for path in table.paths],
        )
        for split, table in tables.items()
    }


def test_the_sets_hold_what_is_difficult() -> None:
    assert {value for labels in ALL.values() for row in labels.values() for value in row} == {0, 1, -1}


WAYS = [
    (which, name, between)
    for which, name, between in itertools.product(SETS, WRITABLE, WRITABLE)
    if not ("image_folder" in (name, between) and which in ("all", "known"))  # which has images of one label only
    and not ("huggingface" in (name, between) and which == "all")
    and not ("huggingface" not in (name, between) and which == "known")
]


@pytest.mark.parametrize(("which", "name", "between"), WAYS)
def test_there_and_back_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, name: str, between: str
) -> None:
    monkeypatch.setattr(writing, "SHARD_IMAGES", 2)
    write_dataset(tmp_path / "first", name, SETS[which])
    before = read_all(tmp_path / "first")
    counts = convert_dataset(tmp_path / "first", "auto", between, tmp_path / "second")
    assert counts == {split: len(labels) for split, labels in SETS[which].items()}
    assert recognise_format(tmp_path / "second") == between
    second = read_all(tmp_path / "second")
    assert {split: dict(zip(part[2], part[1], strict=True)) for split, part in second.items()} == {
        split: {f"{split} {image}": list(row) for image, row in labels.items()} for split, labels in SETS[which].items()
    }
    convert_dataset(tmp_path / "second", "auto", name, tmp_path / "third")
    assert read_all(tmp_path / "third") == before
    assert sum(1 for file in (tmp_path / "third").rglob("*") if file.is_file()) == sum(
        1 for file in (tmp_path / "first").rglob("*") if file.is_file()
    )


def test_a_format_that_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "set", "csv", {"train": {"a.jpg": (0, 0, 1, 0)}})
    monkeypatch.setitem(FORMATS, "mlcls", replace(FORMATS["mlcls"], writer=None))
    with pytest.raises(
        InputError, match=r"label\.txt and train\.txt \(mlcls\) is only read: convert it to another format"
    ):
        convert_dataset(tmp_path / "set", "auto", "mlcls", tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_a_csvs_groups_stay_in_a_csv(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x.jpg").write_text("")
    (tmp_path / "set" / "all.csv").write_text("image_path,split,group,labels\nx.jpg,val,site 3,dog\n")
    convert_dataset(tmp_path / "set", "auto", "csv", tmp_path / "again")
    assert read_dataset(tmp_path / "again", split="val").groups == ("site 3",)


def test_groups_that_have_no_place_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "set"
    place.mkdir()
    (place / "x.jpg").write_text("")
    (place / "train.csv").write_text("image_path,group,dog\nx.jpg,site 3,1\n")
    convert_dataset(place, "auto", "csv", tmp_path / "csv")
    assert capsys.readouterr().err == ""
    convert_dataset(place, "auto", "mlcls", tmp_path / "mlcls")
    assert f"{place}: the images' groups have no place in mlcls and are left out" in capsys.readouterr().err


def test_cocos_raw_ids_become_contiguous(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    (root / "train2017" / "000000000009.jpg").write_text("")
    (root / "annotations" / "instances_train2017.json").write_text(
        '{"images": [{"id": 9, "file_name": "000000000009.jpg"}],'
        ' "annotations": [{"image_id": 9, "category_id": 90}, {"image_id": 9, "category_id": 1}],'
        ' "categories": [{"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"},'
        ' {"id": 90, "name": "toothbrush"}]}'
    )
    convert_dataset(root, "coco_json", "mlcls", tmp_path / "mlcls")
    assert (tmp_path / "mlcls" / "label.txt").read_text() == "0 person\n1 stop sign\n2 toothbrush\n"
    assert (tmp_path / "mlcls" / "train.txt").read_text() == "images/000000000009.jpg\t1,0,1\n"
    convert_dataset(root, "coco_json", "coco_cls", tmp_path / "cls")
    assert (tmp_path / "cls" / "labels" / "train" / "000000000009.cls").read_text() == "0\n2\n"
    assert (tmp_path / "cls" / "images" / "train-resized" / "000000000009.jpg").is_file()


# ---- the images ----


def test_links_share_the_images_bytes_and_copies_do_not(shared_dataset: Path, tmp_path: Path) -> None:
    first = Path(read_dataset(shared_dataset, split="train").paths[0])
    convert_dataset(shared_dataset, "auto", "csv", tmp_path / "linked", splits=["train"])
    convert_dataset(shared_dataset, "auto", "csv", tmp_path / "copied", splits=["train"], link_or_copy="copy")
    linked, copied = (Path(read_dataset(tmp_path / name, split="train").paths[0]) for name in ("linked", "copied"))
    assert linked.samefile(first)
    assert not copied.samefile(first)
    assert copied.read_bytes() == first.read_bytes()
    assert copied.stat().st_mtime_ns == first.stat().st_mtime_ns
    assert list_splits(tmp_path / "linked") == ["train"]


def test_a_symbolic_link_where_no_hard_one_can_be(
    shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: str) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "here").symlink_to(shared_dataset)
    monkeypatch.chdir(tmp_path)
    convert_dataset("here", "auto", "train_list", "linked")
    image = Path(read_dataset("linked", split="test").paths[0])
    assert image.is_symlink()
    assert image.resolve() == shared_dataset / "images" / "test-resized" / "test000.jpg"


def test_converting_again_goes_on_and_keeps_replaced_lists(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    convert_dataset(dataset, "auto", "mlcls", output, link_or_copy="copy")
    files = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    (output / "images" / "train001.jpg").unlink()
    convert_dataset(dataset, "auto", "mlcls", output, link_or_copy="copy")
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == files
    (dataset / "labels" / "train" / "train000.cls").write_text("")
    convert_dataset(dataset, "auto", "mlcls", output)
    assert (output / "train.txt").read_text().startswith("images/train000.jpg\t0,0,0\n")
    assert (output / "train.txt.bak").read_bytes() == files[output / "train.txt"]
    assert not (output / "test.txt.bak").exists()


def test_a_data_set_of_photographs_keeps_its_labels(photographs: Path, tmp_path: Path) -> None:
    source = photographs / "coco-mini80"
    root = tmp_path / "0"
    names = ["csv", "coco_json", "webdataset", "classes_json", "mlcls", "train_list", "coco_cls"]
    convert_dataset(source, "auto", names[0], root, link_or_copy="link")
    for number, name in enumerate(names[1:], start=1):
        convert_dataset(root, "auto", name, root := tmp_path / str(number))
    for split in ("train", "test"):
        here, there = read_dataset(source, split=split), read_dataset(root, split=split)
        assert here.fingerprint() == there.fingerprint()


# ---- refusals ----


def test_what_cannot_be_converted(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    for arguments, message in (
        ((dataset, "auto", "csv", dataset), "is the data set's own folder"),
        ((dataset, "auto", "cvs", output), r"unknown data set format 'cvs' \(did you mean csv\?\)"),
        ((dataset, "csv", "mlcls", output), "has no split of format csv"),
        ((dataset, "auto", "image_folder", output), r"label\(s\).*choose another format"),
        ((tmp_path / "nowhere", "auto", "csv", output), "there is no folder"),
    ):
        with pytest.raises(InputError, match=message) as error:
            convert_dataset(*arguments)
        assert "\n" not in str(error.value)
        assert not output.exists(), "nothing is written"
    with pytest.raises(InputError, match="LINK_OR_COPY is 'move'"):
        convert_dataset(dataset, "auto", "csv", output, link_or_copy="move")


@pytest.mark.parametrize("name", WRITABLE)
def test_an_output_folder_that_holds_something_else(tmp_path: Path, name: str) -> None:
    write_dataset(tmp_path / "set", "csv", SINGLE)
    output = tmp_path / "output"
    convert_dataset(tmp_path / "set", "auto", name, output)
    shutil.copytree(output, tmp_path / "more", symlinks=True)
    folder = tmp_path / "more" / FORMATS[name].images_folder("train")
    (folder / "dog").mkdir(parents=True, exist_ok=True)
    (folder / "dog" / "stray.jpg").write_text("")
    message = r"holds 1 other image\(s\), such as (train/)?dog/stray\.jpg"
    if FORMATS[name].in_shards:  # which are not replaced, as images are not
        message = "holds the split train, the split test already: choose an empty OUTPUT_FOLDER"
    with pytest.raises(InputError, match=message):
        convert_dataset(tmp_path / "set", "auto", name, tmp_path / "more")
    write_dataset(tmp_path / "less", "csv", {"train": SINGLE["train"]})
    with pytest.raises(InputError, match=r"holds .*the split test already: choose an empty OUTPUT_FOLDER"):
        convert_dataset(tmp_path / "less", "auto", name, output)
    other = "csv" if name != "csv" else "mlcls"
    with pytest.raises(InputError, match=rf"holds {name}.* already: choose an empty OUTPUT_FOLDER"):
        convert_dataset(tmp_path / "set", "auto", other, output)


def test_another_image_of_the_same_name_is_not_replaced(dataset: Path, tmp_path: Path) -> None:
    convert_dataset(dataset, "auto", "csv", tmp_path / "output", link_or_copy="copy")
    image = tmp_path / "output" / "images" / "train" / "train000.jpg"
    image.write_bytes(b"another")
    with pytest.raises(InputError, match=r"train000\.jpg is there already and is not .*train000\.jpg"):
        convert_dataset(dataset, "auto", "csv", tmp_path / "output", link_or_copy="copy")
    assert image.read_bytes() == b"another"


def test_a_full_disk_is_told(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", target)

    monkeypatch.setattr(shutil, "copy2", fill)
    with pytest.raises(InputError, match=r"cannot write .*\.jpg\.tmp: No space left on device"):
        convert_dataset(dataset, "auto", "csv", tmp_path / "output", link_or_copy="copy")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("state", ["missing", "empty", "filled"])
def test_a_conversion_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """In a folder that holds this data set already nothing is removed."""
    write_dataset(tmp_path / "set", "mlcls", {"train": SINGLE["train"]})
    output = tmp_path / "output"
    if state != "missing":
        output.mkdir()
    if state == "filled":
        convert_dataset(tmp_path / "set", "auto", "csv", output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    def fail(*arguments: object) -> None:
        raise InputError(f"cannot write {arguments[1]}/train.csv")

    with monkeypatch.context() as patch:
        patch.setitem(FORMATS, "csv", replace(FORMATS["csv"], writer=fail))
        with pytest.raises(InputError, match=rf"^cannot write {output}/train\.csv$"):
            convert_dataset(tmp_path / "set", "auto", "csv", output)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert output.exists() == (state != "missing")
    assert state == "filled" or not output.exists() or not list(output.iterdir())
    assert {path.name for path in tmp_path.iterdir()} <= {"set", "output"}
    convert_dataset(tmp_path / "set", "auto", "csv", output)
    assert len(read_dataset(output)) == 3


def test_two_folders_that_are_one_on_the_disk(tmp_path: Path) -> None:
    """As `Cat` and `cat` are on a disk that ignores case: their images would come together without a word."""
    (tmp_path / "1.jpg").touch()
    (tmp_path / "out" / "Cat").mkdir(parents=True)
    (tmp_path / "out" / "cat").symlink_to("Cat")
    places = {f"{tmp_path}/out/{name}": f"{tmp_path}/1.jpg" for name in ("Cat/1.jpg", "cat/2.jpg")}
    with pytest.raises(InputError, match=r"out/Cat and .*out/cat are one folder on this disk: rename one"):
        place_images(places, copy=False)
    assert not list((tmp_path / "out" / "Cat").iterdir())
