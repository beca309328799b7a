"""The names of classes in the cells of a column: which separator joins them, or which notation of a list.

    names_in = read_column({"cat": "train.csv:2", "cat|dog": "train.csv:3"}, "auto", known=(), what="train.csv")
    names_in["cat|dog"]  # ["cat", "dog"]

A column is judged as a whole, over all splits. What can be read in two ways stops; `known` names, those of
`classes.txt`, decide. In a cell, a name in quotes may hold the separator.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

from dataset.class_names import split_names, to_nfc
from dataset.json_files import JsonLine
from dataset.label_values import VALUES
from utils import InputError, warn_once

# Separators that no name holds, then those that names hold, too. LABEL_SEPARATOR takes some of them; "&" and the like
# are never taken for one without classes.txt, but named where they seem to be
SURE = (";", "|", "\t", "\n", "；", "，", "、")
DOUBTFUL = (",", " ", "/", "+", "&")
CHOICES = (";", ",", "|", " ")
Separator = Literal["auto", ";", ",", "|", " "]

PATH = " / "  # between the options of a taxonomy, from the outermost to the chosen one, as Label Studio shows them
CLASSES_TXT = "write the names of the classes into classes.txt, one a line"
QUOTED = re.compile(r'"(?:[^"]|"")*"')
SINGLE_QUOTED = re.compile(r"'[^']+'")
NO_COMMA = re.compile(r"""['"]\s+['"]""")
BARE_LIST = re.compile(r"\[[^\[\]]*\]|\{[^{}]*\}")


# ---- a column ----


def read_column(
    cells: Mapping[str, str],
    separator: Separator,
    *,
    known: Sequence[str],
    what: str,
    one_a_row: bool = False,
) -> dict[str, list[str]]:
    """{cell: the names in it} for all cells of a column, given with where each stands first.

    `known` are the names in classes.txt, if there are any; cells may also hold the numbers of its lines, from 0 on.
    `one_a_row`: an image stands in several rows, as where each row has one label. `what` is the column, for messages.
    Warns of a separator that is not this project's `;`. Raises InputError where two readings are possible.
    """
    names_in = {cell: parse_cell(cell, where) for cell, where in cells.items()}
    listed = {name for names in names_in.values() for name in names or ()}
    texts = {cell.strip(): where for cell, where in cells.items() if names_in[cell] is None and cell.strip()}
    judge = Judge(texts, listed, frozenset(map(to_nfc, known)), what, one_a_row)
    chosen = judge.choose_separator() if separator == "auto" else judge.require_separator(separator)
    names_of = judge.split(chosen).names_of
    found = {cell: names_of.get(cell.strip(), []) if names is None else names for cell, names in names_in.items()}
    require_no_vectors((cells[cell], names) for cell, names in found.items())
    if judge.are_numbers(found.values()):
        return {cell: [known[int(name)] for name in names] for cell, names in found.items()}
    return found


def require_no_vectors(lists: Iterable[tuple[str | JsonLine, Sequence[str]]]) -> None:
    """Raise InputError where `lists`, (where it stands, its labels), hold only 1, 0 and -1, and one of them twice.

    No image has a label twice, but a vector with a number for each class holds most of them several times.
    """
    repeated: tuple[str | JsonLine, Sequence[str]] | None = None
    for where, names in lists:
        if not all(name.lower() in VALUES for name in names):
            return
        if repeated is None and len({*names}) < len(names):
            repeated = where, names
    if repeated:
        shown = " ".join(repeated[1])[:80]
        raise InputError(
            f"{repeated[0]}: {shown!r} repeats a number: a vector of 1 and 0 for the classes is no list of labels: "
            "write a column for each class, or names"
        )


class Joined(NamedTuple):
    """What one separator would make of the texts of a column."""

    separator: str
    names_of: dict[str, list[str]]
    joined: list[str]  # the texts with several names


class Judge:
    """Finds what joins the names in `texts`, the cells of a column that are no lists, given with where they stand."""

    def __init__(
        self, texts: Mapping[str, str], listed: Collection[str], known: frozenset[str], what: str, one_a_row: bool
    ) -> None:
        self.texts, self.listed, self.known, self.what, self.one_a_row = texts, listed, known, what, one_a_row
        self.text = "\0".join(texts)  # to see quickly whether a separator occurs
        self.kept: dict[str, Joined] = {}

    def split(self, separator: str) -> Joined:
        """The names that `separator` makes; a text that is a known name is one. "": each text is one name."""
        if separator not in self.kept:
            names_of = {
                text: [text] if self.known and self.are_known([text]) else _split_text(text, separator)
                for text in self.texts
            }
            if "'" in self.text:
                names_of = {text: self._strip_quotes(names) for text, names in names_of.items()}
            joined = [text for text, names in names_of.items() if len(names) > 1 and _holds(text, separator)]
            self.kept[separator] = Joined(separator, names_of, joined)
        return self.kept[separator]

    def _strip_quotes(self, names: list[str]) -> list[str]:
        """The `names` in a cell without single quotes, where each of them has these around it."""
        if all(SINGLE_QUOTED.fullmatch(name) for name in names) and not self.are_known(names):
            return [name[1:-1].strip() for name in names]
        return names

    def find_ending(self) -> list[Joined]:
        """The separator that stands after or before names, as in `cat;`, where none has another beside it."""
        for separator in (*SURE, ","):
            if separator in self.text and any(text.strip(separator) != text for text in self.texts):
                one = self.split(separator)
                if not one.joined and all(one.names_of.values()):
                    return [one]
        return []

    def find_joining(self, separators: Iterable[str]) -> dict[str, Joined]:
        """Those of `separators` that make several names of a text."""
        found = [self.split(separator) for separator in separators if separator in self.text]
        return {one.separator: one for one in found if one.joined}

    def are_known(self, names: Iterable[str]) -> bool:
        """Whether all `names` are classes of classes.txt, in whichever Unicode form."""
        return bool(self.known) and all(to_nfc(name) in self.known for name in names)

    def are_numbers(self, names: Iterable[Sequence[str]]) -> bool:
        """Whether all `names` are numbers of lines of classes.txt, from 0 on, and none is a class."""
        found = {*chain.from_iterable(names)} if self.known else set()
        return bool(found) and found <= {str(index) for index in range(len(self.known))} - self.known

    # ---- LABEL_SEPARATOR "auto" ----

    def choose_separator(self) -> str:
        """The only separator that is sensible, "" where nothing is joined. Raises InputError where two readings are."""
        self._require_lists_in_quotes()
        chosen = self._choose_by_names() if self.known else self._choose_by_counts()
        if chosen not in ("", ";") and (joined := self.split(chosen).joined):
            warn_once(
                f"{self.what}: names are separated at {show(chosen)}, as in {joined[0][:80]!r}; "
                f"{len(joined):,} different cell(s) hold several (LABEL_SEPARATOR)"
            )
        return chosen

    def _choose_by_names(self) -> str:
        """The separator that makes known names, or their numbers, of texts that are none.

        Where none does, the likeliest: what it makes of a text is no class then, and an error says so.
        """
        if self.are_known(self.texts):
            return ""
        found = self.find_joining(SURE + DOUBTFUL)
        numbers = [one.separator for one in found.values() if self.are_numbers(one.names_of.values())]
        fitting = numbers[:1] or [
            one.separator for one in found.values() if any(self.are_known(one.names_of[text]) for text in one.joined)
        ]
        if len(fitting) > 1:
            self._stop_for_two(found[fitting[0]], found[fitting[1]])
        partly = [
            one.separator
            for one in found.values()
            if any(self.are_known([name]) for text in one.joined for name in one.names_of[text])
        ]
        ending = [one.separator for one in self.find_ending()]
        return next(iter(fitting or partly or [separator for separator in SURE if separator in found] or ending), "")

    def _choose_by_counts(self) -> str:
        """The separator of SURE that occurs, or the one of DOUBTFUL that makes names of which others are made, too."""
        sure = [*self.find_joining(SURE).values()]
        if len(sure) > 1:
            self._stop_for_two(sure[0], sure[1])
        sure = sure or self.find_ending()
        doubtful = {} if sure else self.find_joining(DOUBTFUL)
        chosen = sure[0] if sure else next(filter(self._joins, doubtful.values()), None)
        if chosen and (other := self.find_other(chosen, (",",) if sure else (" ",))):
            self._stop_for_two(chosen, other)
        return chosen.separator if chosen else ""

    def _joins(self, one: Joined) -> bool:
        """Whether a separator that names hold, too, joins names here. Raises InputError where it may, or may not."""
        parts = [one.names_of[text] for text in one.joined]
        if all(name.isdigit() for names in parts for name in names):
            return True
        counts = Counter(name for names in one.names_of.values() for name in set(names))
        counts.update(self.listed)
        alone = {names[0] for names in one.names_of.values() if len(names) == 1} | {*self.listed}

        def are_most(test: Callable[[list[str]], bool]) -> bool:
            return 2 * sum(map(test, parts)) >= len(parts)

        linked = are_most(lambda names: all(counts[name] > 1 for name in names))
        if one.separator == ",":
            if (self.one_a_row or self.listed) and all(counts[name] == 1 for names in parts for name in names):
                return False  # "Doe, Jane" as one of several rows of an image
            tight = not any(", " in text for text in one.joined)  # a comma within a name has a blank after it
            varied = len({len(names) for names in parts}) > 1
            beside = are_most(lambda names: any(name in alone for name in names))
            certain = not self.one_a_row and ((linked and (tight or beside or varied)) or (tight and beside))
        elif not linked:
            return False
        else:
            certain = one.separator == " " and are_most(lambda names: all(name in alone for name in names))
        if not certain:
            self._stop_for_one(one)
        return True

    def _require_lists_in_quotes(self) -> None:
        """Raise InputError for `[cat, dog]`, which is a list in no notation that is read."""
        for text, where in self.texts.items():
            if BARE_LIST.fullmatch(text) and not self.are_known([text]):
                raise InputError(
                    f"{where}: {text[:80]!r} looks like a list, but its names are in no quotes: write "
                    '["cat", "dog"] or cat;dog'
                )

    # ---- a separator that is set ----

    def require_separator(self, separator: str) -> str:
        """`separator`. Raises InputError where another one obviously joins names; warns where this one joins none."""
        one = self.split(separator)
        if other := self.find_other(one, (*SURE, ",") if one.joined else (*SURE, ",", " ")):
            text = other.joined[0]
            advice = f"set LABEL_SEPARATOR = {other.separator!r}" if other.separator in CHOICES else "set it to 'auto'"
            raise InputError(
                f"{self._find(text)}: {text[:80]!r} is one name with LABEL_SEPARATOR {separator!r}, but all its parts "
                f"are classes when it is split at {show(other.separator)}: {advice}"
            )
        for other in () if one.joined else self.find_joining((*SURE, ",")).values():
            warn_once(
                f"{self.what}: no cell holds {show(separator)} (LABEL_SEPARATOR), but {len(other.joined):,} "
                f"different cell(s) hold {show(other.separator)}: {other.joined[0][:80]!r} is one name so"
            )
        return separator

    def find_other(self, one: Joined, separators: Iterable[str]) -> Joined | None:
        """What another separator makes of names that `one` leaves whole, where all their parts are names, too."""
        names = {*chain.from_iterable(one.names_of.values()), *self.known, *self.listed}
        for separator in separators:
            whole = [name for name in names if separator in name and separator != one.separator]
            whole = [name for name in whole if not self.are_known([name])]
            parts_of = {name: split_names(name, separator) for name in whole}
            joined = sorted(name for name, parts in parts_of.items() if len(parts) > 1 and {*parts} <= names)
            if joined and not (separator == " " and 2 * len(joined) < len(whole)):
                return Joined(separator, parts_of, joined)
        return None

    # ---- errors ----

    def _find(self, name: str) -> str:
        """Where a text stands that is `name`, or holds it."""
        return self.texts.get(name) or next((where for text, where in self.texts.items() if name in text), self.what)

    def _stop_for_two(self, first: Joined, second: Joined) -> None:
        texts = first.joined[0], next((text for text in second.joined if text != first.joined[0]), second.joined[0])
        chosen = " or ".join(repr(one.separator) for one in (first, second) if one.separator in CHOICES)
        setting = f"set LABEL_SEPARATOR = {chosen}" if chosen else "write ';' between names"
        raise InputError(
            f"{self.what}: both {show(first.separator)}, as in {texts[0][:80]!r}, and {show(second.separator)}, as in "
            f"{texts[1][:80]!r}, may separate names: {setting}, or {CLASSES_TXT}"
        )

    def _stop_for_one(self, one: Joined) -> None:
        text = one.joined[0]
        if one.separator in CHOICES:
            setting = f"LABEL_SEPARATOR = {one.separator!r} says several, ';' one;"
        else:
            setting = "Write ';' between several;"
        raise InputError(
            f"{self._find(text)}: is {text[:80]!r} one name, or {len(one.names_of[text])} that {show(one.separator)} "
            f"separates? {setting} or {CLASSES_TXT}"
        )


def _holds(text: str, separator: str) -> bool:
    """Whether `separator` stands in a text outside quotes."""
    return separator in (QUOTED.sub("", text) if '"' in text else text)


def _split_text(text: str, separator: str) -> list[str]:
    """The names in a text that `separator` joins; without one, the text is a name, which may stand in quotes."""
    if separator and _holds(text, separator):
        return split_names(text, separator)
    return split_names(text, ";") if '"' in text and not _holds(text, ";") else [text]


def show(separator: str) -> str:
    """A separator for a message."""
    return {" ": "a blank", "\t": "a TAB", "\n": "a line end"}.get(separator, repr(separator))


# ---- a cell ----


def parse_cell(cell: str, where: str | JsonLine) -> list[str] | None:
    """The names in a cell that holds a list or Label Studio's results; None for any other cell.

    Raises InputError for a list without commas, as NumPy writes it: Python would join its names to one.
    """
    text = cell.strip()
    if text == "set()":  # Python's empty set: {} would be a dictionary
        return []
    if text[:1] + text[-1:] not in ("[]", "{}", "()"):
        return None
    try:
        return list_names(json.loads(text))
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    if NO_COMMA.search(text):
        raise InputError(f"{where}: there is no comma between the names in {text[:80]!r}: write ['cat', 'dog']")
    if isinstance(value, set):
        return list_names(sorted(value, key=str))
    return list_names(list(value) if isinstance(value, tuple) else value)


def list_names(value: Any) -> list[str] | None:
    """The names in a list, in Label Studio's {"choices": [...]} or in a list of its regions; None where there are none.

    The names of a region stand under a key such as `rectanglelabels`. Whole numbers in a list are names, too. An option
    that lies in others, of a taxonomy or of nested choices, is named by its path, such as `Animal / Cat`.
    """
    if isinstance(value, dict):
        found = find_lists(value)
        items = found[0] if len(found) == 1 else None
        return list_names([*map(_join_path, items)] if isinstance(items, list) else items)
    if not isinstance(value, list):
        return None
    names: list[str] = []
    for item in value:
        if isinstance(item, str | int) and not isinstance(item, bool):
            names.append(str(item).strip())
        elif isinstance(item, dict) and (inner := list_names(item)) is not None:
            names += inner
        else:
            return None
    return [name for name in names if name]


def find_lists(result: Mapping[Any, Any]) -> list[Any]:
    """What stands under the keys of labels, such as `choices` or `rectanglelabels`, in a result of Label Studio."""
    return [result[key] for key in result if key in ("choices", "taxonomy") or str(key).endswith("labels")]


def _join_path(item: Any) -> Any:
    """The name of an option that is given as a list, from the outermost to the chosen one; anything else as it is."""
    is_path = isinstance(item, list) and item and all(isinstance(option, str) for option in item)
    return PATH.join(map(str.strip, item)) if is_path else item
