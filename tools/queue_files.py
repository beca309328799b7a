"""What a queue is written as: queue.csv, a page with pictures, and tasks for Label Studio.

    save_queue(queue, Path("queue"))    # queue.csv, index.html, label_studio_tasks.json, label_studio_config.xml,
                                        # classes.txt

The page is templates/queue.html; its pictures lie beside it in pictures/.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset.class_names import write_classes
from dataset.json_files import to_json
from dataset.text_files import CsvFile
from dataset.whole_files import write_text
from evaluation import label_studio, pages
from evaluation.label_studio import INTERFACE_FILE, TASKS_FILE
from evaluation.tables import guard_cell
from tools.queue import Queue
from tools.suspects import save_pictures

CSV_FILE, PAGE_FILE = "queue.csv", "index.html"
MAX_PICTURES = 1000  # on the page; the other files have the whole queue
MAX_REASONS = 3  # classes that are named as why an image was chosen
MAX_CLASS_ROWS = 100  # of the page's table, the rarest first


class Card(NamedTuple):
    """An image on the page."""

    rank: int
    name: str
    picture: str  # its name in pictures/
    labels: list[tuple[str, float]]  # predicted, with their probabilities, the highest first
    reasons: list[tuple[str, float, int]]  # as `list_reasons` has them


def save_queue(queue: Queue, folder: Path) -> None:
    """Write the files into `folder`. Raises InputError where one cannot be written.

    classes.txt goes beside what Label Studio exports, which does not list the classes that were never chosen.
    """
    write_text(folder / CSV_FILE, make_csv(queue))
    write_text(folder / TASKS_FILE, to_json(make_tasks(queue), indent=1))
    write_text(folder / INTERFACE_FILE, label_studio.make_interface(queue.classes, queue.max_labels))
    write_classes(folder, queue.classes)
    pictures = save_pictures(queue.images.paths[:MAX_PICTURES], folder / "pictures")
    write_text(folder / PAGE_FILE, make_page(queue, pictures))


def describe(folder: Path, images: Path) -> list[str]:
    """Lines about where the files are, and how Label Studio finds the `images` folder."""
    return [
        f"saved: {folder / CSV_FILE}",
        f"       {folder / PAGE_FILE}: the pictures; open it in a browser",
        f"       {folder / TASKS_FILE}: to import into Label Studio",
        f"       {folder / INTERFACE_FILE}: their labelling interface",
        f"Label Studio finds the images with LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={images.parent}",
    ]


def list_labels(queue: Queue, row: int) -> list[tuple[str, float]]:
    """The labels that are predicted for an image and their probabilities, the highest first."""
    chosen = np.flatnonzero(queue.predicted[row])
    order = chosen[np.argsort(-queue.probabilities[row, chosen], kind="stable")]
    return [(queue.classes[c], float(queue.probabilities[row, c])) for c in order]


def list_reasons(queue: Queue, row: int) -> list[tuple[str, float, int]]:
    """(class, its probability, images that show it so far) of the classes that most speak for labelling an image."""
    gains = queue.gains[row]
    order = [c for c in np.argsort(-gains, kind="stable")[:MAX_REASONS] if gains[c] >= 0.1 * gains.sum() > 0]
    return [(queue.classes[c], float(queue.probabilities[row, c]), int(queue.positives[c])) for c in order]


# ---- files ----


def make_csv(queue: Queue) -> str:
    """A line for each image: rank, path, why it was chosen, and the labels that are predicted. It is for people."""
    text = io.StringIO()
    writer = csv.writer(CsvFile(text))
    writer.writerow(["rank", "path", "why", "predicted"])
    for row, path in enumerate(queue.images.paths):
        why = "; ".join(f"{name} {p:.2f} ({count} so far)" for name, p, count in list_reasons(queue, row))
        predicted = "; ".join(f"{name} {p:.2f}" for name, p in list_labels(queue, row))
        writer.writerow([row + 1, *map(guard_cell, (path, why or "unlike what is labelled", predicted))])
    return text.getvalue()


def make_tasks(queue: Queue) -> list[dict[str, Any]]:
    """Tasks with predictions, as Label Studio imports them.

    The score of a prediction is the probability that all its labels are right, if classes were independent. An image's
    address starts at the folder that holds their folder: Label Studio's LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.
    """
    tasks = []
    for row, name in enumerate(queue.images.names):
        right = np.where(queue.predicted[row], queue.probabilities[row], 1 - queue.probabilities[row])
        tasks.append(
            label_studio.make_task(
                place=f"{queue.images.folder.name}/{name}",
                labels=[label for label, _ in list_labels(queue, row)],
                score=float(right.prod()),
                model=queue.model,
                number=row + 1,
            )
        )
    return tasks


# ---- the page ----


def make_page(queue: Queue, pictures: Sequence[str]) -> str:
    """The whole of index.html, with the first images, of which there are `pictures`."""
    cards = [
        Card(row + 1, queue.images.names[row], picture, list_labels(queue, row), list_reasons(queue, row))
        for row, picture in enumerate(pictures)
    ]
    expected = queue.probabilities.sum(axis=0)
    order = np.argsort(queue.positives, kind="stable")[:MAX_CLASS_ROWS]
    class_rows = [(queue.classes[c], int(queue.positives[c]), float(expected[c])) for c in order]
    most = max((count + more for _, count, more in class_rows), default=0) or 1
    return pages.render(
        "queue.html",
        queue=queue,
        cards=cards,
        class_rows=class_rows,
        most=most,
        files=(CSV_FILE, TASKS_FILE, INTERFACE_FILE),
    )
