"""Crop offsets and receptive fields against the published numbers; the latter against gradients in test_models.py."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.ops.grid import IMAGE, Grid, crop_to_overlap, sample

VGG_BLOCKS = (2, 2, 3, 3, 3)
RELEASED_OFFSETS = {32: [19], 16: [5, 27], 8: [5, 9, 31]}


def vgg(first_padding: int, fc6_padding: int) -> dict[str, Grid]:
    """The grids of pool1 … pool5 and fc6, from the paper's table."""
    grid, grids = IMAGE, {}
    for block, depth in enumerate(VGG_BLOCKS, start=1):
        for layer in range(depth):
            grid = grid.conv(3, padding=first_padding if block == 1 and layer == 0 else 1)
        grids[f"pool{block}"] = grid = grid.conv(2, stride=2)
    grids["fc6"] = grid.conv(7, padding=fc6_padding)
    return grids


def alexnet() -> Grid:
    grid = IMAGE.conv(11, stride=4, padding=100).conv(3, stride=2).conv(5, padding=2).conv(3, stride=2)
    for _ in range(3):
        grid = grid.conv(3, padding=1)
    return grid.conv(3, stride=2).conv(6)


def offsets(grids: dict[str, Grid], stride: int) -> list[int]:
    """Each skip's offset from the up-sampled scores, and the image's, as the release's prototxt writes them."""
    scores, found = grids["fc6"], []
    for skip in ("pool4", "pool3")[: {32: 0, 16: 1, 8: 2}[stride]]:
        scores = scores.transposed_conv(4, 2)
        offset = grids[skip].offset_of(scores)
        found.append(offset)
        scores = scores.crop(max(-offset, 0))  # where they start first they are cropped to the skip
    return [*found, scores.transposed_conv(2 * stride, stride).offset_of(IMAGE)]


@pytest.mark.parametrize("stride", RELEASED_OFFSETS)
def test_offsets_of_the_release(stride):
    assert offsets(vgg(100, 0), stride) == RELEASED_OFFSETS[stride]


@pytest.mark.parametrize(("stride", "wanted"), [(32, [16]), (16, [-1, 8]), (8, [-1, -1, 4])])
def test_offsets_of_same_padding_are_half_a_stride(stride, wanted):
    assert offsets(vgg(1, 3), stride) == wanted


def test_alexnet_is_aligned_by_a_kernel_of_63_and_not_of_64():
    assert alexnet().transposed_conv(63, 32).offset_of(IMAGE) == 18
    with pytest.raises(ValueError, match=r"the grids are 18\.5 cells apart, not a whole number"):
        alexnet().transposed_conv(64, 32).offset_of(IMAGE)


def test_unequal_steps_are_refused():
    with pytest.raises(ValueError, match="steps 2 and 1 pixels cannot be laid over each other"):
        IMAGE.conv(2, stride=2).offset_of(IMAGE)


@pytest.mark.parametrize(
    ("blob", "pixels", "step"), [("pool3", 44, 8), ("pool4", 100, 16), ("pool5", 212, 32), ("fc6", 404, 32)]
)
@pytest.mark.parametrize("paddings", [(100, 0), (1, 3)])
def test_receptive_fields_of_the_paper(blob, pixels, step, paddings):
    grid = vgg(*paddings)[blob]
    first, last = grid.receptive_field(5)
    assert (last - first + 1, grid.step) == (pixels, step)
    assert Fraction(first + last, 2) == grid.start + 5 * grid.step  # its middle is the cell's place


def test_convolution_by_hand():
    """A window of 3, stride 2, padding 1, dilation 2: cell i sees −1 + 2i … 3 + 2i and lies on 1 + 2i."""
    grid = IMAGE.conv(3, stride=2, padding=1, dilation=2)
    assert (grid.start, grid.step) == (1, 2)
    assert [grid.receptive_field(i) for i in (0, 1, 4)] == [(-1, 3), (1, 5), (7, 11)]


def test_transposed_convolution_by_hand():
    """Kernel 4, stride 2: coarse cell i reaches fine cells 2i … 2i + 3, so 4 and 5 both hear 1 and 2."""
    grid = IMAGE.transposed_conv(4, 2)
    assert (grid.start, grid.step) == (Fraction(-3, 4), Fraction(1, 2))
    assert [grid.receptive_field(i) for i in (3, 4, 5, 6)] == [(0, 1), (1, 2), (1, 2), (2, 3)]
    assert grid.crop(3).receptive_field(1) == (1, 2)
    # Kernel 3 by 2: odd fine cells hear one coarse cell, even ones two.
    assert [IMAGE.transposed_conv(3, 2).receptive_field(i) for i in (2, 3, 4)] == [(0, 1), (1, 1), (1, 2)]


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (4, 2), (63, 32), (16, 8), (3, 1)])
def test_every_tap_of_a_transposed_convolution_is_seen_and_no_other(kernel, stride):
    grid = IMAGE.transposed_conv(kernel, stride)
    for cell in range(4 * kernel, 4 * kernel + 2 * stride):
        heard = [i for i in range(6 * kernel) if 0 <= cell - stride * i < kernel]
        assert grid.receptive_field(cell) == (heard[0], heard[-1])


def test_down_and_up_again_is_the_image():
    assert IMAGE.conv(4, stride=2).transposed_conv(4, 2) == IMAGE


@pytest.mark.parametrize("first_is_larger", [True, False])
def test_overlap(first_is_larger):
    """Cells of one step are matched by their place: the map that starts earlier loses its first cells."""
    early, late = Grid(Fraction(-2)), Grid(Fraction(1))
    places = jnp.arange(-2.0, 10)[None, :, None, None] * jnp.ones((1, 1, 9, 1)), jnp.ones((1, 5, 20, 1))
    maps = (places[0], early, places[1], late)
    first, second, grid = crop_to_overlap(*maps) if first_is_larger else crop_to_overlap(*maps[2:], *maps[:2])
    cropped, other = (first, second) if first_is_larger else (second, first)
    assert cropped.shape == other.shape == (1, 5, 6, 1)
    np.testing.assert_array_equal(cropped[0, :, 0, 0], [1, 2, 3, 4, 5])
    assert grid.start == 1
    assert grid.receptive_field(2) == (2, 5)  # of `early` cell 5 and of `late` cell 2, by their own counts


@pytest.mark.parametrize(
    ("grid", "size", "rows"),
    [
        (IMAGE.conv(3, 8, 1), (3, 2), [0, 8, 16]),  # centred on a pixel
        (IMAGE.conv(2, 2), (4, 2), [1, 3, 5, 7]),  # between two: the latter
        (IMAGE.conv(1, 4, 4), (3, 2), [-4, 0, 4]),  # starts in the padding
        (IMAGE, (3, 3), [0, 1, 2]),
    ],
)
def test_labels_are_sampled_where_cells_are_centred(grid, size, rows):
    labels = np.arange(1, 12 * 9 + 1, dtype=np.uint8).reshape(1, 12, 9)
    found = np.asarray(sample(jnp.asarray(labels), grid, size, 255))
    assert found.shape == (1, *size) and found.dtype == np.uint8
    start, step = rows[0], rows[1] - rows[0]
    for i, j in np.ndindex(*size):
        row, column = start + step * i, start + step * j
        inside = 0 <= row < 12 and 0 <= column < 9
        assert found[0, i, j] == (labels[0, row, column] if inside else 255)
