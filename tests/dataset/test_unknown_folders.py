"""dataset/unknown_folders.py and unknown_files.py: what is said of a folder in no known format."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from dataset import unknown_folders
from dataset.formats import FORMATS
from dataset_readers import read_dataset, recognise_format
from utils import InputError

IMAGES = {f"images/img_{number:02}.jpg": "" for number in range(12)}
IN_IMAGES = r"12 \.jpg in images/"


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def many(name: str, text: str) -> dict[str, str]:
    """Twelve files, numbered in place of the {}."""
    return {name.format(f"{number:02}"): text for number in range(12)}


# what lies there: what is said of it, as a regular expression
TABLES = {
    "a foreign name": (
        {"train.csv": "Foto;Klasse;Ort\nimages/img_00.jpg;cat;Rom\n"} | IMAGES,
        rf"it holds train\.csv and {IN_IMAGES}; train\.csv has the columns 'Foto', 'Klasse', 'Ort', separated by "
        r"';': call the column 'Foto' image_path, and call the one that names the classes labels \(see",
    ),
    "TABs": (
        {"list.tsv": "Foto\tKlasse\na.jpg\tcat\n"},
        r"separated by TABs: call .* labels, and call the file train\.csv",
    ),
    "no header": ({"train.csv": "images/a.jpg,cat\nb.jpg,dog\n"}, r"'images/a\.jpg', 'cat': these are data, not names"),
    "no images": ({"train.csv": "id,cat,dog\n17,1,0\n"}, r"none of them holds names of image files"),
    "no labels": ({"list.csv": "filename\na.jpg\n"}, r"has the column 'filename': it has no labels: to predict"),
    "boxes": (
        {"train_boxes.csv": "filename,width,name,xmin,ymin,xmax,ymax\na.jpg,64,cat,11,12,23,24\n"},
        r"each row is a box: keep two columns, 'filename' as image_path and 'name' as label",
    ),
    "UTF-16": (
        {"train.csv": "Foto,Klasse\n".encode("utf-16")},
        r"train\.csv has the columns 'Foto', 'Klasse': call the",
    ),
    "no text": ({"train.csv": b"Nummer,\0\0\0Klasse\n"}, r"train\.csv: bytes of zero stand in it: .* 'CSV UTF-8'"),
    "an encoding that cannot be told": (
        {"Tabelle1.csv": "Nummer;Größe\n17;drei\n".encode("cp1252")},
        r"Tabelle1\.csv:1: this is not UTF-8 text\. Read as cp1252, .*, it says 'Nummer;Größe': save the file as",
    ),
    "Excel in Western Europe": (
        {"Tabelle1.csv": "Nummer;Löwe\n17;drei\n".encode("cp1252")},
        r"the columns 'Nummer', 'Löwe', separated by ';': none of them holds names of image files",
    ),
    "values in Excel's encoding": (
        {"Tabelle1.csv": "Dateiname;Höhe, cm;Art\nFoto_1;3;Löwe\n".encode("cp1252")},
        r"'Dateiname', 'Höhe, cm', 'Art', separated by ';': call the column 'Dateiname' image_path, and call the one",
    ),
    "Excel's note": (
        {"Tabelle1.csv": "sep=;\nNummer;Art, Gattung\n17;Hund\n"},
        r"the columns 'Nummer', 'Art, Gattung', separated by ';': none",
    ),
    "an odd delimiter": ({"Tabelle1.csv": "sep=^\nNummer^Art\n17^Hund\n"}, r"'Nummer', 'Art', separated by '\^': none"),
    "a list in Excel's encoding": (
        {"train.txt": "Löwe.jpg große Katze\n".encode("cp1252")},
        r"train\.txt begins with the line 'Löwe\.jpg große Katze', an image and names",
    ),
    "nothing": ({"train.csv": ""}, r"train\.csv is empty: write train\.csv"),
    "a sample of a submission": ({"sample_submission.csv": "image,labels\na.jpg,cat\n"}, r"sample of what to hand in"),
    "many columns": ({"train.csv": ",".join(f"c{number}" for number in range(300))}, r"'c5' and 294 more: none"),
}
LISTS = {
    "numbers of classes": (
        {"train_list.txt": "a.jpg 3\nb.jpg 0\n"},
        r"'a\.jpg 3', an image and the number of its",
    ),
    "names of classes": ({"train_list.txt": "a.jpg\tcat\n"}, r"'a\.jpg\\tcat', an image and names: write train\.csv"),
    "other separators": ({"train.txt": "a.jpg;0,1\n", "label.txt": "0 a\n"}, r"an image and values: put a TAB behind"),
    "names alone": ({"train.txt": "a\nb\n"}, r"train\.txt begins with the line 'a', an image without labels"),
    "files of boxes": ({"train_list.txt": "i/a.jpg a/a.xml\n"}, r"an image and a file of its boxes or its mask"),
    "a table": ({"annotations.txt": "photo\tlabels\na.jpg\tcat\n"}, r"'photo', 'labels', separated by TABs: call the"),
    "names, in any file": ({"labels.txt": "a.jpg cat\n"}, r"'a\.jpg cat', an image and names: write train\.csv"),
    "a number in each file": (many("img_{}.txt", "3\n"), r"begins with the line '3', the number of a class: call such"),
    "a text in each file": (many("img_{}.txt", "a cat, a dog"), r"'a cat, a dog', which may be labels or a text"),
    "YOLO": (many("img_{}.txt", "0 0.5 0.5 0.2 0.2\n"), r"img_00\.txt begins .* the boxes of an image, as in YOLO"),
}
JSON = {
    "LabelMe": (many("img_{}.json", '{"shapes": [], "imagePath": "a.jpg"}'), r"12 \.json; img_00\.json is of LabelMe"),
    "VoTT": (
        {"x-export.json": '{"name": "x", "tags": [], "assets": {}}'},
        r"a whole project of VoTT .*export it",
    ),
    "Supervisely": (
        {"meta.json": '{"classes": [], "tags": []}'}
        | many("ds/ann/{}.jpg.json", '{"size": {"height": 1}, "objects": []}'),
        r"ds/ann/00\.jpg\.json is of Supervisely",
    ),
    "Scale AI": ({"x.json": '[{"task_id": "a", "response": {}}]'}, r"x\.json is of Scale AI"),
    "Labelbox": ({"x.ndjson": '{"data_row": {"id": 1}, "projects": {}}\n'}, r"x\.ndjson is of Labelbox"),
    "Label Studio": ({"x.json": '[{"data": {"image": "a.jpg"}}]'}, r"Label Studio's tasks, none of them annotated"),
    "SageMaker": ({"x.manifest": '{"source-ref": "s3://b/a.jpg"}\n'}, r"manifest of SageMaker"),
    "COCO without names": ({"x.json": '{"images": [], "annotations": []}'}, r'the list "categories" is missing'),
    "COCO's results": ({"x.json": '[{"image_id": 1, "category_id": 2, "score": 1}]'}, r"what a detector found"),
    "unknown keys": (
        {"train.json": '[{"image": "a\\"{.jpg", "tags": [{"x": 1}], "n": 1}, {"other": 1}]'},
        r"a list of objects with the keys 'image', 'tags', 'n', which no tool known here writes: write \{\"classes\"",
    ),
    "no JSON": ({"train.json": "hello"}, r"train\.json is no JSON, or has no object with keys"),
}
OTHERS = {
    "a spreadsheet": (
        {"labels.xlsx": b"PK"} | IMAGES,
        rf"labels\.xlsx and {IN_IMAGES}; labels\.xlsx is a spreadsheet",
    ),
    "Parquet": ({"data/train-00000-of-00001.parquet": b"PAR1"}, r"is a table of Parquet"),
    "MATLAB": ({"labels.mat": b""}, r"a file of MATLAB"),
    "NumPy": ({"x_train.npy": b""}, r"a file of NumPy"),
    "a pickle": ({"train.pkl": b""}, r"is a program and is not opened here"),
    "HDF5": ({"x.h5": b""}, r"an HDF5 file"),
    "TFRecord": ({f"train-{number:05}-of-00008": b"" for number in range(8)}, r"8 files without ending; .* a TFRecord"),
    "SQLite": ({"x.sqlite": b""}, r"SQLite"),
    "a zip": ({"data.zip": b"PK"}, r"data\.zip is an archive: unpack it \(unzip\), and set DATASET_FOLDER"),
    "a tar": ({"data.tar.gz": b""}, r"data\.tar\.gz is an archive: unpack it \(tar xf\)"),
    "other shards": (
        {f"shard_{number}.tar": b"" for number in range(4)},
        r"if it is a shard of webdataset, call it",
    ),
    "other XML": ({"x.xml": "<?xml version='1.0'?>\n<dataset/>"}, r"XML that begins with <dataset>"),
    "MNIST": ({"train-images-idx3-ubyte.gz": b""}, r"is in the form of MNIST"),
    "CIFAR": ({"data_batch_1": b"", "batches.meta": b""}, r"is of CIFAR, a pickle"),
    "labels without their folders": (
        many("labels/{}.cls", "0\n") | IMAGES,
        r"labels/00\.cls has the labels of an",
    ),
    "a checkpoint": ({"best_model.pt": b""}, r"is a model, not a data set"),
    "a program": ({"main.py": "", "README.md": ""}, r"none of that is an image or names one"),
    "camera pictures": (many("IMG_{}.CR2", ""), r"12 \.cr2; files of the type \.cr2 are not read: convert"),
}
FOLDERS = {
    "nothing": ({}, r"it is empty: set DATASET_FOLDER to where the data set is"),
    "pictures": (many("{}.jpg", ""), r"it holds 12 \.jpg; it has no labels: to predict .* TEST_IMAGES_DIR to \S+/set;"),
    "pictures in a folder": (IMAGES, r"set TEST_IMAGES_DIR to \S+/set/images; to train write train\.csv"),
    "pictures of splits": (
        many("train/{}.jpg", "") | many("test/{}.jpg", ""),
        r"it holds 24 \.jpg in test/ and train/; it has no labels",
    ),
    "class folders": (
        many("cat/{}.jpg", "") | many("dog/{}.jpg", "") | many("owl/{}.jpg", ""),
        r"36 \.jpg in 3 folders, such as cat/; 'cat', 'dog', 'owl' hold images, .* move these .* into \S+/set/train/",
    ),
    "class folders in a folder": (
        many("animals/cat/{}.jpg", "") | many("animals/dog/x/{}.jpg", ""),
        r"'cat', 'dog' hold images, .* move these folders into \S+/set/train/",
    ),
    "splits of another name": (
        many("training_set/cat/{}.jpg", "") | many("test_set/cat/{}.jpg", ""),
        r"test_set/ seems to hold a folder for each class: call it test/",
    ),
    "masks": (many("train/images/{}.jpg", "") | many("train/masks/{}.png", ""), r"it has no labels"),
    "a data set in it": (
        {"my/train.csv": "image_path,cat\na.jpg,1\n", "my/a.jpg": "", "README.txt": "hello"},
        r"my/ in it is a data set \(csv\): set DATASET_FOLDER to \S+/set/my \(see",
    ),
    "two of them": (
        {"a/train.csv": "image_path,cat\na.jpg,1\n", "b/train_list.txt": "a.jpg\t1,0\n"},
        r"set/a; b/ is one, too \(EXTRA_DATASET_FOLDERS joins it\)",
    ),
    "lists in a folder of their own": (
        {"lists/train.csv": "image_path,cat\nimages/img_00.jpg,1\n"} | IMAGES,
        r"lists/ in it is a data set \(csv\) without its images: move its files up to \S+/set",
    ),
}
KINDS = {
    f"{kind}: {name}": case
    for kind, cases in {"table": TABLES, "list": LISTS, "JSON": JSON, "file": OTHERS, "folder": FOLDERS}.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", KINDS)
def test_an_unknown_folder_is_told_with_the_step_to_take(tmp_path: Path, name: str) -> None:
    files, message = KINDS[name]
    root = write(tmp_path / "set", files)
    with pytest.raises(InputError) as error:
        recognise_format(root)
    text = str(error.value)
    assert text.startswith(f"{root} is in no known format: it ")
    assert re.search(message, text), text
    assert "\n" not in text
    assert len(text.replace(str(root), "")) < 420, "three lines"


def test_a_part_of_a_data_set_names_the_whole(tmp_path: Path) -> None:
    write(tmp_path / "set", {"train.csv": "image_path,labels\nimages/img_00.jpg,cat\n"} | IMAGES)
    with pytest.raises(InputError, match=rf"the folder {tmp_path}/set that it lies in is a data set \(csv\): set"):
        recognise_format(tmp_path / "set" / "images")
    write(tmp_path / "set", many("photos/{}.jpg", ""))
    with pytest.raises(InputError, match="it has no labels"):
        recognise_format(tmp_path / "set" / "photos")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "My-Photos", {"data.zip": b"PK", "notes.txt": ""})
    for wanted, message in {
        "my-photos": rf"there is no folder {tmp_path}/my-photos: set .*\(did you mean {tmp_path}/My-Photos\?\)",
        "My-Photo": rf"did you mean {tmp_path}/My-Photos\?",
        "else": rf"there is no folder {tmp_path}/else: set DATASET_FOLDER to where the data set is$",
        "else/x": rf"of this path there is {tmp_path} only",
        "My-Photos/data.zip": r"data\.zip is an archive: unpack it, and set DATASET_FOLDER",
        "My-Photos/notes.txt": r"notes\.txt is a file, not a folder",
    }.items():
        with pytest.raises(InputError, match=message):
            recognise_format(tmp_path / wanted)


def test_two_formats_at_once_name_their_files(tmp_path: Path) -> None:
    write(tmp_path, {"train.csv": "image_path,cat\na.jpg,1\n", "val.json": '{"classes": ["cat"], "images": []}'})
    with pytest.raises(
        InputError,
        match=r"in more than one format: classes_json \(val\.json\) and csv \(train\.csv\): set DATASET_FORMAT to "
        "classes_json or csv, or move",
    ):
        recognise_format(tmp_path)


def test_a_format_that_is_set_but_does_not_fit(tmp_path: Path) -> None:
    write(tmp_path / "set", {"train.csv": "image_path,cat\na.jpg,1\n", "a.jpg": ""})
    with pytest.raises(InputError, match=r"no split of format mlcls .*expected label\.txt .*; it fits csv: set"):
        read_dataset(tmp_path / "set", "mlcls", "train")
    write(tmp_path / "other", {"labels.xlsx": b""})
    with pytest.raises(InputError, match=r"no split of format csv .*; it holds labels\.xlsx; labels\.xlsx is a"):
        read_dataset(tmp_path / "other", "csv", "train")
    with pytest.raises(InputError, match="there is no folder"):
        read_dataset(tmp_path / "gone", "csv", "train")


def test_only_the_beginning_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of folders in folders, of files, and of what both hold."""
    monkeypatch.setattr(unknown_folders, "MOST_FILES", 20)
    deep = {f"{name}/{number}.bin": "" for name in "abcd" for number in range(9)}
    root = write(tmp_path / "set", deep | {"1/2/3/4/5/6/7.bin": ""})
    assert re.search(r"it holds [\d,]+ \.bin in 3 folders, such as \S+ and more", unknown_folders.explain_folder(root))
    (root / "again").symlink_to(root)
    monkeypatch.setattr(unknown_folders, "MOST_FILES", 10**6)
    assert "it holds" in unknown_folders.explain_folder(root)
    large = write(tmp_path / "large", {"x.json": '{"a": [' + "1, " * 2_000_000 + '1], "b": 2}'})
    assert "an object with the keys 'a'," in unknown_folders.explain_folder(large)


def test_a_folder_or_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.csv").symlink_to(tmp_path / "train.csv")  # a link to itself
    (tmp_path / "x.json").symlink_to("/nowhere")
    with pytest.raises(InputError, match=r"it holds train\.csv and x\.json; cannot read .*train\.csv: Too many"):
        recognise_format(tmp_path)

    def refuse(*_: object) -> list[str]:
        raise InputError("two files")

    monkeypatch.setitem(FORMATS, "celeba", replace(FORMATS["celeba"], list_splits=refuse))
    assert unknown_folders.find_formats(tmp_path) == [], "a folder that may be a data set, but cannot be told"
