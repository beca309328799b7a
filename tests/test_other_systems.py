"""constants/other_systems.py: the constants, choices, networks, scripts it names exist; the page in docs/ agrees."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from constants.other_systems import WORDS
from models import backbones

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "coming_from_another_system.md"
CONSTANT = re.compile(r"\b[A-Z]{2,}(?:_[A-Z0-9]+)*\b")
PLACEHOLDERS = {"NAME"}  # any constant
GOES_ON = {"and", "or", "to", "with", "has", "blends"}  # after a constant's name: the sentence, not a choice


def read_constants() -> dict[str, ast.AnnAssign]:
    """The annotated assignments at the top of config.py and of the scripts, by name."""
    constants = {}
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("*.py"))}
    for path, text in texts.items():
        is_read = path.name == "config.py" or "\ndef main(arguments" in text
        for node in ast.parse(text).body if is_read else ():
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.isupper():
                constants[node.target.id] = node
    return constants


CONSTANTS = read_constants()


def list_choices(name: str) -> set[str] | None:
    """The values that a constant of choices takes, "True" and "False" of a statement; None: others."""
    annotation = CONSTANTS[name].annotation
    if ast.unparse(annotation) == "bool":
        return {"True", "False"}
    literals = [
        node
        for node in ast.walk(annotation)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal")
    ]
    items = [item for node in literals for item in ast.walk(node.slice) if isinstance(item, ast.Constant)]
    return {str(item.value) for item in items} or None


def normalise(word: str) -> str:
    return word.lstrip("-").lower().replace("-", "_")


def read_page() -> dict[str, str]:
    """The words of the page's tables that start with `| word | here |`, and what they are here, without backticks."""
    words, is_table = {}, False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line == "| word | here |":
            is_table = True
        elif not line.startswith("|"):
            is_table = False
        elif is_table and not line.startswith("|---"):
            names, here = line.strip("| ").split(" | ")
            for name in re.findall(r"`([^`]+)`", names):
                assert words.setdefault(normalise(name), here.replace("`", "")) == here.replace("`", "")
    return words


def test_the_page_says_the_same() -> None:
    assert read_page() == WORDS


@pytest.mark.parametrize("word", WORDS)
def test_words_are_as_they_are_looked_up(word: str) -> None:
    assert word == normalise(word)
    assert word
    assert '"' not in WORDS[word]


@pytest.mark.parametrize("meaning", sorted(set(WORDS.values())))
def test_constants_and_choices_exist(meaning: str) -> None:
    for match in CONSTANT.finditer(meaning):
        name, rest = match[0], meaning[match.end() :]
        if name in PLACEHOLDERS:
            continue
        assert name in CONSTANTS
        choices, value = list_choices(name), re.match(r" ([^\s;:]+)", rest)
        if choices and value and value[1] not in GOES_ON and value[1] != "()":
            assert set(value[1].split(",")) <= choices


@pytest.mark.parametrize("meaning", sorted(set(WORDS.values())))
def test_scripts_and_verbs_exist(meaning: str) -> None:
    for script, verb in re.findall(r"\b([a-z_]+\.py)(?: ([a-z]+)\b)?", meaning):
        if script != "x.py":  # any recipe
            assert (ROOT / script).is_file()
        if script == "dataset_tools.py":
            assert f'"{verb}": run_{verb}' in (ROOT / script).read_text(encoding="utf-8")


def test_networks_exist() -> None:
    named = {name for meaning in WORDS.values() for name in re.findall(r"MODEL_NAME ([a-z][^\s;]*\d[^\s;]*)", meaning)}
    assert len(named) > 8
    for name in named:
        backbones.require_name(name)


def test_each_says_something_of_use() -> None:
    """A constant, a command, a recipe, or why there is nothing."""
    for word, meaning in WORDS.items():
        assert CONSTANT.search(meaning) or re.search(r"\.py\b|torchrun|--NAME|nothing: \w", meaning), word


def test_choices_are_found() -> None:
    """The reader of annotations itself: what it finds in config.py, not nothing."""
    expected: dict[str, Any] = {
        "RESUME": {"auto", "never"},
        "USE_PRIOR_BIAS": {"True", "False"},
        "NUM_EPOCHS": None,
        "CURRICULUM": None,
    }
    assert {name: list_choices(name) for name in expected} == expected
