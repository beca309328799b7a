"""metrics.py against scikit-learn, on random and heavily tied scores, and by hand where it has no such number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conftest import make_products_rng
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
        expected = reference.precision_recall_curve(targets[:, label], probabilities[:, label])
        at = np.searchsorted(expected[2], curve.thresholds)
        assert np.array_equal(expected[2][at], curve.thresholds)
        assert curve.precision == pytest.approx(expected[0][at], abs=1e-12)
        assert curve.recall == pytest.approx(expected[1][at], abs=1e-12)
        assert curve.thresholds.tolist() == sorted({*probabilities[targets[:, label] == 1, label].tolist()})[::-1]


def test_cf1_is_not_macro_f1() -> None:
    targets = np.array([[1, 1], [1, 0], [0, 0], [0, 0]])
    probabilities = np.array([[0.9, 0.9], [0.9, 0.9], [0.1, 0.9], [0.1, 0.9]])
    measured = metrics.measure(probabilities, targets, 0.5)
    assert measured["CF1"] == pytest.approx(2 * (1.25 / 2) * 1 / (1.25 / 2 + 1))
    assert measured["f1_macro"] == pytest.approx((1 + 2 * 0.25 / 1.25) / 2)


@pytest.mark.parametrize("unknown", [-1, np.nan])
def test_unknown_entries_count_nowhere(unknown: float) -> None:
    probabilities, targets = draw(5)
    hidden = np.random.default_rng(0).random(targets.shape) < 0.3
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
    assert measured["exact_match"] == pytest.approx((((probabilities >= 0.5) == targets) | hidden).all(axis=1).mean())
    top = take_most_probable(probabilities, 3)
    assert measured["OF1_top3"] == pytest.approx(reference.f1_score(targets[known], top[known]), abs=1e-9)
    right = ((probabilities >= 0.5) == targets) & known
    assert measured["label_accuracy"] == pytest.approx((right.sum(axis=0) / known.sum(axis=0)).mean(), abs=1e-9)
    both, either = (probabilities >= 0.5) & (targets == 1) & known, ((probabilities >= 0.5) | (targets == 1)) & known
    jaccard = both.sum(axis=1) / np.maximum(either.sum(axis=1), 1)
    assert measured["sample_accuracy"] == pytest.approx(jaccard.mean(), abs=1e-9)


def test_a_score_equal_to_the_threshold_is_predicted() -> None:
    threshold = 0.3  # not a float32: compared as the nearest one
    assert metrics.predict(np.array([[0.3]], dtype=np.float32), threshold).all()
    assert not metrics.predict(np.array([[np.nextafter(np.float32(0.3), np.float32(0))]]), threshold).any()


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


@pytest.mark.parametrize("ties", [0, 1, 5])
@pytest.mark.parametrize("unknown", [None, -1, np.nan])
def test_bootstrap_is_measuring_each_resample(unknown: float | None, ties: int) -> None:
    probabilities, targets = draw(7, ties)
    probabilities, targets = probabilities[:40], targets[:40].astype(float)
    targets[:, 1] = np.arange(40) == 0  # its one positive is missing from a third of the resamples
    if unknown is not None:
        targets[np.random.default_rng(2).random(targets.shape) < 0.2] = unknown
    thresholds = np.linspace(0.1, 0.6, 7)
    limits = {} if unknown is None else {"min_labels": 1, "max_labels": 3}
    rng = make_products_rng(5)
    values, by_class = [], []
    for _ in range(60):
        images = rng.integers(40, size=40)
        values.append(metrics.measure(probabilities[images], targets[images], thresholds, **limits))
        by_class.append(metrics.measure_classes(probabilities[images], targets[images], thresholds, **limits))
    options = {"num_samples": 60, "seed": 5, "level": 0.8, **limits}
    intervals, class_intervals = metrics.bootstrap(probabilities, targets, thresholds, **options)
    assert intervals.keys() == values[0].keys()
    for name, interval in intervals.items():
        expected = np.quantile([value[name] for value in values], [0.1, 0.9])
        assert interval == pytest.approx(tuple(expected), abs=1e-12), name
    assert [*class_intervals] == ["AP", "P", "R", "F1", "accuracy"]
    for name, ends in class_intervals.items():
        drawn = np.array([value[name] for value in by_class])
        for label in range(7):
            defined = drawn[~np.isnan(drawn[:, label]), label]
            expected = np.quantile(defined, [0.1, 0.9]) if len(defined) else [np.nan, np.nan]
            assert ends[:, label] == pytest.approx(expected, abs=1e-12, nan_ok=True), (name, label)


def test_bootstrapped_map_leaves_out_classes_and_resamples_without_positives() -> None:
    probabilities = np.array([[0.9, 0.3], [0.4, 0.2], [0.6, 0.1], [0.1, 0.7]])
    targets = np.array([[0, 0], [1, 0], [0, 0], [0, 0]])
    rng = make_products_rng(0)
    drawn = [np.bincount(rng.integers(4, size=4), minlength=4) for _ in range(50)]
    aps = [count[1] / count[:3].sum() for count in drawn if count[1]]  # all of 0.9, 0.6 and 0.4 rank before or with it
    assert 0 < len(aps) < 50
    intervals, _ = metrics.bootstrap(probabilities, targets, 0.5, num_samples=50, level=0.5)
    assert intervals["mAP"] == pytest.approx(tuple(np.quantile(aps, [0.25, 0.75])), abs=1e-12)
    assert intervals["num_classes_in_mAP"] == tuple(np.quantile([float(count[1] > 0) for count in drawn], [0.25, 0.75]))
    nothing, _ = metrics.bootstrap(probabilities, np.zeros((4, 2)), 0.5, num_samples=5)
    assert np.isnan(nothing["mAP"]).all()


def test_bootstrap_of_one_image_is_that_image() -> None:
    probabilities, targets = np.array([[0.9, 0.2, 0.7]]), np.array([[1, 0, 0]])
    measured = metrics.measure(probabilities, targets, 0.5)
    intervals, _ = metrics.bootstrap(probabilities, targets, 0.5, num_samples=3)
    assert intervals == {name: (value, value) for name, value in measured.items()}
    assert measured["mAP"] == 1
    assert measured["f1_samples"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("options", [{"num_samples": 0}, {"level": 1.0}, {"level": 0.0}])
def test_bootstrap_without_resamples_or_level_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="bootstrap"):
        metrics.bootstrap(np.zeros((3, 2)), np.zeros((3, 2)), 0.5, **options)


def draw_two(ties: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two models' scores (40, 5) of the same images, the second's better; class 1 has one positive, class 2 none."""
    rng = make_products_rng(11)  # always the same: the difference between the two has to be certain
    targets = (rng.random((40, 5)) < 0.4).astype(np.int8)
    targets[:, 1], targets[:, 2] = np.arange(40) == 0, 0
    scores = [np.clip(rng.random((40, 5)) * 0.6 + gain * targets, 0, 1).astype(np.float32) for gain in (0.1, 0.3)]
    if ties:
        scores = [np.floor(each * ties) / np.float32(ties) for each in scores]
    return scores[0], scores[1], targets


def measure_with_scikit_learn(probabilities: np.ndarray, targets: np.ndarray, threshold: float) -> dict[str, float]:
    """Some metrics of `measure`, and the AP of each class."""
    predicted = probabilities >= np.float32(threshold)
    aps = [
        reference.average_precision_score(targets[:, label], probabilities[:, label])
        if targets[:, label].any()
        else np.nan
        for label in range(targets.shape[1])
    ]
    measured = {f"AP {label}": ap for label, ap in enumerate(aps)}
    measured["mAP"] = np.mean([ap for ap in aps if not np.isnan(ap)])
    for average in ("micro", "macro", "weighted", "samples"):
        measured[f"f1_{average}"] = reference.f1_score(targets, predicted, average=average, zero_division=0)
    measured["exact_match"] = reference.accuracy_score(targets, predicted)
    measured["hamming_loss"] = reference.hamming_loss(targets, predicted)
    return measured


@pytest.mark.parametrize("ties", [0, 5])
def test_compare_is_the_difference_in_each_resample(ties: int) -> None:
    scores_a, scores_b, targets = draw_two(ties)
    rng, drawn = make_products_rng(3), []
    for _ in range(80):
        images = rng.integers(40, size=40)
        a = measure_with_scikit_learn(scores_a[images], targets[images], 0.5)
        b = measure_with_scikit_learn(scores_b[images], targets[images], 0.45)
        drawn.append({name: b[name] - a[name] for name in a})
    a, b = measure_with_scikit_learn(scores_a, targets, 0.5), measure_with_scikit_learn(scores_b, targets, 0.45)
    arguments = scores_a, scores_b, targets, 0.5, 0.45
    found = metrics.compare(*arguments, samples=80, seed=3)
    assert found.keys() == metrics.measure(scores_a, targets, 0.5).keys()
    by_class = metrics.compare_classes(*arguments, samples=80, seed=3)
    assert [*by_class] == ["AP", "P", "R", "F1", "accuracy"]
    for label in range(5):
        found[f"AP {label}"] = metrics.Difference(*(numbers[label] for numbers in by_class["AP"]))
    for name in a:
        differences = np.array([each[name] for each in drawn])
        differences = differences[~np.isnan(differences)]
        if name == "AP 2":
            assert not len(differences)
            assert np.isnan(found[name]).all()
            continue
        differences[np.abs(differences) < 1e-12] = 0  # sums in another order
        share = min((differences <= 0).mean(), (differences >= 0).mean())
        p = min(max(2 * share, 1 / (len(differences) + 1)), 1)
        expected = (b[name] - a[name], *np.quantile(differences, [0.025, 0.975]), p)
        assert found[name] == pytest.approx(expected, abs=1e-12), name
    assert len([each for each in drawn if np.isnan(each["AP 1"])]) > 10  # these resamples left a class out
    assert found["mAP"].p == 1 / 81
    assert found["mAP"].low > 0


def test_a_model_is_as_good_as_itself() -> None:
    scores, _, targets = draw_two()
    differences = metrics.compare(scores, scores.copy(), targets, 0.5, 0.5, samples=50)
    assert set(differences.values()) == {(0, 0, 0, 1)}


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
        metrics.compare(scores_a, scores_b, targets, 0.5, 0.5, samples=0)


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
