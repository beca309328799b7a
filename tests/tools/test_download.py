"""tools/download.py, against a server of the test's own that fails in every way servers do."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from file_server import Server
from PIL import Image

from dataset import downloads
from dataset.decoding import decode_image
from dataset_readers import read_dataset
from tools import download
from tools.download import PUBLIC_DATASETS, Archive, download_dataset, extract, make_coco, make_voc
from utils import InputError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloads, "FIRST_WAIT_SECONDS", 0.0)
    server = Server()
    yield server
    server.close()


def fetch(archive: Archive, base_urls: list[str], path: Path) -> None:
    urls = [f"{base}/{archive.path}" for base in base_urls]
    downloads.fetch_checked(urls, path, archive.num_bytes, archive.checksum)


def make_jpeg(seed: int, width: int = 90, height: int = 60) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for folder in sorted({name.rpartition("/")[0] for name in files} - {""}):
            archive.writestr(f"{folder}/", b"")  # an entry of its own, as in the real ones
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def make_tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def stamp(data: bytes, algorithm: str = "sha256") -> tuple[int, str]:
    return len(data), f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


LABELS = {  # of the small COCO: image number -> names
    "train": {3: ["cat", "person"], 1: ["person"], 2: [], 7: ["crowd only"]},
    "val": {5: ["cat"], 4: ["crowd only", "cat"]},
}


@pytest.fixture
def coco(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A COCO year in miniature: ids with gaps, crowds, images without annotations; its archives by path."""
    ids = {"person": 1, "crowd only": 13, "cat": 90}
    jsons, zips = {}, {}
    for split, images in LABELS.items():
        annotations = [
            {"id": 100 * image + k, "image_id": image, "category_id": ids[name], "iscrowd": int(name == "crowd only")}
            for image, names in images.items()
            for k, name in enumerate([*names, *names])  # an object more of each
        ]
        content = {
            "images": [{"id": image, "file_name": f"{image:012}.jpg"} for image in images],
            "annotations": annotations,
            "categories": [{"id": id, "name": name} for name, id in sorted(ids.items())],
        }
        jsons[f"annotations/instances_{split}2017.json"] = json.dumps(content).encode()
        jsons[f"annotations/captions_{split}2017.json"] = b"{}"
        zips[split] = make_zip({f"{split}2017/{image:012}.jpg": make_jpeg(image) for image in images})
    archives = {
        "annotations/annotations_trainval2017.zip": make_zip(jsons),
        "zips/val2017.zip": zips["val"],
        "zips/train2017.zip": zips["train"],
    }
    server.files.update(archives)
    stamps = [stamp(archives[path]) for path in archives]
    source = make_coco(2017, annotations=stamps[0], val=stamps[1], train=stamps[2])
    monkeypatch.setitem(PUBLIC_DATASETS, "coco2017", source)
    return archives


def run(server: Server, folder: Path, name: str = "coco2017", short_side: int = 30) -> None:
    download_dataset(name, folder, short_side=short_side, quality=90, base_urls=[server.url])


def read_tree(root: Path) -> dict[str, bytes]:
    """{path: content} of the files, without the times that resize notes."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != ".resize.csv")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_coco_arrives_in_the_layout_of_config(server: Server, coco: dict[str, bytes], tmp_path: Path) -> None:
    run(server, tmp_path)
    assert [path.removeprefix("/base/") for path, _, _ in server.requests] == list(coco)
    assert (tmp_path / "classes.txt").read_text() == "person\ncrowd only\ncat\n"
    for split, old in (("train", "train"), ("test", "val")):
        table = read_dataset(tmp_path, split=split)
        assert table.classes == ("person", "crowd only", "cat")
        assert [Path(path).name for path in table.paths] == [f"{image:012}.jpg" for image in sorted(LABELS[old])]
        for path, row in zip(table.paths, table.targets, strict=True):
            image = int(Path(path).stem)
            assert row.tolist() == [name in LABELS[old][image] for name in table.classes]
            assert Path(path).parent == tmp_path / "images" / f"{split}-resized"
            copy = decode_image(path)
            assert copy.shape == (30, 45, 3)
            original = Image.open(io.BytesIO(make_jpeg(image))).resize((45, 30), Image.Resampling.LANCZOS)
            assert abs(copy.astype(int) - np.asarray(original)).mean() < 20  # one is compressed twice
    server.requests.clear()
    shutil.rmtree(tmp_path / "archives")  # no longer needed
    shutil.rmtree(tmp_path / "original")
    run(server, tmp_path)
    assert not server.requests


def test_the_folder_may_be_relative(
    server: Server, coco: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(server, Path("data/coco"))
    assert len(read_dataset(tmp_path / "data" / "coco")) == 6


def test_voc_arrives_with_difficult_objects_as_unknown(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def write_xml(objects: list[tuple[str, str]]) -> bytes:
        inner = "".join(
            f"<object><name>{name}</name><difficult>{difficult}</difficult><part><name>head</name></part></object>"
            for name, difficult in objects
        )
        return f"<annotation><filename>x.jpg</filename>{inner}</annotation>".encode()

    objects = {
        "trainval": {
            "000005": [("chair", "0"), ("chair", "1")],
            "000007": [("car", "1"), ("dog", "0")],
            "000009": [("car", "1"), ("car", "0")],
        },
        "test": {"000001": [("dog", "0")], "000002": []},
    }
    tars = {}
    for split, images in objects.items():
        files = {f"VOCdevkit/VOC2007/ImageSets/Main/{split}.txt": "\n".join(images).encode() + b"\n"}
        for name, found in images.items():
            files[f"VOCdevkit/VOC2007/Annotations/{name}.xml"] = write_xml(found)
            files[f"VOCdevkit/VOC2007/JPEGImages/{name}.jpg"] = make_jpeg(int(name))
            files[f"VOCdevkit/VOC2007/SegmentationClass/{name}.png"] = b"not needed"
        tars[split] = make_tar(files)
        server.files[f"{split}.tar"] = tars[split]
    stamps = {split: (f"{split}.tar", *stamp(data, "md5")) for split, data in tars.items()}
    monkeypatch.setitem(PUBLIC_DATASETS, "voc2007", make_voc(2007, **stamps))
    run(server, tmp_path, "voc2007")
    train, test = (read_dataset(tmp_path, split=split) for split in ("train", "test"))
    assert train.classes == test.classes == download.VOC_CLASSES
    assert len(train.classes) == 20
    found = [
        {name: value for name, value in zip(table.classes, row.tolist(), strict=True) if value}
        for table in (train, test)
        for row in table.targets
    ]
    assert found == [{"chair": 1}, {"car": -1, "dog": 1}, {"car": 1}, {"dog": 1}, {}]
    assert not list(tmp_path.rglob("*.png"))


# ---- servers ----


@pytest.fixture
def archive(server: Server) -> Archive:
    data = np.random.default_rng(0).bytes(100_000)
    server.files["a.zip"] = data
    return Archive("a.zip", *stamp(data), ("",))


def test_a_server_that_breaks_off_is_asked_for_the_rest(server: Server, archive: Archive, tmp_path: Path) -> None:
    server.break_after = [30_000, 0, 50_000]
    fetch(archive, [server.url], tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == server.files["a.zip"]
    assert [request[1:] for request in server.requests] == [
        (None, 30_000), ("bytes=30000-", 0), ("bytes=30000-", 50_000), ("bytes=80000-", 20_000),
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("tag", ['"version 1"', 'W/"weak"', ""])
def test_a_server_that_gives_up_is_gone_on_with_later(
    server: Server, archive: Archive, tmp_path: Path, tag: str
) -> None:
    server.tag = tag
    server.break_after = [40_000] + [0] * 50
    with pytest.raises(InputError, match=r"a\.zip: http.*broke off; 0\.0 of 0\.1 MB are here, and the same"):
        fetch(archive, [server.url], tmp_path / "a.zip")
    assert len(server.requests) == 1 + downloads.MAX_FAILURES
    assert not (tmp_path / "a.zip").exists()
    server.break_after, server.requests = [], []
    fetch(archive, [server.url], tmp_path / "a.zip")
    assert [request[1:] for request in server.requests] == [("bytes=40000-", 60_000)]
    assert (tmp_path / "a.zip").read_bytes() == server.files["a.zip"]


def test_a_server_that_refuses_ranges_starts_anew(server: Server, archive: Archive, tmp_path: Path) -> None:
    server.takes_ranges = False
    server.break_after = [30_000, 20_000]
    fetch(archive, [server.url], tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == server.files["a.zip"]
    assert [sent for *_, sent in server.requests] == [30_000, 20_000, 100_000]
    server.break_after = [30_000] * 50
    (tmp_path / "a.zip").unlink()
    with pytest.raises(InputError, match="broke off"):  # and is not asked for ever
        fetch(archive, [server.url], tmp_path / "a.zip")


def test_the_rest_of_another_version_is_not_appended(server: Server, archive: Archive, tmp_path: Path) -> None:
    new = server.files["a.zip"]
    server.files["a.zip"] = bytes(100_000)
    server.break_after = [30_000] + [0] * 50
    with pytest.raises(InputError):
        fetch(archive, [server.url], tmp_path / "a.zip")
    server.files["a.zip"], server.tag, server.break_after, server.requests = new, '"version 2"', [], []
    fetch(archive, [server.url], tmp_path / "a.zip")
    assert [request[1:] for request in server.requests] == [("bytes=30000-", 100_000)]
    assert (tmp_path / "a.zip").read_bytes() == new


def test_wrong_bytes_are_removed_and_fetched_once_more(
    server: Server, archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = server.files["a.zip"]
    (tmp_path / "a.zip").write_bytes(right[:-1] + b"?")
    fetch(archive, [server.url], tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == right
    assert "is not the file that was published (sha256 " in capsys.readouterr().err
    (tmp_path / "a.zip").unlink()
    server.files["a.zip"] = right[:-1] + b"?"
    server.requests.clear()
    with pytest.raises(InputError, match=r"a\.zip was downloaded twice and is not the file that was published"):
        fetch(archive, [server.url], tmp_path / "a.zip")
    assert len(server.requests) == 2
    assert not list(tmp_path.iterdir())


def test_after_wrong_bytes_another_mirror_is_tried(server: Server, archive: Archive, tmp_path: Path) -> None:
    mirror = Server()
    try:
        mirror.files["a.zip"] = server.files["a.zip"]
        server.files["a.zip"] = bytes(100_000)
        fetch(archive, [server.url, mirror.url], tmp_path / "a.zip")
    finally:
        mirror.close()
    assert (tmp_path / "a.zip").read_bytes() == mirror.files["a.zip"]


@pytest.mark.parametrize("fault", ["missing", "another size"])
def test_a_server_without_the_file_is_not_asked_again(
    server: Server, archive: Archive, tmp_path: Path, fault: str
) -> None:
    right = server.files.pop("a.zip")
    if fault == "another size":
        server.files["a.zip"] = b"<html>Please log in</html>"
    expected = "404" if fault == "missing" else "the file there has 26 bytes, the published one 100000"
    with pytest.raises(InputError, match=expected):
        fetch(archive, [server.url], tmp_path / "a.zip")
    assert len(server.requests) == 1
    mirror = Server()
    try:
        mirror.files["a.zip"] = right
        fetch(archive, [server.url, mirror.url], tmp_path / "a.zip")
    finally:
        mirror.close()
    assert (tmp_path / "a.zip").read_bytes() == right


def test_a_busy_server_is_asked_again_and_a_dead_one_is_named(server: Server, archive: Archive, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(InputError, match="503"):
        fetch(archive, [server.url], tmp_path / "a.zip")
    assert len(server.requests) == downloads.MAX_FAILURES
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/a\.zip: .*refused"):
        fetch(archive, ["http://127.0.0.1:9"], tmp_path / "a.zip")


def test_a_part_that_is_too_long_or_complete(server: Server, archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(bytes(200_000))
    fetch(archive, [server.url], tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == server.files["a.zip"]
    server.requests.clear()
    (tmp_path / "a.zip").rename(tmp_path / "a.zip.part")  # as when a process ends before the name is changed
    fetch(archive, [server.url], tmp_path / "a.zip")
    assert not server.requests


# ---- interruptions ----


@pytest.mark.parametrize(
    ("where", "what", "times"),
    [
        (downloads.ByteProgress, "add", 2),
        (downloads.hashlib, "file_digest", 1),
        (download, "_extract_member", 5),
        (download.os, "replace", 4),
        (download, "resize_images", 0),
        (download, "resize_images", 1),
        (download.Done, "add", 3),
    ],
)
def test_interrupted_anywhere_the_same_command_goes_on(
    server: Server, coco: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: object, what: str,
    times: int,
) -> None:  # fmt: skip
    run(server, tmp_path / "whole")
    server.requests.clear()
    monkeypatch.setattr(downloads, "CHUNK_BYTES", 1000)
    real, calls = getattr(where, what), []

    def stop(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) > times:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(where, what, stop)
        with pytest.raises(KeyboardInterrupt):
            run(server, tmp_path / "cut")
    run(server, tmp_path / "cut")
    whole, cut = read_tree(tmp_path / "whole"), read_tree(tmp_path / "cut")
    assert cut == whole
    sent = sum(sent for *_, sent in server.requests)
    assert sent < 1.5 * sum(map(len, coco.values())), "what was there is not fetched again"


def test_archives_that_lie_there_are_checked_and_used(server: Server, coco: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    for path, data in coco.items():
        (tmp_path / "archives" / path.rpartition("/")[2]).write_bytes(data)
    run(server, tmp_path)
    assert not server.requests
    assert len(read_dataset(tmp_path)) == 6


def test_too_little_room_is_said_before_anything_is_fetched(
    server: Server, coco: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(map(len, coco.values())) * (2 + (30 / 375) ** 2)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: Mock(free=needed - 100))
    with pytest.raises(InputError, match=r"0\.0 GB are needed and 0\.0 GB free"):
        run(server, tmp_path)
    assert not server.requests
    (tmp_path / "archives" / "val2017.zip").write_bytes(coco["zips/val2017.zip"])  # is needed no more
    run(server, tmp_path)


def test_other_folders_are_left_alone(server: Server, coco: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt was not downloaded: choose another DATASET_FOLDER"):
        run(server, tmp_path / "mine")
    assert not server.requests
    run(server, tmp_path / "coco")
    before = read_tree(tmp_path / "coco")
    with pytest.raises(InputError, match="holds coco2017: choose another DATASET_FOLDER for voc2007"):
        run(server, tmp_path / "coco", "voc2007")
    with pytest.raises(InputError, match=r"train-resized holds copies with a short side of 30 .*: delete it"):
        run(server, tmp_path / "coco", short_side=40)
    assert read_tree(tmp_path / "coco") == before
    with pytest.raises(InputError, match=r"'ftp://a' does not begin with http"):
        download_dataset("coco2017", tmp_path / "new", short_side=30, quality=90, base_urls=["ftp://a"])
    with pytest.raises(InputError, match=r"'coco2071' is no data set \(did you mean coco2017\?\)"):
        run(server, tmp_path / "coco", "coco2071")


# ---- archives ----


@pytest.mark.parametrize(
    "name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "a\\..\\..\\evil.txt", "C:evil.txt"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_that_leave_the_folder_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / f"bad.{kind}"
    path.write_bytes({"zip": make_zip, "tar": make_tar}[kind]({"good.txt": b"1", name: b"2"}))
    with pytest.raises(InputError, match=r"bad.*: '.*' leads out of the folder"):
        extract(path, ("",), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*evil*"))


def test_links_and_devices_are_not_extracted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("device", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("file")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"yes"))
    extract(tmp_path / "a.tar", ("",), tmp_path / "tar")
    assert read_tree(tmp_path / "tar") == {"file": b"yes"}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("file", b"yes")
    extract(tmp_path / "a.zip", ("",), tmp_path / "zip")
    assert read_tree(tmp_path / "zip") == {"file": b"yes"}


def test_a_damaged_archive_is_named_and_leaves_no_damaged_file(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(5000)
    data = bytearray(make_zip({"a/first.jpg": b"fine", "a/second.jpg": content}))
    data[data.index(content[:20]) + 100] ^= 1
    (tmp_path / "flipped.zip").write_bytes(data)
    (tmp_path / "cut.tar").write_bytes(make_tar({"a/first.jpg": b"fine", "a/second.jpg": content})[:3000])
    (tmp_path / "no.zip").write_bytes(b"no archive")
    for name in ("flipped.zip", "cut.tar", "no.zip"):
        with pytest.raises(InputError, match=f"{name} is damaged"):
            extract(tmp_path / name, ("a/",), tmp_path / name[:2])
        assert not (tmp_path / name[:2] / "a" / "second.jpg").exists()


# ---- the real ones ----


def test_the_official_addresses_and_checksums() -> None:
    urls = {
        name: [f"{source.base_urls[0]}/{archive.path}" for archive in source.archives]
        for name, source in PUBLIC_DATASETS.items()
    }
    for year in (2014, 2017):
        assert urls[f"coco{year}"] == [
            f"http://images.cocodataset.org/annotations/annotations_trainval{year}.zip",
            f"http://images.cocodataset.org/zips/val{year}.zip",
            f"http://images.cocodataset.org/zips/train{year}.zip",
        ]
    assert urls["voc2007"] == [
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/VOCtrainval_06-Nov-2007.tar",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/VOCtest_06-Nov-2007.tar",
    ]
    checksums = [archive.checksum for source in PUBLIC_DATASETS.values() for archive in source.archives]
    assert len(set(checksums)) == len(checksums) == 8
    assert all(re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", checksum) for checksum in checksums)


def test_voc_checksums_are_torchvisions() -> None:
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    for archive, key in zip(PUBLIC_DATASETS["voc2007"].archives, ("2007", "2007-test"), strict=True):
        assert archive.checksum == f"md5:{DATASET_YEAR_DICT[key]['md5']}"
        assert archive.name == DATASET_YEAR_DICT[key]["filename"]
