"""Files of constants: recipes, spaces of search.py, and what a run left. They are read, and nothing in them is run.

    edits = read_recipe(Path("recipes/demo.py"))        # {name: the expression on its line, and where it stands}
    evaluate(edits["NUM_EPOCHS"].value, {})

They may come from anybody: `evaluate` says what a value may be.
"""

from __future__ import annotations

import ast
import json
import operator
import types
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import utils
from constants.source import find_file, read_annotation, read_assignments
from constants.values import check, shorten
from utils import InputError, suggest

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
RUN_ENDINGS = (".json", ".pt", ".pth")
MAX_RUN_BYTES = 1 << 24  # what a run of 10,000 classes writes has some 2 MB


class Edit(NamedTuple):
    """A constant's new value, as text from the command line or an expression from a recipe, and where that stands."""

    value: str | ast.expr
    where: str


def read_recipe(path: Path) -> dict[str, Edit]:
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


def list_names(expression: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(expression) if isinstance(node, ast.Name)]


# ---- the constants of a run ----


def read_run(path: Path) -> dict[str, Edit]:
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
    lines = read_assignments(find_file(config))
    for only, advice in (
        (values.keys() - lines.keys(), "config.py has no such constant, so it is left out"),
        (lines.keys() - values.keys(), "the run is older than it, so the value in config.py holds"),
    ):
        if only:
            utils.warn(f"{file}: {', '.join(sorted(map(shorten, only))[:10])}: {advice}")
    values = {name: values[name] for name in lines if name in values}
    formulas = list_formulas(config, values)
    edits = {name: Edit(formulas.get(name, to_expression(value)), str(file)) for name, value in values.items()}
    checkpoint = next((model for model in map(path.with_suffix, RUN_ENDINGS[1:]) if model.is_file()), None)
    if checkpoint:  # what testing.py and the others shall load; not that run's BEST_MODEL_PATH of today
        edits["MODEL_PATH"] = Edit(to_expression(checkpoint), str(file))
    return edits


def list_formulas(module: ModuleType, values: Mapping[str, Any]) -> dict[str, ast.expr]:
    """{name: expression} of the constants that are among `values` what `module` computes from others among them."""
    plain = {name: _to_tuple(value) for name, value in values.items()}
    names, formulas = {*read_assignments(find_file(module))}, {}
    for name, line in read_assignments(find_file(module)).items():
        expression = line.value or ast.Constant(None)
        needed = names & {*list_names(expression)}
        if not needed or not needed | {name} <= plain.keys():
            continue
        try:
            value = check(name, evaluate(expression, plain), read_annotation(module, name))
        except InputError:  # the values of a file may be of any kind
            continue
        if (str(value) if isinstance(value, Path) else value) == plain[name]:
            formulas[name] = expression
    return formulas


def list_computed(module: ModuleType) -> set[str]:
    """The constants that `module` computes from others of its own."""
    lines = read_assignments(find_file(module))
    return {name for name, line in lines.items() if line.value and {*list_names(line.value)} & lines.keys()}


def _to_tuple(value: Any) -> Any:
    return tuple(map(_to_tuple, value)) if isinstance(value, list | tuple) else value


def write_line(name: str, value: Any) -> str:
    """A line of a recipe, with its end."""
    return f"{name} = {ast.unparse(to_expression(value))}\n"


def to_expression(value: Any) -> ast.expr:
    """`value`, a constant's, as an expression of a recipe."""
    if isinstance(value, list | tuple):
        return ast.Tuple([to_expression(item) for item in value], ast.Load())
    return ast.Constant(str(value) if isinstance(value, Path) else value)


# ---- a recipe's values ----


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
