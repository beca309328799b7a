"""dataset_readers.py: what each file says is what the table holds, and what is wrong is said in one line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import augmentations
import dataset_readers
from dataset_readers import Table, decode_image, make_loader, read_dataset, split_table
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
        ("classes.txt", write("a\n\nb\n"), r"classes\.txt:2: an empty line"),
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
    with pytest.raises(InputError, match="no known format"):
        read_dataset(tmp_path / "empty", split="train")
    with pytest.raises(InputError, match="unknown data set format 'zip'"):
        read_dataset(dataset, "zip", "train")
    with pytest.raises(InputError, match=r"cannot read folder .*val-resized: No such file"):
        read_dataset(dataset, split="val")
    with pytest.raises(InputError, match="no images in"):
        read_dataset(dataset, split="train", images_dir=tmp_path / "empty")


# ---- splitting ----


def test_split_is_stratified_whole_and_the_same_for_a_seed() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((1000, 6)) < [0.5, 0.3, 0.1, 0.05, 0.02, 0.01]).astype(np.int8)
    table = Table([f"{index}.jpg" for index in range(1000)], targets, tuple("abcdef"))
    train, val = split_table(table, 0.2, seed=3)
    assert sorted(train.paths + val.paths) == sorted(table.paths)
    assert len(val) == pytest.approx(200, abs=10)
    np.testing.assert_allclose(val.targets.sum(axis=0), targets.sum(axis=0) * 0.2, atol=1.01)
    without_label = (targets.sum(axis=1) == 0).sum()
    assert (val.targets.sum(axis=1) == 0).sum() == pytest.approx(without_label * 0.2, abs=1.01)
    again = split_table(table, 0.2, seed=3)
    assert again[1].paths == val.paths
    assert split_table(table, 0.2, seed=4)[1].paths != val.paths


@pytest.mark.parametrize(("num_images", "share"), [(10, 0.05), (10, 0.1), (10, 0.95), (3, 0.5)])
def test_a_split_with_too_few_images_is_refused(num_images: int, share: float) -> None:
    table = Table([str(i) for i in range(num_images)], np.ones((num_images, 1), dtype=np.int8), ("a",))
    with pytest.raises(InputError, match=r"VAL_SPLIT .* at least 2"):
        split_table(table, share, 0)


# ---- images ----


def test_photographs_decode_to_pils_pixels(photographs: Path) -> None:
    for path in sorted((photographs / "coco-mini80" / "images" / "test-resized").iterdir())[:20]:
        with Image.open(path) as image:
            assert np.array_equal(decode_image(path), np.array(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA"])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str, ending: str) -> None:
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:, 15:] = 200
    try:
        image = Image.fromarray(pixels)
        image = image.quantize(4, dither=Image.Dither.NONE) if mode == "P" else image.convert(mode)
        image.save(tmp_path / f"a.{ending}")
    except OSError:
        pytest.skip(f"{ending} has no mode {mode}")
    decoded = decode_image(tmp_path / f"a.{ending}")
    assert decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded.astype(int), pixels, atol=12)


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:, :16] = 220  # bright on the left
    exif = Image.Exif()
    exif[dataset_readers.ORIENTATION] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    upright = decode_image(tmp_path / "turned.jpg")
    assert upright.shape == (32, 16, 3)
    assert upright[:14].mean() > 200
    assert upright[18:].mean() < 20


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    files = {"empty.jpg": b"", "text.jpg": b"no image", "cut.jpg": buffer.getvalue()[:-500]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"cannot read image .*{name}: ") as error:
            decode_image(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"cannot read image .*gone\.jpg: No such file"):
        decode_image(tmp_path / "gone.jpg")


# ---- loading ----


def collect(dataset: Path, epoch: int, num_workers: int = 0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    table = read_dataset(dataset, split="train")
    transform = augmentations.make_train_transform(augmentations.Augmentation("crop_flip", 0.3), 32)
    loader = make_loader(table, transform, 8, shuffle=True, seed=seed, num_workers=num_workers)
    dataset_readers.set_epoch(loader, epoch)
    batches = list(loader)
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.targets for batch in batches])


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


@pytest.mark.parametrize(("num_images", "batch_size"), [(16, 8), (17, 8), (18, 8), (25, 8), (3, 8), (9, 8), (2, 8)])
def test_training_never_sees_a_batch_of_one(num_images: int, batch_size: int) -> None:
    batches = dataset_readers.EpochBatches(num_images, batch_size, shuffle=True, seed=0)
    drawn = list(batches)
    assert len(drawn) == len(batches)
    assert min(len(batch) for batch in drawn) > 1
    assert sorted(key for batch in drawn for key in batch) == list(range(num_images))
    in_order = dataset_readers.EpochBatches(num_images, batch_size, shuffle=False, seed=0)
    assert [key for batch in in_order for key in batch] == list(range(num_images))
    assert len(list(in_order)) == len(in_order)


def test_an_unreadable_image_in_a_worker_is_one_line(dataset: Path) -> None:
    (dataset / "images" / "train-resized" / "train005.jpg").write_bytes(b"broken")
    table = read_dataset(dataset, split="train")
    loader = make_loader(table, augmentations.make_eval_transform("squash", 24), 8, num_workers=1)
    with pytest.raises(InputError) as error:
        list(loader)
    assert str(error.value).startswith("cannot read image ")
    assert "\n" not in str(error.value)
