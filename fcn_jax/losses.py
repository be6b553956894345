"""Losses: logits and labels to `(sum, count)`, so that batches, devices and hosts add up before anything is divided."""

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.labels import is_class

# Caffe clamps a pixel's probability at the smallest normal float: the value of the loss, not its gradient.
MAX_PIXEL_LOSS = float(-np.log(np.finfo(np.float32).tiny))


def cross_entropy(
    logits: jax.Array, labels: jax.Array, class_weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy of `logits [… c]` and integer `labels […]`, summed, and the number of pixels that count.

    A pixel labelled 255, or with any value that is no class, adds nothing to value, gradient or count. With
    `class_weights [c]` each pixel's term is weighted by its label's weight; the count stays the number of pixels, as
    in caffe-segnet. Computed in float32 at least. The value of a pixel is clamped at 87.3 as in Caffe; the gradient
    is not. Source: Caffe's softmax_loss_layer.cpp.
    """
    num_classes = logits.shape[-1]
    logits = logits.astype(np.promote_types(logits.dtype, np.float32))
    valid = is_class(labels, num_classes)
    # A comparison in place of a gather: its gradient is no scatter, and −1 or 255 select nothing.
    is_label = jax.nn.one_hot(labels.astype(jnp.int32), num_classes, dtype=bool)
    log_probability = jnp.sum(jnp.where(is_label, jax.nn.log_softmax(logits), 0), axis=-1)
    terms = -log_probability
    # In this order the clamped value is exact: the bracket is 0 but for its gradient.
    terms = jax.lax.stop_gradient(jnp.minimum(terms, MAX_PIXEL_LOSS)) + (terms - jax.lax.stop_gradient(terms))
    if class_weights is not None:
        weights = class_weights.astype(terms.dtype)
        terms = terms * jnp.matmul(is_label.astype(terms.dtype), weights, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(jnp.where(valid, terms, 0)), jnp.sum(valid, dtype=jnp.int32)
