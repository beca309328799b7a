"""What testing.py measured of a run's checkpoint, kept in the run's folder, and the ruler that it was measured by.

    ruler = make_ruler(paths, targets, classes)
    save_test(folder, result, scores, ruler, metadata, views="flip")
    test = read_test(folder)                         # None: the run was never tested
    test.metrics["mAP"], test.intervals["mAP"]       # empty where `test.stale` says why it is not of today's checkpoint
    describe_difference(test.ruler, other.ruler)     # "other test images (4,000 and 612)"

Numbers may be ranked together only if their rulers have the same fingerprint: the same test images, byte by byte, the
same classes in the same order, the same labels, and the same definitions of the metrics.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset import locks, whole_files
from dataset.json_files import read_json, to_json
from evaluation.saved_scores import SavedScores, read_scores, save_scores
from models import checkpoints
from models.metadata import find_oddity, is_count, is_list, is_measured, is_threshold
from utils import InputError, Progress, explain

RESULT_FILE, SCORES_FILE = "test_result.json", "test_scores.npz"  # in the folder of a run
LOCK = ".test.lock"  # not the run's own: an earlier checkpoint may be tested while the run trains
VERSION = 1  # of RESULT_FILE
DEFINITIONS = 2  # of the numbers of metrics.measure: raise it where one of them comes to mean something else
ROUNDING = 1e-9  # by which a share may be above 1
HASHED_AT_ONCE = 1024  # images, between two lines of progress
WEIGHTS = ("model_name", "classes", "weights", "epoch", "best_f1", "metrics", "saved")  # metadata that training changes
DECISIONS = ("best_threshold", "thresholds", "min_labels", "max_labels", "calibration")  # and that tuning changes


class Ruler(NamedTuple):
    """What numbers are measured by. The texts have 16 hexadecimal digits."""

    fingerprint: str  # of all that follows
    images: str  # names, within their common folder, and bytes
    names: str  # of the images
    targets: str  # labels, in the order of the images' names and of the classes
    classes: str  # their names, in order
    num_images: int
    num_classes: int
    definitions: int  # DEFINITIONS


class TestResult(NamedTuple):
    """What testing.py measured of a run's checkpoint. Where it is `stale`, there are no numbers."""

    run: str  # "<model>/<configuration>"
    stale: str  # why it is not of the checkpoint as it is now; "": it is
    ruler: Ruler
    metrics: dict[str, float]  # those of metrics.measure; NaN: undefined
    intervals: dict[str, tuple[float, float]]  # of 95 %, by the same names; {}: none were computed
    classes: dict[str, dict[str, float]]  # {class: {column of metrics.measure_classes: value}}
    thresholds: list[float]  # (C,), of the probabilities in SCORES_FILE
    min_labels: int
    max_labels: int
    views: str  # of an image that were averaged, such as "flip, scales 1-1.25"; "": the image as it is
    calibration: str  # of the probabilities; "none"
    engine: str
    num_images: int
    num_images_left_out: int  # since they could not be read
    tested: str  # when: "2026-11-28T18:40:00"


# ---- rulers ----


def sort_images(paths: Sequence[str]) -> tuple[list[str], list[int]]:
    """The names of the images within the deepest folder that holds them all, sorted, and the order that sorts them."""
    from evaluation.prediction_files import find_base

    base = find_base(paths)
    names = [Path(path).relative_to(base).as_posix() for path in paths]
    order = sorted(range(len(names)), key=names.__getitem__)
    return [names[row] for row in order], order


def make_ruler(paths: Sequence[str], targets: NDArray[np.int8], classes: Sequence[str]) -> Ruler:
    """The ruler of N images with (N, C) targets (1 present, 0 absent, -1 unknown) of C classes, in any order of images.

    Reads every file once, several at a time. Raises InputError for one that cannot be read.
    """
    names, order = sort_images(paths)
    contents = _hash_images([paths[row] for row in order])
    of_names = _digest(*names)
    parts = {
        "images": _digest(of_names, *contents),
        "targets": digest_targets(np.asarray(targets)[order]),
        "classes": _digest(*classes),
    }
    return Ruler(
        fingerprint=_digest(*parts.values(), str(DEFINITIONS)),
        names=of_names,
        num_images=len(names),
        num_classes=len(classes),
        definitions=DEFINITIONS,
        **parts,
    )


def digest_targets(targets: NDArray[np.int8]) -> str:
    """16 hexadecimal digits for (N, C) targets in the order of the images' names."""
    return _digest(np.ascontiguousarray(targets, dtype=np.int8).tobytes())


def describe_difference(ruler_a: Ruler, ruler_b: Ruler) -> str:
    """What differs between two rulers, in words, such as "other test images (4,000 and 612)"; "" where nothing does."""
    a, b = ruler_a, ruler_b
    words = []
    if a.names != b.names:
        count = f"{a.num_images:,} and {b.num_images:,}" if a.num_images != b.num_images else f"{a.num_images:,} each"
        words.append(f"other test images ({count})")
    elif a.images != b.images:
        words.append("test images of the same names with other content")
    if a.num_classes != b.num_classes:
        words.append(f"other classes ({a.num_classes:,} and {b.num_classes:,})")
    elif a.classes != b.classes:
        words.append("other classes, or in another order")
    elif a.names == b.names and a.targets != b.targets:
        words.append("other labels of the same test images" if a.images == b.images else "other labels")
    if a.definitions != b.definitions:
        words.append(f"other definitions of the metrics (version {a.definitions} and {b.definitions})")
    if not words and a.fingerprint != b.fingerprint:
        words.append(f"other fingerprints ({a.fingerprint} and {b.fingerprint}) of what looks the same")
    return "; ".join(words)


def _digest(*parts: str | bytes) -> str:
    """16 hexadecimal digits for `parts`, each with its length: ("ab", "c") is not ("a", "bc")."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]


def _hash_images(paths: Sequence[str]) -> list[bytes]:
    """A digest of each file's bytes. Threads do: neither reading nor hashing holds Python's lock."""
    from multiprocessing.pool import ThreadPool

    digests: list[bytes] = []
    with ThreadPool() as pool, Progress("fingerprint of the test images", len(paths)) as progress:
        for start in range(0, len(paths), HASHED_AT_ONCE):
            digests += pool.map(_hash_image, paths[start : start + HASHED_AT_ONCE])
            progress.step(len(digests) - start)
    return digests


def _hash_image(path: str) -> bytes:
    from dataset.tar_shards.reading import read_bytes

    try:
        return hashlib.blake2b(read_bytes(path), digest_size=16).digest()
    except OSError as error:
        raise InputError(f"cannot read image {path}: {explain(error)}") from error


# ---- which run a test is of ----


class Place(NamedTuple):
    """Where the test of a model belongs."""

    folder: Path | None  # of the run; None: nowhere
    reason: str = ""  # why nowhere


def find_place(model_path: Path, metadata: Mapping[str, Any], trained_models: Path) -> Place:
    """The folder of the run whose checkpoint, as it is now, is at `model_path`, with this `metadata`.

    `model_path` is the run's own file, with its folder beside it, or a copy of it that says which run it is of, such as
    best_model.pt: that run lies beside the copy, or in the folder `trained_models`. A copy whose weights or thresholds
    have become others than those of the run has no place.
    """
    run, own = metadata.get("run"), model_path.with_suffix("")
    folders = [own] if own.is_dir() else []
    if run:
        folders += [model_path.parent / run, trained_models / run]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        if run:
            return Place(None, f"there is no folder of its run, {trained_models / run}")
        return Place(None, f"{model_path} does not say which run it is of: it is an older one, or no run's")
    difference = find_change(identify_checkpoint(metadata), folder)
    if difference:
        return Place(None, f"{model_path} is another model than {find_checkpoint(folder)}: {difference}")
    return Place(folder)


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint of the run whose folder this is. Its name may have dots."""
    return folder.with_name(f"{folder.name}.pt")


def identify_checkpoint(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Texts that change with the checkpoint's weights, and with what was tuned afterwards."""
    groups = {"weights": WEIGHTS, "decisions": DECISIONS}
    return {
        group: _digest(json.dumps([metadata.get(name) for name in names], sort_keys=True))
        for group, names in groups.items()
    }


def find_change(identity: Mapping[str, str], folder: Path) -> str:
    """How the run's present checkpoint differs from the one with this `identity`; "" where it does not."""
    path = find_checkpoint(folder)
    metadata = checkpoints.read_sidecar(path)
    if metadata is None or not path.is_file():
        return f"{path} is gone, or cannot be read"
    present = identify_checkpoint(metadata)
    if present["weights"] != identity.get("weights"):
        return "its weights are of another epoch or training"
    if present["decisions"] != identity.get("decisions"):
        return "its thresholds or its calibration were tuned again"
    return ""


# ---- files ----


def save_test(
    folder: Path,
    result: Mapping[str, Any],
    scores: SavedScores,
    ruler: Ruler,
    metadata: Mapping[str, Any],
    thresholds: Sequence[float],
    views: str = "",
) -> None:
    """Write a test into the `folder` of its run: first the scores, then the numbers, which say that it is whole.

    `result` is what evaluate_result.json holds, `scores` those of the images in any order, `metadata` that of the
    checkpoint, `thresholds` (C,) those that were applied to the scores. Raises InputError if it cannot be written.
    """
    names, order = sort_images(scores.paths)
    identity, tested = identify_checkpoint(metadata), time.strftime("%Y-%m-%dT%H:%M:%S")
    content = {
        **result,
        "version": VERSION,
        "run": f"{folder.parent.name}/{folder.name}",
        "tested": tested,
        "thresholds": [float(threshold) for threshold in thresholds],
        "views": views,
        "ruler": ruler._asdict(),
        "checkpoint": identity,
    }
    with locks.hold(folder / LOCK):
        (folder / RESULT_FILE).unlink(missing_ok=True)  # of an earlier test, which would not go with new scores
        save_scores(
            folder / SCORES_FILE,
            scores.probabilities[order],
            scores.targets[order],
            names,
            scores.classes,
            _name_scores(content),
        )
        whole_files.write_text(folder / RESULT_FILE, to_json(content, indent=1))


def read_test(folder: Path) -> TestResult | None:
    """The test of the run in `folder`; None where there is none.

    A test of another checkpoint than the run has now, as its sidecar says, is `stale` and comes without numbers. Raises
    InputError where the file is damaged, or of another kind.
    """
    content = _read_result(folder)
    if content is None:
        return None
    path = folder / RESULT_FILE
    try:
        test = _parse(content)
        stale = find_change(content["checkpoint"], folder)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged, or no file of this project ({error}): test the run again") from error
    return test._replace(stale=stale, metrics={}, intervals={}, classes={}) if stale else test


def read_test_scores(folder: Path) -> SavedScores:
    """The probabilities and targets of the test of the run in `folder`, in the order of the images' names.

    `paths` are names within the images' common folder. Raises InputError where they are missing, damaged, or not those
    of the test's numbers: they go with its time and its ruler.
    """
    path, content = folder / SCORES_FILE, _read_result(folder)
    if content is None or not path.is_file():
        raise InputError(f"{folder} holds no whole test: python testing.py --MODEL_PATH {find_checkpoint(folder)}")
    scores = read_scores(path)
    if scores.identity != _name_scores(content):
        raise InputError(f"{path} is not of {RESULT_FILE} beside it: test the run again")
    if not ((scores.probabilities >= 0) & (scores.probabilities <= 1)).all():  # also where one is NaN
        raise InputError(f"{path} holds probabilities that are none, from 0 to 1: test the run again")
    if digest_targets(scores.targets) != content["ruler"]["targets"]:
        raise InputError(f"{path} has other labels than the ruler in {RESULT_FILE} beside it: test the run again")
    return scores


def find_split(path: Path, scores: SavedScores) -> str:
    """The split that the `scores` in the file `path` are of, as the test's numbers beside it say; "" without those.

    Raises InputError where the numbers are damaged, or of another test.
    """
    content = _read_result(path.parent) if path.name == SCORES_FILE else None
    if content is None:
        return ""
    if scores.identity != _name_scores(content):
        raise InputError(f"{path} is not of {RESULT_FILE} beside it: test the run again")
    return str(content.get("split", ""))


def _read_result(folder: Path) -> dict[str, Any] | None:
    """What RESULT_FILE holds; None where there is none. Raises InputError for what is no object of this version."""
    path = folder / RESULT_FILE
    if not path.is_file():
        return None
    content = read_json(path, allow_nan=True)
    version = content.get("version") if isinstance(content, dict) else None
    if type(version) is not int or version != VERSION or find_oddity(content):
        raise InputError(f"{path} is no test of this project, or of another version of it: test the run again")
    return content


def _name_scores(content: Mapping[str, Any]) -> str:
    """The identity of the scores that belong to a test."""
    return f"{content['checkpoint']['weights']}, tested {content['tested']}"


def _parse(content: Mapping[str, Any]) -> TestResult:
    """Raises LookupError, TypeError, ValueError or AttributeError for what `save_test` does not write."""
    ruler = Ruler(**{name: content["ruler"][name] for name in Ruler._fields})
    for name, value in ruler._asdict().items():
        _require(value, int if name in ("num_images", "num_classes", "definitions") else str)
    counts = {name: content[name] for name in ("min_labels", "max_labels", "num_images", "num_images_left_out")}
    texts = ("run", "views", "calibration", "engine", "tested")
    if not all(map(is_count, counts.values())):
        raise ValueError(f"its counts are {counts}")
    least, most = content["min_labels"], content["max_labels"]  # 0: no limit
    if least > ruler.num_classes or 0 < most < least:
        raise ValueError(f"{least} to {most} labels an image, of {ruler.num_classes} classes")
    if not is_list(content["thresholds"], is_threshold) or len(content["thresholds"]) != ruler.num_classes:
        raise ValueError(f"there are no {ruler.num_classes} thresholds")
    return TestResult(
        **{name: _require(content[name], str) for name in texts},
        **counts,
        stale="",
        ruler=ruler,
        metrics={name: _read_metric(name, value) for name, value in content["metrics"].items()},
        intervals={name: _read_interval(name, *ends) for name, ends in content["intervals"].items()},
        classes={name: _read_numbers(columns) for name, columns in content["classes"].items()},
        thresholds=content["thresholds"],
    )


def _require(value: Any, expected: type) -> Any:
    if type(value) is not expected:
        raise TypeError(f"{value!r} is no {expected.__name__}")
    return value


def _read_metric(name: str, value: Any) -> float:
    """A metric: a share from 0 to 1, or a number of something; NaN where it is undefined."""
    number = _read_number(value)
    if not (math.isnan(number) or 0 <= number <= (math.inf if name.startswith("num_") else 1 + ROUNDING)):
        raise ValueError(f"{name} is {number:g}")
    return number


def _read_interval(name: str, low: Any, high: Any) -> tuple[float, float]:
    ends = _read_metric(name, low), _read_metric(name, high)
    if ends[0] > ends[1]:
        raise ValueError(f"the interval of {name} is from {low:g} to {high:g}")
    return ends


def _read_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: _read_number(value) for name, value in values.items()}


def _read_number(value: Any) -> float:
    """A number; NaN for null, which is undefined."""
    if not is_measured(value):
        raise TypeError(f"{value!r} is no number")
    return math.nan if value is None else value
