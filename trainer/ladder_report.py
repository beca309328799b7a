"""What came of each rung of the ladder, in sentences.

describe([Tried("the probe", 1.2, mAP=0.69, ...), Tried("ML-Decoder", 3.0, gain=Difference(...), ...)])
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from metrics import Difference
from thresholds import FEW_IMAGES

WIDTH = 116


class Tried(NamedTuple):
    """What came of a rung."""

    name: str
    minutes: float  # that were spent on it
    is_whole: bool = True  # whether its run came to its end
    whole_minutes: float | None = None  # that all of it would take, where it was stopped; None: that cannot be told
    num_images: int = 0  # that it was compared on; 0: it was stopped before it was validated
    mAP: float = 0.0
    f1: float = 0.0
    against: str = ""  # the rung kept before; "": it is the first
    gain: Difference | None = None  # of mAP over that one
    f1_gain: Difference | None = None
    is_kept: bool = False
    reason: str = ""  # why it failed, or was not begun


def describe(tried: Sequence[Tried]) -> list[str]:
    """A sentence for each rung, and which one won."""
    lines = [describe_rung(one) for one in tried]
    winner = [one for one in tried if one.is_kept][-1]
    reached = f"mAP {_show(winner.mAP)} and F1 {_show(winner.f1)} on {winner.num_images} images"
    lines.append(f"{_capitalise(winner.name)} won, with {reached}.")
    fewest = min((one.num_images for one in tried if one.gain is not None), default=FEW_IMAGES)
    if fewest < FEW_IMAGES:
        lines.append(
            f"{fewest} images are few to compare on: raise VAL_SPLIT, or train the recipes beside best.py with "
            "python training.py RECIPE --FOLDS 5 (a kernel head: --HEAD linear), and compare their rows of the table."
        )
    return lines


def describe_rung(one: Tried) -> str:
    """What came of a rung, in a sentence."""
    name, spent = _capitalise(one.name), _say_minutes(one.minutes)
    if one.reason:
        return f"{name}: not tried{' to the end' if one.minutes else ''}, {one.reason}."
    if one.is_whole:
        time = f"in {spent}"
    elif one.whole_minutes is None:
        time = f"in a trial of {spent}; how long all of it takes cannot be told yet"
    else:
        time = f"in a trial of {spent}; all of it would take {_say_minutes(one.whole_minutes)}"
    if not one.num_images:
        return f"{name}: no model to compare {time}."
    if one.gain is None or one.f1_gain is None:
        reached = f"mAP {_show(one.mAP)} and F1 {_show(one.f1)} on {one.num_images} held-out images"
        return f"{name}: {reached}, {time}."
    if one.is_kept:
        gains = f"{_show_interval(one.gain)}, F1 {_show_gain(one.f1_gain)}, on {one.num_images} images"
        return f"{name}: better than {one.against} by {gains}, {time}."
    gains = f"mAP {_show_gain(one.gain)}, F1 {_show_gain(one.f1_gain)}, on {one.num_images} images"
    if one.gain.high < 0:
        verdict = f"fell behind {one.against}"
    elif one.gain.value > 0:
        verdict = f"is not certain to be better than {one.against}"
    else:
        verdict = f"gained nothing over {one.against}"
    if one.is_whole or one.whole_minutes is None:
        return f"{name}: {verdict} {time} ({gains})."
    return f"{name}: {verdict} in a trial of {spent} ({gains}); all of it would take {_say_minutes(one.whole_minutes)}."


def wrap(lines: Sequence[str]) -> list[str]:
    """The lines, none longer than WIDTH."""
    return [part for line in lines for part in textwrap.wrap(line, WIDTH)]


def _capitalise(name: str) -> str:
    return name[0].upper() + name[1:]


def _say_minutes(minutes: float) -> str:
    number = f"{minutes:.0f}" if minutes >= 9.5 else f"{minutes:.1f}".removesuffix(".0")
    return f"{number} {'minute' if number == '1' else 'minutes'}"


def _show(value: float) -> str:
    """A share with three digits: .712, -.004."""
    return f"{value:.3f}".replace("0.", ".", 1)


def _show_interval(difference: Difference) -> str:
    """ ".012 (.004 to .020)"."""
    value, low, high = (_show(float(number)) for number in difference[:3])
    return f"{value} ({low} to {high})"


def _show_gain(difference: Difference) -> str:
    """ "+.012 (.004 to .020)"."""
    return ("+" if difference.value >= 0 else "") + _show_interval(difference)
