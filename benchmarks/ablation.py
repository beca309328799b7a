"""Each ingredient of a recipe on or off, from that recipe as it stands, over seeds.

    python benchmarks/ablation.py DATASET_FOLDER recipes/coco18_efficientnet_lite0.py --held-out 1000
    python benchmarks/ablation.py DATASET_FOLDER "recipes/x.py --NUM_EPOCHS 4" --only ema,mixup --train-images 1000

The second argument is what stands after `python training.py`. list_variants() says what is changed: one thing at a
time (LoRA also with a larger rate), and what the recipe has already is left out. Each run is a training.py and a
testing.py of their own, with the seeds as SEED; SPLIT_SEED stays, so that all are validated on the same images. With
--held-out so many training images are tested on, and not trained on: choose by those, for the test images are for the
recipe that was chosen. Printed are the mean mAP; the mean over seeds of its difference to the recipe with the same
seed, and the lowest and highest; and the seconds of training.py on all cores (CPU s). Runs that are in --folder are
not repeated, so that an interrupted command goes on: delete them after a change of the code.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import config
import overrides
import utils
from benchmarks.runs import Figures, describe, link_subset, name_by, parse_numbers, print_table, run_once
from dataset.image_sizes import as_size
from utils import InputError

BASE = "the recipe"

Changes = dict[str, Any]


def list_variants(base: Mapping[str, Any]) -> dict[str, list[Changes]]:
    """For each ingredient the constants to change in the recipe whose constants are `base`, a run each."""
    side = max(as_size(base["IMAGE_SIZE"]))
    smaller = tuple(32 * round(side * share / 32) for share in (0.7, 0.85))
    return {
        "ema": [{"EMA_DECAY": decay} for decay in (0.0, 0.99, 0.998)],
        "crops": [{"CROP_SCALE_MIN": share} for share in (0.2, 0.35, 0.5, 0.75)],
        "growing_sizes": [{"GROWING_IMAGE_SIZES": sizes} for sizes in ((), smaller)],
        "layer_decay": [{"LAYER_DECAY": decay} for decay in (1.0, 0.85, 0.7)],
        "lora": [
            {"LORA_RANK": 0},
            *({"LORA_RANK": 8, "BACKBONE_BASE_LR": base["BACKBONE_BASE_LR"] * factor} for factor in (1, 10)),
        ],
        "mixup": [{"MIXUP_ALPHA": alpha} for alpha in (0.0, 0.2, 0.8)],
        "schedule": [{"SCHEDULE": name} for name in ("cosine", "onecycle")],
        "rate": [{"BACKBONE_BASE_LR": base["BACKBONE_BASE_LR"] * factor} for factor in (0.5, 2)],
        "head_rate": [{"HEAD_BASE_LR": base["HEAD_BASE_LR"] * factor} for factor in (0.5, 2)],
        "label_smoothing": [{"LABEL_SMOOTHING": share} for share in (0.0, 0.1)],
        "loss": [{"LOSS": name} for name in ("bce_with_logits", "asymmetric", "two_way")],
        "head": [{"HEAD": name} for name in ("linear", "linear_bn", "ml_decoder")],
        "lite2": [{"MODEL_NAME": name} for name in ("efficientnet_lite0", "efficientnet_lite2")],
        "pos_weight": [{"USE_POS_WEIGHT": uses} for uses in (False, True)],
        "statistics": [{"KEEP_BACKBONE_STATISTICS": keeps} for keeps in (False, True)],
    }


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    base = shlex.split(options.recipe)
    overrides.apply(base, config)
    constants = {constant.name: constant.value for constant in overrides.list_constants(config)}
    variants = choose_variants(constants, options.only)
    data = link_subset(options.dataset_folder, options.folder, options.train_images, 0, options.held_out)
    results: dict[str, list[Figures]] = {}
    for title, changes in variants.items():
        results[title] = [
            measure(options, data, title, [*base, *(f"--{name}={value}" for name, value in changes.items())], seed)
            for seed in options.seeds
        ]
    images = "held out" if options.held_out else "test"
    utils.say("", f"{options.recipe}: {len(options.seeds)} seeds, {options.train_images or 'all'} training images")
    print_table(make_rows(results), ["changed", f"mAP of {images} images", "difference", "lowest", "highest", "CPU s"])


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/ablation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset_folder", type=Path, help="a data set with test labels")
    parser.add_argument("recipe", metavar="'recipe.py [--NAME value ...]'")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="ingredients, as ema,mixup")
    parser.add_argument("--seeds", type=parse_numbers, default=[0, 1, 2])
    parser.add_argument("--train-images", type=int, default=0, help="with validation; 0: all")
    parser.add_argument(
        "--held-out", type=int, default=0, help="training images to test on instead; 0: the test images"
    )
    parser.add_argument("--folder", type=Path, default=config.LOCAL_ROOT / "ablation_runs", help="of the runs")
    return parser.parse_args(arguments)


def choose_variants(base: Mapping[str, Any], only: Sequence[str] = ()) -> dict[str, Changes]:
    """{title: changes}, the recipe as it stands first. Without those that `base`, its constants, has already.

    Raises InputError for an ingredient in `only` that there is not.
    """
    variants = list_variants(base)
    for name in only:
        if name not in variants:
            known = ", ".join(variants)
            raise InputError(f"there is no ingredient {name!r}{utils.suggest(name, variants)}; known: {known}")
    chosen: dict[str, Changes] = {BASE: {}}
    for name in only or variants:
        for changes in variants[name]:
            if any(base.get(constant) != value for constant, value in changes.items()):
                chosen[", ".join(f"{constant} {value}" for constant, value in changes.items())] = changes
    return chosen


def measure(options: argparse.Namespace, data: Path, title: str, constants: list[str], seed: int) -> Figures:
    """One run; {} where training.py or testing.py refused it: its message has been shown."""
    folder = options.folder / f"{name_by(*constants, str(data))}_seed{seed}"
    try:
        figures = run_once(folder, data, [*constants, f"--SEED={seed}"])
    except InputError as error:
        utils.warn(f"{title}, seed {seed}: {error}")
        return {}
    utils.say(f"{title}, seed {seed}: mAP {figures['mAP']:.4f}, {figures['cpu_seconds']:.0f} s on all cores")
    return figures


def make_rows(results: Mapping[str, Sequence[Figures]]) -> list[list[str]]:
    """A row for each of `results`, {title: figures for each seed}; those of the recipe itself are called BASE.

    A row whose runs did not all succeed says so.
    """
    rows = []
    for title, runs in results.items():
        if not all(runs):
            rows.append([title, f"{sum(not run for run in runs)} of {len(runs)} failed", "", "", "", ""])
            continue
        cells = [title, describe(run["mAP"] for run in runs), "", "", ""]
        if title != BASE and all(results[BASE]):
            gains = [run["mAP"] - before["mAP"] for run, before in zip(runs, results[BASE], strict=True)]
            cells[2:] = [f"{value:+.3f}" for value in (statistics.mean(gains), min(gains), max(gains))]
        rows.append([*cells, describe((run["cpu_seconds"] for run in runs), 0)])
    return rows


if __name__ == "__main__":
    utils.run_script(main)
