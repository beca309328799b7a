"""dataset/text_files.py: lines that are left out are read as if they were blank, in these files and until the end."""

from __future__ import annotations

from pathlib import Path

from dataset.csv_files import read_cells
from dataset.text_files import leave_out_lines, read_lines, read_text


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
