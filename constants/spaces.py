"""What a space of search.py adds to a recipe: `choices`, `range_of` and `log_range`, in place of one value.

    HEAD = choices("linear", "linear_bn")       # one of these
    LABEL_SMOOTHING = range_of(0.0, 0.3)        # from the lowest to the highest; whole numbers where the constant has
    HEAD_BASE_LR = log_range(1e-4, 1e-1)        # likewise, but 0.001 to 0.01 is as probable as 0.01 to 0.1

Like a recipe, a space is read and never run.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any, NamedTuple

from constants.recipes import evaluate
from constants.source import ROOT, read_comments
from constants.values import check
from utils import InputError

KINDS = ("choices", "range_of", "log_range")
# what decides which images and labels a trial is measured on, or where things lie: sections of config.py, and others
FIXED_SECTIONS = {"Your data", "Files and folders", "Reading", "Classes"}
FIXED = {"DATASET_FORMAT", "VAL_SPLIT", "SPLIT_SEED", "LABELS_PER_IMAGE", "FOLDS"}


class Varied(NamedTuple):
    """The values that a constant may have: those of `choices`, or the lowest and the highest of a range."""

    kind: str  # one of KINDS
    values: tuple[Any, ...]  # as the constant's type has them: at least two choices, or two numbers of one type
    where: str  # file and line

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(repr(plain(value)) for value in self.values)})"


def plain(value: Any) -> Any:
    """A constant's value as text, number, truth value, None or a tuple of them."""
    return value if isinstance(value, str | int | float | tuple | None) else str(value)


def find_kind(expression: object) -> str | None:
    """Which of KINDS `expression` calls; None for any other expression, and for text of the command line."""
    if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name) and expression.func.id in KINDS:
        return expression.func.id
    return None


def read_varied(name: str, call: ast.Call, constants: Mapping[str, Any], annotation: Any, where: str) -> Varied:
    """What the constant `name` of config.py may be, by a `call` of one of KINDS.

    Raises InputError for a constant that has to be the same in all trials, for a value that is not of the constant's
    type `annotation` or beyond its limit, for fewer than two choices, and for a range whose ends are no numbers or in
    the wrong order.
    """
    kind = find_kind(call)
    assert kind
    if name in FIXED or read_comments(ROOT / "config.py")[name][0] in FIXED_SECTIONS:
        raise InputError(f"{name} cannot vary: trials with other {name} cannot be compared")
    if call.keywords:
        raise InputError(f"{name}: {kind} takes values, without names")
    try:
        values = [evaluate(item, constants) for item in call.args]
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if kind == "choices":
        checked = tuple(check(name, value, annotation) for value in values)
        if len(checked) < 2 or len({repr(value) for value in checked}) < len(checked):
            raise InputError(f"{name}: choices takes two values or more, each of them once")
        return Varied(kind, checked, where)
    if len(values) != 2:
        raise InputError(f"{name}: {kind} takes the lowest and the highest value")
    low, high = (check(name, value, annotation) for value in values)
    if type(low) not in (int, float) or type(low) is not type(high):
        raise InputError(f"{name}: {kind} is for numbers; write choices({low!r}, {high!r})")
    if low >= high:
        raise InputError(f"{name}: {kind} takes the lowest value first, then a higher one, not {low!r}, {high!r}")
    if kind == "log_range" and low <= 0:
        raise InputError(f"{name}: log_range begins above 0, not at {low!r}: write range_of, or a small number")
    return Varied(kind, (low, high), where)
