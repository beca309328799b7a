"""Verbs on data sets: `python dataset_tools.py VERB [recipe.py ...] [--NAME value ...]`.

    demo                draw a small multi-label data set into DATASET_FOLDER, to try the scripts on within minutes
    download coco2017   (or coco2014, voc2007) bring a public data set into DATASET_FOLDER, its images resized
    check               look for everything that may be wrong with DATASET_FOLDER; exit status 1 where there is an error
    convert --TO mlcls  write DATASET_FOLDER in another format into OUTPUT_FOLDER
    split               divide DATASET_FOLDER into train, val and test anew, with the same share of each label
    resize              write smaller copies of the images in RESIZE_SOURCE to RESIZE_TARGET, for quicker training
    curriculum          weigh the training images by how well a model knows them, into CURRICULUM_OUTPUT
    suspects            list the labels that are probably wrong, and make a page on which a person puts them right
    queue               choose the images of UNLABELLED_FOLDER whose labels would help most, into QUEUE_FOLDER

After `split` an EXCLUDE_LIST has to be made anew (`check`); a coco_json's boxes and masks are in its .bak only. `split`
prints the commands that undo it; with --DRY_RUN True it changes nothing.

The constants below and those of `config.py` can be overridden alike: --DATASET_FOLDER /tmp/demo --DEMO_SEED 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import overrides  # isort: skip  # before config: it tells a mistake there in one line
import config
import utils
from limits import Count
from utils import InputError

# ---- demo ----
DEMO_TRAIN_IMAGES: int = 1000  # images to draw for training; 1 or more
DEMO_TEST_IMAGES: int = 200  # images to draw for testing; 0: none
DEMO_IMAGE_SIZE: int = 128  # pixels, side of the square images; 32 or more
DEMO_SEED: int = 0  # 0 or more; image k of a split depends on this and the size, not on how many there are

# ---- download ----
DOWNLOAD: Literal["coco2017", "coco2014", "voc2007"] = "coco2017"  # COCO: val becomes test; VOC: trainval, train
DOWNLOAD_URLS: tuple[str, ...] = ()  # mirrors, tried in turn; (): the official servers

# ---- check ----
CHECK_FOLDER: Path = Path(config.LOCAL_ROOT) / "check"  # for the report, check_dataset/index.html, and for exclude.txt
CHECK_SMALL_SIDE: int = 32  # pixels; an image with a shorter side is a warning

# ---- convert ----
TO: Literal[
    "coco_cls",
    "train_list",
    "mlcls",
    "image_folder",
    "classes_json",
    "coco_json",
    "csv",
    "webdataset",
    "roboflow",
    "huggingface",
] = "coco_cls"
OUTPUT_FOLDER: Path = Path(config.LOCAL_ROOT) / "converted"  # where the other format goes
LINK_OR_COPY: Literal["link", "copy"] = "link"  # the images; links take no room

# ---- split ----
TRAIN_PERCENT: int = 90  # of the images; the three are 100 together
VAL_PERCENT: int = 10
TEST_PERCENT: int = 0  # 0: a test split that is there stays as it is, and the others are divided anew
DRY_RUN: bool = False  # True: print how many images and labels each split would have, and change nothing

# ---- resize and download ----
RESIZE_SHORT_SIDE: int = 256  # pixels; an image that is smaller stays as it is
RESIZE_QUALITY: int = 90  # of JPEG and WebP files, 1 to 100
RESIZE_SOURCE: Path = Path(config.IMAGES_DIR) / "train"  # resize: a folder of images, sub-folders too
RESIZE_TARGET: Path = Path(config.TRAIN_IMAGES_DIR)  # resize: where their copies go

# ---- curriculum ----
CURRICULUM_PROBABILITIES: tuple[str, ...] = ()  # files of a model's probabilities for the training images; averaged
CURRICULUM_THRESHOLDS: tuple[float, ...] = (0.8, 0.6)  # falling scores, where the next step begins; 0.5: guessed
CURRICULUM_WEIGHTS: tuple[float, ...] = (1.0, 0.7, 0.4)  # of each step's images, the best known first; 0: left out
CURRICULUM_OUTPUT: Path = Path(config.LOCAL_ROOT) / "curriculum.txt"  # `path,weight` a line, for CURRICULUM

# ---- suspects ----
SUSPECTS_SCORES: Path | None = None  # validation_scores.npz or test_scores.npz of a run; None: heads are trained now
SUSPECTS_SHOWN: Count = 1000  # images on the page, the most suspect ones; suspects.csv has all
SUSPECTS_FOLDER: Path = Path(config.LOCAL_ROOT) / "suspects"  # for index.html, its pictures, and suspects.csv

# ---- queue ----
UNLABELLED_FOLDER: Path | None = None  # images to choose from, sub-folders too; those with labels are left out
QUEUE_SIZE: Count = 200  # images to choose
QUEUE_FOLDER: Path = Path(config.LOCAL_ROOT) / "queue"  # for queue.csv, index.html and the tasks for Label Studio


def main(arguments: list[str]) -> None:
    """Run the verb that `arguments` start with. Raises InputError; exits with status 1 when a check fails."""
    verb, rest = arguments[0] if arguments else "", arguments[1:]
    if verb in ("-h", "--help", "--version"):
        rest = arguments
    elif verb not in VERBS:
        raise InputError(
            f"{verb!r} is not a verb{utils.suggest(verb, VERBS)}; dataset_tools.py takes: {', '.join(VERBS)}"
        )
    rest = ["--TO" if argument == "--to" else argument for argument in rest]
    if verb == "download" and rest and not rest[0].startswith("-") and not rest[0].endswith(".py"):
        rest.insert(0, "--DOWNLOAD")
    overrides.apply(rest, config, sys.modules[__name__])
    VERBS[verb]()


# Each verb imports what it needs: torch, which some do without, takes seconds.


def run_demo() -> None:
    from tools import demo

    splits = (
        (config.TRAIN_IMAGES_DIR, config.TRAIN_LABELS_DIR, DEMO_TRAIN_IMAGES),
        (config.TEST_IMAGES_DIR, config.TEST_LABELS_DIR, DEMO_TEST_IMAGES),
    )
    demo.draw_dataset(config.DATASET_FOLDER, splits, DEMO_IMAGE_SIZE, DEMO_SEED)


def run_download() -> None:
    from dataset import stratified_split
    from tools import download

    tables = download.download_dataset(
        DOWNLOAD,
        config.DATASET_FOLDER,
        short_side=RESIZE_SHORT_SIDE,
        quality=RESIZE_QUALITY,
        base_urls=DOWNLOAD_URLS,
    )
    utils.make_console().print(stratified_split.describe_split(tables))
    utils.say(f"{config.DATASET_FOLDER} is complete; its archives/ and original/ are needed no more")


def run_check() -> None:
    from tools import check
    from trainer import from_config

    passed = check.check_dataset(
        config.DATASET_FOLDER,
        from_config.choose_format("train"),
        output=CHECK_FOLDER,
        read=from_config.read_split,  # what training and testing would read
        options=from_config.make_options(run_commands=False),
        splits=from_config.list_splits(),
        small_side=CHECK_SMALL_SIDE,
    )
    if not passed:
        sys.exit(1)


def run_convert() -> None:
    from tools import convert
    from trainer import from_config

    require_usual_folders("convert")
    utils.say(f"{config.DATASET_FOLDER}: read as {from_config.choose_format('train')}")
    counts = convert.convert_dataset(
        config.DATASET_FOLDER,
        config.DATASET_FORMAT,
        TO,
        OUTPUT_FOLDER,
        link_or_copy=LINK_OR_COPY,
        classes=config.CLASSES,
        options=from_config.make_options(),
        correct=from_config.correct_labels,
    )
    utils.say(f"{OUTPUT_FOLDER}: {', '.join(f'{count} {split}' for split, count in counts.items())} images as {TO}")


def run_split() -> None:
    from tools import split
    from trainer import from_config

    require_usual_folders("split")
    if config.LABEL_CORRECTIONS:
        raise InputError(
            "LABEL_CORRECTIONS goes by the paths of images, which split changes: `convert` writes the corrected labels "
            "into another folder; split that, with LABEL_CORRECTIONS = None"
        )
    utils.say(f"{config.DATASET_FOLDER}: read as {from_config.choose_format('train')}")
    split.split_dataset(
        config.DATASET_FOLDER,
        config.DATASET_FORMAT,
        {"train": TRAIN_PERCENT, "val": VAL_PERCENT, "test": TEST_PERCENT},
        config.SPLIT_SEED,
        classes=config.CLASSES,
        group_pattern=config.GROUP_PATTERN,
        options=from_config.make_options(),
        dry_run=DRY_RUN,
    )


def run_resize() -> None:
    from tools import resize

    done = resize.resize_images(RESIZE_SOURCE, RESIZE_TARGET, RESIZE_SHORT_SIDE, RESIZE_QUALITY)
    utils.say(f"{RESIZE_TARGET}: {done.written} copies written, {done.kept} were there already")


def run_curriculum() -> None:
    from tools import curriculum
    from trainer import from_config

    if not CURRICULUM_PROBABILITIES:
        raise InputError(
            "CURRICULUM_PROBABILITIES is (): set it to files that testing.py wrote, with TEST_SPLIT train "
            "and PREDICTION_FILES probabilities"
        )
    curriculum.make_curriculum(
        from_config.read_split("train"),
        CURRICULUM_PROBABILITIES,
        CURRICULUM_THRESHOLDS,
        CURRICULUM_WEIGHTS,
        CURRICULUM_OUTPUT,
    )


def run_suspects() -> None:
    from tools import suspects
    from trainer import from_config, out_of_fold

    predicted = out_of_fold.read(SUSPECTS_SCORES) if SUSPECTS_SCORES else out_of_fold.predict()
    corrections = from_config.read_corrections()
    answered = corrections.lines if corrections else []
    found = suspects.judge_labels(
        predicted.table,
        predicted.probabilities,
        predicted.learned,
        one_label=out_of_fold.has_one_label(),
        absent_is_unknown=config.ABSENT_MEANS == "unknown",
        answered=answered,
    )
    utils.say(*suspects.describe(found))
    suspects.save_suspects(found, SUSPECTS_FOLDER, config.DATASET_FOLDER, SUSPECTS_SHOWN, answered, predicted.features)
    utils.say(
        f"saved: {SUSPECTS_FOLDER / 'suspects.csv'}",
        f"       {SUSPECTS_FOLDER / 'index.html'}: open it in a browser, answer, and save corrections.csv",
        "then train and test with --LABEL_CORRECTIONS corrections.csv",
    )


def run_queue() -> None:
    if UNLABELLED_FOLDER is None:
        raise InputError("UNLABELLED_FOLDER is None: set it to the folder of the images that may be labelled next")
    from tools import queue, queue_files
    from trainer import from_config, unlabelled

    tables = [from_config.read_split(split) for split in from_config.list_splits()]
    images = queue.find_unlabelled(
        UNLABELLED_FOLDER, [path for table in tables for path in table.paths], config.CACHE_FOLDER
    )
    predicted = unlabelled.predict(images.make_table(tables[0].classes))
    found = queue.make_queue(
        images,
        tables[0].classes,
        QUEUE_SIZE,
        probabilities=predicted.probabilities,
        labels=predicted.labels,
        rows=predicted.rows,
        labelled_rows=predicted.labelled_rows,
        labelled_targets=predicted.labelled_targets,
        model=predicted.model,
        max_labels=config.MAX_LABELS,
    )
    queue_files.save_queue(found, QUEUE_FOLDER)
    utils.say(*queue.describe(found), *queue_files.describe(QUEUE_FOLDER, images.folder))


def require_usual_folders(verb: str) -> None:
    """Raise InputError where the images or labels of DATASET_FOLDER lie elsewhere: `verb` would not find them."""
    images, labels = config.DATASET_FOLDER / "images", config.DATASET_FOLDER / "labels"
    for name, usual in (
        ("TRAIN_IMAGES_DIR", images / "train-resized"),
        ("TRAIN_LABELS_DIR", labels / "train"),
        ("TEST_IMAGES_DIR", images / "test-resized"),
        ("TEST_LABELS_DIR", labels / "test"),
    ):
        if vars(config)[name] != usual:
            raise InputError(f"{name} is {vars(config)[name]}: {verb} looks in DATASET_FOLDER alone, for {usual}")


VERBS = {
    "demo": run_demo,
    "download": run_download,
    "check": run_check,
    "convert": run_convert,
    "split": run_split,
    "resize": run_resize,
    "curriculum": run_curriculum,
    "suspects": run_suspects,
    "queue": run_queue,
}

if __name__ == "__main__":
    utils.run_script(main)
