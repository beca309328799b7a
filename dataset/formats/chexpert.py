"""chexpert: `train.csv`, `valid.csv` and `test.csv` with `Path` and a column for each observation (only read).

Irvin et al., CheXpert, AAAI 2019 (arXiv 1901.07031; https://stanfordmlgroup.github.io/competitions/chexpert). Columns:
`Path`; `Sex`, `Age`, `Frontal/Lateral` and `AP/PA`, which are left; then the observations: 1 present, 0 absent, -1
uncertain, blank unmentioned in the report.

* -1 is unknown: the paper's U-Ignore, which leaves these entries out of the loss.
* Blank is absent: the paper trains on "0 (negative), 1 (positive), or u (uncertain)", so what no report mentions is
  negative there. Were it unknown, `No Finding`, which is 1 or blank, would be known of positives only.

The group is the patient. Paths begin with the name that the folder had, such as `CheXpert-v1.0-small/`.
"""

from __future__ import annotations

import re
from pathlib import Path

from dataset.class_names import require_unique
from dataset.csv_files import read_cells, read_header
from dataset.formats.base import Format, SplitSource
from dataset.label_values import UNKNOWN
from dataset.rows import Rows
from dataset.table import Table
from utils import InputError

FILES = {"train": "train.csv", "val": "valid.csv", "test": "test.csv"}
OTHER_COLUMNS = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA"]  # the first five
VALUES = {"1.0": 1, "0.0": 0, "-1.0": UNKNOWN, "": 0, "1": 1, "0": 0, "-1": UNKNOWN}
PATIENT = re.compile(r"(?:^|/)(patient[^/]+)/")


def list_splits(root: Path) -> list[str]:
    return [split for split, name in FILES.items() if is_table(root / name)]


def is_table(file: Path) -> bool:
    return file.is_file() and read_header(file)[:5] == OTHER_COLUMNS


def files_of_split(root: Path, split: str) -> list[Path]:
    return [root / FILES[split]]


def read(source: SplitSource) -> Table:
    root, file = source.root, source.root / FILES[source.split]
    names = read_header(file)[len(OTHER_COLUMNS) :]
    classes = require_unique(names, lambda index: f"{file}:1: column {index + 1 + len(OTHER_COLUMNS)}")
    rows = Rows(root, root, classes)
    for line, (path, *cells) in read_cells(file, ["Path", *names]):
        where = f"{file}:{line}"
        if odd := next((cell for cell in cells if cell not in VALUES), None):
            raise InputError(f"{where}: {odd!r} is none of 1, 0, -1 (uncertain) and blank (unmentioned)")
        patient = PATIENT.search(path)
        if patient is None:
            raise InputError(
                f"{where}: no folder in {path[:200]!r} is called patient...: that says who is on the image"
            )
        rows.add(shorten(path, root), bytes([VALUES[cell] for cell in cells]), where, patient[1])
    return rows.make_table(file, has_groups=True)


def shorten(path: str, root: Path) -> str:
    """`path` from `root` on: without its first folder, where there is none of that name."""
    first, _, rest = path.partition("/")
    return path if (root / first).is_dir() else rest


FORMAT = Format(
    expects="train.csv and valid.csv with Path, Sex, Age, Frontal/Lateral, AP/PA (chexpert)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
)
