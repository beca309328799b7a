"""Whether an exported file says what its checkpoint says, measured from image files on.

    reference = make_reference(checkpoint, paths, targets)    # the checkpoint, plain, in PyTorch
    report = compare(file, reference)                         # the file, opened in its own runtime
    report["parity"]                                          # "passed", or "failed" with report["problems"]

What is compared is all that decides predictions: probabilities, class names, thresholds, limits of labels.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import metrics
import models_factory
import predictor
from export import engines
from models import checkpoints
from predictor import Predictor

BATCH_SIZE = 16  # of the file: more than one image, so that a batch is tried, too
TIMED_RUNS = 20
ROUNDING = 1e-4  # of a probability: float32 through other kernels differs by less


class Budget(NamedTuple):
    """How far probabilities may move."""

    max_difference: float  # largest |difference| of a probability
    mean_difference: float
    flips: float  # share of entries (image, class) whose label changes, ties with the threshold left out
    mAP_loss: float  # of the mAP


# by the precision of a file; those of fp16 and int8 are set from what three trained EfficientNet-Lite0 lost. float32
# has none for the mAP: images whose probabilities agree to seven digits may change places, and no label moves
BUDGETS: dict[str, Budget] = {
    "fp32": Budget(ROUNDING, ROUNDING, 0.0, 1.0),
    "fp16": Budget(0.01, 0.001, 0.001, 0.002),
    "int8": Budget(0.6, 0.03, 0.02, 0.02),
}


class Reference(NamedTuple):
    """What the checkpoint says of the images."""

    model: Predictor
    paths: Sequence[str]
    probabilities: NDArray[np.float32]  # (N, C)
    targets: NDArray[np.int8] | None  # (N, C), classes as the model's; None: no labels


def make_reference(
    checkpoint: Path, paths: Sequence[str], targets: NDArray[np.int8] | None = None, calibration: str = "none"
) -> Reference:
    """The checkpoint as it was trained (BatchNorm is not folded) in PyTorch on the CPU, image by image."""
    device = torch.device("cpu")
    metadata = checkpoints.load(checkpoint)
    network = models_factory.restore_model(metadata, checkpoint).eval()
    model = Predictor(engines.run_torch(network, device), metadata, checkpoint, device, calibration=calibration)
    return Reference(model, paths, run(model, paths, 1), targets)


def run(model: Predictor, paths: Sequence[str], batch_size: int) -> NDArray[np.float32]:
    """Probabilities (N, C) of image files."""
    return np.stack([record.probabilities for record in model.predict(paths, batch_size)])


def compare(path: Path, reference: Reference, calibration: str = "none") -> dict[str, Any]:
    """The report on the exported file: what differs, by how much, how quick it is, and whether it passed.

    Plain types only. Raises InputError for a file that cannot be opened.
    """
    model = predictor.load(path, "cpu", calibration=calibration, allow_failed=True)
    expected, thresholds = reference.probabilities, reference.model.thresholds
    problems = []
    if model.classes != reference.model.classes:
        problems.append("its classes are others, or in another order")
        return {"file": path.name, "parity": "failed", "problems": problems}
    found = run(model, reference.paths, BATCH_SIZE)
    difference = np.abs(found - expected)
    limits = (reference.model.min_labels, reference.model.max_labels)
    is_flip = metrics.predict(found, model.thresholds, *limits) != metrics.predict(expected, thresholds, *limits)
    is_tie = np.abs(expected - thresholds) <= ROUNDING
    measured: dict[str, float] = {
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "flips": int(is_flip.sum()),
        "flips_within_rounding": int((is_flip & is_tie).sum()),
    }
    if reference.targets is not None:
        scores = {"mAP_checkpoint": expected, "mAP_file": found}
        measured |= {name: _mean_ap(each, reference.targets) for name, each in scores.items()}
        measured["mAP_change"] = measured["mAP_file"] - measured["mAP_checkpoint"]
    budget = BUDGETS[model.metadata["precision"]]
    problems += find_problems(measured, budget, is_flip.size)
    if not np.allclose(model.thresholds, thresholds, rtol=0, atol=1e-6):
        problems.append(f"its thresholds differ by up to {np.abs(model.thresholds - thresholds).max():.2g}")
    if (model.min_labels, model.max_labels) != (reference.model.min_labels, reference.model.max_labels):
        problems.append("its limits of labels an image are others")
    return {
        "file": path.name,
        "parity": "failed" if problems else "passed",
        "problems": problems,
        "checkpoint": str(reference.model.path),
        "checkpoint_sha256": model.metadata["checkpoint_sha256"],
        "precision": model.metadata["precision"],
        "num_images": len(expected),
        "num_entries": int(is_flip.size),
        **measured,
        "budget": budget._asdict(),
        "megabytes": measure_size(path) / 1e6,
        "milliseconds_per_image": measure_milliseconds(model, reference.paths[0]),
        "milliseconds_per_image_checkpoint": measure_milliseconds(reference.model, reference.paths[0]),
    }


def find_problems(measured: dict[str, float], budget: Budget, num_entries: int) -> list[str]:
    """What of `measured` lies beyond the budget, a line each; what is not a number does."""
    share = (measured["flips"] - measured["flips_within_rounding"]) / num_entries
    values = [
        ("largest difference of a probability", measured["max_difference"], budget.max_difference),
        ("mean difference of probabilities", measured["mean_difference"], budget.mean_difference),
        ("share of labels that flip, not by rounding,", share, budget.flips),
        ("loss of mAP", -measured.get("mAP_change", 0.0), budget.mAP_loss),
    ]
    return [f"{name} {value:.2g}: more than {most:g}" for name, value, most in values if not value <= most]


def _mean_ap(probabilities: NDArray[np.float32], targets: NDArray[np.int8]) -> float:
    ap = metrics.average_precision(probabilities, targets)
    return float(np.nanmean(ap)) if np.isfinite(ap).any() else 0.0


def measure_size(path: Path) -> int:
    """Bytes of the file, with its weights where these lie beside it."""
    beside = path.with_suffix(".bin")
    return path.stat().st_size + (beside.stat().st_size if path.suffix == ".xml" else 0)


def measure_milliseconds(model: Predictor, path: str) -> float:
    """The median time of one prepared image from pixels to probabilities."""
    images = model.prepare(path)[None]
    seconds = []
    for _ in range(TIMED_RUNS + 3):  # the first few choose kernels and get memory
        start = time.perf_counter()
        model.compute(images)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[3:])


def print_table(reports: Sequence[dict[str, Any]]) -> None:
    """The reports for a person to read."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table("file", "MB", "ms/image", "max |Δp|", "mean |Δp|", "flips", "ΔmAP", "parity", box=SIMPLE_HEAD)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for report in reports:
        table.add_row(report["file"], *_format_numbers(report), report["parity"])
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _format_numbers(report: dict[str, Any]) -> list[str]:
    if "max_difference" not in report:
        return [""] * 6
    return [
        f"{report['megabytes']:.1f}",
        f"{report['milliseconds_per_image']:.1f}",
        f"{report['max_difference']:.1e}",
        f"{report['mean_difference']:.1e}",
        f"{report['flips']} in {report['num_entries']}",
        f"{report['mAP_change']:+.4f}" if "mAP_change" in report else "no labels",
    ]
