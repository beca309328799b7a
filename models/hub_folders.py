"""Models as Hugging Face's hub has them: a folder with config.json and model.safetensors, here or at an address.

    path = locate("hf-hub:owner/name")      # its model.safetensors, downloaded once; also "hf-hub:owner/name@revision"
    path = locate("folder/of/that/layout")  # likewise; any other path stays as it is
    checkpoint = read_checkpoint(path)      # of a folder with multilabel.json, which export_onnx.py writes

Weights are read from safetensors only, which is no program. export/timm_folders.py opens folders that others made.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset.files import hash_file
from dataset.json_files import read_json
from models.metadata import find_oddity, is_list
from utils import InputError, first_line

if TYPE_CHECKING:
    from models.weight_files import State  # which imports torch: the table of runs needs none

PREFIX = "hf-hub:"
CONFIG, WEIGHTS, TAGS, CARD = "config.json", "model.safetensors", "selected_tags.csv", "README.md"
METADATA = "multilabel.json"  # what only this project says of a model, and reads
OWN, TIMM = "own", "timm"  # whose names the tensors have, in METADATA under "layout"
PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl")


# ---- where it is ----


def locate(path: str | Path) -> Path:
    """The file of the model that `path` means: of a folder with config.json, or of an address, its model.safetensors.

    An address is hf-hub:OWNER/NAME, perhaps with @REVISION; it is downloaded into the cache of huggingface_hub. Other
    paths stay as they are. Raises InputError if there is no model.safetensors, and if it cannot be downloaded.
    """
    path = Path(path)
    if path.as_posix().startswith(PREFIX):
        return _download(path.as_posix())
    if not (path / CONFIG).is_file():
        return path
    if not (path / WEIGHTS).is_file():
        pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
        raise InputError(f"{path} has no {WEIGHTS}{f', {_refuse(pickles[0])}' if pickles else ''}")
    return path / WEIGHTS


def _refuse(name: str) -> str:
    return f"and {name} is a pickle, which is not opened: ask who made it for safetensors"


def is_ours(path: Path) -> bool:
    """Whether `path`, as `locate` gives it, lies in a folder that this project wrote."""
    return path.name == WEIGHTS and (path.parent / METADATA).is_file()


def is_timms(path: Path) -> bool:
    """Whether `path`, as `locate` gives it, lies in a folder in the layout of the hub that others wrote."""
    return path.name == WEIGHTS and (path.parent / CONFIG).is_file() and not is_ours(path)


@functools.cache
def _download(address: str) -> Path:
    """Download what is needed of the model at `address`, all of one commit. Returns the path of its weights."""
    repository, _, revision = address.removeprefix(PREFIX).partition("@")
    config = _download_file(address, repository, revision or None, CONFIG)
    if config is None:
        raise InputError(f"{address} has no {CONFIG}: it is no model in the layout of timm")
    commit = config.parent.name
    for name in (METADATA, TAGS):
        _download_file(address, repository, commit, name)
    weights = _download_file(address, repository, commit, WEIGHTS)
    if weights is None:
        raise InputError(f"{address} has no {WEIGHTS}, {_refuse('what else may hold its weights')}")
    return weights


def _download_file(address: str, repository: str, revision: str | None, name: str) -> Path | None:
    """The file `name` of a repository in huggingface_hub's cache; None if the repository has no such file."""
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if try_to_load_from_cache(repository, name, revision=revision) is _CACHED_NO_EXIST:
            return None
        reason = "the hub cannot be reached (HF_HUB_OFFLINE is set, or there is no network), and it is not in the cache"
        raise InputError(
            f"cannot open {address}: {reason}; run it once with the network, or copy its folder here and name that"
        ) from error
    except EntryNotFoundError:
        return None
    except GatedRepoError as error:
        raise InputError(f"cannot open {address}: its terms have to be accepted there, then: hf auth login") from error
    except RevisionNotFoundError as error:
        raise InputError(f"cannot open {address}: there is no revision {revision!r} of it") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"cannot open {address}: there is none, or it is private: hf auth login") from error
    except HFValidationError as error:
        raise InputError(f"{address} is no address of a model: {PREFIX}OWNER/NAME") from error
    except Exception as error:  # the network and the disk fail in many ways
        raise InputError(f"cannot download {name} of {address}: {first_line(error)}") from error


# ---- what it says ----


class Pixels(NamedTuple):
    """The normalisation of pixels in 0-1, for each colour channel."""

    mean: list[float]
    std: list[float]


def read_config(folder: Path) -> dict[str, Any]:
    """What timm's config.json says: `architecture`, and under `pretrained_cfg` a dict, both there in all cases.

    Raises InputError if it is damaged, or of another library.
    """
    path = folder / CONFIG
    config = read_json(path)
    problem = find_oddity(config) if isinstance(config, dict) else "is no object"
    if problem:
        raise InputError(f"{path}: it {problem}")
    if not isinstance(config.get("architecture"), str):
        raise InputError(f"{path} is not of timm: it names no architecture (of transformers, say, it cannot be opened)")
    settings = config.get("pretrained_cfg", config)  # the oldest ones had all in one object
    if not isinstance(settings, dict):
        raise InputError(f"{path}: its pretrained_cfg is no object")
    return config | {"pretrained_cfg": settings}


def read_pixels(settings: dict[str, Any], path: Path) -> Pixels:
    """The normalisation in a `pretrained_cfg`; where it is missing ImageNet's, as in timm. Raises InputError."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    mean, std = settings.get("mean") or IMAGENET_DEFAULT_MEAN, settings.get("std") or IMAGENET_DEFAULT_STD
    for name, value in (("mean", mean), ("std", std)):
        if not is_list(value) or len(value) != 3 or (name == "std" and min(value) <= 0):
            raise InputError(f"{path}: {name} must be three numbers, of red, green and blue")
    return Pixels([float(value) for value in mean], [float(value) for value in std])


def read_tensors(path: Path) -> State:
    """The tensors of model.safetensors. Raises InputError for a file of another kind, whatever it is called."""
    from models import weight_files

    if not weight_files.is_safetensors(path):
        raise InputError(
            f"{path} is not safetensors, whatever its name says: {weight_files.explain(path, ValueError())}"
        )
    return weight_files.read_file(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The model of a folder that this project wrote, as it is in a checkpoint; `path` is its model.safetensors.

    Raises InputError if a file is damaged, or is not the one that it was written with.
    """
    folder = path.parent
    metadata = read_json(folder / METADATA, allow_nan=True)
    if not isinstance(metadata, dict):
        raise InputError(f"{folder / METADATA} is damaged: it is no object")
    expected = metadata.get("weights_sha256")
    if expected is not None and expected != hash_file(path):
        raise InputError(
            f"{path} has changed since {METADATA} beside it was written: it is damaged, or another file; copy or "
            "download the folder again"
        )
    state = read_tensors(path)
    if metadata.get("layout") == TIMM:
        state = _rename_from_timm(state, read_config(folder), folder / CONFIG)
    return metadata | {"model_state": state}


def _rename_from_timm(state: State, config: dict[str, Any], path: Path) -> State:
    """The state dict of a model of this project with a linear head, of that of timm's network."""
    import torch

    classifier = config["pretrained_cfg"].get("classifier")
    if not isinstance(classifier, str) or not re.fullmatch(r"[\w.]+", classifier):
        raise InputError(f"{path} does not name its classifier")
    pixels = read_pixels(config["pretrained_cfg"], path)
    renamed = {}
    for key, value in state.items():
        is_head = key.startswith(f"{classifier}.")
        renamed[f"head.{key.removeprefix(f'{classifier}.')}" if is_head else f"backbone.network.{key}"] = value
    for name, values in pixels._asdict().items():  # in float64, so that what was divided by 255 comes back exactly
        renamed[name] = (torch.tensor(values, dtype=torch.float64) * 255).float().view(1, 3, 1, 1)
    return renamed
