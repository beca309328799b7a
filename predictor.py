"""The one way every script runs a saved model.

model = predictor.load("trained_models/best_model.pt")
for record in model.predict("folder/of/images"):
    print(record.path, record.names)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import checkpoints
from augmentations import Transform, make_eval_transform
from dataset_readers import Batch, Table, decode_image, list_images, make_loader
from engines import ENGINES, Engine, Source, make_example
from metrics import predict
from models_factory import MultiLabelModel, make_model
from utils import InputError, Progress, choose_device, suggest

BATCHES_AHEAD = 2  # decoded while the model computes: enough to even out large and small images


class Record(NamedTuple):
    """What a model says of one image."""

    path: str
    probabilities: NDArray[np.float32]  # (C,)
    labels: list[int]  # indices of the classes at or above their threshold, rising
    names: list[str]  # of those classes


class Predictor:
    """A saved model with all that running it takes: class names, thresholds, image size, resize rule."""

    def __init__(
        self,
        engine: Engine,
        checkpoint: dict[str, Any],
        device: torch.device,
        default_threshold: float,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        self.engine, self.device, self.metadata, self.flip = engine, device, checkpoint, flip
        self.activate = ACTIVATIONS[checkpoint.get("activation", "sigmoid")]
        self.classes: tuple[str, ...] = tuple(checkpoint["classes"])
        threshold = checkpoint.get("best_threshold")
        self.threshold = default_threshold if threshold is None else float(threshold)
        self.thresholds = np.full(len(self.classes), self.threshold, dtype=np.float32)
        sizes = [round(scale * checkpoint["image_size"]) for scale in scales]
        self.transforms = [make_eval_transform(checkpoint["resize_rule"], size) for size in sizes]
        for size in {*sizes} - {checkpoint["image_size"]}:
            require_size(engine, size, checkpoint["model_name"], "TEST_SCALES to (1.0,)")

    def predict(
        self,
        images: str | Path | Sequence[str | Path],
        batch_size: int = 64,
        num_workers: int = 0,
        title: str | None = None,
    ) -> Iterator[Record]:
        """Records of the image files in a folder, or of a list of files, in their order, as they are computed.

        Threads decode ahead of the model, or `num_workers` processes. With a `title`, progress is shown under it.
        Raises InputError for an image that cannot be read.
        """
        paths = list_images(Path(images)) if isinstance(images, str | Path) else [str(path) for path in images]
        batches = zip(
            *(self._load_batches(paths, transform, batch_size, num_workers) for transform in self.transforms),
            strict=True,
        )
        done = iter(paths)
        with Progress(title, len(paths)) if title else nullcontext() as progress:
            for views in batches:
                probabilities = self._compute(views)
                rows = zip(probabilities, predict(probabilities, self.thresholds), done, strict=False)
                for row, chosen, path in rows:
                    labels = np.flatnonzero(chosen).tolist()
                    yield Record(path, row, labels, [self.classes[label] for label in labels])
                if progress:
                    progress.step(len(probabilities))

    def _compute(self, views: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """Probabilities (B, C) of a batch's `views`, each (B, 3, S, S): the mean over them and their mirror images."""
        views = [view for images in views for view in ((images, images.flip(3)) if self.flip else (images,))]
        return torch.stack([self.activate(self.engine(images)) for images in views]).mean(dim=0).cpu().numpy()

    def _load_batches(
        self, paths: list[str], transform: Transform, batch_size: int, num_workers: int
    ) -> Iterator[torch.Tensor]:
        """uint8 (B, 3, S, S) of one batch of `paths` after another."""
        if num_workers == 0:
            return read_ahead(paths, lambda path: read_image(path, transform), batch_size, torch.get_num_threads())
        unknown = Table(paths, np.full((len(paths), len(self.classes)), -1, dtype=np.int8), self.classes)
        return (batch.images for batch in make_loader(unknown, transform, batch_size, num_workers=num_workers))


def load(
    path: str | Path,
    device: str = "auto",
    default_threshold: float = 0.5,
    engine: str = "torch",
    calibration: Sequence[str] = (),
    cache_folder: str | Path | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Predictor:
    """The model in the checkpoint `path`; classes, image size and the rest come from it, not from config.py.

    `default_threshold` serves a checkpoint that has none. `engine` is one of ENGINES; `calibration` image files make
    it int8. What an engine makes of the checkpoint is kept in `cache_folder` (None: beside it, in engines/).
    Probabilities are means over each image at `scales` times the model's size and, with `flip`, their mirror images.
    Raises InputError for whatever is not a checkpoint, and for an engine that is not to be had here.
    """
    path = Path(path)
    checkpoint = checkpoints.load(path)
    target = choose_device(device)
    if engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}{suggest(engine, ENGINES)}; known: {', '.join(ENGINES)}")
    transform = make_eval_transform(checkpoint["resize_rule"], checkpoint["image_size"])
    source = Source(
        make_model=lambda: restore_model(checkpoint, path),
        image_size=checkpoint["image_size"],
        device=target,
        checkpoint=path,
        folder=Path(cache_folder) if cache_folder else path.parent / "engines",
        read_image=lambda image: read_image(image, transform),
        calibration=calibration,
    )
    return Predictor(ENGINES[engine](source), checkpoint, target, default_threshold, flip, scales)


def restore_model(checkpoint: dict[str, Any], path: Path) -> MultiLabelModel:
    """The model whose tensors `checkpoint`, read from `path`, holds. Raises InputError when they do not fit it."""
    model = make_model(
        checkpoint["model_name"],
        len(checkpoint["classes"]),
        checkpoint["head"],
        image_size=checkpoint["image_size"],
        head_options=checkpoint.get("head_options"),
    )
    try:
        model.load_state_dict(checkpoint["model_state"])
    except RuntimeError as error:
        raise InputError(
            f"the tensors in {path} do not fit {checkpoint['model_name']}: {str(error).split(':')[-1].strip()}"
        ) from error
    return model


def require_size(run: Callable[[torch.Tensor], torch.Tensor], image_size: int, name: str, advice: str) -> None:
    """Raise InputError, which says what to set, unless `run`, a model, takes images of `image_size` pixels."""
    try:
        with torch.no_grad():
            run(make_example(image_size))
    except (RuntimeError, ValueError, AssertionError) as error:  # each network says it in its own way
        raise InputError(f"{name} does not take images of {image_size} px: set {advice}") from error


def read_image(path: str, transform: Transform) -> torch.Tensor:
    """The image file as the model sees it: uint8 (3, S, S). Raises InputError when it cannot be read."""
    return transform(torch.from_numpy(decode_image(path)).permute(2, 0, 1))


def read_ahead(
    paths: Sequence[str], read: Callable[[str], torch.Tensor], batch_size: int, num_threads: int
) -> Iterator[torch.Tensor]:
    """Batches (B, ...) of what `read` makes of `paths`, in order, read by threads a few batches ahead.

    An error of `read` comes when it is the turn of its batch.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        reading = (pool.submit(read, path) for path in paths)  # a file is read once it is taken from here
        waiting = deque(islice(reading, BATCHES_AHEAD * batch_size))
        try:
            while waiting:
                batch = [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]
                waiting.extend(islice(reading, len(batch)))
                yield torch.stack(batch)
        finally:
            pool.shutdown(cancel_futures=True)


def compute_probabilities(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    autocast: Callable[[], Any] = nullcontext,
    on_batch: Callable[[Batch, torch.Tensor], None] | None = None,
    activation: str = "sigmoid",
) -> Iterator[NDArray[np.float32]]:
    """(B, C) probabilities of each batch, with `model` in eval mode; `on_batch(batch, logits)` may look on."""
    model.eval()
    for batch in batches:
        batch = batch.to(device)
        with torch.inference_mode(), autocast():
            logits = model(batch.images).float()
        if on_batch:
            on_batch(batch, logits)
        yield ACTIVATIONS[activation](logits).cpu().numpy()


# what turns logits (B, C) into probabilities
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": partial(torch.softmax, dim=1),  # of a model trained on one label an image
}
