"""constants/spaces.py: what may vary, and every mistake in one line with its file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import config
import overrides
import search
from constants.spaces import Varied
from utils import InputError


def read(tmp_path: Path, text: str, *arguments: str) -> dict[str, Varied]:
    path = tmp_path / "space.py"
    path.write_text(text)
    varied: dict[str, Varied] = {}
    overrides.apply([str(path), *arguments], config, search, varied=varied)
    return varied


def test_what_varies_has_the_constants_type(tmp_path: Path) -> None:
    varied = read(
        tmp_path,
        '"""A space."""\nHEAD = choices("linear", "cosine")\nHEAD_BASE_LR = log_range(1e-4, 1)\n'
        "NUM_EPOCHS = range_of(3, 3 * 10)\nLR_MILESTONES = choices((3, 5), [6])\n"
        "USE_POS_WEIGHT = choices(True, False)\n"
        'PRETRAINED_WEIGHTS = choices("default", None)\nGCN_EMBEDDINGS = choices("a", "b")\nSCHEDULE = "cosine"\n',
    )
    assert {name: (choice.kind, choice.values) for name, choice in varied.items()} == {
        "HEAD": ("choices", ("linear", "cosine")),
        "HEAD_BASE_LR": ("log_range", (0.0001, 1.0)),
        "NUM_EPOCHS": ("range_of", (3, 30)),
        "LR_MILESTONES": ("choices", ((3, 5), (6,))),
        "USE_POS_WEIGHT": ("choices", (True, False)),
        "PRETRAINED_WEIGHTS": ("choices", ("default", None)),
        "GCN_EMBEDDINGS": ("choices", (Path("a"), Path("b"))),
    }
    assert varied["HEAD"].where == f"{tmp_path / 'space.py'}:2"
    assert type(varied["HEAD_BASE_LR"].values[1]) is float
    assert (config.HEAD, config.NUM_EPOCHS, config.SCHEDULE) == ("linear", 3, "cosine")


def test_a_later_argument_holds_for_all_trials(tmp_path: Path) -> None:
    text = 'HEAD = choices("linear", "cosine")\nSEED = choices(0, 1)\n'
    assert read(tmp_path, text, "--HEAD", "gcn").keys() == {"SEED"}
    assert config.HEAD == "gcn"


def test_a_space_of_which_nothing_varies_is_no_ladder(tmp_path: Path) -> None:
    text = 'SCHEDULE = "cosine"\nHEAD = choices("linear", "cosine")\nSEED = choices(0, 1)\n'
    (tmp_path / "later.py").write_text("SEED = 3\n")
    message = r"space\.py:2: nothing varies: the command line sets HEAD, .*later\.py:1 sets SEED"
    with pytest.raises(InputError, match=message):
        read(tmp_path, text, "--HEAD", "linear", str(tmp_path / "later.py"))
    assert read(tmp_path, "SEED = 3\n") == {}  # a recipe is no space


def test_a_constant_that_a_space_spells_wrongly_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"space\.py:1: .*'HEAD_BASE_LRR'.*HEAD_BASE_LR\b"):
        read(tmp_path, "HEAD_BASE_LRR = log_range(1e-3, 1e-1)\n")


@pytest.mark.parametrize(
    "line",
    [
        "VAL_SPLIT = range_of(0.1, 0.3)",
        "SPLIT_SEED = choices(0, 1)",
        "FOLDS = choices(0, 5)",
        "DATASET_FORMAT = choices('auto', 'csv')",
        "LABELS_PER_IMAGE = choices('any', 'one')",
        "DATASET_FOLDER = choices('a', 'b')",
        "TRAINED_MODELS_FOLDER = choices('a', 'b')",
        "GROUP_PATTERN = choices('a', None)",
        "CLASSES = choices(('a',), ('b',))",
        "NUM_CLASSES = choices(1, 2)",
    ],
)
def test_what_decides_on_which_images_a_trial_is_measured_does_not_vary(line: str, tmp_path: Path) -> None:
    name = line.partition(" ")[0]
    message = rf"space\.py:1: {name} cannot vary: trials with other {name} cannot be compared"
    with pytest.raises(InputError, match=message):
        read(tmp_path, f"{line}\nSEED = choices(0, 1)\n")


def test_values_that_contradict_each_other_are_for_the_trials_to_say(tmp_path: Path) -> None:
    text = 'LOSS = choices("asymmetric_angular", "bce_with_logits")\nHEAD = choices("linear", "cosine")\n'
    assert len(read(tmp_path, text)) == 2
    with pytest.raises(InputError, match="which HEAD linear does not give"):
        read(tmp_path, text, "--LOSS", "asymmetric_angular", "--HEAD", "linear")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("HEAD = choices('linear')", "HEAD: choices takes two values or more, each of them once"),
        ("HEAD = choices('linear', 'linear')", "HEAD: choices takes two values or more, each of them once"),
        ("WEIGHT_DECAY = choices(1, 1.0)", "WEIGHT_DECAY: choices takes two values or more, each of them once"),
        ("HEAD = choices('linear', 'liner')", "HEAD is 'liner' (did you mean linear?); it takes linear, "),
        ("HEAD = choices(names=('linear', 'cosine'))", "HEAD: choices takes values, without names"),
        ("HEAD = choices(*HEADS)", "HEAD: a recipe's value may be "),
        ("HEAD = choices(open('x'), 'linear')", "HEAD: a recipe's value may be "),
        ("HEAD_BASE_LR = log_range(0, 1)", "HEAD_BASE_LR is 0.0: above 0"),
        ("NUM_EPOCHS = range_of(1, 2.5)", "NUM_EPOCHS is 2.5, which is not of type int"),
        ("NUM_EPOCHS = range_of(0, 3)", "NUM_EPOCHS is 0: 1 or more"),
        ("LABEL_SMOOTHING = range_of(0, 1)", "LABEL_SMOOTHING is 1.0: 0 or more and below 1"),
        ("LABEL_SMOOTHING = log_range(0, 0.5)", "LABEL_SMOOTHING: log_range begins above 0, not at 0.0"),
        (
            "NUM_EPOCHS = range_of(5, 3)",
            "NUM_EPOCHS: range_of takes the lowest value first, then a higher one, not 5, 3",
        ),
        ("NUM_EPOCHS = range_of(3, 3)", "NUM_EPOCHS: range_of takes the lowest value first"),
        ("NUM_EPOCHS = range_of(3)", "NUM_EPOCHS: range_of takes the lowest and the highest value"),
        ("MODEL_NAME = range_of('a', 'b')", "MODEL_NAME: range_of is for numbers; write choices('a', 'b')"),
        (
            "USE_POS_WEIGHT = range_of(False, True)",
            "USE_POS_WEIGHT: range_of is for numbers; write choices(False, True)",
        ),
        ("IMAGE_SIZE = range_of(64, (64, 96))", "IMAGE_SIZE: range_of is for numbers; write choices(64, (64, 96))"),
        ("HEAD_BASE_LR = 2 * range_of(1, 2)", "HEAD_BASE_LR: a recipe's value may be "),
        ("SEARCH_MINUTES = range_of(1, 2)", "SEARCH_MINUTES cannot vary: only constants of config.py can"),
        ("SORT_BY = choices('mAP', 'CF1')", "SORT_BY cannot vary: only constants of config.py can"),
        ("SEED = choices(0, 1)\nimport os", "a recipe holds lines NAME = value only"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, f"MODEL_NAME = 'resnet50'\n{line}\n")
    number = 3 if "import" in line else 2
    assert re.fullmatch(rf".*space\.py:{number}: {re.escape(message)}.*", str(caught.value))


def test_a_space_is_for_search_alone(tmp_path: Path) -> None:
    (tmp_path / "space.py").write_text("SEED = choices(0, 1)\n")
    with pytest.raises(InputError, match=r"space\.py:1: SEED: choices is for a space to search in: python search\.py"):
        overrides.apply([str(tmp_path / "space.py")], config)


def test_the_changes_of_a_module_make_it_again(tmp_path: Path) -> None:
    """What is computed from others is left out while it follows them, and stands there where it does not."""
    arguments = [
        "--LOCAL_ROOT=/data", "--LR_MILESTONES=3,5", "--HEAD=cosine", "--CLASSES=a,b", "--NUM_CLASSES=2",
        f"--LABELS_DIR={config.LABELS_DIR}", "--DATASET_FOLDER=/elsewhere", "--PRETRAINED_WEIGHTS=x.pt",
    ]  # fmt: skip
    overrides.apply(arguments, config)
    expected, text = overrides.resolved(config), overrides.write_changes(config, always=["SEED"])
    names = [line.partition(" = ")[0] for line in text.splitlines()]
    assert set(names) == {
        "LOCAL_ROOT", "DATASET_FOLDER", "LABELS_DIR", "LR_MILESTONES", "HEAD", "CLASSES", "PRETRAINED_WEIGHTS", "SEED",
    }  # fmt: skip
    (tmp_path / "changes.py").write_text(text)
    overrides.apply([str(tmp_path / "changes.py")], config)
    assert overrides.resolved(config) == expected


def test_the_changes_hold_what_was_edited_by_a_call() -> None:
    overrides.edit(config, NUM_EPOCHS=77)
    assert overrides.write_changes(config) == "NUM_EPOCHS = 77\n"
