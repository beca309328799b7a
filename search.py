"""Searches for the constants that suit your data: tries them, and writes the best as a recipe.

    python search.py SPACE.py [recipe.py ...] [--NAME value ...]
    python search.py [recipe.py ...] [--NAME value ...]      # without a space: a probe, a better head, adapters or all?

A space is a recipe in which some constants vary: HEAD_BASE_LR = log_range(1e-4, 1e-1), LABEL_SMOOTHING =
range_of(0.0, 0.3), HEAD = choices("linear", "linear_bn"). What stands on the command line holds for all trials. Each
trial is a run of training.py, in TRAINED_MODELS_FOLDER as any other. While the backbone stays frozen and only the head,
its loss and its rates vary, many heads train at once on features that are kept, and cross-validation over all training
images chooses.

Writes LOCAL_ROOT/searches/SPACE/: best.py (the winner as a recipe), trials.csv, and what the same command goes on from.
Several processes or machines may run it at once: they share the trials. SIGTERM and Ctrl-C save first.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Literal

import overrides  # isort: skip  # before config: it tells a mistake there in one line
import config
from limits import Above0, OffOrCount

if __name__ == "__main__":
    overrides.answer_early(config, sys.modules[__name__], takes_space=True)  # before the imports that take seconds

import utils
from constants.spaces import Varied
from utils import InputError

# ---- Search ----
SEARCH_MINUTES: Above0 = 10.0  # of this command; the same command again goes on with the search
SEARCH_TRIALS: OffOrCount = 0  # of this search at most, those of earlier and other commands included; 0: any number
SEARCH_METRIC: Literal["best_f1", "mAP"] = "best_f1"  # on validation images; best_f1: as runs choose their checkpoints


def main(arguments: list[str]) -> None:
    varied: dict[str, Varied] = {}
    overrides.apply(arguments, config, sys.modules[__name__], varied=varied)
    if config.FOLDS:
        raise InputError(f"search.py compares single runs, and FOLDS is {config.FOLDS}: set FOLDS = 0")
    if importlib.util.find_spec("optuna") is None:
        raise InputError("search.py needs optuna: pip install -r requirements-search.txt")
    from trainer import search_loop

    space = search_loop.Space(arguments, sys.modules[__name__], varied)
    if not varied:
        from trainer import ladder

        ladder.climb(space, SEARCH_MINUTES)
        return
    search_loop.search(space, search_loop.Budget(SEARCH_MINUTES, SEARCH_TRIALS), SEARCH_METRIC)


if __name__ == "__main__":
    utils.run_script(main)
