"""The constants at the top of config.py and of the scripts, as their source has them: name, type, section, comment.

    for constant in list_constants(config): ...

Nothing here imports what takes time to load.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
import types
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from utils import InputError

SECTION = re.compile(r"^# -+ (.+?) -+$")
ROOT = Path(__file__).parents[1]  # the project
SCRIPTS = (  # in ROOT; a recipe may hold constants of all of them
    "training.py", "search.py", "testing.py", "model_performance_table.py", "threshold_tuning.py", "export_onnx.py",
    "class_activation_maps.py", "serving.py", "model_comparison.py", "dataset_tools.py",
)  # fmt: skip


class Constant(NamedTuple):
    """One annotated assignment at the top level of a module."""

    name: str
    section: str
    comment: str
    annotation: Any
    value: Any


def list_constants(module: ModuleType) -> list[Constant]:
    """The constants of `module` with their section, comment and present value, in order."""
    return [
        Constant(name, *words, read_annotation(module, name), vars(module)[name])
        for name, words in read_comments(find_file(module)).items()
    ]


def list_all_names() -> dict[str, str]:
    """The constants of config.py and of all scripts, each with the file in which it stands."""
    files = [ROOT / file for file in reversed(("config.py", *SCRIPTS))]
    return {name: path.name for path in files if path.is_file() for name in read_assignments(path)}


def find_file(module: ModuleType) -> Path:
    """The file of `module`."""
    assert module.__file__ is not None
    return Path(module.__file__)


@functools.cache  # a run goes by what it began with, though the file be edited meanwhile
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@functools.cache
def parse_file(path: Path) -> ast.Module:
    """The syntax tree of a file of this project. Raises InputError, with its line, for a mistake in it."""
    try:
        return ast.parse(_read(path))
    except SyntaxError as error:
        raise InputError(f"{path.name}:{error.lineno}: {error.msg}") from error


@functools.cache
def read_assignments(path: Path) -> dict[str, ast.AnnAssign]:
    """The annotated assignments at a file's top level whose names are in capitals."""
    found = {}
    for node in parse_file(path).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.isupper():
            found[node.target.id] = node
        elif isinstance(node, ast.Assign) and path == ROOT / "config.py":  # there each line is a constant
            line = ast.unparse(node).partition("\n")[0]
            name, _, value = line.partition(" = ")
            raise InputError(f"{path.name}:{node.lineno}: {name} has no type: write {name}: type = {value[:40]}")
    return found


@functools.cache
def read_comments(path: Path) -> dict[str, tuple[str, str]]:
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
    for name, node in read_assignments(path).items():
        section = next((sections[line] for line in sorted(sections, reverse=True) if line < node.lineno), "")
        last_line = node.end_lineno or node.lineno
        comment = next((comments[line] for line in range(node.lineno, last_line + 1) if comments.get(line)), "")
        found[name] = (section, comment)
    return found


def read_annotation(module: ModuleType, name: str) -> Any:
    """The type of the constant `name` of `module`, with its limit."""
    return eval(compile_expression(read_assignments(find_file(module))[name].annotation), vars(module))


def read_fresh(module: ModuleType) -> dict[str, Any]:
    """The values of the constants of `module` as its file gives them, whatever has become of them since."""
    fresh = types.ModuleType(module.__name__)
    exec(compile(parse_file(find_file(module)), str(find_file(module)), "exec"), vars(fresh))
    return {name: vars(fresh)[name] for name in read_assignments(find_file(module))}


def compile_expression(node: ast.expr) -> types.CodeType:
    """Code for `eval`, of an expression in a file of this project."""
    return compile(ast.Expression(node), "<constant>", "eval")
