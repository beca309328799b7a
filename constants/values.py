"""What a constant's value may be: text from the command line as a value, and a value against its annotation.

parse("3,5", tuple[int, ...])       # (3, 5)
check("NUM_EPOCHS", 0, Count)       # InputError: NUM_EPOCHS is 0: 1 or more
"""

from __future__ import annotations

import math
import re
import types
import typing
from pathlib import Path
from typing import Any

import limits
from utils import InputError, suggest

UNIONS = (types.UnionType, typing.Union)  # int | None, and Literal[...] | None
ITEM = re.compile(r"""\s*(?:'([^']*)'\s*|"([^"]*)"\s*|((?!\s*['"])[^,]*))(?:,|\Z)""")  # of a list on the command line
QUOTED_ITEM = re.compile(r"""(^|,)\s*('[^']*'|"[^"]*")""")


def parse(text: str, annotation: Any) -> Any:
    """`text` from the command line as a value of type `annotation`; what does not fit stays text.

    Raises InputError for a quote that is not closed.
    """
    members = list_members(annotation)
    if text == "None" and types.NoneType in members:
        return None
    is_list = "," in text or _is_bracketed(text.strip())
    for member in members:
        if typing.get_origin(member) is tuple and (member is members[0] or is_list):
            kind = typing.get_args(member)[0]
            return tuple(parse(item, kind) for item in split_items(text))
    if members[0] is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if is_choice(members[0]):
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
            found = shorten(text[position:].strip())
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
    for limit in list_limits(annotation):
        if not limit.allows(value):
            raise InputError(f"{name} is {show(name, str(value))}: {limit.text}")
        value = limit.simplify(value)
    return value


def _check_type(name: str, value: Any, annotation: Any) -> Any:
    members = list_members(annotation)
    if isinstance(value, str | Path) and "\0" in str(value):
        raise InputError(f"{name} is {show(name, repr(value))}: a null character cannot stand in a name or path")
    if types.NoneType in members and isinstance(value, str) and value.lower() == "none":
        or_file = f", or ./{value} for a file that is called so" if {str, Path} & {*members} else ""
        raise InputError(f"{name} is the text {value!r}: write None{or_file}")
    for member in members:
        if typing.get_origin(member) is tuple and isinstance(value, tuple | list):
            kinds = typing.get_args(member)
            kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
            if len(kinds) == len(value):
                return tuple(check(name, item, kind) for item, kind in zip(value, kinds, strict=True))
        elif is_choice(member):
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
    if any(is_choice(member) for member in members):
        choices = [str(choice) for member in members if is_choice(member) for choice in typing.get_args(member)]
        raise InputError(
            f"{name} is {shorten(repr(value))}{suggest(str(value), choices)}; it takes {', '.join(choices)}"
        )
    wanted = " or ".join(map(_name_type, members))
    raise InputError(f"{name} is {show(name, repr(value))}, which is not of type {wanted}")


def _name_type(member: Any) -> str:
    """A type as an error names it: `int`, `None`, `tuple`, or `(int, int)` for a tuple of a fixed length."""
    if member is types.NoneType:
        return "None"
    kinds = typing.get_args(member)
    if typing.get_origin(member) is tuple and Ellipsis not in kinds:
        return f"({', '.join(map(_name_type, kinds))})"
    return getattr(member, "__name__", str(member))


def show(name: str, text: str) -> str:
    """The value of the constant `name`, as an error or --help shows it; secrets are never printed."""
    return "(set, not shown)" if name.endswith("_TOKEN") else shorten(text)


def shorten(text: str) -> str:
    """`text` as an error shows it: at most 100 characters."""
    return text if len(text) <= 100 else f"{text[:97]}..."


def list_members(annotation: Any) -> tuple[Any, ...]:
    """The types that `annotation` allows, without its limits."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    return typing.get_args(annotation) if typing.get_origin(annotation) in UNIONS else (annotation,)


def list_limits(annotation: Any) -> tuple[limits.Limit, ...]:
    return typing.get_args(annotation)[1:] if typing.get_origin(annotation) is typing.Annotated else ()


def is_choice(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Literal
