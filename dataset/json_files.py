"""JSON files, whoever wrote them: what one holds, the line of a string in it, and how one is written.

    read_json(Path("run.json"))                      # a small file: metadata, a marker, a result
    text = read_text(file); parse_json(text, file)   # an annotation file, which may have gigabytes
    write_list(path, (make(row) for row in rows))    # one value after the other, so that millions need no memory

Only plain values come out: dicts with text as keys, lists, text, numbers, True, False, None.
"""

from __future__ import annotations

import functools
import json
import mmap
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from dataset.files import open_file
from dataset.text_files import measure_memory, read_text, replace_text
from dataset.whole_files import write_atomically
from utils import InputError

SMALL_BYTES = 1 << 24  # of a file that is no list of images: what a run of 10,000 classes writes has some 2 MB
UNSEEN = re.compile(r"[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # see utils.HIDDEN; below 20 JSON escapes
CONTAINER_BYTES = 64  # of memory that an empty list or object takes, for two letters of the file


def read_json(path: Path, *, allow_nan: bool = False) -> Any:
    """What a JSON file of at most SMALL_BYTES holds. Raises InputError, with the file, for anything else.

    The types of the values are for the caller to check.
    """
    return parse_json(read_text(path, SMALL_BYTES), path, allow_nan=allow_nan)


def parse_json(text: str | bytes, where: object, *, allow_nan: bool = False) -> Any:
    """What `text` holds as JSON. Raises InputError, which begins with `where` it stands, for anything else.

    Refused are also NaN and Infinity, which are no JSON, except with `allow_nan`; a key that stands twice in an object;
    and what is too deep or has too many digits for Python. A number above 1e308 becomes infinity.
    """

    def refuse_constant(name: str) -> NoReturn:
        raise InputError(f"{where}: {name} stands in it, which is not JSON: write null, or a number")

    if len(text) > SMALL_BYTES and CONTAINER_BYTES * _count_containers(text) > measure_memory() // 2:
        raise InputError(f"{where}: what it holds does not fit into memory")
    try:
        return json.loads(text, parse_constant=float if allow_nan else refuse_constant, object_pairs_hook=_make_dict)
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise InputError(f"{where}:{error.lineno}: {error.msg}: this is not JSON") from error
    except _Repeated as error:
        raise InputError(f"{where}: the key {error} stands twice in one object: remove one") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: this is not UTF-8 text") from error
    except RecursionError as error:
        raise InputError(f"{where}: its lists or objects are nested too deeply") from error
    except MemoryError as error:
        raise InputError(f"{where}: what it holds does not fit into memory") from error
    except ValueError as error:  # of Python's limit: the time for an integer grows with the square of its digits
        raise InputError(f"{where}: an integer in it has thousands of digits") from error


def _count_containers(text: str | bytes) -> int:
    """The lists and objects in a JSON text, or some more."""
    if isinstance(text, bytes):
        return text.count(b"[") + text.count(b"{")
    return text.count("[") + text.count("{")


def looks_like(path: Path, start: str, *patterns: str) -> bool:
    """Whether the file begins with `start`, white space aside, and holds what each regular expression matches.

    Nothing is parsed, so it is quick for gigabytes, too; and it is asked only once for the same content. False for a
    file that cannot be read.
    """
    try:
        found = path.stat()
        return _looks_like(path, start.encode(), patterns, found.st_size, found.st_mtime_ns)
    except OSError:
        return False


@functools.lru_cache
def _looks_like(path: Path, start: bytes, patterns: tuple[str, ...], size: int, changed: int) -> bool:
    """`looks_like` for a file of that size that was last `changed` at that time."""
    with open_file(path) as file:
        if not b"".join(file.read(256).removeprefix(b"\xef\xbb\xbf").split()).startswith(start):
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return all(re.search(pattern.encode(), text) for pattern in patterns)


class _Repeated(Exception):
    """A key that stands twice in one object."""


def _make_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Repeated(repr(key[:80]))
    return found


class JsonLine(NamedTuple):
    """Where a string stands in a JSON file, for an error. The line is searched for only when it is printed.

    str(JsonLine(file, text, "a.jpg", 2)) is `file:7` where "a.jpg" stands for the second time on line 7.
    """

    file: Path
    text: str
    value: str | float | None
    occurrence: int

    def __str__(self) -> str:
        line = 1  # where the string is not found, since it is written with other escapes than these two ways
        for quoted in (json.dumps(self.value), json.dumps(self.value, ensure_ascii=False)):
            position = -1
            for _ in range(self.occurrence):
                position = self.text.find(quoted, position + 1)
                if position < 0:
                    break
            else:
                line = self.text.count("\n", 0, position) + 1
                break
        return f"{self.file}:{line}"


def to_json(value: Any, indent: int | None = None) -> str:
    r"""`value` as JSON in which names stay as they are; what json.loads reads of it is the same.

    Escaped are, besides what JSON wants, the characters that would do something to a terminal, and half a pair of
    surrogates: it stands for a byte of a file's name that is no UTF-8, and no file of text holds it.

    >>> print(to_json(["Löwe", "cat\udcff"]))
    ["Löwe", "cat\udcff"]
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def write_json(file: Path, **lists: list[Any]) -> None:
    """Write {"name": [items]} with each item on a line of its own, so that an error can name the line."""
    texts = []
    for name, items in lists.items():
        lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
        texts.append(f'"{name}": [\n{lines}\n]')
    replace_text(file, "{\n" + ",\n".join(texts) + "\n}\n")


def write_object(path: Path, items: Iterable[tuple[str, Any]]) -> None:
    """Write what to_json(dict(items), indent=1) gives, one item after the other, completely or not at all."""
    _write(path, "{}", (f"{to_json(key)}: {_indent(value)}" for key, value in items))


def write_list(path: Path, values: Iterable[Any]) -> None:
    """Write what to_json(list(values), indent=1) gives, one value after the other, completely or not at all."""
    _write(path, "[]", (_indent(value) for value in values))


def _indent(value: Any) -> str:
    """JSON of a value one level below the top. Line ends within strings are escaped, so that they stay."""
    return to_json(value, indent=1).replace("\n", "\n ")


def _write(path: Path, brackets: str, texts: Iterable[str]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            separator = brackets[0]
            for text in texts:
                file.write(f"{separator}\n {text}")
                separator = ","
            file.write(f"\n{brackets[1]}" if separator == "," else brackets)

    write_atomically(path, write)
