"""Predictions as tables of Apache Arrow, which Parquet files hold and pandas, DuckDB, Spark and others read.

    schema = make_arrow_schema(("cat", "dog"), thresholds=[0.4, 0.5], model_sha256="3f09ac...")
    table = make_arrow_table(schema, ["a.jpg"], labels=[[0]], probabilities=np.array([[0.9, 0.2]], np.float32))
    write_parquet(Path("predictions.parquet"), schema, [table])

A row is an image: `file`, `labels` and their `scores`, the most probable first, `probabilities` of all classes, and
where they are known `novelty` and `abstains`. The schema's metadata say of which classes, in which order.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataset.json_files import to_json
from dataset.whole_files import write_atomically
from utils import InputError, warn_once

if TYPE_CHECKING:  # it takes a fifth of a second to load, and only Parquet needs it
    import pyarrow as pa

NOVELTY, ABSTAINS = "novelty", "abstains"  # the columns that not every model has


def require_pyarrow() -> None:
    """Raise InputError where pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError("Parquet files need pyarrow: pip install -r requirements-parquet.txt")


def make_arrow_schema(
    classes: Sequence[str],
    *,
    thresholds: Sequence[float] | None = None,
    model_sha256: str = "",
    has_novelty: bool = False,
    has_abstains: bool = False,
) -> pa.Schema:
    """The columns of a table of predictions of C `classes`.

    Its metadata are text: `classes` and `thresholds`, both JSON lists in the model's order, and `model_sha256`, that of
    its file; what is not known is left out. Raises InputError where pyarrow is not installed.
    """
    require_pyarrow()
    import pyarrow as pa

    fields = [
        pa.field("file", pa.string()),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("scores", pa.list_(pa.float32())),
        pa.field("probabilities", pa.list_(pa.float32(), len(classes))),
    ]
    fields += [pa.field(NOVELTY, pa.float32())] * has_novelty + [pa.field(ABSTAINS, pa.bool_())] * has_abstains
    metadata = {"classes": to_json(list(classes))}
    if thresholds is not None:
        metadata["thresholds"] = to_json([float(value) for value in thresholds])
    if model_sha256:
        metadata["model_sha256"] = model_sha256
    return pa.schema(fields, metadata)


def make_arrow_table(
    schema: pa.Schema,
    files: Sequence[str],
    labels: Sequence[Sequence[int]],
    probabilities: NDArray[np.float32],
    *,
    novelty: NDArray[np.floating] | None = None,
    abstains: Sequence[bool] | None = None,
) -> pa.Table:
    """A table of B images: `labels` are the class indices of each in rising order, `probabilities` (B, C).

    `novelty` and `abstains` (B,) are given where the schema has these columns. A file name that is no UTF-8, which
    Arrow cannot hold, gets escapes, and a warning.
    """
    import pyarrow as pa

    classes = read_classes(schema)
    probabilities = np.ascontiguousarray(probabilities, dtype=np.float32)
    counts = np.fromiter(map(len, labels), np.int32, count=len(labels))
    rows = np.repeat(np.arange(len(labels)), counts)
    columns = np.fromiter((label for row in labels for label in row), np.int64, count=int(counts.sum()))
    scores = probabilities[rows, columns]
    ranked = np.lexsort((-scores, rows))  # by rows, in each the most probable first; of equal ones the first class
    offsets = pa.array(np.concatenate([[0], counts.cumsum()]).astype(np.int32))
    names = pa.array(classes, pa.string()).take(pa.array(columns[ranked]))
    arrays = [
        pa.array(map(escape, files), pa.string()),
        pa.ListArray.from_arrays(offsets, names),
        pa.ListArray.from_arrays(offsets, pa.array(scores[ranked], pa.float32())),
        pa.FixedSizeListArray.from_arrays(pa.array(probabilities.reshape(-1), pa.float32()), len(classes)),
    ]
    for name, values in ((NOVELTY, novelty), (ABSTAINS, abstains)):
        if name in schema.names:
            arrays.append(pa.array(values, schema.field(name).type))
    return pa.Table.from_arrays(arrays, schema=schema)


def read_classes(schema: pa.Schema) -> list[str]:
    """The classes of a table of predictions, in the model's order."""
    return json.loads(schema.metadata[b"classes"])


def escape(file: str) -> str:
    r"""The name of a file, in which a byte that is no UTF-8 is written as `\udcff`; says so once."""
    try:
        file.encode()
    except UnicodeEncodeError:
        warn_once("there are names of files that are no UTF-8, as Parquet wants: they have escapes there")
        return file.encode(errors="backslashreplace").decode()
    return file


def write_parquet(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write the tables one after the other as one Parquet file, complete or not at all; each becomes a row group.

    Raises InputError if it cannot be written.
    """
    import pyarrow.parquet as pq

    def write(temporary: Path) -> None:
        # names repeat, so a dictionary shortens them; of probabilities it would only add to the file
        options: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["labels.list.element"]}
        with pq.ParquetWriter(temporary, schema, **options) as writer:
            for table in tables:
                writer.write_table(table)

    write_atomically(path, write)
