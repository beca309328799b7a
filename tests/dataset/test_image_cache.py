"""dataset/image_cache.py: what is kept is what preparing gives; what changed, or has no place, is decoded."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import augmentations, decoding, image_cache, loading
from dataset.image_cache import ImageCache
from dataset.loading import make_loader
from dataset.table import Table
from dataset_readers import read_dataset
from utils import InputError

SMALLER = augmentations.shrink(24)  # the pictures are 48 x 36 pixels


def make_cache(
    table: Table, folder: Path | None = None, limit_gb: float = 1.0, max_pixels: int = 24 * 32
) -> ImageCache:
    return ImageCache(table.paths, SMALLER, "short side 24", max_pixels, limit_gb, folder)


def load(table: Table, cache: ImageCache | None, num_workers: int = 0) -> torch.Tensor:
    """Every picture, squashed to 20 x 20 pixels; shrunk before, whether a cache does it or not."""
    squash = augmentations.make_eval_transform("squash", 20)
    transform = squash if cache else lambda image: squash(SMALLER(image))
    cached = cache.select(table.paths) if cache else None
    loader = make_loader(table, transform, 8, num_workers=num_workers, cached=cached)
    return torch.cat([batch.images for batch in loader])


def refuse(path: str | Path) -> np.ndarray:
    raise AssertionError(f"{path} is decoded again")


@pytest.fixture
def table(dataset: Path) -> Table:
    return read_dataset(dataset, split="train")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_second_pass_decodes_nothing(
    table: Table, tmp_path: Path, num_workers: int, on_disk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(table, None)
    cache = make_cache(table, tmp_path / "cache" if on_disk else None)
    assert torch.equal(load(table, cache, num_workers), expected)
    monkeypatch.setattr(loading, "decode_image", refuse)
    assert torch.equal(load(table, cache), expected), "the processes share what one of them decoded"


def test_a_later_run_decodes_what_changed_and_nothing_else(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(table, tmp_path / "cache")
    expected = load(table, cache)
    cache.save()
    Image.fromarray(np.full((36, 48, 3), 7, dtype=np.uint8)).save(table.paths[5], quality=95)
    decode, decoded = decoding.decode_image, []

    def note(path: str | Path) -> np.ndarray:
        decoded.append(path)
        return decode(path)

    monkeypatch.setattr(loading, "decode_image", note)
    expected[5] = 7
    assert torch.equal(load(table, make_cache(table, tmp_path / "cache")), expected)
    assert decoded == [table.paths[5]]


def test_what_was_not_saved_is_not_trusted(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed, or a machine that goes down, may leave slots half written."""
    load(table, make_cache(table, tmp_path / "cache"))
    monkeypatch.setattr(loading, "decode_image", refuse)
    with pytest.raises(AssertionError):
        load(table, make_cache(table, tmp_path / "cache"))


def test_a_part_of_the_images_finds_its_slots(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(table)
    expected = load(table, cache)
    monkeypatch.setattr(loading, "decode_image", refuse)
    assert torch.equal(load(table.select([30, 2, 9]), cache), expected[[30, 2, 9]])


@pytest.mark.parametrize(("limit_gb", "max_pixels"), [(3 * 24 * 32 * 10 / 1e9, 24 * 32), (1.0, 24 * 31)])
def test_what_has_no_place_is_decoded_each_time(table: Table, limit_gb: float, max_pixels: int) -> None:
    cache = make_cache(table, limit_gb=limit_gb, max_pixels=max_pixels)
    assert torch.equal(load(table, cache), load(table, None))
    assert torch.equal(load(table, cache), load(table, None))
    kept = (cache.slots.shapes[:, 0] > 0).sum()
    assert kept == (10 if max_pixels == 24 * 32 else 0), "ten slots, or slots that are too small by one column"


@pytest.mark.parametrize("written", [None, 100])
def test_a_full_disk_is_one_line(
    table: Table, tmp_path: Path, written: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether nothing fits any more, or only the first bytes of an image."""

    def write(file: int, data: object, offset: int) -> int:
        if written is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written

    monkeypatch.setattr(image_cache.os, "pwrite", write)
    with pytest.raises(InputError, match=r"cannot write the image cache .*: No space left on device: free some"):
        load(table, make_cache(table, tmp_path))


def test_a_file_that_is_shortened_under_a_run_is_one_line(table: Table, tmp_path: Path) -> None:
    """Mapped, it would end the process without a word. The next run decodes what is gone."""
    cache = make_cache(table, tmp_path)
    expected = load(table, cache)
    cache.save()
    (file,) = tmp_path.glob("*.uint8")
    os.truncate(file, 3 * 24 * 32 * 10 + 5)
    with pytest.raises(InputError, match=r"\.uint8 was shortened by another program: the same command decodes"):
        load(table, cache)
    again = make_cache(table, tmp_path)
    assert (again.slots.shapes[:, 0] > 0).sum() == 10
    assert torch.equal(load(table, again), expected)


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_a_file_that_is_deleted_under_a_run_is_not_trusted_later(
    table: Table, tmp_path: Path, is_made_anew: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on; what it noted does not lie beside the file of a later run, which has no pixels."""
    cache = make_cache(table, tmp_path)
    expected = load(table, cache)
    (file,) = tmp_path.glob("*.uint8")
    file.unlink()
    if is_made_anew:
        make_cache(table, tmp_path)
    assert torch.equal(load(table, cache), expected)
    cache.save()
    assert "was deleted: what this run decodes is kept for itself only" in capsys.readouterr().err
    assert torch.equal(load(table, make_cache(table, tmp_path)), expected)


def test_a_lost_or_damaged_file_is_made_anew(table: Table, tmp_path: Path) -> None:
    cache = make_cache(table, tmp_path)
    expected = load(table, cache)
    cache.save()
    (pixels,), (index,) = tmp_path.glob("*.uint8"), tmp_path.glob("*.npz")
    pixels.unlink()
    assert torch.equal(load(table, make_cache(table, tmp_path)), expected), "not the black of an empty file"
    index.write_bytes(index.read_bytes()[:-20])
    assert torch.equal(load(table, make_cache(table, tmp_path)), expected)


def test_bad_input_is_one_line(table: Table, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"IMAGE_CACHE_GB is 1e-06: less than one image of 2,304 bytes"):
        make_cache(table, limit_gb=1e-6)
    with pytest.raises(InputError, match=r"cannot read image .*gone\.jpg: No such file"):
        ImageCache([str(tmp_path / "gone.jpg")], SMALLER, "", 99, 1.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot open the image cache"):
        make_cache(table, tmp_path / "file")
    with pytest.raises(InputError, match="set NUM_WORKERS = 0"):
        pickle.dumps(make_cache(table).slots)
