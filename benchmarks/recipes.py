"""What recipes reach, over seeds and numbers of photographs, and what they take.

    python benchmarks/recipes.py DATASET_FOLDER recipes/frozen_features.py recipes/coco18_efficientnet_lite0.py
    python benchmarks/recipes.py DATASET_FOLDER "recipes/frozen_features.py --HEAD linear" --train-images 50,300,4000

A recipe is what stands after `python training.py`. Each is trained by training.py and tested by testing.py once for
each seed, which is its SEED and its SPLIT_SEED and, where there are fewer images, draws these with the same share of
each label. Printed are means and in brackets the spread, highest - lowest: of the test images mAP, weighted F1 at the
run's threshold, ECE and labels predicted an image; of training.py the seconds of the whole process and its seconds on
all cores (CPU s). CACHE_FOLDER is empty at first: what is computed once is in the time. Runs that are in --folder are
not repeated: delete them after a change of the code.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import shlex

import config
import utils
from benchmarks.runs import Figures, describe, link_subset, name_by, parse_numbers, print_table, run_once

COLUMNS = {  # figure -> title and digits
    "mAP": ("test mAP", 3),
    "f1": ("weighted F1", 3),
    "ECE": ("ECE", 3),
    "labels": ("labels each", 2),
    "seconds": ("training, s", 0),
    "cpu_seconds": ("CPU s", 0),
}


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    rows = []
    for recipe in options.recipes:
        for num_images in options.train_images:
            runs = [measure(options, recipe, num_images, seed) for seed in options.seeds]
            rows.append([recipe, str(num_images or "all"), *make_cells(runs)])
    utils.say("", f"{len(options.seeds)} seeds: mean (highest - lowest)")
    print_table(rows, ["recipe", "images", *(title for title, _ in COLUMNS.values())])


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/recipes.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset_folder", type=Path, help="a data set with test labels")
    parser.add_argument("recipes", nargs="+", metavar="'recipe.py [--NAME value ...]'")
    parser.add_argument("--train-images", type=parse_numbers, default=[0], help="with validation; 0: all")
    parser.add_argument("--seeds", type=parse_numbers, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=config.LOCAL_ROOT / "recipe_runs", help="of the runs")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, recipe: str, num_images: int, seed: int) -> Figures:
    """One run. Its figures are printed as a line."""
    data = link_subset(options.dataset_folder, options.folder, num_images, seed)
    folder = options.folder / f"{name_by(recipe, str(data))}_{num_images or 'all'}_seed{seed}"
    figures = run_once(folder, data, [*shlex.split(recipe), f"--SEED={seed}", f"--SPLIT_SEED={seed}"])
    values = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    utils.say(f"{recipe}, {num_images or 'all'} images, seed {seed}: {values}")
    return figures


def make_cells(runs: list[Figures]) -> list[str]:
    """A cell for each of COLUMNS."""
    return [describe((run[name] for run in runs), digits) for name, (_, digits) in COLUMNS.items()]


if __name__ == "__main__":
    utils.run_script(main)
