"""Maps of where a saved model sees its classes, as the page of a test and the server show them.

maps = MapMaker(model)
maps.problem                                     # "", or why there are none
values = maps.compute(model.prepare(path), [7])  # (1, h, w)
maps.draw(photograph, values[0])                 # a picture
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor, nn

from evaluation import activation_maps
from export import engines
from export.engines import TorchRun
from models import checkpoints
from models_factory import MultiLabelModel, restore_model
from predictor import Predictor
from utils import InputError

METHOD = "grad-cam"  # it works with every head and backbone that have maps


class MapMaker:
    """Makes maps of where a checkpoint sees a class. `problem` says why there are none; "": there are.

    The network is the one that runs `model`, where that is PyTorch. For a checkpoint in another engine it is read from
    the file, if it `reads_file`.
    """

    def __init__(self, model: Predictor, *, reads_file: bool = True) -> None:
        self.model, self.problem = model, ""
        self.network: MultiLabelModel | None = None
        self.layer: nn.Module | None = None  # whose output the maps are of; None: no map was made yet
        if isinstance(model.run, TorchRun):
            self.network = model.run.model
        elif not reads_file:
            self.problem = "Maps of where the model sees a class need a checkpoint in PyTorch."
        elif engines.recognise(model.path) != "checkpoint":
            self.problem = "Maps of where the model sees a class need a checkpoint, and this is an exported file."
        else:
            self.network = restore_model(checkpoints.load(model.path), model.path).to(model.device)
        if not self.problem and model.metadata["resize_rule"] not in activation_maps.UNDO_RESIZE_RULES:
            self.problem = "There are no maps: timm resizes the images of this model, which is not undone here."

    def compute(self, image: Tensor, labels: Sequence[int]) -> Tensor | None:
        """A map of each of K `labels` on an image, uint8 (3, H, W) in the model's size: (K, h, w), on the CPU.

        A map is 0 everywhere where no place speaks for its class. None, and a `problem`, where the network has no maps.
        While it runs, nothing else may run the network.
        """
        if self.network is None or self.problem:
            return None
        try:
            trace = activation_maps.follow(self.network, image.to(self.model.device), self.layer)
            self.layer = activation_maps.find_grid(trace).layer
            return activation_maps.METHODS[METHOD](trace, labels).cpu()
        except InputError as error:
            self.problem = f"There are no maps: {error}."
            return None

    def draw(self, photograph: Image.Image, values: Tensor) -> Image.Image:
        """The photograph, in any size, under the colours of a map (h, w)."""
        return activation_maps.draw_map(photograph, values, self.model.metadata["resize_rule"], self.model.image_size)
