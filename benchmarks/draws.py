"""The same weights and images on both sides of a comparison: drawn by name and shape, with NumPy alone.

A kernel is He's (standard deviation √(2 / fan in)), so that values neither fade nor grow through a deep net.
"""

import zlib
from collections.abc import Sequence

import numpy as np

CLASSES = 21
MEAN = (104.00699, 116.66877, 122.67892)  # of the FCN release's images, B G R
# Values grow through the poolings. With larger images scores are so far apart that softmax's gradients are subnormal
# numbers, with which processors compute many times as slowly, unless a runtime takes them for zero.
SCALE = 1 / 256


def parameter(layer: str, kind: str, shape: Sequence[int]) -> np.ndarray:
    """The parameter or statistic `kind` (kernel, bias, scale, mean, var) of a layer, f32; kernels are `[h w i o]`.

    Raises ValueError for another kind.
    """
    rng = np.random.default_rng(zlib.crc32(f"{layer}/{kind}".encode()))
    if kind == "kernel":
        values = rng.standard_normal(tuple(shape), np.float32)
        values *= np.float32(np.sqrt(2 / np.prod(shape[:-1])))
        return values
    if kind in ("scale", "var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if kind in ("bias", "mean"):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    raise ValueError(f"{layer}: nothing is drawn for {kind!r}")


def bilinear(kernel: int) -> np.ndarray:
    """The kernel f32 `[k k]` of a transposed convolution that up-samples."""
    factor = (kernel + 1) // 2
    center = factor - 1 if kernel % 2 else factor - 0.5
    taps = 1 - np.abs(np.arange(kernel) - center) / factor
    return np.outer(taps, taps).astype(np.float32)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An RGB picture u8 `[h w 3]`: a coarse pattern with fine noise, which JPEG compresses about as a photograph."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3)).astype(np.float32)
    pattern = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    noise = rng.normal(0, 12, (height, width, 3)).astype(np.float32)
    return np.clip(pattern + noise, 0, 255).astype(np.uint8)


def blob(images: int, height: int, width: int) -> np.ndarray:
    """Input blobs f32 `[b h w 3]`, B G R minus mean, times scale."""
    return as_blob(np.stack([picture(height, width, seed) for seed in range(images)]))


def as_blob(pictures: np.ndarray) -> np.ndarray:
    """What a net sees of RGB pictures `[b h w 3]`."""
    return (pictures[..., ::-1].astype(np.float32) - np.asarray(MEAN, np.float32)) * np.float32(SCALE)


def labels(images: int, height: int, width: int, classes: int = CLASSES) -> np.ndarray:
    """Labels u8 `[b h w]` in patches of 16 pixels, a twentieth of them 255."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, classes, (images, -(-height // 16), -(-width // 16)))
    coarse = np.where(rng.random(coarse.shape) < 0.05, 255, coarse)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width].astype(np.uint8)
