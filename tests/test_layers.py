"""Batch norm against its definition, on one device and on several; learned deconvolution against a scatter loop."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from fcn_jax.errors import ConfigError
from fcn_jax.models.layers import BatchNorm, Deconv
from fcn_jax.ops.convolution import conv2d, deconv2d

EPSILON = 1e-3


def batch(size=8, offset=0.0) -> Any:
    return np.random.RandomState(0).normal(offset, 2, size=(size, 3, 4, 5)).astype(np.float32)


def variables() -> dict[str, Any]:
    draw = np.random.RandomState(1)
    params = {"scale": draw.uniform(0.5, 2, 5), "bias": draw.normal(size=5)}
    stats = {"mean": draw.normal(size=5), "var": draw.uniform(0.5, 2, 5)}
    return jax.tree.map(lambda x: x.astype(np.float32), {"params": params, "batch_stats": stats})


def norm(**fields) -> Any:
    return BatchNorm(0.9, EPSILON, **fields)


def test_in_use_by_running_statistics():
    held, x = variables(), batch()
    found = norm().apply(held, x, train=False)
    params, stats = held["params"], held["batch_stats"]
    wanted = (x - stats["mean"]) / np.sqrt(stats["var"] + EPSILON) * params["scale"] + params["bias"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_in_training_by_the_batchs():
    held, x = variables(), batch()
    found, changed = norm().apply(held, x, train=True, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    wanted = (x - mean) / np.sqrt(var + EPSILON) * held["params"]["scale"] + held["params"]["bias"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    count = x.size // 5
    for name, new in (("mean", mean), ("var", var * count / (count - 1))):
        kept = 0.9 * held["batch_stats"][name] + 0.1 * new
        np.testing.assert_allclose(changed["batch_stats"][name], kept, rtol=1e-5, atol=1e-6)


def test_statistics_that_may_not_change_stay():
    held = variables()
    found = norm().apply(held, batch(), train=True)
    np.testing.assert_allclose(found, norm().apply(held, batch(), train=True, mutable=["batch_stats"])[0], rtol=1e-6)


def test_folded_statistics_are_scale_and_shift_exactly():
    held = variables()
    held["batch_stats"] = {"mean": np.zeros(5, np.float32), "var": np.ones(5, np.float32)}
    found = jax.jit(functools.partial(BatchNorm(epsilon=1e-9).apply, train=False))(held, batch())
    scale, bias = held["params"]["scale"], held["params"]["bias"]
    np.testing.assert_array_equal(
        found, jax.jit(lambda x: x * scale[None, None, None] + bias[None, None, None])(batch())
    )


def test_a_mean_far_from_zero_costs_no_digits():
    """E[x²] − E[x]² would leave none at 3,000 with a deviation of 2."""
    x = batch(offset=3000.0)
    _, changed = norm(dtype=jnp.float32).clone(momentum=0.0).apply(variables(), x, train=True, mutable=["batch_stats"])
    wanted = x.astype(np.float64).var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(changed["batch_stats"]["var"], wanted, rtol=1e-4)


@pytest.mark.parametrize("devices", [2, 8])
def test_statistics_are_of_all_devices(devices):
    held, x = variables(), batch(offset=2.0)
    wanted, stats = norm().apply(held, x, train=True, mutable=["batch_stats"])
    apply = functools.partial(norm(axis_name="data").apply, train=True, mutable=["batch_stats"])
    shares = x.reshape(devices, -1, *x.shape[1:])
    mapped = jax.pmap(apply, axis_name="data", in_axes=(None, 0), out_axes=(0, None), devices=jax.devices()[:devices])  # pyright: ignore[reportArgumentType]
    found, changed = mapped(held, shares)
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(changed["batch_stats"][name], stats["batch_stats"][name], rtol=1e-5, atol=1e-6)


def test_gradients_are_of_all_devices():
    """The batch's statistics depend on every device's share, so that each share's gradient holds the others' too."""
    held, x = variables(), batch()
    weights = np.random.RandomState(2).normal(size=x.shape).astype(np.float32)

    def loss(x, weights, axis_name=None):
        return jnp.sum(weights * norm(axis_name=axis_name).apply(held, x, train=True))

    wanted = jax.grad(loss)(x, weights)

    def of_share(x, weights):
        # Summed over devices inside of what is differentiated.
        return jax.grad(lambda x: jax.lax.psum(loss(x, weights, "data"), "data"))(x)

    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(of_share, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    np.testing.assert_allclose(jax.jit(mapped)(x, weights), wanted, rtol=1e-4, atol=1e-5)


def test_bfloat16_normalises_in_float32():
    held, x = variables(), batch(offset=50.0).astype(jnp.bfloat16)
    found, changed = norm(dtype=jnp.bfloat16).apply(held, x, train=True, mutable=["batch_stats"])
    assert found.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(changed)} == {jnp.dtype(jnp.float32)}
    wanted = norm().apply(held, x.astype(np.float32), train=True)
    np.testing.assert_allclose(found.astype(np.float32), wanted, rtol=0.02, atol=0.02)


def test_one_value_a_channel():
    """A single value is its own mean: what came out would be the bias, whatever went in."""
    with pytest.raises(ConfigError, match="over a single value has nothing to learn from"):
        norm().apply(variables(), np.ones((1, 1, 1, 5), np.float32), train=True)
    assert norm().apply(variables(), np.ones((1, 1, 1, 5), np.float32), train=False).shape == (1, 1, 1, 5)


# Learned deconvolution


def scattered(x: np.ndarray, kernel: np.ndarray, padding: int) -> np.ndarray:
    size, height, width = kernel.shape[0], *x.shape[1:3]
    out = np.zeros((len(x), height + size - 1, width + size - 1, kernel.shape[3]))
    for row, column in np.ndindex(height, width):
        out[:, row : row + size, column : column + size] += np.einsum("bi,klio->bklo", x[:, row, column], kernel)
    return out[:, padding : out.shape[1] - padding, padding : out.shape[2] - padding]


def gathered(x: np.ndarray, kernel: np.ndarray, padding: int, cotangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradients that `scattered` has for map and kernel: of each cell by the patch that it was laid on."""
    size = kernel.shape[0]
    of_map, of_kernel = np.zeros(x.shape), np.zeros(kernel.shape)
    whole = np.pad(cotangent, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for row, column in np.ndindex(x.shape[1:3]):
        patch = whole[:, row : row + size, column : column + size]
        of_map[:, row, column] = np.einsum("bklo,klio->bi", patch, kernel)
        of_kernel += np.einsum("bklo,bi->klio", patch, x[:, row, column])
    return of_map, of_kernel


@pytest.mark.parametrize(("size", "padding"), [(3, 1), (3, 0), (7, 0), (7, 3), (1, 0)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (8, 9)], ids=str)
def test_deconvolution_scatters(size, padding, shape):
    draw = np.random.RandomState(0)
    x, kernel = draw.normal(size=(2, *shape, 3)), draw.normal(size=(size, size, 3, 4))
    found = deconv2d(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), padding=padding)
    np.testing.assert_allclose(found, scattered(x, kernel, padding), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "padding"), [(3, 1), (3, 0), (7, 0), (7, 3), (1, 0)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (8, 9)], ids=str)
def test_gradients_of_deconvolution_gather(size, padding, shape):
    draw = np.random.RandomState(0)
    x, kernel = draw.normal(size=(2, *shape, 3)), draw.normal(size=(size, size, 3, 4))
    cotangent = draw.normal(size=scattered(x, kernel, padding).shape)
    arrays = [jnp.asarray(array, jnp.float32) for array in (x, kernel, cotangent)]
    gradients = jax.jit(lambda x, kernel, c: jax.vjp(functools.partial(deconv2d, padding=padding), x, kernel)[1](c))
    for found, wanted in zip(gradients(*arrays), gathered(x, kernel, padding, cotangent), strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_deconvolution_is_the_padded_convolution_with_the_flipped_kernel():
    draw = np.random.RandomState(0)
    x, kernel = (jnp.asarray(draw.normal(size=s), jnp.float32) for s in ((2, 9, 8, 3), (3, 3, 3, 4)))
    wanted = conv2d(x, kernel[::-1, ::-1], padding=1)
    np.testing.assert_allclose(deconv2d(x, kernel, padding=1), wanted, rtol=1e-5, atol=1e-5)


def test_the_layer_has_a_kernel_in_by_out():
    layer: Any = Deconv(4, 3, 1)
    held = layer.init(jax.random.key(0), jnp.zeros((1, 5, 6, 3)))
    assert jax.tree.map(lambda x: x.shape, held) == {"params": {"kernel": (3, 3, 3, 4), "bias": (4,)}}
    made: Any = layer.apply(held, jnp.zeros((1, 5, 6, 3)))
    assert made.shape == (1, 5, 6, 4)
