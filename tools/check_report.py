"""What a check of a data set found, as a page and pictures: index.html, histogram.png, demo_img/.

The page is templates/dataset_report.html; its small pictures are part of it, the samples lie beside it in demo_img/.
"""

from __future__ import annotations

import base64
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataset import whole_files
from dataset.decoding import decode_image
from dataset.drawing import BAND, draw_labels
from dataset.table import Table
from evaluation import pages
from evaluation.drawing import save_figure, style_axes
from evaluation.pages import cut
from evaluation.palette import LIGHT, SPLITS
from tools.findings import Finding, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Place = tuple[str, int]  # split and row of its table

KINDS = {  # of findings: their titles, in the order of the page
    "labels": "Labels that cannot be read",
    "unreadable": "Images that cannot be read",
    "leak": "The same picture in several splits",
    "source_leak": "One source in several splits",
    "label_conflict": "The same picture with different labels",
    "duplicate": "Duplicates",
    "near_duplicate": "Near duplicates",
    "wrong_extension": "Another type of image than the file name says",
    "small": "Very small images",
    "blank": "Pictures of one colour",
    "class_without_images": "Classes without images",
    "class_in_one_split": "Classes in one split only",
    "no_labels": "Images without labels",
}
NUM_SAMPLES = 10  # pictures with their labels drawn, of train and of val (without val: of test)
SAMPLE_SIZE = 320, 240  # pixels that the pictures of the samples fit into
THUMBNAIL_SIDE = 176  # pixels, longer side of the pictures beside findings
MAX_CARDS, MAX_LINES = 24, 200  # findings of a kind on the page, with and without pictures; the JSON has them all
MAX_PICTURES = 6  # of one finding
MAX_CLASS_BARS = 250  # of the histogram, of the most frequent classes: as many names as can be read side by side
MAX_CLASS_ROWS = 500  # of the page's table, the most frequent first; the JSON has all counts
MAX_BARS = 12  # images with more labels than this are counted together
MAX_MATRIX_CLASSES = 100  # the most frequent ones
SIZE_BINS = 48  # along width and height


class Picture(NamedTuple):
    """An image file on the page."""

    name: str
    size: str
    thumbnail: str  # a `data:` address; empty where the file cannot be read
    labels: list[tuple[str, list[str]]]  # each split that it is in, and its labels there


class Card(NamedTuple):
    """A finding with pictures to show."""

    text: str
    pictures: list[Picture]
    num_more: int  # pictures that are left out


class Group(NamedTuple):
    """All findings of one kind and severity."""

    severity: str
    title: str
    findings: list[Finding]
    lines: list[str]  # findings without a picture to show
    cards: list[Card]  # those with
    num_more: int  # findings that are left out


def save_report(result: Result, folder: Path) -> dict[str, list[Path]]:
    """Write the page and its pictures into `folder`; {split: its sample pictures}."""
    tables = {split: result.tables[split] for split in SPLITS if split in result.tables}
    save_figure(draw_histogram(tables), folder / "histogram.png")
    samples = save_samples(result, folder / "demo_img")
    whole_files.write_text(folder / "index.html", make_page(result, tables, samples))
    return samples


# ---- pictures ----


def draw_histogram(tables: Mapping[str, Table]) -> Figure:
    """How many images of each split show each class, or each of the MAX_CLASS_BARS most frequent ones."""
    from matplotlib.figure import Figure

    all_classes = list_classes(tables)
    positives = [(table.targets == 1).sum(axis=0) for table in tables.values()]
    order = np.argsort(-np.sum(positives, axis=0), kind="stable") if tables else np.zeros(0, dtype=int)
    chosen = np.sort(order[:MAX_CLASS_BARS])
    classes = [all_classes[c] for c in chosen]
    figure = Figure(figsize=(min(max(7.0, 0.22 * len(classes) + 1.5), 60.0), 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(tables), 1)
    for number, (split, table) in enumerate(tables.items()):
        left = np.arange(len(classes)) - 0.4 + (number + 0.5) * width
        axes.bar(
            left, positives[number][chosen], width, label=f"{split} ({len(table):,} images)", color=LIGHT[SPLITS[split]]
        )
    # without parse_math=False, dollar signs in a class name would be read as a formula
    names = [cut(name, 24) for name in classes]
    axes.set_xticks(np.arange(len(classes)), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_xlim(-0.6, max(len(classes), 1) - 0.4)
    axes.set_ylabel("images that show the class")
    if len(classes) < len(all_classes):
        axes.set_title(f"the {len(classes)} most frequent of {len(all_classes):,} classes", loc="left", fontsize=10)
    style_axes(axes)
    axes.grid(visible=False, axis="x")
    if tables:
        axes.legend(frameon=False, loc="upper right")
    return figure


def save_samples(result: Result, folder: Path) -> dict[str, list[Path]]:
    """NUM_SAMPLES pictures with their labels drawn, evenly through each of two splits; those of a check before go."""
    for old in folder.glob("*.jpg"):
        old.unlink()
    samples: dict[str, list[Path]] = {}
    for split in [split for split in SPLITS if split in result.tables][:2]:
        table = result.tables[split]
        readable = [index for index, path in enumerate(table.paths) if not result.facts[path].problem]
        labelled = [index for index in readable if (table.targets[index] == 1).any()]
        chosen = labelled if len(labelled) >= NUM_SAMPLES else readable
        samples[split] = []
        for position in np.linspace(0, len(chosen) - 1, min(NUM_SAMPLES, len(chosen))).round().astype(int):
            index = chosen[position]
            picture = draw_sample(decode_image(table.paths[index]), table.targets[index], table.classes)
            stem = re.sub(r"[^\w.-]+", "-", Path(table.paths[index]).stem)[:40]
            path = folder / f"{split}_{len(samples[split]):02}_{stem}.jpg"
            whole_files.write_atomically(path, lambda file, picture=picture: picture.save(file, "JPEG", quality=88))
            samples[split].append(path)
    return samples


def draw_sample(pixels: NDArray[np.uint8], targets: NDArray[np.int8], classes: Sequence[str]) -> Image.Image:
    """The picture, fitted into SAMPLE_SIZE, above the names of its labels."""
    picture = Image.fromarray(pixels)
    picture.thumbnail(SAMPLE_SIZE)
    canvas = Image.new("RGB", SAMPLE_SIZE, BAND)
    canvas.paste(picture, ((canvas.width - picture.width) // 2, (canvas.height - picture.height) // 2))
    return draw_labels(np.asarray(canvas), describe_labels(targets, classes))


def describe_labels(targets: NDArray[np.int8], classes: Sequence[str]) -> list[str]:
    """The names of the labels of one image; an unknown one ends in `?`, many are counted."""
    names = [cut(classes[c], 30) for c in np.flatnonzero(targets == 1).tolist()]
    unknown = [f"{cut(classes[c], 30)}?" for c in np.flatnonzero(targets == -1).tolist()]
    return [*names, *(unknown if len(unknown) <= 3 else [f"{len(unknown)} unknown"])] or ["no label"]


def encode_thumbnail(path: str) -> str:
    """A small JPEG of an image file as a `data:` address."""
    picture = Image.fromarray(decode_image(path))
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ---- the page ----


def make_page(result: Result, tables: Mapping[str, Table], samples: Mapping[str, Sequence[Path]]) -> str:
    """The whole of index.html; `tables` are those of the splits that could be read."""
    counts = Counter(finding.severity for finding in result.findings)
    found = " and ".join(pages.count(counts[kind], kind) for kind in ("error", "warning") if counts[kind])
    num_labels = sum(int((table.targets == 1).sum()) for table in tables.values())
    totals = [
        (f"{len(result.facts):,}", "image files"),
        *((f"{len(table):,}", f"in {split}") for split, table in tables.items()),
        (f"{len(list_classes(tables)):,}", "classes"),
        (f"{num_labels / max(sum(map(len, tables.values())), 1):.2f}", "labels an image"),
    ]
    labelled = tables if any(len(table) for table in tables.values()) else {}
    class_rows = count_classes(labelled)
    return pages.render(
        "dataset_report.html",
        title=result.root.resolve().name,
        result=result,
        found=found,
        totals=totals,
        findings=list(group_findings(result)),
        tables=tables,
        splits=count_splits(result, labelled),
        max_bars=MAX_BARS,
        class_rows=class_rows[:MAX_CLASS_ROWS],
        num_classes=len(class_rows),
        longest_bar=max((share for row in class_rows for share in row["shares"].values()), default=0) or 1,
        together=count_together(labelled),
        sizes=measure_sizes(result),
        samples=samples,
    )


def group_findings(result: Result) -> Iterator[Group]:
    """Every kind that was found, errors first."""
    places: dict[str, list[Place]] = defaultdict(list)
    for split, table in result.tables.items():
        for index, path in enumerate(table.paths):
            places[path].append((split, index))
    kinds: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in result.findings:
        kinds[finding.severity, finding.kind].append(finding)
    for (severity, kind), findings in sorted(kinds.items(), key=lambda item: item[0][0]):
        lines: list[str] = []
        cards: list[Card] = []
        for finding in findings:
            if all(result.facts[path].problem for path in finding.files):
                lines.append(result.describe(finding))
            elif len(cards) < MAX_CARDS:  # thumbnails cost time
                shown = [make_picture(result, places[path], path) for path in finding.files[:MAX_PICTURES]]
                cards.append(Card(finding.text, shown, len(finding.files) - len(shown)))
        num_more = len(findings) - len(cards) - len(lines[:MAX_LINES])
        yield Group(severity, KINDS[kind], findings, lines[:MAX_LINES], cards, num_more)


def make_picture(result: Result, places: Sequence[Place], path: str) -> Picture:
    """A thumbnail, and which splits the file is in, its size, and its labels there."""
    fact = result.facts[path]
    labels = [
        (split, describe_labels(result.tables[split].targets[index], result.tables[split].classes))
        for split, index in places
    ]
    size = "cannot be read" if fact.problem else f"{fact.width} × {fact.height}"
    return Picture(result.shorten(path), size, "" if fact.problem else encode_thumbnail(path), labels)


def count_splits(result: Result, tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """The numbers of each split, and its shares of images with 0, 1, 2... labels."""
    present = {split: (table.targets == 1).sum(axis=1) for split, table in tables.items()}
    last = min(max((int(numbers.max(initial=0)) for numbers in present.values()), default=0), MAX_BARS)
    rows = []
    for split, table in tables.items():
        numbers = present[split]
        images = np.bincount(np.minimum(numbers, MAX_BARS), minlength=last + 1)
        rows.append(
            {
                "name": split,
                "num_images": len(table),
                "labels_an_image": numbers.mean() if len(table) else 0.0,
                "num_without_label": int((numbers == 0).sum()),
                "unknown": (table.targets == -1).mean() if table.targets.size else 0.0,
                "num_unreadable": sum(bool(result.facts[path].problem) for path in table.paths),
                "label_shares": (images / max(len(table), 1)).tolist(),
            }
        )
    return rows


def count_classes(tables: Mapping[str, Table]) -> list[dict[str, Any]]:
    """For each class, the images of each split that show it: number and share. The most frequent class first."""
    counts = {split: (table.targets == 1).sum(axis=0) for split, table in tables.items()}
    rows = [
        {
            "index": c,
            "name": name,
            "counts": [int(numbers[c]) for numbers in counts.values()],
            "shares": {split: float(numbers[c]) / max(len(tables[split]), 1) for split, numbers in counts.items()},
        }
        for c, name in enumerate(list_classes(tables))
    ]
    return sorted(rows, key=lambda row: -sum(row["counts"]))


def count_positives(tables: Mapping[str, Table]) -> dict[str, dict[str, int]]:
    """{class: {split: how many of its images show the class}}."""
    counts = {split: (table.targets == 1).sum(axis=0).tolist() for split, table in tables.items()}
    classes = list_classes(tables)
    return {name: {split: counts[split][c] for split in counts} for c, name in enumerate(classes)}


def count_together(tables: Mapping[str, Table]) -> dict[str, Any]:
    """Over all splits, of the images that show a class (row), the share that shows another one (column), too."""
    if not tables:
        return {}
    present = np.concatenate([table.targets == 1 for table in tables.values()]).astype(np.float32)
    counts = present.sum(axis=0)
    chosen = np.sort(np.argsort(-counts, kind="stable")[:MAX_MATRIX_CLASSES])
    together, counts = (present.T @ present)[np.ix_(chosen, chosen)], counts[chosen]
    return {
        "classes": [list_classes(tables)[c] for c in chosen],
        "counts": counts.astype(int).tolist(),
        "shares": (together / np.maximum(counts, 1)[:, None]).tolist(),
    }


def measure_sizes(result: Result) -> dict[str, Any]:
    """Width and height of the pictures in bins, and their types; empty where none can be read."""
    from matplotlib.ticker import MaxNLocator

    facts = [fact for fact in result.facts.values() if not fact.problem]
    if not facts:
        return {}
    sizes = np.array([(fact.width, fact.height) for fact in facts])
    largest = int(sizes.max())
    bins, counts = np.unique(sizes * SIZE_BINS // (largest + 1), axis=0, return_counts=True)
    middles = (bins + 0.5) * (largest + 1) / SIZE_BINS
    summary = {}
    for name, values, form in (
        ("shorter side", sizes.min(axis=1), ",.0f"),
        ("longer side", sizes.max(axis=1), ",.0f"),
        ("width / height", sizes[:, 0] / sizes[:, 1], ".2f"),
    ):
        summary[name] = [f"{value:{form}}" for value in (values.min(), np.median(values), values.max())]
    order = np.argsort(-counts, kind="stable")  # small circles above large ones
    return {
        "largest": largest,
        "ticks": [float(value) for value in MaxNLocator(5).tick_values(0, largest) if 0 < value <= largest],
        "bins": [(*middles[i].tolist(), int(counts[i])) for i in order],
        "summary": summary,
        "types": Counter(f"{fact.file_type} {fact.mode}" for fact in facts).most_common(),
    }


def list_classes(tables: Mapping[str, Table]) -> tuple[str, ...]:
    """The class names, which all tables have in common."""
    return next(iter(tables.values())).classes if tables else ()
