"""dataset/text_files.py: lines that are left out are as if they were blank; carriage returns in cells and as ends."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from dataset.class_names import join_names, split_names
from dataset.csv_files import read_cells
from dataset.text_files import CsvFile, leave_out_lines, read_lines, read_text


def test_lines_left_out_are_blank_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    for file in (first, second):
        file.write_bytes(b"one\r\ntwo\r\nthree\r\n")
    with leave_out_lines([(str(first), 2), (str(second), 1), (str(first), 9)]):
        assert list(read_lines(first)) == [(1, "one"), (3, "three")]
        assert list(read_lines(second)) == [(2, "two"), (3, "three")]
        assert read_text(first).count("\n") == 3
        with leave_out_lines([]):
            assert read_text(first) == "one\r\ntwo\r\nthree\r\n"
    assert read_text(first) == "one\r\ntwo\r\nthree\r\n"


def test_rows_of_a_csv_that_is_read_in_a_stream_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('image,label\na.jpg,cat\nb.jpg\n"c.jpg",dog\n')
    with leave_out_lines([(str(file), 3)]):
        assert list(read_cells(file, ("image", "label"))) == [(2, ["a.jpg", "cat"]), (4, ["c.jpg", "dog"])]


def test_lines_end_by_cr_where_nothing_else_ends_them(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\rtwo\r\rthree")
    assert list(read_lines(file)) == [(1, "one"), (2, "two"), (4, "three")]
    with leave_out_lines([(str(file), 2)]):
        assert list(read_lines(file)) == [(1, "one"), (4, "three")]
    file.write_bytes(b"one\rtwo\n")
    assert list(read_lines(file)) == [(1, "one\rtwo")]


def test_a_cell_may_hold_any_end_of_a_line() -> None:
    buffer = io.StringIO(newline="")
    rows = [["a\rb", "c"], ["d\r", "\r\n"], ["e\nf", '"'], ["", "plain"]]
    csv.writer(CsvFile(buffer)).writerows(rows)
    assert list(csv.reader(io.StringIO(buffer.getvalue(), newline=""))) == rows
    assert buffer.getvalue().endswith('"",""""\n,plain\n'.replace('"",', '"e\nf",', 1))
    assert split_names(join_names(["a\rb", "c;d", "e"], ";"), ";")[1:] == ["c;d", "e"]
