"""Textures: patterns of mean 0 within bounds, so that a thing's grey level is what it was given."""

import numpy as np
import pytest

from fcn_jax.data import textures


@pytest.mark.parametrize("draw", textures.TEXTURES)
def test_textures_swing_around_zero(draw):
    rng = np.random.default_rng(0)
    patterns = [draw(rng, 40, 30) for _ in range(50)]
    assert all(pattern.shape == (40, 30) and pattern.dtype == np.float32 for pattern in patterns)
    assert abs(np.mean(patterns)) < 0.03
    assert 0.1 < np.std(patterns) < 0.9
    assert np.quantile(np.abs(patterns), 0.99) < 1.5


def test_a_wave_is_the_sine_of_a_plane():
    rng = np.random.default_rng(5)
    phase = np.random.default_rng(5).uniform(0, 2 * np.pi)
    y, x = np.mgrid[:20, :30]
    expected = np.sin(2 * np.pi / 6 * (y * np.sin(0.7) + x * np.cos(0.7)) + phase)
    np.testing.assert_allclose(textures.wave(0.7, 6, rng, 20, 30), expected, atol=1e-6)


def test_tiles_repeat_without_a_seam():
    tile = textures.MOTTLES
    assert np.abs(tile[0] - tile[-1]).max() <= np.abs(np.diff(tile, axis=0)).max()
    window = textures.tile_window(np.random.default_rng(0), tile, 300, 520)
    np.testing.assert_array_equal(window[:44, :264], window[256:, 256:])
