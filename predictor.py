"""Runs a saved model over images. The model is a checkpoint, or a file of ONNX, OpenVINO, torch.export or TorchScript.

    model = predictor.load("trained_models/best_model.pt")
    for record in model.predict("folder/of/images"):
        print(record.path, record.names, record.scores["cat"])
        record.save_to_img("output")

Every script that predicts does it by this module.
"""

from __future__ import annotations

import functools
import io
import json
import mimetypes
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Union

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

import calibration
import metrics
from dataset import whole_files
from dataset.batches import Transform
from dataset.class_names import quote_names
from dataset.decoding import Picture, decode, read_content
from dataset.drawing import draw_labels
from dataset.fonts import make_drawable
from dataset.image_selection import select_images
from dataset.image_sizes import Size, as_size
from dataset.json_files import to_json
from dataset.resize_rules import identity, make_eval_transform
from dataset.table import Table
from export import engine_cache, engines, model_files, timm_folders
from export.engines import Run, TorchRun
from models import checkpoints, hub_folders
from models.devices import DeviceSettings, choose_device, choose_settings
from models.inference import ACTIVATIONS
from models.metadata import check_metadata
from models.novelty import Reference, find_reference
from models_factory import require_size, restore_model
from thresholds import measure_doubt
from utils import InputError, Progress, make_visible, say

if TYPE_CHECKING:  # of a GPU: they import torchvision, which takes seconds
    from dataset.device_decoding import File
    from dataset.plans import Plan, Planner

ROUNDING = 0.01  # by which int8 may miss 0 and 1
NOTEBOOK_SIDE = 480  # pixels, the longest side of a picture in a notebook
JPEG_QUALITY = 90
BATCHES_AHEAD = 2  # batches decoded while the model computes: enough to even out large and small images

REQUIRED = {*checkpoints.REQUIRED, "output", "dynamic"} - {"model_state"}  # keys of an exported file's metadata
# an image as it was read for a size: its pixels (3, H, W) or, where a GPU makes pictures, what that needs of it
Prepared = Union[NDArray[np.uint8], "Cut", "File"]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Record:
    """What a model predicts for one image. In a notebook it shows the picture with its labels.

        for record in model.predict("photos/*.jpg"):
            record.scores["cat"]            # 0.93
            record.print()
            record.save_to_img("output")    # output/NAME_res.jpg

    `print`, `save_to_img`, `save_to_json`, `json` and `img` are those of PaddleX's results.
    """

    path: str  # "" for an image that did not come from a file
    probabilities: NDArray[np.float32]  # (C,)
    labels: list[int]  # indices of the predicted classes, in rising order
    names: list[str]  # names of the predicted classes, in the same order
    classes: tuple[str, ...]  # names of all C classes
    picture: Picture | None = None  # of an image that did not come from a file: what it was; None: it is at `path`
    novelty: float | None = None  # the share of training images that it is more unlike the others than; None: not known
    nearest: tuple[str, ...] = ()  # names of the training images that it is nearest to, the nearest first
    abstains: bool = False  # the model is too unsure of these labels: a person should look (the constant ABSTAIN)

    def __repr__(self) -> str:
        return f"Record({', '.join([repr(self.path or 'in memory'), *self.describe()])})"

    @property
    def scores(self) -> dict[str, float]:
        """{name: probability} of all C classes, the most probable first."""
        order = np.argsort(-self.probabilities, kind="stable").tolist()
        return {self.classes[label]: float(self.probabilities[label]) for label in order}

    @property
    def ranked(self) -> list[int]:
        """The labels, the most probable first."""
        return sorted(self.labels, key=lambda label: -self.probabilities[label])

    @property
    def json(self) -> dict[str, dict[str, Any]]:
        """{"res": {"input_path": path or None, "class_ids": [...], "scores": [...], "label_names": [...]}}.

        The labels alone, the most probable first. Where the model abstains, there is also "abstains": true.
        """
        values = {
            "input_path": self.path or None,
            "class_ids": self.ranked,
            "scores": [shorten(self.probabilities[label]) for label in self.ranked],
            "label_names": [self.classes[label] for label in self.ranked],
        }
        if self.abstains:
            values["abstains"] = True
        return {"res": values}

    @property
    def img(self) -> dict[str, Image.Image]:
        """{"res": the picture above its labels and their probabilities}. Raises InputError if it cannot be read."""
        return {"res": self.draw()}

    def describe(self) -> list[str]:
        """The labels with their probabilities, the most probable first: ["cat 0.98", "sofa 0.71"], or ["no label"]."""
        texts = [f"{self.classes[label]} {self.probabilities[label]:.2f}" for label in self.ranked]
        return texts or ["no label"]

    def draw(self, most: int | None = None) -> Image.Image:
        """The picture, at most `most` pixels wide and high (None: its own size), above its labels.

        Raises InputError if it cannot be read.
        """
        pixels = decode(self.path if self.picture is None else self.picture)
        if most:
            picture = Image.fromarray(pixels)
            picture.thumbnail((most, most))
            pixels = np.asarray(picture)
        drawable = replace(self, classes=tuple(make_drawable(self.classes)))
        return draw_labels(pixels, drawable.describe())

    def print(self, json_format: bool = False, indent: int = 4, ensure_ascii: bool = False) -> None:
        """Print `json`: on one line, or with `json_format` as JSON whose levels are indented by `indent` blanks."""
        write = json.dumps if ensure_ascii else to_json
        text = write(self.json, indent=indent) if json_format else str(self.json)
        say(*text.split("\n"))

    def save_to_img(self, save_path: str | Path) -> Path:
        """Write the picture above its labels to the image file `save_path`; else into that folder, as NAME_res.jpg.

        The ending is the image's own, or .png. A file that was there is replaced. Returns the file's path. Raises
        InputError if the picture cannot be read or written, and for a folder if the picture came from memory.
        """
        ending = Path(self.path).suffix
        path = self._choose_file(save_path, "image/", ending if ending.lower() in WRITTEN_ENDINGS else ".png")
        if path.suffix.lower() not in WRITTEN_ENDINGS:
            raise InputError(f"cannot write {path}: a picture ends in {', '.join(WRITTEN_ENDINGS)}")
        kind = Image.registered_extensions()[path.suffix.lower()]
        canvas = self.img["res"]
        whole_files.write_atomically(path, lambda file: canvas.save(file, kind, quality=JPEG_QUALITY))
        return path

    def save_to_json(self, save_path: str | Path, indent: int = 4, ensure_ascii: bool = False) -> Path:
        """Write what `json` has under "res" to the file `save_path` if it ends in .json; else into that folder.

        There it is NAME_res.json. A file that was there is replaced. Returns the file's path. Raises InputError if it
        cannot be written, and for a folder if the picture came from memory.
        """
        path = self._choose_file(save_path, "application/json", ".json")
        write = json.dumps if ensure_ascii else to_json
        whole_files.write_text(path, write(self.json["res"], indent=indent))
        return path

    def _choose_file(self, save_path: str | Path, kind: str, ending: str) -> Path:
        """`save_path` if its ending says that it is a file of this MIME type; else the file's path in that folder."""
        path = Path(save_path).expanduser()
        if (mimetypes.guess_type(path.name)[0] or "").startswith(kind):
            return path
        if not self.path:
            raise InputError(f"this picture came from memory and has no name: save it as {path / f'NAME{ending}'}")
        return path / f"{Path(self.path).stem}_res{ending}"

    def _repr_png_(self) -> bytes:
        """What Jupyter shows: a small picture above its labels."""
        buffer = io.BytesIO()
        self.draw(NOTEBOOK_SIDE).save(buffer, "PNG")
        return buffer.getvalue()


WRITTEN_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")  # of pictures with labels


def shorten(probability: float | np.float32) -> float:
    """The probability with six digits, for files."""
    return float(f"{probability:.6g}")


class Seen(NamedTuple):
    """What a model says of B images; `novelty` and `nearest` are None where it has nothing to compare them with."""

    probabilities: NDArray[np.float32]  # (B, C)
    novelty: NDArray[np.float64] | None = None  # (B,), see models/novelty.py
    nearest: NDArray[np.intp] | None = None  # (B, k) rows of the model's reference


class Cut(NamedTuple):
    """What a GPU needs of an image: some of its pixels uint8 (h, w, 3), and what it is to do to them."""

    pixels: NDArray[np.uint8]
    plan: Plan


class Predictor:
    """A saved model with all that is needed to run it: class names, thresholds, image size, resize rule.

    `metadata` is what the model's file says about the model. Predictions use `thresholds` (C,), which apply to the
    calibrated probabilities if there is a calibration. `threshold` is one number that was tuned for all classes
    together, on uncalibrated probabilities. `reference` is what images are compared with, for their novelty and the
    nearest training images; None: the model's run has left none, or the engine gives no features. `settings` say
    where pictures are made.
    """

    def __init__(
        self,
        run: Run,
        metadata: dict[str, Any],
        path: Path,
        device: torch.device,
        *,
        default_threshold: float = 0.5,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        calibration: str = "none",
        reference: Reference | None = None,
        settings: DeviceSettings | None = None,
    ) -> None:
        self.run, self.metadata, self.path, self.device, self.flip = run, metadata, path, device, flip
        self.reference, self.settings = reference, settings or choose_settings(device)
        gives_probabilities = metadata.get("output", "logits") == "probabilities"
        self.calibration: str = metadata.get("applied_calibration", "none") if gives_probabilities else calibration
        self.classes: tuple[str, ...] = tuple(metadata["classes"])
        self.image_size = as_size(metadata["image_size"])
        self.min_labels, self.max_labels = metadata.get("min_labels", 0), metadata.get("max_labels", 0)
        threshold = metadata.get("best_threshold")
        self.threshold = default_threshold if threshold is None else float(threshold)
        self.has_thresholds = threshold is not None or bool(metadata.get("thresholds"))  # of its own
        thresholds = metadata.get("thresholds") or [self.threshold] * len(self.classes)
        self.activate, self.thresholds = choose_activation(metadata, calibration, thresholds)
        self.sizes = [self.image_size.scaled(scale) for scale in scales]
        self.abstention: dict[str, float] | None = metadata.get("abstention")  # None: the model decides on every image

    @property
    def resizes(self) -> bool:
        """Whether the model's file resizes by itself: then it takes one image of any size at a time."""
        return self.metadata.get("input") == engines.IMAGE

    @property
    def resize_rule(self) -> str | None:
        """The rule by which images get the model's size; None if the model's file does that itself."""
        return None if self.resizes else self.metadata["resize_rule"]

    @property
    def compares(self) -> bool:
        """Whether records say how an image compares with the training images: it is looked at in the model's size."""
        return self.reference is not None and self.image_size in self.sizes

    def __repr__(self) -> str:
        """Predictor(resnet18, 3 classes: 'cat', 'dog', 'fox', trained_models/best_model.pt)."""
        classes = f"{len(self.classes):,} classes: {quote_names(self.classes)}"
        return make_visible(f"Predictor({self.metadata.get('model_name')}, {classes}, {self.path})")

    def predict(
        self,
        images: Picture | Iterable[Picture],
        batch_size: int = 64,
        num_workers: int = 0,
        title: str | None = None,
    ) -> Iterator[Record]:
        """Yield one record for each image, in the order of `images`, as soon as its batch is computed.

        `images` is one picture or an iterable of pictures. In memory a picture is a PIL image, a uint8 array (H, W, 3)
        in RGB (OpenCV's is BGR: pass `array[:, :, ::-1]`), or the bytes of an image file. On disk it is a file, or
        several: a folder, a pattern such as "photos/**/*.jpg", a .txt file with a path a line; see
        `dataset.image_selection`. An iterable is read at most BATCHES_AHEAD batches ahead, so memory does not grow with
        the number of images; a record keeps a picture that was in memory, for drawing. Threads decode the images, or
        `num_workers` processes if it is not 0. With a `title`, progress is shown if the number of images is known.
        Raises InputError for an image that cannot be read.

            for record in model.predict(["a.jpg", "b.jpg"]):
                print(record.path, record.names, record.probabilities.max())
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: it must be 1 or more")
        pictures = list_pictures(images)
        total = len(pictures) if isinstance(pictures, Sized) else len(images) if isinstance(images, Sized) else 0
        with Progress(title, total) if title and total else nullcontext() as progress:
            for batch, views in self.read(pictures, self.sizes, batch_size, num_workers):
                paths = [str(picture) if isinstance(picture, str | Path) else "" for picture in batch]
                seen = self.look_in_views(views, paths)
                probabilities = seen.probabilities
                decisions = self.decide(probabilities), self.abstain(probabilities)
                for row, (picture, path, labels, abstains) in enumerate(zip(batch, paths, *decisions, strict=True)):
                    yield Record(
                        path=path,
                        probabilities=probabilities[row],
                        labels=labels,
                        names=[self.classes[label] for label in labels],
                        classes=self.classes,
                        picture=None if path else picture,
                        novelty=None if seen.novelty is None else float(seen.novelty[row]),
                        nearest=self.name_nearest(seen, row),
                        abstains=abstains,
                    )
                if progress:
                    progress.step(len(batch))

    def prepare(self, image: Picture) -> torch.Tensor:
        """The image as uint8 (3, H, W), in the model's size, or in its own for a file that resizes.

        Raises InputError if it cannot be read.
        """
        return read_image(image, _make_transform(self.resize_rule, self.image_size))

    def compute(self, images: torch.Tensor, names: Sequence[str] = ()) -> NDArray[np.float32]:
        """The probabilities (B, C) that `look` gives."""
        return self.look(images, names).probabilities

    def look(self, images: torch.Tensor, names: Sequence[str] = ()) -> Seen:
        """What the model says of images uint8 (B, 3, H, W); with `flip`, means over an image and its mirror image.

        Images of the model's own size are compared with the training images, if there is a `reference`: as they are,
        not mirrored. Raises InputError if the model gives anything but C probabilities for each image, for example NaN;
        what misses 0...1 by ROUNDING at most becomes 0 or 1. `names` are those of the images, for its message.
        """
        features = None
        if self.reference and images.shape[2:] == self.image_size:
            assert isinstance(self.run, TorchRun)
            logits, features = self.run.look(images)
        else:
            logits = self.run(images)
        views = [logits, self.run(images.flip(3))] if self.flip else [logits]
        probabilities = torch.stack([self.activate(view) for view in views]).mean(dim=0).cpu().numpy()
        self.require_probabilities(probabilities, len(images), names)
        probabilities = np.clip(probabilities, 0, 1)  # metrics refuse even a rounding beyond them
        if features is None or self.reference is None:
            return Seen(probabilities)
        nearest = self.reference.find_nearest(features.cpu().numpy())
        return Seen(probabilities, self.reference.measure_novelty(nearest.cosines[:, 0]), nearest.rows)

    def look_in_views(self, views: Sequence[torch.Tensor], names: Sequence[str] = ()) -> Seen:
        """`look` at images in each of `sizes`, uint8 (B, 3, H, W); probabilities are means over these."""
        seen = [self.look(images, names) for images in views]
        probabilities = np.mean([view.probabilities for view in seen], axis=0)
        compared = next((view for view in seen if view.novelty is not None), seen[0])
        return compared._replace(probabilities=probabilities)

    @property
    def makes_on_gpu(self) -> bool:
        """Whether pictures are resized on the GPU, in batches."""
        return self.settings.makes_pictures_on_gpu and not self.resizes

    def read(
        self, pictures: Iterable[Picture], sizes: Sequence[Size], batch_size: int, num_workers: int = 0
    ) -> Iterator[tuple[list[Picture], list[torch.Tensor]]]:
        """Yield (some of the pictures, the same as uint8 (B, 3, H, W) in each of `sizes`), batch by batch.

        Threads decode them, or `num_workers` processes if it is not 0.
        """
        are_files = isinstance(pictures, list) and {*map(type, pictures)} <= {str, type(Path())}
        if self.makes_on_gpu and num_workers and len(sizes) == 1 and are_files and pictures:
            yield from self._load([*map(str, pictures)], sizes[0], batch_size, num_workers)
            return
        read = partial(
            _read_sized,
            resize_rule=self.resize_rule,
            sizes=tuple(sizes),
            makes_on_gpu=self.makes_on_gpu,
            decodes_on_gpu=self.makes_on_gpu and self.settings.decodes_on_gpu,
        )
        waiting: deque[Picture] = deque()

        def remember() -> Iterator[Picture]:
            for picture in pictures:
                waiting.append(picture)
                yield picture

        for images in read_ahead(remember(), read, 1 if self.resizes else batch_size, num_workers):
            yield [waiting.popleft() for _ in images], self.stack(images)

    def _load(
        self, paths: list[str], size: Size, batch_size: int, num_workers: int
    ) -> Iterator[tuple[list[Picture], list[torch.Tensor]]]:
        """`read` for image files whose pictures a GPU makes: processes hand over whole batches in shared memory."""
        from dataset import loading
        from dataset.loading_processes import LoadingProcesses

        options = loading.choose_options(self.settings, LoadingProcesses(num_workers), paths, size, batch_size)
        table = Table(paths, np.zeros((len(paths), 0), np.int8), ())
        loader = loading.make_loader(table, _make_transform(self.resize_rule, size), batch_size, options=options)
        loading.share_batches(loader, 0, 1)  # all of them: other processes have other images
        for start, batch in zip(range(0, len(paths), batch_size), loader, strict=True):
            yield [*paths[start : start + batch_size]], [batch.to(self.device).images]

    def stack(self, images: Sequence[Sequence[Prepared]]) -> list[torch.Tensor]:
        """B images, as they were read in each of S sizes, as S tensors uint8 (B, 3, H, W)."""
        views = []
        for sized in zip(*images, strict=True):
            first = sized[0]
            if isinstance(first, np.ndarray):
                # a single one may be a whole photograph, which stacking would copy
                views.append(torch.from_numpy(np.stack(sized) if len(images) > 1 else first[None]))
            else:
                from dataset.device_decoding import send
                from dataset.plans import Part

                parts = [Part(torch.from_numpy(cut.pixels), cut.plan) if isinstance(cut, Cut) else cut for cut in sized]
                views.append(send(parts).to(self.device))
        return views

    def name_nearest(self, seen: Seen, row: int) -> tuple[str, ...]:
        """The names of the training images that image number `row` of those `seen` is nearest to."""
        if self.reference is None or seen.nearest is None:
            return ()
        return tuple(self.reference.names[index] for index in seen.nearest[row].tolist())

    def measure_features(
        self, images: Sequence[str], batch_size: int = 64, num_workers: int = 0, title: str | None = None
    ) -> NDArray[np.float32]:
        """What the head sees of the image files `images`, its mean over positions, (N, D). In engine torch only."""
        assert isinstance(self.run, TorchRun)
        rows = []
        with Progress(title, len(images)) if title else nullcontext() as progress:
            for batch, views in self.read([*images], [self.image_size], batch_size, num_workers):
                _, features = self.run.look(views[0])
                rows.append(features.cpu().numpy())
                if progress:
                    progress.step(len(batch))
        return np.concatenate(rows)

    def require_probabilities(
        self, probabilities: NDArray[np.float32], num_images: int, names: Sequence[str] = ()
    ) -> None:
        """Raise InputError if `probabilities` are not (B, C) numbers from 0 to 1, for B images called `names`."""
        if probabilities.shape != (num_images, len(self.classes)):
            raise InputError(
                f"the model {self.path} gives {probabilities.shape[1:]} numbers for an image, and has "
                f"{len(self.classes)} classes: it is not the model that its metadata describes"
            )
        is_bad = ~((probabilities >= -ROUNDING) & (probabilities <= 1 + ROUNDING)).all(axis=1)  # of NaN, too
        if is_bad.any():
            image = int(is_bad.argmax())
            value = next(value for value in probabilities[image] if not -ROUNDING <= value <= 1 + ROUNDING)
            name = names[image] if image < len(names) and names[image] else f"image {image + 1} of a batch"
            raise InputError(
                f"the model {self.path} gives {value:g} as a probability for {name}, and for {is_bad.sum() - 1} of the "
                f"batch's {num_images - 1} other images: its weights are not finite, or too large; train it again"
            )

    def decide(self, probabilities: NDArray[np.float32]) -> list[list[int]]:
        """Indices of the predicted classes, in rising order, for each row of `probabilities` (B, C)."""
        chosen = metrics.predict(probabilities, self.thresholds, self.min_labels, self.max_labels)
        return [np.flatnonzero(row).tolist() for row in chosen]

    def find_threshold(self, label: int, probability: float, is_said: bool) -> float | None:
        """The threshold of class `label`, if it decided that this `probability` is said or not.

        None: the limits of an image's labels decided, as they always do where an image has one.
        """
        threshold = float(self.thresholds[label])
        has_one_label = self.min_labels == self.max_labels == 1
        return threshold if not has_one_label and (probability >= threshold) == is_said else None

    def abstain(self, probabilities: NDArray[np.float32]) -> list[bool]:
        """Whether the model leaves the image to a person, for each row of `probabilities` (B, C)."""
        if self.abstention is None:
            return [False] * len(probabilities)
        predicted = metrics.predict(probabilities, self.thresholds, self.min_labels, self.max_labels)
        methods = self.metadata.get("calibration") or {}
        calibrated: NDArray[np.floating] = probabilities
        if "platt" in methods:  # as when the cut was tuned, whichever calibration is in use
            used = methods.get(self.calibration, {"scale": [1.0], "bias": [0.0]})
            calibrated = calibration.apply_to_probabilities(probabilities, calibration.relate(methods["platt"], used))
        return (measure_doubt(calibrated, predicted) > self.abstention["cut"]).tolist()


def load(
    path: str | Path,
    device: str = "auto",
    *,
    default_threshold: float = 0.5,
    engine: str = "auto",
    int8_images: Sequence[str] = (),
    cache_folder: str | Path | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    calibration: str = "none",
    allow_failed: bool = False,
    pictures_on: str = "auto",
) -> Predictor:
    """Open the model in the file `path`. Its classes, image size and so on come from the file, not from config.py.

    `path` may also be a folder in the layout of Hugging Face's hub, or an address, "hf-hub:owner/name"; see
    models/hub_folders.py. A model that others put there with timm has no thresholds of its own.

    `default_threshold` is used if the model has no threshold. `engine` is a key of engines.ENGINES, or "auto", which
    chooses the engine by the kind of file. Engines other than torch run a checkpoint by an ONNX file that is made from
    it and kept in `cache_folder` (None: in the folder engines/ beside the checkpoint); with image files in
    `int8_images` that ONNX file is int8. An image is computed in each of `scales` (times the model's size) and, with
    `flip`, also mirrored; its probabilities are the means. `calibration` is the name of a calibration that the file
    holds, or "none".

    `pictures_on` says where images are resized, and JPEGs decoded, as PICTURES_ON does: "gpu" means on the GPU that the
    model runs on, in batches; anything else on the CPU.

    A checkpoint in engine torch also says how unlike the training images an image is, if its run left a reference of
    them (models/novelty.py). Exported files give logits alone.

    Raises InputError if the file is no model or is damaged, if it is a program (TorchScript, torch.export) but its name
    has not that ending in engines.PROGRAM_ENDINGS, if the model or the engine cannot do what is asked, and, without
    `allow_failed`, for an exported file that did not pass its comparison with its checkpoint, or has changed since.

        model = predictor.load("best_model.pt", flip=True, scales=(1.0, 1.25))
    """
    path = hub_folders.locate(path)
    if not scales or min(scales) <= 0:
        raise InputError(f"scales are {tuple(scales)}: they must be one or more numbers above 0")
    format = engines.recognise(path)
    engines.require_program_name(path, format)
    engine = engines.choose_engine(engine, format, path)
    target = choose_device("cpu" if device == "auto" and engine != "torch" else device)
    settings = choose_settings(target, pictures_on=pictures_on)  # first: it may raise, and an int8 file takes minutes
    is_exported = format != "checkpoint" or hub_folders.is_ours(path)
    if is_exported and not allow_failed:
        if mark := model_files.find_mark(path):
            raise InputError(model_files.explain_mark(path, mark))
        model_files.require_unchanged(path.parent if hub_folders.is_ours(path) else path)
    if format == "checkpoint":
        metadata = checkpoints.load(path)
        run = _open_checkpoint(metadata, path, engine, target, int8_images, cache_folder)
        any_size = engine == "torch"
    else:
        if int8_images:
            raise InputError(f"int8 is made of a checkpoint, and {path} is {format}: set TEST_INT8 = False")
        opened = timm_folders.open_timm if format == "timm" else engines.ENGINES[engine]
        run, metadata, _ = opened(path, target)
        if not isinstance(metadata, dict) or not metadata.keys() >= REQUIRED:
            raise InputError(f"{path} does not say its classes and image size: export_onnx.py makes files that do")
        check_metadata(metadata, path)
        any_size = "size" in metadata["dynamic"]
        run = run if "batch" in metadata["dynamic"] else engines.run_one_by_one(run)
    model = Predictor(
        run=run,
        metadata=metadata,
        path=path,
        device=target,
        default_threshold=default_threshold,
        flip=flip,
        scales=scales,
        calibration=calibration,
        reference=find_reference(path, metadata) if format == "checkpoint" and engine == "torch" else None,
        settings=settings,
    )
    for size in {*model.sizes} - {model.image_size}:
        if not any_size:
            raise InputError(
                f"{path} in engine {engine} takes images of {model.image_size} px only: set TEST_SCALES to (1.0,)"
            )
        require_size(run, size, metadata["model_name"], "TEST_SCALES to (1.0,)")
    return model


def _open_checkpoint(
    metadata: dict[str, Any],
    path: Path,
    engine: str,
    device: torch.device,
    int8_images: Sequence[str],
    cache_folder: str | Path | None,
) -> Run:
    """Run the checkpoint `metadata`, which was read from `path`, in `engine`."""
    image_size = as_size(metadata["image_size"])
    if engine == "torch":
        if int8_images:
            raise InputError("engine torch runs float models only: choose openvino for int8")
        return engines.make_torch(restore_model(metadata, path), image_size, device)
    if hub_folders.is_ours(path) and cache_folder is None:
        raise InputError(f"engine {engine} keeps a file of the model, and {path.parent} is no place: name cache_folder")
    transform = make_eval_transform(metadata["resize_rule"], image_size)
    source = engine_cache.KeptSource(
        make_model=lambda: restore_model(metadata, path),
        image_size=image_size,
        checkpoint=path,
        folder=Path(cache_folder) if cache_folder else path.parent / "engines",
        read_image=lambda image: read_image(image, transform),
        int8_images=int8_images,
    )
    return engine_cache.open_kept(source, engine, device)


def choose_activation(
    metadata: dict[str, Any], method: str, thresholds: ArrayLike
) -> tuple[Callable[[torch.Tensor], torch.Tensor], NDArray[np.float32]]:
    """Returns (a function from a model's output (B, C) to probabilities calibrated by `method`, its thresholds (C,)).

    The argument `thresholds` applies to uncalibrated probabilities. Raises InputError if the model has no calibration
    `method`.
    """
    thresholds = np.asarray(thresholds, dtype=np.float32)
    if metadata.get("output", "logits") == "probabilities":  # the file itself computes and calibrates them
        applied = metadata.get("applied_calibration", "none")
        if method not in ("none", applied):
            raise InputError(f"this file gives probabilities of CALIBRATION {applied}: export it again for {method}")
        return _leave_unchanged, thresholds
    activate = ACTIVATIONS[metadata.get("activation", "sigmoid")]
    if method == "none":
        return activate, thresholds
    fitted = (metadata.get("calibration") or {}).get(method)
    if fitted is None or activate is not torch.sigmoid:
        raise InputError(
            f"the model has no calibration {method!r}: set CALIBRATION to 'none', or fit it by threshold_tuning.py"
        )

    def calibrate(logits: torch.Tensor) -> torch.Tensor:
        return activate(calibration.apply(logits, fitted))

    return calibrate, np.asarray(calibration.map_thresholds(thresholds, fitted), dtype=np.float32)


def _leave_unchanged(probabilities: torch.Tensor) -> torch.Tensor:
    return probabilities


def list_pictures(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    """The pictures that `images` means, one after the other: a list where what it holds is in memory already."""
    if isinstance(images, str | Path):
        return select_images(images)
    if isinstance(images, bytes | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
        return [images]
    chosen = (
        picture for image in images for picture in (select_images(image) if isinstance(image, str | Path) else (image,))
    )
    return list(chosen) if isinstance(images, list | tuple) else chosen


def read_image(image: Picture, transform: Transform) -> torch.Tensor:
    """Decode an image and transform it to the model's input, uint8 (3, H, W). Raises InputError if it is unreadable."""
    return transform(torch.from_numpy(decode(image)).permute(2, 0, 1))


def _read_sized(
    image: Picture, resize_rule: str | None, sizes: tuple[Size, ...], makes_on_gpu: bool, decodes_on_gpu: bool
) -> list[Prepared]:
    """What is computed of the image, for each of `sizes`: see bring_to_sizes. A GPU that decodes gets a JPEG's file."""
    if decodes_on_gpu and isinstance(image, str | Path | bytes):
        from dataset.device_decoding import File, find_size

        data = image if isinstance(image, bytes) else read_content(image)
        if size := find_size(data):
            name = f"in memory ({len(data):,} bytes)" if isinstance(image, bytes) else str(image)
            return [File(data, name, _make_planner(resize_rule, target)(*size, 0)) for target in sizes]
    return bring_to_sizes(decode(image), resize_rule, sizes, makes_on_gpu)


def bring_to_sizes(
    pixels: NDArray[np.uint8], resize_rule: str | None, sizes: Sequence[Size], makes_on_gpu: bool = False
) -> list[Prepared]:
    """An image uint8 (H, W, 3) as (3, H, W) in each of `sizes`; without a `resize_rule` in its own size.

    Where a GPU resizes, it is what the GPU needs of the image. Arrays and not tensors, since processes pass arrays on
    more quickly.
    """
    if makes_on_gpu:
        from dataset.plans import take_part

        height, width, _ = pixels.shape
        plans = [_make_planner(resize_rule, size)(height, width, 0) for size in sizes]
        return [Cut(part.pixels.numpy(), part.plan) for part in (take_part(pixels, plan) for plan in plans)]
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return [_make_transform(resize_rule, size)(image).numpy() for size in sizes]


@functools.cache
def _make_planner(resize_rule: str | None, size: Size) -> Planner:
    from dataset.plans import make_planner

    return make_planner(_make_transform(resize_rule, size))


@functools.cache  # made once in a process, not once for each image
def _make_transform(resize_rule: str | None, size: Size) -> Transform:
    return identity if resize_rule is None else make_eval_transform(resize_rule, size)


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Result], batch_size: int, num_workers: int = 0
) -> Iterator[list[Result]]:
    """Yield lists of `batch_size` results of `read(item)`, in the order of `items`; the last list may be shorter.

    Threads call `read`, or `num_workers` processes if it is not 0; they are BATCHES_AHEAD batches ahead. An error in
    `read` is raised when the batch of its item is due.
    """
    with make_pool(num_workers) as pool:
        try:
            yield from read_in_pool(pool, items, read, batch_size)
        finally:
            pool.shutdown(cancel_futures=True)


def read_in_pool(
    pool: Executor, items: Iterable[Item], read: Callable[[Item], Result], batch_size: int
) -> Iterator[list[Result]]:
    """The same with a `pool` of `make_pool` that stays open."""
    reading = (pool.submit(read, item) for item in items)  # submits an item only when the next one is asked for
    waiting = deque(islice(reading, BATCHES_AHEAD * batch_size))
    while waiting:
        batch = [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]
        waiting.extend(islice(reading, len(batch)))
        yield batch


def make_pool(num_workers: int) -> Executor:
    """What reads images: as many processes, or threads for 0."""
    if num_workers:  # one thread in each process: torch's own threads would compete for the same cores
        return ProcessPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(1,))
    return ThreadPoolExecutor(torch.get_num_threads())
