"""An image amid a wide padding, without the padding's price.

The released FCNs pad the image by 100 pixels, which at 375×500 doubles the map. Where the image does not reach,
features depend on the parameters alone: all are equal but for those near the map's edges, where the layers' own padding
of zeros has seeped in. A map is therefore held as its core, the rectangle that the image reaches, and a background as
small as shows every feature that occurs outside of it once: the cells near the edges, and a run of equal ones between
them, which stands for however many there are. What is computed is the same, cell by cell, and so are gradients: those
of a cell that stands for many are summed.

Core and edges grow with every layer, and where they have met nothing is saved: the map is then whole, an array again.
Through a VGG trunk at 375×500 the core is 48 % of the map at conv1, 50, 56 and 68 % in the next blocks, all at conv5.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fcn_jax.ops import convolution, pooling

_WIDE = 8  # pixels of padding beyond the kernel from which on it pays
_WORTH_IT = 0.85  # of the map's cells, which the core may at most be
# Multiplications that the first layer must save: of a narrow net with a small image the whole trunk runs in
# milliseconds, and its parts would take seconds more to compile.
_ENOUGH = 2**25


class Axis(NamedTuple):
    """Where things lie along one axis of a map: its cells, the core's start and stop, and how many are near an edge.

    The background has `before + run + after` cells along it; those of the run are equal.
    """

    length: int
    start: int
    stop: int
    before: int
    after: int
    run: int


@partial(jax.tree_util.register_dataclass, data_fields=["core", "background"], meta_fields=["axes"])
@dataclasses.dataclass(frozen=True)
class Surrounded:
    """A map `[b h w c]` as its core `[b h' w' c]` amid a background `[1 m n c]`; functions of single cells map over it.

    `jax.tree.map(relu, x)` gives what `relu` gives of the whole map.
    """

    core: jax.Array
    background: jax.Array
    axes: Sequence[Axis]

    def __post_init__(self):
        object.__setattr__(self, "axes", tuple(self.axes))  # static, and so hashed

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """That of the whole map."""
        return self.core.shape[0], self.axes[0].length, self.axes[1].length, self.core.shape[3]


def whole(x: Any) -> Any:
    """The map as one array `[b h w c]`."""
    if not isinstance(x, Surrounded):
        return x
    return _extended(x, [(0, axis.length) for axis in x.axes])


def conv2d(x: Any, kernel: jax.Array, *, padding: int = 0, stride: int = 1, dilation: int = 1, **options: Any) -> Any:
    """`convolution.conv2d` of a map, which is surrounded afterwards where it was before, or wide padding makes it pay.

    A strided or dilated one makes it whole.
    """
    if stride == dilation == 1:
        sizes = kernel.shape[:2]
        if not isinstance(x, Surrounded) and padding >= max(sizes) + _WIDE and _saved(x, kernel, padding) >= _ENOUGH:
            x, padding = _amid_zeros(x, padding), 0
        if isinstance(x, Surrounded):
            x = _with_runs(x, sizes)
            axes = [_convolved(axis, size, padding) for axis, size in zip(x.axes, sizes, strict=True)]
            if _pays(axes):
                reach = zip(axes, sizes, strict=True)
                seen = [(axis.start - padding, axis.stop - padding + size - 1) for axis, size in reach]
                core = convolution.conv2d(_extended(x, seen), kernel, **options)
                return Surrounded(core, convolution.conv2d(x.background, kernel, padding=padding, **options), axes)
    return convolution.conv2d(whole(x), kernel, padding=padding, stride=stride, dilation=dilation, **options)


def max_pool(x: Any) -> Any:
    """`pooling.max_pool` by windows of 2×2 of a map that may be surrounded."""
    if isinstance(x, Surrounded):
        # As many equal cells that the far edge meets the windows as it does in the whole map, and one window of them.
        x = _with_runs(x, [3 + (axis.length - axis.before - axis.after - 3) % 2 for axis in x.axes])
        axes = [_pooled(axis) for axis in x.axes]
        if _pays(axes):
            seen = [(2 * new.start, min(2 * new.stop, old.length)) for new, old in zip(axes, x.axes, strict=True)]
            return Surrounded(pooling.max_pool(_extended(x, seen)), pooling.max_pool(x.background), axes)
    return pooling.max_pool(whole(x))


def _amid_zeros(image: jax.Array, padding: int) -> Surrounded:
    axes = [Axis(size + 2 * padding, padding, padding + size, 0, 0, 1) for size in image.shape[1:3]]
    return Surrounded(image, jnp.zeros((1, 1, 1, image.shape[3]), image.dtype), axes)


def _saved(image: jax.Array, kernel: jax.Array, padding: int) -> int:
    """How many multiplications a convolution spares that leaves the padding out."""
    batch, height, width = image.shape[:3]
    return batch * ((height + 2 * padding) * (width + 2 * padding) - height * width) * kernel.size


def _convolved(axis: Axis, size: int, padding: int) -> Axis:
    length = axis.length + 2 * padding - size + 1
    start, stop = max(axis.start + padding - size + 1, 0), min(axis.stop + padding, length)
    # The padding is zeros, as the cells before the first layer are not after it.
    return Axis(length, start, stop, axis.before + padding, axis.after + padding, axis.run - size + 1)


def _pooled(axis: Axis) -> Axis:
    cells = axis.before + axis.run + axis.after
    before, last = -(-axis.before // 2), (axis.before + axis.run) // 2
    after = -(-cells // 2) - last
    return Axis(-(-axis.length // 2), axis.start // 2, -(-axis.stop // 2), before, after, last - before)


def _pays(axes: Sequence[Axis]) -> bool:
    """Whether every axis has cells between its edges, and the core leaves enough of the map out."""
    core = math.prod([(axis.stop - axis.start) / axis.length for axis in axes])
    return core <= _WORTH_IT and all(axis.length - axis.before - axis.after >= axis.run > 0 for axis in axes)


def _with_runs(x: Surrounded, runs: Sequence[int]) -> Surrounded:
    """The same map, with so many equal cells between the edges of its background."""
    background = x.background
    for place, (axis, run) in enumerate(zip(x.axes, runs, strict=True), start=1):
        if run == axis.run:
            continue
        behind = axis.before + axis.run
        background = _laid_out(background, axis, place, (0, axis.before), run, (behind, behind + axis.after))
    return Surrounded(x.core, background, [axis._replace(run=run) for axis, run in zip(x.axes, runs, strict=True)])


def _extended(x: Surrounded, seen: Sequence[tuple[int, int]]) -> jax.Array:
    """The part of the whole map from start to stop along each axis, which holds the core; zeros beyond the map."""
    rows, columns = x.axes
    (top, bottom), (left, right) = seen
    beside = rows.start, rows.stop
    middle = _joined(
        _of_background(x, beside, (left, columns.start)),
        x.core,
        _of_background(x, beside, (columns.stop, right)),
        place=2,
    )
    above, below = ((top, rows.start), (rows.stop, bottom))
    return _joined(_of_background(x, above, (left, right)), middle, _of_background(x, below, (left, right)), place=1)


def _of_background(x: Surrounded, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array | None:
    """The part of the map from start to stop along each axis as it is without an image; zeros beyond the map.

    None where that is empty.
    """
    if rows[0] == rows[1] or columns[0] == columns[1]:
        return None
    part = x.background
    for place, (axis, (start, stop)) in enumerate(zip(x.axes, (rows, columns), strict=True), start=1):
        # Where the wanted part begins and ends among the cells before the run, of it, and after it.
        ends = (0, axis.before, axis.length - axis.after, axis.length)
        before, run, after = (
            (min(max(start, low), high), min(max(stop, low), high)) for low, high in itertools.pairwise(ends)
        )
        shorter = axis.length - axis.before - axis.run - axis.after
        after = after[0] - shorter, after[1] - shorter
        part = _laid_out(part, axis, place, before, run[1] - run[0], after)
        widths = [(0, 0, 0)] * 4
        widths[place] = min(max(-start, 0), stop - start), min(max(stop - axis.length, 0), stop - start), 0
        if any(map(any, widths)):
            part = lax.pad(part, np.zeros((), part.dtype), widths)
    return jnp.broadcast_to(part, (x.core.shape[0], *part.shape[1:]))


def _laid_out(
    x: jax.Array, axis: Axis, place: int, before: tuple[int, int], run: int, after: tuple[int, int]
) -> jax.Array:
    """Some cells of a background along one axis, so many like those of its run, and some cells again."""
    equal = lax.slice_in_dim(x, axis.before, axis.before + 1, axis=place)
    return _joined(
        lax.slice_in_dim(x, *before, axis=place),
        jnp.broadcast_to(equal, (*x.shape[:place], run, *x.shape[place + 1 :])),
        lax.slice_in_dim(x, *after, axis=place),
        place=place,
    )


def _joined(*parts: jax.Array | None, place: int) -> jax.Array:
    """The parts beside each other. Fewer operations are compiled sooner: those that are empty are left out."""
    there = [part for part in parts if part is not None and part.shape[place]]
    if len(there) == 1:
        return there[0]
    return jnp.concatenate(there or [part for part in parts if part is not None][:1], axis=place)
