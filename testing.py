"""Runs a saved model over the test images: predictions as JSON and, where labels are there, how good they are.

    python testing.py [recipe.py ...] [--NAME value ...]

Writes {image file name without ending, after its sub-folder if any: [class indices]} into PREDICTIONS_FOLDER and, when
there are labels of the test images, evaluate_result.json. Classes, image size and threshold come from the checkpoint
MODEL_PATH.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import checkpoints
import config
import dataset_from_config
import dataset_readers
import metrics
import overrides
import predictor
import utils
from dataset_table import Table, map_classes
from predictor import Predictor, Record


def main(arguments: list[str]) -> None:
    overrides.apply(arguments, config)
    utils.keep_freed_memory()
    calibration = choose_calibration_images() if config.TEST_INT8 else []
    model = predictor.load(
        config.MODEL_PATH,
        config.DEVICE,
        config.TH_MULTI_LABEL,
        config.TEST_ENGINE,
        calibration,
        config.CACHE_FOLDER,
        config.TEST_FLIP,
        config.TEST_SCALES,
    )
    table = read_test_table(model)
    paths = table.paths if table else dataset_readers.list_images(config.TEST_IMAGES_DIR)
    print_configuration(model, paths, has_labels=table is not None)

    start = time.perf_counter()
    num_workers = utils.choose_num_workers(config.NUM_WORKERS, model.device)
    records = list(model.predict(paths, config.TEST_BATCH_SIZE, num_workers, title="predicting"))
    seconds = time.perf_counter() - start

    file = config.PREDICTIONS_FOLDER / name_predictions(model)
    predictions = dict(zip(name_images(paths), (record.labels for record in records), strict=True))
    utils.write_text(file, json.dumps(predictions, indent=1))
    print_summary(records, seconds, file)
    if table:
        result = evaluate(records, table, model)
        utils.write_text(config.PREDICTIONS_FOLDER / "evaluate_result.json", json.dumps(result, indent=1))
        print_metrics(result["metrics"], result["intervals"])


def choose_calibration_images() -> list[str]:
    """INT8_CALIBRATION_IMAGES training images, evenly spaced over their sorted names; all, where there are fewer."""
    utils.warn("int8 moves probabilities, while the threshold was tuned on float's: compare the metrics of both")
    labelled = dataset_from_config.has_split("train")
    paths = (
        dataset_from_config.read_split("train").paths
        if labelled
        else dataset_readers.list_images(config.TRAIN_IMAGES_DIR)
    )
    count = min(config.INT8_CALIBRATION_IMAGES, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def read_test_table(model: Predictor) -> Table | None:
    """The labelled test images, classes in the model's order by name; None where there are no labels.

    Raises InputError when the data set's classes are others than the model's.
    """
    if not dataset_from_config.has_split("test"):
        return None
    return map_classes(dataset_from_config.read_split("test"), model.classes)


def name_images(paths: Sequence[str]) -> list[str]:
    """Each path from the folder that holds them all on, without its ending, unless two differ in that alone."""
    base = os.path.commonpath([str(Path(path).parent) for path in paths])
    names = [Path(path).relative_to(base) for path in paths]
    stems = [name.with_suffix("").as_posix() for name in names]
    return stems if len(set(stems)) == len(stems) else [name.as_posix() for name in names]


def name_predictions(model: Predictor) -> str:
    """A file name that says which model made the predictions, and how."""
    metadata, constants = model.metadata, model.metadata.get("config", {})
    lr = constants.get("HEAD_BASE_LR" if constants.get("USE_DIFFERENTIAL_LR") else "LEARNING_RATE")
    parts = {
        "f1-": metadata.get("best_f1"),
        "epoch": metadata.get("epoch"),
        "bs": constants.get("TRAIN_BATCH_SIZE"),
        "lr": lr,
        "th": model.threshold,
        "testbs": config.TEST_BATCH_SIZE,
    }
    known = [f"{name}{value:.4g}" for name, value in parts.items() if value is not None]
    int8 = ["int8"] if config.TEST_INT8 else []
    return "_".join(["predictions", checkpoints.name_model(metadata["model_name"]), *known, *int8]) + ".json"


def name_engine() -> str:
    """What runs the model, and over which views of an image, for a person to read."""
    scales = ", ".join(f"{scale:g}" for scale in config.TEST_SCALES)
    parts = {
        config.TEST_ENGINE: True,
        "int8": config.TEST_INT8,
        "mirrored too": config.TEST_FLIP,
        f"scales {scales}": config.TEST_SCALES != (1.0,),
    }
    return ", ".join(name for name, is_on in parts.items() if is_on)


def evaluate(records: list[Record], table: Table, model: Predictor) -> dict[str, Any]:
    """Every metric of the predictions with its 95 % bootstrap interval over images, and each class's own numbers."""
    probabilities = np.stack([record.probabilities for record in records])
    measured = metrics.measure(probabilities, table.targets, model.thresholds)
    samples = config.BOOTSTRAP_SAMPLES
    intervals = metrics.bootstrap(probabilities, table.targets, model.thresholds, samples) if samples else {}
    ap = metrics.average_precision(probabilities, table.targets)
    positives = (table.targets == 1).sum(axis=0)
    classes = {
        name: {"positives": int(count), "AP": _null_if_nan(value)}
        for name, count, value in zip(table.classes, positives, ap, strict=True)
    }
    return {
        "model": str(config.MODEL_PATH),
        "engine": name_engine(),
        "num_images": len(table),
        "metrics": {name: _null_if_nan(value) for name, value in measured.items()},
        "intervals": {name: [_null_if_nan(end) for end in ends] for name, ends in intervals.items()},
        "classes": classes,
    }


def _null_if_nan(value: float) -> float | None:
    """JSON has no not-a-number."""
    return None if np.isnan(value) else float(value)


def print_configuration(model: Predictor, paths: Sequence[str], has_labels: bool) -> None:
    """What is about to happen."""
    metadata = model.metadata
    trained = (
        f"best validation F1 {metadata['best_f1']:.4f} in epoch {metadata['epoch']}" if "best_f1" in metadata else ""
    )
    labels = f", labels as {dataset_from_config.choose_format('test')}" if has_labels else ""
    rows = {
        "model": f"{config.MODEL_PATH}: {metadata['model_name']} + {metadata['head']}, {trained}",
        "images": f"{os.path.commonpath([str(Path(path).parent) for path in paths])}: {len(paths)}, "
        f"{metadata['image_size']} px{labels}",
        "classes": f"{len(model.classes)}, predicted from probability {model.threshold:.4f} on",
        "engine": name_engine(),
        "device": f"{model.device}, batches of {config.TEST_BATCH_SIZE}",
    }
    for name, text in rows.items():
        print(f"{name:>8}  {text}")
    print(flush=True)


def print_summary(records: list[Record], seconds: float, file: Path) -> None:
    """What came out, labels or not."""
    counts = np.array([len(record.labels) for record in records])
    print(f"{len(records) / seconds:.1f} images/s, from the first file to the last probability")
    print(f"{len(records)} images, {counts.mean():.2f} labels each, {(counts == 0).sum()} without any")
    print(f"saved: {file}")


def print_metrics(measured: dict[str, float | None], intervals: dict[str, list[float | None]]) -> None:
    """The metrics as a table: name, value and, where there are any, interval."""
    from rich.console import Console
    from rich.table import Table as Grid

    grid = Grid("metric", "value", *(["95 % interval"] if intervals else []), title="test images", title_justify="left")
    grid.columns[1].justify = "right"
    for name, value in measured.items():
        digits = 0 if name.startswith("num_") else 4
        cells = [[value], intervals[name]] if intervals else [[value]]
        texts = ["undefined" if None in cell else " to ".join(f"{end:.{digits}f}" for end in cell) for cell in cells]
        grid.add_row(name, *texts)
    Console().print(grid)


if __name__ == "__main__":
    utils.run_script(main)
