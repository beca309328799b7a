"""What tensorboard_logging.py writes, read back with TensorBoard's own reader and compared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor
from sklearn.metrics import confusion_matrix, precision_score, recall_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.util.tensor_util import make_ndarray

import tensorboard_logging
import utils
from evaluation.palette import DARK
from tensorboard_logging import GAP, MAX_PR_CURVES, PICTURE_SIDE, TensorBoardLogger, draw_pictures

ROOT = Path(tensorboard_logging.__file__).parent
CLASSES = ("person", "dog", "cat")
HEADING = 28  # pixels above the pictures: a line of 15 px letters

RECORD = {
    "epoch": 3,
    "frozen": True,
    "train_loss": 0.41,
    "lr_backbone": 1e-4,
    "lr_head": 1e-3,
    "images_per_second": 88.1,
    "seconds": 40.2,
    "val_loss": 0.39,
    "val_f1": 0.61,
    "val_f1_cross_fitted": 0.60,
    "val_mAP": 0.66,
    "threshold": 0.47,
    "train_f1": 0.7,
    "train_mAP": 0.75,
}
TAGS = {  # (folder in the run's own, tag): value
    ("train", "loss"): 0.41,
    ("val", "loss"): 0.39,
    ("", "speed/images_per_second"): 88.1,
    ("", "speed/seconds"): 40.2,
    ("val", "f1"): 0.61,
    ("val", "f1/cross_fitted"): 0.60,
    ("train", "f1"): 0.7,
    ("val", "mAP"): 0.66,
    ("train", "mAP"): 0.75,
    ("", "threshold"): 0.47,
}


def read_events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return events.Reload()


def draw_scores(num_images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random (N, 3) probabilities and targets."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, (num_images, 3)).astype(np.int8)
    return np.clip(0.3 * targets + 0.7 * rng.random(targets.shape), 0, 1).astype(np.float32), targets


# ---- scalars ----


def read_scalars(folder: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """{(folder, tag): (step, value) of each event}, of the run's folder and those of its splits."""
    found = {}
    for split in ("", "train", "val"):
        events = read_events(folder / split)
        for tag in events.Tags()["scalars"]:
            found[split, tag] = [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(tag)]
    return found


def make_older(folder: Path) -> None:
    """TensorBoard reads files in the order of their names, which say the second: a resumed run begins later."""
    for file in folder.rglob("events*"):
        file.rename(file.with_name("events.out.tfevents.1.older"))


def test_an_epochs_record_becomes_scalars_with_both_splits_in_one_chart(tmp_path: Path) -> None:
    with TensorBoardLogger(tmp_path / "run") as logger:
        logger.add_epoch(RECORD)
    assert read_scalars(tmp_path / "run") == {place: [(3, value)] for place, value in TAGS.items()}
    assert all(len(list(folder.glob("events*"))) == 1 for folder in (tmp_path / "run", *(tmp_path / "run").glob("*/")))


def test_keys_that_are_absent_or_unknown(tmp_path: Path) -> None:
    with TensorBoardLogger(tmp_path) as logger:
        logger.add_epoch({"epoch": 1, "train_loss": 0.5, "gpu_memory_gib": 7})
        logger.add_epoch({"epoch": 2, "train_loss": 0.4, "val_f1": 0.3, "val_mAP": None})
    assert read_scalars(tmp_path) == {
        ("train", "loss"): [(1, 0.5), (2, 0.4)],
        ("", "gpu_memory_gib"): [(1, 7)],
        ("val", "f1"): [(2, 0.3)],
    }


def test_what_is_constant_gets_no_chart_until_it_changes(tmp_path: Path) -> None:
    records = [
        {"epoch": 1, "frozen": True, "steps": 9, "lr_head": 0.1, "steps_left_out": 0},
        {"epoch": 2, "frozen": True, "steps": 9, "lr_head": 0.1, "steps_left_out": 0},
        {"epoch": 3, "frozen": False, "steps": 9, "lr_head": 0.1, "steps_left_out": 0, "lr_backbone": 0.01},
        {"epoch": 4, "frozen": False, "steps": 9, "lr_head": 0.2, "steps_left_out": 0, "lr_backbone": 0.01},
        {"epoch": 5, "frozen": False, "steps": 9, "lr_head": 0.2, "steps_left_out": 0, "lr_backbone": 0.01},
    ]
    expected = {
        ("", "frozen"): [(1, 1), (2, 1), (3, 0), (4, 0), (5, 0)],
        ("", "learning_rate/head"): [(1, 0.1), (2, 0.1), (3, 0.1), (4, 0.2), (5, 0.2)],
    }
    with TensorBoardLogger(tmp_path / "whole") as logger:
        for record in records:
            logger.add_epoch(record)
    assert read_scalars(tmp_path / "whole") == expected
    for num_done in range(1, 5):  # a run that is resumed knows what it has not written
        folder = tmp_path / str(num_done)
        with TensorBoardLogger(folder) as logger:
            for record in records[:num_done]:
                logger.add_epoch(record)
        make_older(folder)
        with TensorBoardLogger(folder, first_epoch=num_done + 1, history=records[:num_done]) as logger:
            for record in records[num_done:]:
                logger.add_epoch(record)
        assert read_scalars(folder) == expected


def test_a_resumed_run_hides_what_was_written_of_its_epoch_before(tmp_path: Path) -> None:
    with TensorBoardLogger(tmp_path) as logger:
        for epoch in (1, 2, 3):
            logger.add_epoch({"epoch": epoch, "train_loss": 0.1, "val_loss": 0.2, "threshold": 0.3})
    make_older(tmp_path)
    with TensorBoardLogger(tmp_path, first_epoch=3) as logger:
        logger.add_epoch({"epoch": 3, "train_loss": 0.4, "val_loss": 0.5, "threshold": 0.6})
    assert read_scalars(tmp_path) == {
        ("train", "loss"): [(1, 0.1), (2, 0.1), (3, 0.4)],
        ("val", "loss"): [(1, 0.2), (2, 0.2), (3, 0.5)],
        ("", "threshold"): [(1, 0.3), (2, 0.3), (3, 0.6)],
    }


def test_an_epoch_is_on_disk_before_the_logger_is_closed(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.add_epoch({"epoch": 1, "val_f1": 0.61, "train_loss": 0.3, "threshold": 0.5})
    assert read_scalars(tmp_path) == {
        ("val", "f1"): [(1, 0.61)],
        ("train", "loss"): [(1, 0.3)],
        ("", "threshold"): [(1, 0.5)],
    }
    logger.close()


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(utils.InputError, match="file"):
        TensorBoardLogger(tmp_path / "file" / "run")


# ---- PR curves ----


@pytest.mark.parametrize("unknown", [-1, np.nan])
def test_pr_curves_count_known_entries_as_scikit_learn_does(tmp_path: Path, unknown: float) -> None:
    probabilities, targets = draw_scores(300)
    targets = targets.astype(np.int8 if unknown == -1 else np.float32)
    targets[np.random.default_rng(1).random(targets.shape) < 0.2] = unknown
    targets[:, 2] = np.where(targets[:, 2] == 1, 0, targets[:, 2])  # a class without a positive
    with TensorBoardLogger(tmp_path) as logger:
        logger.add_pr_curves(probabilities, targets, CLASSES, epoch=5)
    events = read_events(tmp_path)
    assert set(events.Tags()["tensors"]) == {"pr_curve/micro", "pr_curve/class/person", "pr_curve/class/dog"}
    known = targets >= 0
    expected = {
        "pr_curve/micro": (targets[known], probabilities[known]),
        "pr_curve/class/person": (targets[known[:, 0], 0], probabilities[known[:, 0], 0]),
        "pr_curve/class/dog": (targets[known[:, 1], 1], probabilities[known[:, 1], 1]),
    }
    for tag, (labels, scores) in expected.items():
        (event,) = events.Tensors(tag)
        assert event.step == 5
        curve = make_ndarray(event.tensor_proto)  # rows: TP, FP, TN, FN, precision, recall
        assert curve.shape == (6, 127)
        for i in (0, 20, 63, 100):
            predicted = scores >= i / 126
            tn, fp, fn, tp = confusion_matrix(labels, predicted, labels=[0, 1]).ravel()
            assert curve[:4, i].tolist() == [tp, fp, tn, fn]
            assert predicted.any()
            assert curve[4, i] == pytest.approx(precision_score(labels, predicted))
            assert curve[5, i] == pytest.approx(recall_score(labels, predicted))


def test_no_pr_curve_without_any_positive(tmp_path: Path) -> None:
    with TensorBoardLogger(tmp_path) as logger:
        logger.add_pr_curves(np.full((4, 3), 0.5), np.array([[0, -1, 0]] * 4), CLASSES, epoch=1)
    assert read_events(tmp_path).Tags()["tensors"] == []


# ---- pictures ----


def make_images(num_images: int, height: int = 40, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_images, 3, height, width), dtype=np.uint8)


def test_pictures_are_one_grid(tmp_path: Path) -> None:
    probabilities, targets = draw_scores(6)
    drawn = draw_pictures(make_images(6), targets, probabilities, 0.5, CLASSES)
    with TensorBoardLogger(tmp_path) as logger:
        logger.add_picture(drawn, epoch=2)
    (event,) = read_events(tmp_path).Images("pictures/val")
    assert event.step == 2
    (tmp_path / "grid.png").write_bytes(event.encoded_image_string)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")), drawn)
    one = draw_pictures(make_images(1), targets[:1], probabilities[:1], 0.5, CLASSES)
    assert one.shape[1] == PICTURE_SIDE
    assert drawn.shape[1] == 4 * PICTURE_SIDE + 3 * GAP, "four columns"
    full = draw_pictures(
        make_images(1), np.ones((1, 20)), np.full((1, 20), 0.9), 0.5, [f"a {c}" * 9 for c in range(20)]
    )
    assert full.shape == one.shape, "whatever the labels are"
    row = one.shape[0] - HEADING
    assert drawn.shape[0] == HEADING + 2 * row + GAP, "two rows, under a line of explanation"
    for place, image in enumerate(make_images(6)):
        top, left = HEADING + place // 4 * (row + GAP), place % 4 * (PICTURE_SIDE + GAP)
        found = drawn[top : top + PICTURE_SIDE, left : left + PICTURE_SIDE]
        expected = Image.fromarray(image.transpose(1, 2, 0)).resize((PICTURE_SIDE, PICTURE_SIDE))
        np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize(("shape", "height"), [((48, 96), 160), ((96, 48), 640)])
def test_pictures_keep_their_shape(shape: tuple[int, int], height: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    drawn = draw_pictures(image[None], np.ones((1, 3)), np.ones((1, 3)), 0.5, CLASSES)
    expected = Image.fromarray(image.transpose(1, 2, 0)).resize((PICTURE_SIDE, height))
    np.testing.assert_array_equal(drawn[HEADING : HEADING + height], np.asarray(expected))


def text_colours(targets: list[float], probabilities: list[float], thresholds: float | list[float] = 0.5) -> set[str]:
    """The colours (as the palette names them) that occur below the picture."""
    grid = draw_pictures(np.zeros((1, 3, 8, 8), np.uint8), [targets], [probabilities], thresholds, CLASSES)
    pixels = {tuple(pixel) for pixel in grid[HEADING + PICTURE_SIDE :].reshape(-1, 3).tolist()}
    return {name for name in ("green", "blue", "orange") if ImageColor.getrgb(DARK[name]) in pixels}


def test_right_missed_and_false_predictions_differ_in_colour() -> None:
    assert text_colours([1, 0, 0], [0.9, 0.1, 0.1]) == {"green"}
    assert text_colours([1, 0, 0], [0.4, 0.1, 0.1]) == {"blue"}
    assert text_colours([0, 0, 0], [0.9, 0.1, 0.1]) == {"orange"}
    assert text_colours([1, 1, 0], [0.9, 0.1, 0.8]) == {"green", "blue", "orange"}
    assert text_colours([0, 0, 0], [0.1, 0.1, 0.1]) == set()
    assert text_colours([np.nan, -1, 0], [0.9, 0.9, 0.1]) == set()  # unknown: neither right nor false
    assert text_colours([1, 0, 0], [0.4, 0.4, 0.4], [0.4, 0.5, 0.5]) == {"green"}  # probability >= threshold


def test_the_signs_tell_without_colour() -> None:
    targets, probabilities = np.array([1, 1, 0, -1]), np.array([0.9, 0.2, 0.8, 0.7])
    lines = tensorboard_logging._describe(targets, probabilities, 0.5, (*CLASSES, "US$ and a very, very long name $"))
    texts = [text for text, _ in lines]
    assert texts == ["✗ cat 0.80", "○ dog missed 0.20", "✓ person 0.90", "? US$ and a very, ver… not annotated 0.70"]


def test_many_labels_are_counted_and_dollar_signs_are_text() -> None:
    names = [rf"$\bad{i}$" for i in range(20)]  # read as a formula, these would raise
    lines = tensorboard_logging._describe(np.ones(20), np.linspace(0.6, 0.9, 20), 0.5, names)
    assert len(lines) == 6
    assert lines[0][0] == r"✓ $\bad19$ 0.90"
    assert lines[-1][0] == "and 15 more"
    draw_pictures(make_images(1), np.ones((1, 20)), np.full((1, 20), 0.9), 0.5, names)


# ---- hparams ----


def test_hparams_lie_in_the_runs_own_event_file(tmp_path: Path) -> None:
    constants: dict[str, object] = {
        "NUM_EPOCHS": 10,
        "WEIGHT_DECAY": 0.5,
        "USE_POS_WEIGHT": True,
        "MODEL_NAME": "resnet18",
        "LR_MILESTONES": (6, 8),
        "PRETRAINED_WEIGHTS": None,
        "TENSORBOARD_FOLDER": Path("runs"),
    }
    with TensorBoardLogger(tmp_path) as logger:
        logger.add_epoch(RECORD | {"best_f1": 0.61})
        logger.add_hparams(constants, {"best_f1": 0.61, "seconds_in_all": 80.0})
        logger.add_epoch(RECORD | {"epoch": 4})
    assert len(list(tmp_path.glob("events*"))) == 1
    events = read_events(tmp_path)
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["NUM_EPOCHS"].number_value == 10
    assert values["WEIGHT_DECAY"].number_value == 0.5
    assert values["USE_POS_WEIGHT"].number_value == 1  # torch writes booleans as numbers
    assert values["MODEL_NAME"].string_value == "resnet18"
    assert values["LR_MILESTONES"].string_value == "(6, 8)"
    assert values["PRETRAINED_WEIGHTS"].string_value == "None"
    assert values["TENSORBOARD_FOLDER"].string_value == "runs"
    experiment = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    named = HParamsPluginData.FromString(experiment).experiment.metric_infos
    assert [info.name.tag for info in named] == ["f1/best", "hparam/seconds_in_all"]
    scalars = read_scalars(tmp_path)
    assert scalars["", "f1/best"] == [(3, 0.61)], "its chart is there, and gets no second value"
    assert scalars["", "hparam/seconds_in_all"] == [(3, 80)]
    assert scalars["", "speed/seconds"] == [(3, 40.2), (4, 40.2)], "what comes after is still read"


# ---- switched off ----


def test_switched_off_imports_nothing_and_writes_nothing(tmp_path: Path) -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from tensorboard_logging import TensorBoardLogger
with TensorBoardLogger(None) as logger:
    logger.add_epoch({"epoch": 1, "train_loss": 0.5})
    logger.add_pr_curves(np.ones((2, 1)), np.ones((2, 1)), ["a"], 1)
    logger.add_picture(np.zeros((8, 8, 3), np.uint8), 1)
    logger.add_hparams({"a": 1}, {"b": 2.0})
logger.close()
print(sorted({"torch", "tensorboard", "matplotlib", "config"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code, str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_pr_curves_of_the_most_frequent_of_many_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    num_classes = MAX_PR_CURVES + 30
    targets = rng.random((20, num_classes)) < 0.2
    targets[0] = True
    targets[:, 30:] |= rng.random((20, MAX_PR_CURVES)) < 0.9
    targets[:, :30] = False
    targets[0, :30] = True
    with TensorBoardLogger(tmp_path) as logger:
        logger.add_pr_curves(rng.random(targets.shape), targets, [str(c) for c in range(num_classes)], epoch=1)
    tags = set(read_events(tmp_path).Tags()["tensors"])
    assert tags == {"pr_curve/micro", *(f"pr_curve/class/{c}" for c in range(30, num_classes))}
