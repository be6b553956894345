"""Bilinear up-sampling as the transposed convolution that FCN makes of it, and transposed convolution in general.

All of them scatter: `out[s·i + k] += x[i] · w[k]`, from a map `[b h w c]` to `[b s(h−1)+k s(w−1)+k c]`. Beyond the
outermost cells the map counts as zero, so the outer pixels of an up-sampled constant are below it: the released nets
were trained with that fade and it is kept. Interpolation always runs in the highest precision: on a TPU the default
would multiply in bfloat16, and in an up-sampling of 32 that moves boundaries.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.ops.convolution import conv2d
from fcn_jax.ops.resampling import Resampling


def bilinear_kernel(size: int) -> np.ndarray:
    """The 1-D kernel `[size]`, `1 − |i − c| / f` with `f = (size + 1) // 2`, whose outer square is the 2-D one.

    Source: `upsample_filt` of the FCN release (surgery.py); float64.
    """
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 == 1 else factor - 0.5
    return 1 - np.abs(np.arange(size) - center) / factor


def upsampling(
    cells: Sequence[int], kernel: int, stride: int, *, offset: int = 0, size: Sequence[int] | None = None
) -> Resampling:
    """The fixed bilinear transposed convolution of a map of `cells` (h, w), as a resampling.

    It gives the part of the output from `offset` on, `size` (H, W) pixels of it, all by default. Raises ValueError for
    a part that the output does not have.
    """
    matrices = []
    for axis, count in enumerate(cells):
        full = stride * (count - 1) + kernel
        length = full - offset if size is None else size[axis]
        if not 0 <= offset <= offset + length <= full:
            raise ValueError(f"cannot cut {length} from {offset} on out of {full} up-sampled pixels")
        matrices.append(_interpolation_matrix(count, kernel, stride, offset, length))
    return Resampling(*matrices)


@partial(jax.jit, static_argnames=("kernel", "stride", "offset", "size"), inline=True)
def upsample_bilinear(
    x: jax.Array, kernel: int, stride: int, *, offset: int = 0, size: tuple[int, int] | None = None
) -> jax.Array:
    """Up-samples each channel of `x [b h w c]` alone by the fixed bilinear kernel, to `[b H W c]`; see `upsampling`."""
    return upsampling(x.shape[1:3], kernel, stride, offset=offset, size=size)(x)


def _interpolation_matrix(cells: int, kernel: int, stride: int, offset: int, length: int) -> np.ndarray:
    """`[length cells]`: row p holds the weights of the coarse cells in fine pixel `offset + p`."""
    taps = bilinear_kernel(kernel)
    position = np.arange(length)[:, None] + offset - stride * np.arange(cells)
    inside = (position >= 0) & (position < kernel)
    return np.where(inside, taps[np.where(inside, position, 0)], 0.0)


def interpolation(cells: Sequence[int], size: Sequence[int], align_corners: bool = False) -> Resampling:
    """A map of `cells` (h, w) at another `size` (H, W): linear between the cells' centres, constant beyond them.

    PyTorch's `interpolate`; with `align_corners` the outermost cells lie on the outermost pixels, as in DeepLab's
    `Interp` layer. No transposed convolution: nothing fades at the borders.
    """
    matrices = []
    for count, length in zip(cells, size, strict=True):
        if align_corners:
            place = np.linspace(0, count - 1, length)
        else:
            place = np.clip((np.arange(length) + 0.5) * (count / length) - 0.5, 0, count - 1)
        matrices.append(np.maximum(0, 1 - np.abs(place[:, None] - np.arange(count))))
    return Resampling(*matrices)


def interpolate(x: jax.Array, size: Sequence[int], align_corners: bool = False) -> jax.Array:
    """A map `[b h w c]` at another size `(H, W)`; see `interpolation`."""
    return interpolation(x.shape[1:3], size, align_corners)(x)


def transposed_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Transposed convolution of `x [b h w i]`, unpadded, to `[b s(h−1)+k s(w−1)+k o]`, in the highest precision.

    `kernel` is `[k k i o]` (dense), or `[k k 1 c]` for one kernel a channel (grouped, i = o = c). It is computed by
    phases: the s² pixels of a cell are s² times the channels of a convolution with every s-th tap (Shi et al., CVPR
    2016, section 3), where the zeros between the cells of a dilated map would be multiplied for nothing.
    """
    size, _, inputs, outputs = kernel.shape
    batch, *cells, channels = x.shape
    grouped = inputs == 1 and channels > 1
    taps = -(-size // stride)  # cells that reach a pixel, along a side
    short = (0, taps * stride - size)
    phases = jnp.pad(kernel, (short, short, (0, 0), (0, 0)))
    phases = phases.reshape(taps, stride, taps, stride, inputs, outputs)
    height, width = (count + taps - 1 for count in cells)
    if grouped:
        x = jnp.pad(x, ((0, 0), (taps - 1, taps - 1), (taps - 1, taps - 1), (0, 0)))
        y = jnp.zeros((batch, height, stride, width, stride, outputs), x.dtype)
        for row in range(taps):
            for column in range(taps):
                top, left = taps - 1 - row, taps - 1 - column
                part = x[:, top : top + height, None, left : left + width, None]
                y += part * phases[None, None, row, :, None, column, :, 0]
    else:
        matrices = phases[::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5).reshape(taps, taps, inputs, -1)
        y = conv2d(x, matrices, padding=taps - 1, precision=lax.Precision.HIGHEST)
        y = y.reshape(batch, height, width, stride, stride, outputs).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(batch, stride * height, stride * width, outputs)
    return y[:, : stride * (cells[0] - 1) + size, : stride * (cells[1] - 1) + size]
