"""The command line and recipe files, turned into edits of the constants atop `config.py` and of a script.

    python training.py recipes/coco18_efficientnet_lite0.py --MODEL_NAME resnet50 --LR_MILESTONES 3,5

has the effect of editing those lines: constants computed from others follow, and later wins. A recipe is a file of
such lines, `NAME = value`. It may come from anybody, so it is read and never run: `evaluate` says what a value may be.
The `.json` that lies beside a checkpoint, or the checkpoint, stands for the constants of its run. config.py is this
project's own file, and is Python. Every value is checked against its annotation, and all constants
against the rules of limits.py, before anything else happens. This file imports nothing that takes time to load, and
scripts import it before config: a mistake in config.py then is one line, too.
"""

from __future__ import annotations

import ast
import functools
import io
import itertools
import json
import math
import operator
import re
import sys
import textwrap
import tokenize
import traceback
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import limits
import utils
from other_systems import WORDS
from utils import InputError, suggest

UNIONS = (types.UnionType, typing.Union)  # int | None, and Literal[...] | None
SECTION = re.compile(r"^# -+ (.+?) -+$")
ITEM = re.compile(r"""\s*(?:'([^']*)'\s*|"([^"]*)"\s*|((?!\s*['"])[^,]*))(?:,|\Z)""")  # of a list on the command line
QUOTED_ITEM = re.compile(r"""(^|,)\s*('[^']*'|"[^"]*")""")
FIRST_SECTIONS = 2  # of config.py: what people edit, which --help shows in full
WIDTH = 110  # characters of a line of --help
ROOT = Path(__file__).parent
SCRIPTS = (  # beside this file; a recipe may hold constants of all of them
    "training.py", "testing.py", "model_performance_table.py", "threshold_tuning.py", "export_onnx.py",
    "class_activation_maps.py", "serving.py", "model_comparison.py", "dataset_tools.py",
)  # fmt: skip


class Constant(NamedTuple):
    """One annotated assignment at the top level of a module."""

    name: str
    section: str
    comment: str
    annotation: Any
    value: Any


class Edit(NamedTuple):
    """A constant's new value, as text from the command line or an expression from a recipe, and where that stands."""

    value: str | ast.expr
    where: str


EDITED: dict[str, Edit] = {}  # by `edit`: as if the lines of config.py or a script were edited


def answer_early(*modules: ModuleType) -> None:
    """Apply the command line to `modules`, and end the script here where it asks for help or holds a mistake.

    A script calls this above its imports that take seconds, with `config` and itself. Its `main` applies the command
    line again, so the modules are left as they were: `NUM_EPOCHS = NUM_EPOCHS * 2` in a recipe doubles once. Where
    packages of requirements.txt are missing, one line says how to install them.
    """
    values = [dict(vars(module)) for module in modules]

    def answer(arguments: list[str]) -> None:
        apply(arguments, *modules)
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


def apply(arguments: list[str], *modules: ModuleType) -> None:
    """Edit the constants of `modules` by `arguments`: recipe files, `--NAME value` and `--NAME=value`.

    A script gives `config` and, where it has constants, itself. `--help`, `--help WORD`, `--help all` and `--version`
    print and exit. Raises InputError, in one line, for an unknown name (with the nearest right one), a constant of
    another script (in a recipe it is ignored), a value of the wrong type or beyond its limit, values that are computed
    from each other in a circle, and constants that contradict each other.
    """
    edits = dict(EDITED)
    names = [name for module in modules for name in _assignments(_path(module))]
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
            raise InputError(_explain_unknown(argument[1:].partition("=")[0], names, "the command line", argument))
        elif argument.startswith("--"):
            name, has_value, text = argument[2:].partition("=")
            if name not in names:
                raise InputError(_explain_unknown(name, names, "the command line", f"--{name}"))
            if not has_value and (not arguments or arguments[0].startswith("--")):
                raise InputError(f"--{name} needs a value: --{name} VALUE")
            edits[name] = Edit(text if has_value else arguments.pop(0), "")
        elif argument.endswith(".py"):
            for name, edit in _read_recipe(Path(argument).expanduser()).items():
                if name in names:
                    edits[name] = edit
                elif name not in _list_all_names():
                    raise InputError(_explain_unknown(name, names, edit.where, name))
        elif argument.endswith(RUN_ENDINGS):
            edits |= _read_run(Path(argument).expanduser())
        else:
            raise InputError(_explain_stray(argument, edits, names))
    earlier: dict[str, Any] = {}
    for module in modules:
        _assign(module, edits, earlier)
        earlier |= {name: vars(module)[name] for name in _assignments(_path(module))}
        _require_rules(module)
    if help_word is not None:
        _print_help(help_word, modules)
        raise SystemExit(0)


def edit(module: ModuleType, **values: Any) -> None:
    """Set constants of `module` in a notebook or a script of your own, as if its lines were edited.

        overrides.edit(config, LOCAL_ROOT="/data/mine", NUM_EPOCHS=3)    # DATASET_FOLDER moves, too
        training.main([])    # trains with them

    What was set before stays. Raises InputError as `apply` does, and then changes nothing.
    """
    before, lines = dict(vars(module)), _assignments(_path(module))
    for name in values:
        if name not in lines:
            raise InputError(_explain_unknown(name, [*lines], "edit", f"--{name}"))
    formulas = _list_formulas(module, resolved(module))
    edits = {name: Edit(_to_expression(before[name]), "") for name in lines if name not in formulas}
    edits |= {name: Edit(_to_expression(value), "") for name, value in values.items()}
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
    formulas, lines, section = _list_formulas(module, values), [], None
    for constant in list_constants(module):
        if constant.section != section:
            section = constant.section
            lines += ["", f"# ---- {section} ----"]
        expression = formulas.get(constant.name, _to_expression(constant.value))
        lines.append(f"{constant.name} = {ast.unparse(expression)}")
    return "\n".join(
        [f'"""The constants of one run, as {_path(module).name} and the command line had them."""', *lines, ""]
    )


def list_constants(module: ModuleType) -> list[Constant]:
    """The constants of `module` with their section, comment and present value, in order."""
    return [
        Constant(name, *words, _annotation(module, name), vars(module)[name])
        for name, words in _read_comments(_path(module)).items()
    ]


def resolved(module: ModuleType) -> dict[str, Any]:
    """All constants as plain Python values (paths as text, tuples as lists), for checkpoints and logs."""
    plain = {}
    for constant in list_constants(module):
        value = list(constant.value) if isinstance(constant.value, tuple) else constant.value
        plain[constant.name] = str(value) if isinstance(value, Path) else value
    return plain


# ---- values ----


def parse(text: str, annotation: Any) -> Any:
    """`text` from the command line as a value of type `annotation`; what does not fit stays text.

    Raises InputError for a quote that is not closed.
    """
    members = _members(annotation)
    if text == "None" and types.NoneType in members:
        return None
    is_list = "," in text or _is_bracketed(text.strip())
    for member in members:
        if typing.get_origin(member) is tuple and (member is members[0] or is_list):
            kind = typing.get_args(member)[0]
            return tuple(parse(item, kind) for item in split_items(text))
    if members[0] is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if _is_choice(members[0]):
        return next((choice for choice in typing.get_args(members[0]) if str(choice) == text), text)
    if members[0] in (int, float):
        try:
            return members[0](text)
        except ValueError:
            return text
    return text


def split_items(text: str) -> list[str]:
    """The items of a list on the command line. In quotes an item may hold commas; () or [] may stand around all.

    >>> split_items("'a, b', driver's seat, \"c\"")
    ['a, b', "driver's seat", 'c']

    Raises InputError for a quote that is not closed.
    """
    text = text.strip()
    if _is_bracketed(text):
        text = text[1:-1]
    items, position = [], 0
    while position < len(text):
        match = ITEM.match(text, position)
        if match is None:
            found = _shorten(text[position:].strip())
            raise InputError(f"{found}: the quote does not end before a comma; put the item into other quotes")
        position = match.end()
        single, double, plain = match.groups()
        if plain is not None:
            items += [plain.strip()] if plain.strip() else []
        else:
            items.append(single if single is not None else double)
    return items


def _is_bracketed(text: str) -> bool:
    """Whether the first and the last letter are a pair of brackets: in `(a, b)`, not in `(a), (b)`."""
    if text[:1] + text[-1:] not in ("()", "[]"):
        return False
    depth = 0
    for letter in QUOTED_ITEM.sub(r"\1", text[1:-1]):
        depth += (letter in "([") - (letter in ")]")
        if depth < 0:
            return False
    return True


def check(name: str, value: Any, annotation: Any) -> Any:
    """`value` as its annotation wants it (1 as 1.0, text as a path).

    Raises InputError for a value of another type and for one beyond the limit of an `Annotated` type.
    """
    value = _check_type(name, value, annotation)
    for limit in _limits(annotation):
        if not limit.allows(value):
            raise InputError(f"{name} is {_show(name, str(value))}: {limit.text}")
        value = limit.simplify(value)
    return value


def _check_type(name: str, value: Any, annotation: Any) -> Any:
    members = _members(annotation)
    if isinstance(value, str | Path) and "\0" in str(value):
        raise InputError(f"{name} is {_show(name, repr(value))}: a null character cannot stand in a name or path")
    if types.NoneType in members and isinstance(value, str) and value.lower() == "none":
        or_file = f", or ./{value} for a file that is called so" if {str, Path} & {*members} else ""
        raise InputError(f"{name} is the text {value!r}: write None{or_file}")
    for member in members:
        if typing.get_origin(member) is tuple and isinstance(value, tuple | list):
            kinds = typing.get_args(member)
            kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
            if len(kinds) == len(value):
                return tuple(check(name, item, kind) for item, kind in zip(value, kinds, strict=True))
        elif _is_choice(member):
            if value in typing.get_args(member):
                return value
        elif member is Path and isinstance(value, str | Path):
            return Path(value).expanduser()
        elif member is float and isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise InputError(f"{name} is {value}: it must be a finite number")
            return float(value)
        elif member in (int, bool, str, types.NoneType) and type(value) is member:  # True is no int here
            return value
    if any(_is_choice(member) for member in members):
        choices = [str(choice) for member in members if _is_choice(member) for choice in typing.get_args(member)]
        raise InputError(
            f"{name} is {_shorten(repr(value))}{suggest(str(value), choices)}; it takes {', '.join(choices)}"
        )
    wanted = " or ".join(map(_name_type, members))
    raise InputError(f"{name} is {_show(name, repr(value))}, which is not of type {wanted}")


def _name_type(member: Any) -> str:
    """A type as an error names it: `int`, `None`, `tuple`, or `(int, int)` for a tuple of a fixed length."""
    if member is types.NoneType:
        return "None"
    kinds = typing.get_args(member)
    if typing.get_origin(member) is tuple and Ellipsis not in kinds:
        return f"({', '.join(map(_name_type, kinds))})"
    return getattr(member, "__name__", str(member))


def _show(name: str, text: str) -> str:
    """The value of the constant `name`, as an error or --help shows it; secrets are never printed."""
    return "(set, not shown)" if name.endswith("_TOKEN") else _shorten(text)


def _shorten(text: str) -> str:
    """`text` as an error shows it: at most 100 characters."""
    return text if len(text) <= 100 else f"{text[:97]}..."


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types that `annotation` allows, without its limits."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    return typing.get_args(annotation) if typing.get_origin(annotation) in UNIONS else (annotation,)


def _limits(annotation: Any) -> tuple[limits.Limit, ...]:
    return typing.get_args(annotation)[1:] if typing.get_origin(annotation) is typing.Annotated else ()


def _is_choice(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Literal


# ---- edits ----


def _assign(module: ModuleType, edits: dict[str, Edit], earlier: dict[str, Any]) -> None:
    """Run the module's assignments again with the edited values in place, each after those it is computed from.

    A recipe's expressions may also name constants of the `earlier` modules. One that names its own constant means the
    value that the module gives it.
    """
    namespace, lines = vars(module), _assignments(_path(module))
    waiting, begun = dict(lines), []

    def assign(name: str) -> None:
        begun.append(name)
        edit = edits.get(name)
        line = lines[name].value or ast.Constant(None)
        if edit is None or (isinstance(edit.value, ast.expr) and name in _list_names(edit.value)):
            set_constant(name, line, f"{_path(module).name}:{lines[name].lineno}")
        if edit is not None:
            set_constant(name, edit.value, edit.where)
        del waiting[name]
        begun.pop()

    def set_constant(name: str, new: str | ast.expr, where: str) -> None:
        prefix = f"{where}: " if where else ""
        if isinstance(new, ast.expr):
            for needed in _list_names(new):
                if needed in begun and needed != name:
                    circle = [*begun[begun.index(needed) :], needed]
                    text = ", ".join(f"{first} from {second}" for first, second in itertools.pairwise(circle))
                    raise InputError(f"{prefix}{name}: {text}: a circle; give one of them a value")
                if needed in waiting and needed != name:
                    assign(needed)
        try:
            annotation = _annotation(module, name)
            if isinstance(new, str):
                value = parse(new, annotation)
            elif new is lines[name].value:  # of a file of this project
                value = eval(_compile(new), namespace)
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

    for name in list(waiting):
        if name in waiting:
            assign(name)


def _require_rules(module: ModuleType) -> None:
    """Raise InputError for constants of `module` that contradict each other."""
    for rule in limits.RULES.get(_path(module).name, []):
        problem = rule(module)
        if problem:
            raise InputError(problem)


def _list_names(expression: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(expression) if isinstance(node, ast.Name)]


def _read_bytes(path: Path, what: str, most: int) -> bytes:
    """The content of a file of at most so many bytes; `what` it is.

    Raises InputError for one that cannot be read, and for a pipe, which may never end.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"cannot read {what} {path}: it is no file")
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InputError(f"cannot read {what} {path}: {error.strerror}") from error
    if len(data) > most:
        raise InputError(f"cannot read {what} {path}: it has more than {most:,} bytes")
    return data


def _read_recipe(path: Path) -> dict[str, Edit]:
    """The assignments of a recipe file. Nothing in it is run."""
    data = _read_bytes(path, "recipe", MAX_RECIPE_BYTES)
    try:
        tree = ast.parse(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read recipe {path}: it is not UTF-8 text ({error})") from error
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno or 1}: {error.msg}") from error
    except (RecursionError, MemoryError, ValueError) as error:  # the last: null bytes, before Python 3.11.4
        raise InputError(f"cannot read recipe {path}: it holds null bytes, or a value is nested too deeply") from error
    edits = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            edits[node.targets[0].id] = Edit(node.value, f"{path}:{node.lineno}")
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            edits[node.target.id] = Edit(node.value, f"{path}:{node.lineno}")
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):  # a docstring may stand
            raise InputError(f"{path}:{node.lineno}: a recipe holds lines NAME = value only")
    return edits


# ---- the constants of a run ----

RUN_ENDINGS = (".json", ".pt", ".pth")
MAX_RUN_BYTES = 1 << 24  # what a run of 10,000 classes writes has some 2 MB


def _read_run(path: Path) -> dict[str, Edit]:
    """The constants of config.py in the JSON file of a checkpoint, or in train_result.json.

    MODEL_PATH becomes the checkpoint, where it is there. What config.py computes from other constants, and the run had
    so, goes on to follow them. Warns of constants that only one of the run and config.py has.
    """
    import config

    file = path.with_suffix(".json")
    data = _read_bytes(file, "the constants of a run,", MAX_RUN_BYTES)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read {file}: it is no JSON ({error})") from error
    values = content.get("config") if isinstance(content, dict) else None
    if not isinstance(values, dict) or not values:
        raise InputError(f"{file} holds no constants of a run: give the .json that lies beside a checkpoint")
    lines = _assignments(_path(config))
    for only, advice in (
        (values.keys() - lines.keys(), "config.py has no such constant, so it is left out"),
        (lines.keys() - values.keys(), "the run is older than it, so the value in config.py holds"),
    ):
        if only:
            utils.warn(f"{file}: {', '.join(sorted(map(_shorten, only))[:10])}: {advice}")
    values = {name: values[name] for name in lines if name in values}
    formulas = _list_formulas(config, values)
    edits = {name: Edit(formulas.get(name, _to_expression(value)), str(file)) for name, value in values.items()}
    checkpoint = next((model for model in map(path.with_suffix, RUN_ENDINGS[1:]) if model.is_file()), None)
    if checkpoint:  # what testing.py and the others shall load; not that run's BEST_MODEL_PATH of today
        edits["MODEL_PATH"] = Edit(_to_expression(checkpoint), str(file))
    return edits


def _list_formulas(module: ModuleType, values: Mapping[str, Any]) -> dict[str, ast.expr]:
    """{name: expression} of the constants that are among `values` what `module` computes from others among them."""
    plain = {name: _to_tuple(value) for name, value in values.items()}
    names, formulas = {*_assignments(_path(module))}, {}
    for name, line in _assignments(_path(module)).items():
        expression = line.value or ast.Constant(None)
        needed = names & {*_list_names(expression)}
        if not needed or not needed | {name} <= plain.keys():
            continue
        try:
            value = check(name, evaluate(expression, plain), _annotation(module, name))
        except InputError:  # the values of a file may be of any kind
            continue
        if (str(value) if isinstance(value, Path) else value) == plain[name]:
            formulas[name] = expression
    return formulas


def _to_tuple(value: Any) -> Any:
    return tuple(map(_to_tuple, value)) if isinstance(value, list | tuple) else value


def _to_expression(value: Any) -> ast.expr:
    """`value`, a constant's, as an expression of a recipe."""
    if isinstance(value, list | tuple):
        return ast.Tuple([_to_expression(item) for item in value], ast.Load())
    return ast.Constant(str(value) if isinstance(value, Path) else value)


# ---- a recipe's values ----

MAX_RECIPE_BYTES = 1_000_000  # room for the names of 20,000 classes
MAX_ITEMS = 5_000_000  # characters and items that the steps of computing one value may make, all together
MAX_LENGTH = 100_000  # items of one tuple
MAX_WHOLE = 2**64
ALLOWED = "numbers, texts, True, False, None, tuples, arithmetic, names of constants, Path(...) and len(...)"
OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
REFUSED = {  # what else Python has, in words
    ast.Attribute: "an attribute", ast.Subscript: "an item in brackets", ast.Starred: "a star",
    ast.Lambda: "a lambda", ast.NamedExpr: ":=", ast.ListComp: "a comprehension", ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension", ast.GeneratorExp: "a comprehension", ast.Dict: "a dict", ast.Set: "a set",
    ast.FormattedValue: "a text with a format", ast.Compare: "a chain of comparisons",
    ast.Constant: "bytes, an imaginary number or ...",
}  # fmt: skip


def evaluate(expression: ast.expr, constants: Mapping[str, Any]) -> Any:
    """The value of a recipe's expression: what ALLOWED lists, found node by node, and nothing is run.

    Lists become tuples, and f"{NAME}/x" is a text. Raises InputError for everything else, and for a value that would
    take too much memory or time.

    >>> evaluate(ast.parse("(NUM_EPOCHS // 2, 8)", mode="eval").body, {"NUM_EPOCHS": 10})
    (5, 8)
    """
    room = MAX_ITEMS
    too_large = f"a value of more than {MAX_ITEMS:,} characters and items"

    def take(num_items: int) -> None:
        nonlocal room
        room -= num_items
        if room < 0:
            raise InputError(too_large)

    def bound(value: Any) -> Any:
        if isinstance(value, int) and abs(value) > MAX_WHOLE:
            raise InputError("a whole number beyond 2 ** 64")
        if isinstance(value, tuple) and len(value) > MAX_LENGTH:
            raise InputError(f"a tuple of more than {MAX_LENGTH:,} items")
        take(measure(value))
        return value

    def measure(value: Any) -> int:
        """Characters and items of a value; a tuple may hold the same long text many times."""
        if isinstance(value, tuple):
            return len(value) + sum(map(measure, value))
        return len(str(value)) if isinstance(value, str | Path) else 1

    def walk(node: ast.expr) -> Any:
        take(1)
        match node:
            case ast.Constant(value=value) if type(value) in (bool, int, float, str, types.NoneType):
                return bound(value)
            case ast.Name(id=name) if name in constants:
                return bound(constants[name])
            case ast.Name(id=name):
                raise InputError(f"there is no constant {name!r}{suggest(name, constants)}")
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return bound(tuple(walk(item) for item in items))
            case ast.JoinedStr(values=parts):
                return bound("".join(write(part) for part in parts))
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not() as sign, operand=operand):
                return bound(OPERATORS[type(sign)](walk(operand)))
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
                return compute(sign, walk(left), walk(right))
            case ast.Compare(left=left, ops=[sign], comparators=[right]) if type(sign) in OPERATORS:
                return OPERATORS[type(sign)](walk(left), walk(right))
            case ast.BoolOp(op=sign, values=parts):
                value = None
                for part in parts:
                    value = walk(part)
                    if bool(value) is isinstance(sign, ast.Or):
                        break
                return value
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return walk(body if walk(test) else orelse)
            case ast.Call(func=ast.Name(id="Path"), args=parts, keywords=[]):
                return Path(*map(walk, parts))
            case ast.Call(func=ast.Name(id="len"), args=[item], keywords=[]):
                return len(walk(item))
            case ast.Call(func=ast.Attribute(value=ast.Name(id="Path"), attr="home"), args=[], keywords=[]):
                return Path.home()
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                refused = f"a call of {name}"
            case _:
                refused = REFUSED.get(type(node), type(node).__name__)
        raise InputError(f"a recipe's value may be {ALLOWED}, not {refused}")

    def write(part: ast.expr) -> str:
        """The text of a part of an f-string."""
        if not isinstance(part, ast.FormattedValue) or part.conversion != -1 or part.format_spec is not None:
            return walk(part)
        value = walk(part.value)
        if isinstance(value, tuple):
            raise InputError('a tuple within an f"..."')
        return str(value)

    def compute(sign: ast.operator, left: Any, right: Any) -> Any:
        if isinstance(left, int | float) and isinstance(right, int | float):
            is_whole = isinstance(left, int) and isinstance(right, int)
            if isinstance(sign, ast.Pow) and is_whole and abs(left) > 1 and right > MAX_WHOLE.bit_length():
                raise InputError("a whole number beyond 2 ** 64")
        elif isinstance(sign, ast.Mult):
            sizes = [measure(a) * b for a, b in ((left, right), (right, left)) if is_repeated(a, b)]
            if sizes and sizes[0] > room:
                raise InputError(too_large)
        elif not isinstance(sign, ast.Add | ast.Div):  # a text on the left of % is a form, which may be of any width
            raise InputError("arithmetic on what is no number")
        value = OPERATORS[type(sign)](left, right)
        if isinstance(value, complex):
            raise InputError("a root of a negative number")
        return bound(value)

    def is_repeated(items: Any, times: Any) -> bool:
        return isinstance(items, str | tuple) and isinstance(times, int)

    return walk(expression)


def _explain_unknown(name: str, names: list[str], where: str, spelling: str) -> str:
    """One line about a `name` that is not among this script's `names`: whose it is, or what it may mean."""
    files = _list_all_names()
    if name in files:
        return f"{where}: {name} is a constant of {files[name]}, which this script does not read"
    meaning = WORDS.get(name.lower().replace("-", "_"))
    if meaning is None:
        nearest = suggest(name, names if spelling.startswith("--") else [*names, *files])
        return f"{where}: there is no constant {name!r}{nearest}; --help all lists them"
    meant = meaning.split()[0]
    if meant in names:
        hint = f" (--help {meant})"
    elif meant in files:
        script = "training.py" if files[meant] == "config.py" else files[meant]
        hint = f" (python {script} --help {meant})"
    else:
        hint = ""
    return f"{where}: {spelling} is {meaning} here{hint}"


def _explain_stray(argument: str, edits: Mapping[str, Edit], names: list[str]) -> str:
    """One line about an `argument` that is no option, recipe or run: a file of a pattern, a folder, or a word."""
    text = f"{argument!r} is neither a recipe (.py), nor a run ({', '.join(RUN_ENDINGS)}), nor --NAME value"
    path = Path(argument).expanduser()
    if path.exists():
        for name, edit in edits.items():
            value = edit.value if isinstance(edit.value, str) and not edit.where else None
            if value and Path(value).parent == Path(argument).parent and Path(value).exists():
                pattern = Path(value).with_name(f"*{path.suffix}" if path.suffix == Path(value).suffix else "*")
                return f"{text}; put a pattern in quotes, or the shell makes it many words: --{name} '{pattern}'"
        if path.is_dir() and "DATASET_FOLDER" in names:
            text += f"; to train on it, or measure by it: --DATASET_FOLDER {argument}"
        if "TEST_IMAGES_DIR" in names:
            text += f"; to predict it (testing.py): --TEST_IMAGES_DIR {argument}"
        return text
    return f"{text}; --help all lists the names"


def _list_all_names() -> dict[str, str]:
    """The constants of config.py and of all scripts, each with the file in which it stands."""
    files = [ROOT / file for file in reversed(("config.py", *SCRIPTS))]
    return {name: path.name for path in files if path.is_file() for name in _assignments(path)}


# ---- help ----


def _print_help(word: str, modules: tuple[ModuleType, ...]) -> None:
    """Print what `--help` and `word` ask for: "" for a survey, "all", or a word to look for."""
    if word and word != "all":
        _print_constants(_find(word, modules))
        return
    utils.say(*(sys.modules["__main__"].__doc__ or "").strip().split("\n"))
    for module in reversed(modules):  # the script's constants first, then those of config.py
        constants = list_constants(module)
        if word == "all" or module.__name__ != "config":
            _print_constants(constants)
        else:
            _print_survey(constants, _list_names_read(modules))


def _find(word: str, modules: tuple[ModuleType, ...]) -> list[Constant]:
    """The constants with `word` in their name, comment or section. Raises InputError where there are none."""
    constants = [constant for module in modules for constant in list_constants(module)]
    letters = word.lower().replace("-", "").replace("_", "")  # batch-size and batchsize find TRAIN_BATCH_SIZE
    found = [
        constant
        for constant in constants
        if letters in constant.name.lower().replace("_", "")
        or word.lower() in constant.comment.lower()
        or word.lower() in constant.section.lower()
    ]
    if not found:
        raise InputError(_explain_unknown(word, [c.name for c in constants], f"--help {word}", word))
    return found


def _print_constants(constants: list[Constant]) -> None:
    """Print constants by section: name, present value, comment, and what is allowed."""
    section = None
    for constant in constants:
        if constant.section != section:
            section = constant.section
            utils.say("", section)
        value = str(constant.value) if isinstance(constant.value, Path) else repr(constant.value)
        value = value if len(value) <= 60 else value[:57] + "..."
        utils.say(f"  --{constant.name} {value if constant.value is None else _show(constant.name, value)}")
        for line in (constant.comment, _describe_allowed(constant.annotation)):
            if line:
                utils.say(f"        {line}")


def _describe_allowed(annotation: Any) -> str:
    """The choices or the limit of a constant; empty where any value of its type will do."""
    for member in _members(annotation):
        for choice in (member, *typing.get_args(member)):  # tuple[Literal[...], ...]: several of them
            if _is_choice(choice):
                return " | ".join(map(str, typing.get_args(choice)))
    return "; ".join(limit.text for limit in _limits(annotation))


def _print_survey(constants: list[Constant], names_read: set[str] | None) -> None:
    """Print what people edit in config.py, then the rest that is read: whole sections by title, others by name."""
    sections: dict[str, list[Constant]] = {}
    for constant in constants:
        sections.setdefault(constant.section, []).append(constant)
    first = list(sections)[:FIRST_SECTIONS]
    _print_constants([c for c in constants if c.section in first and (names_read is None or c.name in names_read)])
    utils.say(
        "", "Also read from config.py (--help WORD finds a name, comment or section, --help all shows everything)"
    )
    for title in list(sections)[FIRST_SECTIONS:]:
        names = [constant.name for constant in sections[title]]
        read = names if names_read is None else [name for name in names if name in names_read]
        text = title if read == names else f"{title}: {', '.join(read)}"
        if read:
            utils.say(*textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="      "))


def _list_names_read(modules: tuple[ModuleType, ...]) -> set[str] | None:
    """The constants of config.py that a script reads; None where `modules` names no script.

    They are the names after `config.` in the script and in all modules of this project that it imports, directly or
    not, and those from which these are computed.
    """
    scripts = [_path(module) for module in modules if module.__name__ != "config"]
    if not scripts:
        return None
    waiting, seen, names = scripts, set(), set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        for node in ast.walk(_parse(path)):
            imported = []
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config":
                names.add(node.attr)
            waiting += [ROOT / f"{module.replace('.', '/')}.py" for module in imported]
    assignments = _assignments(ROOT / "config.py")
    for name in reversed(assignments):  # a constant is computed from those above it
        if name in names:
            names |= {node.id for node in ast.walk(assignments[name]) if isinstance(node, ast.Name)}
    return names


# ---- sources ----


def _path(module: ModuleType) -> Path:
    assert module.__file__ is not None
    return Path(module.__file__)


@functools.cache  # a run goes by what it began with, though the file be edited meanwhile
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@functools.cache
def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(_read(path))
    except SyntaxError as error:
        raise InputError(f"{path.name}:{error.lineno}: {error.msg}") from error


@functools.cache
def _assignments(path: Path) -> dict[str, ast.AnnAssign]:
    """The annotated assignments at a file's top level whose names are in capitals."""
    found = {}
    for node in _parse(path).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.isupper():
            found[node.target.id] = node
        elif isinstance(node, ast.Assign) and path == ROOT / "config.py":  # there each line is a constant
            line = ast.unparse(node).partition("\n")[0]
            name, _, value = line.partition(" = ")
            raise InputError(f"{path.name}:{node.lineno}: {name} has no type: write {name}: type = {value[:40]}")
    return found


@functools.cache
def _read_comments(path: Path) -> dict[str, tuple[str, str]]:
    """The constants of a file, each with the title of its section and its comment."""
    comments, sections = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(_read(path)).readline):
        if token.type == tokenize.COMMENT:
            title = SECTION.match(token.line.strip())
            if title:
                sections[token.start[0]] = title[1]
            else:
                text = token.string.lstrip("# ")
                comments[token.start[0]] = re.sub(r"^fmt: skip\s*#?\s*", "", text)
    found = {}
    for name, node in _assignments(path).items():
        section = next((sections[line] for line in sorted(sections, reverse=True) if line < node.lineno), "")
        last_line = node.end_lineno or node.lineno
        comment = next((comments[line] for line in range(node.lineno, last_line + 1) if comments.get(line)), "")
        found[name] = (section, comment)
    return found


def _annotation(module: ModuleType, name: str) -> Any:
    return eval(_compile(_assignments(_path(module))[name].annotation), vars(module))


def _compile(node: ast.expr) -> types.CodeType:
    return compile(ast.Expression(node), "<constant>", "eval")
