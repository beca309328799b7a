"""celeba: `list_attr_celeba.txt` or .csv, `list_eval_partition.txt` or .csv, and `img_align_celeba/` (only read).

The text file (Liu et al., Deep Learning Face Attributes in the Wild, ICCV 2015; README.txt of the release,
https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html): the number of images; the names of the attributes; then lines
`000001.jpg -1  1 -1`, where 1 is present and -1 is absent, not unknown. The partition: lines `000001.jpg 0`, 0 train,
1 val, 2 test. The release has them in `Anno/`, `Eval/` and `Img/`; Kaggle's copy (jessicali9530/celeba-dataset) as
CSV files with the columns `image_id` and `partition`, its images in `img_align_celeba/img_align_celeba/`. Without a
partition, all images are in train.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dataset.class_names import require_unique
from dataset.csv_files import read_cells, read_header
from dataset.files import open_file
from dataset.formats.base import Format, SplitSource
from dataset.image_finder import find_folder
from dataset.rows import Rows
from dataset.table import SPLITS, Table
from dataset.text_files import read_lines
from utils import InputError

ATTRIBUTES = ("list_attr_celeba.txt", "Anno/list_attr_celeba.txt", "list_attr_celeba.csv")
PARTITIONS = ("list_eval_partition.txt", "Eval/list_eval_partition.txt", "list_eval_partition.csv")
FOLDERS = ("img_align_celeba", "img_align_celeba/img_align_celeba", "Img/img_align_celeba", "Img/img_align_celeba_png")
SPLIT_OF = {"0": "train", "1": "val", "2": "test"}
VALUES = {"1": 1, "-1": 0}


def list_splits(root: Path) -> list[str]:
    if not find_file(root, ATTRIBUTES):
        return []
    partition = find_file(root, PARTITIONS)
    found = set(read_partition(partition).values()) if partition else {"train"}
    return [split for split in SPLITS if split in found]


def files_of_split(root: Path, split: str) -> list[Path]:
    return [file for file in (find_file(root, ATTRIBUTES), find_file(root, PARTITIONS)) if file]


def find_file(root: Path, names: Sequence[str]) -> Path | None:
    """The one of `names` that is there and begins as such a file does. Raises InputError where there are two."""
    found = [root / name for name in names if (root / name).is_file() and begins_rightly(root / name)]
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1]} may not say the same: keep one of them")
    return found[0] if found else None


def begins_rightly(file: Path) -> bool:
    """Whether it begins as a file of CelebA does: another file may have such a name."""
    if file.suffix == ".csv":
        return read_header(file)[:1] == ["image_id"]
    with open_file(file) as stream:
        words = stream.read(100).decode("utf-8-sig", errors="replace").split()
    if "attr" in file.name:
        return words[:1] != [] and words[0].isdecimal()
    return words[1:2] != [] and words[1] in SPLIT_OF


def read_partition(file: Path) -> dict[str, str]:
    """{image: its split}."""
    if file.suffix == ".csv":
        rows = read_cells(file, ("image_id", "partition"))
    else:
        rows = ((line, text.split()) for line, text in read_lines(file))
    splits: dict[str, str] = {}
    for line, cells in rows:
        if len(cells) != 2 or cells[1] not in SPLIT_OF:
            raise InputError(f"{file}:{line}: expected an image and 0 (train), 1 (val) or 2 (test): {cells[:3]}")
        splits[cells[0]] = SPLIT_OF[cells[1]]
    return splits


def read(source: SplitSource) -> Table:
    root = source.root
    file, partition = find_file(root, ATTRIBUTES), find_file(root, PARTITIONS)
    assert file is not None, "Format.read asks for the splits first"
    splits = read_partition(partition) if partition else {}
    classes, images = read_csv(file) if file.suffix == ".csv" else read_text_file(file)
    rows: Rows | None = None
    for line, name, cells in images:
        where = f"{file}:{line}"
        if len(cells) != len(classes):
            raise InputError(f"{where}: {len(cells)} values, but there are {len(classes)} attributes")
        if partition and name not in splits:
            raise InputError(f"{where}: {name} stands in no line of {partition}")
        if splits.get(name, "train") != source.split:
            continue
        if odd := next((cell for cell in cells if cell not in VALUES), None):
            raise InputError(f"{where}: {odd!r} is neither 1 (present) nor -1 (absent, in CelebA)")
        if rows is None:
            rows = Rows(find_folder(root, FOLDERS, name), root, classes)
        rows.add(name, bytes([VALUES[cell] for cell in cells]), where)
    return (rows or Rows(root, root, classes)).make_table(file)


def read_csv(file: Path) -> tuple[tuple[str, ...], Iterator[tuple[int, str, list[str]]]]:
    """(attributes, (line, image, values) of each row)."""
    header = read_header(file)
    classes = require_unique(header[1:], lambda index: f"{file}:1: column {index + 2}")
    return classes, ((line, cells[0], cells[1:]) for line, cells in read_cells(file, header))


def read_text_file(file: Path) -> tuple[tuple[str, ...], Iterator[tuple[int, str, list[str]]]]:
    """The same of the release's file. Raises InputError where it has not as many lines as its first line says."""
    (_, count), *lines = read_lines(file)
    if not lines:
        raise InputError(f"{file} ends after its first line: is it whole?")
    if count.strip() != str(len(lines) - 1):
        raise InputError(
            f"{file}:1: this says that {count.strip()[:20]} images follow, but {len(lines) - 1} do: is it whole?"
        )
    classes = require_unique(lines[0][1].split(), lambda index: f"{file}:{lines[0][0]}")
    return classes, ((line, cells[0], cells[1:]) for line, text in lines[1:] if (cells := text.split()))


FORMAT = Format(
    expects="list_attr_celeba.txt or .csv (celeba)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
)
