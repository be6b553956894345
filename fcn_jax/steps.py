"""What one training or evaluation step computes: pure functions of arrays.

The same function is pmapped over devices, jitted over a mesh, vmapped over seeds and compiled for hardware that is not
here. Under pmap `axis_name` names the axis over which sums are completed; everywhere else it is None.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from fcn_jax import losses, metrics, optim
from fcn_jax.state import TrainState

NORMALIZATIONS = ("sum", "valid_mean")
Batch = dict[str, jax.Array]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    normalization: str,
    accumulate: int = 1,
    frozen: Iterable[str] = (),
    seed: int | jax.Array = 0,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Gives `train_step(state, batch, axis_name=None) -> (state, report)`.

    The batch holds `image` f32 `[b h w 3]`, `label` `[b h w]` and `index` i32 `[b]`, each example's place in the global
    batch. The gradient of the loss summed over all pixels of all devices is divided once: by the number of images
    (`sum`; Caffe's `normalize: false`) or of valid pixels (`valid_mean`). With `accumulate` k the batch is run as k
    parts after each other, for the same result in less memory.

    The report holds `loss_sum` and `pixels`, whose quotient is the loss per valid pixel, and `gradient_norms`, one for
    each parameter. A step that meets a non-finite loss or gradient reports so and leaves parameters and buffers as they
    were, so that what caused it can be looked at.
    """
    frozen = tuple(frozen)

    def loss_sum(params, batch, key):
        if frozen:
            # Nothing is computed for a gradient that nobody uses.
            held = optim.frozen_mask(params, frozen)
            params = jax.tree.map(lambda p, hold: lax.stop_gradient(p) if hold else p, params, held)
        logits = model.apply(
            {"params": params}, batch["image"], train=True, example_index=batch["index"], rngs={"dropout": key}
        )
        return losses.cross_entropy(cast(jax.Array, logits), batch["label"])

    def train_step(state: TrainState, batch: Batch, axis_name: str | None = None):
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def part_sums(part):
            (loss, pixels), gradients = jax.value_and_grad(loss_sum, has_aux=True)(state.params, part, key)
            return loss, pixels, gradients

        if accumulate == 1:
            sums = part_sums(batch)
        else:
            parts = jax.tree.map(lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]), batch)
            zeros = jax.eval_shape(part_sums, jax.tree.map(lambda x: x[0], parts))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros)
            sums, _ = lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, part_sums(part)), None), zeros, parts)
        images = jnp.asarray(batch["image"].shape[0], jnp.int32)
        if axis_name is not None:
            sums, images = lax.psum((sums, images), axis_name)
        loss, pixels, gradients = sums

        denominator = jnp.maximum(images if normalization == "sum" else pixels, 1).astype(loss.dtype)
        gradients = jax.tree.map(lambda g: g / denominator.astype(g.dtype), gradients)
        norms = jnp.stack([jnp.sqrt(jnp.sum(jnp.square(g))).astype(jnp.float32) for g in jax.tree.leaves(gradients)])
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        sound = jnp.isfinite(loss) & jnp.all(jnp.isfinite(norms))
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        report = {"loss_sum": loss, "pixels": pixels, "gradient_norms": norms}
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), report

    return train_step


def make_eval_step(model: nn.Module) -> Callable[..., jax.Array]:
    """Gives `eval_step(params, batch, axis_name=None) -> confusion matrix i32 [c c]` of the whole batch."""

    def eval_step(params: Any, batch: Batch, axis_name: str | None = None) -> jax.Array:
        logits = cast(jax.Array, model.apply({"params": params}, batch["image"], train=False))
        matrix = metrics.confusion(batch["label"], jnp.argmax(logits, axis=-1), logits.shape[-1])
        return matrix if axis_name is None else lax.psum(matrix, axis_name)

    return eval_step


def first_nonfinite(tree: Any) -> str | None:
    """The name of the first parameter that holds a NaN or an infinity, in the order of their names; else None."""
    sound = np.asarray(_finite_leaves(tree))
    return next((name for name, ok in zip(optim.parameter_names(tree), sound, strict=True) if not ok), None)


@jax.jit
def _finite_leaves(tree: Any) -> jax.Array:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])
