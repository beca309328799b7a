"""dataset/tar_shards/: webdataset reads what is written; each image comes from its bytes alone, from elsewhere once."""

from __future__ import annotations

import base64
import csv
import functools
import http.server
import io
import itertools
import json
import multiprocessing
import os
import re
import resource
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset import WebDataset  # pyright: ignore[reportAttributeAccessIssue]
from webdataset.tariterators import base_plus_ext

import config
from dataset.decoding import decode_image
from dataset.formats import FORMATS
from dataset.formats.base import ReadOptions
from dataset.formats.webdataset import COCO_NAMES, decode_name, encode_name, hash_names
from dataset.loading import EpochBatches, make_loader, shuffle_blocks
from dataset.resize_rules import make_eval_transform
from dataset.table import Table
from dataset.tar_shards import read_bytes, reading, resuming, scanning, split_member, writing
from dataset.tar_shards.addresses import HERE, Address, open_address
from dataset.tar_shards.index import list_shards
from dataset.tar_shards.reading import find_blocks, stamp_images
from dataset.tar_shards.resuming import BrokenTransfer
from dataset.tar_shards.scanning import scan_shards
from dataset_readers import read_dataset
from tools.convert import convert_dataset
from tools.split import split_dataset
from utils import InputError

Members = dict[str, bytes]


def write_tar(path: Path, members: Members) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def read_tars(root: Path, split: str) -> Members:
    """{path of the member: bytes} as the standard library reads them."""
    found = {}
    for shard in sorted(root.glob(f"{split}-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                found[f"{shard}/{member.name}"] = content.read()
    return found


@pytest.fixture
def shards(shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small data set in shards of five images: eight for training, three for testing."""
    monkeypatch.setattr(writing, "SHARD_IMAGES", 5)
    convert_dataset(shared_dataset, "auto", "webdataset", tmp_path / "shards")
    return tmp_path / "shards"


# ---- what is written ----

ODD_NAMES = ["a b.jpg", "z.z.JPEG", "é, é.png", "v1.0/x.y/1.jpg", "__x__/a.png", "50%/%2E.jpg", "l\nb.jpg"]
ODD_NAMES += [f"{'n' * 200}.jpg"]


def test_webdataset_reads_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_IMAGES", 3)
    rng = np.random.default_rng(0)
    classes = ("dog", "traffic light", 'a "b"; c')
    paths = [tmp_path / f"{index}" for index in range(len(ODD_NAMES))]
    for path in paths:
        path.write_bytes(rng.bytes(int(rng.integers(0, 2000))))
    targets = rng.integers(-1, 2, (len(paths), 3)).astype(np.int8)
    table = Table([str(path) for path in paths], targets, classes)
    names = FORMATS["webdataset"].name_images(table, ODD_NAMES)
    root = tmp_path / "100%d"
    FORMATS["webdataset"].write(table, root, "train", names)
    assert sorted(path.name for path in root.iterdir()) == [
        "classes.txt", "train-000000.tar", "train-000001.tar", "train-000002.tar", "train.index.csv",
    ]  # fmt: skip
    found = {}
    files = [str(path) for path in sorted(root.glob("*.tar"))]
    for sample in WebDataset(files, shardshuffle=False, empty_check=False):
        (ending,) = {key for key in sample if key[0] != "_"} - {"json"}
        found[f"{sample['__key__']}.{ending}"] = (sample[ending], json.loads(sample["json"]))
    expected = {}
    for name, path, row in zip(names, paths, targets, strict=True):
        said = {"labels": [classes[column] for column in np.flatnonzero(row == 1)]}
        if (row == -1).any():
            said["unknown"] = [classes[column] for column in np.flatnonzero(row == -1)]
        expected[name.replace("JPEG", "jpeg")] = (path.read_bytes(), said)  # webdataset's types are in lower case
    assert found == expected

    again = read_dataset(root, split="train")
    assert again.classes == classes
    short = FORMATS["webdataset"].shorten_names(again, [path.partition(".tar/")[2] for path in again.paths])
    rows = dict(zip(short, zip(map(read_bytes, again.paths), again.targets.tolist(), strict=True), strict=True))
    assert rows == dict(
        zip(ODD_NAMES, zip((p.read_bytes() for p in paths), targets.tolist(), strict=True), strict=True)
    )


PARTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=8)


@given(folders=st.lists(PARTS, max_size=2), stem=PARTS, ending=st.sampled_from(["jpg", "PNG"]))
def test_any_name_is_one_key_and_one_type_for_webdataset(folders: list[str], stem: str, ending: str) -> None:
    name = "/".join([*folders, f"{stem}.{ending}"])
    member = encode_name(name)
    assert base_plus_ext(member) == (member.rpartition(".")[0], ending)
    assert decode_name(member) == name


@given(name=st.text("%25E_/.\nab", min_size=1, max_size=10).map(lambda text: f"{text}.jpg"))
def test_names_of_others_are_kept_where_they_are_no_code(name: str) -> None:
    assert decode_name(name) == name or encode_name(decode_name(name)) == name
    assert encode_name(decode_name(encode_name(name))) == encode_name(name)


def test_the_index_says_where_each_image_is(shards: Path, shared_dataset: Path) -> None:
    for name, count in (("train", 40), ("test", 12)):
        table, members = read_dataset(shards, split=name), read_tars(shards, name)
        assert table.paths == sorted(path for path in members if path.endswith(".jpg"))
        assert [read_bytes(path) for path in table.paths] == [members[path] for path in table.paths]
        files = read_dataset(shared_dataset, split=name)
        assert table.fingerprint() == files.fingerprint()
        assert [read_bytes(path) for path in files.paths] == [Path(path).read_bytes() for path in files.paths]
        assert len(table) == count
    assert [name for name in list_shards(shards) if name.startswith("train")] == [f"train-{n:06}.tar" for n in range(8)]


def test_shards_of_at_most_so_many_bytes(shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 5000)
    convert_dataset(shared_dataset, "auto", "webdataset", tmp_path / "shards", splits=["train"])
    sizes: dict[str, list[int]] = {}
    for path in read_dataset(tmp_path / "shards", split="train").paths:
        sizes.setdefault(path.partition(".tar/")[0], []).append(len(read_bytes(path)))
    assert len(sizes) > 3
    assert all(sum(own[:-1]) < 5000 for own in sizes.values())


def test_an_image_that_cannot_be_read_leaves_nothing(dataset: Path, tmp_path: Path) -> None:
    (dataset / "images" / "train-resized" / "train007.jpg").unlink()
    (dataset / "images" / "train-resized" / "train007.jpg").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"cannot read image .*train007\.jpg: No such file"):
        convert_dataset(dataset, "auto", "webdataset", tmp_path / "shards", splits=["train"])
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_without_the_library(shared_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(InputError, match=r"needs webdataset: pip install -r requirements-shards\.txt"):
        convert_dataset(shared_dataset, "auto", "webdataset", tmp_path / "shards")


# ---- the index ----


def test_an_index_is_made_once_and_is_the_same(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = shards / "train.index.csv"
    before, table = file.read_bytes(), read_dataset(shards, split="train")
    file.unlink()
    assert read_dataset(shards, split="train").targets.tolist() == table.targets.tolist()
    assert file.read_bytes() == before
    monkeypatch.setattr("dataset.tar_shards.index.scan_shards", None)
    assert read_dataset(shards, split="train").paths == table.paths


def test_without_class_names_they_are_what_is_named_in_any_split(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", {"./1.jpg": b"", "./1.json": b'{"labels": ["dog"]}'})
    write_tar(tmp_path / "val-0.tar", {"1.jpg": b"", "1.json": b'{"labels": ["cat"], "unknown": ["emu"]}'})
    table = read_dataset(tmp_path, split="train", classes=("of", "config"))
    assert (table.classes, table.targets.tolist()) == (("cat", "dog", "emu"), [[0, 1, 0]])
    assert table.paths == [f"{tmp_path}/train-0.tar/1.jpg"]


def test_class_indices_name_the_classes_of_the_caller(tmp_path: Path) -> None:
    write_tar(tmp_path / "test-0.tar", {"1.png": b"", "1.cls": b"1", "2.png": b"", "2.cls": b"0\n1\n"})
    table = read_dataset(tmp_path, classes=("cat", "dog"))
    assert (table.classes, table.targets.tolist()) == (("cat", "dog"), [[0, 1], [1, 1]])


def test_class_indices_that_nothing_names_are_labels_by_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "train-0.tar", {"1.jpg": b"", "1.cls": b"10", "2.jpg": b"", "2.json": b'{"labels": [3]}'})
    write_tar(tmp_path / "val-0.tar", {"1.jpg": b"", "1.cls": b"?2"})
    assert hash_names(config.CLASSES) == COCO_NAMES, "which nobody has edited here"
    for classes in (config.CLASSES, None):
        table = read_dataset(tmp_path, split="train", classes=classes)
        assert (table.classes, table.targets.tolist()) == (("label_2", "label_3", "label_10"), [[0, 0, 1], [0, 1, 0]])
        assert read_dataset(tmp_path, split="val", classes=classes).targets.tolist() == [[-1, 0, 0]]
    said = capsys.readouterr().err
    assert f"{tmp_path}: nothing names its classes, so they are label_2, label_3, label_10: write their names" in said
    assert said.count("warning:") == 1
    table = read_dataset(tmp_path, split="train", classes=[f"c{number}" for number in range(11)])
    assert (table.classes, table.targets.tolist()) == (("c10", "c2", "c3"), [[1, 0, 0], [0, 0, 1]])
    assert capsys.readouterr().err == ""


def test_another_list_of_classes_needs_no_other_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "train-0.tar", {"1.jpg": b"", "1.cls": b"0 ?2"})
    for names in (("cat", "dog", "emu"), ("dog", "cat", "emu"), ("x", "y", "dog")):
        (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in names))
        table = read_dataset(tmp_path, split="train")
        assert (table.classes, table.targets.tolist()) == (names, [[1, 0, -1]])
        monkeypatch.setattr("dataset.tar_shards.index.scan_shards", None)


def test_names_beside_indices_that_nothing_names_stop(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", {"1.jpg": b"", "1.json": b'{"labels": ["cat"]}', "2.jpg": b"", "2.cls": b"2"})
    message = r"labels are names, such as 'cat', and indices, such as 2, which nothing names: write .*/classes\.txt"
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path, split="train", classes=config.CLASSES)
    (tmp_path / "classes.txt").write_text("dog\ncat\nemu\n")
    assert read_dataset(tmp_path, split="train").targets.tolist() == [[0, 1, 0], [0, 0, 1]]


GOOD = {"1.jpg": b"x", "1.cls": b"0"}
HEADER = "shard,member,offset,size,labels,unknown,indices,shard_bytes,shard_changed\n"
MISTAKES = [
    # members of train-0.tar, the index, the message
    ({"1.jpg": b""}, None, r'train-0\.tar/1\.jpg has neither a \.json with "labels" nor a \.cls'),
    ({"1.jpg": b"", "1.json": b"{}"}, None, r"has neither a \.json"),
    ({"1.jpg": b"", "1.json": b"{"}, None, r"1\.jpg:1: .*this is not JSON"),
    ({"1.jpg": b"", "1.json": b'{"labels": "dog"}'}, None, r"1\.jpg: its labels are 'dog', not a list"),
    (
        {"1.jpg": b"", "1.json": b'{"labels": ["dgo"]}'},
        None,
        r"index\.csv: train-0\.tar/1\.jpg: 'dgo' is no class; the nearest: dog",
    ),
    ({"1.jpg": b"", "1.cls": b"2"}, None, r"index\.csv: train-0\.tar/1\.jpg: class index 2 is outside 0\.\.\.1"),
    ({"1.jpg": b"", "1.cls": b"-1"}, None, r"1\.jpg: -1 is neither a class name nor a class index"),
    ({"1.jpg": b"", "1.cls": b"dog"}, None, r"its labels are no class indices: invalid literal"),
    ({"1.jpg": b"", "1.cls": b"0 ?0"}, None, r"a class is both present and unknown"),
    ({"1.cls": b"0"}, None, r"train-0\.tar holds no images"),
    ({"../1.jpg": b"", "../1.cls": b"0"}, None, r"'\.\./1\.jpg' is no name of a member"),
    (None, None, r"train-0\.tar is no whole tar file without compression"),
    (GOOD, "shard,member\n", r"index\.csv:1: the columns are shard, member, not shard, member, offset"),
    (GOOD, HEADER, r"train\.index\.csv lists no images"),
    (GOOD, f"{HEADER}train-0.tar,1.jpg,512,1,cat\n", r"5 cells, but 9 columns: train-0\.tar,1\.jpg"),
    (GOOD, f"{HEADER}train-0.tar,1.jpg,x,1,cat,,,STAMP\n", r"cannot read .*invalid literal.*delete it to have it made"),
    (GOOD, f"{HEADER}train-0.tar,1.jpg,512,1,cat,,,x,1\n", r"cannot read .*invalid literal.*delete it to have it made"),
    (GOOD, f"{HEADER}train-0.tar,1.jpg,{'5' * 5000},1,cat,,,STAMP\n", r"cannot read .*4300 digits.*delete it"),
    (
        GOOD,
        f"{HEADER}train-0.tar,1.jpg,512,1,,,,STAMP\ntrain-1.tar,1.jpg,512,1,,,,1,1\n",
        r"1\.tar is in the index, but",
    ),
    (GOOD, f"{HEADER}train-0.tar,1.jpg,512,1,,,,STAMP\ntrain-0.tar,1.jpg,512,1,,,,,\n", r"tar: 1\.jpg is in it twice"),
    (GOOD, f"{HEADER}train-0.tar,1.jpg,512,99999,cat,,,STAMP\n", r"train-0\.tar is shorter than its index says"),
    (GOOD, f"{HEADER}train-0.tar,1.jpg,{2**62},99999,cat,,,STAMP\n", r"train-0\.tar is shorter than its index says"),
    (GOOD, f"{HEADER}train-0.tar,1.jpg,-512,1,cat,,,STAMP\n", r"'1\.jpg' begins at byte -512 and .* no image does"),
    (GOOD, f"{HEADER}train-0.tar,1.jpg,{2**63},1,cat,,,STAMP\n", rf"begins at byte {2**63} and has 1 bytes, which no"),
    (GOOD, f"{HEADER}train-0.tar,1.jpg,512,{2**63 - 600},cat,,,STAMP\n", r"begins at byte 512 and has 9\d* bytes"),
    (GOOD, f"{HEADER}train-0.tar,1.jpg,512,-1,cat,,,STAMP\n", r"begins at byte 512 and has -1 bytes"),
    (GOOD, f"{HEADER}train-0.tar,1.jpg,1{'0' * 4200},1,cat,,,STAMP\n", r"begins at byte 10{24} and"),
    (GOOD, f"{HEADER}train-0.tar,../1.jpg,512,1,cat,,,STAMP\n", r"'\.\./1\.jpg' is no name of a member"),
    (GOOD, f"{HEADER}train-0.tar,/etc/1.jpg,512,1,cat,,,STAMP\n", r"'/etc/1\.jpg' is no name of a member"),
    (GOOD, f"{HEADER}train-0.tar,1.jpg,512,1,cot,,,STAMP\n", r"'cot' is no class; the nearest: cat"),
]


@pytest.mark.parametrize(("members", "index", "message"), MISTAKES)
def test_mistakes_are_told(tmp_path: Path, members: Members | None, index: str | None, message: str) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    if members is None:
        (tmp_path / "train-0.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    else:
        write_tar(tmp_path / "train-0.tar", members)
    if index is not None:
        stat = (tmp_path / "train-0.tar").stat()
        (tmp_path / "train.index.csv").write_text(index.replace("STAMP", f"{stat.st_size},{stat.st_mtime_ns}"))
    with pytest.raises(InputError, match=message) as error:
        read_dataset(tmp_path, "webdataset", "train")
    assert "\n" not in str(error.value)
    if index is None and not re.search("no class;|both|is no name|outside", message):
        assert not (tmp_path / "train.index.csv").exists()


# ---- images of a shard as of files ----


def test_batches_are_those_of_the_files(shards: Path, shared_dataset: Path) -> None:
    batches = []
    for root, num_workers in ((shared_dataset, 0), (shards, 0), (shards, 2)):
        table = read_dataset(root, split="train")
        loader = make_loader(table, make_eval_transform("squash", 32), 8, shuffle=True, seed=3, num_workers=num_workers)
        batches.append([(batch.images.numpy(), batch.targets.numpy()) for batch in loader])
    assert [len(each) for each in batches] == [5, 5, 5]
    for (images, targets), (same_images, same_targets) in zip(*batches[1:], strict=True):
        assert np.array_equal(images, same_images)
        assert np.array_equal(targets, same_targets)
    of_files, of_shards = (
        sorted((image.tobytes(), target.tolist()) for batch in each for image, target in zip(*batch, strict=True))
        for each in batches[:2]
    )
    assert of_files == of_shards, "in another order, by shards"


def test_another_process_finds_the_index_by_itself(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = read_dataset(shards, split="train")
    expected = [read_bytes(path) for path in table.paths]
    monkeypatch.setattr(reading, "_shards", {})  # as in one that was not forked
    assert [read_bytes(path) for path in table.paths] == expected


def test_many_threads_and_more_shards_than_stay_open(tmp_path: Path) -> None:
    count = 3 * reading.SHARDS_OPEN
    for number in range(count):
        write_tar(tmp_path / f"train-{number}.tar", {"1.jpg": b"%d" % number * 1000, "1.cls": b"0"})
    paths = read_dataset(tmp_path, split="train", classes=("x",)).paths
    rows = np.random.default_rng(0).integers(0, count, 20_000)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: read_bytes(paths[row]), rows, chunksize=50))
    numbers = [int(Path(path).parent.stem.removeprefix("train-")) for path in paths]
    assert all(data == b"%d" % numbers[row] * 1000 for row, data in zip(rows, found, strict=True))
    assert len([link for link in os.scandir("/proc/self/fd") if ".tar" in os.path.realpath(link.path)]) <= count / 3


def test_a_damaged_member_is_told_by_its_path(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", {"a.jpg": b"no image", "a.cls": b"0"})
    (path,) = read_dataset(tmp_path, split="train", classes=("x",)).paths
    with pytest.raises(InputError, match=rf"cannot read image {path}: it is text, not an image"):
        decode_image(path)
    with pytest.raises(InputError, match=r"cannot read image .*b\.jpg: the index lists no such image"):
        decode_image(f"{tmp_path}/train-0.tar/b.jpg")
    os.truncate(tmp_path / "train-0.tar", 515)
    with pytest.raises(InputError, match=r"its shard ends before"):
        decode_image(path)


def test_a_shard_cut_between_two_images_is_told(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", {"1.jpg": b"", "1.cls": b"0", "2.jpg": b"", "2.cls": b"0"})
    os.truncate(tmp_path / "train-0.tar", 3 * 512)  # two headers and a block of content
    with pytest.raises(InputError, match=r"train-0\.tar is cut short: the mark that ends a tar file is missing"):
        read_dataset(tmp_path, split="train", classes=("x",))
    assert not (tmp_path / "train.index.csv").exists()


def damage_end(path: Path, kind: str) -> None:
    """A header in the middle that is zero; zeros where the rest was never written; two files in one."""
    data = bytearray(path.read_bytes())
    if kind == "header":
        data[2048:2560] = bytes(512)  # of the second image
    elif kind == "rest":
        data[2048:] = bytes(scanning.MOST_PADDING + 1024)
    elif kind == "joined":
        data = data * 2
    else:  # as `tar -b 1024` leaves it
        data += bytes(512 * 1024)
    path.write_bytes(data)


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("header", "train-0.tar is damaged, or several tar files in one: more follows the mark that ends it"),
        ("joined", "train-0.tar is damaged, or several tar files in one: more follows the mark that ends it"),
        ("rest", "train-0.tar is damaged, or not copied to its end: more than 1,048,576 zeros follow the mark"),
        ("padding", ""),
    ],
)
def test_what_follows_the_end_of_a_shard_is_looked_at(tmp_path: Path, kind: str, message: str, is_remote: bool) -> None:
    path = tmp_path / "train-0.tar"
    write_tar(path, {"a.jpg": b"first", "a.cls": b"0", "b.jpg": b"second", "b.cls": b"0"})
    damage_end(path, kind)
    elsewhere = Address("command", f"pipe:cat {path}") if is_remote else Address("file", str(path))
    names: list[str] = []

    def read() -> None:
        for member in scanning.read_members(elsewhere):
            names.append(member.name)

    def scan() -> None:
        list(scan_shards(tmp_path, {path.name: elsewhere}))

    for work in (read, scan):
        if message:
            with pytest.raises(scanning.DamagedShard, match=re.escape(message)):
                work()
        else:
            work()
    assert names == (["a.jpg"] if kind in ("header", "rest") else ["a.jpg", "b.jpg"])


@pytest.mark.parametrize("seconds", [-1000, 1000])
def test_a_shard_of_another_date_is_read_again(
    tmp_path: Path, seconds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    now = time.time()
    for date, label, expected in ((now, b"0", [[1, 0]]), (now + seconds, b"1", [[0, 1]])):
        write_tar(tmp_path / "train-0.tar", {"1.jpg": b"", "1.cls": label})
        os.utime(tmp_path / "train-0.tar", (date, date))
        assert read_dataset(tmp_path, split="train").targets.tolist() == expected
    said = "train-0.tar has another size or date than the one it was made of: the index is made anew\n"
    assert capsys.readouterr().err == f"warning: {tmp_path / 'train.index.csv'}: {said}"


def test_a_shard_of_another_size_and_the_same_date_is_read_again(tmp_path: Path) -> None:
    for number in (1, 2):
        members = {f"{n}.{ending}": b"0" for n in range(10 * number) for ending in ("jpg", "cls")}
        write_tar(tmp_path / "train-0.tar", members)
        os.utime(tmp_path / "train-0.tar", ns=(5, 5))
        assert len(read_dataset(tmp_path, split="train", classes=("x",))) == 10 * number


def test_a_shard_that_is_added_is_indexed(tmp_path: Path) -> None:
    for number in (1, 2):
        write_tar(tmp_path / f"train-{number}.tar", {f"{number}.jpg": b"", f"{number}.cls": b"0"})
        os.utime(tmp_path / f"train-{number}.tar", ns=(5, 5))
        assert len(read_dataset(tmp_path, split="train", classes=("x",))) == number


def test_an_index_of_an_earlier_version_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "train-0.tar", {"1.jpg": b"", "1.cls": b"1"})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    index = tmp_path / "train.index.csv"
    index.write_text("shard,member,offset,size,labels,unknown\ntrain-0.tar,1.jpg,512,0,cat,\n")
    assert read_dataset(tmp_path, split="train").targets.tolist() == [[0, 1]]
    said = f"warning: {index}: an earlier version wrote it, which did not tell names of classes from their indices: "
    assert capsys.readouterr().err == f"{said}the index is made anew\n"
    stat = (tmp_path / "train-0.tar").stat()
    assert index.read_text().splitlines()[1] == f"train-0.tar,1.jpg,512,0,,,1,{stat.st_size},{stat.st_mtime_ns}"
    assert (tmp_path / "train.index.csv.bak").is_file()
    read_dataset(tmp_path, split="train")
    assert capsys.readouterr().err == ""


def test_an_index_of_an_earlier_version_is_made_anew_where_no_shard_is_a_file(shards: Path, served: str) -> None:
    root = move_away(shards, lambda path: WAYS["http"](path, served))
    index = root / "train.index.csv"
    rows = [line.rsplit(",", 2)[0] for line in index.read_text().splitlines()]  # without sizes and dates
    index.write_text("".join(row.rpartition(",")[0] + "\n" for row in rows))
    assert read_bytes(read_elsewhere(root).paths[0]) == read_bytes(read_dataset(shards, split="train").paths[0])
    assert [line.rsplit(",", 2)[0] for line in index.read_text().splitlines()] == rows


def test_without_a_place_for_the_index_the_shards_are_read_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "train-0.tar", {"1.jpg": b"bytes", "1.cls": b"0"})

    def refuse(*_: object) -> None:
        raise InputError("cannot write it")

    monkeypatch.setattr("dataset.tar_shards.index.replace_text", refuse)
    for _ in range(2):
        (path,) = read_dataset(tmp_path, split="train", classes=("x",)).paths
        assert read_bytes(path) == b"bytes"
        assert capsys.readouterr().err == (
            "warning: cannot write it; without an index, the shards are read each time\n"
        )


def test_a_folder_that_is_called_like_a_shard(tmp_path: Path) -> None:
    (tmp_path / "train-0.tar").mkdir()
    (tmp_path / "train-0.tar" / "a.jpg").write_text("file")
    assert read_bytes(tmp_path / "train-0.tar" / "a.jpg") == b"file"
    assert not FORMATS["webdataset"].recognise(tmp_path)


def test_stamps_change_with_the_shard(shards: Path, shared_dataset: Path) -> None:
    paths = read_dataset(shards, split="train").paths
    files = read_dataset(shared_dataset, split="train").paths
    stamps = list(stamp_images(paths))
    assert [size for size, _ in stamps] == [Path(path).stat().st_size for path in files]
    assert list(stamp_images(files)) == [(s.st_size, s.st_mtime_ns) for s in (Path(path).stat() for path in files)]
    os.utime(shards / "train-000001.tar", ns=(1, 1))
    changed = [stamp != before for stamp, before in zip(stamp_images(paths), stamps, strict=True)]
    assert changed == [5 <= row < 10 for row in range(40)]


def test_several_folders_are_joined(shards: Path, shared_dataset: Path) -> None:
    table = read_dataset([shared_dataset, shards], split="train")
    assert len(table) == 80
    assert np.array_equal(decode_image(table.paths[3]), decode_image(table.paths[43]))


# ---- shards that lie elsewhere ----


@pytest.fixture
def served(shards: Path) -> Iterator[str]:
    """A web server over the shards, that is, over the folder they are in."""
    handler = functools.partial(QuietHandler, directory=str(shards.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda request, client_address: None  # a reader that hangs up
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def move_away(shards: Path, write_line: Callable[[Path], str], with_index: bool = True) -> Path:
    """A data set without its shards: a folder beside them, with a line for each in shards.txt."""
    root = shards.parent / "elsewhere"
    root.mkdir()
    files = ["classes.txt", *(["train.index.csv", "test.index.csv"] if with_index else [])]
    for name in files:
        (root / name).write_bytes((shards / name).read_bytes())
    lines = [write_line(path) for path in sorted(shards.glob("*.tar"))]
    (root / "shards.txt").write_text("# the shards\n\n" + "\n".join(lines) + "\n")
    return root


def read_elsewhere(root: Path, limit_gb: float = 1.0) -> Table:
    options = ReadOptions(cache_folder=root / "cache", shard_cache_gb=limit_gb, shard_commands=True)
    return read_dataset(root, split="train", options=options)


def list_kept(root: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in (root / "cache" / "shards").glob("*.tar"))


WAYS = {
    "path": lambda path, server: os.path.relpath(path, path.parent.parent / "elsewhere"),
    "file": lambda path, server: f"file:{path}",
    "file URL": lambda path, server: f"FILE://localhost{quote(str(path))}",
    "pipe": lambda path, server: f"pipe:cat '{path}' | cat",
    "http": lambda path, server: f"{server}/shards/{path.name}?version=3",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("with_index", [True, False])
def test_shards_elsewhere_are_read_as_those_that_are_here(
    shards: Path, served: str, way: str, with_index: bool
) -> None:
    here = read_dataset(shards, split="train")
    root = move_away(shards, lambda path: WAYS[way](path, served), with_index)
    table = read_elsewhere(root)
    ours, theirs = (list(csv.reader((folder / "train.index.csv").open())) for folder in (root, shards))
    assert [row[:7] for row in ours] == [row[:7] for row in theirs]
    if not with_index:  # only files have a size and a date
        assert any(row[7:] != ["", ""] for row in ours[1:]) == (way in ("path", "file", "file URL"))
    assert table.fingerprint() == here.fingerprint()
    stamps = list(stamp_images(table.paths))
    assert not (root / "cache" / "shards").exists(), "nothing is fetched before it is needed"
    assert [read_bytes(path) for path in table.paths[:7]] == [read_bytes(path) for path in here.paths[:7]]
    assert list_kept(root) == ["train-000000.tar", "train-000001.tar"]
    assert [read_bytes(path) for path in table.paths] == [read_bytes(path) for path in here.paths]
    assert list(stamp_images(table.paths)) == stamps


def test_those_used_longest_ago_make_room(shards: Path) -> None:
    log = shards.parent / "log"
    root = move_away(shards, lambda path: f"pipe:echo {path.name[6:12]} >> {log}; cat {path}")
    size = (shards / "train-000000.tar").stat().st_size
    here = read_dataset(shards, split="train").paths

    def read(*numbers: int) -> None:
        reading.open_shard.cache_clear()
        for number in numbers:
            assert read_bytes(table.paths[5 * number]) == read_bytes(here[5 * number])

    table = read_elsewhere(root, limit_gb=3.5 * size / 1e9)
    read(0, 1, 2)
    read(0)
    read(3)
    assert list_kept(root) == ["train-000000.tar", "train-000002.tar", "train-000003.tar"]
    read(3, 0, 1)
    assert list_kept(root) == ["train-000000.tar", "train-000001.tar", "train-000003.tar"]
    assert [int(line) for line in log.read_text().split()] == [0, 1, 2, 3, 1]
    assert not list((root / "cache" / "shards").glob("*.part"))


def test_less_room_than_one_shard(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = move_away(shards, lambda path: f"file:{path}")
    table = read_elsewhere(root, limit_gb=1e-6)
    assert "training reads from 8 shards at a time" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"SHARD_CACHE_GB is 1e-06, but train-000000\.tar alone has"):
        read_bytes(table.paths[0])


def test_what_a_killed_process_left_behind_makes_room(shards: Path) -> None:
    root = move_away(shards, lambda path: f"file:{path}")
    size = (shards / "train-000000.tar").stat().st_size
    table = read_elsewhere(root, limit_gb=1.5 * size / 1e9)
    folder = root / "cache" / "shards"
    folder.mkdir(parents=True)
    (folder / "0-train-000007.part").write_bytes(bytes(size))
    read_bytes(table.paths[0])
    assert list_kept(root) == ["train-000000.tar"]
    assert not list(folder.glob("*.part"))


def test_a_transfer_that_breaks_is_tried_again(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "RETRY_SECONDS", 0.01)
    mark = shards.parent / "mark"
    broken = {  # how often, and in which way
        "train-000000.tar": f"test -s {mark} || {{ echo >> {mark}; head -c 700 {{}}; exit 3; }}; cat {{}}",
        "train-000001.tar": f"test -s {mark}2 || {{ echo >> {mark}2; head -c 700 {{}}; exit 0; }}; cat {{}}",
        "train-000002.tar": f"echo >> {mark}3; head -c 700 {{}}",
        "train-000003.tar": f"echo >> {mark}4; exit 7; cat {{}}",
    }
    root = move_away(shards, lambda path: "pipe:" + broken.get(path.name, "cat {}").replace("{}", str(path)))
    table, here = read_elsewhere(root), read_tars(shards, "train")
    for number in (0, 1):
        path = table.paths[5 * number]
        assert read_bytes(path) == here[path.replace("elsewhere", "shards")]
    for number, reason, log in ((2, "700 bytes came, but its index needs", "mark3"), (3, "exit 7", "mark4")):
        with pytest.raises(
            InputError, match=rf"cannot fetch train-00000{number}\.tar as .*shards\.txt:{number + 6} says.*{reason}"
        ) as e:
            decode_image(table.paths[5 * number])
        assert "\n" not in str(e.value)
        assert (shards.parent / log).read_text() == "\n" * resuming.TRIES
    assert list_kept(root) == ["train-000000.tar", "train-000001.tar"]
    assert not list((root / "cache" / "shards").glob("*.part"))


def test_a_full_disk_is_told_and_not_tried_again(shards: Path) -> None:
    log = shards.parent / "log"
    root = move_away(shards, lambda path: f"pipe:echo >> {log}; cat {path}")
    table = read_elsewhere(root)
    member = split_member(table.paths[0])
    assert member is not None
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (member[0].num_bytes + 512, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot keep train-000000\.tar in .*cache/shards: File too large"):
            read_bytes(table.paths[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.read_text() == "\n"
    assert not list((root / "cache" / "shards").glob("*.part"))
    assert decode_image(table.paths[0]).shape == (36, 48, 3)


def test_a_server_that_does_not_have_it(shards: Path, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "RETRY_SECONDS", 0.01)
    root = move_away(shards, lambda path: f"{served}/nowhere/{path.name}")
    with pytest.raises(InputError, match=r"cannot fetch train-000000\.tar as .*shards\.txt:6 says: .*404"):
        read_bytes(read_elsewhere(root).paths[0])


def _read_all(paths: list[str], results: multiprocessing.Queue[list[int]]) -> None:
    results.put([len(read_bytes(path)) for path in paths])


def test_several_processes_fetch_each_shard_once(shards: Path) -> None:
    log = shards.parent / "log"
    root = move_away(shards, lambda path: f"pipe:echo {path.name} >> {log}; sleep 0.1; cat {path}")
    table = read_elsewhere(root)
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[list[int]] = context.Queue()
    processes = [context.Process(target=_read_all, args=(table.paths, results)) for _ in range(4)]
    for process in processes:
        process.start()
    sizes = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    expected = [len(data) for path, data in read_tars(shards, "train").items() if path.endswith(".jpg")]
    assert sizes == [expected] * 4
    assert sorted(log.read_text().split()) == [f"train-{number:06}.tar" for number in range(8)]


def test_a_process_that_does_not_know_the_cache(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = read_elsewhere(move_away(shards, lambda path: f"file:{path}"))
    monkeypatch.setattr(reading, "_shards", {})
    with pytest.raises(InputError, match="does not know CACHE_FOLDER: set NUM_WORKERS = 0"):
        read_bytes(table.paths[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file:/x/train-0.tar\nfile:/x/shard.tar\n", r"shards\.txt:2: no name such as train-000000\.tar stands in"),
        ("file:/x/train-0.tar\nfile:/y/train-0.tar\n", r"shards\.txt:2: train-0\.tar stands here a second time"),
    ],
)
def test_mistakes_in_the_list_of_shards(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "shards.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path, "webdataset", "train")


def test_a_scan_needs_no_place_to_seek(shards: Path) -> None:
    names = dict.fromkeys((path.name for path in shards.glob("train-*.tar")), HERE)
    elsewhere = {name: Address("command", f"pipe:cat {shards / name}") for name in names}
    streamed, seeked = (list(scan_shards(shards, places)) for places in (elsewhere, names))
    assert [shard.rows for shard in streamed] == [shard.rows for shard in seeked]
    assert [shard.stat for shard in streamed] == [None] * len(names)


def mark_folder(folder: Path, line: str) -> Path:
    """A data set of one shard here and `line` on the third line of shards.txt, for which no word may be opened."""
    folder.mkdir()
    write_tar(folder / "train-0.tar", {"1.jpg": b"", "1.cls": b"0"})
    (folder / "classes.txt").write_text("x\n")
    (folder / "shards.txt").write_text(f"# shards\n\n{line}\n")
    return folder


COMMANDS = [
    "pipe:touch MARK train-1.tar",
    "  \t\u00a0pipe:touch MARK train-1.tar",
    "PIPE:touch MARK train-1.tar",
    "Pipe:touch MARK test-1.tar",
    "gs://bucket/train-1.tar",
    "hf://datasets/a/b/train-1.tar",
    "s3x://bucket/train-1.tar",
    "ais://bucket/train-1.tar",
    "htgs://bucket/train-1.tar",
    "scp://host/train-1.tar",
    "sftp://host/train-1.tar",
    "ftp://host/train-1.tar",
    "c:train-1.tar",
    "filex:///train-1.tar",
    "httpx://host/train-1.tar",
]


@pytest.mark.parametrize("line", COMMANDS)
@pytest.mark.parametrize("with_index", [True, False])
def test_what_may_run_a_command_is_refused(
    tmp_path: Path, line: str, with_index: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, mark = tmp_path / "set", tmp_path / "mark"
    mark_folder(root, line.replace("MARK", str(mark)))
    if with_index:
        stat = (root / "train-0.tar").stat()
        row = f"train-0.tar,1.jpg,512,0,x,,{stat.st_size},{stat.st_mtime_ns}\n"
        (root / "train.index.csv").write_text(f"{HEADER}{row}train-1.tar,1.jpg,512,1,x,,,\n")
    for name in ("open_address", "open_file"):
        monkeypatch.setattr(f"dataset.tar_shards.scanning.{name}", pytest.fail)
    monkeypatch.setattr("dataset.tar_shards.addresses.import_webdataset", pytest.fail)
    for read in (
        lambda: read_dataset(root),
        lambda: convert_dataset(root, "auto", "csv", tmp_path / "csv"),
        lambda: read_bytes(root / "train-1.tar" / "1.jpg"),
        lambda: split_dataset(root, "auto", {"train": 80, "val": 20, "test": 0}, 0),
    ):
        if not with_index and read.__code__.co_names[0] == "read_bytes":
            continue  # a path of a folder without an index is that of a file
        with pytest.raises(InputError, match=r"shards\.txt:3: .* set SHARD_COMMANDS = True"):
            read()
    assert not mark.exists()


@pytest.mark.parametrize(
    "line",
    ["$(touch MARK)/train-1.tar", "`touch MARK`/train-1.tar", "|touch MARK; train-1.tar", "-oMARK train-1.tar"],
)
@pytest.mark.parametrize("scheme", ["", "./", "file:", "http://127.0.0.1:9/", "http://127.0.0.1:9/'\";"])
def test_no_shell_sees_an_address(tmp_path: Path, scheme: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr("subprocess.Popen.__init__", pytest.fail)
    monkeypatch.setattr("dataset.tar_shards.addresses.import_webdataset", pytest.fail)
    monkeypatch.setattr("os.system", pytest.fail)
    mark = tmp_path / "mark"
    root = mark_folder(tmp_path / "set", scheme + line.replace("MARK", str(mark)))
    with pytest.raises(InputError, match=r"cannot read .*/train-1\.tar"):
        read_dataset(root)
    assert not mark.exists()


def test_a_server_cannot_send_us_on_to_anything_else(tmp_path: Path) -> None:
    (tmp_path / "train-1.tar").write_bytes(b"secret")

    class Redirecting(QuietHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"{self.path.partition('?')[2]}{tmp_path}/train-1.tar")
            self.end_headers()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        for scheme in ("file://", "ftp://127.0.0.1:9", "pipe:cat ", "data:,"):
            address = Address("web", f"http://127.0.0.1:{server.server_address[1]}/train-1.tar?{scheme}")
            with pytest.raises(BrokenTransfer):
                open_address(address)
        server.shutdown()


def test_a_server_that_breaks_off_is_asked_again(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "RETRY_SECONDS", 0.0)
    asked = []

    class Broken(QuietHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            data = (shards / self.path.rpartition("/")[2]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data if len(asked) % 3 == 0 else data[:-512])  # of zeros at the end

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        root = move_away(shards, lambda path: f"{url}/{path.name}", with_index=False)
        table = read_elsewhere(root)
        assert len(asked) == 3 * 8
        size = (shards / "train-000000.tar").stat().st_size
        assert read_bytes(table.paths[0]) == read_bytes(read_dataset(shards, split="train").paths[0])
        (kept,) = (root / "cache" / "shards").glob("*.tar")
        assert kept.stat().st_size == size
        server.shutdown()


def test_no_more_is_fetched_than_there_is_room_for(shards: Path, served: str) -> None:
    root = move_away(shards, lambda path: f"{served}/shards/{path.name}")
    size = (shards / "train-000000.tar").stat().st_size
    with (shards / "train-000000.tar").open("ab") as file:
        file.truncate(10**12)  # takes no room here, but would on the way
    table = read_elsewhere(root, limit_gb=3 * size / 1e9)
    with pytest.raises(InputError, match=r"SHARD_CACHE_GB is [\d.e-]+, but .*shards\.txt:6 gives more than that"):
        read_bytes(table.paths[0])
    assert not list((root / "cache" / "shards").glob("*.part"))


def test_a_password_goes_to_the_server_and_no_further(shards: Path) -> None:
    seen = []

    class Asking(QuietHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["Authorization"]))
            if self.path.startswith("/on"):
                super().do_GET()
            else:
                self.send_response(302)
                self.send_header("Location", f"/on{self.path}")
                self.end_headers()

        def translate_path(self, path: str) -> str:
            return str(shards / path.rpartition("/")[2])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Asking) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with open_address(
            Address("web", f"http://me:p%40ss@127.0.0.1:{server.server_address[1]}/a b/é/train-000000.tar")
        ) as stream:
            assert stream.read(10**7) == (shards / "train-000000.tar").read_bytes()
        server.shutdown()
    secret = "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert seen == [
        ("/a%20b/%C3%A9/train-000000.tar", secret),
        ("/on/a%20b/%C3%A9/train-000000.tar", None),
    ]


def test_shards_elsewhere_are_not_divided_anew(shards: Path) -> None:
    root = move_away(shards, lambda path: f"file:{path}")
    with pytest.raises(InputError, match=r"test-000000\.tar lies elsewhere, as shards\.txt says: split needs it here"):
        split_dataset(root, "auto", {"train": 80, "val": 20, "test": 0}, 0)


def test_images_of_the_same_name_in_two_splits_are_divided_anew(tmp_path: Path) -> None:
    for name in ("train", "val"):
        write_tar(
            tmp_path / f"{name}-0.tar",
            {f"{n}.{type}": data for n in range(10) for type, data in (("jpg", f"{name} {n}".encode()), ("cls", b"0"))},
        )
    (tmp_path / "classes.txt").write_text("x\n")
    split_dataset(tmp_path, "auto", {"train": 50, "val": 50, "test": 0}, 0)
    found = [read_bytes(path).decode() for path in read_dataset(tmp_path).paths]
    assert sorted(found) == sorted(f"{name} {n}" for name in ("train", "val") for n in range(10))


# ---- the order of training ----


def test_blocks_are_the_shards(shards: Path, shared_dataset: Path) -> None:
    table = read_dataset([shared_dataset, shards], split="train")
    blocks = find_blocks(table.paths)
    assert blocks is not None
    assert blocks.tolist() == [-1] * 40 + [row // 5 for row in range(40)]
    assert find_blocks(table.paths[:40]) is None


@pytest.mark.parametrize(
    ("num_blocks", "size", "at_once"), [(40, 50, 8), (9, 30, 8), (8, 30, 8), (3, 30, 8), (20, 7, 1)]
)
def test_few_blocks_at_a_time_and_every_image_once(num_blocks: int, size: int, at_once: int) -> None:
    blocks = np.random.default_rng(0).permutation(np.repeat(np.arange(num_blocks), size))
    order = shuffle_blocks(blocks, np.random.default_rng(1), at_once)
    assert sorted(order.tolist()) == list(range(len(blocks)))
    places = [np.flatnonzero(blocks[order] == block) for block in range(num_blocks)]
    open_at = sum((place.min() <= np.arange(len(order))) & (np.arange(len(order)) <= place.max()) for place in places)
    assert np.max(open_at) <= at_once
    if num_blocks > at_once:
        assert np.mean(open_at) > 0.8 * at_once, "the window is made use of, from the beginning to the end"


def test_images_that_are_no_members_come_at_any_time() -> None:
    blocks = np.r_[np.repeat(np.arange(30), 100), np.full(1000, -1)]
    order = shuffle_blocks(blocks, np.random.default_rng(0))
    moments = np.sort(np.flatnonzero(blocks[order] < 0)) / len(order)
    assert abs(moments - (np.arange(1000) + 0.5) / 1000).max() < 0.08
    alone = shuffle_blocks(np.full(50, -1), np.random.default_rng(0))
    assert sorted(alone.tolist()) == list(range(50)) != alone.tolist()


def test_epochs_repeat_by_seed_and_number_and_are_unlike_each_other() -> None:
    blocks = np.repeat(np.arange(100), 40)

    def order(seed: int, epoch: int) -> list[int]:
        batches = EpochBatches(len(blocks), 32, shuffle=True, seed=seed, blocks=blocks)
        batches.epoch = epoch
        drawn = list(batches)
        assert {len(batch) for batch in drawn} == {32}
        assert len(drawn) == len(batches) == 125
        return [key - epoch * len(blocks) for batch in drawn for key in batch]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(1, 3)
    places = [np.argsort(order(0, epoch)) for epoch in range(1, 9)]
    correlations = np.array([np.corrcoef(a, b)[0, 1] for a, b in itertools.combinations(places, 2)])
    assert abs(correlations.mean()) < 0.1, "shards change places, so an image does"
    assert abs(correlations).max() < 0.4  # of 100 shards: standard deviation 0.1
