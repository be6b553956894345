"""Shapes: a data set that is drawn, not downloaded. Seven kinds of textured things lie over each other in clutter.

It shows in minutes what FCN's skips are for. All kinds draw colours and textures from the same distribution, so colour
tells nothing: what a pixel is follows from the form around it. Limbs look alike (a stick, the stem of a lollipop, the
arm of a cross) and so do heads (a disc, a lollipop), so that a form must be seen whole; and limbs, 10 to 14 pixels
thick, fill a cell of FCN-8s' finest scores, which are 8 pixels apart, but get lost between those of coarser nets.

An image is a pure function of (seed, split, index). Nothing is stored; any process can draw any index at any time.
"""

import dataclasses
import math

import cv2
import numpy as np

from fcn_jax.data.textures import GRAIN, texture, tile_window
from fcn_jax.errors import ConfigError
from fcn_jax.labels import IGNORE, DatasetInfo

INFO = DatasetInfo(
    name="shapes",
    class_names=("background", "disc", "lollipop", "ring", "square", "triangle", "cross", "stick"),
    palette=(
        (44, 47, 62),
        (239, 71, 111),
        (255, 209, 102),
        (6, 214, 160),
        (38, 148, 214),
        (155, 105, 240),
        (255, 140, 66),
        (206, 218, 230),
    ),
)

# The splits of a seed are separate streams of random numbers, and so are the seeds.
STREAMS = {"train": 0, "val": 1}

PIXELS_PER_THING = 2200  # of the image, for each thing that is tried
PIXELS_PER_SPECK = 450  # likewise for clutter
FULL_SIZE = 112  # an image with a shorter side shrinks the things in it
VISIBLE_SHARE = 0.85  # of every thing, whatever is laid over it
TONES = (80.0, 225.0)  # grey levels of ground and things
CONTRAST = 40.0  # grey levels between a thing and whatever it may touch
RIM = 1.5  # pixels of ink along the inside of every outline
INK = np.array([24, 22, 30], np.float32)[:, None, None]
SUBPIXELS = 4  # outlines are filled on a grid this much finer

Polygon = np.ndarray  # f[points, (x, y)], pixels, around the thing's centre
Window = tuple[slice, slice]  # rows and columns
Part = tuple[Polygon, int]  # 255: belongs to the thing; 0: a hole in the parts before it


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The data set as a sequence of {"image": u8[h w 3] RGB, "label": u8[h w], "id": str}."""

    height: int
    width: int
    num_images: int
    split: str
    seed: int = 0
    info = INFO
    channels = "RGB"

    def __len__(self) -> int:
        return self.num_images

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image."""
        return self.height, self.width

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.num_images:
            raise IndexError(f"shapes {self.split}: no image {index} among {self.num_images}")
        rng = np.random.default_rng([self.seed, STREAMS[self.split], int(index)])
        image, label = draw_scene(rng, self.height, self.width)
        return {"image": image, "label": label, "id": f"shapes_{self.split}_{index:06d}"}


def open_split(fields, split: str) -> Shapes:
    """The split "train" or "val", as `fields.shapes` has it: height, width, train_images, val_images, seed."""
    shapes = fields.shapes
    if split not in STREAMS:
        raise ConfigError(f"data: shapes has no split {split!r}, only {' and '.join(STREAMS)}")
    size_name = f"{split}_images"
    for name, least in (("height", 32), ("width", 32), (size_name, 1), ("seed", 0)):
        value = getattr(shapes, name)
        if value < least:
            raise ConfigError(f"data.shapes.{name} is {value}: give {least} or more")
    return Shapes(shapes.height, shapes.width, getattr(shapes, size_name), split, shapes.seed)


def draw_scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Things of random kinds, laid one over the other: image u8[h w 3] RGB and label u8[h w].

    A pixel that a thing covers in part belongs to nobody: like the contours of PASCAL VOC it is void.
    """
    count = max(1, round(height * width / PIXELS_PER_THING))
    kinds = rng.integers(1, INFO.num_classes, count).tolist()
    hues, swings = draw_colours(rng, count + 1)  # entry 0 is the ground's
    tones = [rng.uniform(*TONES)]  # grey level of thing i
    canvas = scatter_specks(rng, texture(rng, height, width) * swings[0] + (hues[0] + tones[0]), tones[0])
    label = np.zeros((height, width), np.uint8)
    owner = np.zeros((height, width), np.uint16)  # which thing a pixel belongs to
    spare = np.array([np.inf])  # how many pixels of thing i may still be covered
    scale = min(1.0, min(height, width) / FULL_SIZE)
    for kind, hue, swing in zip(kinds, hues[1:], swings[1:], strict=True):
        thing, filling = fill(OUTLINES[kind - 1](rng), scale, rng.uniform(0, 2 * math.pi))
        for _ in range(6):  # places to try before the thing is left out
            place, inside = lay(rng, thing.shape, height, width)
            cover = thing[inside]
            solid = cover >= 0.5
            covered = np.bincount(owner[place][solid], minlength=len(tones))
            if (covered <= spare).all():
                break
        else:
            continue
        tone = contrasting_tone(rng, np.take(tones, np.unique(owner[place])))
        under = canvas[:, *place]
        under += cover * (INK - under)
        under += filling[inside] * (texture(rng, *cover.shape) * swing + (hue + tone - under))
        label[place][cover > 0] = IGNORE
        label[place][cover == 1] = kind
        owner[place][solid] = len(tones)
        spare = np.append(spare - covered, (1 - VISIBLE_SHARE) * np.count_nonzero(solid))
        tones.append(tone)
    canvas += 4 * tile_window(rng, GRAIN, height, width)
    return interleave(canvas), label


def fill(parts: list[Part], scale: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The share of each pixel that the turned outline covers, f32[h w] in [0, 1]; the same without its rim of ink."""
    turn = scale * np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    turned = [(polygon @ turn, value) for polygon, value in parts]
    points = np.concatenate([polygon for polygon, _ in turned])
    low, high = np.floor(points.min(0)) - 1, np.ceil(points.max(0)) + 1
    width, height = (high - low).astype(int).tolist()
    fine = np.zeros((height * SUBPIXELS, width * SUBPIXELS), np.uint8)
    for polygon, value in turned:
        # OpenCV puts integers at pixel centres, and eight fractional bits behind them.
        corners = np.round(((polygon - low) * SUBPIXELS - 0.5) * 256).astype(np.int32)
        cv2.fillPoly(fine, [corners], value, shift=8)
    within = np.uint8(255) * (cv2.distanceTransform(fine, cv2.DIST_L2, 3) > RIM * scale * SUBPIXELS)
    thing, filling = (cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA) for mask in (fine, within))
    return thing.astype(np.float32) / 255, filling.astype(np.float32) / 255


def lay(rng: np.random.Generator, extents: tuple[int, ...], height: int, width: int) -> tuple[Window, Window]:
    """A random place for a thing, a little over the edge at most, and the part of the thing that is in the image."""
    place, inside = [], []
    for extent, room in zip(extents, (height, width), strict=True):
        overhang = extent // 10
        low, high = sorted((-overhang, room - extent + overhang))
        start = int(rng.integers(low, high + 1))
        place.append(slice(max(start, 0), min(start + extent, room)))
        inside.append(slice(max(-start, 0), min(room - start, extent)))
    return tuple(place), tuple(inside)


def contrasting_tone(rng: np.random.Generator, neighbours: np.ndarray) -> float:
    """A grey level CONTRAST away from all neighbours', or as far as eight draws allow."""
    candidates = rng.uniform(*TONES, 8)
    gaps = np.abs(candidates[:, None] - neighbours).min(1)
    return float(candidates[np.argmax(np.minimum(gaps, CONTRAST))])


def draw_colours(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The two colours between which each texture swings: their middle, of grey level 0, and the way to one of them."""
    hue = rng.uniform(0, 2 * math.pi, count)
    strong = colour(hue, rng.uniform(10, 70, count))
    weak = colour(hue + rng.normal(0, 0.6, count), rng.uniform(10, 70, count))
    brightness = rng.uniform(8, 22, count)[:, None]
    middle, swing = (strong + weak) / 2, (strong - weak) / 2 + brightness
    return middle[..., None, None].astype(np.float32), swing[..., None, None].astype(np.float32)


def colour(hue: np.ndarray, strength: np.ndarray | float) -> np.ndarray:
    """Offsets of red, green and blue that leave their mean alone, [... 3]."""
    return np.multiply(strength, np.cos(hue + np.array([[0.0], [2.0], [4.0]]) * math.pi / 3)).T


def scatter_specks(rng: np.random.Generator, canvas: np.ndarray, tone: float) -> np.ndarray:
    """The canvas f32[3 h w] with clutter on it: hairlines and crumbs, too small to be any of the things."""
    image = interleave(canvas)
    height, width = image.shape[:2]
    count = height * width // PIXELS_PER_SPECK
    ink = (tone + rng.uniform(-45, 45, (count, 1)) + colour(rng.uniform(0, 2 * math.pi, count), 50)).tolist()
    start = 16 * rng.uniform(0, (width, height), (count, 2))
    angle, length = rng.uniform(0, 2 * math.pi, count), 16 * rng.uniform(3, 14, count)
    end = start + np.stack([np.cos(angle), np.sin(angle)], axis=1) * length[:, None]
    radius = (16 * rng.uniform(0.5, 1.7, count)).astype(int).tolist()
    points = zip(start.astype(int).tolist(), end.astype(int).tolist(), strict=True)
    for number, (first, last) in enumerate(points):
        if number % 2:
            cv2.line(image, first, last, ink[number], 1, cv2.LINE_AA, 4)
        else:
            cv2.circle(image, first, radius[number], ink[number], cv2.FILLED, cv2.LINE_AA, 4)
    return np.stack(cv2.split(image)).astype(np.float32)


def interleave(canvas: np.ndarray) -> np.ndarray:
    """f32[3 h w], which is faster to paint on, to u8[h w 3]."""
    return cv2.merge(list(np.clip(canvas, 0, 255).astype(np.uint8)))


# Outlines, by class, in pixels around the centre of the thing.

CIRCLE = np.stack([f(np.arange(40) * (2 * math.pi / 40)) for f in (np.cos, np.sin)], axis=1)
TRIANGLE = np.array([(math.cos(angle), math.sin(angle)) for angle in np.arange(3) * (2 * math.pi / 3)])


def bar(length: float, thickness: float, start: float | None = None) -> Polygon:
    """A rectangle along x, around the centre or from `start` on."""
    left = -length / 2 if start is None else start
    half = thickness / 2
    return np.array([(left, -half), (left + length, -half), (left + length, half), (left, half)])


def disc(rng: np.random.Generator) -> list[Part]:
    return [(CIRCLE * rng.uniform(10, 19), 255)]


def lollipop(rng: np.random.Generator) -> list[Part]:
    radius = rng.uniform(11, 18)
    return [(CIRCLE * radius, 255), (bar(radius + rng.uniform(24, 38), rng.uniform(10, 13), start=0), 255)]


def ring(rng: np.random.Generator) -> list[Part]:
    hole = rng.uniform(8, 14)
    return [(CIRCLE * (hole + rng.uniform(10, 13)), 255), (CIRCLE * hole, 0)]


def square(rng: np.random.Generator) -> list[Part]:
    side = rng.uniform(22, 38)
    return [(bar(side, side), 255)]


def triangle(rng: np.random.Generator) -> list[Part]:
    return [(TRIANGLE * rng.uniform(18, 28), 255)]


def cross(rng: np.random.Generator) -> list[Part]:
    length, thickness = rng.uniform(40, 56), rng.uniform(11, 14)
    return [(bar(length, thickness), 255), (bar(thickness, length), 255)]


def stick(rng: np.random.Generator) -> list[Part]:
    return [(bar(rng.uniform(46, 74), rng.uniform(10, 14)), 255)]


OUTLINES = (disc, lollipop, ring, square, triangle, cross, stick)
