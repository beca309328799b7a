"""Says under which licence the published weights of a backbone stand, as its library says it.

    read_licence("resnet50")                            # "bsd-3-clause"
    read_licence("vit_small_patch16_dinov3.lvd1689m")   # "dinov3-license"

It is what the publisher says of the weights, and no advice: the images that they were learned from have terms of their
own.
"""

from __future__ import annotations

from models.backbones import get_timm_name, is_torchvision, require_name
from models.own_backbones import OWN_BACKBONES

UNKNOWN = "unknown"
NO_WEIGHTS = "no weights"  # nobody publishes any
# torchvision gives a licence only for weights that others made, by its address -> the licence that is written there;
# https://pytorch.org/vision/stable/models.html: "SWAG models are released under the CC-BY-NC 4.0 license"
OF_ADDRESS = {"https://github.com/facebookresearch/SWAG/blob/main/LICENSE": "cc-by-nc-4.0"}
OF_TORCHVISION = "bsd-3-clause"  # the library's own, which its weights are published with


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
        import torchvision

        address = torchvision.models.get_model_weights(name)["DEFAULT"].meta.get("license")
        return OF_TORCHVISION if address is None else OF_ADDRESS.get(address, UNKNOWN)
    import timm

    config = timm.get_pretrained_cfg(get_timm_name(name))
    if config is None or not config.has_weights:
        return NO_WEIGHTS
    return (config.license or UNKNOWN).lower()
