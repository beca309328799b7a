"""Puts the resize rule before a network in ONNX, and the decision behind it: from an image of any size to labels.

    model = put_resizing_before(model, "letterbox", 224)    # takes `image` uint8 (H, W, 3)
    model = put_labels_behind(model, thresholds)            # gives `labels` bool (B, C), too

Both consist of plain operators of ONNX. Resizing is that of dataset/resize_rules.py to the bit: bilinear with
antialiasing, first along the rows, then along the columns, each rounded to whole numbers, with weights of 16 bits, as
torch computes it on processors with AVX2. It is two products with matrices of weights. The operator Resize rounds some
pixels to the other side, which moves a probability of a network that is sure of itself by up to 0.01; and OpenVINO
leaves its antialiasing out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dataset.image_sizes import Size, as_size
from dataset.resize_rules import find_cover
from dataset.resize_weights import LARGEST_WEIGHT, MOST_BITS
from export.engines import DECIDING, IMAGE, LABELS
from export.onnx_models import copy_proto
from limits import ImageSize
from utils import InputError

FIRST_OPSET = 18  # in which the axes of all these operators are inputs
AXES = (2, 3)  # height and width of (1, 3, H, W)
BEYOND = 2.0  # above and, negated, below every probability


class Nodes:
    """Collects nodes of ONNX, and the constants that they use. Values go by names, all of which begin with `prefix`.

    A side in pixels is int64 (1,), so that Concat makes a shape of two.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str, output: str = "", skipped: int = 0, **attributes: Any) -> str:
        """Add a node. Returns the name of its output: of its first one, or of that after some that are `skipped`."""
        import onnx

        name = f"{self.prefix}/{operator}_{len(self.nodes)}"
        outputs = [*(f"{name}_unused_{number}" for number in range(skipped)), output or name]
        self.nodes.append(onnx.helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return outputs[-1]

    def constant(self, values: ArrayLike, kind: type[np.generic] = np.int64) -> str:
        """Add a constant. Returns its name."""
        import onnx

        name = f"{self.prefix}/constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(values, dtype=kind), name))
        return name

    def cast(self, value: str, kind: type[np.generic]) -> str:
        import onnx

        return self.add("Cast", value, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))


# ---- the resize rule ----


class Sides(NamedTuple):
    """Height and width of an image, as names of values."""

    height: str
    width: str


def put_resizing_before(model: Any, resize_rule: str, image_size: ImageSize) -> Any:
    """A copy of the ONNX ModelProto `model`, of one image a batch, that takes `image` uint8 (H, W, 3) of any size.

    `resize_rule` is a key of RESIZE_RULES, by which the image gets the network's size, `image_size`. Raises InputError
    if the model is of an older opset than the operators that resize.
    """
    import onnx

    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < FIRST_OPSET:
        raise InputError(f"EXPORT_RESIZE needs ONNX opset {FIRST_OPSET}, and this network is of {opset}")
    model, size = copy_proto(model), as_size(image_size)
    (images,) = model.graph.input
    nodes = Nodes("resize")
    shape = nodes.add("Shape", IMAGE)
    ends = [nodes.constant([axis]) for axis in range(3)]
    sides = Sides(nodes.add("Slice", shape, ends[0], ends[1]), nodes.add("Slice", shape, ends[1], ends[2]))
    planes = nodes.add("Unsqueeze", nodes.add("Transpose", IMAGE, perm=[2, 0, 1]), ends[0])
    resized = RESIZE_RULES[resize_rule](nodes, nodes.cast(planes, np.float32), sides, size)
    nodes.add("Cast", resized, output=images.name, to=onnx.TensorProto.UINT8)
    network = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes.nodes, *network])
    model.graph.initializer.extend(nodes.constants)
    images.CopyFrom(onnx.helper.make_tensor_value_info(IMAGE, onnx.TensorProto.UINT8, ["height", "width", 3]))
    return model


def squash(nodes: Nodes, image: str, sides: Sides, size: Size) -> str:
    """Resize to `size`, whatever the shape."""
    return _resize(nodes, image, sides, Sides(*(nodes.constant([side]) for side in size)))


def center_crop(nodes: Nodes, image: str, sides: Sides, size: Size) -> str:
    """Resize until the image covers 8/7 of `size`, and cut out the middle: only that is computed."""
    covered = Sides(*(nodes.constant([side]) for side in find_cover(size)))
    is_wide = _is_wide(nodes, sides, covered)
    height = nodes.add("Div", nodes.add("Mul", sides.height, covered.width), sides.width)
    width = nodes.add("Div", nodes.add("Mul", sides.width, covered.height), sides.height)
    covering = Sides(
        nodes.add("Where", is_wide, covered.height, height), nodes.add("Where", is_wide, width, covered.width)
    )
    half, starts = nodes.constant([0.5], np.float32), []
    for side, kept in zip(covering, size, strict=True):
        middle = nodes.add("Mul", nodes.cast(nodes.add("Sub", side, nodes.constant([kept])), np.float32), half)
        starts.append(nodes.cast(nodes.add("Round", middle), np.int64))  # a half to the even number, as in Python
    return _resize(nodes, image, sides, covering, cut=Sides(*starts), kept=size)


def letterbox(nodes: Nodes, image: str, sides: Sides, size: Size) -> str:
    """Resize until the image fits into `size`, and fill the rest with 0."""
    whole = Sides(*(nodes.constant([side]) for side in size))
    is_wide = _is_wide(nodes, sides, whole)
    height = _scale_rounded(nodes, sides.height, whole.width, sides.width)
    width = _scale_rounded(nodes, sides.width, whole.height, sides.height)
    fitting = Sides(nodes.add("Where", is_wide, height, whole.height), nodes.add("Where", is_wide, whole.width, width))
    befores, afters, two = [], [], nodes.constant([2])
    for side, outer in zip(fitting, whole, strict=True):
        missing = nodes.add("Sub", outer, side)
        before = nodes.add("Div", missing, two)
        befores.append(before)
        afters.append(nodes.add("Sub", missing, before))
    pads = nodes.add("Concat", *befores, *afters, axis=0)
    black = nodes.constant(0, np.float32)
    return nodes.add("Pad", _resize(nodes, image, sides, fitting), pads, black, nodes.constant(AXES))


def _resize(
    nodes: Nodes, image: str, old: Sides, new: Sides, cut: Sides | None = None, kept: Size | None = None
) -> str:
    """Resize an image (1, 3, H, W) of whole numbers in float32 from the sides `old` to `new`: first its rows.

    Of the new image only `kept` pixels from the places `cut` on are computed, if these are given.
    """
    for axis in ("width", "height"):
        length, target = getattr(old, axis), getattr(new, axis)
        if cut is None or kept is None:
            start, count = nodes.constant([0]), target
        else:
            start, count = getattr(cut, axis), nodes.constant([getattr(kept, axis)])
        weights, unit = _make_weights(nodes, length, target, start, count)
        if axis == "width":
            summed = nodes.add("MatMul", image, nodes.add("Transpose", weights, perm=[1, 0]))
        else:
            summed = nodes.add("MatMul", weights, image)
        half = nodes.add("Mul", unit, nodes.constant(0.5, np.float32))
        rounded = nodes.add("Floor", nodes.add("Div", nodes.add("Add", summed, half), unit))
        image = nodes.add("Clip", rounded, nodes.constant(0, np.float32), nodes.constant(255, np.float32))
    return image


def _make_weights(nodes: Nodes, length: str, target: str, start: str, count: str) -> tuple[str, str]:
    """The weights of `length` old pixels in the new ones, float32 (count, length), and what they are divided by.

    There are `target` new pixels, of which `count` are computed, from number `start` on. An old pixel j is within
    |(2j + 1) target - (2i + 1) length| of the new pixel i, and the nearer, the more it counts; it counts nothing from
    2 max(length, target) on. torchvision rounds weights to 16 bits: the largest power of 2 by which they fit is theirs.
    What lies midway between two whole numbers, as every twentieth pixel does, is rounded as there by this alone.
    """
    one, two = nodes.constant([1]), nodes.constant([2])
    zero, step = nodes.constant(0), nodes.constant(1)

    def count_up(number: str) -> str:
        return nodes.add("Range", zero, nodes.add("Squeeze", number), step)

    def find_middles(numbers: str, factor: str, axis: int) -> str:
        odd = nodes.add("Add", nodes.add("Mul", numbers, two), one)
        return nodes.add("Unsqueeze", nodes.add("Mul", odd, factor), nodes.constant([axis]))

    # the first row stands for the edges, whose weights are the largest
    chosen = nodes.add("Concat", nodes.constant([0]), nodes.add("Add", count_up(count), start), axis=0)
    new, old = find_middles(chosen, length, 1), find_middles(count_up(length), target, 0)
    reach = nodes.add("Mul", nodes.add("Max", length, target), two)
    nearness = nodes.add("Sub", reach, nodes.add("Abs", nodes.add("Sub", old, new)))
    positive = nodes.cast(nodes.add("Max", nearness, nodes.constant([0])), np.float64)
    shares = nodes.add("Div", positive, nodes.add("ReduceSum", positive, one, keepdims=1))
    largest = nodes.add("ReduceMax", shares, keepdims=0)
    powers = nodes.add("Mul", largest, nodes.constant(2.0 ** np.arange(1, MOST_BITS + 1), np.float64))
    fits = nodes.cast(nodes.add("Less", powers, nodes.constant(LARGEST_WEIGHT, np.float64)), np.float64)
    bits = nodes.add("ReduceSum", fits, keepdims=0)
    unit = nodes.add("Pow", nodes.constant(2.0, np.float64), bits)
    half = nodes.constant(0.5, np.float64)
    rounded = nodes.cast(nodes.add("Floor", nodes.add("Add", nodes.add("Mul", shares, unit), half)), np.float32)
    weights = nodes.add("Slice", rounded, one, nodes.constant([np.iinfo(np.int64).max]), nodes.constant([0]))
    return weights, nodes.cast(unit, np.float32)


def _is_wide(nodes: Nodes, sides: Sides, size: Sides) -> str:
    """Whether an image of these `sides` is wider than `size`, or as wide, in proportion."""
    products = [nodes.add("Mul", sides.width, size.height), nodes.add("Mul", sides.height, size.width)]
    return nodes.add("GreaterOrEqual", *products)


def _scale_rounded(nodes: Nodes, side: str, numerator: str, divisor: str) -> str:
    """max(1, round(side * numerator / divisor)) as Python rounds, halves to even numbers, in whole numbers."""
    product = nodes.add("Mul", side, numerator)
    quotient, remainder = nodes.add("Div", product, divisor), nodes.add("Mod", product, divisor)
    one, two = nodes.constant([1]), nodes.constant([2])
    doubled = nodes.add("Add", nodes.add("Mul", remainder, two), nodes.add("Mod", quotient, two))
    rounded = nodes.add("Add", quotient, nodes.cast(nodes.add("Greater", doubled, divisor), np.int64))
    return nodes.add("Max", rounded, one)


# ---- labels ----


def put_labels_behind(model: Any, thresholds: ArrayLike, min_labels: int = 0, max_labels: int = 0) -> Any:
    """A copy of the ONNX ModelProto `model`, of output probabilities (B, C), with `labels` bool (B, C) as the second.

    These are the classes that `metrics.predict` gives an image. `thresholds` are (C,).
    """
    import onnx

    model = copy_proto(model)
    (probabilities,) = model.graph.output
    thresholds = np.asarray(thresholds, dtype=np.float32)
    nodes, scores = Nodes(DECIDING), probabilities.name
    labels = nodes.add("GreaterOrEqual", scores, nodes.constant(thresholds, np.float32))
    if min_labels:  # what is predicted comes first, then the most probable others
        ranked = nodes.add("Where", labels, nodes.constant(BEYOND, np.float32), scores)
        labels = nodes.add("Or", labels, _find_top(nodes, ranked, min(min_labels, len(thresholds)), len(thresholds)))
    if max_labels:
        ranked = nodes.add("Where", labels, scores, nodes.constant(-BEYOND, np.float32))
        labels = nodes.add("And", labels, _find_top(nodes, ranked, min(max_labels, len(thresholds)), len(thresholds)))
    nodes.add("Identity", labels, output=LABELS)
    model.graph.node.extend(nodes.nodes)
    model.graph.initializer.extend(nodes.constants)
    output = model.graph.output.add()
    output.CopyFrom(probabilities)
    output.name, output.type.tensor_type.elem_type = LABELS, onnx.TensorProto.BOOL
    return model


def _find_top(nodes: Nodes, scores: str, count: int, num_classes: int) -> str:
    """Mark the `count` largest of each row of `scores` (B, C), bool (B, C); of equal ones the first."""
    places = nodes.add("TopK", scores, nodes.constant([count]), skipped=1, axis=1)
    marks = nodes.add("OneHot", places, nodes.constant([num_classes]), nodes.constant([0, 1], np.float32), axis=1)
    return nodes.cast(nodes.add("ReduceMax", marks, nodes.constant([2]), keepdims=0), np.bool_)


# keys: those of dataset.resize_rules.RESIZE_RULES; values: (nodes, image (1, 3, H, W), its sides, the size) -> resized
RESIZE_RULES: dict[str, Callable[[Nodes, str, Sides, Size], str]] = {
    "squash": squash,
    "center_crop": center_crop,
    "letterbox": letterbox,
}
