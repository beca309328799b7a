"""Reads files of weights, whoever made them, without running code from them, and finds a network's tensors in them.

tensors = collect_tensors(read_file(path), str(path))    # {"state_dict.module.conv1.weight": tensor, ...}
prefixes = list_prefixes(tensors, names)      # ["state_dict.module."]: what stands before a network's own `names`
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils import InputError

State = dict[str, Tensor]

MAX_DEPTH = 4  # mappings inside mappings that are searched for tensors; an optimizer's state may lie deeper
MAX_SHOWN = 80  # characters of a tensor's name that a message shows
# what wrappers of torch put before the names of what they wrap, also in the middle of a name
WRAPPER_PARTS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
SAVE_ALONE = "save its state dict alone, torch.save(model.state_dict(), file)"
# how files of other kinds begin -> what they are, and what to do
BEGINNINGS = {
    b"version https://git-lfs": "it is a pointer of Git LFS, and not the weights: run git lfs pull where it came from",
    b"\x1f\x8b": "it is compressed (gzip): unpack it",
    b"BZh": "it is compressed (bzip2): unpack it",
    b"\xfd7zXZ": "it is compressed (xz): unpack it",
    b"\x28\xb5\x2f\xfd": "it is compressed (zstd): unpack it",
    b"7z\xbc\xaf": "it is compressed (7z): unpack it",
    b"Rar!": "it is compressed (rar): unpack it",
    b"\x89HDF": "it is HDF5, as Keras writes it: convert it to a state dict of torch",
    b"\x93NUMPY": "it is an array of NumPy: convert it to a state dict of torch",
    b"GGUF": "it is GGUF: convert it to a state dict of torch",
}


# ---- reading ----


def read_file(path: Path) -> Any:
    """Read what torch.save or safetensors wrote, with all tensors on the CPU. No code from the file is run.

    The content says which of the two it is, not the file's ending. Raises InputError if the file cannot be read.
    """
    try:
        if is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        # Given a path, torch would believe its ending. It warns of pickles that it then refuses.
        with open(path, "rb") as file, warnings.catch_warnings(action="ignore", category=UserWarning):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries report a damaged file by many kinds of error
        raise InputError(f"cannot read weights {path}: {explain(path, error)}") from error


def is_safetensors(path: Path) -> bool:
    """Whether the file begins with the length of a JSON object, 8 bytes, and that object."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def explain(path: Path, error: Exception) -> str:
    """Why `path` could not be read as a file of torch.save or safetensors, and what to do, in one line.

    `error` is what the library raised. Its text is not shown: it may hold terminal codes, and advice to run the file.
    """
    if not path.exists():
        return "there is no such file"
    if path.is_dir():
        return "it is a folder: name the file in it"
    if not os.access(path, os.R_OK):
        return "it may not be read: check its permissions"
    if path.stat().st_size == 0:
        return "it is empty (0 bytes): copy or download it again"
    with open(path, "rb") as file:
        start = file.read(200)
    for beginning, meaning in BEGINNINGS.items():
        if start.startswith(beginning):
            return meaning
    if start[8:9] == b"{":
        return "it is a damaged file of safetensors, or cut short: copy or download it again"
    pickled = start
    if start.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if any(name.split("/")[1:2] == ["code"] for name in names):
                    return f"it is TorchScript, a program: {SAVE_ALONE}"
                pickles = [name for name in names if name.endswith("data.pkl")]
                if not pickles:
                    return f"it is a ZIP archive of other files ({show(min(names, default='none'))}): unpack it"
                with archive.open(pickles[0]) as file:
                    pickled = file.read(2)
        except Exception:  # a damaged archive fails in many ways
            return "it is damaged or cut short: copy or download it again"
    elif start.strip(b"\0") and tarfile.is_tarfile(path):  # zeros are an empty archive to tarfile
        return "it is a tar archive: unpack it"
    elif text := _read_as_text(start):
        return f"it is no file of torch.save (it begins with {text!r}: a failed download?)"
    if pickled[:1] == b"\x80" and pickled[1] > 2:
        return f"it is a pickle of protocol {pickled[1]}, which is read by running it: {SAVE_ALONE}"
    objects = _name_objects(path, error)
    if objects:
        return f"it holds Python objects ({', '.join(objects)}): {SAVE_ALONE}"
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return "the memory is full"
    return "it is damaged or cut short, or no file of torch.save"


def _read_as_text(start: bytes) -> str:
    """The first line, or the first tag, of a file that begins with `start`; "" if that is no text."""
    line = start.lstrip().partition(b"\n")[0].decode("ascii", errors="replace").rstrip()
    if not line.isprintable() or "\ufffd" in line:
        return ""
    tag = re.match(r"<[^>]*>", line)
    return (tag[0] if tag else line)[:40]


def _name_objects(path: Path, error: Exception) -> list[str]:
    """Name the Python objects because of which torch refused the file: at most three."""
    first = re.findall(r"GLOBAL ([\w.]+)", str(error))  # the one at which reading stopped
    try:
        others = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a file of an old torch, or a damaged pickle: it fails in many ways
        others = []
    names = [name for name in dict.fromkeys([*first, *others]) if re.fullmatch(r"[\w.]+", name)]
    if any(name.startswith("torch.nn.modules.") for name in names):
        return [f"a whole module, {names[0]}"]
    kinds = {"scalar": "numpy scalar", "_reconstruct": "numpy array"}
    found = [kinds[name.rpartition(".")[2]] for name in names if re.search(r"^numpy.*\.(scalar|_reconstruct)$", name)]
    found += [name for name in names if not found or not name.startswith(("numpy", "_codecs"))]
    return [*found[:3], "..."] if len(found) > 3 else found


# ---- finding a network's tensors ----


def collect_tensors(content: Any, source: str) -> State:
    """All tensors in a mapping and in the mappings inside it, named by the keys on the way to them.

    Raises InputError, which names the `source`, if there are none with names. Example: {"epoch": 3, "model":
    {"fc.bias": tensor}} gives {"model.fc.bias": tensor}.
    """
    tensors: State = {}
    numbers: list[Any] = []  # keys of tensors that are no text
    seen: set[int] = set()  # a file may hold a mapping that holds itself
    todo = [("", content, 0)]
    for prefix, mapping, depth in todo:
        if not isinstance(mapping, Mapping) or depth > MAX_DEPTH or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        for key, value in mapping.items():
            if isinstance(value, Mapping):
                todo.append((f"{prefix}{key}.", value, depth + 1))
            elif isinstance(value, Tensor) and isinstance(key, str):
                tensors[prefix + key] = value
            elif isinstance(value, Tensor):
                numbers.append(key)
    if tensors:
        return tensors
    found = f"a {type(content).__name__}"
    if numbers:
        found = f"a tensor's name there is {show(repr(numbers[0]))}, which is no text"
    elif isinstance(content, Mapping):
        keys = [show(str(key)) for key in list(content)[:5]]
        found = f"it holds no tensors, only {', '.join(keys)}" if keys else "it is an empty one"
    raise InputError(f"{source} is not a state dict (names and tensors): {found}")


def drop_wrapper_parts(state: State, names: Iterable[str]) -> State:
    """`state` without the parts that DataParallel, torch.compile and FSDP put into names.

    A part that the network's own `names` have, too, stays. So do all if two tensors would get one name.
    """
    own = {part for name in names for part in name.split(".")}
    parts = [part for part in WRAPPER_PARTS if part not in own]
    renamed = {".".join(part for part in key.split(".") if part not in parts): value for key, value in state.items()}
    return renamed if len(renamed) == len(state) else state


def list_prefixes(state: Collection[str], names: Collection[str]) -> list[str]:
    """What stands before `names` in the names of `state`: the prefix that most of them have first.

    Prefixes with which less than half as many names are found are left out. Example: `state` has
    "ema.conv1.weight", "ema.conv1.bias", "step" and `names` "conv1.weight", "conv1.bias": ["ema."].
    """
    counts: Counter[str] = Counter()
    deepest = max((name.count(".") for name in names), default=0)
    wanted = set(names)
    for key in state:
        parts = key.rsplit(".", deepest + 1)
        for start in range(len(parts)):
            name = ".".join(parts[start:])
            if name in wanted:
                counts[key.removesuffix(name)] += 1
    most = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.most_common() if 2 * count >= most]


def list_branches(state: Iterable[str], least: float) -> Iterator[str]:
    """Prefixes that at least `least` names of `state` have, the shortest first, "" among them."""
    counts: Counter[str] = Counter({"": 0})
    for key in state:
        parts = key.split(".", MAX_DEPTH + 1)
        counts.update(".".join([*parts[:depth], ""]) for depth in range(1, len(parts)))
    yield ""
    yield from sorted((prefix for prefix, count in counts.items() if prefix and count >= least), key=len)


def take_branch(state: State, prefix: str) -> State:
    """The tensors whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def show(name: str) -> str:
    """`name`, which a stranger's file gave, as a message may show it: one short line without terminal codes."""
    text = json.dumps(name)[1:-1]
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def find_nearest(name: str, others: Iterable[str]) -> str:
    """The one of `others` whose last parts are `name`'s, as far as possible."""
    parts = name.split(".")[::-1]

    def count_common(other: str) -> int:
        differs = (part != own for part, own in zip(other.split(".")[::-1], parts, strict=False))
        return next((index for index, is_other in enumerate(differs) if is_other), len(parts))

    return max(others, key=count_common)
