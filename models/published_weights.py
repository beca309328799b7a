"""Published weights of multi-label models, by name: PRETRAINED_WEIGHTS = "coco80_asl_tresnet_l".

    find_weights("coco80_asl_tresnet_l", folder)    # folder/coco80_asl_tresnet_l.pt, a checkpoint like any other

The published file is downloaded once, and converted to a checkpoint of this project: with the same HEAD its head is
taken over, too, and `predictor.load` opens it. It is a pickle, and read without running it. PUBLISHED, at the end,
lists all.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dataset import downloads, locks
from dataset.files import hash_file
from dataset.image_sizes import as_size
from models import checkpoints, pretrained, weight_files
from models.backbones import make_backbone
from models.weight_files import State
from utils import InputError, say


class PublishedWeights(NamedTuple):
    """A published file, and what it holds, in the words of those who published it."""

    url: str
    sha256: str | None  # None: they did not say it
    model_name: str  # of the backbone here
    head: str
    num_classes: int
    image_size: int  # pixels, the side of a square
    mean_ap: float  # on the test images of `dataset`
    dataset: str
    licence: str  # of the repository that names the file
    source: str  # where it is described

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


def is_published(weights: str | None) -> bool:
    """Whether `weights`, a value of PRETRAINED_WEIGHTS, is a name in PUBLISHED."""
    return weights in PUBLISHED


def choose_weights(weights: str, folder: Path | None) -> str:
    """`weights` as models/pretrained.py takes them: "default" or a file; a name becomes the file in `folder`.

    Raises InputError for what is neither a file nor a name that is known, and for a name that is a file, too.
    """
    path = Path(weights)
    require_known(weights)
    if is_published(weights):
        if path.exists():
            raise InputError(
                f"PRETRAINED_WEIGHTS {weights} is the name of published weights, and of a file here: write ./{weights} "
                "for the file, or rename it"
            )
        return str(find_weights(weights, folder or Path(torch.hub.get_dir()) / "checkpoints"))
    return weights


def require_known(weights: str) -> None:
    """Raise InputError unless `weights` is "default", a name in PUBLISHED, or a file or folder that exists."""
    if weights == "default" or is_published(weights) or Path(weights).exists():
        return
    near = difflib.get_close_matches(weights, [*PUBLISHED, "default"], n=1, cutoff=0.0)[0]
    raise InputError(
        f"PRETRAINED_WEIGHTS: there are no weights {weights!r}, and no such file; the nearest name is {near} (there "
        f"are: {', '.join(PUBLISHED)}, and default, those that were published for MODEL_NAME)"
    )


def find_weights(name: str, folder: Path) -> Path:
    """The checkpoint NAME.pt in `folder` with the published weights `name`, which is made if it is missing.

    Raises InputError if the published file is not in `folder` and cannot be downloaded, if it is another one than was
    published, and if it does not hold what it should.
    """
    entry, path = PUBLISHED[name], folder / f"{name}.pt"
    if path.is_file():
        return path
    with locks.hold(folder / f".{name}.lock"):  # several processes begin at the same time
        if not path.is_file():
            file = folder / entry.file_name
            fetch(name, entry, file)
            checkpoints.save(path, convert(name, entry, file))
            say(f"saved: {path}")
    return path


def fetch(name: str, entry: PublishedWeights, path: Path) -> None:
    """Download the published file to `path`, unless it is there. Its hash is checked, or said where none is known."""
    was_there = path.is_file()
    if was_there and entry.sha256 and hash_file(path) != entry.sha256:
        raise InputError(f"{path} is not the file that was published as {name} (its SHA-256 is another): move it away")
    if not was_there:
        try:
            if entry.sha256:
                downloads.fetch_checked([entry.url], path, None, f"sha256:{entry.sha256}")
            else:
                downloads.fetch_bytes([entry.url], path)
        except InputError as error:
            raise InputError(
                f"no weights {name}: {entry.url} could not be downloaded ({error}); put that file at {path}, or see "
                f"{entry.source}"
            ) from error
    if not entry.sha256:
        say(f"{path}: SHA-256 {hash_file(path)}; none was published, so that nothing shows whether it is the same file")


# ---- converting ----


def convert(name: str, entry: PublishedWeights, path: Path) -> dict[str, Any]:
    """The published file `path` as a checkpoint of this project.

    The files of ASL and of ML-Decoder hold `model`, the state dict, `num_classes` and `idx_to_class`, the names of the
    classes by their indices. timm converts the names in the backbone, and InPlace-ABN to BatchNorm (the absolute value
    of its weights, and 1e-5). Raises InputError for anything else.
    """
    content = weight_files.read_file(path)
    classes = read_classes(content, entry, path)
    state = weight_files.collect_tensors(content.get("model"), f"`model` in {path}")
    own = [f"head.{key}" for key in ("fc.weight", "decoder.duplicate_pooling")]
    head = CONVERTERS[entry.head](weight_files.take_branch(weight_files.drop_wrapper_parts(state, own), "head."), path)
    for key in ("weight", "bias"):
        if (key, entry.head) != ("weight", "ml_decoder") and len(head[key]) != entry.num_classes:
            raise InputError(f"{path}: the head's {key} is of {len(head[key])} classes, expected {entry.num_classes}")
    pretrained.require_finite(head, f"the head in {path}")
    size = as_size(entry.image_size)
    backbone = make_backbone(entry.model_name, size, gives_map=entry.head == "ml_decoder")
    loaded = pretrained.load_weights(backbone.module, entry.model_name, str(path), None, size)
    if loaded.missing:
        raise InputError(f"{path} lacks {len(loaded.missing)} tensors of {entry.model_name}, as {loaded.missing[0]}")
    options = {"num_groups": len(head["queries"])} if entry.head == "ml_decoder" else {}
    return {
        "model_state": {
            "mean": torch.zeros(1, 3, 1, 1),  # pixels are divided by 255, and no more
            "std": torch.full((1, 3, 1, 1), 255.0),
            **{f"backbone.{key}": value for key, value in backbone.module.state_dict().items()},
            **{f"head.{key}": value.float() for key, value in head.items()},
        },
        "model_name": entry.model_name,
        "head": entry.head,
        "head_options": options,
        "features": "own",
        "activation": "sigmoid",
        "classes": classes,
        "image_size": entry.image_size,
        "resize_rule": "squash",
        "best_threshold": None,
        "pretrained_licence": entry.licence,
        "published": entry._asdict() | {"name": name, "sha256": hash_file(path)},
    }


def read_classes(content: Any, entry: PublishedWeights, path: Path) -> list[str]:
    """The names of the classes in a published file, in the order of their logits."""
    names = content.get("idx_to_class") if isinstance(content, Mapping) else None
    if not isinstance(names, Mapping) or not isinstance(content.get("model"), Mapping):
        raise InputError(f"{path} does not hold `model` and `idx_to_class`, as the file {entry.url} does")
    classes = list(names.values())
    if (
        not all(isinstance(value, str) for value in classes)
        or not len(set(classes)) == len(classes) == entry.num_classes
    ):
        raise InputError(f"{path} names {len(classes)} classes, expected {entry.num_classes} names, each once")
    return classes


def convert_linear(head: State, path: Path) -> State:
    """ASL's: one layer, `fc`."""
    return _rename(head, {"fc.weight": "weight", "fc.bias": "bias"}, path)


def convert_ml_decoder(head: State, path: Path) -> State:
    """ML-Decoder's: torch's decoder of one layer, to which embedding, queries and the layers of the groups belong."""
    layer, parameters = "decoder.layers.0.", ("weight", "bias")
    names = {
        "decoder.query_embed.weight": "queries",
        "decoder.duplicate_pooling": "weight",
        "decoder.duplicate_pooling_bias": "bias",
        **{f"decoder.embed_standart.{key}": f"embed.{key}" for key in parameters},
        **{f"{layer}multihead_attn.in_proj_{key}": f"attention.in_proj_{key}" for key in parameters},
        **{f"{layer}multihead_attn.out_proj.{key}": f"attention.out_proj.{key}" for key in parameters},
        **{f"{layer}linear1.{key}": f"feed_forward.0.{key}" for key in parameters},
        **{f"{layer}linear2.{key}": f"feed_forward.3.{key}" for key in parameters},
        **{f"{layer}norm{n}.{key}": f"norm{n}.{key}" for n in (1, 2, 3) for key in parameters},
    }
    renamed = _rename(head, names, path)
    return renamed | {"weight": renamed["weight"].transpose(1, 2).contiguous()}  # (G, width, classes of a group) there


def _rename(head: State, names: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    """The tensors of `head` by their new names. Raises InputError unless there are these and no others."""
    if head.keys() != names.keys():
        odd = sorted(head.keys() ^ names.keys())[0]
        has = "has" if odd in head else "lacks"
        raise InputError(f"{path} is not what was published: its head {has} `head.{weight_files.show(odd)}`")
    return {new: head[old] for old, new in names.items()}


# keys: heads of PUBLISHED
CONVERTERS: dict[str, Callable[[State, Path], State]] = {
    "linear": convert_linear,
    "ml_decoder": convert_ml_decoder,
}

ASL, ML_DECODER = "https://github.com/Alibaba-MIIL/ASL", "https://github.com/Alibaba-MIIL/ML_Decoder"
SERVER = "https://miil-public-eu.oss-eu-central-1.aliyuncs.com/model-zoo"

# The URLs and numbers are those of MODEL_ZOO.md in the two repositories, both under MIT, which say no hashes. ASL is
# Ridnik et al. 2020 (2009.14119), ML-Decoder Ridnik et al. 2021 (2111.12933). ML-Decoder's TResNet-XL is a network that
# timm does not have.
PUBLISHED: dict[str, PublishedWeights] = {
    "coco80_asl_tresnet_l": PublishedWeights(
        f"{SERVER}/ASL/MS_COCO_TRresNet_L_448_86.6.pth",
        None, "tresnet_l", "linear", 80, 448, 0.866, "MS-COCO 2014", "mit", ASL,
    ),
    "coco80_asl_tresnet_xl": PublishedWeights(
        f"{SERVER}/ASL/MS_COCO_TResNet_xl_640_88.4.pth",
        None, "tresnet_xl", "linear", 80, 640, 0.884, "MS-COCO 2014", "mit", ASL,
    ),
    "coco80_ml_decoder_tresnet_m": PublishedWeights(
        f"{SERVER}/ML_Decoder/tresnet_m_COCO_224_84_2.pth",
        None, "tresnet_m", "ml_decoder", 80, 224, 0.842, "MS-COCO 2014", "mit", ML_DECODER,
    ),
    "coco80_ml_decoder_tresnet_l": PublishedWeights(
        f"{SERVER}/ML_Decoder/tresnet_l_COCO__448_90_0.pth",
        None, "tresnet_v2_l", "ml_decoder", 80, 448, 0.900, "MS-COCO 2014", "mit", ML_DECODER,
    ),
    "open_images9605_ml_decoder_tresnet_m": PublishedWeights(
        f"{SERVER}/ML_Decoder/tresnet_m_open_images_200_groups_86_8.pth",
        None, "tresnet_m", "ml_decoder", 9605, 224, 0.868, "Open Images", "mit", ML_DECODER,
    ),
}  # fmt: skip
