"""What the body of a request says: the files of a form, or an image and thresholds in JSON.

The work is bounded by what may be there (files of a queue, thresholds of C classes), not by bytes; it stops at the
first fault. It takes tens of milliseconds for the largest bodies, so threads do it, beside the event loop.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import python_multipart
from fastapi import HTTPException
from numpy.typing import NDArray
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from dataset.class_names import to_nfc

MAX_FIELDS = 8  # of a form, apart from its files
MAX_FIELD_BYTES = 1024
FIELDS = ("image", "threshold", "inferenceParams", "visualize")  # of the JSON
PARAMETERS = ("threshold", "topK")  # of its inferenceParams

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it would warn of each broken form


class Form(NamedTuple):
    names: list[str]
    contents: list[bytes]  # of the files, in the order in which they were sent
    threshold: float | None


class MapForm(NamedTuple):
    name: str
    content: bytes  # of the image file
    label: int


class JsonRequest(NamedTuple):
    content: bytes  # of the image file
    thresholds: NDArray[np.float32]  # (C,)
    most_labels: int | None  # that the answer may have; None: any number
    visualize: bool  # whether the answer has the picture with its labels


def parse_form(content_type: str, body: bytes, max_files: int) -> Form:
    """The files of a form, in fields of any name, and its threshold, or None if it has none.

    Raises HTTPException for a form that `read_form` refuses, and for a threshold that is not in 0-1.
    """
    names, contents, text = read_form(
        content_type, body, max_files, "threshold", "send files, and a threshold if you like"
    )
    return Form(names, contents, None if text is None else parse_threshold(text))


def parse_map_form(content_type: str, body: bytes, classes: Sequence[str]) -> MapForm:
    """The one file of a form, and the index in `classes` of its `label`.

    Raises HTTPException for a form that `read_form` refuses, and for a label that is missing or no class.
    """
    names, contents, text = read_form(content_type, body, 1, "label", "send one file, and a label")
    if text is None:
        raise HTTPException(400, "the field 'label' is missing: send the name of a class, or its index")
    return MapForm(names[0], contents[0], parse_label(text, classes))


def parse_label(text: str, classes: Sequence[str]) -> int:
    """The index of the class that `text` means: a number is an index, anything else a name."""
    if text.isascii() and text.isdecimal():
        if len(text) < 10 and int(text) < len(classes):
            return int(text)
        raise HTTPException(422, f"label: there is no class {text[:80]}; they are 0 to {len(classes) - 1}")
    if to_nfc(text) in classes:
        return classes.index(to_nfc(text))
    raise HTTPException(422, f"label: there is no class {text[:80]!r}: GET /labels lists them")


def read_form(
    content_type: str, body: bytes, max_files: int, field: str, advice: str
) -> tuple[list[str], list[bytes], str | None]:
    """The names and contents of the files of a form, in fields of any name, and its field `field`, None if not there.

    Raises HTTPException for a form that is no form or is cut short, without files or with more than `max_files`, and,
    with `advice`, for another field.
    """
    names: list[str] = []
    contents: list[bytes] = []
    fields: list[tuple[str, str]] = []
    ended = False

    def add_file(file: Any) -> None:
        if len(contents) == max_files:
            raise HTTPException(400, f"Too many files. Maximum number of files is {max_files}.")
        names.append((file.file_name or b"").decode(errors="replace"))
        contents.append(file.file_object.getvalue())

    def add_field(found: Any) -> None:
        if len(fields) == MAX_FIELDS or len(found.value or b"") > MAX_FIELD_BYTES:
            raise HTTPException(400, f"a form has at most {MAX_FIELDS} fields of {MAX_FIELD_BYTES} bytes beside files")
        name, value = (text.decode(errors="replace") for text in (found.field_name or b"", found.value or b""))
        fields.append((name, value))

    def end() -> None:
        nonlocal ended
        ended = True

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise HTTPException(400, "Missing boundary in multipart.")
    config = {"MAX_MEMORY_FILE_SIZE": math.inf}  # files are not written to a disk: memory has its own limit
    try:
        parser = python_multipart.FormParser("multipart/form-data", add_field, add_file, end, boundary, config=config)
        parser.write(body)
    except FormParserError as error:
        raise HTTPException(400, f"the form cannot be read: {error}") from error
    if not ended:
        raise HTTPException(400, "the form is cut short: its last boundary is missing")
    unknown = sorted({name for name, _ in fields} - {field})
    if unknown:
        raise HTTPException(400, f"unknown field {unknown[0]!r}: {advice}")
    if not contents:
        raise HTTPException(400, "there is no file: send one or several as multipart/form-data, in the field files")
    if len(fields) > 1:
        raise HTTPException(400, f"the field {field!r} is there {len(fields)} times: send it once")
    return names, contents, fields[0][1] if fields else None


def parse_threshold(text: str) -> float:
    try:
        return require_probability(float(text))
    except ValueError:
        raise HTTPException(422, f"threshold: {text!r} is not a valid number") from None


def parse_json(body: bytes, thresholds: NDArray[np.float32], max_bytes: int) -> JsonRequest:
    """A request in JSON: its image, and what it asks for; the model's `thresholds` (C,) for classes it does not name.

    The fields are those of all versions of PaddleX: `threshold` stood in `inferenceParams` before it stood beside the
    image, and `topK` before that. A field that is null is as if it were not there. Raises HTTPException for what is no
    JSON, for unknown, missing and doubled fields, for values of another type, for an image that is no base64 or has
    more than `max_bytes`, and for thresholds that are not in 0-1 or of classes that do not exist.
    """
    request = load_json(body, most_values=len(thresholds) + len(FIELDS) + len(PARAMETERS))
    if not isinstance(request, dict):
        raise HTTPException(422, 'send an object: {"image": base64}')
    require_fields(request, FIELDS)
    if "image" not in request:
        raise HTTPException(422, "image: Field required")
    if not isinstance(request["image"], str):
        raise HTTPException(422, "image: send the image file in base64, as text")
    parameters = request.get("inferenceParams")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise HTTPException(422, 'inferenceParams: send an object: {"threshold": 0.5}')
    require_fields(parameters, PARAMETERS, "inferenceParams.")
    asked = [fields["threshold"] for fields in (request, parameters) if fields.get("threshold") is not None]
    if len(asked) > 1:
        raise HTTPException(422, "threshold: it is there twice; send it beside image, or in inferenceParams")
    most_labels = parameters.get("topK")
    if most_labels is not None and (type(most_labels) is not int or most_labels < 1):
        raise HTTPException(422, "inferenceParams.topK: send the most labels of an answer, 1 or more")
    visualize = request.get("visualize")
    if visualize is not None and not isinstance(visualize, bool):
        raise HTTPException(422, "visualize: send true or false")
    return JsonRequest(
        content=decode_base64(request["image"], max_bytes),
        thresholds=choose_thresholds(asked[0] if asked else None, thresholds),
        most_labels=most_labels,
        visualize=visualize is not False,
    )


def require_fields(found: dict[str, Any], known: tuple[str, ...], prefix: str = "") -> None:
    for name in found:
        if name not in known:
            raise HTTPException(422, f"{prefix}{name}: Extra inputs are not permitted; there is {', '.join(known)}")


def load_json(body: bytes, most_values: int) -> Any:
    """Parse JSON that may have up to `most_values` values and a few more. Raises HTTPException where it has more.

    Values are counted before they are parsed: each but the first comes after a comma or a bracket, of which base64 has
    none.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > most_values + 16:
        raise HTTPException(422, f"the body has more than the {most_values} values that there may be")
    try:
        return json.loads(body, object_pairs_hook=make_object)
    except RecursionError:
        raise HTTPException(400, "the body is not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:  # also of bytes that are no UTF-8, and of numbers with thousands of digits
        raise HTTPException(400, f"the body is not JSON: {error}") from error


def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise HTTPException(400, f"the field {twice!r} is there twice: send it once")
    return found


def choose_thresholds(asked: Any, thresholds: NDArray[np.float32]) -> NDArray[np.float32]:
    """The thresholds (C,) for a request: those it asked for, and the model's `thresholds` for classes it does not name.

    `asked` is None, a number, a list of C numbers, or {"default" or a class index as text: number}. Raises
    HTTPException for all else.
    """
    chosen, count = thresholds.copy(), len(thresholds)
    if isinstance(asked, dict):
        if "default" in asked:
            chosen[:] = require_probability(asked["default"])
        for name, value in asked.items():
            if name != "default":
                chosen[read_index(name, count)] = require_probability(value)
    elif isinstance(asked, list):
        if len(asked) != count:
            raise HTTPException(422, f"threshold: {len(asked)} numbers for {count} classes")
        chosen[:] = [require_probability(value) for value in asked]
    elif asked is not None:
        chosen[:] = require_probability(asked)
    return chosen


def read_index(name: str, count: int) -> int:
    index = int(name) if name.isascii() and name.isdecimal() and len(name) < 10 else count
    if index >= count or name != str(index):
        raise HTTPException(422, f"threshold: there is no class {name}; they are 0 to {count - 1}")
    return index


def require_probability(value: Any) -> float:
    """`value`, if it is a number from 0 to 1. Raises HTTPException if it is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise HTTPException(422, f"threshold: a number from 0 to 1 is wanted, not {type(value).__name__}")
    if not 0 <= value <= 1:
        raise HTTPException(422, "threshold: it should be greater than or equal to 0 and less than or equal to 1")
    return float(value)


def decode_base64(text: str, max_bytes: int) -> bytes:
    """Decode base64, with or without white space. Raises HTTPException if it is none, or more than `max_bytes`."""
    try:
        content = base64.b64decode(text.encode("ascii").translate(None, string.whitespace.encode()), validate=True)
    except ValueError as error:  # also of text that is not ASCII
        reason = "it has letters that are not ASCII" if isinstance(error, UnicodeError) else str(error)
        raise HTTPException(422, f"image: not in base64 ({reason}); addresses are not fetched") from error
    if len(content) > max_bytes:
        raise HTTPException(413, f"the image is larger than {max_bytes / 2**20:g} MB")
    return content
