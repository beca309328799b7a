"""A data set written anew in another format: `python dataset_tools.py convert --TO mlcls --OUTPUT_FOLDER ...`.

    convert("~/coco", "auto", "mlcls", "~/coco-mlcls")

Every label (unknown ones too), every class name and the names of the images stay what they are, so that converting
back gives the same table. What a format cannot hold stops before anything is written; only a csv keeps groups, and that
is said. Images are linked or copied: with a hard link where the file system has them, else with a symbolic one. Into
shards and out of them they are always copied. A folder that is new, or empty, comes to be as a whole or not at all; in
one that holds this data set already, lists that are replaced stay beside the new ones as `.bak`.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dataset.files import IMAGE_EXTENSIONS, list_files, make_absolute
from dataset.formats.base import Format, ReadOptions
from dataset.table import SPLITS, Table, map_classes
from dataset.tar_shards import read_bytes, split_member
from dataset.whole_files import replace_folder
from dataset_readers import find_format, find_formats, recognise_format
from utils import InputError, Progress, explain, warn

NUM_THREADS = 8  # placing files waits for the disk
NO_HARD_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP)


def convert_dataset(
    root: str | Path,
    format: str,
    to: str,
    output: str | Path,
    *,
    link_or_copy: str = "link",
    splits: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    options: ReadOptions | None = None,
    correct: Callable[[Table, str], Table] | None = None,
) -> dict[str, int]:
    """Write the data set in `root` into `output` in the format `to`; {split: number of images}.

    `splits` are all there are unless they are named. `correct(table, split)` puts labels right. Raises InputError,
    before anything is written, when `to` cannot hold the data set, or when `output` holds anything else.
    """
    root, output = make_absolute(root), make_absolute(output)
    source, target = find_format(recognise_format(root) if format == "auto" else format), find_format(to)
    target.require_writer()
    if link_or_copy not in ("link", "copy"):
        raise InputError(f"LINK_OR_COPY is {link_or_copy!r}: it takes link or copy")
    if output == root:
        raise InputError(f"OUTPUT_FOLDER is the data set's own folder {root}: choose another")
    tables: dict[str, Table] = {}
    for split in splits or source.list_splits(root):
        table = source.read(root, split, None, None, classes, options or ReadOptions())
        table = correct(table, split) if correct else table
        first = next(iter(tables.values()), table)
        tables[split] = map_classes(table, first.classes, f"of {split}", f"of {next(iter(tables), split)}")
    if not tables:
        raise InputError(f"{root} has no split of format {format}")
    names = {split: find_names(table, source, root, split) for split, table in tables.items()}
    if _share_a_folder(target) and need_split_folders(names):
        names = {split: [f"{split}/{name}" for name in split_names] for split, split_names in names.items()}
    names = {split: target.name_images(table, names[split]) for split, table in tables.items()}
    for split, table in tables.items():
        require_own_names(names[split], table.paths)
    if any(table.groups for table in tables.values()) and not target.keeps_groups:
        warn(f"{root}: the images' groups have no place in {to} and are left out; a csv keeps them")
    places = {
        f"{target.images_folder(split)}{os.sep}{name}": path
        for split, table in tables.items()
        for name, path in zip(names[split], table.paths, strict=True)
        if not target.in_shards
    }
    require_nothing_else(output, to, tables, places)
    with fill_folder(output) as folder:
        place_images({f"{folder}{os.sep}{name}": path for name, path in places.items()}, link_or_copy == "copy")
        for split, table in tables.items():
            target.write(table, folder, split, names[split])
    return {split: len(table) for split, table in tables.items()}


@contextmanager
def fill_folder(output: Path) -> Iterator[Path]:
    """Yield the folder to write into: `output`, or where there is none a new one, which becomes `output` at the end.

    After an error a folder that was not there, or empty, is so again. One that held something keeps what was written.
    """
    if not os.path.lexists(output):
        with replace_folder(output) as new:
            try:
                yield new
            except InputError as error:
                raise InputError(str(error).replace(str(new), str(output))) from error
        return
    was_empty = output.is_dir() and not any(output.iterdir())
    try:
        yield output
    except BaseException:
        for path in output.iterdir() if was_empty else ():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        raise


def find_names(table: Table, format: Format, root: Path, split: str) -> list[str]:
    """The images' paths within the folder of their split, without what the format itself adds to them."""
    if format.in_shards:
        members = [member[1] for member in map(split_member, table.paths) if member]
        return format.shorten_names(table, members)
    folder = f"{root}{os.sep}{format.images_folder(split)}{os.sep}"
    if not all(path.startswith(folder) for path in table.paths):  # not the layout that this program writes
        folder = os.path.join(os.path.commonpath([str(Path(path).parent) for path in table.paths]), "")
    names = format.shorten_names(table, [path[len(folder) :] for path in table.paths])
    if _share_a_folder(format) and _lie_in(split, names):
        names = [name.partition("/")[2] for name in names]
    return names


def require_own_names(names: Sequence[str], paths: Sequence[str]) -> None:
    """Raise InputError for a name that leads out of its split's folder, and for one that two images would have."""
    path_of: dict[str, str] = {}
    for name, path in zip(names, paths, strict=True):
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise InputError(f"{path} would become {name}, which leads out of the data set's folder: rename it")
        if (other := path_of.setdefault(name, path)) != path:
            raise InputError(f"{other} and {path} would both become {name}: rename one")


def _share_a_folder(format: Format) -> bool:
    """Whether all splits have their images in one folder."""
    return format.images_folder("train") == format.images_folder("test")


def need_split_folders(names: dict[str, list[str]]) -> bool:
    """Whether the images of all splits, put into one folder, must lie in a sub-folder of their split."""
    together = [name for split_names in names.values() for name in split_names]
    if len(set(together)) < len(together):
        return True
    return any(_lie_in(split, split_names) for split, split_names in names.items())


def _lie_in(split: str, names: Iterable[str]) -> bool:
    """Whether all names begin with a folder that is called like the split."""
    return all(name.startswith(f"{split}/") for name in names)


def require_nothing_else(output: Path, to: str, splits: Collection[str], places: Collection[str]) -> None:
    """Raise InputError when `output` holds what would mix with the data set that goes there.

    `places` are the paths of its images, from `output` on.
    """
    target = find_format(to)
    others = [format for format in find_formats(output) if format != to]
    others += [f"the split {split}" for split in target.list_splits(output) if target.in_shards or split not in splits]
    if others:
        raise InputError(f"{output} holds {', '.join(others)} already: choose an empty OUTPUT_FOLDER")
    for name in {target.images_folder(split) for split in SPLITS}:
        folder = output / name
        found = list_files(folder, IMAGE_EXTENSIONS)[0] if folder.is_dir() else []
        foreign = [image for image in found if f"{name}{os.sep}{image}" not in places]
        if foreign:
            raise InputError(
                f"{folder} holds {len(foreign)} other image(s), such as {foreign[0]}: choose an empty OUTPUT_FOLDER"
            )


def place_images(places: dict[str, str], copy: bool) -> None:
    """Link or copy to each target (key) its source (value); what is there already stays."""
    try:
        folder_of: dict[tuple[int, int], str] = {}  # by what the disk knows a folder by
        for folder in sorted({str(Path(target).parent) for target in places}):
            Path(folder).mkdir(parents=True, exist_ok=True)
            stat = Path(folder).stat()
            if (other := folder_of.setdefault((stat.st_dev, stat.st_ino), folder)) != folder:
                raise InputError(f"{other} and {folder} are one folder on this disk: rename one of the two")
        with ThreadPoolExecutor(NUM_THREADS) as pool, Progress("images", len(places)) as progress:
            for _ in pool.map(partial(place_image, copy=copy), places.values(), places.keys()):
                progress.step(1)
    except OSError as error:
        raise InputError(f"cannot write {error.filename2 or error.filename}: {explain(error)}") from error


def place_image(source: str, target: str, copy: bool) -> None:
    """Link or copy one image. Raises InputError for what is no file, and when there is another file at `target`."""
    if split_member(source):
        data = read_bytes(source)
        if not os.path.lexists(target):
            temporary = f"{target}.tmp"
            Path(temporary).write_bytes(data)
            os.replace(temporary, target)
        elif Path(target).read_bytes() != data:
            raise InputError(f"{target} is there already and is not {source}: choose an empty OUTPUT_FOLDER")
        return
    if os.path.lexists(target):
        old, new = Path(target).stat(), Path(source).stat()
        if os.path.samestat(old, new) or (old.st_size, old.st_mtime_ns) == (new.st_size, new.st_mtime_ns):
            return
        raise InputError(f"{target} is there already and is not {source}: choose an empty OUTPUT_FOLDER")
    source = os.path.realpath(source)
    if not Path(source).is_file():  # a copy of a device would fill the disk
        raise InputError(f"{source} is no ordinary file, or does not exist: remove it from the data set")
    if copy:
        temporary = f"{target}.tmp"
        shutil.copy2(source, temporary)
        os.replace(temporary, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_HARD_LINK:
            raise
        Path(target).symlink_to(source)
