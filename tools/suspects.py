"""Labels that are probably wrong, for a person to look at: `python dataset_tools.py suspects`.

    suspects = judge_labels(table, probabilities, learned)
    save_suspects(suspects, Path("suspects"), root="~/photos", num_shown=1000)

tools/confident_learning.py finds them. suspects.csv lists all; index.html shows the pictures of the first ones, takes
the answers by key presses, and saves them as corrections.csv, which LABEL_CORRECTIONS applies in reading. Nothing is
written to the data set.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import utils
from dataset import whole_files
from dataset.decoding import judge_image, stamp_files
from dataset.files import make_absolute
from dataset.label_corrections import Correction
from dataset.table import Table
from dataset.text_files import CsvFile
from evaluation import neighbours, pages
from evaluation.tables import guard_cell
from tools import confident_learning
from tools.confident_learning import Question, Thresholds
from utils import InputError

PICTURE_SIDE = 640  # pixels of the longer side: small things can be told, and a thousand take some 60 MB
SMALL_SIDE, NUM_ALIKE = 160, 4  # of the images that are most like a suspect one: pixels, and how many are shown
PICTURE_NAME = re.compile(r"[0-9a-f]{16}\.jpg")
COLUMNS = ("rank", "path", "class", "given", "suggested", "probability", "score")


class Suspects(NamedTuple):
    """What is probably wrong among the labels of a data set."""

    table: Table
    probabilities: NDArray[np.float32]  # (N, C) by models that have not seen the image
    thresholds: Thresholds
    questions: list[Question]  # the most suspect first; those of an image stand together


def judge_labels(
    table: Table,
    probabilities: NDArray[np.float32],
    learned: NDArray[np.int8],
    *,
    one_label: bool = False,
    absent_is_unknown: bool = False,
    answered: Sequence[Correction] = (),
) -> Suspects:
    """Find the suspect labels among those of `table`, (N, C).

    `learned` (N, C) are the labels that the models behind `probabilities` (N, C) learned from. Unknown labels are never
    suspect; nor is, if `absent_is_unknown`, what is absent. Labels in `answered` were looked at, and are left out. With
    `one_label` an image has one, and another class is suggested for it. Raises InputError where no label is known.
    """
    if not (table.targets != -1).any():
        raise InputError(f"none of the labels of {len(table):,} images is known: there is nothing to judge")
    thresholds = confident_learning.measure_thresholds(probabilities, learned)
    if one_label:
        questions = confident_learning.list_swaps(probabilities, table.targets, thresholds)
    else:
        is_suspect = confident_learning.find_suspects(probabilities, table.targets, thresholds)
        if absent_is_unknown:
            is_suspect &= table.targets == 1
        questions = confident_learning.list_questions(probabilities, table.targets, thresholds, is_suspect)
    seen = {(correction.path, correction.name) for correction in answered}
    if seen:
        paths = [str(make_absolute(path)) for path in table.paths]
        questions = [
            question
            for question in questions
            if not any((paths[question.row], table.classes[change.column]) in seen for change in question.changes)
        ]
    return Suspects(table, probabilities, thresholds, confident_learning.rank(questions))


# ---- what is written ----


def save_suspects(
    suspects: Suspects,
    output: Path,
    root: str | Path,
    num_shown: int,
    answered: Sequence[Correction] = (),
    features: NDArray[np.floating] | None = None,
) -> None:
    """Write suspects.csv, and index.html with the pictures of the first `num_shown` images, into `output`.

    Paths in both begin at the folder `root`. `answered` are earlier answers, which the page saves with its own. With
    the `features` of all images, (N, D), the page also shows those that are most like each suspect one, with their
    labels. Images whose names are no UTF-8 have no place in a page and a csv, and are left out, with a warning.
    """
    output, base = make_absolute(output), make_absolute(root)
    paths = suspects.table.paths
    names = {question.row: shorten(paths[question.row], base) for question in suspects.questions}
    odd = [row for row, name in names.items() if pages.printable(name) != name]
    if odd:
        utils.warn(
            f"{pages.count(len(odd), 'image')} left out, whose names are no UTF-8: rename them, such as {paths[odd[0]]}"
        )
        suspects = suspects._replace(questions=[one for one in suspects.questions if one.row not in odd])
    whole_files.write_text(output / "suspects.csv", make_csv(suspects, names))
    shown = list(dict.fromkeys(question.row for question in suspects.questions))[:num_shown]
    pictures = save_pictures([paths[row] for row in shown], output / "pictures")
    alike = {} if features is None else save_alike(suspects.table, features, shown, output / "alike")
    page = pages.render(
        "suspects.html",
        title=base.name,
        data=make_data(suspects, names, dict(zip(shown, pictures, strict=True)), base, answered, alike),
        num_images=len({question.row for question in suspects.questions}),
    )
    whole_files.write_text(output / "index.html", page)


def shorten(path: str, base: Path) -> str:
    """`path` from the folder `base` on, as a list of the data set there has it; as it is where it lies elsewhere."""
    absolute = make_absolute(path)
    name = absolute.relative_to(base).as_posix() if absolute.is_relative_to(base) else str(absolute)
    return f"./{name}" if name[0].isspace() else name  # a reader of csv drops blanks around a cell


def make_csv(suspects: Suspects, names: Mapping[int, str]) -> str:
    """All suspect labels, a line each, with the rank of their image. For people: names are as `guard_cell` has them."""
    text = io.StringIO()
    writer = csv.writer(CsvFile(text))
    writer.writerow(COLUMNS)
    rank_of: dict[int, int] = {}
    for row, score, changes in suspects.questions:
        image_rank = rank_of.setdefault(row, len(rank_of) + 1)
        for column, given, suggested in changes:
            name, probability = suspects.table.classes[column], suspects.probabilities[row, column]
            cells = (guard_cell(names[row]), guard_cell(name), given, suggested, f"{probability:.4f}", f"{score:.4f}")
            writer.writerow([image_rank, *cells])
    return text.getvalue()


def save_pictures(paths: Sequence[str], folder: Path, side: int = PICTURE_SIDE) -> list[str]:
    """Write a copy of each image, at most `side` pixels wide and high, into `folder`; their names.

    What is there already stays, unless it is of none. A picture's name changes with the image's path, size and time.
    Raises InputError for an image that cannot be read.
    """
    stamps = stamp_files(paths).tolist() if paths else []
    keys = [f"{path}\n{stamp}\n{side}" for path, stamp in zip(paths, stamps, strict=True)]
    names = [hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:16] + ".jpg" for key in keys]
    folder.mkdir(parents=True, exist_ok=True)
    there = {file.name for file in folder.iterdir() if PICTURE_NAME.fullmatch(file.name)}
    for name in there.difference(names):
        (folder / name).unlink()
    tasks = [(path, folder / name) for path, name in zip(paths, names, strict=True) if name not in there]
    with ThreadPool() as pool, utils.Progress("pictures", len(tasks)) as progress:  # decoding leaves Python's lock
        for _ in pool.imap(lambda task: save_picture(*task, side), tasks, chunksize=8):
            progress.step(1)
    return names


def save_alike(
    table: Table, features: NDArray[np.floating], rows: Sequence[int], folder: Path
) -> dict[int, list[dict[str, Any]]]:
    """For each of the images `rows` those of `table` that are most like it, by `features` (N, D): what the page shows.

    Their small pictures go into `folder`.
    """
    nearest = neighbours.find_alike(features, rows, NUM_ALIKE).rows.tolist()
    others = list(dict.fromkeys(row for few in nearest for row in few))
    pictures = save_pictures([table.paths[row] for row in others], folder, SMALL_SIDE)
    shown = {
        row: {"picture": picture, "labels": list_columns(table, row, 1), "unknown": list_columns(table, row, -1)}
        for row, picture in zip(others, pictures, strict=True)
    }
    return {row: [shown[other] for other in few] for row, few in zip(rows, nearest, strict=True)}


def list_columns(table: Table, row: int, label: int) -> list[int]:
    """The classes for which image `row` has this label: 1 present, 0 absent, -1 unknown."""
    return np.flatnonzero(table.targets[row] == label).tolist()


def save_picture(path: str, file: Path, side: int) -> None:
    """Write a smaller copy of the image at `path`, which a browser can show whatever the type of the image."""
    picture = Image.fromarray(judge_image(path).pixels)
    picture.thumbnail((side, side))
    whole_files.write_atomically(file, lambda temporary: picture.save(temporary, "JPEG", quality=85))


def make_data(
    suspects: Suspects,
    names: Mapping[int, str],
    pictures: Mapping[int, str],
    base: Path,
    answered: Sequence[Correction],
    alike: Mapping[int, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """What the page shows: the questions about the images that have a picture, and the earlier answers.

    `alike` is what `save_alike` gives; {}: no features are at hand.
    """
    table, images = suspects.table, {}
    for row, _, changes in suspects.questions:
        if row not in pictures:
            continue
        if row not in images:
            images[row] = {
                "path": names[row],
                "picture": pictures[row],
                "labels": list_columns(table, row, 1),
                "alike": alike.get(row, []),
                "questions": [],
            }
        shown = [[*change, round(float(suspects.probabilities[row, change.column]), 4)] for change in changes]
        images[row]["questions"].append(shown)
    return {
        "key": f"suspects {table.fingerprint()}",  # other labels are other questions
        "classes": table.classes,
        "images": list(images.values()),
        "answered": [[shorten(path, base), name, given, right] for _, path, name, given, right in answered],
    }


# ---- what is printed ----


def describe(suspects: Suspects) -> list[str]:
    """Lines about how many labels are suspect, and of which classes nothing can be said."""
    table, questions = suspects.table, suspects.questions
    num_known = int((table.targets != -1).sum())
    changes = [change for question in questions for change in question.changes]
    kinds = Counter(change.given for change in changes)
    num_images = len({question.row for question in questions})
    lines = [
        f"{len(table):,} images, {num_known:,} labels of {len(table.classes)} classes: {len(changes):,} are suspect "
        f"({len(changes) / max(num_known, 1):.1%}), in {num_images:,} images",
        f"{kinds[1]:,} labels may be too many, {kinds[0]:,} may be missing",
    ]
    rare = [table.classes[column] for column in np.flatnonzero(np.isnan(suspects.thresholds.present)).tolist()]
    if rare:
        lines.append(f"too rare to judge, present or absent: {pages.count(len(rare), 'class')}, such as {rare[0]}")
    return lines
