"""dataset/class_names.py, and what every format makes of the names of labels: NFC, NO_LABEL_NAMES, UNKNOWN_NAMES."""

from __future__ import annotations

import io
import json
import tarfile
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from test_formats import place, write

import heads
from dataset import probability_files
from dataset.class_names import ClassIndex, describe_classes, quote_names, read_classes, require_unique
from dataset.formats import FORMATS
from dataset.formats.base import ReadOptions
from dataset.table import Table
from dataset_readers import read_dataset
from evaluation.saved_scores import read_scores, save_scores
from models.metadata import check_metadata
from utils import InputError

NFC, NFD = "Löwe", "Lo\u0308we"
Labels = dict[str, list[str]]  # of each image
DEFAULT = ReadOptions()
SKIP = ReadOptions(unknown_names="skip")
NONE = ReadOptions(no_label_names=("none",))


def test_the_two_forms_differ() -> None:
    assert NFC != NFD
    assert unicodedata.normalize("NFC", NFD) == NFC


# ---- formats with names: (folder, labels, the classes that a list names) ----


def write_csv(root: Path, labels: Labels, classes: Sequence[str]) -> None:
    write(root, {"train.csv": "image_path,labels\n" + "".join(f"{a},{';'.join(b)}\n" for a, b in labels.items())})


def write_classes_json(root: Path, labels: Labels, classes: Sequence[str]) -> None:
    write(root, {"train.json": json.dumps({"classes": list(classes), "images": list(labels.items())})})


def write_huggingface(root: Path, labels: Labels, classes: Sequence[str]) -> None:
    lines = [json.dumps({"file_name": image, "labels": names}) for image, names in labels.items()]
    write(root, {"metadata.jsonl": "\n".join(lines)})


def write_label_studio(root: Path, labels: Labels, classes: Sequence[str]) -> None:
    tasks = [
        {"id": 1, "data": {"image": image}, "annotations": [{"id": 1, "result": [{"value": {"choices": names}}]}]}
        for image, names in labels.items()
    ]
    write(root, {"train.json": json.dumps(tasks)})


def write_cvat(root: Path, labels: Labels, classes: Sequence[str]) -> None:
    listed = "".join(f"<label><name>{name}</name></label>" for name in classes)
    tags = {image: "".join(f'<tag label="{name}"/>' for name in names) for image, names in labels.items()}
    images = "".join(f'<image name="{image}">{found}</image>' for image, found in tags.items())
    text = f"<annotations><meta><task><labels>{listed}</labels></task></meta>{images}</annotations>"
    write(root, {"annotations.xml": text})


def write_label_rows(root: Path, labels: Labels, classes: Sequence[str]) -> None:
    rows = [f"{image},{name}\n" for image, names in labels.items() for name in names or [""]]
    write(root, {"train.csv": "image,label\n" + "".join(rows)})


def write_automl(root: Path, labels: Labels, classes: Sequence[str]) -> None:
    write(root, {"all.csv": "".join(",".join(["TRAIN", image, *names]) + "\n" for image, names in labels.items())})


def write_chestxray14(root: Path, labels: Labels, classes: Sequence[str]) -> None:
    place(root, *(f"images_001/images/{image}" for image in labels))
    rows = "".join(f"{image},{'|'.join(names) or 'No Finding'},1\n" for image, names in labels.items())
    write(root, {"Data_Entry_2017.csv": "Image Index,Finding Labels,Patient ID\n" + rows})


def write_pascal_voc(root: Path, labels: Labels, classes: Sequence[str]) -> None:
    place(root, *(f"JPEGImages/{image}" for image in labels))
    write(root, {"ImageSets/Main/train.txt": "".join(f"{image[:-4]}\n" for image in labels)})
    for image, names in labels.items():
        objects = "".join(f"<object><name>{name}</name></object>" for name in names)
        write(root, {f"Annotations/{image[:-4]}.xml": f"<annotation>{objects}</annotation>"})


def write_webdataset(root: Path, labels: Labels, classes: Sequence[str]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "train-000000.tar", "w") as tar:
        for image, names in labels.items():
            for member, data in ((image, b"x"), (f"{image[:-4]}.json", json.dumps({"labels": names}).encode())):
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


WITH_LIST = ("classes_json", "cvat")  # their files name the classes, not classes.txt
WRITERS: dict[str, Callable[[Path, Labels, Sequence[str]], None]] = {
    "csv": write_csv,
    "classes_json": write_classes_json,
    "huggingface": write_huggingface,
    "label_studio": write_label_studio,
    "cvat": write_cvat,
    "label_rows": write_label_rows,
    "automl": write_automl,
    "chestxray14": write_chestxray14,
    "pascal_voc": write_pascal_voc,
    "webdataset": write_webdataset,
}


def read(name: str, root: Path, labels: Labels, classes: Sequence[str] = (), options: ReadOptions = DEFAULT) -> Table:
    """The table of these labels in a format; a list, where one is given, names the classes."""
    place(root, *labels)
    WRITERS[name](root, labels, classes)
    if classes and name not in WITH_LIST:
        write(root, {"classes.txt": "".join(f"{text}\n" for text in classes)})
    return FORMATS[name].read(root, "train", options=options)


@pytest.mark.parametrize("name", WRITERS)
def test_labels_and_lists_of_classes_agree_in_any_unicode_form(tmp_path: Path, name: str) -> None:
    labels = {"a.jpg": [NFD], "b.jpg": ["dog", NFC], "c.jpg": ["dog"]}
    for folder, listed in (("nfc", NFC), ("nfd", NFD)):
        table = read(name, tmp_path / folder, labels, classes=(listed, "dog"))
        assert table.classes == (NFC, "dog")
        assert table.targets.tolist() == [[1, 0], [1, 1], [0, 1]]


@pytest.mark.parametrize("name", sorted({*WRITERS} - {*WITH_LIST}))
def test_labels_in_two_unicode_forms_are_one_class(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = read(name, tmp_path / "two", {"a.jpg": [NFD], "b.jpg": ["dog", NFC], "c.jpg": ["dog"]})
    assert table.classes == (NFC, "dog")
    assert table.targets.tolist() == [[1, 0], [1, 1], [0, 1]]
    assert f"{NFC!r} in train: written in two Unicode forms, read as one class" in capsys.readouterr().err
    assert read(name, tmp_path / "one", {"a.jpg": [NFD], "b.jpg": ["dog"]}).classes == (NFC, "dog")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", WRITERS)
def test_a_label_that_is_no_class_is_an_error_or_left_out_and_counted(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"a.jpg": ["cat", "zebra"], "b.jpg": ["dog"], "c.jpg": ["zebra"], "d.jpg": ["cow", "dog"]}
    with pytest.raises(InputError, match=r"'zebra' is no class; the nearest: .*UNKNOWN_NAMES"):
        read(name, tmp_path, labels, classes=("cat", "dog"))
    table = read(name, tmp_path, labels, classes=("cat", "dog"), options=SKIP)
    assert table.classes == ("cat", "dog")
    assert table.targets.tolist() == [[1, 0], [0, 1], [0, 0], [0, 1]]
    assert (
        f"{tmp_path}: 3 labels of train are left out, since no class has their name (UNKNOWN_NAMES): 'zebra' (2), "
        "'cow' (1)\n"
    ) in capsys.readouterr().err


@pytest.mark.parametrize("listed", [(), ("cat", "dog"), ("none", "cat", "dog")])
@pytest.mark.parametrize("name", WRITERS)
def test_a_label_that_says_that_there_is_none(tmp_path: Path, name: str, listed: tuple[str, ...]) -> None:
    labels = {"a.jpg": ["cat"], "b.jpg": ["none"], "c.jpg": ["cat", "dog"]}
    if name in WITH_LIST and not listed:
        listed = ("dog", "cat", "none")
    table = read(name, tmp_path, labels, listed, NONE)
    assert sorted(table.classes) == ["cat", "dog"]
    assert table.targets.sum(axis=1).tolist() == [1, 0, 2]
    assert (table.targets >= 0).all()
    with pytest.raises(InputError, match=r"b\.jpg is .*(none, cat|cat, none), of which NO_LABEL_NAMES says"):
        read(name, tmp_path / "both", labels | {"b.jpg": ["none", "cat"]}, listed, NONE)


# ---- formats with columns, numbers or folders of classes ----


def test_a_column_that_says_that_there_is_none(tmp_path: Path) -> None:
    """Where it is 1, all else is absent; 0 says nothing about the others."""
    place(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    write(tmp_path, {"train.csv": "image_path,cat,none,dog\na.jpg,1,0,\nb.jpg,,1,0\nc.jpg,0,-1,1\n"})
    table = FORMATS["csv"].read(tmp_path, "train", options=NONE)
    assert table.classes == ("cat", "dog")
    assert table.targets.tolist() == [[1, -1], [0, 0], [0, 1]]
    assert FORMATS["csv"].read(tmp_path, "train").classes == ("cat", "none", "dog"), "without the constant"
    write(tmp_path, {"train.csv": "image_path,none\na.jpg,1\n"})
    with pytest.raises(InputError, match="NO_LABEL_NAMES names all 1 classes"):
        FORMATS["csv"].read(tmp_path, "train", options=NONE)


def test_numbers_of_classes_stay_what_they_are(tmp_path: Path) -> None:
    place(tmp_path, "images/train-resized/a.jpg", "images/train-resized/b.jpg")
    write(tmp_path, {"classes.txt": "none\ncat\ndog\n", "labels/train/a.cls": "2\n", "labels/train/b.cls": "0\n"})
    table = FORMATS["coco_cls"].read(tmp_path, "train", options=NONE)
    assert (table.classes, table.targets.tolist()) == (("cat", "dog"), [[0, 1], [0, 0]])


def test_a_folder_of_images_that_show_nothing(tmp_path: Path) -> None:
    place(tmp_path, "train/cat/a.jpg", "train/none/b.jpg")
    table = FORMATS["image_folder"].read(tmp_path, "train", options=NONE)
    assert (table.classes, table.targets.tolist()) == (("cat",), [[1], [0]])


def test_folders_in_two_unicode_forms_are_one_class(tmp_path: Path) -> None:
    place(tmp_path, f"train/{NFC}/a.jpg", f"train/{NFD}/b.jpg", "train/dog/c.jpg")
    if len(list((tmp_path / "train").iterdir())) < 3:
        pytest.skip("this file system joins the two forms itself")
    table = FORMATS["image_folder"].read(tmp_path, "train")
    assert table.classes == (NFC, "dog")
    assert sorted(table.targets.tolist()) == [[0, 1], [1, 0], [1, 0]]


def test_folders_of_systems_are_no_classes(tmp_path: Path) -> None:
    place(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg", "train/@eaDir/a.jpg/THUMB.jpg", "train/__MACOSX/cat/c.jpg")
    place(tmp_path, "val/dog/d.jpg", "val/@eaDir/e.jpg", "test/@eaDir/f.jpg")
    assert FORMATS["image_folder"].list_splits(tmp_path) == ["train", "val"]
    table = FORMATS["image_folder"].read(tmp_path, "train")
    assert (table.classes, table.targets.tolist()) == (("cat", "dog"), [[1, 0], [0, 1]])


def test_columns_and_classes_of_other_formats_are_in_nfc(tmp_path: Path) -> None:
    place(tmp_path, "a.jpg", "JPEGImages/a.jpg")
    write(tmp_path / "csv", {"train.csv": f"image_path,{NFD}\n../csv/a.jpg,1\n"})
    place(tmp_path / "csv", "a.jpg")
    assert FORMATS["csv"].read(tmp_path / "csv", "train").classes == (NFC,)
    write(tmp_path, {f"ImageSets/Main/{NFD}_train.txt": "a 1\n", "label.txt": f"0 {NFD}\n", "train.txt": "a.jpg\t1\n"})
    assert FORMATS["pascal_voc"].read(tmp_path, "train").classes == (NFC,)
    assert FORMATS["mlcls"].read(tmp_path, "train").classes == (NFC,)


# ---- copies in folders of several classes ----


def test_an_image_in_the_folders_of_its_classes_is_one_with_all_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"cat/1.jpg": "both", "dog/1.jpg": "both", "cat/2.jpg": "one", "dog/2.jpg": "two", "dog/3.jpg": "both"}
    empty = {"cat/4.jpg": "", "dog/4.jpg": ""}
    write(tmp_path / "train", files | empty)
    table = FORMATS["image_folder"].read(tmp_path, "train")
    found = {path.split("train/")[1]: row for path, row in zip(table.paths, table.targets.tolist(), strict=True)}
    alone = {"cat": [1, 0], "dog": [0, 1]}
    assert found == {"cat/1.jpg": [1, 1]} | {
        name: alone[name[:3]] for name in (files | empty) if name not in ("cat/1.jpg", "dog/1.jpg")
    }
    assert (
        "1 images lie in several class folders, such as 1.jpg in cat, dog: each is read once, with the labels of "
        in (capsys.readouterr().err)
    )
    with pytest.raises(InputError, match=r"1\.jpg has 2 label\(s\) cat, dog"):
        FORMATS["image_folder"].name_images(table, ["1.jpg"] * len(table))


def test_images_of_one_name_that_differ_are_as_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "train", {"cat/1.jpg": "a", "dog/1.jpg": "b", "cow/1.jpg": "long"})
    assert len(FORMATS["image_folder"].read(tmp_path, "train")) == 3
    assert capsys.readouterr().err == ""


def test_files_that_cannot_be_read_are_no_copies(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "1.jpg").symlink_to(tmp_path / "gone.jpg")
    assert len(FORMATS["image_folder"].read(tmp_path, "train")) == 2


# ---- lists of classes ----


def test_a_list_with_a_name_in_both_forms_stops(tmp_path: Path) -> None:
    write(tmp_path, {"classes.txt": f"{NFC}\ndog\n{NFD}\n", "train_list.txt": "a.jpg\t1,0,0\n"})
    place(tmp_path, "a.jpg")
    message = rf"classes\.txt:3: '{NFD}' is the same class name as at .*classes\.txt:1, in another Unicode form"
    with pytest.raises(InputError, match=message):
        FORMATS["train_list"].read(tmp_path, "train")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_has_the_line_ends_of_any_system(tmp_path: Path, end: str) -> None:
    (tmp_path / "classes.txt").write_bytes(f"cat{end}hot dog{end}emu{end}".encode())
    assert read_classes(tmp_path, None) == ("cat", "hot dog", "emu")


def test_names_of_a_list_are_in_nfc_without_blanks() -> None:
    assert require_unique([f" {NFD}\t", "dog"], str) == (NFC, "dog")


def test_data_sets_and_models_in_other_forms_go_together(tmp_path: Path) -> None:
    """Several folders, CLASSES, a saved model, a teacher's file, word vectors."""
    for folder, text in (("1", NFC), ("2", NFD)):
        read("csv", tmp_path / folder, {"a.jpg": [text], "b.jpg": ["dog"]})
    assert read_dataset([tmp_path / "1", tmp_path / "2"], split="train").targets.tolist() == [[1, 0], [0, 1]] * 2

    place(tmp_path / "3", "images/train-resized/a.jpg")
    write(tmp_path / "3", {"labels/train/a.cls": "0\n"})
    assert read_dataset(tmp_path / "3", split="train", classes=(NFD, "dog")).classes == (NFC, "dog")

    metadata = check_metadata({"classes": [NFD, "dog"]}, "old.pt")
    assert metadata["classes"] == [NFC, "dog"]
    assert check_metadata({"classes": [NFD, NFC]}, "old.pt")["classes"] == [NFD, NFC], "it still loads"

    save_scores(tmp_path / "val.npz", [[0.5, 0.5]], [[1, 0]], ["a.jpg"], (NFD, "dog"))
    assert read_scores(tmp_path / "val.npz").classes == (NFC, "dog")

    write(
        tmp_path,
        {"teacher.csv": f"image_path,dog,{NFD}\na.jpg,0.25,0.75\n", "words.txt": f"dog 1 2\n{NFD.lower()} 3 4\n"},
    )
    table = Table(["a.jpg"], np.array([[1, 0]], dtype=np.int8), (NFC, "dog"))
    assert probability_files.read_probabilities(table, [tmp_path / "teacher.csv"]).tolist() == [[0.75, 0.25]]
    assert heads.read_embeddings(tmp_path / "words.txt", (NFC, "dog")).tolist() == [[3, 4], [1, 2]]


# ---- one name ----


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Cat", "f:1: 'Cat' is no class, but 'cat' is: write the same in both places"),
        ("hot_dog", "f:1: 'hot_dog' is no class, but 'hot dog' is: write the same in both places"),
        ("cat, hot dog", "f:1: 'cat, hot dog' is no class, but all its parts are when it is split at ',': set "
         "LABEL_SEPARATOR = ','"),
        ("cat hot", "f:1: 'cat hot' is no class; the nearest: "),
        ("hot dog/cat", "but all its parts are when it is split at '/': write them one by one"),
    ],
)  # fmt: skip
def test_what_a_name_may_be_that_is_no_class(name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        ClassIndex(["cat", "hot dog"]).find(name, "f:1")
    assert message in str(error.value)


def test_names_are_shown_in_quotes() -> None:
    assert quote_names(["cat", "dog ", "a, b", "l\u200b"]) == "'cat', 'dog ', 'a, b', 'l\\u200b'"
    assert describe_classes(tuple(f"c{number}" for number in range(12))) == (
        "12: 'c0', 'c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7', 'c8', 'c9', and 2 more"
    )
    assert len(quote_names(["x" * 1000])) < 120
