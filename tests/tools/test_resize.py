"""tools/resize.py: copies with the wanted short side, under the same names, each written once."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import ExifTags, Image

import utils
from dataset.decoding import decode_image
from tools import resize
from tools.resize import Resized, resize_images
from utils import InputError


def save_image(path: Path, width: int, height: int, **options: object) -> None:
    """Dark at the top, bright at the bottom, so that it can be seen which way up it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), 30, dtype=np.uint8)
    pixels[height // 2 :] = (220, 200, 180)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    save_image(folder / "wide.jpg", 120, 60)
    save_image(folder / "deep er" / "tall ü.png", 50, 200)
    save_image(folder / "deep er" / "small.jpeg", 20, 30)
    (folder / "notes.txt").write_text("no image")
    return folder


def read_tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != resize.RECORD)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_copies_have_the_short_side_their_names_and_their_pixels(source: Path, tmp_path: Path) -> None:
    before, target = read_tree(source), tmp_path / "train-resized"
    assert resize_images(source, target, 40, 90) == Resized(written=3, kept=0)
    assert read_tree(source) == before
    assert set(read_tree(target)) == {*before, resize.MARKER} - {"notes.txt"}
    shapes = {"wide.jpg": (40, 80), "deep er/tall ü.png": (160, 40), "deep er/small.jpeg": (30, 20)}
    for name, (height, width) in shapes.items():
        copy = decode_image(target / name)
        assert copy.shape == (height, width, 3)
        np.testing.assert_allclose(copy[: height // 2 - 2].mean(axis=(0, 1)), 30, atol=4)
        np.testing.assert_allclose(copy[height // 2 + 2 :].mean(axis=(0, 1)), (220, 200, 180), atol=4)
    assert (target / "deep er" / "small.jpeg").read_bytes() == (source / "deep er" / "small.jpeg").read_bytes()
    with Image.open(target / "deep er" / "tall ü.png") as copy:
        assert copy.format == "PNG"


def test_a_turned_photograph_is_turned_upright_even_if_small(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees clockwise
    for name, width, height in (("large.jpg", 100, 200), ("small.jpg", 20, 30)):
        save_image(tmp_path / "a" / name, width, height, exif=exif, quality=95)
    resize_images(tmp_path / "a", tmp_path / "b", 40, 95)
    for name, shape in (("large.jpg", (40, 80, 3)), ("small.jpg", (20, 30, 3))):
        upright = decode_image(tmp_path / "b" / name)
        assert upright.shape == shape
        assert upright[:, : shape[1] // 2 - 2].min() > 150, "what was at the bottom is at the left"
        assert upright[:, shape[1] // 2 + 2 :].max() < 60
        with Image.open(tmp_path / "b" / name) as copy:
            assert copy.getexif().get(ExifTags.Base.Orientation, 1) == 1


def test_only_what_is_missing_older_or_empty_is_written(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "copies"
    resize_images(source, target, 40, 90)
    assert resize_images(source, target, 40, 90) == Resized(written=0, kept=3)
    (target / "wide.jpg").unlink()
    (target / "deep er" / "small.jpeg").write_bytes(b"")
    changed = source / "deep er" / "tall ü.png"
    save_image(changed, 80, 90)
    assert resize_images(source, target, 40, 90) == Resized(written=3, kept=0)
    assert decode_image(target / "deep er" / "tall ü.png").shape == (45, 40, 3)


@pytest.mark.parametrize("date", [-1000, 0, 1000])
def test_an_image_of_another_size_or_date_is_copied_again(source: Path, tmp_path: Path, date: int) -> None:
    target, changed = tmp_path / "copies", source / "wide.jpg"
    resize_images(source, target, 40, 90)
    stat = changed.stat()
    save_image(changed, 300, 100)
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + date))
    assert resize_images(source, target, 40, 90) == Resized(written=1, kept=2)
    assert decode_image(target / "wide.jpg").shape == (40, 120, 3)
    assert resize_images(source, target, 40, 90) == Resized(written=0, kept=3)
    (target / resize.RECORD).unlink()  # as an earlier version left it
    assert resize_images(source, target, 40, 90) == Resized(written=3, kept=0)


def test_a_damaged_record_costs_a_copy_or_is_told(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "copies"
    resize_images(source, target, 40, 90)
    record = target / resize.RECORD
    record.write_bytes(record.read_bytes()[:-3])  # a run was killed in the middle of a line
    assert resize_images(source, target, 40, 90) == Resized(written=1, kept=2)
    assert resize_images(source, target, 40, 90) == Resized(written=0, kept=3)
    record.write_text('"' + "x" * 200_000)
    with pytest.raises(InputError, match=r"\.resize\.csv: field larger than field limit.*: delete it, and all copies"):
        resize_images(source, target, 40, 90)
    for text in ("[]", "{}", "[" * 100_000, '{"made_by": 1}'):
        (target / resize.MARKER).write_text(text)
        with pytest.raises(InputError, match=r"\.resize\.json"):
            resize_images(source, target, 40, 90)


@pytest.mark.parametrize("stage", ["between", "writing"])
def test_an_interrupted_run_goes_on(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    resize_images(source, tmp_path / "whole", 40, 90)
    target, replace = tmp_path / "cut", os.replace

    def stop(from_path: Path, to_path: Path) -> None:
        if to_path.name == "wide.jpg":
            raise RuntimeError("killed")
        replace(from_path, to_path)

    with monkeypatch.context() as patch:
        if stage == "between":
            patch.setattr(utils.Progress, "step", Mock(side_effect=KeyboardInterrupt))
        else:
            patch.setattr(resize.os, "replace", stop)
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            resize_images(source, target, 40, 90)
    if stage == "writing":
        assert not (target / "wide.jpg").exists()
        assert resize_images(source, target, 40, 90).written >= 1
    else:
        resize_images(source, target, 40, 90)
    assert read_tree(target) == read_tree(tmp_path / "whole")


def test_unreadable_images_are_named_and_the_others_done(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match="1 of 4 images cannot be read"):
        resize_images(source, tmp_path / "copies", 40, 90)
    assert "broken.jpg" in capsys.readouterr().err
    assert len([name for name in read_tree(tmp_path / "copies") if name[0] != "."]) == 3


def test_copies_made_otherwise_are_left_alone(source: Path, tmp_path: Path) -> None:
    resize_images(source, tmp_path / "copies", 40, 90)
    before = read_tree(tmp_path / "copies")
    with pytest.raises(InputError, match="short side of 40 and quality 90: delete it"):
        resize_images(source, tmp_path / "copies", 50, 90)
    assert read_tree(tmp_path / "copies") == before
    save_image(tmp_path / "mine" / "holiday.jpg", 50, 50)
    with pytest.raises(InputError, match=r"mine holds images, and no \.resize\.json says"):
        resize_images(source, tmp_path / "mine", 50, 90)
    assert list(read_tree(tmp_path / "mine")) == ["holiday.jpg"]


def test_what_cannot_be_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, target, side, quality, message in (
        (source, source / "small", 40, 90, "choose a folder beside it"),
        (source, source, 40, 90, "choose a folder beside it"),
        (source, tmp_path / "b", 0, 90, "short side of 0"),
        (source, tmp_path / "b", 40, 101, "quality 101"),
        (tmp_path / "empty", tmp_path / "b", 40, 90, "no images in"),
        (tmp_path / "nowhere", tmp_path / "b", 40, 90, "cannot read folder .*nowhere"),
    ):
        with pytest.raises(InputError, match=message):
            resize_images(folder, target, side, quality)
    assert not (tmp_path / "b").exists()
