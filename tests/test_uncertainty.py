"""Entropy, mutual information and calibration, on distributions whose values are known."""

import jax.numpy as jnp
import numpy as np

from fcn_jax.uncertainty import BINS, calibration_error, entropy, mutual_information, reliability


def test_entropy():
    np.testing.assert_allclose(
        entropy(jnp.array([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]])), [0, 1, 0.5], atol=1e-6
    )


def test_samples_that_agree_and_samples_that_do_not():
    agree = jnp.tile(jnp.array([0.5, 0.5]), (4, 1, 1))
    np.testing.assert_allclose(mutual_information(agree), [0], atol=1e-6)
    np.testing.assert_allclose(entropy(agree.mean(0)), [1], rtol=1e-6)
    opposed = jnp.array([[[1.0, 0]], [[0, 1.0]]])
    np.testing.assert_allclose(mutual_information(opposed), [1], rtol=1e-6)


def test_calibration_by_hand():
    """Four pixels said at 0.8 of which three are right, one at 0.6 that is wrong, and one that is void."""
    probabilities = np.array([[[0.8, 0.2]] * 4 + [[0.6, 0.4]] + [[0.9, 0.1]]], np.float32)
    labels = np.array([[0, 0, 0, 1, 1, 255]], np.uint8)
    table = reliability(probabilities, labels)
    assert table.shape == (BINS, 3) and table[:, 0].sum() == 5
    np.testing.assert_allclose(calibration_error(table), (4 * abs(0.75 - 0.8) + 0.6) / 5, rtol=1e-5)
    np.testing.assert_allclose(calibration_error(table + table), calibration_error(table))


def test_certain_pixels_and_none():
    sure = reliability(np.ones((2, 3, 1), np.float32), np.zeros((2, 3), np.uint8))
    assert sure[-1, 0] == 6 and calibration_error(sure) == 0
    assert calibration_error(np.zeros((BINS, 3))) == 0
