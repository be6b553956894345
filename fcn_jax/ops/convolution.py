"""Convolutions of NHWC maps with HWIO kernels, lowered to what is fast on the machine at hand.

XLA's own convolutions are the rule, and accelerators get nothing else. The choice is made when the program is lowered,
so the same function compiles for a TPU from a laptop. On CPUs there are exceptions, read off measurements (two
cores, jax 0.10.2, float32; 2048³ matrix product: 250 GFLOP/s, of rows with a star 181, with a plus 215):

    what                                          XLA's own             here
    3×3, 512 channels, 45×60                      55 ms                 47 ms; its map's gradient 58 and 51
        256 channels, 24×24                       3.1 ms                the same (Eigen: 4.7)
        64 to 21 channels, 48×48                  0.61 ms               the same (Eigen: 0.98)
        512 to 1024 channels, dilation 12         128 ms                100 ms; 161 and 116
        256 channels, eight images of 32×32       48 ms                 38 ms; 44 and 37
        64 channels, eight images of 32×32        4.8 ms                2.8 ms
        32 channels, four images of 128×128       10.4 ms               7.4 ms; 9.6 and 7.2
        32 to 64 channels, the same images        23.3 ms +             15.6 ms
        8 to 64 channels, eight images of 64×64   2.64 ms +             the same (Eigen: 2.90)
        32 channels, two images of 32×32          0.33 ms               the same (Eigen: 0.74)
        64 channels, 360×480                      79 ms                 the same (Eigen: 89)
    3×3 without padding, 64 channels, 379×504     236 ms                91 ms
        512 channels, 58×74                       352 ms                75 ms
    4×4 without padding, 32 to 8, four of 67×67   22.9 ms               1.6 ms
    kernel gradient, 3×3, 64 channels, 360×480    379 ms                98 ms
        64 to 128 channels, 180×240               137 ms                41 ms
        256 channels, 90×120                      352 ms                76 ms
        512 channels, 45×60                       234 ms                59 ms, of columns (in bands alone 81)
        256 to 512 channels, 45×60                118 ms                29 ms, of columns (in bands alone 49)
        512 channels, 23×30                       21.6 ms               14.2 ms, of columns
        3 to 64 channels, 360×480                 27.5 ms               11.3 ms
        64 channels, four images of 32×32         3.0 ms                the same (in bands 4.7)
        4096 to 21 channels, dilation 12, 48×48   167 ms                the same (in bands 855)
    forward, 7×7, 512 to 4096 channels, 12×15     0.81 s *              0.43 s; with gradients 4.2 s and 1.5 s
        128 channels, 32×32                       7.4 ms                the same (patches: 14.7)
    two groups, 5×5, 34×34 (AlexNet's conv2)      38 ms *               10 ms; with gradients 169 ms and 24 ms
    1×1, 4096 to 4096 channels, 180 cells         75 ms                 31 ms
        512 to 2048 channels, 2700 cells          36 ms                 27 ms
        16 channels, 128×128                      0.14 ms *             0.26 ms; gradients 0.12 and 0.17, 0.70 and 0.25
        8 channels, 1024 cells                    0.013 ms              the same (a matrix: 0.039)

XLA, first, hands a convolution to YNNPACK where its output is no larger than its map, neither in height nor in width,
and to Eigen otherwise. Eigen is the faster where channels are many, and of several images, unless they have few
channels and few cells; there an output is made one column wider than the map, and cut. Where YNNPACK is, but has an
output narrower than the map, at which it is slow, it is made as wide as the map. The gradient of a map is such a
convolution, too, from the output to the map.

Kernel gradients are added up band by band: XLA's own, of some rows of the map at a time, which with their cotangents
fit into the cache. It is the more exact, too, as XLA adds one pixel after another (3 to 64 channels, 360×480: largest
error 1.5e-5 of the largest value, in bands 1e-6); so of few channels smaller maps are cut up as well. They are small
outputs of large maps, and so YNNPACK's, at 120 to 170 GFLOP/s. Where channels are many, a band is convolved along its
rows alone, each column being an example: one-dimensional convolutions are Eigen's, and reach 220. It takes the map's
memory once for each column of the kernel, and so large maps are left to the bands alone, and many bands come one after
another. Whole convolutions are patches (shifted slices) times a matrix where the kernel is large for its map, and
channels many; with padding on a map smaller than the kernel XLA even falls into a naive loop (12 s forward for an image
of 180×240), while on large maps its own is as fast or faster (7×7, 64 channels, 180×240: 116 ms, by patches 272).
Patches are made for some rows at a time, so that they stay in the cache and never take much memory. Groups are computed
one after another. A 1×1 kernel, last, is a matrix, unless channels are few: from nine on it gains in sum, and is the
more exact.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from fcn_jax.ops import rematerialisation

_IMAGE_CHANNELS, _FEWEST_CHANNELS, _FEW_CHANNELS, _NARROW, _MANY_CHANNELS = 4, 8, 16, 64, 128
_LARGE_KERNEL = 5  # taps a side
_SMALL_MAP, _LARGE_MAP = 2**10, 2**14  # cells
_BAND_VALUES, _MOST_BANDS = 3 * 2**17, 64  # of a map and its cotangents: read at a time
_BANDS_AT_ONCE = 4  # by columns: XLA makes what all bands see as soon as the map is there, and holds it until the end
_BAND_CELLS = 4096  # of a map of few channels, for the sake of precision
_MOST_INPUTS = 32  # channels in for each one out
_FEWEST_FOR_ONE = 4  # columns that are wanted for each one more
_PATCH_VALUES = 2**20  # made at a time


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Cross-correlates `x [b h w i]` with `kernel [k k i/groups o]`, zero padded, to `[b h' w' o]`.

    `h' = floor((h + 2·padding − dilation·(k − 1) − 1) / stride) + 1`, as in Caffe and PyTorch. Of several groups each
    computes its share of the outputs, in order, from its share of the inputs.
    """
    before = _unseen(x, kernel, stride, padding, dilation)
    seen = _padded_behind(x, kernel, stride, padding, dilation, before) if before else x
    y = _conv2d(seen, kernel, stride, padding - before * stride, dilation, groups, precision)
    y = rematerialisation.mark(y, rematerialisation.CONVOLUTION)
    if before:
        cells = zip(_output_size(x, kernel, stride, padding, dilation), y.shape[1:3], strict=True)
        around = [(before, every - before - found, 0) for every, found in cells]
        y = lax.pad(y, np.zeros((), y.dtype), [(0, 0, 0), *around, (0, 0, 0)])
    return y


def _unseen(x: jax.Array, kernel: jax.Array, stride: int, padding: int, dilation: int) -> int:
    """How many cells along each axis of a strided convolution lie before the first that sees more than padding.

    They are zeros and need no computing. Nor can the compiler for TPUs (libtpu 0.0.42): it ends the process where the
    kernel's gradient of a strided convolution is to see more padding than the kernel is large.
    """
    if stride == 1:
        return 0
    last = _last_seen(x, kernel, stride, padding, dilation)
    return max(min(-(-(padding - _extent(kernel, dilation) + 1) // stride), padding // stride, *last), 0)


def _last_seen(x: jax.Array, kernel: jax.Array, stride: int, padding: int, dilation: int) -> list[int]:
    """The last cell along each axis that sees more than padding."""
    cells = zip(_output_size(x, kernel, stride, padding, dilation), x.shape[1:3], strict=True)
    return [min((length - 1 + padding) // stride, every - 1) for every, length in cells]


def _padded_behind(x: jax.Array, kernel: jax.Array, stride: int, padding: int, dilation: int, before: int) -> jax.Array:
    """The map with zeros behind it, where without those `before` cells less padding is left than its last ones see."""
    left, extent = padding - before * stride, _extent(kernel, dilation)
    last = zip(_last_seen(x, kernel, stride, padding, dilation), x.shape[1:3], strict=True)
    more = [(0, max((cell - before) * stride + extent - length - 2 * left, 0), 0) for cell, length in last]
    return lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *more, (0, 0, 0)])


def _extent(kernel: jax.Array, dilation: int) -> int:
    """How many cells a kernel spans along the axis on which it is the largest."""
    return dilation * (max(kernel.shape[:2]) - 1) + 1


# Inlined, it leaves no trace in the program; but layers alike, and the same net again, are traced once.
@partial(jax.jit, static_argnums=range(2, 7), inline=True)
def _conv2d(x, kernel, stride, padding, dilation, groups, precision):
    native = partial(_native, stride=stride, padding=padding, dilation=dilation, groups=groups, precision=precision)

    def by_groups(x, kernel):
        return jnp.concatenate(
            [
                conv2d(*shares, stride=stride, padding=padding, dilation=dilation, precision=precision)
                for shares in zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
            ],
            axis=-1,
        )

    def by_patches(x, kernel):
        return _patches_times_matrix(x, kernel, stride, padding, dilation, precision)

    def by_fastest(x, kernel):
        by_bands = _gains_by_bands(x, kernel, stride, padding, dilation)
        along_kernel = _band_by_band if by_bands else _of_kernel
        return _by_fastest(x, kernel, stride, padding, dilation, precision, along_kernel)

    def by_matrix(x, kernel):
        return _by_matrix(x, kernel, stride, precision)

    if groups > 1:
        on_cpu = by_groups
    elif kernel.shape[:2] == (1, 1) and padding == 0 and min(kernel.shape[2:]) > _FEWEST_CHANNELS:
        on_cpu = by_matrix
    elif _is_large(kernel.shape, x.shape[1:3], padding):
        on_cpu = by_patches
    else:
        on_cpu = by_fastest
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=native)


def _is_large(kernel: Sequence[int], size: Sequence[int], padding: int) -> bool:
    """Whether the kernel is so large for its map that the whole convolution is by patches."""
    if max(kernel[:2]) < _LARGE_KERNEL or max(kernel[2:]) < _MANY_CHANNELS:
        return False
    smaller = min(size) + 2 * padding < 2 * max(kernel[:2])
    return smaller or (size[0] * size[1] <= _SMALL_MAP and min(kernel[2:]) >= 2 * _MANY_CHANNELS)


def _gains_by_bands(x: jax.Array, kernel: jax.Array, stride: int, padding: int, dilation: int) -> bool:
    """Whether the kernel's gradient is by bands; in half precision their sum would lose digits."""
    wide = kernel.shape[:2] != (1, 1) and all(_output_size(x, kernel, stride, padding, dilation))
    # Of so many channels for each output the map itself is too large for the cache.
    wide = wide and kernel.shape[2] <= _MOST_INPUTS * kernel.shape[3]
    fewest = 2 if min(kernel.shape[2:]) <= _FEW_CHANNELS else 1 if _gains_by_columns(x, kernel, stride) else 4
    return wide and jnp.finfo(x.dtype).bits >= 32 and _bands(x, kernel, stride) >= fewest


def _gains_by_columns(x: jax.Array, kernel: jax.Array, stride: int) -> bool:
    """Whether the kernel's gradient, where it is by bands, slides over the map in one dimension alone."""
    many = kernel.shape[2] >= _MANY_CHANNELS and kernel.shape[3] >= 2 * _MANY_CHANNELS
    return stride == 1 and many and kernel.shape[0] * kernel.shape[1] <= x.shape[1] * x.shape[2] < _LARGE_MAP // 2


def _bands(x: jax.Array, kernel: jax.Array, stride: int) -> int:
    cells = x.size // x.shape[-1] // stride**2
    # The whole kernel is added to at every band.
    least = kernel.size // 4 if _gains_by_columns(x, kernel, stride) else 0
    bands = (x.size + cells * kernel.shape[3]) // max(_BAND_VALUES, least)
    if min(kernel.shape[2:]) <= _FEW_CHANNELS:
        bands = max(bands, cells // _BAND_CELLS)
    return min(max(bands, 1), _MOST_BANDS)


def _output_size(x: jax.Array, kernel: jax.Array, stride: int, padding: int, dilation: int) -> list[int]:
    """Height and width of what a convolution gives."""
    return [
        max((x.shape[axis] + 2 * padding - dilation * (kernel.shape[axis - 1] - 1) - 1) // stride + 1, 0)
        for axis in (1, 2)
    ]


def _native(x, kernel, stride, padding, dilation, groups=1, precision=None, right=None, axes=("NHWC", "HWIO", "NHWC")):
    """XLA's convolution; `right` is the padding behind the last column, where it differs from the other sides'."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding), (padding, padding if right is None else right)],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=axes,
        feature_group_count=groups,
        precision=precision,
    )


def _of_map(x, kernel, stride, padding, dilation, precision, right):
    """XLA's convolution, of which the transpose, from the output to the map, has its axes in XLA's own order.

    In loops, as over the parts of an accumulated batch, XLA computes others naively on CPUs (narrow FCN-8s, two parts
    of a batch: 1.1 s a step in place of 0.1).
    """
    axes = ("NHWC", "HWOI", "NHWC")
    return _native(x, jnp.swapaxes(kernel, 2, 3), stride, padding, dilation, 1, precision, right, axes)


def _of_kernel(x, kernel, stride, padding, dilation, precision):
    """Likewise of the transpose from the output to the kernel: the map's channels are its examples."""
    axes = ("CHWN", "IHWO", "HWNC")
    x, kernel = x.transpose(3, 1, 2, 0), kernel.transpose(2, 0, 1, 3)
    return _native(x, kernel, stride, padding, dilation, 1, precision, axes=axes).transpose(2, 0, 1, 3)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5, 6))
def _by_fastest(x, kernel, stride, padding, dilation, precision, along_kernel):
    """XLA's convolution, made as many columns wide as is fastest, and cut; the gradient of its map likewise.

    The kernel's part of the derivative is the convolution `along_kernel`: transposed, it is the kernel gradient.
    """
    size = _output_size(x, kernel, stride, padding, dilation)
    more = _columns_more(x, kernel.shape[2:], size, stride)
    y = _native(x, kernel, stride, padding, dilation, precision=precision, right=padding + more)
    return y[:, :, : size[1]]


@partial(_by_fastest.defjvp, symbolic_zeros=True)
def _(stride, padding, dilation, precision, along_kernel, primals, tangents):
    x, kernel = primals
    moved: list[Any] = list(tangents)
    y = _by_fastest(x, kernel, stride, padding, dilation, precision, along_kernel)
    parts = []
    if not isinstance(moved[0], SymbolicZero):
        # Its transpose, from y to x, is what is to be wider: the map has columns more, and the padding as many less.
        more = _columns_more(y, kernel.shape[:1:-1], x.shape[1:3], stride)
        wider = jnp.pad(moved[0], ((0, 0), (0, 0), (0, more), (0, 0)))
        parts.append(_of_map(wider, kernel, stride, padding, dilation, precision, padding - more))
    if not isinstance(moved[1], SymbolicZero):
        parts.append(along_kernel(x, moved[1], stride, padding, dilation, precision))
    return y, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(y)


def _columns_more(x: jax.Array, channels: Sequence[int], wanted: Sequence[int], stride: int) -> int:
    """How many columns a convolution of `x [b h w i]` with those channels gives beyond the `wanted` size.

    XLA hands a convolution of more than 16 channels in or out to YNNPACK where its output is no larger than its map,
    neither in height nor in width, and any other to Eigen.
    """
    batch, height, width, _ = x.shape
    inputs, outputs = channels
    plain = stride > 1 or x.dtype != jnp.float32 or max(channels) <= _FEW_CHANNELS or inputs <= _IMAGE_CHANNELS
    if plain or wanted[0] > height:
        return 0
    if batch == 1:
        more_still = outputs >= 4 * _MANY_CHANNELS or height * width > 2 * _SMALL_MAP
        by_eigen = min(channels) >= 2 * _MANY_CHANNELS and more_still
    elif inputs <= _FEWEST_CHANNELS or outputs <= _FEW_CHANNELS:
        by_eigen = False
    elif height * width >= _LARGE_MAP:
        by_eigen = outputs > _NARROW or inputs < _NARROW
    else:
        by_eigen = min(channels) > _NARROW // 2 or batch * height * width >= _LARGE_MAP // 2
    more = max(width + by_eigen - wanted[1], 0)
    # Of a narrow map they would be most of the work.
    return more if _FEWEST_FOR_ONE * more <= wanted[1] else 0


def _band_by_band(x, kernel, stride, padding, dilation, precision):
    """The convolution of some rows at a time: XLA's, or by columns."""
    bands, by_columns = _bands(x, kernel, stride), _gains_by_columns(x, kernel, stride)
    # Beforehand: the kernel gradient of a convolution that pads is slower where channels are few.
    x = _padded(x, padding)
    reach = dilation * (kernel.shape[0] - 1)
    height, _ = _output_size(x, kernel, stride, 0, dilation)
    rows = -(-height // bands)
    if by_columns:
        tap_height, tap_width, channels, features = kernel.shape
        taps = kernel.transpose(1, 2, 0, 3).reshape(tap_width * channels, tap_height, features)
        convolve = partial(_by_columns, taps=taps, width=tap_width, dilation=dilation, precision=precision)
        if bands > _BANDS_AT_ONCE:
            return _in_blocks(convolve, x, rows, stride, reach)
    else:
        convolve = partial(_of_kernel, kernel=kernel, stride=stride, padding=0, dilation=dilation, precision=precision)
    parts = [x[:, stride * top : stride * (top + rows - 1) + reach + 1] for top in range(0, height, rows)]
    return jnp.concatenate([convolve(part) for part in parts], axis=1)


def _by_columns(x, taps, width, dilation, precision):
    """The convolution, unpadded and of stride 1, that slides down the rows alone: it is of one dimension.

    The columns are examples, and what the kernel's `width` columns see are channels: `taps [width·i k o]`.
    """
    columns = x.shape[2] - dilation * (width - 1)
    seen = jnp.stack([x[:, :, left : left + columns] for left in range(0, dilation * width, dilation)])
    y = lax.conv_general_dilated(
        seen.transpose(0, 4, 2, 1, 3).reshape(taps.shape[0], x.shape[1], x.shape[0] * columns),
        taps,
        window_strides=(1,),
        padding=[(0, 0)],
        rhs_dilation=(dilation,),
        dimension_numbers=("CHN", "IHO", "HNC"),  # for the transpose: see _of_kernel
        precision=precision,
    )
    return jnp.moveaxis(y.reshape(-1, x.shape[0], columns, taps.shape[2]), 1, 0)


def _by_matrix(x, kernel, stride, precision):
    """The convolution with a kernel of one tap, unpadded: a matrix product.

    Of all cells in one axis, as its transpose, the kernel's gradient, is a plain product then, too; with their own axes
    it is up to twice as slow (512 to 1024 channels, 64×64: 42 ms and 20).
    """
    x = x[:, ::stride, ::stride]
    y = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=precision)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _padded(x: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def deconv2d(x: jax.Array, kernel: jax.Array, *, padding: int = 0, precision: lax.PrecisionLike = None) -> jax.Array:
    """Transposed convolution of stride 1 of `x [b h w i]` with `kernel [k k i o]`, to `[b h+k−1−2p w+k−1−2p o]`.

    It scatters, `out[i + k − p] += x[i] · w[k]`, and so is the convolution with the flipped kernel and a padding of
    `k − 1 − p`. A kernel larger than the map (DeconvNet's 7×7 from one cell) would meet almost nothing but padding:
    there the products are laid over each other.
    """
    size = kernel.shape[0]
    if size <= min(x.shape[1:3]):
        return conv2d(x, kernel[::-1, ::-1], padding=size - 1 - padding, precision=precision)
    products = jnp.einsum("bhwi,klio->bhkwlo", x, kernel, precision=precision)
    batch, height, _, width, _, features = products.shape
    whole = jnp.zeros((batch, height + size - 1, width + size - 1, features), products.dtype)
    # Whichever is fewer: every cell with its patch, or every tap with the whole map.
    if height * width <= size * size:
        pieces = [((r, c), products[:, r, :, c]) for r in range(height) for c in range(width)]
    else:
        pieces = [((r, c), products[:, :, r, :, c]) for r in range(size) for c in range(size)]
    for (row, column), piece in pieces:
        at = (0, row, column, 0)
        whole = lax.dynamic_update_slice(whole, lax.dynamic_slice(whole, at, piece.shape) + piece, at)
    return whole[:, padding : whole.shape[1] - padding, padding : whole.shape[2] - padding]


def _patches_times_matrix(x, kernel, stride, padding, dilation, precision):
    kernel_height, kernel_width, channels, features = kernel.shape
    x = _padded(x, padding)
    # How far each tap travels over the map: not at all where the map is smaller than the kernel.
    travel = [max(x.shape[axis] - dilation * (kernel.shape[axis - 1] - 1), 0) for axis in (1, 2)]
    height, width = (-(-length // stride) for length in travel)
    matrix = kernel.reshape(kernel_height * kernel_width * channels, features)

    def rows_from(x: jax.Array) -> jax.Array:
        """The output of all rows that a part of the map gives."""
        travelled = max(x.shape[1] - dilation * (kernel_height - 1), 0)
        patches = jnp.concatenate(
            [
                x[:, top : top + travelled : stride, left : left + travel[1] : stride]
                for top in range(0, dilation * kernel_height, dilation)
                for left in range(0, dilation * kernel_width, dilation)
            ],
            axis=-1,
        )
        return jnp.tensordot(patches, matrix, axes=1, precision=precision)

    # At least as many places at a time as there are features: the matrix, too, has to be read.
    places = max(_PATCH_VALUES // matrix.shape[0], features)
    rows = -(-places // max(x.shape[0] * width, 1))
    if rows * 2 > height:
        return rows_from(x)
    return _in_blocks(rows_from, x, rows, stride, dilation * (kernel_height - 1))


def _in_blocks(rows_from: Callable[[jax.Array], jax.Array], x: jax.Array, rows: int, stride: int, reach: int):
    """What `rows_from` gives of a map `x [b h …]`, some rows of the output at a time, one block after another.

    A row of the output sees the row of the map where it stands, `stride` times its number, and `reach` more.
    """
    height = (x.shape[1] - reach - 1) // stride + 1
    blocks = -(-height // rows)
    if blocks <= 1:
        return rows_from(x)
    needed = stride * (rows - 1) + reach + 1
    missing = stride * rows * (blocks - 1) + needed - x.shape[1]
    x = jnp.pad(x, ((0, 0), (0, max(missing, 0)), (0, 0), (0, 0)))

    # Not kept for the gradient, but made again: kept, what is made of all rows would be as large as it ever was.
    @partial(jax.checkpoint, prevent_cse=False)
    def block(start: jax.Array) -> jax.Array:
        return rows_from(lax.dynamic_slice_in_dim(x, start, needed, axis=1))

    y = jnp.moveaxis(lax.map(block, stride * rows * jnp.arange(blocks)), 0, 1)
    return y.reshape(y.shape[0], blocks * rows, *y.shape[3:])[:, :height]
