"""evaluation/prediction_exports.py: what other programs read of predictions, and this one reads again."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import utils
from dataset_readers import read_dataset, recognise_format
from evaluation import label_studio, prediction_exports, prediction_files, prediction_tables
from evaluation.prediction_files import PREDICTION_FILES
from evaluation.predictions import Compared, MadeBy, Predictions
from utils import InputError

# names that a reader of a column, a spreadsheet or a parser might take for something else
AWKWARD = (
    "red",
    "green, or so",
    "semi;colon",
    'say "hi"',
    "two\nlines",
    "=1+1",
    "-3",
    "@home",
    "hot dog",
    "hot",
    "dog",
    "a|b",
    "[list]",
    "it's 'quoted'",
    "blé",
    "and/or & more",
    "日本, と",
)
PLAIN = ("person", "dining table", "traffic light")
WRITERS = ("csv", "jsonl", "parquet", "label_studio", "fiftyone")


def decide(probabilities: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(row >= 0.5).tolist() for row in probabilities]


@pytest.fixture
def make_predictions(tmp_path: Path) -> Callable[..., Predictions]:
    def make(classes: tuple[str, ...], probabilities: np.ndarray) -> Predictions:
        """Predictions for images in two sub-folders of tmp_path / "my photos"."""
        paths = []
        for number in range(len(probabilities)):
            path = tmp_path / "my photos" / "ab"[number % 2] / f"{number} + é.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6), (number, 0, 0)).save(path)
            paths.append(str(path))
        names = prediction_files.name_images(paths)
        made_by = MadeBy("resnet50", "3f" * 32, [0.5] * len(classes), max_labels=0)
        return Predictions(paths, names, probabilities.astype(np.float32), classes, decide, made_by=made_by)

    return make


def draw_probabilities(num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Of images with no label, with each label alone, with two, and with all."""
    alone = np.where(np.eye(num_classes) > 0, 0.9, 0.1)
    pairs = np.maximum(alone, np.roll(alone, 1, axis=1))
    values = np.concatenate([np.full((1, num_classes), 0.2), alone, pairs, np.full((1, num_classes), 0.8)])
    return (values + rng.uniform(-0.09, 0.09, values.shape)).astype(np.float32)


def list_ranked(predictions: Predictions) -> list[list[tuple[str, float]]]:
    """(name, probability) of the labels of each image, the most probable first: written out anew."""
    found = []
    for row in predictions.probabilities:
        labels = [(float(p), c) for c, p in enumerate(row.tolist()) if p >= 0.5]
        found.append([(predictions.classes[c], p) for p, c in sorted(labels, key=lambda pair: (-pair[0], pair[1]))])
    return found


@pytest.fixture
def awkward(make_predictions: Callable[..., Predictions]) -> Predictions:
    return make_predictions(AWKWARD, draw_probabilities(len(AWKWARD), np.random.default_rng(0)))


# ---- CSV ----


@pytest.mark.parametrize("classes", [AWKWARD, PLAIN, ("black cat", "white cat", "black dog", "white dog")])
@pytest.mark.parametrize("most", [1, 99])  # labels of an image: with one each, nothing says what joins names
def test_the_csv_is_a_data_set(
    classes: tuple[str, ...], most: int, make_predictions: Callable[..., Predictions], tmp_path: Path
) -> None:
    probabilities = draw_probabilities(len(classes), np.random.default_rng(1))
    few = (probabilities >= 0.5).sum(axis=1) <= most
    predictions = make_predictions(classes, probabilities[few])
    PREDICTION_FILES["csv"].write(tmp_path / "my photos" / "train.csv", predictions)
    assert recognise_format(tmp_path / "my photos") == "csv"
    table = read_dataset(tmp_path / "my photos", split="train")
    assert sorted(table.classes) == sorted(classes)
    rows = dict(zip(table.paths, table.targets, strict=True))
    for path, row in zip(predictions.paths, predictions.probabilities, strict=True):
        found = {table.classes[c] for c in np.flatnonzero(rows[path] == 1)}
        assert found == {classes[c] for c in np.flatnonzero(row >= 0.5)}
    moved = tmp_path / "elsewhere"  # images are found by the ends of their paths
    shutil.move(tmp_path / "my photos", moved)
    again = read_dataset(moved, split="train")
    assert (again.targets == table.targets).all()


def test_the_csv_is_readable(make_predictions: Callable[..., Predictions], tmp_path: Path) -> None:
    predictions = make_predictions(PLAIN, np.array([[0.5, 0.75, 0.25], [0, 0, 0]]))
    PREDICTION_FILES["csv"].write(tmp_path / "p.csv", predictions)
    first, second = predictions.paths
    assert (tmp_path / "p.csv").read_text(encoding="utf-8").splitlines() == [
        "file,labels,scores",
        f"{first},dining table;person,0.75;0.5",
        f"{second},,",
    ]


@pytest.mark.parametrize("kind", ["csv", "probabilities"])
def test_a_table_keeps_any_name(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One with a carriage return, and one that is no UTF-8, of which there is a warning."""
    utils.warn_once.cache_clear()
    paths = [str(tmp_path / name) for name in ("a\rb.png", os.fsdecode(b"caf\xe9.png"))]
    values = np.array([[0.75], [0.25]], np.float32)
    made_by = MadeBy("resnet50", "3f" * 32, [0.5], max_labels=0)
    predictions = Predictions(paths, ["a", "b"], values, ("red",), decide, made_by=made_by)
    PREDICTION_FILES[kind].write(tmp_path / "p.csv", predictions)
    with open(tmp_path / "p.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert [row[0] for row in csv.reader(file)][1:] == paths
    assert capsys.readouterr().err.count("there are names of files that are no UTF-8") == 1


def test_the_csv_starts_no_formula(awkward: Predictions, tmp_path: Path) -> None:
    PREDICTION_FILES["csv"].write(tmp_path / "p.csv", awkward)
    with open(tmp_path / "p.csv", encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r")]


def test_a_relative_path_becomes_whole(
    make_predictions: Callable[..., Predictions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = make_predictions(PLAIN, np.full((3, 3), 0.7))
    monkeypatch.chdir(tmp_path)
    relative = replace(predictions, paths=[os.path.relpath(path) for path in predictions.paths])
    for kind in WRITERS:
        for given, name in ((predictions, "whole"), (relative, "relative")):
            PREDICTION_FILES[kind].write(tmp_path / kind / name, given)
        found = [path for path in sorted((tmp_path / kind).rglob("*")) if path.is_file()]
        files = [[path for path in found if name in path.relative_to(tmp_path).parts] for name in ("whole", "relative")]
        assert len(files[0]) == (3 if kind == "label_studio" else 1)
        for whole, other in zip(*files, strict=True):
            assert whole.read_bytes() == other.read_bytes()


# ---- JSON lines ----


def test_a_line_of_json_is_an_image(awkward: Predictions, tmp_path: Path) -> None:
    PREDICTION_FILES["jsonl"].write(tmp_path / "p.jsonl", awkward)
    lines = (tmp_path / "p.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    for line, path, ranked in zip(lines, awkward.paths, list_ranked(awkward), strict=True):
        record = json.loads(line)
        assert list(record) == ["file", "labels", "scores"]
        assert (record["file"], record["labels"]) == (path, [name for name, _ in ranked])
        assert record["scores"] == pytest.approx([score for _, score in ranked], rel=1e-5)


def compare(predictions: Predictions) -> Predictions:
    """The predictions with novelty, and every second image left to a person."""
    novelty = np.linspace(0, 1, len(predictions), dtype=np.float32)
    nearest = np.zeros((len(predictions), 1), np.int32)
    return replace(
        predictions,
        compared=Compared(novelty, nearest, ["n.jpg"]),
        abstain=lambda rows: [number % 2 == 1 for number in range(len(rows))],
    )


def test_what_else_is_known_stands_there_too(awkward: Predictions, tmp_path: Path) -> None:
    predictions = compare(awkward)
    for kind in ("jsonl", "parquet"):
        PREDICTION_FILES[kind].write(tmp_path / kind, predictions)
    records = [json.loads(line) for line in (tmp_path / "jsonl").read_text(encoding="utf-8").splitlines()]
    rows = pq.read_table(tmp_path / "parquet").to_pylist()
    for found in (records, rows):
        assert [record["novelty"] for record in found] == pytest.approx(np.linspace(0, 1, len(found)), abs=1e-6)
        assert [record["abstains"] for record in found] == [number % 2 == 1 for number in range(len(found))]


# ---- Parquet ----


def test_the_parquet_file_has_every_number(
    awkward: Predictions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_exports, "ENTRIES_IN_GROUP", 5 * len(AWKWARD))  # five images in a row group
    PREDICTION_FILES["parquet"].write(tmp_path / "p.parquet", awkward)
    file = pq.ParquetFile(tmp_path / "p.parquet")
    assert file.metadata.num_row_groups == -(-len(awkward) // 5)
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    table = file.read()
    assert table.column_names == ["file", "labels", "scores", "probabilities"]
    assert table["file"].to_pylist() == awkward.paths
    probabilities = np.stack(table["probabilities"].to_numpy(zero_copy_only=False))
    assert probabilities.tobytes() == awkward.probabilities.tobytes()
    for labels, scores, ranked in zip(
        table["labels"].to_pylist(), table["scores"].to_pylist(), list_ranked(awkward), strict=True
    ):
        assert [*zip(labels, scores, strict=True)] == ranked  # the very float32
    metadata = table.schema.metadata
    assert json.loads(metadata[b"classes"]) == [*AWKWARD]
    assert json.loads(metadata[b"thresholds"]) == [0.5] * len(AWKWARD)
    assert metadata[b"model_sha256"].decode() == "3f" * 32


def test_equal_probabilities_keep_the_order_of_the_classes() -> None:
    schema = prediction_tables.make_arrow_schema(["a", "b", "c"])
    rows = np.array([[0.7, 0.9, 0.7], [0.6, 0.6, 0.6]], np.float32)
    table = prediction_tables.make_arrow_table(schema, ["x", "y"], [[0, 1, 2], [0, 2]], rows)
    assert table["labels"].to_pylist() == [["b", "a", "c"], ["a", "c"]]
    assert json.loads(table.schema.metadata[b"classes"]) == ["a", "b", "c"]
    assert set(table.schema.metadata) == {b"classes"}  # what is not known is left out


def test_a_name_that_is_no_utf8_stands_with_an_escape(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"no UTF-8 \xff.jpg")
    schema = prediction_tables.make_arrow_schema(["a"])
    table = prediction_tables.make_arrow_table(schema, [name, "b.jpg"], [[0], []], np.zeros((2, 1), np.float32))
    assert table["file"].to_pylist() == ["no UTF-8 \\udcff.jpg", "b.jpg"]
    assert "no UTF-8" in capsys.readouterr().err


def test_a_missing_package_is_one_line_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction_files.require_packages(PREDICTION_FILES)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    prediction_files.require_packages(["csv", "jsonl", "fiftyone"])
    with pytest.raises(InputError, match=r"need pyarrow: pip install -r requirements-parquet\.txt"):
        prediction_files.require_packages(["csv", "parquet"])


# ---- Label Studio ----


def test_what_a_person_accepts_in_label_studio_is_a_data_set(awkward: Predictions, tmp_path: Path) -> None:
    photographs = tmp_path / "my photos"
    PREDICTION_FILES["label_studio"].write(tmp_path / "project", awkward)
    assert {path.name for path in (tmp_path / "project").iterdir()} == {
        "label_studio_tasks.json",
        "label_studio_config.xml",
    }
    tasks = json.loads((tmp_path / "project" / label_studio.TASKS_FILE).read_text(encoding="utf-8"))
    exported, ids = [], set()
    for number, (task, path, ranked) in enumerate(zip(tasks, awkward.paths, list_ranked(awkward), strict=True)):
        (place,) = parse_qs(urlsplit(task["data"]["image"]).query)["d"]  # as Label Studio reads it
        assert (tmp_path / place).samefile(path)
        (prediction,) = task["predictions"]
        labels = [name for result in prediction["result"] for name in result["value"]["choices"]]
        assert labels == [name for name, _ in ranked]
        row = awkward.probabilities[number].astype(np.float64)
        assert prediction["score"] == pytest.approx(np.where(row >= 0.5, row, 1 - row).prod(), abs=1e-6)
        assert prediction["model_version"] == "resnet50"
        ids |= {result["id"] for result in prediction["result"]}
        annotation = {"id": number, "was_cancelled": False, "ground_truth": False, "result": prediction["result"]}
        exported.append({"id": number, "annotations": [annotation], **task})
    assert len(ids) == sum(bool(ranked) for ranked in list_ranked(awkward))
    (photographs / "export.json").write_text(json.dumps(exported), encoding="utf-8")
    table = read_dataset(photographs, format="label_studio", split="train")
    rows = dict(zip(table.paths, table.targets, strict=True))
    for path, ranked in zip(awkward.paths, list_ranked(awkward), strict=True):
        assert {table.classes[c] for c in np.flatnonzero(rows[path])} == {name for name, _ in ranked}


def test_the_interface_offers_every_class(make_predictions: Callable[..., Predictions], tmp_path: Path) -> None:
    predictions = make_predictions(PLAIN, np.full((2, 3), 0.7))
    PREDICTION_FILES["label_studio"].write(tmp_path / "project", predictions)
    view = ET.fromstring((tmp_path / "project" / label_studio.INTERFACE_FILE).read_text(encoding="utf-8"))
    assert [choice.get("value") for choice in view.iter("Choice")] == [*PLAIN]
    tasks = (tmp_path / "project" / label_studio.TASKS_FILE).read_text(encoding="utf-8")
    assert tasks.count("\n") == len(predictions) + 1, "a line each"
    assert (tmp_path / "project" / "classes.txt").read_text(encoding="utf-8").split("\n")[:-1] == [*PLAIN]


# ---- FiftyOne ----


def test_fiftyone_labels_are_what_its_importer_takes(awkward: Predictions, tmp_path: Path) -> None:
    """FiftyOneImageClassificationDataset: a list for each image, by its whole path, also an empty one."""
    PREDICTION_FILES["fiftyone"].write(tmp_path / "p.json", awkward)
    data = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert list(data) == ["classes", "labels"]
    assert data["classes"] == [*AWKWARD]
    assert list(data["labels"]) == awkward.paths
    for labels, ranked in zip(data["labels"].values(), list_ranked(awkward), strict=True):
        assert [label["label"] for label in labels] == [name for name, _ in ranked]
        assert [label["confidence"] for label in labels] == pytest.approx([score for _, score in ranked], rel=1e-5)


def test_fiftyone_labels_are_a_data_set(make_predictions: Callable[..., Predictions], tmp_path: Path) -> None:
    predictions = make_predictions(PLAIN, draw_probabilities(3, np.random.default_rng(2)))
    PREDICTION_FILES["fiftyone"].write(tmp_path / "my photos" / "labels.json", predictions)
    assert recognise_format(tmp_path / "my photos") == "fiftyone"
    table = read_dataset(tmp_path / "my photos", split="train")
    assert table.classes == PLAIN
    rows = dict(zip(table.paths, table.targets.tolist(), strict=True))
    for path, row in zip(predictions.paths, predictions.probabilities, strict=True):
        assert rows[path] == (row >= 0.5).astype(int).tolist()


# ---- names ----


def test_a_short_name_is_of_the_same_predictions_alone() -> None:
    names = [prediction_files.shorten_name(long, "resnet50", "test") for long in ("a_th0.4", "a_th0.5", "a_th0.4")]
    assert names[0] == names[2] != names[1]
    assert all(name.startswith("predictions_resnet50_test_") and len(name) == 32 for name in names)
