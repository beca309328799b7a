"""label_studio: what Label Studio exports as JSON, JSON-MIN or CSV, in the folder, whatever its name. It is only read.

A label is a choice, or the label of a box, polygon, brush and the like. A choice that lies in others, as in a taxonomy,
is named by its path: `Animal / Cat`. A file with `train`, `val` or `test` in its name is that split; where no name says
one, all is training data. What no annotation of an image names is absent; an annotation without a result says that
nothing is there. Tasks that were skipped or have no annotation are left out. Of several annotations those marked as
ground truth count, else all, which must agree. `classes.txt`, where it is there, orders the classes: an export does not
list those that were never chosen.

Images are found below the folder by the ends of their paths (dataset/image_finder.py).
See https://labelstud.io/guide/export, and HumanSignal/label-studio-sdk: src/label_studio_sdk/converter/exports/csv2.py.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from dataset.csv_files import read_dicts, read_header
from dataset.export_files import describe_left_out
from dataset.files import has_image_ending
from dataset.formats.base import Format, SplitSource
from dataset.image_finder import ImageFinder, find_path_in
from dataset.json_files import looks_like, parse_json
from dataset.label_cells import PATH, find_lists, list_names, parse_cell
from dataset.label_values import mark_columns
from dataset.rows import Rows, join_files
from dataset.splits import sort_files
from dataset.table import Table
from dataset.text_files import read_text
from utils import InputError, warn

# Columns that every CSV and JSON-MIN has, and two that some have
ALWAYS = {"annotation_id", "annotator", "created_at", "updated_at", "lead_time"}
NO_LABELS = ALWAYS | {"id", "agreement", "history"}
PATHS = r'"(taxonomy|choices)"+\s*:\s*\[\s*\['  # the beginning of choices that lie in others, also in a cell of a CSV
MOST_FILES = 20  # JSON files in a folder: with more, they are one an image, which is another format


class Annotation(NamedTuple):
    """What one annotation says: where it stands, the image's path as it is written, the names of its labels."""

    where: str
    image: str
    names: list[str]


def list_splits(root: Path) -> list[str]:
    return list(find_files(root))


def files_of_split(root: Path, split: str) -> list[Path]:
    return find_files(root).get(split, [])


def find_files(root: Path) -> dict[str, list[Path]]:
    """The exported files of each split."""
    found = [sorted(root.glob(pattern)) for pattern in ("*.json", "*.csv")]
    return sort_files(file for files in found if len(files) <= MOST_FILES for file in files if is_export(file))


def explain_left_out(root: Path) -> str:
    return describe_left_out(find_files(root), [root], (".json", ".csv"), is_export)


def is_export(file: Path) -> bool:
    """Whether the file seems to be what Label Studio exports."""
    if file.suffix == ".csv":
        return file.is_file() and set(read_header(file)) >= ALWAYS
    tasks = looks_like(file, "[{", r'"data"\s*:\s*\{', r'"annotations"\s*:\s*\[')
    return tasks or looks_like(file, "[{", *(rf'"{name}"\s*:' for name in sorted(ALWAYS)))


def read(source: SplitSource) -> Table:
    root, files = source.root, find_files(source.root)
    label_columns = source.options.label_columns
    annotations = {file: list(read_file(file, label_columns)) for file in chain.from_iterable(files.values())}
    names = {name for found in annotations.values() for annotation in found for name in annotation.names}
    if any(looks_like(file, "", PATHS) for file in annotations):
        require_outer_choices(chain.from_iterable(annotations.values()), names)
    index = source.choose_classes(names)
    if not index.classes:
        raise InputError(f"{files[source.split][0]}: no annotation has a choice or a label of a box")
    finder, tables = ImageFinder(root), []
    for file in files[source.split]:
        rows = Rows(root, root, index.classes)
        for where, image, found in annotations[file]:
            present = index.find_all(found, where)
            rows.add(finder.find(image, where), mark_columns(present, (), len(index.classes), where), where)
        tables.append(rows.make_table(file))
    return join_files(tables, files[source.split])


def read_file(file: Path, label_columns: Sequence[str]) -> Iterator[Annotation]:
    """The annotations of a file of any of the three kinds. Raises InputError for what is wrong.

    `label_columns` hold the labels in a JSON-MIN or CSV; (): they are recognised.
    """
    if file.suffix == ".csv":
        rows = {f"{file}:{line}": row for line, row in read_dicts(file)}
        cells = {where: {name: read_cell(row[name], where) for name in row} for where, row in rows.items()}
        yield from read_records(file, cells, label_columns)
        return
    tasks = parse_json(read_text(file), file)
    try:
        if tasks and "annotation_id" in tasks[0]:
            records = {f"{file}: annotation {task['annotation_id']}": task for task in tasks}
            yield from read_records(file, records, label_columns)
        else:
            yield from read_tasks(file, tasks)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no export of Label Studio: {type(error).__name__} {str(error)[:200]}") from error


def read_cell(cell: str, where: str) -> str | list[str]:
    """The names in a cell of a CSV, or its text."""
    names = parse_cell(cell, where)
    return cell if names is None else names


def read_tasks(file: Path, tasks: Iterable[dict[str, Any]]) -> Iterator[Annotation]:
    """The annotations in an export as JSON."""
    left_out, control_of = 0, {}
    for task in tasks:
        where = f"{file}: task {task.get('id')}"
        done = [annotation for annotation in task["annotations"] if not annotation.get("was_cancelled")]
        left_out += not done
        for annotation in [one for one in done if one.get("ground_truth")] or done:
            names = []
            for result in annotation["result"]:
                value, control = result.get("value"), result.get("from_name")
                found = list_names(value)
                if found is None and isinstance(value, dict) and find_lists(value):
                    raise InputError(
                        f"{where}: the labels of {control} are {reprlib.repr(value)}, which is no list of names: "
                        "correct them in Label Studio"
                    )
                for name in found or ():
                    first = control_of.setdefault(name, control)
                    if first != control:
                        raise InputError(
                            f"{where}: {name!r} is a label of {first} and of {control}, and would be one class: rename "
                            "it in one of the two"
                        )
                    names.append(name)
            yield Annotation(where, find_image(task["data"], where), names)
    controls = {str(control) for control in control_of.values()}
    if len(controls) > 1:
        warn(f"{file}: the labels of {', '.join(sorted(controls))} are all classes")
    if left_out:
        warn(f"{file}: {left_out} task(s) were skipped or have no annotation, and are left out")


def read_records(
    file: Path, records: Mapping[str, Mapping[str, Any]], label_columns: Sequence[str]
) -> Iterator[Annotation]:
    """The annotations in an export as JSON-MIN or CSV: {where: {column: value}}."""
    columns = find_label_columns(file, list(records.values()), label_columns)
    for where, record in records.items():
        names = []
        for column in columns:
            value = record.get(column)
            names += [value.strip()] if isinstance(value, str) and value.strip() else list_names(value) or ()
        yield Annotation(where, find_image(record, where), names)


def require_outer_choices(annotations: Iterable[Annotation], names: Collection[str]) -> None:
    """Raise InputError for `Animal / Cat` on an image without `Animal`, which is one of the `names`, too.

    Nothing says whether such an image shows an animal: a label that it does not have is absent.
    """
    for where, _, found in annotations:
        for name in found:
            path = name.split(PATH)
            outer = [PATH.join(path[:depth]) for depth in range(1, len(path))]
            if lacking := next((choice for choice in outer if choice in names and choice not in found), None):
                raise InputError(
                    f"{where}: is {name[:80]!r} also {lacking[:80]!r}, which is chosen elsewhere? Choose both in Label "
                    "Studio, or only what holds no other choice"
                )


def find_label_columns(file: Path, records: list[Mapping[str, Any]], label_columns: Sequence[str]) -> Sequence[str]:
    """The columns that hold labels. Raises InputError where nothing tells them from the columns of the task's data."""
    columns = [column for column in dict.fromkeys(chain.from_iterable(records)) if column not in NO_LABELS]
    others = [column for column in columns if not any(is_image(record.get(column)) for record in records)]
    lists = [column for column in others if any(list_names(record.get(column)) for record in records)]
    if missing := [column for column in label_columns if column not in others]:
        raise InputError(f"{file}: there is no column {missing[0]!r} of LABEL_COLUMNS: it has {', '.join(others)}")
    if label_columns:
        return label_columns
    chosen = lists or (others if len(others) == 1 else [column for column in others if column == "choice"])
    if not chosen:
        raise InputError(
            f"{file}: which of the columns {', '.join(others) or '(none)'} holds the labels? Set LABEL_COLUMNS"
        )
    if len(chosen) < len(others):
        left = ", ".join(column for column in others if column not in chosen)
        warn(f"{file}: labels are read from {', '.join(chosen)}, not from {left}: LABEL_COLUMNS chooses others")
    return chosen


def find_image(data: Mapping[str, Any], where: str) -> str:
    """The path or address of the task's image. Raises InputError where there is none, or more than one."""
    found = [key for key, value in data.items() if is_image(value)]
    if len(found) != 1:
        names = " and ".join(found) or f"none of {', '.join(map(str, data))}"
        raise InputError(f"{where}: one image a task is read, but {names} name one")
    return data[found[0]]


def is_image(value: Any) -> bool:
    return isinstance(value, str) and has_image_ending(find_path_in(value))


FORMAT = Format(
    expects="an export of Label Studio (label_studio)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
    explain_left_out=explain_left_out,
)
