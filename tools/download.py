"""Official data sets in the layout of config.py: `python dataset_tools.py download coco2017 | coco2014 | voc2007`.

    download("coco2017", Path("~/ms-coco/ms-coco-dataset").expanduser(), short_side=256, quality=90)

The archives go to `archives/`, what is needed of them to `original/`; out of that come `labels/`, `classes.txt`,
`images/train-resized` and `images/test-resized`. Interrupted at any point, the same command goes on from there.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

import utils
from dataset import downloads, whole_files
from dataset.files import make_absolute
from dataset.formats import FORMATS
from dataset.json_files import read_json
from dataset.table import Table
from dataset.xml_files import read_xml
from tools.resize import resize_images
from utils import InputError

MARKER = "download.json"  # in the data set's folder: which one it is, and what is done of it


class Archive(NamedTuple):
    """One file to download: `path` follows a base URL; `checksum` is what it was published with."""

    path: str
    num_bytes: int
    checksum: str  # algorithm:hexadecimal digits
    members: tuple[str, ...]  # what is extracted: the names that start so
    folder: str = ""  # of `original/`, to extract them to

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


class Part(NamedTuple):
    """One split of a data set: its name there, and the folder in `original/` that holds its images and no others."""

    split: str
    images: str


class PublicDataset(NamedTuple):
    """Where a data set comes from and how it is read."""

    base_urls: tuple[str, ...]  # tried in turn
    archives: tuple[Archive, ...]
    parts: dict[str, Part]  # by what a split is called here
    read: Callable[[Path, Part], Table]  # from `original/`


def download_dataset(
    name: str, folder: Path, *, short_side: int, quality: int, base_urls: Sequence[str] = ()
) -> dict[str, Table]:
    """Bring the data set `name` into `folder`, its images resized, and return the tables of "train" and "test".

    `base_urls` are mirrors to use instead of the official servers; archives that lie in `archives/` already are
    checked and used. Raises InputError when there is too little room, when no server gives the published bytes, or
    when `folder` holds anything else.
    """
    if name not in PUBLIC_DATASETS:
        raise InputError(
            f"{name!r} is no data set{utils.suggest(name, PUBLIC_DATASETS)}: there are {', '.join(PUBLIC_DATASETS)}"
        )
    for url in base_urls:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"DOWNLOAD_URLS: {url!r} does not begin with http:// or https://")
    folder = make_absolute(folder)
    source, done = PUBLIC_DATASETS[name], Done(folder, name)
    settings = f"short side {short_side}, quality {quality}"
    if done.has(settings):
        return {split: FORMATS["coco_cls"].read(folder, split, None, None, None) for split in source.parts}
    archives, original = folder / "archives", folder / "original"
    try:
        archives.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {archives}: {utils.explain(error)}") from error
    require_space(folder, sum(archive.num_bytes for archive in source.archives), short_side)
    for archive in source.archives:
        path = archives / archive.name
        if not (path.is_file() and done.has(archive.name)):
            urls = [f"{base.rstrip('/')}/{archive.path}" for base in base_urls or source.base_urls]
            downloads.fetch_checked(urls, path, archive.num_bytes, archive.checksum)
            done.add(archive.name)
    for archive in source.archives:
        extract(archives / archive.name, archive.members, original / archive.folder)
    tables = {}
    for split, part in source.parts.items():
        table = source.read(original, part)
        names = [Path(path).relative_to(original / part.images).as_posix() for path in table.paths]
        FORMATS["coco_cls"].write(table, folder, split, names)
        resized = folder / "images" / f"{split}-resized"
        resize_images(original / part.images, resized, short_side, quality)
        tables[split] = Table([str(resized / name) for name in names], table.targets, table.classes)
    done.add(settings)
    return tables


class Done:
    """What is done of the download of `name` into `folder`, kept there. InputError when the folder holds more."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.name, self.steps = folder / MARKER, name, []
        if self.path.is_file():
            found = read_json(self.path)
            if not isinstance(found, dict) or not {"name", "done"} <= found.keys() or type(found["done"]) is not list:
                raise InputError(f"{self.path} is not what download wrote: delete it, or choose another DATASET_FOLDER")
            if found["name"] != name:
                raise InputError(f"{folder} holds {found['name']}: choose another DATASET_FOLDER for {name}")
            self.steps = found["done"]
        elif other := next((p for p in folder.glob("*") if p.name != "archives" and p.name[0] != "."), None):
            raise InputError(f"{other} was not downloaded: choose another DATASET_FOLDER")

    def has(self, step: str) -> bool:
        return step in self.steps

    def add(self, step: str) -> None:
        self.steps.append(step)
        whole_files.write_text(self.path, json.dumps({"name": self.name, "done": self.steps}, indent=1) + "\n")


def require_space(folder: Path, archive_bytes: int, short_side: int) -> None:
    """Raise InputError unless there is room for what is still missing: archives, their images, the resized copies."""
    copies = min(1.0, (short_side / 375) ** 2)  # of the images' bytes; they are 375 pixels high (VOC) or 480 (COCO)
    needed = round(archive_bytes * (2 + copies)) - sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free; free some, or choose another "
            "DATASET_FOLDER"
        )


# ---- extracting ----


class Member(NamedTuple):
    """One file in an archive."""

    name: str
    num_bytes: int
    is_file: bool  # and no link, device or folder
    open: Callable[[], Any]


def extract(path: Path, prefixes: tuple[str, ...], folder: Path) -> None:
    """Extract from a .zip or .tar file what begins with one of `prefixes`; a file that is there already stays.

    Raises InputError for a damaged archive, and for one with a path that leaves `folder`.
    """
    try:
        with zipfile.ZipFile(path) if path.suffix == ".zip" else tarfile.open(path) as archive:
            members = list(_list_members(archive))
            for member in members:
                pure = PurePosixPath(member.name.replace("\\", "/"))
                if pure.is_absolute() or ".." in pure.parts or ":" in member.name:
                    raise InputError(f"{path}: {member.name!r} leads out of the folder it is extracted to")
            wanted = [m for m in members if m.is_file and m.name.startswith(prefixes)]
            with utils.Progress(f"extracting {path.name}", len(wanted)) as progress:
                for member in wanted:
                    _extract_member(member, folder / member.name)
                    progress.step(1)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}): remove it, and the same command downloads it again") from error
    except OSError as error:
        raise InputError(f"cannot extract {path}: {utils.explain(error)}") from error


def _list_members(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[Member]:
    if isinstance(archive, zipfile.ZipFile):
        for info in archive.infolist():
            mode = info.external_attr >> 16  # of Unix, where there is one
            is_file = not info.is_dir() and (stat.S_IFMT(mode) in (0, stat.S_IFREG))
            yield Member(info.filename, info.file_size, is_file, partial(archive.open, info))
    else:
        for info in archive:
            yield Member(info.name, info.size, info.isreg(), partial(archive.extractfile, info))


def _extract_member(member: Member, target: Path) -> None:
    if target.is_file() and target.stat().st_size == member.num_bytes:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")  # renamed when complete: what has the right name is whole
    with member.open() as source, temporary.open("wb") as file:  # a zip's checksum of the file is checked on the way
        shutil.copyfileobj(source, file)
    if temporary.stat().st_size != member.num_bytes:
        raise EOFError(f"{member.name} is cut off")
    os.replace(temporary, target)


# ---- reading what was extracted ----


def read_coco(original: Path, part: Part) -> Table:
    """The split of a COCO year: classes in the order of their ids; crowd annotations count."""
    return FORMATS["coco_json"].read(original, part.split, original / part.images, None, None)


def read_voc(original: Path, part: Part) -> Table:
    """The split of a VOC year. A class whose only objects are marked as difficult is unknown, as VOC leaves it out."""
    images = original / part.images
    names = (images.parent / "ImageSets" / "Main" / f"{part.split}.txt").read_text(encoding="utf-8").split()
    targets = np.zeros((len(names), len(VOC_CLASSES)), dtype=np.int8)
    for row, name in zip(targets, names, strict=True):
        for item in read_xml(images.parent / "Annotations" / f"{name}.xml").iter("object"):
            index = VOC_CLASSES.index(item.findtext("name", ""))
            if item.findtext("difficult") != "1":
                row[index] = 1
            elif row[index] == 0:
                row[index] = -1
    return Table([str(images / f"{name}.jpg") for name in names], targets, VOC_CLASSES)


VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


Stamp = tuple[int, str]  # a file's bytes and checksum


def make_coco(year: int, annotations: Stamp, train: Stamp, val: Stamp) -> PublicDataset:
    """The source of a COCO year, whose val split stands in for the test labels that were never published."""
    return PublicDataset(
        ("http://images.cocodataset.org",),
        (
            Archive(f"annotations/annotations_trainval{year}.zip", *annotations, ("annotations/instances_",)),
            Archive(f"zips/val{year}.zip", *val, (f"val{year}/",)),
            Archive(f"zips/train{year}.zip", *train, (f"train{year}/",)),
        ),
        {"train": Part("train", f"train{year}"), "test": Part("val", f"val{year}")},
        read_coco,
    )


def make_voc(year: int, trainval: tuple[str, int, str], test: tuple[str, int, str]) -> PublicDataset:
    """The source of a VOC year with a public test split. Each archive has a folder of its own: their paths agree."""
    inside = f"VOCdevkit/VOC{year}"
    members = tuple(f"{inside}/{folder}/" for folder in ("JPEGImages", "Annotations", "ImageSets/Main"))
    return PublicDataset(
        (f"http://host.robots.ox.ac.uk/pascal/VOC/voc{year}", f"https://thor.robots.ox.ac.uk/pascal/VOC/voc{year}"),
        (Archive(*trainval, members, "trainval"), Archive(*test, members, "test")),
        {
            "train": Part("trainval", f"trainval/{inside}/JPEGImages"),
            "test": Part("test", f"test/{inside}/JPEGImages"),
        },
        read_voc,
    )


# Checksums and sizes: those of COCO from TensorFlow Datasets (url_checksums/coco.txt, of the same addresses), those of
# VOC from torchvision (datasets/voc.py, MD5) and TensorFlow Datasets (url_checksums/voc.txt, sizes).
PUBLIC_DATASETS: dict[str, PublicDataset] = {
    "coco2017": make_coco(
        2017,
        annotations=(252_907_541, "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"),
        train=(19_336_861_798, "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
        val=(815_585_330, "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    ),
    "coco2014": make_coco(
        2014,
        annotations=(252_872_794, "sha256:031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009"),
        train=(13_510_573_713, "sha256:ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
        val=(6_645_013_297, "sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
    ),
    "voc2007": make_voc(
        2007,
        trainval=("VOCtrainval_06-Nov-2007.tar", 460_032_000, "md5:c52e279531787c972589f7e41ab4ae64"),
        test=("VOCtest_06-Nov-2007.tar", 451_020_800, "md5:b6e924de25625d8de591ea690078ad9f"),
    ),
}
