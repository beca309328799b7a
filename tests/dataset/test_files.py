"""Which files of a folder are read as images, and what is said of the others; systems without some calls."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset import file_kinds, files, label_files, locks
from dataset.files import IMAGE_EXTENSIONS, UNREAD_PICTURES, describe_unread, list_images, read_at, scan, write_at
from dataset_readers import read_dataset
from tests.dataset.test_formats import EXAMPLES
from utils import InputError


@pytest.fixture(autouse=True)
def say_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_said", set())


def make_phone_folder(root: Path) -> None:
    """The case predict_phone_folder: photographs, and what phones and downloads leave beside them."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("0.jpg", "1.jpeg", "x.jfif", "y.JPE", "noext"):
        Image.new("RGB", (8, 8)).save(root / name, "JPEG")
    shutil.copy(root / "0.jpg", root / "2.jpg_large")
    for name in ("a.jp2", "b.jp2", "c.CR2", "clip.MOV", "notes.txt", "README", "Thumbs.db", "desktop.ini", ".DS_Store"):
        (root / name).write_bytes(b"some bytes")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "0.jpg").write_bytes(b"\0\5\x16\7")
    (root / "._0.jpg").write_bytes(b"\0\5\x16\7")
    (root / "more").mkdir()
    (root / "more" / "3.jxl").write_bytes(b"\xff\x0a")


def test_pictures_that_are_not_read_are_counted_by_type_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_phone_folder(tmp_path)
    names = [path.removeprefix(f"{tmp_path}/") for path in list_images(tmp_path)]
    assert names == ["0.jpg", "1.jpeg", "x.jfif", "y.JPE"]
    line = capsys.readouterr().err
    assert line == (
        f"warning: {tmp_path}: 7 files are not read: 2 .jp2, 1 .cr2, 1 .mov, 1 .jxl, "
        "1 .jpg_large (2.jpg_large is a JPEG), 1 without an ending (noext is a JPEG)\n"
    )
    list_images(tmp_path)
    assert capsys.readouterr().err == "", "once"


def test_a_folder_of_other_types_only_says_which(tmp_path: Path) -> None:
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a")
    with pytest.raises(InputError, match=r"no images in .*\(.*\.jfif.*\); 1 file is not read: 1 \.jxl$"):
        list_images(tmp_path)


def test_heic_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "IMAGE_EXTENSIONS", IMAGE_EXTENSIONS - {*file_kinds.HEIF_ENDINGS})
    monkeypatch.setattr(files, "UNREAD_PICTURES", UNREAD_PICTURES | {*file_kinds.HEIF_ENDINGS})
    said = describe_unread(tmp_path, ["a.HEIC", "b.heic", "c.heif"])
    assert said == "3 files are not read: 2 .heic (pip install pi-heif), 1 .heif (pip install pi-heif)"


def test_heic_beside_a_jpeg_of_its_name_is_the_same_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "IMAGE_EXTENSIONS", IMAGE_EXTENSIONS | {".heic"})
    for name in ("a.heic", "a.jpg", "b.heic"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.rpartition("/")[2] for path in list_images(tmp_path)] == ["a.jpg", "b.heic"]
    assert "1 file is not read: 1 .heic (another image has the same name)" in capsys.readouterr().err
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.jpg and a\.png differ in their extension only|a\.png and a\.jpg differ"):
        list_images(tmp_path)


@pytest.mark.parametrize("name", ["coco_cls", "image_folder"])
def test_formats_that_list_folders_say_what_they_do_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    EXAMPLES[name](tmp_path)
    folder = Path(read_dataset(tmp_path, name, "train").paths[0]).parent
    (folder / "IMG_1.jp2").write_bytes(b"x")
    capsys.readouterr()
    read_dataset(tmp_path, name, "train")
    assert "1 file is not read: 1 .jp2" in capsys.readouterr().err


def test_an_index_of_label_files_says_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for number in range(label_files.MIN_INDEXED):
        (images / f"{number}.jpg").touch()
        (labels / f"{number}.cls").touch()
    (images / "x.jp2").touch()
    monkeypatch.setattr(label_files, "SETTLED_SECONDS", 0)
    label_files.read_label_files(images, labels, 2, tmp_path / "cache")
    assert "1 file is not read: 1 .jp2" in capsys.readouterr().err
    files._said.clear()
    monkeypatch.setattr(label_files, "list_image_files", None)  # the next reading uses the index
    names, _ = label_files.read_label_files(images, labels, 2, tmp_path / "cache")
    assert len(names) == label_files.MIN_INDEXED
    assert "1 file is not read: 1 .jp2" in capsys.readouterr().err


def test_a_scan_sorts_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b" / "c.jpg").mkdir(parents=True)
    for name in ("b/1.JPG", "a.jpg", "b/c.jpg/2.jpg", "b/x.txt", "@y"):
        (tmp_path / name).touch()
    assert scan(tmp_path, IMAGE_EXTENSIONS) == (
        ["a.jpg", "b/1.JPG", "b/c.jpg/2.jpg"],
        ["", "b/", "b/c.jpg/"],
        ["@y", "b/x.txt"],
    )


# ---- Windows, which lacks some calls ----


def take_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Windows does not have, of what this project uses."""
    monkeypatch.setattr(os, "supports_dir_fd", set())
    for name in ("O_NONBLOCK", "preadv", "pread", "pwrite", "sched_getaffinity", "register_at_fork"):
        monkeypatch.delattr(os, name, raising=False)
    for name in ("fcntl", "resource", "pwd", "grp", "termios"):
        monkeypatch.setitem(sys.modules, name, None)
    plain_open, plain_stat = os.open, os.stat

    def open_file(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        assert dir_fd is None
        assert not Path(path).is_dir(), "a folder cannot be opened"
        return plain_open(path, flags, mode)

    def stat(path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        assert dir_fd is None
        return plain_stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "stat", stat)


@pytest.mark.parametrize("name", EXAMPLES)
def test_readers_give_the_same_tables_without_calls_that_windows_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    EXAMPLES[name](tmp_path)
    expected = read_dataset(tmp_path, name, "train")
    take_away(monkeypatch)
    found = read_dataset(tmp_path, name, "train")
    assert (found.paths, found.classes) == (expected.paths, expected.classes)
    assert np.array_equal(found.targets, expected.targets)


def test_locks_and_files_without_calls_that_windows_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_away(monkeypatch)
    with locks.own(tmp_path / "run"):
        assert (tmp_path / "run" / locks.LOCK).exists()
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(10)))
    with path.open("r+b") as file:
        assert write_at(file.fileno(), memoryview(b"\xff\xfe"), 4) == 2
        buffer = bytearray(8)
        assert read_at(file.fileno(), memoryview(buffer), 3) == 7
    assert buffer == bytes([3, 255, 254, 6, 7, 8, 9, 0])
