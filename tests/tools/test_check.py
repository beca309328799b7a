"""tools/check.py, tools/check_report.py: what was planted is found, nothing else is, and no file changes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element, fromstring

import numpy as np
import pytest
from PIL import Image

import dataset_readers
from dataset import decoding
from dataset.class_checks import judge_classes
from dataset.table import Table
from tools import check, check_report
from tools.check import check_dataset, find_copies, find_near_pairs
from tools.findings import KINDS, Finding, ImageFacts, Result
from utils import InputError

CLASSES = ("cat", "dog", "<b>&\"'")


def make_picture(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """A picture like no other: blotches of colour."""
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write_split(root: Path, split: str, images: Mapping[str, bytes], labels: Mapping[str, Iterable[int]]) -> None:
    """`images` {file name: content} in the layout of coco_cls, each with `labels` {file name: class indices}."""
    for folder in (root / "images" / f"{split}-resized", root / "labels" / split):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for name, content in images.items():
        (root / "images" / f"{split}-resized" / name).write_bytes(content)
        text = "".join(f"{label}\n" for label in labels[name])
        (root / "labels" / split / f"{Path(name).stem}.cls").write_text(text)


def hash_tree(root: Path) -> dict[str, tuple[int, str]]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def read_result(output: Path) -> dict[str, Any]:
    return json.loads((output / "check_dataset_result.json").read_text())


def list_found(output: Path) -> set[tuple[str, str, tuple[str, ...]]]:
    """(kind, severity, names of the files) of all findings."""
    found = read_result(output)["findings"]
    assert all(finding["text"] for finding in found)
    return {(f["kind"], f["severity"], tuple(Path(file).name for file in f["files"])) for f in found}


def read_page(output: Path) -> Element:
    """The page, which is well-formed enough for an XML parser."""
    text = (output / "check_dataset" / "index.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(", text), "nothing comes from elsewhere"
    for source in re.findall(r'src="([^"]*)"', text):
        assert source.startswith("data:image/jpeg;base64,") or (output / "check_dataset" / unquote(source)).is_file()
    return fromstring(text.partition("\n")[2])


def read_text(element: Element) -> str:
    return " ".join(" ".join(element.itertext()).split())


# ---- every kind of file ----


def claim_size(image: bytes, width: int, height: int) -> bytes:
    """A PNG or JPEG file that says that it is larger than it is."""
    if image.startswith(b"\x89PNG"):
        header = b"IHDR" + struct.pack(">II", width, height) + image[24:29]
        return image[:12] + header + struct.pack(">I", zlib.crc32(header)) + image[33:]
    frame = image.index(b"\xff\xc0")
    return image[: frame + 5] + struct.pack(">HH", height, width) + image[frame + 9 :]


def make_torture() -> tuple[dict[str, bytes], set[tuple[str, str, tuple[str, ...]]]]:
    """(files of every odd or broken kind, what is to be found in them)."""
    pictures = iter([make_picture(seed) for seed in range(30)])
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    grey = np.asarray(make_picture(50).convert("L"), dtype=np.uint16)
    alpha = make_picture(51)
    alpha.putalpha(Image.fromarray(np.tile(np.linspace(90, 255, 96).astype(np.uint8), (72, 1))))
    frames = [next(pictures).quantize(32) for _ in range(2)]
    good = {
        "plain.jpg": encode(next(pictures), "JPEG"),
        "upper.JPEG": encode(next(pictures), "JPEG"),
        "cmyk.jpg": encode(next(pictures).convert("CMYK"), "JPEG"),
        "grey.jpg": encode(next(pictures).convert("L"), "JPEG"),
        "turned.jpg": encode(next(pictures), "JPEG", exif=exif),
        "progressive.jpg": encode(next(pictures), "JPEG", progressive=True),
        "camera.jpg": encode(next(pictures), "MPO", save_all=True, append_images=[next(pictures)]),
        "sixteen.png": encode(Image.fromarray(grey * 257), "PNG"),
        "sixteen_.tiff": encode(Image.fromarray((255 - grey) * 257), "TIFF"),
        "palette.png": encode(next(pictures).quantize(64), "PNG"),
        "alpha.png": encode(alpha, "PNG"),
        "first.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "scan.tif": encode(next(pictures), "TIFF", compression="tiff_lzw"),
        "web.webp": encode(next(pictures), "WEBP"),
        "bitmap.bmp": encode(next(pictures), "BMP"),
    }
    bad = {
        ("unreadable", "error", "cut.jpg"): encode(next(pictures), "JPEG")[:-400],
        ("unreadable", "error", "cut_.png"): encode(next(pictures), "PNG")[:-400],
        ("unreadable", "error", "empty.jpg"): b"",
        ("unreadable", "error", "text.jpg"): b"this is no picture\n",
        ("unreadable", "error", "page.png"): b"<!doctype html><title>404</title>",
        ("unreadable", "error", "bomb.png"): claim_size(encode(next(pictures), "PNG"), 50_000, 50_000),
        ("unreadable", "error", "bomb_.jpg"): claim_size(encode(next(pictures), "JPEG"), 65_000, 65_000),
        ("wrong_extension", "warning", "png.jpg"): encode(next(pictures), "PNG"),
        ("wrong_extension", "warning", "jpeg.png"): encode(next(pictures), "JPEG"),
        ("small", "warning", "small.png"): encode(make_picture(60, 40, 31), "PNG"),
        ("blank", "warning", "black.png"): encode(Image.new("RGB", (64, 48)), "PNG"),
        ("blank", "warning", "white.jpg"): encode(Image.new("RGB", (64, 48), "white"), "JPEG"),
    }
    expected = {(kind, severity, (name,)) for kind, severity, name in bad}
    return good | {name: content for (_, _, name), content in bad.items()}, expected


def test_torture_folder_gives_each_finding_in_one_pass_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, output = tmp_path / "set", tmp_path / "out"
    images, expected = make_torture()
    labels = {name: [number % 3] for number, name in enumerate(images)}
    write_split(root, "train", images, labels)
    test = {f"test{seed}.png": encode(make_picture(100 + seed), "PNG") for seed in range(3)}
    write_split(root, "test", test, {f"test{seed}.png": [seed] for seed in range(3)})
    before = hash_tree(root)

    assert not check_dataset(root, output=output)

    assert hash_tree(root) == before
    assert list_found(output) == expected
    texts = {Path(f["files"][0]).name: f["text"] for f in read_result(output)["findings"]}
    for name, text in {
        "cut.jpg": "truncated",
        "empty.jpg": "the file is empty",
        "text.jpg": "it is text, not an image",
        "page.png": "HTML",
        "bomb.png": "decompression bomb",
        "bomb_.jpg": "decompression bomb",
        "png.jpg": "its content is PNG",
        "jpeg.png": "its content is JPEG",
        "small.png": "40 x 31 pixels",
    }.items():
        assert text in texts[name]
        assert str(root) not in texts[name], "the file is named once, within the data set"
    unreadable = sorted(f"images/train-resized/{files[0]}" for kind, _, files in expected if kind == "unreadable")
    assert (output / "exclude.txt").read_text().splitlines() == ["# cannot be read", *unreadable]
    printed = capsys.readouterr().out
    assert f"{len(images)} train, 3 test images" in printed
    assert "3 classes: 'cat', 'dog', '<b>&\"\\'" in printed
    assert "7 errors: Images that cannot be read\n    images/train-resized/bomb.png: " in printed
    assert "\n    and 4 more\n    To do: Do what is said of each file, or get it anew." in printed
    assert "\ncheck failed: 7 errors and 5 warnings\n" in printed
    page = read_text(read_page(output))
    assert "✕ failed: 7 errors and 5 warnings" in page
    assert "images/train-resized/empty.jpg: the file is empty" in page


def test_facts_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    (tmp_path / "turned.jpg").write_bytes(encode(make_picture(0), "JPEG", exif=exif))
    fact = check.inspect_image(str(tmp_path / "turned.jpg"))
    assert (fact.problem, fact.file_type, fact.mode, fact.width, fact.height) == ("", "JPEG", "RGB", 72, 96)


def test_names_that_are_no_utf8_are_reported_all_the_same(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9%d.jpg" % number) for number in range(3)]
    images = {name: encode(make_picture(0), "JPEG") for name in names}
    write_split(tmp_path / "set", "train", images, {name: [0] for name in names})
    check_dataset(tmp_path / "set", output=tmp_path / "out")
    (duplicate,) = (f for f in read_result(tmp_path / "out")["findings"] if f["kind"] == "duplicate")
    assert [Path(file).name for file in duplicate["files"]] == names
    assert "caf\\udce90.jpg" in read_text(read_page(tmp_path / "out"))


# ---- copies ----


@pytest.fixture
def photo_set(photographs: Path, tmp_path: Path) -> Path:
    """24 and 9 different photographs; photograph k shows class k % 3, those from 12 on of train also class 2."""
    for split, count in (("train", 24), ("test", 9)):
        files = sorted((photographs / "coco-mini80" / "images" / f"{split}-resized").iterdir())[:count]
        images = {f"{split}{number:02}.jpg": file.read_bytes() for number, file in enumerate(files)}
        labels = {name: {k % 3} | ({2} if k >= 12 else set()) for k, name in enumerate(images)}
        write_split(tmp_path / "set", split, images, labels)
    return tmp_path / "set"


def test_clean_photographs_give_no_finding(photo_set: Path, tmp_path: Path) -> None:
    assert check_dataset(photo_set, output=tmp_path / "out")
    assert list_found(tmp_path / "out") == set()
    assert (tmp_path / "out" / "exclude.txt").read_text() == ""
    assert "✓ passed: nothing was found" in read_text(read_page(tmp_path / "out"))


def plant(root: Path, source: str, target: str, labels: Iterable[int], change: Callable[[Image.Image], bytes]) -> None:
    """Put a changed copy of `train/x.jpg` as `test/y.jpg`."""
    (from_split, from_name), (split, name) = source.split("/"), target.split("/")
    with Image.open(root / "images" / f"{from_split}-resized" / from_name) as image:
        write_split(root, split, {name: change(image)}, {name: labels})


def halve(image: Image.Image) -> bytes:
    return encode(image.resize((image.width // 2, image.height // 2)), "JPEG", quality=85)


def test_planted_copies_are_found_and_nothing_else(photo_set: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    lossless, poor = (lambda image: encode(image, "PNG")), (lambda image: encode(image, "JPEG", quality=25))
    plant(photo_set, "train/train00.jpg", "train/same.png", [0], lossless)  # duplicate: other bytes, equal pixels
    plant(photo_set, "train/train01.jpg", "train/poor.jpg", [1], poor)  # near duplicates: one cluster of three
    plant(photo_set, "train/train01.jpg", "train/half.jpg", [1], halve)
    plant(photo_set, "test/test03.jpg", "train/leak.png", [0], lossless)
    plant(photo_set, "train/train14.jpg", "test/nearly.webp", [2], lambda image: encode(image, "WEBP", quality=60))
    plant(photo_set, "train/train05.jpg", "train/conflict.png", [0, 2], lossless)
    plant(photo_set, "train/train07.jpg", "train/other.jpg", [0], halve)
    assert not check_dataset(photo_set, output=output)
    assert list_found(output) == {
        ("duplicate", "warning", ("same.png", "train00.jpg")),
        ("near_duplicate", "warning", ("half.jpg", "poor.jpg", "train01.jpg")),
        ("leak", "error", ("test03.jpg", "leak.png")),
        ("leak", "error", ("nearly.webp", "train14.jpg")),
        ("duplicate", "warning", ("conflict.png", "train05.jpg")),
        ("label_conflict", "error", ("conflict.png", "train05.jpg")),
        ("near_duplicate", "warning", ("other.jpg", "train07.jpg")),
        ("label_conflict", "warning", ("other.jpg", "train07.jpg")),
    }
    texts = {f["kind"]: f["text"] for f in read_result(output)["findings"] if f["severity"] == "error"}
    assert texts["leak"] == "nearly the same picture in test and train"
    assert texts["label_conflict"] == "the same picture, but only some show 'cat'"

    # of each copy one stays, of a leak the test image
    assert (output / "exclude.txt").read_text().splitlines() == ["# copies of pictures that stay"] + [
        f"images/train-resized/{name}"
        for name in ("leak.png", "poor.jpg", "train00.jpg", "train01.jpg", "train05.jpg", "train07.jpg", "train14.jpg")
    ]
    assert check_dataset(photo_set, output=tmp_path / "again", exclude_list=output / "exclude.txt")
    assert list_found(tmp_path / "again") == set()

    # the page shows each pair side by side, with what the labels say
    page = read_page(output)
    cards = page.findall(".//div[@class='found']/div")
    assert sorted(len(card.findall(".//img")) for card in cards) == [2, 2, 2, 2, 2, 2, 2, 3]
    (leak,) = (card for card in cards if "leak.png" in read_text(card))
    assert read_text(leak).startswith("the same picture in test and train")
    assert re.search(r"test03\.jpg.* test cat .*leak\.png.* train cat$", read_text(leak))


@pytest.mark.parametrize("picture", [make_picture(0), Image.new("L", (40, 40))], ids=["photo", "blank"])
def test_one_file_in_two_splits_is_a_leak(tmp_path: Path, picture: Image.Image) -> None:
    (tmp_path / "a.png").write_bytes(encode(picture, "PNG"))
    table = Table([str(tmp_path / "a.png")], np.array([[1, 0, 0]], dtype=np.int8), CLASSES)
    facts = check.inspect_images(table.paths)
    findings, excess = find_copies({"train": table, "test": table}, facts)
    assert findings == [Finding("leak", "error", "the same file in test and train", (table.paths[0],))]
    assert excess == table.paths


def flip(near_hash: bytes, bits: Iterable[int]) -> bytes:
    array = np.unpackbits(np.frombuffer(near_hash, dtype=np.uint8))
    array[list(bits)] ^= 1
    return np.packbits(array).tobytes()


def test_in_a_chain_of_near_duplicates_only_what_is_near_a_kept_one_goes() -> None:
    first = np.random.default_rng(0).bytes(32)
    hashes = {"b": first, "c": flip(first, range(20)), "d": flip(first, range(40)), "a": flip(first, range(100, 131))}
    facts = {path: ImageFacts(digest=path.encode(), near_hash=value) for path, value in hashes.items()}
    tables = {
        "train": Table(["b", "c", "d"], np.zeros((3, 1), dtype=np.int8), ("x",)),
        "val": Table(["a"], np.zeros((1, 1), dtype=np.int8), ("x",)),
    }
    findings, excess = find_copies(tables, facts)
    # a is near b, b near c, c near d: a of the val split stays, so b goes, c stays, d goes
    assert findings == [Finding("leak", "error", "nearly the same picture in val and train", ("a", "b", "c", "d"))]
    assert sorted(excess) == ["b", "d"]


def test_an_unknown_label_disagrees_with_nothing() -> None:
    facts = {path: ImageFacts(digest=b"same", near_hash=bytes(32)) for path in "ab"}
    known = Table(["a", "b"], np.array([[1, 0], [-1, 0]], dtype=np.int8), ("x", "y"))
    findings, _ = find_copies({"train": known}, facts)
    assert [finding.kind for finding in findings] == ["duplicate"]
    contradiction = Table(["a", "b"], np.array([[1, 0], [0, -1]], dtype=np.int8), ("x", "y"))
    findings, _ = find_copies({"train": contradiction}, facts)
    assert [finding.kind for finding in findings] == ["duplicate", "label_conflict"]
    assert findings[1].text == "the same picture, but only some show 'x'"


@pytest.mark.parametrize("limit", [50, 2**22])
def test_near_pairs_are_those_that_comparing_all_pairs_finds(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PAIRS_AT_ONCE", limit)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (300, 32), dtype=np.uint8)
    planted = [  # every distance around the limit, and one band in which many agree
        np.frombuffer(flip(hashes[k].tobytes(), rng.choice(256, k, replace=False)), dtype=np.uint8) for k in range(45)
    ]
    hashes = np.concatenate([hashes, planted, hashes[:5]])
    hashes[:100, :2] = 7
    bits = np.unpackbits(hashes, axis=1).astype(int)
    distances = (bits[:, None] != bits[None]).sum(axis=2)
    expected = np.argwhere(np.triu(distances <= 31, k=1))
    assert 30 < len(expected) < 60
    found = find_near_pairs(hashes)
    assert np.array_equal(found[np.lexsort(found.T[::-1])], expected), "each once"
    assert find_near_pairs(hashes[:0]).shape == (0, 2)


def test_masses_of_near_duplicates_are_cut_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "PAIRS_MOST", 100)
    monkeypatch.setattr(check, "PAIRS_AT_ONCE", 50)
    hashes = np.zeros((60, 32), dtype=np.uint8)
    hashes[:, 5] = np.arange(60)
    assert 50 < len(find_near_pairs(hashes)) < 300
    assert "check again" in capsys.readouterr().err


# ---- labels, classes, sources ----


def find_texts(output: Path, kind: str) -> list[str]:
    return [finding["text"] for finding in read_result(output)["findings"] if finding["kind"] == kind]


def test_label_errors_of_all_splits_and_broken_images_come_in_one_pass(dataset: Path, tmp_path: Path) -> None:
    labels = dataset / "labels"
    (labels / "train" / "train003.cls").write_text("0\n7\n")
    (labels / "train" / "train004.cls").write_text("1\ncat\n2\n?9\n")
    (labels / "test" / "test003.cls").write_text("cat\n")
    (dataset / "images" / "train-resized" / "train005.jpg").write_bytes(b"")
    (dataset / "images" / "test-resized" / "test001.jpg").write_bytes(b"x")
    output = tmp_path / "out"
    assert not check_dataset(dataset, output=output, options=dataset_readers.ReadOptions(cache_folder=tmp_path))
    unreadable = {("unreadable", "error", ("train005.jpg",)), ("unreadable", "error", ("test001.jpg",))}
    assert unreadable <= list_found(output)
    places = [re.match(r"(\w+): .*/(\w+)\.cls:(\d): ", text) for text in find_texts(output, "labels")]
    assert [place.groups() for place in places if place] == [
        ("train", "train003", "2"),
        ("train", "train004", "2"),
        ("train", "train004", "4"),
        ("test", "test003", "1"),
    ]
    attributes = read_result(output)["attributes"]
    assert (attributes["train_samples"], attributes["test_samples"]) == (40, 12), "no split is lost"
    assert "train004.cls:4: class index 9 is outside 0...2" in read_text(read_page(output))


@pytest.mark.parametrize("kind", ["csv", "mlcls", "label_rows"])
def test_each_wrong_line_is_found_and_the_others_are_read(tmp_path: Path, kind: str) -> None:
    root, output = tmp_path / "set", tmp_path / "out"
    (root / "images").mkdir(parents=True)
    for number in range(12):
        make_picture(number).save(root / "images" / f"{number}.png")
    paths = [f"images/{number}.png" for number in range(12)]
    if kind == "csv":
        (root / "classes.txt").write_text("cat\ndog\n")
        cells = ["cat", "cow", "dog", "cat;horse", *["cat;dog", "cat"] * 4]
        lines = ["image_path,labels", *map(",".join, zip(paths, cells, strict=True))]
        wrong = {3: "'cow' is no class", 5: "'horse' is no class"}
        (root / "train.csv").write_text("\n".join(lines))
    elif kind == "label_rows":
        (root / "classes.txt").write_text("cat\ndog\n")
        lines = ["image_path,label", *map(",".join, zip(paths, ["cat", "cow", *["dog", "cat"] * 5], strict=True))]
        wrong = {3: "'cow' is no class"}
        (root / "train.csv").write_text("\n".join(lines))
    else:
        (root / "label.txt").write_text("0 cat\n1 dog\n")
        lines = [f"{path}\t{cell}" for path, cell in zip(paths, ["1,0", "x,1", "1", *["0,1"] * 9], strict=True)]
        wrong = {2: "", 3: ""}
        (root / "train.txt").write_text("\n".join(lines))
    assert not check_dataset(root, kind, output=output)
    found = find_texts(output, "labels")
    assert len(found) == len(wrong)
    for text, (number, words) in zip(found, wrong.items(), strict=True):
        assert re.match(rf"train: .*train\.(csv|txt):{number}: ", text)
        assert words in text
    # the images of the wrong lines are no longer in the split, or have their other labels; all others are
    assert read_result(output)["attributes"]["train_samples"] == 12 - len(wrong)
    assert not any(check_dataset(root, kind, output=output) for _ in range(1)), "the files are as they were"


def test_of_a_list_with_an_error_in_each_line_the_first_are_named(tmp_path: Path) -> None:
    root, output = tmp_path / "set", tmp_path / "out"
    root.mkdir()
    for number in range(30):
        make_picture(number).save(root / f"{number}.png")
    (root / "label.txt").write_text("0 cat\n")
    (root / "train.txt").write_text("".join(f"{number}.png\t5\n" for number in range(30)))
    assert not check_dataset(root, "mlcls", output=output)
    found = find_texts(output, "labels")
    assert [re.findall(r"txt:(\d+)", text)[0] for text in found] == [str(number) for number in range(1, 21)]
    assert found[-1].endswith("; below it are more such lines")
    (root / "train.txt").write_text("".join(f"{number}.png\t5\n" for number in range(3)))
    assert not check_dataset(root, "mlcls", output=output)
    assert len(find_texts(output, "labels")) == 3, "not, too, that there is no image"


def test_images_of_a_split_that_cannot_be_read_are_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for number in range(6):
        make_picture(number).save(root / f"{number}.png")
    (root / "5.png").write_bytes(b"")
    (root / "train.csv").write_text("image_path,cat,cat\n" + "".join(f"{number}.png,1,0\n" for number in range(3)))
    (root / "val.csv").write_text("image_path,cat\n3.png,1\n4.png,0\n")
    output = root / "out"  # the pictures of an earlier check there are none of the data set's
    for _ in range(2):
        assert not check_dataset(root, "csv", output=output)
        assert ("unreadable", "error", ("5.png",)) in list_found(output)
        (text,) = find_texts(output, "labels")
        assert re.match(r"train: .*train\.csv:1: ", text)
        attributes = read_result(output)["attributes"]
        assert (attributes["train_samples"], attributes["val_samples"]) == (0, 2)
        printed = capsys.readouterr().out
        assert "read as csv, 2 val images" in printed
        assert "\n4 more images lie there: they were looked at, but the labels that name them cannot be read" in printed


def test_a_missing_image_is_a_finding_and_no_split_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, output = tmp_path / "set", tmp_path / "out"
    root.mkdir()
    for number in range(4):
        make_picture(number).save(root / f"{number}.png")
    (root / "val.csv").write_text("image_path,cat\n3.png,1\ngone.png,0\n")
    (root / "train.csv").write_text("image_path,cat\n0.png,1\n1.png,0\n2.png,0\nnone/x.png,1\n")
    (root / "1.png").write_bytes(b"")
    assert not check_dataset(root, output=output)
    assert {("missing", "error", ("gone.png",)), ("missing", "error", ("x.png",))} <= list_found(output)
    assert ("unreadable", "error", ("1.png",)) in list_found(output)
    assert (output / "exclude.txt").read_text().splitlines() == ["# cannot be read", "1.png"]
    attributes = read_result(output)["attributes"]
    assert (attributes["train_samples"], attributes["val_samples"]) == (4, 2)
    assert "train.csv:5: 'none/x.png' does not exist" in find_texts(output, "missing")
    assert "2 errors: Images that do not exist\n    gone.png: " in capsys.readouterr().out
    assert "none/x.png: " in read_text(read_page(output))


def test_a_missing_image_names_what_is_there_instead(tmp_path: Path) -> None:
    root, output = tmp_path / "set", tmp_path / "out"
    root.mkdir()
    for number in range(4):
        make_picture(number).save(root / f"{number}.png")
    (root / "3.png").rename(root / "3.PNG")
    for ending in ("jpg", "jpeg"):
        make_picture(4).save(root / f"4.{ending}")
    (root / "train.csv").write_text("image_path,cat\n0.png,1\n1.png,0\n2.png,0\n3.png,1\n4.png,1\n../up.png,0\n")
    assert not check_dataset(root, output=output)
    assert sorted(find_texts(output, "missing")) == [
        "train.csv:6: '4.png' does not exist; there are 4.jpeg and 4.jpg, with another ending",
        "train.csv:7: '../up.png' does not exist",
    ]
    (text,) = find_texts(output, "reading")
    assert "1 of them is there with other capital letters, such as 3.PNG" in text


def test_a_label_file_without_an_image_is_a_missing_image(dataset: Path, tmp_path: Path) -> None:
    images = dataset / "images" / "train-resized"
    (images / "train002.jpg").unlink()
    (images / "train004.jpg").rename(images / "train004.jp2")
    assert not check_dataset(dataset, output=tmp_path / "out")
    assert find_texts(tmp_path / "out", "missing") == [
        "labels/train/train002.cls has no image",
        "labels/train/train004.cls has no image; there is train004.jp2, with another ending, of a type that is not "
        "read",
    ]
    assert read_result(tmp_path / "out")["attributes"]["train_samples"] == 40
    (text,) = find_texts(tmp_path / "out", "type_not_read")
    assert text.endswith("1 file is not read: 1 .jp2")


def test_what_a_decoder_warns_of_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    decoding._listen()  # pytest has put its own listener and filters in place; it does so again for the next test
    images = {f"{number}.jpg": encode(make_picture(number), "JPEG") for number in range(8)}
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0"  # five entries, of which the first ends too soon
    for name in ("2.jpg", "5.jpg"):
        images[name] = images[name][:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + images[name][2:]
    write_split(tmp_path / "set", "train", images, {name: [int(name[0]) % 3] for name in images})
    assert check_dataset(tmp_path / "set", output=tmp_path / "out", num_threads=4)
    found = {files for kind, _, files in list_found(tmp_path / "out") if kind == "decoder_remark"}
    assert found == {("2.jpg",), ("5.jpg",)}
    assert all("Corrupt EXIF data" in text for text in find_texts(tmp_path / "out", "decoder_remark"))
    assert not capsys.readouterr().err, "nothing twice on the console"


def test_a_half_lost_jpeg_is_a_finding_and_in_the_exclude_list(tmp_path: Path) -> None:
    root, output = tmp_path / "set", tmp_path / "out"
    images = {f"{number}.jpg": encode(make_picture(number, 320, 240), "JPEG") for number in range(4)}
    images["2.jpg"] = images["2.jpg"][: len(images["2.jpg"]) // 2] + b"\xff\xd9"  # the end of an image, too soon
    write_split(root, "train", images, {name: [number % 3] for number, name in enumerate(images)})
    assert check_dataset(root, output=output), "a warning"
    assert ("damaged", "warning", ("2.jpg",)) in list_found(output)
    assert ["premature end" in text for text in find_texts(output, "damaged")] == [True]
    assert (output / "exclude.txt").read_text().splitlines() == ["# a part is lost", "images/train-resized/2.jpg"]
    check_dataset(root, output=tmp_path / "again", exclude_list=output / "exclude.txt")
    assert not find_texts(tmp_path / "again", "damaged")


def test_every_kind_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for kind, (title, advice) in KINDS.items():
        assert title[0].isupper(), kind
        assert advice.endswith("."), kind
    images = {"a.png": b"", "b.png": encode(Image.new("RGB", (20, 20)), "PNG"), "c.png": encode(make_picture(0), "PNG")}
    write_split(tmp_path / "set", "train", images, {"a.png": [0], "b.png": [1], "c.png": [2]})
    check_dataset(tmp_path / "set", output=tmp_path / "out")
    found = ["unreadable", "small", "blank"]
    assert read_result(tmp_path / "out")["advice"] == {kind: KINDS[kind].advice for kind in found}
    assert read_result(tmp_path / "out")["titles"] == {kind: KINDS[kind].title for kind in found}
    printed = " ".join(capsys.readouterr().out.split())
    page = read_text(read_page(tmp_path / "out"))
    for kind in found:
        assert f"To do: {KINDS[kind].advice}" in printed
        assert f"{KINDS[kind].title} To do: {KINDS[kind].advice}" in page


@pytest.mark.parametrize("columns", [80, 120])
def test_printed_lines_fit_the_terminal(
    dataset: Path, tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    names = [f"class number {number}" for number in range(30)]
    (dataset / "classes.txt").write_text("\n".join(names) + "\n")
    check_dataset(dataset, output=tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    longest_word = max(len(word) for line in lines for word in line.split())
    assert max(map(len, lines)) <= max(columns, longest_word + 6)
    printed = " ".join(" ".join(lines).split())
    assert "30 classes: 'class number 0', 'class number 1'," in printed
    assert "'class number 9', and 20 more" in printed


def test_nothing_to_check_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        check_dataset(tmp_path / "nowhere", output=tmp_path / "out")
    for folder in ("images/train-resized", "labels/train"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    with pytest.raises(InputError, match=r"set: no images to check; train: .*"):
        check_dataset(tmp_path / "set", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def make_table(targets: list[list[int]], prefix: str, groups: tuple[str, ...] | None = None) -> Table:
    paths = [f"{prefix}{number}" for number in range(len(targets))]
    return Table(paths, np.array(targets, dtype=np.int8), tuple("abcd"), groups)


def test_classes_that_a_split_lacks_and_images_without_labels_are_counted() -> None:
    tables = {
        "train": make_table([[1, 0, 0, 0], [1, 1, 0, -1], [0, 0, 0, 0], [0, 0, 0, -1]], "train"),
        "val": make_table([[1, 0, 1, 0]], "val"),
        "test": make_table([[1, 1, 0, -1]], "test"),
    }
    found = list(check.find_class_problems(tables))
    assert found == [
        *(Finding("classes", "warning", problem.text) for problem in judge_classes(tables)),
        Finding("no_labels", "warning", "1 of 4 in train, 0 of 1 in val, 0 of 1 in test"),
    ]
    assert "without a positive in the training split: 'c', 'd'" in found[0].text, "it is said once"
    learned = {"train": make_table([[1, 0, 1, 0], [0, 1, 0, 1]], "train"), "val": make_table([[1, 0, 0, 1]], "val")}
    (unmeasured,) = check.find_class_problems(learned)
    assert unmeasured == Finding("class_in_one_split", "warning", "2 of 4 in train only: 'b', 'c'")
    without_train = {"val": make_table([[1, 0, 1, 1], [0, 1, 0, 0]], "val"), "test": make_table([[1, 1, 0, 1]], "test")}
    (alone,) = check.find_class_problems(without_train)
    assert alone.text == "1 of 4 in val only: 'c'"
    to_predict = {"train": make_table([[1, 0, 1, 0], [0, 1, 0, 1]], "train"), "test": make_table([[-1] * 4], "test")}
    assert [*check.find_class_problems(to_predict)] == []


def test_a_source_in_two_splits_is_a_leak() -> None:
    rows = [[1, 0, 0, 0]] * 3
    tables = {
        "train": make_table(rows, "train", ("video 1", "video 2", "video 1")),
        "val": make_table(rows, "val", ("video 3", "", "")),
        "test": make_table(rows, "test", ("", "video 1", "video 4")),
    }
    text = "images of source video 1: 2 in train, 1 in test"
    assert list(check.find_source_leaks(tables)) == [
        Finding("source_leak", "error", text, ("train0", "train2", "test1"))
    ]
    assert not list(check.find_source_leaks({"train": make_table(rows, "train")}))


def test_sources_and_unknown_labels_of_a_csv(tmp_path: Path) -> None:
    root, output = tmp_path / "set", tmp_path / "out"
    root.mkdir()
    for number in range(6):
        make_picture(number).save(root / f"#{number}.png")
    header = "image_path,cat,dog,group\n"
    (root / "train.csv").write_text(header + "#0.png,1,,a\n#1.png,0,1,b\n#2.png,1,1,\n")
    (root / "val.csv").write_text(header + "#3.png,1,0,c\n#0.png,1,1,d\n")
    (root / "test.csv").write_text(header + "#4.png,1,1,b\n#5.png,1,1,\n")
    assert not check_dataset(root, output=output)
    one_sided = ("classes", "warning", ())  # no training image is known to be without a dog
    leak = ("leak", "error", ("#0.png",))
    assert list_found(output) == {leak, ("source_leak", "error", ("#1.png", "#4.png")), one_sided}
    result = read_result(output)
    assert (result["attributes"]["label_file"], result["attributes"]["val_samples"]) == (None, 2)
    assert (output / "exclude.txt").read_text().splitlines()[1:] == ["./#0.png"], "a # would begin a comment"
    train = dataset_readers.read_dataset(root, split="train")
    assert len(dataset_readers.exclude(train, output / "exclude.txt", root)) == 2

    # a pattern takes the place of the column: each number is a source
    assert not check_dataset(root, output=output, group_pattern=r"#(\d)")
    assert list_found(output) == {leak, ("source_leak", "error", ("#0.png",)), one_sided}


def test_an_image_of_two_splits_in_one_csv_is_a_leak(tmp_path: Path) -> None:
    root, output = tmp_path / "set", tmp_path / "out"
    root.mkdir()
    for number in range(4):
        make_picture(number).save(root / f"{number}.png")
    rows = ["0.png,cat,train", "1.png,dog,train", "0.png,dog,test", "2.png,cat,test", "3.png,dog,test"]
    (root / "all.csv").write_text("\n".join(["image,label,split", *rows]))
    assert not check_dataset(root, output=output)
    assert {("leak", "error", ("0.png",)), ("label_conflict", "error", ("0.png",))} <= list_found(output)
    assert not find_texts(output, "labels")
    assert (output / "exclude.txt").read_text().splitlines()[1:] == ["0.png"]


# ---- what is written ----


def test_json_has_paddlex_keys_and_the_samples_are_the_pictures_with_labels(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for _ in range(2):  # the second check replaces the pictures of the first
        check_dataset(dataset, output=output)
    result = read_result(output)
    assert list(result) == [
        "done_flag", "check_pass", "attributes", "analysis", "class_counts", "dataset_path", "show_type",
        "dataset_type", "findings", "titles", "advice",
    ]  # fmt: skip
    attributes = result["attributes"]
    assert list(attributes) == [
        "label_file", "num_classes", "train_samples", "train_sample_paths", "val_samples", "val_sample_paths",
        "test_samples", "test_sample_paths",
    ]  # fmt: skip
    assert (result["done_flag"], result["show_type"], result["dataset_type"]) == (True, "image", "MLClsDataset")
    assert result["dataset_path"] == str(dataset)
    assert result["check_pass"] == all(finding["severity"] != "error" for finding in result["findings"])
    assert (output / attributes["label_file"]).samefile(dataset / "classes.txt")
    assert (attributes["num_classes"], attributes["train_samples"], attributes["test_samples"]) == (3, 40, 12)
    assert (attributes["val_samples"], attributes["val_sample_paths"]) == (0, []), "test images are not called val"
    with Image.open(output / result["analysis"]["histogram"]) as image:
        assert image.format == "PNG"
    paths = attributes["train_sample_paths"] + attributes["test_sample_paths"]
    assert [len(attributes[f"{key}_sample_paths"]) for key in ("train", "test")] == [10, 10]
    assert len(set(paths)) == 20
    assert {output / path for path in paths} == set((output / "check_dataset" / "demo_img").iterdir())
    for path in paths:
        split, _, stem = Path(path).stem.split("_")
        with Image.open(output / path) as sample:
            drawn = np.asarray(sample.convert("RGB")).astype(int)
        source = decoding.decode_image(dataset / "images" / f"{split}-resized" / f"{stem}.jpg")
        height, width, _ = source.shape
        top, left = (240 - height) // 2, (320 - width) // 2
        assert np.abs(drawn[top : top + height, left : left + width] - source).mean() < 12, "the picture"
        assert (drawn[240:] > 180).sum() > 50, "light letters below it"


def test_labels_of_a_sample_in_words() -> None:
    def describe(*targets: int) -> list[str]:
        return check_report.describe_labels(np.array(targets, dtype=np.int8), tuple("abcde"))

    assert describe(1, 0, 1, -1, 0) == ["a", "c", "d?"]
    assert describe(1, -1, -1, -1, -1) == ["a", "4 unknown"]
    assert describe(0, 0, 0, 0, 0) == ["no label"]


def make_result(tmp_path: Path, num_classes: int) -> Result:
    """A data set of drawn pictures with random labels, as a check would find it."""
    rng = np.random.default_rng(num_classes)
    names = tuple(f"class <{number}> & $x_{number}$" for number in range(num_classes))
    tables = {}
    for split, count in (("train", 30), ("val", 12), ("test", 20)):
        paths = [str(tmp_path / f"{split} {number}.png") for number in range(count)]
        for number, path in enumerate(paths):
            make_picture(100 * len(split) + number, 60 + number, 50).save(path)
        tables[split] = Table(paths, rng.choice([-1, 0, 1], (count, num_classes), p=[0.1, 0.6, 0.3]), names)
    facts = check.inspect_images([path for table in tables.values() for path in table.paths])
    return Result(tmp_path, "csv", tables, facts, [])


@pytest.mark.parametrize("num_classes", [1, 3, 80, 130])
def test_page_and_histogram_hold_the_numbers(tmp_path: Path, num_classes: int) -> None:
    result = make_result(tmp_path, num_classes)
    check_report.save_report(result, tmp_path / "out" / "check_dataset")
    page = read_page(tmp_path / "out")
    present = {split: table.targets == 1 for split, table in result.tables.items()}
    counts = np.array([matrix.sum(axis=0) for matrix in present.values()])
    names = result.tables["train"].classes

    rows = {cells[0]: cells[1:] for cells in ([read_text(cell) for cell in row] for row in page.iter("tr"))}
    for c, name in enumerate(names):
        assert rows[str(c)] == [name, "", *(str(count) for count in counts[:, c])]
    unknown = [f"{(table.targets == -1).mean():.1%}" for table in result.tables.values()]
    for split, share in zip(present, unknown, strict=True):
        per_image = present[split].sum(axis=1)
        expected = [str(len(per_image)), f"{per_image.mean():.2f}", str((per_image == 0).sum()), share, "0"]
        assert rows[split] == expected
    assert rows["shorter side"] == ["50", "50", "50"]
    assert rows["longer side"] == ["60", f"{np.median([60 + n for k in (30, 12, 20) for n in range(k)]):.0f}", "89"]
    assert rows["PNG RGB"] == ["62"]

    titles = [title for element in page.iter() if (title := element.get("title"))]
    everything = np.concatenate(list(present.values()))
    shown = np.argsort(-everything.sum(axis=0), kind="stable")[:100]
    pairs = [(i, j) for i in shown for j in shown if i != j and (everything[:, i] & everything[:, j]).any()]
    assert sum("images with" in title for title in titles) == len(pairs)
    for i, j in pairs[:50]:
        share = everything[everything[:, i], j].mean()
        assert f"{share:.1%} of the {everything[:, i].sum()} images with {names[i]} show {names[j]}" in titles
    histogram = np.bincount(present["val"].sum(axis=1))
    for labels, count in enumerate(histogram[:12]):
        assert f"val: {count} images ({count / 12:.1%}) with {labels} labels" in titles

    axes = check_report.draw_histogram(result.tables).axes[0]
    heights = [bar.get_height() for container in axes.containers for bar in container]
    assert heights == counts.ravel().tolist()
    assert len(axes.get_xticklabels()) == num_classes


def test_of_many_classes_the_most_frequent_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_report, "MAX_CLASS_BARS", 20)
    monkeypatch.setattr(check_report, "MAX_CLASS_ROWS", 30)
    result = make_result(tmp_path, 60)
    counts = np.sum([(table.targets == 1).sum(axis=0) for table in result.tables.values()], axis=0)
    order = np.argsort(-counts, kind="stable")
    check_report.save_report(result, tmp_path / "out" / "check_dataset")
    rows = [[read_text(cell) for cell in row] for row in read_page(tmp_path / "out").iter("tr")]
    names = result.tables["train"].classes
    numbered = [cells[0] for cells in rows if len(cells) > 1 and cells[0].isdigit() and cells[1] in names]
    assert numbered == [str(c) for c in order[:30]]
    axes = check_report.draw_histogram(result.tables).axes[0]
    shown = np.sort(order[:20])
    heights = [bar.get_height() for bar in axes.containers[0]]
    assert heights == (result.tables["train"].targets == 1).sum(axis=0)[shown].tolist()
    assert axes.get_title(loc="left") == "the 20 most frequent of 60 classes"
    assert check_report.count_positives(result.tables)[names[5]] == {
        split: int((table.targets[:, 5] == 1).sum()) for split, table in result.tables.items()
    }


def list_class_samples(output: Path) -> dict[str, list[tuple[Path, str, list[str]]]]:
    """{class: (file, name of the image, its labels)} of the pictures of each class on the page."""
    cards: dict[str, list[tuple[Path, str, list[str]]]] = {}
    for card in read_page(output).findall(".//div[@class='classes']/div"):
        name = card.findtext("div/b/bdi") or ""
        cards[name] = []
        for image in card.iter("img"):
            title, source = image.get("title") or "", image.get("src") or ""
            image_name, _, labels = title.partition(": ")
            cards[name].append((output / "check_dataset" / source, image_name, labels.split(", ")))
    return cards


def test_the_page_shows_pictures_of_each_class(dataset: Path, tmp_path: Path) -> None:
    output, table = tmp_path / "out", dataset_readers.read_dataset(dataset, split="train")
    broken = next(path for path in table.paths)
    Path(broken).write_bytes(b"")
    check_dataset(dataset, output=output)
    shown = list_class_samples(output)
    check_dataset(dataset, output=output, num_threads=1)
    assert list_class_samples(output) == shown, "the same pictures again"
    counts = (table.targets == 1).sum(axis=0)
    assert list(shown) == [table.classes[c] for c in np.argsort(-counts, kind="stable")]
    row_of = {Path(path).relative_to(dataset).as_posix(): row for row, path in enumerate(table.paths)}
    for name, pictures in shown.items():
        assert 5 <= len(pictures) <= 6, "one of six may be the broken one"
        assert len({image for _, image, _ in pictures}) == len(pictures)
        for file, image, labels in pictures:
            row = row_of[image]
            assert name in labels
            assert labels == [table.classes[c] for c in np.flatnonzero(table.targets[row] == 1)]
            with Image.open(file) as small:
                assert max(small.size) <= 176
                pixels = np.asarray(small).astype(int)
            assert np.abs(pixels - decoding.decode_image(table.paths[row])).mean() < 8
    used = {file for pictures in shown.values() for file, _, _ in pictures}
    assert set((output / "check_dataset" / "class_img").iterdir()) == used, "none of the check before is left"


def test_of_very_many_classes_the_most_frequent_have_fewer_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((5000, 40)) < rng.random(40)).astype(np.int8)
    targets[:, 7], targets[:, 9] = 0, 0
    targets[4321, 7] = 1
    table = Table([str(row) for row in range(5000)], targets, tuple(map(str, range(40))))
    chosen = check_report.choose_class_samples({"train": table, "test": table})
    assert {c: len(paths) for c, paths in chosen.items()} == {**dict.fromkeys(set(range(40)) - {9}, 6), 7: 1}
    assert chosen[7] == ["4321"]
    for c, paths in chosen.items():
        assert targets[[int(path) for path in paths], c].all()
        assert len(set(paths)) == len(paths)
    assert np.mean([int(path) for paths in chosen.values() for path in paths]) > 2000, "from all of the split"
    monkeypatch.setattr(check_report, "MAX_CLASS_SAMPLES", 30)
    fewer = check_report.choose_class_samples({"val": table})
    assert set(fewer) == set(np.argsort(-targets.sum(axis=0), kind="stable")[:10].tolist())
    assert {len(paths) for paths in fewer.values()} == {3}
    assert check_report.choose_class_samples({}) == {}


def test_missing_package_names_the_file_to_install(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imagehash", None)
    with pytest.raises(InputError, match=r"pip install -r requirements-data\.txt"):
        check_dataset(dataset, output=tmp_path / "out")
