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

BLOCKS = 16  # that an image is cut into; each is computed from the scores, and again for its gradient


@dataclasses.dataclass(frozen=True, eq=False)
class Resampling:
    """A map `[b h w c]` to `[b H W c]`, by matrices `[H h]` and `[W w]` on every channel, in the highest precision."""

    rows: np.ndarray
    columns: np.ndarray

    def __call__(self, x: jax.Array) -> jax.Array:
        for axis, matrix in ((1, self.rows), (2, self.columns)):
            product = jnp.tensordot(matrix.astype(x.dtype), x, axes=((1,), (axis,)), precision=lax.Precision.HIGHEST)
            x = jnp.moveaxis(product, 0, axis)
        return x

    def crop(self, height: int, width: int) -> "Resampling":
        """The same to the first rows and columns alone."""
        return Resampling(self.rows[:height], self.columns[:width])


def sum_over_rows(
    function: Callable[[jax.Array, jax.Array], Any], scores: jax.Array, labels: jax.Array, resampling: Resampling
) -> Any:
    """`function(logits [b H W c], labels [b H W])`, of which results add up over rows, without ever holding the logits.

    Scores are `[b h w c]`, results any tree of arrays `[b …]`: added up over images here, those on other devices would
    be asked for at every block. Rows that fill the last block up have the label 255.
    """
    row_blocks, label_blocks = _blocks(resampling.rows), _blocks(labels, axis=1, fill=255)

    def one(block: tuple[jax.Array, jax.Array]) -> Any:
        rows, labels_here = block
        return function(_expanded(scores, rows, resampling.columns), labels_here)

    first = jax.tree.map(lambda x: x[0], (row_blocks, label_blocks))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, first))
    # Nothing of a block is kept for its gradient: it is computed again.
    again = jax.checkpoint(one, prevent_cse=False)
    total, _ = lax.scan(
        lambda total, block: (jax.tree.map(jnp.add, total, again(block)), None), zeros, (row_blocks, label_blocks)
    )
    return total


def map_rows(function: Callable[[jax.Array], jax.Array], scores: jax.Array, resampling: Resampling) -> jax.Array:
    """`function(logits [b H W c]) -> [b H W …]`, pixel by pixel, without ever holding the logits."""
    blocks = lax.map(
        lambda rows: function(_expanded(scores, rows, resampling.columns)), jnp.asarray(_blocks(resampling.rows))
    )
    joined = jnp.moveaxis(blocks, 0, 1)
    joined = joined.reshape(joined.shape[0], joined.shape[1] * joined.shape[2], *joined.shape[3:])
    return joined[:, : resampling.rows.shape[0]]


def _expanded(scores: jax.Array, rows: jax.Array, columns: np.ndarray) -> jax.Array:
    highest = lax.Precision.HIGHEST
    x = jnp.einsum("kh,bhwc->bkwc", rows.astype(scores.dtype), scores, precision=highest)
    return jnp.einsum("Ww,bkwc->bkWc", columns.astype(scores.dtype), x, precision=highest)


def _blocks(array: Any, axis: int = 0, fill: int = 0) -> Any:
    """An array cut along an axis into equal blocks, `[blocks …]`; the last is filled up."""
    length = array.shape[axis]
    rows = -(-length // BLOCKS)
    count = -(-length // rows)
    widths = [(0, count * rows - length) if place == axis else (0, 0) for place in range(array.ndim)]
    # Matrices are constants of NumPy, labels arrays of JAX.
    library: Any = np if isinstance(array, np.ndarray) else jnp
    padded = library.pad(array, widths, constant_values=fill)
    cut = padded.reshape(*array.shape[:axis], count, rows, *array.shape[axis + 1 :])
    return library.moveaxis(cut, axis, 0)
