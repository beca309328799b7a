"""What testing.py writes of a model's predictions, and the file that keeps them while they are computed.

`RowFile` holds a row of probabilities for each image, through an interruption, too. Everything else is written from it
at the end, image by image, each file aside and then renamed: complete or absent.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset.decoding import decode_image, stamp_files
from evaluation.pictures import draw_labels
from metrics import read_rows
from utils import InputError, Progress, replace_folder, write_atomically


def find_base(paths: Sequence[str]) -> str:
    """The folder that holds all of `paths`."""
    return os.path.commonpath([str(Path(path).parent) for path in paths])


def name_images(paths: Sequence[str]) -> list[str]:
    """Each path from the folder that holds them all on, without its ending, unless two differ in that alone."""
    base = find_base(paths)
    names = [Path(path).relative_to(base) for path in paths]
    stems = [name.with_suffix("").as_posix() for name in names]
    return stems if len(set(stems)) == len(stems) else [name.as_posix() for name in names]


ROWS_AT_ONCE = 4096  # of a file of an earlier run, looked at together


class RowFile:
    """A row for each image, in order: its probabilities, and a stamp of path, size and time of the file.

    A later run finds the file and goes on after the last whole batch whose images are still the same, so that every
    batch is made up as it would have been. Raises InputError while another process writes to it.
    """

    def __init__(self, path: Path, images: Sequence[str], num_classes: int, batch_size: int) -> None:
        import fcntl  # not on Windows

        self.path, self.batch_size, self.stamps = path, batch_size, _stamp(images)
        self.row = np.dtype([("image", np.uint64), ("probabilities", np.float32, (num_classes,))])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "a+b")  # noqa: SIM115  # closed by __exit__
            # of the process, unlike flock's: loading processes that outlive a killed run do not hold it
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process is making these predictions: {path} is in use") from error
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        self.num_done = self._count_same() // batch_size * batch_size
        self.file.truncate(self.num_done * self.row.itemsize)

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def _count_same(self) -> int:
        """How many rows from the first on are of the images they have to be of; half a row at the end is none."""
        self.file.seek(0)
        same = 0
        while data := self.file.read(ROWS_AT_ONCE * self.row.itemsize):
            rows = np.frombuffer(data[: len(data) // self.row.itemsize * self.row.itemsize], self.row)
            expected = self.stamps[same : same + len(rows)]
            equal = rows["image"][: len(expected)] == expected
            same += len(equal) if equal.all() else int(equal.argmin())
            if len(equal) < ROWS_AT_ONCE or not equal.all():
                break
        return same

    def append(self, probabilities: NDArray[np.float32]) -> None:
        """The next image's (C,); whole batches reach the file at once."""
        row = np.zeros((), self.row)
        row["image"], row["probabilities"] = self.stamps[self.num_done], probabilities
        try:
            self.file.write(row.tobytes())
            self.num_done += 1
            if self.num_done % self.batch_size == 0:
                self.file.flush()
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror} (what is done stays there)") from error

    def read(self) -> NDArray[np.float32]:
        """(N, C) probabilities of all images that are done, in the file, not in memory."""
        self.file.flush()
        is_empty = self.num_done == 0  # which cannot be mapped
        rows = np.zeros(0, self.row) if is_empty else np.memmap(self.file, self.row, "r", shape=(self.num_done,))
        return rows["probabilities"]


def _stamp(paths: Sequence[str]) -> NDArray[np.uint64]:
    """(N,) numbers that change with path, size or time of each file. Raises InputError where one is not there."""
    digests = [
        hashlib.blake2b(f"{path}\0{size}\0{time}".encode(errors="surrogateescape"), digest_size=8).digest()
        for path, (size, time) in zip(paths, stamp_files(paths).tolist(), strict=True)
    ]
    return np.frombuffer(b"".join(digests), np.uint64)


class Prediction(NamedTuple):
    """Of one image."""

    path: str
    name: str  # what it is called in the files
    probabilities: NDArray[np.float32]  # (C,)
    labels: list[int]  # indices of the predicted classes, rising

    @property
    def ranked(self) -> list[int]:
        """The labels, the most probable first."""
        return sorted(self.labels, key=lambda label: -self.probabilities[label])


@dataclass(frozen=True)
class Predictions:
    """Of N images: iterating reads probabilities block by block and decides the labels of each."""

    paths: Sequence[str]
    names: Sequence[str]
    probabilities: NDArray[np.float32]  # (N, C)
    classes: Sequence[str]
    decide: Callable[[NDArray[np.float32]], Sequence[list[int]]]  # probabilities (B, C) -> labels of each image

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Prediction]:
        for rows in read_rows(self.probabilities):
            block = np.ascontiguousarray(self.probabilities[rows])
            yield from map(Prediction, self.paths[rows], self.names[rows], block, self.decide(block))


def write_indices(path: Path, predictions: Predictions) -> None:
    """JSON: {image: [class indices]}, rising."""
    _write_json(path, "{}", ((p.name, p.labels) for p in predictions))


def write_names(path: Path, predictions: Predictions) -> None:
    """JSON: {image: [class names]}, in the order of the classes."""
    _write_json(path, "{}", ((p.name, [predictions.classes[label] for label in p.labels]) for p in predictions))


def write_scores(path: Path, predictions: Predictions) -> None:
    """JSON: {image: {class name: probability}} of the predicted classes, the most probable first."""
    classes = predictions.classes
    scores = ((p.name, {classes[c]: _shorten(p.probabilities[c]) for c in p.ranked}) for p in predictions)
    _write_json(path, "{}", scores)


def write_records(path: Path, predictions: Predictions) -> None:
    """JSON: PaddleX's records [{"input_path", "class_ids", "scores", "label_names"}], the most probable class first."""

    def make(prediction: Prediction) -> dict[str, Any]:
        ranked = prediction.ranked
        return {
            "input_path": prediction.path,
            "class_ids": ranked,
            "scores": [_shorten(prediction.probabilities[label]) for label in ranked],
            "label_names": [predictions.classes[label] for label in ranked],
        }

    _write_json(path, "[]", ((None, make(prediction)) for prediction in predictions))


def _shorten(probability: np.float32) -> float:
    return float(f"{probability:.6g}")


def _write_json(path: Path, brackets: str, items: Iterable[tuple[str | None, Any]]) -> None:
    """What json.dumps(..., indent=1) makes of the object (or, without keys, list) of `items`, written one by one."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            before = brackets[0]
            for key, value in items:
                text = json.dumps(value, indent=1).replace("\n", "\n ")  # within strings, line ends are escaped
                file.write(f"{before}\n {text if key is None else f'{json.dumps(key)}: {text}'}")
                before = ","
            file.write(f"\n{brackets[1]}")

    write_atomically(path, write)


def write_probabilities(path: Path, predictions: Predictions) -> None:
    """CSV: a line `image_path,<class names>`, then for each image its path and every class's probability.

    What a teacher's predictions and a curriculum are read from: nine digits give the same float32 again.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["image_path", *predictions.classes])
            for prediction in predictions:
                writer.writerow([prediction.path, *map("{:.9g}".format, prediction.probabilities.tolist())])

    write_atomically(path, write)


def write_pictures(folder: Path, predictions: Predictions) -> None:
    """A JPEG of each image in `folder`, in the sub-folders of its name, with its labels and their probabilities."""
    import matplotlib as mpl  # noqa: F401  # once, before threads do

    def save(prediction: Prediction) -> None:
        ranked = prediction.ranked
        texts = [f"{predictions.classes[label]} {prediction.probabilities[label]:.2f}" for label in ranked]
        path = new / f"{prediction.name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_labels(decode_image(prediction.path), texts or ["no label"]).save(path, quality=90)

    with (
        replace_folder(folder) as new,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        Progress("drawing", len(predictions)) as progress,
    ):
        waiting: list[Prediction] = []
        for number, prediction in enumerate(predictions, start=1):
            waiting.append(prediction)
            if len(waiting) == 64 or number == len(predictions):  # a pool would take all of a million at once
                list(pool.map(save, waiting))
                progress.step(len(waiting))
                waiting.clear()


class Output(NamedTuple):
    """A file, or folder, beside the predictions: how its name ends, and what writes it."""

    ending: str
    write: Callable[[Path, Predictions], None]


# keys: what PREDICTION_FILES takes
PREDICTION_FILES: dict[str, Output] = {
    "names": Output("_names.json", write_names),
    "scores": Output("_scores.json", write_scores),
    "records": Output("_records.json", write_records),
    "pictures": Output("_pictures", write_pictures),
    "probabilities": Output("_probabilities.csv", write_probabilities),
}
