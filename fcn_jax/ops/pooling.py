"""Pooling with Caffe's rounding: the last window may hang over the far edge, and the map's size rounds up."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.ops import rematerialisation


def pooled_size(size: int, kernel: int, stride: int, padding: int = 0) -> int:
    """`ceil((size + 2·padding − kernel) / stride) + 1`, less one where the last window would start in the padding.

    Source: Caffe's pooling_layer.cpp.
    """
    pooled = -(-(size + 2 * padding - kernel) // stride) + 1
    if padding > 0 and (pooled - 1) * stride >= size + padding:
        pooled -= 1
    return max(pooled, 1)


@partial(jax.jit, static_argnames=("kernel", "stride", "padding"), inline=True)
def max_pool(x: jax.Array, kernel: int = 2, stride: int = 2, padding: int = 0) -> jax.Array:
    """The largest value in each window of `x [b h w c]`, clipped to the map; the gradient goes to the first of equals.

    Raises nothing for small maps: a map smaller than the window pools to one cell.
    """
    pads = _pads(x, kernel, stride, padding)

    def by_windows(x):
        return lax.reduce_window(
            x,
            np.array(-np.inf, x.dtype),
            lax.max,
            window_dimensions=(1, kernel, kernel, 1),
            window_strides=(1, stride, stride, 1),
            padding=((0, 0), *pads, (0, 0)),
        )

    # The gradient of a window's maximum is a scatter, which CPUs run in a scalar loop: at 360×480×64, 0.17 s against
    # 0.03 s for the maximum of strided slices, and AlexNet's 3×3 of stride 2 at 173×173×96, 72 ms against 11 ms. Where
    # windows step by one it gains nothing.
    by_slices = partial(_max_of_slices, kernel=kernel, stride=stride, pads=pads)
    y = by_windows(x) if stride == 1 else lax.platform_dependent(x, cpu=by_slices, default=by_windows)
    return rematerialisation.mark(y, rematerialisation.BLOCK)


@partial(jax.jit, static_argnames=("kernel", "stride", "padding"), inline=True)
def average_pool(x: jax.Array, kernel: int, stride: int, padding: int = 0) -> jax.Array:
    """The mean of each window of `x [b h w c]`, zero padded, by Caffe's count.

    Padding counts as zeros, but what hangs over the far edge of the padding does not count. Sums are float32 or better.
    """
    wide = x.astype(np.promote_types(x.dtype, np.float32))
    sums = lax.reduce_window(
        wide,
        np.zeros((), wide.dtype),
        lax.add,
        window_dimensions=(1, kernel, kernel, 1),
        window_strides=(1, stride, stride, 1),
        padding=((0, 0), *_pads(x, kernel, stride, padding), (0, 0)),
    )
    rows, columns = (_counted(size, kernel, stride, padding) for size in x.shape[1:3])
    counts = np.outer(rows, columns)[None, :, :, None]
    return (sums / counts.astype(wide.dtype)).astype(x.dtype)


def _pads(x, kernel, stride, padding):
    """Padding before and after each of the two axes, so that the last window is whole."""
    pads = []
    for size in x.shape[1:3]:
        covered = (pooled_size(size, kernel, stride, padding) - 1) * stride + kernel
        pads.append((padding, max(covered - size - padding, 0)))
    return pads


def _counted(size, kernel, stride, padding):
    """How many cells of each window along an axis lie in the map or its padding."""
    starts = np.arange(pooled_size(size, kernel, stride, padding)) * stride
    return np.minimum(starts + kernel, size + 2 * padding) - starts


def _max_of_slices(x, kernel, stride, pads):
    x = lax.pad(x, np.array(-np.inf, x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)))
    height, width = (size - kernel + 1 for size in x.shape[1:3])
    largest = None
    for top in range(kernel):
        for left in range(kernel):
            cell = x[:, top : top + height : stride, left : left + width : stride]
            if largest is None:
                largest = cell
            else:
                # Not jnp.maximum, which shares the gradient among equals. A NaN is passed on, so that it is found.
                largest = jnp.where((cell > largest) | jnp.isnan(cell), cell, largest)
    return largest
