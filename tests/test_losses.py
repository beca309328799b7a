"""losses.py against formulas written out in float64, gradients against their central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import losses
from utils import InputError

Floats = NDArray[np.float64]

LOGITS = np.concatenate([np.linspace(-8, 8, 33), [-60.0, 60.0]])  # no kink of a formula lies on one of them
GRID = np.tile(LOGITS, (6, 1)), np.tile([[0.0], [0.1], [0.5], [0.75], [1.0], [1.0]], (1, len(LOGITS)))  # x, y


def draw(num_rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_rows, 4, generator=generator) * 3
    return logits, (torch.rand(num_rows, 4, generator=generator) < 0.4).float()


# ---- the formulas: (loss, the factor on it), both (N, C) ----


def log_sigmoid(x: Floats) -> Floats:
    return -np.logaddexp(0, -x)


def sigmoid(x: Floats) -> Floats:
    return np.exp(log_sigmoid(x))


def bce(x: Floats, y: Floats, pos_weight: Any = 1.0) -> tuple[Floats, Floats]:
    return -(np.asarray(pos_weight) * y * log_sigmoid(x) + (1 - y) * log_sigmoid(-x)), np.ones_like(x)


def focal(x: Floats, y: Floats, gamma: float = 2.0, alpha: float | None = None) -> tuple[Floats, Floats]:
    p = sigmoid(x)
    pt = p * y + (1 - p) * (1 - y)
    balance = np.ones_like(y) if alpha is None else alpha * y + (1 - alpha) * (1 - y)
    return bce(x, y)[0] * balance, (1 - pt) ** gamma


def asymmetric(
    x: Floats,
    y: Floats,
    gamma_negative: float = 4.0,
    gamma_positive: float = 0.0,
    clip: float = 0.05,
    focusing_gradient: bool = False,
) -> tuple[Floats, Floats]:
    p, e = sigmoid(x), 1e-8
    q = np.minimum(1 - p + clip, 1)
    pt = p * y + q * (1 - y)
    loss = -(y * np.log(np.maximum(p, e)) + (1 - y) * np.log(np.maximum(q, e)))
    return loss, (1 - pt) ** (gamma_positive * y + gamma_negative * (1 - y))


def asymmetric_angular(
    x: Floats,
    y: Floats,
    scale: float = 23.0,
    margin: float = 0.0,
    balance: float = 0.7,
    gamma_negative: float = 0.0,
    gamma_positive: float = 0.0,
    clip: float = 0.05,
) -> tuple[Floats, Floats]:
    cosine = x / scale
    p_positive, p_negative = sigmoid(scale * (cosine - margin)), sigmoid(-scale * (cosine + margin))
    log_negative = log_sigmoid(-scale * (cosine + margin))
    if gamma_negative > 0 or gamma_positive > 0:
        p_negative = np.minimum(p_negative + clip, 1)
        log_negative = np.log(p_negative) if clip else log_negative
    log_positive = log_sigmoid(scale * (cosine - margin))
    loss = -(balance / scale * y * log_positive + (1 - balance) / scale * (1 - y) * log_negative)
    weight = (p_negative * y + p_positive * (1 - y)) ** (gamma_positive * y + gamma_negative * (1 - y))
    return loss, weight


def hill(x: Floats, y: Floats, gamma: float = 2.0, margin: float = 1.0, peak: float = 1.5) -> tuple[Floats, Floats]:
    shifted, p = sigmoid(x - margin), sigmoid(x)
    positives = -((1 - shifted) ** gamma) * log_sigmoid(x - margin)
    return y * positives + (1 - y) * (peak - p) * p**2, np.ones_like(x)


def splc(x: Floats, y: Floats, gamma: float = 2.0, margin: float = 1.0) -> tuple[Floats, Floats]:
    """In the first epoch."""
    positives, p = hill(x, np.ones_like(y), gamma, margin)[0], sigmoid(x)
    return y * positives - (1 - y) * p**gamma * log_sigmoid(-x), np.ones_like(x)


FORMULAS: dict[str, Callable[..., tuple[Floats, Floats]]] = {
    "bce_with_logits": bce,
    "focal": focal,
    "asymmetric": asymmetric,
    "asymmetric_angular": asymmetric_angular,
    "hill": hill,
    "splc": splc,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("bce_with_logits", {}),
    ("bce_with_logits", {"pos_weight": torch.linspace(0.5, 9, len(LOGITS))}),
    ("focal", {}),
    ("focal", {"gamma": 0.0}),
    ("focal", {"gamma": 0.5, "alpha": 0.25}),
    ("asymmetric", {}),
    ("asymmetric", {"gamma_positive": 1.0}),
    ("asymmetric", {"focusing_gradient": True}),
    ("asymmetric", {"gamma_negative": 0.5, "gamma_positive": 0.5, "clip": 0.2, "focusing_gradient": True}),
    ("asymmetric", {"gamma_negative": 2.0, "gamma_positive": 1.0, "clip": 0.0, "focusing_gradient": True}),
    ("asymmetric", {"gamma_negative": 0.0, "clip": 0.0}),
    ("asymmetric_angular", {}),
    ("asymmetric_angular", {"scale": 30.0, "margin": 0.35, "balance": 0.8}),
    ("asymmetric_angular", {"gamma_negative": 1.0, "gamma_positive": 2.0}),
    ("asymmetric_angular", {"scale": 10.0, "margin": 0.1, "gamma_positive": 0.5, "clip": 0.2}),
    ("asymmetric_angular", {"gamma_negative": 2.0, "clip": 0.0}),
    ("hill", {}),
    ("hill", {"gamma": 1.0, "margin": 0.5, "peak": 2.0}),
    ("splc", {}),
    ("splc", {"gamma": 0.5, "margin": 0.0}),
]


def slope(name: str, options: dict[str, Any], x: Floats, y: Floats) -> Floats:
    """The derivative of a formula by central differences; of a detached weight none."""
    step = 1e-5
    (low, low_weight), (high, high_weight) = (FORMULAS[name](x + sign * step, y, **options) for sign in (-1, 1))
    if name == "asymmetric" and not options.get("focusing_gradient"):
        low_weight = high_weight = FORMULAS[name](x, y, **options)[1]
    return (high * high_weight - low * low_weight) / (2 * step)


def check_slopes(logits: torch.Tensor, loss: torch.Tensor, expected: Floats, tolerance: float) -> None:
    loss.sum().backward()
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_is_its_formula_in_value_and_gradient(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    x, y = GRID
    logits, targets = torch.tensor(x, dtype=dtype).requires_grad_(), torch.tensor(y, dtype=dtype)
    loss = losses.LOSSES[name](**options)(logits, targets)
    assert loss.dtype == dtype
    base, weight = FORMULAS[name](x, y, **options)
    np.testing.assert_allclose(loss.detach().numpy(), base * weight, rtol=1e-6, atol=1e-6)
    check_slopes(logits, loss, slope(name, options, x, y), 1e-6)


def test_float64_has_its_precision() -> None:
    x, y = GRID
    for name, options in CASES:
        loss = losses.LOSSES[name](**options)(torch.tensor(x), torch.tensor(y))
        base, weight = FORMULAS[name](x, y, **options)
        tolerance = 1e-12 if "pos_weight" not in options else 1e-6
        np.testing.assert_allclose(loss.numpy(), base * weight, rtol=1e-9, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_is_cross_entropy_in_value_and_gradient(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    x = np.vstack([rng.normal(size=(5, 4)) * 3, [[60.0, -60.0, 0.0, 1.0]] * 2])
    y = np.vstack([np.eye(4), [[0.1, 0.2, 0.3, 0.4]], [[0.0, 1.0, 0.0, 0.0]], np.zeros((1, 4))])  # the last: no label
    logits = torch.tensor(x, dtype=dtype, requires_grad=True)
    loss = losses.LOSSES["softmax"]()(logits, torch.tensor(y, dtype=dtype))
    exponentials = np.exp(x - x.max(axis=1, keepdims=True))
    log_p = x - x.max(axis=1, keepdims=True) - np.log(exponentials.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(loss.detach().numpy(), -y * log_p, rtol=1e-6, atol=1e-6)
    torch_loss = nn.functional.cross_entropy(torch.tensor(x), torch.tensor(y), reduction="none").numpy()
    np.testing.assert_allclose(loss.detach().sum(dim=1).numpy(), torch_loss, rtol=1e-6, atol=1e-6)
    check_slopes(logits, loss, np.exp(log_p) * y.sum(axis=1, keepdims=True) - y, 1e-6)


def test_softmax_leaves_out_unknown_terms() -> None:
    x, y = np.array([[1.0, -2.0, 0.5], [3.0, 0.0, 1.0]]), np.array([[1.0, 0.0, np.nan], [np.nan, 0.0, 0.0]])
    logits = torch.tensor(x, requires_grad=True)
    loss = losses.LOSSES["softmax"]()(logits, torch.tensor(y))
    p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loss.detach().numpy(), [[-np.log(p[0, 0]), 0, 0], [0, 0, 0]])
    check_slopes(logits, loss, np.array([[p[0, 0] - 1, p[0, 1], 0], [0, 0, 0]]), 1e-12)


# ---- labels that are missing ----


def test_splc_takes_what_it_is_sure_of_for_a_positive_from_the_second_epoch_on() -> None:
    """A smoothed positive is no negative, and validation takes labels as they are in every epoch."""
    x = np.array([[-1.0, 0.3, 0.5, 4.0, 4.0, 0.5, 4.0, 4.0]])  # .6 is the probability of .405
    y = np.array([[0.0, 0.0, 0.0, 0.0, 1.0, 0.05, 0.95, 0.5]])
    loss = losses.SPLC()
    objective = losses.Objective(loss)
    corrected = np.array([[0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.95, 0.5]])
    for epoch, labels in ((1, y), (2, corrected), (7, corrected), (1, y)):
        objective.train().start_epoch(epoch)
        np.testing.assert_allclose(loss(torch.tensor(x), torch.tensor(y)).numpy(), splc(x, labels)[0], rtol=1e-9)
        validation = objective.eval()(torch.tensor(x), torch.tensor(y), torch.ones(1).double())
        assert validation.item() == pytest.approx(splc(x, y)[0].mean(), rel=1e-9)


def compare_sets(x: Floats, y: Floats, t_positive: float, t_negative: float) -> float:
    """Kobayashi's comparison of one set, written out: softplus(Tn log sum e^(x / Tn) + Tp log sum e^(-x / Tp))."""
    positives, negatives = x[y == 1], x[y == 0]
    if not len(positives) or not len(negatives):
        return 0.0
    gap = t_negative * np.log(np.exp(negatives / t_negative).sum())
    gap += t_positive * np.log(np.exp(-positives / t_positive).sum())
    return float(np.logaddexp(0, gap))


@pytest.mark.parametrize(("t_positive", "t_negative"), [(4.0, 1.0), (1.0, 2.5)])
def test_two_way_is_its_formula(t_positive: float, t_negative: float) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(8, 5)) * 2, (rng.random((8, 5)) < 0.3).astype(float)
    y[0], y[:, 4], y[1, 2], y[3] = 0, 0, np.nan, 1  # an image and a class without positives, unknown, no negatives
    images = [
        compare_sets(row, labels, t_positive, t_negative)
        for row, labels in zip(x, y, strict=True)
        if (labels == 1).any()
    ]
    classes = [compare_sets(x[:, c], y[:, c], t_positive, t_negative) for c in range(5) if (y[:, c] == 1).any()]
    logits = torch.tensor(x, requires_grad=True)
    loss = losses.LOSSES["two_way"](positive_temperature=t_positive, negative_temperature=t_negative)
    result = loss(logits, torch.tensor(y))
    assert result.shape == (8,)
    assert result.mean().item() == pytest.approx(np.mean(images) + np.mean(classes), rel=1e-9)
    result.mean().backward()
    assert logits.grad is not None
    assert logits.grad[1, 2] == 0
    assert logits.grad.isfinite().all()


def test_zlpr_is_its_formula_in_value_and_gradient() -> None:
    x = np.array([[2.0, -1.0, 0.5, 3.0], [0.1, 0.2, 0.3, -0.4], [1.0, 2.0, 3.0, 4.0], [1000.0, -1000.0, 0.0, 0.0]])
    y = np.array([[1.0, 0.0, np.nan, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 1.0, np.nan, np.nan]])
    logits = torch.tensor(x, requires_grad=True)
    result = losses.LOSSES["zlpr"]()(logits, torch.tensor(y))
    expected = [
        np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0) + np.exp(3.0)),
        np.log1p(np.exp([0.1, 0.2, 0.3, -0.4]).sum()),
        np.log1p(np.exp([-1.0, -2.0, -3.0, -4.0]).sum()),
        2000.0,
    ]
    np.testing.assert_allclose(result.detach().numpy(), expected, rtol=1e-9)
    sum_of_negatives = 1 + np.exp(-1.0) + np.exp(3.0)
    first = [-np.exp(-2.0) / (1 + np.exp(-2.0)), np.exp(-1.0) / sum_of_negatives, 0.0, np.exp(3.0) / sum_of_negatives]
    result.sum().backward()
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad[0].numpy(), first, rtol=1e-9)
    assert logits.grad[3].tolist() == [1.0, -1.0, 0.0, 0.0]


def test_reject_large_leaves_out_the_negatives_with_the_largest_loss() -> None:
    x = torch.tensor([[3.0, -2.0, 1.0, 5.0], [0.5, 2.0, -1.0, 4.0]])
    y = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, torch.nan, 0.0, 0.0]])  # 7 known, 6 of them negative
    weight = losses.RejectLarge(growth=0.25)
    largest = [(1, 3), (0, 0), (0, 2), (1, 0), (1, 2), (0, 1)]
    for epoch, num_rejected in ((1, 0), (2, 2), (3, 4), (9, 6)):  # ceil(7 x .25 x (epoch - 1)), at most all
        weight.start_epoch(epoch)
        weights = weight(x, y)
        assert weights[1, 1] == 0
        assert weights[0, 3] == 1
        assert [weights[place].item() for place in largest] == [0.0] * num_rejected + [1.0] * (6 - num_rejected)
    weight.start_epoch(2)
    assert (weight(torch.zeros(2, 4), torch.zeros(2, 4)) == 1).all(), "of equals none is left out"


def test_an_objective_tells_its_parts_the_epoch() -> None:
    loss, weight = losses.SPLC(), losses.RejectLarge(growth=0.25)
    objective = losses.Objective(loss, {"reject_large": weight})
    objective.start_epoch(3)
    assert loss.corrects
    assert weight.share == 0.5


@pytest.mark.parametrize("name", ["zlpr", "two_way"])
def test_an_objective_of_sets_is_the_mean_over_images(name: str) -> None:
    logits, targets = draw()
    targets[2] = torch.nan
    weights = torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0, 1.0])
    objective = losses.Objective(losses.LOSSES[name]())
    values = losses.LOSSES[name]()(logits, targets)
    torch.testing.assert_close(objective(logits, targets, weights), (values * weights).sum() / 5.5)
    kept = torch.arange(len(logits)) != 2  # an image without a known label changes nothing
    without = objective(logits[kept], targets[kept], weights[kept])
    torch.testing.assert_close(objective(logits, targets, weights), without)
    lines = objective.describe(logits, targets, torch.ones(6))
    assert "an image x 5 images" in lines[0]
    assert lines[1] == f"positives: {(targets == 1).sum().item() / 20:.1%} of the known entries"


def test_minus_one_is_unknown_as_in_a_table() -> None:
    logits, targets = draw()
    unknown = torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    by_nan, by_one = targets.masked_fill(unknown, torch.nan), targets.masked_fill(unknown, -1).to(torch.int8)
    for name, make in losses.LOSSES.items():
        assert torch.equal(make()(logits, by_one), make()(logits, by_nan)), name
    for name, make in losses.ENTRY_WEIGHTS.items():
        assert torch.equal(make()(logits, by_one), make()(logits, by_nan)), name
    objective, weights = losses.Objective(losses.LOSSES["focal"](), label_smoothing=0.1), torch.ones(6)
    assert torch.equal(objective(logits, by_one.float(), weights), objective(logits, by_nan, weights))


# ---- every loss ----

SETS = ("zlpr", "two_way")  # one number an image
MANY = [(name, {}) for name in losses.LOSSES] + [case for case in CASES if case[1] and "pos_weight" not in case[1]]
EDGES = {
    "zeros": torch.zeros(3, 5),
    "ones": torch.ones(3, 5),
    "fractions": torch.full((3, 5), 0.3),
    "a class without positives": torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0]] * 3),
    "unknown": torch.full((3, 5), torch.nan),
    "empty": torch.zeros(0, 5),
}


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_is_tested(name: str) -> None:
    assert name in {*FORMULAS, "softmax", *SETS}


@pytest.mark.parametrize(("name", "options"), MANY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("edge", EDGES)
def test_every_loss_is_finite_at_the_edges(name: str, options: dict[str, Any], dtype: torch.dtype, edge: str) -> None:
    for size in (60.0, 1000.0):
        targets = EDGES[edge]
        logits = torch.tensor([[size, -size, 0.0, -0.0, 1.0]] * 3, dtype=dtype)[: len(targets)].requires_grad_()
        loss = losses.LOSSES[name](**options)(logits, targets)
        assert loss.shape == (targets.shape[:1] if name in SETS else targets.shape)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert (loss >= 0).all()
        reduced = losses.reduce_loss(loss, targets, torch.ones(len(targets)))
        reduced.backward()
        assert logits.grad is not None
        assert torch.isfinite(reduced)
        assert torch.isfinite(logits.grad).all()
        if edge in ("unknown", "empty"):
            assert reduced == 0
            assert (logits.grad == 0).all()


@pytest.mark.parametrize(("name", "options"), [case for case in MANY if case[0] not in SETS])
def test_unknown_entries_give_nothing_and_change_nothing(name: str, options: dict[str, Any]) -> None:
    logits, targets = draw()
    logits[0] = torch.tensor([1000.0, -1000.0, 60.0, 0.0])
    unknown = torch.zeros_like(targets, dtype=torch.bool)
    unknown[0, :3] = unknown[1, 2] = unknown[3] = True
    results = []
    for mask in (unknown, torch.zeros_like(unknown)):
        leaf = logits.clone().requires_grad_()
        loss = losses.LOSSES[name](**options)(leaf, targets.masked_fill(mask, torch.nan))
        # as if the terms that are unknown in the first pass were left out of the sum in the second
        loss.masked_fill(unknown, 0.0).sum().backward()
        assert leaf.grad is not None
        results.append((loss.detach(), leaf.grad))
    (loss, grad), (full_loss, full_grad) = results
    assert (loss[unknown] == 0).all()
    assert (grad[unknown] == 0).all()
    torch.testing.assert_close(loss[~unknown], full_loss[~unknown])
    torch.testing.assert_close(grad[~unknown], full_grad[~unknown])


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    logits, targets = draw()
    half = logits.to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    loss, expected = (losses.LOSSES[name]()(leaf, targets) for leaf in (half, single))
    assert torch.equal(loss, expected)
    for value in (loss, expected):
        value.sum().backward()
    assert half.grad is not None
    assert single.grad is not None
    assert torch.equal(half.grad, single.grad.to(dtype))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("focal", "gamma", -1.0),
        ("focal", "alpha", 1.5),
        *[(name, "gamma_negative", -0.1) for name in ("asymmetric", "asymmetric_angular")],
        *[(name, "gamma_positive", -0.1) for name in ("asymmetric", "asymmetric_angular")],
        *[(name, "clip", value) for name in ("asymmetric", "asymmetric_angular") for value in (-0.1, 1.1, np.nan)],
        ("asymmetric_angular", "scale", 0.0),
        ("asymmetric_angular", "margin", -0.1),
        ("asymmetric_angular", "balance", 1.1),
        ("ghm", "bins", 0),
        ("ghm", "momentum", 1.0),
        ("ohem", "keep", 0.0),
        ("ohem", "keep", 1.1),
        ("class_weights", "positive", -1.0),
        ("class_weights", "negative", [1.0, np.nan]),
        ("threshold", "margin", 1.0),
    ],
)
def test_options_out_of_range(name: str, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{option} is .*: it must be "):
        {**losses.LOSSES, **losses.ENTRY_WEIGHTS}[name](**{option: value})


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    logits, targets = draw()
    torch.testing.assert_close(losses.Focal(gamma=0.0)(logits, targets), losses.BCEWithLogits()(logits, targets))


def test_pos_weight_counts_negatives_over_positives() -> None:
    targets = np.array([[1, 0, -1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 1]])
    assert losses.count_pos_weight(targets).tolist() == [3.0, 1.0, 2.0, 1.0]
    assert losses.count_pos_weight(targets, cap=2.5).tolist() == [2.5, 1.0, 2.0, 1.0]
    assert losses.count_pos_weight(np.where(targets < 0, np.nan, targets)).tolist() == [3.0, 1.0, 2.0, 1.0]


# ---- entry weights ----


def logits_of(probabilities: Any) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).logit()


class GHMByHand:
    """The counts kept in a dictionary, one entry at a time."""

    def __init__(self, bins: int, momentum: float) -> None:
        self.bins, self.momentum, self.running = bins, momentum, dict[int, float]()

    def __call__(self, probabilities: Floats, targets: Floats) -> Floats:
        places = np.floor(np.abs(probabilities - targets) * self.bins)
        known = ~np.isnan(targets)
        numbers = {int(place): int((places[known] == place).sum()) for place in places[known]}
        for place, number in numbers.items():
            old = self.running.get(place)
            self.running[place] = number if old is None else self.momentum * old + (1 - self.momentum) * number
        weights = np.zeros_like(targets)
        for entry in zip(*np.nonzero(known), strict=True):
            weights[entry] = known.sum() / (self.running[int(places[entry])] * len(numbers))
        return weights


@pytest.mark.parametrize("options", [{}, {"bins": 5, "momentum": 0.9}, {"bins": 10, "momentum": 0.0}])
def test_ghm_over_several_steps(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    ghm = losses.ENTRY_WEIGHTS["ghm"](**options)
    by_hand = GHMByHand(options.get("bins", 30), options.get("momentum", 0.75))
    for step in range(5):
        # at first easy entries only: later steps fill bins for the first time, and leave others empty
        probabilities = rng.uniform(0.001, 0.4 if step < 2 else 0.999, size=(4, 3))
        targets = (rng.random((4, 3)) < 0.3 * step / 4).astype(float)
        targets[rng.random((4, 3)) < 0.15] = np.nan
        weights = ghm(logits_of(probabilities), torch.tensor(targets))
        np.testing.assert_allclose(weights.numpy(), by_hand(probabilities, targets), rtol=1e-5)
    counts = np.zeros(by_hand.bins)
    counts[list(by_hand.running)] = list(by_hand.running.values())
    np.testing.assert_allclose(ghm.state_dict()["counts"].numpy(), counts, rtol=1e-6)


def test_ghm_in_evaluation_mode_uses_the_counts_it_has() -> None:
    ghm = losses.ENTRY_WEIGHTS["ghm"](bins=10, momentum=0.5)
    ghm(logits_of([[0.05, 0.05, 0.05, 0.55]]), torch.zeros(1, 4))
    before = ghm.state_dict()["counts"].clone()
    assert before.tolist() == [3, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    ghm.eval()
    # bin 0 has 3, bin 5 has 1, bin 9 none yet: there this batch's 2
    weights = ghm(logits_of([[0.05, 0.55, 0.55, 0.95, 0.95]]), torch.zeros(1, 5))
    np.testing.assert_allclose(weights.numpy(), [[5 / 9, 5 / 3, 5 / 3, 5 / 6, 5 / 6]], rtol=1e-6)
    assert torch.equal(ghm.state_dict()["counts"], before)


def test_ghm_at_the_ends_of_its_range() -> None:
    weights = losses.ENTRY_WEIGHTS["ghm"](bins=4)(torch.tensor([[1000.0, -1000.0, 1000.0]]), torch.zeros(1, 3))
    np.testing.assert_allclose(weights.numpy(), [[3 / 4, 3 / 2, 3 / 4]])


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (0.01, [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),  # at least one
        (0.125, [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
        (0.25, [0, 1, 0, 1, 0, 1, 0, 0, 0, 0]),  # two, and the one tied with the second
        (0.375, [0, 1, 0, 1, 0, 1, 0, 0, 0, 0]),
        (0.5, [0, 1, 1, 1, 0, 1, 0, 0, 0, 0]),
        (1.0, [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]),  # all but the unknown
    ],
)
def test_ohem_keeps_the_hardest(keep: float, kept: list[float]) -> None:
    logits = torch.tensor([[-3.0, 2.0, 1.0, -2.0, -1.0], [4.0, -2.0, -4.0, 9.0, 0.0]])
    targets = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, torch.nan, torch.nan]])
    weights = losses.ENTRY_WEIGHTS["ohem"](keep=keep)(logits, targets)
    assert weights.flatten().tolist() == kept


def test_ohem_keeps_all_of_equals() -> None:
    weights = losses.ENTRY_WEIGHTS["ohem"]()(torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 0.0]] * 2))
    assert (weights == 1).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[1, 1, 1], [1, 1, 0]]),
        ({"positive": 3.0}, [[3, 1, 2], [1, 3, 0]]),
        ({"positive": [2.0, 3.0, 4.0], "negative": 0.5}, [[2, 0.5, 2.25], [0.5, 3, 0]]),
        ({"negative": torch.tensor([2.0, 3.0, 0.0])}, [[1, 3, 0.5], [2, 1, 0]]),
    ],
)
def test_class_weights(options: dict[str, Any], expected: list[list[float]]) -> None:
    targets = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, torch.nan]])
    assert losses.ENTRY_WEIGHTS["class_weights"](**options)(torch.zeros(2, 3), targets).tolist() == expected


def test_class_weights_of_another_number_of_classes() -> None:
    weigh = losses.ENTRY_WEIGHTS["class_weights"](positive=[1.0, 2.0])
    with pytest.raises(InputError, match="positive is 2 weights: it must be one or as many as the classes, 3"):
        weigh(torch.zeros(2, 3), torch.zeros(2, 3))


def test_threshold_drops_what_is_learned() -> None:
    logits = logits_of([[0.05, 0.11, 0.95, 0.89, 0.4, 0.3, 0.01]])
    targets = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.5, 0.5, torch.nan]])
    weights = losses.ENTRY_WEIGHTS["threshold"]()(logits, targets.double() + torch.tensor([0, 0, 0, 0, -0.01, 0, 0]))
    assert weights.tolist() == [[0, 1, 0, 1, 0, 1, 0]]
    at_the_margin = losses.ENTRY_WEIGHTS["threshold"](margin=0.5)(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
    assert at_the_margin.tolist() == [[0, 0]]


@pytest.mark.parametrize("name", losses.ENTRY_WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("edge", EDGES)
def test_every_entry_weight_at_the_edges(name: str, dtype: torch.dtype, edge: str) -> None:
    targets = EDGES[edge]
    logits = torch.tensor([[1000.0, -1000.0, 60.0, -60.0, 0.0]] * 3, dtype=dtype)[: len(targets)].requires_grad_()
    module = losses.ENTRY_WEIGHTS[name]()
    for mode in (True, False):
        weights = module.train(mode)(logits, targets)
        assert weights.shape == targets.shape
        assert not weights.requires_grad
        assert torch.isfinite(weights).all()
        assert (weights >= 0).all()
        if edge == "unknown":
            assert (weights == 0).all()
        elif edge == "empty" or name == "threshold":
            continue
        else:
            assert weights.sum() > 0


# ---- smoothing and reduction ----


def test_smoothing() -> None:
    targets = torch.tensor([[1.0, 0.0, torch.nan, 0.3]], dtype=torch.float64)
    expected = [[0.95, 0.05, np.nan, 0.9 * 0.3 + 0.05]]
    np.testing.assert_allclose(losses.smooth_targets(targets, 0.1).numpy(), expected)
    expected = [[0.925, 0.025, np.nan, 0.9 * 0.3 + 0.025]]
    np.testing.assert_allclose(losses.smooth_targets(targets, 0.1, one_label=True).numpy(), expected)
    np.testing.assert_array_equal(losses.smooth_targets(targets, 0.0).numpy(), targets.numpy())


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, np.nan])
def test_smoothing_out_of_range(smoothing: float) -> None:
    with pytest.raises(InputError, match="label smoothing is"):
        losses.smooth_targets(torch.zeros(1, 1), smoothing)


def test_reductions_weigh_images_and_count_what_is_known() -> None:
    loss = torch.tensor([[1.0, 3.0], [10.0, 0.0], [0.0, 0.0]])
    targets = torch.tensor([[0.0, 0.0], [0.0, torch.nan], [torch.nan, torch.nan]])
    weights = torch.tensor([3.0, 1.0, 5.0])
    total = 3 * 1 + 3 * 3 + 10
    assert losses.reduce_loss(loss, targets, weights).item() == pytest.approx(total / 7)
    assert losses.reduce_loss(loss, targets, weights, "mean", by_image=True).item() == pytest.approx(total / 4)
    for one_label in (False, True):
        assert losses.reduce_loss(loss, targets, weights, "sum", one_label).item() == pytest.approx(total)


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
@pytest.mark.parametrize("one_label", [False, True])
def test_nothing_known_reduces_to_zero(reduction: str, one_label: bool) -> None:
    for targets in (torch.full((2, 3), torch.nan), torch.zeros(0, 3)):
        loss, weights = torch.zeros_like(targets), torch.ones(len(targets))
        assert losses.reduce_loss(loss, targets, weights, reduction, one_label) == 0


# ---- the objective ----


def test_objective_in_training_and_evaluation() -> None:
    logits, targets = draw()
    targets[1, 2] = torch.nan
    weights = torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0, 1.0])
    entry_weights = {
        "ghm": losses.ENTRY_WEIGHTS["ghm"](bins=10),
        "class_weights": losses.ENTRY_WEIGHTS["class_weights"](positive=3.0),
    }
    x, y, w = logits.double().numpy(), targets.double().numpy(), weights.double().numpy()[:, None]
    factor = GHMByHand(10, 0.75)(sigmoid(x), y) * np.where(y == 1, 3, 1)
    known = ~np.isnan(y)
    for reduction, divisor in (("mean", (w * known).sum()), ("sum", 1.0)):
        objective = losses.Objective(losses.LOSSES["focal"](), entry_weights, 0.1, reduction)
        base, power = focal(x, 0.9 * y + 0.05)
        expected = np.nansum(base * power * factor * w) / divisor
        # the counts of this batch stay what they are when it comes again: .75 n + .25 n
        assert objective(logits, targets, weights).item() == pytest.approx(expected, rel=1e-5)
        objective.eval()
        state = {name: value.clone() for name, value in objective.state_dict().items()}
        base, power = focal(x, y)
        expected = np.nansum(base * power * w) / (w * known).sum()
        assert objective(-logits, 1 - targets, weights).item() == pytest.approx(expected, rel=1e-5)
        assert all(torch.equal(value, state[name]) for name, value in objective.state_dict().items())


@pytest.mark.parametrize("name", ["focal", "softmax"])
def test_a_sum_is_shown_as_the_mean(name: str) -> None:
    logits, targets = draw()
    targets[1, 2] = targets[2] = torch.nan
    weights = torch.tensor([0.1, 0.2, 0.1, 0.05, 0.1, 0.1])
    objectives = [losses.Objective(losses.LOSSES[name](), reduction=reduction) for reduction in ("mean", "sum")]
    mean, total = (objective(logits, targets, weights) for objective in objectives)
    assert mean.item() != pytest.approx(total.item())
    for objective, loss in zip(objectives, (mean, total), strict=True):
        torch.testing.assert_close(objective.as_mean(loss, objective.count(targets, weights)), mean)


def test_objective_of_softmax_is_cross_entropy_over_images() -> None:
    logits = draw(5)[0]
    labels = torch.tensor([0, 3, 1, 1, 2])
    targets = torch.eye(4)[labels]
    objective = losses.Objective(losses.LOSSES["softmax"](), label_smoothing=0.1)
    for mode, smoothing in ((True, 0.1), (False, 0.0)):
        expected = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        torch.testing.assert_close(objective.train(mode)(logits, targets, torch.ones(5)), expected)


def test_objective_gives_entry_weights_no_gradient() -> None:
    logits, targets = draw()
    logits.requires_grad_()
    modules = {name: make() for name, make in losses.ENTRY_WEIGHTS.items()}
    losses.Objective(losses.LOSSES["bce_with_logits"](), modules, reduction="sum")(
        logits, targets, torch.ones(6)
    ).backward()
    x = logits.detach()
    factor = torch.ones_like(targets)
    for name, make in losses.ENTRY_WEIGHTS.items():
        factor *= make()(x, targets) if name == "ghm" else modules[name](x, targets)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, factor * (x.sigmoid() - targets))


def test_objective_keeps_the_counts_in_its_state() -> None:
    def make() -> losses.Objective:
        return losses.Objective(losses.LOSSES["asymmetric"](), {"ghm": losses.ENTRY_WEIGHTS["ghm"]()})

    logits, targets = draw()
    first, second = make(), make()
    first(logits, targets, torch.ones(6))
    second.load_state_dict(first.state_dict())
    again = [objective(logits * 0.5, targets, torch.ones(6)).item() for objective in (first, second, make())]
    assert again[0] == again[1] != again[2]


def test_objective_refuses_an_unknown_reduction() -> None:
    with pytest.raises(InputError, match="reduction is average: it must be one of mean, sum"):
        losses.Objective(losses.LOSSES["focal"](), reduction="average")


def test_describe_says_what_the_step_computes() -> None:
    logits = torch.zeros(2, 4)
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, torch.nan]])
    entry_weights = {"class_weights": losses.ENTRY_WEIGHTS["class_weights"](positive=[4.0, 1.0, 4.0, 1.0])}
    entry_weights["ghm"] = losses.ENTRY_WEIGHTS["ghm"]()  # one bin holds all: 1 each
    objective = losses.Objective(losses.LOSSES["bce_with_logits"](), entry_weights, reduction="sum").eval()
    # 5 negatives of log 2, 2 positives of 4 log 2: together 13 log 2 = 9.011, 1.287 each
    assert objective.describe(logits, targets, torch.ones(2)) == [
        "BCEWithLogits: 1.287 an entry x 7 known entries (2 images x 4 classes, 1 unknown) = 9.011; "
        "the step takes the sum",
        "positives: 28.6% of the known entries, 61.5% of the loss",
        "class_weights: mean 1.857, 1 to 4, 0 for 0.0% of the known entries",
        "ghm: mean 1, 1 to 1, 0 for 0.0% of the known entries",
    ]
    assert objective.train()(logits, targets, torch.ones(2)).item() == pytest.approx(13 * np.log(2))


def test_describe_foretells_the_next_step_and_changes_no_state() -> None:
    logits, targets = draw()
    objective = losses.Objective(losses.LOSSES["focal"](), {"ghm": losses.ENTRY_WEIGHTS["ghm"]()}, 0.1, "sum")
    objective(logits, targets, torch.ones(6))
    counts = objective.state_dict()["entry_weights.ghm.counts"].clone()
    line = objective.eval().describe(logits * 0.5, targets, torch.ones(6))[0]
    assert torch.equal(objective.state_dict()["entry_weights.ghm.counts"], counts)
    assert not objective.training
    value = objective.train()(logits * 0.5, targets, torch.ones(6)).item()
    assert line.endswith(f"= {value:.4g}; the step takes the sum")


def test_describe_weighs_images() -> None:
    targets = torch.tensor([[1.0, 0.0], [torch.nan, 0.0]])
    objective = losses.Objective(losses.LOSSES["bce_with_logits"](), {"ohem": losses.ENTRY_WEIGHTS["ohem"](keep=0.4)})
    logits = torch.tensor([[0.0, -9.0], [0.0, -9.0]])
    # of 1 + 1 + 0.5 entries one is left, with log 2
    assert objective.describe(logits, targets, torch.tensor([1.0, 0.5])) == [
        "BCEWithLogits: 0.2773 an entry x 2.5 known entries (2 images x 2 classes, 1 unknown, image weights 0.5 to 1) "
        "= 0.6931; the step takes the mean",
        "positives: 40.0% of the known entries, 100.0% of the loss",
        "ohem: mean 0.3333, 0 to 1, 0 for 66.7% of the known entries",
    ]


def test_describe_counts_images_for_softmax() -> None:
    objective = losses.Objective(losses.LOSSES["softmax"]())
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    line, _ = objective.describe(torch.zeros(2, 4), targets, torch.ones(2))
    assert (
        line == "Softmax: 1.386 an image x 2 images (2 images x 4 classes, 0 unknown) = 2.773; the step takes the mean"
    )


def test_describe_of_a_loss_of_zero() -> None:
    lines = losses.Objective(losses.LOSSES["softmax"]()).describe(torch.zeros(2, 4), torch.zeros(2, 4), torch.ones(2))
    assert lines[1] == "positives: 0.0% of the known entries, 0.0% of the loss"


def test_describe_without_anything_known() -> None:
    objective = losses.Objective(losses.LOSSES["focal"]())
    for targets in (torch.zeros(0, 4), torch.full((2, 4), torch.nan)):
        (line,) = objective.describe(torch.zeros_like(targets), targets, torch.ones(len(targets)))
        assert line == "no entry of the batch is known: its loss is 0"
