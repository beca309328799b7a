"""A data set divided anew into train, val and test: `python dataset_tools.py split`.

    split_dataset("~/photos", "auto", {"train": 80, "val": 10, "test": 10}, seed=0)

dataset/stratified_split.py chooses the images of each split; here their labels are written, and the old ones kept.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dataset.files import make_absolute
from dataset.formats import FORMATS
from dataset.formats.base import ReadOptions
from dataset.formats.csv import lists_images_only
from dataset.stratified_split import describe_split, split_table
from dataset.table import Table, drop_repeats, join_tables
from dataset.tar_shards import split_member
from dataset.text_files import name_backup
from dataset_readers import read_dataset, recognise_format
from evaluation.pages import count
from utils import InputError, explain, make_console, say, warn


def split_dataset(
    root: str | Path,
    format: str,
    percents: Mapping[str, int],
    seed: int,
    *,
    classes: Sequence[str] | None = None,
    group_pattern: str | None = None,
    options: ReadOptions | None = None,
    dry_run: bool = False,
) -> None:
    """Divide the images of the data set in `root` anew, and print the labels of each split, and how to undo it.

    `percents` are those of "train", "val" and "test"; with 0 for test, a test split that is there stays as it is. So
    does, with 0 for val, a val split that is there to predict: none of its labels is known. Replaced lists are kept as
    `.bak`. Where the folder of an image says its split, the new folders hold links to the same files, and the old ones
    are kept, too. With `dry_run` nothing is written. Raises InputError.
    """
    if min(percents.values()) < 0 or sum(percents.values()) != 100 or not percents["train"]:
        shown = ", ".join(f"{name.upper()}_PERCENT {percent}" for name, percent in percents.items())
        raise InputError(f"{shown}: make them 0 or more, that of train above 0, and 100 together")
    root = make_absolute(root)
    format = recognise_format(root) if format == "auto" else format
    FORMATS[format].require_writer()
    old = {
        name: read_dataset(root, format, name, classes=classes, group_pattern=group_pattern, options=options)
        for name in FORMATS[format].list_splits(root)
    }
    to_predict = [name for name in ("val", "test") if name in old and not (old[name].targets >= 0).any()]
    if lost := [name for name in to_predict if percents[name]]:
        raise InputError(
            f"none of the labels of {lost[0]} in {root} is known, so its images are there to predict: set "
            f"{lost[0].upper()}_PERCENT = 0, which leaves it as it is, or take its list out of the data set, and "
            "predict the images with TEST_IMAGES_DIR"
        )
    kept = {name: old.pop(name) for name in dict.fromkeys([*to_predict, "test"]) if name in old and not percents[name]}
    if not old:
        names = " and ".join(kept)
        raise InputError(f"{root} has a {names} split only, which a percentage of 0 leaves as it is: nothing to split")
    rest, taken, remaining = drop_repeats(join_tables(list(old.values()))), {}, 100
    for name, table in kept.items():
        if shared := set(rest.paths).intersection(table.paths):
            raise InputError(
                f"{len(shared)} images are in {name}, which stays as it is ({name.upper()}_PERCENT 0), and in another "
                f"split, the first: {min(shared)}; remove them from one"
            )
    for name in ("test", "val"):
        if percents[name]:
            rest, taken[name] = split_table(rest, percents[name] / remaining, seed)
            remaining -= percents[name]
    new = {"train": rest, **{name: taken[name] for name in ("val", "test") if name in taken}}
    stays = [
        f"the {name} split of {count(len(table), 'image')} stays as it is ({name.upper()}_PERCENT 0)"
        for name, table in kept.items()
    ]
    description = describe_split(new)  # before anything is replaced: whatever ends this must leave the old splits
    if dry_run:
        files = [shorten(root, path) for path in list_old_files(root, format, old)]
        make_console().print(description)
        say(*stays)
        say(f"DRY_RUN: nothing is changed; SPLIT_SEED {seed} drew this, and would keep as .bak: {', '.join(files)}")
        return
    done = replace_splits(root, format, old, new, kept)
    make_console().print(description)
    say(*stays)
    say(f"SPLIT_SEED {seed} drew this; replaced, and kept: {', '.join(shorten(root, path) for path in done.backups)}")
    say(f"to undo it: {done.write_undo(root)}")


class Replaced(NamedTuple):
    """What a split has done: {backup: where it was}, and the files and folders that are new."""

    backups: dict[Path, Path]
    added: list[Path]

    def write_undo(self, root: Path) -> str:
        """The commands of a shell that put everything back."""
        removals = [shlex.quote(shorten(root, path)) for path in self.added]
        moves = [
            f"mv {shlex.quote(shorten(root, backup))} {shlex.quote(shorten(root, path))}"
            for backup, path in self.backups.items()
        ]
        return " && ".join([f"cd {shlex.quote(str(root))}", f"rm -r {' '.join(removals)}", *moves])


def shorten(root: Path, path: Path) -> str:
    """The path from `root` on."""
    return path.relative_to(root).as_posix()


def list_old_files(root: Path, format: str, splits: Iterable[str]) -> list[Path]:
    """The files and folders that hold these splits, each once: several splits may have the same file."""
    found = [path for name in splits for path in FORMATS[format].files_of_split(root, name)]
    return [path for path in dict.fromkeys(found) if path.exists()]


def replace_splits(
    root: Path, format: str, old: Mapping[str, Table], new: Mapping[str, Table], kept: Mapping[str, Table]
) -> Replaced:
    """Put the splits `new` in the place of `old`, once all of them are written. `kept` are splits that stay.

    Whatever ends this early, the folder is as it was.
    """
    list_old_files(root, format, old)  # where some lie elsewhere, this says so before their images are read
    staging = root / ".split.tmp"
    old_split = {path: name for name, table in {**old, **kept}.items() for path in table.paths}
    try:
        shutil.rmtree(staging, ignore_errors=True)
        for name, table in new.items():
            write_split(root, staging, format, name, table, old_split)
        if not all(is_found_beside(root, staging, format, name) for name in kept):
            old, new = {**old, **kept}, {**new, **kept}
            for name, table in kept.items():
                write_split(root, staging, format, name, table, old_split)
        old_files = list_old_files(root, format, old)
        targets = name_targets(root, staging, format, old, new)
        for path in staging.glob("*"):  # class names, and folders that a format wants to see
            holds_others = any(path in target.parents for target in targets)
            if path not in targets and not holds_others and not (root / path.name).exists():
                targets[path] = root / path.name
        for target in targets.values():
            if target.exists() and target not in old_files:
                raise InputError(f"{target} is there already, and no part of what is split: move it away")
        backups = {name_backup(path): path for path in old_files}
        rename_all([*((path, backup) for backup, path in backups.items()), *targets.items()])
    except OSError as error:
        raise InputError(f"cannot write the split of {root}: {explain(error)}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Replaced(backups, list(targets.values()))


def rename_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename the first of each pair to the second; where that fails or is interrupted, none of them is renamed."""
    begun: list[tuple[Path, Path]] = []
    folders: list[Path] = []  # that are made
    try:
        for path, target in moves:
            for folder in reversed(target.parents):
                if not folder.exists():
                    folders.append(folder)
                    folder.mkdir()
            begun.append((path, target))
            path.rename(target)
    except BaseException:
        for path, target in reversed(begun):
            try:
                if os.path.lexists(target) and not os.path.lexists(path):  # the last one may not have been renamed
                    target.rename(path)
            except OSError as error:
                warn(f"cannot put {path} back: {explain(error)}; it is {target} now")
        for folder in reversed(folders):
            with suppress(OSError):
                folder.rmdir()
        raise


def write_split(root: Path, staging: Path, format: str, name: str, table: Table, old_split: Mapping[str, str]) -> None:
    """Write a split of the data set in `root` into `staging`; `old_split` says in which split each image was."""
    writer = FORMATS[format]
    folder = writer.images_folder(name)
    if not writer.split_by_folder:
        names = [os.path.relpath(path, root / folder) for path in table.paths]
    else:
        names = name_images(table.paths, old_split, partial(find_folder, root, format, old_split))
        if writer.in_shards:
            names = writer.name_images(table, writer.shorten_names(table, names))
        else:
            for path, image_name in zip(table.paths, names, strict=True):
                link(path, staging / folder / image_name)
    writer.write(table, staging, name, names)


def find_folder(root: Path, format: str, old_split: Mapping[str, str], path: str) -> Path:
    """The folder that says the split of the image at `path`. Raises InputError where none does."""
    if member := split_member(path):
        return Path(member[0].path)
    split = old_split[path]
    folders = [root / FORMATS[format].images_folder(split), *FORMATS[format].files_of_split(root, split)]
    found = [folder for folder in folders if folder in Path(path).parents]
    if not found:
        raise InputError(f"{path} does not lie in a folder of {split}, as in what split writes: convert the set first")
    return found[0]


def is_found_beside(root: Path, staging: Path, format: str, split: str) -> bool:
    """Whether the files of a split that stays are still found when those in `staging` lie beside them."""
    files = list_old_files(root, format, [split])
    if FORMATS[format].splits_share_files and not all(map(lists_images_only, files)):
        return False  # a list of images alone is of one split, and names no classes
    links = [(path, staging / path.relative_to(root)) for path in files]
    links = [(path, target) for path, target in links if path.is_file() and not target.exists()]
    for path, target in links:
        link(str(path), target)
    try:
        return not links or split in FORMATS[format].list_splits(staging)
    finally:
        for _, target in links:
            target.unlink()


def name_targets(
    root: Path, staging: Path, format: str, old: Mapping[str, Table], new: Mapping[str, Table]
) -> dict[Path, Path]:
    """{what was written into `staging`: where it goes}.

    The new file of a split has the name of its only old one, where that begins alike (`instances_train2017.json`), so
    that the backup can take its place again.
    """
    targets = {}
    for name in new:
        files = FORMATS[format].files_of_split(staging, name)
        before = FORMATS[format].files_of_split(root, name) if name in old else []
        for path in files:
            target = root / path.relative_to(staging)
            begins_alike = re.compile(rf"{re.escape(target.stem)}(?![A-Za-z])")  # train2017, but not valid for val
            alike = [one for one in before if one.parent == target.parent and begins_alike.match(one.name)]
            targets[path] = alike[0] if len(alike) == len(before) == len(files) == 1 else target
    return targets


def name_images(paths: Sequence[str], split_of: Mapping[str, str], folder_of: Callable[[str], Path]) -> list[str]:
    """Paths within a split's folder; images of two old splits that would have the same get the splits' names."""
    names = [Path(path).relative_to(folder_of(path)) for path in paths]
    counts = Counter(name.with_suffix("") for name in names)
    return [
        (name.with_name(f"{split_of[path]}_{name.name}") if counts[name.with_suffix("")] > 1 else name).as_posix()
        for path, name in zip(paths, names, strict=True)
    ]


def link(path: str, target: Path) -> None:
    """Give the file a second name; copy it where the disk has no hard links. A symbolic link would break later."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not Path(path).is_file():  # a copy of a device would fill the disk
        raise InputError(f"{path} is no ordinary file: remove it from the data set")
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)
