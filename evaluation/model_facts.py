"""What there is to say of a tested model, in one named object: the page report.html and MODEL_CARD.md are made of it.

    facts = gather(predictions=..., targets=..., model=..., result=..., columns=..., origin=Origin(...))
    facts.verdict          # "71% of the labels are found (70% to 73%); 69% of what it says is right (67% to 71%)."
    report.save_report(folder, report.write_report(facts))

`result` is what evaluate_result.json says, `columns` are each class's numbers and the ends of their intervals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

import calibration
import metrics
from dataset.class_names import show_names
from dataset.json_files import read_json
from evaluation import mistakes, promises, slices
from evaluation.map_maker import MapMaker
from evaluation.mistakes import Pair
from evaluation.pages import count
from evaluation.predictions import Predictions
from evaluation.promises import Gain, Kept
from evaluation.shown_mistakes import Shown, show_mistake
from export import engines
from models.licences import explain_licence, find_licence, forbids_commerce
from predictor import Predictor
from utils import InputError

Interval = tuple[float, float]

CURVE_POINTS = 50  # of a class's curve, in a panel of some 130 pixels
MOST_PAIRS = 3  # confusions of one class
MOST_MISTAKES = 12  # of each kind that are shown with photographs
RARE = 10  # labels of a class; with fewer its numbers are rough
FEW_IMAGES = 200
# Constants whose texts may begin with "/" and are no paths: regular expressions, and names such as /m/01g317
NO_PATHS = ("GROUP_PATTERN", "SLICES", "CLASSES", "LABEL_COLUMNS", "NO_LABEL_NAMES")


class Number(NamedTuple):
    """A number at the top of the page, and what it means."""

    name: str
    value: float | None  # None: undefined
    interval: Interval | None  # None: none was computed
    text: str  # goes on after the value: "of the labels are found"


class NamedPair(NamedTuple):
    """Of the `out_of` images on which one class goes wrong, another one is said, or there, on `num_images`."""

    name: str  # of the other class
    num_images: int
    out_of: int
    expected: float  # by chance


class ClassFacts(NamedTuple):
    """The numbers of one class. NaN: undefined."""

    number: int
    name: str
    positives: int
    predicted: int
    threshold: float
    ap: float
    precision: float
    recall: float
    f1: float
    f1_interval: Interval | None
    curve: list[tuple[float, float]]  # recall and precision, from the highest threshold on
    said_instead: list[NamedPair]  # where it is missed, classes that are said wrongly
    there_instead: list[NamedPair]  # where it is said wrongly, classes that are there

    @property
    def is_measured(self) -> bool:
        return self.positives > 0

    @property
    def weakness(self) -> tuple[bool, float, int]:
        """Sorts the weakest class first; of equal ones that with most labels; those of which nothing is known last."""
        return not self.is_measured, self.f1, -self.positives


class Confusion(NamedTuple):
    """`said` is said wrongly where `there` is missed: on `num_images` of the `out_of` on which `there` is missed."""

    said: str
    there: str
    num_images: int
    out_of: int
    expected: float


class SliceFacts(NamedTuple):
    """A part of the test images, and how good the model is on it."""

    name: str
    num_images: int
    num_labels: int
    mean_ap: Number
    f1: Number

    @property
    def is_small(self) -> bool:
        """Whether its numbers say little."""
        return self.num_images < slices.FEW_IMAGES


class Promised(NamedTuple):
    """What the thresholds promise, and what the test images show of it."""

    text: str  # what was found
    words: str  # what exactly is promised
    holds: bool


class Abstention(NamedTuple):
    """How many images the model leaves to a person, and what it is better by on the others."""

    num_left: int
    num_images: int
    gains: list[tuple[str, Gain]]  # by metric; none where all images are left

    @property
    def text(self) -> str:
        """The number in words."""
        decided = self.num_images - self.num_left
        return (
            f"{self.num_left:,} of {count(self.num_images, 'image')} left to a person (ABSTAIN), {decided:,} decided."
        )


class Slicing(NamedTuple):
    """The slices of one column or pattern, and what is to be said of them."""

    name: str
    slices: list[SliceFacts]
    texts: list[str]  # sentences


class Bin(NamedTuple):
    """The entries of one bin of the reliability curve."""

    num_entries: int
    probability: float  # mean; NaN where there are none
    present: float  # share of them whose label is there


class Data(NamedTuple):
    """The images of the test, and those of the training."""

    name: str  # of the data set's folder
    split: str
    num_images: int
    num_left_out: int
    num_labels: int
    num_without_label: int
    unknown: float  # share of the entries
    fingerprint: str  # of the test's labels and the images' names
    ruler: str  # that it was measured by; "": it is not kept with a run
    num_train: int | None
    num_val: int | None
    is_cross_validated: bool  # each training image was predicted by a model that has not seen it, for the thresholds
    train_fingerprint: str
    novelty: Mapping[str, float | None]  # how many images are unlike the training images, and F1 on them; {}: not known

    @property
    def rows(self) -> list[tuple[str, str]]:
        """All of it in words: what, value."""
        rows = {
            "data set": self.name,
            f"{self.split} images": f"{self.num_images:,}",
            "labels": f"{self.num_labels:,}, {self.num_labels / max(self.num_images, 1):.2f} an image",
            "images without any": f"{self.num_without_label:,}",
            "unknown entries": f"{self.unknown:.1%}" if self.unknown else "",
            "left out": f"{count(self.num_left_out, 'image')} that cannot be read" if self.num_left_out else "",
            "fingerprint of the test": self.fingerprint,
            "ruler": self.ruler,
            **self._describe_novelty(),
            "trained on": "" if self.num_train is None else count(self.num_train, "image"),
            "validated on": self._describe_validation(),
            "fingerprint of the training": self.train_fingerprint,
        }
        return [(what, value) for what, value in rows.items() if value]

    def _describe_validation(self) -> str:
        if self.is_cross_validated:
            return "the same images, cross-validated: each image predicted by a model that has not seen it"
        return "" if self.num_val is None else count(self.num_val, "image")

    def _describe_novelty(self) -> dict[str, str]:
        if not self.novelty:
            return {}
        rows = {"unlike the training images": f"{self.novelty['share_unlike']:.1%} of the images"}
        most_novel, rest = self.novelty["f1_samples_most_novel"], self.novelty["f1_samples_rest"]
        if most_novel is not None and rest is not None:
            rows["mean F1 of an image"] = f"{most_novel:.3f} on the most novel tenth, {rest:.3f} on the others"
        return rows


class Check(NamedTuple):
    """What `dataset_tools.py check` found in the data set. `problem` says why there is nothing to show."""

    problem: str
    passed: bool = False
    findings: tuple[tuple[str, str, int], ...] = ()  # (error or warning, title, how many), errors first


class Licence(NamedTuple):
    """The licence of the weights that training began with."""

    name: str
    text: str
    is_non_commercial: bool


class Origin(NamedTuple):
    """Where a test comes from: what only a script knows, which reads config.py."""

    dataset: str  # name of the data set's folder
    fingerprint: str  # of the test's labels and the images' names
    ruler: str  # fingerprint of the ruler, see evaluation/test_results.py; "": the test is not kept with a run
    changes: Mapping[str, tuple[Any, Any]]  # (value, default) of the training's constants that differ from config.py's
    training_command: str  # "": the model's file does not say how it was trained
    testing_command: str
    check: Check
    training_images: Mapping[str, str]  # path of those that may be shown, by the names that predictions give them


@dataclass(frozen=True)
class ModelFacts:
    """Everything that the page and the card say."""

    backbone: str
    title: str
    about: list[tuple[str, str]]  # the model and its file: what, value
    headline: list[Number]  # one or two numbers that say how good it is
    numbers: list[Number]
    promised: Promised | None  # None: nothing is promised, or these are no test images
    abstention: Abstention | None  # None: no image is left to a person
    caveats: list[str]
    has_one_label: bool  # every image gets exactly one, its most probable class, whatever the thresholds
    classes: list[ClassFacts]  # the weakest first
    confusions: list[Confusion]  # the most surprising first
    slicings: list[Slicing]
    bins: list[Bin]
    ece: float
    confidence: float | None  # mean probability of the labels that are said
    mistakes: list[Shown]
    no_maps: str  # why there are none; "": there are
    data: Data
    check: Check
    changes: list[tuple[str, str, str]]  # name, value, default
    commands: list[tuple[str, str]]  # what it does, the command
    environment: list[tuple[str, str]]
    licence: Licence
    metrics: Mapping[str, float | None]

    @property
    def verdict(self) -> str:
        """The headline as a sentence; see the top of this file."""
        parts = []
        for number in self.headline:
            if number.value is None:
                parts.append(number.text)
                continue
            interval = f" ({number.interval[0]:.0%} to {number.interval[1]:.0%})" if number.interval else ""
            parts.append(f"{number.value:.0%} {number.text}{interval}")
        return f"{'; '.join(parts)}."

    @property
    def weakest(self) -> list[ClassFacts]:
        """Classes that it has seen, the weakest first."""
        return [facts for facts in self.classes if facts.is_measured]


def gather(
    *,
    predictions: Predictions,
    targets: NDArray[np.int8],
    model: Predictor,
    result: Mapping[str, Any],
    columns: Mapping[str, ArrayLike],
    confusion: NDArray[np.int64],
    origin: Origin,
) -> ModelFacts:
    """Collect the facts of a test. Reads the photographs that are shown, and a checkpoint's network for their maps.

    `targets` are (N, C), like the probabilities of the `predictions`, and `confusion` (C, 2, 2) is theirs. Raises
    InputError for a photograph that can no longer be read.
    """
    limits = result["min_labels"], result["max_labels"]
    scores = predictions.probabilities, targets, model.thresholds

    def read() -> Any:
        return mistakes.read_errors(*scores, *limits)

    numbers = {name: np.asarray(values) for name, values in columns.items()}
    found = mistakes.find_confusions(read(), len(model.classes))
    wrong, missed = confusion[:, 0, 1], confusion[:, 1, 0]
    classes = list_classes(model.classes, numbers, metrics.precision_recall_curve(*scores[:2]), found, wrong, missed)
    false_alarms, misses = mistakes.find_most_confident(read(), MOST_MISTAKES)
    maps = MapMaker(model)
    shown = [
        show_mistake(mistake, is_wrong, predictions, targets, model, maps, origin.training_images)
        for is_wrong, chosen in ((True, false_alarms), (False, misses))
        for mistake in chosen
    ]
    data = describe_data(origin, scores[0], targets, result, model.metadata)
    promised = read_promise(result, model.metadata)
    reliability = calibration.measure_reliability(*scores[:2])
    confidence = measure_confidence(scores[0], targets, model.thresholds, *limits)
    bins = [Bin(*values) for values in zip(*(column.tolist() for column in reliability), strict=True)]
    return ModelFacts(
        backbone=model.metadata["model_name"],
        title=f"{model.metadata['model_name']} + {model.metadata['head']}",
        about=describe_model(model, result),
        headline=make_headline(result, numbers),
        numbers=make_numbers(result, confusion),
        promised=promised,
        abstention=read_abstention(result),
        caveats=list_caveats(classes, data, origin.check, bool(result["intervals"]), promised),
        has_one_label=limits == (1, 1),
        classes=sorted(classes, key=lambda facts: facts.weakness),
        confusions=[
            Confusion(
                said=model.classes[pair.said],
                there=model.classes[pair.there],
                num_images=pair.num_images,
                out_of=int(missed[pair.there]),
                expected=pair.expected,
            )
            for pair in found.instead
        ],
        slicings=list_slicings(result.get("slices", {})),
        bins=bins,
        ece=result["metrics"]["ECE"],
        confidence=confidence,
        mistakes=shown,
        no_maps=maps.problem,
        data=data,
        check=origin.check,
        changes=[
            (name, write_value(hide_folders(name, value)), write_value(hide_folders(name, default)))
            for name, (value, default) in origin.changes.items()
        ],
        commands=[
            (what, command)
            for what, command in (("train", origin.training_command), ("test", origin.testing_command))
            if command
        ],
        environment=[*model.metadata.get("environment", {}).items()],
        licence=describe_licence(model.metadata),
        metrics=result["metrics"],
    )


# ---- numbers ----


def make_headline(result: Mapping[str, Any], columns: Mapping[str, NDArray[Any]]) -> list[Number]:
    """What the model is good for, in one number or two."""
    if "accuracy" in result["metrics"]:  # each image has one label, and gets one
        return [make_number(result, "accuracy", "of the images get their right class")]
    recall = make_number(result, "OR", "of the labels are found")
    precision = make_number(result, "OP", "of what it says is right")
    if not columns["positives"].sum():
        recall = Number("OR", None, None, "no image has a label, so that nothing can be found")
    if not columns["predicted"].sum():
        precision = Number("OP", None, None, "it says nothing about any image")
    return [recall, precision]


def make_numbers(result: Mapping[str, Any], confusion: NDArray[np.int64]) -> list[Number]:
    """Further numbers, each with what it means. `confusion` is (C, 2, 2)."""
    known, positives = confusion.sum(axis=(1, 2)), confusion[:, 1].sum(axis=1)
    shares = positives[positives > 0] / known[positives > 0]
    chance = shares.mean() if len(shares) else 0.0
    num_classes = int(result["metrics"]["num_classes_in_mAP"])
    mean_ap = make_number(
        result,
        "mAP",
        f"how well images that show a class are ranked before those that do not, mean of "
        f"{count(num_classes, 'class')}; 1 is perfect, a random order gives {chance:.3f}",
    )
    macro = make_number(result, "f1_macro", "mean F1 of the classes, of which rare ones count as much as frequent ones")
    if "accuracy" in result["metrics"]:
        top = make_number(result, "OR_top3", "of the images have their right class among the three most probable ones")
        return [macro, mean_ap, top]
    return [
        mean_ap,
        make_number(result, "OF1", "F1 of all labels together: the harmonic mean of the two shares above"),
        macro,
        make_number(result, "exact_match", "of the images get exactly their labels: none is missing, none too many"),
    ]


def make_number(result: Mapping[str, Any], name: str, text: str) -> Number:
    low, high = result["intervals"].get(name, (None, None))
    interval = None if low is None or high is None else (low, high)
    return Number(name, result["metrics"][name], interval, text)


def read_promise(result: Mapping[str, Any], metadata: Mapping[str, Any]) -> Promised | None:
    """What `metadata` promises, and whether the test of `result` bears it out."""
    if "promise" not in result:
        return None
    promise, found = metadata["promise"], result["promise"]
    kept = Kept(**{name: found[name] for name in Kept._fields}) if "found" in found else None
    text = f"{capitalise(promises.describe_kept(promise, kept))}."
    return Promised(text, f"The promise: {promise['words']}.", kept is not None and kept.holds)


def read_abstention(result: Mapping[str, Any]) -> Abstention | None:
    """What the test of `result` says of images that are left to a person."""
    if "abstention" not in result:
        return None
    left = result["abstention"]
    gains = [(name, Gain(**values)) for name, values in left["metrics"].items()]
    return Abstention(left["num_left"], result["num_images"], gains)


def measure_confidence(
    probabilities: NDArray[np.floating], targets: NDArray[np.int8], thresholds: ArrayLike, *limits: int
) -> float | None:
    """The mean probability of the labels that are said and known to be right or wrong; None where there are none."""
    total, number = 0.0, 0
    for rows in metrics.read_rows(probabilities):
        scores = np.asarray(probabilities[rows])
        said = metrics.predict(scores, thresholds, *limits) & metrics.as_known(targets[rows])[1]
        total += scores[said].sum(dtype=np.float64)
        number += int(said.sum())
    return total / number if number else None


def list_slicings(measured: Mapping[str, Any]) -> list[Slicing]:
    """The slices that a test measured, as evaluate_result.json has them."""
    return [
        Slicing(
            name,
            [
                SliceFacts(
                    name=slices.show_name(part),
                    num_images=values["num_images"],
                    num_labels=values["num_positives"],
                    mean_ap=make_number(values, "mAP", ""),
                    f1=make_number(values, "f1_weighted", ""),
                )
                for part, values in slicing["slices"].items()
            ],
            [f"{capitalise(text)}." for text in slicing["says"]],
        )
        for name, slicing in measured.items()
    ]


# ---- classes ----


def list_classes(
    names: Sequence[str],
    columns: Mapping[str, NDArray[Any]],
    curves: Iterable[metrics.Curve],
    confusions: mistakes.Confusions,
    wrong: NDArray[np.int64],
    missed: NDArray[np.int64],
) -> list[ClassFacts]:
    """The facts of each class, in order. `wrong` and `missed` (C,) count the images on which it is so."""
    instead: dict[int, list[NamedPair]] = {}
    for pair in confusions.instead:
        add_pair(instead, pair.there, pair, names[pair.said], int(missed[pair.there]))
    beside: dict[int, list[NamedPair]] = {}
    for pair in confusions.beside:
        add_pair(beside, pair.said, pair, names[pair.there], int(wrong[pair.said]))
    has_intervals = "F1_low" in columns
    return [
        ClassFacts(
            number=c,
            name=name,
            positives=int(columns["positives"][c]),
            predicted=int(columns["predicted"][c]),
            threshold=float(columns["threshold"][c]),
            ap=float(columns["AP"][c]),
            precision=float(columns["P"][c]),
            recall=float(columns["R"][c]),
            f1=float(columns["F1"][c]),
            f1_interval=(float(columns["F1_low"][c]), float(columns["F1_high"][c])) if has_intervals else None,
            curve=list_points(curve.thin_out(CURVE_POINTS, int(columns["predicted"][c]))),
            said_instead=instead.get(c, []),
            there_instead=beside.get(c, []),
        )
        for c, (name, curve) in enumerate(zip(names, curves, strict=True))
    ]


def add_pair(pairs: dict[int, list[NamedPair]], label: int, pair: Pair, name: str, out_of: int) -> None:
    """Add what is said of `pair` to the list of class `label`, which holds MOST_PAIRS at most."""
    found = pairs.setdefault(label, [])
    if len(found) < MOST_PAIRS:
        found.append(NamedPair(name, pair.num_images, out_of, pair.expected))


def list_points(curve: metrics.Curve) -> list[tuple[float, float]]:
    """(recall, precision) of each point of a curve."""
    return [*zip(curve.recall.tolist(), curve.precision.tolist(), strict=True)]


# ---- where it comes from ----


def describe_model(model: Predictor, result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The model and its file, in a few lines: what, value."""
    metadata = model.metadata
    lowest, highest = float(model.thresholds.min()), float(model.thresholds.max())
    rule = (
        f"from probability {lowest:.3f} on" if lowest == highest else f"from {lowest:.3f} to {highest:.3f} on, one each"
    )
    if model.min_labels == model.max_labels == 1:
        rule = "the most probable class of an image"
    elif model.min_labels or model.max_labels:
        rule += f"; at least {model.min_labels}" + (f", at most {model.max_labels}" if model.max_labels else "")
    best = metadata.get("best_f1")
    rows = {
        "backbone": metadata["model_name"],
        "head": metadata["head"],
        "images": f"{model.image_size} px, {metadata['resize_rule']}",
        "classes": f"{len(model.classes):,}",
        "says a label": rule,
        "calibration": model.calibration,
        "validation": "" if best is None else f"F1 {best:.4f} in epoch {metadata.get('epoch')}",
        "trained": (metadata.get("saved") or "").replace("T", " "),
        "run": metadata.get("run", ""),
        "file": f"{model.path.name}, {engines.recognise(model.path)}, run by {result['engine']}",
        "SHA-256": result["model_sha256"],
    }
    return [(what, value) for what, value in rows.items() if value]


def describe_data(
    origin: Origin,
    probabilities: NDArray[np.floating],
    targets: NDArray[np.int8],
    result: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> Data:
    """The images of the test and of the training, in numbers."""
    num_labels = num_without = num_unknown = 0
    for rows in metrics.read_rows(probabilities):
        present, known = metrics.as_known(targets[rows])
        num_labels += int(present.sum())
        num_without += int((~present.any(axis=1)).sum())
        num_unknown += int((~known).sum())
    dataset = metadata.get("dataset", {})
    return Data(
        name=origin.dataset,
        split=result["split"],
        num_images=len(targets),
        num_left_out=result["num_images_left_out"],
        num_labels=num_labels,
        num_without_label=num_without,
        unknown=num_unknown / max(targets.size, 1),
        fingerprint=origin.fingerprint,
        ruler=origin.ruler,
        num_train=dataset.get("num_train"),
        num_val=dataset.get("num_val"),
        is_cross_validated=promises.is_cross_validated(metadata),
        train_fingerprint=dataset.get("fingerprint", ""),
        novelty=result.get("novelty", {}),
    )


def list_caveats(
    classes: Sequence[ClassFacts], data: Data, check: Check, has_intervals: bool, promised: Promised | None
) -> list[str]:
    """What a reader of the numbers has to know, a sentence or two each."""
    texts = []
    if promised and not promised.holds:
        texts.append(f"{promised.text} {promised.words}")
    if data.split == "val":
        texts.append(
            "These are validation images, by which the model and its thresholds were chosen: it looks too good."
        )
    if data.split == "train":
        texts.append("These are training images, from which it learned: it looks far too good.")
    if data.num_images < FEW_IMAGES:
        texts.append(f"It was measured on {count(data.num_images, 'image')} only: every number here is rough.")
    unseen = [facts.name for facts in classes if not facts.is_measured]
    if unseen:
        texts.append(
            f"No image here has a label of {count(len(unseen), 'class')}, of which nothing is known then: "
            f"{show_names(unseen, most=5)}."
        )
    rare = sum(0 < facts.positives < RARE for facts in classes)
    if rare:
        texts.append(f"{count(rare, 'class')} with fewer than {RARE} labels: their numbers say little.")
    if data.unknown:
        texts.append(f"Of {data.unknown:.1%} of the entries the label is unknown; they count nowhere.")
    if data.num_left_out:
        texts.append(f"{count(data.num_left_out, 'image')} could not be read and were left out.")
    num_errors = sum(number for severity, _, number in check.findings if severity == "error")
    if num_errors:
        texts.append(f"The check of the data set found {count(num_errors, 'error')} in it; see Data.")
    if not has_intervals:
        texts.append("There are no intervals, since BOOTSTRAP_SAMPLES was 0.")
    return texts


def describe_licence(metadata: Mapping[str, Any]) -> Licence:
    """The licence of the weights that training began with."""
    name = find_licence(metadata)
    return Licence(name, explain_licence(name), forbids_commerce(name))


def read_check(path: Path, dataset_folder: Path) -> Check:
    """What check_dataset_result.json at `path` says, if it is of the data set in `dataset_folder`."""
    if not path.is_file():
        return Check("The data set was not checked: python dataset_tools.py check does it.")
    try:
        content = read_json(path)
        if content["dataset_path"] != str(dataset_folder):
            return Check("The last check was of another data set: python dataset_tools.py check does it for this one.")
        titles = content.get("titles", {})
        numbers = Counter((finding["severity"], finding["kind"]) for finding in content["findings"])
        passed = content["check_pass"] is True
    except InputError as error:
        return Check(f"The result of the check cannot be read: {error}.")
    except (LookupError, TypeError, AttributeError):
        return Check("The result of the check cannot be read: it has other keys than this version writes.")
    findings = [(str(severity), str(titles.get(kind, kind)), number) for (severity, kind), number in numbers.items()]
    return Check("", passed, tuple(sorted(findings, key=lambda finding: finding[0] != "error")))


def capitalise(text: str) -> str:
    """`text` as a sentence begins."""
    return text[:1].upper() + text[1:]


def write_value(value: Any) -> str:
    """A constant's value as text."""
    if isinstance(value, list):
        return f"({', '.join(map(write_value, value))}{',' * (len(value) == 1)})"
    return str(value)


def hide_folders(name: str, value: Any) -> Any:
    """The value of the constant `name` with PATH/TO/NAME in place of an absolute path: other people get the page."""
    if isinstance(value, list):
        return [hide_folders(name, item) for item in value]
    if name not in NO_PATHS and isinstance(value, str) and Path(value).expanduser().is_absolute():
        return f"PATH/TO/{Path(value).name}"
    return value
