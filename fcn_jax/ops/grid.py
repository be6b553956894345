"""Where the cells of a feature map lie in the image: the algebra behind every crop offset and receptive field.

Per axis (both are alike), cell i of a map is centred on input pixel `start + i · step`. Convolution, pooling and
transposed convolution act on these two numbers, and two maps of equal step can be laid over each other when their
starts differ by a whole number of steps. The offsets that the FCN release writes as 19, 5/27 and 5/9/31 follow from
it, for any padding. Beside them a grid knows which input pixels a cell can see.

Source: the rule is that of Caffe's `coord_map` (python/caffe/coord_map.py), which the release's `net.py` crops with.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True)
class Grid:
    """Centre of cell 0 and distance of the cells, in input pixels.

    `seen` maps a range of cells, first and last, to the range of input pixels that they depend on.
    """

    start: Fraction = Fraction(0)
    step: Fraction = Fraction(1)
    seen: Callable[[int, int], tuple[int, int]] = dataclasses.field(
        default=lambda first, last: (first, last), compare=False, repr=False
    )

    def conv(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> "Grid":
        """The grid after a convolution or pooling window. Caffe's rounding up of pooled sizes moves no cell."""
        reach = dilation * (kernel - 1)
        return Grid(
            start=self.start + self.step * (Fraction(reach, 2) - padding),
            step=self.step * stride,
            seen=lambda first, last: self.seen(first * stride - padding, last * stride - padding + reach),
        )

    def transposed_conv(self, kernel: int, stride: int) -> "Grid":
        """The grid after an unpadded transposed convolution: `stride` cells for one."""
        step = self.step / stride
        return Grid(
            start=self.start - step * Fraction(kernel - 1, 2),
            step=step,
            seen=lambda first, last: self.seen(-((kernel - 1 - first) // stride), last // stride),
        )

    def crop(self, offset: int) -> "Grid":
        """The grid after dropping the first `offset` cells."""
        return Grid(
            start=self.start + self.step * offset,
            step=self.step,
            seen=lambda first, last: self.seen(first + offset, last + offset),
        )

    def offset_of(self, other: "Grid") -> int:
        """How many cells of this grid lie before the first cell of `other` (negative if it starts earlier).

        Raises ValueError when the two cannot be laid over each other: unequal steps, or a fractional distance (the
        reason why FCN-AlexNet up-samples with a kernel of 63: 64 would need an offset of 18½).
        """
        if self.step != other.step:
            raise ValueError(f"grids of steps {self.step} and {other.step} pixels cannot be laid over each other")
        offset = (other.start - self.start) / self.step
        if offset.denominator != 1:
            raise ValueError(f"the grids are {float(offset)} cells apart, not a whole number")
        return int(offset)

    def receptive_field(self, cell: int = 0) -> tuple[int, int]:
        """First and last input pixel that the cell depends on; beyond the image they lie in its padding.

        All cells of a convolutional map see equally many pixels, those of an up-sampled one do not.
        """
        return self.seen(cell, cell)


IMAGE = Grid()


def crop_to_overlap(
    first: jax.Array, first_grid: Grid, second: jax.Array, second_grid: Grid
) -> tuple[jax.Array, jax.Array, Grid]:
    """Crops two maps `[b h w c]` of equal step to the cells that both have, and gives the grid of their sum.

    With 100 pixels of padding the skip is the larger map and is cropped to the up-sampled scores, as in the release;
    with "same" padding the up-sampled scores are the larger.
    """
    offset = first_grid.offset_of(second_grid)
    before_first, before_second = max(offset, 0), max(-offset, 0)
    height = min(first.shape[1] - before_first, second.shape[1] - before_second)
    width = min(first.shape[2] - before_first, second.shape[2] - before_second)
    first_grid, second_grid = first_grid.crop(before_first), second_grid.crop(before_second)

    def seen(low: int, high: int) -> tuple[int, int]:
        ranges = first_grid.seen(low, high), second_grid.seen(low, high)
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    return (
        first[:, before_first : before_first + height, before_first : before_first + width],
        second[:, before_second : before_second + height, before_second : before_second + width],
        Grid(first_grid.start, first_grid.step, seen),
    )


def sample(labels: jax.Array, grid: Grid, size: Sequence[int], beyond: int) -> jax.Array:
    """Labels `[b h w]` of the pixels that the cells of a map of `size` (h', w') are centred on, `beyond` outside.

    Of two pixels equally near the latter is taken. Strides of whole pixels only, as every net's scores have.
    """
    start, step = math.floor(grid.start + Fraction(1, 2)), int(grid.step)
    for axis, cells in zip((1, 2), size, strict=True):
        before, last = max(0, -start), start + step * (cells - 1)
        after = max(0, last + 1 - labels.shape[axis])
        widths = [(before, after) if place == axis else (0, 0) for place in range(labels.ndim)]
        labels = jnp.pad(labels, widths, constant_values=beyond)
        first = start + before
        labels = lax.slice_in_dim(labels, first, first + step * (cells - 1) + 1, step, axis)
    return labels


def spread(values: np.ndarray, grid: Grid, size: Sequence[int]) -> np.ndarray:
    """A map `[h' w']` whose cells lie on `grid` at the pixels of an image of `size` (h, w): f32 `[h w]`.

    Linear between the centres of the cells, constant beyond the outermost.
    """
    rows, columns = (_weights(cells, grid, length) for cells, length in zip(values.shape, size, strict=True))
    return (rows @ values.astype(np.float64) @ columns.T).astype(np.float32)


def _weights(cells: int, grid: Grid, length: int) -> np.ndarray:
    """`[length cells]`: how much of each cell a pixel holds."""
    place = np.clip((np.arange(length) - float(grid.start)) / float(grid.step), 0, cells - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells)))
