"""dataset_readers.py: what each file says is what the table holds, and what is wrong is said in one line."""

from __future__ import annotations

import errno
import io
import itertools
import multiprocessing
import os
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import config
import dataset_readers
import overrides
from dataset import augmentations, bad_images, decoding, loading
from dataset.decoding import Decoded, decode_image
from dataset.formats.base import ReadOptions
from dataset.loading import make_loader
from dataset.table import Table
from dataset_readers import read_dataset
from trainer import from_config
from utils import InputError


def test_table_holds_what_the_label_files_say(shared_dataset: Path) -> None:
    table = read_dataset(shared_dataset, split="train")
    assert table.classes == ("red", "green", "blue")
    assert [Path(path).name for path in table.paths] == [f"train{index:03}.jpg" for index in range(40)]
    assert table.targets.dtype == np.int8
    for path, row in zip(table.paths, table.targets, strict=True):
        lines = (shared_dataset / "labels" / "train" / f"{Path(path).stem}.cls").read_text().split()
        assert np.flatnonzero(row).tolist() == sorted(int(line) for line in lines)
    assert (table.targets.sum(axis=1) == 0).any(), "an image without labels is a row of zeros"


def test_without_a_split_all_splits_are_read(shared_dataset: Path) -> None:
    both = read_dataset(shared_dataset)
    assert len(both) == 52
    parts = [read_dataset(shared_dataset, split=split).targets for split in ("train", "test")]
    assert np.array_equal(both.targets, np.concatenate(parts))


def test_blank_lines_repeats_windows_ends_and_bom_are_allowed(dataset: Path) -> None:
    (dataset / "labels" / "train" / "train000.cls").write_bytes(b"\xef\xbb\xbf2\r\n\r\n0\r\n2\r\n")
    assert read_dataset(dataset, split="train").targets[0].tolist() == [1, 0, 1]


def test_classes_come_from_the_caller_where_there_is_no_file(dataset: Path) -> None:
    (dataset / "classes.txt").unlink()
    assert read_dataset(dataset, split="train", classes=("a", "b", "c")).classes == ("a", "b", "c")
    with pytest.raises(InputError, match=r"classes\.txt is missing"):
        read_dataset(dataset, split="train")


def test_fingerprint_follows_labels_names_and_classes_not_the_folder(shared_dataset: Path, dataset: Path) -> None:
    here, there = (read_dataset(root, split="train") for root in (shared_dataset, dataset))
    assert here.fingerprint() == there.fingerprint()
    changed = here.targets.copy()
    changed[0, 0] ^= 1
    prints = {
        here.fingerprint(),
        Table(here.paths, changed, here.classes).fingerprint(),
        Table(here.paths, here.targets, ("a", "b", "c")).fingerprint(),
        here.select(range(39)).fingerprint(),
    }
    assert len(prints) == 4


def write(text: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("labels/train/train003.cls", write("1\n\n3\n"), r"train003\.cls:3: class index 3 is outside 0\.\.\.2"),
        ("labels/train/train003.cls", write("-1\n"), r"train003\.cls:1: '-1' is not a class index"),
        ("labels/train/train003.cls", write("0\ncat\n"), r"train003\.cls:2: 'cat' is not a class index"),
        ("labels/train/train003.cls", write("0 1\n"), r"train003\.cls:1: '0 1' is not a class index"),
        ("labels/train/train003.cls", write(b"\xff\xfe0"), r"train003\.cls:1: .* is not a class index"),
        ("labels/train/train003.cls", Path.unlink, r"1 image\(s\) without a label file.*train003\.cls does not exist"),
        ("images/train-resized/train003.jpg", Path.unlink, r"1 label file\(s\) without an image.*train003"),
        ("images/train-resized/train003.png", write(b""), r"differ in their extension only"),
        ("classes.txt", write("a\n\nb\n"), r"classes\.txt:2: a class name is empty"),
        ("classes.txt", write("a\nb\na\n"), r"classes\.txt:3: class 'a' stands here a second time"),
        ("classes.txt", write(""), r"classes\.txt is empty"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(
    dataset: Path, file: str, change: Callable[[Path], object], message: str
) -> None:
    change(dataset / file)
    with pytest.raises(InputError, match=message):
        read_dataset(dataset, split="train")


def test_missing_folders_and_unknown_formats(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nowhere: set DATASET_FOLDER"):
        read_dataset(tmp_path / "nowhere", split="train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty is in no known format: it is empty: set DATASET_FOLDER"):
        read_dataset(tmp_path / "empty", split="train")
    with pytest.raises(InputError, match=r"unknown data set format 'coco_csl' \(did you mean coco_cls\?\)"):
        read_dataset(dataset, "coco_csl", "train")
    with pytest.raises(InputError, match="has no split of format csv"):
        read_dataset(dataset, "csv")
    with pytest.raises(InputError, match="has no split 'val' in this format; it has train, test"):
        read_dataset(dataset, split="val")
    with pytest.raises(InputError, match="no images in"):
        read_dataset(dataset, split="train", images_dir=tmp_path / "empty")
    with pytest.raises(InputError, match=r"no folder .*gone for the images .*: empty/, set/\): rename .* TRAIN_I"):
        read_dataset(dataset, split="train", images_dir=tmp_path / "gone")
    with pytest.raises(InputError, match=r"empty has no split of format coco_cls .*: expected images/ .*; it is empty"):
        read_dataset(tmp_path / "empty", "coco_cls", "train", labels_dir=tmp_path / "gone")
    with pytest.raises(InputError, match="are for one split of coco_cls or coco_json, not for csv"):
        read_dataset(dataset, "csv", "train", images_dir=tmp_path / "empty")


# ---- which format, which splits ----


def test_label_files_elsewhere_are_coco_cls(dataset: Path, tmp_path: Path) -> None:
    labels, images = tmp_path / "elsewhere" / "labels", tmp_path / "elsewhere" / "photos"
    labels.parent.mkdir()
    (dataset / "labels" / "train").rename(labels)
    (dataset / "images" / "train-resized").rename(images)
    (dataset / "train.csv").write_text("image_path,red\nclasses.txt,1\n")
    table = read_dataset(dataset, split="train", images_dir=images, labels_dir=labels)
    assert len(table) == 40
    assert table.paths[0] == f"{images}/train000.jpg"


def test_masks_are_no_label_files(dataset: Path) -> None:
    for file in (dataset / "labels" / "train").iterdir():
        file.unlink()
    assert dataset_readers.recognise_format(dataset) == "coco_cls", "the labels of test are there"
    for file in (dataset / "labels" / "test").iterdir():
        file.unlink()
    assert dataset_readers.recognise_format(dataset) == "coco_cls", "nothing is labelled yet"
    for split in ("train", "test"):
        Image.new("L", (40, 30)).save(dataset / "labels" / split / "a.png")
    with pytest.raises(InputError, match="is in no known format"):
        dataset_readers.recognise_format(dataset)


@pytest.mark.parametrize("name", ["yolo", "csv"])
def test_folders_of_labels_with_the_usual_names_may_be_of_another_format(name: str, tmp_path: Path) -> None:
    """Scripts ask with TRAIN_LABELS_DIR, labels/train in the data set's folder: YOLO's boxes lie there, too."""
    for path in ("images/train/a.jpg", "images/train/b.jpg", "images/test/c.jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / path)
    for split in ("train", "test"):
        (tmp_path / "labels" / split).mkdir(parents=True)
    if name == "yolo":
        (tmp_path / "data.yaml").write_text("train: images/train\ntest: images/test\nnames: [cat, dog]\n")
        (tmp_path / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.1 0.1\n")
        (tmp_path / "labels" / "train" / "b.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    else:
        (tmp_path / "train.csv").write_text("image_path,cat,dog\nimages/train/a.jpg,0,1\nimages/train/b.jpg,1,0\n")
        Image.new("L", (40, 30)).save(tmp_path / "labels" / "train" / "a.png")  # a mask
    assert dataset_readers.recognise_format(tmp_path) == name
    overrides.apply([f"--DATASET_FOLDER={tmp_path}"], config)
    assert from_config.choose_format("train") == name
    assert from_config.has_split("train")
    table = from_config.read_split("train")
    assert table.classes == ("cat", "dog")
    assert table.targets.tolist() == [[0, 1], [1, 0]]


def test_the_projects_own_layout_comes_before_others_and_class_folders_after_them(dataset: Path) -> None:
    (dataset / "train.csv").write_text("image_path,red\nclasses.txt,1\n")
    assert dataset_readers.recognise_format(dataset) == "coco_cls"
    (dataset / "labels").rename(dataset / "labels.bak")
    assert dataset_readers.recognise_format(dataset) == "csv"
    (dataset / "train" / "cat").mkdir(parents=True)
    assert dataset_readers.recognise_format(dataset) == "csv"
    (dataset / "val.json").write_text("{}")
    assert dataset_readers.recognise_format(dataset) == "csv"
    (dataset / "val.json").write_text('{"classes": []}')
    with pytest.raises(InputError, match=r"more than one format: classes_json \(val\.json\) and csv \(train\.csv\): "):
        dataset_readers.recognise_format(dataset)


def test_whether_a_split_has_labels(dataset: Path, tmp_path: Path) -> None:
    has = dataset_readers.has_split
    elsewhere = tmp_path / "nowhere"
    assert has(dataset, "auto", "test")
    assert has(dataset, "coco_cls", "test", dataset / "labels" / "test")
    assert not has(dataset, "coco_cls", "test", elsewhere)
    assert not has(dataset, "auto", "test", elsewhere), "label files are looked for where they are said to be"
    assert not has(dataset, "auto", "val")
    assert not has(elsewhere, "auto", "test"), "images alone can be predicted"
    assert has(elsewhere, "auto", "test", dataset / "labels" / "test")
    (dataset / "labels").rename(dataset / "gone")
    (dataset / "test.csv").write_text("image_path,red\nclasses.txt,1\n")
    assert has(dataset, "auto", "test", elsewhere)
    assert dataset_readers.list_splits(dataset) == ["test"]


# ---- several data sets, sources, exclusion ----


def write_csv(root: Path, text: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for line in text.splitlines()[1:]:
        (root / line.partition(",")[0]).write_bytes(b"")
    (root / "train.csv").write_text(text)
    return root


def test_several_data_sets_are_joined_by_class_name(shared_dataset: Path, tmp_path: Path) -> None:
    more = write_csv(tmp_path / "more", "image_path,blue,red,green,group\nx.jpg,1,0,-1,site 1\ny.jpg,0,1,0,\n")
    table = read_dataset([shared_dataset, more], split="train")
    assert table.classes == ("red", "green", "blue")
    assert len(table) == 42
    assert table.targets[40:].tolist() == [[0, -1, 1], [1, 0, 0]]
    assert table.groups is not None
    assert table.groups[39:] == ("", "site 1", "")
    write_csv(more, "image_path,blue,red,grün\nx.jpg,1,0,1\n")
    with pytest.raises(InputError, match=r"3 classes .*beside .*x\.jpg and the 3 .* differ; only .*grün; only .*green"):
        read_dataset([shared_dataset, more], split="train")


def test_a_pattern_finds_sources_in_paths(shared_dataset: Path) -> None:
    table = read_dataset(shared_dataset, split="train", group_pattern=r"train(0[01])\d\.jpg$")
    assert table.groups == ("00",) * 10 + ("01",) * 10 + ("",) * 20
    assert table.select([9, 10, 39]).groups == ("00", "01", "")
    assert table.fingerprint() != read_dataset(shared_dataset, split="train").fingerprint(), "they decide the split"
    for pattern, message in (("train", "has no group"), ("(train", "is no regular expression")):
        with pytest.raises(InputError, match=message):
            read_dataset(shared_dataset, split="train", group_pattern=pattern)


def test_excluded_images(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = read_dataset(dataset, split="train")
    file = tmp_path / "exclude.txt"
    lines = ["# copies", "images/train-resized/train001.jpg", "", "images\\train-resized\\train003.jpg"]
    file.write_bytes("\r\n".join([*lines, "images/test-resized/test001.jpg"]).encode("utf-8-sig"))
    kept = dataset_readers.exclude(table, file, dataset)
    assert kept.paths == [path for path in table.paths if Path(path).stem not in ("train001", "train003")]
    assert np.array_equal(kept.targets, np.delete(table.targets, [1, 3], axis=0))
    assert capsys.readouterr().err == "", "an image of another split is none of this one's business"
    file.write_text("images/train-resized/train001.jpg\ntrain003.jpg\ngone.jpg\n")
    assert len(dataset_readers.exclude(table, file, dataset)) == 39
    assert f"warning: {file}: 2 line(s) name no file in {dataset}, the first is line 2" in capsys.readouterr().err
    file.write_text("".join(f"{path}\n" for path in table.paths))
    with pytest.raises(InputError, match="excludes all 40 images"):
        dataset_readers.exclude(table, file, dataset)


def test_what_reading_depends_on_reaches_the_format(tmp_path: Path) -> None:
    write_csv(tmp_path, "image_path,labels\nx.jpg,a|b\n")
    assert read_dataset(tmp_path, split="train", options=ReadOptions(separator="|")).classes == ("a", "b")
    assert read_dataset(tmp_path, split="train", options=ReadOptions(separator=";")).classes == ("a|b",)


# ---- images that cannot be read ----


def test_bad_images_are_left_out_and_named(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_dataset(dataset, split="train")
    assert bad_images.leave_out_bad_images(table)[1] == {}
    capsys.readouterr()
    for index in (3, 7, 11, 13):
        Path(table.paths[index]).write_bytes(b"" if index == 3 else b"no image")
    good, bad = bad_images.leave_out_bad_images(table, tmp_path / "cache")
    assert list(bad) == [table.paths[index] for index in (3, 7, 11, 13)]
    assert good.paths == [path for path in table.paths if path not in bad]
    assert np.array_equal(good.targets, np.delete(table.targets, [3, 7, 11, 13], axis=0))
    message = capsys.readouterr().err
    assert "4 of 40 images are left out: cannot read image" in message
    assert "train003.jpg: the file is empty; " in message
    assert "and 1 more" in message
    assert message.count("\n") == 1

    tried = []
    monkeypatch.setattr(bad_images, "judge_image", lambda path: tried.append(path) or Decoded(None, "", ""))
    assert bad_images.leave_out_bad_images(table, tmp_path / "cache")[1] == bad
    assert not tried, "the same files are not tried again"
    Path(table.paths[3]).write_bytes(b"changed")
    bad_images.leave_out_bad_images(table, tmp_path / "cache")
    assert len(tried) == 40


def test_too_few_open_files_are_not_the_fault_of_an_image(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be left out, and noted in the cache as damaged."""

    def refuse(path: str | Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(decoding, "read_bytes", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        bad_images.leave_out_bad_images(read_dataset(dataset, split="train"), tmp_path / "cache")
    assert not list(tmp_path.glob("cache/bad_images*"))


def test_no_image_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 1 images can be read; cannot read image .*the file is empty"):
        bad_images.leave_out_bad_images(Table([f"{tmp_path}/a.jpg"], np.ones((1, 1), np.int8), ("x",)))


# ---- images ----


def test_photographs_decode_to_pils_pixels(photographs: Path) -> None:
    for path in sorted((photographs / "coco-mini80" / "images" / "test-resized").iterdir())[:20]:
        with Image.open(path) as image:
            assert np.array_equal(decode_image(path), np.array(image.convert("RGB")))


PIXELS = np.zeros((20, 30, 3), dtype=np.uint8)
PIXELS[:, 15:] = 200


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "CMYK", "P", "RGBA", "LA"])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "gif", "tif"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str, ending: str) -> None:
    try:
        image = Image.fromarray(PIXELS)
        image = image.quantize(4, dither=0) if mode == "P" else image.convert(mode, dither=Image.Dither.NONE)
        image.save(tmp_path / f"a.{ending}")
    except (OSError, ValueError):
        pytest.skip(f"{ending} has no mode {mode}")
    decoded = decode_image(tmp_path / f"a.{ending}")
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    np.testing.assert_allclose(decoded.astype(int), np.where(PIXELS, 255, 0) if mode == "1" else PIXELS, atol=12)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, ending: str, order: str) -> None:
    grey = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    if ending == "tif":
        write_grey_tiff(tmp_path / "a.tif", grey, order)
    else:
        Image.fromarray(grey).save(tmp_path / "a.png")
    expected = np.floor(grey / 256).astype(np.uint8)
    assert np.array_equal(decode_image(tmp_path / f"a.{ending}"), np.stack([expected] * 3, axis=2))


def write_grey_tiff(path: Path, grey: np.ndarray, order: str) -> None:
    """A TIFF of 16 bits by hand, since PIL writes one byte order only."""
    height, width = grey.shape
    fields = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: grey.size * 2}
    data = grey.astype(f"{order}u2").tobytes()
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in fields.items())
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(fields)) + entries + bytes(4))


def test_pixels_of_32_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="its pixels have 32 bits, of which none says what is white"):
        decode_image(tmp_path / "a.tif")


def test_behind_transparent_pixels_it_is_white(tmp_path: Path) -> None:
    pixels = np.full((4, 6, 4), (100, 0, 0, 255), dtype=np.uint8)
    pixels[:, 2:4, 3], pixels[:, 4:, 3] = 128, 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    row = decode_image(tmp_path / "a.png")[0].astype(int)
    assert row[[0, 4]].tolist() == [[100, 0, 0], [255, 255, 255]]
    np.testing.assert_allclose(row[2], [100 * 128 / 255 + 127, 127, 127], atol=1)
    palette = Image.fromarray(PIXELS).quantize(2, dither=Image.Dither.NONE)
    for ending in ("png", "gif"):  # one colour of a palette is transparent
        palette.save(tmp_path / f"p.{ending}", transparency=palette.getpixel((0, 0)))
        decoded = decode_image(tmp_path / f"p.{ending}")
        assert decoded[0, 0].tolist() == [255, 255, 255]
        np.testing.assert_allclose(decoded[0, 29], 200, atol=2)


@pytest.mark.parametrize("ending", ["gif", "webp", "tif"])
def test_of_several_pictures_the_first(tmp_path: Path, ending: str) -> None:
    pictures = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    pictures[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=pictures[1:])
    np.testing.assert_allclose(decode_image(tmp_path / f"a.{ending}").astype(int), PIXELS, atol=12)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("profile", [b"", bytes(70_000)], ids=["plain", "after a long colour profile"])
def test_a_turned_photograph_is_upright(tmp_path: Path, ending: str, profile: bytes) -> None:
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:, :16] = 220  # bright on the left
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / f"turned.{ending}", exif=exif, icc_profile=profile or None)
    if ending == "jpg" and profile:  # other parts may come before the Exif part, and padding between them
        data = (tmp_path / "turned.jpg").read_bytes()
        start = data.index(b"\xff\xe1")
        part = data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")]
        data = data.replace(part, b"")
        tables = data.index(b"\xff\xdb")
        assert tables > 70_000
        (tmp_path / "turned.jpg").write_bytes(data[:tables] + b"\xff\xff" + part + data[tables:])
    upright = decode_image(tmp_path / f"turned.{ending}")
    assert upright.shape == (32, 16, 3)
    assert upright[:14].mean() > 200
    assert upright[18:].mean() < 20


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    files = {
        "empty.jpg": (b"", "the file is empty"),
        "text.jpg": (b"no image", "it is text, not an image: 'no image'"),
        "bytes.jpg": (bytes(range(200, 256)), "it is no JPEG, PNG, BMP, WEBP, GIF, TIFF"),
        "page.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is a PostScript document"),
        "cut.jpg": (buffer.getvalue()[:-500], "image file is truncated"),
        "bomb.png": (make_bomb(), "could be decompression bomb"),
        "bomb.jpg": (buffer.getvalue().replace(struct.pack(">HH", 64, 64), b"\xff" * 4, 1), "decompression bomb"),
    }
    for name, (content, reason) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"cannot read image .*{name}: .*{reason}") as error:
            decode_image(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"cannot read image .*gone\.jpg: No such file"):
        decode_image(tmp_path / "gone.jpg")


def make_bomb() -> bytes:
    """A PNG of a few bytes that says it has 20,000 x 20,000 pixels."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(b""),
        b"IEND": b"",
    }
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# ---- loading ----


def collect(dataset: Path, epoch: int, num_workers: int = 0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    table = read_dataset(dataset, split="train")
    transform = augmentations.make_train_transform(augmentations.Augmentation("crop_flip", 0.3), 32)
    loader = make_loader(table, transform, 8, shuffle=True, seed=seed, num_workers=num_workers)
    loading.set_epoch(loader, epoch)
    batches = list(loader)
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.targets for batch in batches])


def test_a_loading_process_ends_at_its_parents_word_only(shared_dataset: Path) -> None:
    """SIGTERM to all of a run's processes leaves it the images of its step; at its end it terminates them."""
    before = set(multiprocessing.active_children())
    table, transform = read_dataset(shared_dataset, split="train"), augmentations.make_eval_transform("squash", 32)
    loader = make_loader(table, transform, 4, num_workers=1)
    batches = iter(loader)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert len(list(batches)) == 9
    time.sleep(1)
    assert worker.is_alive()
    worker.terminate()
    worker.join()
    assert worker.exitcode == 0, "an alarm ends one that goes on: -14"


def test_same_seed_same_pictures_whatever_the_number_of_workers(shared_dataset: Path) -> None:
    images, targets = collect(shared_dataset, 1)
    torch.rand(7)  # what else is drawn in the process does not matter
    again, again_targets = collect(shared_dataset, 1, num_workers=2)
    assert torch.equal(images, again)
    assert torch.equal(targets, again_targets)
    assert not torch.equal(images, collect(shared_dataset, 2)[0])
    assert not torch.equal(images, collect(shared_dataset, 1, seed=1)[0])


def test_loading_leaves_the_random_numbers_of_the_run_alone(shared_dataset: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    collect(shared_dataset, 1)
    assert torch.equal(torch.rand(3), expected)


def test_a_batch_is_uint8_images_float_targets_and_weights(shared_dataset: Path) -> None:
    table = read_dataset(shared_dataset, split="train")
    unknown = Table(table.paths, np.where(table.targets == 1, -1, table.targets).astype(np.int8), table.classes)
    batch = next(iter(make_loader(unknown, augmentations.make_eval_transform("squash", 24), 8)))
    assert batch.images.shape == (8, 3, 24, 24)
    assert batch.images.dtype == torch.uint8
    assert batch.weights.tolist() == [1.0] * 8
    assert np.array_equal(batch.targets.isnan().numpy(), table.targets[:8] == 1)
    assert (batch.targets.nan_to_num(0) == 0).all()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_targets_and_weights_of_its_own(shared_dataset: Path, num_workers: int) -> None:
    """They change what a batch holds, neither its images nor their order."""
    table = read_dataset(shared_dataset, split="train")
    targets = np.random.default_rng(0).random(table.targets.shape, dtype=np.float32)
    targets[:9, 1] = np.nan
    weights = np.arange(len(table), dtype=np.float32)
    transform = augmentations.make_train_transform(augmentations.Augmentation("crop_flip"), 24)
    loaders = [
        make_loader(table, transform, 8, shuffle=True, num_workers=num_workers, **own)
        for own in ({"targets": targets, "weights": weights}, {})
    ]
    for ours, plain in zip(*loaders, strict=True):
        rows = ours.weights.long().numpy()
        assert torch.equal(ours.images, plain.images)
        assert ours.targets.dtype == ours.weights.dtype == torch.float32
        np.testing.assert_array_equal(ours.targets, targets[rows])
        np.testing.assert_array_equal(plain.targets, table.targets[rows])
    with pytest.raises(ValueError, match=r"\(39, 3\) targets"):
        make_loader(table, transform, 8, targets=targets[1:])


@pytest.mark.parametrize(("num_images", "batch_size"), [(16, 8), (17, 8), (18, 8), (25, 8), (3, 8), (9, 8), (2, 8)])
def test_training_never_sees_a_batch_of_one(num_images: int, batch_size: int) -> None:
    batches = loading.EpochBatches(num_images, batch_size, shuffle=True, seed=0)
    drawn = list(batches)
    assert len(drawn) == len(batches)
    assert min(len(batch) for batch in drawn) > 1
    assert sorted(key for batch in drawn for key in batch) == list(range(num_images))
    in_order = loading.EpochBatches(num_images, batch_size, shuffle=False, seed=0)
    assert [key for batch in in_order for key in batch] == list(range(num_images))
    assert len(list(in_order)) == len(in_order)


def test_the_example_of_two_processes() -> None:
    """What EpochBatches says of 10 keys in batches of 4; a process may also be left without any image."""
    drawn = {}
    for shuffle, process in itertools.product((False, True), (0, 1)):
        batches = loading.EpochBatches(10, 4, shuffle, seed=0)
        batches.share = (process, 2)
        drawn[shuffle, process] = list(batches)
    assert drawn[False, 0] == [[0, 1, 2, 3], [4]]
    assert drawn[False, 1] == [[5, 6, 7, 8], [9]]
    assert [[len(batch) for batch in drawn[True, process]] for process in (0, 1)] == [[2, 3], [2, 3]]
    assert sorted(key for process in (0, 1) for batch in drawn[True, process] for key in batch) == list(range(10))
    single = loading.EpochBatches(1, 4, shuffle=False, seed=0)
    single.share = (0, 2)
    assert (len(single), list(single)) == (0, [])


def test_an_unreadable_image_in_a_worker_is_one_line(dataset: Path) -> None:
    (dataset / "images" / "train-resized" / "train005.jpg").write_bytes(b"broken")
    table = read_dataset(dataset, split="train")
    loader = make_loader(table, augmentations.make_eval_transform("squash", 24), 8, num_workers=1)
    with pytest.raises(InputError) as error:
        list(loader)
    assert str(error.value).startswith("cannot read image ")
    assert "\n" not in str(error.value)
