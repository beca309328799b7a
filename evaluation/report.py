"""The page of a tested model, report.html, and its model card, MODEL_CARD.md: two ways to write down the same facts.

    save_report(folder, write_report(model_facts.gather(...)))

The page is one file that needs nothing from elsewhere; the card begins with the lines that Hugging Face's hub reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dataset import whole_files
from evaluation import pages
from evaluation.model_facts import Bin, ModelFacts
from models.licences import write_for_hub
from models.novelty import NOVEL
from utils import make_visible

PAGE, CARD = "report", "MODEL_CARD"
FIRST_CURVES = 20  # of the weakest classes, which are seen at once; those of the others are folded up
PANEL = 100  # units of the drawing of a curve, along each side
MOST_CONFUSIONS = 10  # of all classes together
MOST_WEAK = 6  # classes that are named at the top of the page
MOST_IN_CARD = 100  # classes in the card, the weakest; the page has all
HUB_METRICS = {"OP": "precision", "OR": "recall", "OF1": "f1", "accuracy": "accuracy", "mAP": "mAP"}


class Report(NamedTuple):
    """The texts of the page and of the card, which may go into several folders."""

    page: str
    card: str


def write_report(facts: ModelFacts) -> Report:
    """The page and the card that say these facts."""
    return Report(make_page(facts), make_card(facts))


def save_report(folder: Path, report: Report, ending: str = "") -> list[Path]:
    """Save the page and the card in `folder`, with `ending` before the dot. Returns their paths."""
    texts = {f"{PAGE}{ending}.html": report.page, f"{CARD}{ending}.md": report.card}
    for name, text in texts.items():
        whole_files.write_text(folder / name, text)
    return [folder / name for name in texts]


class Bar(NamedTuple):
    """A bin of the reliability curve, as shares of the drawing."""

    left: float
    width: float
    given: float
    found: float
    height: float  # of the bar that counts its entries: their logarithm, as a share of the largest
    num_entries: int


def make_page(facts: ModelFacts) -> str:
    """The HTML of the page."""
    return pages.render(
        "report.html",
        facts=facts,
        bars=list_bars(facts.bins),
        paths={entry.number: draw_curve(entry.curve) for entry in facts.classes},
        panel=PANEL,
        novel=NOVEL,
        first_curves=FIRST_CURVES,
        weakest=facts.weakest[:MOST_WEAK],
        confusions=facts.confusions[:MOST_CONFUSIONS],
        wrong=[mistake for mistake in facts.mistakes if mistake.is_wrong],
        missed=[mistake for mistake in facts.mistakes if not mistake.is_wrong],
    )


def list_bars(bins: Sequence[Bin]) -> list[Bar]:
    """The bins that hold entries."""
    largest = max((math.log10(entries.num_entries + 1) for entries in bins), default=0) or 1
    return [
        Bar(
            left=number / len(bins),
            width=1 / len(bins),
            given=entries.probability,
            found=entries.present,
            height=math.log10(entries.num_entries + 1) / largest,
            num_entries=entries.num_entries,
        )
        for number, entries in enumerate(bins)
        if entries.num_entries
    ]


def draw_curve(curve: Sequence[tuple[float, float]]) -> str:
    """The path of SVG, in a square of PANEL units, of precision over recall: steps, as average precision adds them up.

    >>> draw_curve([(0.5, 1.0), (1.0, 0.6)])
    'M0 0H50V40H100'
    """
    path = ""
    for recall, precision in curve:
        height = round(PANEL * (1 - precision))
        path += f"V{height}H{round(PANEL * recall)}" if path else f"M0 {height}H{round(PANEL * recall)}"
    return path


# ---- the card ----


def make_card(facts: ModelFacts) -> str:
    """The Markdown of the card."""
    from markupsafe import Markup

    return pages.render(
        "model_card.md",
        facts=facts,
        head=Markup(make_head(facts)),
        classes=facts.classes[:MOST_IN_CARD],
        commands=[(what, Markup(make_visible(command))) for what, command in facts.commands],
        confusions=facts.confusions[:MOST_CONFUSIONS],
    )


def make_head(facts: ModelFacts) -> str:
    """The YAML that the hub reads: licence, library, task, tags, and the numbers."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="image-folder",
            dataset_name=facts.data.name,
            dataset_split=facts.data.split,
            metric_type=HUB_METRICS[name],
            metric_name=name,
            metric_value=round(value, 4),
        )
        for name in HUB_METRICS
        if (value := facts.metrics.get(name)) is not None
    ]
    data = ModelCardData(
        **write_for_hub(facts.licence.name),  # pyright: ignore[reportArgumentType]
        library_name="pytorch",
        pipeline_tag="image-classification",
        tags=["image-classification", "single-label" if facts.has_one_label else "multi-label", facts.backbone],
        metrics=[HUB_METRICS[name] for name in HUB_METRICS if facts.metrics.get(name) is not None],
        model_name=facts.title,
        eval_results=results or None,
    )
    return data.to_yaml()
