"""What `--help` prints, and what an unknown name may mean: another script's constant, a misspelling, another system."""

from __future__ import annotations

import ast
import sys
import textwrap
import typing
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import utils
from constants.other_systems import WORDS
from constants.recipes import RUN_ENDINGS, Edit
from constants.source import ROOT, Constant, find_file, list_all_names, list_constants, parse_file, read_assignments
from constants.values import is_choice, list_limits, list_members, show
from utils import InputError, suggest

FIRST_SECTIONS = 2  # of config.py: what people edit, which --help shows in full
WIDTH = 110  # characters of a line of --help


def print_help(word: str, modules: tuple[ModuleType, ...]) -> None:
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
        raise InputError(explain_unknown(word, [c.name for c in constants], f"--help {word}", word))
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
        utils.say(f"  --{constant.name} {value if constant.value is None else show(constant.name, value)}")
        for line in (constant.comment, _describe_allowed(constant.annotation)):
            if line:
                utils.say(f"        {line}")


def _describe_allowed(annotation: Any) -> str:
    """The choices or the limit of a constant; empty where any value of its type will do."""
    for member in list_members(annotation):
        for choice in (member, *typing.get_args(member)):  # tuple[Literal[...], ...]: several of them
            if is_choice(choice):
                return " | ".join(map(str, typing.get_args(choice)))
    return "; ".join(limit.text for limit in list_limits(annotation))


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
    scripts = [find_file(module) for module in modules if module.__name__ != "config"]
    if not scripts:
        return None
    waiting, seen, names = scripts, set(), set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        for node in ast.walk(parse_file(path)):
            imported = []
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config":
                names.add(node.attr)
            waiting += [ROOT / f"{module.replace('.', '/')}.py" for module in imported]
    assignments = read_assignments(ROOT / "config.py")
    for name in reversed(assignments):  # a constant is computed from those above it
        if name in names:
            names |= {node.id for node in ast.walk(assignments[name]) if isinstance(node, ast.Name)}
    return names


# ---- what a word that is no constant may mean ----


def explain_unknown(name: str, names: list[str], where: str, spelling: str) -> str:
    """One line about a `name` that is not among this script's `names`: whose it is, or what it may mean."""
    files = list_all_names()
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


def explain_stray(argument: str, edits: Mapping[str, Edit], names: list[str]) -> str:
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
