"""What one training or evaluation step computes: pure functions of arrays.

The same function is pmapped over devices, jitted over a mesh, vmapped over seeds and compiled for hardware that is not
here. Under pmap `axis_name` names the axis over which sums are completed; everywhere else it is None.

A net with several heads has logits, labels, losses and matrices in a dict by head; its loss is the sum of its heads'.
"""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from fcn_jax import losses, metrics, optim
from fcn_jax.labels import by_head, is_class, only_head
from fcn_jax.state import TrainState

# What the summed loss is divided by. `sum`: images (Caffe's normalize: false). `valid_mean`: the batch's valid pixels.
# `part_mean`: each part's own valid pixels, then the number of parts (Caffe's normalize: true with iter_size).
NORMALIZATIONS = ("sum", "valid_mean", "part_mean")
Batch = dict[str, Any]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    normalization: str,
    accumulate: int = 1,
    frozen: Iterable[str] = (),
    seed: int | jax.Array = 0,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """Gives `train_step(state, batch, axis_name=None) -> (state, report)`.

    The batch holds `image` f32 `[b h w c]`, `label` `[b h w]` and `index` i32 `[b]`, each example's place in the global
    batch. What is differentiated is the loss summed over all pixels of all devices, divided as NORMALIZATIONS says.
    With `accumulate` k the batch is run as k parts after each other, for the same result in less memory.

    The report holds `loss_sum` and `pixels`, whose quotient is the loss per valid pixel, and `gradient_norms`, one for
    each parameter. A step that meets a non-finite loss or gradient reports so and leaves parameters and buffers as they
    were, so that what caused it can be looked at.
    """
    frozen = tuple(frozen)

    def loss_of(params, part, divisors, key):
        if frozen:
            # Nothing is computed for a gradient that nobody uses.
            held = optim.frozen_mask(params, frozen)
            params = jax.tree.map(lambda p, hold: lax.stop_gradient(p) if hold else p, params, held)
        logits = model.apply(
            {"params": params}, part["image"], train=True, example_index=part["index"], rngs={"dropout": key}
        )
        labels = by_head(part["label"])
        sums = {head: losses.cross_entropy(scores, labels[head])[0] for head, scores in by_head(logits).items()}
        return sum(loss / divisors[head].astype(loss.dtype) for head, loss in sums.items()), sums

    def train_step(state: TrainState, batch: Batch, axis_name: str | None = None):
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def over_devices(tree):
            return tree if axis_name is None else lax.psum(tree, axis_name)

        parts = jax.tree.map(lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]), batch)
        images = over_devices(jnp.asarray(batch["image"].shape[0], jnp.int32))
        pixels = over_devices(_valid_pixels(model, parts["label"]))
        divisors = {head: _divisors(normalization, images, counts) for head, counts in pixels.items()}

        def part_sums(part, divisors):
            (_, sums), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params, part, divisors, key)
            return sums, gradients

        if accumulate == 1:
            totals = part_sums(batch, {head: divisor[0] for head, divisor in divisors.items()})
        else:
            first = jax.tree.map(lambda x: x[0], (parts, divisors))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part_sums, *first))
            totals, _ = lax.scan(
                lambda total, part: (jax.tree.map(jnp.add, total, part_sums(*part)), None), zeros, (parts, divisors)
            )
        sums, gradients = over_devices(totals)
        norms = jnp.stack([jnp.sqrt(jnp.sum(jnp.square(g))).astype(jnp.float32) for g in jax.tree.leaves(gradients)])
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        sound = jnp.isfinite(sum(sums.values())) & jnp.all(jnp.isfinite(norms))
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        counted = {head: jnp.sum(counts) for head, counts in pixels.items()}
        report = {"loss_sum": only_head(sums), "pixels": only_head(counted), "gradient_norms": norms}
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), report

    return train_step


def _valid_pixels(model: nn.Module, labels: Any) -> dict[str, jax.Array]:
    """How many pixels count in each part, i32 `[parts]` by head, of labels `[parts b h w]`."""
    classes = by_head(model.num_classes)  # pyright: ignore[reportAttributeAccessIssue]
    return {
        head: jnp.sum(is_class(label, classes[head]), axis=(1, 2, 3), dtype=jnp.int32)
        for head, label in by_head(labels).items()
    }


def _divisors(normalization: str, images: jax.Array, pixels: jax.Array) -> jax.Array:
    """What the loss of each part is divided by, `[parts]`, of the valid pixels in each."""
    if normalization == "part_mean":
        return pixels.size * jnp.maximum(pixels, 1)
    total = images if normalization == "sum" else jnp.maximum(jnp.sum(pixels), 1)
    return jnp.broadcast_to(total, pixels.shape)


def make_eval_step(model: nn.Module) -> Callable[..., Any]:
    """Gives `eval_step(params, batch, axis_name=None) -> confusion matrix i32 [c c]` of the whole batch."""

    def eval_step(params: Any, batch: Batch, axis_name: str | None = None) -> Any:
        logits = by_head(model.apply({"params": params}, batch["image"], train=False))
        labels = by_head(batch["label"])
        matrices = {
            head: metrics.confusion(labels[head], jnp.argmax(scores, axis=-1), scores.shape[-1])
            for head, scores in logits.items()
        }
        matrices = matrices if axis_name is None else lax.psum(matrices, axis_name)
        return only_head(matrices)

    return eval_step


def first_nonfinite(tree: Any) -> str | None:
    """The name of the first parameter that holds a NaN or an infinity, in the order of their names; else None."""
    sound = np.asarray(_finite_leaves(tree))
    return next((name for name, ok in zip(optim.parameter_names(tree), sound, strict=True) if not ok), None)


@jax.jit
def _finite_leaves(tree: Any) -> jax.Array:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])
