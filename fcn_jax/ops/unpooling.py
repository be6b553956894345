"""Unpooling: the answers of SegNet and DeconvNet to the question where a pooled value came from.

A 2×2 max pooling that also says which cell of its window was largest, and the ways back up. A place is a number of two
bits, 2·row + column within the window, and four of them are kept in a byte: that is all that lives between an encoder
and its decoder. No scatter and no gather on either way: both compare places, so that an accelerator runs them at the
speed of memory, and the gradient of each is the other. SegNet's inference on an image of 360×480 takes 95 MiB of
temporaries (CPU, by the compiler) where one that keeps features and compares them takes 102.

Sources: alexgkendall/caffe-segnet (pooling_layer.cpp, upsample_layer.cpp), HyeonwooNoh/caffe (unpooling_layer.cpp).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.ops import rematerialisation

WINDOW = 2  # cells a side, and the stride
_PLACES = WINDOW * WINDOW
_PER_BYTE = 4


@partial(jax.jit, inline=True)
def max_pool_with_places(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest value in each 2×2 window of `x [b h w c]`, rounding sizes up, and its place there.

    Gives `[b ⌈h/2⌉ ⌈w/2⌉ c]` and the places packed, u8 `[b ⌈h/2⌉ ⌈w/2⌉ ⌈c/4⌉]`. Of equals the first in reading order
    is taken, as in Caffe; a NaN is passed on.
    """
    cells = _cells(x)
    largest, place = cells[0], jnp.zeros(cells[0].shape, jnp.uint8)
    for number, cell in enumerate(cells[1:], start=1):
        larger = (cell > largest) | jnp.isnan(cell)
        largest = jnp.where(larger, cell, largest)
        place = jnp.where(larger, np.uint8(number), place)
    # The places exist before anything reads the pooled map. Without the barrier a compiler may as well make them where
    # the decoder wants them, from features that it then has to keep.
    pooled = tuple(lax.optimization_barrier((largest, _pack(place))))
    return rematerialisation.mark(pooled, rematerialisation.BLOCK)


@partial(jax.jit, static_argnames=("size",), inline=True)
def unpool(x: jax.Array, places: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Puts each value of `x [b h w c]` back where it came from in a map of `size` (H, W); zeros elsewhere.

    `places` are those of `max_pool_with_places` of a map of that size, packed. Raises ValueError for places of another
    number of channels.
    """
    if places.shape[-1] != -(-x.shape[-1] // _PER_BYTE):
        raise ValueError(f"{x.shape[-1]} channels cannot be unpooled by the places of about {4 * places.shape[-1]}")
    x = rematerialisation.mark(x, rematerialisation.BLOCK)
    place = _unpack(places, x.shape[-1])[:, :, None, :, None]
    rows, columns = np.arange(WINDOW)[:, None, None, None], np.arange(WINDOW)[:, None]
    here = place == (WINDOW * rows + columns).astype(np.uint8)[None, None]
    return _cropped(jnp.where(here, x[:, :, None, :, None], jnp.zeros((), x.dtype)), size)


@partial(jax.jit, static_argnames=("size",), inline=True)
def unpool_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Repeats each value of `x [b h w c]` over its window of a map of `size` (H, W)."""
    x = rematerialisation.mark(x, rematerialisation.BLOCK)
    batch, height, width, channels = x.shape
    shape = (batch, height, WINDOW, width, WINDOW, channels)
    return _cropped(jnp.broadcast_to(x[:, :, None, :, None], shape), size)


@partial(jax.jit, static_argnames=("size",), inline=True)
def unpool_corner(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Puts each value of `x [b h w c]` at the top left of its window of a map of `size` (H, W); zeros elsewhere."""
    x = rematerialisation.mark(x, rematerialisation.BLOCK)
    return _cropped(jnp.pad(x[:, :, None, :, None], ((0, 0), (0, 0), (0, 1), (0, 0), (0, 1), (0, 0))), size)


@partial(jax.jit, static_argnames=("channels", "width"), inline=True)
def flat_indices(places: jax.Array, channels: int, width: int) -> jax.Array:
    """The masks of the Caffe forks, i32 `[b h w c]`: `row · width + column` in the pooled map of `width` columns."""
    place = _unpack(places, channels).astype(jnp.int32)
    rows, columns = (WINDOW * jnp.arange(n, dtype=jnp.int32) for n in places.shape[1:3])
    row = rows[None, :, None, None] + place // WINDOW
    return row * width + columns[None, None, :, None] + place % WINDOW


def _cells(x: jax.Array) -> list[jax.Array]:
    """The four cells of each window, one map for each place; beyond the far edge lies nothing that is ever largest."""
    _, height, width, _ = x.shape
    low = np.array(-np.inf, x.dtype)
    x = lax.pad(x, low, ((0, 0, 0), (0, height % WINDOW, 0), (0, width % WINDOW, 0), (0, 0, 0)))
    return [x[:, row::WINDOW, column::WINDOW] for row in range(WINDOW) for column in range(WINDOW)]


def _cropped(windows: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Windows `[b h 2 w 2 c]` as a map `[b H W c]` without what hangs over its far edges."""
    batch, height, _, width, _, channels = windows.shape
    x = windows.reshape(batch, WINDOW * height, WINDOW * width, channels)
    return x[:, : size[0], : size[1]]


def _pack(place: jax.Array) -> jax.Array:
    """Four channels to a byte, a quarter of all channels apart: whole runs of channels are shifted, none is moved."""
    channels = place.shape[-1]
    quarter = -(-channels // _PER_BYTE)
    place = jnp.pad(place, ((0, 0), (0, 0), (0, 0), (0, quarter * _PER_BYTE - channels)))
    packed = place[..., :quarter]
    for part in range(1, _PER_BYTE):
        packed |= place[..., part * quarter : (part + 1) * quarter] << np.uint8(2 * part)
    return packed


def _unpack(packed: jax.Array, channels: int) -> jax.Array:
    parts = [(packed >> np.uint8(2 * part)) & np.uint8(_PLACES - 1) for part in range(_PER_BYTE)]
    return jnp.concatenate(parts, axis=-1)[..., :channels]
