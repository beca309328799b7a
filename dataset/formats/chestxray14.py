"""chestxray14: `Data_Entry_2017*.csv`, `train_val_list.txt` and `test_list.txt`, images in `images_001/images/` ...

NIH ChestX-ray14 (Wang et al., ChestX-ray8, CVPR 2017; README_CHESTXRAY.pdf and FAQ of the release,
https://nihcc.app.box.com/v/ChestXray-NIHCC), only read. Columns: `Image Index`, the image's name; `Finding Labels`,
joined by |, where `No Finding` says that there is none; `Patient ID`, which is the group: the lists keep a patient in
one split. All other columns are left. The images of `train_val_list.txt` are train, of which VAL_SPLIT takes those to
validate on; without both lists, all are train. Images lie in any folder `images*`.
"""

from __future__ import annotations

from pathlib import Path

from dataset.class_names import find_class, read_classes, split_names
from dataset.csv_files import read_cells
from dataset.formats.base import Format, SplitSource
from dataset.formats.csv import read_header
from dataset.image_finder import ImageFinder
from dataset.label_values import mark_columns
from dataset.rows import Rows
from dataset.table import Table
from dataset.text_files import read_lines
from utils import InputError

COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
NONE = "No Finding"


def list_splits(root: Path) -> list[str]:
    if not find_file(root):
        return []
    return [split for split in LISTS if (root / LISTS[split]).is_file()] or ["train"]


def files_of_split(root: Path, split: str) -> list[Path]:
    return [*([file] if (file := find_file(root)) else []), root / LISTS[split]]


def find_file(root: Path) -> Path | None:
    """The table of labels. Raises InputError where there are two, such as those of 2017 and of 2020."""
    files = [file for file in sorted(root.glob("Data_Entry*.csv")) if file.is_file()]
    found = [file for file in files if set(COLUMNS) <= set(read_header(file))]
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1]} differ in their labels: keep the one that you mean")
    return found[0] if found else None


def read(source: SplitSource) -> Table:
    root, listed = source.root, read_list(source.root / LISTS[source.split])
    waiting = dict(listed or {})  # what the list names and the table has not shown yet
    file = find_file(root)
    assert file is not None, "Format.read asks for the splits first"
    entries = list(read_cells(file, COLUMNS))
    names = {name for _, (_, cell, _) in entries for name in split_names(cell, "|")} - {NONE}
    classes = read_classes(root, sorted(names))
    columns = {name: column for column, name in enumerate(classes)}
    places = ImageFinder(root, [folder for folder in sorted(root.glob("images*")) if folder.is_dir()]).map_names()
    rows = Rows(root, root, classes)
    for line, (image, cell, patient) in entries:
        if listed is not None and image not in listed:
            continue
        waiting.pop(image, None)
        where = f"{file}:{line}"
        labels = split_names(cell, "|")
        if (NONE in labels and len(labels) > 1) or not labels:
            raise InputError(f"{where}: the findings {cell[:80]!r} are neither {NONE!r} nor names joined by |")
        present = [find_class(name, columns, where) for name in labels if name != NONE]
        values = mark_columns(present, (), len(classes), where)
        rows.add(places.get(image, f"images/{image}"), values, where, patient)
    if waiting:
        name, number = next(iter(waiting.items()))
        raise InputError(f"{root / LISTS[source.split]}:{number}: {name[:80]!r} stands in no line of {file}")
    return rows.make_table(file, has_groups=True)


def read_list(file: Path) -> dict[str, int] | None:
    """{image: line} of one of the two lists; None where neither of them is there, so that all images are meant."""
    return {text.strip(): line for line, text in read_lines(file)} if file.is_file() else None


FORMAT = Format(
    expects="Data_Entry_2017.csv (chestxray14)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
)
