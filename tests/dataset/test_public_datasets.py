"""dataset/formats/: public data sets and exports that are only read, as their makers publish them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import test_formats
from test_formats import place, write

from dataset.formats import FORMATS
from dataset.table import Table
from dataset_readers import recognise_format
from tools.convert import convert_dataset
from utils import InputError

# {split: {image's path: (labels: 1 present, 0 absent, -1 unknown; group)}}
Expected = dict[str, dict[str, tuple[tuple[int, ...], str]]]


def as_rows(root: Path, table: Table) -> dict[str, tuple[tuple[int, ...], str]]:
    groups = table.groups or [""] * len(table)
    names = [str(Path(path).relative_to(root)) for path in table.paths]
    return {name: (tuple(row), group) for name, row, group in zip(names, table.targets.tolist(), groups, strict=True)}


# ---- a small example of each: as the documentation that the format's file cites shows it ----


def write_celeba(root: Path) -> tuple[tuple[str, ...], Expected]:
    place(root, *(f"Img/img_align_celeba/00000{number}.jpg" for number in (1, 2, 3, 4)))
    attributes = "4\n5_o_Clock_Shadow Bald Young \n000001.jpg -1  1  1\n000002.jpg -1 -1 -1\n"
    attributes += "000003.jpg  1 -1  1\n000004.jpg -1 -1  1\n"
    write(root, {"Anno/list_attr_celeba.txt": attributes})
    write(root, {"Eval/list_eval_partition.txt": "000001.jpg 0\n000002.jpg 0\n000003.jpg 1\n000004.jpg 2\n"})
    folder = "Img/img_align_celeba"
    train = {f"{folder}/000001.jpg": ((0, 1, 1), ""), f"{folder}/000002.jpg": ((0, 0, 0), "")}
    rest = {"val": {f"{folder}/000003.jpg": ((1, 0, 1), "")}, "test": {f"{folder}/000004.jpg": ((0, 0, 1), "")}}
    return ("5_o_Clock_Shadow", "Bald", "Young"), {"train": train, **rest}


HEADER_2017 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)


def write_chestxray14(root: Path) -> tuple[tuple[str, ...], Expected]:
    findings = {
        "00000001_000.png": ("Cardiomegaly", "1"),
        "00000001_001.png": ("Cardiomegaly|Emphysema", "1"),
        "00000002_000.png": ("No Finding", "2"),
        "00000003_000.png": ("Hernia|Cardiomegaly", "3"),
    }
    folders = ("images_001", "images_001", "images_001", "images_012")
    rows = "".join(
        f"{name},{found},0,{patient},058Y,M,PA,2682,2749,0.143,0.143,\n" for name, (found, patient) in findings.items()
    )
    paths = [f"{folder}/images/{name}" for folder, name in zip(folders, findings, strict=True)]
    place(root, *paths)
    *train, test = findings
    lists = {"train_val_list.txt": "\n".join(train), "test_list.txt": test}
    write(root, {"Data_Entry_2017.csv": HEADER_2017 + rows} | lists)
    labels = ((1, 0, 0), (1, 1, 0), (0, 0, 0), (1, 0, 1))
    expected = {path: (row, found[1]) for path, row, found in zip(paths, labels, findings.values(), strict=True)}
    return ("Cardiomegaly", "Emphysema", "Hernia"), {
        "train": dict(list(expected.items())[:3]),
        "test": dict(list(expected.items())[3:]),
    }


def write_chexpert(root: Path) -> tuple[tuple[str, ...], Expected]:
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Cardiomegaly,Support Devices\n"
    one, two = "train/patient00001/study1/view1_frontal.jpg", "train/patient00002/study2/view1_lateral.jpg"
    three = "valid/patient64541/study1/view1_frontal.jpg"
    place(root, one, two, three)
    train = f"CheXpert-v1.0-small/{one},Female,68,Frontal,AP,1.0,,0.0\n"
    train += f"CheXpert-v1.0-small/{two},Male,87,Lateral,,,-1.0,1.0\n"
    valid = f"CheXpert-v1.0-small/{three},Male,73,Frontal,AP,0.0,1.0,0.0\n"
    write(root, {"train.csv": header + train, "valid.csv": header + valid})
    return ("No Finding", "Cardiomegaly", "Support Devices"), {
        "train": {one: ((1, 0, 0), "patient00001"), two: ((0, -1, 1), "patient00002")},
        "val": {three: ((0, 1, 0), "patient64541")},
    }


def write_open_images(root: Path) -> tuple[tuple[str, ...], Expected]:
    header = "ImageID,Source,LabelName,Confidence\n"
    train = "000002b66c9c498e,verification,/m/01g317,1\n000002b66c9c498e,verification,/m/0bt9lr,0\n"
    train += "000002b97e5471a0,crowdsource-verification,/m/0bt9lr,1\n"
    train += "000002b97e5471a0,verification,/m/04yx4,1\n000002b97e5471a0,crowdsource-verification,/m/04yx4,0\n"
    train += "0000000000000009,verification,/m/0never,1\n"  # an image that was not fetched
    validation = "0001eeaf4aed83f9,verification,/m/0cmf2,1\n0001eeaf4aed83f9,verification,/m/04yx4,0\n"
    write(root, {"oidv6-train-annotations-human-imagelabels.csv": header + train})
    write(root, {"validation-annotations-human-imagelabels.csv": header + validation})
    names = "LabelName,DisplayName\n/m/01g317,Person\n/m/04yx4,Man\n/m/0bt9lr,Dog\n/m/0cmf2,Airplane\n/m/0never,Never\n"
    write(root, {"oidv7-class-descriptions.csv": names})
    place(root, "train/000002b66c9c498e.jpg", "train/000002b97e5471a0.jpg", "validation/0001eeaf4aed83f9.jpg")
    return ("Airplane", "Dog", "Man", "Person"), {
        "train": {
            "train/000002b66c9c498e.jpg": ((-1, 0, -1, 1), ""),
            "train/000002b97e5471a0.jpg": ((-1, 1, -1, -1), ""),
        },
        "val": {"validation/0001eeaf4aed83f9.jpg": ((1, -1, 0, -1), "")},
    }


def write_voc_xml(root: Path, name: str, *objects: tuple[str, int]) -> None:
    items = "".join(
        f"<object><name>{label}</name><difficult>{difficult}</difficult>"
        "<part><name>head</name></part><bndbox><xmin>1</xmin></bndbox></object>"
        for label, difficult in objects
    )
    write(root, {f"Annotations/{name}.xml": f"<annotation><filename>{name}.jpg</filename>{items}</annotation>"})


def write_pascal_voc(root: Path) -> tuple[tuple[str, ...], Expected]:
    tree = root / "VOC2007"
    place(tree, *(f"JPEGImages/00000{number}.jpg" for number in (5, 7, 9, 8)))
    lists = {
        "train": "000005\n000007\n",
        "val": "000009\n",
        "trainval": "000005\n000007\n000009\n",
        "test": "000008\n",
        "car_train": "000005 -1\n000007  1\n",
        "car_val": "000009  0\n",
        "car_test": "000008 -1\n",
        "chair_train": "000005  1\n000007 -1\n",
        "chair_val": "000009 -1\n",
        "chair_test": "000008  0\n",
    }
    write(tree, {f"ImageSets/Main/{name}.txt": text for name, text in lists.items()})
    write_voc_xml(tree, "000005", ("chair", 1), ("chair", 0))
    write_voc_xml(tree, "000007", ("car", 0))
    write_voc_xml(tree, "000009", ("car", 1))
    write_voc_xml(tree, "000008", ("chair", 1))
    folder = "VOC2007/JPEGImages"
    train = {f"{folder}/000005.jpg": ((0, 1), ""), f"{folder}/000007.jpg": ((1, 0), "")}
    return ("car", "chair"), {
        "train": train,
        "val": {f"{folder}/000009.jpg": ((-1, 0), "")},
        "test": {f"{folder}/000008.jpg": ((0, -1), "")},
    }


def write_planet(root: Path) -> tuple[tuple[str, ...], Expected]:
    place(root, *(f"train-jpg/train_{number}.jpg" for number in range(3)), "train-tif-v2/train_0.tif")
    rows = "train_0,haze primary\ntrain_1,agriculture clear primary water\ntrain_2,cloudy\n"
    header = "image_name,tags\n"
    write(root, {"train_v2.csv": header + rows, "sample_submission_v2.csv": f"{header}test_0,primary clear\n"})
    return ("agriculture", "clear", "cloudy", "haze", "primary", "water"), {
        "train": {
            "train-jpg/train_0.jpg": ((0, 0, 0, 1, 1, 0), ""),
            "train-jpg/train_1.jpg": ((1, 1, 0, 0, 1, 1), ""),
            "train-jpg/train_2.jpg": ((0, 0, 1, 0, 0, 0), ""),
        }
    }


def write_lightly_train(root: Path) -> tuple[tuple[str, ...], Expected]:
    place(root, "train/cat/img1.jpg", "train/cat/img2.jpg", "train/car/img1.jpg", "val/car/img1.jpg")
    train = 'train/cat/img1.jpg,"cat"\ntrain/cat/img2.jpg,"cat, dog"\ntrain/car/img1.jpg,"car"\n'
    write(
        root, {"train.csv": f"image_path,label\n{train}", "val.csv": 'image_path,label\nval/car/img1.jpg,"car,dog"\n'}
    )
    return ("car", "cat", "dog"), {
        "train": {
            "train/car/img1.jpg": ((1, 0, 0), ""),
            "train/cat/img1.jpg": ((0, 1, 0), ""),
            "train/cat/img2.jpg": ((0, 1, 1), ""),
        },
        "val": {"val/car/img1.jpg": ((1, 0, 1), "")},
    }


def write_nus_wide(root: Path) -> tuple[tuple[str, ...], Expected]:
    place(root, *(f"images/000{number}_a_m.jpg" for number in (1, 2, 3)))
    train = "images/0001_a_m.jpg 0 1 0\nimages/0002_a_m.jpg 1 1 0\n"
    test = "images/0003_a_m.jpg 0 0 0\n"
    write(root, {"train.txt": train, "test.txt": test, "database.txt": train})
    write(root, {"ConceptsList/Concepts81.txt": "airport\nanimal\nbeach\n"})
    return ("airport", "animal", "beach"), {
        "train": {"images/0001_a_m.jpg": ((0, 1, 0), ""), "images/0002_a_m.jpg": ((1, 1, 0), "")},
        "test": {"images/0003_a_m.jpg": ((0, 0, 0), "")},
    }


def write_automl(root: Path) -> tuple[tuple[str, ...], Expected]:
    place(root, "photos/a.jpg", "photos/b.jpg", "photos/c.jpg", "photos/d.jpg")
    rows = [
        "TRAIN,gs://bucket/photos/a.jpg,cat,dog",
        "UNASSIGNED,gs://bucket/photos/b.jpg,car,0.1,0.1,,,0.3,0.3,,",
        "unassigned,gs://bucket/photos/b.jpg,cat,,,,,,,,",
        "VALIDATION,gs://bucket/photos/c.jpg,dog",
        "TEST,gs://bucket/photos/d.jpg",
    ]
    write(root, {"all_data.csv": "\n".join(rows) + "\n"})
    return ("car", "cat", "dog"), {
        "train": {"photos/a.jpg": ((0, 1, 1), ""), "photos/b.jpg": ((1, 1, 0), "")},
        "val": {"photos/c.jpg": ((0, 0, 1), "")},
        "test": {"photos/d.jpg": ((0, 0, 0), "")},
    }


EXAMPLES: dict[str, Callable[[Path], tuple[tuple[str, ...], Expected]]] = {
    "celeba": write_celeba,
    "chestxray14": write_chestxray14,
    "chexpert": write_chexpert,
    "open_images": write_open_images,
    "pascal_voc": write_pascal_voc,
    "blank_tags": write_planet,
    "label_rows": write_lightly_train,
    "value_list": write_nus_wide,
    "automl": write_automl,
}


def test_every_format_has_an_example() -> None:
    assert {*EXAMPLES} | {*test_formats.EXAMPLES} == {*FORMATS}


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_is_read_as_it_comes(tmp_path: Path, name: str, windows: bool) -> None:
    classes, expected = EXAMPLES[name](tmp_path)
    if windows:  # byte order mark, line ends
        for file in [path for path in tmp_path.rglob("*") if path.suffix in (".txt", ".csv")]:
            file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert recognise_format(tmp_path) == name
    assert FORMATS[name].list_splits(tmp_path) == list(expected)
    for split, rows in expected.items():
        table = FORMATS[name].read(tmp_path, split)
        assert table.classes == classes
        assert as_rows(tmp_path, table) == rows
        assert table.paths == sorted(table.paths)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in ("open_images", "automl")])  # see below
def test_an_image_that_is_missing(tmp_path: Path, name: str) -> None:
    _, expected = EXAMPLES[name](tmp_path)
    (tmp_path / next(iter(expected["train"]))).unlink()
    with pytest.raises(InputError, match=rf"1 of {len(expected['train'])} images do not exist, the first: {tmp_path}"):
        FORMATS[name].read(tmp_path, "train")


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "pascal_voc"])  # known by its folders
def test_files_of_the_same_names_that_hold_something_else(tmp_path: Path, name: str) -> None:
    EXAMPLES[name](tmp_path)
    for file in [path for path in tmp_path.rglob("*") if path.suffix in (".txt", ".csv")]:
        file.write_text("name,count\ncat,3\n")
    assert not FORMATS[name].recognise(tmp_path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_becomes_a_csv(tmp_path: Path, name: str) -> None:
    classes, expected = EXAMPLES[name](tmp_path / "set")
    convert_dataset(tmp_path / "set", "auto", "csv", tmp_path / "csv")
    for split, rows in expected.items():
        table = FORMATS["csv"].read(tmp_path / "csv", split)
        assert table.classes == classes
        again = as_rows(tmp_path / "csv" / "images" / split, table)
        assert sorted(again.values()) == sorted(rows.values())


# ---- CelebA ----


def write_kaggles_celeba(root: Path) -> None:
    place(root, "img_align_celeba/img_align_celeba/000001.jpg", "img_align_celeba/img_align_celeba/000002.jpg")
    write(root, {"list_attr_celeba.csv": "image_id,Bald,Young\n000001.jpg,-1,1\n000002.jpg,1,-1\n"})
    write(root, {"list_eval_partition.csv": "image_id,partition\n000001.jpg,0\n000002.jpg,2\n"})


def test_celeba_from_kaggle(tmp_path: Path) -> None:
    write_kaggles_celeba(tmp_path)
    assert recognise_format(tmp_path) == "celeba"
    assert FORMATS["celeba"].list_splits(tmp_path) == ["train", "test"]
    table = FORMATS["celeba"].read(tmp_path, "test")
    assert as_rows(tmp_path, table) == {"img_align_celeba/img_align_celeba/000002.jpg": ((1, 0), "")}
    (tmp_path / "list_eval_partition.csv").unlink()
    assert FORMATS["celeba"].list_splits(tmp_path) == ["train"]
    assert FORMATS["celeba"].read(tmp_path, "train").targets.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "list_attr_celeba.csv",
            "image_id,Bald\n000001.jpg,0\n",
            r"list_attr_celeba\.csv:2: '0' is neither 1 .* nor -1",
        ),
        ("list_attr_celeba.csv", "image_id,Bald\n000001.jpg,1,1\n", r"list_attr_celeba\.csv:2: 3 cells, but 2 columns"),
        (
            "list_attr_celeba.csv",
            "image_id,Bald\n9.jpg,1\n",
            r":2: 9\.jpg stands in no line of .*list_eval_partition\.csv",
        ),
        ("list_eval_partition.csv", "image_id,partition\n000001.jpg,3\n", r"list_eval_partition\.csv:2: expected an"),
        ("list_attr_celeba.txt", "2\nBald\n000001.jpg 1\n", r"list_attr_celeba\.csv may not say the same: keep one"),
        (
            "img_align_celeba/000001.jpg",
            "",
            r"000001\.jpg lies in .*img_align_celeba and in .*img_align_celeba/img_align",
        ),
    ],
)
def test_mistakes_in_celeba(tmp_path: Path, file: str, text: str, message: str) -> None:
    write_kaggles_celeba(tmp_path)
    write(tmp_path, {file: text})
    with pytest.raises(InputError, match=message):
        FORMATS["celeba"].read(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3\nBald Young\n000001.jpg -1 1\n", r"celeba\.txt:1: this says that 3 images follow, but 1 do: is it whole"),
        ("1\nBald Young\n000001.jpg -1\n", r"celeba\.txt:3: 1 values, but there are 2 attributes"),
        ("1\nBald Bald\n000001.jpg -1 1\n", r"celeba\.txt:2: class 'Bald' stands here a second time"),
        ("3\n", r"celeba\.txt ends after its first line"),
        ("0\nBald\n", r"celeba\.txt lists no images"),
    ],
)
def test_mistakes_in_celebas_text_file(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, {"list_attr_celeba.txt": text})
    with pytest.raises(InputError, match=message):
        FORMATS["celeba"].read(tmp_path, "train")


# ---- ChestX-ray14 ----


def test_chestxray14_without_lists_is_all_train(tmp_path: Path) -> None:
    write_chestxray14(tmp_path)
    (tmp_path / "train_val_list.txt").unlink()
    (tmp_path / "test_list.txt").unlink()
    assert FORMATS["chestxray14"].list_splits(tmp_path) == ["train"]
    assert len(FORMATS["chestxray14"].read(tmp_path, "train")) == 4


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "test_list.txt",
            "00000009_000.png",
            r"test_list\.txt:1: '00000009_000\.png' stands in no line of .*2017\.csv",
        ),
        ("Data_Entry_2017_v2020.csv", HEADER_2017, r"2017\.csv and .*v2020\.csv differ in their labels: keep the one"),
        ("images/00000003_000.png", "", r"images/00000003_000\.png and .*images_012/.* have the same name"),
        ("classes.txt", "Hernia\n", r"Data_Entry_2017\.csv:5: 'Cardiomegaly' is no class"),
        (
            "Data_Entry_2017.csv",
            HEADER_2017 + "00000003_000.png,No Finding|Hernia,0,3,58,M,PA,1,1,1,1,\n",
            r"csv:2: the findings 'No Finding\|Hernia' are neither",
        ),
        (
            "Data_Entry_2017.csv",
            HEADER_2017 + "00000003_000.png,,0,3,58,M,PA,1,1,1,1,\n",
            r"csv:2: the findings '' are neither",
        ),
    ],
)
def test_mistakes_in_chestxray14(tmp_path: Path, file: str, text: str, message: str) -> None:
    write_chestxray14(tmp_path)
    write(tmp_path, {file: text})
    with pytest.raises(InputError, match=message):
        FORMATS["chestxray14"].read(tmp_path, "test")


# ---- CheXpert ----


def test_chexpert_beside_its_folder(tmp_path: Path) -> None:
    write_chexpert(tmp_path / "CheXpert-v1.0-small")
    for name in ("train.csv", "valid.csv"):
        (tmp_path / "CheXpert-v1.0-small" / name).rename(tmp_path / name)
    (path,) = FORMATS["chexpert"].read(tmp_path, "val").paths
    assert path == f"{tmp_path}/CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-1.0", "2.0", r"train\.csv:3: '2\.0' is none of 1, 0, -1 \(uncertain\) and blank"),
        ("patient00001", "person1", r"train\.csv:2: no folder in .* is called patient"),
        ("Cardiomegaly", "No Finding", r"train\.csv:1: column 7: class 'No Finding' stands here a second time"),
        (",68", "", r"train\.csv:2: 7 cells, but 8 columns"),
    ],
)
def test_mistakes_in_chexpert(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_chexpert(tmp_path)
    file = tmp_path / "train.csv"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        FORMATS["chexpert"].read(tmp_path, "train")


# ---- Open Images ----


def read_open_images(root: Path, split: str = "train") -> Table:
    return FORMATS["open_images"].read(root, split)


def test_what_was_not_fetched_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_open_images(tmp_path)
    place(tmp_path, "train/0000000000000001.jpg", "train/0000000000000002.jpg")
    assert len(read_open_images(tmp_path)) == 2
    output = " ".join(capsys.readouterr().err.split())
    assert "left out 1 rows of images that are not here, 2 images here without a row" in output


def test_open_images_as_fiftyone_places_it(tmp_path: Path) -> None:
    classes, expected = write_open_images(tmp_path / "old")
    for name, file in (("train", "oidv6-train"), ("validation", "validation")):
        (tmp_path / name / "labels").mkdir(parents=True)
        (tmp_path / name / "metadata").mkdir()
        (tmp_path / "old" / name).rename(tmp_path / name / "data")
        source = tmp_path / "old" / f"{file}-annotations-human-imagelabels.csv"
        source.rename(tmp_path / name / "labels" / "classifications.csv")
    names = (tmp_path / "old" / "oidv7-class-descriptions.csv").read_text().partition("\n")[2]
    write(tmp_path, {"train/metadata/classes.csv": names})
    assert recognise_format(tmp_path) == "open_images"
    table = read_open_images(tmp_path)
    assert table.classes == classes
    assert sorted(as_rows(tmp_path, table).values()) == sorted(expected["train"].values())


def test_labels_of_one_name_and_labels_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_open_images(tmp_path)
    write(tmp_path, {"oidv7-class-descriptions.csv": "/m/01g317,Bat\n/m/0bt9lr,Bat\n/m/04yx4,Man\n"})
    table = read_open_images(tmp_path)
    assert table.classes == ("/m/0cmf2", "Bat (/m/01g317)", "Bat (/m/0bt9lr)", "Man")
    assert table.targets.tolist() == [[-1, 1, 0, -1], [-1, -1, 1, -1]]
    output = " ".join(capsys.readouterr().err.split())
    assert "1 labels stand in no *class-descriptions*.csv, such as /m/0cmf2" in output


def test_classes_of_open_images_can_be_chosen(tmp_path: Path) -> None:
    write_open_images(tmp_path)
    write(tmp_path, {"classes.txt": "Person\nDog\n"})
    table = read_open_images(tmp_path)
    assert table.classes == ("Person", "Dog")
    assert table.targets.tolist() == [[1, 0], [-1, 1]]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "train-annotations-human-imagelabels-boxable.csv",
            "",
            r"oidv6-.*\.csv and .*boxable\.csv both hold labels of tr",
        ),
        (
            "test-annotations-human-imagelabels.csv",
            "",
            r"test-.*\.csv: no image that it lists lies in .*/test; images on",
        ),
        (
            "oidv6-train-annotations-human-imagelabels.csv",
            "000002b66c9c498e,x,/m/1,0.7\n",
            r"csv:2: the confidence '0\.7'",
        ),
        ("oidv6-train-annotations-human-imagelabels.csv", "000002b66c9c498e,x,1\n", r"csv:2: 3 cells, but 4 columns"),
        ("train_0/000002b66c9c498e.jpg", "", r"train/000002b66c9c498e\.jpg and .*/train_0/.* have the same name"),
    ],
)
def test_mistakes_in_open_images(tmp_path: Path, file: str, text: str, message: str) -> None:
    write_open_images(tmp_path)
    write(tmp_path, {file: f"ImageID,Source,LabelName,Confidence\n{text}"})
    with pytest.raises(InputError, match=message):
        read_open_images(tmp_path, "test" if file.startswith("test") else "train")


# ---- Pascal VOC ----


def test_the_lists_of_classes_and_the_annotations_say_the_same(tmp_path: Path) -> None:
    classes, expected = write_pascal_voc(tmp_path)
    for file in [*tmp_path.rglob("car_*.txt"), *tmp_path.rglob("chair_*.txt")]:
        file.unlink()
    for split, rows in expected.items():
        table = FORMATS["pascal_voc"].read(tmp_path, split)
        assert (table.classes, as_rows(tmp_path, table)) == (classes, rows)
    write(tmp_path, {"classes.txt": "chair\ncar\n"})
    assert FORMATS["pascal_voc"].read(tmp_path, "train").targets.tolist() == [[1, 0], [0, 1]]


def test_several_trees_are_joined(tmp_path: Path) -> None:
    _, expected = write_pascal_voc(tmp_path / "VOCdevkit")
    write_pascal_voc(tmp_path / "more")
    (tmp_path / "more" / "VOC2007").rename(tmp_path / "VOCdevkit" / "VOC2012")
    table = FORMATS["pascal_voc"].read(tmp_path, "train")
    rows = {path.replace("2007", year): row for year in ("2007", "2012") for path, row in expected["train"].items()}
    assert as_rows(tmp_path / "VOCdevkit", table) == rows
    assert as_rows(tmp_path, FORMATS["pascal_voc"].read(tmp_path / "VOCdevkit" / "VOC2012", "val")).keys() == {
        "VOCdevkit/VOC2012/JPEGImages/000009.jpg"
    }


def test_trainval_is_train_where_there_is_no_train(tmp_path: Path) -> None:
    write_pascal_voc(tmp_path)
    for file in [*tmp_path.rglob("*train.txt"), *tmp_path.rglob("*_val.txt"), *tmp_path.rglob("val.txt")]:
        file.unlink()
    lists = {"car_trainval": "000005 -1\n000007 1\n000009 0\n", "chair_trainval": "000005 1\n000007 -1\n000009 -1\n"}
    write(tmp_path, {f"VOC2007/ImageSets/Main/{name}.txt": text for name, text in lists.items()})
    assert FORMATS["pascal_voc"].list_splits(tmp_path) == ["train", "test"]
    assert FORMATS["pascal_voc"].read(tmp_path, "train").targets.tolist() == [[0, 1], [1, 0], [-1, 0]]


MAIN = "ImageSets/Main"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (f"{MAIN}/car_train.txt", "000005 2\n", r"car_train\.txt:1: expected an image and 1, 0 or -1: '000005 2'"),
        (f"{MAIN}/car_train.txt", "000005\n", r"car_train\.txt:1: expected an image and 1, 0 or -1: '000005'"),
        (f"{MAIN}/chair_train.txt", "000005 1\n", r"chair_train\.txt: '000007' is missing, .* at .*car_train\.txt:2"),
        (f"{MAIN}/chair_train.txt", "000006 1\n", r"chair_train\.txt:1: '000006' is missing in .*car_train\.txt"),
        ("JPEGImages/000005.png", "", r"000005\.(jpg|png) and 000005\.(jpg|png) differ in their extension only"),
    ],
)
def test_mistakes_in_pascal_voc(tmp_path: Path, file: str, text: str, message: str) -> None:
    write_pascal_voc(tmp_path)
    write(tmp_path / "VOC2007", {file: text})
    with pytest.raises(InputError, match=message):
        FORMATS["pascal_voc"].read(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>\n<object></annotation>", r"000007\.xml:2: .*this is not XML"),
        ("<annotation><object/></annotation>", r"000007\.xml: an object has no name"),
        (
            '<?xml version="1.0"?>\n<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]>\n<annotation>&d;</annotation>',
            r"000007\.xml: it declares a document type or entities",
        ),
    ],
)
def test_mistakes_in_annotations(tmp_path: Path, text: str, message: str) -> None:
    write_pascal_voc(tmp_path)
    for file in [*tmp_path.rglob("car_*.txt"), *tmp_path.rglob("chair_*.txt")]:
        file.unlink()
    write(tmp_path, {"VOC2007/Annotations/000007.xml": text})
    with pytest.raises(InputError, match=message):
        FORMATS["pascal_voc"].read(tmp_path, "train")


def test_images_without_annotations_have_no_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pascal_voc(tmp_path)
    for file in [*tmp_path.rglob("car_*.txt"), *tmp_path.rglob("chair_*.txt")]:
        file.unlink()
    before = FORMATS["pascal_voc"].read(tmp_path, "train")
    (tmp_path / "VOC2007/Annotations/000007.xml").unlink()
    after = FORMATS["pascal_voc"].read(tmp_path, "train")
    rows = {path.rpartition("/")[2]: row for path, row in zip(before.paths, before.targets.tolist(), strict=True)}
    assert any(rows["000007.jpg"])
    rows["000007.jpg"] = [0] * len(before.classes)
    assert dict(zip(map(os.path.basename, after.paths), after.targets.tolist(), strict=True)) == rows
    assert "have no file in Annotations, so no object; the first: 000007.xml" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "VOC2007/Annotations")
    with pytest.raises(InputError, match=r"test\.txt:1: there is no .*/Annotations/0000\d+\.xml"):
        FORMATS["pascal_voc"].read(tmp_path, "train")


# ---- tags separated by blanks ----


def test_plant_pathology(tmp_path: Path) -> None:
    place(tmp_path, "train_images/800113bb65efe69e.jpg", "train_images/8002cb321f8bfcdf.jpg", "test_images/85f8cb.jpg")
    rows = "800113bb65efe69e.jpg,healthy\n8002cb321f8bfcdf.jpg,scab frog_eye_leaf_spot complex\n"
    write(
        tmp_path, {"train.csv": f"image,labels\n{rows}", "sample_submission.csv": "image,labels\n85f8cb.jpg,healthy\n"}
    )
    assert recognise_format(tmp_path) == "blank_tags"
    assert FORMATS["blank_tags"].list_splits(tmp_path) == ["train"]
    table = FORMATS["blank_tags"].read(tmp_path, "train")
    assert table.classes == ("complex", "frog_eye_leaf_spot", "healthy", "scab")
    assert table.targets.tolist() == [[0, 0, 1, 0], [1, 1, 0, 1]]


def write_fastai(root: Path) -> None:
    place(root, "train/000005.jpg", "train/000007.jpg", "train/000009.jpg", "test/000001.jpg")
    rows = "000005.jpg,chair,True\n000007.jpg,car,False\n000009.jpg,horse person,True\n"
    write(root, {"train.csv": f"fname,labels,is_valid\n{rows}", "test.csv": "fname,labels\n000001.jpg,dog person\n"})


def test_pascal_2007_of_fastai(tmp_path: Path) -> None:
    write_fastai(tmp_path)
    assert recognise_format(tmp_path) == "blank_tags"
    assert FORMATS["blank_tags"].list_splits(tmp_path) == ["train", "val", "test"]
    tables = {split: FORMATS["blank_tags"].read(tmp_path, split) for split in ("train", "val", "test")}
    assert {table.classes for table in tables.values()} == {("car", "chair", "dog", "horse", "person")}
    assert as_rows(tmp_path, tables["train"]) == {"train/000007.jpg": ((1, 0, 0, 0, 0), "")}
    assert as_rows(tmp_path, tables["val"]) == {
        "train/000005.jpg": ((0, 1, 0, 0, 0), ""),
        "train/000009.jpg": ((0, 0, 0, 1, 1), ""),
    }
    assert as_rows(tmp_path, tables["test"]) == {"test/000001.jpg": ((0, 0, 1, 0, 1), "")}


@pytest.mark.parametrize(
    ("file", "header", "folder"),
    [
        ("train.csv", "image,labels", "train_images"),
        ("train_v2.csv", "image_name,tags", "train"),
        ("labels.csv", "fname,labels", "train"),
    ],
)
def test_names_of_two_words_in_the_columns_of_tags(tmp_path: Path, file: str, header: str, folder: str) -> None:
    place(tmp_path, *(f"{folder}/{name}.jpg" for name in "abcd"))
    rows = "a.jpg,hot dog\nb.jpg,hot dog\nc.jpg,traffic light\nd.jpg,person\n"
    write(tmp_path, {file: f"{header}\n{rows}"})
    assert recognise_format(tmp_path) == "csv"
    table = FORMATS["csv"].read(tmp_path, "train")
    assert table.classes == ("hot dog", "person", "traffic light")
    assert table.targets.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_the_same_columns_elsewhere_are_not_tags_with_blanks(tmp_path: Path) -> None:
    place(tmp_path, "images/a.jpg")
    write(
        tmp_path, {"train.csv": "image,labels\na.jpg,traffic light\n", "all.csv": "image_name,tags\na,traffic light\n"}
    )
    assert not FORMATS["blank_tags"].recognise(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "train.csv",
            "fname,labels,is_valid\n000005.jpg,car,maybe\n",
            r"train\.csv:2: is_valid is 'maybe': it takes True",
        ),
        ("train_v2.csv", "fname,labels\n000005.jpg,car\n", r"train\.csv and .*train_v2\.csv are both for train: keep"),
        ("classes.txt", "car\nchair\n", r"train\.csv:4: 'horse' is no class"),
    ],
)
def test_mistakes_in_tags(tmp_path: Path, file: str, text: str, message: str) -> None:
    write_fastai(tmp_path)
    write(tmp_path, {file: text})
    with pytest.raises(InputError, match=message):
        FORMATS["blank_tags"].read(tmp_path, "val" if file == "classes.txt" else "train")


# ---- an image and its label ----


def read_labels(root: Path, rows: str, header: str = "image,label") -> list[tuple[str, ...]]:
    """The names of the labels of a.jpg, b.jpg and so on, when `rows` are those of train.csv."""
    write(root, {"train.csv": f"{header}\n{rows}"})
    table = FORMATS["label_rows"].read(root, "train")
    return [tuple(name for name, value in zip(table.classes, row, strict=True) if value) for row in table.targets]


@pytest.mark.parametrize(
    ("rows", "classes", "expected"),
    [
        ("a.jpg,cat\na.jpg,dog\nb.jpg,dog\na.jpg,cat\n", "", [("cat", "dog"), ("dog",)]),  # a row for each label
        ('a.jpg,"Doe, Jane"\na.jpg,"Smith, Al"\nb.jpg,\n', "", [("Doe, Jane", "Smith, Al"), ()]),
        ('a.jpg,"cat,dog"\nb.jpg,dog\n', "", [("cat", "dog"), ("dog",)]),
        ('a.jpg,"cat,dog"\nb.jpg,emu\n', "emu\ncat\ndog\n", [("cat", "dog"), ("emu",)]),
        ('a.jpg,"cat,dog"\nb.jpg,emu\n', "emu\ncat,dog\n", [("cat,dog",), ("emu",)]),
        ('a.jpg,"0,2"\nb.jpg,1\n', "emu\ncat\ndog\n", [("emu", "dog"), ("cat",)]),  # LightlyTrain's numbers
        ("a.jpg,7\nb.jpg,1\n", "", [("7",), ("1",)]),
    ],
)
def test_what_a_label_may_be(tmp_path: Path, rows: str, classes: str, expected: list[tuple[str, ...]]) -> None:
    place(tmp_path, "images/a.jpg", "images/b.jpg")
    if classes:
        write(tmp_path, {"classes.txt": classes})
    assert read_labels(tmp_path, rows) == expected
    assert recognise_format(tmp_path) == "label_rows"
    (tmp_path / "images").rename(tmp_path / "train_images")
    assert read_labels(tmp_path, rows) == expected


@pytest.mark.parametrize(
    "rows",
    [
        'a.jpg,"cat,dog"\nb.jpg,emu\n',  # several, or one of that name?
        'a.jpg,"cat,dog"\na.jpg,cat\nb.jpg,emu\n',  # a row for each label, or names joined by commas?
    ],
)
def test_what_may_be_one_label_or_several(tmp_path: Path, rows: str) -> None:
    place(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(InputError, match=r"csv:2: is 'cat,dog' one name, or 2 that ',' separates\? .*classes\.txt,"):
        read_labels(tmp_path, rows)


def test_a_column_label_of_values_is_a_class(tmp_path: Path) -> None:
    place(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path, {"train.csv": "image_path,label\na.jpg,1\nb.jpg,0\n"})
    assert recognise_format(tmp_path) == "csv"
    assert FORMATS["csv"].read(tmp_path, "train").classes == ("label",)


def test_a_file_of_results_is_no_data_set(tmp_path: Path) -> None:
    place(tmp_path, "a.jpg")
    write(tmp_path, {"train.csv": "image_path,cat\na.jpg,1\n", "predictions.csv": "image_path,label\na.jpg,cat\n"})
    assert recognise_format(tmp_path) == "csv"
    (tmp_path / "train.csv").unlink()
    assert recognise_format(tmp_path) == "label_rows", "the only file"
    write(tmp_path, {"train.csv": "image_path,cat\na.jpg,1\n", "test.csv": "image_path,label\na.jpg,cat\n"})
    with pytest.raises(InputError, match=r"in more than one format: csv \(train\.csv\) and label_rows \(test\.csv\)"):
        recognise_format(tmp_path)


def test_a_class_that_is_not_named(tmp_path: Path) -> None:
    write_lightly_train(tmp_path)
    write(tmp_path, {"classes.txt": "car\ncat\n"})
    with pytest.raises(InputError, match=r"train\.csv:3: 'dog' is no class"):
        FORMATS["label_rows"].read(tmp_path, "train")


# ---- lists of paths and values ----


def test_names_of_the_labels_of_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_nus_wide(tmp_path)
    read = FORMATS["value_list"].read
    write(tmp_path, {"classes.txt": "x\ny\nz\n"})
    assert read(tmp_path, "train").classes == ("x", "y", "z")
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "ConceptsList" / "Concepts81.txt").unlink()
    assert read(tmp_path, "train", classes=("u", "v", "w")).classes == ("u", "v", "w")
    assert capsys.readouterr().err == ""
    assert read(tmp_path, "train").classes == ("label_0", "label_1", "label_2")
    assert "nothing names its 3 labels" in " ".join(capsys.readouterr().err.split())
    write(tmp_path, {"train.txt": "images/0001_a_m.jpg 0 1 0\nimages/0002_a_m.jpg 1 1\n"})
    with pytest.raises(InputError, match=r"train\.txt:2: 2 labels, but there are 3 classes"):
        read(tmp_path, "train")


def test_the_index_of_an_images_only_class_is_no_value(tmp_path: Path) -> None:
    place(tmp_path, "a.jpg", "b.jpg")
    text = "a.jpg 0\nb.jpg 1\n"  # as ImageNet's lists: class 0 and class 1, not absent and present
    write(tmp_path, {"train.txt": text, "train_list.txt": text, "classes.txt": "cat\ndog\n"})
    assert [name for name in FORMATS if FORMATS[name].recognise(tmp_path)] == []
    write(tmp_path, {"label.txt": "0 cat\n1 dog\n"})
    assert [name for name in FORMATS if FORMATS[name].recognise(tmp_path)] == []


# ---- AutoML ----


def test_rows_without_their_use_are_train(tmp_path: Path) -> None:
    place(tmp_path, "a.jpg")
    write(tmp_path, {"data.csv": "gs://bucket/photos/a.jpg,cat\n\n,gs://bucket/photos/a.jpg,dog\n"})
    assert recognise_format(tmp_path) == "automl"
    assert FORMATS["automl"].read(tmp_path, "train").targets.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        ("cat,5e-05,0.2,,,0.5,0.9,,", ("cat",)),
        ("3,1E-3,0.1,0.5,0.1,0.5,0.9,-0.0,1", ("3",)),
        (",0.1,0.2,,,0.5,0.9,,\nTRAIN,gs://bucket/photos/a.jpg,cat", ("cat",)),
        ("3,12", ("12", "3")),  # names of classes
        ("2019,cat", ("2019", "cat")),
    ],
)
def test_numbers_of_a_box_are_no_labels(tmp_path: Path, cells: str, classes: tuple[str, ...]) -> None:
    place(tmp_path, "a.jpg")
    write(tmp_path, {"data.csv": f"TRAIN,gs://bucket/photos/a.jpg,{cells}\n"})
    table = FORMATS["automl"].read(tmp_path, "train")
    assert (table.classes, table.targets.tolist()) == (classes, [[1] * len(classes)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "TRAIN,gs://bucket/e.jpg,cat",
            r"1 of 3 .* gs://bucket/e\.jpg \(.*all_data\.csv:6\); images on the web are not",
        ),
        ("TRAIN", r"all_data\.csv:6: 'TRAIN' stands alone: an image and its labels are to follow"),
        ('TRAIN,"a', r"all_data\.csv:6: unexpected end of data"),
        (
            "TEST,gs://bucket/e.jpg,cat,5e-05,0.2,0.5,0.9",
            r"all_data\.csv:6: the numbers after 'cat' are labels or a box",
        ),
        (
            "TEST,gs://bucket/e.jpg,3,0.5",
            r"all_data\.csv:6: the numbers after '3' are labels or a box: for a box write 8",
        ),
    ],
)
def test_mistakes_in_automl(tmp_path: Path, row: str, message: str) -> None:
    write_automl(tmp_path)
    file = tmp_path / "all_data.csv"
    file.write_text(f"{file.read_text()}{row}\n")
    with pytest.raises(InputError, match=message):
        FORMATS["automl"].read(tmp_path, "train")
