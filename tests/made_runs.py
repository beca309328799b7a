"""Runs as training.py and testing.py leave them, without a model: a sidecar, and a test with drawn scores.

write_run(root, "a", make_sidecar("resnet18", 0.7, 0.8, 3, HEAD="linear"))
write_test(root, "resnet18/a", probabilities, targets)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import config
import metrics
import overrides
from evaluation import test_results
from evaluation.saved_scores import SavedScores
from evaluation.test_results import Ruler
from models import checkpoints

CONSTANTS = overrides.resolved(config)
CLASSES = ("cat", "dog", "a_b & c", "bird")


def make_sidecar(model_name: str, best_f1: float, mean_ap: float, epoch: int, **constants: Any) -> dict[str, Any]:
    return {
        "format": checkpoints.FORMAT,
        "version": checkpoints.VERSION,
        "model_name": model_name,
        "head": "linear_bn",
        "classes": ["cat", "dog"],
        "image_size": 224,
        "resize_rule": "squash",
        "best_threshold": 0.41,
        "best_f1": best_f1,
        "epoch": epoch,
        "metrics": {"mAP": mean_ap, "f1_weighted": best_f1, "CF1": mean_ap - 0.05, "OF1": mean_ap - 0.03},
        "config": {**CONSTANTS, "MODEL_NAME": model_name, **constants},
        "dataset": {"fingerprint": "0123abcd", "num_train": 3600, "num_val": 400},
        "environment": {"git_commit": "fedc", "torch": "2.14.1", "device": "cpu"},
        "seconds": 812.25,
        "saved": "2026-11-22T11:02:03",
    }


def write_run(root: Path, name: str, sidecar: dict[str, Any] | str | None) -> None:
    """An empty checkpoint with its sidecar: as given, as the given text, or none."""
    folder = root / (sidecar["model_name"] if isinstance(sidecar, dict) else "other")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.pt").write_bytes(b"")
    if sidecar is not None:
        (folder / f"{name}.json").write_text(sidecar if isinstance(sidecar, str) else json.dumps(sidecar))


def make_ruler(images: str = "i", num_images: int = 300, targets: str = "t", classes: str = "c") -> Ruler:
    return Ruler(f"{images}{targets}{classes}", images, images, targets, classes, num_images, len(CLASSES), 1)


def write_test(
    root: Path,
    run: str,
    probabilities: NDArray[np.float32],
    targets: NDArray[np.int8],
    thresholds: float = 0.5,
    ruler: Ruler | None = None,
    views: str = "",
    **limits: int,
) -> dict[str, float]:
    """The test of the `run` "<model>/<name>", as testing.py saves it; returns its metrics."""
    measured = metrics.measure(probabilities, targets, thresholds, **limits)
    ruler = ruler or make_ruler(num_images=len(targets))
    if ruler.targets == "t":
        ruler = ruler._replace(targets=test_results.digest_targets(targets))
    folder = root / run
    folder.mkdir(exist_ok=True)
    result = {
        "metrics": measured,
        "intervals": {
            name: [max(value - 0.02, 0), min(value + 0.03, 1)] for name, value in measured.items() if "num_" not in name
        },
        "classes": {},
        "min_labels": 0,
        "max_labels": 0,
        "calibration": "none",
        "engine": "torch",
        "num_images": len(targets),
        "num_images_left_out": 0,
        **limits,
    }
    paths = [f"/images/{number:04}.jpg" for number in range(len(targets))]
    test_results.save_test(
        folder,
        result,
        SavedScores(probabilities, targets, paths, CLASSES),
        ruler,
        json.loads(folder.with_name(f"{folder.name}.json").read_text()),
        [thresholds] * len(CLASSES),
        views,
    )
    return measured


def draw_targets(rng: np.random.Generator, num_images: int = 300) -> NDArray[np.int8]:
    """(N, C) targets; the last class is rare."""
    return (rng.random((num_images, len(CLASSES))) < [0.4, 0.3, 0.5, 0.1]).astype(np.int8)


def draw_probabilities(rng: np.random.Generator, targets: NDArray[np.int8], skill: float) -> NDArray[np.float32]:
    """(N, C) probabilities, the better the higher `skill` is; 0 is chance."""
    logits = rng.normal(0, 1, targets.shape) + skill * (2 * targets - 1)
    return (1 / (1 + np.exp(-logits))).astype(np.float32)
