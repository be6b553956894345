"""From a picture's bytes to the net's input blob."""

import numpy as np
import pytest

from fcn_jax.inputs import FCN_INPUT, VGG_INPUT, InputSpec

RED, GREEN, BLUE = 10, 20, 250
PIXEL = np.array([[[RED, GREEN, BLUE]]], np.uint8)


def test_caffe_nets_see_bgr_minus_their_mean():
    blob = FCN_INPUT(PIXEL)
    assert blob.shape == (1, 1, 3) and blob.dtype == np.float32
    np.testing.assert_allclose(blob[0, 0], [BLUE - 104.00698793, GREEN - 116.66876762, RED - 122.67891434], rtol=1e-6)
    np.testing.assert_allclose(VGG_INPUT(PIXEL)[0, 0], [BLUE - 103.939, GREEN - 116.779, RED - 123.68], rtol=1e-6)


def test_scale_comes_after_the_mean_in_the_nets_order():
    spec = InputSpec(order="RGB", mean=(10, 0, 50), scale=(1, 2, 0.5))
    np.testing.assert_array_equal(spec(PIXEL)[0, 0], [0, 40, 100])
    assert InputSpec("GRB", (0, 0, 0))(PIXEL)[0, 0].tolist() == [GREEN, RED, BLUE]


def test_the_picture_is_left_as_it_was():
    for picture in (PIXEL.copy(), PIXEL.astype(np.float32)):
        before = picture.copy()
        FCN_INPUT(picture)
        np.testing.assert_array_equal(picture, before)


def test_batches_pass_too():
    batch = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    np.testing.assert_array_equal(FCN_INPUT(batch)[1], FCN_INPUT(batch[1]))


@pytest.mark.parametrize("order", ["RBB", "RGBA", "", "rgb"])
def test_orders_that_are_none(order):
    with pytest.raises(ValueError, match=f"order must be 'RGB' or 'BGR', not '{order}'"):
        InputSpec(order=order)


@pytest.mark.parametrize(("mean", "scale"), [((1.0, 2.0), (1.0, 1.0, 1.0)), ((0.0, 0.0, 0.0), (1.0,))])
def test_three_values_each(mean, scale):
    with pytest.raises(ValueError, match="mean and scale need three values each"):
        InputSpec(mean=mean, scale=scale)
