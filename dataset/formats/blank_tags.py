"""blank_tags: three published data sets whose tags are separated by blanks, in `train*.csv` (only read).

* Planet: Understanding the Amazon from Space (kaggle.com/c/planet-understanding-the-amazon-from-space/data):
  `image_name,tags` in `train_v2.csv` or `train_classes.csv`, names without `.jpg`, images in `train-jpg/`; fastai's
  sample of it: `labels.csv`, images in `train/`.
* Plant Pathology 2021 (kaggle.com/c/plant-pathology-2021-fgvc8/data): `image,labels`, images in `train_images/`.
* fastai's PASCAL_2007 (docs.fast.ai/tutorial.vision.html): `fname,labels,is_valid`, images in `train/`; `is_valid` is
  True for those to validate on.

A file `test*.csv` with the same columns is test. Samples of a submission, which have these columns, too, are left.

A blank may also stand within a name, as in `hot dog`: so all tags have to be those of the data set. Any other list
is for the csv format, which judges what separates its names.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from dataset.csv_files import read_cells, read_header, stamp
from dataset.files import has_image_ending
from dataset.formats.base import Format, SplitSource
from dataset.image_finder import find_folder
from dataset.label_values import mark_columns
from dataset.rows import Rows
from dataset.table import SPLITS, Table
from utils import InputError

# (the image's column, that of its tags): where its images are, with the name of the split
FOLDERS = {
    ("image_name", "tags"): ("{0}-jpg", "{0}"),
    ("fname", "labels"): ("{0}",),
    ("image", "labels"): ("{0}_images",),
}
# The tags of each: on the pages above, and for PASCAL_2007 in host.robots.ox.ac.uk/pascal/VOC/voc2007
TAGS = {
    ("image_name", "tags"): {
        "agriculture", "artisinal_mine", "bare_ground", "blooming", "blow_down", "clear", "cloudy", "conventional_mine",
        "cultivation", "habitation", "haze", "partly_cloudy", "primary", "road", "selective_logging", "slash_burn",
        "water",
    },
    ("fname", "labels"): {
        "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
        "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    },
    ("image", "labels"): {"complex", "frog_eye_leaf_spot", "healthy", "powdery_mildew", "rust", "scab"},
}  # fmt: skip
NAMES = re.compile(r"(train|test)(_v\d+|_classes)?\.csv|(labels)\.csv")
IS_VALID = "is_valid"
SPLIT_OF = {"true": "val", "1": "val", "false": "train", "0": "train"}


def list_splits(root: Path) -> list[str]:
    files = find_files(root)
    found = {*files}
    if "train" in files and IS_VALID in read_header(files["train"]):
        found = found - {"train"} | {split for _, _, _, split in read_tags(files["train"], "train")}
    return [split for split in SPLITS if split in found]


def files_of_split(root: Path, split: str) -> list[Path]:
    files = find_files(root)
    return [file for name in ("train" if split == "val" else split,) if (file := files.get(name))]


def find_files(root: Path) -> dict[str, Path]:
    """{"train" or "test": its file}. Raises InputError where there are two."""
    files: dict[str, Path] = {}
    for file in sorted(root.glob("*.csv")):
        match = NAMES.fullmatch(file.name)
        if match and file.is_file() and (pair := find_pair(file)):
            split = match[1] or "train"
            if any((root / folder.format(split)).is_dir() for folder in FOLDERS[pair]):
                other = files.setdefault(split, file)
                if other != file:
                    raise InputError(f"{other} and {file} are both for {split}: keep the one that you mean")
    return files


def find_pair(file: Path) -> tuple[str, str] | None:
    """The columns of the image and of its tags: no others but `is_valid`, and no tags but those of TAGS."""
    return _find_pair(file, *stamp(file))


@functools.lru_cache  # asked for several times before a run begins
def _find_pair(file: Path, size: int, changed: int) -> tuple[str, str] | None:
    """`find_pair` for a file of that size that was last `changed` at that time."""
    header = read_header(file)
    pair = next((pair for pair in FOLDERS if header in ([*pair], [*pair, IS_VALID])), None)
    if pair is None:
        return None
    try:
        are_known = all(TAGS[pair].issuperset(tags.split()) for _, (tags,) in read_cells(file, pair[1:]))
    except InputError:
        return None  # the csv format will say what is wrong
    return pair if are_known else None


def read_tags(file: Path, split: str) -> list[tuple[int, str, list[str], str]]:
    """(line, image, tags, split) of each row."""
    pair = find_pair(file)
    assert pair is not None, "find_files has looked"
    if IS_VALID not in read_header(file):
        return [(line, image, tags.split(), split) for line, (image, tags) in read_cells(file, pair)]
    rows = []
    for line, (image, tags, is_valid) in read_cells(file, (*pair, IS_VALID)):
        if is_valid.lower() not in SPLIT_OF:
            raise InputError(f"{file}:{line}: {IS_VALID} is {is_valid[:20]!r}: it takes True or False")
        rows.append((line, image, tags.split(), SPLIT_OF[is_valid.lower()]))
    return rows


def read(source: SplitSource) -> Table:
    root = source.root
    found = {file: read_tags(file, split) for split, file in find_files(root).items()}
    names = {name for rows in found.values() for _, _, tags, _ in rows for name in tags}
    index = source.choose_classes(names)
    (file,) = files_of_split(root, source.split)
    pair = find_pair(file)
    assert pair is not None, "find_files has looked"
    folders = [folder.format("test" if source.split == "test" else "train") for folder in FOLDERS[pair]]
    rows: Rows | None = None
    for line, image, tags, split in found[file]:
        if split != source.split:
            continue
        where = f"{file}:{line}"
        name = image if has_image_ending(image) else f"{image}.jpg"
        if rows is None:
            rows = Rows(find_folder(root, folders, name), root, index.classes)
        present = index.find_all(tags, where)
        rows.add(name, mark_columns(present, (), len(index.classes), where), where)
    return (rows or Rows(root, root, index.classes)).make_table(file)


FORMAT = Format(
    expects="train_v2.csv of Planet, or train.csv of Plant Pathology 2021 or of fastai's PASCAL_2007 (blank_tags)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
)
