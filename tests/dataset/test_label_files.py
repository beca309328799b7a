"""dataset/label_files.py: the index says what reading anew would say, whatever changed in between."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dataset import label_files
from dataset.label_files import read_label_files
from dataset.rows import keep_missing_images
from dataset.text_files import leave_out_lines
from utils import InputError


@pytest.fixture(autouse=True)
def _always_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep an index also of few files, and of those that were written just now."""
    monkeypatch.setattr(label_files, "MIN_INDEXED", 1)
    monkeypatch.setattr(label_files, "SETTLED_SECONDS", -60.0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The label files that are read."""
    read: list[str] = []
    original = label_files._read_all

    def note(folder: Path, names: list[str], with_times: bool = False) -> tuple[list[bytes], list[int]]:
        read.extend(names)
        return original(folder, names, with_times)

    monkeypatch.setattr(label_files, "_read_all", note)
    return read


def read(dataset: Path, cache: Path | None, check_files: bool = True) -> tuple[list[str], list[list[int]]]:
    images, targets = read_label_files(
        dataset / "images" / "train-resized", dataset / "labels" / "train", 3, cache, check_files
    )
    assert targets.dtype == np.int8
    assert targets.flags.writeable
    return images, targets.tolist()


def label(dataset: Path, name: str) -> Path:
    return dataset / "labels" / "train" / f"{name}.cls"


def image(dataset: Path, name: str) -> Path:
    return dataset / "images" / "train-resized" / f"{name}.jpg"


def edit_in_place(dataset: Path) -> None:
    """Same size, same name, and the time of the last change put back."""
    file = label(dataset, "train005")
    file.write_text("0\n")
    before = file.stat()
    file.write_text("1\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def add(dataset: Path) -> None:
    label(dataset, "new").write_text("?2\n")
    image(dataset, "new").write_bytes(b"")


def add_in_a_sub_folder(dataset: Path) -> None:
    for file in (label(dataset, "sub/deep/new"), image(dataset, "sub/deep/new")):
        file.parent.mkdir(parents=True)
        file.write_text("1\n")


def remove(dataset: Path) -> None:
    label(dataset, "train005").unlink()
    image(dataset, "train005").unlink()


def rename(dataset: Path) -> None:
    label(dataset, "train005").rename(label(dataset, "zebra"))
    image(dataset, "train005").rename(image(dataset, "zebra"))


def swap(dataset: Path) -> None:
    label(dataset, "train005").rename(label(dataset, "other"))
    label(dataset, "train000").rename(label(dataset, "train005"))
    label(dataset, "other").rename(label(dataset, "train000"))


CHANGES: list[Callable[[Path], None]] = [edit_in_place, add, add_in_a_sub_folder, remove, rename, swap]


def test_the_index_says_the_same_without_reading(dataset: Path, tmp_path: Path, reads: list[str]) -> None:
    add_in_a_sub_folder(dataset)
    label(dataset, "train000").write_text("?1\n2\n")
    expected = read(dataset, None)
    reads.clear()
    assert read(dataset, tmp_path / "cache") == expected
    assert len(reads) == 41
    for check_files in (True, False):
        assert read(dataset, tmp_path / "cache", check_files) == expected
    assert len(reads) == 41
    assert [path.parent for path in tmp_path.rglob("labels_*.npy")] == [tmp_path / "cache"], "not in the data set"


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("check_files", [True, False])
def test_the_index_notices_changes(
    dataset: Path, tmp_path: Path, change: Callable[[Path], None], check_files: bool
) -> None:
    (dataset / "labels" / "train" / "empty").mkdir()
    before = read(dataset, tmp_path)
    time.sleep(0.02)  # a file system's clock moves by a few milliseconds at a time
    change(dataset)
    after = read(dataset, None)
    assert after != before
    missed = change is edit_in_place and not check_files
    assert read(dataset, tmp_path, check_files) == (before if missed else after)
    assert read(dataset, tmp_path, check_files) == (before if missed else after), "and the new index is right"


def test_a_change_in_an_empty_sub_folder_is_noticed(dataset: Path, tmp_path: Path) -> None:
    for folder in (dataset / "labels" / "train" / "sub", dataset / "images" / "train-resized" / "sub"):
        folder.mkdir()
    read(dataset, tmp_path)
    time.sleep(0.02)
    label(dataset, "sub/new").write_text("1\n")
    image(dataset, "sub/new").write_bytes(b"")
    assert "sub/new.jpg" in read(dataset, tmp_path, check_files=False)[0]


@pytest.mark.parametrize(("name", "value"), [("SETTLED_SECONDS", 2.0), ("MIN_INDEXED", 41)])
def test_an_index_of_files_that_may_still_change_or_are_few_is_not_kept(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    monkeypatch.setattr(label_files, name, value)
    read(dataset, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_damaged_index_is_written_anew(dataset: Path, tmp_path: Path, reads: list[str]) -> None:
    expected = read(dataset, tmp_path / "cache")
    (index,) = (tmp_path / "cache").iterdir()
    whole = index.read_bytes()
    for damaged in (b"", b"no index", whole[:200], whole[: len(whole) // 2], whole[:-1]):
        index.write_bytes(damaged)
        reads.clear()
        assert read(dataset, tmp_path / "cache") == expected
        assert len(reads) == 40
        assert index.read_bytes() == whole


def test_another_number_of_classes_is_another_index(dataset: Path, tmp_path: Path) -> None:
    folders = dataset / "images" / "train-resized", dataset / "labels" / "train"
    assert read_label_files(*folders, 3, tmp_path)[1].shape == (40, 3)
    assert read_label_files(*folders, 5, tmp_path)[1].shape == (40, 5)
    with pytest.raises(InputError, match=r"class index 2 is outside 0\.\.\.1"):
        read_label_files(*folders, 2, tmp_path)


def test_mistakes_are_not_kept(dataset: Path, tmp_path: Path) -> None:
    label(dataset, "train005").write_text("9\n")
    for _ in range(2):
        with pytest.raises(InputError, match=r"train005\.cls:1: class index 9"):
            read(dataset, tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", [0, 0, 0]),
        (b"\n\n", [0, 0, 0]),
        (b"2", [0, 0, 1]),
        (b"2\r\n0\r\n", [1, 0, 1]),
        (b"\xef\xbb\xbf1\n", [0, 1, 0]),
        (b" 1 \n02\n1\n", [0, 1, 1]),
        (b"?2\n?2\n0", [1, 0, -1]),
    ],
)
def test_what_a_label_file_may_hold(dataset: Path, content: bytes, expected: list[int]) -> None:
    label(dataset, "train005").write_bytes(content)
    assert read(dataset, None)[1][5] == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0\n?x\n", r"train005\.cls:2: '\?x' is not a class index \(one index 0\.\.\.2 a line; \?3 where class 3 is"),
        (b"??1\n", r"train005\.cls:1: '\?\?1' is not"),
        (b"? 1\n", r"train005\.cls:1: '\? 1' is not"),
        (b"0 1\n", r"train005\.cls:1: '0 1' is not"),
        (b"9" * 5000, r"train005\.cls:1: class index 9{20} is outside"),
        (b"0\n1\n?1\n", r"train005\.cls:3: class 1 is both present and unknown"),
        (b"?1\r\n1\r\n", r"train005\.cls:2: class 1 is both present and unknown"),
        (b"0\n" * 40_000, r"train005\.cls is far too large"),
    ],
)
def test_what_it_may_not_hold(dataset: Path, content: bytes, message: str) -> None:
    label(dataset, "train005").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read(dataset, None)
    assert "\n" not in str(error.value)


def test_a_file_that_may_not_be_read(dataset: Path) -> None:
    label(dataset, "train005").unlink()
    label(dataset, "train005").symlink_to(dataset / "gone")
    with pytest.raises(InputError, match=r"cannot read .*labels/train/train005\.cls: No such file"):
        read(dataset, None)


def test_what_check_reads_of_a_data_set_with_faults_is_not_kept_for_training(tmp_path: Path) -> None:
    images, labels, cache = tmp_path / "images", tmp_path / "labels", tmp_path / "cache"
    for folder in (images, labels):
        folder.mkdir()
    for number in range(4):
        (images / f"{number}.jpg").touch()
        (labels / f"{number}.cls").write_text(f"{number % 3}\n")
    wrong = labels / "2.cls"
    wrong.write_text("1\n7\n0\n")
    with pytest.raises(InputError, match=r"2\.cls:2: class index 7"):
        read_label_files(images, labels, 3, cache)
    with leave_out_lines([(str(wrong), 2)]):
        _, targets = read_label_files(images, labels, 3, cache)
    assert targets[2].tolist() == [1, 1, 0]
    assert not list(cache.glob("*"))
    with pytest.raises(InputError, match=r"2\.cls:2: class index 7"):
        read_label_files(images, labels, 3, cache)

    wrong.write_text("1\n")
    (images / "3.jpg").unlink()
    with keep_missing_images(True):
        names, _ = read_label_files(images, labels, 3, cache)
    assert names == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert not list(cache.glob("*"))
    with pytest.raises(InputError, match=r"1 label file\(s\) without an image"):
        read_label_files(images, labels, 3, cache)
    (images / "3.jpg").touch()
    read_label_files(images, labels, 3, cache)
    assert list(cache.glob("labels_*.npy")), "else it would be kept"
