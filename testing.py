"""Runs a saved model over images: writes predictions as JSON and, where there are labels, how good they are.

    python testing.py [recipe.py ...] [--NAME value ...]
    torchrun --nproc-per-node=2 testing.py [recipe.py ...] [--NAME value ...]      # processes share the images

MODEL_PATH is a checkpoint, or a file that export_onnx.py made of one. Classes, image size and thresholds come from it.
TEST_IMAGES_DIR may be any folder, one file, a pattern ('photos/**/*.jpg') or a .txt file with a path a line.
PREDICTIONS_FOLDER gets:

* a JSON file {image: [class indices]}; the image's name is its path in the images' folder, without the file's ending
* the files that PREDICTION_FILES asks for; "parts": only these, of any number of images (docs/many_machines.md)
* if the model leaves images to a person (ABSTAIN): ..._abstained.json, [image]; their labels stay in the first file
* if TEST_SPLIT has labels: evaluate_result.json with all metrics, the tables and plots of evaluation/plots.py,
  slices.csv with the metrics of each slice of SLICES, and the model's page report.html and its card MODEL_CARD.md
* while the script runs: a hidden file with the probabilities so far, from which the same command goes on after an
  interruption

With labels of the split "test", the test of a run's checkpoint also lies with the run, in the folder beside it:
test_result.json and test_scores.npz (evaluation/test_results.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import overrides  # isort: skip  # before config: it tells a mistake there in one line
import config
from limits import OffOrMany, Scales
from models import network_files

# ---- What testing writes, and how it predicts ----
PREDICTIONS_FOLDER: Path = Path(config.LOCAL_ROOT) / "predictions"  # where everything is written
PREDICTION_FILES: tuple[
    Literal[
        "names",
        "scores",
        "records",
        "pictures",
        "probabilities",
        "csv",
        "jsonl",
        "parquet",
        "label_studio",
        "fiftyone",
        "parts",
    ],
    ...,
] = ()  # further files
BOOTSTRAP_SAMPLES: OffOrMany = 1000  # resamples of the test images for the metrics' 95 % intervals; 0: no intervals
SLICES: tuple[str, ...] = ()  # metrics by slice: columns of the csv, or expressions over paths with one group (...)
TEST_FLIP: bool = False  # average the probabilities of each image and its mirror image
TEST_SCALES: Scales = (1.0,)  # sizes to average over, times the model's (1.0: its own); files of one size: only (1.0,)
TEST_ENGINE: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"  # auto: by the file; torch for checkpoints
TEST_INT8: bool = False  # openvino only: 8-bit integers, faster; probabilities change, so compare the metrics

if __name__ == "__main__":
    overrides.answer_early(config, sys.modules[__name__])  # before the imports that take seconds
    network_files.import_in_parts()

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import distributed
import metrics
import predictor
import utils
from dataset import locks, whole_files
from dataset.decoding import stamp_files
from dataset.files import hash_file, make_absolute
from dataset.image_parts import find_images
from dataset.json_files import to_json
from evaluation import (
    model_facts,
    neighbours,
    plots,
    prediction_files,
    prediction_parts,
    promises,
    report,
    slices,
    test_results,
)
from evaluation.model_facts import Origin
from evaluation.pages import count
from evaluation.prediction_files import Output, RowFile, find_base, name_images, write_indices
from evaluation.predictions import MadeBy, Predictions
from evaluation.saved_scores import SavedScores
from export import engines
from models import checkpoints
from models.shared_cores import share_cores
from predictor import Predictor, Record
from trainer import from_config
from trainer.from_config import ImagesToPredict, read_slicings, read_test_images
from utils import InputError

MAX_LINES = 20  # that are printed about images that are left out
MAX_LABELS_SHOWN = 20  # of an image, where its labels are printed
FEW_POSITIVES = 5  # of a class: fewer make its AP too high, which is said
MAX_ANSWERS = 10  # images whose labels are printed; of more only the files say them


def main(arguments: list[str]) -> None:
    overrides.apply(arguments, config, sys.modules[__name__])
    utils.keep_freed_memory()
    in_parts = prediction_parts.PARTS in PREDICTION_FILES
    with distributed.start(config.DEVICE, connect=not in_parts) as device, share_cores():
        if in_parts:
            predict_parts(device)
        else:
            test(device)


def predict_parts(device: torch.device) -> None:
    """Predict part by part, beside any number of other processes: no labels are looked at, and nothing is measured."""
    if config.RESUME == "never":
        raise InputError(f"RESUME is never, but parts that are there stay: delete {PREDICTIONS_FOLDER} to begin anew")
    images = find_images(config.TEST_IMAGES_DIR, config.SHARD_COMMANDS)
    int8_images = choose_int8_images() if TEST_INT8 else []
    model = open_model(device, int8_images)
    warn_of_moved_probabilities(model)
    prediction_parts.PartsJob(
        folder=PREDICTIONS_FOLDER / prediction_parts.PARTS,
        model=model,
        images=images,
        settings={
            "TEST_ENGINE": choose_engine(model),
            "TEST_INT8": TEST_INT8,
            **({"INT8_CALIBRATION_IMAGES": describe_int8_images(int8_images)} if TEST_INT8 else {}),
            "TEST_FLIP": TEST_FLIP,
            "TEST_SCALES": TEST_SCALES,
            "CALIBRATION": config.CALIBRATION,
            "BAD_IMAGES": config.BAD_IMAGES,
            **({} if model.has_thresholds else {"TH_MULTI_LABEL": config.TH_MULTI_LABEL}),
            # where they are resized; JPEGs of parts are decoded on the CPU with any value
            "PICTURES_ON": "gpu" if model.makes_on_gpu else "cpu",
        },
        batch_size=config.TEST_BATCH_SIZE,
        num_workers=from_config.choose_test_settings(model.device).num_workers,
        skips_bad=config.BAD_IMAGES == "skip",
    ).run()


def open_model(device: torch.device, int8_images: Sequence[str]) -> Predictor:
    """MODEL_PATH in TEST_ENGINE, with the views and the calibration that the constants ask for."""
    engine = engines.choose_engine(TEST_ENGINE, engines.recognise(config.MODEL_PATH), config.MODEL_PATH)
    device_name = str(device)
    if config.DEVICE == "auto" and engine != "torch":
        device_name = "cpu"
    return predictor.load(
        config.MODEL_PATH,
        device_name,
        default_threshold=config.TH_MULTI_LABEL,
        engine=TEST_ENGINE,
        int8_images=int8_images,
        cache_folder=config.CACHE_FOLDER,
        flip=TEST_FLIP,
        scales=TEST_SCALES,
        calibration=config.CALIBRATION,
        pictures_on=config.PICTURES_ON,
    )


def test(device: torch.device) -> None:
    """Predict, write and measure. Each process predicts its share of the images; rank 0 does the rest."""
    prediction_files.require_packages(PREDICTION_FILES)
    int8_images = choose_int8_images() if TEST_INT8 else []
    model = open_model(device, int8_images)
    images = read_test_images(model)
    if distributed.agree(model.reference is None)[0]:  # in any process: all have to compare images, or none
        if images.has_labels:
            from trainer import novelty  # and with it all that trains: only a missing reference needs it

            novelty.add_reference(model)
        else:
            model.reference = distributed.from_first(lambda: model.reference)
    print_configuration(model, images)
    warn_of_moved_probabilities(model)
    slicings = read_slicings(SLICES, images.paths) if images.has_labels else {}

    name = name_rows(model, images.paths, int8_images)
    row_file = PREDICTIONS_FOLDER / f"{name}.partial"
    if distributed.count() > 1:
        row_file = PREDICTIONS_FOLDER / f"{name}_{distributed.rank()}of{distributed.count()}.partial"
    local_paths = images.paths[distributed.slice_rows(len(images.paths), config.TEST_BATCH_SIZE)]
    with RowFile(
        path=row_file,
        images=local_paths,
        num_classes=len(model.classes),
        batch_size=config.TEST_BATCH_SIZE,
        goes_on=config.RESUME == "auto",
        num_nearest=neighbours.count_nearest(model),
    ) as rows:
        predict_all(model, local_paths, rows)
        probabilities = distributed.join(rows.read())
        compared = neighbours.read_compared(model, rows)
        if compared and images.has_labels and config.TEST_SPLIT == "test":
            warn_of_seen(neighbours.count_seen(compared, images.paths), len(images.paths))
        if distributed.is_first():
            predictions = Predictions(
                paths=images.paths,
                names=name_images(images.paths),
                probabilities=probabilities,
                classes=model.classes,
                decide=model.decide,
                compared=compared,
                abstain=model.abstain if model.abstention else None,
                made_by=MadeBy(
                    model.metadata["model_name"], hash_file(model.path), model.thresholds.tolist(), model.max_labels
                ),
            )
            print_summary(predictions, images.bad)
            with locks.hold(PREDICTIONS_FOLDER / locks.LOCK):  # files of two tests, side by side, are not mixed
                write_predictions(predictions, *name_predictions(model, images.paths))
                if images.has_labels:
                    evaluate(predictions, images, model, slicings)
    distributed.wait()  # until rank 0 has written everything, the rows have to stay
    for file in PREDICTIONS_FOLDER.glob(f"{name}*.partial"):  # also those that another number of processes left
        file.unlink(missing_ok=True)


def choose_int8_images() -> list[str]:
    """INT8_CALIBRATION_IMAGES training images, evenly spaced over their sorted names, or all where there are fewer."""
    table, _ = from_config.sample_split("train", config.INT8_CALIBRATION_IMAGES)
    return table.paths


def describe_int8_images(paths: Sequence[str]) -> str:
    """The images that int8 was calibrated on, in words, such as "300 images (3f09ac12d4b7e650)".

    The digits change with any name or size in bytes. Folders and times do not count: those of copies differ.
    """
    sizes = stamp_files(paths)[:, 0].tolist()
    files = json.dumps([(Path(path).name, size) for path, size in zip(paths, sizes, strict=True)])
    return f"{count(len(paths), 'image')} ({hashlib.sha256(files.encode()).hexdigest()[:16]})"


def name_rows(model: Predictor, paths: Sequence[str], int8_images: Sequence[str]) -> str:
    """The beginning of the names of the hidden files of probabilities.

    It changes with everything that probabilities depend on, except the images: of these only their common folder
    counts, since each row of the file says which image it is of.
    """
    decisive = [
        *map(hash_file, engines.list_files(model.path)),
        model.classes,
        model.device.type,
        choose_engine(model),
        TEST_FLIP,
        TEST_SCALES,
        config.CALIBRATION,
        config.TEST_BATCH_SIZE,
        config.TEST_SPLIT,
        find_base(paths),
        *([model.settings.decodes_on_gpu] if model.makes_on_gpu else []),  # whose pictures differ from the CPU's
        *zip(int8_images, stamp_files(int8_images).tolist(), strict=True),
        *([model.reference.identity, *model.reference.names] if model.reference else []),
    ]
    return f".predictions_{hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]}"


def predict_all(model: Predictor, paths: Sequence[str], rows: RowFile) -> None:
    """Append the probabilities of the images of `paths` that have no row yet, and print the speed."""
    num_earlier, start = rows.num_done, time.perf_counter()
    if num_earlier:
        utils.say(f"{num_earlier} of {len(paths)} images were done: going on")
    num_workers = from_config.choose_test_settings(model.device).num_workers
    row_of = neighbours.number_names(model)
    for record in model.predict(paths[num_earlier:], config.TEST_BATCH_SIZE, num_workers, title="predicting"):
        rows.append(record.probabilities, record.novelty, [row_of[name] for name in record.nearest])
    rate = (rows.num_done - num_earlier) / (time.perf_counter() - start)
    utils.say(f"{rate:.1f} images/s, from the first file to the last probability")


def name_predictions(model: Predictor, paths: Sequence[str]) -> tuple[str, str]:
    """Two file names, without endings, of the predictions of the images `paths`: a long one, and one for people.

    The long one says which model made them, and how. What is not known, and what is as usual (float32, one view of each
    image, the test split), is left out. Example: "predictions_resnet50_f1-0.9123_epoch12_bs32_lr0.001_th0.41_testbs64",
    and "predictions_resnet50_test_3f09ac".
    """
    metadata, constants = model.metadata, model.metadata.get("config", {})
    lowest, highest = model.thresholds.min(), model.thresholds.max()
    numbers = {
        "f1-": metadata.get("best_f1"),
        "epoch": metadata.get("epoch"),
        "bs": constants.get("TRAIN_BATCH_SIZE"),
        "lr": constants.get("HEAD_BASE_LR" if constants.get("USE_DIFFERENTIAL_LR") else "LEARNING_RATE"),
        "th": model.threshold if lowest == highest and not takes_most_probable(model) else None,
        "testbs": config.TEST_BATCH_SIZE,
    }
    words = ["predictions", checkpoints.name_model(metadata["model_name"])]
    words += [f"{name}{value:.4g}" for name, value in numbers.items() if value is not None]
    if lowest != highest and not takes_most_probable(model):
        words.append(f"th{lowest:.4g}-{highest:.4g}")
    if model.min_labels:
        words.append(f"min{model.min_labels}")
    if model.max_labels:
        words.append(f"max{model.max_labels}")
    format = engines.recognise(model.path)
    if format != "checkpoint":
        words.append(format)
    if TEST_INT8 or metadata.get("precision") == "int8":
        words.append("int8")
    if metadata.get("precision") == "fp16":
        words.append("fp16")
    if TEST_FLIP:
        words.append("flip")
    if TEST_SCALES != (1.0,):
        words.append(f"scales{'-'.join(f'{scale:g}' for scale in TEST_SCALES)}")
    if model.calibration != "none":
        words.append(model.calibration)
    images = config.TEST_SPLIT
    if images == "test" and from_config.has_other_test_images():
        images = name_choice(config.TEST_IMAGES_DIR, paths)
    if images != "test":
        words.append(images)
    name = "_".join(words)
    return name, prediction_files.shorten_name(name, words[1], images)


def name_choice(where: Path, paths: Sequence[str]) -> str:
    """A word of a file's name for the images `paths` that `where` chose: no two choices have the same.

    It is the name of the folder, the file or, for a pattern, the folder of its images, and six digits for the whole of
    `where`: "new-3f09ac" and, of the pattern new/*.JPG, "new-d41b77".
    """
    where = make_absolute(where.expanduser())
    folder = where if where.exists() else Path(find_base(paths)).resolve()
    name = folder.stem if folder.is_file() else folder.name
    digest = hashlib.sha256(str(where).encode(errors="surrogateescape")).hexdigest()[:6]
    return f"{name}-{digest}" if name else digest


def takes_most_probable(model: Predictor) -> bool:
    """Whether each image gets one label, so that no threshold decides."""
    return model.min_labels == model.max_labels == 1


def warn_of_moved_probabilities(model: Predictor) -> None:
    """Say that thresholds were tuned on other probabilities than those that TEST_INT8 and TEST_SCALES give."""
    causes = []
    if TEST_INT8:
        causes.append("TEST_INT8")
    if TEST_SCALES != (1.0,):
        causes.append("TEST_SCALES")
    if causes and model.has_thresholds and not takes_most_probable(model):
        utils.warn(
            f"the thresholds were tuned on other probabilities than those with {' and '.join(causes)}: compare the "
            "metrics of tests with and without"
        )


def warn_of_seen(num_seen: int, num_images: int) -> None:
    """Say that the model was trained on test images, as it is where the data set was split afterwards."""
    if num_seen > neighbours.MOST_SEEN * num_images:
        utils.warn(
            f"by their names and looks, the model was trained on {num_seen} or more of the {num_images} test images, "
            "so that the metrics say little: split first, then train"
        )


def choose_engine(model: Predictor) -> str:
    """TEST_ENGINE or, for "auto", the engine that runs the model's file."""
    return engines.choose_engine(TEST_ENGINE, engines.recognise(model.path), model.path)


def name_engine(model: Predictor) -> str:
    """What runs the model, and on which views of an image, in words."""
    words = [choose_engine(model)]
    if TEST_INT8:
        words.append("int8")
    if TEST_FLIP:
        words.append("mirrored too")
    if TEST_SCALES != (1.0,):
        words.append(f"scales {', '.join(f'{scale:g}' for scale in TEST_SCALES)}")
    return ", ".join(words)


def describe_device(model: Predictor) -> str:
    """What the model runs on; in PyTorch also how, which an exported file decides by itself."""
    if choose_engine(model) != "torch" or engines.recognise(model.path) not in ("checkpoint", "timm"):
        return str(model.device)
    return from_config.choose_test_settings(model.device).describe()


def name_views() -> str:
    """The views of an image that are averaged, such as "flip, scales 1-1.25"; "" for the image as it is."""
    words = ["flip"] if TEST_FLIP else []
    if TEST_SCALES != (1.0,):
        words.append(f"scales {'-'.join(f'{scale:g}' for scale in TEST_SCALES)}")
    return ", ".join(words)


def write_predictions(predictions: Predictions, name: str, short_name: str) -> None:
    """Write the predictions as JSON, and beside it the files that PREDICTION_FILES asks for."""
    outputs = [Output(".json", write_indices, short=False)]
    outputs += [prediction_files.PREDICTION_FILES[kind] for kind in PREDICTION_FILES]
    abstained = Output("_abstained.json", prediction_files.write_abstained, short=False)
    if predictions.abstain:
        outputs.append(abstained)
    else:  # of an earlier test of this model, when it left images to a person
        (PREDICTIONS_FOLDER / f"{name}{abstained.ending}").unlink(missing_ok=True)
    for output in outputs:
        path = PREDICTIONS_FOLDER / f"{short_name if output.short else name}{output.ending}"
        output.write(path, predictions)
        utils.say(f"saved: {path}")


class Kept(NamedTuple):
    """A test that lies with its run."""

    folder: Path  # of the run
    ruler: str  # its fingerprint


def keep_with_run(
    result: Mapping[str, Any], predictions: Predictions, images: ImagesToPredict, model: Predictor
) -> Kept | None:
    """Write the test of a run's checkpoint into the folder of the run, too. Says where, or why not (None).

    It takes the place of the run's last test. Only a test of other images than those that the run names does not
    replace one by another ruler. Exported files, int8 and other splits leave the run's test alone.
    """
    if config.TEST_SPLIT != "test" or TEST_INT8 or engines.recognise(model.path) != "checkpoint":
        return None
    folder, reason = test_results.find_place(model.path, model.metadata, config.TRAINED_MODELS_FOLDER)
    if folder is None:
        utils.say(f"this test is not kept with a run: {reason}")
        return None
    ruler = test_results.make_ruler(images.paths, images.table.targets, model.classes)
    path, before = folder / test_results.RESULT_FILE, None
    try:
        before = test_results.read_test(folder)
    except InputError as error:
        utils.warn(f"{error}; this test takes its place")
    difference = test_results.describe_difference(before.ruler, ruler) if before and not before.stale else ""
    if difference and not takes_images_of_run(model):
        utils.warn(
            f"this test is not kept with its run: {path} is by another ruler ({difference}); if this one shall count, "
            "delete that file and test again"
        )
        return None
    scores = SavedScores(predictions.probabilities, images.table.targets, images.paths, model.classes)
    test_results.save_test(folder, result, scores, ruler, model.metadata, model.thresholds.tolist(), name_views())
    utils.say(f"saved: {path} and {test_results.SCORES_FILE}: the test of the run, by ruler {ruler.fingerprint}")
    if difference:
        utils.say(f"       in place of a test by another ruler: {difference}")
    return Kept(folder, ruler.fingerprint)


def takes_images_of_run(model: Predictor) -> bool:
    """Whether the test images are those that the constants of the model's run name."""
    constants, theirs = overrides.resolved(config), model.metadata.get("config", {})
    return all(theirs.get(name) == constants[name] for name in ("DATASET_FOLDER", "TEST_IMAGES_DIR", "TEST_LABELS_DIR"))


def evaluate(
    predictions: Predictions,
    images: ImagesToPredict,
    model: Predictor,
    slicings: Mapping[str, Mapping[str, NDArray[np.intp]]],
) -> None:
    """Measure the predictions, with 95 % bootstrap intervals over images. Prints the metrics, and saves everything.

    `slicings` are {name: {slice: rows of its images}}.
    """
    warn_of_missing_labels(images.table.targets)
    if not metrics.as_known(images.table.targets)[1].any():
        return  # what was measured before stays
    scores = predictions.probabilities, images.table.targets, model.thresholds
    limits = {"min_labels": model.min_labels, "max_labels": model.max_labels}
    measured = metrics.measure(*scores, **limits)
    intervals, class_intervals = {}, {}
    if BOOTSTRAP_SAMPLES:
        intervals, class_intervals = metrics.bootstrap(*scores, BOOTSTRAP_SAMPLES, **limits)
    class_confusion = None
    if [*limits.values()] == [1, 1] and (metrics.as_known(images.table.targets)[0].sum(axis=1) == 1).all():
        class_confusion = metrics.confuse_classes(predictions.probabilities, images.table.targets)
        measured = {"accuracy": measured["exact_match"], **measured}
        intervals = {"accuracy": intervals["exact_match"], **intervals} if intervals else {}
    sliced = slices.measure_slicings(slicings, *scores, BOOTSTRAP_SAMPLES, **limits)
    columns = metrics.measure_classes(*scores, **limits)
    for name, (low, high) in class_intervals.items():
        columns |= {f"{name}_low": low, f"{name}_high": high}
    result = {
        "done_flag": True,
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
        "slices": slices.to_dict(sliced),
    }
    print_metrics(result["metrics"], result["intervals"])
    if predictions.compared:
        result["novelty"] = neighbours.measure_by_novelty(predictions.compared.novelty, *scores, **limits)
        utils.say(*filter(None, [neighbours.describe_f1(result["novelty"])]))
    num_rare = int(((columns["positives"] > 0) & (columns["positives"] < FEW_POSITIVES)).sum())
    if intervals and num_rare:
        utils.say(
            f"classes with fewer than {FEW_POSITIVES} positives: {num_rare}; with so few AP comes out too high, and "
            "the interval of mAP reaches further down"
        )
    result |= report_promises(predictions, images.table.targets, model)
    ending = "" if config.TEST_SPLIT == "test" else f"_{config.TEST_SPLIT}"
    if sliced:
        slices.print_slicings(sliced)
        slices.save_csv(PREDICTIONS_FOLDER / f"slices{ending}.csv", sliced)
    path = PREDICTIONS_FOLDER / f"evaluate_result{ending}.json"
    whole_files.write_text(path, to_json(result, indent=1))
    kept = keep_with_run(result, predictions, images, model)
    confusion = metrics.confusion(*scores, **limits)
    plots.save_report(
        folder=PREDICTIONS_FOLDER,
        ending=ending,
        classes=model.classes,
        probabilities=predictions.probabilities,
        targets=images.table.targets,
        columns=columns,
        confusion=confusion,
        ece=measured["ECE"],
        class_confusion=class_confusion,
    )
    utils.say(f"saved: {path}, and each class's numbers and pictures beside it")
    facts = model_facts.gather(
        predictions=predictions,
        targets=images.table.targets,
        model=model,
        result=result,
        columns=columns,
        confusion=confusion,
        origin=describe_origin(images, model, kept.ruler if kept else ""),
    )
    written = report.write_report(facts)
    page, _ = report.save_report(PREDICTIONS_FOLDER, written, ending)
    if kept:
        report.save_report(kept.folder, written)
    utils.say(facts.verdict, f"saved: {page}, the page of the model, and its card beside it")


def describe_origin(images: ImagesToPredict, model: Predictor, ruler: str) -> Origin:
    """Where the model and this test come from: constants, commands, and what `dataset_tools.py check` found."""
    this = sys.modules[__name__]
    trained = overrides.list_changes(config, model.metadata.get("config", {}))
    trained.pop("LOCAL_ROOT", None)  # where it writes
    learned = overrides.list_deciding(config)
    tested = overrides.list_changes(config, overrides.resolved(config))
    tested = {name: values for name, values in tested.items() if name not in learned or name == "DATASET_FORMAT"}
    tested |= overrides.list_changes(this, overrides.resolved(this))

    def write_command(script: str, changes: Mapping[str, tuple[Any, Any]]) -> str:
        values = {name: model_facts.hide_folders(name, value) for name, (value, _) in changes.items()}
        return f"python {script} {overrides.write_options(values)}".rstrip()

    try:
        training_images = from_config.find_training_images(model)
    except InputError as error:
        training_images = {}
        utils.warn(f"{error}; the page shows no training photographs")
    is_elsewhere = config.TEST_SPLIT == "test" and from_config.has_other_test_images()
    return Origin(
        dataset=make_absolute(config.TEST_IMAGES_DIR if is_elsewhere else config.DATASET_FOLDER).name,
        fingerprint=images.table.fingerprint(),
        ruler=ruler,
        changes=trained,
        training_command=write_command("training.py", trained) if model.metadata.get("config") else "",
        testing_command=write_command("testing.py", tested),
        # where CHECK_FOLDER of dataset_tools.py, another script, is as it stands there
        check=model_facts.read_check(
            config.LOCAL_ROOT / "check" / "check_dataset_result.json", make_absolute(config.DATASET_FOLDER)
        ),
        training_images=training_images,
    )


def report_promises(predictions: Predictions, targets: NDArray[np.int8], model: Predictor) -> dict[str, Any]:
    """Print whether the images bear out what the model promises, and what it gains by leaving some to a person.

    Returns the same for evaluate_result.json: {} for a model that does neither.
    """
    promise, told = model.metadata.get("promise"), {}
    if config.TEST_SPLIT != "test" or not (promise or predictions.abstain):  # others were trained on, or tuned on
        return told
    scores = predictions.probabilities
    predicted = metrics.predict(scores, model.thresholds, model.min_labels, model.max_labels)
    if promise:
        kept = promises.check_promise(promise, predicted, targets)
        utils.say(promises.describe_kept(promise, kept))
        if TEST_INT8 or TEST_FLIP or TEST_SCALES != (1.0,) or model.metadata.get("precision") == "int8":
            utils.say("it was promised for one view of an image, in float: int8 and several views change probabilities")
        told["promise"] = {**promise, **(kept._asdict() if kept else {})}
    if predictions.abstain:
        is_left = np.concatenate([predictions.abstain(np.array(scores[rows])) for rows in metrics.read_rows(scores)])
        gains = promises.measure_gains(predicted, targets, is_left)
        if gains:
            print_gains(gains, int(is_left.sum()), len(predictions))
        told["abstention"] = {
            "num_left": int(is_left.sum()),
            "metrics": {name: gain._asdict() for name, gain in gains.items()},
        }
    return told


def print_gains(gains: Mapping[str, promises.Gain], num_left: int, num_images: int) -> None:
    """Print what the images that are not left to a person have more than all."""
    from rich.table import Table as Grid

    title = f"{num_left:,} of {num_images:,} images left to a person, {num_images - num_left:,} decided"
    grid = Grid("metric", "all", "decided", "gain", "95 % interval", title=title, title_justify="left")
    for column in grid.columns[1:4]:
        column.justify = "right"
    for name, gain in gains.items():
        difference = f"{gain.decided - gain.all:+.4f}"
        grid.add_row(name, f"{gain.all:.4f}", f"{gain.decided:.4f}", difference, f"{gain.low:+.4f} to {gain.high:+.4f}")
    utils.make_console().print(grid)


def warn_of_missing_labels(targets: NDArray[np.int8]) -> None:
    """Warn where no image of TEST_SPLIT has a label, or none that is known, since most metrics then say nothing."""
    present, known = metrics.as_known(targets)
    advice = from_config.advise_on_labels(config.TEST_SPLIT)
    if not known.any():
        utils.warn(f"no label of any {config.TEST_SPLIT} image is known, so that no metric says anything: {advice}")
    elif not present.any():
        utils.warn(
            f"no {config.TEST_SPLIT} image has a label, so that mAP is undefined, and precision, recall and F1 are 0 "
            f"whatever is predicted: {advice}"
        )


def _null_if_nan(value: float) -> float | None:
    """A number as JSON has it: there is no NaN in JSON."""
    return None if np.isnan(value) else value


def print_configuration(model: Predictor, images: ImagesToPredict) -> None:
    """Print what is about to happen, in a few lines."""
    metadata = model.metadata
    lowest, highest = model.thresholds.min(), model.thresholds.max()
    rule = f"predicted from probability {lowest:.4f} on"
    if lowest != highest:
        rule = f"predicted from probability {lowest:.4f} to {highest:.4f}, one each, on"
    if takes_most_probable(model):
        rule = "the most probable one is predicted"
    rows = {
        "model": f"{config.MODEL_PATH}: {metadata['model_name']} + {metadata['head']}",
        "images": f"{find_base(images.paths)}: {len(images.paths)}, {model.image_size} px",
        "classes": f"{len(model.classes)}, {rule}",
        "engine": name_engine(model),
        "device": f"{describe_device(model)}, batches of {config.TEST_BATCH_SIZE}",
        "novelty": neighbours.describe_reference(model),
    }
    if metadata.get("best_f1") is not None:
        rows["model"] += f", best validation F1 {metadata['best_f1']:.4f} in epoch {metadata['epoch']}"
    if images.has_labels:
        rows["images"] += f", labels as {from_config.choose_format(config.TEST_SPLIT)}"
    utils.say(*(f"{name:>8}  {text}" for name, text in rows.items()), "")


def print_summary(predictions: Predictions, bad: Mapping[str, str]) -> None:
    """Print how many labels were predicted, those of a few images in full, and which images were left out."""
    found = [(len(prediction.labels), prediction.abstains) for prediction in predictions]
    counts, is_left = np.array(found, dtype=int).T
    if len(predictions) <= MAX_ANSWERS:
        base = find_base(predictions.paths)
        for prediction in predictions:
            doubt = " (left to a person: ABSTAIN)" if prediction.abstains else ""
            unlike = f" ({neighbours.UNLIKE})" if neighbours.is_unlike(prediction.novelty) else ""
            utils.say(f"{Path(prediction.path).relative_to(base)}: {describe_labels(prediction)}{doubt}{unlike}")
    if predictions.abstain:
        left = f"{is_left.sum():,} of {count(len(predictions), 'image')}"
        utils.say(f"{left} left to a person: see ..._abstained.json")
    if len(predictions) == 1:
        utils.say(f"1 image, {count(int(counts[0]), 'label')}")
    else:
        mean, num_without = counts.mean(), (counts == 0).sum()
        utils.say(f"{count(len(predictions), 'image')}, {mean:.2f} labels each, {num_without} without any")
    if predictions.compared and len(predictions) > 1:
        utils.say(neighbours.describe_novelty(predictions.compared.novelty))
    for reason in [*bad.values()][:MAX_LINES]:
        utils.say(f"left out: {reason}")
    if len(bad) > MAX_LINES:
        utils.say(f"left out: {len(bad) - MAX_LINES} more")


def describe_labels(prediction: Record) -> str:
    """The predicted classes, the most probable first: "person 0.95, bicycle 0.72"."""
    words = [f"{prediction.classes[label]} {prediction.probabilities[label]:.2f}" for label in prediction.ranked]
    if len(words) > MAX_LABELS_SHOWN:
        words[MAX_LABELS_SHOWN:] = [f"{len(words) - MAX_LABELS_SHOWN:,} more"]
    return ", ".join(words) or "no label"


def print_metrics(measured: Mapping[str, Any], intervals: Mapping[str, Sequence[Any]]) -> None:
    """Print the metrics as a table: name, value and, if there are any, interval. None: undefined."""
    from rich.table import Table as Grid

    grid = Grid("metric", "value", title=f"{config.TEST_SPLIT} images", title_justify="left")
    grid.columns[1].justify = "right"
    if intervals:
        grid.add_column("95 % interval")
    for name, value in measured.items():
        digits = 0 if name.startswith("num_") else 4
        cells = [format_numbers([value], digits)]
        if intervals:
            cells.append(format_numbers(intervals[name], digits) if name in intervals else "")
        grid.add_row(name, *cells)
    utils.make_console().print(grid)


def format_numbers(numbers: Sequence[float | None], digits: int) -> str:
    """A number, or the ends of an interval ("0.8100 to 0.8300"), with `digits` after the point."""
    texts = []
    for number in numbers:
        if number is None:
            return "undefined"
        texts.append(f"{number:.{digits}f}")
    return " to ".join(texts)


if __name__ == "__main__":
    utils.run_script(main)
