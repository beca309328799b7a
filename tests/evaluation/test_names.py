"""Names of classes and files hold anything: each way to print, draw or write them shows them, and does nothing else.

pytest tests/evaluation/test_names.py
"""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metrics
import threshold_tuning
import utils
from dataset import drawing
from dataset.formats import FORMATS
from dataset.frames import pd
from dataset.probability_files import read_image_values
from dataset.stratified_split import describe_split
from dataset.table import Table
from evaluation import export_parity, pages, plots, tables
from evaluation.prediction_files import write_pictures, write_probabilities
from evaluation.predictions import Predictions
from evaluation.saved_scores import SavedScores
from models import checkpoints
from tensorboard_logging import TensorBoardLogger, draw_pictures
from thresholds import Policy
from tools import check, check_report, split
from tools.convert import require_own_names
from utils import InputError

TEXTS = (  # names that a text file can hold, on a line
    "\x1b[2J red", "\x9b31m green", "\x1b]8;;http://x\x1b\\link", "over\x0bwritten", "back\bspace", "tab\there",
    "\u202egnp.exe", "[/red] dog", "cat [indoor]", "[bold]", ":smile:", "$money$ {b}", "un$balanced", r"$\frac$",
    "a_b^c",
    "<script>alert(1)</script>", "a|b", r"a\|b", "=1+1", "@SUM(A1)", "-2+3", "+x", "＝1", "../../x", "{{ 7*7 }}",
    "%s & \\ # ~", "*[x](http://y)*", "x" * 3000, "naïve café", "犬", "👩‍👩‍👧", "שלום",
)  # fmt: skip
NAMES = (*TEXTS, "two\nlines", "over\rwritten", "nul\0", "caf\udce9", "\t=1", "\r=1", "\n=1")  # that JSON or Python can
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # by a terminal
RNG = np.random.default_rng(0)
TARGETS = (RNG.random((60, len(NAMES))) < 0.5).astype(np.int8)
PROBABILITIES = RNG.random(TARGETS.shape).astype(np.float32)
COLUMNS = metrics.measure_classes(PROBABILITIES, TARGETS, 0.5)
CONFUSION = metrics.confusion(PROBABILITIES, TARGETS, 0.5)


def require_all_shown(text: str, names: Sequence[str] = NAMES) -> None:
    """Every name is in `text`, which a terminal only shows."""
    assert not OBEYED.search(text)
    for name in names:
        assert utils.make_visible(name)[:40] in text, name


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "5000")


# ---- tables ----


def test_the_tables_of_the_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table([f"{row}.jpg" for row in range(60)], TARGETS, NAMES)
    utils.make_console().print(describe_split({"train": table, "val": table}))
    require_all_shown(capsys.readouterr().out)
    scores = SavedScores(PROBABILITIES, TARGETS, table.paths, NAMES)
    updates = {"thresholds": np.full(len(NAMES), 0.5)}
    threshold_tuning._print_grid(threshold_tuning.make_class_grid(scores, Policy(), updates))
    require_all_shown(capsys.readouterr().out)
    reports = [{"file": name, "parity": "not made", "problems": []} for name in NAMES]
    export_parity.print_table(reports)
    require_all_shown(capsys.readouterr().out)


@pytest.mark.parametrize("mode", ["", *tables.PRINTERS])
def test_the_table_of_runs(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Sidecars may come from elsewhere: names of their columns, too."""
    frame = pd.DataFrame({"run": [*NAMES], "best_f1": 0.5, **dict.fromkeys(NAMES, "value")})
    tables.PRINTERS.get(mode, tables.print_text)(frame)
    out = capsys.readouterr().out
    assert not OBEYED.search(out)
    if mode == "--csv":
        rows = list(csv.reader(io.StringIO(out)))
        assert [row[0] for row in rows[1:]] == rows[0][2:] == [tables.guard_cell(name) for name in NAMES]
    elif mode == "--markdown":
        lines = out.splitlines()
        assert len(lines) == 2 + len(NAMES)
        for line in lines:
            assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == len(NAMES) + 3, "no name ends a cell"
        assert r"\<script>" in out
        assert r"\*\[x](http://y)\*" in out
        assert r" a\|b " in out
        assert r" a\\\|b " in out
    elif mode == "--latex":
        rows = [line for line in out.splitlines() if line.endswith(r"\\")]
        assert len(rows) == 1 + len(NAMES)
        assert r"\%s \& \textbackslash \space \# \textasciitilde" in out
        assert r"\$money\$ \{b\}" in out
        assert not re.search(r"^[\[*]", out, re.MULTILINE), "after the end of a line they are its options"
    else:
        for name in NAMES[:8]:
            assert utils.make_visible(name).replace("\\n", " ")[: tables.MAX_CELL - 1] in out


def test_markdown_within_a_word() -> None:
    assert tables.escape_markdown("best_f1 resnet18_in1k") == "best_f1 resnet18_in1k"
    assert tables.escape_markdown("__init__ _x_") == r"\_\_init\_\_ \_x\_"


# ---- spreadsheets ----


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1", "'=1+1"), ("+x", "'+x"), ("-x", "'-x"), ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", r"'\t=1"), ("\r=1", r"'\r=1"),
        ("＝1", "'＝1"), ("-1", "-1"), ("+1.5e3", "+1.5e3"), ("cat", "cat"), ("a=b", "a=b"), ("", ""),
        ("'quoted'", "'quoted'"), ("\x1b[2J", r"\x1b[2J"),
    ],
)  # fmt: skip
def test_a_cell_for_people_is_no_formula(name: str, cell: str) -> None:
    assert tables.guard_cell(name) == cell


def test_the_table_of_classes_is_for_people(tmp_path: Path) -> None:
    plots.write_classes(tmp_path / "c.csv", NAMES, COLUMNS, CONFUSION)
    with open(tmp_path / "c.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [tables.guard_cell(name) for name in NAMES]
    assert not any(re.match(r"[=+\-@\t\r\n]", cell) for row in rows for cell in row.values())
    assert [float(row["threshold"]) for row in rows] == [0.5] * len(NAMES)


def test_what_this_program_reads_again_keeps_names_exactly(tmp_path: Path) -> None:
    paths = [f"{tmp_path}/{name}.jpg" for name in ("=1", "-2+3", "@x", "'y", "a,b", 'q"q')]
    names = tuple(name for name in TEXTS if name == name.strip())
    predictions = Predictions(
        paths, paths, PROBABILITIES[: len(paths), : len(names)], names, lambda rows: [[]] * len(rows)
    )
    write_probabilities(tmp_path / "p.csv", predictions)
    read = read_image_values(tmp_path / "p.csv")
    assert (read.names, read.paths) == (names, paths)
    for path in paths:
        Path(path).touch()
    targets = TARGETS[: len(paths), : len(names)]
    FORMATS["csv"].write(
        Table(paths, targets, names), tmp_path, "train", [f"../../{Path(path).name}" for path in paths]
    )
    table = FORMATS["csv"].read(tmp_path, "train")
    assert table.classes == names
    assert sorted(table.paths) == sorted(paths)
    assert np.array_equal(table.targets, targets[np.argsort(paths)])


# ---- pictures and pages ----


def test_plots_draw_every_name_as_text() -> None:
    """Dollar signs are no formulas: an unbalanced one would end the drawing."""
    curves = list(metrics.precision_recall_curve(PROBABILITIES, TARGETS))
    table = Table([f"{row}.jpg" for row in range(60)], TARGETS, NAMES)
    figures = [
        plots.draw_confusion(NAMES, CONFUSION),
        plots.draw_precision_recall(NAMES, curves, COLUMNS),
        check_report.draw_histogram({"train": table}),
    ]
    for figure in figures:
        texts = [text.get_text() for axes in figure.axes for text in [*axes.texts, *axes.get_xticklabels()]]
        assert any("$money$ {b}" in text for text in texts)
        assert not any(OBEYED.search(text) for text in texts)
        draw(figure)


def draw(figure: Figure) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # also that a font lacks a letter
        FigureCanvasAgg(figure).draw()


def test_labels_under_pictures() -> None:
    pixels = np.zeros((50, 50, 3), dtype=np.uint8)
    for name in NAMES:
        drawing.draw_labels(pixels, [f"{name} 0.98"])
    assert drawing.draw_labels(pixels, ["x" * 2_000_000]).height == drawing.draw_labels(pixels, ["x"]).height
    assert drawing.draw_labels(pixels, ["\ufdfd" * 6]).width == drawing.MIN_PICTURE_WIDTH
    images = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    assert draw_pictures(images, TARGETS[:2], PROBABILITIES[:2], 0.5, NAMES).ndim == 3


def test_tags_of_tensorboard_stay_apart(tmp_path: Path) -> None:
    with TensorBoardLogger(tmp_path) as logger:
        logger.add_pr_curves(PROBABILITIES, TARGETS, NAMES, 1)
        logger.add_hparams({"DEVICE": "caf\udce9\x1b"}, {"f1": 0.5})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("pr_curve/class/")]
    assert {tag.removeprefix("pr_curve/class/") for tag in tags} == {utils.make_visible(name) for name in NAMES}


def test_pages_escape_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.html").write_text(
        '{% for name in names %}<p title="{{ name }}">{{ name|cut(30) }}</p>\n{% endfor %}'
    )
    monkeypatch.setattr(pages, "TEMPLATES", tmp_path)
    page = pages.render("one.html", names=NAMES)
    assert not OBEYED.search(page)
    assert "<script" not in page
    assert "{{ 7*7 }}" in page
    assert page.count("<p title=") == len(NAMES)


# ---- a data set of such names ----


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A csv data set whose classes and files have such names."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    names = [name for name in TEXTS if len(name) < 100]
    files = [f"images/{name.replace('/', '_')}.jpg" for name in names]
    rng = np.random.default_rng(0)
    for file in files:
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(root / file)
    rows = [[file, *(int(row % 7 == column % 7) for column in range(len(names)))] for row, file in enumerate(files)]
    with open(root / "train.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["image_path", *names], *rows])
    return root


def test_check_and_split_of_such_a_data_set(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # also that a font lacks a letter
        assert check.check_dataset(dataset, output=tmp_path / "report")
    page = (tmp_path / "report" / "check_dataset" / "index.html").read_text(encoding="utf-8")
    assert not OBEYED.search(page)
    assert "<script>alert" not in page
    json.loads((tmp_path / "report" / "check_dataset_result.json").read_text(encoding="utf-8"))
    split.split_dataset(dataset, "csv", {"train": 60, "val": 40, "test": 0}, seed=0)
    names = FORMATS["csv"].read(dataset, "train").classes
    require_all_shown(capsys.readouterr().out, names)


# ---- names that become paths ----


@pytest.mark.parametrize(
    ("model_name", "file_name"),
    [
        ("resnet18", "resnet18"), ("timm/vit_base_patch16_clip_224.openai", "timm-vit_base_patch16_clip_224.openai"),
        ("timm/../../x", "timm-..-..-x"), ("..", "-"), (".hidden", "-hidden"), ("a\0b\n\\c:d", "a-b--c-d"),
    ],
)  # fmt: skip
def test_a_models_name_stays_in_its_folder(model_name: str, file_name: str) -> None:
    assert checkpoints.name_model(model_name) == file_name


def test_converted_images_stay_in_their_folder_and_apart() -> None:
    require_own_names(["a/1.jpg", "b/1.jpg", "a..b/...jpg"], ["x", "y", "z"])
    for name in ("../1.jpg", "/etc/x.jpg", "a/../../x.jpg", "a\0.jpg"):
        with pytest.raises(InputError, match="leads out of the data set's folder"):
            require_own_names([name], ["x"])
    with pytest.raises(InputError, match=r"x and y would both become a\.jpg"):
        require_own_names(["a.jpg", "a.jpg"], ["x", "y"])


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "x" * 300, "nul\0"])
def test_a_class_that_cannot_be_a_folder(name: str) -> None:
    table = Table(["1.jpg"], np.ones((1, 1), np.int8), (name,))
    with pytest.raises(InputError, match="cannot be that of a folder"):
        FORMATS["image_folder"].name_images(table, ["1.jpg"])


def test_no_picture_replaces_another(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    paths = [str(tmp_path / "1.png")] * 2
    predictions = Predictions(paths, ["same", "same"], PROBABILITIES[:2, :1], ["cat"], lambda rows: [[0]] * len(rows))
    with pytest.raises(InputError, match="File exists"):
        write_pictures(tmp_path / "pictures", predictions)
    assert not (tmp_path / "pictures").exists()
