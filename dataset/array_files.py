"""NumPy's files, whoever wrote them: .npy and .npz.

    matrix = read_array(Path("embeddings.npy"))
    scores = read_arrays(Path("validation_scores.npz"))["probabilities"]

NumPy itself takes the memory that a header announces before it looks at what is there.
"""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from numpy.lib import format as npy
from numpy.typing import NDArray

from dataset.files import open_file
from dataset.text_files import MEMORY_SHARE, measure_memory

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
HEADER_ERRORS = (SyntaxError, TypeError, KeyError, OverflowError, RecursionError, MemoryError, tokenize.TokenError)
ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def read_array(path: Path) -> NDArray[Any]:
    """The array in a .npy file. Raises OSError, and ValueError for anything else."""
    with open_file(path) as file:
        return read_next(file)


def read_next(file: BinaryIO) -> NDArray[Any]:
    """The next array in an open file; several may follow each other. Raises OSError, ValueError."""
    return _read(file, os.fstat(file.fileno()).st_size)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """{name: array} of a .npz file. Raises OSError, and ValueError for anything else.

    What it holds may take MEMORY_SHARE of the machine's memory: a few kilobytes can unfold to gigabytes.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > measure_memory() // MEMORY_SHARE:
                raise ValueError("it unfolds to more than fits into memory")
            found = {}
            for member in members:
                with archive.open(member) as stream:
                    found[member.filename.removesuffix(".npy")] = _read(stream, member.file_size)
            return found
    except ARCHIVE_ERRORS as error:
        raise ValueError(str(error)) from error


def read_named_arrays(path: Path, kinds: Mapping[str, tuple[str, int]]) -> list[NDArray[Any]]:
    """The arrays of a .npz file that `kinds` names, in its order: {name: (dtype.kind, dimensions)}.

    Raises OSError as `read_arrays` does, LookupError for a name that is missing, and ValueError for anything else.
    """
    found = read_arrays(path)
    arrays = [found[name] for name in kinds]
    for (name, (kind, dimensions)), array in zip(kinds.items(), arrays, strict=True):
        if array.dtype.kind != kind or array.ndim != dimensions:
            raise ValueError(f"{name} is {array.dtype} with {array.ndim} dimensions")
    return arrays


def _read(file: Any, size: int) -> NDArray[Any]:
    """The array that begins where `file`, of `size` bytes, is. Raises ValueError for one that is not whole."""
    start = file.tell()
    try:
        shape, _, dtype = HEADERS[npy.read_magic(file)](file)
        num_bytes = math.prod(shape) * dtype.itemsize
    except HEADER_ERRORS as error:
        raise ValueError(f"its header is damaged: {type(error).__name__}") from error
    if min(shape, default=0) < 0 or num_bytes > size - file.tell():
        raise ValueError(f"its header announces an array {shape} of {dtype}, which is not there")
    file.seek(start)
    try:
        return npy.read_array(file, allow_pickle=False)
    except MemoryError as error:
        raise ValueError(f"an array of {num_bytes:,} bytes does not fit into memory") from error
