"""Metrics: labels and predictions to one confusion matrix, and from it the four scores of the FCN paper.

Matrices add: int32 on the device for a batch, int64 on the host for a split. There is no mean of means anywhere.
"""

import typing
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.labels import is_class


class Scores(typing.NamedTuple):
    """Fractions of 1. `iou` and `accuracy` are `[c]`, NaN where a class gives none; the means leave those out."""

    pixel_accuracy: float
    mean_accuracy: float
    mean_iou: float
    frequency_weighted_iou: float
    iou: np.ndarray
    accuracy: np.ndarray


@partial(jax.jit, static_argnames=("num_classes",), inline=True)
def confusion(labels: jax.Array, predictions: jax.Array, num_classes: int) -> jax.Array:
    """Counts pixels of truth i predicted as j: int32 `[c c]`, rows truth, of two integer maps of one shape.

    Pixels whose label is no class (255, or any other stray value) are left out, those predicted as one of them too.
    """
    valid = is_class(labels, num_classes) & is_class(predictions, num_classes)
    cell = labels.astype(jnp.int32) * num_classes + predictions.astype(jnp.int32)
    # Negative indices would wrap; a cell past the end is dropped.
    cell = jnp.where(valid, cell, num_classes * num_classes)
    counts = jnp.zeros(num_classes * num_classes, jnp.int32).at[cell.ravel()].add(1, mode="drop")
    return counts.reshape(num_classes, num_classes)


def scores(matrix: np.ndarray | jax.Array, absent: Sequence[int] = ()) -> Scores:
    """The scores of a confusion matrix `[c c]`, rows truth.

    Mean accuracy averages the classes that the truth has; mean IU those that truth or prediction has, so that a class
    predicted but never true counts 0; frequency weighted IU weighs by the truth. Of the labels `absent`, which a data
    set is known not to show, those without a pixel in the truth are left out of the means even if they were predicted.
    Source: score.py of the FCN release.
    """
    counts = np.asarray(matrix).astype(np.float64)
    correct, truth, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracy = correct / truth
        iou = correct / (truth + predicted - correct)
        frequency = truth / counts.sum()
        pixel_accuracy = correct.sum() / counts.sum()
    present = truth > 0
    nowhere = [label for label in absent if not present[label]]
    iou[nowhere] = np.nan
    weighted = float(np.sum(frequency[present] * iou[present])) if present.any() else np.nan
    return Scores(
        pixel_accuracy=float(pixel_accuracy),
        mean_accuracy=_mean_of_numbers(accuracy),
        mean_iou=_mean_of_numbers(iou),
        frequency_weighted_iou=weighted,
        iou=iou,
        accuracy=accuracy,
    )


def _mean_of_numbers(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
