"""dataset/image_selection.py: which images a file, a folder, a pattern and a list mean, and what is no image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dataset.image_selection import select_images
from utils import InputError

FILES = ("a.jpg", "b.PNG", "sub/c.jpg", "sub/deep/d.jpg", "notes.md", "x[1].jpg", "x1.jpg", "without ending")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("a.jpg", ["a.jpg"]),
        ("without ending", ["without ending"]),
        (".", ["a.jpg", "b.PNG", "sub/c.jpg", "sub/deep/d.jpg", "x1.jpg", "x[1].jpg"]),
        ("*", ["a.jpg", "b.PNG", "x1.jpg", "x[1].jpg"]),
        ("*.jpg", ["a.jpg", "x1.jpg", "x[1].jpg"]),
        ("**/*.jpg", ["a.jpg", "sub/c.jpg", "sub/deep/d.jpg", "x1.jpg", "x[1].jpg"]),
        ("sub/**/?.jpg", ["sub/c.jpg", "sub/deep/d.jpg"]),
        ("x[1].jpg", ["x[1].jpg"]),  # the file of this name, not the pattern
        ("x[0-9].jpg", ["x1.jpg"]),
        ("missing.jpg", ["missing.jpg"]),  # who reads it says so
    ],
)
def test_files_folders_and_patterns(folder: Path, where: str, names: list[str]) -> None:
    for given in (f"{folder}{os.sep}{where}", folder / where):
        assert select_images(given) == [str(folder / name) for name in names]


def test_a_pattern_whose_file_is_gone_is_a_pattern(folder: Path) -> None:
    (folder / "x[1].jpg").unlink()
    assert select_images(folder / "x[1].jpg") == [str(folder / "x1.jpg")]


def test_home_and_the_present_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert select_images("~/a.jpg") == [str(folder / "a.jpg")]
    assert select_images("~/sub/*.jpg") == [str(folder / "sub" / "c.jpg")]
    monkeypatch.chdir(folder)
    assert select_images("a.jpg") == ["a.jpg"]
    assert select_images("sub/*.jpg") == ["sub/c.jpg"]


def test_a_list_starts_at_its_folder_and_names_each_image_once(folder: Path) -> None:
    text = f"sub/c.jpg\r\n\n sub\\deep\\d.jpg \n{folder / 'a.jpg'}\nsub/../sub/c.jpg\nwithout ending\n"
    (folder / "list.txt").write_text(text)
    names = ["sub/c.jpg", "sub/deep/d.jpg", "a.jpg", "without ending"]
    assert select_images(folder / "list.txt") == [str(folder / name) for name in names]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("*.jpeg", r"nothing matches \S+\*\.jpeg"),
        ("*.md", r"no image matches \S+\*\.md, only \S+notes\.md \(.*images end in .*\.bmp, .*"),
        ("s*", r"no image matches \S+s\*, only \S+sub \(\*\* stands for any number of folders; .*"),
        ("[ns]*", r"no image matches \S+, only \S+notes\.md and 1 more \(.*"),
        ("empty", r"no images in \S+empty .*"),
        ("list.txt", r"\S+list\.txt:2: there is no file \S+gone\.jpg"),
        ("blank.txt", r"\S+blank\.txt names no image: it has a path a line"),
    ],
)
def test_what_names_no_image_is_one_line(folder: Path, where: str, message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "list.txt").write_text("a.jpg\ngone.jpg\n")
    (folder / "blank.txt").write_text("\n \n")
    with pytest.raises(InputError, match=rf"^{message}$"):
        select_images(folder / where)


def test_pictures_that_match_and_are_not_read_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jp2", "sub/b.jp2"):
        (folder / name).write_bytes(b"")
    assert select_images(folder / "**" / "[ab].*") == [str(folder / name) for name in ("a.jpg", "b.PNG")]
    assert "2 files are not read: 2 .jp2" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"^no image matches [^\n]+; 1 file is not read: 1 \.jp2$"):
        select_images(folder / "a.jp2*")


def test_capitals_that_keep_a_pattern_from_matching_are_said(tmp_path: Path) -> None:
    for name in ("DSC_1.JPG", "DSC_2.JPG", "x.png"):
        (tmp_path / name).touch()
    for pattern, end in (
        ("*.jpg", f": capitals count, and there is {tmp_path / 'DSC_1.JPG'} and 1 more"),
        ("dsc_2.*", f": capitals count, and there is {tmp_path / 'DSC_2.JPG'}"),
        ("*.bmp", ""),
        ("[d]*.jpg", ""),
    ):
        with pytest.raises(InputError) as error:
            select_images(tmp_path / pattern)
        assert str(error.value) == f"nothing matches {tmp_path / pattern}{end}"


@pytest.mark.parametrize("where", ["https://a.org/b.jpg", "HTTP://a.org/*.jpg", Path("s3://bucket/a.jpg")])
def test_addresses_are_not_fetched(where: str | Path) -> None:
    with pytest.raises(InputError, match=r"^\S+ is an address, and images are not fetched: download it first$"):
        select_images(where)
