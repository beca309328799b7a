"""CSV files as people and programs write them: separators, delimiters, encodings, columns, values, splits.

Each is read as it is meant, or stops in one line that says both readings and what settles it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_formats import place, write

from dataset.formats import FORMATS
from dataset.formats.base import ReadOptions
from dataset.label_cells import read_column
from dataset.label_values import name_values
from dataset.table import Table
from dataset_readers import find_formats, list_splits, read_dataset, recognise_format
from utils import InputError

IMAGES = ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
ONE_HOT = "image_path,cat,dog\na.jpg,1,0\nb.jpg,0,1\n"
ROWS = {"a.jpg": {"cat"}, "b.jpg": {"dog"}, "c.jpg": {"cat", "dog"}, "d.jpg": set(), "e.jpg": {"cat", "person"}}


def name_rows(table: Table) -> dict[str, set[str]]:
    """{image: the names of its labels}"""
    names = np.array(table.classes, dtype=object)
    return {Path(path).name: {*names[row == 1]} for path, row in zip(table.paths, table.targets, strict=True)}


def read_csv(root: Path, text: str | bytes, name: str = "train.csv", **options: object) -> Table:
    """The training images of a folder with five images and one list."""
    place(root, *IMAGES)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_dataset(root, split="train", options=ReadOptions(**options))  # pyright: ignore[reportArgumentType]


def read_warnings(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


# ---- what joins names ----


def write_column(cells: list[str]) -> str:
    table = pd.DataFrame({"image_path": IMAGES[: len(cells)], "labels": cells})
    return table.to_csv(index=False)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["cat", "dog", "cat;dog", "", "cat;person"], ""),
        (["cat", "dog", "cat; dog", "", '"cat";person'], ""),
        (["cat", "dog", "cat, dog", "", "cat, person"], "names are separated at ',', as in 'cat, dog'; 2 different"),
        (["cat", "dog", "cat,dog", "", "cat,person"], "separated at ','"),
        (["cat", "dog", "cat|dog", "", "cat|person"], "separated at '|'"),
        (["cat", "dog", "cat\tdog", "", "cat\tperson"], "separated at a TAB"),
        (["cat", "dog", "cat\ndog", "", "cat\nperson"], "separated at a line end"),
        (["cat", "dog", "cat，dog", "", "cat，person"], "separated at '，'"),
        (["['cat']", "['dog']", "['cat', 'dog']", "[]", "['cat', 'person']"], ""),
        (["('cat',)", "('dog',)", "('cat', 'dog')", "()", "{'cat', 'person'}"], ""),
        (['["cat"]', '["dog"]', '["cat", "dog"]', "", '["cat","person"]'], ""),
        (["cat", "dog", '{"choices": ["cat", "dog"]}', "", '{"choices": ["cat", "person"]}'], ""),
    ],
)
def test_each_notation_of_several_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cells: list[str], said: str
) -> None:
    table = read_csv(tmp_path, write_column(cells))
    assert table.classes == ("cat", "dog", "person")
    assert name_rows(table) == ROWS
    warnings = read_warnings(capsys)
    assert said in warnings
    assert bool(said) == bool(warnings)


def read_cells_of(cells: list[str], separator: str = "auto", known: tuple[str, ...] = ()) -> list[list[str]]:
    where = {cell: f"train.csv:{cells.index(cell) + 2}" for cell in cells}
    found = read_column(where, separator, known=known, what="train.csv: column 'labels'")  # pyright: ignore[reportArgumentType]
    return [found[cell] for cell in cells]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["Felis catus", "Felis silvestris", "Canis lupus", "Canis lupus familiaris"], None),  # names with blanks
        (["traffic light", "stop sign", "light", "baseball bat", "baseball glove"], None),
        (["dog/puppy", "N/A", "A+", "T-shirt/top", "A"], None),
        (['"cat, domestic"', "dog", '"x;y"'], [["cat, domestic"], ["dog"], ["x;y"]]),
        (["cat, domestic;dog", "dog", "cat, wild"], [["cat, domestic", "dog"], ["dog"], ["cat, wild"]]),
        (['"x;y";dog', "dog; cat"], [["x;y", "dog"], ["dog", "cat"]]),
        (["cat", "dog", "cat dog"], [["cat"], ["dog"], ["cat", "dog"]]),
        (["1", "3 12", "1 3"], [["1"], ["3", "12"], ["1", "3"]]),
        (["1", "3,12", "7,8"], [["1"], ["3", "12"], ["7", "8"]]),
        (
            ["hot dog, cat", "cat, bird", "hot dog", "bird"],
            [["hot dog", "cat"], ["cat", "bird"], ["hot dog"], ["bird"]],
        ),
        (["red, new, big", "red, old", "big, old"], [["red", "new", "big"], ["red", "old"], ["big", "old"]]),
        (["hot, spicy", '{"choices": ["cat", "dog"]}'], [["hot, spicy"], ["cat", "dog"]]),  # one choice is written bare
    ],
)
def test_names_that_may_hold_a_separator(cells: list[str], names: list[list[str]] | None) -> None:
    assert read_cells_of(cells) == ([[cell] for cell in cells] if names is None else names)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            ["hot dog, cat", "bird"],
            r"csv:2: is 'hot dog, cat' one name, or 2 that ',' separates\? LABEL_SEPARATOR = ','",
        ),
        (["tench, Tinca tinca", "goldfish, Carassius auratus"], r"is 'tench, Tinca tinca' one name, or 2 that ','"),
        (["Doe, Jane", "Doe, John", "Smith, Jane", "Smith, John"], r"is 'Doe, Jane' one name, or 2"),
        (
            ["black dog", "white cat", "white dog", "black cat"],
            r"is 'black dog' one name, or 2 that a blank separates\? .*classes\.txt",
        ),
        (["cat/dog", "cat", "dog"], r"is 'cat/dog' one name, or 2 that '/' separates\? Write ';' between several; or"),
        (["cat+dog", "cat", "dog"], r"is 'cat\+dog' one name, or 2 that '\+' separates"),
        (
            ["cat;dog", "cat|dog"],
            r"both ';', as in 'cat;dog', and '\|', as in 'cat\|dog', .*LABEL_SEPARATOR = ';' or '\|'",
        ),
        (
            ["cat;dog", "cat, dog", "cat"],
            r"both ';', as in 'cat;dog', and ',', as in 'cat, dog', may separate names: set",
        ),
        (
            ["cat dog, person", "cat", "dog", "person", "person, dog"],
            r"both ',', as in .* and a blank, as in 'cat dog'",
        ),
        (["[cat, dog]", "[cat]"], r"csv:2: '\[cat, dog\]' looks like a list, but its names are in no quotes"),
        (["['cat' 'dog']"], r"csv:2: there is no comma between the names in \"\['cat' 'dog'\]\""),
    ],
)
def test_what_can_be_read_in_two_ways_stops(cells: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_cells_of(cells)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cells", "known", "names"),
    [
        (["hot dog, cat", "bird"], ("cat", "hot dog", "bird"), [["hot dog", "cat"], ["bird"]]),
        (["cat, domestic", "dog"], ("cat, domestic", "dog"), [["cat, domestic"], ["dog"]]),
        (["cat, domestic;dog"], ("cat, domestic", "dog"), [["cat, domestic", "dog"]]),
        (["cat, domestic", "dog,emu"], ("cat, domestic", "dog", "emu"), [["cat, domestic"], ["dog", "emu"]]),
        (["black dog", "white dog"], ("black dog", "white dog"), [["black dog"], ["white dog"]]),
        (["black dog", "white dog"], ("black", "white", "dog"), [["black", "dog"], ["white", "dog"]]),
        (["cat/dog", "cat"], ("cat", "dog"), [["cat", "dog"], ["cat"]]),
        (["0,2", "1"], ("emu", "cat", "dog"), [["emu", "dog"], ["cat"]]),  # numbers of its lines
        (["[0, 2]", "[1]"], ("emu", "cat", "dog"), [["emu", "dog"], ["cat"]]),
        (["1", "0"], ("0", "1"), [["1"], ["0"]]),
        (["cat;emu", "cat"], ("cat", "dog"), [["cat", "emu"], ["cat"]]),  # whoever finds the class says that it is none
    ],
)
def test_classes_txt_decides(cells: list[str], known: tuple[str, ...], names: list[list[str]]) -> None:
    assert read_cells_of(cells, known=known) == names


def test_classes_txt_in_another_unicode_form() -> None:
    decomposed = ["Lo\u0308we, Ka\u0308fer", "Ka\u0308fer"]
    assert [len(names) for names in read_cells_of(decomposed, known=("Löwe", "Käfer"))] == [2, 1]
    assert read_cells_of(["Lo\u0308we, grau"], known=("Löwe, grau", "Löwe")) == [["Lo\u0308we, grau"]]


def test_classes_txt_with_which_two_separators_make_names() -> None:
    with pytest.raises(InputError, match=r"both ';', as in 'cat;dog', and ',', as in 'cat, dog', may separate"):
        read_cells_of(["cat;dog", "cat, dog"], known=("cat", "dog"))


def test_a_separator_that_is_set_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_cells_of(["black dog", "white dog", "black cat"], ";") == [["black dog"], ["white dog"], ["black cat"]]
    assert read_cells_of(["hot dog, cat", "bird"], ",") == [["hot dog", "cat"], ["bird"]]
    assert read_cells_of(["a;b,c", "a;b"], ",") == [["a;b", "c"], ["a;b"]]
    assert read_cells_of(["['cat', 'dog']"], ";") == [["cat", "dog"]]
    assert capsys.readouterr().err == ""
    assert read_cells_of(["hot dog, cat", "bird"], ";") == [["hot dog, cat"], ["bird"]]
    assert "no cell holds ';' (LABEL_SEPARATOR), but 1 different cell(s) hold ','" in read_warnings(capsys)


@pytest.mark.parametrize(
    ("cells", "separator", "known", "message"),
    [
        (
            ["cat", "dog", "cat, dog"],
            ";",
            (),
            r"csv:4: 'cat, dog' is one name with .* split at ',': set LABEL_SEPARATOR = ','",
        ),
        (
            ["cat, dog"],
            ";",
            ("cat", "dog"),
            r"csv:2: .* all its parts are classes when it is split at ',': set LABEL_SEP",
        ),
        (["cat", "dog", "cat dog"], ";", (), r"split at a blank: set LABEL_SEPARATOR = ' '"),
        (["cat;dog", "cat|dog"], ";", (), r"'cat\|dog' is one name .* split at '\|': set LABEL_SEPARATOR = '\|'"),
        (["cat", "dog", "cat\ndog"], ";", (), r"split at a line end: set it to 'auto'"),
    ],
)
def test_another_separator_that_obviously_joins(
    cells: list[str], separator: str, known: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_cells_of(cells, separator, known)


def test_a_column_is_judged_over_all_splits(tmp_path: Path) -> None:
    write(tmp_path, {"val.csv": "image_path,labels\nc.jpg,cat\nd.jpg,dog\n"})
    table = read_csv(tmp_path, 'image_path,labels\na.jpg,"cat, dog"\n')
    assert (table.classes, table.targets.tolist()) == (("cat", "dog"), [[1, 1]])
    (tmp_path / "val.csv").unlink()
    with pytest.raises(InputError, match="is 'cat, dog' one name, or 2"):
        read_dataset(tmp_path, split="train")


def test_names_in_metadata_are_judged_alike(tmp_path: Path) -> None:
    place(tmp_path, "train/a.jpg", "train/b.jpg", "train/c.jpg")
    write(tmp_path, {"train/metadata.csv": 'file_name,label\na.jpg,cat\nb.jpg,dog\nc.jpg,"cat, dog"\n'})
    assert name_rows(read_dataset(tmp_path, "huggingface", "train"))["c.jpg"] == {"cat", "dog"}
    write(tmp_path, {"train/metadata.csv": 'file_name,label\na.jpg,cat\nc.jpg,"hot dog, cat"\n'})
    with pytest.raises(InputError, match=r"metadata\.csv:3: is 'hot dog, cat' one name, or 2"):
        read_dataset(tmp_path, "huggingface", "train")


# ---- delimiter and encoding ----


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_columns_that_no_commas_separate(tmp_path: Path, capsys: pytest.CaptureFixture[str], delimiter: str) -> None:
    text = "image_path;labels\na.jpg;cat\nb.jpg;dog\nc.jpg;cat, dog\nd.jpg;\ne.jpg;person, cat\n"
    table = read_csv(tmp_path, text.replace(";", delimiter))
    assert name_rows(table) == ROWS
    warnings = read_warnings(capsys)
    assert "train.csv: its columns are separated by" in warnings
    assert "names are separated at ','" in warnings, "the two are judged apart"


def test_names_joined_by_what_separates_the_columns(tmp_path: Path) -> None:
    table = read_csv(tmp_path, 'image_path;labels\na.jpg;cat\nb.jpg;dog\nc.jpg;"cat;dog"\nd.jpg;\ne.jpg;"person;cat"\n')
    assert name_rows(table) == ROWS
    with pytest.raises(
        InputError, match=r"csv:3: 3 cells, but 2 columns: a cell that holds the delimiter stands in quo"
    ):
        read_csv(tmp_path, "image_path,labels\na.jpg,cat\nb.jpg,cat,dog\n")


def test_a_tsv_and_excels_note_of_the_delimiter(tmp_path: Path) -> None:
    assert read_csv(tmp_path / "1", ONE_HOT.replace(",", "\t"), "train.tsv").targets.tolist() == [[1, 0], [0, 1]]
    assert read_csv(tmp_path / "2", "sep=;\r\n" + ONE_HOT.replace(",", ";")).targets.tolist() == [[1, 0], [0, 1]]
    assert read_csv(tmp_path / "3", "sep=,\r\n" + ONE_HOT).targets.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_german_excel(tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str) -> None:
    text = "image_path;Käfer;Straße;Über\r\na.jpg;1;0;0\r\nb.jpg;0;1;1\r\n"
    table = read_csv(tmp_path, text.encode(encoding))
    assert (table.classes, table.targets.tolist()) == (("Käfer", "Straße", "Über"), [[1, 0, 0], [0, 1, 1]])
    said = {
        "utf-16": "train.csv is in UTF-16",
        "cp1252": "train.csv:1: this is not UTF-8; it is read as Excel's cp1252",
    }
    warnings = read_warnings(capsys)
    assert said.get(encoding, "separated by ';'") in warnings
    assert ("cp1252" in warnings) == (encoding == "cp1252")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("kočka", "cp1250"),
        ("chèvre", "cp1252"),  # the same bytes are "chčvre" in Central Europe
        ("кошка", "cp1251"),
        ("猫と犬", "shift_jis"),
        ("Käfer", "mac_roman"),
        ("Käfer", "cp850"),
        ("γάτα", "cp1253"),
    ],
)
def test_an_encoding_that_cannot_be_told_stops(tmp_path: Path, text: str, encoding: str) -> None:
    data = f"image_path,labels\na.jpg,cat\nb.jpg,{text}\n".encode(encoding)
    with pytest.raises(
        InputError, match=r"train\.csv:3: this is not UTF-8 text\. .* save the file as 'CSV UTF-8'"
    ) as error:
        read_csv(tmp_path, data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark(tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str) -> None:
    assert read_csv(tmp_path, ONE_HOT.encode(encoding)).targets.tolist() == [[1, 0], [0, 1]]
    assert "train.csv is in UTF-16" in read_warnings(capsys)
    with pytest.raises(InputError, match=r"train\.csv: bytes of zero stand in it: save it as text in UTF-8"):
        read_csv(tmp_path, ONE_HOT.encode() + bytes(20))
    with pytest.raises(InputError, match=r"train\.csv:4: 'c\.jpg\\x00' cannot be the path of a file"):
        read_csv(tmp_path, ONE_HOT + "c.jpg\0,1,0\n")


def test_the_line_of_a_byte_that_is_far_into_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset.csv_files.BLOCK", 7)
    with pytest.raises(InputError, match=r"train\.csv:3: this is not UTF-8 text\. Read as cp1252"):
        read_csv(tmp_path, "image_path,labels\na.jpg,é\nb.jpg,".encode() + "chèvre\n".encode("cp1252"))
    assert read_csv(tmp_path, "image_path,labels\na.jpg,日本\nb.jpg,x\n").classes == ("x", "日本")


# ---- values ----


@pytest.mark.parametrize(
    ("present", "absent", "unknown"),
    [("1", "0", "-1"), ("1.0", "0.0", ""), ("1,0", "0,0", "-1,0"), ("True", "FALSE", "nan"), ("yes", "no", "")],
)
def test_words_and_numbers_for_values(tmp_path: Path, present: str, absent: str, unknown: str) -> None:
    text = f"image_path;cat;dog\na.jpg;{present};{absent}\nb.jpg;{absent};{unknown}\n"
    assert read_csv(tmp_path, text).targets.tolist() == [[1, 0], [0, -1]]


def test_crosses_leave_blank_cells_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = read_csv(tmp_path, "image_path,cat,dog\na.jpg,x,\nb.jpg,,X\nc.jpg,,\n")
    assert table.targets.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert "present is marked with x, so blank cells are read as absent" in read_warnings(capsys)
    write(tmp_path, {"val.csv": "image_path,cat,dog\nd.jpg,,\n"})
    assert read_dataset(tmp_path, split="val").targets.tolist() == [[0, 0]], "as in the other split"
    table = read_csv(tmp_path, "image_path,cat,dog\na.jpg,x,0\nb.jpg,,X\n")
    assert table.targets.tolist() == [[1, 0], [-1, 1]], "with 0 for absent, blank is unknown"


LISTS = {
    "csv": {"train.csv": "image_path,cat,dog\na.jpg,1,{0}\nb.jpg,{0},1\n"},
    "roboflow": {"train/_classes.csv": "filename, cat, dog\na.jpg, 1, {0}\nb.jpg, {0}, 1\n"},
    "train_list": {"train_list.txt": "a.jpg\t1,{0}\nb.jpg\t{0},1\n", "classes.txt": "cat\ndog\n"},
    "mlcls": {"train.txt": "a.jpg\t1,{0}\nb.jpg\t{0},1\n", "label.txt": "0 cat\n1 dog\n"},
    "value_list": {"train.txt": "a.jpg 1 {0}\nb.jpg {0} 1\n", "classes.txt": "cat\ndog\n"},
}


@pytest.mark.parametrize("format", LISTS)
def test_what_minus_one_means(tmp_path: Path, format: str) -> None:
    place(tmp_path, *(f"train/{name}" if format == "roboflow" else name for name in ("a.jpg", "b.jpg", "c.jpg")))

    def read(value: str, minus_one: str) -> list[list[int]]:
        write(tmp_path, {name: text.format(value) for name, text in LISTS[format].items()})
        options = ReadOptions(minus_one=minus_one)  # pyright: ignore[reportArgumentType]
        return read_dataset(tmp_path, format, "train", options=options).targets.tolist()

    with pytest.raises(
        InputError, match=r"labels are -1, and never 0: is -1 absent here, .* Set MINUS_ONE = 'absent' or"
    ):
        read("-1", "auto")
    assert read("-1", "absent") == [[1, 0], [0, 1]]
    assert read("-1", "unknown") == [[1, -1], [-1, 1]]
    assert read("0", "auto") == [[1, 0], [0, 1]]
    (file, text), *_ = LISTS[format].items()
    write(tmp_path, {file.replace("train", "val"): text.replace("b.jpg", "c.jpg").format("0")})
    place(tmp_path, *(["val/a.jpg", "val/c.jpg"] if format == "roboflow" else []))
    assert read("-1", "auto") == [[1, -1], [-1, 1]], "0 occurs in another split"


@pytest.mark.parametrize("format", ["csv", "train_list", "mlcls"])
def test_a_written_table_without_any_absent_label_comes_back(tmp_path: Path, format: str) -> None:
    place(tmp_path / FORMATS[format].images_folder("train"), "a.jpg", "b.jpg")
    for rows in ([[1, -1], [-1, 1]], [[1, -1], [0, 1]], [[-1, -1], [-1, -1]]):
        table = Table(["a.jpg", "b.jpg"], np.array(rows, np.int8), ("cat", "dog"))
        assert name_values(table)[-1] == ("-1" if 0 in np.array(rows) else "")
        FORMATS[format].write(table, tmp_path, "train", ["a.jpg", "b.jpg"])
        assert FORMATS[format].read(tmp_path, "train").targets.tolist() == rows


# ---- columns ----


@pytest.mark.parametrize(
    "heading", ["image_path", "filename", "file_name", "image", "path", "Image Index", "IMG", "image_id", "FilePaths"]
)
def test_the_column_of_the_images(tmp_path: Path, heading: str) -> None:
    for number, text in enumerate((ONE_HOT, "tags,image_path\ncat,a.jpg\ndog,b.jpg\n")):
        table = read_csv(tmp_path / str(number), text.replace("image_path", heading))
        assert (table.classes, table.targets.tolist()) == (("cat", "dog"), [[1, 0], [0, 1]])


def test_a_column_of_any_name_that_alone_holds_image_files(tmp_path: Path) -> None:
    assert read_csv(tmp_path, ONE_HOT.replace("image_path", "name")).targets.tolist() == [[1, 0], [0, 1]]
    write(tmp_path / "other", {"train.csv": "name,cat\na,1\n"})
    assert list_splits(tmp_path / "other", "csv") == []


def test_two_columns_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = read_csv(tmp_path, "image_id,file_name,labels\n1,a.jpg,cat\n2,b.jpg,dog\n")
    assert name_rows(table) == {"a.jpg": {"cat"}, "b.jpg": {"dog"}}
    assert "the images are those in 'file_name', whose cells are names of image files" in read_warnings(capsys)
    with pytest.raises(InputError, match=r"csv:1: the column of the images may be 'image' and 'file_name': call it"):
        read_csv(tmp_path, "image,file_name,labels\na.jpg,b.jpg,cat\n")


@pytest.mark.parametrize("heading", ["labels", "label", "tags", "classes", "Categories", "class_name"])
def test_the_column_of_names(tmp_path: Path, capsys: pytest.CaptureFixture[str], heading: str) -> None:
    table = read_csv(tmp_path, f"image_path,{heading},width\na.jpg,cat,64\nb.jpg,dog;cat,48\n")
    assert name_rows(table) == {"a.jpg": {"cat"}, "b.jpg": {"cat", "dog"}}
    assert f"labels are the names in {heading!r}; left out: width (LABEL_COLUMNS)" in read_warnings(capsys)


def test_two_columns_of_names(tmp_path: Path) -> None:
    text = "image_path,category,tags\na.jpg,animal,cat\nb.jpg,animal,dog\n"
    with pytest.raises(InputError, match=r"csv:1: labels may be in 'category' or 'tags': set LABEL_COLUMNS to one of"):
        read_csv(tmp_path, text)
    assert read_csv(tmp_path, text, label_columns=("tags",)).classes == ("cat", "dog")
    with pytest.raises(InputError, match=r"csv:1: there is no column 'tag' of LABEL_COLUMNS: it has category, tags"):
        read_csv(tmp_path, text, label_columns=("tag",))


def test_several_columns_of_names(tmp_path: Path) -> None:
    text = "image_path,label1,label2\na.jpg,cat,\nb.jpg,dog,cat\n"
    with pytest.raises(InputError, match=r"csv:2: 'cat' for class 'label1' is none of .* or set LABEL_COLUMNS"):
        read_csv(tmp_path, text)
    table = read_csv(tmp_path, text, label_columns=("label1", "label2"))
    assert name_rows(table) == {"a.jpg": {"cat"}, "b.jpg": {"cat", "dog"}}


def test_rows_of_an_image_for_each_label_with_a_column_of_splits(tmp_path: Path) -> None:
    text = "path,label,split\na.jpg,cat,train\na.jpg,dog,train\nb.jpg,dog,valid\n"
    table = read_csv(tmp_path, text, "labels.csv")
    assert (table.classes, name_rows(table)) == (("cat", "dog"), {"a.jpg": {"cat", "dog"}})
    with pytest.raises(InputError, match=r"csv:3: 'a\.jpg' has other labels here than at .*csv:2"):
        read_csv(tmp_path, text.replace("label,", "labels,"), "labels.csv")


@pytest.mark.parametrize(("format", "more"), [("label_rows", ("", "")), ("csv", (",split", ",train"))])
def test_a_number_that_is_a_name_may_stand_far_below(tmp_path: Path, format: str, more: tuple[str, str]) -> None:
    """Sorted by class, as folders are listed."""
    names = [f"{number}.jpg" for number in range(1503)]
    place(tmp_path, *names)
    rows = [f"{name},{0 if number < 1500 else 2}{more[1]}\n" for number, name in enumerate(names)]
    write(tmp_path, {"train.csv": f"image,label{more[0]}\n{''.join(rows)}"})
    assert recognise_format(tmp_path) == format
    table = read_dataset(tmp_path, split="train")
    assert (table.classes, table.targets.sum(axis=0).tolist()) == (("0", "2"), [1500, 3])
    assert table.targets.sum(axis=1).tolist() == [1] * 1503


def test_a_wrong_row_below_many_values_is_said_by_who_reads_it(tmp_path: Path) -> None:
    text = "image_path,label\n" + "a.jpg,0\n" * 1200 + "b.jpg,1,1\n"
    place(tmp_path, *IMAGES)
    write(tmp_path, {"train.csv": text})
    assert recognise_format(tmp_path) == "csv"
    with pytest.raises(InputError, match=r"train\.csv:1202: 3 cells, but 2 columns"):
        read_dataset(tmp_path, split="train")


def test_1_and_0_are_names_where_that_is_said(tmp_path: Path) -> None:
    text = "image,label\na.jpg,1\nb.jpg,0\n"
    assert read_csv(tmp_path / "nothing", text).classes == ("label",)
    table = read_csv(tmp_path / "column", text, label_columns=("label",))
    assert name_rows(table) == {"a.jpg": {"1"}, "b.jpg": {"0"}}
    for name, header, options in (
        ("list", "image,label", {}),
        ("more columns", "image,width,label", {}),
        ("both", "image,label", {"label_columns": ("label",)}),
        ("other heading", "image,target", {"label_columns": ("target",)}),
    ):
        write(tmp_path / name, {"classes.txt": "cat\ndog\n"})
        cells = text.replace("image,label", header).replace("jpg,", "jpg," + "64," * (header.count(",") - 1))
        table = read_csv(tmp_path / name, cells, **options)
        assert (table.classes, name_rows(table)) == (("cat", "dog"), {"a.jpg": {"dog"}, "b.jpg": {"cat"}}), name
    with pytest.raises(InputError, match=r'csv:1: no column of labels: set LABEL_COLUMNS = \("target",\) if it names'):
        read_csv(tmp_path / "other heading", text.replace("label", "target"))


def test_1_and_0_of_a_column_that_is_a_class_are_values(tmp_path: Path) -> None:
    text = "image,cat,dog\na.jpg,1,0\nb.jpg,0,1\n"
    table = read_csv(tmp_path / "column", text, label_columns=("dog",))
    assert (table.classes, table.targets.tolist()) == (("dog",), [[0], [1]])
    write(tmp_path / "list", {"classes.txt": "label\n"})
    table = read_csv(tmp_path / "list", "image,label\na.jpg,1\nb.jpg,0\n", label_columns=("label",))
    assert (table.classes, table.targets.tolist()) == (("label",), [[1], [0]])
    write(tmp_path / "other spelling", {"classes.txt": "Dog\nemu\n"})
    with pytest.raises(InputError, match=r"there is no column for 'Dog' of classes\.txt: it has dog"):
        read_csv(tmp_path / "other spelling", text, label_columns=("dog",))


FOLD = "image_path,fold,cat,dog\na.jpg,0,1,0\nb.jpg,1,0,1\n"


def test_a_column_that_is_seldom_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_csv(tmp_path, FOLD).classes == ("fold", "cat", "dog")
    assert "train.csv: fold: read as a class; if it is none, set LABEL_COLUMNS, or write cla" in read_warnings(capsys)
    table = read_csv(tmp_path, FOLD, label_columns=("dog", "cat"))
    assert (table.classes, table.targets.tolist()) == (("dog", "cat"), [[0, 1], [1, 0]])
    assert "LABEL_COLUMNS chooses 2 columns of classes; left out: fold" in read_warnings(capsys)
    write(tmp_path, {"classes.txt": "dog\ncat\n"})
    table = read_csv(tmp_path, FOLD)
    assert (table.classes, table.targets.tolist()) == (("dog", "cat"), [[0, 1], [1, 0]])
    assert "classes.txt chooses 2 columns of classes; left out: fold" in read_warnings(capsys)


def test_classes_txt_and_columns_that_do_not_agree(tmp_path: Path) -> None:
    write(tmp_path, {"classes.txt": "dog\nemu\n"})
    with pytest.raises(InputError, match=r"csv:1: there is no column for 'emu' of classes\.txt: it has fold, cat, dog"):
        read_csv(tmp_path, FOLD)
    write(tmp_path, {"classes.txt": "dog\n"})
    with pytest.raises(
        InputError, match=r"csv:1: LABEL_COLUMNS names 'cat', but classes\.txt does not: make them agree"
    ):
        read_csv(tmp_path, FOLD, label_columns=("dog", "cat"))


def test_a_column_of_other_numbers_is_no_class(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"csv:2: '64' for class 'width' is none of 1 .*: if this column is no class, .*LABEL_C"
    ):
        read_csv(tmp_path, "image_path,width,cat\na.jpg,64,1\n")


def test_the_index_that_pandas_writes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image_path": ["b.jpg", "a.jpg"], "cat": [0, 1], "dog": [1, 0]}, index=[7, 3])
    assert read_csv(tmp_path, frame.to_csv()).targets.tolist() == [[1, 0], [0, 1]]
    frame.to_csv(tmp_path / "again.csv")
    text = pd.read_csv(tmp_path / "again.csv").to_csv()
    (tmp_path / "again.csv").unlink()
    assert text.startswith(",Unnamed: 0,image_path,cat,dog\n")
    table = read_csv(tmp_path, text)
    assert (table.classes, table.targets.tolist()) == (("cat", "dog"), [[1, 0], [0, 1]])


@pytest.mark.parametrize("first", [("x", "y"), ("1", "1")])
def test_a_column_without_a_name_that_is_no_index(tmp_path: Path, first: tuple[str, str]) -> None:
    with pytest.raises(
        InputError, match=rf"csv:1: column 1 has no name, but holds '{first[0]}' on line 2: give it one"
    ):
        read_csv(tmp_path, f",image_path,cat\n{first[0]},a.jpg,1\n{first[1]},b.jpg,0\n")


def test_columns_and_rows_that_excel_leaves_empty(tmp_path: Path) -> None:
    table = read_csv(tmp_path, "image_path,cat,,dog,,\na.jpg,1,,0,,\nb.jpg,0,,1,,,,\n,,,,,\n  , ,,,,\n")
    assert (table.classes, table.targets.tolist()) == (("cat", "dog"), [[1, 0], [0, 1]])
    with pytest.raises(
        InputError, match=r"csv:1: column 3 has no name, but holds 'x' on line 3: give it one, or remove"
    ):
        read_csv(tmp_path, "image_path,cat,\na.jpg,1,\nb.jpg,0,x\n")


def test_blanks_around_cells(tmp_path: Path) -> None:
    table = read_csv(tmp_path, 'labels, image_path\ncat;dog, a.jpg \n"cat", "b.jpg"\n')
    assert name_rows(table) == {"a.jpg": {"cat", "dog"}, "b.jpg": {"cat"}}


def test_a_column_that_stands_twice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"csv:1: column 4: class 'cat' stands here a second time"):
        read_csv(tmp_path, "image_path,cat,dog,cat\na.jpg,1,0,1\n")


def test_splits_that_are_written_in_two_ways(tmp_path: Path) -> None:
    write(tmp_path, {"val.csv": "image_path,labels\nc.jpg,cat; dog\n", "test.csv": "image_path\na.jpg\n"})
    assert read_csv(tmp_path, ONE_HOT).classes == ("cat", "dog")
    assert read_dataset(tmp_path, split="val").targets.tolist() == [[1, 1]]
    assert read_csv(tmp_path, "image_path,labels\na.jpg,cat\n").targets.tolist() == [[1, 0]], "test has no labels"


def test_images_in_a_folder_of_their_own(tmp_path: Path) -> None:
    place(tmp_path, *(f"images/{name}" for name in IMAGES))
    write(tmp_path, {"train.csv": "filename,labels\na.jpg,cat\nb.jpg,dog\n"})
    assert read_dataset(tmp_path, split="train").paths == [f"{tmp_path}/images/{name}" for name in ("a.jpg", "b.jpg")]


# ---- splits ----


@pytest.mark.parametrize("name", ["valid.csv", "validation.csv", "dev.csv", "Val.csv", "valid_labels.csv"])
def test_files_for_validation(tmp_path: Path, name: str) -> None:
    place(tmp_path, *IMAGES)
    write(tmp_path, {"train.csv": ONE_HOT, name: "image_path,cat,dog\nc.jpg,1,1\n"})
    assert list_splits(tmp_path) == ["train", "val"]
    assert read_dataset(tmp_path, split="val").targets.tolist() == [[1, 1]]


def test_two_files_for_one_split(tmp_path: Path) -> None:
    place(tmp_path, *IMAGES)
    write(tmp_path, {"train.csv": ONE_HOT, "val.csv": ONE_HOT, "valid.csv": ONE_HOT})
    with pytest.raises(InputError, match=r"val\.csv and .*valid\.csv are both for val: remove one, or rename it"):
        read_dataset(tmp_path, split="val")


@pytest.mark.parametrize(("heading", "name"), [("split", "all.csv"), ("Split", "train.csv"), ("data set", "birds.csv")])
def test_words_in_a_column_of_splits(tmp_path: Path, heading: str, name: str) -> None:
    place(tmp_path, *IMAGES)
    write(tmp_path, {name: f"image_path,{heading},cat\na.jpg,Train,1\nb.jpg,valid,0\nc.jpg,dev,1\nd.jpg,test,0\n"})
    assert list_splits(tmp_path) == ["train", "val", "test"]
    assert read_dataset(tmp_path, split="val").targets.tolist() == [[0], [1]]


def test_a_class_may_be_called_like_a_column_of_splits(tmp_path: Path) -> None:
    assert read_csv(tmp_path, "image_path,set,tags,image\na.jpg,1,0,0\nb.jpg,0,1,1\n").classes == (
        "set",
        "tags",
        "image",
    )


# ---- which files ----


def test_the_only_file_is_train_and_results_are_not(tmp_path: Path) -> None:
    place(tmp_path, *IMAGES)
    write(tmp_path, {"annotations.csv": "image,tags\na.jpg,cat\nb.jpg,dog\n"})
    assert (recognise_format(tmp_path), list_splits(tmp_path)) == ("csv", ["train"])
    write(tmp_path, {"train.csv": ONE_HOT, "test_predictions.csv": ONE_HOT, "notes.csv": "a,b\n1,2\n"})
    assert list_splits(tmp_path) == ["train"]


def test_tables_without_labels_are_no_data_set(tmp_path: Path) -> None:
    place(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg")
    write(tmp_path, {"train.csv": "filename,width,caption\ncat/a.jpg,64,a cat\n"})
    assert recognise_format(tmp_path) == "image_folder"


# ---- vectors, ends of cells, quotes ----


@pytest.mark.parametrize("classes", ["", "cat\ndog\nperson\n"])
@pytest.mark.parametrize("form", ["[{}, {}, {}]", "{};{};{}", "{},{},{}", "{} {} {}"])
def test_a_vector_in_a_cell_is_no_list_of_names(tmp_path: Path, form: str, classes: str) -> None:
    cells = [form.format(*vector) for vector in ((1, 0, 1), (0, 1, 0), (1, 1, 1), (0, 0, 0), (1, 0, 0))]
    if classes:
        write(tmp_path, {"classes.txt": classes})
    with pytest.raises(InputError, match=r"train\.csv:2: '1 0 1' repeats a number: a vector of 1 and 0 for the"):
        read_csv(tmp_path, write_column(cells))


def test_numbers_that_are_names_may_repeat(tmp_path: Path) -> None:
    table = read_csv(tmp_path, write_column(["1;1;7", "7", "1", "0", "[0, 0]"]))
    assert name_rows(table) == {"a.jpg": {"1", "7"}, "b.jpg": {"7"}, "c.jpg": {"1"}, "d.jpg": {"0"}, "e.jpg": {"0"}}


@pytest.mark.parametrize("classes", ["", "cat\nhot dog\n"])
@pytest.mark.parametrize("form", ["{};", "{},", "{}|", ";{}"])
def test_a_separator_behind_the_only_name_of_each_cell(tmp_path: Path, form: str, classes: str) -> None:
    if classes:
        write(tmp_path, {"classes.txt": classes})
    table = read_csv(tmp_path, write_column([*map(form.format, ("cat", "hot dog", "cat", "hot dog")), ""]))
    assert table.classes == ("cat", "hot dog")
    assert name_rows(table) == {
        "a.jpg": {"cat"},
        "b.jpg": {"hot dog"},
        "c.jpg": {"cat"},
        "d.jpg": {"hot dog"},
        "e.jpg": set(),
    }


@pytest.mark.parametrize(
    "cells",
    [
        ["{'cat'}", "{'dog'}", "{'cat', 'dog'}", "set()", "{'cat', 'person'}"],
        ["'cat'", "'dog'", "'cat', 'dog'", "", "'cat', 'person'"],
        ["'cat'", "'dog'", "'cat';'dog'", "", "'cat';'person'"],
    ],
)
def test_empty_sets_and_single_quotes(tmp_path: Path, cells: list[str]) -> None:
    assert name_rows(read_csv(tmp_path, write_column(cells))) == ROWS


def test_quotes_around_some_names_only_are_part_of_them(tmp_path: Path) -> None:
    table = read_csv(tmp_path, write_column(["'n Sync'", "dog", "'cat';dog", "dogs'", "dog"]))
    assert table.classes == ("'cat'", "dog", "dogs'", "n Sync")


# ---- files without a header or without labels, and what is left out ----


@pytest.mark.parametrize("first", ["images/a.jpg,1,0", "a.jpg,labels", "a.jpg,1", "1,0,a.JPG"])
def test_a_header_that_names_an_image_is_none(tmp_path: Path, first: str) -> None:
    place(tmp_path, "a.jpg", "images/a.jpg")
    write(tmp_path, {"train.csv": f"{first}\n{first}\n"})
    assert "csv" not in find_formats(tmp_path)
    with pytest.raises(InputError, match=r"no split of format csv \(DATASET_FORMAT\): expected train\.csv"):
        read_dataset(tmp_path, "csv", "train")


def test_the_advice_for_a_list_without_a_header(tmp_path: Path) -> None:
    place(tmp_path, "a.jpg")
    write(tmp_path, {"train.csv": "a.jpg,1,0\n"})
    with pytest.raises(InputError, match="these are data, not names of columns: write a first line with names"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("folder", ["", "images/", "train/", "train_images/"])
@pytest.mark.parametrize("ending", [".jpg", ".PNG"])
def test_names_without_an_ending_say_which_folder(tmp_path: Path, folder: str, ending: str) -> None:
    place(tmp_path, *(f"{folder}Train_{number}.v{number}{ending}" for number in range(2)), "images/other.jpg")
    write(tmp_path, {"train.csv": "image_id,cat,dog\nTrain_0.v0,1,0\nTrain_1.v1,0,1\n"})
    table = read_dataset(tmp_path, split="train")
    assert [Path(path).relative_to(tmp_path).as_posix() for path in table.paths] == [
        f"{folder}Train_{number}.v{number}{ending}" for number in range(2)
    ]
    assert table.targets.tolist() == [[1, 0], [0, 1]]


def test_names_under_an_unusual_heading(tmp_path: Path) -> None:
    place(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path, {"train.csv": "filename,species\na.jpg,red fox\nb.jpg,owl\n"})
    with pytest.raises(InputError, match=r'csv:1: no column of labels: set LABEL_COLUMNS = \("species",\) if it names'):
        read_dataset(tmp_path)
    table = read_dataset(tmp_path, options=ReadOptions(label_columns=("species",)))
    assert (table.classes, table.targets.tolist()) == (("owl", "red fox"), [[0, 1], [1, 0]])


@pytest.mark.parametrize("name", ["train.tsv", "TRAIN.TSV", "train.CSV", "Train.Csv"])
def test_an_image_and_its_label_in_tables_of_other_endings(tmp_path: Path, name: str) -> None:
    text = "image,label\na.jpg,cat\nb.jpg,dog\na.jpg,dog\n"
    table = read_csv(tmp_path, text.replace(",", "\t") if name.lower().endswith("tsv") else text, name)
    assert recognise_format(tmp_path) == "label_rows"
    assert (list_splits(tmp_path), name_rows(table)) == (["train"], {"a.jpg": {"cat", "dog"}, "b.jpg": {"dog"}})


@pytest.mark.parametrize(
    ("format", "text", "name"),
    [
        ("csv", "image_path,labels\na.jpg,cat;dog\nb.jpg,dog\n", "image_path"),
        ("csv", "image_id,cat,dog\na,1,1\nb,0,1\n", "image_id"),
        ("label_rows", "image_path,label\na.jpg,cat\na.jpg,dog\nb.jpg,dog\n", "image_path"),
        ("label_rows", "image,label\na.jpg,cat\na.jpg,dog\nb.jpg,dog\n", "image"),
    ],
)
def test_a_list_to_predict_has_unknown_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str, text: str, name: str
) -> None:
    place(tmp_path, *IMAGES)
    write(tmp_path, {"train.csv": text, "test.csv": f"{name}\nd.jpg\nc.jpg\n"})
    assert recognise_format(tmp_path) == format
    assert list_splits(tmp_path) == ["train", "test"]
    assert read_dataset(tmp_path, split="train").targets.tolist() == [[1, 1], [0, 1]]
    capsys.readouterr()
    table = read_dataset(tmp_path, split="test")
    assert [Path(path).name for path in table.paths] == ["c.jpg", "d.jpg"]
    assert (table.classes, table.targets.tolist()) == (("cat", "dog"), [[-1, -1], [-1, -1]])
    assert read_warnings(capsys).count("test.csv: it has no labels: its images can be predicted") == 1


def test_images_without_labels_alone_are_no_data_set(tmp_path: Path) -> None:
    place(tmp_path, *IMAGES)
    write(tmp_path, {"train.csv": "image_path\na.jpg\n", "test.csv": "image_path\nb.jpg\n"})
    with pytest.raises(InputError, match="it has no labels: to predict these images set TEST_IMAGES_DIR"):
        read_dataset(tmp_path)


def test_numbers_of_rows_that_repeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [pd.DataFrame({"image_path": [*names], "cat": [1, 0, 1]}) for names in (IMAGES[:3], IMAGES[2:])]
    table = read_csv(tmp_path, pd.concat(parts).to_csv())
    assert (table.classes, table.targets.tolist()) == (("cat",), [[1], [0], [1], [0], [1]])
    assert "column 1 has no name; its numbers repeat, and are taken for those of rows" in read_warnings(capsys)


@pytest.mark.parametrize(("cells", "is_said"), [(("0", "1"), True), (("0", "2"), False), (("x", "y"), False)])
def test_a_group_of_0_and_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cells: tuple[str, str], is_said: bool
) -> None:
    table = read_csv(tmp_path, f"image_path,group,cat\na.jpg,{cells[0]},1\nb.jpg,{cells[1]},0\n")
    assert (table.classes, table.groups) == (("cat",), cells)
    assert ("'group' is read as each image's source, not as a class" in read_warnings(capsys)) == is_said


def test_other_tables_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = {"trainval.csv": ONE_HOT, "holdout.csv": ONE_HOT, "sample_submission.csv": ONE_HOT, "notes.csv": "a,b\n"}
    write(tmp_path, others | {"test.csv": ONE_HOT})
    place(tmp_path, "a.jpg", "b.jpg")
    read_dataset(tmp_path, split="test")
    warnings = read_warnings(capsys)
    assert f"{tmp_path}/holdout.csv, {tmp_path}/trainval.csv are not read: their names say no split" in warnings
    assert "submission" not in warnings
    assert "notes" not in warnings


ODD = "set phase usage dataset valid validation is_validation val train test label target class verified is_crowd"


@pytest.mark.parametrize("name", [*ODD.split(), "subset", "partition"])
def test_columns_that_are_seldom_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    table = read_csv(tmp_path, f"image_path,cat,{name}\na.jpg,1,0\nb.jpg,0,1\n")
    assert table.classes == ("cat", name)
    assert f"train.csv: {name}: read as a class; if it is none, set LABEL_COLUMNS" in read_warnings(capsys)


# ---- images without their endings ----


def place_numbered(root: Path, *stems: str) -> None:
    place(root, *(f"Bilder/{stem}.jpg" for stem in stems))


@pytest.mark.parametrize(
    "heading", ["Dateiname", "Bild-Datei", "Foto", "Nom du fichier", "Archivo", "Immagine", "Was?"]
)
def test_a_column_of_names_without_endings_is_that_of_the_images(tmp_path: Path, heading: str) -> None:
    place_numbered(tmp_path, "Foto_1", "Foto_2", "Foto_3")
    (tmp_path / "Tabelle1.csv").write_text(f"{heading};labels;H\xf6he\nFoto_1;cat;1\nFOTO_2;dog;2\n", "cp1252")
    table = read_dataset(tmp_path, split="train", options=ReadOptions())
    assert [Path(path).name for path in table.paths] == ["Foto_1.jpg", "Foto_2.jpg"]
    assert name_rows(table) == {"Foto_1.jpg": {"cat"}, "Foto_2.jpg": {"dog"}}


def test_a_column_is_that_of_the_images_when_all_its_names_are_there(tmp_path: Path) -> None:
    place_numbered(tmp_path, "Foto_1", "Foto_2")
    (tmp_path / "train.csv").write_text("Was?,cat,dog\nFoto_1,1,0\nFoto_9,0,1\n")
    with pytest.raises(InputError, match=r"no known format|no column of images"):
        read_dataset(tmp_path, split="train")


def test_numbers_name_images_and_values_do_not(tmp_path: Path) -> None:
    """The values 0 and 1 are names of images here, too; so is each age."""
    place_numbered(tmp_path, *map(str, range(12)))
    rows = [f"{number},{number % 4 + 2},{number % 2},{number % 3 // 2}" for number in range(11, 3, -1)]
    (tmp_path / "train.csv").write_text("\n".join(["Nr,age,cat,dog", *rows]) + "\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    table = read_dataset(tmp_path, split="train", options=ReadOptions())
    expected = {
        f"{number}.jpg": {name for name, value in (("cat", number % 2), ("dog", number % 3 // 2)) if value}
        for number in range(4, 12)
    }
    assert name_rows(table) == expected


def test_a_list_of_classes_beside_numbered_images_lists_no_images(tmp_path: Path) -> None:
    place(tmp_path, *(f"{'cat' if number % 2 else 'dog'}/{number}.jpg" for number in range(12)))
    (tmp_path / "names.csv").write_text("Nr,label\n0,cat\n1,dog\n2,bird\n")
    with pytest.raises(
        InputError, match=r"names\.csv has the columns 'Nr', 'label': none of them holds names of image"
    ):
        recognise_format(tmp_path)


def test_a_class_may_be_called_like_a_foreign_column_of_images(tmp_path: Path) -> None:
    place(tmp_path, *IMAGES)
    for heading in ("filename", "Was?"):
        (tmp_path / "train.csv").write_text(f"{heading},foto,dog\na.jpg,1,0\nb.jpg,0,1\n")
        table = read_dataset(tmp_path, split="train", options=ReadOptions())
        assert name_rows(table) == {"a.jpg": {"foto"}, "b.jpg": {"dog"}}


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("image_path,labels,camera\na.jpg,cat,north\nb.jpg,dog,\n", {}),
        ("image_path,group,labels,camera\na.jpg,g,cat,north\nb.jpg,g,dog,\n", {}),
        ("image_path,cat,dog,camera\na.jpg,1,0,north\nb.jpg,0,1,\n", {"label_columns": ("cat", "dog")}),
        ("image,label,camera\na.jpg,cat,north\na.jpg,cat,north\nb.jpg,dog,\n", {}),
    ],
)
def test_any_column_may_be_read_for_each_image(tmp_path: Path, text: str, options: dict[str, tuple[str, ...]]) -> None:
    table = read_csv(tmp_path, text, group_column="camera", **options)
    assert (table.classes, table.groups) == (("cat", "dog"), ("north", ""))
    assert table.targets.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(InputError, match=r"train.csv:1: the column 'lens' stands 0 times"):
        read_csv(tmp_path, text, group_column="lens", **options)


def test_rows_of_an_image_agree_on_the_column_that_is_read(tmp_path: Path) -> None:
    text = "image,label,camera\na.jpg,cat,north\na.jpg,dog,south\nb.jpg,dog,\n"
    with pytest.raises(InputError, match=r"train.csv:3: 'a.jpg' has another 'camera' here than at \S+train.csv:2"):
        read_csv(tmp_path, text, group_column="camera")
    assert read_csv(tmp_path, text).targets.tolist() == [[1, 1], [0, 1]]
