"""overrides.py: every constant of config.py overridden, against an edited copy of config.py.

pytest tests/test_overrides.py
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import class_activation_maps
import config
import dataset_tools
import export_onnx
import model_comparison
import model_performance_table
import overrides
import serving
import testing
from constants.other_systems import WORDS
from utils import InputError

ROOT = Path(config.__file__).parent
SCRIPTS = (
    class_activation_maps, dataset_tools, export_onnx, model_comparison, model_performance_table, serving, testing,
)  # fmt: skip  # those with constants
EDITED = (
    "LOCAL_ROOT", "DATASET_FOLDER", "MODEL_NAME", "HEAD", "IMAGE_SIZE", "PRETRAINED_WEIGHTS", "NUM_EPOCHS",
    "TRAIN_BATCH_SIZE", "BACKBONE_BASE_LR", "HEAD_BASE_LR", "UNFREEZE_BACKBONE_EPOCH", "LOSS", "SEED",
)  # fmt: skip  # what people edit
SOURCE = Path(config.__file__).read_text(encoding="utf-8")
NAMES = re.findall(r"^([A-Z][A-Z0-9_]*): ", SOURCE, re.MULTILINE)  # found otherwise than overrides.py finds them
DEFAULTS = {name: vars(config)[name] for name in NAMES}


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., str]:
    """Write a recipe file and give its path."""

    def write(text: str | bytes, name: str = "recipe.py") -> str:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def read_constants() -> dict[str, Any]:
    return {name: vars(config)[name] for name in NAMES}


def import_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_edited(tmp_path: Path, **edits: Any) -> dict[str, Any]:
    """The constants of a copy of config.py in which a person has edited some lines."""
    lines = SOURCE.encode().splitlines(keepends=True)
    for node in reversed(ast.parse(SOURCE).body):  # from below, so that the lines above keep their numbers
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in edits:
            assert node.value is not None
            assert node.value.end_lineno is not None
            value = edits[node.target.id]
            text = f"Path({str(value)!r})" if isinstance(value, Path) else repr(value)
            first, last = node.value.lineno - 1, node.value.end_lineno - 1
            tail = lines[last][node.value.end_col_offset :]
            lines[first : last + 1] = [lines[first][: node.value.col_offset] + text.encode() + tail]
    path = tmp_path / "edited_config.py"
    path.write_bytes(b"".join(lines))
    module = import_file(path, "edited_config")
    return {name: vars(module)[name] for name in NAMES}


def change(value: Any, annotation: Any) -> Any:
    """Another value that the annotation allows; the same one where it is the only one."""
    if typing.get_origin(annotation) is typing.Annotated:
        return change(value, typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Literal:
        return next((choice for choice in typing.get_args(annotation) if choice != value), value)
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        first = next(member for member in typing.get_args(annotation) if member is not types.NoneType)
        return change(value, first) if value is not None else change(first(), first)
    if annotation is bool:
        return not value
    if annotation is int:
        return value + 1
    if annotation is float:
        return value / 2 or 0.25
    if annotation is Path:
        return Path("/elsewhere/of its own")
    if annotation == tuple[str, ...]:
        return ("one", "two words")
    if typing.get_origin(annotation) is tuple:
        kind = typing.get_args(annotation)[0]
        if kind is float or typing.get_origin(kind) is typing.Literal:
            return (*value, 0.5 if kind is float else next(c for c in typing.get_args(kind) if c not in value))
        return (*value, value[-1] + 1) if value else (64,)
    assert annotation is str, f"a new kind of annotation, {annotation}: say here how to change it"
    return f"{value}_changed"


OTHERS = {"UNFROZEN_BATCH_SIZE": 8, "MICRO_BATCH_SIZE": 8, "FOLDS": 3}  # one more than the default is none
NEEDED_BY = {  # else the change would contradict another constant
    "HEAD_FIT": {"HEAD": "linear", "UNFREEZE_BACKBONE_EPOCH": 2},
    "POSITIVE_CLASS_WEIGHTS": {"ENTRY_WEIGHTS": ("class_weights",)},
    "NEGATIVE_CLASS_WEIGHTS": {"ENTRY_WEIGHTS": ("class_weights",)},
}


def write_argument(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("constant", overrides.list_constants(config), ids=lambda constant: constant.name)
def test_every_constant_is_overridden_as_if_edited(constant: overrides.Constant, tmp_path: Path) -> None:
    value = OTHERS.get(constant.name, change(constant.value, constant.annotation))
    edits = NEEDED_BY.get(constant.name, {}) | {constant.name: value}
    overrides.apply([f"--{name}={write_argument(edit)}" for name, edit in edits.items()], config)
    assert vars(config)[constant.name] == value
    assert type(vars(config)[constant.name]) is type(value)
    assert read_constants() == import_edited(tmp_path, **edits)


def test_constants_are_all_listed_in_order_with_their_sections() -> None:
    section, expected = "", []
    for line in SOURCE.splitlines():
        if title := re.match(r"# ---- (.*) ----$", line):
            section = title[1]
        elif name := re.match(r"([A-Z][A-Z0-9_]*): ", line):
            expected.append((name[1], section))
    listed = overrides.list_constants(config)
    assert [(constant.name, constant.section) for constant in listed] == expected
    assert len(expected) > 50
    assert {constant.name: constant.value for constant in listed} == DEFAULTS


def test_comments_are_those_of_the_source() -> None:
    comments = {constant.name: constant.comment for constant in overrides.list_constants(config)}
    on_their_line = re.findall(r"^([A-Z][A-Z0-9_]*): [^#\n]*?(?:  # (.*))?$", SOURCE, re.MULTILINE)
    over_several = ("DATASET_FORMAT", "FEATURES", "LOSS", "ENTRY_WEIGHTS", "THRESHOLD_GOAL", "LOGGERS", "CLASSES")
    on_their_line = {name: comment for name, comment in on_their_line if name not in over_several}
    assert len(on_their_line) > 45
    for name, comment in on_their_line.items():
        assert comments[name] == comment, name
    assert comments["LOSS"].startswith("asymmetric_angular: with")  # several lines, the comment behind the last
    assert comments["CLASSES"].startswith("in index order; a classes.txt")  # behind a `# fmt: skip`


def test_nothing_to_override_changes_nothing() -> None:
    overrides.apply([], config)
    assert read_constants() == DEFAULTS


def test_constants_computed_from_others_follow() -> None:
    folders = ["--LOCAL_ROOT", "/data", "--DATASET_FOLDER", "/coco"]
    overrides.apply([*folders, "--CLASSES", "cat,dog", "--FREEZE_BACKBONE", "0"], config)
    assert Path("/coco/images") == config.IMAGES_DIR
    assert Path("/coco/labels/test") == config.TEST_LABELS_DIR
    assert Path("/data/trained_models/best_model.pt") == config.BEST_MODEL_PATH == config.MODEL_PATH
    assert config.CLASSES == ("cat", "dog")
    assert config.NUM_CLASSES == 2
    assert config.FREEZE_BACKBONE_AT_START is False


def test_a_computed_constant_that_is_set_itself_stays(tmp_path: Path) -> None:
    edits = {"LOCAL_ROOT": Path("/data"), "IMAGES_DIR": Path("/pictures"), "FREEZE_BACKBONE": False}
    arguments = [text for name, value in edits.items() for text in (f"--{name}", str(value))]
    overrides.apply([*arguments, "--FREEZE_BACKBONE_AT_START", "True"], config)
    assert Path("/pictures/train-resized") == config.TRAIN_IMAGES_DIR
    assert Path("/data/ms-coco-dataset/labels/train") == config.TRAIN_LABELS_DIR
    assert config.FREEZE_BACKBONE_AT_START is True
    assert read_constants() == import_edited(tmp_path, **edits, FREEZE_BACKBONE_AT_START=True)


def test_a_home_folder_is_expanded() -> None:
    overrides.apply(["--LOCAL_ROOT", "~/elsewhere"], config)
    assert Path.home() / "elsewhere" == config.LOCAL_ROOT


@pytest.mark.parametrize(
    ("text", "value"),
    [("3,5", (3, 5)), ("(3, 5)", (3, 5)), ("[3,5]", (3, 5)), ("3", (3,)), ("(3,)", (3,)), ("", ()), ("()", ())],
)
@pytest.mark.parametrize("joined", [True, False])
def test_tuples_on_the_command_line(text: str, value: tuple[int, ...], joined: bool) -> None:
    overrides.apply([f"--LR_MILESTONES={text}"] if joined else ["--LR_MILESTONES", text], config)
    assert value == config.LR_MILESTONES


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--PRETRAINED_WEIGHTS=/a=b.pt", "/a=b.pt"),
        ("--CLASSES='hot dog', \"tie\"", ("hot dog", "tie")),
        ("--CLASSES='a, b',c", ("a, b", "c")),
        ("""--CLASSES=["a, 'b'", 'c, "d"']""", ("a, 'b'", 'c, "d"')),
        ("--CLASSES=driver's seat,cat", ("driver's seat", "cat")),
        ("--CLASSES=[indoor],[outdoor]", ("[indoor]", "[outdoor]")),
        ("--CLASSES=(small) cat,dog (big)", ("(small) cat", "dog (big)")),
        ("--CLASSES=('a)', b (c))", ("a)", "b (c)")),
        ("--COMPILE=TRUE", True),
        ("--COMPILE=1", True),
        ("--TAKE_OVER_HEAD=false", False),
        ("--TAKE_OVER_HEAD=0", False),
        ("--WARMUP_EPOCHS=1", 1.0),
        ("--LEARNING_RATE=3e-4", 0.0003),
        ("--NUM_CLASSES=-3", -3),
    ],
)
def test_values_on_the_command_line(argument: str, value: Any) -> None:
    overrides.apply([argument], config)
    name = argument[2:].partition("=")[0]
    assert vars(config)[name] == value
    assert type(vars(config)[name]) is type(value)


@pytest.mark.parametrize("text", ["'a, b", "'a' b,c", 'cat,"dog'])
def test_a_quote_that_does_not_end_is_named(text: str) -> None:
    with pytest.raises(InputError, match=r"CLASSES: .*the quote does not end before a comma"):
        overrides.apply(["--CLASSES", text], config)


def test_none_for_an_optional_constant(write_recipe: Callable[..., str]) -> None:
    overrides.apply(["--PRETRAINED_WEIGHTS", "None", "--FREEZE_BACKBONE_AT_START", "False"], config)
    assert config.PRETRAINED_WEIGHTS is None
    overrides.apply([write_recipe("PRETRAINED_WEIGHTS = None\nFREEZE_BACKBONE = False\n")], config)
    assert config.PRETRAINED_WEIGHTS is None


def test_a_recipe_has_the_effect_of_the_command_line(write_recipe: Callable[..., str], tmp_path: Path) -> None:
    recipe = write_recipe(
        '"""What a paper did."""\n\nMODEL_NAME = "resnet50"  # a comment\n'
        "LR_MILESTONES: tuple[int, ...] = (3, 5)\nWARMUP_EPOCHS = 1\n"
        'LOCAL_ROOT = "/data"\nCLASSES = ["cat", "dog"]\n'
    )
    overrides.apply([recipe], config)
    from_recipe = read_constants()
    arguments = ["--MODEL_NAME", "resnet50", "--LR_MILESTONES", "3,5", "--WARMUP_EPOCHS", "1"]
    overrides.apply([*arguments, "--LOCAL_ROOT", "/data", "--CLASSES", "cat,dog"], config)
    assert from_recipe == read_constants() != DEFAULTS
    edits = {"MODEL_NAME": "resnet50", "LR_MILESTONES": (3, 5), "WARMUP_EPOCHS": 1.0}
    assert from_recipe == import_edited(tmp_path, **edits, LOCAL_ROOT=Path("/data"), CLASSES=("cat", "dog"))


def test_later_wins(write_recipe: Callable[..., str]) -> None:
    first, second = write_recipe("NUM_EPOCHS = 20\nSEED = 1\n", "a.py"), write_recipe("NUM_EPOCHS = 30\n", "b.py")
    for arguments, num_epochs in (
        ([first, "--NUM_EPOCHS", "40"], 40),
        (["--NUM_EPOCHS", "40", first], 20),
        ([first, second], 30),
        ([second, first], 20),
        (["--NUM_EPOCHS=40", "--NUM_EPOCHS=50"], 50),
    ):
        overrides.apply(arguments, config)
        assert num_epochs == config.NUM_EPOCHS
        assert (1 if first in arguments else 0) == config.SEED


def test_a_recipe_may_compute_from_other_constants(write_recipe: Callable[..., str]) -> None:
    recipe = write_recipe('CACHE_FOLDER = LOCAL_ROOT / "c"\nLR_MILESTONES = (NUM_EPOCHS // 2,)\n')
    overrides.apply([recipe, "--LOCAL_ROOT", "/data", "--NUM_EPOCHS", "30"], config)
    assert Path("/data/c") == config.CACHE_FOLDER
    assert config.LR_MILESTONES == (15,)


# ---- recipes of unknown origin ----


@pytest.mark.parametrize(
    "value",
    [
        "open('{mark}', 'w').name", "__import__('os').popen('touch {mark}').read()", "eval('1')", "exec('1')",
        "Path('{mark}').touch()", "LOCAL_ROOT.__class__('{mark}').touch()", "Path.cwd()", "Path.home(1)",
        "f\"{{open('{mark}', 'w')}}\"", "f'{{LOCAL_ROOT.name}}'", "f'{{1:1000000}}'", "f'{{1!r}}'", "f'{{CLASSES}}'",
        "().__class__.__base__.__subclasses__()", "Path.__init__.__globals__", "LOCAL_ROOT.name", "CLASSES[0]",
        "CLASSES[:3]", "[x for x in (1,)]", "{{x for x in (1,)}}", "{{x: 1 for x in (1,)}}", "tuple(x for x in (1,))",
        "lambda: 3", "(lambda: 3)()", "(x := 3)", "(*CLASSES, 'x')", "Path(*('a',))", "len(obj=())", "{{1: 2}}",
        "{{1, 2}}", "b'x'", "1j", "...", "~1", "1 << 2", "1 @ 2", "1 < 2 < 3", "'%9d' % 5", "'{{:9}}'.format(5)",
        "(yield)", "await x", "print", "Literal", "__name__", "__builtins__",
    ],
)  # fmt: skip
def test_a_recipe_is_read_and_not_run(write_recipe: Callable[..., str], value: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = value.format(mark=mark)
    recipe = write_recipe(f"SEED = 1\nMODEL_NAME = {text}\n")
    for arguments in ([recipe], [recipe, "--help"]):
        with pytest.raises(InputError) as caught:
            overrides.apply(arguments, config)
        message = str(caught.value)
        assert message.startswith(f"{recipe}:2: MODEL_NAME: ")
        assert "\n" not in message
        assert len(message) < 400
    assert not mark.exists()


def test_a_refusal_says_what_a_value_may_be_and_what_it_was(write_recipe: Callable[..., str]) -> None:
    with pytest.raises(InputError) as caught:
        overrides.apply([write_recipe("MODEL_NAME = open('x')\n")], config)
    allowed = "numbers, texts, True, False, None, tuples, arithmetic, names of constants, Path(...) and len(...)"
    assert str(caught.value).endswith(f":1: MODEL_NAME: a recipe's value may be {allowed}, not a call of open")


@pytest.mark.parametrize(
    "value",
    [
        "9**9**9", "2**2**40", "(-9)**9**9", "10**20", "9" * 5000, "0x" + "f" * 90_000, "9.0**9**9", "(-8)**0.5",
        "'a' * 10**10", "10**10 * 'a'", "('a',) * 10**10", "('a' * 10**5,) * 10**5",
        "(" * 9 + "('a',)" + " * 9)" * 9, "((" + "'a' * 10**6 + " * 3 + "''),) * 9",
        "('a',) * 100_001", "Path(Path('a' * 10**6), " + "Path('a' * 10**6), " * 9 + ")",
        "-" * 90_000 + "1", "(" * 90_000 + ")" * 90_000, "1 + " * 90_000 + "1", "x" + ".a" * 90_000,
        "lambda: " * 90_000 + "1", "'a\\0b'",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["MODEL_NAME", "CLASSES"])
def test_the_work_of_a_recipe_is_bounded(write_recipe: Callable[..., str], value: str, name: str) -> None:
    with pytest.raises(InputError) as caught:
        overrides.apply([write_recipe(f"{name} = {value}\n")], config)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("data", [bytes(100), b"SEED = 1\n\0", b"#" * 1_000_001, "SEED = 1".encode("utf-16")])
def test_a_file_that_is_no_recipe(write_recipe: Callable[..., str], data: bytes) -> None:
    recipe = write_recipe(data)
    with pytest.raises(InputError, match=re.escape(recipe)):
        overrides.apply([recipe], config)


def test_a_recipe_that_would_never_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    for name in ("pipe.py", "folder.py"):
        with pytest.raises(InputError, match=rf"cannot read recipe .*{name}: it is no file"):
            overrides.apply([str(tmp_path / name)], config)


@pytest.mark.parametrize(
    ("lines", "circle"),
    [
        ("NUM_EPOCHS = SEED\nSEED = NUM_EPOCHS\n", "NUM_EPOCHS from SEED, SEED from NUM_EPOCHS"),
        ("SEED = SEED + NUM_EPOCHS\nNUM_EPOCHS = SEED\n", "NUM_EPOCHS from SEED, SEED from NUM_EPOCHS"),
        ("BEST_MODEL_PATH = MODEL_PATH\n", "BEST_MODEL_PATH from MODEL_PATH, MODEL_PATH from BEST_MODEL_PATH"),
        (
            "SEED = NUM_EPOCHS\nNUM_EPOCHS = GHM_BINS\nGHM_BINS = SEED\n",
            "NUM_EPOCHS from GHM_BINS, GHM_BINS from SEED, SEED from NUM_EPOCHS",
        ),
    ],
)
def test_values_that_go_round_in_a_circle(write_recipe: Callable[..., str], lines: str, circle: str) -> None:
    with pytest.raises(InputError) as caught:
        overrides.apply([write_recipe(lines)], config)
    assert str(caught.value).endswith(f"{circle}: a circle; give one of them a value")


def test_what_a_recipe_may_compute(write_recipe: Callable[..., str]) -> None:
    recipe = write_recipe(
        "NUM_EPOCHS = -(-7 // 2) % 3 + 2**3 - True\nLEARNING_RATE = 3 * 10**-4 / +2\nTH_MULTI_LABEL = 1 / 4\n"
        "GROWING_IMAGE_SIZES = (224,) * 2 + (IMAGE_SIZE, 32 if SEED == 0 else 64)\n"
        "FREEZE_BACKBONE = not (NUM_EPOCHS > 3 and SEED >= 0) or SEED != 0\n"
        'LOCAL_ROOT = Path.home() / "x"\nCACHE_FOLDER = Path(LOCAL_ROOT, "c") / "d"\nPRETRAINED_WEIGHTS = None\n'
        'TENSORBOARD_FOLDER = f"{LOCAL_ROOT}/{NUM_EPOCHS}-{MODEL_NAME}"\nCLASSES = ["a" + "b", "c"]\n'
        "NUM_CLASSES = len(CLASSES)\n"
    )
    overrides.apply([recipe], config)
    assert config.NUM_EPOCHS == 8, "4 % 3 + 8 - 1"
    assert config.LEARNING_RATE == 3 * 10**-4 / 2
    assert config.TH_MULTI_LABEL == 0.25
    assert config.GROWING_IMAGE_SIZES == (224, 224, 224, 32)
    assert config.FREEZE_BACKBONE is False
    assert Path.home() / "x" == config.LOCAL_ROOT
    assert Path.home() / "x/c/d" == config.CACHE_FOLDER
    assert Path.home() / "x" / f"{config.NUM_EPOCHS}-resnet18" == config.TENSORBOARD_FOLDER
    assert (config.CLASSES, config.NUM_CLASSES) == (("ab", "c"), 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("256,448", (256, 448)),
        ("256, 448", (256, 448)),
        ("(256,448)", (256, 448)),
        ("[256, 448]", (256, 448)),
        ("224", 224),
        ("224,224", 224),
        ("(224, 224)", 224),
    ],
)
def test_an_image_size_is_a_side_or_height_and_width(
    text: str, expected: int | tuple[int, int], write_recipe: Callable[..., str]
) -> None:
    overrides.apply(["--IMAGE_SIZE", text], config)
    assert expected == config.IMAGE_SIZE
    assert overrides.resolved(config)["IMAGE_SIZE"] == (list(expected) if isinstance(expected, tuple) else expected)
    overrides.apply([write_recipe(f"IMAGE_SIZE = {text}\n")], config)
    assert expected == config.IMAGE_SIZE


def test_a_constant_that_names_itself_means_what_config_computes(write_recipe: Callable[..., str]) -> None:
    recipe = write_recipe('LOCAL_ROOT = "/data"\nTRAINED_MODELS_FOLDER = TRAINED_MODELS_FOLDER / "a"\n')
    overrides.apply([recipe], config)
    assert Path("/data/trained_models/a") == config.TRAINED_MODELS_FOLDER
    assert Path("/data/trained_models/a/best_model.pt") == config.MODEL_PATH
    overrides.apply([recipe], config)
    assert Path("/data/trained_models/a") == config.TRAINED_MODELS_FOLDER, "applied again, it does not go on"


# ---- config.py, edited by hand ----


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('MODEL_NAME: str = "resnet18"', 'MODEL_NAME: str = "resnet18', "{line}: unterminated string literal"),
        ("SEED: Seed = 0", "SEED: Sead = 0", "{line}: NameError: name 'Sead' is not defined"),
        ("SEED: Seed = 0", "SEED: Seed = 1 // 0", "{line}: ZeroDivisionError"),
        ("SEED: Seed = 0", "SEED = 0", "{line}: SEED has no type: write SEED: type = 0"),
        ("SEED: Seed = 0", "SEED: Seed = -1", "{line}: SEED is -1: 0 to 4294967295"),
        ("SEED: Seed = 0", "SEED: Seed = '0'", "{line}: SEED is '0', which is not of type int"),
        ("EMA_DECAY: ", "EMA_DECAYS: ", ": there is no constant EMA_DECAY in it"),
    ],
)
def test_a_mistake_in_config_is_one_line(before: str, after: str, message: str, tmp_path: Path) -> None:
    """In a copy of the files that a script needs for its answer; by a Python that has no package installed."""
    (tmp_path / "constants").mkdir()
    for path in (
        *map(ROOT.joinpath, ("config.py", "overrides.py", "limits.py", "utils.py")),
        *ROOT.glob("constants/*.py"),
    ):
        (tmp_path / path.relative_to(ROOT)).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    assert SOURCE.count(f"\n{before}") == 1
    (tmp_path / "config.py").write_text(SOURCE.replace(f"\n{before}", f"\n{after}"), encoding="utf-8")
    script = tmp_path / "script.py"
    script.write_text(
        '"""Doc."""\nimport overrides\nimport config\nimport utils\n'
        "def main(arguments):\n    overrides.apply(arguments, config)\n    config.EMA_DECAY\n"
        "utils.run_script(main)\n"
    )
    done = subprocess.run([sys.executable, "-S", str(script)], capture_output=True, text=True, cwd=tmp_path)
    line = SOURCE[: SOURCE.index(f"\n{before}") + 1].count("\n") + 1
    assert done.returncode == 1
    expected = re.escape(message.format(line=f":{line}"))
    assert re.fullmatch(rf"error: config\.py{expected}.*\n", done.stderr), done.stderr


def test_every_script_imports_overrides_before_config() -> None:
    for name in overrides.SCRIPTS:
        imported = re.findall(r"^import (config|overrides)\b", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert imported in (["overrides", "config"], ["overrides"]), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NUM_EPOCHS = 3\nimport os\n", ":2: a recipe holds lines NAME = value only"),
        ("def f():\n    pass\n", ":1: a recipe holds"),
        ("\n\nprint(3)\n", ":3: a recipe holds"),
        ("NUM_EPOCHS += 1\n", ":1: a recipe holds"),
        ("NUM_EPOCHS = SEED = 3\n", ":1: a recipe holds"),
        ("NUM_EPOCHS, SEED = 3, 4\n", ":1: a recipe holds"),
        ("NUM_EPOCHS: int\n", ":1: a recipe holds"),
        ("if True:\n    NUM_EPOCHS = 3\n", ":1: a recipe holds"),
        ("SEED = 1\nNUM_EPOCHS = = 3\n", ":2: invalid syntax"),
        ("SEED = (1\n", ":1: '(' was never closed"),
        ("NUM_EPOCS = 3\n", "there is no constant 'NUM_EPOCS' (did you mean NUM_EPOCHS?)"),
        ("NUM_EPOCHS = 1 // 0\n", "NUM_EPOCHS: ZeroDivisionError: "),
        ("NUM_EPOCHS = 3 * EPOCHS\n", "NUM_EPOCHS: there is no constant 'EPOCHS' (here it is NUM_EPOCHS)"),
        ("USE_POS_WEIGHT = 1\n", "USE_POS_WEIGHT is 1, which is not of type bool"),
        ("NUM_EPOCHS = True\n", "NUM_EPOCHS is True, which is not of type int"),
        ("NUM_EPOCHS = 3.0\n", "NUM_EPOCHS is 3.0, which is not of type int"),
        ("WEIGHT_DECAY = False\n", "WEIGHT_DECAY is False, which is not of type float"),
        ("LOCAL_ROOT = 3\n", "LOCAL_ROOT is 3, which is not of type Path"),
        ("DEVICE = None\n", "DEVICE is None, which is not of type str"),
        ("PRETRAINED_WEIGHTS = 3\n", "PRETRAINED_WEIGHTS is 3, which is not of type str or None"),
        ("LR_MILESTONES = 5\n", "LR_MILESTONES is 5, which is not of type tuple"),
        ("LR_MILESTONES = (3, 5.5)\n", "LR_MILESTONES is 5.5, which is not of type int"),
        ("CLASSES = 'cat'\n", "CLASSES is 'cat', which is not of type tuple"),
        ("HEAD = 18\n", "HEAD is 18; it takes linear, linear_bn, "),
    ],
)
def test_a_bad_recipe_is_refused_in_one_line(write_recipe: Callable[..., str], text: str, message: str) -> None:
    recipe = write_recipe(text)
    with pytest.raises(InputError) as caught:
        overrides.apply([recipe], config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if message[0] == ":":
        assert str(caught.value).startswith(recipe + message)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read recipe .*absent\.py: No such file or directory"):
        overrides.apply([str(tmp_path / "absent.py")], config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--NUM_EPOCHS", "ten"], "NUM_EPOCHS is 'ten', which is not of type int"),
        (["--NUM_EPOCHS", "2.5"], "NUM_EPOCHS is '2.5', which is not of type int"),
        (["--NUM_EPOCHS", "None"], "NUM_EPOCHS is 'None', which is not of type int"),
        (["--PRETRAINED_WEIGHTS", "none"], "is the text 'none': write None, or ./none for a file that is called so"),
        (["--CURRICULUM=NONE"], "CURRICULUM is the text 'NONE': write None, or ./NONE"),
        (["--FOCAL_ALPHA", "none"], "FOCAL_ALPHA is the text 'none': write None"),
        (["--LEARNING_RATE", "fast"], "LEARNING_RATE is 'fast', which is not of type float"),
        (["--USE_POS_WEIGHT", "yes"], "USE_POS_WEIGHT is 'yes', which is not of type bool"),
        (["--IMAGE_SIZE", "256x448"], "IMAGE_SIZE is '256x448', which is not of type int or (int, int)"),
        (["--IMAGE_SIZE", "1,2,3"], "IMAGE_SIZE is (1, 2, 3), which is not of type int or (int, int)"),
        (["--IMAGE_SIZE", "256,x"], "IMAGE_SIZE is 'x', which is not of type int"),
        (["--LR_MILESTONES", "3,x"], "LR_MILESTONES is 'x', which is not of type int"),
        (
            ["--HEAD", "linear_bm"],
            "HEAD is 'linear_bm' (did you mean linear_bn?); it takes linear, linear_bn",
        ),
        (["--HEAD", "ML_DECODER"], "(did you mean ml_decoder?)"),
        (["--SCHEDULE=multi_step"], "SCHEDULE is 'multi_step' (did you mean multistep?); it takes multistep, step"),
        (["--RESUME", "qqqq"], "RESUME is 'qqqq'; it takes auto, never"),
        (["--NUM_EPOCS", "3"], "the command line: there is no constant 'NUM_EPOCS' (did you mean NUM_EPOCHS?)"),
        (["--num_epochs", "3"], "there is no constant 'num_epochs' (did you mean NUM_EPOCHS?)"),
        (["--train_batchsize=3"], "(did you mean TRAIN_BATCH_SIZE?)"),
        (["--ZZZZ", "3"], "there is no constant 'ZZZZ'; --help all lists them"),
        (["--NUM_EPOCHS"], "--NUM_EPOCHS needs a value"),
        (["NUM_EPOCHS", "3"], "'NUM_EPOCHS' is neither a recipe (.py), nor a run (.json, .pt, .pth), nor --NAME value"),
        (["NUM_EPOCHS=3"], "'NUM_EPOCHS=3' is neither"),
    ],
)
def test_a_bad_command_line_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        overrides.apply(arguments, config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pattern_that_the_shell_took_apart_is_said(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.JPG", "c.png", "other/d.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def explain(*arguments: str) -> str:
        with pytest.raises(InputError) as caught:
            overrides.apply([*arguments], config)
        return str(caught.value)

    option = ["--TEST_IMAGES_DIR", f"{tmp_path}/a.JPG"]
    assert explain(*option, f"{tmp_path}/b.JPG").endswith(f"many words: --TEST_IMAGES_DIR '{tmp_path}/*.JPG'")
    assert explain(*option, f"{tmp_path}/c.png").endswith(f"many words: --TEST_IMAGES_DIR '{tmp_path}/*'")
    for text in (explain(*option, f"{tmp_path}/other/d.JPG"), explain(f"{tmp_path}/b.JPG")):
        assert "quotes" not in text
        assert "to predict it (testing.py): --TEST_IMAGES_DIR " in text
        assert "--DATASET_FOLDER" not in text
    assert f"to train on it, or measure by it: --DATASET_FOLDER {tmp_path}/other" in explain(f"{tmp_path}/other")
    assert explain(f"{tmp_path}/none").endswith("; --help all lists the names")


@pytest.mark.parametrize(
    "line",
    [
        "--TRAIN_BATCH_SIZE 2 --IMAGE_SIZE 32 --TH_MULTI_LABEL 1 --CROP_SCALE_MIN 1 --POS_WEIGHT_CAP 0",
        "--WARMUP_EPOCHS 2.5 --NUM_EPOCHS 3 --LR_DECAY_FACTOR 1",
        "--EARLY_STOPPING_PATIENCE 0",
        "--PRETRAINED_WEIGHTS None --FREEZE_BACKBONE False",
    ],
)
def test_the_limits_themselves_are_allowed(line: str) -> None:
    overrides.apply(line.split(), config)


@pytest.mark.parametrize("arguments", [["--help", "all"], ["-h", "all"], ["--NUM_EPOCHS", "77", "--help", "all"]])
def test_help_all_prints_every_constant(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        overrides.apply(arguments, config)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert re.findall(r"^  --([A-Z0-9_]+) ", text, re.MULTILINE) == NAMES
    for constant in overrides.list_constants(config):
        below = text.partition(f"\n  --{constant.name} ")[2].partition("\n  --")[0]
        assert constant.comment in below
    assert f"  --NUM_EPOCHS {77 if '77' in arguments else DEFAULTS['NUM_EPOCHS']}\n" in text
    assert f"  --LOCAL_ROOT {DEFAULTS['LOCAL_ROOT']}\n        holds the data set" in text
    assert "\nClasses\n  --CLASSES ('person', 'bicycle', " in text
    assert "\n        multistep | step | cosine | onecycle | warmup_steps\n" in text
    for title in re.findall(r"^# ---- (.*) ----$", SOURCE, re.MULTILINE):
        assert f"\n\n{title}\n" in text


def test_resolved_is_complete_and_plain() -> None:
    plain = overrides.resolved(config)
    assert list(plain) == NAMES
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["LR_MILESTONES"] == list(config.LR_MILESTONES)
    assert plain["LOCAL_ROOT"] == str(config.LOCAL_ROOT)
    overrides.apply(["--NUM_EPOCHS", "3", "--LOCAL_ROOT", "/data"], config)
    changed = overrides.resolved(config)
    assert (changed["NUM_EPOCHS"], changed["BEST_MODEL_PATH"]) == (3, "/data/trained_models/best_model.pt")


def test_changes_are_what_differs_from_the_file_and_does_not_follow() -> None:
    values = overrides.resolved(config)
    assert overrides.list_changes(config, values) == {}
    arguments = ["--LOCAL_ROOT=/data", "--LR_MILESTONES=3,5", "--FREEZE_BACKBONE=False", "--MODEL_PATH=/m.pt"]
    overrides.apply(arguments, config)
    assert overrides.list_changes(config, overrides.resolved(config)) == {
        "LOCAL_ROOT": ("/data", str(DEFAULTS["LOCAL_ROOT"])),
        "MODEL_PATH": ("/m.pt", "/data/trained_models/best_model.pt"),
        "FREEZE_BACKBONE": (False, True),
        "LR_MILESTONES": ([3, 5], [6, 8]),
    }
    others = overrides.resolved(config) | {"MIN_LABELS": 1, "BATCH": 3, "NUM_EPOCHS": "many"}
    found = overrides.list_changes(config, others)
    assert (found["MIN_LABELS"], found["NUM_EPOCHS"]) == ((1, 0), ("many", 10))
    assert "BATCH" not in found, "config.py has no such constant"
    overrides.apply(["--TEST_FLIP=True"], config, testing)
    assert overrides.list_changes(testing, overrides.resolved(testing)) == {"TEST_FLIP": (True, False)}


@pytest.mark.parametrize(
    "values",
    [
        {"CLASSES": ["a, b", "driver's seat", '"', "(x)", " blank ", "[", "plain", "$HOME", "-1"]},
        {"CLASSES": ["(x)"]},
        {"MODEL_NAME": "-odd name", "GROUP_PATTERN": None, "LR_MILESTONES": [], "IMAGE_SIZE": [256, 448]},
        {"LR_DECAY_FACTOR": 1e-05, "COMPILE": True, "GROUP_PATTERN": r"^(\d+),\s'\"", "LR_MILESTONES": [3]},
    ],
)
def test_options_of_a_command_are_read_as_what_was_written(values: dict[str, Any]) -> None:
    overrides.apply(shlex.split(overrides.write_options(values)), config)
    assert {name: overrides.resolved(config)[name] for name in values} == values


def test_a_script_may_have_constants_of_its_own(write_recipe: Callable[..., str]) -> None:
    table = model_performance_table
    overrides.apply(["--LOCAL_ROOT", "/data", "--SORT_BY", "mAP", "--GROUP_BY_COLUMNS", "HEAD,LOSS"], config, table)
    assert table.SORT_BY == "mAP"
    assert table.GROUP_BY_COLUMNS == ("HEAD", "LOSS")
    assert Path("/data/trained_models") == table.CHECKPOINTS_ROOT  # computed from a constant of config
    overrides.apply([write_recipe('NUM_EPOCHS = 3\nGROUP_MODE = "mean"\n'), "--SORT_BY=epoch"], config, table)
    assert (config.NUM_EPOCHS, table.GROUP_MODE, table.SORT_BY) == (3, "mean", "epoch")
    assert table.CHECKPOINTS_ROOT == config.TRAINED_MODELS_FOLDER == DEFAULTS["TRAINED_MODELS_FOLDER"]
    with pytest.raises(InputError, match=r"there is no constant 'SORTBY'.*did you mean SORT_BY"):
        overrides.apply(["--SORTBY", "mAP"], config, table)


def test_a_constant_of_another_script(write_recipe: Callable[..., str]) -> None:
    """A recipe goes with every script, so it may hold constants of all; the command line is one script's."""
    recipe = write_recipe("SORT_BY = 'mAP'\nSERVING_PORT = 'misplaced'\nSEED = 5\n")
    overrides.apply([recipe], config)
    assert config.SEED == 5
    assert "SORT_BY" not in vars(config)
    overrides.apply([recipe], config, model_performance_table)
    assert model_performance_table.SORT_BY == "mAP"
    with pytest.raises(
        InputError, match=r"SORT_BY is a constant of model_performance_table\.py, which this script does"
    ):
        overrides.apply(["--SORT_BY", "mAP"], config)
    with pytest.raises(InputError, match=r"NUM_EPOCHS is a constant of config\.py, which this script does not read"):
        overrides.apply(["--NUM_EPOCHS", "3"], model_performance_table)
    with pytest.raises(
        InputError, match=r"recipe\.py:1: there is no constant 'SERVING_PORTS' \(did you mean SERVING_PORT"
    ):
        overrides.apply([write_recipe("SERVING_PORTS = 80\n")], config)


def test_a_recipe_may_compute_a_scripts_constants_from_those_of_config(write_recipe: Callable[..., str]) -> None:
    recipe = write_recipe('MAP_FOLDER = LOCAL_ROOT / "maps"\n')
    overrides.apply([recipe, "--LOCAL_ROOT=/data"], config, class_activation_maps)
    assert Path("/data/maps") == class_activation_maps.MAP_FOLDER


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("--batch-size=3", "--batch-size is TRAIN_BATCH_SIZE here (--help TRAIN_BATCH_SIZE)"),
        ("--Epochs", "--Epochs is NUM_EPOCHS here (--help NUM_EPOCHS)"),
        ("--jit", "--jit is EXPORT_FORMATS torchscript here (python export_onnx.py --help EXPORT_FORMATS)"),
        ("--fp32", "--fp32 is what it always is here"),
    ],
)
def test_words_of_other_systems(spelling: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"batch_size": "TRAIN_BATCH_SIZE", "epochs": "NUM_EPOCHS", "jit": "EXPORT_FORMATS torchscript"}
    for word, meaning in {**words, "fp32": "what it always is"}.items():
        monkeypatch.setitem(WORDS, word, meaning)
    with pytest.raises(InputError) as caught:
        overrides.apply([spelling], config)
    assert str(caught.value) == f"the command line: {message}"


def test_a_word_of_another_system_in_a_recipe_or_as_a_value(
    write_recipe: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WORDS, "batch_size", "TRAIN_BATCH_SIZE")
    with pytest.raises(InputError, match=r"recipe\.py:1: BATCH_SIZE is TRAIN_BATCH_SIZE here"):
        overrides.apply([write_recipe("BATCH_SIZE = 8\n")], config)
    monkeypatch.setitem(WORDS, "bce_loss", "bce_with_logits")
    with pytest.raises(InputError, match=r"LOSS is 'BCE-Loss' \(here it is bce_with_logits\); it takes "):
        overrides.apply(["--LOSS", "BCE-Loss"], config)


def test_words_of_other_systems_name_constants_that_exist() -> None:
    names = {*NAMES, *(constant.name for module in SCRIPTS for constant in overrides.list_constants(module))}
    for word, meaning in WORDS.items():
        assert word == word.lower().replace("-", "_")
        capitals = re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", meaning)
        assert set(capitals) <= names, word


def read_help(capsys: pytest.CaptureFixture[str], *arguments: str, script: ModuleType | None = None) -> str:
    with pytest.raises(SystemExit) as caught:
        overrides.apply(list(arguments), config, *([script] if script else []))
    assert caught.value.code == 0
    return capsys.readouterr().out


def list_shown(text: str) -> list[str]:
    return re.findall(r"^  --([A-Z0-9_]+) ", text, re.MULTILINE)


def test_help_shows_what_people_edit_and_names_the_other_sections(capsys: pytest.CaptureFixture[str]) -> None:
    text = read_help(capsys, "--NUM_EPOCHS", "77", "--help")
    assert list_shown(text) == list(EDITED)
    assert "  --NUM_EPOCHS 77\n        passes over the training split\n        1 or more\n" in text
    titles = re.findall(r"^# ---- (.*) ----$", SOURCE, re.MULTILINE)
    assert re.findall(r"^  (\w.*)$", text.partition("Also read from config.py")[2], re.MULTILINE) == titles[2:]


def test_help_of_a_script_shows_its_own_constants_and_names_what_else_it_reads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "other_script.py"
    path.write_text(
        "import config\nfrom models import checkpoints\n# ---- Own ----\nDEPTH: int = 3  # of it\n"
        "def main():\n    import serving\n    return config.SEED, config.COLOR_JITTER, config.TEST_IMAGES_DIR\n"
    )
    text = read_help(capsys, "--help", script=import_file(path, "other_script"))
    assert list_shown(text) == ["DEPTH", "LOCAL_ROOT", "DATASET_FOLDER", "SEED"]  # the second: see TEST_IMAGES_DIR
    assert text.index("--DEPTH 3\n        of it") < text.index("--SEED 0")
    also = text.partition("Also read from config.py")[2]
    assert "\n  Augmentation of training images *: COLOR_JITTER\n" in also
    assert "IMAGES_DIR, TEST_IMAGES_DIR, " in also
    assert "DEVICE" in also, "serving.py reads it"
    assert "CLASSES" not in also
    assert "Loss *" not in also


@pytest.mark.parametrize("word", ["jitter", "JITTER", "color-jitter", "COLOR_JITTER", "brightness"])
def test_help_finds_constants_by_name_or_comment(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = read_help(capsys, "--COLOR_JITTER=0.5", "--help", word)
    assert text.startswith("\nAugmentation of training images *\n  --COLOR_JITTER 0.5\n        share by which")
    assert list_shown(text) == ["COLOR_JITTER"]


def test_help_finds_sections_and_constants_of_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"RESUME", "NON_FINITE_LIMIT"} <= set(list_shown(read_help(capsys, "--help", "interruptions")))
    assert list_shown(read_help(capsys, "--help", "MAP_METHOD", script=class_activation_maps)) == ["MAP_METHOD"]
    with pytest.raises(InputError, match=r"MAP_METHOD is a constant of class_activation_maps\.py"):
        overrides.apply(["--help", "MAP_METHOD"], config)
    with pytest.raises(InputError, match=r"there is no constant 'NUM_EPOCS' \(did you mean NUM_EPOCHS\?\)"):
        overrides.apply(["--help", "NUM_EPOCS"], config)


def test_help_all_of_a_script_begins_with_its_own_constants(capsys: pytest.CaptureFixture[str]) -> None:
    shown = list_shown(read_help(capsys, "--help", "all", script=class_activation_maps))
    assert shown == ["MAP_METHOD", "MAP_FOLDER", "MAP_MAX_IMAGES", "MAP_LABELS_PER_IMAGE", *NAMES]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_help(capsys, "--version") == "1.0.0\n"


def run_bare(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script by a Python that has no package installed: what it says then needed none."""
    command = [sys.executable, "-S", str(ROOT / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


# model_comparison.py is run by models_factory.py
@pytest.mark.parametrize("script", [file for file in overrides.SCRIPTS if file != "model_comparison.py"])
def test_mistakes_and_help_need_no_package(script: str, write_recipe: Callable[..., str]) -> None:
    verb = ["check"] if script == "dataset_tools.py" else []
    for arguments, message in (
        (["--epochs", "10"], "--epochs is NUM_EPOCHS here"),
        (["--NUM_EPOCHS", "0"], "NUM_EPOCHS is 0: 1 or more"),
        ([write_recipe("NUM_EPOCS = 3\n")], "there is no constant 'NUM_EPOCS'"),
        (["--LOSS", "asymmetric_angular"], "which HEAD linear_bn does not give"),
    ):
        done = run_bare(script, *verb, *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(rf"error: .*{re.escape(message)}.*\n", done.stderr)
    for arguments, text in ((["--help"], "--LOCAL_ROOT"), (["--version"], "1.0.0")):
        done = run_bare(script, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert text in done.stdout


@pytest.mark.parametrize("script", ["training.py", "testing.py", "serving.py", "dataset_tools.py"])
def test_without_the_environment_one_line_says_how_to_make_it(script: str, tmp_path: Path) -> None:
    done = run_bare(script, *(["demo"] if script == "dataset_tools.py" else []), f"--LOCAL_ROOT={tmp_path}")
    assert done.returncode == 1
    command = re.escape(str(ROOT / script))
    advice = rf"run `make setup`, then `\.venv/bin/python {command}`; or `pip install -r requirements\.txt`"
    assert re.fullmatch(rf"error: .* lacks numpy.*: {advice}\n", done.stderr)


def test_training_imports_no_package_that_it_may_not_need() -> None:
    code = "import sys, training; print(*{'timm', 'tensorboard', 'matplotlib', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_every_script_is_known() -> None:
    scripts = {path.name for path in ROOT.glob("*.py") if "utils.run_script(main)" in path.read_text(encoding="utf-8")}
    assert scripts - {"models_factory.py"} <= {*overrides.SCRIPTS}
    assert all((ROOT / file).is_file() for file in overrides.SCRIPTS)


def test_other_annotations(tmp_path: Path) -> None:
    """Kinds of constants that config.py may come to have."""
    path = tmp_path / "other_script.py"
    path.write_text(
        "from pathlib import Path\nfrom typing import Literal\n"
        "LIMIT: int | None = None\nRATE: float | None = 0.5\nSIZES: tuple[float, ...] = ()\n"
        "PAIR: tuple[int, str] = (1, 'a')\nFOLDER: Path | None = None\nlower: int = 3\nPLAIN = 4\n"
    )
    module = import_file(path, "other_script")
    names = [constant.name for constant in overrides.list_constants(module)]
    assert names == ["LIMIT", "RATE", "SIZES", "PAIR", "FOLDER"]
    overrides.apply(["--LIMIT", "3", "--RATE", "None", "--SIZES", "1,0.5", "--FOLDER", "/data"], module)
    assert [vars(module)[name] for name in ("LIMIT", "RATE", "SIZES", "FOLDER")] == [3, None, (1.0, 0.5), Path("/data")]
    with pytest.raises(InputError, match="PLAIN"):
        overrides.apply(["--PLAIN", "3"], module)
    assert "other_script" not in sys.modules


def test_a_recipe_sees_the_new_value_of_a_constant_below(write_recipe: Callable[..., str]) -> None:
    overrides.apply([write_recipe("UNFREEZE_BACKBONE_EPOCH = NUM_EPOCHS // 2\n"), "--NUM_EPOCHS", "30"], config)
    assert config.UNFREEZE_BACKBONE_EPOCH == 15


def test_an_optional_choice(tmp_path: Path) -> None:
    path = tmp_path / "other_script.py"
    path.write_text("from typing import Literal\nKIND: Literal['a', 'b'] | None = None\nDEPTH: Literal[18, 50] = 18\n")
    module = import_file(path, "other_script")
    overrides.apply(["--KIND", "b", "--DEPTH", "50"], module)
    assert (module.KIND, module.DEPTH) == ("b", 50)
    overrides.apply(["--KIND", "None"], module)
    assert module.KIND is None


def test_brackets_that_belong_to_a_name_stay() -> None:
    overrides.apply(["--CLASSES", "cat,dog (small)"], config)
    assert config.CLASSES == ("cat", "dog (small)")


def test_a_recipe_that_is_not_text(write_recipe: Callable[..., str]) -> None:
    with pytest.raises(InputError, match=r"cannot read recipe .*recipe\.py"):
        overrides.apply([write_recipe(b"DEVICE = '\xff'\n")], config)


def test_a_forgotten_value_does_not_swallow_the_next_name() -> None:
    with pytest.raises(InputError, match="--CACHE_FOLDER needs a value"):
        overrides.apply(["--CACHE_FOLDER", "--NUM_EPOCHS=3"], config)


@pytest.mark.parametrize("text", ["nan", "inf"])
def test_numbers_must_be_finite(text: str) -> None:
    with pytest.raises(InputError, match="LEARNING_RATE is"):
        overrides.apply(["--LEARNING_RATE", text], config)


@pytest.mark.parametrize("line", ["NUM_EPOCS = 3", "NUM_EPOCHS = 'x'", "NUM_EPOCHS = 1 // 0"])
def test_a_bad_line_of_a_recipe_is_named(write_recipe: Callable[..., str], line: str) -> None:
    recipe = write_recipe(f"SEED = 1\n{line}\n")
    with pytest.raises(InputError, match=rf"{re.escape(recipe)}:2: "):
        overrides.apply([recipe], config)


def test_a_recipe_that_names_itself_is_applied_once(tmp_path: Path) -> None:
    """The early answer leaves the constants as they were: `main` applies the command line again."""
    recipe = tmp_path / "double.py"
    recipe.write_text("NUM_EPOCHS = NUM_EPOCHS * 2\n", encoding="utf-8-sig")  # with the mark that Windows writes
    before = config.NUM_EPOCHS
    code = (
        "import sys, config, overrides; sys.argv = ['training.py', *sys.argv[1:]]; overrides.answer_early(config); "
        "overrides.apply(sys.argv[1:], config); print(config.NUM_EPOCHS)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(recipe)], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == (f"{2 * before}\n", "")


@pytest.mark.parametrize(
    ("argument", "message"),
    [("-o", "-o is --NAME value here"), ("-c", "-c is a recipe"), ("-b=8", "-b=8 is TRAIN_BATCH_SIZE here")],
)
def test_flags_of_other_systems_with_one_dash_are_answered(argument: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        overrides.apply([argument], config)


# ---- the constants of a run ----


def record_run(folder: Path, *arguments: str) -> Path:
    """The .json of a checkpoint that a run with these `arguments` leaves in `folder`."""
    overrides.apply([*arguments], config)
    path = folder / "run.json"
    path.write_text(json.dumps({"classes": ["cat"], "config": overrides.resolved(config)}), encoding="utf-8")
    overrides.apply([], config)
    return path


def test_a_run_is_repeated_from_what_lies_beside_its_checkpoint(tmp_path: Path) -> None:
    arguments = ["--LOCAL_ROOT", "/a", "--NUM_EPOCHS", "7", "--LR_MILESTONES", "3,5", "--CLASSES", "'x, y',z"]
    arguments += ["--CACHE_FOLDER", "/elsewhere", "--PRETRAINED_WEIGHTS", "None"]
    arguments += ["--FREEZE_BACKBONE", "False"]
    path = record_run(tmp_path, *arguments)
    overrides.apply(arguments, config)
    expected = overrides.resolved(config)
    for spelling in (path, path.with_suffix(".pt")):
        overrides.apply([], config)
        overrides.apply([str(spelling)], config)
        assert overrides.resolved(config) == expected
    assert config.NUM_CLASSES == 2


def test_what_a_run_computed_from_other_constants_follows_them(tmp_path: Path) -> None:
    path = record_run(tmp_path, "--LOCAL_ROOT", "/a", "--CACHE_FOLDER", "/elsewhere", "--SEED", "5")
    overrides.apply(["--DATASET_FOLDER", "/before", str(path), "--LOCAL_ROOT", "/b"], config)
    assert Path("/b/ms-coco-dataset/images") == config.IMAGES_DIR  # the run's, so /before does not count
    assert Path("/b/trained_models/best_model.pt") == config.BEST_MODEL_PATH
    assert Path("/elsewhere") == config.CACHE_FOLDER
    assert config.SEED == 5


def test_other_scripts_load_the_checkpoint_that_is_given(tmp_path: Path) -> None:
    path = record_run(tmp_path, "--LOCAL_ROOT", "/a")
    (tmp_path / "run.pth").touch()
    for given in (path, tmp_path / "run.pth"):
        overrides.apply([str(given)], config, testing)
        assert tmp_path / "run.pth" == config.MODEL_PATH
        assert Path("/a/trained_models/best_model.pt") == config.BEST_MODEL_PATH


def test_constants_that_only_one_side_has_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record_run(tmp_path)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["config"]["OLD_NAME"] = content["config"].pop("SAM_RHO")
    path.write_text(json.dumps(content), encoding="utf-8")
    overrides.apply([str(path)], config)
    written = " ".join(capsys.readouterr().err.split())
    assert "OLD_NAME: config.py has no such constant" in written
    assert "SAM_RHO: the run is older than it" in written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', "holds no constants of a run"),
        ("[]", "holds no constants of a run"),
        ('{"config": {"NUM_EPOCHS": 0}}', "run.json: NUM_EPOCHS is 0"),
        ('{"config": {"NUM_EPOCHS": {"a": 1}}}', "run.json: NUM_EPOCHS"),
        ('{"config": ', "run.json"),
    ],
)
def test_a_file_that_is_no_run_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        overrides.apply([str(path)], config)
    assert "\n" not in str(caught.value)


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=re.escape(f"cannot read the constants of a run, {tmp_path / 'x.json'}: No such")
    ):
        overrides.apply([str(tmp_path / "x.pt")], config)


def test_the_recipe_of_a_run_gives_its_constants(write_recipe: Callable[..., str]) -> None:
    overrides.apply(
        ["--LOCAL_ROOT", "/a", "--CLASSES", "'\"',b", "--FOCAL_ALPHA", "0.25", "--MODEL_PATH", "/m.pt"], config
    )
    expected = overrides.resolved(config)
    recipe = write_recipe(overrides.write_recipe(config))
    overrides.apply([], config)
    overrides.apply([recipe], config)
    assert overrides.resolved(config) == expected
    overrides.apply([recipe, "--LOCAL_ROOT", "/b"], config)
    assert Path("/b/trained_models") == config.TRAINED_MODELS_FOLDER
    assert Path("/m.pt") == config.MODEL_PATH


# ---- in a notebook ----


def test_a_constant_set_by_a_call_moves_those_computed_from_it() -> None:
    overrides.edit(config, LOCAL_ROOT="/a", NUM_EPOCHS=3, LR_MILESTONES=[1, 2])
    overrides.edit(config, DATASET_FOLDER=Path("/photos"))
    assert (config.NUM_EPOCHS, config.LR_MILESTONES) == (3, (1, 2))
    assert Path("/photos/labels/train") == config.TRAIN_LABELS_DIR
    assert Path("/a/trained_models/best_model.pt") == config.MODEL_PATH
    overrides.edit(config, LOCAL_ROOT="/b")
    assert Path("/b/cache") == config.CACHE_FOLDER
    assert Path("/photos") == config.DATASET_FOLDER


def test_a_script_begins_with_the_constants_that_were_set_by_a_call() -> None:
    overrides.edit(config, NUM_EPOCHS=3, LOCAL_ROOT="/a")
    overrides.edit(testing, TEST_FLIP=True)
    overrides.apply(["--SEED", "7", "--LOCAL_ROOT", "/b"], config, testing)
    assert (config.NUM_EPOCHS, config.SEED, testing.TEST_FLIP) == (3, 7, True)
    assert Path("/b/cache") == config.CACHE_FOLDER
    overrides.apply([], config, testing)
    assert (config.NUM_EPOCHS, config.SEED, testing.TEST_FLIP) == (3, 0, True)
    assert Path("/a/cache") == config.CACHE_FOLDER


@pytest.mark.parametrize(("name", "value"), [("NUM_EPOCHS", -1), ("LOSS", "bec"), ("NUM_EPOCH", 3), ("MIN_LABELS", 9)])
def test_a_call_with_a_mistake_changes_nothing(name: str, value: Any) -> None:
    overrides.edit(config, SEED=4, MAX_LABELS=2)
    before = overrides.resolved(config)
    with pytest.raises(InputError, match=name):
        overrides.edit(config, SEED=5, **{name: value})
    assert overrides.resolved(config) == before
