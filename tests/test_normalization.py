"""Local response normalisation against the formula, channel by channel, and its gradient against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from fcn_jax.ops.normalization import local_response_norm


def by_formula(x: np.ndarray, size=5, alpha=1e-4, beta=0.75, k=1.0) -> np.ndarray:
    x = np.asarray(x, np.float64)
    out = np.empty_like(x)
    for channel in range(x.shape[-1]):
        near = x[..., max(channel - size // 2, 0) : channel + size // 2 + 1]
        out[..., channel] = x[..., channel] * (k + alpha / size * np.sum(near**2, axis=-1)) ** -beta
    return out


def features(channels: int, scale: float = 100.0) -> np.ndarray:
    """Of a size at which the sum counts as much as `k`."""
    return np.random.default_rng(channels).normal(0, scale, (2, 3, 4, channels)).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [{}, {"size": 3}, {"size": 1}, {"k": 2.0, "alpha": 5e-4}, {"beta": 0.5}, {"beta": 0.6, "size": 7}, {"alpha": 1.0}],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 2, 5, 16])
def test_the_formula(channels, options):
    x = features(channels)
    found = jax.jit(lambda x: local_response_norm(x, **options))(x)
    wanted = by_formula(x, **options)
    assert np.max(np.abs(wanted - x)) > 1  # it does something
    np.testing.assert_allclose(found, wanted, rtol=2e-6)


def test_a_single_channel_by_hand():
    """Ten squared over five channels, times one half: 1 + 10 = 11."""
    x = jnp.zeros((1, 1, 1, 5)).at[0, 0, 0, 1].set(10)
    found = local_response_norm(x, alpha=0.5)[0, 0, 0]
    np.testing.assert_allclose(found, [0, 10 * 11**-0.75, 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_the_gradient(beta):
    with jax.enable_x64():
        x = features(7, scale=2.0).astype(np.float64)
        # alpha is large, so that all of the window matters.
        check_grads(lambda x: local_response_norm(x, alpha=0.9, beta=beta), (x,), order=2, modes=["fwd", "rev"])


def test_the_gradient_in_float32():
    x, weights = features(16), features(16)[::-1].copy()

    def loss(x, weights):
        return jnp.sum(local_response_norm(x, alpha=1e-2) * weights)

    found = jax.jit(jax.grad(loss))(x, weights)
    with jax.enable_x64():
        wanted = jax.grad(loss)(x.astype(np.float64), weights.astype(np.float64))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_bfloat16_is_computed_in_float32():
    x = jnp.asarray(features(32)).astype(jnp.bfloat16)
    found = local_response_norm(x)
    assert found.dtype == jnp.bfloat16
    wanted = local_response_norm(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(found.astype(jnp.float32), wanted.astype(jnp.float32))


def test_zeros_have_a_gradient():
    """As a ReLU leaves them, all at once."""
    gradient = jax.grad(lambda x: local_response_norm(x).sum())(jnp.zeros((1, 2, 2, 8)))
    np.testing.assert_array_equal(gradient, 1)


def test_a_window_without_centre_is_refused():
    with pytest.raises(ValueError, match="a window of 4 channels has no centre"):
        local_response_norm(jnp.zeros((1, 1, 1, 8)), size=4)
