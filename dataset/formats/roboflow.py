"""roboflow, its Multi-Label Classification CSV: `<split>/_classes.csv` beside the images.

The header is `filename, class, class ...`, with or without blanks after the commas; 1 is present, 0 absent, blank
unknown. The splits are the folders train, valid and test. Its COCO export is read as coco_json.

See https://roboflow.com/formats/multi-label-classification-csv and
https://docs.roboflow.com/datasets/dataset-versions/exporting-data.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from dataset.csv_files import read_header
from dataset.formats.base import Format, SplitSource
from dataset.formats.csv import read_files
from dataset.splits import find_folders, require_one
from dataset.table import SPLITS, Table
from dataset.text_files import CsvFile, replace_text
from utils import InputError


def list_splits(root: Path) -> list[str]:
    return [split for split in SPLITS if find_files(root, split)]


def files_of_split(root: Path, split: str) -> list[Path]:
    return [file.parent for file in find_files(root, split)]


def find_files(root: Path, split: str) -> list[Path]:
    files = [folder / "_classes.csv" for folder in find_folders(root)[split]]
    return [file for file in files if file.is_file() and "filename" in read_header(file)]


def read(source: SplitSource) -> Table:
    files = {split: find_files(source.root, split) for split in SPLITS}
    file = require_one(files[source.split], source.split)
    return read_files(source, files, base=file.parent, image="filename")


# ---- writing ----


def name_images(table: Table, names: list[str]) -> list[str]:
    if "filename" in table.classes:
        raise InputError("a class is called 'filename', which is the column of the images in Roboflow's CSV: rename it")
    if odd := next((name for name in names if name.strip() != name), None):
        raise InputError(f"{odd!r} begins or ends with a blank, which has no meaning in Roboflow's CSV: rename it")
    return names


def write(table: Table, root: Path, split: str, names: list[str]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(CsvFile(buffer), quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(["filename", *table.classes])
    for name, row in zip(names, table.targets.tolist(), strict=True):
        writer.writerow([name, *("" if value == -1 else value for value in row)])
    replace_text(root / FORMAT.images_folder(split) / "_classes.csv", buffer.getvalue())


FORMAT = Format(
    expects="train/_classes.csv (roboflow)",
    list_splits=list_splits,
    reader=read,
    writer=write,
    files_of_split=files_of_split,
    images_in="{split}",
    folder_names={"val": "valid"},
    name_images=name_images,
    split_by_folder=True,
)
