"""thresholds.py against trying every score there is, with scikit-learn's F1."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable

import numpy as np
import pytest
from conftest import make_products_rng
from scipy.special import rel_entr
from scipy.stats import binom
from sklearn.metrics import f1_score, fbeta_score

import metrics
import thresholds
from thresholds import Policy
from utils import InputError


def draw(seed: int, ties: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((60, 4)) < 0.3).astype(np.int8)
    probabilities = np.clip(targets * 0.25 + rng.random((60, 4)) * 0.75, 0, 1)
    return (np.floor(probabilities * ties) / ties if ties else probabilities).astype(np.float32), targets


@pytest.mark.parametrize("average", ["weighted", "macro", "micro"])
@pytest.mark.parametrize("ties", [0, 8])
@pytest.mark.parametrize("seed", range(3))
def test_global_threshold_is_the_best_of_all(seed: int, ties: int, average: str) -> None:
    probabilities, targets = draw(seed, ties)
    best = max(
        f1_score(targets, probabilities >= score, average=average, zero_division=0)
        for score in np.unique(probabilities)
    )
    threshold = thresholds.tune_global(probabilities, targets, metric=f"f1_{average}")
    reached = f1_score(targets, metrics.predict(probabilities, threshold), average=average, zero_division=0)
    assert reached == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("average", ["weighted", "macro", "micro"])
def test_classes_without_positives_have_their_say_in_micro_alone(average: str) -> None:
    """Beside 4 classes, 200 that no image has, and whose scores lie above."""
    few, targets = draw(0, 0)
    probabilities = np.hstack([few, np.random.default_rng(1).uniform(0.6, 1, (60, 200))]).astype(np.float32)
    targets = np.hstack([targets, np.zeros((60, 200), dtype=np.int8)])
    threshold = thresholds.tune_global(probabilities, targets, metric=f"f1_{average}")
    assert threshold == tune_by_definition(probabilities, targets, average)
    known_f1 = metrics.predict(few, threshold)
    without = metrics.predict(few, thresholds.tune_global(few, targets[:, :4], metric=f"f1_{average}"))
    assert np.array_equal(known_f1, without) is (average != "micro")


def tune_by_definition(probabilities: np.ndarray, targets: np.ndarray, average: str) -> float:
    """The threshold of the highest best score, trying every one; counts and F1 written out."""
    present, known = targets == 1, targets >= 0
    scores = np.unique(probabilities[known])
    values = []
    for score in scores:
        predicted = (probabilities >= score) & known
        hits, total = (predicted & present).sum(axis=0), predicted.sum(axis=0) + present.sum(axis=0)
        if average == "micro":
            hits, total = hits.sum(keepdims=True), total.sum(keepdims=True)
        f1 = 2 * hits / np.maximum(total, 1)
        weights = present.sum(axis=0) if average == "weighted" else np.ones(len(f1))
        values.append((f1 * weights).sum() / max(weights.sum(), 1))
    if not len(scores) or max(values) == 0:
        return thresholds.DEFAULT_THRESHOLD
    best = int(np.flatnonzero(np.array(values) >= max(values) - 1e-12)[-1])
    below = scores[best - 1] if best else scores.dtype.type(0)
    middle = (scores[best] + below) / 2
    return float(middle if middle > below else scores[best])


SCORES = {
    "distinct": lambda p: p,
    "eight values": lambda p: np.floor(p * 8) / 8,
    "0 or 1": np.round,
    "all equal": lambda p: np.full_like(p, 0.3),
    "within one step of the grid": lambda p: p * 1e-6,
    "neighbouring floats": lambda p: 0.5 + np.floor(p * 40) * 2.0**-24,
}


@pytest.mark.parametrize("sizes", [(2**12, 2**12), (2, 1), (1, 3), (8, 16)], ids=str)
@pytest.mark.parametrize("average", ["weighted", "macro", "micro"])
@pytest.mark.parametrize("scores", SCORES)
def test_looking_closer_finds_the_same_bits(
    scores: str, average: str, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, at_once = sizes
    monkeypatch.setattr(thresholds, "GRID", grid)
    monkeypatch.setattr(thresholds, "SCORES_AT_ONCE", at_once)
    monkeypatch.setattr(metrics, "ENTRIES_AT_ONCE", 13)
    monkeypatch.setattr(metrics, "CLASSES_AT_ONCE", 2)
    rng = np.random.default_rng(0)
    for num_images, share, hidden in ((1, 0.5, 0.0), (50, 0.05, 0.0), (50, 0.5, 0.4), (70, 1.0, 0.0)):
        for dtype in (np.float32, np.float64):
            targets = np.where(rng.random((num_images, 5)) < hidden, -1, rng.random((num_images, 5)) < share)
            targets[:, 1] = np.minimum(targets[:, 1], 0)  # no positive
            probabilities = SCORES[scores](rng.random((num_images, 5))).astype(dtype)
            expected = tune_by_definition(probabilities, targets, average)
            assert thresholds.tune_global(probabilities, targets, f"f1_{average}") == expected


def test_several_equally_good_thresholds_give_the_highest() -> None:
    # F1 is 2/3 both at 0.9 (one hit of two) and at 0.2 (two hits, two misses)
    probabilities = np.array([[0.9], [0.6], [0.4], [0.2]])
    assert thresholds.tune_global(probabilities, np.array([[1], [0], [0], [1]])) == pytest.approx(0.75)
    assert thresholds.tune_per_class(probabilities, np.array([[1], [0], [0], [1]]))[0] == pytest.approx(0.75)


def test_another_metric_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean f1_micro"):
        thresholds.tune_global(np.zeros((2, 2)), np.zeros((2, 2)), metric="f1_mikro")


@pytest.mark.parametrize("ties", [0, 8])
def test_per_class_thresholds_are_the_best_of_each_class(ties: int) -> None:
    probabilities, targets = draw(3, ties)
    tuned = thresholds.tune_per_class(probabilities, targets)
    assert tuned.shape == (4,)
    for label in range(4):
        y, p = targets[:, label], probabilities[:, label]
        best = max(f1_score(y, p >= score) for score in np.unique(p))
        assert f1_score(y, p >= np.float32(tuned[label])) == pytest.approx(best, abs=1e-12)


def test_threshold_lies_midway_between_neighbouring_scores() -> None:
    probabilities = np.array([[0.9], [0.6], [0.2], [0.1]], dtype=np.float32)
    assert thresholds.tune_global(probabilities, np.array([[1], [1], [0], [0]])) == pytest.approx(0.4)
    assert thresholds.tune_global(probabilities, np.ones((4, 1))) == pytest.approx(0.05)


def test_neighbouring_floats_are_still_told_apart() -> None:
    high = np.float32(0.3)
    low = np.nextafter(high, np.float32(0))
    threshold = thresholds.tune_global(np.array([[high], [low]]), np.array([[1], [0]]))
    assert metrics.predict(np.array([[high], [low]]), threshold).tolist() == [[True], [False]]


def test_a_class_without_positives_takes_the_global_threshold() -> None:
    probabilities, targets = draw(0, 0)
    targets[:, 1] = 0
    tuned = thresholds.tune_per_class(probabilities, targets)
    assert tuned[1] == thresholds.tune_global(probabilities, targets)


def test_without_any_positive_the_default_stays() -> None:
    assert thresholds.tune_global(np.full((5, 2), 0.7), np.zeros((5, 2))) == thresholds.DEFAULT_THRESHOLD
    assert (thresholds.tune_per_class(np.full((5, 2), 0.7), np.zeros((5, 2))) == thresholds.DEFAULT_THRESHOLD).all()


def test_unknown_entries_do_not_move_a_threshold() -> None:
    probabilities, targets = draw(1, 0)
    marked = np.vstack([targets, np.full((20, 4), -1)])
    noise = np.random.default_rng(9).random((20, 4)).astype(np.float32)
    for tune in (thresholds.tune_global, thresholds.tune_per_class):
        assert np.array_equal(tune(np.vstack([probabilities, noise]), marked), tune(probabilities, targets))


def test_cross_fitting_shows_what_tuning_on_noise_is_worth() -> None:
    rng = np.random.default_rng(0)
    probabilities, targets = rng.random((60, 20)).astype(np.float32), rng.integers(0, 2, (60, 20))
    tuned = thresholds.tune_per_class(probabilities, targets)
    in_sample = metrics.measure(probabilities, targets, tuned)["f1_weighted"]
    honest = thresholds.cross_fit(probabilities, targets, thresholds.tune_per_class)
    assert honest < in_sample


def test_cross_fitting_uses_the_other_folds_only() -> None:
    probabilities, targets = draw(2, 0)
    seen = []

    def tune(p: np.ndarray, t: np.ndarray) -> float:
        seen.append(len(p))
        return 0.5

    value = thresholds.cross_fit(probabilities, targets, tune, folds=4)
    assert seen == [45] * 4
    assert value == pytest.approx(metrics.measure(probabilities, targets, 0.5)["f1_weighted"])


@pytest.mark.parametrize("tune", [thresholds.tune_global, thresholds.tune_per_class])
def test_cross_fitting_is_the_loop_over_folds(tune: Callable[..., float | np.ndarray]) -> None:
    probabilities, targets = draw(4, 8)
    fold_of = make_products_rng(3).permutation(60) % 3
    predicted = np.zeros(targets.shape, dtype=bool)
    for fold in range(3):
        tuned = tune(probabilities[fold_of != fold], targets[fold_of != fold])
        predicted[fold_of == fold] = metrics.predict(probabilities[fold_of == fold], tuned)
    expected = f1_score(targets, predicted, average="macro", zero_division=0)
    value = thresholds.cross_fit(probabilities, targets, tune, metric="f1_macro", folds=3, seed=3)
    assert value == pytest.approx(expected, abs=1e-12)


def test_cross_fitting_one_image_has_nothing_to_tune_on() -> None:
    assert thresholds.cross_fit(np.array([[0.6, 0.4]]), np.array([[1, 1]]), metric="f1_samples") == pytest.approx(2 / 3)


GOALS = {
    "f_beta": Policy(goal="f_beta", beta=2.0),
    "f_beta, for precision": Policy(goal="f_beta", beta=0.4),
    "precision": Policy(goal="precision", precision=0.6),
    "precision that few reach": Policy(goal="precision", precision=1.0),
    "recall": Policy(goal="recall", recall=0.7),
    "full recall": Policy(goal="recall", recall=1.0),
    "cost": Policy(goal="cost", false_positive_cost=1.0, false_negative_cost=2.5),
    "cost of false positives": Policy(goal="cost", false_positive_cost=3.0, false_negative_cost=0.5),
}


def rate(scores: np.ndarray, positive: np.ndarray, threshold: float, policy: Policy) -> tuple[float, ...] | None:
    """How good a threshold is for (M,) known entries, counted one by one, as something that compares; None: not."""
    predicted = scores >= threshold
    hits, false_positives, misses = (
        (predicted & positive).sum(),
        (predicted & ~positive).sum(),
        (~predicted & positive).sum(),
    )
    precision, recall = hits / max(hits + false_positives, 1), hits / positive.sum()
    if policy.goal == "precision":
        return (round(recall, 9),) if hits and precision >= policy.precision else None
    if policy.goal == "recall":
        return (round(precision, 9),) if recall >= policy.recall else None
    if policy.goal == "cost":
        return (-round(policy.false_positive_cost * false_positives + policy.false_negative_cost * misses, 9),)
    weight = policy.beta**2
    return (round((1 + weight) * hits / ((1 + weight) * hits + weight * misses + false_positives), 9),)


def try_all(scores: np.ndarray, positive: np.ndarray, policy: Policy) -> float:
    """The threshold that tuning should find for (M,) known entries of which some are positive."""
    values = np.unique(scores)
    candidates = [np.nextafter(values[-1], np.float32(2)), *values[::-1]]  # the first predicts nothing
    rated = [rate(scores, positive, candidate, policy) for candidate in candidates]
    best = max((value for value in rated if value is not None), default=None)
    index = 0 if best is None else rated.index(best)
    if index == 0:
        middle = (values[-1] + np.float32(1)) / 2
        return float(middle if middle > values[-1] else candidates[0])
    below = candidates[index + 1] if index + 1 < len(candidates) else np.float32(0)
    middle = (candidates[index] + below) / 2
    return float(middle if middle > below else candidates[index])


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("ties", [0, 1, 8])  # 1: every score is 0 or 1
@pytest.mark.parametrize("hidden", [0.0, 0.3])
def test_each_goal_is_met_as_by_trying_every_threshold(goal: str, ties: int, hidden: float) -> None:
    policy = GOALS[goal]
    for seed in range(3):
        probabilities, targets = draw(seed, 0)
        probabilities = np.round(probabilities * ties) / np.float32(ties) if ties else probabilities
        targets[np.random.default_rng(seed + 10).random(targets.shape) < hidden] = -1
        present, known = targets == 1, targets >= 0
        tuned = thresholds.tune_per_class(probabilities, targets, policy=policy)
        for label in range(4):
            rows = known[:, label]
            assert tuned[label] == try_all(probabilities[rows, label], present[rows, label], policy)
        if policy.goal != "f_beta":
            expected = try_all(probabilities[known], present[known], policy)
            assert thresholds.tune_global(probabilities, targets, policy=policy) == expected


@pytest.mark.parametrize("average", ["weighted", "macro", "micro"])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_global_f_beta_is_the_best_of_all(beta: float, average: str) -> None:
    for seed, ties in ((1, 30), (2, 8)):
        probabilities, targets = draw(seed, ties)
        options = {"beta": beta, "average": average, "zero_division": 0}
        best = max(fbeta_score(targets, probabilities >= score, **options) for score in np.unique(probabilities))
        threshold = thresholds.tune_global(probabilities, targets, f"f1_{average}", Policy(goal="f_beta", beta=beta))
        reached = fbeta_score(targets, metrics.predict(probabilities, threshold), **options)
        assert reached == pytest.approx(best, abs=1e-12)


def test_the_registry_has_every_goal() -> None:
    goals = (*thresholds.GOALS, *thresholds.PROMISES)
    assert goals == typing.get_args(typing.get_type_hints(Policy)["goal"])


@pytest.mark.parametrize("highest", [0.6, 1.0])
def test_a_precision_out_of_reach_predicts_nothing_and_is_reported(highest: float) -> None:
    probabilities = np.array([[highest, 0.9], [0.5, 0.8], [0.4, 0.2]], dtype=np.float32)
    targets = np.array([[0, 1], [1, 1], [0, 0]])
    policy = Policy("per_class", "precision", precision=0.9)
    tuned = thresholds.tune_per_class(probabilities, targets, policy=policy)
    assert metrics.predict(probabilities, tuned).tolist() == [[False, True], [False, True], [False, False]]
    assert tuned[0] == pytest.approx((1 + highest) / 2)
    assert thresholds.decide(probabilities, targets, policy).unreachable == (0,)
    assert thresholds.decide(probabilities, targets, Policy("global", "precision", precision=0.6)).unreachable == ()
    every = Policy("global", "precision", precision=1.0)
    assert thresholds.decide(probabilities, targets, every).unreachable == ((0, 1) if highest == 1 else ())
    assert thresholds.decide(probabilities, targets, Policy("per_class", "recall")).unreachable == ()


def test_shrinking_blends_logits_by_the_number_of_positives() -> None:
    own, positives = np.array([0.9, 0.2, 0.5, 0.0]), np.array([30, 10, 0, 5])
    blended = thresholds.shrink(own, 0.3, positives, 10.0)

    def logit(p: float) -> float:
        return np.log(p / (1 - p))

    for label, share in ((0, 0.75), (1, 0.5)):
        mixed = share * logit(own[label]) + (1 - share) * logit(0.3)
        assert logit(blended[label]) == pytest.approx(mixed, abs=1e-12)
    assert blended[2] == 0.3
    assert 0 < blended[3] < 0.3
    assert thresholds.shrink(own, 0.3, positives, 0.0).tolist() == [0.9, 0.2, 0.3, 0.0]
    assert thresholds.shrink(own, 0.3, positives, np.inf).tolist() == [0.3] * 4


@pytest.mark.parametrize("average", ["weighted", "macro"])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_the_standard_error_adds_up_what_each_image_changes(average: str, beta: float) -> None:
    """Its influence on F: how fast F changes when the image gets more weight, by scikit-learn's weights."""
    probabilities, targets = draw(1, 0)
    predicted = probabilities >= 0.5

    def measure(weights: np.ndarray) -> float:
        return float(fbeta_score(targets, predicted, beta=beta, average=average, sample_weight=weights))

    influences = []
    for image in np.eye(60):
        influences.append((measure(1 + 1e-4 * image) - measure(1 - 1e-4 * image)) / 2e-4)
    error = thresholds.standard_error(predicted, targets, f"f1_{average}", beta)
    assert error == pytest.approx(np.sqrt(np.square(influences).sum()), rel=1e-6)
    if beta == 1.0:
        rng = np.random.default_rng(0)
        draws = [rng.multinomial(60, np.full(60, 1 / 60)) for _ in range(300)]
        assert error == pytest.approx(np.std([measure(weights) for weights in draws]), rel=0.25), "the bootstrap's"


def test_unknown_labels_have_no_part_in_the_standard_error() -> None:
    probabilities, targets = draw(2, 0)
    marked = np.where(np.random.default_rng(1).random(targets.shape) < 0.2, -1, targets)
    predicted = probabilities >= 0.5
    error = thresholds.standard_error(predicted, marked)
    assert error == thresholds.standard_error(predicted & (marked >= 0), marked)
    assert error != thresholds.standard_error(predicted, targets)
    with pytest.raises(InputError, match="not of 'f1_micro'"):
        thresholds.standard_error(predicted, targets, "f1_micro")


@pytest.mark.parametrize("average", ["weighted", "macro"])
@pytest.mark.parametrize("ties", [0, 8])
def test_the_plateau_is_all_that_is_as_good_within_a_standard_error(average: str, ties: int) -> None:
    for seed in itertools.count(3):
        probabilities, targets = draw(seed, ties)
        scores = np.unique(probabilities[targets == 1])
        f1 = np.array([f1_score(targets, probabilities >= score, average=average, zero_division=0) for score in scores])
        best = thresholds.tune_global(probabilities, targets, f"f1_{average}")
        error = thresholds.standard_error(probabilities >= np.float32(best), targets, f"f1_{average}")
        good = scores[f1 >= f1.max() - error].astype(np.float64)
        if len(good) < 2:  # a draw whose best threshold has no equal has no plateau
            continue
        logits = np.log(good / (1 - good))
        expected = 1 / (1 + np.exp(-(logits.min() + logits.max()) / 2))
        assert thresholds.tune_plateau(probabilities, targets, f"f1_{average}") == pytest.approx(expected, abs=1e-9)
        return


def test_without_a_plateau_the_threshold_is_the_optimum() -> None:
    right = np.array([[0.9], [0.6], [0.2], [0.1]])
    assert thresholds.tune_plateau(right, [[1], [1], [0], [0]]) == pytest.approx(0.4), "not on a score"
    assert thresholds.tune_plateau(right, np.zeros((4, 1))) == thresholds.DEFAULT_THRESHOLD
    probabilities, targets = draw(0, 0)
    precise = Policy(goal="precision", precision=0.6)
    expected = thresholds.tune_global(probabilities, targets, policy=precise)
    assert thresholds.tune_plateau(probabilities, targets, policy=precise) == expected


def test_the_plateau_is_better_on_new_images_than_the_optimum_of_few() -> None:
    new = make_classes(2000, 0.5, 1000)
    gains = []
    for seed in range(100):
        tuned_on = make_classes(60, 0.5, seed)
        tuned = [tune(*tuned_on) for tune in (thresholds.tune_plateau, thresholds.tune_global)]
        plateau, optimum = (metrics.measure(*new, threshold)["f1_weighted"] for threshold in tuned)
        gains.append(plateau - optimum)
    assert np.mean(gains) > 3 * np.std(gains) / 10


def make_classes(num_images: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, 20) scores of rare classes whose best thresholds lie `spread` apart in logits, for any seed alike."""
    shifts = np.linspace(-1.7, 1.7, 20) * spread
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_images, 20)) < 0.05).astype(np.int8)
    logits = rng.normal(-1, 1.2, targets.shape) + 2.5 * targets + shifts
    return (1 / (1 + np.exp(-logits))).astype(np.float32), targets


@pytest.mark.parametrize("goal", ["f1", "f_beta", "precision", "recall", "cost"])
@pytest.mark.parametrize("limits", [(0, 0), (1, 3)])
def test_decision_is_cross_fitted_fold_by_fold(goal: str, limits: tuple[int, int]) -> None:
    probabilities, targets = make_classes(150, spread=1.0)
    policy = Policy("per_class", goal, 2.0, 0.7, 0.7, 1.0, 3.0, *limits)
    decision = thresholds.decide(probabilities, targets, policy, folds=3, seed=1)
    fold_of = make_products_rng(1).permutation(150) % 3

    def tune(rows: np.ndarray, strength: float) -> np.ndarray:
        scores = probabilities[rows], targets[rows]
        own = thresholds.tune_per_class(*scores, policy=policy)
        common = thresholds.tune_plateau(*scores, policy=policy)  # 150 images are few
        return thresholds.shrink(own, common, targets[rows].sum(axis=0), strength)

    def rate_all(predicted: np.ndarray, rows: np.ndarray) -> tuple[float, ...]:
        y, guess = targets[rows], predicted[rows]
        hits = (y & guess).sum()
        precision, recall = hits / guess.sum(), hits / y.sum()
        return {
            "f1": lambda: (f1_score(y, guess, average="weighted", zero_division=0),),
            "f_beta": lambda: (fbeta_score(y, guess, beta=2.0, average="weighted", zero_division=0),),
            "precision": lambda: (1, recall) if precision >= 0.7 else (0, precision),
            "recall": lambda: (1, precision) if recall >= 0.7 else (0, recall),
            "cost": lambda: (-((guess & ~y & 1).sum() + 3 * (y & ~guess).sum()) / y.size,),
        }[goal]()

    predictions = {}
    for strength in thresholds.SHRINKAGES:
        predicted = np.zeros(targets.shape, dtype=bool)
        for fold in range(3):
            here = fold_of == fold
            predicted[here] = metrics.predict(probabilities[here], tune(~here, strength), *limits)
        predictions[strength] = predicted

    def choose(rows: np.ndarray) -> float:
        return max(thresholds.SHRINKAGES, key=lambda k: (*np.round(rate_all(predictions[k], rows), 12), k))

    everything = np.ones(150, dtype=bool)
    assert decision.shrinkage == choose(everything)
    assert np.array_equal(decision.thresholds, tune(everything, decision.shrinkage))
    assert decision.threshold == thresholds.tune_plateau(probabilities, targets, policy=policy)
    shrunk = np.zeros(targets.shape, dtype=bool)
    for fold in range(3):
        shrunk[fold_of == fold] = predictions[choose(fold_of != fold)][fold_of == fold]
    in_sample = {"global": tune(everything, np.inf), "per_class": tune(everything, 0.0), "shrunk": decision.thresholds}
    for way, held_out in (("global", predictions[np.inf]), ("per_class", predictions[0.0]), ("shrunk", shrunk)):
        fitted = metrics.predict(probabilities, in_sample[way], *limits)
        for measured, predicted in ((decision.in_sample[way], fitted), (decision.cross_fitted[way], held_out)):
            expected = f1_score(targets, predicted, average="weighted", zero_division=0)
            assert measured["f1_weighted"] == pytest.approx(expected, abs=1e-12)
            y, hits = targets == 1, (predicted & (targets == 1)).sum()
            numbers = {
                "f2_weighted": fbeta_score(targets, predicted, beta=2.0, average="weighted", zero_division=0),
                "OP": hits / predicted.sum(),
                "OR": hits / y.sum(),
                "cost": ((predicted & ~y).sum() + 3 * (y & ~predicted).sum()) / y.size,
            }
            names = {"f1": (), "f_beta": ("f2_weighted",), "cost": ("cost",)}.get(goal, ("OP", "OR"))
            assert tuple(measured) == ("f1_weighted", *names)
            for name in names:
                assert measured[name] == pytest.approx(numbers[name], abs=1e-12)


def test_scope_chooses_which_thresholds_are_taken() -> None:
    probabilities, targets = make_classes(200, spread=1.0)
    decided = thresholds.decide(probabilities, targets, Policy("global"))
    assert decided.thresholds.tolist() == [thresholds.tune_global(probabilities, targets)] * 20
    shrunk = thresholds.decide(probabilities, targets, Policy("per_class"))
    assert np.array_equal(thresholds.tune_shrunk(probabilities, targets), shrunk.thresholds)
    assert shrunk.cross_fitted == decided.cross_fitted


def test_shrunk_thresholds_are_better_on_new_images() -> None:
    tuners = {
        "global": thresholds.tune_global,
        "per class": thresholds.tune_per_class,
        "shrunk": thresholds.tune_shrunk,
    }
    reached = {name: [] for name in tuners}
    for seed in range(24):  # one draw may differ by 0.02 either way
        tuned_on, new = make_classes(150, 0.5, seed), make_classes(5000, 0.5, seed + 1000)
        for name, tune in tuners.items():
            reached[name].append(metrics.measure(*new, tune(*tuned_on))["f1_weighted"])
    shrunk = np.mean(reached.pop("shrunk"))
    assert all(shrunk > np.mean(values) + 0.002 for values in reached.values())


def test_classes_alike_share_one_threshold_and_classes_far_apart_do_not() -> None:
    def choose(spread: float) -> float:
        """The middle one of three draws: one alone may lie two steps off."""
        draws = [make_classes(400, spread, seed) for seed in range(3)]
        return float(np.median([thresholds.decide(*scores, Policy("per_class")).shrinkage for scores in draws]))

    assert choose(spread=0.0) >= 10
    assert choose(spread=3.0) <= 3


def test_cross_fitting_measures_with_the_limits_of_labels() -> None:
    probabilities, targets = draw(2, 0)
    value = thresholds.cross_fit(probabilities, targets, lambda p, t: 0.5, max_labels=1, min_labels=1)
    top = np.eye(4, dtype=int)[probabilities.argmax(axis=1)]
    assert value == pytest.approx(f1_score(targets, top, average="weighted", zero_division=0))


def test_one_image_is_decided_on() -> None:
    decision = thresholds.decide(np.array([[0.6, 0.4]], dtype=np.float32), np.array([[1, 0]]), Policy("per_class"))
    assert metrics.predict(np.array([[0.6, 0.4]], dtype=np.float32), decision.thresholds).tolist() == [[True, False]]
    assert decision.cross_fitted["global"]["f1_weighted"] == 1  # at the default threshold


# ---- promises ----


def draw_some_unknown(seed: int, num_images: int = 60, ties: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of four classes; a tenth of the targets is unknown, and some images have no label."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_images, 4)) < 0.4).astype(np.int8)
    probabilities = np.clip(targets * 0.3 + rng.random(targets.shape) * 0.7, 0, 1)
    targets[rng.random(targets.shape) < 0.1] = -1
    targets[:3] = 0
    targets[3] = -1
    return (np.floor(probabilities * ties) / ties if ties else probabilities).astype(np.float32), targets


def measure_missed(probabilities: np.ndarray, targets: np.ndarray, threshold: float) -> float:
    """The mean over images of the share of labels that are missed, counted one by one."""
    losses = []
    for scores, labels in zip(probabilities, targets, strict=True):
        missed = [score < np.float32(threshold) for score, label in zip(scores, labels, strict=True) if label == 1]
        losses.append(sum(missed) / len(missed) if missed else 0.0)
    return float(np.mean(losses))


@pytest.mark.parametrize("recall", [0.9, 0.75, 0.5, 0.05])
@pytest.mark.parametrize("ties", [0, 1, 8])
@pytest.mark.parametrize("num_images", [19, 60])
def test_promised_recall_is_kept_by_the_highest_threshold_that_may(recall: float, ties: int, num_images: int) -> None:
    """(n R + 1) / (n + 1) <= alpha: tried at every score, and above all of them."""
    for seed in range(3):
        probabilities, targets = draw_some_unknown(seed, num_images, ties)
        policy = Policy(goal="guaranteed_recall", recall=recall)
        threshold = thresholds.tune_global(probabilities, targets, policy=policy)

        is_known = (targets >= 0).any(axis=1)

        def holds(
            candidate: float, scores: tuple[np.ndarray, np.ndarray] = (probabilities[is_known], targets[is_known])
        ) -> bool:
            bound = (len(scores[0]) * measure_missed(*scores, candidate) + 1) / (len(scores[0]) + 1)
            return bound <= 1 - recall + 1e-9

        known = np.unique(probabilities[targets >= 0])
        above = np.nextafter(known[-1], np.float32(2))
        kept = [score for score in (*known, above) if holds(float(score))]
        assert holds(threshold)
        # nothing more is predicted than at the highest of them, and the threshold lies midway to the next score
        predicted = metrics.predict(probabilities, threshold) & (targets >= 0)
        assert np.array_equal(predicted, (probabilities >= max(kept)) & (targets >= 0))
        below = known[known < max(kept)].max(initial=0)
        if max(kept) == above:
            assert threshold == pytest.approx(max((known[-1] + 1) / 2, above))
        else:
            assert threshold == pytest.approx((max(kept) + below) / 2)


def test_promised_recall_says_how_many_images_it_takes() -> None:
    policy = Policy(goal="guaranteed_recall", recall=0.9)
    with pytest.raises(InputError, match=r"promises 0.9, for which it takes 9 validation images .* there are 8: lower"):
        thresholds.require_promise(policy, 8)
    thresholds.require_promise(policy, 9)
    thresholds.require_promise(Policy(goal="recall", recall=1.0), 1)
    probabilities, targets = draw_some_unknown(0, 8)
    with pytest.raises(InputError, match="it takes 9 validation images"):
        thresholds.decide(probabilities, targets, policy)
    assert thresholds.tune_global(probabilities, targets, policy=policy) == 0, "as in the paper, all is predicted"
    probabilities, targets = np.float32([[0.3]] * 9), np.ones((9, 1))
    assert thresholds.decide(probabilities, targets, policy).threshold == pytest.approx(0.15), "none may be missed"


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Policy(goal="guaranteed_recall", recall=1.0), "cannot promise a recall of 1"),
        (Policy("per_class", "guaranteed_recall"), "it takes one threshold, the scope global"),
        (Policy(goal="guaranteed_recall", max_labels=2), "with labels cut or added it does not hold"),
        (Policy(goal="guaranteed_precision", min_labels=1), "with labels cut or added it does not hold"),
    ],
)
def test_what_cannot_be_promised_is_refused(policy: Policy, message: str) -> None:
    probabilities, targets = draw_some_unknown(0)
    with pytest.raises(InputError, match=message):
        thresholds.decide(probabilities, targets, policy)
    with pytest.raises(InputError, match="takes one threshold, the scope global"):
        thresholds.tune_per_class(probabilities, targets, policy=policy)


def test_promised_recall_holds_on_new_images_on_average() -> None:
    """Over many draws the mean share of missed labels is at most alpha, and less than alpha by some 1 / n."""
    policy, (new, new_targets) = Policy(goal="guaranteed_recall", recall=0.8), draw_some_unknown(1000, 4000)
    risks = []
    for seed in range(300):
        threshold = thresholds.tune_global(*draw_some_unknown(seed, 99), policy=policy)
        found = thresholds.rate_images(metrics.predict(new, threshold), new_targets, "guaranteed_recall")
        risks.append(1 - found.mean())
    error = 4 * np.std(risks) / np.sqrt(len(risks)) + 4 * 0.3 / np.sqrt(len(new))
    assert 0.2 - 0.02 - error < np.mean(risks) < 0.2 + error


def find_promised_precision(probabilities: np.ndarray, targets: np.ndarray, precision: float) -> float | None:
    """Learn then Test, written out: the lowest threshold that a chain of rejections from 0.9, 0.8, ... 0.1 reaches."""

    def is_rejected(threshold: np.float32) -> bool:
        wrong = []
        for scores, labels in zip(probabilities, targets, strict=True):
            right = [
                label == 1 for score, label in zip(scores, labels, strict=True) if score >= threshold and label >= 0
            ]
            if right:
                wrong.append(1 - np.mean(right))
        if not wrong or np.mean(wrong) >= 1 - precision:
            return False
        n, risk, limit = len(wrong), float(np.mean(wrong)), 1 - precision
        divergence = rel_entr(risk, limit) + rel_entr(1 - risk, 1 - limit)
        bentkus = np.e * binom.cdf(np.ceil(round(n * risk, 9)), n, limit)
        return min(np.exp(-n * divergence), bentkus) <= 0.1 / 9

    lowest = None
    for start in range(900, 0, -100):
        for step in range(start, 0, -1):
            if not is_rejected(np.float32(step / 1000)):
                break
            lowest = min(lowest or 1, step / 1000)
    return lowest


def draw_precise(seed: int, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities of two classes, most near 0 or 1; a tenth is unknown."""
    rng = np.random.default_rng(seed)
    probabilities = rng.beta(0.15, 0.3, (num_images, 2)).astype(np.float32)
    targets = (rng.random(probabilities.shape) < probabilities).astype(np.int8)
    targets[rng.random(targets.shape) < 0.1] = -1
    return probabilities, targets


@pytest.mark.parametrize("precision", [0.8, 0.9])
def test_promised_precision_is_learn_then_test(precision: float) -> None:
    policy, found = Policy(goal="guaranteed_precision", precision=precision), []
    for seed in range(2):
        probabilities, targets = draw_precise(seed, 250)
        expected = find_promised_precision(probabilities, targets, precision)
        threshold = thresholds.tune_global(probabilities, targets, policy=policy)
        decision = thresholds.decide(probabilities, targets, policy)
        if expected is None:
            assert not metrics.predict(probabilities, threshold)[targets >= 0].any()
            assert decision.unreachable == (0, 1)
        else:
            assert threshold == np.float32(expected)
            assert decision.unreachable == ()
        found.append(expected)
    assert any(found), "some draw has a promise"


def test_promised_precision_is_broken_in_few_draws() -> None:
    policy, (new, new_targets) = Policy(goal="guaranteed_precision", precision=0.85), draw_precise(1000, 20_000)
    precisions = []
    for seed in range(100):
        threshold = thresholds.tune_global(*draw_precise(seed, 200), policy=policy)
        shares = thresholds.rate_images(metrics.predict(new, threshold), new_targets, "guaranteed_precision")
        precisions.append(shares.mean() if len(shares) else 1.0)
    assert np.mean(np.array(precisions) < 0.85) <= 0.1
    assert np.mean(np.array(precisions) < 0.98) > 0.5, "it is no promise of nothing"


def test_where_nothing_can_be_promised_nothing_is_predicted() -> None:
    probabilities, targets = draw_precise(0, 200)
    policy = Policy(goal="guaranteed_precision", precision=0.999)
    decision = thresholds.decide(probabilities, targets, policy)
    assert decision.unreachable == (0, 1)
    assert not metrics.predict(probabilities, decision.thresholds)[targets >= 0].any()
    decision = thresholds.decide(probabilities, np.zeros_like(targets), policy)
    assert decision.unreachable == (0, 1), "nor without any label"
    assert not metrics.predict(probabilities, decision.thresholds).any()


def test_images_are_rated_by_the_share_of_their_labels() -> None:
    targets = np.array([[1, 1, 0, 0], [1, 0, -1, 0], [0, 0, 0, 0], [0, -1, 0, 0], [-1, -1, -1, -1]])
    predicted = np.array([[1, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]], dtype=bool)
    assert thresholds.rate_images(predicted, targets, "guaranteed_recall").tolist() == [0.5, 1, 1, 1]
    assert thresholds.rate_images(predicted, targets, "guaranteed_precision") == pytest.approx([1 / 3, 1, 0])


def test_images_without_a_known_label_loosen_no_promise() -> None:
    """A promise on n images allows fewer misses than one on more."""
    probabilities, targets = draw_precise(1, 60)
    policy = Policy(goal="guaranteed_recall", recall=0.9)
    unknown = np.full((90, targets.shape[1]), -1, targets.dtype)
    more = np.concatenate([probabilities, np.full((90, probabilities.shape[1]), 0.5, probabilities.dtype)])
    threshold = thresholds.tune_global(probabilities, targets, policy=policy)
    assert thresholds.tune_global(more, np.concatenate([targets, unknown]), policy=policy) == threshold


@pytest.mark.parametrize("goal", ["guaranteed_recall", "guaranteed_precision"])
def test_a_promise_is_measured_on_its_images_and_cross_fitted(goal: typing.Any) -> None:
    probabilities, targets = draw_precise(1, 400)
    policy = Policy(goal=goal, recall=0.7, precision=0.8, min_labels=int(goal == "guaranteed_recall"))
    decision = thresholds.decide(probabilities, targets, policy, seed=3)
    assert decision.thresholds.tolist() == [decision.threshold] * 2
    assert decision.threshold == thresholds.tune_global(probabilities, targets, policy=policy)
    fold_of = make_products_rng(3).permutation(400) % 5
    held_out = np.zeros(targets.shape, dtype=bool)
    for fold in range(5):
        others, here = fold_of != fold, fold_of == fold
        tuned = thresholds.tune_global(probabilities[others], targets[others], policy=policy)
        held_out[here] = metrics.predict(probabilities[here], tuned, policy.min_labels)
    in_sample = metrics.predict(probabilities, decision.threshold, policy.min_labels)
    for measured, predicted in ((decision.in_sample, in_sample), (decision.cross_fitted, held_out)):
        hits = (predicted & (targets == 1)).sum()
        shares = thresholds.rate_images(predicted, targets, goal)
        assert measured == {
            "global": {
                "f1_weighted": pytest.approx(measured["global"]["f1_weighted"]),
                "OP": pytest.approx(hits / (predicted & (targets >= 0)).sum()),
                "OR": pytest.approx(hits / (targets == 1).sum()),
                f"image_{goal.removeprefix('guaranteed_')}": pytest.approx(shares.mean()),
            }
        }


def test_promises_are_those_of_mapie() -> None:
    """Thresholds midway between scores, since it predicts what lies above one, not at one."""
    controllers = pytest.importorskip("mapie.risk_control", reason="MAPIE, the reference, is not installed")
    methods = pytest.importorskip("mapie.risk_control.methods", reason="MAPIE, the reference, is not installed")
    probabilities, targets = draw(0, 0)
    rows = targets.any(axis=1)  # it takes images with labels only
    probabilities, targets = probabilities[rows], targets[rows]
    scores = np.unique(np.append(probabilities, np.float32([0, 1])))
    for recall in (0.6137, 0.8871):  # where no sum of losses is the bound itself, which it does not allow
        controller = controllers.MultiLabelClassificationController(
            predict_function=lambda rows: rows,
            risk="recall",
            target_level=recall,
            predict_params=(scores[1:] + scores[:-1]) / 2,
        )
        expected = controller.calibrate(probabilities, targets).best_predict_param[0]
        policy = Policy(goal="guaranteed_recall", recall=recall)
        assert thresholds.tune_global(probabilities, targets, policy=policy) == pytest.approx(expected, abs=1e-7)
    for risk, num_images, limit in ((0.02, 500, 0.05), (0.0, 40, 0.1), (0.1, 300, 0.2), (0.3, 300, 0.2)):
        expected = methods.compute_hoeffding_bentkus_p_value(np.array([risk]), num_images, limit)[0, 0]
        assert thresholds.find_p_value(risk, num_images, limit) == pytest.approx(min(expected, 1), rel=1e-6)


# ---- images left to a person ----


def test_doubt_is_the_expected_number_of_wrong_entries_for_each_label_given() -> None:
    probabilities, _ = draw(1, 0)
    predicted = metrics.predict(probabilities, 0.4)
    for row, is_label, doubt in zip(
        probabilities, predicted, thresholds.measure_doubt(probabilities, predicted), strict=True
    ):
        wrong = [1 - p if chosen else p for p, chosen in zip(row.astype(float), is_label, strict=True)]
        assert doubt == pytest.approx(sum(wrong) / (sum(is_label) + 1))


def test_at_most_the_share_asked_for_is_left_to_a_person() -> None:
    doubts = np.random.default_rng(0).random(50)
    for share, num_left in ((0.02, 1), (0.1, 5), (0.11, 5), (0.5, 25), (0.98, 49), (0.01, 0)):
        cut = thresholds.tune_abstention(doubts, share)
        assert (doubts > cut).sum() == num_left
        if num_left:
            assert cut == pytest.approx((np.sort(doubts)[-num_left] + np.sort(doubts)[-num_left - 1]) / 2)
    equal = np.array([3.0, 2.0, 2.0, 2.0, 1.0])
    assert [(equal > thresholds.tune_abstention(equal, share)).sum() for share in (0.2, 0.5, 0.79, 0.8)] == [1, 1, 1, 4]
