"""Augmentation: one random geometry for image and labels together, and a change of colour for the colours alone.

Every function works on any size from 1×1 up, on images of any number of channels and on one label map or several.
Label 255 marks what the image does not hold, and padded pixels take a value of the caller's choice: the one that the
net's input blob turns into zero.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from fcn_jax.errors import ConfigError
from fcn_jax.labels import IGNORE

# How bright a colour looks: luma weights of ITU-R BT.601, R G B.
_LUMA = np.array([0.299, 0.587, 0.114])
_OPENCV_CHANNELS = 4  # the most that all of OpenCV's interpolations take


def check(options: Any) -> None:
    """ConfigError unless augmentation can run with these options (fields as in `augment`)."""
    low, high = options.scale
    if not 0 < low <= high:
        raise ConfigError(f"data.augment.scale={(low, high)} must be (low, high) with 0 < low ≤ high; (1, 1) is off")
    shortest, longest = options.short_side
    if (shortest, longest) != (0, 0):
        if not 0 < shortest <= longest:
            raise ConfigError(
                f"data.augment.short_side={(shortest, longest)} must be (low, high) in pixels with 0 < low ≤ high; "
                "(0, 0) is off"
            )
        if (low, high) != (1, 1):
            raise ConfigError("data.augment.short_side and data.augment.scale both say how large images are; set one")
    height, width = options.crop
    if height < 0 or width < 0 or bool(height) != bool(width):
        raise ConfigError(f"data.augment.crop={(height, width)} must be height and width, or (0, 0) for whole images")
    if not 0 <= options.color < 1:
        raise ConfigError(f"data.augment.color={options.color} must be at least 0 and below 1; 0 is off")


def augment(
    example: dict, options: Any, rng: np.random.Generator, fill: float | Sequence[float] = 0.0, colored: bool = True
) -> dict:
    """A random variant of an example `{"image": [h w k], "label": u8[h w], …}`, or with a dict of labels by head.

    `options` has the fields `flip`, `scale` (low, high), `short_side` (low, high, in pixels: to which the shorter side
    is brought, as torchvision's recipes have it; (0, 0) is off), `crop` (height, width; (0, 0) keeps whole images) and
    `color` (strength, 0 is off), which changes the first three channels if they are `colored`, as RGB, and no other.
    `fill` is the pixel around images smaller than the crop; where it is needed the image becomes float32, since a mean
    colour is no whole number.
    """
    image, heads = example["image"], example["label"]
    label = np.stack(list(heads.values()), axis=-1) if isinstance(heads, Mapping) else heads
    if (scale := _scale(image.shape[:2], options, rng)) is not None:
        image, label = rescale(image, label, scale)
    size = height, width = tuple(options.crop)
    top, left = 0, 0
    if height and width:
        top, left = random_corner(image.shape[:2], size, rng)
        image, label = cut(image, label, (top, left), size)
    if options.flip and rng.integers(2):
        image, label = flip(image, label)
    if options.color and colored:
        image = jitter(image, options.color, rng)
    if height and width:
        image, label = pad(image, label, (max(-top, 0), max(-left, 0)), size, fill)
    if isinstance(heads, Mapping):
        label = {head: np.ascontiguousarray(label[..., place]) for place, head in enumerate(heads)}
    return example | {"image": image, "label": label}


def augmented_size(size: tuple[int, int], options: Any, rng: np.random.Generator) -> tuple[int, int]:
    """Height and width that `augment` makes, with the same random numbers, of an image of that size."""
    height, width = options.crop
    if height and width:
        return height, width
    scale = _scale(size, options, rng)
    return size if scale is None else scaled_size(size, scale)


def _scale(size: Sequence[int], options: Any, rng: np.random.Generator) -> float | None:
    """By how much an image of that size is scaled; None where images keep their sizes."""
    if tuple(options.scale) != (1, 1):
        return rng.uniform(*options.scale)
    if any(options.short_side):
        shortest, longest = options.short_side
        return rng.integers(shortest, longest + 1) / min(size)
    return None


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """Height and width at `scale` times a size, at least 1×1."""
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def flip(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left and right exchanged."""
    return np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(label[:, ::-1])


def rescale(image: np.ndarray, label: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Image and label at `scale` times their size, at least 1×1: bilinear or by area, and nearest for the label."""
    size = scaled_size(image.shape[:2], scale)
    # Averaging areas keeps thin things when shrinking. NEAREST_EXACT puts pixel centres where the other two have them;
    # plain NEAREST would shift labels against the image by up to half a pixel.
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return _resize(image, size, interpolation), _resize(label, size, cv2.INTER_NEAREST_EXACT)


def _resize(pixels: np.ndarray, size: Sequence[int], interpolation: int) -> np.ndarray:
    """An array `[h w …]` at another size (height, width), channel by channel the same."""
    height, width = size
    channels = pixels.reshape(*pixels.shape[:2], -1)
    count = channels.shape[2]
    starts = list(range(0, count, _OPENCV_CHANNELS))
    if count - starts[-1] == 2:  # of two at once OpenCV 5 rounds some halves as it does of no other number
        starts.append(count - 1)
    resized = [
        cv2.resize(
            np.ascontiguousarray(channels[..., first:last]), (width, height), interpolation=interpolation
        ).reshape(height, width, -1)
        for first, last in itertools.pairwise([*starts, count])
    ]
    whole = resized[0] if len(resized) == 1 else np.concatenate(resized, axis=-1)
    return whole.reshape(height, width, *pixels.shape[2:])


def random_corner(shape: Sequence[int], size: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a window of `size` on an image of `shape`: inside it, or around it (negative) if larger."""
    offsets = [have - want for have, want in zip(shape, size, strict=True)]
    top, left = (int(rng.integers(min(offset, 0), max(offset, 0), endpoint=True)) for offset in offsets)
    return top, left


def cut(
    image: np.ndarray, label: np.ndarray, corner: tuple[int, int], size: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """What the window of `size` at `corner` shows of the image: smaller than `size` where it reaches outside."""
    rows, columns = (slice(max(start, 0), start + length) for start, length in zip(corner, size, strict=True))
    return image[rows, columns], label[rows, columns]


def pad(
    image: np.ndarray, label: np.ndarray, offset: tuple[int, int], size: Sequence[int], fill: float | Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Image and label on a canvas of `size`, their corner at `offset`; around them `fill` (float32 then) and 255."""
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return image, label
    rows, columns = slice(offset[0], offset[0] + height), slice(offset[1], offset[1] + width)
    canvas = np.full((*size, image.shape[2]), fill, np.float32)
    canvas[rows, columns] = image
    labels = np.full((*size, *label.shape[2:]), IGNORE, np.uint8)
    labels[rows, columns] = label
    return canvas, labels


def jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation of the first three channels, each times a factor within 1 ± strength.

    Colours stay within 0…255, whole numbers in an image that holds such; what follows them stays as it is.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
    # All three are affine in RGB, so one matrix does them: saturation mixes with grey, contrast with the mean grey.
    red_green_blue = np.ascontiguousarray(image[..., :3])
    mean_grey = _LUMA @ red_green_blue.reshape(-1, 3).mean(axis=0)
    colors = saturation * np.eye(3) + (1 - saturation) * np.ones((3, 1)) * _LUMA
    offset = np.full((3, 1), brightness * (1 - contrast) * mean_grey)
    changed = cv2.transform(red_green_blue, np.hstack([brightness * contrast * colors, offset]))
    if changed.dtype != np.uint8:
        np.clip(changed, 0, 255, out=changed)  # OpenCV does so with bytes alone
    return changed if image.shape[2] == 3 else np.concatenate([changed, image[..., 3:]], axis=-1)
