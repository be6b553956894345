"""Bilinear up-sampling as the transposed convolution that FCN makes of it, and transposed convolution in general.

All of them scatter: `out[s·i + k] += x[i] · w[k]`, from a map `[b h w c]` to `[b s(h−1)+k s(w−1)+k c]`. Beyond the
outermost cells the map counts as zero, so the outer pixels of an up-sampled constant are below it: the released nets
were trained with that fade and it is kept. Interpolation always runs in the highest precision: on a TPU the default
would multiply in bfloat16, and in an up-sampling of 32 that moves boundaries.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def bilinear_kernel(size: int) -> np.ndarray:
    """The 1-D kernel `[size]`, `1 − |i − c| / f` with `f = (size + 1) // 2`, whose outer square is the 2-D one.

    Source: `upsample_filt` of the FCN release (surgery.py); float64.
    """
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 == 1 else factor - 0.5
    return 1 - np.abs(np.arange(size) - center) / factor


def upsample_bilinear(
    x: jax.Array, kernel: int, stride: int, *, offset: int = 0, size: tuple[int, int] | None = None
) -> jax.Array:
    """Up-samples each channel of `x [b h w c]` alone by the fixed bilinear kernel, to `[b H W c]`.

    The result is the part of the transposed convolution's output from `offset` on, `size` pixels of it (all by
    default), computed without the rest. Two products with narrow banded matrices, one an axis.
    """
    for axis in (1, 2):
        full = stride * (x.shape[axis] - 1) + kernel
        length = full - offset if size is None else size[axis - 1]
        if not 0 <= offset <= offset + length <= full:
            raise ValueError(f"cannot cut {length} from {offset} on out of {full} up-sampled pixels")
        matrix = _interpolation_matrix(x.shape[axis], kernel, stride, offset, length).astype(x.dtype)
        product = jnp.tensordot(matrix, x, axes=((1,), (axis,)), precision=lax.Precision.HIGHEST)
        x = jnp.moveaxis(product, 0, axis)
    return x


def _interpolation_matrix(cells: int, kernel: int, stride: int, offset: int, length: int) -> np.ndarray:
    """`[length cells]`: row p holds the weights of the coarse cells in fine pixel `offset + p`."""
    taps = bilinear_kernel(kernel)
    position = np.arange(length)[:, None] + offset - stride * np.arange(cells)
    inside = (position >= 0) & (position < kernel)
    return np.where(inside, taps[np.where(inside, position, 0)], 0.0)


def interpolate(x: jax.Array, size: Sequence[int], align_corners: bool = False) -> jax.Array:
    """A map `[b h w c]` at another size `(H, W)`: linear between the cells' centres, constant beyond the outermost.

    PyTorch's `interpolate`; with `align_corners` the outermost cells lie on the outermost pixels, as in DeepLab's
    `Interp` layer. No transposed convolution: nothing fades at the borders.
    """
    if align_corners:
        for axis, length in zip((1, 2), size, strict=True):
            place = np.linspace(0, x.shape[axis] - 1, length)[:, None] - np.arange(x.shape[axis])
            matrix = np.maximum(0, 1 - np.abs(place)).astype(np.promote_types(x.dtype, np.float32))
            product = jnp.tensordot(matrix, x, axes=((1,), (axis,)), precision=lax.Precision.HIGHEST)
            x = jnp.moveaxis(product, 0, axis)
        return x
    shape = (x.shape[0], *size, x.shape[-1])
    return jax.image.resize(x, shape, "linear", antialias=False, precision=lax.Precision.HIGHEST)


def transposed_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Transposed convolution of `x [b h w i]`, unpadded, to `[b s(h−1)+k s(w−1)+k o]`, in the highest precision.

    `kernel` is `[k k i o]` (dense), or `[k k 1 c]` for one kernel a channel (grouped, i = o = c).
    """
    size = kernel.shape[0]
    grouped = kernel.shape[2] == 1 and x.shape[-1] > 1
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=[(size - 1, size - 1)] * 2,
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] if grouped else 1,
        precision=lax.Precision.HIGHEST,
    )
