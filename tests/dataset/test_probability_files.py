"""dataset/probability_files.py: what the lines say, what is refused and where, which line is which image's."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dataset.probability_files import ImageValues, match_images, read_image_values
from utils import InputError


def write(folder: Path, text: str) -> Path:
    file = folder / "values.csv"
    file.write_bytes(text.encode())
    return file


@pytest.mark.parametrize(
    "header", ["", "image_path,red,green\n", "\ufeffimage_path, red,green\r\n", "\nimage_path,red,green\n"]
)
def test_lines_are_read_as_written(tmp_path: Path, header: str) -> None:
    text = header + '"/a/\n.jpg",0,1\n/a/one.jpg,0.5,1e-3\r\n\n"b/x, y.jpg",1, 0\n"c/""q"".jpg",0.25,0.75'
    listed = read_image_values(write(tmp_path, text))
    assert listed.names == (("red", "green") if header else None)
    assert listed.paths == ["/a/\n.jpg", "/a/one.jpg", f"{tmp_path}/b/x, y.jpg", f'{tmp_path}/c/"q".jpg']
    assert listed.values.dtype == np.float32
    np.testing.assert_array_equal(listed.values, np.float32([[0, 1], [0.5, 1e-3], [1, 0], [0.25, 0.75]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "values.csv lists no image: expected path,number,... a line"),
        ("image_path,red\n", "values.csv lists no image"),
        ("a.jpg\n", "values.csv:1: 1 columns where 2 are expected"),
        ("a.jpg,0.5\nb.jpg,0.5,0.5\n", "values.csv:2: 3 columns where 2 are expected"),
        ("a.jpg,0.5,1\n\nb.jpg,0.5\n", "values.csv:3: 2 columns where 3 are expected"),
        ("image_path,red,green\na.jpg,0.5\n", "values.csv:2: 2 columns where 3 are expected"),
        ("image_path,red\na.jpg,0.5\nb.jpg,x\n", "values.csv:3: 'x' is no number between 0 and 1"),
        ('"a\nb.jpg",0.5\nb.jpg,1.5\n', "values.csv:3: '1.5' is no number between 0 and 1"),
        ("a.jpg,-0.5\n", "values.csv:1: '-0.5' is no number between 0 and 1"),
        ("a.jpg,nan\n", "values.csv:1: 'nan' is no number between 0 and 1"),
        ("a.jpg,\n", "values.csv:1: '' is no number between 0 and 1"),
        ("a.jpg,0.5\nb.jpg,0.5\n./a.jpg,0.5\n", r"values.csv:3: ./a.jpg stands on line 1 already: remove one"),
        ('a.jpg,0.5\n"b.jpg,0.5\n', "values.csv:2: unexpected end of data: this is not CSV"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_image_values(write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_the_highest_number_is_the_callers(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jpg,7\n")
    assert read_image_values(file, highest=np.inf).values.tolist() == [[7]]
    with pytest.raises(InputError, match="'7' is no number between 0 and 5"):
        read_image_values(file, highest=5)


def test_many_lines(tmp_path: Path) -> None:
    """More than pandas reads in one piece."""
    values = np.random.default_rng(0).random((30_000, 20)).astype(np.float32)
    lines = (f"{row}.jpg," + ",".join(f"{value:.9g}" for value in values[row].tolist()) for row in range(len(values)))
    listed = read_image_values(write(tmp_path, "\n".join(lines)))
    np.testing.assert_array_equal(listed.values, values)
    assert listed.paths[-1] == f"{tmp_path}/29999.jpg"


def match(listed: list[str], images: list[str]) -> list[int]:
    return match_images(ImageValues(Path("f.csv"), listed, np.zeros((len(listed), 1)), None), images).tolist()


def test_whole_paths_come_first() -> None:
    assert match(["/a/2.jpg", "/a/1.jpg"], ["/a/1.jpg", "/a/2.jpg"]) == [1, 0]
    assert match(["/a/1.jpg", "/test/2.jpg"], ["/a/1.jpg", "/a/2.jpg"]) == [0, -1], "not the other split's 2.jpg"


def test_a_relative_image_is_the_one_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert match([f"{tmp_path}/a/1.jpg", "/b/1.jpg"], ["a/1.jpg"]) == [0]


@pytest.mark.parametrize(
    ("listed", "images", "rows"),
    [
        (["/old/x/1.jpg", "/old/x/2.jpg"], ["/new/2.jpg", "/new/1.jpg"], [1, 0]),
        (["/old/1.png", "/old/2"], ["/new/1.jpg", "/new/2.JPG"], [0, 1]),
        (["/old/v1.0", "/old/v1.5"], ["/new/v1.5.jpg", "/new/v1.0.jpg"], [1, 0]),
        (["/old/a/1.jpg", "/old/b/1.jpg"], ["/new/b/1.jpg", "/new/a/1.jpg"], [1, 0]),
        (["/o/r/a/1.jpg", "/o/s/a/1.jpg"], ["/n/s/a/1.jpg", "/n/t/a/1.jpg"], [1, -1]),
        # the same name in another split is another image
        (["/old/train/1.jpg", "/old/test/1.jpg"], ["/new/train/1.jpg", "/new/val/1.jpg"], [0, -1]),
        (["/old/train/1.jpg", "/old/3.jpg"], ["/new/train/1.jpg", "/new/val/1.jpg", "/new/3.jpg"], [0, -1, 1]),
    ],
)
def test_moved_pictures_go_by_an_end_of_their_own(listed: list[str], images: list[str], rows: list[int]) -> None:
    assert match(listed, images) == rows


def test_images_that_are_found_by_the_ends_of_their_paths_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert match(["/a/1.jpg"], ["/a/1.jpg", "/b/2.jpg"]) == [0, -1]
    assert capsys.readouterr().err == ""
    assert match(["/old/1.jpg", "/old/3.jpg"], ["/new/2.jpg", "/new/1.jpg"]) == [-1, 0]
    line = "f.csv: 1 of 2 images are found by the ends of their paths, such as /new/1.jpg by /old/1.jpg, since no whole"
    assert capsys.readouterr().err == f"warning: {line} path is listed\n"


@pytest.mark.parametrize(
    ("line", "image"),
    [
        ("/d/images/test-resized/00001.jpg", "/d/images/train-resized/00001.jpg"),
        ("/d/valid/cat/1.jpg", "/d/training/cat/1.jpg"),
    ],
)
def test_an_image_of_another_split_has_the_same_name_only(
    line: str, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"{line} has the name of {image}, but lies in a folder of another split"
    with pytest.raises(InputError, match=re.escape(f"; {message}: take the file of these images, or correct its")):
        match([line], [image])
    assert match(["/old/train/other.jpg", line], [image, "/d/train/other.jpg"]) == [-1, 0]
    assert capsys.readouterr().err.endswith(f"; {message}\n")


def test_the_split_is_that_of_the_nearest_folder() -> None:
    assert match(["/home/me/dev/train/1.jpg"], ["/data/train/1.jpg"]) == [0], "dev may be for validation, too"
    assert match(["/data/1.jpg", "/data/test/2.jpg"], ["/set/train/1.jpg", "/set/2.jpg"]) == [0, 1], "one says none"


@pytest.mark.parametrize(
    ("listed", "images"), [(["/a/1.jpg"], ["/b/2.jpg", "/b/3.jpg"]), (["/a/1.jpg", "/b/1.jpg"], ["/c/1.jpg"])]
)
def test_a_file_of_other_images_is_refused(listed: list[str], images: list[str]) -> None:
    with pytest.raises(InputError, match=rf"none of its {len(listed)} images, such as {listed[0]}, is one of the data"):
        match(listed, images)
