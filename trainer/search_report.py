"""What a search ends with: a table of its trials, printed and as CSV, and the winner as a recipe.

report(trials, "10 minutes are over", is_trained=True, write_recipe=write)
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import utils
from constants.spaces import plain
from dataset.whole_files import write_text
from evaluation import tables
from trainer.search_study import Trials, Tried

SHOWN = 10  # trials in the terminal, the best
IN_RECIPE = 5  # trials in the text on top of the winner's recipe
WIDTH = 116


def report(
    trials: Trials, ended: str, *, is_trained: bool, write_recipe: Callable[[Mapping[str, Any], Path, str], None]
) -> bool:
    """Write trials.csv and best.py, and print the best trials. False where no trial is complete.

    `ended` says why the search ended; `is_trained`, whether each trial left a checkpoint. `write_recipe(values, path,
    words)` writes the constants of a trial.
    """
    tried = [one for one in trials.list_tried() if one.state not in ("waiting", "repeated")]
    ranked = sorted(tried, key=lambda one: -1.0 if one.figure is None else one.figure, reverse=True)
    frame = make_frame(ranked, trials)
    if tried:
        write_text(trials.folder / "trials.csv", tables.make_csv(frame))
    complete = [one for one in ranked if one.figure is not None]
    if not complete:
        return False
    recipe = trials.folder / "best.py"
    importance = trials.measure_importance()
    write_recipe(complete[0].values, recipe, "\n".join(describe(trials, tried, complete, importance, is_trained)))
    utils.say("", f"the search ends: {ended}")
    notes = [f"{count_states(tried)}. {describe_figure(complete, is_trained)}", *describe_importance(importance)]
    notes += [f"all trials: {trials.folder / 'trials.csv'}", f"the best as a recipe: {recipe}"]
    if is_trained:
        notes.append(f"it is trained; to test it: python testing.py --MODEL_PATH {complete[0].run}")
    else:
        notes.append(f"to train it: python training.py {recipe}")
    shown = frame.head(min(SHOWN, len(complete)))
    dropped = ["reason", *([] if is_trained else ["run"])]
    shown = shown.drop(columns=dropped)
    best = tables.Layout(bold={(0, name) for name in shown})
    tables.print_text(shown, layout=best, kept="run" if is_trained else None)
    utils.say("", *notes)  # a command to copy stays on its line, however narrow the terminal is
    return True


def make_frame(ranked: Sequence[Tried], trials: Trials) -> tables.Frame:
    """A row for each trial: its number, figure, state and time, the constants that vary, run and reason."""
    from dataset.frames import pd

    rows = [
        {
            "trial": one.number,
            trials.metric: one.figure,
            "state": one.state,
            "seconds": None if one.seconds is None else round(one.seconds, 1),
            **{name: _as_cell(one.values.get(name)) for name in trials.varied},
            "run": one.run or None,
            "reason": one.reason or None,
        }
        for one in ranked
    ]
    return pd.DataFrame(rows)


def _as_cell(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else plain(value)


def count_states(tried: Sequence[Tried]) -> str:
    """How many trials came to which end."""
    counts = Counter(one.state for one in tried)
    return f"{len(tried)} trials: " + ", ".join(f"{count} {state}" for state, count in counts.most_common())


def describe_figure(complete: Sequence[Tried], is_trained: bool) -> str:
    """What the best figure is over, and that it was chosen as the best: a sentence."""
    number = "" if complete[0].num_images is None else f"{complete[0].num_images:,} "
    images = (
        f"the {number}validation images"
        if is_trained
        else f"all {number}training images, each by heads that did not see it"
    )
    return f"The figure is over {images}; it chose the best of {len(complete)}, so it is a little too good."


def describe_importance(importance: Mapping[str, float]) -> list[str]:
    """Which constants made the difference, the most important first; nothing where it is not known."""
    if not importance:
        return []
    shares = ", ".join(f"{name} {share:.0%}" for name, share in importance.items())
    return [f"what sets the better trials apart (PED-ANOVA): {shares}"]


def describe(
    trials: Trials,
    tried: Sequence[Tried],
    complete: Sequence[Tried],
    importance: Mapping[str, float],
    is_trained: bool,
) -> list[str]:
    """The text on top of the winner's recipe: what was tried, and what came of it."""
    reached = f"{trials.metric} {complete[0].figure:.4f}"
    lines = [
        f"The best of {len(complete)} trials of python search.py: {reached}.",
        "",
        f"{count_states(tried)}. {describe_figure(complete, is_trained)}",
        "What varied:",
        *(f"* {name} = {choice}" for name, choice in trials.varied.items()),
        "The best trials:",
    ]
    for one in complete[:IN_RECIPE]:
        values = ", ".join(f"{name} {show(value)}" for name, value in one.values.items())
        lines.append(f"* {one.figure:.4f}: {values}")
    lines += describe_importance(importance)
    return [part for line in lines for part in (textwrap.wrap(utils.make_visible(line), WIDTH) or [""])]


def show(value: Any) -> str:
    """A constant's value as a person reads it."""
    return f"{value:.4g}" if isinstance(value, float) else str(plain(value))
