"""Where the images of a list lie that are not where it says: other ending or folder, other machine, address."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial, reduce
from itertools import combinations
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import parse_qs, unquote, urlsplit

from dataset.files import IMAGE_EXTENSIONS, find_missing, find_path, list_files, looks_like_picture
from dataset.json_files import JsonLine
from dataset.splits import find_split
from utils import InputError

UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")  # Label Studio puts it before the name of a file that is uploaded
SCHEME = re.compile(r"([A-Za-z][\w+.-]+):/+")  # of an address, also of one whose slashes were joined
DRIVE = re.compile(r"[A-Za-z]:/")  # of Windows
AROUND = " \t\r\n\xa0\u3000\ufeff\u200b'\"\u201c\u201d"  # blanks, marks that are not seen, quotes


# ---- how a listed path and a file's may differ ----


class Rule(NamedTuple):
    """One way in which they differ: how it is said of the file, and what is the same in both paths."""

    says: str
    key: Callable[[str], str]


def strip_parts(path: str) -> str:
    """`path` without blanks and quotes around each folder and name."""
    return "/".join(part.strip(AROUND) for part in path.split("/"))


def drop_ending(path: str) -> str:
    """`path` without the ending of a picture, or several, as of `a.jpg.jpg`, of which Windows shows one."""
    stem, ending = os.path.splitext(path)
    return drop_ending(stem) if looks_like_picture(ending) else path


def simplify(path: str) -> str:
    """A name that stays the same under all RULES together."""
    return drop_ending(strip_parts(normalize("NFKC", unquote(path)))).rpartition("/")[2].casefold()


def drop_zeros(path: str) -> str:
    """The same, without zeros before a number, and the `.0` of a number with a fraction."""
    return re.sub(r"\d+", lambda number: number[0].lstrip("0") or "0", simplify(path).removesuffix(".0"))


RULES = (  # of which one is used, where it explains all, or else several, in this order
    Rule("without %-signs", unquote),
    Rule("with letters that Unicode writes in another way", lambda path: normalize("NFKC", path)),
    Rule("without blanks or quotes around its name", strip_parts),
    Rule("with other capital letters", str.casefold),
    Rule("with another ending", drop_ending),
)
OTHER_FOLDER = "in another folder"


class Surroundings(NamedTuple):
    """What a list's name and its other images say of where one may lie that is missing."""

    folders: Collection[str]  # of the other images; none where all are missing
    split: str  # "" where the name says none
    may_lie_deeper: bool  # in a folder below the listed one: most are missing, and no other image has a double


class Combination(NamedTuple):
    """Several ways in which paths differ at once."""

    rules: tuple[Rule, ...]
    other_folder: bool

    @property
    def says(self) -> str:
        return ", ".join([OTHER_FOLDER] * self.other_folder + [rule.says for rule in self.rules])

    def key(self, path: str) -> str:
        """What is the same in both paths, but for the folders where these differ, too."""
        return reduce(lambda path, rule: rule.key(path), self.rules, path)

    def choose(self, text: str, files: Sequence[str], around: Surroundings) -> list[str]:
        """Those of `files` that the listed path `text` may mean."""
        if not self.other_folder:
            return [] if leads_away(text) else [file for file in files if self.key(file) == self.key(text)]
        above, _, name = self.key(normalize("NFC", find_path_in(text))).rpartition("/")
        keys = {self.key(normalize("NFC", file)): file for file in files}
        alike = [key for key in keys if find_name(key) == name]
        if len(keys) < len(files):
            return []  # two files that cannot be told apart so
        nearest = [keys[key] for key in choose_nearest(alike, above)]
        return [file for file in nearest if may_move(text, file, around, self.key)]


COMBINATIONS = sorted(
    (
        Combination(rules, other_folder)
        for size in range(1, len(RULES) + 1)
        for rules in combinations(RULES, size)
        for other_folder in (False, True)
        if size + other_folder > 1
    ),
    key=lambda combination: len(combination.rules) + combination.other_folder,  # the least that explains all
)
HINTS = (  # that are only said
    Rule("which differs in more than one way", simplify),
    Rule("whose number a spreadsheet may have changed", drop_zeros),
)


# ---- finding ----


class Moved(NamedTuple):
    """How images were found: the difference that explains them, {listed path: file}, and what spoke against others."""

    says: str
    places: dict[str, str]
    conflicts: list[str]


class ImageFinder:
    """Finds images below `root`.

        finder = ImageFinder(root)
        finder.find("/data/upload/1/0a1b2c3d-cat.jpg", "project.json: task 7")    # images/cat.jpg
        finder.suggest("images/cat.jpg")                                          # there is images/cat.JPG, with ...

    All paths of files are given from `root` on. Where `folders` in it are named, only these hold images.
    """

    def __init__(self, root: Path, folders: Iterable[Path] | None = None) -> None:
        self.root = root
        names: list[str] = []
        for folder in [root] if folders is None else folders:
            start = "" if folder == root else f"{folder.relative_to(root)}/"
            names += [start + name for name in list_files(folder, frozenset({""}))[0]]
        self.files = [name for name in names if not (ending := os.path.splitext(name)[1]) or looks_like_picture(ending)]
        self.indices: dict[Callable[[str], str], dict[str, list[str]]] = {}
        self.text_of: dict[str, str] = {}  # by path: what was found there, so that no image is taken for two

    def list_alike(self, key: Callable[[str], str], text: str) -> Sequence[str]:
        """The files with the same `key` as the listed `text`; none for a path that leads out of `root`."""
        return [] if leads_away(text) else self.list_files(key, text)

    def list_files(self, key: Callable[[str], str], text: str) -> Sequence[str]:
        """The files with the same `key` as `text`."""
        if key not in self.indices:
            self.indices[key] = defaultdict(list)
            for path in self.files:
                self.indices[key][key(path)].append(path)
        return self.indices[key].get(key(text), [])

    def map_names(self) -> dict[str, str]:
        """{name of an image: its path}. Raises InputError where two have the same name."""
        paths: dict[str, str] = {}
        for path in self.files:
            if os.path.splitext(path)[1].lower() not in IMAGE_EXTENSIONS:
                continue
            other = paths.setdefault(path.rpartition("/")[2], path)
            if other != path:
                raise InputError(
                    f"{self.root / other} and {self.root / path} have the same name, and nothing says which is meant: "
                    "remove one"
                )
        return paths

    # ---- by the ends of paths, as they are written by tools that keep the images elsewhere ----

    def find(self, text: str, where: str | JsonLine) -> str:
        """The path of the image that `text` means by its end; `text` itself where there is none.

        Where several images have the name, the one is meant whose folders agree furthest, too. Raises InputError where
        that does not tell, or where another text means the same image.
        """
        matches = [path for path in self.list_matches(text) if is_read(path)]
        if len(matches) > 1:
            raise InputError(f"{where}: {text[:300]!r} may be {matches[0]} or {matches[1]} in {self.root}: remove one")
        if not matches:
            return text
        if self.text_of.setdefault(matches[0], text) != text:
            raise InputError(
                f"{where}: {text[:300]!r} and {self.text_of[matches[0]][:300]!r} would both be {matches[0]}: is an "
                f"image missing in {self.root}?"
            )
        return matches[0]

    def list_matches(self, text: str) -> Sequence[str]:
        """The images that `text` may mean by its end."""
        path = normalize("NFC", find_path_in(text))
        for likely in (path, unquote(path)):
            folders, _, name = likely.rpartition("/")
            found = self.list_files(find_name, name) or self.list_files(find_name, UPLOAD_PREFIX.sub("", name, count=1))
            if found:
                return choose_nearest(found, folders)
        return []

    # ---- by what a list and the files differ in ----

    def find_moved(self, listed: Mapping[str, str], present: Collection[str], split: str) -> Moved:
        """Where the images lie that do not exist as `listed`: {path: the text in the list}.

        The first difference is used that explains all of them, or else the first combination of several that does, or
        else what explains most. `present` are the paths of the list's other images, `split` is the one
        that its name says, or "". No file is taken for two.
        """
        around = Surroundings(
            folders={path.rpartition("/")[0] for path in present},
            split=split,
            may_lie_deeper=0 < len(present) < len(listed)
            and all(len(self.list_files(simplify, path)) == 1 for path in present),
        )
        searches: list[tuple[str, Callable[[str], Sequence[str]]]] = [
            *((rule.says, partial(self.list_alike, rule.key)) for rule in RULES),
            (
                OTHER_FOLDER,
                lambda text: [file for file in self.list_matches(text) if may_move(text, file, around)],
            ),
        ]
        attempts = []
        for says, search in searches:
            moved = self._choose(says, listed, {path: search(text) for path, text in listed.items()}, present)
            if len(moved.places) == len(listed):
                return moved
            attempts.append(moved)
        if moved := self._combine(listed, present, around):
            attempts.append(moved)
        return max(attempts, key=lambda moved: (len(moved.places), len(moved.conflicts)))

    def _combine(self, listed: Mapping[str, str], present: Collection[str], around: Surroundings) -> Moved | None:
        """Where they lie by the first of COMBINATIONS that explains each for which there is anything, if any does.

        Where none does, the same for those for which there is one file alone.
        """
        alike: dict[str, list[str]] = {}
        for path, text in listed.items():
            if files := [file for file in self.list_files(simplify, find_path_in(text)) if is_read(file)]:
                alike[path] = files
        for wanted in (alike, {path: files for path, files in alike.items() if len(files) == 1}):
            for combination in COMBINATIONS if wanted else ():
                if all(len(combination.choose(listed[path], wanted[path], around)) == 1 for path in wanted):
                    matches = {path: combination.choose(listed[path], files, around) for path, files in alike.items()}
                    return self._choose(combination.says, listed, matches, present)
        return None

    def _choose(
        self, says: str, listed: Mapping[str, str], matches: Mapping[str, Sequence[str]], present: Collection[str]
    ) -> Moved:
        """Of the `matches` of each listed path those that leave no doubt."""
        counts = Counter(file for files in matches.values() for file in files)
        places, conflicts, owner = {}, [], {}
        for path, files in matches.items():
            text = listed[path][:300]
            readable = [file for file in files if is_read(file)]
            if len(readable) != 1:
                continue
            file = readable[0]
            if file in present:
                conflicts.append(f"{text!r} would be {file}, which is listed, too")
            elif counts[file] > 1:
                other = owner.setdefault(file, text)
                if other != text:
                    conflicts.append(f"{other!r} and {text!r} would both be {file}")
            else:
                places[path] = file
        return Moved(says, places, conflicts)

    def suggest(self, text: str) -> str:
        """What there is in place of the listed `text`: "there is images/a.JPG, with another ending"; "" for nothing."""
        tries = [(rule.says, self.list_alike(rule.key, text)) for rule in RULES]
        tries.append((OTHER_FOLDER, self.list_matches(text)))
        tries += [(rule.says, self.list_files(rule.key, find_path_in(text))) for rule in HINTS]
        if not self.files:
            return f"there is no image in {self.root}"
        says, files = next(((says, files) for says, files in tries if files), ("", []))
        if len(files) > 1:
            return f"there are {files[0]} and {files[1]}, {says.replace('differs', 'differ')}"
        unread = "" if not files or is_read(files[0]) else ", of a type that is not read"
        return f"there is {files[0]}, {says}{unread}" if files else ""


def is_read(file: str) -> bool:
    """Whether its ending is that of an image, or it has none."""
    ending = os.path.splitext(file)[1].lower()
    return not ending or ending in IMAGE_EXTENSIONS


def find_name(path: str) -> str:
    """The last part of a path, in NFC."""
    return normalize("NFC", path.rpartition("/")[2])


def find_path_in(text: str) -> str:
    """The path in an address, or in Label Studio's `/data/local-files/?d=path`; with slashes instead of backslashes."""
    if "?d=" in text:
        text = parse_qs(urlsplit(text).query).get("d", [""])[0]
    elif "://" in text:
        text = urlsplit(text).path
    return text.replace("\\", "/")


def restore_address(text: str) -> str:
    """An address of which two slashes were joined to one, as in a path."""
    return SCHEME.sub(r"\1://", text, count=1)


def leads_away(text: str) -> bool:
    """Whether a listed path is an absolute one, an address, or leads upwards: it names no place within the folder."""
    path = text.replace("\\", "/")
    return path.startswith("/") or ".." in path.split("/") or bool(SCHEME.match(path) or DRIVE.match(path))


def choose_nearest(files: Sequence[str], folders: str) -> Sequence[str]:
    """Those of `files` whose folders agree furthest with `folders`, from the name backwards."""
    if len(files) < 2:
        return files
    agreeing = [_count_agreeing(folders.split("/"), file.split("/")[:-1]) for file in files]
    return [file for file, count in zip(files, agreeing, strict=True) if count == max(agreeing)]


def _count_agreeing(first: list[str], second: list[str]) -> int:
    """How many folders at the ends of two paths are the same."""
    same = 0
    while same < min(len(first), len(second)) and first[-1 - same] == normalize("NFC", second[-1 - same]):
        same += 1
    return same


def may_move(text: str, file: str, around: Surroundings, key: Callable[[str], str] = str) -> bool:
    """Whether the listed path `text` may mean `file`, in another folder.

    Not where that is a folder of another split than the list's: then an image is missing, and another has its name.
    Where other images of the list are in place, the file has to lie in one of their folders, and one path has to be
    the end of the other; or it may lie deeper. `key` makes of a path what is compared.
    """
    wanted = find_path_in(text)
    splits = find_splits(f"{around.split}/{wanted}")
    if ".." in key(wanted).split("/") or (splits and not find_splits(file) <= splits):
        return False
    if not around.folders:
        return True
    if leads_away(text):
        return False
    listed, found = key(wanted), key(file)
    is_end = f"/{found}".endswith(f"/{listed.lstrip('/')}") or f"/{listed}".endswith(f"/{found}")
    is_deeper = around.may_lie_deeper and f"/{found}".startswith(f"/{listed}".rpartition("/")[0] + "/")
    return is_deeper or (is_end and file.rpartition("/")[0] in around.folders)


def find_splits(path: str) -> set[str]:
    """The splits that the folders of a path are for."""
    return {split for folder in path.split("/")[:-1] if (split := find_split(folder))}


# ---- which folder the paths of a list start from ----


def place_images(file: Path, root: Path, folders: Iterable[Path], names: Sequence[str]) -> tuple[Path, Sequence[str]]:
    """(the first of `folders` that holds all images, or else the one that holds most; their `names` from there on).

    Where none holds any, `Rows` looks further. `file` lists the images.
    """
    places = [folder for folder in dict.fromkeys(folders) if folder.is_dir()] or [root]
    missing = []
    for place in places:
        missing.append(len(find_missing([find_path(str(place), name) for name in names])))
        if not missing[-1]:
            break
    return places[missing.index(min(missing))], names


def find_folder(root: Path, folders: Sequence[str], name: str) -> Path:
    """The one of `folders`, paths from `root` on, in which `name` lies, as it stands or else with an image's ending.

    Where it lies in none, the first that exists.

    Raises InputError where it lies in two, since nothing says which is meant.
    """
    places = [root / folder for folder in folders if (root / folder).is_dir()]
    found = [place for place in places if (place / name).is_file()] or [
        place
        for place in places
        if any((place / f"{name}{form}").is_file() for ending in IMAGE_EXTENSIONS for form in (ending, ending.upper()))
    ]
    if len(found) > 1:
        raise InputError(f"{name} lies in {found[0]} and in {found[1]}: keep the images in one of these folders")
    return (found or places or [root / folders[0]])[0]
