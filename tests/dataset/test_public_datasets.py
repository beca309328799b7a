"""dataset/formats/: public data sets and exports that are only read, as their makers publish them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dataset.formats import FORMATS, WRITABLE
from dataset.table import Table
from dataset_readers import recognise_format
from tools.convert import convert_dataset
from utils import InputError

# {split: {image's path: (labels: 1 present, 0 absent, -1 unknown; group)}}
Expected = dict[str, dict[str, tuple[tuple[int, ...], str]]]


def place(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


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


EXAMPLES: dict[str, Callable[[Path], tuple[tuple[str, ...], Expected]]] = {
    "celeba": write_celeba,
    "chestxray14": write_chestxray14,
    "chexpert": write_chexpert,
}


def test_every_format_that_is_only_read_has_an_example() -> None:
    assert {*EXAMPLES} | {*WRITABLE} == {*FORMATS}


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


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_image_that_is_missing(tmp_path: Path, name: str) -> None:
    _, expected = EXAMPLES[name](tmp_path)
    (tmp_path / next(iter(expected["train"]))).unlink()
    with pytest.raises(InputError, match=rf"1 of {len(expected['train'])} images do not exist, the first: {tmp_path}"):
        FORMATS[name].read(tmp_path, "train")


@pytest.mark.parametrize("name", EXAMPLES)
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
