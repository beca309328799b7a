"""What looks wrong about the classes of a data set, by their names and by how often each is present, absent or unknown.

    for problem in judge_classes({"train": train, "val": val}):
        print(problem.severity, problem.text)

`dataset_tools.py check` reports these, and training warns of them. A false alarm costs more than a missed mistake: the
names of public data sets give none (tests/dataset/test_class_checks.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset.class_names import fold, quote_names, show_names
from dataset.table import Table

# Separators between names in a cell. Where all parts of a name are classes, those of the first are sure signs of a cell
# that was not split; the others occur in names, too: "bread and butter" beside "bread" and "butter".
SEPARATORS, WORDS_BETWEEN = re.compile(r"[,;|]"), re.compile(r"\\n|<br ?/?>|[,;|/&+:_~#^\\-]+|\r| and ")
NO_LABEL = {
    "none", "nothing", "n/a", "#n/a", "no label", "no labels", "unlabeled", "unlabelled", "null", "nan", "[]", " ", "?",
    "unknown", "#name?", "kein", "keine", "keines",
}  # fmt: skip  # as `split_words` writes them, which makes " " of "-"
PERHAPS_NO_LABEL = {"no finding", "no findings", "normal", "background", "empty", "negative"}
RARE = 2  # images with a class, at most, that may be a misspelling of another
COMMON = 5  # images with the other, at least; and so many times as many
LONG_WORD = 6  # letters from which one other letter is seldom another word: cat and car, plane and plate are two
LONGEST_COMPARED = 60  # letters of a name that may be a misspelling
KNOWN_WELL = 20  # images with each of two classes whose names differ in case alone, where that may be meant


class ClassProblem(NamedTuple):
    """One thing that looks wrong: "error" where it is certain, a sentence, the classes that it is about."""

    severity: Literal["error", "warning"]
    text: str
    names: tuple[str, ...]
    kind: str = ""  # the same for the same thing found in other classes


class Counts(NamedTuple):
    """In how many images each class is present, absent and unknown: (C,) each."""

    present: NDArray[np.int64]
    absent: NDArray[np.int64]
    unknown: NDArray[np.int64]


def judge_classes(tables: Mapping[str, Table]) -> list[ClassProblem]:
    """What looks wrong about the classes of the tables of a data set's splits, {split: table}, which all have the same.

    What a class shows is counted in the training split, of which is learned; without one, in all splits.
    """
    chosen = [tables["train"]] if "train" in tables else list(tables.values())
    where = "in the training split" if "train" in tables else "in any split"
    classes = chosen[0].classes
    counts = count_labels(chosen)
    return [
        *judge_names(classes),
        *find_equal_names(classes, counts.present),
        *find_misspellings(classes, counts.present),
        *find_names_of_nothing(classes, chosen),
        *find_one_sided(classes, counts, where),
    ]


def judge_names(classes: Sequence[str]) -> list[ClassProblem]:
    """What looks wrong about the names alone; errors are among these only."""
    return list(find_joined_names(classes))


# ---- names ----


def split_words(name: str) -> str:
    """The words of a name in small letters, a blank between them."""
    return " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFKC", name).casefold().strip()))


def find_joined_names(classes: Sequence[str]) -> Iterator[ClassProblem]:
    """Names that are several: `cat, dog` beside the classes `cat` and `dog`."""
    known = {fold(name) for name in classes}
    parts_of = {name: split_name(name, WORDS_BETWEEN) for name in classes}
    parts_of = {name: parts for name, parts in parts_of.items() if len(parts) > 1}
    whole = [name for name in parts_of if {*map(fold, split_name(name, SEPARATORS))} <= known - {fold(name)}]
    if whole:
        yield ClassProblem(
            "error",
            f"all parts of {describe_number(whole, 'class name')} are classes, too: {quote_names(whole)}; "
            f"{advise_on_separator(whole[0])}",
            tuple(whole),
            "joined names",
        )
    spoken = [name for name in parts_of if name not in whole and {*map(fold, parts_of[name])} <= known - {fold(name)}]
    if spoken:
        yield ClassProblem(
            "warning",
            f"all parts of {describe_number(spoken, 'class name')} are classes, too: {quote_names(spoken)}; if these "
            "are several labels, split them in the labels",
            tuple(spoken),
            "perhaps joined names",
        )
    joined = {name: {*map(fold, parts)} for name in parts_of if len(parts := split_name(name, SEPARATORS)) > 1}
    times: dict[str, int] = defaultdict(int, dict.fromkeys(known, 1))
    for parts in joined.values():
        for part in parts:
            times[part] += 1
    shared = [name for name, parts in joined.items() if name not in whole and any(times[part] > 1 for part in parts)]
    if len(shared) >= 2 and 2 * len(shared) > len(joined) - len(whole):
        yield ClassProblem(
            "warning",
            f"parts of {describe_number(shared, 'class name')} occur in other class names, too: {quote_names(shared)}; "
            f"if these are several labels, {advise_on_separator(shared[0])}",
            tuple(shared),
            "shared parts of names",
        )


def describe_number(names: Sequence[str], word: str) -> str:
    return f"1 {word}" if len(names) == 1 else f"{len(names):,} {word}{'es' if word.endswith('s') else 's'}"


def split_name(name: str, separators: re.Pattern[str]) -> list[str]:
    return [part.strip() for part in separators.split(name) if part.strip()]


def advise_on_separator(name: str) -> str:
    found = SEPARATORS.search(name)
    assert found, "the caller has looked"
    return (
        f"in a CSV set LABEL_SEPARATOR = {found[0]!r}, elsewhere split them in the labels; a class that is called so "
        "needs another name"
    )


def find_equal_names(classes: Sequence[str], present: NDArray[np.int64]) -> Iterator[ClassProblem]:
    """Names that differ in nothing that tells classes apart: `Dog` and `dog`, `hot dog` and `hot_dog`."""
    groups: dict[str, list[int]] = defaultdict(list)
    for column, name in enumerate(classes):
        groups[fold(name)].append(column)
    found = [columns for columns in groups.values() if len(columns) > 1]
    by_case = [columns for columns in found if len({classes[column].casefold() for column in columns}) == 1]
    if found and not (len(found) == len(by_case) and capitals_are_meant(classes, by_case, present)):
        names = tuple(classes[column] for columns in found for column in columns)
        pairs = [" and ".join(f"{classes[column]!r} ({present[column]:,})" for column in columns) for columns in found]
        yield ClassProblem(
            "warning",
            f"class names that differ only in capitals, blanks, _, - or the form of a letter (and their images): "
            f"{show_names(pairs)}; if they are one class, write one name in the labels or classes.txt",
            names,
            "equal names",
        )


def capitals_are_meant(classes: Sequence[str], groups: Sequence[Sequence[int]], present: NDArray[np.int64]) -> bool:
    """Whether capitals tell names apart, as in ImageNet, where `Cardigan` is a dog and `cardigan` a garment.

    There a good part of the names has capitals and a good part none, such a pair is rare, and there are many images of
    both. Where people typed names in two ways, one of these does not hold.
    """
    share = sum(name != name.lower() for name in classes) / len(classes)
    known_well = all(present[column] >= KNOWN_WELL for columns in groups for column in columns)
    return 0.1 < share < 0.9 and 100 * len(groups) < len(classes) and known_well


def find_misspellings(classes: Sequence[str], present: NDArray[np.int64]) -> Iterator[ClassProblem]:
    """Classes that hardly any image has, whose name is one letter from that of a class that many have.

    Names that are one letter apart have a text in common when any one letter is left out of each (Garbe's SymSpell):
    so no name is compared with all others.
    """
    texts = [split_words(name) for name in classes]
    rare = np.flatnonzero((present > 0) & (present <= RARE)).tolist()
    if not rare:
        return
    common: dict[str, list[int]] = defaultdict(list)
    for column in np.flatnonzero(present >= COMMON).tolist():
        for text in leave_out_letters(texts[column]):
            common[text].append(column)
    found: dict[int, int] = {}
    for column in rare:
        near = {other for text in leave_out_letters(texts[column]) for other in common.get(text, ())}
        alike = [
            other
            for other in sorted(near)
            if present[other] >= COMMON * present[column] and is_misspelling(texts[column], texts[other])
        ]
        if alike:
            found[column] = alike[0]
    if found:
        pairs = [
            f"{classes[column]!r} ({present[column]:,}) of {classes[other]!r} ({present[other]:,})"
            for column, other in found.items()
        ]
        yield ClassProblem(
            "warning",
            f"class names that may be a misspelling (and their images): {show_names(pairs)}; correct the labels",
            tuple([classes[column] for column in found]),
            "misspelt names",
        )


def leave_out_letters(text: str) -> set[str]:
    """`text`, and what remains of it without any one of its letters; nothing of a long text."""
    if len(text) > LONGEST_COMPARED:
        return set()
    return {text, *(text[:place] + text[place + 1 :] for place in range(len(text)))}


def is_misspelling(text: str, right: str) -> bool:
    """Whether `text` is probably `right` with a letter wrong, missing, too many, twice, or two exchanged.

    Short words that differ in a letter are other words (cat and car), and numbers are other numbers.
    """
    start = count_shared(text, right)
    end = count_shared(text[start:][::-1], right[start:][::-1])
    wrong, expected = text[start : len(text) - end], right[start : len(right) - end]
    words = [find_word(text, start), find_word(right, start)]
    if not (wrong + expected).isalpha() or any(map(str.isdigit, "".join(words))) or len(words[1]) < 3:
        return False
    if len(wrong) == len(expected) == 2:
        return wrong == expected[::-1]
    if len(wrong) + len(expected) == 1:
        longer, letter = (text, wrong) if wrong else (right, expected)
        is_twice = longer[start - 1 : start] == letter  # the common beginning takes the first of the two
        if is_twice or (letter == "s" and longer[start + 1 : start + 2] in ("", " ")):
            return True
    is_inside = text[:start].rpartition(" ")[2] != ""  # the first letter of a word is seldom wrong
    return is_inside and len(wrong) <= 1 >= len(expected) and sum(map(len, words)) >= 2 * LONG_WORD - 1


def count_shared(text: str, other: str) -> int:
    """The number of letters with which both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))


def find_word(text: str, place: int) -> str:
    """The word of `text` in which the letter at `place` stands, or that ends there."""
    begin = text.rfind(" ", 0, place) + 1
    end = text.find(" ", place)
    return text[begin:] if end < 0 else text[begin:end]


def find_names_of_nothing(classes: Sequence[str], tables: Sequence[Table]) -> Iterator[ClassProblem]:
    """Classes that are called "none" or the like.

    `normal` and its like are a class as any other where each image has one label, or where it comes with others: in
    CheXpert, images with a support device have "No Finding".
    """
    found = [name for name in classes if split_words(name) in NO_LABEL]
    perhaps = [column for column, name in enumerate(classes) if split_words(name) in PERHAPS_NO_LABEL]
    if perhaps:
        labels = np.concatenate([(table.targets == 1).sum(axis=1) for table in tables])
        for column in perhaps if (labels != 1).any() else ():
            own = np.concatenate([table.targets[:, column] == 1 for table in tables])
            if own.any() and (labels[own] == 1).all():
                found.append(classes[column])
    if found:
        yield ClassProblem(
            "warning",
            f"the name of {describe_number(found, 'class')} may mean that an image shows none of the others: "
            f"{quote_names(found)}; if so, set NO_LABEL_NAMES = ({found[0]!r},)",
            tuple(found),
            "names of nothing",
        )


# ---- counts ----


def count_labels(tables: Sequence[Table]) -> Counts:
    """In how many images of all tables each class is present, absent and unknown."""
    present, absent, unknown = (
        np.sum([(table.targets == value).sum(axis=0) for table in tables], axis=0) for value in (1, 0, -1)
    )
    return Counts(present, absent, unknown)


def find_one_sided(classes: Sequence[str], counts: Counts, where: str) -> Iterator[ClassProblem]:
    """Classes of which there is nothing to tell presence from absence by; `where` says of which images."""
    never_known = counts.present + counts.absent == 0
    never_absent = (counts.absent == 0) & ~never_known
    for kind, chosen, text in (
        ("known label", never_known, "nothing is learned of them; label them, or take them out of the classes"),
        (
            "positive",
            (counts.present == 0) & ~never_known,
            "they are learned as always absent; add images that show them",
        ),
        (
            "negative",
            never_absent & (counts.unknown == 0),
            "they are learned as always present; add images without them, or take them out of the classes",
        ),
    ):
        if chosen.any():
            names = [classes[column] for column in np.flatnonzero(chosen).tolist()]
            yield ClassProblem(
                "warning",
                f"{len(names):,} class(es) without a {kind} {where}: {quote_names(names)}; {text}",
                tuple(names),
                f"classes without a {kind}",
            )
    never_known_absent = never_absent & (counts.unknown > 0)
    if never_known_absent.any():
        names = [classes[column] for column in np.flatnonzero(never_known_absent).tolist()]
        yield ClassProblem(
            "warning",
            f"no image {where} is known to be without {len(names):,} of {len(classes):,} classes: "
            f"{quote_names(names)} (is -1 'absent' here? Then set MINUS_ONE); they are learned as always present: give "
            "some images the label 0",
            tuple(names),
            "classes without a known negative",
        )
