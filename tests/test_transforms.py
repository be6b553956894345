"""Augmentation: geometry that image and label share to the pixel, and colours that stay in bounds."""

from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.data import transforms
from fcn_jax.errors import ConfigError

OFF = {"flip": False, "scale": (1.0, 1.0), "short_side": (0, 0), "crop": (0, 0), "color": 0.0}


def options(**changes):
    return SimpleNamespace(**(OFF | changes))


def example(height, width, seed=0):
    """An image whose red channel is its label: whatever happens to one must happen to the other."""
    label = np.random.default_rng(seed).integers(0, 11, (height, width), np.uint8)
    return {"image": np.repeat(label[..., None], 3, axis=2), "label": label, "id": "x"}


def same(first, second):
    return all(np.array_equal(first[key], second[key]) for key in ("image", "label"))


def test_everything_off_changes_nothing():
    one = example(4, 5)
    assert same(transforms.augment(one, options(), np.random.default_rng(0)), one)


def test_flipping_twice_is_the_identity():
    one = example(3, 4)
    once = transforms.flip(one["image"], one["label"])
    assert np.array_equal(once[1][:, 0], one["label"][:, 3])
    twice = transforms.flip(*once)
    assert np.array_equal(twice[0], one["image"]) and np.array_equal(twice[1], one["label"])


def test_half_of_the_images_are_flipped():
    one = example(2, 3)
    flipped = [
        not same(transforms.augment(one, options(flip=True), np.random.default_rng(seed)), one) for seed in range(200)
    ]
    assert 70 < sum(flipped) < 130


@pytest.mark.parametrize("scale", [0.01, 0.3, 0.5, 1.0, 1.37, 2.0, 3.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (13, 8)])
def test_rescaling_invents_no_labels(shape, scale):
    one = example(*shape)
    one["label"][0, 0] = 255
    image, label = transforms.rescale(one["image"], one["label"], scale)
    assert label.shape == image.shape[:2] == tuple(max(1, round(side * scale)) for side in shape)
    assert set(np.unique(label)) <= set(np.unique(one["label"]))


@pytest.mark.parametrize("shape", [(20, 33), (33, 20), (1, 1)])
def test_the_shorter_side_is_drawn_between_its_bounds(shape):
    chosen = options(short_side=(12, 15))
    found = {
        transforms.augment(example(*shape), chosen, np.random.default_rng(seed))["label"].shape for seed in range(40)
    }
    assert {min(size) for size in found} == {12, 13, 14, 15}
    assert all(size == tuple(round(side * min(size) / min(shape)) for side in shape) for size in found)


def test_rescaled_label_lies_under_its_image():
    label = np.zeros((8, 8), np.uint8)
    label[:, 4:] = 1
    image = np.repeat(label[..., None] * np.uint8(200), 3, axis=2)
    for scale in (0.5, 2.0, 3.0):
        bigger, labels = transforms.rescale(image, label, scale)
        assert np.array_equal(bigger[..., 0] > 100, labels == 1)


@pytest.mark.parametrize("scale", [0.3, 0.7, 1.3, 1.7])
def test_rescaling_prefers_no_side(scale):
    one = example(11, 11)  # odd, so that no pixel centre falls between two pixels
    mirrored = transforms.flip(*transforms.rescale(one["image"], one["label"], scale))
    again = transforms.rescale(*transforms.flip(one["image"], one["label"]), scale)
    assert np.array_equal(mirrored[1], again[1])


def test_shrinking_averages():
    image = np.array([[[0] * 3, [100] * 3], [[100] * 3, [200] * 3]], np.uint8)
    assert transforms.rescale(image, np.zeros((2, 2), np.uint8), 0.5)[0].tolist() == [[[100] * 3]]


def test_a_crop_is_a_window_of_image_and_label():
    one = example(20, 30)
    found = set()
    for seed in range(100):
        crop = transforms.augment(one, options(crop=(18, 29)), np.random.default_rng(seed))
        corners = [
            (y, x)
            for y in range(3)
            for x in range(2)
            if np.array_equal(one["label"][y : y + 18, x : x + 29], crop["label"])
        ]
        assert len(corners) == 1 and np.array_equal(crop["image"][..., 0], crop["label"])
        found |= set(corners)
    assert len(found) == 6  # every position is drawn


def test_a_small_image_is_padded_with_fill_and_255():
    one = example(2, 3)
    crop = transforms.augment(one, options(crop=(5, 3)), np.random.default_rng(1), fill=(1.5, 2.25, 3.125))
    assert crop["image"].dtype == np.float32 and crop["image"].shape == (5, 3, 3)
    outside = crop["label"] == 255
    assert outside.sum() == 9
    assert np.array_equal(crop["label"][~outside].reshape(2, 3), one["label"])
    assert np.array_equal(crop["image"][~outside].reshape(2, 3, 3), one["image"])
    assert (crop["image"][outside] == np.array([1.5, 2.25, 3.125])).all()


def test_pad_places_the_image_at_its_offset():
    one = example(1, 2)
    image, label = transforms.pad(one["image"], one["label"], (1, 0), (3, 3), (0, 0, 0))
    assert label.tolist() == [[255] * 3, [*one["label"][0].tolist(), 255], [255] * 3]
    assert image[1, :2, 0].tolist() == one["label"][0].tolist() and image.sum() == one["image"].sum()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (7, 5)])
def test_any_size_gives_the_crop_size(shape):
    everything = options(flip=True, scale=(0.2, 3.0), crop=(8, 9), color=0.4)
    for seed in range(20):
        crop = transforms.augment(example(*shape), everything, np.random.default_rng(seed))
        assert crop["image"].shape == (8, 9, 3) and crop["label"].shape == (8, 9) and crop["id"] == "x"


def test_same_stream_same_result():
    everything = options(flip=True, scale=(0.5, 2.0), crop=(8, 9), color=0.4)
    one, other, third = (
        transforms.augment(example(12, 12), everything, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert same(one, other) and not same(one, third)


def test_the_original_stays_untouched():
    one, copy = example(6, 6), example(6, 6)
    transforms.augment(one, options(flip=True, scale=(0.5, 2.0), crop=(8, 9), color=0.4), np.random.default_rng(0))
    assert same(one, copy)


@settings(deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 6),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([(0, 0), (7, 9), (16, 16)]),
    st.integers(0, 2**32),
)
@hypothesis.example(channels=2, heads=1, shape=(2, 4), crop=(0, 0), seed=17997129)
def test_every_channel_and_every_head_takes_the_same_way(channels, heads, shape, crop, seed):
    """What happens to many at once is what happens to each of them alone, whatever OpenCV can take in one go."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*shape, channels), np.uint8)
    labels = {f"head{i}": rng.integers(0, 11, shape, np.uint8) for i in range(heads)}
    fill = tuple(i + 0.5 for i in range(channels))
    chosen = options(flip=True, scale=(0.3, 2.5), crop=crop)

    def variant(image, label, fill):
        return transforms.augment({"image": image, "label": label}, chosen, np.random.default_rng(seed), fill)

    together = variant(image, labels, fill)
    assert list(together["label"]) == list(labels) and together["image"].shape[2] == channels
    for channel in range(channels):
        alone = variant(image[..., channel : channel + 1], labels["head0"], fill[channel : channel + 1])
        assert np.array_equal(together["image"][..., channel : channel + 1], alone["image"])
        assert together["image"].dtype == alone["image"].dtype
    for head, label in labels.items():
        alone = variant(image, label, fill)
        assert np.array_equal(together["label"][head], alone["label"])
        assert together["label"][head].flags.c_contiguous and together["label"][head].dtype == np.uint8


def test_a_small_image_of_many_channels_is_padded_in_every_head():
    labels = {"sem": np.full((2, 3), 4, np.uint8), "geo": np.full((2, 3), 1, np.uint8)}
    one = {"image": np.full((2, 3, 6), 7, np.uint8), "label": labels, "id": "x"}
    crop = transforms.augment(one, options(crop=(4, 4)), np.random.default_rng(0), fill=(1, 2, 3, 4, 5, 6))
    outside = crop["label"]["sem"] == 255
    assert outside.sum() == 10 and np.array_equal(outside, crop["label"]["geo"] == 255)
    assert (crop["image"][outside] == [1, 2, 3, 4, 5, 6]).all() and (crop["image"][~outside] == 7).all()
    assert (crop["label"]["sem"][~outside] == 4).all() and (crop["label"]["geo"][~outside] == 1).all()
    assert list(labels) == ["sem", "geo"] and labels["sem"].shape == (2, 3)  # the original stays


class Fixed(np.random.Generator):
    """A random stream that gives what it is told."""

    def __init__(self, *values):
        super().__init__(np.random.PCG64(0))
        self.values = values

    def uniform(self, *bounds, **size):
        return self.values


def test_brightness_contrast_and_saturation_by_hand():
    image = np.array([[[100, 100, 100], [200, 200, 200]]], np.uint8)  # mean grey 150
    assert transforms.jitter(image, 0.5, Fixed(0.5, 1, 1))[0, :, 0].tolist() == [50, 100]
    assert transforms.jitter(image, 0.5, Fixed(1, 0.5, 1))[0, :, 0].tolist() == [125, 175]
    assert transforms.jitter(image, 0.5, Fixed(1.5, 1, 1))[0, :, 0].tolist() == [150, 255]
    red = np.array([[[200, 0, 0]]], np.uint8)  # looks as bright as grey 59.8
    assert transforms.jitter(red, 0.9, Fixed(1, 1, 0.5)).tolist() == [[[130, 30, 30]]]
    assert np.array_equal(transforms.jitter(red, 0.5, Fixed(1, 1, 1)), red)


def test_colours_change_and_geometry_does_not():
    colors = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    others = np.random.default_rng(1).integers(0, 256, (5, 6, 3), np.uint8)
    changed = transforms.jitter(np.concatenate([colors, others], axis=-1), 0.5, Fixed(1.3, 0.6, 1.2))
    assert changed.dtype == np.uint8 and np.array_equal(changed[..., 3:], others)
    assert np.array_equal(changed[..., :3], transforms.jitter(colors, 0.5, Fixed(1.3, 0.6, 1.2)))
    assert not np.array_equal(changed[..., :3], colors)


def test_colours_beside_depth_stay_within_a_byte():
    colors = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    depth = np.random.default_rng(1).uniform(6, 9, (5, 6, 1)).astype(np.float32)
    changed = transforms.jitter(np.concatenate([colors, depth], axis=-1), 0.9, Fixed(1.9, 1.5, 1.9))
    assert changed.dtype == np.float32 and np.array_equal(changed[..., 3:], depth)
    assert changed[..., :3].min() == 0 and changed[..., :3].max() == 255
    assert np.abs(changed[..., :3] - transforms.jitter(colors, 0.9, Fixed(1.9, 1.5, 1.9))).max() < 1


def test_what_is_not_coloured_is_left_alone():
    one = example(6, 6)
    chosen = options(color=0.5)
    left = transforms.augment(one, chosen, np.random.default_rng(0), colored=False)
    assert same(left, one) and not same(transforms.augment(one, chosen, np.random.default_rng(0)), one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": (2.0, 0.5)}, r"augment.scale=\(2.0, 0.5\) must be"),
        ({"scale": (0.0, 1.0)}, "0 < low"),
        ({"short_side": (300, 200)}, r"augment.short_side=\(300, 200\) must be"),
        ({"short_side": (0, 200)}, "0 < low"),
        ({"short_side": (100, 200), "scale": (0.5, 2.0)}, "both say how large images are"),
        ({"crop": (0, 10)}, r"augment.crop=\(0, 10\) must be"),
        ({"crop": (-1, 10)}, "augment.crop"),
        ({"color": 1.0}, "augment.color=1.0 must be"),
    ],
)
def test_options_that_cannot_work_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        transforms.check(options(**change))
    transforms.check(options())
