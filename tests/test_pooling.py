"""Pooling against Caffe's loops: sizes, values, and where the gradient goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fcn_jax.ops.pooling import average_pool, max_pool, pooled_size

WINDOWS = [(2, 2, 0), (3, 2, 0), (3, 2, 1), (2, 2, 1), (3, 3, 1), (3, 3, 0), (3, 1, 1), (2, 1, 0)]
SIZES = [(1, 4), (5, 8)]


def caffe_size(size: int, kernel: int, stride: int, padding: int) -> int:
    pooled = int(np.ceil((size + 2 * padding - kernel) / stride)) + 1
    if padding and (pooled - 1) * stride >= size + padding:
        pooled -= 1
    return pooled


def caffe_pool(x: np.ndarray, kernel: int, stride: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Pools `x [h w]`; the second map counts how often each pixel is the first largest of a window."""
    height, width = (max(caffe_size(size, kernel, stride, padding), 1) for size in x.shape)
    out, chosen = np.empty((height, width), x.dtype), np.zeros_like(x)
    for row in range(height):
        for column in range(width):
            top, left = (max(cell * stride - padding, 0) for cell in (row, column))
            window = x[top : row * stride - padding + kernel, left : column * stride - padding + kernel]
            first = np.unravel_index(np.argmax(window), window.shape)
            out[row, column] = window[first]
            chosen[top + first[0], left + first[1]] += 1
    return out, chosen


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "wanted"),
    [
        (698, 2, 2, 0, 349), (349, 2, 2, 0, 175), (1, 2, 2, 0, 1), (2, 2, 2, 0, 1), (3, 2, 2, 0, 2),
        (173, 3, 2, 0, 86), (86, 3, 2, 0, 43), (6, 3, 2, 0, 3),
        (321, 3, 2, 1, 161), (4, 3, 2, 1, 3), (3, 2, 2, 1, 2), (1, 3, 2, 1, 1), (1, 3, 2, 0, 1), (7, 3, 1, 1, 7),
    ],
)  # fmt: skip
def test_sizes_by_hand(size, kernel, stride, padding, wanted):
    assert pooled_size(size, kernel, stride, padding) == wanted


@pytest.mark.parametrize("window", WINDOWS)
def test_sizes_by_caffes_formula(window):
    for size in range(1, 100):
        assert pooled_size(size, *window) == max(caffe_size(size, *window), 1)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradient_with_many_ties(window, size):
    """Half of the pixels are 0, as after a ReLU, so that most windows tie; the first of equals has the gradient."""
    generator = np.random.default_rng(sum(size))
    x = np.maximum(generator.integers(-2, 3, (2, *size, 2)), 0).astype(np.float32)
    summed = jax.value_and_grad(lambda x: (jnp.sum(pooled := max_pool(x, *window)), pooled), has_aux=True)
    (_, pooled), gradient = jax.jit(summed)(x)
    for image in range(2):
        for channel in range(2):
            wanted, chosen = caffe_pool(x[image, :, :, channel], *window)
            np.testing.assert_array_equal(pooled[image, :, :, channel], wanted)
            np.testing.assert_array_equal(gradient[image, :, :, channel], chosen)


def windowed(x: jax.Array, kernel: int) -> jax.Array:
    """Pooling with a stride of 2 as it runs on accelerators."""
    pads = [(0, max(2 * (pooled_size(size, kernel, 2) - 1) + kernel - size, 0)) for size in x.shape[1:3]]
    window, strides = (1, kernel, kernel, 1), (1, 2, 2, 1)
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, window, strides, ((0, 0), *pads, (0, 0)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("kernel", "size"), [(2, (1, 1)), (2, (5, 8)), (2, (7, 7)), (3, (8, 7))])
def test_slices_equal_the_window_reduction(kernel, size, dtype):
    """What CPUs run against what accelerators run, in value and gradient, with ties."""
    key, weights_key = jax.random.split(jax.random.key(0))
    x = jax.random.randint(key, (2, *size, 3), -3, 2).astype(dtype)

    @jax.jit
    def values_and_gradients(x):
        results = []
        for pool in (lambda x: max_pool(x, kernel), lambda x: windowed(x, kernel)):
            pooled, gradient_of = jax.vjp(pool, x)
            results.append((pooled, *gradient_of(jax.random.normal(weights_key, pooled.shape).astype(dtype))))
        return results

    for found, wanted in zip(*values_and_gradients(x), strict=True):
        assert found.dtype == dtype
        # The gradients of overlapping windows are added up in another order.
        relative = 0 if kernel == 2 else 1e-6 if dtype == jnp.float32 else 0.02
        np.testing.assert_allclose(found.astype(jnp.float32), wanted.astype(jnp.float32), relative, atol=relative)


@pytest.mark.parametrize(("kernel", "stride", "on_cpu"), [(2, 2, False), (3, 2, False), (3, 1, True)])
def test_the_platform_decides(kernel, stride, on_cpu):
    shape = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)
    traced = jax.jit(lambda x: max_pool(x, kernel, stride)).trace(shape)
    assert ("reduce_window" in traced.lower(lowering_platforms=("cpu",)).as_text()) == on_cpu
    assert "reduce_window" in traced.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1)])
@pytest.mark.parametrize("place", range(4))
def test_nan_is_passed_on(window, place):
    """Wherever in its window it lies; a net that has gone bad must be noticed."""
    x = jnp.zeros((1, 2, 2, 1)).at[0, place // 2, place % 2, 0].set(jnp.nan)
    assert jnp.isnan(max_pool(x, *window)).any()


def test_all_minus_infinity_stays():
    assert max_pool(jnp.full((1, 3, 3, 1), -jnp.inf))[0, 1, 1, 0] == -jnp.inf


def test_under_jit_vmap_and_grad():
    x = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 2))
    plain = jnp.stack([max_pool(example) for example in x])
    np.testing.assert_array_equal(jax.jit(jax.vmap(max_pool))(x), plain)
    gradient = jax.jit(jax.vmap(jax.grad(lambda x: max_pool(x).sum())))(x)
    assert gradient.sum() == plain.size


# Average pooling


def caffe_average(x: np.ndarray, kernel: int, stride: int, padding: int) -> np.ndarray:
    """Averages of `x [h w]`; a window counts its cells up to the far edge of the padding."""
    height, width = (max(caffe_size(size, kernel, stride, padding), 1) for size in x.shape)
    out = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            tops = [cell * stride - padding for cell in (row, column)]
            ends = [min(top + kernel, size + padding) for top, size in zip(tops, x.shape, strict=True)]
            window = x[max(tops[0], 0) : max(ends[0], 0), max(tops[1], 0) : max(ends[1], 0)]
            out[row, column] = window.sum() / ((ends[0] - tops[0]) * (ends[1] - tops[1]))
    return out


@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 0), (3, 2, 1), (2, 2, 1), (3, 1, 1), (7, 1, 0), (5, 3, 2)])
@pytest.mark.parametrize("size", [(1, 4), (9, 7)])
def test_average_by_caffes_count(window, size):
    x = np.random.default_rng(sum(size)).normal(size=(2, *size, 2)).astype(np.float32)
    pooled = np.asarray(jax.jit(lambda x: average_pool(x, *window))(x))
    for image in range(2):
        for channel in range(2):
            wanted = caffe_average(x[image, :, :, channel], *window)
            np.testing.assert_allclose(pooled[image, :, :, channel], wanted, rtol=0, atol=1e-6)


def test_what_an_average_counts():
    """Padding counts, as zeros; what hangs over its far edge does not."""
    ones = jnp.ones((1, 4, 4, 1))
    np.testing.assert_allclose(average_pool(ones, 3, 2)[0, :, :, 0], 1)
    # Along an axis: two of three, three of three, one of the two before the padding ends.
    shares = np.array([2 / 3, 1, 1 / 2])
    np.testing.assert_allclose(average_pool(ones, 3, 2, 1)[0, :, :, 0], np.outer(shares, shares), rtol=1e-6)


def test_the_gradient_of_an_average():
    """Each cell gives an equal share to what it counts."""
    gradient = jax.jit(jax.grad(lambda x: average_pool(x, 3, 2).sum()))(jnp.zeros((1, 4, 3, 1)))
    np.testing.assert_allclose(gradient[0, :, 0, 0], np.array([1, 1, 1 + 1.5, 1.5]) / 9, rtol=1e-6)


def test_an_average_of_bfloat16_is_summed_in_float32():
    x = jnp.ones((1, 30, 30, 1), jnp.bfloat16)
    pooled = average_pool(x, 30, 1)
    assert pooled.dtype == jnp.bfloat16
    assert pooled[0, 0, 0, 0] == 1  # a sum in bfloat16 would stop at 256
