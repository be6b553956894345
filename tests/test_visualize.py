import numpy as np
import pytest
from PIL import Image

from fcn_jax import visualize
from fcn_jax.labels import voc_palette

PALETTE = ((0, 0, 0), (128, 0, 0), (0, 200, 0))
LABEL = np.array([[0, 1, 2], [255, 2, 1]], np.uint8)


def test_palette_png_reads_back_as_the_same_indices(tmp_path):
    path = tmp_path / "deeper" / "label.png"
    visualize.write_palette_png(path, LABEL, PALETTE)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), LABEL)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), visualize.colorize(LABEL, PALETTE))
        assert (picture.getpalette() or [])[-3:] == [224, 224, 192]


def test_palette_png_of_every_label(tmp_path):
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    visualize.write_palette_png(tmp_path / "label.png", label, voc_palette(255))
    with Image.open(tmp_path / "label.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), label)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")).reshape(256, 3), voc_palette(256))


def test_colorize():
    colors = visualize.colorize(LABEL, PALETTE)
    assert colors.dtype == np.uint8 and colors.shape == (2, 3, 3)
    assert [tuple(color) for color in colors[1]] == [(224, 224, 192), (0, 200, 0), (128, 0, 0)]


@pytest.mark.parametrize("label", [np.array([[3]], np.uint8), np.array([[1]], np.int32)])
def test_labels_without_a_colour_are_refused(label):
    with pytest.raises(ValueError, match="labels must be uint8 below 3, or 255"):
        visualize.colorize(label, PALETTE)


def test_overlay_mixes_and_leaves_void_alone():
    image = np.full((2, 3, 3), 100, np.uint8)
    mixed = visualize.overlay(image, LABEL, PALETTE, alpha=0.25)
    assert mixed.dtype == np.uint8
    assert tuple(mixed[0, 1]) == (107, 75, 75)  # 75 + 128/4, 75 + 0, 75 + 0
    assert tuple(mixed[1, 0]) == (100, 100, 100)
    np.testing.assert_array_equal(visualize.overlay(image, LABEL, PALETTE, alpha=0), image)
    with pytest.raises(ValueError, match="do not belong together"):
        visualize.overlay(image[:1], LABEL, PALETTE)


def test_legend_shows_the_classes_asked_for():
    def colors(picture):
        return {tuple(int(value) for value in color) for color in np.unique(picture.reshape(-1, 3), axis=0)}

    names = ("background", "red thing", "green thing")
    assert set(PALETTE) <= colors(visualize.legend(names, PALETTE))
    some = colors(visualize.legend(names, PALETTE, present=np.array([1, 255])))
    assert (128, 0, 0) in some and visualize.VOID_COLOR in some and (0, 200, 0) not in some


def test_legend_grows_in_columns():
    picture = visualize.legend([f"class {index}" for index in range(150)], voc_palette(150))
    assert picture.shape[0] <= visualize.ROWS_PER_COLUMN * visualize.ROW_HEIGHT + 2 * visualize.MARGIN


def test_strip_keeps_the_pixels_of_its_panels():
    rng = np.random.default_rng(0)
    panels = list(rng.integers(0, 256, (3, 30, 40, 3), dtype=np.uint8))
    picture = visualize.strip(panels, ["input", "truth", "prediction"])  # 4 times: 160 wide
    top = picture.shape[0] - 30 * 4 - visualize.MARGIN
    for place, panel in enumerate(panels):
        left = visualize.MARGIN + place * (160 + visualize.MARGIN)
        np.testing.assert_array_equal(picture[top : top + 120 : 4, left : left + 160 : 4], panel)
        assert (picture[:top, left : left + 160] < 128).any(), "a title stands above each panel"
    assert (picture[:, : visualize.MARGIN - 1] == 255).all()


def test_strip_keeps_long_titles_inside_their_panels():
    panels = [np.zeros((20, 60, 3), np.uint8)] * 2
    picture = visualize.strip(panels, ["a title that does not fit", "b"], scale=1)
    gap = slice(visualize.MARGIN + 61, visualize.MARGIN + 60 + visualize.MARGIN - 1)
    assert (picture[:, gap] == 255).all()


def test_strip_refuses_what_does_not_match():
    panel = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(ValueError, match="panels of one size"):
        visualize.strip([panel, panel[:2]], ["a", "b"])
    with pytest.raises(ValueError, match="a title for each: 1 titles"):
        visualize.strip([panel, panel], ["a"])


@pytest.mark.parametrize("shape", [(3, 5, 3), (3, 5)])
def test_png_round_trip(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    visualize.write_png(tmp_path / "image.png", image)
    with Image.open(tmp_path / "image.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), image)
