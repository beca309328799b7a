"""The command line and recipe files, turned into edits of the constants atop `config.py` and of a script.

    python training.py recipes/fine_tuning.py --IMAGE_SIZE 320 --SEED 1

has the effect of editing those lines: constants computed from others follow, and later wins. A recipe is a file of
such lines, `NAME = value`. It may come from anybody, so it is read and never run (constants/recipes.py).
The `.json` that lies beside a checkpoint, or the checkpoint, stands for the constants of its run. config.py is this
project's own file, and is Python. Every value is checked against its annotation, and all constants
against the rules of limits.py, before anything else happens. This file imports nothing that takes time to load, and
scripts import it before config: a mistake in config.py then is one line, too.
"""

from __future__ import annotations

import ast
import itertools
import re
import shlex
import sys
import traceback
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import limits
import utils
from constants.help import explain_stray, explain_unknown, print_help
from constants.other_systems import WORDS
from constants.recipes import (
    RUN_ENDINGS,
    Edit,
    evaluate,
    list_computed,
    list_formulas,
    list_names,
    read_recipe,
    read_run,
    to_expression,
    write_line,
)  # fmt: skip
from constants.source import (
    ROOT,
    SCRIPTS,
    Constant,
    compile_expression,
    find_file,
    list_all_names,
    list_constants,
    read_annotation,
    read_assignments,
    read_comments,
    read_fresh,
)  # fmt: skip
from constants.spaces import Varied, find_kind, read_varied
from constants.values import check, parse
from utils import InputError

__all__ = [
    "AS_BEFORE", "SCRIPTS", "Constant", "Varied", "answer_early", "apply", "edit", "list_changes", "list_constants",
    "list_deciding", "resolved", "write_changes", "write_options", "write_recipe",
]  # fmt: skip

EDITED: dict[str, Edit] = {}  # by `edit`: as if the lines of config.py or a script were edited
# Constants that came to decide later, and the values that mean what runs did before: with these a run has the name that
# it had then, and older runs, which lack the constants, stand in its row of the table.
AS_BEFORE: dict[str, Any] = {
    "TAKE_OVER_HEAD": True,
    "LABELS_PER_IMAGE": "any",
    "HEAD_FIT": "steps",
    "FEATURES": "own",
    "FOLDS": 0,
    "LAYER_DECAY": 1.0,
    "LORA_RANK": 0,
    "ABSENT_MEANS": "absent",
    "MICRO_BATCH_SIZE": 0,
}


def answer_early(*modules: ModuleType, takes_space: bool = False) -> None:
    """Apply the command line to `modules`, and end the script here where it asks for help or holds a mistake.

    A script calls this above its imports that take seconds, with `config` and itself. Its `main` applies the command
    line again, so the modules are left as they were: `NUM_EPOCHS = NUM_EPOCHS * 2` in a recipe doubles once. Where
    packages of requirements.txt are missing, one line says how to install them. search.py `takes_space`.
    """
    values = [dict(vars(module)) for module in modules]

    def answer(arguments: list[str]) -> None:
        apply(arguments, *modules, varied={} if takes_space else None)
        utils.require_environment()
        for module, before in zip(modules, values, strict=True):
            vars(module).update(before)

    utils.run_script(answer)
    utils.explain_failing_imports()


def explain_mistake(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """Tell a mistake that was made while editing config.py in one line; every other error with its traceback.

    It is the hook for errors that nothing has caught: `import config` may fail before a script does anything.
    """
    config_path = str(ROOT / "config.py")
    lines = [frame.lineno for frame in traceback.extract_tb(trace) if frame.filename == config_path]
    if isinstance(error, SyntaxError) and error.filename == config_path:
        text = f"config.py:{error.lineno}: {error.msg}"
    elif lines:
        text = f"config.py:{lines[0]}: {kind.__name__}: {error}"
    elif isinstance(error, AttributeError) and error.obj is not None and error.obj is sys.modules.get("config"):
        text = f"config.py: there is no constant {error.name} in it, which is needed: put its line back"
    else:
        _hook_before(kind, error, trace)
        return
    utils.say(f"error: {text}", stream=sys.stderr)


_hook_before, sys.excepthook = sys.excepthook, explain_mistake


def apply(arguments: list[str], *modules: ModuleType, varied: dict[str, Varied] | None = None) -> None:
    """Edit the constants of `modules` by `arguments`: recipe files, `--NAME value` and `--NAME=value`.

    A script gives `config` and, where it has constants, itself. `--help`, `--help WORD`, `--help all` and `--version`
    print and exit. Raises InputError, in one line, for an unknown name (with the nearest right one), a constant of
    another script (in a recipe it is ignored), a value of the wrong type or beyond its limit, values that are computed
    from each other in a circle, and constants that contradict each other.

    With a dict `varied` a recipe may be a space (constants/spaces.py): the constants that vary are put into the dict,
    and have the first of their values. Whether they contradict each other is then for each trial to say. A space of
    which nothing varies, since what stands behind it sets all of it, is an InputError.
    """
    edits, spaces = dict(EDITED), dict[str, Edit]()
    names = [name for module in modules for name in read_assignments(find_file(module))]
    arguments = list(arguments)
    help_word = None
    while arguments:
        argument = arguments.pop(0)
        if argument in ("-h", "--help"):
            has_word = arguments and not arguments[0].startswith("-") and not arguments[0].endswith(".py")
            help_word = arguments.pop(0) if has_word else ""
        elif argument == "--version":
            utils.say(utils.VERSION)
            raise SystemExit(0)
        elif argument.startswith("-") and argument[1:].partition("=")[0] in WORDS:  # such as -c and -o of PaddleX
            raise InputError(explain_unknown(argument[1:].partition("=")[0], names, "the command line", argument))
        elif argument.startswith("--"):
            name, has_value, text = argument[2:].partition("=")
            if name not in names:
                raise InputError(explain_unknown(name, names, "the command line", f"--{name}"))
            if not has_value and (not arguments or arguments[0].startswith("--")):
                raise InputError(f"--{name} needs a value: --{name} VALUE")
            edits[name] = Edit(text if has_value else arguments.pop(0), "")
        elif argument.endswith(".py"):
            for name, edit in read_recipe(Path(argument).expanduser()).items():
                if name not in names and name not in list_all_names():
                    raise InputError(explain_unknown(name, names, edit.where, name))
                if find_kind(edit.value) and varied is not None:
                    if name not in read_assignments(ROOT / "config.py"):
                        raise InputError(f"{edit.where}: {name} cannot vary: only constants of config.py can")
                    spaces[name] = edit
                if name in names:
                    edits[name] = edit
        elif argument.endswith(RUN_ENDINGS):
            edits |= read_run(Path(argument).expanduser())
        else:
            raise InputError(explain_stray(argument, edits, names))
    earlier: dict[str, Any] = {}
    for module in modules:
        _assign(module, edits, earlier, varied)
        earlier |= {name: vars(module)[name] for name in read_assignments(find_file(module))}
        if not varied:
            _require_rules(module)
    if help_word is not None:
        print_help(help_word, modules)
        raise SystemExit(0)
    if spaces and not varied:
        setters = [f"{edits[name].where or 'the command line'} sets {name}" for name in spaces]
        raise InputError(f"{next(iter(spaces.values())).where}: nothing varies: {', '.join(setters)}")


def edit(module: ModuleType, **values: Any) -> None:
    """Set constants of `module` in a notebook or a script of your own, as if its lines were edited.

        overrides.edit(config, LOCAL_ROOT="/data/mine", NUM_EPOCHS=3)    # DATASET_FOLDER moves, too
        training.main([])    # trains with them

    What was set before stays. Raises InputError as `apply` does, and then changes nothing.
    """
    before, lines = dict(vars(module)), read_assignments(find_file(module))
    for name in values:
        if name not in lines:
            raise InputError(explain_unknown(name, [*lines], "edit", f"--{name}"))
    formulas = list_formulas(module, resolved(module))
    edits = {name: Edit(to_expression(before[name]), "") for name in lines if name not in formulas}
    edits |= {name: Edit(to_expression(value), "") for name, value in values.items()}
    try:
        _assign(module, edits, {})
        _require_rules(module)
    except InputError:
        vars(module).update(before)
        raise
    for name in lines:
        EDITED.pop(name, None)
    EDITED.update(edits)


def write_recipe(module: ModuleType) -> str:
    """All constants of `module` as a recipe; those computed from others stay so, and move with them."""
    values = resolved(module)
    formulas, lines, section = list_formulas(module, values), [], None
    for constant in list_constants(module):
        if constant.section != section:
            section = constant.section
            lines += ["", f"# ---- {section} ----"]
        expression = formulas.get(constant.name, to_expression(constant.value))
        lines.append(f"{constant.name} = {ast.unparse(expression)}")
    return "\n".join(
        [f'"""The constants of one run, as {find_file(module).name} and the command line had them."""', *lines, ""]
    )


def write_changes(module: ModuleType, always: Collection[str] = ()) -> str:
    """The lines of a recipe that make of the file of `module` what it is now.

    There stand the constants that differ from the file, and those that are `always` to stand there.
    """
    present, fresh = resolved(module), read_fresh(module)
    formulas, computed = list_formulas(module, present), list_computed(module)
    lines = []
    for name in present:
        differs = name not in formulas if name in computed else vars(module)[name] != fresh[name]
        if name in always or differs:
            lines.append(write_line(name, vars(module)[name]))
    return "".join(lines)


def resolved(module: ModuleType) -> dict[str, Any]:
    """All constants as plain Python values (paths as text, tuples as lists), for checkpoints and logs."""
    return {constant.name: _to_plain(constant.value) for constant in list_constants(module)}


def list_deciding(module: ModuleType) -> list[str]:
    """The constants of `module` that decide what is learned: those of the sections marked *, and MICRO_BATCH_SIZE.

    That one decides since BatchNorm in training, GHM and OHEM look at a micro-batch alone.
    """
    comments = read_comments(find_file(module))
    return [name for name, (section, _) in comments.items() if section.endswith("*") or name == "MICRO_BATCH_SIZE"]


def list_changes(module: ModuleType, values: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{name: (value, default)} of the `values`, plain as `resolved` gives them, that differ from the file of `module`.

    What the file computes from other constants, and `values` have so, too, is no difference.
    """
    lines = read_assignments(find_file(module))
    formulas, computed = list_formulas(module, values), list_computed(module)
    changes = {}
    for name, line in lines.items():
        default = _to_plain(eval(compile_expression(line.value or ast.Constant(None)), vars(module)))
        if name in values and (name not in formulas if name in computed else values[name] != default):
            changes[name] = values[name], default
    return changes


def write_options(values: Mapping[str, Any]) -> str:
    """The options of a command that set constants to plain `values`: `--HEAD linear --LR_MILESTONES 3,5`."""

    def write(value: Any) -> str:
        return ",".join(map(write_item, value)) if isinstance(value, list | tuple) else str(value)

    def write_item(item: Any) -> str:
        text = str(item)
        if text == text.strip() and not re.search(r"[,'\"()\[\]]", text):
            return text
        return f'"{text}"' if "'" in text else f"'{text}'"

    words = []
    for name, value in values.items():
        text = write(value)
        words += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    return shlex.join(words)


def _to_plain(value: Any) -> Any:
    """A constant's value without paths and tuples."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


# ---- edits ----


def _assign(
    module: ModuleType, edits: dict[str, Edit], earlier: dict[str, Any], varied: dict[str, Varied] | None = None
) -> None:
    """Run the module's assignments again with the edited values in place, each after those it is computed from.

    A recipe's expressions may also name constants of the `earlier` modules. One that names its own constant means the
    value that the module gives it. What a space varies is added to `varied`; None: there may be no space.
    """
    namespace, lines = vars(module), read_assignments(find_file(module))
    waiting, begun = dict(lines), []

    def assign(name: str) -> None:
        begun.append(name)
        edit = edits.get(name)
        line = lines[name].value or ast.Constant(None)
        if edit is None or (isinstance(edit.value, ast.expr) and name in list_names(edit.value)):
            set_constant(name, line, f"{find_file(module).name}:{lines[name].lineno}")
        if edit is not None:
            set_constant(name, edit.value, edit.where)
        del waiting[name]
        begun.pop()

    def set_constant(name: str, new: str | ast.expr, where: str) -> None:
        prefix = f"{where}: " if where else ""
        if isinstance(new, ast.expr):
            for needed in list_names(new):
                if needed in begun and needed != name:
                    circle = [*begun[begun.index(needed) :], needed]
                    text = ", ".join(f"{first} from {second}" for first, second in itertools.pairwise(circle))
                    raise InputError(f"{prefix}{name}: {text}: a circle; give one of them a value")
                if needed in waiting and needed != name:
                    assign(needed)
        if isinstance(new, ast.Call) and find_kind(new):
            namespace[name] = note_varied(name, new, where)
            return
        try:
            annotation = read_annotation(module, name)
            if isinstance(new, str):
                value = parse(new, annotation)
            elif new is lines[name].value:  # of a file of this project
                value = eval(compile_expression(new), namespace)
            else:
                value = evaluate(new, earlier | {known: namespace[known] for known in lines})
        except InputError as error:
            raise InputError(f"{prefix}{name}: {error}") from error
        except Exception as error:  # whatever an edited line may raise
            raise InputError(f"{prefix}{name}: {type(error).__name__}: {error}") from error
        try:
            namespace[name] = check(name, value, annotation)
        except InputError as error:
            raise InputError(f"{prefix}{error}") from error

    def note_varied(name: str, call: ast.Call, where: str) -> Any:
        if varied is None:
            raise InputError(
                f"{where}: {name}: {find_kind(call)} is for a space to search in: python search.py FILE.py"
            )
        constants, annotation = earlier | {known: namespace[known] for known in lines}, read_annotation(module, name)
        try:
            varied[name] = read_varied(name, call, constants, annotation, where)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        return varied[name].values[0]

    for name in list(waiting):
        if name in waiting:
            assign(name)


def _require_rules(module: ModuleType) -> None:
    """Raise InputError for constants of `module` that contradict each other."""
    for rule in limits.RULES.get(find_file(module).name, []):
        problem = rule(module)
        if problem:
            raise InputError(problem)
