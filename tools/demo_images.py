"""The pictures of `dataset_tools.py demo`: objects of KINDS on backgrounds, drawn from random numbers.

Sizes, colours, patterns, places and what covers what vary, and unlabelled shapes lie about, so that a model has to
look at shapes; labels have a long tail.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw

GROUPS = 3  # kinds of the same group (position modulo GROUPS) are found together more often
MIN_VISIBLE = 0.7  # share of an object that must lie in the image and uncovered, or it is drawn elsewhere

Rng = np.random.Generator
Color = tuple[int, int, int]
Colors = Sequence[Color]
Points = Sequence[tuple[float, float]] | np.ndarray  # (K, 2): across, down


def sample_kinds(rng: Rng) -> list[int]:
    """The classes of one image, rising: a long tail of frequencies, mild correlations, often several or none."""
    group = rng.integers(GROUPS)
    factors = [1.5 if kind % GROUPS == group else 0.75 for kind in range(len(KINDS))]  # their mean over groups is 1
    shares = np.array([share for _, share, _ in KINDS.values()])
    return np.flatnonzero(rng.random(len(KINDS)) < shares * factors).tolist()


def draw_image(rng: Rng, kinds: Sequence[int], size: int) -> tuple[Image.Image, list[int]]:
    """A picture, `size` x `size` pixels, of one or two objects of each of `kinds`; and the classes it shows.

    An object that would not stay visible by MIN_VISIBLE is drawn again, elsewhere and a little smaller; one for
    which there is no room at all is left out, of the classes too.
    """
    side = 2 * size  # drawn twice as large and reduced, for smooth edges
    canvas, background = draw_background(rng, side)
    table = list(KINDS.values())
    objects = [*kinds, *(kind for kind in kinds if rng.random() < 0.15)]
    num_pieces = len(objects) + rng.integers(0, 3)  # the others are distractors
    owner = np.full((side // 4 + 1, side // 4 + 1), -1)  # the piece on top, in cells of 4 x 4 pixels
    areas: dict[int, int] = {}  # of the objects so far, in cells
    for piece in rng.permutation(num_pieces).tolist():
        is_object = piece < len(objects)
        draw, _, tilt = table[objects[piece]] if is_object else (draw_distractor, 0, 180)
        scale = rng.uniform(0.4, max(0.46, 0.86 - 0.07 * len(objects))) if is_object else rng.uniform(0.1, 0.28)
        for _ in range(60):
            layer = draw_layer(rng, draw, tilt, scale * side, background)
            cells = np.asarray(layer.getchannel("A").reduce(4)) > 127
            left, top = (int(rng.uniform(0.12, 0.88) * len(owner) - extent / 2) for extent in cells.shape[::-1])
            after = cover(owner, cells, left, top, piece)
            areas_after = {**areas, piece: int(cells.sum())} if is_object else areas
            if all((after == k).sum() >= max(MIN_VISIBLE * area, 1) for k, area in areas_after.items()):
                owner, areas = after, areas_after
                canvas.paste(layer, (4 * left, 4 * top), layer)
                break
            scale *= 0.97
    return add_noise(rng, canvas.reduce(2)), sorted({objects[piece] for piece in areas})


def cover(owner: np.ndarray, cells: np.ndarray, left: int, top: int, piece: int) -> np.ndarray:
    """A copy of `owner` in which `cells` (h, w), put at (left, top) and cut at the edges, belong to `piece`."""
    after = owner.copy()
    view = after[max(top, 0) : max(top + cells.shape[0], 0), max(left, 0) : max(left + cells.shape[1], 0)]
    view[cells[max(-top, 0) :, max(-left, 0) :][: view.shape[0], : view.shape[1]]] = piece
    return after


def draw_background(rng: Rng, side: int) -> tuple[Image.Image, list[Color]]:
    """A canvas of blotches, stripes or patches with a few lines, and the two colours it is made of."""
    first = sample_color(rng, [])
    second = mix(first, sample_color(rng, [first]), rng.uniform(0.15, 0.6))
    grid = Image.fromarray(rng.integers(0, 256, rng.choice([1, 2, 3, 5, 9], 2), dtype=np.uint8))
    smooth = rng.random() < 0.7
    mask = grid.resize((side, side), Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)
    canvas = Image.composite(Image.new("RGB", (side, side), second), Image.new("RGB", (side, side), first), mask)
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 6)):
        points = [tuple(point) for point in rng.uniform(-0.1, 1.1, (int(rng.integers(2, 5)), 2)) * side]
        pen.line(points, mix(first, sample_color(rng, []), rng.uniform(0.2, 0.7)), int(rng.integers(1, 6)), "curve")
    return canvas, [first, second]


def add_noise(rng: Rng, image: Image.Image) -> Image.Image:
    noise = rng.standard_normal((*image.size, 3), dtype=np.float32) * rng.uniform(0, 10)
    return Image.fromarray(np.clip(noise + np.asarray(image), 0, 255).astype(np.uint8))


def draw_layer(rng: Rng, draw: Draw, tilt: float, extent: float, background: Colors) -> Image.Image:
    """An object about `extent` pixels large, turned by up to `tilt` degrees, lit from a side, on a clear layer."""
    colors = list(background)
    for _ in range(3):
        colors.append(sample_color(rng, colors))
    pen = Pen(rng, extent, math.radians(rng.uniform(-tilt, tilt)))
    draw(pen, rng, colors[len(background) :])
    image = pen.image.crop(pen.image.getbbox())
    light = Image.linear_gradient("L").rotate(float(rng.choice([0, 90, 180, 270])))
    shadow = rng.uniform(0, 0.5)
    light = light.resize(image.size, Image.Resampling.BILINEAR).point([int(255 - k * shadow) for k in range(256)])
    return ImageChops.multiply(image, Image.merge("RGBA", (light, light, light, Image.new("L", image.size, 255))))


def sample_color(rng: Rng, others: Colors) -> Color:
    """A random colour, well apart from `others` where there is room."""
    best, best_distance = (0, 0, 0), -1.0
    for _ in range(12):
        red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 1), rng.uniform(0.15, 1))
        color = (int(255 * red), int(255 * green), int(255 * blue))
        distance = min((math.dist(color, other) for other in others), default=math.inf)
        if distance > best_distance:
            best, best_distance = color, distance
        if distance > 110:
            break
    return best


def mix(first: Color, second: Color, share: float) -> Color:
    red, green, blue = (int(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


# ---- kinds of objects ----


class Pen:
    """Draws in units (0 to 1 across and down the object), turned, flipped and stretched, on a clear layer."""

    def __init__(self, rng: Rng, extent: float, turn: float) -> None:
        stretch, flip = rng.uniform(0.85, 1.18), rng.choice([-1, 1])
        axes = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        self.extent, self.middle = extent, 0.85 * extent  # half a stretched diagonal
        self.axes = extent * np.array([[flip * stretch], [1 / stretch]]) * axes
        side = math.ceil(2 * self.middle)
        self.image = Image.new("RGBA", (side, side))
        self.draw = ImageDraw.Draw(self.image)

    def to_pixels(self, points: Points) -> list[float]:
        return ((np.asarray(points) - 0.5) @ self.axes + self.middle).ravel().tolist()

    def polygon(self, points: Points, color: Color | None) -> None:
        """A filled outline; without a colour, a hole."""
        self.draw.polygon(self.to_pixels(points), color or (0, 0, 0, 0))

    def box(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], color)

    def oval(self, x: float, y: float, rx: float, ry: float, color: Color | None) -> None:
        self.polygon(arc(x, y, rx, ry, 0, 1, 32), color)

    def line(self, points: Points, width: float, color: Color) -> None:
        self.draw.line(self.to_pixels(points), color, max(round(width * self.extent), 1), "curve")

    def pattern(self, rng: Rng, color: Color) -> None:
        """Stripes, dots or nothing over what is drawn so far, so that no texture belongs to a class."""
        style, step = rng.integers(6), rng.uniform(0.13, 0.25)
        if style > 1:
            return
        clear, self.image = self.image, self.image.copy()
        self.draw = ImageDraw.Draw(self.image)
        for y in np.arange(0, 1, step):
            if style == 0:
                self.box(0, y, 1, y + step / 2.5, color)
            else:
                for x in np.arange(0, 1, step):
                    self.polygon(arc(x, y, step / 4, step / 4, 0, 1, 10), color)
        self.image.putalpha(clear.getchannel("A"))


def arc(
    x: float, y: float, rx: float, ry: float, start: float, end: float, count: int = 16
) -> list[tuple[float, float]]:
    """`count` points on the ellipse about (x, y), from `start` to `end` turns (0 right, 0.25 down)."""
    turns = np.linspace(start, end, count) * 2 * math.pi
    return [(x + rx * math.cos(turn), y + ry * math.sin(turn)) for turn in turns]


def draw_ball(pen: Pen, rng: Rng, colors: Colors) -> None:
    pen.oval(0.5, 0.5, 0.49, 0.49, colors[0])
    pole, panels = (rng.uniform(0.38, 0.62), rng.uniform(0.3, 0.45)), int(rng.choice([6, 8]))
    for panel in range(0, panels, 2):
        pen.polygon(
            [pole, *arc(0.5, 0.5, 0.49, 0.49, panel / panels, (panel + 1) / panels)], colors[1 + panel % 4 // 2]
        )
    pen.oval(*pole, 0.09, 0.09, colors[2])


def draw_star(pen: Pen, rng: Rng, colors: Colors) -> None:
    points, depth = int(rng.choice([5, 5, 6])), rng.uniform(0.38, 0.5)
    turns = np.arange(2 * points) * math.pi / points
    unit = np.stack([np.cos(turns), np.sin(turns)], 1) * np.where(np.arange(2 * points) % 2, depth, 1)[:, None]
    pen.polygon(0.5 + 0.5 * unit, colors[0])
    pen.pattern(rng, colors[2])
    if rng.random() < 0.6:
        pen.polygon(0.5 + 0.3 * unit, colors[1])


def draw_ring(pen: Pen, rng: Rng, colors: Colors) -> None:
    hole, segments = rng.uniform(0.2, 0.31), int(rng.choice([4, 6, 8]))
    pen.oval(0.5, 0.5, 0.49, 0.49, colors[0])
    if rng.random() < 0.6:
        for segment in range(segments):
            start = segment / segments
            pen.polygon([(0.5, 0.5), *arc(0.5, 0.5, 0.49, 0.49, start, start + 0.4 / segments)], colors[1])
    else:
        pen.pattern(rng, colors[1])
    pen.oval(0.5, 0.5, hole + 0.04, hole + 0.04, colors[2])
    pen.oval(0.5, 0.5, hole, hole, None)


def draw_fish(pen: Pen, rng: Rng, colors: Colors) -> None:
    fat, back = rng.uniform(0.2, 0.3), rng.uniform(0.88, 0.94)
    pen.polygon([(0.3, 0.5 - fat * 0.7), (0.5, 0.4 - fat), (0.65, 0.5 - fat * 0.6)], colors[1])
    pen.polygon([(0.35, 0.5), (0.55, 0.5 + fat + 0.12), (0.6, 0.5)], colors[1])
    pen.polygon([(0.66, 0.5), (1, 0.24), (back, 0.5), (1, 0.76)], colors[1])
    pen.oval(0.39, 0.5, 0.39, fat, colors[0])
    pen.pattern(rng, colors[2])
    pen.line(arc(0.2, 0.5, 0.07, fat * 0.75, -0.2, 0.2), 0.025, colors[2])
    pen.oval(0.13, 0.46, 0.05, 0.05, (250, 250, 250))
    pen.oval(0.125, 0.46, 0.027, 0.027, (10, 10, 10))


def draw_tree(pen: Pen, rng: Rng, colors: Colors) -> None:
    trunk = rng.uniform(0.05, 0.08)
    pen.polygon([(0.5 - trunk, 0.5), (0.5 + trunk, 0.5), (0.54 + trunk, 1), (0.46 - trunk, 1)], colors[1])
    if rng.random() < 0.5:  # a fir
        tiers = int(rng.integers(2, 5))
        for tier in range(tiers, 0, -1):
            bottom, reach = 0.8 * tier / tiers, 0.16 + 0.26 * tier / tiers
            pen.polygon([(0.5, max(bottom - 0.42, 0)), (0.5 - reach, bottom), (0.5 + reach, bottom)], colors[0])
    else:
        for x, y in [(0.5, 0.35), *arc(0.5, 0.36, 0.25, 0.18, 0, 1, int(rng.integers(6, 9)))]:
            pen.oval(x, y, 0.2, 0.18, colors[0])
    pen.pattern(rng, colors[2])


def draw_house(pen: Pen, rng: Rng, colors: Colors) -> None:
    eaves, inset = rng.uniform(0.38, 0.5), float(rng.choice([0.1, 0.25, 0.45]))  # inset: from hip to gable roof
    pen.box(0.08, eaves, 0.92, 1, colors[0])
    pen.pattern(rng, mix(colors[0], colors[2], 0.4))
    if rng.random() < 0.6:
        chimney = rng.uniform(0.62, 0.75)
        pen.box(chimney, 0.02, chimney + 0.1, eaves, colors[2])
    pen.polygon([(0, eaves), (0.05 + inset, 0.05), (0.95 - inset, 0.05), (1, eaves)], colors[1])
    door = float(rng.choice([0.18, 0.42, 0.62]))
    pen.box(door, 0.66, door + 0.18, 1, colors[2])
    for x in (0.16, 0.41, 0.66):
        if abs(x - door) > 0.1:
            pen.box(x, 0.6, x + 0.18, 0.78, colors[2])
            pen.box(x + 0.03, 0.63, x + 0.15, 0.75, (235, 235, 210))


def draw_car(pen: Pen, rng: Rng, colors: Colors) -> None:
    front, rear, roof = rng.uniform(0.2, 0.32), rng.uniform(0.74, 0.95), rng.uniform(0.22, 0.28)
    pen.polygon([(front - 0.12, 0.52), (front + 0.06, roof), (rear - 0.08, roof), (rear, 0.52)], colors[0])
    pen.polygon([(0, 0.56), (0.08, 0.48), (0.97, 0.48), (1, 0.74), (0, 0.74)], colors[0])
    pen.pattern(rng, mix(colors[0], colors[2], 0.5))
    top, middle = roof + 0.05, (front + rear) / 2
    pen.polygon([(front - 0.02, 0.48), (front + 0.09, top), (middle, top), (middle, 0.48)], colors[1])
    middle += 0.04
    pen.polygon([(middle, 0.48), (middle, top), (rear - 0.11, top), (rear - 0.07, 0.48)], colors[1])
    for x in (0.23, 0.77):
        pen.oval(x, 0.74, 0.13, 0.13, (25, 25, 25))
        pen.oval(x, 0.74, 0.06, 0.06, colors[2])


def draw_flower(pen: Pen, rng: Rng, colors: Colors) -> None:
    petals, reach = int(rng.integers(5, 9)), 0.23
    y = reach + 0.12 if rng.random() < 0.7 else 0.5
    if y < 0.5:  # a stem with leaves
        pen.line([(0.5, y), (rng.uniform(0.4, 0.6), 0.75), (0.5, 1)], 0.045, colors[2])
        pen.polygon(arc(0.62, 0.78, 0.13, 0.05, 0, 1), colors[2])
        pen.polygon(arc(0.38, 0.86, 0.13, 0.05, 0, 1), colors[2])
    size = reach * math.sin(math.pi / petals) * rng.uniform(0.95, 1.1)
    for x, petal_y in arc(0.5, y, reach, reach, 0, 1, petals + 1)[:-1]:
        pen.oval(x, petal_y, size, size, colors[0])
    pen.oval(0.5, y, reach, reach, colors[0])
    pen.oval(0.5, y, reach * 0.55, reach * 0.55, colors[1])


def draw_umbrella(pen: Pen, rng: Rng, colors: Colors) -> None:
    panels, rim = int(rng.integers(3, 6)), 0.48
    pen.line([(0.5, 0), (0.5, 0.88), *arc(0.6, 0.88, 0.1, 0.1, 0.5, 0, 12)], 0.04, colors[2])
    for panel in range(panels):  # between two ribs, which are quarters of narrower and narrower ellipses
        left, right = panel / panels, (panel + 1) / panels
        ribs = [arc(0.5, rim, x - 0.5, rim - 0.08, -0.25, 0) for x in (left, right)]
        scallop = arc((left + right) / 2, rim, (right - left) / 2, 0.06, 0.5, 1)
        pen.polygon(ribs[0] + scallop + ribs[1][::-1], colors[panel % 2])


def draw_cup(pen: Pen, rng: Rng, colors: Colors) -> None:
    foot, rim = rng.uniform(0.0, 0.12), rng.uniform(0.06, 0.12)
    pen.oval(0.76, 0.52, 0.23, 0.24, colors[0])
    pen.oval(0.76, 0.52, 0.14, 0.15, None)
    pen.polygon([(0, 0.15), (0.76, 0.15), (0.76 - foot, 0.94), (foot, 0.94)], colors[0])
    pen.oval(0.38, 0.94, 0.38 - foot, 0.06, colors[0])
    pen.pattern(rng, colors[1])
    pen.oval(0.38, 0.15, 0.38, rim + 0.03, colors[0])
    pen.oval(0.38, 0.15, 0.33, rim, colors[2])


def draw_distractor(pen: Pen, rng: Rng, colors: Colors) -> None:
    """A shape that has no label: a polygon, a crescent, a cross, a bar or a zigzag."""
    style = rng.integers(5)
    if style == 0:
        turns = np.sort(rng.random(int(rng.integers(3, 7))))
        pen.polygon([arc(0.5, 0.5, 0.5, 0.5, turn, turn, 1)[0] for turn in turns], colors[0])
    elif style == 1:
        pen.oval(0.5, 0.5, 0.5, 0.5, colors[0])
        pen.oval(rng.uniform(0.65, 0.8), 0.5, 0.5, 0.5, None)
    elif style == 2:
        arm = rng.uniform(0.1, 0.18)
        pen.box(0.5 - arm, 0, 0.5 + arm, 1, colors[0])
        pen.box(0, 0.5 - arm, 1, 0.5 + arm, colors[0])
    elif style == 3:
        pen.box(0.1, 0.35, 0.9, 0.65, colors[0])
    else:
        pen.line([(x, rng.uniform(0.1, 0.9)) for x in np.linspace(0.05, 0.95, 5)], 0.09, colors[0])
    pen.pattern(rng, colors[1])


Draw = Callable[[Pen, Rng, Colors], None]

# name: (how it is drawn, the share of images that show it, degrees by which it may be turned), in index order
KINDS = {
    "house": (draw_house, 0.45, 25.0),
    "tree": (draw_tree, 0.36, 25.0),
    "fish": (draw_fish, 0.3, 30.0),
    "car": (draw_car, 0.25, 25.0),
    "flower": (draw_flower, 0.21, 30.0),
    "star": (draw_star, 0.18, 180.0),
    "umbrella": (draw_umbrella, 0.15, 25.0),
    "ball": (draw_ball, 0.13, 180.0),
    "ring": (draw_ring, 0.11, 180.0),
    "cup": (draw_cup, 0.09, 25.0),
}
