"""Textures of the drawn data set: patterns f32[h w] of mean 0, about from -1 to 1, at random angles and periods.

All are cheap, some ten microseconds for the size of a thing: sines come as products of one row and one column, and
noise is a window into a tile made once.
"""

import math

import numpy as np


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A pattern f32[h w] of mean 0, about from -1 to 1."""
    return TEXTURES[rng.integers(len(TEXTURES))](rng, height, width)


def plain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.float32(0.3) * mottles(rng, height, width)


def stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.clip(2 * wave(rng.uniform(0, math.pi), rng.uniform(4, 9), rng, height, width), -1, 1)


def checks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    angle, period = rng.uniform(0, math.pi), rng.uniform(5, 10)
    across = wave(angle, period, rng, height, width) * wave(angle + math.pi / 2, period, rng, height, width)
    return np.clip(3 * across, -1, 1)


def mottles(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return tile_window(rng, MOTTLES, height, width)


def gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    rows = np.arange(1 - height, height, 2) * (math.sin(angle) / height)
    columns = np.arange(1 - width, width, 2) * (math.cos(angle) / width)
    return np.add.outer(rows, columns).astype(np.float32)


def wave(angle: float, period: float, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A sine over the plane, as the sine of a sum of an angle for the row and one for the column."""
    step = 2 * math.pi / period
    rows = np.arange(height)[:, None] * (step * math.sin(angle)) + rng.uniform(0, 2 * math.pi)
    columns = np.arange(width) * (step * math.cos(angle))
    sines, cosines = np.sin(rows).astype(np.float32), np.cos(rows).astype(np.float32)
    return sines * np.cos(columns).astype(np.float32) + cosines * np.sin(columns).astype(np.float32)


def tile_window(rng: np.random.Generator, tile: np.ndarray, height: int, width: int) -> np.ndarray:
    """A random window f32[h w] into a tile that repeats for ever."""
    top, left = rng.integers(tile.shape).tolist()
    rows = tile.take(np.arange(top, top + height), axis=0, mode="wrap")
    return rows.take(np.arange(left, left + width), axis=1, mode="wrap")


def noise_tile(seed: int, size: int, smoothness: float) -> np.ndarray:
    """Gaussian noise f32[size size] of variance 1 that repeats without a seam, blurred by `smoothness` pixels."""
    frequencies = np.fft.fftfreq(size)
    envelope = np.exp(-2 * (math.pi * smoothness) ** 2 * (frequencies[:, None] ** 2 + frequencies**2))
    envelope[0, 0] = 0
    noise = np.fft.ifft2(np.fft.fft2(np.random.default_rng(seed).standard_normal((size, size))) * envelope).real
    return (noise / noise.std()).astype(np.float32)


GRAIN = noise_tile(1, 256, 0.4)
MOTTLES = noise_tile(2, 256, 2.5) / 2
TEXTURES = (plain, stripes, checks, mottles, gradient)
