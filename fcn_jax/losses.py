"""Losses: logits and labels to `(sum, count)`, so that batches, devices and hosts add up before anything is divided.

A pixel labelled 255, or with any value that is no class, adds nothing to value, gradient or count. The count depends on
the labels alone. Losses of pixels count pixels; Dice and Lovász, which are of whole images, count images.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.labels import is_class


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss `(logits, labels) -> (sum, count)`, and whether it can be put together from parts of the images.

    `sums(logits, labels)`, arrays `[b …]`, of several parts of the same images add up, and `finish` makes the loss of
    their total. Images are added up last: where a compiler spreads them over devices, these meet once.
    """

    sums: Callable[[jax.Array, jax.Array], Any]
    finish: Callable[[Any], tuple[jax.Array, jax.Array]]
    by_parts: bool = True  # False: all pixels of an image are needed at once

    def __call__(self, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.finish(self.sums(logits, labels))


# Caffe clamps a pixel's probability at the smallest normal float: the value of the loss, not its gradient.
MAX_PIXEL_LOSS = float(-np.log(np.finfo(np.float32).tiny))


@partial(jax.jit, static_argnames=("count_weights",), inline=True)
def cross_entropy(
    logits: jax.Array, labels: jax.Array, class_weights: jax.Array | None = None, count_weights: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy of `logits [… c]` and integer `labels […]`, summed, and the number of pixels that count.

    With `class_weights [c]` each pixel's term is weighted by its label's weight. The count stays the number of pixels,
    as in caffe-segnet; with `count_weights` it is the sum of their weights, as in PyTorch. Computed in float32 at
    least. The value of a pixel is clamped at 87.3 as in Caffe; the gradient is not. Source: Caffe's
    softmax_loss_layer.cpp.
    """
    log_probability, valid = _of_label(logits, labels)
    terms = -log_probability
    # In this order the clamped value is exact: the bracket is 0 but for its gradient.
    terms = jax.lax.stop_gradient(jnp.minimum(terms, MAX_PIXEL_LOSS)) + (terms - jax.lax.stop_gradient(terms))
    count = jnp.sum(valid, dtype=jnp.int32)
    if class_weights is not None:
        weights = _weights_of(labels, class_weights.astype(terms.dtype))
        terms = terms * weights
        count = jnp.sum(jnp.where(valid, weights, 0)) if count_weights else count
    return jnp.sum(jnp.where(valid, terms, 0)), count


@partial(jax.jit, static_argnames=("gamma",), inline=True)
def focal(logits: jax.Array, labels: jax.Array, gamma: float = 2.0) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in which a pixel of probability p counts `(1 − p)^gamma`: those that are right already fade.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 4.
    """
    log_probability, valid = _of_label(logits, labels)
    # Away from p = 1, where a power below one has an infinite slope; the term is 0 there all the same.
    missing = jnp.maximum(-jnp.expm1(log_probability), np.finfo(np.float32).tiny)
    # A whole exponent multiplies, where another one takes logarithms.
    terms = -(missing ** (int(gamma) if float(gamma).is_integer() else gamma)) * log_probability
    return jnp.sum(jnp.where(valid, terms, 0)), jnp.sum(valid, dtype=jnp.int32)


@partial(jax.jit, static_argnames=("fraction",), inline=True)
def top_k(logits: jax.Array, labels: jax.Array, fraction: float = 0.25) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the hardest pixels: the `fraction` of an image's valid ones with the largest loss, rounded up.

    Logits `[b h w c]`, labels `[b h w]`. Source: Wu, Shen and van den Hengel, "Bridging Category-level and
    Instance-level Semantic Image Segmentation", 2016, section 4 (online bootstrapping).
    """
    log_probability, valid = _of_label(logits, labels)
    losses = jnp.where(valid, -log_probability, -1).reshape(labels.shape[0], -1)
    kept = jnp.ceil(fraction * jnp.sum(valid, axis=(1, 2), dtype=losses.dtype)).astype(jnp.int32)
    hardest_first = -jnp.sort(-losses, axis=-1)
    rank = np.arange(losses.shape[-1], dtype=np.int32)
    return jnp.sum(jnp.where(rank[None] < kept[:, None], hardest_first, 0)), jnp.sum(kept)


@partial(jax.jit, inline=True)
def dice(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One minus the mean over an image's classes of `2 Σpg / (Σp² + Σg²)`, and the images with a valid pixel.

    Logits `[b h w c]`, labels `[b h w]`. Source: Milletari, Navab and Ahmadi, "V-Net", 3DV 2016, section 3.
    """
    return _dice_of(_dice_sums(logits, labels))


def _dice_sums(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Σpg, Σp² and Σg of each image and class, `[b c]`."""
    probability, truth, valid = _of_all(logits, labels)
    probability = jnp.where(valid[..., None], probability, 0)
    shared, squares, truths = (jnp.sum(x, axis=(1, 2)) for x in (probability * truth, probability**2, truth))
    return shared, squares, truths


def _dice_of(sums: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    shared, squares, truths = sums
    present = truths > 0
    return _over_images(1 - 2 * shared / jnp.where(present, squares + truths, 1), present)


@partial(jax.jit, inline=True)
def lovasz(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The Lovász extension of the Jaccard loss, its mean over an image's classes, and the images with a valid pixel.

    Logits `[b h w c]`, labels `[b h w]`. Source: Berman, Rannen Triki and Blaschko, "The Lovász-Softmax loss", CVPR
    2018, algorithm 1 with the classes present.
    """
    probability, truth, valid = _of_all(logits, labels)
    batch, classes = labels.shape[0], logits.shape[-1]
    # Pixels that do not count have no error and no truth, so that they change no step of the sums below.
    errors = jnp.where(valid[..., None], jnp.abs(truth - probability), 0).reshape(batch, -1, classes)
    truth = truth.reshape(batch, -1, classes)
    negated, sorted_truth = jax.lax.sort((-errors, truth), dimension=1, num_keys=1)
    total = jnp.sum(truth, axis=1, keepdims=True)
    seen = jnp.cumsum(sorted_truth, axis=1)
    others = jnp.cumsum(1 - sorted_truth, axis=1)
    jaccard = 1 - (total - seen) / (total + others)
    steps = jnp.diff(jaccard, axis=1, prepend=jnp.zeros_like(total))
    return _over_images(jnp.sum(-negated * jax.lax.stop_gradient(steps), axis=1), total[:, 0] > 0)


def of_pixels(loss: Callable[..., tuple[jax.Array, jax.Array]], by_parts: bool = True, **options: Any) -> Loss:
    """A loss that is the sum of its pixels', or with `by_parts` false of its images'."""
    return Loss(
        each_image(partial(loss, **options)), lambda sums: jax.tree.map(lambda x: jnp.sum(x, axis=0), sums), by_parts
    )


def each_image(function: Callable[[jax.Array, jax.Array], Any]) -> Callable[[jax.Array, jax.Array], Any]:
    """`function(logits [1 h w c], labels [1 h w])` of every image alone: its results as `[b …]`."""
    return jax.vmap(lambda logits, labels: function(logits[None], labels[None]))


# By the name in a config's `loss.name`.
LOSSES = {
    "cross_entropy": of_pixels(cross_entropy),
    "focal": of_pixels(focal),
    "top_k": of_pixels(top_k, by_parts=False),
    "dice": Loss(_dice_sums, _dice_of),
    "lovasz": of_pixels(lovasz, by_parts=False),
}


def make_loss(fields: Any, class_weights: np.ndarray | None = None) -> Loss:
    """The loss of a config's `loss` group."""
    if fields.name == "focal":
        return of_pixels(focal, gamma=fields.gamma)
    if fields.name == "top_k":
        return of_pixels(top_k, by_parts=False, fraction=fields.fraction)
    if fields.name == "cross_entropy" and class_weights is not None:
        weights = jnp.asarray(class_weights, jnp.float32)
        return of_pixels(cross_entropy, class_weights=weights, count_weights=fields.count_weights)
    return LOSSES[fields.name]


def _of_label(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The log-probability of each pixel's label (0 where it is none), and whether it is a class."""
    num_classes = logits.shape[-1]
    logits = logits.astype(np.promote_types(logits.dtype, np.float32))
    # A comparison in place of a gather: its gradient is no scatter, and −1 or 255 select nothing.
    is_label = jax.nn.one_hot(labels.astype(jnp.int32), num_classes, dtype=bool)
    log_probability = jnp.sum(jnp.where(is_label, jax.nn.log_softmax(logits), 0), axis=-1)
    return log_probability, is_class(labels, num_classes)


def _of_all(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each pixel's probabilities, its truth as ones and zeros, and whether it is a class."""
    logits = logits.astype(np.promote_types(logits.dtype, np.float32))
    truth = jax.nn.one_hot(labels.astype(jnp.int32), logits.shape[-1], dtype=logits.dtype)
    return jax.nn.softmax(logits), truth, is_class(labels, logits.shape[-1])


def _over_images(losses: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum over images of the mean over the classes `[b c]` that they show, and how many images show any."""
    classes = jnp.sum(present, axis=-1)
    means = jnp.sum(jnp.where(present, losses, 0), axis=-1) / jnp.maximum(classes, 1).astype(losses.dtype)
    return jnp.sum(means), jnp.sum(classes > 0, dtype=jnp.int32)


def _weights_of(labels: jax.Array, class_weights: jax.Array) -> jax.Array:
    """The weight of each pixel's label, 0 where that is none. A comparison in place of a gather."""
    is_label = jax.nn.one_hot(labels.astype(jnp.int32), class_weights.shape[0], dtype=bool)
    return jnp.sum(jnp.where(is_label, class_weights, 0), axis=-1)
