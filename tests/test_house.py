"""The house: what the root shows, no circle between files, and the names that people script against."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

import losses
from heads import HEADS

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("constants", "dataset", "models", "trainer", "evaluation", "export", "server", "tools")


def find_modules() -> dict[str, Path]:
    """{name to import: file} of the product's modules."""
    files = [*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def find_imports(file: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of the product that `file` imports, inside functions too."""
    imported = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                imported.add(inner if inner in modules else node.module)
    return imported & modules.keys()


def test_no_two_files_import_each_other() -> None:
    """Not even by way of others, and not inside a function, where such a circle can be hidden."""
    modules = find_modules()
    assert len(modules) > 80
    graph = {name: find_imports(file, modules) for name, file in modules.items()}
    assert "dataset.batches" in graph["dataset.loading"]
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_csv_files_are_written_in_one_way() -> None:
    """By dataset.text_files.CsvFile: Python 3.11 puts no quotes around a carriage return where rows end by another."""
    found = set()
    for file in find_modules().values():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_writer = node.func.attr in ("writer", "DictWriter") and ast.unparse(node.func.value) == "csv"
                if is_writer and not ast.unparse(node.args[0]).startswith("CsvFile("):
                    found.add(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not found


# evaluation/tables.py escapes what its formats need; export/predict_onnx.py runs without this project
PRINTERS = {"utils.py", "evaluation/tables.py", "export/predict_onnx.py"}


def test_what_is_printed_goes_through_one_place() -> None:
    """Names of classes and files hold anything: utils.py shows what a terminal would obey, and reads no markup."""
    found = set()
    for file in find_modules().values():
        name = file.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in ("rich.console", "rich.progress", "rich"):
                found |= {(name, alias.name) for alias in node.names if alias.name not in ("Group", "box")}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.add((name, "print"))
            elif isinstance(node, ast.Attribute) and node.attr in ("from_markup", "set_title", "suptitle", "getLogger"):
                found.add((name, node.attr))
    found = {(name, what) for name, what in found if name not in PRINTERS}
    assert found == {
        ("trainer/interruption.py", "print"),  # of a signal's name, in its handler
        ("evaluation/plots.py", "set_title"),  # without parse_math
        ("evaluation/plots.py", "suptitle"),
        ("server/parsing.py", "getLogger"),  # to silence another library
        ("tools/check_report.py", "set_title"),  # of numbers alone
        ("trainer/training_curves.py", "set_title"),
    }


def test_pandas_comes_from_one_place() -> None:
    """It is set up there, so that names which are no UTF-8 are none the worse for another package."""
    found = set()
    for name, file in find_modules().items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) and any(alias.name == "pandas" for alias in node.names):
                found.add(name)
    assert found == {"dataset.frames"}


def test_the_root_is_a_shelf_and_every_folder_a_package() -> None:
    assert len(list(ROOT.glob("*.py"))) <= 24
    for folder in FOLDERS:
        assert ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("calibration.fit", ["probabilities", "targets"]),
        ("dataset_readers.read_dataset", ["root", "format", "split"]),
        ("heads.count_frequencies", ["targets"]),
        ("losses.count_pos_weight", ["targets", "cap"]),
        ("metrics.average_precision", ["probabilities", "targets"]),
        (
            "metrics.compare",
            ["probabilities_a", "probabilities_b", "targets", "thresholds_a", "thresholds_b", "samples", "seed"],
        ),
        ("metrics.measure", ["probabilities", "targets", "thresholds"]),
        ("model_performance_table.read_runs", ["root", "glob"]),
        ("models_factory.list_names", []),
        ("models_factory.make_model", ["name", "num_classes", "head", "weights", "image_size"]),
        ("predictor.load", ["path", "device"]),
        ("thresholds.tune_global", ["probabilities", "targets", "metric"]),
        ("thresholds.tune_per_class", ["probabilities", "targets"]),
    ],
)
def test_public_calls_keep_their_names_and_first_parameters(name: str, parameters: list[str]) -> None:
    module, function = name.split(".")
    signature = inspect.signature(getattr(importlib.import_module(module), function))
    assert [*signature.parameters][: len(parameters)] == parameters


def test_public_defaults() -> None:
    """As docs/architecture.md gives them."""

    def find_defaults(function: Any) -> dict[str, Any]:
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}

    assert find_defaults(losses.LOSSES["bce_with_logits"]) == {"pos_weight": None}
    assert find_defaults(losses.LOSSES["focal"]) == {"gamma": 2.0, "alpha": None}
    assert find_defaults(losses.LOSSES["asymmetric"]) == {
        "gamma_negative": 4.0,
        "gamma_positive": 0.0,
        "clip": 0.05,
        "focusing_gradient": False,
    }
    assert find_defaults(losses.LOSSES["asymmetric_angular"]) == {
        "scale": 23.0,
        "margin": 0.0,
        "balance": 0.7,
        "gamma_negative": 0.0,
        "gamma_positive": 0.0,
        "clip": 0.05,
    }
    assert find_defaults(losses.ENTRY_WEIGHTS["ghm"]) == {"bins": 30, "momentum": 0.75}
    assert find_defaults(losses.ENTRY_WEIGHTS["ohem"]) == {"keep": 0.3}
    assert set(losses.LOSSES) >= {"bce_with_logits", "focal", "asymmetric", "asymmetric_angular", "softmax"}
    assert set(losses.ENTRY_WEIGHTS) >= {"ghm", "ohem", "class_weights", "threshold"}
    assert set(HEADS) >= {"linear", "linear_bn", "per_label_mlp", "cosine", "ml_decoder", "gcn"}
