"""From a picture's bytes to the net's input blob."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax import inputs
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
    assert spec.channels == FCN_INPUT.channels == "RGB" and InputSpec("BGR", (0, 0, 0)).scale == (1, 1, 1)


def test_the_picture_is_left_as_it_was():
    for picture in (PIXEL.copy(), PIXEL.astype(np.float32)):
        before = picture.copy()
        FCN_INPUT(picture)
        np.testing.assert_array_equal(picture, before)


def test_batches_pass_too():
    batch = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    np.testing.assert_array_equal(FCN_INPUT(batch)[1], FCN_INPUT(batch[1]))


@pytest.mark.parametrize(
    ("order", "places", "channels"),
    [
        ("RGB", [0, 1, 2], "RGB"),
        ("BGR", [2, 1, 0], "RGB"),
        ("BGRD", [2, 1, 0, 3], "RGBD"),
        ("RGBD", [0, 1, 2, 3], "RGBD"),
        ("HHA", [0, 1, 2], "HHA"),
        ("BGRHHA", [2, 1, 0, 3, 4, 5], "RGBHHA"),
    ],
)
def test_colours_alone_are_swapped(order, places, channels):
    size = len(order)
    spec = InputSpec(
        order, tuple(float(10 * place) for place in range(size)), tuple(2.0**place for place in range(size))
    )
    image = np.random.default_rng(0).uniform(0, 255, (3, 4, size)).astype(np.float32)
    for place, origin in enumerate(places):
        expected = (image[..., origin] - np.float32(10 * place)) * np.float32(2**place)
        np.testing.assert_array_equal(spec(image)[..., place], expected)
    assert spec.channels == channels


@given(st.sampled_from(["RGB", "BGR", "HHA", "BGRD", "RGBD", "BGRHHA"]), st.data())
def test_the_fill_is_zero_in_the_blob(order, drawn):
    mean = drawn.draw(st.lists(st.floats(0, 255, width=32), min_size=len(order), max_size=len(order)))
    spec = InputSpec(order, tuple(mean))
    assert not spec(np.full((2, 3, len(order)), spec.fill, np.float32)).any()


def test_published_means():
    pixel = np.array([[[110.0, 120.0, 130.0, 8.0]]], np.float32)
    depth = inputs.NYUD_COLOR_DEPTH_INPUT(pixel)[0, 0]
    np.testing.assert_allclose(depth, [130 - 116.190, 120 - 97.203, 110 - 92.318, 8 - 7.844], rtol=1e-5)
    np.testing.assert_array_equal(depth[:3], inputs.NYUD_COLOR_INPUT(pixel[..., :3])[0, 0])
    hha = [110 - 132.431, 120 - 94.076, 130 - 118.477]
    np.testing.assert_allclose(inputs.NYUD_HHA_INPUT(pixel[..., :3])[0, 0], hha, rtol=1e-5)
    both = inputs.NYUD_COLOR_HHA_INPUT(np.concatenate([pixel[..., :3]] * 2, axis=-1))[0, 0]
    np.testing.assert_allclose(both, [*depth[:3], *hha], rtol=1e-5)
    scene = [130 - 114.578, 120 - 115.294, 110 - 108.353]
    np.testing.assert_allclose(inputs.SIFTFLOW_INPUT(pixel[..., :3])[0, 0], scene, rtol=1e-5)
    context = [130 - 104.007, 120 - 116.669, 110 - 122.679]
    np.testing.assert_allclose(inputs.CONTEXT_INPUT(pixel[..., :3])[0, 0], context, rtol=1e-5)
    # torchvision: (x / 255 − mean) / deviation, in R, G, B.
    normalized = [(110 / 255 - 0.485) / 0.229, (120 / 255 - 0.456) / 0.224, (130 / 255 - 0.406) / 0.225]
    np.testing.assert_allclose(inputs.IMAGENET_INPUT(pixel[..., :3])[0, 0], normalized, rtol=1e-4)


@pytest.mark.parametrize("order", ["RBB", "RGBA", "", "rgb", "D", "HHAD", "HHAHHA", "HHABGR", "BGRDHHA"])
def test_orders_that_are_none(order):
    with pytest.raises(ValueError, match=f"^order must be RGB, BGR, one of them with D or HHA behind.*not '{order}'$"):
        InputSpec(order=order, mean=(0.0,) * len(order))


@pytest.mark.parametrize(("mean", "scale"), [((1.0, 2.0), (1.0, 1.0, 1.0)), ((0.0, 0.0, 0.0), (1.0,))])
def test_as_many_values_as_channels(mean, scale):
    with pytest.raises(ValueError, match="mean and scale need 3 values each, one a channel of BGR"):
        InputSpec(mean=mean, scale=scale)
    with pytest.raises(ValueError, match="need 4 values each, one a channel of BGRD"):
        InputSpec("BGRD", mean=(0.0, 0.0, 0.0))


def test_images_of_other_channels_are_refused():
    with pytest.raises(ValueError, match="an image of 3 channels where BGRD are wanted"):
        inputs.NYUD_COLOR_DEPTH_INPUT(PIXEL)
