"""The command line and recipe files, turned into edits of the constants atop `config.py` (or of a script).

    python training.py recipes/coco18_efficientnet_lite0.py --MODEL_NAME resnet50 --LR_MILESTONES 3,5

has the effect of editing those lines: constants computed from others follow, and later wins. A recipe is a
Python file of such lines. Every value is checked against its annotation before anything else happens.
"""

from __future__ import annotations

import ast
import functools
import io
import math
import re
import sys
import tokenize
import types
import typing
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import contradictions
from utils import InputError, suggest

UNIONS = (types.UnionType, typing.Union)  # int | None, and Literal[...] | None
SECTION = re.compile(r"^# -+ (.+?) -+$")


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


def apply(arguments: list[str], *modules: ModuleType) -> None:
    """Edit the constants of `modules` by `arguments`: recipe files, `--NAME value` and `--NAME=value`.

    `--help` prints all constants and exits. Raises InputError, in one line, for an unknown name (with the
    nearest right one), a value of the wrong type, and constants that contradict each other.
    """
    edits: dict[str, Edit] = {}
    names = [name for module in modules for name in _assignments(module)]
    arguments = list(arguments)
    show_help = False
    while arguments:
        argument = arguments.pop(0)
        if argument in ("-h", "--help"):
            show_help = True
        elif argument.startswith("--"):
            name, has_value, text = argument[2:].partition("=")
            _require_known(name, names, "the command line")
            if not has_value and (not arguments or arguments[0].startswith("--")):
                raise InputError(f"--{name} needs a value: --{name} VALUE")
            edits[name] = Edit(text if has_value else arguments.pop(0), "")
        elif argument.endswith(".py"):
            for name, edit in _read_recipe(Path(argument)).items():
                _require_known(name, names, edit.where)
                edits[name] = edit
        else:
            raise InputError(f"{argument!r} is neither a recipe (.py) nor --NAME value; --help lists the names")
    for module in modules:
        _assign(module, edits)
        contradictions.refuse(vars(module))
    if show_help:
        print_help(*modules)
        raise SystemExit(0)


def list_constants(module: ModuleType) -> list[Constant]:
    """The constants of `module` with their section, comment and present value, in order."""
    source = _source(module)
    comments, sections = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            title = SECTION.match(token.line.strip())
            if title:
                sections[token.start[0]] = title[1]
            else:
                text = token.string.lstrip("# ")
                comments[token.start[0]] = re.sub(r"^fmt: skip\s*#?\s*", "", text)
    constants = []
    for name, node in _assignments(module).items():
        section = next((sections[line] for line in sorted(sections, reverse=True) if line < node.lineno), "")
        comment = next((comments[line] for line in range(node.lineno, _end(node) + 1) if comments.get(line)), "")
        constants.append(Constant(name, section, comment, _annotation(module, name), vars(module)[name]))
    return constants


def resolved(module: ModuleType) -> dict[str, Any]:
    """All constants as plain Python values (paths as text, tuples as lists), for checkpoints and logs."""
    plain = {}
    for constant in list_constants(module):
        value = list(constant.value) if isinstance(constant.value, tuple) else constant.value
        plain[constant.name] = str(value) if isinstance(value, Path) else value
    return plain


def print_help(*modules: ModuleType) -> None:
    """Print the script's own text, then every constant by section: name, present value, comment."""
    print((sys.modules["__main__"].__doc__ or "").strip())
    for module in modules:
        section = None
        for constant in list_constants(module):
            if constant.section != section:
                section = constant.section
                print(f"\n{section}")
            value = str(constant.value) if isinstance(constant.value, Path) else repr(constant.value)
            value = value if len(value) <= 60 else value[:57] + "..."
            print(f"  --{constant.name} {value}")
            choices = typing.get_args(constant.annotation) if _is_choice(constant.annotation) else ()
            for line in filter(None, (constant.comment, " | ".join(map(str, choices)))):
                print(f"        {line}")


def parse(text: str, annotation: Any) -> Any:
    """`text` from the command line as a value of type `annotation`; what does not fit stays text."""
    members = _members(annotation)
    if text == "None" and types.NoneType in members:
        return None
    if typing.get_origin(members[0]) is tuple:
        items = text.strip()
        if items[:1] + items[-1:] in ("()", "[]"):
            items = items[1:-1]
        kind = typing.get_args(members[0])[0]
        return tuple(parse(item.strip().strip("'\""), kind) for item in items.split(",") if item.strip())
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


def check(name: str, value: Any, annotation: Any) -> Any:
    """`value` as its annotation wants it (1 as 1.0, text as a path); raises InputError when it does not fit."""
    members = _members(annotation)
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
        raise InputError(f"{name} is {value!r}{suggest(str(value), choices)}; it takes {', '.join(choices)}")
    wanted = " or ".join(getattr(m, "__name__", str(m)) if m is not types.NoneType else "None" for m in members)
    raise InputError(f"{name} is {value!r}, which is not of type {wanted}")


def _assign(module: ModuleType, edits: dict[str, Edit]) -> None:
    """Run the module's assignments again with the edited values in place, each after those it is computed from."""
    namespace = vars(module)
    waiting = dict(_assignments(module))

    def assign(name: str) -> None:
        new, where = edits.get(name, Edit(waiting[name].value or ast.Constant(None), ""))
        del waiting[name]
        annotation = _annotation(module, name)
        if isinstance(new, ast.expr):
            for node in ast.walk(new):
                if isinstance(node, ast.Name) and node.id in waiting:
                    assign(node.id)
        try:
            value = parse(new, annotation) if isinstance(new, str) else eval(_expression(new), namespace)
            namespace[name] = check(name, value, annotation)
        except InputError as error:
            raise InputError(f"{where}: {error}" if where else str(error)) from error
        except Exception as error:  # whatever an edited line may raise
            raise InputError(f"{where}{': ' if where else ''}{name}: {type(error).__name__}: {error}") from error

    for name in list(waiting):
        if name in waiting:
            assign(name)


def _read_recipe(path: Path) -> dict[str, Edit]:
    """The assignments of a recipe file."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InputError(f"cannot read recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read recipe {path}: it is not UTF-8 text ({error})") from error
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno}: {error.msg}") from error
    edits = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            edits[node.targets[0].id] = Edit(node.value, f"{path}:{node.lineno}")
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            edits[node.target.id] = Edit(node.value, f"{path}:{node.lineno}")
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):  # a docstring may stand
            raise InputError(f"{path}:{node.lineno}: a recipe holds lines NAME = value only")
    return edits


def _require_known(name: str, names: list[str], where: str) -> None:
    if name not in names:
        raise InputError(f"{where}: there is no constant {name!r}{suggest(name, names)}; --help lists them")


@functools.cache  # a run goes by what it began with, though the file be edited meanwhile
def _source(module: ModuleType) -> str:
    assert module.__file__ is not None
    return Path(module.__file__).read_text(encoding="utf-8")


@functools.cache
def _assignments(module: ModuleType) -> dict[str, ast.AnnAssign]:
    """The annotated assignments at a module's top level whose names are in capitals."""
    return {
        node.target.id: node
        for node in ast.parse(_source(module)).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.isupper()
    }


def _annotation(module: ModuleType, name: str) -> Any:
    return eval(_expression(_assignments(module)[name].annotation), vars(module))


def _expression(node: ast.expr | None) -> types.CodeType:
    assert node is not None
    return compile(ast.Expression(node), "<constant>", "eval")


def _end(node: ast.AnnAssign) -> int:
    return node.end_lineno or node.lineno


def _members(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) in UNIONS else (annotation,)


def _is_choice(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Literal
