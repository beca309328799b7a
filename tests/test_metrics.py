"""metrics.py against scikit-learn, on random and heavily tied scores, and by hand where it has no such number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import make_products_rng
from scipy import stats
from scipy.optimize import brentq
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

import metrics
from utils import InputError


def draw(seed: int, ties: int = 0, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """(300, 7) scores and targets; class 2 has no positive, class 3 no negative. `ties` > 0: so many values."""
    rng = np.random.default_rng(seed)
    probabilities = rng.random((300, 7))
    probabilities = np.floor(probabilities * ties) / ties if ties else probabilities
    targets = (rng.random((300, 7)) < rng.random(7) * 0.5).astype(np.int8)
    targets[:, 2], targets[:, 3] = 0, 1
    return probabilities.astype(dtype), targets


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ties", [0, 1, 2, 10])  # 1: every score is 0
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_scikit_learns(seed: int, ties: int, dtype: type) -> None:
    probabilities, targets = draw(seed, ties, dtype)
    ap = metrics.average_precision(probabilities, targets)
    assert np.isnan(ap[2])
    for label in (0, 1, 3, 4, 5, 6):
        expected = reference.average_precision_score(targets[:, label], probabilities[:, label])
        assert ap[label] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", [0, 10])
@pytest.mark.parametrize("thresholds", [0.5, np.linspace(0.1, 0.95, 7)])
def test_measure_is_scikit_learns(ties: int, thresholds: float | np.ndarray) -> None:
    probabilities, targets = draw(4, ties)
    measured = metrics.measure(probabilities, targets, thresholds)
    predicted = probabilities >= np.asarray(thresholds, dtype=np.float32)
    with_positives = [label for label in range(7) if targets[:, label].any()]
    assert measured["mAP"] == pytest.approx(
        reference.average_precision_score(targets[:, with_positives], probabilities[:, with_positives]), abs=1e-9
    )
    assert measured["num_classes_in_mAP"] == 6
    for average in ("micro", "macro", "weighted", "samples"):
        expected = reference.f1_score(targets, predicted, average=average, zero_division=0)
        assert measured[f"f1_{average}"] == pytest.approx(expected, abs=1e-9)
    for name, average in (("C", "macro"), ("O", "micro")):
        precision = reference.precision_score(targets, predicted, average=average, zero_division=0)
        recall = reference.recall_score(targets, predicted, average=average, zero_division=0)
        assert measured[f"{name}P"] == pytest.approx(precision, abs=1e-9)
        assert measured[f"{name}R"] == pytest.approx(recall, abs=1e-9)
        assert measured[f"{name}F1"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-9)
    assert measured["exact_match"] == pytest.approx(reference.accuracy_score(targets, predicted), abs=1e-9)
    assert measured["hamming_loss"] == pytest.approx(reference.hamming_loss(targets, predicted), abs=1e-9)
    jaccard = reference.jaccard_score(targets, predicted, average="samples", zero_division=0)
    assert measured["sample_accuracy"] == pytest.approx(jaccard, abs=1e-9)
    accuracies = [reference.accuracy_score(targets[:, label], predicted[:, label]) for label in range(7)]
    assert measured["label_accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-9)
    top = take_most_probable(probabilities, 3)
    for name, average in (("C", "macro"), ("O", "micro")):
        precision = reference.precision_score(targets, top, average=average, zero_division=0)
        recall = reference.recall_score(targets, top, average=average, zero_division=0)
        assert measured[f"{name}P_top3"] == pytest.approx(precision, abs=1e-9)
        assert measured[f"{name}R_top3"] == pytest.approx(recall, abs=1e-9)
        assert measured[f"{name}F1_top3"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-9)


def take_most_probable(probabilities: np.ndarray, count: int) -> np.ndarray:
    """Whether each is one of the `count` highest of its row, by sorting; of equal ones the first."""
    order = np.argsort(-probabilities.astype(np.float64), axis=1, kind="stable")
    return np.argsort(order, axis=1) < count


@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_with_three_classes_or_fewer_all_are_the_top(num_classes: int) -> None:
    probabilities, targets = (matrix[:, :num_classes] for matrix in draw(8))
    measured = metrics.measure(probabilities, targets, 0.5)
    assert measured["CR_top3"] == (targets.any(axis=0)).mean()  # a class without positives has recall 0
    assert measured["OP_top3"] == pytest.approx(targets.mean(), abs=1e-12)


def find_calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The formula of Naeini et al. (2015) for (M,) entries, bin by bin."""
    probabilities, total = probabilities.astype(np.float64), 0.0
    for step in range(15):
        inside = (probabilities > step / 15) & (probabilities <= (step + 1) / 15)
        inside |= (step == 0) & (probabilities == 0)
        if inside.any():
            total += inside.sum() * abs(targets[inside].mean() - probabilities[inside].mean())
    return total / len(probabilities)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ties", [0, 1, 10, 15])  # 15: every score lies on an edge of a bin
def test_calibration_error_is_the_formula(ties: int, dtype: type) -> None:
    probabilities, targets = draw(2, ties, dtype)
    known = np.random.default_rng(3).random(targets.shape) < 0.8
    marked = np.where(known, targets, -1)
    measured = metrics.measure(probabilities, marked, 0.5)["ECE"]
    assert measured == pytest.approx(find_calibration_error(probabilities[known], targets[known]), abs=1e-9)
    curve = calibration_curve(targets[known], probabilities[known], n_bins=15)
    bins = np.unique(metrics.find_bins(probabilities[known]), return_counts=True)[1]
    assert measured == pytest.approx((bins * np.abs(curve[0] - curve[1])).sum() / known.sum(), abs=1e-6)


def decide_by_hand(row: np.ndarray, thresholds: np.ndarray, least: int, most: int) -> list[int]:
    ranked = sorted(range(len(row)), key=lambda label: (-row[label], label))
    chosen = [label for label in ranked if row[label] >= thresholds[label]]
    chosen += [label for label in ranked if label not in chosen][: max(0, least - len(chosen))]
    chosen = sorted(chosen, key=ranked.index)
    return sorted(chosen[:most] if most else chosen)


@pytest.mark.parametrize("limits", [(0, 0), (1, 0), (0, 2), (2, 3), (1, 1), (9, 0), (0, 9)])
@pytest.mark.parametrize("ties", [0, 4])
def test_limits_of_labels_fill_up_and_cut_by_probability(ties: int, limits: tuple[int, int]) -> None:
    probabilities, targets = draw(9, ties)
    thresholds = np.array([0.1, 0.9, 0.5, 0.75, 1.0, 0.7, 0.6], dtype=np.float32)
    predicted = metrics.predict(probabilities, thresholds, *limits)
    assert [np.flatnonzero(row).tolist() for row in predicted] == [
        decide_by_hand(row, thresholds, *limits) for row in probabilities
    ]
    measured = metrics.measure(probabilities, targets, thresholds, *limits)
    expected = reference.f1_score(targets, predicted, average="weighted", zero_division=0)
    assert measured["f1_weighted"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("unknown", [None, -1, np.nan])
@pytest.mark.parametrize("limits", [(0, 0), (1, 2)])
def test_classes_are_measured_as_scikit_learn_does(limits: tuple[int, int], unknown: float | None) -> None:
    probabilities, targets = draw(10, ties=20)
    thresholds = np.linspace(0.2, 0.9, 7)
    predicted = metrics.predict(probabilities, thresholds, *limits)
    known = np.random.default_rng(4).random(targets.shape) < (1 if unknown is None else 0.7)
    marked = targets if unknown is None else np.where(known, targets, unknown)
    measured = metrics.measure_classes(probabilities, marked, thresholds, *limits)
    matrices = metrics.confusion(probabilities, marked, thresholds, *limits)
    if unknown is None:
        assert np.array_equal(matrices, reference.multilabel_confusion_matrix(targets, predicted))
    assert np.array_equal(measured["threshold"], thresholds)
    assert np.array_equal(measured["AP"], metrics.average_precision(probabilities, marked), equal_nan=True)
    for label in range(7):
        y, guess = targets[known[:, label], label], predicted[known[:, label], label]
        precision, recall, f1, _ = reference.precision_recall_fscore_support(
            y, guess, average="binary", zero_division=0
        )
        assert matrices[label].tolist() == reference.confusion_matrix(y, guess, labels=[0, 1]).tolist()
        assert measured["P"][label] == pytest.approx(precision, abs=1e-9)
        assert measured["R"][label] == pytest.approx(recall, abs=1e-9)
        assert measured["F1"][label] == pytest.approx(f1, abs=1e-9)
        assert measured["accuracy"][label] == pytest.approx(reference.accuracy_score(y, guess), abs=1e-9)
        assert measured["positives"][label] == y.sum()
        assert measured["predicted"][label] == guess.sum()


@pytest.mark.parametrize("ties", [0, 10])
def test_precision_recall_curve_is_scikit_learns(ties: int) -> None:
    probabilities, targets = draw(11, ties)
    for label, curve in enumerate(metrics.precision_recall_curve(probabilities, targets)):
        if label == 2:
            assert [len(values) for values in curve] == [0, 0, 0]
            continue
        y, scores = targets[:, label], probabilities[:, label]
        precision, recall, thresholds = reference.precision_recall_curve(y, scores, drop_intermediate=True)
        predicted = (scores >= thresholds[::-1, None]).sum(axis=1)
        # scikit-learn has both ends of a start without hits, which are one point
        first = 1 if len(predicted) > len(curve.predicted) else 0
        assert first == 0 or recall[-3] == precision[-3] == 0
        assert curve.predicted.tolist() == predicted[first:].tolist()
        assert curve.precision == pytest.approx(precision[-2 - first :: -1], abs=1e-12)
        assert curve.recall == pytest.approx(recall[-2 - first :: -1], abs=1e-12)


def test_a_thinned_curve_keeps_its_ends_and_what_is_around_a_number_of_predictions() -> None:
    (curve,) = metrics.precision_recall_curve(np.linspace(1, 0, 400)[:, None], np.tile([[1], [0], [0], [0]], (100, 1)))
    assert curve.thin_out(200) is curve, "it has 200 points: at each positive, and at the last entry before the next"
    points = [*zip(*(values.tolist() for values in curve), strict=True)]
    for predicted, around in ((1, [(1, 1.0, 0.01)]), (150, [(149, 38 / 149, 0.38), (152, 38 / 152, 0.38)])):
        thinned = curve.thin_out(10, predicted)
        kept = [*zip(*(values.tolist() for values in thinned), strict=True)]
        assert len(kept) <= 12
        assert {*around, points[0], points[-1]} <= {*kept} <= {*points}
        assert kept == sorted(kept)
    for predicted in (0, 400, 1000):
        assert curve.thin_out(10, predicted).predicted[[0, -1]].tolist() == [1, 400]


def test_cf1_is_not_macro_f1() -> None:
    targets = np.array([[1, 1], [1, 0], [0, 0], [0, 0]])
    probabilities = np.array([[0.9, 0.9], [0.9, 0.9], [0.1, 0.9], [0.1, 0.9]])
    measured = metrics.measure(probabilities, targets, 0.5)
    assert measured["CF1"] == pytest.approx(2 * (1.25 / 2) * 1 / (1.25 / 2 + 1))
    assert measured["f1_macro"] == pytest.approx((1 + 2 * 0.25 / 1.25) / 2)


IMAGE_METRICS: dict[str, Callable[..., Any]] = {
    "exact_match": reference.accuracy_score,
    "f1_samples": partial(reference.f1_score, average="samples", zero_division=0),
    "sample_accuracy": partial(reference.jaccard_score, average="samples", zero_division=0),
}


@pytest.mark.parametrize("unknown", [-1, np.nan])
def test_unknown_entries_count_nowhere(unknown: float) -> None:
    probabilities, targets = draw(5)
    hidden = np.random.default_rng(0).random(targets.shape) < 0.3
    hidden[:20] = True  # images of which nothing is known
    marked = np.where(hidden, unknown, targets.astype(float))
    ap = metrics.average_precision(probabilities, marked)
    for label in (0, 1, 4, 5, 6):
        known = ~hidden[:, label]
        expected = reference.average_precision_score(targets[known, label], probabilities[known, label])
        assert ap[label] == pytest.approx(expected, abs=1e-12)
    measured = metrics.measure(probabilities, marked, 0.5)
    known = ~hidden
    assert measured["f1_micro"] == pytest.approx(reference.f1_score(targets[known], probabilities[known] >= 0.5))
    assert measured["hamming_loss"] == pytest.approx((targets[known] != (probabilities[known] >= 0.5)).mean())
    rows = known.any(axis=1)
    of_images = (targets * known)[rows], ((probabilities >= 0.5) & known)[rows]
    for name, measure in IMAGE_METRICS.items():
        assert measured[name] == pytest.approx(measure(*of_images), abs=1e-9), name
    top = take_most_probable(probabilities, 3)
    assert measured["OF1_top3"] == pytest.approx(reference.f1_score(targets[known], top[known]), abs=1e-9)
    right = ((probabilities >= 0.5) == targets) & known
    assert measured["label_accuracy"] == pytest.approx((right.sum(axis=0) / known.sum(axis=0)).mean(), abs=1e-9)


@pytest.mark.parametrize("unknown", [-1, np.nan])
def test_images_without_a_known_label_do_not_count_in_intervals_either(unknown: float) -> None:
    """Of 50 images 20 are not known: resamples of 50, means over the known ones, and Student's t of 30."""
    numbers = np.arange(50)
    targets = (numbers[:, None] % [2, 3] == 0).astype(np.int8)
    predicted = targets == 1
    predicted[numbers % 4 == 0, 0] ^= True
    has_known = numbers >= 20
    marked = np.where(has_known[:, None], targets, unknown)
    rng = make_products_rng(4)
    draws = [numbers, *(rng.integers(50, size=50) for _ in range(100))]
    draws = [images[has_known[images]] for images in draws]
    scores, better = np.where(predicted, 0.9, 0.1), np.where(targets == 1, 0.9, 0.1)
    intervals, _ = metrics.bootstrap(scores, marked, 0.5, 100, seed=4)
    differences = metrics.compare(scores, better, marked, 0.5, 0.5, 100, seed=4)
    t = stats.t.ppf(0.975, 29)
    for name, measure in IMAGE_METRICS.items():
        values = np.array([measure(targets[images], predicted[images]) for images in draws])
        num = values[0] * (1 - values[0]) / values[1:].var(ddof=1)
        assert intervals[name] == pytest.approx(solve_score_interval(values[0], num, t), abs=1e-6), name
        value, *drawn = [
            measure(targets[images], targets[images]) - before for images, before in zip(draws, values, strict=True)
        ]
        error = max(np.std(drawn, ddof=1), value / 31)
        expected = value, value - t * error, value + t * error, 2 * stats.t.sf(value / error, 29)
        assert differences[name] == pytest.approx(expected, abs=1e-6), name


def test_where_nothing_is_known_nothing_is_right() -> None:
    assert metrics.measure([[0.9], [0.9]], [[0], [-1]], 0.5)["exact_match"] == 0
    measured = metrics.measure([[0.9], [0.9]], [[-1], [-1]], 0.5)
    assert [measured[name] for name in IMAGE_METRICS] == [0, 0, 0]
    intervals, _ = metrics.bootstrap([[0.9], [0.9]], [[-1], [-1]], 0.5, 3)
    assert intervals["exact_match"] == pytest.approx((0, 1), abs=1e-6)


def test_a_score_equal_to_the_threshold_is_predicted() -> None:
    threshold = 0.3  # not a float32: compared as the nearest one
    assert metrics.predict(np.array([[0.3]], dtype=np.float32), threshold).all()
    assert not metrics.predict(np.array([[np.nextafter(np.float32(0.3), np.float32(0))]]), threshold).any()


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_whole_numbers_are_compared_as_fractions(dtype: type) -> None:
    scores = np.array([[1, 0]], dtype=dtype)
    assert metrics.predict(scores, 0.5).tolist() == metrics.predict(scores.tolist(), 0.5).tolist() == [[True, False]]
    assert metrics.predict(scores, 0.5, min_labels=2).tolist() == [[True, True]]


def test_half_precision_is_compared_in_float32() -> None:
    """As `measure` does: .3001 would become the float16 nearest to .3."""
    assert metrics.predict(np.array([[0.5, 0.3]], dtype=np.float16), 0.3001).tolist() == [[True, False]]


def test_no_positive_at_all_has_no_map() -> None:
    measured = metrics.measure(np.full((3, 2), 0.4), np.zeros((3, 2)), 0.5)
    assert np.isnan(measured["mAP"])
    assert measured["num_classes_in_mAP"] == 0
    assert measured["f1_weighted"] == measured["CF1"] == 0
    assert measured["exact_match"] == 1


@pytest.mark.parametrize("score", [np.nan, 1.5, -0.1])
def test_scores_that_are_no_probabilities_are_refused(score: float) -> None:
    with pytest.raises(InputError, match=r"0\.\.\.1"):
        metrics.measure(np.array([[0.2], [score]]), np.array([[0], [1]]), 0.5)


@pytest.mark.parametrize("shapes", [((3, 2), (3, 1)), ((3,), (3,)), ((3, 0), (3, 0))])
def test_shapes_must_agree(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(InputError, match="shape"):
        metrics.average_precision(*map(np.zeros, shapes))


def test_negative_zero_is_zero() -> None:
    ap = metrics.average_precision(np.array([[-0.0], [0.0], [0.5]], dtype=np.float32), np.array([[1], [0], [0]]))
    assert ap[0] == pytest.approx(1 / 3)


def test_thresholds_must_be_one_or_one_a_class() -> None:
    probabilities, targets = draw(0)
    for thresholds in (np.full(5, 0.5), np.nan, [0.5] * 6 + [np.nan]):
        with pytest.raises(InputError, match="one a class"):
            metrics.measure(probabilities, targets, thresholds)


@pytest.mark.parametrize("measure", [metrics.measure, metrics.bootstrap])
def test_no_images_are_refused(measure: Callable[..., object]) -> None:
    with pytest.raises(InputError, match="no images"):
        measure(np.zeros((0, 2)), np.zeros((0, 2)), 0.5)


@pytest.mark.parametrize("hidden", [0.0, 0.3])
def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch, hidden: float) -> None:
    probabilities, targets = draw(6, ties=10)
    targets[np.random.default_rng(1).random(targets.shape) < hidden] = -1
    thresholds = np.linspace(0.1, 0.95, 7)

    def run() -> tuple[dict[str, float], np.ndarray, np.ndarray, dict[str, tuple[float, float]]]:
        return (
            metrics.measure(probabilities, targets, thresholds),
            metrics.confusion(probabilities, targets, thresholds, max_labels=2),
            metrics.average_precision(probabilities, targets),
            metrics.bootstrap(probabilities, targets, thresholds, num_samples=20)[0],
        )

    measured, matrices, ap, intervals = run()
    monkeypatch.setattr(metrics, "ENTRIES_AT_ONCE", 7 * 11)  # the last of 300 rows come alone
    monkeypatch.setattr(metrics, "CLASSES_AT_ONCE", 3)
    monkeypatch.setattr(metrics, "RANK_STEPS", 4)
    monkeypatch.setattr(metrics, "RESAMPLED_AT_ONCE", 300 * 3)
    monkeypatch.setattr(metrics, "RANKED_AT_ONCE", 4)  # fewer than some scores have images
    measured_in_blocks, matrices_in_blocks, ap_in_blocks, intervals_in_blocks = run()
    assert measured_in_blocks == pytest.approx(measured, abs=1e-12)
    assert np.array_equal(matrices_in_blocks, matrices)
    assert np.array_equal(ap_in_blocks, ap, equal_nan=True)
    for name, interval in intervals.items():
        assert intervals_in_blocks[name] == pytest.approx(interval, abs=1e-12)


def keep(
    values: dict[str, np.ndarray], whole: dict[str, np.ndarray], targets: np.ndarray, predicted: np.ndarray
) -> None:
    """In `values` of each class in a resample, put those of the whole where the resample cannot say them."""
    present, known = targets == 1, targets >= 0
    no_positive, nothing_predicted = ~present.any(axis=0), ~(predicted & known).any(axis=0)
    for name, is_lacking in {"AP": no_positive, "R": no_positive, "F1": no_positive, "P": nothing_predicted}.items():
        values[name] = np.where(is_lacking, whole[name], values[name])
    values["accuracy"] = np.where(known.any(axis=0), values["accuracy"], whole["accuracy"])


def measure_by_hand(
    probabilities: np.ndarray, targets: np.ndarray, images: np.ndarray, thresholds: np.ndarray, limits: dict[str, int]
) -> dict[str, Any]:
    """The metrics of one resample: `metrics.measure`, but means over classes from each class, kept where it lacks."""
    drawn = metrics.measure_classes(probabilities[images], targets[images], thresholds, **limits)
    whole = metrics.measure_classes(probabilities, targets, thresholds, **limits)
    top = take_most_probable(probabilities, 3)
    drawn_top = metrics.measure_classes(top[images] * 1.0, targets[images], 0.5)
    whole_top = metrics.measure_classes(top * 1.0, targets, 0.5)
    keep(drawn, whole, targets[images], metrics.predict(probabilities[images], thresholds, **limits))
    keep(drawn_top, whole_top, targets[images], top[images])
    measured: dict[str, Any] = {**metrics.measure(probabilities[images], targets[images], thresholds, **limits)}
    measured |= {name: drawn[name] for name in ("AP", "P", "R", "F1", "accuracy")}
    measured |= {f"{name}_top3": drawn_top[name] for name in ("P", "R")}
    del measured["num_classes_in_mAP"]
    for ending, values in (("", drawn), ("_top3", drawn_top)):
        p, r = values["P"].mean(), values["R"].mean()
        measured |= {f"CP{ending}": p, f"CR{ending}": r, f"CF1{ending}": 2 * p * r / (p + r) if p + r else 0.0}
    measured |= {"mAP": np.nanmean(drawn["AP"]), "f1_macro": drawn["F1"].mean()}
    return measured | {"label_accuracy": drawn["accuracy"].mean()}


def sum_longer_arms(
    value: np.ndarray, drawn: list[np.ndarray], interval: np.ndarray, has_class: np.ndarray, level: float = 0.8
) -> np.ndarray:
    """What classes add to the squared arms of the mean over all of them, (2,)."""
    z, total = stats.norm.ppf((1 + level) / 2), np.zeros(2)
    for label in np.flatnonzero(has_class.any(axis=0)):
        error = np.std([each[label] for each in drawn], ddof=1)
        for side in (0, 1):
            total[side] += max((interval[side, label] - value[label]) ** 2 - (z * error) ** 2, 0)
    return total / len(value) ** 2


def count_itself(probabilities: np.ndarray, targets: np.ndarray, label: int) -> float:
    """How much lower AP is where no positive counts in its own precision, positive by positive."""
    known = targets[:, label] >= 0
    scores, present = probabilities[known, label], targets[known, label] == 1
    lower = []
    for score in scores[present]:
        hits, entries = (present & (scores >= score)).sum(), (scores >= score).sum()
        lower.append(hits / entries - (hits - 1) / (entries - 1) if entries > 1 else 0)
    return float(np.mean(lower))


def solve_score_interval(value: float, num: float, t: float) -> tuple[float, float]:
    """The v with (value - v)² = t² v (1 - v) / num below and above the value, by bisection."""

    def excess(share: float) -> float:
        return (value - share) ** 2 - t**2 * share * (1 - share) / num

    find_root: Any = brentq
    low = find_root(excess, 0, value - 1e-12) if excess(0) > 0 else 0.0  # at 0 and 1 the value itself is a root
    high = find_root(excess, value + 1e-12, 1) if excess(1) > 0 else 1.0
    return low, high


def find_entry_interval(name: str, value: float, tables: dict[str, np.ndarray], t: float) -> tuple[float, ...]:
    """What the pooled entries of a metric say of it by themselves; the value itself for other metrics.

    `tables` (N, C) bool: known, present, predicted, and predicted_top.
    """
    predicted, present = tables["predicted_top" if name.endswith("_top3") else "predicted"], tables["present"]
    either = (predicted | present).sum(axis=0)
    shares = present.sum(axis=0) / max(present.sum(), 1)  # weights of the classes
    nums = {
        "OP": predicted.sum(),
        "OR": present.sum(),
        "OF1": either.sum(),
        "f1_micro": either.sum(),
        "f1_weighted": 1 / sum(share**2 / num for share, num in zip(shares, either, strict=True) if num),
        "hamming_loss": tables["known"].sum(),
    }
    num = nums.get(name.removesuffix("_top3"))
    if num is None:
        return value, value
    if not num:
        return 0, 1
    if "f1" in name.lower():
        return tuple(2 * j / (1 + j) for j in solve_score_interval(value / (2 - value), num, t))
    return solve_score_interval(value, num, t)


@pytest.mark.parametrize("ties", [0, 1, 5])
@pytest.mark.parametrize("unknown", [None, -1, np.nan])
def test_intervals_are_those_of_the_standard_error_over_resamples(unknown: float | None, ties: int) -> None:
    probabilities, targets = draw(7, ties)
    probabilities, targets = probabilities[:40], targets[:40].astype(float)
    targets[:, 1] = np.arange(40) == 0  # its one positive is missing from a third of the resamples
    if unknown is not None:
        targets[np.random.default_rng(2).random(targets.shape) < 0.2] = unknown
    thresholds = np.linspace(0.1, 0.6, 7)
    limits = {} if unknown is None else {"min_labels": 1, "max_labels": 3}
    rng = make_products_rng(5)
    drawn = []
    for _ in range(60):
        drawn.append(measure_by_hand(probabilities, targets, rng.integers(40, size=40), thresholds, limits))
    whole = measure_by_hand(probabilities, targets, np.arange(40), thresholds, limits)
    intervals, class_intervals = metrics.bootstrap(probabilities, targets, thresholds, 60, seed=5, level=0.8, **limits)
    assert intervals.keys() == whole.keys() - {*class_intervals, "P_top3", "R_top3"}
    top = take_most_probable(probabilities, 3).astype(float)
    present, known = targets == 1, targets >= 0
    wider = {}
    for ending, scores, at in (("", probabilities, thresholds), ("_top3", top, 0.5)):
        found = class_intervals if not ending else metrics.bootstrap(top, targets, 0.5, 2, level=0.8)[1]
        predicted = known & (metrics.predict(scores, at, **limits) if not ending else top > 0)
        added = {
            name: sum_longer_arms(whole[name + ending], [each[name + ending] for each in drawn], found[name], of)
            for name, of in (
                ("P", predicted),
                ("R", present),
                ("F1", present),
                ("AP", present),
                ("accuracy", known),
            )
            if name + ending in whole
        }
        cp, cr = whole[f"CP{ending}"], whole[f"CR{ending}"]
        by_cp, by_cr = (2 * other**2 / (cp + cr) ** 2 if cp + cr else 0 for other in (cr, cp))
        wider |= {f"CP{ending}": added["P"], f"CR{ending}": added["R"]}
        wider[f"CF1{ending}"] = by_cp**2 * added["P"] + by_cr**2 * added["R"]
        if not ending:
            wider |= {"mAP": added["AP"] * (7 / present.any(axis=0).sum()) ** 2, "f1_macro": added["F1"]}
            wider["label_accuracy"] = added["accuracy"]
    tables = {"known": known, "present": present, "predicted_top": known & (top > 0)}
    tables["predicted"] = known & metrics.predict(probabilities, thresholds, **limits)
    for name, interval in intervals.items():
        value, error = float(whole[name]), np.std([each[name] for each in drawn], ddof=1)
        num = value * (1 - value) / error**2 if error > 1e-12 and 0 < value < 1 else 40
        t = stats.t.ppf(0.9, 39)
        all_ends = solve_score_interval(value, num, t), find_entry_interval(name, value, tables, t)
        arms = np.abs(np.array(all_ends) - value).max(axis=0)
        arms = np.sqrt(arms**2 + wider.get(name, 0))
        if name == "mAP":
            arms[0] += np.mean([count_itself(probabilities, targets, c) for c in range(7) if present[:, c].any()])
        assert interval == pytest.approx((max(value - arms[0], 0), min(value + arms[1], 1)), abs=1e-6), name
    assert [*class_intervals] == ["AP", "P", "R", "F1", "accuracy"]
    predicted = metrics.predict(probabilities, thresholds, **limits) & known
    for label in range(7):
        positives = present[:, label].sum()
        hits = (predicted & present)[:, label].sum()
        either = (predicted | present)[:, label].sum()
        right = ((predicted == present) & known)[:, label].sum()
        shares = {
            "P": (hits, predicted[:, label].sum()),
            "R": (hits, positives),
            "accuracy": (right, known[:, label].sum()),
            "F1": (hits, either),
        }
        for name, (count, total) in shares.items():
            expected = np.array([0.0, 1.0])
            if total:
                found = stats.binomtest(int(count), int(total)).proportion_ci(0.8, method="wilson")
                expected = np.array([found.low, found.high])
            if name == "F1":
                expected = 2 * expected / (1 + expected)
            assert class_intervals[name][:, label] == pytest.approx(expected, abs=1e-9), (name, label)
        ends = class_intervals["AP"][:, label]
        if not positives:
            assert np.isnan(ends).all()
            continue
        value, error = whole["AP"][label], np.std([each["AP"][label] for each in drawn], ddof=1)
        num = value * (1 - value) / error**2 if error > 1e-12 and value < 1 else positives
        expected = solve_score_interval(value, num, stats.t.ppf(0.9, max(positives - 1, 1)))
        assert ends == pytest.approx(expected, abs=1e-6), label


def test_standard_error_is_scipys() -> None:
    """On the same resamples: of the mean F1 over images, which needs no class."""
    probabilities, targets = draw(9)
    found = metrics.resample(probabilities[:50], targets[:50], 0.5, num_samples=200, seed=4)
    f1 = reference.f1_score(targets[:50].T, probabilities[:50].T >= 0.5, average=None, zero_division=0)  # of each image
    expected = stats.bootstrap((f1,), np.mean, n_resamples=200, method="percentile", rng=make_products_rng(4), batch=1)
    drawn = found.drawn.overall["f1_samples"]
    assert np.sort(drawn) == pytest.approx(np.sort(expected.bootstrap_distribution), abs=1e-12)
    assert drawn.std(ddof=1) == pytest.approx(expected.standard_error, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_an_interval_contains_its_value(seed: int) -> None:
    """With rare classes, of which a resample often has no positive or several times the same one."""
    rng = np.random.default_rng(seed)
    probabilities = rng.random((60, 30)).astype(np.float32)
    targets = (rng.random((60, 30)) < np.geomspace(0.01, 0.4, 30)).astype(np.int8)
    measured, by_class = (
        measure(probabilities, targets, 0.7) for measure in (metrics.measure, metrics.measure_classes)
    )
    intervals, class_intervals = metrics.bootstrap(probabilities, targets, 0.7, num_samples=50)
    assert intervals.keys() == measured.keys() - {"num_classes_in_mAP"}
    for name, (low, high) in intervals.items():
        assert 0 <= low <= measured[name] <= high <= 1, name
    for name, (low, high) in class_intervals.items():
        has_value = ~np.isnan(by_class[name])
        assert (low <= by_class[name])[has_value].all(), name
        assert (by_class[name] <= high)[has_value].all(), name
        assert ((low >= 0) & (high <= 1))[has_value].all(), name
    other = rng.random((60, 30)).astype(np.float32)
    arguments = probabilities, other, targets, 0.7, 0.6, 50
    differences = [*metrics.compare(*arguments).items()]
    for name, found in metrics.compare_classes(*arguments).items():
        columns = [numbers[~np.isnan(found.value)] for numbers in found]
        differences += [(name, metrics.Difference(*numbers)) for numbers in zip(*columns, strict=True)]
    for name, (value, low, high, p) in differences:
        assert -1 <= low <= value <= high <= 1, name
        assert (p < 0.05) == (not low <= 0 <= high), name


def test_resamples_keep_a_class_that_they_lack() -> None:
    """One image in four has the only positive: a resample without it has the AP of the whole."""
    probabilities = np.array([[0.9, 0.3], [0.4, 0.2], [0.6, 0.1], [0.1, 0.7]])
    targets = np.array([[0, 0], [1, 0], [0, 0], [0, 0]])
    rng = make_products_rng(0)
    drawn = [np.bincount(rng.integers(4, size=4), minlength=4) for _ in range(50)]
    aps = [count[1] / count[:3].sum() if count[1] else 1 / 3 for count in drawn]  # 0.9, 0.6 and 0.4 rank before or with
    assert min(count[1] for count in drawn) == 0
    found = metrics.resample(probabilities, targets, 0.5, num_samples=50)
    assert found.drawn.overall["mAP"] == pytest.approx(aps, abs=1e-12)
    assert (found.drawn.overall["num_classes_in_mAP"] == 1).all()
    nothing, _ = metrics.bootstrap(probabilities, np.zeros((4, 2)), 0.5, num_samples=5)
    assert np.isnan(nothing["mAP"]).all()


def draw_few(right: int, wrong: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """300 images of 5 classes with that many labels predicted; which targets they hit does not depend on `seed`."""
    targets = (make_products_rng(0).random((300, 5)) < 0.3).astype(np.int8)
    scores, rng = np.full(targets.shape, 0.1), make_products_rng(seed)
    for count, is_right in ((right, 1), (wrong, 0)):
        scores[tuple(rng.permutation(np.argwhere(targets == is_right))[:count].T)] = 0.9
    return scores, targets


def test_few_labels_in_many_images_say_what_few_labels_do() -> None:
    for right, wrong in ((3, 0), (0, 3), (2, 2)):
        scores, targets = draw_few(right, wrong, 1)
        low, high = metrics.bootstrap(scores, targets, 0.5, 200)[0]["OP"]
        expected = stats.binomtest(right, right + wrong).proportion_ci(0.95, method="wilson")
        assert low <= expected.low + 1e-3, (right, wrong)
        assert high >= expected.high - 1e-3, (right, wrong)
    targets = np.zeros((300, 5), dtype=np.int8)
    targets[0, 0] = targets[0, 1] = targets[1, 2] = 1  # all found
    intervals, _ = metrics.bootstrap(targets * 0.9, targets, 0.5, 200)
    low = solve_score_interval(1.0, 3, stats.t.ppf(0.975, 299))[0]
    for name, expected in {"OP": low, "OR": low, "OF1": 2 * low / (1 + low), "f1_micro": 2 * low / (1 + low)}.items():
        assert intervals[name] == pytest.approx((expected, 1), abs=1e-6), name
    assert intervals["f1_weighted"] == pytest.approx(intervals["OF1"])
    assert intervals["exact_match"][0] > 0.98, "that is of all 300 images"


def test_intervals_of_a_few_labels_contain_the_truth() -> None:
    """4 labels a test set, each right with probability .8: as likely as the binomial distribution says."""
    covered = 0.0
    for right in range(5):
        scores, targets = draw_few(right, 4 - right, right)
        low, high = metrics.bootstrap(scores, targets, 0.5, 200)[0]["OP"]
        covered += float(stats.binom.pmf(right, 4, 0.8)) * (low <= 0.8 <= high)
    assert covered > 0.94


def test_a_mean_over_classes_is_as_unsure_as_its_rarest_class() -> None:
    """Which metrics are such means is found out: of two classes they are the mean of what each has alone."""
    numbers = np.arange(1000)
    targets = np.column_stack([numbers % 2 == 0, np.where(np.isin(numbers, (5, 6)), 1, -1)]).astype(np.int8)
    predicted = targets == 1
    predicted[numbers % 50 < 5, 0] ^= True  # 60 positives are missed, and 40 others are predicted
    scores = np.where(predicted, 0.9, 0.1)
    measured = metrics.measure(scores, targets, 0.5)
    intervals, _ = metrics.bootstrap(scores, targets, 0.5, 100)
    alone = [metrics.measure(scores[:, [label]], targets[:, [label]], 0.5) for label in (0, 1)]
    means = {
        name
        for name in intervals
        if measured[name] == pytest.approx((alone[0][name] + alone[1][name]) / 2, abs=1e-9)
        and alone[0][name] != alone[1][name]  # else any mean of the two is the same
    }
    assert {"mAP", "CP", "CR", "f1_macro", "label_accuracy"} <= means
    of_two = stats.binomtest(2, 2).proportion_ci(0.95, method="wilson").low  # .34 of two entries that are both right
    shortest = (1 - 2 * of_two / (1 + of_two)) / 2  # that of F1; it counts for half
    for name in means:
        assert measured[name] - intervals[name][0] > shortest - 1e-6, name
    own = stats.binomtest(900, 1000).proportion_ci(0.95, method="wilson")
    low, high = intervals["label_accuracy"]
    assert 0.95 - low == pytest.approx(np.hypot(1 - of_two, 0.9 - own.low) / 2, abs=0.002)
    assert high - 0.95 == pytest.approx((own.high - 0.9) / 2, abs=0.003)


def test_few_labels_show_no_difference() -> None:
    """3 labels, all right, against 3 that are all wrong: Fisher's p is .1."""
    (a, targets), (b, _) = draw_few(3, 0, 1), draw_few(0, 3, 2)
    found = metrics.compare(a, b, targets, 0.5, 0.5, 200)
    value, low, high, p = found["OP"]
    assert value == -1
    assert (low, high > 0, p > 0.05) == (-1, True, True)
    error = max(find_drawn_error("OP", a, b, targets), 1 / 4)
    assert p == pytest.approx(2 * stats.t.sf(1 / error, 3 - 1), rel=1e-3)
    value, error = found["hamming_loss"].value, find_drawn_error("hamming_loss", a, b, targets)
    assert found["hamming_loss"].p == pytest.approx(2 * stats.t.sf(value / error, 300 - 1), rel=1e-3)
    alone, _ = draw_few(1, 0, 1)
    assert metrics.compare(alone, b, targets, 0.5, 0.5, 20)["OP"][1:] == (-1, 1, 1), "one label shows nothing"
    targets = np.zeros((300, 5), dtype=np.int8)
    targets[0, 0] = targets[0, 1] = targets[1, 2] = 1  # all found, or none
    found = metrics.compare(targets * 0.9, np.full(targets.shape, 0.1), targets, 0.5, 0.5, 200)
    for name in ("OR", "OF1", "f1_micro", "f1_weighted"):
        assert found[name].p > 0.05, name
        assert found[name].high >= 0, name


def find_drawn_error(name: str, a: np.ndarray, b: np.ndarray, targets: np.ndarray) -> float:
    drawn = [metrics.resample(scores, targets, 0.5, 200).drawn.overall[name] for scores in (a, b)]
    return float(np.std(drawn[1] - drawn[0], ddof=1))


def test_one_image_says_nothing_of_others() -> None:
    probabilities, targets = np.array([[0.9, 0.2, 0.7]]), np.array([[1, 0, 0]])
    intervals, by_class = metrics.bootstrap(probabilities, targets, 0.5, num_samples=3)
    for name, interval in intervals.items():
        assert interval == pytest.approx((0, 1), abs=1e-5), name
    assert by_class["AP"][:, 0] == pytest.approx(solve_score_interval(1.0, 1, stats.t.ppf(0.975, 1)), abs=1e-6)
    assert np.isnan(by_class["AP"][:, 1]).all()
    found = metrics.compare(probabilities, targets * 1.0, targets, 0.5, 0.5, samples=3)["exact_match"]
    assert found == pytest.approx((1, -1, 1, 1), abs=1e-9)


@pytest.mark.parametrize("options", [{"num_samples": 1}, {"level": 1.0}, {"level": 0.0}])
def test_bootstrap_without_resamples_or_level_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="bootstrap"):
        metrics.bootstrap(np.zeros((3, 2)), np.zeros((3, 2)), 0.5, **options)


def test_students_distribution_is_scipys() -> None:
    degrees = np.array([0, 1, 1.5, 2, 3, 9, 59, 1000, 40_000, 2])
    for level in (0.5, 0.95, 0.999):
        expected = stats.t.ppf((1 + level) / 2, degrees[1:])
        assert metrics.find_t(level, degrees)[1:] == pytest.approx(expected, rel=1e-4)
    level = 1 - 0.05 / 1225  # of all pairs of 50 slices
    assert metrics.find_t(level, degrees[5:9]) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees[5:9]), rel=1e-4)
    for t in (0.0, 0.3, 2.0, 8.0):
        expected = 2 * stats.t.sf(t, degrees[1:])
        assert metrics.find_p(np.full(10, t), degrees)[1:] == pytest.approx(expected, rel=1e-4, abs=1e-15)
    assert metrics.find_t(0.95, degrees)[0] > 1e6
    assert metrics.find_p(np.array([1e9]), degrees[:1]) == 1


def draw_two(ties: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two models' scores (40, 5) of the same images, the second's better; class 1 has one positive, class 2 none."""
    rng = make_products_rng(11)  # always the same: the difference between the two has to be certain
    targets = (rng.random((40, 5)) < 0.4).astype(np.int8)
    targets[:, 1], targets[:, 2] = np.arange(40) == 0, 0
    scores = [np.clip(rng.random((40, 5)) * 0.6 + gain * targets, 0, 1).astype(np.float32) for gain in (0.1, 0.3)]
    if ties:
        scores = [np.floor(each * ties) / np.float32(ties) for each in scores]
    return scores[0], scores[1], targets


def measure_with_scikit_learn(
    probabilities: np.ndarray, targets: np.ndarray, threshold: float, images: np.ndarray
) -> dict[str, float]:
    """Some metrics of `measure` on `images`, and each class's AP; without a positive, AP and F1 are those of all."""
    predicted = probabilities >= np.float32(threshold)
    rows = [images if targets[images, label].any() else np.arange(len(targets)) for label in range(targets.shape[1])]
    measured, f1 = {}, []
    for label, of in enumerate(rows):
        is_there = targets[of, label].any()
        ap = reference.average_precision_score(targets[of, label], probabilities[of, label]) if is_there else np.nan
        measured[f"AP {label}"] = ap
        f1.append(reference.f1_score(targets[of, label], predicted[of, label], zero_division=0))
    measured |= {"mAP": np.nanmean([*measured.values()]), "f1_macro": np.mean(f1)}
    targets, predicted = targets[images], predicted[images]
    for average in ("micro", "weighted", "samples"):
        measured[f"f1_{average}"] = reference.f1_score(targets, predicted, average=average, zero_division=0)
    measured["exact_match"] = reference.accuracy_score(targets, predicted)
    accuracies = [reference.accuracy_score(*columns) for columns in zip(targets.T, predicted.T, strict=True)]
    measured["label_accuracy"] = float(np.mean(accuracies))
    measured["hamming_loss"] = reference.hamming_loss(targets, predicted)
    return measured


def widen(name: str, drawn: list[list[float]], variance: float, arguments: tuple[Any, ...]) -> float:
    """The variance of a difference with what the classes add to those of the two models, and their correlation."""
    scores_a, scores_b, targets, at_a, at_b = arguments
    of_class, num_classes = {"mAP": ("AP", 4), "f1_macro": ("F1", 5), "label_accuracy": ("accuracy", 5)}[name]
    has_class = targets >= (0 if name == "label_accuracy" else 1)
    added = []
    for scores, at in ((scores_a, at_a), (scores_b, at_b)):
        found = metrics.resample(scores, targets, at, 80, seed=3)
        value, draws = (measured.by_class[of_class] for measured in found[:2])
        interval = metrics.bootstrap(scores, targets, at, 80, seed=3)[1][of_class]
        arms = sum_longer_arms(value[0], [*draws], interval, has_class, 0.95) * (5 / num_classes) ** 2
        added.append(arms.mean() / stats.norm.ppf(0.975) ** 2)
    s_a, s_b = (np.std(each, ddof=1) for each in drawn)
    e_a, e_b = np.hypot(s_a, added[0] ** 0.5), np.hypot(s_b, added[1] ** 0.5)
    correlation = np.corrcoef(drawn[0], drawn[1])[0, 1]
    assert variance == pytest.approx(s_a**2 + s_b**2 - 2 * correlation * s_a * s_b)
    return e_a**2 + e_b**2 - 2 * correlation * e_a * e_b


@pytest.mark.parametrize("ties", [0, 5])
def test_compare_is_the_difference_in_each_resample(ties: int) -> None:
    scores_a, scores_b, targets = draw_two(ties)
    rng = make_products_rng(3)
    draws = [np.arange(40), *(rng.integers(40, size=40) for _ in range(80))]
    a = [measure_with_scikit_learn(scores_a, targets, 0.5, images) for images in draws]
    b = [measure_with_scikit_learn(scores_b, targets, 0.45, images) for images in draws]
    arguments = scores_a, scores_b, targets, 0.5, 0.45
    found = metrics.compare(*arguments, samples=80, seed=3)
    assert found.keys() == metrics.measure(scores_a, targets, 0.5).keys() - {"num_classes_in_mAP"}
    by_class = metrics.compare_classes(*arguments, samples=80, seed=3)
    assert [*by_class] == ["AP", "P", "R", "F1", "accuracy"]
    for label in range(5):
        found[f"AP {label}"] = metrics.Difference(*(numbers[label] for numbers in by_class["AP"]))
    for name in a[0]:
        value, *drawn = [of_b[name] - of_a[name] for of_a, of_b in zip(a, b, strict=True)]
        num = int(targets[:, int(name[-1])].sum()) if name.startswith("AP ") else 40
        if num == 0:
            assert np.isnan(found[name]).all()
        elif num == 1:
            assert found[name] == pytest.approx((value, -1, 1, 1), abs=1e-9), "one positive shows nothing"
        else:
            variance = np.var(drawn, ddof=1)
            if name in ("mAP", "f1_macro", "label_accuracy"):
                variance = widen(name, [[each[name] for each in of[1:]] for of in (a, b)], variance, arguments)
            error = max(variance**0.5, abs(value) / (num + 1))
            reach, p = stats.t.ppf(0.975, num - 1) * error, 2 * stats.t.sf(abs(value) / error, num - 1)
            expected = value, max(value - reach, -1), min(value + reach, 1), p
            assert found[name] == pytest.approx(expected, abs=1e-6), name
    assert found["mAP"].p < 0.01
    assert found["mAP"].low > 0


def test_classes_are_compared_by_what_each_metric_is_of() -> None:
    """P is of what is predicted, by the model that predicts less; accuracy of all entries."""
    scores_a, scores_b, targets = draw_two()
    found = metrics.compare_classes(scores_a, scores_b, targets, 0.5, 0.8, samples=30)
    resampled = [metrics.resample(scores, targets, at, 30) for scores, at in ((scores_a, 0.5), (scores_b, 0.8))]
    counts = {
        "P": np.minimum((scores_a >= 0.5).sum(axis=0), (scores_b >= np.float32(0.8)).sum(axis=0)),
        "R": targets.sum(axis=0),
        "F1": targets.sum(axis=0),
        "accuracy": np.full(5, 40),
    }
    assert 0 < counts["P"][4] < counts["R"][4]
    for name, nums in counts.items():
        drawn = resampled[1].drawn.by_class[name] - resampled[0].drawn.by_class[name]
        for label, num in enumerate(nums):
            value, low, high, p = (numbers[label] for numbers in found[name])
            if num < 2:
                assert (low, high, p) == (-1, 1, 1)
                continue
            error = max(drawn[:, label].std(ddof=1), abs(value) / (num + 1))
            reach = stats.t.ppf(0.975, num - 1) * error
            assert (low, high) == pytest.approx((max(value - reach, -1), min(value + reach, 1)), abs=1e-6)
            if error:
                assert p == pytest.approx(2 * stats.t.sf(abs(value) / error, num - 1), abs=1e-6)


def test_a_model_is_as_good_as_itself() -> None:
    scores, _, targets = draw_two()
    differences = metrics.compare(scores, scores.copy(), targets, 0.5, 0.5, samples=50)
    for found in differences.values():
        assert found == pytest.approx((0, 0, 0, 1), abs=1e-7)


@pytest.mark.parametrize("compare", [metrics.compare, metrics.compare_classes])
def test_compare_turns_round_with_its_models(compare: Callable[..., dict[str, metrics.Difference]]) -> None:
    scores_a, scores_b, targets = draw_two()
    there = compare(scores_a, scores_b, targets, 0.5, 0.3, samples=50, max_labels=2)
    back = compare(scores_b, scores_a, targets, 0.3, 0.5, samples=50, max_labels=2)
    for name, (value, low, high, p) in there.items():
        for one, other in zip(back[name], (-value, -high, -low, p), strict=True):  # type: ignore[operator]
            assert one == pytest.approx(other, abs=1e-12, nan_ok=True)


def test_compare_without_any_positive_has_no_map() -> None:
    scores_a, scores_b, _ = draw_two()
    differences = metrics.compare(scores_a, scores_b, np.zeros((40, 5)), 0.5, 0.5, samples=5)
    assert np.isnan(differences["mAP"]).all()
    assert not np.isnan(differences["hamming_loss"]).any()


def test_compare_refuses_scores_of_other_images_and_no_resamples() -> None:
    scores_a, scores_b, targets = draw_two()
    with pytest.raises(InputError, match="shape"):
        metrics.compare(scores_a, scores_b[:30], targets, 0.5, 0.5)
    with pytest.raises(InputError, match="bootstrap"):
        metrics.compare(scores_a, scores_b, targets, 0.5, 0.5, samples=1)


# ---- several seeds ----


def draw_seeds(count: int, gain: float, spread: float, targets: np.ndarray, seed: int) -> np.ndarray:
    """Scores (count, 40, 5) of models whose skill varies with their seed."""
    rng = make_products_rng(seed)
    gains = gain + spread * rng.standard_normal(count)
    noise = rng.random((count, 40, 5)) * 0.6
    return np.clip(noise + gains[:, None, None] * targets, 0, 1).astype(np.float32)


def test_groups_are_compared_over_images_and_seeds() -> None:
    _, _, targets = draw_two()
    a, b = draw_seeds(3, 0.1, 0.05, targets, 1), draw_seeds(2, 0.3, 0.05, targets, 2)
    at_a, at_b = np.linspace(0.3, 0.6, 15).reshape(3, 5), 0.45
    found = metrics.compare_groups(a, b, targets, at_a, at_b, samples=60, seed=5, max_labels=3)
    rng = make_products_rng(5)
    draws = [np.arange(40), *(rng.integers(40, size=40) for _ in range(60))]

    def measure(scores: np.ndarray, at: float | np.ndarray, name: str) -> list[float]:
        return [metrics.measure(scores[i], targets[i], at, max_labels=3)[name] for i in draws]

    for name in ("f1_micro", "exact_match", "hamming_loss"):  # that need no class
        of_a = np.array([measure(scores, at, name) for scores, at in zip(a, at_a, strict=True)])
        of_b = np.array([measure(scores, at_b, name) for scores in b])
        value, *drawn = of_b.mean(axis=0) - of_a.mean(axis=0)
        parts = [(max(np.std(drawn, ddof=1), abs(value) / 41) ** 2, 39)]
        parts += [(of[:, 0].var(ddof=1) / len(of), len(of) - 1) for of in (of_a, of_b)]
        variance = sum(part for part, _ in parts)
        degrees = variance**2 / sum(part**2 / count for part, count in parts)
        reach = stats.t.ppf(0.975, degrees) * variance**0.5
        p = 2 * stats.t.sf(abs(value) / variance**0.5, degrees)
        expected = value, max(value - reach, -1), min(value + reach, 1), p
        assert found[name] == pytest.approx(expected, abs=1e-6), name


def test_groups_that_differ_by_seeds_alone_are_welchs_test() -> None:
    """On images that are all alike resamples do not differ, and the seeds are all that varies."""
    rng = make_products_rng(0)
    row = np.array([1, 0, 1, 1, 0, 0, 1, 0, 0, 0])
    targets = np.tile(row, (3000, 1))
    a, b = (np.tile(rng.random((count, 1, 10)), (1, 3000, 1)) for count in (5, 4))
    found = metrics.compare_groups(a, b, targets, 0.5, 0.5, samples=4)["hamming_loss"]
    losses = [((group[:, 0] >= 0.5) != row).mean(axis=1) for group in (a, b)]
    expected: Any = stats.ttest_ind(losses[1], losses[0], equal_var=False)
    low, high = expected.confidence_interval()
    assert found == pytest.approx((losses[1].mean() - losses[0].mean(), low, high, expected.pvalue), abs=1e-4)


def test_groups_of_one_seed_are_compare() -> None:
    scores_a, scores_b, targets = draw_two()
    thresholds = np.linspace(0.3, 0.6, 5)
    options = {"samples": 40, "seed": 2, "min_labels": 1}
    expected = metrics.compare(scores_a, scores_b, targets, thresholds, 0.4, **options)
    assert metrics.compare_groups(scores_a[None], scores_b[None], targets, thresholds[None], 0.4, **options) == expected


@pytest.mark.parametrize(
    ("shape", "thresholds", "message"),
    [
        ((40, 5), 0.5, r"probabilities_b \(40, 5\) must be of the shape \(seeds, images, classes\)"),
        ((0, 40, 5), 0.5, r"probabilities_b \(0, 40, 5\)"),
        ((2, 40, 5), np.full(5, 0.5), r"thresholds_b \(5,\) must be one number, or \(seeds, classes\) of 2 seeds"),
        ((2, 40, 5), np.full((3, 5), 0.5), r"thresholds_b \(3, 5\)"),
        ((2, 30, 5), 0.5, r"must be of one shape \(N, C\)"),
    ],
)
def test_groups_of_other_shapes_are_refused(shape: tuple[int, ...], thresholds: object, message: str) -> None:
    scores_a, _, targets = draw_two()
    with pytest.raises(InputError, match=message):
        metrics.compare_groups(scores_a[None], np.zeros(shape), targets, 0.5, thresholds)


# ---- many comparisons ----


HOLM_P = [0.012, 0.04, 0.0003, 0.6, 0.012, 0.021, 0.9, 0.0401]
HOLM_ADJUSTED = [0.084, 0.16, 0.0024, 1.0, 0.084, 0.105, 1.0, 0.16]


def test_holms_correction() -> None:
    """The expected numbers are those of statsmodels.stats.multitest.multipletests(p, method="holm")."""
    assert metrics.adjust_holm(HOLM_P) == pytest.approx(HOLM_ADJUSTED, abs=1e-12)
    order = np.random.default_rng(0).permutation(len(HOLM_P))
    assert metrics.adjust_holm(np.array(HOLM_P)[order]) == pytest.approx(np.array(HOLM_ADJUSTED)[order], abs=1e-12)
    with_nan = [HOLM_P[0], np.nan, *HOLM_P[1:]]
    found = metrics.adjust_holm(with_nan)
    assert np.isnan(found[1])
    assert np.delete(found, 1) == pytest.approx(HOLM_ADJUSTED, abs=1e-12)
    assert metrics.adjust_holm([]).tolist() == []
    for wrong in ([0.1, 1.1], [-0.1], [[0.1]], 0.1):
        with pytest.raises(InputError, match="adjust_holm"):
            metrics.adjust_holm(wrong)


def test_which_class_is_taken_for_which() -> None:
    random = np.random.default_rng(7)
    labels, probabilities = random.integers(0, 6, 300), random.random((300, 6)).round(2)  # with ties
    targets = np.eye(6, dtype=np.int8)[labels]
    predicted = metrics.predict(probabilities, 0.5, min_labels=1, max_labels=1).argmax(axis=1)
    expected = reference.confusion_matrix(labels, predicted, labels=range(6))
    counts = metrics.confuse_classes(probabilities, targets)
    np.testing.assert_array_equal(counts, expected)
    assert counts.trace() / 300 == pytest.approx(metrics.measure(probabilities, targets, 0.5, 1, 1)["exact_match"])
    targets[4] = 1
    with pytest.raises(InputError, match="image 4 has not exactly one label"):
        metrics.confuse_classes(probabilities, targets)
