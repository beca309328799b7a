"""dataset/label_corrections.py: what a file of corrections changes, and which mistakes in it stop with their line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataset.label_corrections import correct_labels, read_corrections
from dataset.table import Table
from utils import InputError

CLASSES = ("cat", "=1+1", 'a "b", c', "caf\u00e9")
NAMES = ("one.jpg", "more/=two, three.jpg", "four.jpg")
HEADER = "path,class,given,corrected\n"


@pytest.fixture
def table(tmp_path: Path) -> Table:
    for name in (*NAMES, "of_another_split.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    targets = np.array([[1, 0, 0, -1], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=np.int8)
    return Table([f"{tmp_path}/{name}" for name in NAMES], targets, CLASSES)


def correct(table: Table, folder: Path, text: str, encoding: str = "utf-8") -> Table:
    (folder / "corrections.csv").write_text(text, encoding=encoding)
    return correct_labels(table, read_corrections(folder / "corrections.csv", folder)).table


def test_labels_are_changed_confirmed_and_left_alone(table: Table, tmp_path: Path) -> None:
    before = table.targets.copy()
    (tmp_path / "corrections.csv").write_text(
        HEADER
        + "one.jpg,cat,1,0\n"
        + '"more/=two, three.jpg",=1+1,1,1\n'
        + '"more/=two, three.jpg","a ""b"", c",1,-1\n'
        + f"{tmp_path}/four.jpg,cafe\u0301,1,1\n"  # an absolute path, and the other Unicode form
        + "one.jpg,caf\u00e9,-1,1\n"
        + "of_another_split.jpg,cat,0,1\n"
    )
    corrections = read_corrections(tmp_path / "corrections.csv", tmp_path)
    corrected = correct_labels(table, corrections)
    expected = before.copy()
    expected[0, 0], expected[1, 2], expected[0, 3] = 0, -1, 1
    np.testing.assert_array_equal(corrected.table.targets, expected)
    assert (corrected.num_changed, corrected.num_confirmed) == (3, 2)
    assert corrected.table.paths == table.paths
    assert corrected.table.fingerprint() != table.fingerprint()
    np.testing.assert_array_equal(table.targets, before)


def test_an_image_that_stands_twice_is_corrected_twice(table: Table, tmp_path: Path) -> None:
    twice = table.select([0, 0, 1])
    assert correct(twice, tmp_path, HEADER + "one.jpg,cat,1,0\n").targets[:, 0].tolist() == [0, 0, 0]


def test_a_file_that_excel_has_saved_is_read(table: Table, tmp_path: Path) -> None:
    text = (HEADER + "one.jpg,cat,1,0\none.jpg,café,-1,1\n").replace(",", ";").replace("\n", "\r\n")
    corrected = correct(table, tmp_path, text, encoding="utf-8-sig")
    assert corrected.targets[0].tolist() == [0, 0, 0, 1]


def test_the_same_line_twice_is_one(table: Table, tmp_path: Path) -> None:
    corrected = correct(table, tmp_path, HEADER + "one.jpg,cat,1,0\n./one.jpg,cat,1,0\n")
    assert corrected.targets[0, 0] == 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("one.jpg,cat,1,0\nnone.jpg,cat,1,0\n", r"corrections\.csv:3: there is no image .*/none\.jpg"),
        ("one.jpg,cot,1,0\n", r"corrections\.csv:2: 'cot' is no class of the data set \(did you mean cat\?\)"),
        ("four.jpg,cat,1,0\n", r"corrections\.csv:2: 'cat' in .*/four\.jpg was 1 when it was corrected, and is 0"),
        ("one.jpg,cat,0,0\n", r"corrections\.csv:2: 'cat' in .*/one\.jpg was 0 when it was corrected, and is 1"),
        (
            "one.jpg,cat,1,0\none.jpg,cat,1,1\n",
            r"csv:3: line 2 says of 'cat' in .* that 1 becomes 0, and this one that 1",
        ),
        ("one.jpg,cat,1,2\n", r"corrections\.csv:2: corrected is '2': expected 1 present, 0 absent or -1 unknown"),
        ("one.jpg,cat,,0\n", r"corrections\.csv:2: given is ''"),
        ("one.jpg,cat,1\n", r"corrections\.csv:2: 3 cells, but 4 columns"),
    ],
)
def test_what_does_not_fit_stops_with_its_line(table: Table, tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        correct(table, tmp_path, HEADER + lines)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ONE.jpg", " (did you mean one.jpg?)"),
        ("More/=Two, three.jpg", " (did you mean more/=two, three.jpg?)"),
        ("'more/=two, three.jpg", " (did you mean more/=two, three.jpg?)"),  # as a spreadsheet shows a text
        ("one.jpg/one.jpg", ""),
        ("../one.jpg", ""),
        ("five.jpg", ""),
    ],
)
def test_an_image_that_is_not_there_may_be_one_in_other_capitals(
    table: Table, tmp_path: Path, name: str, meant: str
) -> None:
    with pytest.raises(InputError) as caught:
        correct(table, tmp_path, f'{HEADER}"{name}",cat,1,0\n')
    message = str(caught.value)
    assert message.partition(": there is no image ")[0].endswith("corrections.csv:2")
    assert message.endswith(f"{name.removeprefix('../')}{meant}: correct the line, or delete it")


def test_other_files_are_refused(table: Table, tmp_path: Path) -> None:
    expected = "expected the columns path,class,given,corrected, in small letters"
    for text, found in (
        ("path,class,given\none.jpg,cat,1\n", "has 'path', 'class', 'given'"),
        ("Path,Class,Given,Corrected\none.jpg,cat,1,0\n", "has 'Path', 'Class', 'Given', 'Corrected'"),
        ("", "is empty"),
        ("\n \n", "is empty"),
    ):
        with pytest.raises(InputError, match=rf"corrections\.csv:1: this file {found}: {expected}$"):
            correct(table, tmp_path, text)
    with pytest.raises(InputError, match="the column 'path' stands 2 times: it must stand once"):
        correct(table, tmp_path, "path,class,given,corrected,path\none.jpg,cat,1,0,\n")
    with pytest.raises(InputError, match=r"cannot read .*/missing\.csv: No such file"):
        read_corrections(tmp_path / "missing.csv", tmp_path)
