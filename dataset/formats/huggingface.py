"""huggingface: an image folder with `metadata.csv` or `metadata.jsonl` beside the images.

A split is a folder with such a file. Or one file lies in the data set's folder: then the first folder in `file_name`
says the split, and where none does, all is training data. Columns: `file_name`, and `labels` or `label`: a list, one
name, or names joined by the separator; or `objects`, with the `categories` of its boxes. What is not named is absent.
Whole numbers, as `datasets` has for classes, are names, too. `classes.txt`, where it is there, orders the classes.

What is written is `<split>/metadata.jsonl` with a list of names, and `classes.txt`; unknown labels have no place there.

See https://huggingface.co/docs/datasets/image_dataset and https://huggingface.co/docs/hub/datasets-image.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from dataset.class_names import name_labels, read_classes, write_classes
from dataset.csv_files import read_dicts, read_header
from dataset.formats.base import Format, SplitSource
from dataset.json_files import looks_like, parse_json
from dataset.label_cells import list_names, read_column, require_no_vectors
from dataset.label_values import mark_columns
from dataset.rows import Rows
from dataset.splits import WORDS, find_folders, require_one
from dataset.table import SPLITS, Table
from dataset.text_files import read_lines, replace_text, require_lines
from utils import InputError

LABELS = ("labels", "label", "objects")  # the columns that may hold labels; the first that is there does


# ---- which files ----


def list_splits(root: Path) -> list[str]:
    return list(find_files(root))


def files_of_split(root: Path, split: str) -> list[Path]:
    """The folders of a split; of metadata in `root` also this file."""
    files = find_files(root).get(split, [])
    return [file if file.parent == root else file.parent for file in files] + [
        folder for folder in find_folders(root)[split] if any(file.parent == root for file in files)
    ]


def find_files(root: Path) -> dict[str, list[Path]]:
    """The metadata of each split."""
    in_folders = {split: find_metadata(*folders) for split, folders in find_folders(root).items()}
    if any(in_folders.values()):
        return {split: in_folders[split] for split in SPLITS if in_folders[split]}
    files = find_metadata(root)
    found = {WORDS.get(folder) for file in files for folder in list_folders(file)}
    return {split: files for split in SPLITS if split in found} or ({"train": files} if files else {})


def find_metadata(*folders: Path) -> list[Path]:
    """The files in `folders` that name images and labels."""
    files = [folder / name for folder in folders for name in ("metadata.csv", "metadata.jsonl")]
    return [file for file in files if file.is_file() and has_labels(file)]


def has_labels(file: Path) -> bool:
    """Whether the file seems to have the columns `file_name` and one of LABELS."""
    if file.suffix == ".csv":
        header = read_header(file)
        return "file_name" in header and any(name in header for name in LABELS)
    return looks_like(file, "{", r'"file_name"\s*:', rf'"({"|".join(LABELS)})"\s*:')


def list_folders(file: Path) -> set[str]:
    """The first folder of each image's path in a metadata file; "" for an image without one."""
    found = file.stat()
    return _list_folders(file, found.st_size, found.st_mtime_ns)


@functools.lru_cache  # asked for several times before a run begins
def _list_folders(file: Path, size: int, changed: int) -> set[str]:
    """`list_folders` of a file of that size that was last `changed` at that time."""
    return {find_first_folder(row) for _, row in read_metadata(file)}


def find_first_folder(row: Mapping[str, Any]) -> str:
    folder, slash, _ = str(row.get("file_name")).replace("\\", "/").removeprefix("./").partition("/")
    return folder if slash else ""


# ---- reading ----


def read_metadata(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where it stands, {column: value}) of each line."""
    if file.suffix == ".csv":
        for number, row in read_dicts(file):
            yield f"{file}:{number}", row
        return
    for number, line in read_lines(file):
        row = parse_json(line, f"{file}:{number}")
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise InputError(f'{file}:{number}: expected {{"file_name": ..., "labels": [...]}}')
        yield f"{file}:{number}", row


def read(source: SplitSource) -> Table:
    root, files = source.root, find_files(source.root)
    file = require_one(files[source.split], source.split)
    cells: dict[str, str] = {}  # of all splits, and where each stands first
    lists: dict[tuple[str, ...], str] = {}  # the same of labels in lists, without boxes, of which a class has several
    listed: set[str] = set()
    for any_file in dict.fromkeys(chain.from_iterable(files.values())):
        for where, row in read_metadata(any_file):
            labels = read_labels(row, where)
            if isinstance(labels, str):
                cells.setdefault(labels, where)
            else:
                listed.update(labels)
                if not isinstance(find_value(row), dict):
                    lists.setdefault(tuple(labels), where)
    require_no_vectors((where, labels) for labels, where in lists.items())
    names_in = read_column(cells, source.options.separator, known=read_classes(root, ()), what=f"{file}: labels")
    index = source.choose_classes(listed.union(*names_in.values()))
    if not index.classes:
        raise InputError(f"{file}: no image has a label")
    rows = Rows(file.parent, root, index.classes)
    by_folder = file.parent == root and any(folder in WORDS for folder in list_folders(file))
    for where, row in read_metadata(file):
        split = WORDS.get(find_first_folder(row)) if by_folder else source.split
        if split is None:
            raise InputError(
                f"{where}: {row['file_name'][:300]!r} lies in the folder of no split, as others do: train, val or test"
            )
        if split == source.split:
            labels = read_labels(row, where)
            found = names_in[labels] if isinstance(labels, str) else labels
            name = row["file_name"]
            rows.add(
                name.strip() if file.suffix == ".csv" else name,
                mark_columns(index.find_all(found, where), (), len(index.classes), where),
                where,
            )
    return rows.make_table(file)


def find_column(row: Mapping[str, Any]) -> str | None:
    """The column of a line of metadata that holds its labels."""
    return next((name for name in LABELS if name in row), None)


def find_value(row: Mapping[str, Any]) -> Any:
    """What stands there: a list, a name, or the boxes."""
    column = find_column(row)
    return row.get(column) if column else None


def read_labels(row: Mapping[str, Any], where: str) -> str | list[str]:
    """The names of the labels in a line of metadata, or the text that holds them."""
    column, value = find_column(row), find_value(row)
    if isinstance(value, dict):  # the boxes' classes
        value = value.get("categories", value.get("category"))
    if value is None and column != "objects":
        return []
    if isinstance(value, str):
        return value
    found = list_names([value] if isinstance(value, int) else value)
    if found is None:
        raise InputError(f"{where}: {column!r} holds {str(value)[:80]!r}, not a name or a list of names")
    return found


# ---- writing ----


def name_images(table: Table, names: list[str]) -> list[str]:
    require_lines(table.classes)
    unknown = (table.targets == -1).any(axis=1)
    if unknown.any():
        raise InputError(
            f"{unknown.sum():,} of {len(table):,} images have unknown labels, such as {table.paths[unknown.argmax()]}, "
            "which have no place in Hugging Face's metadata: choose another format"
        )
    return names


def write(table: Table, root: Path, split: str, names: list[str]) -> None:
    write_classes(root, table.classes)
    lines = []
    for name, row in zip(names, table.targets, strict=True):
        present, _ = name_labels(row, table.classes)
        lines.append(json.dumps({"file_name": name, "labels": present}, ensure_ascii=False) + "\n")
    replace_text(root / FORMAT.images_folder(split) / "metadata.jsonl", "".join(lines))


FORMAT = Format(
    expects="train/metadata.csv (huggingface)",
    list_splits=list_splits,
    reader=read,
    writer=write,
    files_of_split=files_of_split,
    images_in="{split}",
    name_images=name_images,
    split_by_folder=True,
)
