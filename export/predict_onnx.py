"""Names what is on pictures, by an ONNX file that export_onnx.py wrote. Needs onnxruntime, numpy and pillow only.

    python predict_onnx.py model.onnx photo.jpg folder/             # photo.jpg: cat 0.98, sofa 0.71
    python predict_onnx.py model.onnx folder/ --json > labels.jsonl    # a line of JSON for each picture

A folder means the pictures in it and its sub-folders. The labels are those of the model in training: classes,
thresholds, limits of labels and the resize rule come from the file. A product needs what stands above the command line:
copy it, or import this file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

PIL_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")  # for others PIL may start a program
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


class Classifier:
    """Classifier("model.onnx").predict("photo.jpg") gives the labels: {"cat": 0.98, "sofa": 0.71}."""

    def __init__(self, path: str | Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.input: str = self.session.get_inputs()[0].name
        self.about: dict[str, Any] = json.loads(self.session.get_modelmeta().custom_metadata_map["multilabel"])
        self.classes: list[str] = self.about["classes"]
        self.thresholds = np.array(self.about["thresholds"], dtype=np.float32)  # (C,)
        sides = self.about["image_size"]
        self.height, self.width = (sides, sides) if isinstance(sides, int) else sides

    def predict(self, image: str | Path | Image.Image) -> dict[str, float]:
        """The labels of a picture with their probabilities, the most probable first."""
        probabilities = self.measure(image)
        return {self.classes[label]: float(probabilities[label]) for label in self.decide(probabilities)}

    def measure(self, image: str | Path | Image.Image) -> np.ndarray:
        """The probabilities of all classes, float32 (C,)."""
        if not isinstance(image, Image.Image):
            with Image.open(image, formats=PIL_FORMATS) as opened:
                return self.measure(opened)
        picture = make_rgb(image)
        if self.input == "image":  # the file resizes: uint8 (H, W, 3)
            pixels = np.asarray(picture)
        else:  # uint8 (1, 3, H, W)
            resized = resize(picture, self.height, self.width, self.about["resize_rule"])
            pixels = np.asarray(resized).transpose(2, 0, 1)[None]
        outputs: Any = self.session.run(None, {self.input: pixels})
        output = outputs[0][0]
        if self.about["output"] == "probabilities":
            return output
        logits = output.astype(np.float64)
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
    """The files among `places`, and the pictures in its folders, sorted by path."""
    paths = []
    for place in map(Path, places):
        files = place.rglob("*") if place.is_dir() else [place]
        paths += sorted(file for file in files if file == place or (file.suffix.lower() in ENDINGS and file.is_file()))
    return paths


def escape(text: str) -> str:
    """`text` on one line, with nothing in it that would do something to a terminal."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="the ONNX file")
    parser.add_argument("images", nargs="+", help="pictures, and folders of pictures")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each picture")
    options = parser.parse_args()
    classifier, num_bad = Classifier(options.model), 0
    for path in list_images(options.images):
        try:
            probabilities = classifier.measure(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's, of damaged files
            print(escape(f"{path}: {error}"), file=sys.stderr)
            num_bad += 1
            continue
        labels = classifier.decide(probabilities)
        if options.json:
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
