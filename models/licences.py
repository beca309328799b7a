"""Says under which licence the published weights of a backbone stand, as its library says it.

    read_licence("resnet50")                            # "bsd-3-clause"
    read_licence("vit_small_patch16_dinov3.lvd1689m")   # "dinov3-license"
    find_licence(checkpoints.load("best_model.pt"))     # that of the weights which its training began with
    explain_licence("cc-by-nc-4.0")                     # "The pretrained weights are for non-commercial use only ..."

It is what the publisher says of the weights, and no advice: the images that they were learned from have terms of their
own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.backbones import is_torchvision, read_timm_config, read_torchvision_weights, require_name
from models.own_backbones import OWN_BACKBONES
from utils import InputError

UNKNOWN = "unknown"
NO_WEIGHTS = "no weights"  # nobody publishes any
# torchvision gives a licence only for weights that others made, by its address -> the licence that is written there;
# https://pytorch.org/vision/stable/models.html: "SWAG models are released under the CC-BY-NC 4.0 license"
OF_ADDRESS = {"https://github.com/facebookresearch/SWAG/blob/main/LICENSE": "cc-by-nc-4.0"}
OF_TORCHVISION = "bsd-3-clause"  # the library's own, which its weights are published with
FREE = ("apache-2.0", "bsd-3-clause", "cc-by-4.0", "mit")
# names that the hub knows (https://hf.co/docs/hub/repositories-licenses)
HUB_LICENCES = ("apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "mit", "apple-amlr", "apple-ascl", "gemma")
# the last: "exclusively for Research Purposes" (Apple Machine Learning Research Model License Agreement)
NON_COMMERCIAL = ("cc-by-nc-4.0", "fair-noncommercial-research-license", "apple-amlr")


def read_licence(name: str) -> str:
    """The licence of the published weights of the backbone `name`, in small letters as on Hugging Face's hub.

    "unknown" where the library does not say it, "no weights" where there are none. A tag, as in `resnet50.a1_in1k`,
    names the weights; without it they are the ones that PRETRAINED_WEIGHTS = "default" takes. Raises InputError for a
    name that does not exist.
    """
    require_name(name)
    if name in OWN_BACKBONES:
        return NO_WEIGHTS
    if is_torchvision(name):
        address = read_torchvision_weights(name).meta.get("license")
        return OF_TORCHVISION if address is None else OF_ADDRESS.get(address, UNKNOWN)
    config = read_timm_config(name)
    if config is None or not config.has_weights:
        return NO_WEIGHTS
    return (config.license or UNKNOWN).lower()


def find_licence(metadata: Mapping[str, Any]) -> str:
    """The licence of the weights that a model's training began with, from what its file says about it.

    Files have it under "pretrained_licence". For older ones it is found by MODEL_NAME and PRETRAINED_WEIGHTS; of
    weights from a file it is "unknown" then.
    """
    if "pretrained_licence" in metadata:
        return metadata["pretrained_licence"]
    weights = metadata.get("config", {}).get("PRETRAINED_WEIGHTS", UNKNOWN)
    if weights is None:
        return NO_WEIGHTS
    if weights != "default":
        return UNKNOWN
    try:
        return read_licence(metadata["model_name"])
    except InputError:  # a backbone that this version of timm does not have
        return UNKNOWN


def write_for_hub(licence: str) -> dict[str, str]:
    """The licence as cards on Hugging Face's hub have it: one that it does not know is "other", with a name."""
    if licence in (NO_WEIGHTS, UNKNOWN):
        return {"license": "unknown"}
    return {"license": licence} if licence in HUB_LICENCES else {"license": "other", "license_name": licence}


def forbids_commerce(licence: str) -> bool:
    """Whether a licence is known to allow non-commercial use only."""
    return licence in NON_COMMERCIAL


def explain_licence(licence: str) -> str:
    """What the licence of the pretrained weights means for a model that was trained from them, in a sentence or two."""
    if licence == NO_WEIGHTS:
        return "It was trained from random weights, so no licence of others binds it."
    if licence == UNKNOWN:
        return "The licence of the pretrained weights is not known: ask who published them before you use the model."
    if licence in FREE:
        return f"The pretrained weights stand under {licence}, which allows commercial use and asks for its notice."
    if forbids_commerce(licence):
        return (
            f"The pretrained weights are for non-commercial use only ({licence}), and so is what is trained from them."
        )
    return f"The pretrained weights stand under terms of their own, {licence}: read them before you use or publish it."
