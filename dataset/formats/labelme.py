"""labelme: a file `a.json` of Labelme for each image `a.jpg`, beside it or in another folder. It is only read.

    {"flags": {"cat": true, "dog": false}, "shapes": [{"label": "cat", ...}], "imagePath": "a.jpg", ...}

Where any file has shapes, an image's labels are those of its shapes, and flags are not read; where none has, they are
its flags that are true, as Labelme's example of classification has them (`__ignore__` is no class). Folders train, val
and test are the splits; without them all is training data. Images without a file are left out, and said. `classes.txt`,
where it is there, orders the classes.

https://github.com/wkentaro/labelme: examples/classification, labelme/label_file.py
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from dataset.annotation_files import Labels, find_places, list_annotations, read_table
from dataset.formats.base import Format, SplitSource
from dataset.json_files import parse_json
from dataset.table import Table
from dataset.text_files import read_text
from utils import InputError, warn

NO_CLASS = "__ignore__"


def list_splits(root: Path) -> list[str]:
    return list(find(root))


def files_of_split(root: Path, split: str) -> list[Path]:
    return find(root).get(split, [])


def find(root: Path) -> dict[str, list[Path]]:
    return find_places(root, ".json", is_annotation)


def is_annotation(start: bytes) -> bool:
    """Whether it is the start of such a file: `version` comes first, then `flags`, then `shapes`."""
    return start.lstrip().startswith(b"{") and b'"shapes"' in start and b'"flags"' in start


def read(source: SplitSource) -> Table:
    places = find(source.root)
    files = [file for folders in places.values() for place in folders for file in list_annotations(place, ".json")]
    contents = {file: read_file(file) for file in files}
    by_shape = any(content["shapes"] for content in contents.values())
    if by_shape and any(True in content["flags"].values() for content in contents.values()):
        warn(f"{places[source.split][0]}: labels are read from shapes, not from flags")
    read_labels = partial(find_labels, contents=contents, by_shape=by_shape)
    return read_table(source, places, ".json", read_labels)


def read_file(file: Path) -> dict[str, Any]:
    """What a file holds, with the lists that are read. Raises InputError for anything else."""
    content = parse_json(read_text(file), file)
    try:
        flags, shapes = dict(content.get("flags") or {}), [shape["label"].strip() for shape in content["shapes"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{file} is no file of Labelme: {type(error).__name__} {str(error)[:200]}") from error
    return {"flags": {name.strip(): value for name, value in flags.items() if name != NO_CLASS}, "shapes": shapes}


def find_labels(file: Path, contents: dict[Path, dict[str, Any]], by_shape: bool) -> Labels:
    flags, shapes = contents[file]["flags"], contents[file]["shapes"]
    if by_shape:
        return Labels({name: 1 for name in shapes if name})
    return Labels({name: 1 for name, value in flags.items() if value}, [*flags])


FORMAT = Format(
    expects="a.jpg and a.json of Labelme (labelme)",
    list_splits=list_splits,
    reader=read,
    files_of_split=files_of_split,
)
