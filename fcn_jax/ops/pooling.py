"""Max pooling with Caffe's rounding: the last window may hang over the far edge, and the map's size rounds up."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def pooled_size(size: int, kernel: int, stride: int, padding: int = 0) -> int:
    """`ceil((size + 2·padding − kernel) / stride) + 1`, less one where the last window would start in the padding.

    Source: Caffe's pooling_layer.cpp.
    """
    pooled = -(-(size + 2 * padding - kernel) // stride) + 1
    if padding > 0 and (pooled - 1) * stride >= size + padding:
        pooled -= 1
    return max(pooled, 1)


def max_pool(x: jax.Array, kernel: int = 2, stride: int = 2, padding: int = 0) -> jax.Array:
    """The largest value in each window of `x [b h w c]`, clipped to the map; the gradient goes to the first of equals.

    Raises nothing for small maps: a map smaller than the window pools to one cell.
    """
    pads = []
    for size in x.shape[1:3]:
        covered = (pooled_size(size, kernel, stride, padding) - 1) * stride + kernel
        pads.append((padding, max(covered - size - padding, 0)))

    def by_windows(x):
        return lax.reduce_window(
            x,
            np.array(-np.inf, x.dtype),
            lax.max,
            window_dimensions=(1, kernel, kernel, 1),
            window_strides=(1, stride, stride, 1),
            padding=((0, 0), *pads, (0, 0)),
        )

    if kernel != stride:
        return by_windows(x)
    # The gradient of a window reduction is a scatter, which CPUs run in a scalar loop: at 360×480×64, 0.17 s against
    # 0.03 s for the maximum of strided slices.
    return lax.platform_dependent(x, cpu=lambda x: _max_of_slices(x, kernel, pads), default=by_windows)


def _max_of_slices(x, kernel, pads):
    x = lax.pad(x, np.array(-np.inf, x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)))
    largest = None
    for top in range(kernel):
        for left in range(kernel):
            cell = x[:, top::kernel, left::kernel]
            if largest is None:
                largest = cell
            else:
                # Not jnp.maximum, which shares the gradient among equals. A NaN is passed on, so that it is found.
                largest = jnp.where((cell > largest) | jnp.isnan(cell), cell, largest)
    return largest
