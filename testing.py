"""Runs a saved model over images: predictions as JSON and, where labels are there, how good they are.

    python testing.py [recipe.py ...] [--NAME value ...]
    torchrun --nproc-per-node=2 testing.py [recipe.py ...] [--NAME value ...]      # the images shared out

MODEL_PATH is a checkpoint, or what export_onnx.py made of one; classes, image size and thresholds come from it.
Into PREDICTIONS_FOLDER go {image file name without ending, after its sub-folder if any: [class indices]}, what
PREDICTION_FILES asks for and, when TEST_SPLIT has labels, evaluate_result.json and the files of evaluation/plots.py.
Probabilities are kept there from batch to batch, so that the same command goes on with an interrupted run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import config
import overrides
from limits import OffOrCount, Scales

# ---- What testing writes, and how it predicts ----
PREDICTIONS_FOLDER: Path = Path(config.LOCAL_ROOT) / "predictions"  # where all of it goes
PREDICTION_FILES: tuple[Literal["names", "scores", "records", "pictures", "probabilities"], ...] = ()  # besides indices
BOOTSTRAP_SAMPLES: OffOrCount = 1000  # resamples of the test images for the metrics' 95 % intervals; 0: no intervals
TEST_FLIP: bool = False  # average the probabilities of each image and its mirror image
TEST_SCALES: Scales = (1.0,)  # and of these sizes, multiples of the model's; a file of one size: (1.0,)
TEST_ENGINE: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"  # auto: the file's own; a checkpoint: torch
TEST_INT8: bool = False  # openvino only: 8-bit integers, quicker still; probabilities move, so compare the metrics

if __name__ == "__main__":
    overrides.answer_early(config, sys.modules[__name__])  # before the imports that take seconds

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

import distributed
import metrics
import predictor
import utils
from dataset.decoding import stamp_files
from dataset.files import hash_file, list_images
from evaluation import plots, prediction_files
from evaluation.prediction_files import Predictions, RowFile, find_base, name_images, write_indices
from export import engines
from models import checkpoints
from predictor import Predictor
from trainer import from_config
from trainer.from_config import TestImages, read_test_images

MAX_LINES = 20  # about images that are left out


def main(arguments: list[str]) -> None:
    overrides.apply(arguments, config, sys.modules[__name__])
    utils.keep_freed_memory()
    with distributed.start(config.DEVICE) as device:
        test(device)


def test(device: torch.device) -> None:
    """Predict, write and measure; of several processes each predicts its share, and the first does the rest."""
    int8_images = choose_int8_images() if TEST_INT8 else []
    engine = engines.choose_engine(TEST_ENGINE, engines.recognise(config.MODEL_PATH), config.MODEL_PATH)
    model = predictor.load(
        config.MODEL_PATH,
        "cpu" if config.DEVICE == "auto" and engine != "torch" else str(device),
        default_threshold=config.TH_MULTI_LABEL,
        engine=TEST_ENGINE,
        int8_images=int8_images,
        cache_folder=config.CACHE_FOLDER,
        flip=TEST_FLIP,
        scales=TEST_SCALES,
        calibration=config.CALIBRATION,
    )
    images = read_test_images(model)
    print_configuration(model, images)

    name = name_rows(model, images.paths, int8_images)
    share = f"_{distributed.rank()}of{distributed.count()}" if distributed.count() > 1 else ""
    kept = PREDICTIONS_FOLDER / f"{name}{share}.partial"
    if config.RESUME == "never":
        kept.unlink(missing_ok=True)
    own = images.paths[distributed.slice_rows(len(images.paths), config.TEST_BATCH_SIZE)]
    with RowFile(kept, own, len(model.classes), config.TEST_BATCH_SIZE) as rows:
        predict_all(model, own, rows)
        probabilities = distributed.join(rows.read())
        if distributed.is_first():
            predictions = Predictions(
                images.paths, name_images(images.paths), probabilities, model.classes, model.decide
            )
            print_summary(predictions, images.bad)
            write_predictions(predictions, name_predictions(model))
            if images.has_labels:
                evaluate(predictions, images, model)
    distributed.wait()  # the rows stay until everything is written
    for file in kept.parent.glob(f"{name}*.partial"):  # those of another number of processes, too
        file.unlink(missing_ok=True)


def choose_int8_images() -> list[str]:
    """INT8_CALIBRATION_IMAGES training images, evenly spaced over their sorted names; all, where there are fewer."""
    utils.warn("int8 moves probabilities, while the threshold was tuned on float's: compare the metrics of both")
    labelled = from_config.has_split("train")
    paths = from_config.read_split("train").paths if labelled else list_images(config.TRAIN_IMAGES_DIR)
    count = min(config.INT8_CALIBRATION_IMAGES, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def name_rows(model: Predictor, paths: Sequence[str], int8_images: Sequence[str]) -> str:
    """How the hidden files of probabilities begin while they are computed: it changes with all they depend on.

    Of the images themselves, only with the folder that holds them all: their rows say which they are of.
    """
    files = [path for path in (model.path, model.path.with_suffix(".bin")) if path.is_file()]  # OpenVINO's are two
    decisive = [
        *map(hash_file, files),
        model.classes,
        model.device.type,
        choose_engine(model),
        TEST_FLIP,
        TEST_SCALES,
        config.CALIBRATION,
        config.TEST_BATCH_SIZE,
        config.TEST_SPLIT,
        find_base(paths),
        *zip(int8_images, stamp_files(int8_images).tolist(), strict=True),
    ]
    return f".predictions_{hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]}"


def predict_all(model: Predictor, paths: Sequence[str], rows: RowFile) -> None:
    """Append the probabilities of those of `paths` that have no row yet, and print how quick that was."""
    earlier, start = rows.num_done, time.perf_counter()
    if earlier:
        print(f"{earlier} of {len(paths)} images were done: going on")
    num_workers = utils.choose_num_workers(config.NUM_WORKERS, model.device)
    for record in model.predict(paths[earlier:], config.TEST_BATCH_SIZE, num_workers, title="predicting"):
        rows.append(record.probabilities)
    rate = (rows.num_done - earlier) / (time.perf_counter() - start)
    print(f"{rate:.1f} images/s, from the first file to the last probability")


def name_predictions(model: Predictor) -> str:
    """A file name, without its ending, that says which model made the predictions, and how."""
    metadata, constants = model.metadata, model.metadata.get("config", {})
    few, many = model.thresholds.min(), model.thresholds.max()
    lr = constants.get("HEAD_BASE_LR" if constants.get("USE_DIFFERENTIAL_LR") else "LEARNING_RATE")
    parts = {
        "f1-": metadata.get("best_f1"),
        "epoch": metadata.get("epoch"),
        "bs": constants.get("TRAIN_BATCH_SIZE"),
        "lr": lr,
        "th": model.threshold if few == many else None,
        "testbs": config.TEST_BATCH_SIZE,
    }
    known = [f"{name}{value:.4g}" for name, value in parts.items() if value is not None]
    format = engines.recognise(model.path)
    others = {
        f"th{few:.4g}-{many:.4g}": few != many,
        f"min{model.min_labels}": model.min_labels,
        f"max{model.max_labels}": model.max_labels,
        format: format != "checkpoint",
        "int8": TEST_INT8 or metadata.get("precision") == "int8",
        "fp16": metadata.get("precision") == "fp16",
        "flip": TEST_FLIP,
        f"scales{'-'.join(f'{scale:g}' for scale in TEST_SCALES)}": TEST_SCALES != (1.0,),
        model.calibration: model.calibration != "none",
        config.TEST_SPLIT: config.TEST_SPLIT != "test",
        config.TEST_IMAGES_DIR.name: config.TEST_SPLIT == "test" and from_config.has_other_test_images(),
    }
    unusual = [name for name, is_so in others.items() if is_so]
    return "_".join(["predictions", checkpoints.name_model(metadata["model_name"]), *known, *unusual])


def choose_engine(model: Predictor) -> str:
    """TEST_ENGINE, or for "auto" what the model's file runs in."""
    return engines.choose_engine(TEST_ENGINE, engines.recognise(model.path), model.path)


def name_engine(model: Predictor) -> str:
    """What runs the model, and over which views of an image, for a person to read."""
    scales = ", ".join(f"{scale:g}" for scale in TEST_SCALES)
    parts = {
        choose_engine(model): True,
        "int8": TEST_INT8,
        "mirrored too": TEST_FLIP,
        f"scales {scales}": TEST_SCALES != (1.0,),
    }
    return ", ".join(name for name, is_on in parts.items() if is_on)


def write_predictions(predictions: Predictions, name: str) -> None:
    """The predictions as JSON, and beside it what PREDICTION_FILES asks for."""
    for ending, write in (
        (".json", write_indices),
        *(prediction_files.PREDICTION_FILES[kind] for kind in PREDICTION_FILES),
    ):
        path = PREDICTIONS_FOLDER / f"{name}{ending}"
        write(path, predictions)
        print(f"saved: {path}")


def evaluate(predictions: Predictions, images: TestImages, model: Predictor) -> None:
    """Measure the predictions, with 95 % bootstrap intervals over images; print the metrics, save all of it."""
    scores = predictions.probabilities, images.table.targets, model.thresholds
    limits = {"min_labels": model.min_labels, "max_labels": model.max_labels}
    samples = BOOTSTRAP_SAMPLES
    measured = metrics.measure(*scores, **limits)
    intervals, class_intervals = metrics.bootstrap(*scores, samples, **limits) if samples else ({}, {})
    columns = metrics.measure_classes(*scores, **limits)
    for name, (low, high) in class_intervals.items():
        columns |= {f"{name}_low": low, f"{name}_high": high}
    result = {
        "model": str(config.MODEL_PATH),
        "model_sha256": hash_file(model.path),
        "engine": name_engine(model),
        "calibration": model.calibration,
        **limits,
        "split": config.TEST_SPLIT,
        "num_images": len(predictions),
        "num_images_left_out": len(images.bad),
        "metrics": {name: _null_if_nan(value) for name, value in measured.items()},
        "intervals": {name: [_null_if_nan(end) for end in ends] for name, ends in intervals.items()},
        "classes": {
            name: {column: _null_if_nan(values[c].item()) for column, values in columns.items()}
            for c, name in enumerate(model.classes)
        },
    }
    print_metrics(result["metrics"], result["intervals"])
    ending = "" if config.TEST_SPLIT == "test" else f"_{config.TEST_SPLIT}"
    path = PREDICTIONS_FOLDER / f"evaluate_result{ending}.json"
    utils.write_text(path, json.dumps(result, indent=1))
    confusion = metrics.confusion(*scores, **limits)
    plots.save_report(PREDICTIONS_FOLDER, ending, model.classes, *scores[:2], columns, confusion, measured["ECE"])
    print(f"saved: {path}, and each class's numbers and pictures beside it")


def _null_if_nan(value: float) -> float | None:
    """JSON has no not-a-number."""
    return None if np.isnan(value) else value


def print_configuration(model: Predictor, images: TestImages) -> None:
    """What is about to happen."""
    metadata, paths = model.metadata, images.paths
    f1 = metadata.get("best_f1")
    trained = "" if f1 is None else f", best validation F1 {f1:.4f} in epoch {metadata['epoch']}"
    labels = f", labels as {from_config.choose_format(config.TEST_SPLIT)}" if images.has_labels else ""
    few, many = model.thresholds.min(), model.thresholds.max()
    thresholds = f"{few:.4f}" if few == many else f"{few:.4f} to {many:.4f}, one each,"
    rows = {
        "model": f"{config.MODEL_PATH}: {metadata['model_name']} + {metadata['head']}{trained}",
        "images": f"{os.path.commonpath([str(Path(path).parent) for path in paths])}: {len(paths)}, "
        f"{metadata['image_size']} px{labels}",
        "classes": f"{len(model.classes)}, predicted from probability {thresholds} on",
        "engine": name_engine(model),
        "device": f"{model.device}, batches of {config.TEST_BATCH_SIZE}",
    }
    for name, text in rows.items():
        print(f"{name:>8}  {text}")
    print(flush=True)


def print_summary(predictions: Predictions, bad: Mapping[str, str]) -> None:
    """What came out, labels or not."""
    counts = np.fromiter((len(prediction.labels) for prediction in predictions), int)
    print(f"{len(predictions)} images, {counts.mean():.2f} labels each, {(counts == 0).sum()} without any")
    for reason in [*bad.values()][:MAX_LINES]:
        print(f"left out: {reason}")
    if len(bad) > MAX_LINES:
        print(f"left out: {len(bad) - MAX_LINES} more")


def print_metrics(measured: Mapping[str, Any], intervals: Mapping[str, Sequence[Any]]) -> None:
    """The metrics as a table: name, value and, where there are any, interval."""
    from rich.console import Console
    from rich.table import Table as Grid

    title = f"{config.TEST_SPLIT} images"
    grid = Grid("metric", "value", *(["95 % interval"] if intervals else []), title=title, title_justify="left")
    grid.columns[1].justify = "right"
    for name, value in measured.items():
        digits = 0 if name.startswith("num_") else 4
        cells = [[value], intervals[name]] if intervals else [[value]]
        texts = ["undefined" if None in cell else " to ".join(f"{end:.{digits}f}" for end in cell) for cell in cells]
        grid.add_row(name, *texts)
    Console().print(grid)


if __name__ == "__main__":
    utils.run_script(main)
