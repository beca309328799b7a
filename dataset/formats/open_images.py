"""open_images: `*train-annotations-human-imagelabels*.csv`, `*class-descriptions*.csv`, images in `train/` (only read).

Open Images (Kuznetsova et al., IJCV 2020; https://storage.googleapis.com/openimages/web/download_v7.html), labels that
people verified: columns `ImageID`, `Source`, `LabelName` and `Confidence`, 1 present or 0 absent. What nobody verified
is unknown; so is a label that was verified both ways. The descriptions give names to labels such as /m/0bt9lr. The
files lie in the folder, in `annotations/`, or where FiftyOne puts them: `train/labels/classifications.csv`,
`train/metadata/classes.csv` and `train/data/`.

The files list millions of images, of which people fetch some: those that are not there are left out, and said. Labels
that no image here has are no classes; `classes.txt` chooses some of the others.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from dataset.class_names import read_classes, require_unique
from dataset.csv_files import read_cells
from dataset.files import require_stems
from dataset.formats.base import Format, SplitSource
from dataset.formats.csv import read_header
from dataset.image_finder import ImageFinder
from dataset.label_values import UNKNOWN
from dataset.rows import Rows
from dataset.table import Table, require_room
from dataset.text_files import read_text
from utils import InputError, warn

NAMES = {"train": "train", "val": "validation", "test": "test"}
COLUMNS = ("ImageID", "LabelName", "Confidence")
LABELS = ("{0}-annotations-human-imagelabels*.csv", "*-{0}-annotations-human-imagelabels*.csv")
VALUES = {"1": 1, "0": 0, "1.0": 1, "0.0": 0}


def list_splits(root: Path) -> list[str]:
    return [split for split in NAMES if files_of_split(root, split)]


def files_of_split(root: Path, split: str) -> list[Path]:
    """The files of labels of a split: one, or it is not clear which is meant."""
    name = NAMES[split]
    folders = (root, root / "annotations")
    files = {file for folder in folders for pattern in LABELS for file in folder.glob(pattern.format(name))}
    files |= {root / name / "labels" / "classifications.csv"}
    return [file for file in sorted(files) if file.is_file() and set(COLUMNS) <= set(read_header(file))]


def read(source: SplitSource) -> Table:
    root, split = source.root, source.split
    images = {name: find_images(root, NAMES[name]) for name in list_splits(root)}
    found = {name: read_labels(root, name, images[name]) for name in images}  # all: every split has the same classes
    file, labels, elsewhere = found[split]
    if not labels:
        folder = root / NAMES[split]
        raise InputError(f"{file}: no image that it lists lies in {folder}; images on the web are not fetched")
    alone = len(images[split]) - len(labels)
    if elsewhere or alone:
        warn(f"{file}: left out {elsewhere:,} rows of images that are not here, {alone:,} images here without a row")
    names = name_labels(root, {label for _, rows, _ in found.values() for row in rows.values() for label in row})
    classes = read_classes(root, sorted(names.values()))
    column_of = {name: column for column, name in enumerate(classes)}
    columns = {label: column_of[name] for label, name in names.items() if name in column_of}
    require_room(len(labels), len(classes))
    rows = Rows(root, root, classes)
    for image, row in labels.items():
        values = bytearray([UNKNOWN]) * len(classes)
        for label, value in row.items():
            if label in columns:
                values[columns[label]] = value
        rows.add(images[split][image], bytes(values), f"{file}: {image}")
    return rows.make_table(file)


def find_images(root: Path, name: str) -> dict[str, str]:
    """{image's ID: its path}. CVDF's archives of train unfold to train_0, ..., train_f."""
    places = [root / name, root / "images" / name, *sorted(root.glob(f"{name}_[0-9a-f]"))]
    paths = ImageFinder(root, [place for place in places if place.is_dir()]).map_names()
    return {stem: paths[name] for stem, name in require_stems(list(paths)).items()}


def read_labels(root: Path, split: str, images: dict[str, str]) -> tuple[Path, dict[str, dict[str, int]], int]:
    """(the split's file, {image: {label: value}} of those of `images` that it lists, the number of its other rows)."""
    file, *others = files_of_split(root, split)
    if others:
        raise InputError(f"{file} and {others[0]} both hold labels of {split}: keep one of them in {root}")
    labels: dict[str, dict[str, int]] = {}
    elsewhere = 0
    for line, (image, label, confidence) in read_cells(file, COLUMNS):
        if image not in images:
            elsewhere += 1
            continue
        if confidence not in VALUES:
            raise InputError(f"{file}:{line}: the confidence {confidence[:20]!r} is neither 1 (present) nor 0 (absent)")
        value, row = VALUES[confidence], labels.setdefault(image, {})
        row[label] = value if row.get(label, value) == value else UNKNOWN
    return file, labels, elsewhere


def name_labels(root: Path, labels: set[str]) -> dict[str, str]:
    """{label: its name}, as the descriptions say; with the label, where two labels have the same name."""
    files = {file for folder in (root, root / "annotations") for file in folder.glob("*class-descriptions*.csv")}
    files |= {root / name / "metadata" / "classes.csv" for name in NAMES.values()}
    described: dict[str, str] = {}
    for file in sorted(filter(Path.is_file, files)):
        for row in csv.reader(io.StringIO(read_text(file), newline="")):
            if len(row) == 2 and row[0] in labels:
                described.setdefault(row[0], row[1].strip())
    nameless = sorted(labels - described.keys())
    if nameless:
        warn(f"{root}: {len(nameless):,} labels stand in no *class-descriptions*.csv, such as {nameless[0][:80]}")
    names = {label: described.get(label) or label for label in labels}
    counts: dict[str, int] = {}
    for name in names.values():
        counts[name] = counts.get(name, 0) + 1
    names = {label: f"{name} ({label})" if counts[name] > 1 else name for label, name in names.items()}
    require_unique(names.values(), lambda index: str(root))
    return names


FORMAT = Format(
    expects="train-annotations-human-imagelabels.csv (open_images)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
)
