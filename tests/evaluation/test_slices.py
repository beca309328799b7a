"""evaluation/slices.py: each slice is measured as if it were all there is, and a gap is more than chance."""

from __future__ import annotations

import csv
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from conftest import make_products_rng
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import average_precision_score

import metrics
from dataset.json_files import to_json
from evaluation import slices
from evaluation.slices import Slicing, find_in_paths, find_rows, measure_slicings
from utils import InputError

SIZES = {"north": 60, "south": 50, "west": 45}


def draw() -> tuple[NDArray, NDArray, dict[str, NDArray[np.intp]]]:
    """Scores (155, 4), much worse on the images of "south"; class 3 is only in "north", and there rare."""
    rng = make_products_rng(3)  # always the same: the gap has to be certain
    slice_of = [name for name, size in SIZES.items() for _ in range(size)]
    rng.shuffle(slice_of)
    targets = (rng.random((155, 4)) < 0.4).astype(np.int8)
    targets[:, 3] = 0
    targets[np.flatnonzero(np.array(slice_of) == "north")[:2], 3] = 1
    skill = np.where(np.array(slice_of) == "south", 0.0, 0.4)[:, None]
    scores = ((1 - skill) * rng.random((155, 4)) + skill * targets).astype(np.float32)
    return scores, targets, find_rows("camera", slice_of)


def test_each_slice_is_measured_by_itself() -> None:
    scores, targets, rows_of = draw()
    (slicing,) = measure_slicings({"camera": rows_of}, scores, targets, 0.5, num_samples=30, max_labels=2)
    assert [(part.name, part.num_images) for part in slicing.slices] == [*SIZES.items()]
    for number, part in enumerate(slicing.slices):
        rows = rows_of[part.name]
        assert part.measured == pytest.approx(metrics.measure(scores[rows], targets[rows], 0.5, max_labels=2))
        expected, _ = metrics.bootstrap(scores[rows], targets[rows], 0.5, 30, seed=number, max_labels=2)
        assert part.intervals == expected
        assert part.num_positives == targets[rows].sum()


def resample(scores: NDArray, targets: NDArray, seed: int, classes: list[int]) -> tuple[NDArray, NDArray]:
    """(mAP over `classes`, Hamming loss) on the images, then in 40 resamples: all (41,)."""
    rng = make_products_rng(seed)
    draws = [np.arange(len(targets)), *(rng.integers(len(targets), size=len(targets)) for _ in range(40))]
    map_of = [np.mean([average_precision_score(targets[d, c], scores[d, c]) for c in classes]) for d in draws]
    loss_of = [((scores[d] >= 0.5) != targets[d]).mean() for d in draws]
    return np.array(map_of), np.array(loss_of)


def test_the_largest_gap_that_is_more_than_chance() -> None:
    """Each of three pairs has a level of 1 - .05 / 3; mAP is over the three classes that all slices have."""
    scores, targets, rows_of = draw()
    (slicing,) = measure_slicings({"camera": rows_of}, scores, targets, 0.5, num_samples=40)
    drawn = {name: resample(scores[r], targets[r], seed, [0, 1, 2]) for seed, (name, r) in enumerate(rows_of.items())}
    assert slicing.num_pairs == 3
    for metric, which in (("mAP", 0), ("hamming_loss", 1)):
        found = []
        for a, b in combinations(SIZES, 2):
            difference = drawn[b][which] - drawn[a][which]
            t = stats.t.ppf(1 - 0.05 / 3 / 2, min(SIZES[a], SIZES[b]) - 1)
            reach = t * difference[1:].std(ddof=1)
            lower, higher = (a, b) if difference[0] > 0 else (b, a)
            found.append((abs(difference[0]) - reach, abs(difference[0]), reach, lower, higher))
        sure = [each for each in found if each[0] > 0]
        _, value, reach, lower, higher = max(sure, key=lambda each: each[1])
        gap = slicing.gaps[metric]
        assert gap is not None
        assert (gap.lower, gap.higher) == (lower, higher)
        assert gap.difference.value == pytest.approx(value, abs=1e-6)
        if metric == "mAP":  # to which each class adds what its own interval says (tests/test_metrics.py)
            assert value - 1.5 * reach < gap.difference.low < value - reach
        else:
            assert gap.difference[1:3] == pytest.approx((value - reach, value + reach), abs=1e-6)
        assert len(sure) == 2, "two of the three differ from south alone"
    gap = slicing.gaps["mAP"]
    assert gap is not None
    assert gap.num_classes == 3
    assert not slices.CLASS_MEANS & slicing.gaps.keys()
    assert slicing.slices[0].measured.keys() > slices.CLASS_MEANS
    (line,) = slices.describe(slicing)
    assert line.startswith("the largest gap: mAP is 0.")
    assert " lower on south than on " in line
    assert "over the 3 classes that both have (0." in line
    assert line.endswith(", 95 % for all of 3 pairs)")


def test_more_pairs_make_a_gap_less_sure() -> None:
    scores, targets, rows_of = draw()
    alone = measure_slicings({"camera": rows_of}, scores, targets, 0.5, num_samples=40)[0]
    both = measure_slicings({"camera": rows_of, "again": rows_of}, scores, targets, 0.5, num_samples=40)
    assert [slicing.num_pairs for slicing in both] == [6, 6]
    of_both, of_one = both[0].gaps["mAP"], alone.gaps["mAP"]
    assert of_both is not None
    assert of_one is not None
    assert of_both.difference.low < of_one.difference.low
    assert both[0].gaps == both[1].gaps


def test_a_gap_of_map_is_not_one_of_how_many_positives_there_are() -> None:
    """Few positives make AP too high: the interval reaches as far as two slices differ in that."""
    scores, targets, _ = draw()
    scores[100:] = 0.5 * targets[100:] + 0.4 * scores[100:]  # all ranked right
    parts = {"many": np.arange(100), "few": np.arange(100, 155)}
    a, b = (
        metrics.resample(scores[rows, :3], targets[rows, :3], 0.5, 30, seed) for seed, rows in enumerate(parts.values())
    )
    (slicing,) = measure_slicings({"size": parts}, scores[:, :3], targets[:, :3], 0.5, num_samples=30)
    shift = b.overcount.mean() - a.overcount.mean()
    assert shift < 0, "where all is ranked right, nothing is counted too much"
    gap, plain = slicing.gaps["mAP"], metrics.subtract(a, b)["mAP"]
    assert gap is not None
    assert (gap.difference.value, gap.difference.low) == pytest.approx((plain.value, plain.low))
    assert gap.difference.high == pytest.approx(plain.high - shift)


def test_a_difference_that_may_be_chance_is_no_gap() -> None:
    rng = make_products_rng(8)
    scores, targets = rng.random((80, 3)).astype(np.float32), (rng.random((80, 3)) < 0.5).astype(np.int8)
    halves = {"day": np.arange(40), "night": np.arange(40, 80)}
    (slicing,) = measure_slicings({"light": halves}, scores, targets, 0.5, num_samples=40)
    assert slicing.gaps["mAP"] is None
    assert slices.describe(slicing) == ["no two slices surely differ in mAP, of the one pair compared"]


def test_few_images_no_label_and_one_slice_are_said() -> None:
    scores, targets, _ = draw()
    targets[40:80] = 0
    rows_of = {"a": np.arange(40), "b": np.arange(40, 80), "c": np.array([80]), "": np.arange(81, 155)}
    (slicing,) = measure_slicings({"x": rows_of}, scores, targets, 0.5, num_samples=20)
    assert slices.describe(slicing)[1:] == [
        "fewer than 30 images, which say little: c (1)",
        "no label is present, so that mAP is undefined: b",
    ]
    assert np.isnan(slicing.slices[1].measured["mAP"])
    assert np.isnan(slicing.slices[1].intervals["mAP"]).all()
    one = slicing.slices[2]
    assert one.intervals["hamming_loss"] == pytest.approx((0, 1), abs=1e-6), "one image says nothing of others"
    assert not any(gap and "c" in (gap.lower, gap.higher) for gap in slicing.gaps.values())
    (slicing,) = measure_slicings({"x": {"": np.arange(155)}}, scores, targets, 0.5, num_samples=20)
    assert slices.describe(slicing) == ["all images are in one slice, (none): there is nothing to compare"]


def test_without_resamples_there_are_values_alone(capsys: pytest.CaptureFixture[str]) -> None:
    scores, targets, rows_of = draw()
    found = measure_slicings({"camera": rows_of}, scores, targets, 0.5, num_samples=0)
    assert (found[0].slices[0].intervals, found[0].gaps, slices.describe(found[0])) == ({}, {}, [])
    slices.print_slicings(found)
    out = capsys.readouterr().out
    assert f"{found[0].slices[1].measured['mAP']:.3f}" in out
    assert "(" not in out


def test_slices_are_in_the_order_of_people_and_not_too_many() -> None:
    rows_of = find_rows("day", ["10", "b2", "", "9", "b10", "10", "a"])
    assert [*rows_of] == ["9", "10", "a", "b2", "b10", ""]
    assert rows_of["10"].tolist() == [0, 5]
    with pytest.raises(InputError, match=r"SLICES 'id' has 51 values, such as '0', '1', '10', and 48 more: 50 are the"):
        find_rows("id", [str(number) for number in range(51)])


def test_a_pattern_finds_slices_in_whole_paths() -> None:
    paths = ["/data/camera12/1.jpg", "/data/other/2.jpg", "/data/camera7/3.jpg"]
    assert find_in_paths(r"/camera(\d+)/", paths) == ["12", "", "7"]
    assert find_in_paths(r"/camera(\d\d)?", paths) == ["12", "", ""]
    with pytest.raises(InputError, match=r"finds nothing in any path, such as /data/camera12/1\.jpg"):
        find_in_paths("(lamp)", paths)
    assert slices.find_fault("(a)") == slices.find_fault("(?:a|b)(c)") == ""
    assert slices.find_fault("(?:a)") == slices.find_fault("a") == "it has no group"
    assert slices.find_fault("(a)(b)") == "it has 2 groups: those that only hold together are written (?:...)"
    assert slices.find_fault("(") == "missing ), unterminated subpattern at position 0"


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names from elsewhere are guarded; JSON has them exactly, and no NaN."""
    scores, targets, _ = draw()
    targets[100:] = 0
    rows_of = {"=1+1": np.arange(100), "\x1b[31m[red]": np.arange(100, 155)}
    found: list[Slicing] = measure_slicings({"camera": rows_of}, scores, targets, 0.5, num_samples=20)
    slices.save_csv(tmp_path / "slices.csv", found)
    first, second = csv.DictReader((tmp_path / "slices.csv").open(encoding="utf-8"))
    assert (first["slicing"], first["slice"], second["slice"]) == ("camera", "'=1+1", r"\x1b[31m[red]")
    assert float(first["mAP_low"]) == pytest.approx(found[0].slices[0].intervals["mAP"][0], rel=1e-5)
    assert (second["mAP"], second["mAP_low"], second["labels"]) == ("", "", "0")
    assert "num_classes_in_mAP_low" not in first
    saved = json.loads(to_json(slices.to_dict(found)))["camera"]
    assert [*saved["slices"]] == [*rows_of]
    assert saved["slices"]["\x1b[31m[red]"]["metrics"]["mAP"] is None
    assert saved["slices"]["=1+1"]["intervals"]["ECE"] == pytest.approx(found[0].slices[0].intervals["ECE"])
    assert found[0].gaps["OR"] is None, "a slice without labels has no recall to compare"
    gap = found[0].gaps["OP"]
    assert gap is not None
    assert saved["largest_gaps"]["OP"]["interval"] == [gap.difference.low, gap.difference.high]
    assert saved["largest_gaps"]["mAP"] is None
    slices.print_slicings(found)
    out = capsys.readouterr().out
    assert r"\x1b[31m[red]" in out
    assert "\x1b" not in out
