"""What an annotation format is: the object that each file of this folder ends with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from dataset.class_names import LONGEST, ClassIndex, quote_names, read_classes, require_unique, show_names, to_nfc
from dataset.files import make_absolute
from dataset.label_cells import Separator
from dataset.label_values import MinusOne
from dataset.rows import keep_missing_images
from dataset.splits import require_own_name
from dataset.table import SPLITS, Table, drop_no_label
from utils import InputError, warn, warn_once

__all__ = ["SPLITS", "Format", "ReadOptions", "SplitSource"]


@dataclass(frozen=True)
class ReadOptions:
    """Options of reading. Those of single formats are set by the constants."""

    keep_missing: bool = False  # all formats: rows of images that do not exist stay, for `check` to name them
    separator: Separator = "auto"  # csv: between the names in a cell; auto: recognised from the whole column
    minus_one: MinusOne = "auto"  # of labels 1, 0 and -1; auto: unknown where 0 occurs, too
    label_columns: tuple[str, ...] = ()  # csv: the column of names, or those of the classes; (): recognised
    group_column: str | None = None  # csv: the column whose cells become the table's groups; None: `group`
    no_label_names: tuple[str, ...] = ()  # all formats: labels which say that an image has none
    unknown_names: Literal["error", "skip"] = "error"  # all formats: of a label whose name is no class
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
    indexes: list[ClassIndex]  # those that were made, to say afterwards what they left out

    def index_classes(self, classes: Sequence[str]) -> ClassIndex:
        """What turns names of labels into columns, where a list names the classes."""
        options = self.options
        self.indexes.append(ClassIndex(classes, options.no_label_names, options.unknown_names == "skip"))
        return self.indexes[-1]

    def choose_classes(self, found: Iterable[str]) -> ClassIndex:
        """The same for the classes in `classes.txt` or, where there is none, the names `found` in the labels."""
        names = sorted({to_nfc(name.strip()) for name in found} - {*map(to_nfc, self.options.no_label_names)})
        return self.index_classes(read_classes(self.root, names))


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
    takes_folders: bool = False  # `read` takes `images_dir` and `labels_dir`
    holds_labels: Callable[[Path], bool] | None = None  # whether a folder, here or elsewhere, has labels of this format
    keeps_groups: bool = False  # `writer` writes each image's source
    split_by_folder: bool = False  # where an image lies says its split: to change it, the image must move
    splits_share_files: bool = False  # one file may hold several splits: to replace one, all are written anew
    explain_left_out: Callable[[Path], str] = lambda root: ""  # (root): which files are read in no split; "" for none

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
        if labels is None:
            left_out = self.explain_left_out(root)
            if split not in (splits := self.list_splits(root)):
                hint = f"; {left_out}: rename it if it is {split}" if left_out else ""
                raise InputError(
                    f"{root} has no split {split!r} in this format; it has {', '.join(splits) or 'none'}{hint}"
                )
            if left_out:
                warn_once(left_out)
        source = SplitSource(root, split, images, labels, classes, options, [])
        with keep_missing_images(options.keep_missing):
            table = name_classes(self.reader(source), root, options)
        warn_of_names(source)
        return table

    def write(self, table: Table, root: Path, split: str, image_names: list[str]) -> None:
        """Write the labels of a split, and the class names; replaced lists stay beside the new ones as `.bak`.

        `image_names` are the images' paths within `images_folder(split)`, as `name_images(table, names)` gives them.
        The caller places the images there. Raises InputError for what the format cannot hold.
        """
        writer = self.require_writer()
        if self.name_images(table, self.shorten_names(table, image_names)) != image_names:
            raise InputError(f"{root}: the images of {split} do not lie in a folder of their class each")
        require_own_name(self.files_of_split(root, split), root, split)
        writer(table, root, split, image_names)

    def require_writer(self) -> Callable[[Table, Path, str, list[str]], None]:
        """The `writer`. Raises InputError for a format that is only read."""
        if self.writer is None:
            raise InputError(
                f"a data set of {self.expects} is only read: convert it to another format "
                "(`python dataset_tools.py convert --TO csv` with OUTPUT_FOLDER)"
            )
        return self.writer


def name_classes(table: Table, root: Path, options: ReadOptions) -> Table:
    """`table` with its class names in NFC, and without the classes of NO_LABEL_NAMES."""
    classes = require_unique(table.classes, lambda index: f"{root}: class {index + 1}")
    return drop_no_label(replace(table, classes=classes), {*map(to_nfc, options.no_label_names)})


def warn_of_names(source: SplitSource) -> None:
    """Warn of the labels that were left out, and of names in two Unicode forms."""
    skipped = sum((index.skipped for index in source.indexes), Counter())
    if skipped:
        names = show_names([f"{name[:LONGEST]!r} ({count:,})" for name, count in skipped.most_common()])
        warn(
            f"{source.root}: {skipped.total():,} labels of {source.split} are left out, since no class has their name "
            f"(UNKNOWN_NAMES): {names}"
        )
    doubles = sorted({name for index in source.indexes for name in index.list_doubles()})
    if doubles:
        warn(
            f"{source.root}: {quote_names(doubles)} in {source.split}: written in two Unicode forms, read as one class"
        )
