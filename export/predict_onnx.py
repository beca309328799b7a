"""Names what is on pictures, by an ONNX file that export_onnx.py wrote. Needs onnxruntime, numpy and pillow only.

    python predict_onnx.py model.onnx photo.jpg folder/             # photo.jpg: cat 0.98, sofa 0.71
    python predict_onnx.py model.onnx folder/ --json > labels.jsonl    # a line of JSON for each picture

A folder means the pictures in it and its sub-folders. The labels are those of the model in training: classes,
thresholds, limits of labels and the resize rule come from the file. A product needs what stands above the command line:
copy it, or import this file.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import io
import json
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, UnidentifiedImageError

PIL_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")  # for others PIL may start a program
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
PIL_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # of damaged files, with a reason
RARE_ERRORS = (TypeError, LookupError, ArithmeticError, EOFError, struct.error, zlib.error)  # of some, without


class ModelError(Exception):
    """A model that cannot be used: its file, and why."""


class PictureError(Exception):
    """A picture that cannot be read: its file, and why."""


class Classifier:
    """Classifier("model.onnx").predict("photo.jpg") gives the labels: {"cat": 0.98, "sofa": 0.71}.

    Raises ModelError for a file that is no such model, or is not as it was when it was compared with its checkpoint.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        require_whole(Path(path))
        self.session = open_session(path)
        self.input: str = self.session.get_inputs()[0].name
        self.about = read_metadata(self.session, path)
        self.classes: list[str] = self.about["classes"]
        self.thresholds = np.array(self.about["thresholds"], dtype=np.float32)  # (C,)
        sides = self.about["image_size"]
        self.height, self.width = (sides, sides) if isinstance(sides, int) else sides

    def predict(self, image: str | Path | Image.Image) -> dict[str, float]:
        """The labels of a picture with their probabilities, the most probable first."""
        probabilities = self.measure(image)
        return {self.classes[label]: float(probabilities[label]) for label in self.decide(probabilities)}

    def measure(self, image: str | Path | Image.Image) -> np.ndarray:
        """The probabilities of all classes, float32 (C,). Raises PictureError for a file that cannot be read."""
        picture = make_rgb(image) if isinstance(image, Image.Image) else read_picture(image)
        if self.input == "image":  # the file resizes: uint8 (H, W, 3)
            pixels = np.asarray(picture)
        else:  # uint8 (1, 3, H, W)
            resized = resize(picture, self.height, self.width, self.about["resize_rule"])
            pixels = np.asarray(resized).transpose(2, 0, 1)[None]
        try:
            outputs: Any = self.session.run(None, {self.input: pixels})
        except Exception as error:  # ONNX Runtime has many classes of errors, without a common one
            raise ModelError(f"cannot run {self.path} on uint8 {pixels.shape}: {shorten(error, self.path)}") from error
        if outputs[0].shape != (1, len(self.classes)):
            raise ModelError(
                f"{self.path} gives {outputs[0].shape} numbers for an image, and has {len(self.classes)} classes: it "
                "is not the model that its metadata describes"
            )
        probabilities = self.activate(outputs[0][0])
        wrong = probabilities[~((probabilities >= -0.01) & (probabilities <= 1.01))]  # int8 may miss 0 and 1; NaN, too
        if len(wrong):
            name = "an image in memory" if isinstance(image, Image.Image) else image
            raise ModelError(
                f"{self.path} gives {wrong[0]:g} as a probability for {name}: its weights are not finite, or too "
                "large; train it again"
            )
        return probabilities.clip(0, 1)

    def activate(self, output: np.ndarray) -> np.ndarray:
        """The probabilities of an image, float32 (C,), from what the file gives for it."""
        if self.about["output"] == "probabilities":
            return output
        logits = output.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            if self.about.get("activation") == "softmax":
                powers = np.exp(logits - logits.max())
                return (powers / powers.sum()).astype(np.float32)
            return (1 / (1 + np.exp(-logits))).astype(np.float32)

    def decide(self, probabilities: np.ndarray) -> list[int]:
        """The indices of the predicted classes, the most probable first."""
        is_label = probabilities >= self.thresholds
        count = max(int(is_label.sum()), self.about.get("min_labels") or 0)
        count = min(count, self.about.get("max_labels") or count)
        labels = sorted(range(len(is_label)), key=lambda label: (not is_label[label], -probabilities[label]))[:count]
        return sorted(labels, key=lambda label: (-probabilities[label], label))


def require_whole(path: Path) -> None:
    """Raise ModelError if there is no file, if it is marked as failed, or is not the one that its report tells of."""
    if not path.is_file():
        raise ModelError(f"there is no model {path}")
    for place in (path, *list(path.absolute().parents)[:3]):  # an exported folder has its mark beside it
        if place.name and (mark := place.with_name(f"{place.name}.FAILED")).exists():
            raise ModelError(
                f"{path} did not pass its comparison with the checkpoint: export it again, or delete {mark.name} to "
                "use it all the same"
            )
    report = path.with_name(f"{path.name}.json")
    if not report.is_file():
        return
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {report}: {type(error).__name__}") from error
    expected = content.get("sha256") if isinstance(content, dict) else None
    if expected is None:
        return
    expected = expected if isinstance(expected, dict) else {}
    files = (path, path.with_name(f"{path.name}.data"))  # the second: weights above 2 GB
    found = {file.name: hash_file(file) for file in files if file.name in expected and file.is_file()}
    if not expected or expected != found:
        raise ModelError(
            f"{path} has changed since {report.name} was written: it is damaged, or another file; export it again, or "
            f"delete {report.name} to use it all the same"
        )


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_session(path: str | Path) -> onnxruntime.InferenceSession:
    """The ONNX file in ONNX Runtime, on the CPU. Raises ModelError if it is none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it says what it then raises
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has many classes of errors, without a common one
        reason = f"it is no ONNX file, damaged, or of another version ({shorten(error, path)})"
        raise ModelError(f"cannot open {path}: {reason}") from error


def read_metadata(session: onnxruntime.InferenceSession, path: str | Path) -> dict[str, Any]:
    """What the file says about its model. Raises ModelError if that is not all that is used here, in its form."""

    def is_number(value: Any, least: float, most: float) -> bool:
        return isinstance(value, int | float) and least <= value <= most

    text = session.get_modelmeta().custom_metadata_map.get("multilabel")
    if text is None:
        raise ModelError(f"{path} does not say its classes and thresholds: take a file that export_onnx.py wrote")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its metadata is no JSON") from error
    about = about if isinstance(about, dict) else {}
    classes: Any = about.get("classes")
    thresholds: Any = about.get("thresholds")
    sides: Any = about.get("image_size")
    sides = sides if isinstance(sides, list) else [sides, sides]
    is_right = {
        "classes": isinstance(classes, list) and bool(classes) and all(isinstance(name, str) for name in classes),
        "thresholds": isinstance(thresholds, list) and all(is_number(value, 0, 1 + 1e-6) for value in thresholds),
        "image_size": len(sides) == 2 and all(isinstance(side, int) and is_number(side, 1, 8192) for side in sides),
        "resize_rule": about.get("resize_rule") in ("squash", "center_crop", "letterbox"),
        "output": about.get("output") in ("logits", "probabilities"),
        "activation": about.get("activation", "sigmoid") in ("sigmoid", "softmax"),
    }
    for name in ("min_labels", "max_labels"):
        is_right[name] = isinstance(about.get(name) or 0, int) and is_number(about.get(name) or 0, 0, 2**53)
    for name, right in is_right.items():
        if not right:
            raise ModelError(
                f"{path}: {name} in its metadata is {ascii(about.get(name))[:60]}, which export_onnx.py never writes"
            )
    if len(thresholds) != len(classes):
        raise ModelError(f"{path}: its metadata has {len(thresholds)} thresholds for {len(classes)} classes")
    return about


def shorten(error: Exception, path: str | Path) -> str:
    """The last line of an error of ONNX Runtime, without the path of the model."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].rpartition(" : ")[2].replace(str(path), "it")


def resize(image: Image.Image, height: int, width: int, rule: str) -> Image.Image:
    """The image in the network's size, as in training: bilinear, over all pixels that a new one covers.

    Other ways to resize (OpenCV's INTER_LINEAR, a browser's canvas) read other pixels, and give other labels.
    """
    new_height, new_width, left, top = height, width, 0, 0
    if rule == "center_crop":  # cover 8/7 of the size, cut out the middle
        new_height, new_width = round(height * (8 / 7)), round(width * (8 / 7))
        if image.width * new_height >= image.height * new_width:
            new_width = int(new_height * image.width / image.height)
        else:
            new_height = int(new_width * image.height / image.width)
        left, top = round((new_width - width) / 2), round((new_height - height) / 2)
    elif rule == "letterbox":  # fit into the size, black around it
        if image.width * height >= image.height * width:
            new_height = max(1, round(image.height * width / image.width))
        else:
            new_width = max(1, round(image.width * height / image.height))
        left, top = -((width - new_width) // 2), -((height - new_height) // 2)
    resized = Image.fromarray(resize_sides(np.asarray(image), new_height, new_width))
    return resized.crop((left, top, left + width, top + height))


def resize_sides(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """`pixels`, uint8 (H, W, 3), in another size: columns first, each step rounded to whole numbers, as in PyTorch."""
    flat = pixels.reshape(len(pixels), -1)
    narrow = np.empty((len(flat), width * 3), dtype=np.uint8)
    tiles = list(make_tiles(pixels.shape[1], width, 3))
    for top in range(0, len(flat), 64):  # what is converted at once fits into a processor's cache
        rows = flat[top : top + 64].astype(np.float64)
        for old, new, weights in tiles:
            narrow[top : top + 64, new] = np.minimum(rows[:, old] @ weights + 0.5, 255)
    resized = np.empty((height, width * 3), dtype=np.uint8)
    for old, new, weights in make_tiles(len(flat), height, 1):
        resized[new] = np.minimum(weights.T @ narrow[old].astype(np.float64) + 0.5, 255)
    return resized.reshape(height, width, 3)


def make_tiles(length: int, count: int, channels: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Which of `length` old pixels make which of `count` new ones, some at a time, and their weights (old, new).

    PyTorch rounds weights to 16 bits, the largest power of 2 by which they fit. Most differences between libraries come
    from that, since pixels midway between two whole numbers are frequent. float64 holds the sums without rounding.
    """
    scale = length / count
    reach = max(scale, 1.0)
    middles = (np.arange(count)[:, None] + 0.5) * scale
    first = np.maximum(0, np.floor(middles - reach)).astype(int)
    places = first + np.arange(int(2 * reach) + 2)
    weights = np.maximum(0, 1 - np.abs(places + 0.5 - middles) / reach) * (places < length)
    weights /= weights.sum(axis=1, keepdims=True)
    bits = sum(weights.max() * 2.0**power < 2**15 - 0.5 for power in range(1, 23))
    weights = np.floor(weights * 2.0**bits + 0.5) / 2.0**bits
    step = 8 * max(1, count // length)
    for start in range(0, count, step):
        chosen, begin = slice(start, min(start + step, count)), int(first[start, 0])
        tile = np.zeros((places[chosen].max() + 1 - begin, chosen.stop - start))
        np.put_along_axis(tile, places[chosen].T - begin, weights[chosen].T, axis=0)
        tile = np.kron(tile[: length - begin], np.eye(channels))
        ends = begin * channels + len(tile), start * channels + tile.shape[1]
        yield slice(begin * channels, ends[0]), slice(start * channels, ends[1]), tile


def read_picture(path: str | Path) -> Image.Image:
    """The picture in a file, as `make_rgb` gives it. Raises PictureError if it cannot be read."""
    try:
        with Image.open(path, formats=PIL_FORMATS) as image:
            return make_rgb(image)
    except UnidentifiedImageError:
        reason = f"it is no {', '.join(PIL_FORMATS)} file, or is damaged"
    except PIL_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__  # strerror: without the path
    except RARE_ERRORS as error:
        reason = f"it is damaged ({type(error).__name__}: {error})"
    raise PictureError(f"{path}: {reason}")


def make_rgb(image: Image.Image) -> Image.Image:
    """The picture as RGB, upright, transparent pixels white. Raises ValueError for pixels of 32 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # convert() would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, of which none says what is white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


# ---- the command line ----


def list_images(places: list[str]) -> list[Path]:
    """The files among `places`, and the pictures in its folders and of its patterns, sorted by path.

    Hidden files in a folder are left out. Raises PictureError for a folder or a pattern without pictures.
    """

    paths = []
    for place in places:
        if os.path.isdir(place):  # noqa: PTH112  # Path.is_dir fails for a name that is too long
            words = "in"
            files = [file for file in Path(place).rglob("*") if not is_hidden(file.relative_to(place))]
        elif glob.has_magic(place) and not os.path.lexists(place):  # the shell found nothing, or does not look
            words = "match"
            files = list(map(Path, glob.glob(place, recursive=True)))  # noqa: PTH207  # which takes absolute patterns
        else:
            paths.append(Path(place))
            continue
        found = [file for file in files if file.suffix.lower() in ENDINGS and file.is_file()]
        if not found:
            raise PictureError(f"no pictures {words} {place} ({', '.join(ENDINGS)})")
        paths += sorted(found, key=str)
    return paths


def is_hidden(path: Path) -> bool:
    """Whether the file, or a folder on the way to it, is hidden."""
    return any(part.startswith(".") for part in path.parts)


def escape(text: str) -> str:
    """`text` on one line, with nothing in it that would do something to a terminal."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="the ONNX file")
    parser.add_argument("images", nargs="+", help="pictures, and folders of pictures")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each picture")
    options = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for signs that the terminal's encoding lacks
    try:
        predict_files(options.model, options.images, options.json)
    except (ModelError, PictureError) as error:
        sys.exit(escape(str(error)))


def predict_files(model: str, places: list[str], as_json: bool) -> None:
    """Print the labels of all pictures in `places`. Ends with status 1 if some cannot be read."""
    classifier, num_bad = Classifier(model), 0
    for path in list_images(places):
        try:
            probabilities = classifier.measure(path)
        except PictureError as error:
            print(escape(str(error)), file=sys.stderr)
            num_bad += 1
            continue
        labels = classifier.decide(probabilities)
        if as_json:
            scores = [float(f"{probabilities[label]:.6g}") for label in labels]
            names = [classifier.classes[label] for label in labels]
            values = {"input_path": str(path), "class_ids": labels, "scores": scores, "label_names": names}
            print(json.dumps(values))
        else:
            words = [f"{classifier.classes[label]} {probabilities[label]:.2f}" for label in labels]
            print(escape(f"{path}: {', '.join(words) or 'no label'}"))
    sys.stdout.flush()
    if num_bad:
        sys.exit(f"{num_bad} {'picture' if num_bad == 1 else 'pictures'} could not be read")


def run() -> None:
    """`main`, which ends without a word when the program that reads its output has ended, for example `head`."""
    try:
        main()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    run()
