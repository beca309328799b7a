"""What a check of a data set found, as a page and pictures: index.html, histogram.png, demo_img/.

The page is templates/dataset_report.html; its small pictures are part of it, the samples lie beside it in demo_img/.
"""

from __future__ import annotations

import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataset import fonts, whole_files
from dataset.decoding import judge_image
from dataset.drawing import BAND, draw_labels
from dataset.table import Table
from evaluation import pages
from evaluation.drawing import save_figure, style_axes
from evaluation.pages import cut
from evaluation.palette import LIGHT, SPLITS
from tools.findings import KINDS, UNREAD, Finding, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Place = tuple[str, int]  # split and row of its table

NUM_SAMPLES = 10  # pictures with their labels drawn, of each split
SAMPLE_SIZE = 320, 240  # pixels that the pictures of the samples fit into
THUMBNAIL_SIDE = 176  # pixels, longer side of the pictures beside findings, and of those of each class
CLASS_SAMPLES = 6  # pictures of each class, half as many where there are very many classes
MAX_CLASS_SAMPLES = 3000  # of all classes
MAX_CARDS, MAX_LINES = 24, 200  # findings of a kind on the page, with and without pictures; the JSON has them all
MAX_PICTURES = 6  # of one finding
MAX_CLASS_BARS = 250  # of the histogram, of the most frequent classes: as many names as can be read side by side
MAX_CLASS_ROWS = 500  # of the page's table, the most frequent first; the JSON has all counts
MAX_BARS = 12  # images with more labels than this are counted together
MAX_MATRIX_CLASSES = 100  # the most frequent ones
SIZE_BINS = 48  # along width and height
ROWS_AT_ONCE = 4096  # of a table's targets, which may not fit into memory twice


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
    advice: str
    findings: list[Finding]
    lines: list[str]  # findings without a picture to show
    cards: list[Card]  # those with
    num_more: int  # findings that are left out


class ClassSamples(NamedTuple):
    """Pictures of one class, for the page."""

    number: int  # of the class
    name: str
    num_images: int  # of the split that the pictures are of
    pictures: list[tuple[Path, str, list[str]]]  # the small picture, the name of the image, all its labels


def save_report(result: Result, folder: Path) -> dict[str, list[Path]]:
    """Write the page and its pictures into `folder`; {split: its sample pictures}.

    Pictures of each class are shown where the facts hold thumbnails of the images in `choose_class_samples`.
    """
    save_figure(draw_histogram(result.splits), folder / "histogram.png")
    samples = save_samples(result, folder / "demo_img")
    class_samples = save_class_samples(result, folder / "class_img")
    whole_files.write_text(folder / "index.html", make_page(result, samples, class_samples))
    return samples


# ---- pictures ----


def draw_histogram(tables: Mapping[str, Table]) -> Figure:
    """How many images of each split show each class, or each of the MAX_CLASS_BARS most frequent ones."""
    from matplotlib.figure import Figure

    all_classes = list_classes(tables)
    positives = [(table.targets == 1).sum(axis=0) for table in tables.values()]
    order = np.argsort(-np.sum(positives, axis=0), kind="stable") if tables else np.zeros(0, dtype=int)
    chosen = np.sort(order[:MAX_CLASS_BARS])
    drawable = fonts.make_drawable(all_classes)
    classes = [drawable[c] for c in chosen]
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
    families = fonts.list_families(names)
    axes.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=8, fontfamily=families, parse_math=False)
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
    """NUM_SAMPLES pictures with their labels drawn, evenly through each split; those of a check before go."""
    for old in folder.glob("*.jpg"):
        old.unlink()
    samples: dict[str, list[Path]] = {}
    names = fonts.make_drawable(list_classes(result.tables))
    for split, table in result.splits.items():
        readable = [index for index, path in enumerate(table.paths) if not result.facts[path].problem]
        labelled = [index for index in readable if (table.targets[index] == 1).any()]
        chosen = labelled if len(labelled) >= NUM_SAMPLES else readable
        samples[split] = []
        for position in np.linspace(0, len(chosen) - 1, min(NUM_SAMPLES, len(chosen))).round().astype(int):
            index = chosen[position]
            picture = draw_sample(judge_image(table.paths[index]).pixels, table.targets[index], names)
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


def encode_thumbnail(picture: Image.Image) -> bytes:
    """A small JPEG of a picture."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


# ---- pictures of each class ----


def choose_class_samples(tables: Mapping[str, Table]) -> dict[int, list[str]]:
    """{class: paths of some images that show it}, drawn at random from the training split, or else the first one.

    The same tables give the same images. Of very many classes, only the most frequent ones have any.
    """
    table = choose_sampled(tables)
    if table is None:
        return {}
    most = CLASS_SAMPLES if CLASS_SAMPLES * len(table.classes) <= MAX_CLASS_SAMPLES else CLASS_SAMPLES // 2
    counts = (table.targets == 1).sum(axis=0)
    wanted = np.argsort(-counts, kind="stable")[: MAX_CLASS_SAMPLES // most]
    left = {int(c): min(most, int(counts[c])) for c in wanted if counts[c]}
    chosen: dict[int, list[str]] = {c: [] for c in left}
    order = np.random.default_rng(0).permutation(len(table))
    for part in np.split(order, np.arange(ROWS_AT_ONCE, len(order), ROWS_AT_ONCE)):  # most classes are soon complete
        if not left:
            break
        columns = list(left)
        for row, place in zip(*np.nonzero(table.targets[part][:, columns] == 1), strict=True):
            c = columns[place]
            if len(chosen[c]) < left[c]:
                chosen[c].append(table.paths[part[row]])
        left = {c: count for c, count in left.items() if len(chosen[c]) < count}
    return chosen


def choose_sampled(tables: Mapping[str, Table]) -> Table | None:
    """The table of the split that pictures of each class are from."""
    return next((tables[split] for split in SPLITS if split in tables), None)


def save_class_samples(result: Result, folder: Path) -> list[ClassSamples]:
    """Write the small pictures of each class; those of a check before go. The most frequent class comes first."""
    for old in folder.glob("*.jpg"):
        old.unlink()
    table, shown = choose_sampled(result.tables), choose_class_samples(result.tables)
    if table is None or not any(result.facts[path].thumbnail for paths in shown.values() for path in paths):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    row_of = {path: row for row, path in enumerate(table.paths)}
    files: dict[str, Path] = {}  # by image, which several classes may show
    samples = []
    counts = (table.targets == 1).sum(axis=0)
    for c in sorted(shown, key=lambda c: -counts[c]):
        pictures = []
        for path in [path for path in shown[c] if result.facts[path].thumbnail]:
            if path not in files:
                files[path] = folder / f"{len(files):05}.jpg"
                files[path].write_bytes(result.facts[path].thumbnail)
            labels = describe_labels(table.targets[row_of[path]], table.classes)
            pictures.append((files[path], result.shorten(path), labels))
        samples.append(ClassSamples(c, table.classes[c], int(counts[c]), pictures))
    return samples


# ---- the page ----


def count_findings(findings: Sequence[Finding]) -> str:
    """`2 errors and 1 warning`."""
    counts = Counter(finding.severity for finding in findings)
    parts = [pages.count(counts[kind], kind) for kind in ("error", "warning") if counts[kind]]
    return " and ".join(parts) or "nothing was found"


def make_page(result: Result, samples: Mapping[str, Sequence[Path]], class_samples: Sequence[ClassSamples]) -> str:
    """The whole of index.html."""
    tables = result.splits
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
        found=count_findings(result.findings),
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
        class_samples=class_samples,
        sampled_split=next(iter(result.splits), ""),
    )


def group_findings(result: Result) -> Iterator[Group]:
    """Every kind that was found, errors first."""
    places: dict[str, list[Place]] = defaultdict(list)
    for split, table in result.tables.items():
        for index, path in enumerate(table.paths):
            places[path].append((split, index))
    for (severity, kind), findings in result.list_kinds().items():
        lines: list[str] = []
        cards: list[Card] = []
        for finding in findings:
            if all(result.facts[path].problem for path in finding.files):
                lines.append(result.describe(finding))
            elif len(cards) < MAX_CARDS:  # thumbnails cost time
                shown = [make_picture(result, places[path], path) for path in finding.files[:MAX_PICTURES]]
                cards.append(Card(finding.text, shown, len(finding.files) - len(shown)))
        num_more = len(findings) - len(cards) - len(lines[:MAX_LINES])
        yield Group(severity, *KINDS[kind], findings, lines[:MAX_LINES], cards, num_more)


def make_picture(result: Result, places: Sequence[Place], path: str) -> Picture:
    """A thumbnail, and which splits the file is in, its size, and its labels there."""
    fact = result.facts[path]
    labels = [
        (
            "" if split == UNREAD else split,
            describe_labels(result.tables[split].targets[index], result.tables[split].classes),
        )
        for split, index in places
    ]
    size = "cannot be read" if fact.problem else f"{fact.width} × {fact.height}"
    thumbnail = ""
    if not fact.problem:
        thumbnail = pages.embed(fact.thumbnail or encode_thumbnail(Image.fromarray(judge_image(path).pixels)))
    return Picture(result.shorten(path), size, thumbnail, labels)


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
