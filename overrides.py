"""The command line and recipe files, turned into edits of the constants atop `config.py` and of a script.

    python training.py recipes/coco18_efficientnet_lite0.py --MODEL_NAME resnet50 --LR_MILESTONES 3,5

has the effect of editing those lines: constants computed from others follow, and later wins. A recipe is a Python
file of such lines. Every value is checked against its annotation, and all constants against the rules of limits.py,
before anything else happens. This file imports nothing that takes time to load.
"""

from __future__ import annotations

import ast
import functools
import io
import math
import re
import sys
import textwrap
import tokenize
import types
import typing
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import limits
import utils
from other_systems import WORDS
from utils import InputError, suggest

UNIONS = (types.UnionType, typing.Union)  # int | None, and Literal[...] | None
SECTION = re.compile(r"^# -+ (.+?) -+$")
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


def apply(arguments: list[str], *modules: ModuleType) -> None:
    """Edit the constants of `modules` by `arguments`: recipe files, `--NAME value` and `--NAME=value`.

    A script gives `config` and, where it has constants, itself. `--help`, `--help WORD`, `--help all` and `--version`
    print and exit. Raises InputError, in one line, for an unknown name (with the nearest right one), a constant of
    another script (in a recipe it is ignored), a value of the wrong type or beyond its limit, and constants that
    contradict each other.
    """
    edits: dict[str, Edit] = {}
    names = [name for module in modules for name in _assignments(_path(module))]
    arguments = list(arguments)
    help_word = None
    while arguments:
        argument = arguments.pop(0)
        if argument in ("-h", "--help"):
            has_word = arguments and not arguments[0].startswith("-") and not arguments[0].endswith(".py")
            help_word = arguments.pop(0) if has_word else ""
        elif argument == "--version":
            print(utils.VERSION)
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
            for name, edit in _read_recipe(Path(argument)).items():
                if name in names:
                    edits[name] = edit
                elif name not in _list_all_names():
                    raise InputError(_explain_unknown(name, names, edit.where, name))
        else:
            raise InputError(f"{argument!r} is neither a recipe (.py) nor --NAME value; --help all lists the names")
    earlier: dict[str, Any] = {}
    for module in modules:
        _assign(module, edits, earlier)
        earlier |= vars(module)
        for rule in limits.RULES.get(_path(module).name, []):
            problem = rule(module)
            if problem:
                raise InputError(problem)
    if help_word is not None:
        _print_help(help_word, modules)
        raise SystemExit(0)


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
    """`value` as its annotation wants it (1 as 1.0, text as a path).

    Raises InputError for a value of another type and for one beyond the limit of an `Annotated` type.
    """
    value = _check_type(name, value, annotation)
    for limit in _limits(annotation):
        if not limit.allows(value):
            raise InputError(f"{name} is {_show(name, str(value))}: {limit.text}")
    return value


def _check_type(name: str, value: Any, annotation: Any) -> Any:
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
    raise InputError(f"{name} is {_show(name, repr(value))}, which is not of type {wanted}")


def _show(name: str, text: str) -> str:
    """`text`, the value of the constant `name`, unless it is a secret: those are never printed."""
    return "(set, not shown)" if name.endswith("_TOKEN") else text


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

    A recipe's expressions may also name constants of the `earlier` modules.
    """
    namespace = vars(module)
    waiting = dict(_assignments(_path(module)))

    def assign(name: str) -> None:
        new, where = edits.get(name, Edit(waiting[name].value or ast.Constant(None), ""))
        del waiting[name]
        annotation = _annotation(module, name)
        if isinstance(new, ast.expr):
            for node in ast.walk(new):
                if isinstance(node, ast.Name) and node.id in waiting:
                    assign(node.id)
        try:
            value = parse(new, annotation) if isinstance(new, str) else eval(_compile(new), earlier | namespace)
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
        tree = ast.parse(path.read_text(encoding="utf-8-sig"), str(path))
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
    print((sys.modules["__main__"].__doc__ or "").strip())
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
            print(f"\n{section}")
        value = str(constant.value) if isinstance(constant.value, Path) else repr(constant.value)
        value = value if len(value) <= 60 else value[:57] + "..."
        print(f"  --{constant.name} {value if constant.value is None else _show(constant.name, value)}")
        for line in (constant.comment, _describe_allowed(constant.annotation)):
            if line:
                print(f"        {line}")


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
    print("\nAlso read from config.py (--help WORD finds a name, comment or section, --help all shows everything)")
    for title in list(sections)[FIRST_SECTIONS:]:
        names = [constant.name for constant in sections[title]]
        read = names if names_read is None else [name for name in names if name in names_read]
        text = title if read == names else f"{title}: {', '.join(read)}"
        if read:
            print(textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="      "))


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
        for node in ast.walk(ast.parse(_read(path))):
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
def _assignments(path: Path) -> dict[str, ast.AnnAssign]:
    """The annotated assignments at a file's top level whose names are in capitals."""
    return {
        node.target.id: node
        for node in ast.parse(_read(path)).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.isupper()
    }


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
