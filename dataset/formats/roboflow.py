"""roboflow, its Multi-Label Classification CSV: `<split>/_classes.csv` beside the images. It is only read.

The header is `filename, class, class ...` with blanks after the commas; 1 is present, 0 absent, blank unknown. The
splits are the folders train, valid and test. See https://roboflow.com/formats/multi-label-classification-csv and
https://docs.roboflow.com/datasets/dataset-versions/exporting-data (its COCO export is read as coco_json).
"""

from __future__ import annotations

from pathlib import Path

from dataset.csv_files import read_header
from dataset.formats.base import Format, SplitSource
from dataset.formats.csv import read_files
from dataset.splits import find_folders, require_one
from dataset.table import SPLITS, Table


def list_splits(root: Path) -> list[str]:
    return [split for split in SPLITS if files_of_split(root, split)]


def files_of_split(root: Path, split: str) -> list[Path]:
    files = [folder / "_classes.csv" for folder in find_folders(root)[split]]
    return [file for file in files if file.is_file() and "filename" in read_header(file)]


def read(source: SplitSource) -> Table:
    files = {split: files_of_split(source.root, split) for split in SPLITS}
    return read_files(source, files, base=require_one(files[source.split], source.split).parent)


FORMAT = Format(
    expects="train/_classes.csv (roboflow)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
)
