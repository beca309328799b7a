"""Exports a checkpoint as a file or folder for other programs, and compares each with it: EXPORT_FORMATS says which.

    python export_onnx.py [recipe.py ...] [--NAME value ...]

Makes the files EXPORT_FORMATS from the checkpoint MODEL_PATH, and writes them into EXPORT_FOLDER. A file takes
`images`, uint8 RGB (B, 3, H, W), already resized, or with EXPORT_RESIZE one `image`, uint8 RGB (H, W, 3) of any size.
It holds its classes, thresholds, image size and resize rule, so that predictor.load and testing.py open it like a
checkpoint. File and checkpoint are run over the same EXPORT_CHECK_IMAGES image files; FILE.json beside the file holds
the result, and evaluation/export_parity.py the budgets. If the two differ too much, the mark FILE.FAILED stays beside
the file, the file is not opened later, and the exit status is 1. predict_onnx.py is put beside ONNX files: it runs them
without this project.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import overrides  # isort: skip  # before config: it tells a mistake there in one line
import config
from limits import ONE_OR_MORE, Count

# ---- Export ----
EXPORT_FORMATS: Annotated[
    tuple[Literal[
        "onnx", "openvino", "torchscript", "pt2", "litert", "onnx_int8", "openvino_int8", "web", "hub", "triton",
        "openvino_server",
    ], ...],
    ONE_OR_MORE,
] = ("onnx",)  # fmt: skip  # the files to make of MODEL_PATH
EXPORT_FOLDER: Path = Path(config.LOCAL_ROOT) / "exported_models"  # where they go
EXPORT_RESIZE: bool = False  # onnx, openvino: they take one image of any size, uint8 (H, W, 3), and resize it
EXPORT_OUTPUT: Literal["logits", "probabilities", "labels"] = "logits"  # probabilities: after CALIBRATION; labels: both
EXPORT_DYNAMIC: tuple[Literal["batch", "size"], ...] = ("batch",)  # what may vary; size: height, width; (): one image
EXPORT_FP16: bool = False  # openvino: weights of 16 bits, half the file
EXPORT_CHECK_IMAGES: Count = 200  # image files on which each file is compared with the checkpoint

if __name__ == "__main__":
    overrides.answer_early(config, sys.modules[__name__])  # before the imports that take seconds

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

import models_factory
import predictor
import utils
from dataset import files, resize_rules, whole_files
from dataset.json_files import to_json
from dataset.table import map_classes
from evaluation import export_parity, hub_card, pages
from evaluation.model_facts import NO_PATHS
from export import engines, model_files
from export.export_formats import EXPORT_FORMATS as FORMATS
from export.model_files import Export
from models import batchnorm_folding, checkpoints, hub_folders
from trainer import from_config
from utils import InputError

PREDICTOR = Path(model_files.__file__).with_name("predict_onnx.py")
TEXTS_OF_PLACES = ("EXTRA_DATASET_FOLDERS", "TEACHER_PROBABILITIES", "TEACHER_CHECKPOINTS")  # files and folders, too


def main(arguments: list[str]) -> None:
    overrides.apply(arguments, config, sys.modules[__name__])
    for name in EXPORT_FORMATS:
        engines.require_packages(FORMATS[name].packages, f"EXPORT_FORMATS {name}")
    if engines.recognise(config.MODEL_PATH) != "checkpoint":
        raise InputError(f"exported files are made of checkpoints, and MODEL_PATH {config.MODEL_PATH} is none")
    if "hub" in EXPORT_FORMATS and EXPORT_OUTPUT != "logits":
        utils.say(f"hub gives logits, whatever EXPORT_OUTPUT says ({EXPORT_OUTPUT})")
    if "hub" in EXPORT_FORMATS and config.CALIBRATION != "none":
        utils.say(
            f"hub: CALIBRATION {config.CALIBRATION} is not in its logits but in its multilabel.json, where this "
            "project's scripts read it"
        )
    checkpoint = checkpoints.load(config.MODEL_PATH)
    split = choose_check_split()
    paths, targets = sample_check_images(split, checkpoint["classes"])
    reference = export_parity.make_reference(
        config.MODEL_PATH, paths, targets, config.CALIBRATION, default_threshold=config.TH_MULTI_LABEL
    )
    network = f"{checkpoint['model_name']} + {checkpoint['head']}"
    utils.say(f"{config.MODEL_PATH}: {network}, compared on {len(paths)} {split} images")

    outputs = [FORMATS[name].output or EXPORT_OUTPUT for name in EXPORT_FORMATS]
    bare = [name for name, output in zip(EXPORT_FORMATS, outputs, strict=True) if output == "logits" and name != "hub"]
    if bare and config.CALIBRATION != "none":
        utils.warn(
            f"{', '.join(bare)}: CALIBRATION {config.CALIBRATION} is not in a file of logits, of which predict_onnx.py "
            "and other programs make uncalibrated probabilities: EXPORT_OUTPUT probabilities puts it in"
        )
    sources = {output: make_source(checkpoint, output) for output in dict.fromkeys(outputs)}
    reports = [export(name, sources[output], reference) for name, output in zip(EXPORT_FORMATS, outputs, strict=True)]
    export_parity.print_table(reports)
    for report in reports:
        for problem in report["problems"]:
            utils.warn(f"{report['file']}: {problem}")
    failed = [report["file"] for report in reports if report["parity"] != "passed"]
    if failed:
        raise InputError(f"{len(failed)} of {len(reports)} files did not pass: {', '.join(failed)}")


def choose_check_split() -> str:
    """The split on whose images files are compared with the checkpoint: "test", or "train" without test images."""
    has_test = from_config.has_split("test") or from_config.has_other_test_images() or config.TEST_IMAGES_DIR.is_dir()
    return "test" if has_test else "train"


def sample_check_images(split: str, classes: Sequence[str]) -> tuple[list[str], NDArray[np.int8] | None]:
    """`sample_images` for the comparison, whose error names another way where there is no data set."""
    try:
        return sample_images(split, EXPORT_CHECK_IMAGES, classes)
    except InputError as error:
        if split == "test":
            raise
        advice = "or, to compare on photographs without labels, TEST_IMAGES_DIR to a folder of them"
        raise InputError(f"{error}; {advice}") from error


def sample_images(split: str, count: int, classes: Sequence[str]) -> tuple[list[str], NDArray[np.int8] | None]:
    """Choose images of the split "train" or "test" by `from_config.sample_split`.

    Returns their paths, and their targets (N, C) in the order of `classes`, or None if they have no labels. Raises
    InputError if there are no images, or if the labels are of other classes.
    """
    table, has_labels = from_config.sample_split(split, count)
    return table.paths, map_classes(table, classes).targets if has_labels else None


def make_source(checkpoint: dict[str, Any], output: str) -> Export:
    """Collect what files are made from: the network, the metadata, and training images for int8.

    `output` is what the files give, a value of EXPORT_OUTPUT.
    """
    folded = batchnorm_folding.fold_batchnorm(
        models_factory.restore_model(checkpoint, config.MODEL_PATH),
        models_factory.make_example(checkpoint["image_size"]),
    )
    metadata = make_metadata(checkpoint, output)
    network = folded
    if metadata["output"] == "probabilities":
        activate, thresholds = predictor.choose_activation(checkpoint, config.CALIBRATION, metadata["thresholds"])
        network = model_files.Activated(folded, activate).eval()
        metadata["thresholds"] = thresholds.tolist()
    transform = resize_rules.make_eval_transform(checkpoint["resize_rule"], checkpoint["image_size"])
    int8_images: list[str] = []
    if any(name.endswith("int8") for name in EXPORT_FORMATS):
        int8_images, _ = sample_images("train", config.INT8_CALIBRATION_IMAGES, checkpoint["classes"])
    return Export(
        network=network,
        metadata=metadata,
        read_image=lambda path: predictor.read_image(path, transform),
        int8_images=int8_images,
        fp16=EXPORT_FP16,
        checkpoint=config.MODEL_PATH,
        make_card=partial(hub_card.make_card, checkpoint, config.MODEL_PATH, config.TRAINED_MODELS_FOLDER),
        render=pages.render,
        cache_folder=config.CACHE_FOLDER,
    )


def make_metadata(checkpoint: dict[str, Any], output: str) -> dict[str, Any]:
    """The checkpoint's metadata, with what concerns exported files; each format adds its "precision"."""
    values = {key: value for key, value in checkpoint.items() if key not in checkpoints.TENSORS}
    threshold = values.get("best_threshold")
    threshold = config.TH_MULTI_LABEL if threshold is None else threshold
    packages = [name for name in ("torch", "onnx", "openvino") if importlib.util.find_spec(name)]
    values["config"] = leave_out_paths(values.get("config", {}))
    return values | {
        "best_threshold": threshold,
        "thresholds": values.get("thresholds") or [threshold] * len(values["classes"]),
        "input": engines.IMAGE if EXPORT_RESIZE else "images",
        "output": "logits" if output == "logits" else "probabilities",
        "gives_labels": output == "labels",
        "applied_calibration": "none" if output == "logits" else config.CALIBRATION,
        "dynamic": [] if EXPORT_RESIZE else list(EXPORT_DYNAMIC),
        "checkpoint_sha256": files.hash_file(hub_folders.locate(config.MODEL_PATH)),
        "exported_by": ", ".join(f"{name} {version(name)}" for name in packages),
    }


def leave_out_paths(constants: Mapping[str, Any]) -> dict[str, Any]:
    """The `constants` of a run without the files and folders of this machine: exports are given to other people.

    Those are all constants that are paths, absolute or not, and others whose value is an absolute one.
    """
    places = {constant.name for constant in overrides.list_constants(config) if is_place(constant.annotation)}
    places |= set(TEXTS_OF_PLACES)

    def is_absolute(value: Any) -> bool:
        if isinstance(value, str):
            return value.startswith("~") or Path(value).is_absolute()
        return isinstance(value, list) and any(map(is_absolute, value))

    return {
        name: value
        for name, value in constants.items()
        if name not in places and (name in NO_PATHS or not is_absolute(value))
    }


def is_place(annotation: Any) -> bool:
    """Whether the type of a constant is a path, or a path or None."""
    return annotation is Path or Path in get_args(annotation)


def export(name: str, source: Export, reference: export_parity.Reference) -> dict[str, Any]:
    """Write the file or folder in format `name`, compare it with the checkpoint, and write the report beside it.

    Returns the report, "not made" also where what no export wrote would be replaced: that stays as it is. The export is
    marked as failed until it has passed. The report names the files before they are compared, for the next export.
    """
    path = EXPORT_FOLDER / name_file(name, source.metadata)
    mark = model_files.mark_path(path)
    try:
        model_files.require_replaceable(path, FORMATS[name].model is not None)
        before, edited = model_files.read_report(path), model_files.find_edited(path)
    except InputError as error:
        return {"file": path.name, "parity": "not made", "problems": [str(error)]}
    was_marked = mark.exists()
    utils.say(f"making {path}")
    whole_files.write_text(mark, model_files.NOT_COMPARED)
    try:
        FORMATS[name].save(source, path)
    except Exception as error:  # converters have many classes of errors, for example for an operator that they lack
        if not was_marked:
            mark.unlink()
        return {"file": path.name, "parity": "not made", "problems": [model_files.shorten(error)]}
    record = model_files.make_record(path, before, edited)
    written = {"file": path.name, "parity": "not compared", "problems": []} | record
    whole_files.write_text(model_files.report_path(path), to_json(written, indent=1))
    if path.suffix == ".onnx":
        copy_predictor(path.parent)
    try:
        opened = FORMATS[name].find_model(path)
        report = export_parity.compare(path, reference, config.CALIBRATION, opened)
    except Exception as error:  # so have runtimes
        report = {"file": path.name, "parity": "failed", "problems": [model_files.shorten(error)]}
    report |= record
    whole_files.write_text(model_files.report_path(path), to_json(report, indent=1))
    if report["parity"] == "passed":
        mark.unlink()
    else:
        whole_files.write_text(mark, "\n".join([*report["problems"], ""]))
    return report


def copy_predictor(folder: Path) -> None:
    """Put predict_onnx.py, which runs ONNX files without this project, beside them. One that was changed stays."""
    path = folder / PREDICTOR.name
    text = PREDICTOR.read_text(encoding="utf-8")
    if not path.exists():
        whole_files.write_text(path, text)
    elif path.read_text(encoding="utf-8") != text:
        utils.say(f"{path} is not as this version has it and stays: delete it to get the new one")


def name_file(name: str, metadata: Mapping[str, Any]) -> str:
    """The name of the exported file or folder: the model, its run's configuration, and an ending for the format.

    Another checkpoint of the run than the selected one adds its own name, such as model_epoch_006. One without a run
    has only its own name. A file that resizes says so.
    """
    ending = FORMATS[name].ending
    if name == "openvino" and EXPORT_FP16:
        ending = f"_fp16{ending}"
    configuration = metadata.get("run", "").rpartition("/")[2]
    words = [checkpoints.name_model(metadata["model_name"]), configuration]
    if not configuration or config.MODEL_PATH.stem not in (configuration, config.BEST_MODEL_PATH.stem):
        words.append(config.MODEL_PATH.stem)
    if metadata.get("input") == engines.IMAGE:
        words.append("resize")
    return f"{'_'.join(filter(None, words))}{ending}"


if __name__ == "__main__":
    utils.run_script(main)
