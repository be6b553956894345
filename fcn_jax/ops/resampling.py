"""The last resampling of a net, from coarse scores to pixels, as two matrices; whole, or a few rows at a time.

Bilinear up-sampling is separable: a matrix for the rows and one for the columns, whatever the kernel, the crop and the
border are. A net that says its last resampling so (`module.resampling`) lets loss, argmax and confusion be computed row
block by row block. The logits at full size, which with their copies in the backward pass are the largest arrays of a
training step, are then never held.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BLOCKS = 32  # that an image is cut into; each is computed from the scores, and again for its gradient


@dataclasses.dataclass(frozen=True, eq=False)
class Resampling:
    """A map `[b h w c]` to `[b H W c]`, by matrices `[H h]` and `[W w]` on every channel, in the highest precision."""

    rows: np.ndarray
    columns: np.ndarray

    def __call__(self, x: jax.Array) -> jax.Array:
        return _resampled(x, self.rows, self.columns)

    def crop(self, height: int, width: int) -> "Resampling":
        """The same to the first rows and columns alone."""
        return Resampling(self.rows[:height], self.columns[:width])


def sum_over_rows(
    function: Callable[[jax.Array, jax.Array], Any], scores: jax.Array, labels: jax.Array, resampling: Resampling
) -> Any:
    """`function(logits [b H W c], labels [b H W])`, of which results add up over rows, without ever holding the logits.

    Scores are `[b h w c]`, results any tree of arrays `[b …]`: added up over images here, a compiler that spreads
    images over devices would have these meet at every block. Rows that fill the last block up have the label 255.
    """
    blocks = (*_row_blocks(resampling.rows), _label_blocks(labels))

    def one(block: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        first, rows, labels_here = block
        return function(_block(scores, first, rows, resampling.columns), labels_here)

    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], blocks))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    # Nothing of a block is kept for its gradient: it is computed again.
    again = jax.checkpoint(one, prevent_cse=False)
    total, _ = lax.scan(lambda total, block: (jax.tree.map(jnp.add, total, again(block)), None), zeros, blocks)
    return total


def map_rows(function: Callable[[jax.Array], jax.Array], scores: jax.Array, resampling: Resampling) -> jax.Array:
    """`function(logits [b H W c]) -> [b H W …]`, pixel by pixel, without ever holding the logits."""

    def one(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        first, rows = block
        return function(_block(scores, first, rows, resampling.columns))

    blocks = lax.map(one, _row_blocks(resampling.rows))
    joined = jnp.moveaxis(blocks, 0, 1)
    joined = joined.reshape(joined.shape[0], joined.shape[1] * joined.shape[2], *joined.shape[3:])
    return joined[:, : resampling.rows.shape[0]]


def _resampled(x: jax.Array, rows: Any, columns: np.ndarray) -> jax.Array:
    """`x [b h w c]` by matrices `[H h]` and `[W w]`, to `[b H W c]`.

    Columns first, while the rows are few; then rows of all columns and channels at once are products of wide matrices.
    On CPUs that takes as many copies of the matrix as there are images: with one, they would be laid side by side.
    """
    highest = lax.Precision.HIGHEST
    x = jnp.einsum("Ww,bhwc->bhWc", columns.astype(x.dtype), x, precision=highest)
    each = jnp.broadcast_to(rows.astype(x.dtype), (x.shape[0], *rows.shape))
    return jnp.einsum("bHh,bhWc->bHWc", each, x, precision=highest)


def _block(scores: jax.Array, first: jax.Array, rows: jax.Array, columns: np.ndarray) -> jax.Array:
    """The logits of some rows, of the coarse rows that reach them, from `first` on."""
    return _resampled(lax.dynamic_slice_in_dim(scores, first, rows.shape[1], axis=1), rows, columns)


def _row_blocks(matrix: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """A matrix `[H h]` in equal blocks of rows, each as wide as the coarse rows `[first, first + m)` that they use.

    Gives `first [blocks]` and the blocks, `[blocks k m]`; rows that fill the last block up are zero.
    """
    length, cells = matrix.shape
    count, rows = _cut(length)
    blocks = np.pad(matrix, ((0, count * rows - length), (0, 0))).reshape(count, rows, cells)
    used = [np.flatnonzero(np.any(block, axis=0)) for block in blocks]
    width = max(np.ptp(each) + 1 if each.size else 1 for each in used)
    first = np.array([min(each.min(initial=cells), cells - width) for each in used], np.int32)
    parts = [block[:, start : start + width] for block, start in zip(blocks, first, strict=True)]
    return jnp.asarray(first), jnp.asarray(np.stack(parts))


def _label_blocks(labels: jax.Array) -> jax.Array:
    """Labels `[b H W]` in equal blocks of rows, `[blocks b k W]`; the last is filled up with 255."""
    batch, length, width = labels.shape
    count, rows = _cut(length)
    padded = jnp.pad(labels, ((0, 0), (0, count * rows - length), (0, 0)), constant_values=255)
    return jnp.moveaxis(padded.reshape(batch, count, rows, width), 1, 0)


def _cut(length: int) -> tuple[int, int]:
    """How many blocks there are, and how many rows in each."""
    rows = -(-length // BLOCKS)
    return -(-length // rows), rows
