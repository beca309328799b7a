"""What a check of a data set found, as a page and pictures: index.html, histogram.png, demo_img/.

The page needs nothing from elsewhere: it works from a disk, light or dark, and without scripts. Its small pictures are
part of it; the samples lie beside it in demo_img/.
"""

from __future__ import annotations

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import utils
from dataset_readers import decode_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dataset_check import Finding, Result
    from dataset_table import Table

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
COLOURS = {"train": "#2563c9", "val": "#d98a1f", "test": "#00917a"}  # of the splits that are shown, in their order
NUM_SAMPLES = 10  # pictures with their labels drawn, of train and of val (without val: of test)
SAMPLE_SIZE = 320, 240  # pixels that the pictures of the samples fit into
THUMBNAIL_SIDE = 176  # pixels, longer side of the pictures beside findings
MAX_CARDS, MAX_LINES = 24, 200  # findings of a kind on the page, with and without pictures; the JSON has them all
MAX_PICTURES = 6  # of one finding
MAX_BARS = 12  # images with more labels than this are counted together
MAX_MATRIX_CLASSES = 100  # the most frequent ones
SIZE_BINS = 48  # along width and height

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c2430; --soft: #5b6675; --line: #dfe3e8;
  --train: #2563c9; --val: #b86e00; --test: #00806a; --error: #b3261e; --warning: #8a5a00; --good: #1b7a3d; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --card: #1d2127; --ink: #e6e9ee; --soft: #9aa5b3;
  --line: #333a44; --train: #6fa5ff; --val: #f0ad4e; --test: #3fc6a8; --error: #ff8a80; --warning: #f2bd5c;
  --good: #6fd08c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1160px; padding: 28px 20px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 25px; margin: 0 0 2px; } h2 { font-size: 18px; margin: 34px 0 10px; }
p { margin: 4px 0 10px; max-width: 90ch; } .soft, figcaption, th { color: var(--soft); }
.train { color: var(--train); } .val { color: var(--val); } .test { color: var(--test); }
.error { color: var(--error); } .warning { color: var(--warning); } .good { color: var(--good); }
.card, details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.verdict { display: inline-block; margin: 14px 0 16px; padding: 5px 14px; border: 1.5px solid; border-radius: 99px;
  font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; }
.tiles b { display: block; font-size: 23px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr)); gap: 14px;
  align-items: start; }
.scroll { overflow-x: auto; }
details { margin: 0 0 10px; } summary { cursor: pointer; font-weight: 600; }
.severity { display: inline-block; min-width: 7.2em; font-variant-numeric: tabular-nums; }
.found { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 14px; }
.found > div { border: 1px solid var(--line); border-radius: 8px; padding: 10px; max-width: 100%; }
.pictures { display: flex; flex-wrap: wrap; gap: 10px; margin-top: 8px; }
figure { margin: 0; width: 176px; } figcaption { font-size: 12px; line-height: 1.35; margin-top: 4px; }
figure div { height: 176px; display: flex; align-items: center; justify-content: center; background: var(--page); }
figure img { max-width: 100%; max-height: 100%; }
.split { font-weight: 600; } ul { margin: 10px 0 0; padding-left: 20px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 8px; text-align: right; overflow-wrap: normal; } th { font-weight: 500; font-size: 13px; }
.text { text-align: left; } td.text { overflow-wrap: anywhere; min-width: 4em; }
td { border-top: 1px solid var(--line); } .none { color: var(--error); font-weight: 600; }
.bars { width: 38%; } .bars i { display: block; height: 6px; margin: 1px 0; background: currentColor;
  border-radius: 0 3px 3px 0; }
svg { display: block; max-width: 100%; } svg text { fill: var(--soft); font-size: 11px; } .sizes { max-width: 400px; }
.key span { margin-right: 14px; } .key span::before { content: ""; display: inline-block; width: 12px; height: 12px;
  margin-right: 5px; border-radius: 2px; background: currentColor; opacity: var(--opacity, 1); }
.matrix { max-width: none; } .matrix rect { fill: var(--train); } .matrix .self { fill: var(--line); }
.matrix .on { fill: var(--card); } .matrix .off { fill: var(--ink); }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 10px; align-items: start; }
.samples img { width: 100%; border-radius: 6px; display: block; }
"""


def save_report(result: Result, folder: Path) -> dict[str, list[Path]]:
    """Write the page and its pictures into `folder`; {split: its sample pictures}."""
    tables = {split: result.tables[split] for split in COLOURS if split in result.tables}
    histogram = draw_histogram(tables)
    utils.write_atomically(folder / "histogram.png", lambda file: histogram.savefig(file, format="png"))
    samples = save_samples(result, folder / "demo_img")
    utils.write_text(folder / "index.html", printable(make_page(result, tables, samples)))
    return samples


def printable(text: str) -> str:
    """`text`, with an escape for what is no UTF-8 in a file name."""
    return text.encode(errors="backslashreplace").decode()


# ---- pictures ----


def draw_histogram(tables: Mapping[str, Table]) -> Figure:
    """How many images of each split show each class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes = list_classes(tables)
    figure = Figure(figsize=(min(max(7.0, 0.22 * len(classes) + 1.5), 60.0), 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / max(len(tables), 1)
    for number, (split, table) in enumerate(tables.items()):
        left = np.arange(len(classes)) - 0.4 + (number + 0.5) * width
        counts = (table.targets == 1).sum(axis=0)
        axes.bar(left, counts, width, label=f"{split} ({len(table):,} images)", color=COLOURS[split])
    # without parse_math=False, dollar signs in a class name would be read as a formula
    names = [_cut(name, 24) for name in classes]
    axes.set_xticks(np.arange(len(classes)), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_xlim(-0.6, max(len(classes), 1) - 0.4)
    axes.set_ylabel("images that show the class")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    if tables:
        axes.legend(frameon=False)
    return figure


def save_samples(result: Result, folder: Path) -> dict[str, list[Path]]:
    """NUM_SAMPLES pictures with their labels drawn, evenly through each of two splits; those of a check before go."""
    for old in folder.glob("*.jpg"):
        old.unlink()
    samples: dict[str, list[Path]] = {}
    for split in [split for split in COLOURS if split in result.tables][:2]:
        table = result.tables[split]
        readable = [index for index, path in enumerate(table.paths) if not result.facts[path].problem]
        labelled = [index for index in readable if (table.targets[index] == 1).any()]
        chosen = labelled if len(labelled) >= NUM_SAMPLES else readable
        samples[split] = []
        for position in np.linspace(0, len(chosen) - 1, min(NUM_SAMPLES, len(chosen))).round().astype(int):
            index = chosen[position]
            picture = draw_sample(decode_image(table.paths[index]), table.targets[index], table.classes)
            path = folder / printable(f"{split}_{len(samples[split]):02}_{Path(table.paths[index]).stem[:40]}.jpg")
            utils.write_atomically(path, lambda file, picture=picture: picture.save(file, "JPEG", quality=88))
            samples[split].append(path)
    return samples


def draw_sample(pixels: NDArray[np.uint8], targets: NDArray[np.int8], classes: Sequence[str]) -> Image.Image:
    """The picture, fitted into SAMPLE_SIZE, above the names of its labels."""
    from matplotlib.font_manager import findfont

    font = ImageFont.truetype(findfont("DejaVu Sans"), 15)  # comes with matplotlib
    picture = Image.fromarray(pixels)
    picture.thumbnail(SAMPLE_SIZE)
    width, height = SAMPLE_SIZE
    words = describe_labels(targets, classes)
    lines = [words[0]]
    for word in words[1:]:
        longer = f"{lines[-1]} · {word}"
        if font.getlength(longer) <= width - 16:
            lines[-1] = longer
        else:
            lines.append(word)
    canvas = Image.new("RGB", (width, height + 20 * len(lines) + 10), (32, 36, 42))
    canvas.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    ImageDraw.Draw(canvas).text((8, height + 4), "\n".join(lines), (240, 240, 240), font, spacing=4)
    return canvas


def describe_labels(targets: NDArray[np.int8], classes: Sequence[str]) -> list[str]:
    """The names of the labels of one image; an unknown one ends in `?`, many are counted."""
    names = [_cut(classes[c], 30) for c in np.flatnonzero(targets == 1).tolist()]
    unknown = [f"{_cut(classes[c], 30)}?" for c in np.flatnonzero(targets == -1).tolist()]
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
    found = " and ".join(_count(counts[severity], severity) for severity in ("error", "warning") if counts[severity])
    title, colour = escape(result.root.resolve().name), "good" if result.passed else "error"
    verdict = f"{'✓ passed' if result.passed else '✕ failed'}: {found or 'nothing was found'}"
    parts = [
        f'<h1>{title}</h1><div class="soft">{escape(str(result.root))}, read as {escape(result.format)}</div>',
        f'<div class="verdict {colour}">{verdict}</div>',
        show_totals(result, tables),
        show_findings(result),
    ]
    if any(len(table) for table in tables.values()):
        parts += [show_splits(result, tables), show_classes(tables), show_co_occurrence(tables)]
    parts += [show_sizes(result), show_samples(samples)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>Check of {title}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def show_totals(result: Result, tables: Mapping[str, Table]) -> str:
    """The few numbers that say what data set this is."""
    labels = sum(int((table.targets == 1).sum()) for table in tables.values())
    tiles = [
        (f"{len(result.facts):,}", "image files"),
        *((f"{len(table):,}", f"in {split}") for split, table in tables.items()),
        (f"{len(list_classes(tables)):,}", "classes"),
        (f"{labels / max(sum(map(len, tables.values())), 1):.2f}", "labels an image"),
    ]
    cells = [f'<div class="card"><b>{value}</b>{what}</div>' for value, what in tiles]
    return f'<div class="tiles">{"".join(cells)}</div>'


def show_findings(result: Result) -> str:
    """Every kind that was found, the errors opened."""
    places: dict[str, list[Place]] = defaultdict(list)
    for split, table in result.tables.items():
        for index, path in enumerate(table.paths):
            places[path].append((split, index))
    kinds: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in result.findings:
        kinds[finding.severity, finding.kind].append(finding)
    sections = []
    for severity, kind in sorted(kinds, key=lambda key: key[0]):  # errors first
        findings = kinds[severity, kind]
        state = ' open="open"' if severity == "error" or not findings[0].files else ""
        sections.append(
            f"<details{state}><summary>"
            f'<span class="severity {severity}">{_count(len(findings), severity)}</span> {KINDS[kind]}</summary>'
            f"{list_findings(result, places, findings)}</details>"
        )
    return f"<h2>Findings</h2>{''.join(sections) or '<p>None.</p>'}"


def list_findings(result: Result, places: Mapping[str, Sequence[Place]], findings: Sequence[Finding]) -> str:
    """Findings of one kind: each a card with its pictures side by side, or a line where there is none to show."""
    cards, lines = [], []
    for finding in findings:
        if all(result.facts[path].problem for path in finding.files):
            lines.append(f"<li>{escape(result.describe(finding))}</li>")
            continue
        if len(cards) < MAX_CARDS:  # thumbnails cost time
            figures = [show_picture(result, places[path], path) for path in finding.files[:MAX_PICTURES]]
            more = len(finding.files) - len(figures)
            note = f'<div class="soft">and {more:,} more</div>' if more else ""
            figures = "".join(figures)
            cards.append(f'<div>{escape(finding.text)}<div class="pictures">{figures}</div>{note}</div>')
    hidden = len(findings) - len(cards) - len(lines[:MAX_LINES])
    return (
        (f"<ul>{''.join(lines[:MAX_LINES])}</ul>" if lines else "")
        + (f'<div class="found">{"".join(cards)}</div>' if cards else "")
        + (f'<p class="soft">and {hidden:,} more, in check_dataset_result.json</p>' if hidden else "")
    )


def show_picture(result: Result, places: Sequence[Place], path: str) -> str:
    """A thumbnail, and below it which splits the file is in, its size, and its labels there."""
    fact = result.facts[path]
    name = escape(result.shorten(path))
    lines = [name, "cannot be read" if fact.problem else f"{fact.width} × {fact.height}"]
    for split, index in places:
        table = result.tables[split]
        labels = escape(", ".join(describe_labels(table.targets[index], table.classes)))
        lines.append(f'<span class="split {split}">{split}</span> {labels}')
    image = "" if fact.problem else f'<img src="{encode_thumbnail(path)}" alt="{name}"/>'
    return f"<figure><div>{image}</div><figcaption>{'<br/>'.join(lines)}</figcaption></figure>"


def show_splits(result: Result, tables: Mapping[str, Table]) -> str:
    """A row for each split, and how many labels its images have."""
    rows = []
    for split, table in tables.items():
        present, unknown = (table.targets == 1).sum(axis=1), (table.targets == -1).mean() if table.targets.size else 0
        cells = (
            f"{len(table):,}",
            f"{present.mean() if len(table) else 0:.2f}",
            f"{int((present == 0).sum()):,}",
            f"{unknown:.1%}",
            f"{sum(bool(result.facts[path].problem) for path in table.paths):,}",
        )
        rows.append(f'<tr><td class="text split {split}">{split}</td><td>{"</td><td>".join(cells)}</td></tr>')
    header = "<th>images</th><th>labels an image</th><th>without label</th><th>unknown</th><th>cannot be read</th>"
    return (
        f'<h2>Splits</h2><div class="columns"><div class="card scroll"><table><thead><tr><th></th>{header}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><div class="card">Labels of an image: share of the images of the '
        f"split{draw_label_counts(tables)}</div></div>"
    )


def draw_label_counts(tables: Mapping[str, Table]) -> str:
    """Columns: the share of each split's images with 0, 1, 2... labels."""
    counts = {split: np.minimum((table.targets == 1).sum(axis=1), MAX_BARS) for split, table in tables.items()}
    last = max(int(values.max(initial=0)) for values in counts.values())
    shares = {split: np.bincount(v, minlength=last + 1) / max(len(v), 1) for split, v in counts.items()}
    highest = max(share.max() for share in shares.values()) or 1
    step, height = 520 / (last + 1), 150
    width = min(0.8 * step / len(tables), 26)
    shapes = []
    for number, (split, share) in enumerate(shares.items()):
        for labels, value in enumerate(share):
            x = (labels + 0.5) * step + (number - len(shares) / 2) * width
            top = height * value / highest
            more = " or more" if labels == MAX_BARS else ""
            text = f"{split}: {round(value * len(tables[split])):,} images ({value:.1%}) with {labels}{more} labels"
            shapes.append(
                f'<rect class="{split}" fill="currentColor" x="{x:.1f}" y="{20 + height - top:.1f}" '
                f'width="{width - 1:.1f}" height="{top:.1f}"><title>{text}</title></rect>'
            )
            if value and width > 20:
                shapes.append(
                    f'<text x="{x + width / 2:.1f}" y="{15 + height - top:.1f}" text-anchor="middle">{value:.0%}</text>'
                )
    for labels in range(last + 1):
        more = "+" if labels == MAX_BARS else ""
        shapes.append(f'<text x="{(labels + 0.5) * step:.1f}" y="190" text-anchor="middle">{labels}{more}</text>')
    line = '<path d="M0 170.5H520" stroke="var(--line)"/>'
    return f'<svg viewBox="0 0 520 196" role="img">{"".join(shapes)}{line}</svg>{show_key(tables)}'


def show_key(tables: Mapping[str, Table]) -> str:
    """Which colour is which split."""
    entries = [f'<span class="{split}">{split}</span>' for split in tables]
    return f'<div class="key">{"".join(entries)}</div>'


def show_classes(tables: Mapping[str, Table]) -> str:
    """How many images of each split show each class, the most frequent class first."""
    classes = list_classes(tables)
    counts = {split: (table.targets == 1).sum(axis=0) for split, table in tables.items()}
    shares = {split: count / max(len(tables[split]), 1) for split, count in counts.items()}
    highest = max((share.max(initial=0) for share in shares.values()), default=0) or 1
    rows = []
    for c in np.argsort(-np.sum(list(counts.values()), axis=0), kind="stable").tolist():
        bars = "".join(
            f'<i class="{split}" style="width:{max(share[c] / highest, 0.01 * (share[c] > 0)):.1%}" '
            f'title="{split}: {share[c]:.2%}"></i>'
            for split, share in shares.items()
        )
        cells = "".join(f'<td class="{"some" if n[c] else "none"}">{n[c]:,}</td>' for n in counts.values())
        rows.append(
            f'<tr><td class="soft">{c}</td><td class="text">{escape(classes[c])}</td>'
            f'<td class="bars">{bars}</td>{cells}</tr>'
        )
    splits = "".join(f'<th class="{split}">{split}</th>' for split in tables)
    header = f'<tr><th>#</th><th class="text">class</th><th class="text">share of images</th>{splits}</tr>'
    halves = [rows] if len(rows) <= 12 else [rows[: (len(rows) + 1) // 2], rows[(len(rows) + 1) // 2 :]]
    tables_html = [
        f'<div class="card"><table><thead>{header}</thead><tbody>{"".join(half)}</tbody></table></div>'
        for half in halves
    ]
    return (
        f'<h2>Classes</h2><p class="soft">Images that show each class. The longest bar is {highest:.1%} of the '
        f'images of its split.</p><div class="columns">{"".join(tables_html)}</div>'
    )


def show_co_occurrence(tables: Mapping[str, Table]) -> str:
    """The matrix of which classes come together, over all splits."""
    present = np.concatenate([table.targets == 1 for table in tables.values()]).astype(np.float32)
    counts = present.sum(axis=0)
    chosen = np.sort(np.argsort(-counts, kind="stable")[:MAX_MATRIX_CLASSES])
    classes = [list_classes(tables)[c] for c in chosen]
    together, counts = (present.T @ present)[np.ix_(chosen, chosen)], counts[chosen]
    shares = together / np.maximum(counts, 1)[:, None]
    side = min(max(950 // max(len(classes), 1), 9), 46)
    font = min(side - 1, 12)
    left, top = (16 + 0.68 * font * min(max(map(len, classes)), longest) for longest in (20, 18))
    shapes = []
    for row, name in enumerate(classes):
        y = top + row * side
        shapes.append(
            f'<text x="{left - 6:.1f}" y="{y + side / 2 + font / 3:.1f}" text-anchor="end" style="font-size:{font}px">'
            f"{escape(_cut(name, 20))}</text><text "
            f'transform="translate({left + (row + 0.5) * side + font / 3:.1f} {top - 6:.1f}) rotate(-90)" '
            f'style="font-size:{font}px">{escape(_cut(name, 18))}</text>'
            f'<rect class="self" x="{left + row * side:.1f}" y="{y:.1f}" width="{side - 1}" height="{side - 1}"/>'
        )
        for column in np.flatnonzero(together[row]).tolist():
            if column == row:
                continue
            share = float(shares[row, column])
            x = left + column * side
            title = f"{share:.1%} of the {int(counts[row]):,} images with {name} show {classes[column]}"
            shapes.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{side - 1}" height="{side - 1}" fill-opacity="{share**0.5:.2f}">'
                f"<title>{escape(title)}</title></rect>"
            )
            if side >= 30:
                ink = "on" if share > 0.3 else "off"
                shapes.append(
                    f'<text class="{ink}" x="{x + side / 2:.1f}" y="{y + side / 2 + 4:.1f}" text-anchor="middle">'
                    f"{share:.0%}</text>"
                )
    width, height = left + len(classes) * side + 10, top + len(classes) * side + 4
    scale = "".join(
        f'<span style="--opacity:{share**0.5:.2f}">{share:.0%}</span>' for share in (0.01, 0.05, 0.2, 0.5, 1.0)
    )
    limit = f" The {MAX_MATRIX_CLASSES} most frequent classes." if len(list_classes(tables)) > len(classes) else ""
    return (
        "<h2>Classes that come together</h2>"
        '<p class="soft">Of the images that show the class of the row, the share that also shows that of the column.'
        f"{limit}</p>"
        f'<div class="card scroll"><div class="key train">{scale}</div><svg class="matrix" width="{width:.0f}" '
        f'height="{height:.0f}" role="img">{"".join(shapes)}</svg></div>'
    )


def show_sizes(result: Result) -> str:
    """Width and height of the pictures as circles, and their types."""
    from matplotlib.ticker import MaxNLocator

    facts = [fact for fact in result.facts.values() if not fact.problem]
    if not facts:
        return ""
    sizes = np.array([(fact.width, fact.height) for fact in facts])
    largest = int(sizes.max())
    bins, counts = np.unique(sizes * SIZE_BINS // (largest + 1), axis=0, return_counts=True)
    plot, left = 300, 46
    scale = plot / (largest * 1.05)
    shapes = [f'<path d="M{left} 10V{plot + 10}H{left + plot}" fill="none" stroke="var(--line)"/>']
    for value in MaxNLocator(5).tick_values(0, largest):
        if 0 < value <= largest:
            shapes.append(
                f'<text x="{left - 6}" y="{plot + 14 - value * scale:.1f}" text-anchor="end">{value:.0f}</text>'
                f'<text x="{left + value * scale:.1f}" y="{plot + 27}" text-anchor="middle">{value:.0f}</text>'
            )
    for (x, y), count in sorted(zip(bins.tolist(), counts.tolist(), strict=True), key=lambda item: -item[1]):
        width, height = ((value + 0.5) * (largest + 1) / SIZE_BINS for value in (x, y))
        shapes.append(
            f'<circle class="train" fill="currentColor" fill-opacity="0.55" cx="{left + width * scale:.1f}" '
            f'cy="{plot + 10 - height * scale:.1f}" r="{2 + 14 * (count / counts.max()) ** 0.5:.1f}">'
            f"<title>{count:,} images of about {width:.0f} × {height:.0f}</title></circle>"
        )
    rows = []
    for name, values, form in (
        ("shorter side", sizes.min(axis=1), ",.0f"),
        ("longer side", sizes.max(axis=1), ",.0f"),
        ("width / height", sizes[:, 0] / sizes[:, 1], ".2f"),
    ):
        cells = "".join(f"<td>{value:{form}}</td>" for value in (values.min(), np.median(values), values.max()))
        rows.append(f'<tr><td class="text">{name}</td>{cells}</tr>')
    kinds = Counter(f"{fact.file_type} {fact.mode}" for fact in facts).most_common()
    types = "".join(f'<tr><td class="text">{escape(kind)}</td><td>{count:,}</td></tr>' for kind, count in kinds)
    return (
        '<h2>Image sizes</h2><div class="columns"><div class="card">Width (to the right) and height in pixels; '
        f'larger circles are more images<svg viewBox="0 0 {left + plot + 14} {plot + 34}" class="sizes" role="img">'
        f'{"".join(shapes)}</svg></div><div class="card"><table><thead><tr><th class="text">pixels</th>'
        f"<th>smallest</th><th>median</th><th>largest</th></tr></thead><tbody>{''.join(rows)}</tbody></table><br/>"
        '<table><thead><tr><th class="text">type of file, and of pixels</th><th>images</th></tr></thead>'
        f"<tbody>{types}</tbody></table></div></div>"
    )


def show_samples(samples: Mapping[str, Sequence[Path]]) -> str:
    """The pictures in demo_img/."""
    sections = []
    for split, paths in samples.items():
        pictures = "".join(
            f'<img src="{quote(f"{path.parent.name}/{path.name}")}" alt="{escape(path.name)}" loading="lazy"/>'
            for path in paths
        )
        sections.append(f'<p class="split {split}">{split}</p><div class="samples">{pictures}</div>')
    return f"<h2>Samples</h2>{''.join(sections)}"


def list_classes(tables: Mapping[str, Table]) -> tuple[str, ...]:
    """The class names, which all tables have in common."""
    return next(iter(tables.values())).classes if tables else ()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
