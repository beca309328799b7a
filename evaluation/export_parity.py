"""Measures whether an exported file predicts what its checkpoint predicts, for the same image files.

    reference = make_reference(checkpoint, paths, targets)    # the checkpoint in PyTorch
    report = compare(file, reference)                         # the file in its own engine
    report["parity"]                                          # "passed", or "failed" with report["problems"]

Everything that decides predictions is compared: probabilities, class names, thresholds, limits on the number of labels.
"""

from __future__ import annotations

import statistics
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
from export import engines, model_files
from models import checkpoints, hub_folders
from predictor import Predictor
from utils import make_console

BATCH_SIZE = 16  # for the file: more than one image, so that batches are tested, too
TIMED_RUNS = 20
WARM_UP_RUNS = 3  # not timed: the first runs choose kernels and allocate memory
FEWEST_IMAGES = (
    100  # on which a change of the mAP counts: among fewer, two near ones that change places move it too far
)
ROUNDING = 1e-4  # the most by which a probability in float32 differs between two engines


class Budget(NamedTuple):
    """How much a file may differ from its checkpoint."""

    max_difference: float  # the largest absolute difference of a probability
    mean_difference: float  # the mean absolute difference of probabilities
    flips: float  # share of the entries (image, class) whose label changes, without ties at the threshold
    mAP_loss: float  # mAP of the checkpoint minus mAP of the file


# keys: the precision of a file, with "resized" before it for one that resizes by itself. The budgets of fp16 and int8
# were set by measuring three trained EfficientNet-Lite0. float32 has no budget for the mAP: two images whose
# probabilities agree to seven digits may change places in the ranking, although no label changes. A file that resizes
# gets the same pixels as torch on processors with AVX2, but for a few in a large photograph, whose sums float32 rounds:
# on 100 photographs its probabilities differed by 2e-6, and with weights of 16 bits by 0.003. Without AVX2 torch rounds
# pixels in another way, so that the checkpoint itself gives others: by up to 0.023, and 1 of 1800 labels.
BUDGETS: dict[str, Budget] = {
    "fp32": Budget(ROUNDING, ROUNDING, 0.0, 1.0),
    "resized fp32": Budget(5 * ROUNDING, ROUNDING, 0.0, 1.0),
    "resized fp32 without AVX2": Budget(0.05, 0.003, 0.002, 1.0),
    "fp16": Budget(0.01, 0.001, 0.001, 0.002),
    "resized fp16 without AVX2": Budget(0.05, 0.003, 0.002, 0.005),
    "int8": Budget(0.6, 0.03, 0.02, 0.02),
}


class Reference(NamedTuple):
    """What the checkpoint predicts for the images."""

    model: Predictor
    paths: Sequence[str]  # N image files
    probabilities: NDArray[np.float32]  # (N, C)
    targets: NDArray[np.int8] | None  # (N, C), with the classes of the model; None: no labels
    default_threshold: float  # of a checkpoint, and of a file, that has none of its own


def make_reference(
    checkpoint: Path,
    paths: Sequence[str],
    targets: NDArray[np.int8] | None = None,
    calibration: str = "none",
    default_threshold: float = 0.5,
) -> Reference:
    """Run the checkpoint in PyTorch on the CPU, one image at a time and without folding BatchNorm.

    `default_threshold` is used if the checkpoint has no threshold, as in `predictor.load`.
    """
    device = torch.device("cpu")
    metadata = checkpoints.load(checkpoint)
    network = models_factory.restore_model(metadata, checkpoint).eval()
    model = Predictor(
        run=engines.run_torch(network, device),
        metadata=metadata,
        path=checkpoint,
        device=device,
        default_threshold=default_threshold,
        calibration=calibration,
    )
    return Reference(
        model=model,
        paths=paths,
        probabilities=predict_files(model, paths, batch_size=1),
        targets=targets,
        default_threshold=default_threshold,
    )


def predict_files(model: Predictor, paths: Sequence[str], batch_size: int) -> NDArray[np.float32]:
    """Probabilities (N, C) of the image files `paths`."""
    return np.stack([record.probabilities for record in model.predict(paths, batch_size)])


def compare(path: Path, reference: Reference, calibration: str = "none", opened: Path | None = None) -> dict[str, Any]:
    """Compare the export `path`, a file or folder, with the checkpoint. Of a folder, `opened` is the model in it.

    Returns a report of plain types: the differences, the time for an image, and whether the file passed. Raises
    InputError if the file cannot be opened.
    """
    model = predictor.load(
        opened or path,
        "cpu",
        default_threshold=reference.default_threshold,
        calibration=calibration,
        allow_failed=True,
    )
    expected, thresholds = reference.probabilities, reference.model.thresholds
    problems = []
    if model.classes != reference.model.classes:
        problems.append("its classes are others, or in another order")
        return {"file": path.name, "parity": "failed", "problems": problems}
    probabilities = predict_files(model, reference.paths, BATCH_SIZE)
    difference = np.abs(probabilities - expected)
    limits = (reference.model.min_labels, reference.model.max_labels)
    labels = metrics.predict(probabilities, model.thresholds, *limits)
    is_flip = labels != metrics.predict(expected, thresholds, *limits)
    budget = choose_budget(model)
    is_tie = np.abs(expected - thresholds) <= (budget.max_difference if model.resizes else ROUNDING)
    measured: dict[str, float] = {
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "flips": int(is_flip.sum()),
        "flips_within_rounding": int((is_flip & is_tie).sum()),
    }
    if reference.targets is not None:
        measured["mAP_checkpoint"] = _mean_ap(expected, reference.targets)
        measured["mAP_file"] = _mean_ap(probabilities, reference.targets)
        measured["mAP_change"] = measured["mAP_file"] - measured["mAP_checkpoint"]
    if len(expected) < FEWEST_IMAGES:
        budget = budget._replace(mAP_loss=1.0)
    problems += find_problems(measured, budget, is_flip.size)
    if not np.allclose(model.thresholds, thresholds, rtol=0, atol=1e-6):
        problems.append(f"its thresholds differ by up to {np.abs(model.thresholds - thresholds).max():.2g}")
    if (model.min_labels, model.max_labels) != (reference.model.min_labels, reference.model.max_labels):
        problems.append("its limits of labels an image are others")
    if model.metadata.get("gives_labels") and (
        num_others := count_other_labels(opened or path, reference, model, probabilities)
    ):
        problems.append(f"{num_others} of the labels that it gives are not those of its probabilities")
    if model.metadata.get("layout") == hub_folders.TIMM:
        measured["max_difference_timm"] = measure_timm(path, reference)
        if not measured["max_difference_timm"] <= ROUNDING:
            problems.append(
                f"timm alone gives probabilities that differ by up to {measured['max_difference_timm']:.2g}"
            )
    return {
        "file": path.name,
        "sha256": model_files.hash_files(path),
        "parity": "failed" if problems else "passed",
        "problems": problems,
        "checkpoint": reference.model.path.name,  # the report is given away with the file
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


def measure_timm(folder: Path, reference: Reference) -> float:
    """The largest difference of a probability when timm alone opens `folder`, over the first images."""
    import timm

    network: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    images = torch.stack([reference.model.prepare(path) for path in reference.paths[:BATCH_SIZE]])
    with torch.no_grad():
        found = reference.model.activate(network((images / 255 - mean) / std)).numpy()
    return float(np.abs(found - reference.probabilities[:BATCH_SIZE]).max())


def choose_budget(model: Predictor) -> Budget:
    """The budget of the exported file that `model` was opened from."""
    precision = model.metadata["precision"]
    if not model.resizes:
        return BUDGETS[precision]
    has_avx2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return BUDGETS.get(f"resized {precision}{'' if has_avx2 else ' without AVX2'}", BUDGETS[precision])


def count_other_labels(path: Path, reference: Reference, model: Predictor, probabilities: NDArray[np.float32]) -> int:
    """How many entries of the output `labels` of the file `path` are not what its `probabilities` (N, C) decide.

    Ties at a threshold do not count, since probabilities of a batch and of a single image may differ by rounding.
    """
    decide = engines.ENGINES[engines.choose_engine("auto", engines.recognise(path), path)](path, model.device).decide
    if decide is None:
        return probabilities.size
    labels = np.concatenate([decide(model.prepare(image)[None]).numpy() for image in reference.paths])
    expected = metrics.predict(probabilities, model.thresholds, model.min_labels, model.max_labels)
    return int(((labels != expected) & (np.abs(probabilities - model.thresholds) > ROUNDING)).sum())


def find_problems(measured: dict[str, float], budget: Budget, num_entries: int) -> list[str]:
    """One line for each value of `measured` that exceeds the budget. NaN exceeds it, too."""
    share = (measured["flips"] - measured["flips_within_rounding"]) / num_entries
    values = [
        ("largest difference of a probability", measured["max_difference"], budget.max_difference),
        ("mean difference of probabilities", measured["mean_difference"], budget.mean_difference),
        ("share of labels that flip, not by rounding,", share, budget.flips),
        ("loss of mAP", -measured.get("mAP_change", 0.0), budget.mAP_loss),
    ]
    return [f"{name} {value:.2g}: more than {most:g}" for name, value, most in values if not value <= most]


def _mean_ap(probabilities: NDArray[np.float32], targets: NDArray[np.int8]) -> float:
    """The mean average precision over classes that have one; 0 if none has."""
    ap = metrics.average_precision(probabilities, targets)
    return float(np.nanmean(ap)) if np.isfinite(ap).any() else 0.0


def measure_size(path: Path) -> int:
    """The size of the export in bytes: of a file with the weights beside it, or of all that is in a folder."""
    return sum(file.stat().st_size for file in model_files.list_files(path))


def measure_milliseconds(model: Predictor, path: str) -> float:
    """The median time from the pixels of one image, as the model takes it, to its probabilities, in milliseconds."""
    images = model.prepare(path)[None]
    seconds = []
    for _ in range(WARM_UP_RUNS + TIMED_RUNS):
        start = time.perf_counter()
        model.compute(images)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[WARM_UP_RUNS:])


def print_table(reports: Sequence[dict[str, Any]]) -> None:
    """Print the reports as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("file", "MB", "ms/image", "max |Δp|", "mean |Δp|", "flips", "ΔmAP", "parity", box=SIMPLE_HEAD)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for report in reports:
        table.add_row(report["file"], *_format_numbers(report), report["parity"])
    make_console().print(table)


def _format_numbers(report: dict[str, Any]) -> list[str]:
    """The six numbers of a report for its row in the table; empty texts for a file that was not made or not opened."""
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
