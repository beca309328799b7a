"""What an annotation format is: the object that each file of this folder ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dataset.files import make_absolute
from dataset.table import SPLITS, Table
from utils import InputError

__all__ = ["SPLITS", "Format", "ReadOptions", "SplitSource"]


@dataclass(frozen=True)
class ReadOptions:
    """Options of single formats, which the constants set."""

    separator: str = ";"  # csv: between the names in the column `labels`
    count_crowds: bool = True  # coco_json: whether an annotation of a crowd makes its class present
    cache_folder: Path | None = None  # coco_cls: where an index of the label files is kept; None: nowhere
    shard_cache_gb: float = 50.0  # webdataset: of shards from elsewhere that are kept in `cache_folder`
    shard_commands: bool = False  # webdataset: whether a line of shards.txt may be a command
    check_label_files: bool = True  # coco_cls: False: the index notices new and renamed label files, not edited ones


class SplitSource(NamedTuple):
    """What a format's `reader` is given: the split of the data set in `root`; the rest as in `Format.read`."""

    root: Path
    split: str
    images_dir: Path | None
    labels_dir: Path | None
    classes: Sequence[str] | None
    options: ReadOptions


@dataclass(frozen=True, kw_only=True)
class Format:
    """Everything that the rest of the program needs to know about one annotation format."""

    expects: str  # what lies in a folder of this format, and its name; the error for an unknown folder says it
    list_splits: Callable[[Path], list[str]]  # (root); a folder without splits is no data set of this format
    reader: Callable[[SplitSource], Table]
    files_of_split: Callable[[Path, str], list[Path]]  # (root, split): files and folders; some may not exist
    writer: Callable[[Table, Path, str, list[str]], None] | None = None  # (table, root, split, image names)

    images_in: str = "images/{split}"  # where the images lie when a split is written
    folder_names: Mapping[str, str] = field(default_factory=dict)  # {split: what its folder is called}, if not like it
    in_shards: bool = False  # images are no files of their own: `writer` packs those at the table's paths
    name_images: Callable[[Table, list[str]], list[str]] = lambda table, names: names
    shorten_names: Callable[[Table, list[str]], list[str]] = lambda table, names: names  # undoes `name_images`

    precedence: int = 0  # where several formats fit a folder, those with the highest number are meant
    known_by_labels_dir: bool = False  # a folder of labels at another place says that the data set has this format
    takes_folders: bool = False  # `read` takes `images_dir` and `labels_dir`
    keeps_groups: bool = False  # `writer` writes each image's source
    split_by_folder: bool = False  # where an image lies says its split: to change it, the image must move
    splits_share_files: bool = False  # one file may hold several splits: to replace one, all are written anew

    def images_folder(self, split: str) -> str:
        """Where the images of `split` lie when it is written, from the data set's folder on."""
        return self.images_in.format(split=self.folder_names.get(split, split))

    def recognise(self, root: Path) -> bool:
        """Whether `root` looks like a data set in this format."""
        return bool(self.list_splits(root))

    def read(
        self,
        root: Path,
        split: str,
        images_dir: str | Path | None = None,
        labels_dir: str | Path | None = None,
        classes: Sequence[str] | None = None,
        options: ReadOptions = ReadOptions(),
    ) -> Table:
        """The table of one split, sorted by path. Raises InputError, with file and line, for what is wrong.

        `images_dir` and `labels_dir` replace the usual folders, in a format that takes them. `classes` are the class
        names where the data set does not bring its own.
        """
        root = make_absolute(root)
        images, labels = (None if path is None else make_absolute(path) for path in (images_dir, labels_dir))
        if labels is None and split not in (splits := self.list_splits(root)):
            raise InputError(f"{root} has no split {split!r} in this format; it has {', '.join(splits) or 'none'}")
        return self.reader(SplitSource(root, split, images, labels, classes, options))

    def write(self, table: Table, root: Path, split: str, image_names: list[str]) -> None:
        """Write the labels of a split, and the class names; replaced lists stay beside the new ones as `.bak`.

        `image_names` are the images' paths within `images_folder(split)`, as `name_images(table, names)` gives them.
        The caller places the images there. Raises InputError for what the format cannot hold.
        """
        writer = self.require_writer()
        if self.name_images(table, self.shorten_names(table, image_names)) != image_names:
            raise InputError(f"{root}: the images of {split} do not lie in a folder of their class each")
        writer(table, root, split, image_names)

    def require_writer(self) -> Callable[[Table, Path, str, list[str]], None]:
        """The `writer`. Raises InputError for a format that is only read."""
        if self.writer is None:
            raise InputError(f"a data set of {self.expects} is only read: convert it to another format")
        return self.writer
