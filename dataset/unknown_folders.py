"""What lies in a folder that is in no known format: what it looks like, and the one step to take.

    explain_folder(Path("/data/photos"))
    # 'it holds labels.xlsx and 412 .jpg in images/; labels.xlsx is a spreadsheet: save it as ...'

What single files are says dataset/unknown_files.py; here is how folders lie in each other.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dataset.files import IMAGE_EXTENSIONS, UNREAD_PICTURES, is_folder
from dataset.formats import FORMATS
from dataset.formats.image_folder import NO_CLASSES
from dataset.splits import WORDS, find_split
from dataset.unknown_files import ARCHIVE, LONGEST, WRITE_CSV, cut, explain_file, show
from utils import InputError

MOST_FILES = 20_000  # after so many, no further folder is looked into
MOST_DEPTH = 4  # folders in each other
MOST_ITEMS = 5  # files, or groups of files of one ending, that are named
MOST_TRIES = 20  # folders that may be a data set each, or files that may hold the labels
FEW = 3  # files of one ending in a folder that are named one by one
# names of files that hold no labels, and of those that are looked at last, since they may hold none
NO_LABELS = re.compile(
    r"(readme|licen[cs]e|requirements|changelog|notes?\b|thumbs\.db|desktop\.ini|classes\.txt$).*|.*\.(md|py|ipynb|html)",
    re.IGNORECASE | re.DOTALL,
)
UNLIKELY = re.compile(r"submission|meta\.json$|\.ya?ml$|info", re.IGNORECASE)
FIRST_ENDINGS = [r"\.(csv|tsv)$", r"\.(json|jsonl|ndjson|manifest)$", r"\.xml$", r"\.txt$", r"\.(xlsx?|ods)$", r""]


@dataclass
class Survey:
    """What lies in `root`; hidden files and folders are left out."""

    root: Path
    files: list[str]  # from `root` on
    folders: list[str]  # with a slash
    is_whole: bool  # False: there are more than MOST_FILES, and not all were looked at

    @functools.cached_property
    def images(self) -> list[str]:
        return [name for name in self.files if find_ending(name) in IMAGE_EXTENSIONS]

    @functools.cached_property
    def kinds(self) -> dict[str, list[str]]:
        """{ending: its files}, those that are no images first."""
        kinds: dict[str, list[str]] = {}
        for name in self.files:
            kinds.setdefault(find_ending(name), []).append(name)
        first = {ending for ending, names in kinds.items() if may_hold_labels(names[0])} - IMAGE_EXTENSIONS
        return {ending: kinds[ending] for ending in sorted(kinds, key=lambda ending: ending not in first)}

    def is_of_many(self, name: str) -> bool:
        """Whether many files of its kind lie beside it: one for each image."""
        folder = name.rpartition("/")[0]
        return sum(other.rpartition("/")[0] == folder for other in self.kinds[find_ending(name)]) > FEW

    def list_others(self) -> list[str]:
        """The files that may hold labels, the likeliest first; of many of a kind in a folder the first."""
        groups: dict[tuple[str, str], list[str]] = {}
        for ending, names in self.kinds.items():
            for name in names if ending not in IMAGE_EXTENSIONS else ():
                groups.setdefault((ending, name.rpartition("/")[0]), []).append(name)
        found = [name for names in groups.values() for name in (names if len(names) <= FEW else names[:1])]
        return sorted(filter(may_hold_labels, found), key=rank)


def may_hold_labels(name: str) -> bool:
    return not NO_LABELS.fullmatch(name.rpartition("/")[2])


def find_ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def find_base(names: Iterable[str]) -> str:
    """The innermost folder that all of `names` lie in, with a slash; "" for the outermost."""
    base = os.path.commonpath({name.rpartition("/")[0] for name in names})
    return f"{base}/" if base else ""


def rank(name: str) -> tuple[bool, int, bool, int, str]:
    """The likeliest file of labels has the lowest."""
    ending = next(number for number, pattern in enumerate(FIRST_ENDINGS) if re.search(pattern, name, re.IGNORECASE))
    return bool(UNLIKELY.search(name)), name.count("/"), find_split(Path(name).stem) != "train", ending, name


def survey_folder(root: Path) -> Survey:
    """List the files in `root`, the nearest first."""
    files: list[str] = []
    folders: list[str] = []
    waiting = [""]
    while waiting and len(files) < MOST_FILES:
        prefix = waiting.pop(0)
        try:
            with os.scandir(root / prefix) as scan:
                entries = sorted((entry for entry in scan if entry.name[0] != "."), key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise InputError(f"cannot read folder {root}: {error.strerror}") from error
            continue
        inner = [f"{prefix}{entry.name}/" for entry in entries if is_folder(entry) and entry.name != "__MACOSX"]
        files += [f"{prefix}{entry.name}" for entry in entries if not is_folder(entry)]
        folders += inner
        waiting += inner if prefix.count("/") < MOST_DEPTH else []
    return Survey(root, files, folders, not waiting)


# ---- what lies there ----


def describe(survey: Survey) -> str:
    """Example: `train.csv, notes.txt and 412 .jpg in images/`."""
    items: list[str] = []
    for ending, files in survey.kinds.items():
        if len(files) <= FEW:
            items += [file if len(file) <= LONGEST else cut(file) for file in files]
            continue
        folders = list(dict.fromkeys(file.rpartition("/")[0] + "/" for file in files if "/" in file))
        where = f" in {' and '.join(folders)}" if folders else ""
        if len(folders) > 2:
            where = f" in {len(folders)} folders, such as {folders[0]}"
        items.append(f"{len(files):,} {ending or 'files without ending'}{where}")
    if not items:
        items = [f"folders without files, such as {survey.folders[0]}"]
    shown, more = items[:MOST_ITEMS], len(items) - MOST_ITEMS
    text = ", ".join(shown[:-1]) + " and " + shown[-1] if len(shown) > 1 and more <= 0 else ", ".join(shown)
    return f"{text} and more" if more > 0 or not survey.is_whole else text


# ---- what it looks like ----


def find_formats(root: Path) -> list[str]:
    """The names of the formats that fit `root`; none where that cannot be told."""
    try:
        return [name for name, format in FORMATS.items() if format.recognise(root)]
    except InputError:
        return []


def explain_inner(survey: Survey) -> str | None:
    """A folder in it that is a data set, where no table of labels lies beside it."""
    if any(
        "/" not in name and re.search(r"\.(csv|tsv|jsonl?|xml|xlsx?)$", name, re.IGNORECASE) for name in survey.files
    ):
        return None
    return find_inner(survey)


def find_inner(survey: Survey) -> str | None:
    """A folder in it, or one folder deeper, that is a data set."""
    for depth in (1, 2):
        inner = [name for name in survey.folders if name.count("/") == depth][:MOST_TRIES]
        found = {name: formats[0] for name in inner if (formats := find_formats(survey.root / name))}
        if found:
            name, *others = found
            images = survey.images
            if images and not any(image.startswith(name) for image in images):
                return (
                    f"{name} in it is a data set ({found[name]}) without its images: move its files up to {survey.root}"
                )
            more = f"; {others[0]} is one, too (EXTRA_DATASET_FOLDERS joins it)" if others else ""
            return f"{name} in it is a data set ({found[name]}): set DATASET_FOLDER to {survey.root / name}{more}"
    return None


def explain_outer(survey: Survey) -> str | None:
    """A folder that is a data set, of which this one is a part: its images, its labels, a split."""
    for outer in list(survey.root.parents)[:2]:
        part = survey.root.relative_to(outer).parts[0]
        if part.lower() in (*NO_CLASSES, *WORDS) and (found := find_formats(outer)):
            return f"the folder {outer} that it lies in is a data set ({found[0]}): set DATASET_FOLDER to that"
    return None


def explain_renamed_splits(survey: Survey) -> str | None:
    """Class folders in folders whose names hold the word for a split: `training_set/cat/`."""
    for name in survey.folders:
        split = (
            find_split(name) if name.count("/") == 1 and name.lower() not in [f"{word}/" for word in WORDS] else None
        )
        if split and any(file.startswith(name) and file.count("/") > 1 for file in survey.images):
            return (
                f"{name} seems to hold a folder for each class: call it {split}/, and the others train/, val/ or test/ "
                "(image_folder: one label an image)"
            )
    return None


def explain_class_folders(survey: Survey) -> str | None:
    """Two or more folders of images, and no images beside them, at any depth."""
    base = find_base(survey.images) if survey.images else ""
    inner = [name.removeprefix(base) for name in survey.images]
    names = list(dict.fromkeys(name.partition("/")[0] for name in inner))
    if len(names) < 2 or any("/" not in name for name in inner):
        return None
    if any(find_split(name) or name.lower() in NO_CLASSES for name in names):
        return None
    return (
        f"{show(names)} hold images, and nothing else says labels: if each is a class (one label an image), move these "
        f"folders into {survey.root / 'train'}/; if not, {WRITE_CSV}"
    )


def explain_files(survey: Survey) -> str | None:
    """What the likeliest of its files is."""
    for name in survey.list_others()[:MOST_TRIES]:
        try:
            text = explain_file(survey.root / name, name, is_of_many=survey.is_of_many(name))
        except InputError as error:  # such as a link that leads nowhere
            text = str(error)
        if text:
            return text
    return None


def explain_images(survey: Survey) -> str | None:
    """Only images."""
    if not survey.images:
        kinds = sorted({*survey.kinds} & UNREAD_PICTURES)
        return f"files of the type {', '.join(kinds)} are not read: convert them to .jpg or .png" if kinds else None
    folder = survey.root / find_base(survey.images)
    return f"it has no labels: to predict these images set TEST_IMAGES_DIR to {folder}; to train {WRITE_CSV}"


# pictures of types that are not read: of phones, of cameras, of medicine
# in the order in which they are asked: the first that knows the folder says what it is
LOOKS: list[Callable[[Survey], str | None]] = [
    explain_inner,
    explain_files,
    find_inner,
    explain_renamed_splits,
    explain_outer,
    explain_class_folders,
    explain_images,
]


def explain_folder(root: Path) -> str:
    """What lies in `root`, what it looks like, and the step to take. Raises InputError where it cannot be read."""
    survey = survey_folder(root)
    if not survey.files and not survey.folders:
        return "it is empty: set DATASET_FOLDER to where the data set is"
    found = next(filter(None, (look(survey) for look in LOOKS)), None)
    found = found or "none of that is an image or names one: set DATASET_FOLDER to where the data set is"
    return f"it holds {describe(survey)}; {found}"


def explain_missing(root: Path) -> str:
    """What to do where `root` is no folder: what it is, or the folder that has nearly its name."""
    if ARCHIVE.search(root.name) and root.exists():
        return f"{root} is an archive: unpack it, and set DATASET_FOLDER to the folder that comes out"
    if root.exists():
        return f"{root} is a file, not a folder: set DATASET_FOLDER to the folder that it lies in"
    there = next(folder for folder in root.parents if folder.is_dir())
    wanted = root.relative_to(there).parts[0]
    try:
        names = sorted(entry.name for entry in os.scandir(there) if is_folder(entry))
    except OSError:
        names = []
    nearest = [name for name in names if name.lower() == wanted.lower()] or difflib.get_close_matches(wanted, names, 1)
    if nearest:
        hint = f"did you mean {there / nearest[0]}?"
    else:
        hint = "" if there == root.parent else f"of this path there is {there} only"
    return f"there is no folder {root}: set DATASET_FOLDER to where the data set is{f' ({hint})' if hint else ''}"
