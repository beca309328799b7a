"""What an annotation format is: how it is recognised, read into a table, and written from one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dataset.files import make_absolute
from dataset.table import Table
from utils import InputError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ReadOptions:
    """What reading some of the formats depends on."""

    separator: str = ";"  # csv: between the names in the column `labels`
    count_crowds: bool = True  # coco_json: whether an annotation of a crowd makes its class present
    cache_folder: Path | None = None  # coco_cls: where an index of the label files is kept; None: nowhere
    shard_cache_gb: float = 50.0  # webdataset: of shards from elsewhere that are kept in `cache_folder`
    check_label_files: bool = True  # coco_cls: False: the index notices new and renamed label files, not edited ones


class SplitSource(NamedTuple):
    """What a reader reads: the split of the data set in `root`; the rest as in `Format.read`."""

    root: Path
    split: str
    images_dir: Path | None
    labels_dir: Path | None
    classes: Sequence[str] | None
    options: ReadOptions


@dataclass(frozen=True)
class Format:
    """One annotation format; `images_folder(split)` is where it has a split's images when it is written here.

    With `in_shards`, images are no files of their own: the writer packs those at the table's paths.
    """

    list_splits: Callable[[Path], list[str]]
    reader: Callable[[SplitSource], Table]
    writer: Callable[[Table, Path, str, list[str]], None]
    images_folder: Callable[[str], str]
    name_images: Callable[[Table, list[str]], list[str]] = lambda table, names: names
    shorten_names: Callable[[Table, list[str]], list[str]] = lambda table, names: names  # undoes name_images
    in_shards: bool = False

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

        `images_dir` and `labels_dir` replace the folders that coco_cls and coco_json would look in, `classes` are the
        names where the data set does not bring its own.
        """
        root = make_absolute(root)
        images, labels = (None if path is None else make_absolute(path) for path in (images_dir, labels_dir))
        if labels is None and split not in (splits := self.list_splits(root)):
            raise InputError(f"{root} has no split {split!r} in this format; it has {', '.join(splits) or 'none'}")
        return self.reader(SplitSource(root, split, images, labels, classes, options))

    def write(self, table: Table, root: Path, split: str, image_names: list[str]) -> None:
        """Write the labels of a split, and the class names; replaced lists stay beside the new ones as `.bak`.

        `image_names` are the images' paths within `images_folder(split)`, where the caller places them, as
        `name_images(table, names)` gives them; that raises InputError for what the format cannot hold.
        """
        if self.name_images(table, self.shorten_names(table, image_names)) != image_names:
            raise InputError(f"{root}: the images of {split} do not lie in a folder of their class each")
        self.writer(table, root, split, image_names)
