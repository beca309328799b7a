"""label_rows: `<split>.csv` or .tsv with an image and its `label`: a name, names joined by commas, or a row for each.

It is only read, as other CSV files with a column of names are: see dataset/formats/csv.py.

    image_path,label          image,label
    a.jpg,"cat,dog"           a.jpg,cat
    b.jpg,dog                 a.jpg,dog

The first is LightlyTrain's (docs.lightly.ai/train/stable/image_classification.html, "CSV-based Datasets"), where labels
may be numbers of classes, too: `classes.txt` names them. In the second, as in lists of search results or of votes, an
image stands once for each of its labels. A label that an image does not have is absent.
"""

from __future__ import annotations

from pathlib import Path

from dataset.formats.base import Format, SplitSource
from dataset.formats.csv import add_unlabelled, is_label_rows, list_tables, lists_images_only, read_files
from dataset.splits import find_split, sort_files
from dataset.table import Table


def list_splits(root: Path) -> list[str]:
    return list(find_files(root))


def files_of_split(root: Path, split: str) -> list[Path]:
    return find_files(root).get(split, [])


def find_files(root: Path) -> dict[str, list[Path]]:
    """{split: files}: those whose names say a split, or the only table; others may be results or notes."""
    files = [file for file in list_tables(root) if file.name != "metadata.csv"]  # which is Hugging Face's
    listing = [file for file in files if lists_images_only(file)]
    alone = len(files) == len(listing) + 1
    labelled = sort_files(file for file in files if (find_split(file.stem) or alone) and is_label_rows(file))
    return add_unlabelled(labelled, listing)


def read(source: SplitSource) -> Table:
    return read_files(source, find_files(source.root))


FORMAT = Format(
    expects="train.csv with an image and its label (label_rows)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
)
