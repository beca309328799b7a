"""Writes the predictions that testing.py makes, and keeps them on disk while they are computed.

    with RowFile(path, image_paths, num_classes=3, batch_size=32) as rows:
        for probabilities in ...:               # (C,) of the images from number rows.num_done on
            rows.append(probabilities)
        predictions = Predictions(paths=image_paths, names=name_images(image_paths), probabilities=rows.read(), ...)
        write_indices(folder / "predictions.json", predictions)

`RowFile` has a row of probabilities for each image, and survives an interruption. All other files are written from it
at the end, image by image. Each is written under a temporary name and then renamed, so it is complete or absent.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset.decoding import stamp_files
from dataset.fonts import make_drawable
from dataset.json_files import write_list, write_object
from dataset.locks import hold
from dataset.text_files import CsvFile
from dataset.whole_files import replace_folder, write_atomically
from evaluation.prediction_exports import (
    warn_of_bytes,
    write_csv,
    write_fiftyone,
    write_jsonl,
    write_label_studio,
    write_parquet,
)
from evaluation.prediction_tables import require_pyarrow
from evaluation.predictions import Prediction, Predictions
from predictor import JPEG_QUALITY, shorten
from utils import InputError, Progress, explain


def find_base(paths: Sequence[str]) -> str:
    """The deepest folder that holds all of `paths`."""
    return os.path.commonpath([str(Path(path).parent) for path in paths])


def name_images(paths: Sequence[str]) -> list[str]:
    """A name for each image: its path relative to `find_base(paths)`, without the file's ending.

    The endings stay where two paths differ in nothing else. Example: /a/b/1.jpg and /a/2.jpg are "b/1" and "2".
    """
    base = find_base(paths)
    names = [Path(path).relative_to(base) for path in paths]
    stems = [name.with_suffix("").as_posix() for name in names]
    return stems if len(set(stems)) == len(stems) else [name.as_posix() for name in names]


ROWS_AT_ONCE = 4096  # that are read together from the file of an earlier run


class RowFile:
    """A file with a row for each image, in order: its probabilities, and a stamp of its path, size and time.

    A later run finds the file. It goes on after the last whole batch whose images are still the same, so that every
    batch holds the same images as without an interruption. `num_done` counts the rows that are there. Unless the run
    `goes_on`, it begins with none.

    With `num_nearest`, a row also has the image's novelty, and as many rows of the reference that it was compared with.

    Raises InputError where the file cannot be written, or while another process writes to it.
    """

    def __init__(
        self,
        path: Path,
        images: Sequence[str],
        num_classes: int,
        batch_size: int,
        goes_on: bool = True,
        num_nearest: int = 0,
    ) -> None:
        self.path, self.batch_size, self.stamps = path, batch_size, _stamp(images)
        fields: list[Any] = [("image", np.uint64), ("probabilities", np.float32, (num_classes,))]
        if num_nearest:
            fields += [("novelty", np.float32), ("nearest", np.int32, (num_nearest,))]
        self.row = np.dtype(fields)
        with ExitStack() as stack:
            if not stack.enter_context(hold(path, wait=False, keep=True)):
                raise InputError(f"another process is making these predictions: {path} is in use")
            try:
                self.file = stack.enter_context(open(path, "a+b"))
                self.num_done = self._count_same() // batch_size * batch_size if goes_on else 0
                self.file.truncate(self.num_done * self.row.itemsize)
            except OSError as error:
                raise InputError(f"cannot write {path}: {explain(error)}") from error
            self.stack = stack.pop_all()  # closed by __exit__

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            self.stack.close()
        except OSError as failure:  # the last rows do not fit
            if error is None:
                raise self._explain(failure) from failure

    def _explain(self, error: OSError) -> InputError:
        return InputError(f"cannot write {self.path}: {explain(error)} (what is done stays there)")

    def _count_same(self) -> int:
        """How many rows, from the first on, have the stamps of `images`. Half a row at the end does not count."""
        self.file.seek(0)
        num_same = 0
        while data := self.file.read(ROWS_AT_ONCE * self.row.itemsize):
            rows = np.frombuffer(data, self.row, count=len(data) // self.row.itemsize)
            expected = self.stamps[num_same : num_same + len(rows)]
            is_same = rows["image"][: len(expected)] == expected
            if not is_same.all():
                return num_same + int(is_same.argmin())  # the first that differs
            num_same += len(is_same)
            if len(is_same) < ROWS_AT_ONCE:
                break
        return num_same

    def append(
        self, probabilities: NDArray[np.float32], novelty: float | None = None, nearest: Sequence[int] = ()
    ) -> None:
        """Add the row of the next image, (C,). After each batch, its rows are written to the file."""
        row = np.zeros((), self.row)
        row["image"], row["probabilities"] = self.stamps[self.num_done], probabilities
        if novelty is not None:
            row["novelty"], row["nearest"] = novelty, nearest
        try:
            self.file.write(row.tobytes())
            self.num_done += 1
            if self.num_done % self.batch_size == 0:
                self.file.flush()
        except OSError as error:
            raise self._explain(error) from error

    def read(self, field: str = "probabilities") -> NDArray[Any]:
        """Probabilities (N, C) of all images that are done, mapped from the file, so that they take no memory.

        `field` may also be "novelty", (N,), or "nearest", (N, num_nearest). Raises InputError.
        """
        try:
            self.file.flush()
        except OSError as error:
            raise self._explain(error) from error
        if self.num_done == 0:  # an empty file cannot be mapped
            return np.zeros(0, self.row)[field]
        return np.memmap(self.file, self.row, "r", shape=(self.num_done,))[field]


def _stamp(paths: Sequence[str]) -> NDArray[np.uint64]:
    """(N,) a number for each file that changes with its path, size and time. Raises InputError for a missing file."""
    digests = []
    for path, (size, time) in zip(paths, stamp_files(paths).tolist(), strict=True):
        text = f"{path}\0{size}\0{time}".encode(errors="surrogateescape")
        digests.append(hashlib.blake2b(text, digest_size=8).digest())
    return np.frombuffer(b"".join(digests), np.uint64)


def write_indices(path: Path, predictions: Predictions) -> None:
    """Write JSON: {image: [class indices]}, the indices in rising order."""
    write_object(path, ((prediction.name, prediction.labels) for prediction in predictions))


def write_names(path: Path, predictions: Predictions) -> None:
    """Write JSON: {image: [class names]}, in the order of the classes."""

    write_object(path, ((prediction.name, prediction.names) for prediction in predictions))


def write_scores(path: Path, predictions: Predictions) -> None:
    """Write JSON: {image: {class name: probability}} of the predicted classes, the most probable first."""

    def make_scores() -> Iterator[tuple[str, dict[str, float]]]:
        for prediction in predictions:
            scores = {}
            for label in prediction.ranked:
                scores[predictions.classes[label]] = shorten(prediction.probabilities[label])
            yield prediction.name, scores

    write_object(path, make_scores())


def write_records(path: Path, predictions: Predictions) -> None:
    """Write JSON as PaddleX does: a list of records, one for each image, the most probable class first.

    A record is {"input_path": path, "class_ids": [...], "scores": [...], "label_names": [...]}, with "abstains": true
    where the model leaves the image to a person; of images that were compared with the training images also "novelty",
    and "nearest", names of training images.
    """

    def make_records() -> Iterator[dict[str, Any]]:
        for prediction in predictions:
            record = prediction.json["res"]
            if prediction.novelty is not None:
                record |= {"novelty": shorten(prediction.novelty), "nearest": [*prediction.nearest]}
            yield record

    write_list(path, make_records())


def write_probabilities(path: Path, predictions: Predictions) -> None:
    """Write CSV: a first line `image_path,<class names>`, then for each image its path and all C probabilities.

    Teachers and the curriculum of a training read such files. Nine digits give exactly the same float32 again.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(CsvFile(file))
            writer.writerow(["image_path", *predictions.classes])
            for prediction in predictions:
                warn_of_bytes(prediction.path)
                writer.writerow([prediction.path, *map("{:.9g}".format, prediction.probabilities.tolist())])

    write_atomically(path, write)


def write_abstained(path: Path, predictions: Predictions) -> None:
    """Write JSON: [image], the names of those that the model leaves to a person."""
    write_list(path, (prediction.name for prediction in predictions if prediction.abstains))


def write_pictures(folder: Path, predictions: Predictions) -> None:
    """Write a JPEG of each image to `folder`/<name>.jpg, with its labels and their probabilities under it."""
    make_drawable(predictions.classes)  # finds the fonts once, before several threads look for them

    def save(prediction: Prediction) -> None:
        path = new_folder / f"{prediction.name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:  # on a disk that ignores case, a second picture would replace the first
            prediction.img["res"].save(file, "JPEG", quality=JPEG_QUALITY)

    with (
        replace_folder(folder) as new_folder,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        Progress("drawing", len(predictions)) as progress,
    ):
        waiting: list[Prediction] = []
        for number, prediction in enumerate(predictions, start=1):
            waiting.append(prediction)
            # 64 at a time: given all of a million predictions, the pool would hold them in memory
            if len(waiting) == 64 or number == len(predictions):
                list(pool.map(save, waiting))
                progress.step(len(waiting))
                waiting.clear()


class Output(NamedTuple):
    """A file or folder of predictions: how its name ends, and the function that writes it.

    The first kinds have the long names by which scripts have always found them; later ones are `short`.
    """

    ending: str
    write: Callable[[Path, Predictions], None]
    short: bool = True  # the name, see `shorten_name`


# the values of testing.py's constant PREDICTION_FILES
PREDICTION_FILES: dict[str, Output] = {
    "names": Output("_names.json", write_names, short=False),
    "scores": Output("_scores.json", write_scores, short=False),
    "records": Output("_records.json", write_records, short=False),
    "pictures": Output("_pictures", write_pictures, short=False),
    "probabilities": Output("_probabilities.csv", write_probabilities, short=False),
    "csv": Output(".csv", write_csv),
    "jsonl": Output(".jsonl", write_jsonl),
    "parquet": Output(".parquet", write_parquet),
    "label_studio": Output("_label_studio", write_label_studio),
    "fiftyone": Output("_fiftyone.json", write_fiftyone),
}


def require_packages(kinds: Collection[str]) -> None:
    """Raise InputError where a package is missing that writes one of the `kinds`: before hours of predicting."""
    if "parquet" in kinds:
        require_pyarrow()


def shorten_name(name: str, model: str, images: str) -> str:
    """A name for files that people open: "predictions_resnet50_test_3f09ac".

    The six digits are those of `name`, the long one of the same predictions, which says of which run they are and how
    they were made: other predictions do not replace these. `images` is the split, or what was chosen.
    """
    return f"predictions_{model}_{images}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"
