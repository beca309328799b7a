"""Predictions as tables and for other programs: CSV, JSON lines, Parquet, Label Studio's tasks, FiftyOne's labels.

Images are named by their whole paths. Each file is written image by image, so that millions need no memory, and is
complete or absent.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset.class_names import is_unicode, write_classes
from dataset.json_files import to_json, write_list
from dataset.text_files import CsvFile
from dataset.whole_files import replace_folder, write_atomically, write_text
from evaluation import label_studio, prediction_tables
from evaluation.predictions import Prediction, Predictions
from predictor import shorten
from utils import InputError, say, warn, warn_once

PLAIN_NAME = re.compile(r"\w[\w. -]*")  # of a class: nothing in it is taken for a separator, a list or a formula
ENTRIES_IN_GROUP = 2**22  # probabilities in a row group of a Parquet file, 16 MB


def make_whole(path: str) -> str:
    """The path of a file from the root of the disk on; links are not followed."""
    return os.path.normpath(os.path.join(Path.cwd(), path))


def rank_scores(prediction: Prediction) -> list[float]:
    """The probabilities of the labels, the highest first, with the digits that files have."""
    return [shorten(prediction.probabilities[label]) for label in prediction.ranked]


# ---- tables ----


def write_csv(path: Path, predictions: Predictions) -> None:
    """Write CSV: `file,labels,scores`, labels and scores joined by `;`, the most probable first.

        /data/a.jpg,person;dining table,0.981204;0.7351

    The data set format csv reads it. A name that it, or a spreadsheet, might take for something else stands in quotes.
    """
    quote = make_quoter(predictions.classes)

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(CsvFile(file))
            writer.writerow(["file", "labels", "scores"])
            for prediction in predictions:
                labels = ";".join(quote(predictions.classes[label]) for label in prediction.ranked)
                scores = ";".join(map("{:g}".format, rank_scores(prediction)))
                warn_of_bytes(prediction.path)
                writer.writerow([make_whole(prediction.path), labels, scores])

    write_atomically(path, write)


def warn_of_bytes(path: str) -> None:
    """Warn, once, where the name of a file makes a table no UTF-8."""
    if not is_unicode(path):
        warn_once("there are names of files that are no UTF-8: their bytes are in the csv, which is no UTF-8 there")


def make_quoter(classes: Sequence[str]) -> Callable[[str], str]:
    """A function that puts the name of a class into quotes where a reader of a column of names needs them.

    So it is for `green, or so`; and for `hot dog` where both `hot` and `dog` stand in another name, too, since then a
    blank might join them.
    """
    counts = Counter(word for name in classes for word in set(name.split()))

    def is_plain(name: str) -> bool:
        return bool(PLAIN_NAME.fullmatch(name)) and (" " not in name or any(counts[word] == 1 for word in name.split()))

    cells = {name: name if is_plain(name) else f'"{name.replace(chr(34), chr(34) * 2)}"' for name in classes}
    return cells.__getitem__


def write_jsonl(path: Path, predictions: Predictions) -> None:
    """Write a line of JSON for each image: {"file": path, "labels": [names], "scores": [...]}, the most probable first.

    Where they are known, a line also has "novelty" and "abstains".
    """

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            for prediction in predictions:
                line: dict[str, Any] = {
                    "file": make_whole(prediction.path),
                    "labels": [predictions.classes[label] for label in prediction.ranked],
                    "scores": rank_scores(prediction),
                }
                if prediction.novelty is not None:
                    line["novelty"] = shorten(prediction.novelty)
                if predictions.abstain:
                    line["abstains"] = bool(prediction.abstains)
                file.write(f"{to_json(line)}\n")

    write_atomically(path, write)


def write_parquet(path: Path, predictions: Predictions) -> None:
    """Write a Parquet file, see evaluation/prediction_tables.py. Raises InputError where pyarrow is not installed."""
    compared, abstain = predictions.compared, predictions.abstain
    schema = prediction_tables.make_arrow_schema(
        predictions.classes,
        thresholds=predictions.made_by.thresholds,
        model_sha256=predictions.made_by.sha256,
        has_novelty=compared is not None,
        has_abstains=abstain is not None,
    )

    def make_tables() -> Iterator[Any]:
        step = max(1, ENTRIES_IN_GROUP // max(1, len(predictions.classes)))
        for start in range(0, len(predictions), step):
            rows = slice(start, start + step)
            block = np.ascontiguousarray(predictions.probabilities[rows])
            yield prediction_tables.make_arrow_table(
                schema,
                [make_whole(path) for path in predictions.paths[rows]],
                predictions.decide(block),
                block,
                novelty=compared.novelty[rows] if compared else None,
                abstains=abstain(block) if abstain else None,
            )

    prediction_tables.write_parquet(path, schema, make_tables())


# ---- other programs ----


def write_label_studio(folder: Path, predictions: Predictions) -> None:
    """Write what a project of Label Studio needs: tasks with predictions, the labelling interface, and classes.txt.

    The score of a prediction is the probability that all its labels are right, if classes were independent. The last
    file goes beside what is exported there, which does not list the classes that were never chosen.
    """
    base = Path(os.path.commonpath([str(Path(make_whole(path)).parent) for path in predictions.paths]))
    made_by = predictions.made_by

    def make_tasks() -> Iterator[dict[str, Any]]:
        for number, prediction in enumerate(predictions, start=1):
            right = 1 - prediction.probabilities
            right[prediction.labels] = prediction.probabilities[prediction.labels]
            yield label_studio.make_task(
                place=os.path.relpath(make_whole(prediction.path), base.parent).replace(os.sep, "/"),
                labels=[predictions.classes[label] for label in prediction.ranked],
                score=float(right.prod(dtype=np.float64)),
                model=made_by.name,
                number=number,
            )

    with replace_folder(folder) as new_folder:
        write_list(new_folder / label_studio.TASKS_FILE, make_tasks(), one_line=True)
        write_text(
            new_folder / label_studio.INTERFACE_FILE,
            label_studio.make_interface(predictions.classes, made_by.max_labels),
        )
        try:
            write_classes(new_folder, predictions.classes)
        except InputError as error:
            warn(f"classes.txt is left out: {error}")
    say(f"Label Studio finds the images with LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={base.parent}")


def write_fiftyone(path: Path, predictions: Predictions) -> None:
    """Write the labels of a FiftyOneImageClassificationDataset: several labels an image, with their confidence.

    {"classes": [...], "labels": {path: [{"label": name, "confidence": probability}]}}. An image without a label has an
    empty list: to FiftyOne, null would be an image that nobody has looked at.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(f'{{\n"classes": {to_json([*predictions.classes])},\n"labels": {{')
            separator = "\n"
            for prediction in predictions:
                names = [predictions.classes[label] for label in prediction.ranked]
                labels = [
                    {"label": name, "confidence": score}
                    for name, score in zip(names, rank_scores(prediction), strict=True)
                ]
                file.write(f"{separator}{to_json(make_whole(prediction.path))}: {to_json(labels)}")
                separator = ",\n"
            file.write("\n}\n}\n")

    write_atomically(path, write)
