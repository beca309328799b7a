"""The rows of a table in the making, collected line by line from an annotation file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from dataset.class_names import is_text
from dataset.files import find_missing, find_path, make_absolute
from dataset.image_finder import ImageFinder, find_path_in, leads_away, restore_address
from dataset.json_files import JsonLine
from dataset.splits import find_split
from dataset.table import Table, join_tables, require_room
from utils import InputError, warn

# Set for the reading that is under way, so that no reader has to hand it on to its rows
_keeps_missing = ContextVar("keeps_missing", default=False)
_missing: ContextVar[dict[str, str] | None] = ContextVar("missing", default=None)
MOST_NOTED = 200  # missing images whose line is looked for: in a JSON file that takes time


@contextmanager
def keep_missing_images(keep: bool) -> Iterator[None]:
    """Until the end of `with`, let tables keep the rows of images that do not exist: ReadOptions.keep_missing."""
    token = _keeps_missing.set(keep)
    try:
        yield
    finally:
        _keeps_missing.reset(token)


def keeps_missing_images() -> bool:
    """Whether it is on."""
    return _keeps_missing.get()


@contextmanager
def note_missing_images() -> Iterator[dict[str, str]]:
    """Until the end of `with`, collect {path: what is said of it} of images that are kept though they do not exist.

    The first MOST_NOTED are noted: "train.csv:7: 'a.jpg' does not exist; there is a.JPG, with other capital letters".
    """
    notes: dict[str, str] = {}
    token = _missing.set(notes)
    try:
        yield notes
    finally:
        _missing.reset(token)


def note_missing(path: str, note: str) -> bool:
    """Note what is said of an image that does not exist. False where nobody collects it, or enough is noted."""
    notes = _missing.get()
    if notes is None or len(notes) >= MOST_NOTED:
        return False
    notes[path] = note
    return True


class Rows:
    """Collects images and their labels, then makes a table of them.

        rows = Rows(base=root, inside=root, classes=("cat", "dog"))
        rows.add("photos/a.jpg", bytes([1, 0]), f"{file}:1")
        table = rows.make_table(file)

    Paths are relative to `base` and must not leave `inside`. A path that comes again with the same labels counts once.
    """

    def __init__(self, base: Path, inside: Path, classes: Sequence[str]) -> None:
        self.base, self.inside, self.classes = str(make_absolute(base)), str(make_absolute(inside)), tuple(classes)
        self.start = self.inside.rstrip(os.sep) + os.sep
        self.outside: dict[str, str] = {}  # by path: the text of those that are not inside, where nothing is looked for
        self.rows: dict[str, tuple[bytes, str, str | JsonLine]] = {}  # by path: labels, group, where that stands

    def add(self, text: str, values: bytes, where: str | JsonLine, group: str = "") -> None:
        """Add an image: its path, its labels as dataset/label_values.py makes them, and where both stand."""
        require_room(len(self.rows), len(self.classes))
        if text.strip() and ("\0" in text or not is_text(text)):
            raise InputError(f"{where}: {text[:80]!a} cannot be the path of a file")
        path = find_path(self.base, text)
        if not path.startswith(self.start):
            if not text.strip():
                raise InputError(f"{where}: the path of the image is missing")
            self.outside[path] = text
        known_values, known_group, known_where = self.rows.setdefault(path, (values, group, where))
        if (known_values, known_group) != (values, group):
            what = "labels or another group" if group or known_group else "labels"
            raise InputError(f"{where}: {text[:300]!r} has other {what} here than at {known_where}")

    def make_table(self, file: Path, has_groups: bool = False) -> Table:
        """The table, sorted by path. Raises InputError when `file` lists no image, or one that does not exist.

        Where one difference, such as another ending, explains all images that do not exist, what is there is taken for
        them, and that is said.
        """
        if not self.rows:
            raise InputError(f"{file} lists no images")
        paths = sorted(self.rows)
        inside = [path for path in paths if path not in self.outside] if self.outside else paths
        if missing := [*self.outside, *find_missing(inside)]:
            self._place(missing, file)
            paths = sorted(self.rows)
        values = b"".join(self.rows[path][0] for path in paths)
        targets = np.frombuffer(values, dtype=np.int8).reshape(len(paths), len(self.classes)).copy()
        groups = tuple(self.rows[path][1] for path in paths) if has_groups else None
        return Table(paths, targets, self.classes, groups)

    def _place(self, missing: Sequence[str], file: Path) -> None:
        """Replace the paths of images that do not exist by what is there. Raises InputError where that is not clear."""
        finder = ImageFinder(Path(self.inside))
        texts = {path: self._find_text(path) for path in missing}
        present = {path.removeprefix(self.start) for path in self.rows.keys() - texts.keys()}
        moved = finder.find_moved(texts, present, find_split(file.stem) or "")
        lost = [path for path in missing if path not in moved.places]
        first, where = missing[0], self.rows[missing[0]][2]
        shown = texts[first] if leads_away(texts[first]) else first
        line = f"{len(missing)} of {len(self.rows)} images do not exist, the first: {shown[:300]} ({where})"
        if lost and moved.places:
            line = f"{len(missing)} of {len(self.rows)} images do not exist"  # which is missing follows
        elif first in self.outside and lost:
            line = f"{where}: the path {shown[:300]!r} leaves the data set's folder {self.inside}"
        if not lost:
            what = "it is taken" if len(missing) == 1 else f"all {len(missing)} are taken so"
            hints = [f"there is {moved.places[first]}, {moved.says}", what]
        else:
            hints = [finder.suggest(texts[lost[0]]), *moved.conflicts[:1]]
            if moved.places:
                place = next(iter(moved.places.values()))
                count = f"{len(moved.places)} of them {'is' if len(moved.places) == 1 else 'are'} there {moved.says}"
                leaves = f", which leaves the data set's folder {self.inside}" if lost[0] in self.outside else ""
                lacks = f"{texts[lost[0]][:300]} ({self.rows[lost[0]][2]}){leaves}"
                hints.insert(0, f"{count}, such as {place}, but not {lacks}")
            if "://" in texts[lost[0]]:
                hints.append("images on the web are not fetched")
        line = "; ".join([line, *filter(None, hints)])
        if lost and not keeps_missing_images():
            raise InputError(line)
        places = {path: f"{self.start}{OUTSIDE}/{name_inside(texts[path])}" for path in self.outside}
        places |= {path: self.start + found for path, found in moved.places.items()}
        noted = False
        for path in lost:
            hint = finder.suggest(texts[path])
            note = f"{self.rows[path][2]}: {texts[path][:300]!r} does not exist{'; ' * bool(hint)}{hint}"
            noted = note_missing(places.get(path, path), note)
            if not noted:
                break
        if moved.places or not noted:
            warn(line)
        self.rows = {places.get(path, path): row for path, row in self.rows.items()}

    def _find_text(self, path: str) -> str:
        """A listed path as it is looked for: from `inside` on, or as it leads elsewhere."""
        if path in self.outside:
            return self.outside[path]
        text = restore_address(path.removeprefix(self.base.rstrip(os.sep) + os.sep))
        return text if leads_away(text) else path.removeprefix(self.start)


OUTSIDE = "(outside)"  # in place of the folders of an image that is kept though its path leaves the data set's folder


def name_inside(text: str) -> str:
    """The names in a path that leaves the data set's folder, which nobody is to open."""
    return "/".join(part for part in find_path_in(text).split("/") if part not in ("", ".", ".."))


def join_files(tables: Sequence[Table], files: Iterable[Path]) -> Table:
    """The tables of several files of one split as one. Raises InputError when two of them list the same image."""
    table = join_tables(tables)
    path, count = Counter(table.paths).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path} is listed in more than one of {', '.join(map(str, files))}")
    return table
