"""csv: `<split>.csv`, one file with a column `split`, or the only CSV file in the folder, which is train then.

    image_path,labels        filename;cat;dog        Image,Tags,Split
    a.jpg,cat;dog            a.jpg;1;1               a.jpg,"['cat', 'dog']",train
    b.jpg,                   b.jpg;0;0               b.jpg,[],valid

* The image: `image_path`, or the only column with a usual name, such as `filename` or `Image Index`, or the only one
  that holds names of image files, with their endings or, where these files are there, without.
* Labels: a column `labels`, or the only other of a usual name that holds names (dataset/label_cells.py says what may
  join them); else every other column is a class (1, 0, -1 or blank; dataset/label_values.py). Where a heading is
  singular, such as `label`, an image may stand in several rows, and has the labels of all of them. Numbers are names
  where one of them, anywhere in the column, is no value of a class.
* LABEL_COLUMNS chooses the columns of labels. `classes.txt`, too, chooses and orders those of classes. A column `label`
  or the like of 1 and 0 holds names where LABEL_COLUMNS names it alone, or classes.txt names none of the columns.
* A test.csv with images only has unknown labels: it is there to predict.
* `split` says train, val (also valid, validation, dev) or test; `group`, if any, is the image's source.

roboflow and label_rows are read here, too.
"""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from dataset.class_names import ClassIndex, fold, read_classes, require_unique, show_names, to_nfc
from dataset.csv_files import (
    ENDINGS,
    IMAGE_COLUMNS,
    MOST_ROWS,
    find_image_columns,
    find_stem_columns,
    holds_images,
    holds_names,
    is_image,
    read_cells,
    read_first,
    read_header,
    simplify,
    stamp,
)
from dataset.export_files import say_left_out
from dataset.formats.base import Format, SplitSource
from dataset.formats.blank_tags import FORMAT as BLANK_TAGS
from dataset.formats.celeba import FORMAT as CELEBA
from dataset.formats.chestxray14 import FORMAT as CHESTXRAY14
from dataset.formats.chexpert import FORMAT as CHEXPERT
from dataset.formats.huggingface import FORMAT as HUGGINGFACE
from dataset.formats.label_studio import FORMAT as LABEL_STUDIO
from dataset.formats.open_images import FORMAT as OPEN_IMAGES
from dataset.formats.via import FORMAT as VIA
from dataset.formats.webdataset import FORMAT as WEBDATASET
from dataset.image_finder import find_folder
from dataset.label_cells import read_column
from dataset.label_values import VALUES, WORDS, choose_values, decide_values, mark_columns, name_values, parse_values
from dataset.rows import Rows, join_files
from dataset.splits import WORDS as SPLIT_OF
from dataset.splits import find_split, require_one
from dataset.table import SPLITS, Table
from dataset.text_files import CsvFile, replace_text
from utils import InputError, warn_once

OWN_COLUMNS = ("image_path", "labels", "split", "group")  # in what this project writes, every other is a class
# Names of columns as `simplify` makes them. The first hold names of classes, several in a cell or one
PLURALS = {"labels", "tags", "classes", "categories", "labelnames", "classnames"}
SINGULARS = {"label", "tag", "class", "category", "labelname", "classname"}
SPLIT_COLUMNS = {"split", "subset", "set", "dataset", "partition", "phase", "usage"}
# Columns whose values may be 0 and 1, too, but which are seldom a class
ODD_CLASSES = {
    *SPLIT_COLUMNS, "fold", "folds", "kfold", "train", "val", "valid", "validation", "test", "isvalid", "isval",
    "isvalidation", "istrain", "istest", "sex", "gender", "age", "id", "index", "idx", "width", "height", "patient",
    "patientid", "group", "confidence", "label", "target", "class", "verified", "iscrowd",
}  # fmt: skip
RESULTS = ("pred", "submission", "result", "output", "score", "probabilit")  # in names of files that hold no labels
# Formats whose CSV files have images and labels, too, and which know what these are
ELSEWHERE = (BLANK_TAGS, CELEBA, CHESTXRAY14, CHEXPERT, HUGGINGFACE, LABEL_STUDIO, OPEN_IMAGES, VIA, WEBDATASET)


# ---- which files ----


def list_splits(root: Path) -> list[str]:
    return list(find_files(root))


def files_of_split(root: Path, split: str) -> list[Path]:
    return find_files(root).get(split, [])


def find_files(root: Path) -> dict[str, list[Path]]:
    """The files of each split: by their names; where none says one, those with a column `split`, or the only file."""
    present = list_tables(root)
    files = [file for file in present if is_table(file)]
    listing = [file for file in present if lists_images_only(file)]
    if files and any(format.recognise(root) for format in ELSEWHERE):
        files = [file for file in files if "image_path" in read_header(file)]
    named = sort_by_name(files)
    chosen = list(chain.from_iterable(named.values())) or [file for file in files if list_splits_in(file)]
    if not chosen and len(present) == 1:
        chosen = [file for file in files if holds_truth(file)]
    split_of = {file: split for split, found in named.items() for file in found}
    splits = {file: list_splits_in(file) or {split_of.get(file, "train")} for file in chosen}
    found = {split: [file for file in chosen if split in splits[file]] for split in SPLITS}
    return add_unlabelled(found, listing)


def list_tables(root: Path) -> list[Path]:
    """The files in `root` whose ending is that of a table, in capitals, too; none where it is no folder."""
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:  # a Path for each would take long: a million images may lie there
        names = [entry.name for entry in entries if os.path.splitext(entry.name)[1].lower() in ENDINGS]
    return [root / name for name in sorted(names) if not name.endswith(".index.csv")]  # which are those of shards


def add_unlabelled(found: Mapping[str, list[Path]], listing: Sequence[Path]) -> dict[str, list[Path]]:
    """`found`, {split: its files}, without empty splits, and with val.csv and test.csv of those `listing` images only.

    These count where another split has labels.
    """
    called = {
        split: [file for file in listing if SPLIT_OF.get(file.stem.lower()) == split] for split in ("val", "test")
    }
    every = {split: found.get(split) or (called.get(split, []) if any(found.values()) else []) for split in SPLITS}
    return {split: files for split, files in every.items() if files}


def lists_images_only(file: Path) -> bool:
    """Whether its only column is that of the images: such as those to predict."""
    return file.is_file() and _lists_images_only(file, *stamp(file))


@functools.lru_cache
def _lists_images_only(file: Path, size: int, changed: int) -> bool:
    """`lists_images_only` for a file of that size that was last `changed` at that time."""
    header = read_header(file)
    try:
        return len(header) == 1 and not is_image(header[0]) and list_image_columns(file, header) == header
    except InputError:
        return bool(find_image_columns(header))  # reading it will say what is wrong


def sort_by_name(files: Sequence[Path]) -> dict[str, list[Path]]:
    """{split: its files}: those called like it, such as `valid.csv`, or else those with such a word in their names."""
    called = {split: [file for file in files if SPLIT_OF.get(file.stem.lower()) == split] for split in SPLITS}
    labels = [file for file in files if holds_truth(file)]
    return {split: called[split] or [file for file in labels if find_split(file.stem) == split] for split in SPLITS}


def holds_truth(file: Path) -> bool:
    """Whether nothing in its name says that it holds what a model gave, or a sample of it."""
    return not any(word in file.stem.lower() for word in RESULTS)


def is_table(file: Path) -> bool:
    """Whether it has images and their labels, and is no file of label_rows."""
    return file.is_file() and _is_table(file, *stamp(file))


@functools.lru_cache  # asked for several times before a run begins
def _is_table(file: Path, size: int, changed: int) -> bool:
    """`is_table` for a file of that size that was last `changed` at that time."""
    header = read_header(file)
    if any(map(is_image, header)) or len(header) == 1:
        return False  # it has no header, or no labels
    if "image_path" in header:
        return not is_label_rows(file)
    try:
        images = list_image_columns(file, header)
        others = [name for name in header if name not in images]
        if not images or is_label_rows(file):
            return False
        if any(simplify(name) in PLURALS | SINGULARS for name in others):
            return True
        rows = [cells for _, cells in islice(read_cells(file, others), MOST_ROWS)]
    except InputError:
        return bool(find_image_columns(header))  # reading it will say what is wrong
    columns = [{cell.lower() for cell in column} for column in zip(*rows, strict=True)]
    if any({""} < cells | {""} <= {*VALUES, *WORDS} for cells in columns):
        return True
    others = [name for name in others if name not in (find_split_column(file, header), "group")]
    return find_split(file.stem) is not None and len(others) == 1 and holds_other_text(file, others[0])


def is_label_rows(file: Path) -> bool:
    """Whether its columns are an image and `label`, which holds names."""
    header = read_header(file) if file.is_file() else []
    return len(header) == 2 and "label" in header and bool(find_image_columns(header)) and holds_names(file, "label")


def holds_other_text(file: Path, column: str) -> bool:
    """Whether a column holds words, none of them a value of a class: as names of classes under an unusual heading."""
    cells = {cell.lower() for cell in read_first(file, column)}
    return any(map(str.isalpha, "".join(cells))) and not cells - {""} & {*VALUES, *WORDS}


def list_splits_in(file: Path) -> frozenset[str]:
    """The splits that a column of the file names; none where it has no such column."""
    return _list_splits_in(file, *stamp(file))


@functools.lru_cache
def _list_splits_in(file: Path, size: int, changed: int) -> frozenset[str]:
    column = find_split_column(file, read_header(file))
    words = {cell.lower() for _, (cell,) in read_cells(file, (column,))} if column else set()
    return frozenset(SPLIT_OF[word] for word in words if word in SPLIT_OF)


# ---- which columns ----


class Columns(NamedTuple):
    """What the columns of a file are: `names` holds names of classes, or each of `classes` is one."""

    image: str
    split: str | None
    group: str | None
    names: tuple[str, ...]
    classes: tuple[str, ...]


def choose_columns(file: Path, root: Path, label_columns: Sequence[str], image: str | None = None) -> Columns:
    """The columns of `file`; with the column `image`, every other is a class. Warns of those left out, and of odd ones.

    Raises InputError for what LABEL_COLUMNS or classes.txt name and the file lacks, and where two columns may be meant.
    """
    header = require_unique(read_header(file), lambda index: f"{file}:1: column {index + 1}")
    split, group, all_are_classes = None, None, image is not None
    if image is None:
        image = choose_image_column(file, header)
        split, group = find_split_column(file, header), "group" if "group" in header else None
    others = [name for name in header if name not in (image, split, group)]
    label_columns, known = [*map(to_nfc, label_columns)], read_classes(root, ())
    if missing := [name for name in label_columns if name not in others]:
        raise InputError(f"{file}:1: there is no column {missing[0]!r} of LABEL_COLUMNS: it has {show_names(others)}")
    named = () if all_are_classes else choose_names_columns(file, label_columns or others, bool(label_columns), known)
    if named:
        if left := [name for name in others if name not in named]:
            what = ", ".join(map(repr, named))
            warn_once(f"{file}: labels are the names in {what}; left out: {show_names(left)} (LABEL_COLUMNS)")
        return Columns(image, split, group, named, ())
    only = others[0] if len(others) == 1 and not (label_columns or all_are_classes) else ""
    if only and only not in known and (holds_other_text(file, only) or (known and not resemble([only], known))):
        raise InputError(f'{file}:1: no column of labels: set LABEL_COLUMNS = ("{only}",) if it names the classes')
    classes = order_classes(file, label_columns or others, known, bool(label_columns))
    if left := [name for name in others if name not in classes]:
        reason = "LABEL_COLUMNS" if label_columns else "classes.txt"
        warn_once(f"{file}: {reason} chooses {len(classes)} columns of classes; left out: {show_names(left)}")
    if group and {*read_first(file, group)} - {""} <= {"0", "1"}:
        warn_once(f"{file}: {group!r} is read as each image's source, not as a class: if it is a class, rename it")
    odd = (
        [] if known or label_columns or all_are_classes else [name for name in classes if simplify(name) in ODD_CLASSES]
    )
    if odd:
        warn_once(f"{file}: {show_names(odd)}: read as a class; if it is none, set LABEL_COLUMNS, or write classes.txt")
    return Columns(image, split, group, (), classes)


def list_image_columns(file: Path, header: Sequence[str]) -> list[str]:
    """The columns that may be that of the images: those of a usual name, or else those that hold names of images.

    These may be without endings, where such images are there.
    """
    usual = find_image_columns(header)
    usual = [name for name in usual if simplify(name) in IMAGE_COLUMNS or holds_names(file, name)]  # `foto`: a class?
    found = usual or [name for name in header if holds_images(file, name)]
    return found or find_stem_columns(file, header)


def choose_image_column(file: Path, header: Sequence[str]) -> str:
    """The column of the images. Raises InputError where there is none, or where two hold names of image files."""
    candidates = list_image_columns(file, header)
    if len(candidates) > 1:
        holding = [name for name in candidates if holds_images(file, name)]
        if len(holding) == 1:
            warn_once(f"{file}: the images are those in {holding[0]!r}, whose cells are names of image files")
        candidates = holding if len(holding) == 1 else candidates
    if len(candidates) != 1:
        found = " and ".join(map(repr, candidates))
        raise InputError(
            f"{file}:1: the column of the images may be {found}: call it image_path"
            if found
            else f"{file}:1: no column of images among {show_names(header)}: call it image_path"
        )
    return candidates[0]


def find_split_column(file: Path, header: Sequence[str]) -> str | None:
    """The column of the splits: `split`, or the first of another usual name that holds words for splits."""
    if "split" in header:
        return "split"
    likely = [name for name in header if simplify(name) in SPLIT_COLUMNS]
    return next((name for name in likely if {cell.lower() for cell in read_first(file, name)} <= {*SPLIT_OF}), None)


def choose_names_columns(file: Path, columns: Sequence[str], are_chosen: bool, known: Sequence[str]) -> tuple[str, ...]:
    """Those of `columns` that hold names of classes; none where each column is a class.

    `are_chosen`: LABEL_COLUMNS names them. Else there is one; raises InputError where two may be meant. 1 and 0 are
    names, too, in a column that can be no class, since classes.txt names others (`known`), and in one called `label`
    or the like that LABEL_COLUMNS names alone.
    """
    likely = [name for name in columns if simplify(name) in PLURALS | SINGULARS]
    may_be_classes = resemble(columns, known)
    if are_chosen:
        are_names = len(columns) == 1 and not may_be_classes and bool(known or likely)
        return tuple(columns) if are_names or all(holds_names(file, name) for name in columns) else ()
    if "labels" in columns:
        return ("labels",)
    named = [name for name in likely if holds_names(file, name)]
    if not named and len(likely) == 1 and known and not may_be_classes:
        return tuple(likely)
    if len(named) > 1:
        raise InputError(
            f"{file}:1: labels may be in {' or '.join(map(repr, named))}: set LABEL_COLUMNS to one of them"
        )
    return tuple(named)


def resemble(columns: Iterable[str], known: Iterable[str]) -> bool:
    """Whether one of `columns` may be one of the classes `known`, in another spelling, too."""
    return not {*map(fold, columns)}.isdisjoint(map(fold, known))


def order_classes(file: Path, columns: Sequence[str], known: Sequence[str], are_chosen: bool) -> tuple[str, ...]:
    """The `columns` in the order of the classes `known` by classes.txt, which also chooses them.

    Raises InputError for a class without a column, and for a column of LABEL_COLUMNS that is no class.
    """
    if not columns:
        raise InputError(f"{file}:1: no column of labels: neither one `labels` of names, nor one for each class")
    if not known:
        return tuple(columns)
    if missing := [name for name in known if name not in columns]:
        raise InputError(
            f"{file}:1: there is no column for {missing[0]!r} of classes.txt: it has {show_names(columns)}"
        )
    if are_chosen and len(known) < len(columns):
        extra = next(name for name in columns if name not in known)
        raise InputError(f"{file}:1: LABEL_COLUMNS names {extra!r}, but classes.txt does not: make them agree")
    return tuple(known)


# ---- reading ----


class Row(NamedTuple):
    """A row of a file that is of the split which is read: what it says of an image, and where."""

    where: str
    image: str
    group: str
    cells: list[str]  # of the columns of names, or of those of the classes


def read(source: SplitSource) -> Table:
    files = find_files(source.root)
    if any(find_split(file.stem) for file in chain.from_iterable(files.values())):
        for ending in ENDINGS:
            say_left_out(files, source.root, ending, lambda file: is_table(file) and says_no_split(file))
    return read_files(source, files)


def says_no_split(file: Path) -> bool:
    """Whether its name says neither a split nor that it holds what a model gave."""
    return find_split(file.stem) is None and holds_truth(file)


def read_files(
    source: SplitSource, files: dict[str, list[Path]], base: Path | None = None, image: str | None = None
) -> Table:
    """The table of a split, where `files` are those of each split.

    Paths begin at `base`, or are looked for. With the column `image`, every other column is a class.
    """
    chosen = files[source.split]
    labelled = [file for file in chain.from_iterable(files.values()) if not lists_images_only(file)]
    if source.split == "test" and image is None and labelled and all(map(lists_images_only, chosen)):
        return read_unlabelled(source, require_one(chosen, source.split), labelled, base)
    columns = {file: choose_columns(file, source.root, source.options.label_columns, image) for file in chosen}
    if source.options.group_column is not None:
        columns = {file: found._replace(group=source.options.group_column) for file, found in columns.items()}
    if not columns[chosen[0]].split:
        require_one(chosen, source.split)
    every = list(dict.fromkeys(chain(chosen, *files.values())))
    named = next((file for file in chosen if columns[file].names), None)
    names = read_names(source, every) if named else None
    tables = [
        read_by_names(source, file, columns[file], names, base)
        if names and columns[file].names
        else read_values(source, file, columns[file], every, base)
        for file in chosen
    ]
    return join_files(tables, chosen)


def read_unlabelled(source: SplitSource, file: Path, labelled: Sequence[Path], base: Path | None) -> Table:
    """The table of a file that lists images only: all labels of the classes in the files `labelled` are unknown."""
    columns = choose_columns(labelled[0], source.root, source.options.label_columns)
    classes = read_names(source, labelled).columns.classes if columns.names else columns.classes
    image = choose_image_column(file, read_header(file))
    rows, found = make_rows(source, list_rows(source, file, Columns(image, None, None, (), ())), base, classes)
    for row in found:
        rows.add(row.image, mark_columns((), range(len(classes)), len(classes), row.where), row.where)
    warn_once(f"{file}: it has no labels: its images can be predicted, but tell nothing of how good a model is")
    return rows.make_table(file)


def read_values(source: SplitSource, file: Path, columns: Columns, every: Sequence[Path], base: Path | None) -> Table:
    """The table of the rows of the split in a file that has a column for each class; `every` file of the data set."""
    values = choose_values(source.options.minus_one, words=True)
    advice = ": if this column is no class, write the names of those that are into classes.txt, or set LABEL_COLUMNS"

    def list_others() -> Iterator[bytes]:
        for other in every:
            classes = [name for name in columns.classes if name in read_header(other)]
            for line, cells in read_cells(other, classes):
                yield parse_values(cells, classes, f"{other}:{line}", values, advice)

    rows, found = make_rows(source, list_rows(source, file, columns), base, columns.classes)
    for where, image, group, cells in found:
        rows.add(image, parse_values(cells, columns.classes, where, values, advice), where, group)
    return decide_values(rows.make_table(file, columns.group is not None), file, list_others)


class Names(NamedTuple):
    """What the cells of the columns of names hold, in all splits."""

    names_in: dict[str, list[str]]  # of each cell
    columns: ClassIndex  # turns names into columns
    one_a_row: bool  # whether an image stands in a row for each of its labels


def read_names(source: SplitSource, files: Sequence[Path]) -> Names:
    """The names in the columns of names of `files`."""
    cells: dict[str, str] = {}
    one_a_row, what, known = False, "", read_classes(source.root, ())
    for file in files:
        header = read_header(file)
        likely = [name for name in map(to_nfc, source.options.label_columns or header) if name in header]
        found = choose_names_columns(file, likely, bool(source.options.label_columns), known) if likely else ()
        what = what or f"{file}: column {', '.join(map(repr, found))}" if found else what
        name = str(file)  # which a message says faster than a Path
        for line, row in read_cells(file, found) if found else ():
            for cell in row:
                if cell not in cells:
                    cells[cell] = f"{name}:{line}"
        if any(simplify(name) in SINGULARS for name in found):
            images = [image for _, (image,) in read_cells(file, (choose_image_column(file, header),))]
            one_a_row |= len(set(images)) < len(images)
    names_in = read_column(cells, source.options.separator, known=known, what=what, one_a_row=one_a_row)
    index = source.choose_classes(chain.from_iterable(names_in.values()))
    if not index.classes:
        raise InputError(f"{what} names no class")
    return Names(names_in, index, one_a_row)


def read_by_names(source: SplitSource, file: Path, columns: Columns, names: Names, base: Path | None) -> Table:
    """The table of the rows of the split in a file with a column of names."""
    names_in, index, one_a_row = names
    found = list_rows(source, file, columns)
    rows, found = make_rows(source, unite_rows(found, columns.group) if one_a_row else found, base, index.classes)
    for where, image, group, cells in found:
        present = index.find_all([name for cell in cells for name in names_in[cell]], where)
        rows.add(image, mark_columns(present, (), len(index.classes), where), where, group)
    return rows.make_table(file, columns.group is not None)


def list_rows(source: SplitSource, file: Path, columns: Columns) -> Iterator[Row]:
    """The rows of the split that is read. Raises InputError for one of no split."""
    wanted = [columns.image, *filter(None, (columns.split, columns.group)), *columns.names]
    at = 1 + (columns.split is not None)
    rest, name = at + (columns.group is not None), str(file)
    for line, cells in read_cells(file, [*wanted, *columns.classes]):
        where = f"{name}:{line}"
        if columns.split is not None:
            split = SPLIT_OF.get(cells[1].lower())
            if split is None:
                known = ", ".join(SPLITS)
                raise InputError(
                    f"{where}: the {columns.split} {cells[1][:80]!r} is none of {known}: if it is no split, rename the "
                    "column"
                )
            if split != source.split:
                continue
        yield Row(where, cells[0], cells[at] if columns.group is not None else "", cells[rest:])


def unite_rows(rows: Iterable[Row], group: str | None) -> Iterator[Row]:
    """A row for each image, with the cells of all its rows. Raises InputError where the column `group` differs."""
    by_image: dict[str, Row] = {}
    for row in rows:
        first = by_image.setdefault(row.image, row._replace(cells=[]))
        if row.group != first.group:
            raise InputError(f"{row.where}: {row.image[:300]!r} has another {group!r} here than at {first.where}")
        first.cells.extend(row.cells)
    yield from by_image.values()


def make_rows(
    source: SplitSource, rows: Iterator[Row], base: Path | None, classes: Sequence[str]
) -> tuple[Rows, Iterator[Row]]:
    """What collects `rows`, with paths from `base` on, or from where the first image lies; and the `rows` again."""
    split, first = source.split, next(rows, None)
    folders = (".", "images", split, f"images/{split}", f"{split}_images")
    base = base or find_folder(source.root, folders, first.image.replace("\\", "/") if first else "")
    return Rows(base, source.root, classes), chain(filter(None, (first,)), rows)


# ---- writing ----


def name_images(table: Table, names: list[str]) -> list[str]:
    for name in set(table.classes) & set(OWN_COLUMNS):
        raise InputError(f"a class is called {name!r}, which means something else in a csv: rename it")
    return names


def write(table: Table, root: Path, split: str, names: list[str]) -> None:
    """Write a column for each class, which any table fits into and which keeps the order of the classes."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(CsvFile(buffer), quoting=csv.QUOTE_NONNUMERIC)
    groups = [] if table.groups is None else [table.groups]
    writer.writerow(["image_path", *(["group"] if groups else []), *table.classes])
    unknown = name_values(table)[-1]
    for name, row, *group in zip(names, table.targets.tolist(), *groups, strict=True):
        cells = [value if value >= 0 or unknown else "" for value in row]
        writer.writerow([os.path.normpath(os.path.join(FORMAT.images_folder(split), name)), *group, *cells])
    replace_text(root / f"{split}.csv", buffer.getvalue())


FORMAT = Format(
    expects="train.csv with a column of images and their labels (csv)",
    list_splits=list_splits,
    reader=read,
    writer=write,
    files_of_split=files_of_split,
    name_images=name_images,
    keeps_groups=True,
    splits_share_files=True,
)
