"""How unlike the training images an image is, and which of them it is nearest to.

    reference = make_reference(features, names, identity)       # of training images, (n, D)
    save_reference(folder / REFERENCE_FILE, reference)
    nearest = reference.find_nearest(features_of_others)        # rows of the reference and cosines, (B, k) each
    reference.measure_novelty(nearest.cosines[:, 0])            # (B,) from 0 to 1

Features are what the model's head sees, their mean over all positions. An image's distance is 1 - cosine to the nearest
training image, as in Sun et al. 2022 ("Out-of-distribution detection with deep nearest neighbors", 2204.06507). Its
novelty is the share of training images that are nearer to the rest of the training images than it is.

The file holds names of training images and features of them, and no pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataset.array_files import read_named_arrays
from dataset.image_sizes import as_size
from dataset.whole_files import write_atomically
from models.features import OWN
from utils import InputError, first_line, warn_once

REFERENCE_FILE = "neighbours.npz"
MOST_IMAGES = 2000  # of a reference: more change novelty by less than luck does
LEAST_IMAGES = (
    250  # of a reference whose features have to be computed: what is foreign is told as well (docs/measured.md)
)
NUM_NEAREST = 5
NOVEL = 0.99  # an image of this novelty or more is "unlike the training images"; of 100 like them it is one
SAME = 0.9999  # cosine from which on two images are copies of one picture; different ones of one kind may reach 0.99
ROWS_AT_ONCE = 1024  # whose cosines to all others are in memory together


class Nearest(NamedTuple):
    """The training images that each of B images is nearest to, the nearest first."""

    rows: NDArray[np.intp]  # (B, k) of the reference
    cosines: NDArray[np.float32]  # (B, k)


class Reference(NamedTuple):
    """What images are compared with: n training images."""

    features: NDArray[np.float32]  # (n, D), each row of length 1
    names: list[str]  # of the n images, relative to the folder that holds all training images
    distances: NDArray[np.float32]  # rising: of each, 1 - cosine to the nearest of the others
    identity: str  # of the backbone that the features are of, see `identify`

    def find_nearest(self, features: NDArray[np.float32], count: int = NUM_NEAREST) -> Nearest:
        """The `count` images of the reference that are nearest to `features` (B, D); all, where it has fewer.

        Raises InputError for features of another length.
        """
        if features.shape[1] != self.features.shape[1]:
            raise InputError(
                f"{REFERENCE_FILE} has {self.features.shape[1]} features an image, and the model {features.shape[1]}: "
                "it is of another model; delete it"
            )
        cosines = normalise(features) @ self.features.T
        return choose_nearest(cosines, count)

    def measure_novelty(self, cosines: NDArray[np.float32]) -> NDArray[np.float64]:
        """(B,) the share of training images that are nearer to another one than images with these `cosines` (B,) are.

        1: farther away than every training image is from the rest. A copy of a training image has 0.
        """
        return np.searchsorted(self.distances, 1 - cosines, side="left") / len(self.distances)


def normalise(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """`features` (B, D) with rows of length 1; a row of zeros stays."""
    features = np.asarray(features, dtype=np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, np.finfo(np.float32).tiny)


def choose_nearest(cosines: NDArray[np.float32], count: int) -> Nearest:
    """The `count` largest of each row of `cosines` (B, n), the largest first; all n, where there are fewer."""
    count = min(count, cosines.shape[1])
    rows = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(cosines, rows, axis=1), axis=1, kind="stable")
    rows = np.take_along_axis(rows, order, axis=1)
    return Nearest(rows, np.take_along_axis(cosines, rows, axis=1))


def choose_rows(num_images: int, most: int) -> list[int]:
    """Which of `num_images` images a reference is made of: all, or `most` that are evenly spaced."""
    count = min(most, MOST_IMAGES, num_images)
    return [number * num_images // count for number in range(count)]


def make_reference(
    features: NDArray[np.floating], names: Sequence[str], identity: str, sources: Sequence[str] | None = None
) -> Reference | None:
    """What images are compared with, from `features` (n, D) of n training images; None where there are too few.

    Of copies of one picture the first is kept. `sources` name where each image comes from (a video, a patient; "": not
    known). An image's distance is to images of other sources, since an image to be predicted is of another one, too.
    """
    rows = normalise(features)
    kept: list[int] = np.flatnonzero(~find_copies(rows)).tolist()
    # as they are in the file, so that both give the same novelty
    rows = normalise(rows[kept].astype(np.float16))
    source_of = None if sources is None else number_sources([sources[row] for row in kept])
    distances = measure_distances(rows, source_of)
    if not len(distances):
        return None
    return Reference(rows, [names[row] for row in kept], distances, identity)


def find_copies(features: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(n,) whether an earlier one of the n images is the same picture; `features` (n, D) have length 1."""
    is_copy = np.zeros(len(features), dtype=bool)
    for start in range(0, len(features), ROWS_AT_ONCE):
        block = features[start : start + ROWS_AT_ONCE]
        is_same = block @ features[: start + len(block)].T >= SAME
        is_copy[start : start + len(block)] = np.tril(is_same, start - 1).any(axis=1)
    return is_copy


def number_sources(sources: Sequence[str]) -> NDArray[np.intp]:
    """(n,) a number for each source; images without one ("") have a number each."""
    keys = [source or index for index, source in enumerate(sources)]
    number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([number_of[key] for key in keys], dtype=np.intp)


def measure_distances(features: NDArray[np.float32], source_of: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
    """Rising: 1 - cosine from each image to the nearest one of another source, of those for which there is any.

    `features` (n, D) have length 1; `source_of` (n,) numbers the images' sources, None: each has its own.
    """
    if source_of is None:
        source_of = np.arange(len(features))
    nearest = []
    for start in range(0, len(features), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        cosines = features[block] @ features.T
        cosines[source_of[block, None] == source_of] = -np.inf
        nearest.append(cosines.max(axis=1))
    distances = 1 - np.concatenate(nearest) if nearest else np.zeros(0, np.float32)
    return np.sort(distances[np.isfinite(distances)])


# ---- files ----


def save_reference(path: Path, reference: Reference) -> None:
    """Write the reference, its features as float16."""
    arrays = {
        "features": reference.features.astype(np.float16),
        "names": np.array(reference.names, dtype=str),
        "distances": reference.distances,
        "identity": np.array(reference.identity),
    }

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # numpy would add .npz to a name, but not to an open file
            np.savez(file, **arrays)

    write_atomically(path, write)


# of the arrays in the file: dtype.kind, dimensions
KINDS = dict(zip(Reference._fields, (("f", 2), ("U", 1), ("f", 1), ("U", 0)), strict=True))


def read_reference(path: Path) -> Reference:
    """Read what `save_reference` wrote. Runs no code from the file. Raises InputError for a damaged one."""
    try:
        features, names, distances, identity = read_named_arrays(path, KINDS)
        if len(features) != len(names) or not 0 < len(distances) <= len(names):
            raise ValueError(f"{len(features)} rows, {len(names)} names, {len(distances)} distances")
        if not (np.isfinite(features).all() and np.isfinite(distances).all() and (np.diff(distances) >= 0).all()):
            raise ValueError("its numbers are not finite, or not in order")
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names.tolist()):
            raise ValueError("it names images outside the folder of the training images")
    except (OSError, ValueError, LookupError) as error:
        raise InputError(
            f"cannot read {path}: it is damaged, or no file of this project ({first_line(error)}); a test "
            "of labelled images makes it again"
        ) from error
    return Reference(normalise(features), names.tolist(), distances.astype(np.float32), str(identity))


def find_reference(checkpoint: Path, metadata: Mapping[str, Any]) -> Reference | None:
    """The reference of the model in the file `checkpoint`, with its `metadata` and weights; None where there is none.

    A file of another model is left alone. Of a damaged one it warns: all but novelty is known without it.
    """
    identity = ""
    for folder in list_folders(checkpoint, metadata):
        path = folder / REFERENCE_FILE
        if path.is_file():
            identity = identity or identify(metadata)
            try:
                reference = read_reference(path)
            except InputError as error:
                warn_once(f"{error}; without it, novelty is not known")
                continue
            if reference.identity == identity:
                return reference
    return None


def list_folders(checkpoint: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """The folders in which the reference of a checkpoint may lie: its run's, then its own.

    The run's folder lies beside the run's checkpoint X.pt and is called X. A copy of it, such as best_model.pt, says
    which run it is of; models/metadata.py lets it name no place but one below its own folder.
    """
    folders = [checkpoint.with_suffix(""), checkpoint.parent / metadata.get("run", ""), checkpoint.parent]
    return [folder for folder in folders if folder.is_dir()]


def identify(metadata: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change with what features depend on: the backbone's weights, and how it is fed.

    `metadata` is a checkpoint with its `model_state`. The head, its thresholds and its calibration change nothing.
    """
    size = as_size(metadata["image_size"]).as_plain()
    fed = [metadata["model_name"], size, metadata["resize_rule"], metadata.get("features", OWN)]
    digest = hashlib.blake2b(json.dumps(fed).encode(), digest_size=8)
    for name, tensor in sorted(metadata["model_state"].items()):
        if not name.startswith("head."):
            digest.update(name.encode())
            digest.update(view_bytes(tensor))
    return digest.hexdigest()


def view_bytes(tensor: Any) -> memoryview:
    """The bytes of a tensor of any type, in order."""
    import torch

    return memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
