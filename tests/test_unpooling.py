"""Pooling that remembers places, and the ways back up, against loops in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax import models, state
from fcn_jax.models import layers
from fcn_jax.ops.pooling import max_pool
from fcn_jax.ops.unpooling import flat_indices, max_pool_with_places, unpool, unpool_corner, unpool_nearest

SIZES = [(1, 1), (1, 4), (2, 2), (3, 5), (6, 7)]
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


def oracle(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pooled values and flat indices as caffe-segnet's loops give them: ceiling, first maximum of equals."""
    batch, height, width, channels = x.shape
    shape = (batch, -(-height // 2), -(-width // 2), channels)
    pooled, indices = np.full(shape, -np.inf), np.full(shape, -1)
    for b, row, column, c in np.ndindex(*shape):
        for i in range(2 * row, min(2 * row + 2, height)):
            for j in range(2 * column, min(2 * column + 2, width)):
                if x[b, i, j, c] > pooled[b, row, column, c]:
                    pooled[b, row, column, c] = x[b, i, j, c]
                    indices[b, row, column, c] = i * width + j
    return pooled, indices


def scattered(pooled: np.ndarray, indices: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    batch, channels = pooled.shape[0], pooled.shape[-1]
    flat = np.zeros((batch, size[0] * size[1], channels))
    for b, row, column, c in np.ndindex(*pooled.shape):
        flat[b, indices[b, row, column, c], c] = pooled[b, row, column, c]
    return flat.reshape(batch, *size, channels)


def with_ties(size, channels=5, seed=0) -> Any:
    """After a ReLU many values are equal, most of them zero."""
    return np.maximum(np.random.RandomState(seed).randint(-2, 3, (2, *size, channels)), 0).astype(np.float32)


@every_size
def test_places_are_those_of_the_first_maximum(size):
    x = with_ties(size)
    pooled, places = jax.jit(max_pool_with_places)(x)
    wanted, indices = oracle(x)
    np.testing.assert_array_equal(pooled, wanted)
    np.testing.assert_array_equal(flat_indices(places, x.shape[-1], size[1]), indices)
    assert places.dtype == jnp.uint8
    assert places.shape == (2, *pooled.shape[1:3], 2)  # five channels at two bits, in bytes of four


@every_size
def test_values_return_to_their_places(size):
    x = with_ties(size)
    pooled, places = max_pool_with_places(x)
    found = jax.jit(unpool, static_argnums=2)(pooled + 1, places, size)
    np.testing.assert_array_equal(found, scattered(np.asarray(pooled) + 1, oracle(x)[1], size))


@every_size
def test_gradients(size):
    """Of pooling: the cotangent at the places. Of unpooling: what the cotangent holds there."""
    x = with_ties(size)
    pooled, places = max_pool_with_places(x)
    indices = oracle(x)[1]
    cotangent = np.random.RandomState(1).normal(size=pooled.shape).astype(np.float32)
    (found,) = jax.jit(lambda x: jax.vjp(lambda x: max_pool_with_places(x)[0], x)[1](cotangent))(x)
    np.testing.assert_allclose(found, scattered(cotangent, indices, size), rtol=1e-6)
    np.testing.assert_array_equal(found, jax.vjp(max_pool, x)[1](cotangent)[0])
    wide = np.random.RandomState(2).normal(size=x.shape).astype(np.float32)
    (back,) = jax.jit(lambda p: jax.vjp(lambda p: unpool(p, places, size), p)[1](wide))(pooled)
    flat = wide.reshape(2, -1, x.shape[-1])
    wanted = np.take_along_axis(flat, indices.reshape(2, -1, x.shape[-1]), axis=1).reshape(pooled.shape)
    np.testing.assert_allclose(back, wanted, rtol=1e-6)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_any_shape(height, width, channels, seed):
    x = with_ties((height, width), channels, seed)
    pooled, places = max_pool_with_places(x)
    back: Any = np.asarray(unpool(pooled, places, (height, width)))
    assert back.shape == x.shape
    np.testing.assert_array_equal(max_pool(back), pooled)
    assert np.all((back == x) | (back == 0))


def test_a_nan_is_passed_on():
    x: Any = np.zeros((1, 2, 2, 1), np.float32)
    x[0, 1, 0, 0] = np.nan
    pooled, places = max_pool_with_places(x)
    assert np.isnan(pooled).all() and int(flat_indices(places, 1, 2)[0, 0, 0, 0]) == 2


@every_size
def test_without_indices(size):
    x = with_ties(tuple(-(-n // 2) for n in size)) + 1
    nearest, corner = unpool_nearest(x, size), unpool_corner(x, size)
    assert nearest.shape == corner.shape == (2, *size, 5)
    rows, columns = np.indices(size)
    np.testing.assert_array_equal(nearest, x[:, rows // 2, columns // 2])
    at_corner = (rows % 2 == 0) & (columns % 2 == 0)
    np.testing.assert_array_equal(corner, np.where(at_corner[None, :, :, None], nearest, 0))


@every_size
def test_gradients_without_indices(size):
    """What came back to a window: the sum over its cells, or the cell at its corner."""
    x = with_ties(tuple(-(-n // 2) for n in size))
    above = np.random.RandomState(1).normal(size=(2, *size, 5)).astype(np.float32)
    whole = np.zeros((2, *(2 * n for n in x.shape[1:3]), 5), np.float32)
    whole[:, : size[0], : size[1]] = above
    windows = whole.reshape(2, x.shape[1], 2, x.shape[2], 2, 5)
    for function, wanted in ((unpool_nearest, windows.sum(axis=(2, 4))), (unpool_corner, windows[:, :, 0, :, 0])):
        _, pull = jax.vjp(lambda x, function=function: function(x, size), x)
        np.testing.assert_allclose(pull(jnp.asarray(above))[0], wanted, rtol=1e-6, atol=1e-6)


def test_batches_of_batches_and_float64():
    x: Any = np.stack([with_ties((3, 5), seed=seed) for seed in range(3)])
    pooled, places = jax.vmap(max_pool_with_places)(x)
    for each, one, place in zip(x, pooled, places, strict=True):
        np.testing.assert_array_equal(one, oracle(each)[0])
        np.testing.assert_array_equal(flat_indices(place, 5, 5), oracle(each)[1])
    with jax.enable_x64():
        assert max_pool_with_places(jnp.asarray(x[0], jnp.float64))[0].dtype == jnp.float64


def test_neither_scatter_nor_gather():
    """The way of an accelerator: comparisons and selections alone, forward and backward."""

    def loss(x):
        pooled, places = max_pool_with_places(x)
        return jnp.sum(jnp.square(unpool(pooled, places, x.shape[1:3])))

    text = jax.jit(jax.value_and_grad(loss)).lower(with_ties((6, 7))).as_text()
    assert "select" in text
    assert "scatter" not in text and "gather" not in text


def compared(x, features, size):
    """The common form of unpooling: features equal to their window's maximum are where it came from."""
    return jnp.where(features == unpool_nearest(max_pool(features), size), unpool_nearest(x, size), 0)


@pytest.fixture
def by_features(monkeypatch):
    """SegNet keeps its features, from which the decoder tells places, once this is called."""

    def switch():
        monkeypatch.setattr(layers, "max_pool_with_places", lambda x: (max_pool(x), x))
        monkeypatch.setattr(layers, "unpool", compared)
        monkeypatch.setattr(layers, "flat_indices", lambda features, channels, width: features)

    return switch


def temporaries(width: float, size: tuple[int, int]) -> int:
    """Bytes that SegNet's inference takes beside its parameters, input and logits, by the compiler."""
    module = models.create("segnet", 11, width=width)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    compiled = jax.jit(module.apply).lower(state.abstract_variables(module), image).compile()
    memory: Any = compiled.memory_analysis()
    return memory.temp_size_in_bytes


def test_two_bits_a_window_live_between_encoder_and_decoder(by_features):
    packed = temporaries(1 / 8, (180, 240))
    by_features()
    assert packed < 0.92 * temporaries(1 / 8, (180, 240))


@pytest.mark.slow
def test_what_the_places_save_at_full_size(by_features):
    """95 MiB against 102: the peak lies at the image's size, where a layer's input and output take 84 of them."""
    packed = temporaries(1, (360, 480))
    by_features()
    assert packed < 100 * 2**20 < temporaries(1, (360, 480))
