"""The page and the card of a tested model: their facts, and what is written of them."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsers import Browser
from conftest import make_small_run
from huggingface_hub import ModelCard
from PIL import Image, ImageColor
from sklearn.metrics import precision_score, recall_score
from test_names import NAMES, OBEYED

import config
import metrics
import models_factory
import predictor
import testing
import thresholds
from constants.values import parse
from dataset.decoding import decode_image
from dataset.json_files import to_json
from dataset.table import Table
from evaluation import activation_maps, model_facts, pages, palette, report, shown_mistakes
from evaluation.map_maker import MapMaker
from evaluation.mistakes import Mistake
from evaluation.model_facts import ModelFacts
from evaluation.predictions import Compared, Predictions
from evaluation.tables import escape_markdown
from models import checkpoints
from predictor import Predictor
from trainer.from_config import ImagesToPredict

CLASSES = ("bus", "truck", "car", "never seen")
Gather = Callable[..., ModelFacts]


def make_scores() -> tuple[np.ndarray, np.ndarray]:
    """(300, 4) probabilities and targets: trucks are said where buses are missed; the last class has no label."""
    rng = np.random.default_rng(0)
    targets = (rng.random((300, 4)) < [0.3, 0.2, 0.5, 0]).astype(np.int8)
    probabilities = np.where(targets == 1, 0.75, 0.2) + rng.normal(0, 0.1, targets.shape)
    confused = (targets[:, 0] == 1) & (targets[:, 1] == 0) & (rng.random(300) < 0.5)
    probabilities[confused, 0], probabilities[confused, 1] = 0.1, 0.9
    return probabilities.clip(0, 1).astype(np.float32), targets


@pytest.fixture
def gather(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gather:
    """testing.evaluate with made scores, without plots and maps. Returns the facts; the page lies in tmp_path."""
    picture, model_file = tmp_path / "picture.png", tmp_path / "model.pt"
    Image.new("RGB", (400, 300), (200, 40, 40)).save(picture)
    model_file.write_bytes(b"PK")
    facts: list[ModelFacts] = []
    write = report.write_report

    def keep(found: ModelFacts) -> report.Report:
        facts.append(found)
        return write(found)

    monkeypatch.setattr(report, "write_report", keep)
    monkeypatch.setattr(testing.plots, "save_report", lambda **values: [])
    monkeypatch.setattr(model_facts.engines, "recognise", lambda path: "onnx")
    monkeypatch.setattr(testing, "PREDICTIONS_FOLDER", tmp_path)
    monkeypatch.setattr(testing, "BOOTSTRAP_SAMPLES", 20)
    monkeypatch.setattr(config, "LOCAL_ROOT", tmp_path)
    monkeypatch.setattr(config, "DATASET_FORMAT", "coco_cls")

    def run(
        probabilities: np.ndarray,
        targets: np.ndarray,
        classes: Sequence[str] = CLASSES,
        slicings: dict[str, dict[str, np.ndarray]] | None = None,
        compared: Compared | None = None,
        **metadata: Any,
    ) -> ModelFacts:
        values = {
            "model_name": "resnet18",
            "head": "linear_bn",
            "classes": [*classes],
            "image_size": 32,
            "resize_rule": "squash",
            "thresholds": [0.5] * len(classes),
            "config": {"PRETRAINED_WEIGHTS": "default", "HEAD": "cosine", "LOCAL_ROOT": "/home/somebody/data"}
            | {"DATASET_FOLDER": "/home/somebody/photos"},
        }
        model = Predictor(lambda images: images, values | metadata, model_file, torch.device("cpu"))
        paths = [str(picture)] * len(targets)
        names = [f"photo {row} <i>" for row in range(len(targets))]
        table = Table(paths, targets, tuple(classes))
        abstain = model.abstain if model.abstention else None
        predictions = Predictions(paths, names, probabilities, classes, model.decide, compared, abstain)
        testing.evaluate(predictions, ImagesToPredict(table, True, {}), model, slicings or {})
        return facts[-1]

    return run


def read(folder: Path) -> tuple[str, str]:
    """The page and the card."""
    return (folder / "report.html").read_text(encoding="utf-8"), (folder / "MODEL_CARD.md").read_text(encoding="utf-8")


class ClassRows(HTMLParser):
    """The rows of the table of classes, each a list of the texts of its cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.inside = "sortable" in (dict(attrs).get("class") or "")
        elif self.inside and tag == "tr":
            self.rows.append([])
        elif self.inside and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def read_table(page: str) -> list[dict[str, str]]:
    header, *rows = ([cell.strip() for cell in row] for row in ClassRows(page).rows)
    header[3] = "bar"
    return [dict(zip(header, row, strict=True)) for row in rows]


# ---- facts ----


def test_facts_are_the_numbers_of_the_test(gather: Gather, tmp_path: Path) -> None:
    probabilities, targets = make_scores()
    facts = gather(probabilities, targets)
    result = json.loads((tmp_path / "evaluate_result.json").read_text(encoding="utf-8"))
    said = probabilities >= 0.5
    recall, precision = said[targets == 1].mean(), (targets == 1)[said].mean()
    assert [number.value for number in facts.headline] == pytest.approx([recall, precision])
    low, high = result["intervals"]["OR"]
    assert facts.verdict.startswith(
        f"{recall:.0%} of the labels are found ({low:.0%} to {high:.0%}); {precision:.0%} of"
    )
    assert [number.name for number in facts.numbers] == ["mAP", "OF1", "f1_macro", "exact_match"]
    chance = targets[:, :3].mean()
    assert f"mean of 3 classes; 1 is perfect, a random order gives {chance:.3f}" in facts.numbers[0].text
    assert facts.confidence == pytest.approx(probabilities[said].mean(), abs=1e-6)
    measured = metrics.measure_classes(probabilities, targets, 0.5)
    by_name = {entry.name: entry for entry in facts.classes}
    for c, name in enumerate(CLASSES[:3]):
        entry = by_name[name]
        assert (entry.f1, entry.recall, entry.ap) == pytest.approx([measured[key][c] for key in ("F1", "R", "AP")])
        assert entry.f1_interval is not None
        assert entry.f1_interval[0] <= entry.f1 <= entry.f1_interval[1]
        assert entry.curve[-1][0] == 1.0
    f1 = [entry.f1 for entry in facts.classes[:3]]
    assert f1 == sorted(f1), "the weakest first"
    assert facts.classes[3].name == "never seen", "and last of what nothing is known"
    (confusion,) = facts.confusions
    missed = ~said[:, 0] & (targets[:, 0] == 1)
    assert (confusion.said, confusion.there, confusion.out_of) == ("truck", "bus", missed.sum())
    assert confusion.num_images == (missed & said[:, 1] & (targets[:, 1] == 0)).sum()
    assert by_name["bus"].said_instead[0].name == "truck"
    assert by_name["truck"].there_instead[0].name == "bus"
    assert facts.data.num_labels == targets.sum()
    assert facts.data.num_without_label == (targets.sum(axis=1) == 0).sum()


def test_a_random_order_is_one_of_known_labels(gather: Gather) -> None:
    probabilities, targets = make_scores()
    targets[100:, 0] = -1
    facts = gather(probabilities, targets)
    shares = [targets[targets[:, c] >= 0, c].mean() for c in range(3)]
    assert f"mean of 3 classes; 1 is perfect, a random order gives {np.mean(shares):.3f}" in facts.numbers[0].text


def test_mistakes_are_shown_with_photograph_labels_and_scores(gather: Gather) -> None:
    probabilities, targets = make_scores()
    facts = gather(probabilities, targets)
    first = next(mistake for mistake in facts.mistakes if mistake.is_wrong)
    row = int(first.image.split()[1])
    assert (first.name, targets[row, 1]) == ("truck", 0)
    assert first.probability == pytest.approx(probabilities[row, 1])
    assert first.labels == [CLASSES[c] for c in np.flatnonzero(targets[row])]
    assert dict(first.said) == pytest.approx({CLASSES[c]: p for c, p in enumerate(probabilities[row]) if p >= 0.5})
    assert max(Image.open(io.BytesIO(first.photograph)).size) == shown_mistakes.SIDE
    assert first.map is None
    assert facts.no_maps.endswith("this is an exported file.")


@pytest.mark.parametrize(
    ("limits", "wrong", "missed"),
    [
        ({}, ["truck 0.900 ≥ 0.500"], ["bus 0.200 < 0.500", "bus 0.300 < 0.500"]),
        ({"min_labels": 1}, ["truck 0.900 ≥ 0.500", "truck 0.400"], ["bus 0.200 < 0.500", "bus 0.300 < 0.500"]),
        ({"max_labels": 1}, ["truck 0.900 ≥ 0.500"], ["bus 0.200 < 0.500", "bus 0.300 < 0.500", "truck 0.600"]),
        ({"min_labels": 1, "max_labels": 1}, ["truck 0.900", "truck 0.400"], ["bus 0.200", "bus 0.300", "truck 0.600"]),
    ],
)
def test_a_mistake_names_the_threshold_where_that_decided(
    gather: Gather, tmp_path: Path, limits: dict[str, int], wrong: list[str], missed: list[str]
) -> None:
    probabilities = np.array([[0.2, 0.4], [0.3, 0.9], [0.8, 0.6], *[[0.9, 0.1]] * 20], dtype=np.float32)
    targets = np.array([[1, 0], [1, 0], [1, 1], *[[1, 0]] * 20], dtype=np.int8)
    gather(probabilities, targets, CLASSES[:2], **limits)
    found = re.findall(r"✕ (says|misses) <bdi>(.*?)</bdi></b>\s*(.*?)<br/>", read(tmp_path)[0])
    expected = [*(f"says {text}" for text in wrong), *(f"misses {text}" for text in missed)]
    assert [html.unescape(" ".join(words)) for words in found] == expected


def test_maps_of_other_classes_are_unfolded_on_request(gather: Gather) -> None:
    others = [
        shown_mistakes.OtherMap("cat <i>", 0.91, is_said=True, target=1, map=b"one"),
        shown_mistakes.OtherMap("dog", 0.8, is_said=True, target=0, map=b"two"),
        shown_mistakes.OtherMap("hen", 0.7, is_said=True, target=-1, map=None),
        shown_mistakes.OtherMap("owl", 0.1, is_said=False, target=1, map=b"three"),
    ]
    facts = gather(*make_scores())
    folds = r"<details>\s*<summary>Where it sees (.*?)</summary>(.*?)</details>"
    assert not re.findall(folds, report.make_page(facts), re.DOTALL), "an exported file has no maps"
    facts = replace(
        facts, mistakes=[facts.mistakes[0]._replace(others=others), facts.mistakes[1]._replace(others=others[:1])]
    )
    (words, folded), (one, _) = re.findall(folds, report.make_page(facts), re.DOTALL)
    assert (words, one) == ("other classes", "another class")
    texts = [
        " ".join(html.unescape(re.sub("<[^>]+>", " ", figure)).split())
        for figure in re.findall(r"<figure>(.*?)</figure>", folded, re.DOTALL)
    ]
    assert texts == [
        "cat <i> 0.91 ✓ right",
        "dog 0.80 ✕ wrong",
        "no place speaks for it hen 0.70 not labelled",
        "owl 0.10 ✕ missed",
    ]
    pictures = [base64.b64encode(text).decode() for text in (b"one", b"two", b"three")]
    assert re.findall(r'base64,([^"]+)"', folded) == pictures


def test_the_page_is_written_once_and_lies_with_the_run_too(
    gather: Gather, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rendered = tmp_path / "run", list[str]()
    run.mkdir()
    render = pages.render

    def count(template: str, **values: object) -> str:
        rendered.append(template)
        return render(template, **values)

    monkeypatch.setattr(pages, "render", count)
    monkeypatch.setattr(testing, "keep_with_run", lambda *what: testing.Kept(run, "1234abcd"))
    gather(*make_scores())
    assert sorted(rendered) == ["model_card.md", "report.html"]
    assert read(run) == read(tmp_path)


def test_training_photographs_stand_beside_a_mistake(
    gather: Gather, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = tmp_path / "training.png"
    Image.new("RGB", (300, 300), (0, 0, 200)).save(training)
    monkeypatch.setattr("trainer.from_config.find_training_images", lambda model: {"b.png": str(training)})
    novelty = np.where(np.arange(300) % 2, 0.995, 0.25).astype(np.float32)
    compared = Compared(novelty, np.tile([1, 0], (300, 1)), ["gone <i>.png", "b.png"])
    facts = gather(*make_scores(), compared=compared)
    for mistake in facts.mistakes:
        row = int(mistake.image.split()[1])
        assert mistake.novelty == pytest.approx(novelty[row])
        assert mistake.is_unlike is bool(row % 2)
        (first, picture), (second, nothing) = mistake.nearest
        assert (first, second, nothing) == ("b.png", "gone <i>.png", None)
        assert picture is not None
        assert Image.open(io.BytesIO(picture)).size == (shown_mistakes.SMALL_SIDE,) * 2
    page = read(tmp_path)[0]
    assert page.count('alt="b.png"') == page.count("gone &lt;i&gt;.png") == len(facts.mistakes)
    assert page.count(": unlike the training images") == sum(mistake.is_unlike for mistake in facts.mistakes)
    assert dict(facts.data.rows)["unlike the training images"] == "50.0% of the images"


def test_slices_are_those_of_the_test(gather: Gather, tmp_path: Path) -> None:
    probabilities, targets = make_scores()
    (slicing,) = gather(
        probabilities, targets, slicings={"day": {"<b>": np.arange(100), "": np.arange(100, 300)}}
    ).slicings
    assert [(part.name, part.num_images, part.num_labels) for part in slicing.slices] == [
        ("<b>", 100, targets[:100].sum()),
        ("(none)", 200, targets[100:].sum()),
    ]
    expected = metrics.measure(probabilities[:100], targets[:100], 0.5)
    assert slicing.slices[0].mean_ap.value == pytest.approx(expected["mAP"])
    assert slicing.slices[0].f1.value == pytest.approx(expected["f1_weighted"])
    page, card = read(tmp_path)
    assert slicing.texts
    for text in slicing.texts:
        assert text.replace("<", "&lt;").replace(">", "&gt;") in page
        assert escape_markdown(text) in card.splitlines()
    low, high = slicing.slices[0].mean_ap.interval or (math.nan, math.nan)
    row = rf"| \<b> | 100 | {targets[:100].sum()} | {expected['mAP']:.3f} | {low:.3f} to {high:.3f} | "
    assert sum(line.startswith(row) for line in card.splitlines()) == 1


def test_slices_of_few_images_are_marked(gather: Gather, tmp_path: Path) -> None:
    slicings = {"day": {"a": np.arange(1), "b": np.arange(1, 30), "c": np.arange(30, 300)}}
    (slicing,) = gather(*make_scores(), slicings=slicings).slicings
    assert [part.is_small for part in slicing.slices] == [True, True, False]
    page, card = read(tmp_path)
    assert page.count(">few<") == 2
    assert [line.split(" | ")[1] for line in card.splitlines() if re.match(r"\| [abc] ", line)] == [
        "1 (few)",
        "29 (few)",
        "270",
    ]


@pytest.mark.parametrize(("level", "holds"), [(0.5, True), (0.999, False)])
def test_a_promise_stands_where_it_belongs(gather: Gather, tmp_path: Path, level: float, holds: bool) -> None:
    promise = {"metric": "recall", "level": level, "confidence": None, "num_images": 300, "words": "on new <b> images"}
    facts = gather(*make_scores(), promise=promise)
    promised = facts.promised
    assert promised is not None
    assert promised.holds is holds
    assert promised.text.startswith(f"Promised recall {level:.4g}: found 0.")
    assert ("not kept" in promised.text) is not holds
    page, card = read(tmp_path)
    assert [text.startswith(promised.text) for text in facts.caveats].count(True) == (not holds)
    for text, heading in ((page, "<h2>Where it fails"), (card, "## To keep in mind")):
        before, _, after = text.partition(heading)
        assert promised.text in (before if holds else after)
        assert promised.text not in (after if holds else before)
        assert len(re.findall(r"The promise: on new (?:\\<|&lt;)b", text)) == 1


def test_a_promise_of_precision_where_nothing_is_said(gather: Gather) -> None:
    probabilities, targets = make_scores()
    promise = {"metric": "precision", "level": 0.9, "confidence": 0.9, "num_images": 300, "words": "on new images"}
    facts = gather(probabilities * 0.4, targets, promise=promise)
    assert facts.promised is not None
    assert not facts.promised.holds
    assert facts.caveats[0].startswith("Promised precision 0.9: no test image gets a label.")


def test_what_is_gained_by_leaving_images_to_a_person(gather: Gather, tmp_path: Path) -> None:
    probabilities, targets = make_scores()
    doubt = thresholds.measure_doubt(probabilities, probabilities >= 0.5)
    cut = float(np.sort(doubt)[-31:-29].mean())
    facts = gather(probabilities, targets, abstention={"share": 0.1, "cut": cut})
    assert facts.abstention is not None
    assert facts.abstention.text == "30 of 300 images left to a person (ABSTAIN), 270 decided."
    is_right = ((probabilities >= 0.5) == (targets == 1)).all(axis=1)
    gain = dict(facts.abstention.gains)["exact_match"]
    assert (gain.all, gain.decided) == pytest.approx((is_right.mean(), is_right[doubt < cut].mean()))
    page, card = read(tmp_path)
    difference = f"{gain.decided - gain.all:+.3f}"
    assert f"<td>{gain.decided:.3f}</td><td>{difference}<br/>" in page
    assert rf"| exact_match | {gain.all:.3f} | {gain.decided:.3f} | {difference} | " in card.replace("\\_", "_")
    assert all(facts.abstention.text in text.replace("\\", "") for text in (page, card))


def test_cross_validation_is_said(gather: Gather) -> None:
    sizes = {"fingerprint": "x", "num_train": 280, "num_val": 280}
    rows = dict(gather(*make_scores(), config={"HEAD_FIT": "search"}, dataset=sizes).data.rows)
    assert rows["trained on"] == "280 images"
    assert rows["validated on"].startswith("the same images, cross-validated: ")
    rows = dict(gather(*make_scores(), config={}, dataset=sizes | {"num_val": 31}).data.rows)
    assert rows["validated on"] == "31 images"


def test_constants_and_commands_name_no_folder_of_this_machine(gather: Gather, tmp_path: Path) -> None:
    facts = gather(*make_scores())
    assert facts.changes == [
        ("DATASET_FOLDER", "PATH/TO/photos", "PATH/TO/ms-coco-dataset"),
        ("HEAD", "cosine", "linear_bn"),
    ]
    commands = dict(facts.commands)
    assert commands["train"] == "python training.py --DATASET_FOLDER PATH/TO/photos --HEAD cosine"
    assert "--BOOTSTRAP_SAMPLES 20" in commands["test"]
    for text in read(tmp_path):
        assert "/home/somebody" not in text
        assert str(tmp_path) not in text


def test_expressions_and_names_are_no_folders(gather: Gather, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expression = r"/0(\d)\d+\.jpg$"
    monkeypatch.setattr(testing, "SLICES", (expression,))
    constants = {"GROUP_PATTERN": "/(site)/", "CLASSES": ["/m/01g317"], "TEACHER_CHECKPOINTS": ["/home/somebody/a.pt"]}
    facts = gather(*make_scores(), config=constants)
    words = shlex.split(dict(facts.commands)["test"])
    assert parse(words[words.index("--SLICES") + 1], tuple[str, ...]) == (expression,)
    assert {name: value for name, value, _ in facts.changes} == {
        "GROUP_PATTERN": "/(site)/",
        "CLASSES": "(/m/01g317,)",
        "TEACHER_CHECKPOINTS": "(PATH/TO/a.pt,)",
    }
    assert "/home/somebody" not in "".join(read(tmp_path))


def test_what_a_reader_has_to_know(gather: Gather, monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, targets = make_scores()
    targets[:, 1] = np.arange(300) < 4
    targets[:30, 2] = -1
    facts = gather(probabilities, targets)
    assert facts.caveats == [
        "No image here has a label of 1 class, of which nothing is known then: never seen.",
        "1 class with fewer than 10 labels: their numbers say little.",
        "Of 2.5% of the entries the label is unknown; they count nowhere.",
    ]
    monkeypatch.setattr(config, "TEST_SPLIT", "val")
    facts = gather(probabilities[:100], targets[:100])
    assert facts.caveats[0].startswith("These are validation images")
    assert facts.caveats[1] == "It was measured on 100 images only: every number here is rough."


@pytest.mark.parametrize(
    ("metadata", "words", "is_non_commercial"),
    [
        ({"model_name": "resnet18"}, "bsd-3-clause, which allows commercial use", False),
        ({"model_name": "vit_h_14"}, "for non-commercial use only (cc-by-nc-4.0)", True),
        ({"pretrained_licence": "dinov3-license"}, "terms of their own, dinov3-license", False),
        ({"config": {"PRETRAINED_WEIGHTS": None}}, "from random weights", False),
        ({"config": {"PRETRAINED_WEIGHTS": "some.pth"}}, "is not known", False),
        ({"model_name": "timm/gone", "config": {"PRETRAINED_WEIGHTS": "default"}}, "is not known", False),
    ],
)
def test_the_licence_is_said_in_words(
    gather: Gather, tmp_path: Path, metadata: dict[str, Any], words: str, is_non_commercial: bool
) -> None:
    facts = gather(*make_scores(), **metadata)
    assert words in facts.licence.text
    for text in read(tmp_path):
        assert words in text
        assert ("Not for commercial use." in text) is is_non_commercial


def test_findings_of_the_check_of_this_data_set(tmp_path: Path) -> None:
    path, folder = tmp_path / "check_dataset_result.json", tmp_path / "data"
    assert "was not checked" in model_facts.read_check(path, folder).problem
    finding = {"kind": "leak", "severity": "error", "text": "x", "files": []}
    content = {
        "dataset_path": str(folder),
        "check_pass": False,
        "findings": [finding | {"kind": "small", "severity": "warning"}, finding, finding],
        "titles": {"leak": "The same picture in several splits"},
    }
    path.write_text(to_json(content), encoding="utf-8")
    found = model_facts.read_check(path, folder)
    assert not found.passed
    assert found.findings == (("error", "The same picture in several splits", 2), ("warning", "small", 1))
    assert "of another data set" in model_facts.read_check(path, tmp_path).problem
    for text, words in (("[]", "other keys"), ("{", "this is not JSON")):
        path.write_text(text, encoding="utf-8")
        assert words in model_facts.read_check(path, folder).problem


# ---- the page and the card ----


def test_the_page_is_one_file_with_every_class(gather: Gather, tmp_path: Path) -> None:
    facts = gather(*make_scores())
    page, card = read(tmp_path)
    rows = read_table(page)
    assert [row["class"] for row in rows] == [entry.name for entry in facts.classes]
    for row, entry in zip(rows[:3], facts.classes, strict=False):
        assert (row["labels"], row["F1"], row["AP"]) == (str(entry.positives), f"{entry.f1:.3f}", f"{entry.ap:.3f}")
    assert (rows[3]["F1"], rows[3]["AP"]) == ("–", "–")
    assert not re.search(r"(?:src|href)=\"(?!data:)|@import|url\(", page)
    assert "says <b><bdi>truck</bdi></b> where it misses <b><bdi>bus</bdi></b>" in page
    assert "- says truck where it misses bus: " in card
    assert facts.verdict in card


def test_page_and_card_give_a_class_the_same_numbers(gather: Gather, tmp_path: Path) -> None:
    probabilities, targets = make_scores()
    probabilities[:, 1] *= 0.4  # is never said
    facts = gather(probabilities, targets)
    page, card = read(tmp_path)
    table = card.partition("| class |")[2].partition("\n## ")[0].strip().splitlines()[2:]
    assert len(table) == len(facts.classes)
    for row, line in zip(read_table(page), table, strict=True):
        names = ("class", "labels", "F1", "recall", "precision", "AP", "threshold")
        assert line == f"| {' | '.join(row[name] for name in names)} |"
    assert {row["class"]: row["precision"] for row in read_table(page)}["truck"] == "–"
    assert not draw_points(page)["truck"], "nor a point on the curve"
    entry = facts.weakest[0]
    assert f'F1 {entry.f1:.2f}<span class="soft">, {entry.positives} labels</span>' in page


def test_curves_are_the_steps_that_ap_adds_up() -> None:
    probabilities, targets = make_scores()
    curve = next(iter(metrics.precision_recall_curve(probabilities, targets)))
    path = report.draw_curve([*zip(curve.recall, curve.precision, strict=True)])
    x, y, area = 0, 0, 0.0
    for letter, number in re.findall(r"([VH])(\d+)", "V" + path.removeprefix("M0 ")):
        if letter == "V":
            y = int(number)
        else:
            area += (int(number) - x) * (report.PANEL - y)
            x = int(number)
    ap = metrics.average_precision(probabilities, targets)[0]
    assert area / report.PANEL**2 == pytest.approx(ap, abs=0.02)
    assert report.draw_curve([]) == ""


def draw_points(page: str) -> dict[str, list[tuple[float, float]]]:
    """{class: the points on its curve}, in units of the drawing."""
    figures = re.findall(r'<figcaption><bdi title="([^"]+)">(.*?)</figure>', page, re.DOTALL)
    circle = re.compile(r'<circle class="point" r="3.5" cx="([\d.]+)" cy="([\d.]+)"')
    return {name: [(float(x), float(y)) for x, y in circle.findall(text)] for name, text in figures}


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_the_point_of_a_threshold_lies_on_its_curve(gather: Gather, tmp_path: Path, threshold: float) -> None:
    probabilities, targets = make_scores()
    facts = gather(probabilities, targets, thresholds=[threshold] * len(CLASSES))
    points = draw_points(read(tmp_path)[0])
    for entry in facts.classes:
        c = CLASSES.index(entry.name)
        said, there = probabilities[:, c] >= threshold, targets[:, c] == 1
        if not there.any():
            assert not points[entry.name]
            continue
        assert len(entry.curve) <= model_facts.CURVE_POINTS + 2
        ((x, y),) = points[entry.name]
        expected = 100 * recall_score(there, said), 100 - 100 * precision_score(there, said)
        assert (x, y) == pytest.approx(expected, abs=0.06)
        numbers = re.findall(r"([VH])(\d+)", "V" + report.draw_curve(entry.curve).removeprefix("M0 "))
        at, corners = {"H": 0, "V": 0}, []
        for letter, number in numbers:
            at[letter] = int(number)
            corners.append((at["H"], at["V"]))
        ends = np.array(corners)
        low, high = np.minimum(ends[:-1], ends[1:]), np.maximum(ends[:-1], ends[1:])
        gaps = np.abs((x, y) - np.clip((x, y), low, high)).max(axis=1)
        assert gaps.min() <= 0.56, "the path is of whole units"


def test_names_are_only_text(gather: Gather, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((60, len(NAMES))) < 0.3).astype(np.int8)
    gather(rng.random(targets.shape).astype(np.float32), targets, NAMES)
    page, card = read(tmp_path)
    assert not OBEYED.search(page)
    assert not OBEYED.search(card)
    assert "<script>alert" not in page
    assert page.count("<script") == 1
    assert {row["class"] for row in read_table(page)} == {pages.cut(name, 60).strip() for name in NAMES}
    table = card.partition("| class |")[2].partition("\n## ")[0].strip().splitlines()[2:]
    assert len(table) == len(NAMES)
    for line in table:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 8, "no name ends a cell"
    assert r"\<script>" in card


def test_the_card_is_what_the_hub_reads(gather: Gather, tmp_path: Path) -> None:
    facts = gather(*make_scores(), pretrained_licence="dinov3-license")
    data: Any = ModelCard(read(tmp_path)[1]).data
    assert (data.license, data.license_name) == ("other", "dinov3-license")
    assert (data.library_name, data.pipeline_tag) == ("pytorch", "image-classification")
    assert data.tags == ["image-classification", "multi-label", "resnet18"]
    assert data.metrics == ["precision", "recall", "f1", "mAP"]
    found = {entry.metric_name: entry.metric_value for entry in data.eval_results}
    assert found == {name: round(facts.metrics[name] or 0, 4) for name in ("OP", "OR", "OF1", "mAP")}
    gather(*make_scores(), pretrained_licence="no weights")
    data = ModelCard(read(tmp_path)[1]).data
    assert data.license == "unknown"


def test_one_label_an_image(gather: Gather, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    is_class = rng.integers(0, 3, 300)
    taken_for = np.where(rng.random(300) < 0.8, is_class, (is_class + 1) % 3)
    targets, probabilities = np.eye(3, dtype=np.int8)[is_class], np.eye(3, dtype=np.float32)[taken_for] * 0.4
    facts = gather(probabilities, targets, CLASSES[:3], min_labels=1, max_labels=1)
    assert facts.has_one_label
    accuracy = (is_class == taken_for).mean()
    assert facts.headline[0].value == pytest.approx(accuracy)
    assert facts.verdict.startswith(f"{accuracy:.0%} of the images get their right class (")
    data: Any = ModelCard(read(tmp_path)[1]).data
    assert "single-label" in data.tags

    targets[0] = 0  # no accuracy then, but the task is the same
    facts = gather(probabilities, targets, CLASSES[:3], min_labels=1, max_labels=1)
    assert [number.name for number in facts.headline] == ["OR", "OP"]
    num_right = (is_class == taken_for)[1:].sum()
    assert [number.value for number in facts.headline] == pytest.approx([num_right / 299, num_right / 300])
    page, card = read(tmp_path)
    assert "One class an image, 3 classes." in page
    assert "\nOne class an image, 3 classes. " in card
    data = ModelCard(card).data
    assert "single-label" in data.tags
    others = ["missed: it says", "said wrongly: there is"]
    shown = ["class", "labels", "says", "bar", "F1", "recall", "precision", "AP", *others]
    assert [[*row] for row in read_table(page)] == [shown] * 3, "no threshold decides"
    head, rule, *rows = card.partition("| class |")[2].partition("\n## ")[0].strip().splitlines()
    assert head == "labels | F1 | recall | precision | AP |"
    assert rule == "|---|---:|---:|---:|---:|---:|"
    assert [line.count("|") for line in rows] == [7] * 3


def test_without_labels_predictions_or_intervals(
    gather: Gather, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(testing, "BOOTSTRAP_SAMPLES", 0)
    nothing = np.zeros((20, 4), dtype=np.int8)
    for probabilities, targets in ((nothing, nothing), (nothing + 0.9, nothing), (nothing, nothing - 1)):
        facts = gather(probabilities.astype(np.float32), targets)
        assert "no image has a label, so that nothing can be found" in facts.verdict
        assert "There are no intervals, since BOOTSTRAP_SAMPLES was 0." in facts.caveats
        assert facts.numbers[0].value is None
        page, card = read(tmp_path)
        assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", page + card))
    assert math.isnan(facts.classes[0].ap)


# ---- in a browser ----


def test_the_table_sorts(gather: Gather, tmp_path: Path, browser: Browser) -> None:
    facts = gather(*make_scores())

    def click(column: int) -> list[str]:
        browser.evaluate(f"document.querySelectorAll('.sortable th')[{column}].querySelector('button').click()")
        return browser.evaluate("[...document.querySelectorAll('.sortable tbody tr')].map(r => r.cells[0].textContent)")

    browser.events.clear()
    browser.open((tmp_path / "report.html").as_uri())
    entries = facts.classes
    assert click(0) == ["bus", "car", "never seen", "truck"]
    assert click(0) == ["truck", "never seen", "car", "bus"]
    assert click(1) == [entry.name for entry in sorted(entries, key=lambda entry: entry.positives)]
    for last in ("ascending", "descending"):
        sign = 1 if last == "ascending" else -1
        expected = sorted(entries[:3], key=lambda entry: sign * entry.ap)
        assert click(7) == [*(entry.name for entry in expected), "never seen"], "what is undefined stays last"
        assert browser.evaluate("document.querySelectorAll('.sortable th')[7].ariaSort") == last
    assert not [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_in_its_width(gather: Gather, tmp_path: Path, browser: Browser, scheme: str) -> None:
    gather(*make_scores(), classes=(*CLASSES[:3], "a very long name of a class " * 4))
    browser.send("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        browser.open((tmp_path / "report.html").as_uri())
        assert browser.evaluate("document.documentElement.scrollWidth") == 400
        colours = {"light": palette.LIGHT, "dark": palette.DARK}[scheme]
        line = browser.evaluate("getComputedStyle(document.querySelector('.curves .line')).stroke")
        assert line == f"rgb{ImageColor.getrgb(colours['blue'])}"
    finally:
        browser.send("Emulation.clearDeviceMetricsOverride")
        browser.send("Emulation.setEmulatedMedia", features=[])


# ---- with a model ----


@pytest.fixture(scope="module")
def tested(shared_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LOCAL_ROOT after the test of a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("tested")
    torch.manual_seed(0)
    model = models_factory.make_model("resnet18", 3, image_size=64)
    checkpoint = {
        "model_state": model.state_dict(),
        "model_name": "resnet18",
        "head": "linear_bn",
        "classes": ["red", "green", "blue"],
        "image_size": 64,
        "resize_rule": "squash",
        "best_threshold": 0.5,
    }
    checkpoints.save(folder / "trained_models" / "best_model.pt", checkpoint)
    testing.main([*make_small_run(shared_dataset, folder), "--BOOTSTRAP_SAMPLES=20"])
    return folder


def count_mistakes(page: str) -> int:
    return page.count("✕ says ") + page.count("✕ misses ")


def test_maps_of_a_checkpoint_lie_beside_the_photographs(tested: Path) -> None:
    page = (tested / "predictions" / "report.html").read_text(encoding="utf-8")
    assert page.count('alt="where it sees ') + page.count("no place speaks for it<br/>") == count_mistakes(page) > 0
    assert 'alt="where it sees ' in page
    assert (tested / "predictions" / "MODEL_CARD.md").is_file()


def test_maps_of_other_classes_are_those_of_the_network(tested: Path, shared_dataset: Path) -> None:
    """Of a checkpoint that runs with BatchNorm folded, beside maps of the network as it was saved."""
    path = tested / "trained_models" / "best_model.pt"
    model = predictor.load(path, "cpu")
    probabilities = np.array([[0.9, 0.2, 0.7]], np.float32)
    image = str(shared_dataset / "images" / "test-resized" / "test000.jpg")
    predictions = Predictions([image], ["test000"], probabilities, model.classes, lambda rows: [[0, 2]])
    targets = np.array([[1, 1, -1]], np.int8)
    shown = shown_mistakes.show_mistake(
        Mistake(0, 1, 0.2), False, predictions, targets, model, MapMaker(model), training_images={}
    )
    found = [(other.name, round(other.probability, 2), other.is_said, other.target) for other in shown.others]
    assert found == [("red", 0.9, True, 1), ("blue", 0.7, True, -1)], "the most probable first"
    network = models_factory.restore_model(checkpoints.load(path), path)
    trace = activation_maps.follow(network, model.prepare(image))
    photograph = shown_mistakes.shrink(decode_image(image), shown_mistakes.SIDE)
    for label, picture in zip((1, 0, 2), [shown.map, *(other.map for other in shown.others)], strict=True):
        values = activation_maps.grad_cam(trace, [label])[0]
        if not values.max() > 0:
            assert picture is None
            continue
        expected = activation_maps.draw_map(photograph, values, "squash", model.image_size)
        assert picture is not None
        drawn = np.asarray(Image.open(io.BytesIO(picture))).astype(int)
        assert np.abs(drawn - np.asarray(expected)).mean() < 6  # of 255: JPEG
