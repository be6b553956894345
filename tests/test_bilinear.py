"""Bilinear kernels and ramps against the published values; transposed convolution and interpolation as defined."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from fcn_jax.ops import bilinear
from fcn_jax.ops.bilinear import bilinear_kernel, interpolate, upsample_bilinear

transposed_conv = jax.jit(bilinear.transposed_conv, static_argnums=2)

# Kernel and stride of FCN's layers: the first taps and the largest, in units of the last number.
RELEASED = [
    (4, 2, [1, 3, 3, 1], 3, 4),
    (16, 8, [1, 3, 5, 7], 15, 16),
    (32, 16, [1, 3, 5, 7], 31, 32),
    (64, 32, [1, 3, 5, 7], 63, 64),
    (63, 32, [1, 2, 3, 4], 32, 32),
]
# The chain from a constant fc7 score to pixels, without skips: (kernel, stride, offset of the crop after it).
CHAINS = {
    32: [(64, 32, 19)],
    16: [(4, 2, 0), (32, 16, 27)],
    8: [(4, 2, 0), (4, 2, 0), (16, 8, 31)],
}


def scatter(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """The definition: out[s·i + k] += x[i] · w[k], `x [b h w i]`, `kernel [k k i o]`."""
    size = len(kernel)
    batch, height, width, _ = x.shape
    out = np.zeros((batch, stride * (height - 1) + size, stride * (width - 1) + size, kernel.shape[-1]))
    for row in range(height):
        for column in range(width):
            out[:, stride * row :, stride * column :][:, :size, :size] += np.einsum(
                "bi,hwio->bhwo", x[:, row, column], kernel
            )
    return out


@pytest.mark.parametrize(("kernel", "stride", "first", "largest", "unit"), RELEASED)
def test_kernels_of_the_release(kernel, stride, first, largest, unit):
    taps = bilinear_kernel(kernel)
    assert taps.shape == (kernel,) and taps.dtype == np.float64
    np.testing.assert_array_equal(taps[:4] * unit, first)
    assert taps.max() * unit == largest
    assert (taps.sum(), np.outer(taps, taps).sum()) == (stride, stride**2)
    np.testing.assert_array_equal(taps, taps[::-1])


def test_smallest_kernels():
    assert [list(bilinear_kernel(size)) for size in (1, 2, 3)] == [[1], [0.5, 0.5], [0.5, 1, 0.5]]


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (16, 8), (63, 32), (3, 1), (2, 3)])
@pytest.mark.parametrize("channels", [(3, 2), (1, 4)])
def test_transposed_convolution_is_the_scatter(kernel, stride, channels):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, 3, 2, channels[0])).astype(np.float32)
    weights = generator.normal(size=(kernel, kernel, *channels)).astype(np.float32)
    wanted = scatter(x, weights, stride)
    found = transposed_conv(jnp.asarray(x), jnp.asarray(weights), stride)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (63, 32), (3, 1), (2, 3)])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2)])
def test_fixed_is_grouped_is_dense(kernel, stride, shape):
    x = jax.random.normal(jax.random.key(0), (2, *shape, 3))
    taps = np.outer(bilinear_kernel(kernel), bilinear_kernel(kernel))[:, :, None, None]
    dense = jnp.asarray(taps * np.eye(3), jnp.float32)
    grouped = jnp.asarray(taps * np.ones((1, 3)), jnp.float32)
    fixed = upsample_bilinear(x, kernel, stride)
    assert fixed.shape == (2, *(stride * (cells - 1) + kernel for cells in shape), 3)
    np.testing.assert_allclose(fixed, scatter(np.asarray(x), np.asarray(dense), stride), atol=1e-6)
    np.testing.assert_allclose(fixed, transposed_conv(x, dense, stride), atol=1e-6)
    np.testing.assert_allclose(fixed, transposed_conv(x, grouped, stride), atol=1e-6)


def test_a_grouped_kernel_keeps_channels_apart():
    x = jax.random.normal(jax.random.key(0), (1, 3, 3, 2))
    kernel = np.random.default_rng(0).normal(size=(4, 4, 1, 2)).astype(np.float32)
    dense = kernel * np.eye(2, dtype=np.float32)[None, None]
    np.testing.assert_allclose(transposed_conv(x, jnp.asarray(kernel), 2), scatter(np.asarray(x), dense, 2), atol=1e-5)


@pytest.mark.parametrize(("offset", "size"), [(0, (1, 1)), (5, (64, 7)), (19, (45, 20)), (19, (141, 77))])
def test_a_cut_is_part_of_the_whole(offset, size):
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 1))
    whole = upsample_bilinear(x, 64, 32)
    cut = upsample_bilinear(x, 64, 32, offset=offset, size=size)
    np.testing.assert_allclose(cut, whole[:, offset : offset + size[0], offset : offset + size[1]], atol=1e-6)
    rest = upsample_bilinear(x, 64, 32, offset=offset)
    np.testing.assert_allclose(rest, whole[:, offset:, offset:], atol=1e-6)


@pytest.mark.parametrize(("offset", "size"), [(0, (6, 7)), (2, (5, 3)), (-1, (3, 3)), (7, None)])
def test_a_cut_beyond_the_map_is_refused(offset, size):
    x = jnp.zeros((1, 2, 2, 1))  # 6 pixels
    with pytest.raises(ValueError, match=r"cannot cut .* out of 6 up-sampled pixels"):
        upsample_bilinear(x, 4, 2, offset=offset, size=size)


def released_chain(coarse: np.ndarray, stride: int, pixels: int) -> np.ndarray:
    """A row of scores `[w]` through FCN's up-sampling layers, cropped to the image."""
    x = jnp.asarray(coarse, jnp.float32)[None, None, :, None]
    for kernel, by, offset in CHAINS[stride]:
        # The other axis has one cell, whose first two fine pixels fade; undo it.
        x = upsample_bilinear(x, kernel, by, size=None)[:, kernel // 2 :][:, :1] / bilinear_kernel(kernel)[kernel // 2]
        x = x[:, :, offset:]
    return np.asarray(x[0, 0, :pixels, 0])


@pytest.mark.parametrize(
    ("stride", "first", "last", "fading"),
    [
        (32, [0.609375, 0.640625, 0.671875], 0.796875, 20),
        (16, [0.6094, 0.6406, 0.6719, 0.7031, 0.7344, 0.7578], 0.7734, 36),
        (8, [0.6094, 0.6367, 0.6602, 0.6836, 0.7070, 0.7305], 0.7539, 44),
    ],
)
def test_border_ramp_of_the_release(stride, first, last, fading):
    """A constant score, an image of 500 pixels: 16 cells of fc7, and a fade at both ends as the nets were trained."""
    row = released_chain(np.ones(16), stride, 500)
    np.testing.assert_allclose(row[: len(first)], first, atol=5e-5)
    np.testing.assert_allclose(row[-1], last, atol=5e-5)
    assert np.sum(row < 1 - 1e-6) == fading
    assert row.max() <= 1 + 1e-6
    if stride == 32:
        assert np.flatnonzero(row >= 1)[0] == 13


@pytest.mark.parametrize("stride", CHAINS)
def test_a_linear_ramp_stays_where_it_was(stride):
    """Scores equal to their cell's place in the image give each pixel its own place, away from the border."""
    first_cell = 12.5  # of fc7, with 100 pixels of padding: 19 = 31.5 − 12.5
    row = released_chain(first_cell + 32 * np.arange(16), stride, 500)
    inner = np.arange(60, 440)
    np.testing.assert_allclose(row[inner], inner, rtol=0, atol=1e-3)


def test_gradients():
    with jax.enable_x64():
        x = jax.random.normal(jax.random.key(0), (1, 3, 2, 2), jnp.float64)
        kernel = jax.random.normal(jax.random.key(1), (4, 4, 2, 3), jnp.float64)
        check_grads(lambda x: upsample_bilinear(x, 4, 2, offset=1, size=(5, 4)), (x,), order=1, modes=("rev",))
        check_grads(lambda x, kernel: transposed_conv(x, kernel, 2), (x, kernel), order=1, modes=("rev",))
        assert upsample_bilinear(x, 4, 2).dtype == jnp.float64


def test_maps_of_bfloat16_stay_so():
    assert upsample_bilinear(jnp.ones((1, 2, 2, 1), jnp.bfloat16), 4, 2).dtype == jnp.bfloat16


def test_interpolation_asks_for_the_highest_precision():
    """A TPU would otherwise multiply in bfloat16."""
    x, kernel = jnp.ones((1, 2, 2, 2)), jnp.ones((4, 4, 2, 2))
    for text in (
        str(jax.make_jaxpr(lambda x: upsample_bilinear(x, 4, 2))(x)),
        str(jax.make_jaxpr(lambda x: transposed_conv(x, kernel, 2))(x)),
    ):
        assert "HIGHEST" in text


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 4)], ids=str)
def test_interpolation_with_aligned_corners(shape):
    """Caffe's Interp by a zoom of 8: cell i lies on pixel 8·i exactly, and between two lies their mixture."""
    x = np.random.RandomState(0).normal(size=(2, *shape, 3)).astype(np.float32)
    size = [8 * (n - 1) + 1 for n in shape]
    found = np.asarray(interpolate(jnp.asarray(x), size, align_corners=True))
    assert found.shape == (2, *size, 3)
    np.testing.assert_allclose(found[:, ::8, ::8], x, rtol=1e-6, atol=1e-6)
    if shape[0] > 1:
        np.testing.assert_allclose(found[:, 2, ::8], 0.75 * x[:, 0] + 0.25 * x[:, 1], rtol=1e-5, atol=1e-6)


# Cells and pixels of a map that grows, shrinks, stays, does both at once, and has a single cell or pixel.
INTERPOLATIONS = [
    ((3, 2), (7, 9)),
    ((7, 6), (3, 4)),
    ((4, 5), (4, 5)),
    ((5, 4), (33, 3)),
    ((1, 3), (4, 1)),
]
every_interpolation = pytest.mark.parametrize(("cells", "size"), INTERPOLATIONS, ids=str)
by_corners_or_centers = pytest.mark.parametrize("align_corners", [False, True], ids=["centers", "corners"])


def mixed(x: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """The definition, pixel by pixel: what the four cells around it mix to, `x [b h w c]` to `[b H W c]`."""

    def place(pixel: int, axis: int) -> tuple[int, int, float]:
        """The cells before and behind a pixel, and how far it is on its way from the one to the other."""
        count, length = x.shape[axis + 1], size[axis]
        if align_corners:
            at = pixel * (count - 1) / (length - 1) if length > 1 else 0.0
        else:
            at = min(max((pixel + 0.5) * count / length - 0.5, 0.0), count - 1.0)
        before = min(int(at), max(count - 2, 0))
        return before, min(before + 1, count - 1), at - before

    out = np.zeros((len(x), *size, x.shape[-1]))
    for row, column in np.ndindex(*size):
        above, below, down = place(row, 0)
        left, right, along = place(column, 1)
        top = (1 - along) * x[:, above, left] + along * x[:, above, right]
        bottom = (1 - along) * x[:, below, left] + along * x[:, below, right]
        out[:, row, column] = (1 - down) * top + down * bottom
    return out


@by_corners_or_centers
@every_interpolation
def test_interpolation_is_the_mixture_of_four_cells(cells, size, align_corners):
    x = np.random.RandomState(0).normal(size=(2, *cells, 3)).astype(np.float32)
    found = interpolate(jnp.asarray(x), size, align_corners)
    assert found.shape == (2, *size, 3)
    np.testing.assert_allclose(found, mixed(x, size, align_corners), rtol=0, atol=1e-5)


@by_corners_or_centers
@every_interpolation
def test_the_gradient_of_interpolation_is_its_transpose(cells, size, align_corners):
    draw = np.random.RandomState(0)
    x, cotangent = (draw.normal(size=(2, *shape, 3)).astype(np.float32) for shape in (cells, size))
    # What each cell alone gives: a channel for every one of them.
    alone = np.eye(math.prod(cells)).reshape(1, *cells, -1)
    matrix = mixed(alone, size, align_corners)[0]
    wanted = np.einsum("HWn,bHWc->bnc", matrix, cotangent).reshape(x.shape)
    _, pull = jax.vjp(lambda x: interpolate(x, size, align_corners), jnp.asarray(x))
    np.testing.assert_allclose(pull(jnp.asarray(cotangent))[0], wanted, rtol=0, atol=1e-5)
