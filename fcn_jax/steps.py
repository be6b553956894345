"""What one training or evaluation step computes: pure functions of arrays.

The same function is pmapped over devices, mapped over a mesh, vmapped over seeds and compiled for hardware that is not
here. Under pmap and on a mesh `axis_name` names the axis of devices over which sums are completed; else it is None.

A net with several heads has logits, labels, losses and matrices in a dict by head; its loss is the sum of its heads'.
An auxiliary head has logits in training and no labels of its own: it learns from the net's, with a weight.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from fcn_jax import losses, metrics, optim
from fcn_jax.labels import IGNORE, by_head, only_head
from fcn_jax.losses import Loss
from fcn_jax.ops.grid import sample
from fcn_jax.ops.rematerialisation import rematerialised
from fcn_jax.ops.resampling import Resampling, sum_over_rows
from fcn_jax.state import TrainState

# What the summed loss is divided by. `sum`: images (Caffe's normalize: false). `valid_mean`: what the loss counts in
# the batch, its valid pixels as a rule. `part_mean`: what it counts in each part, then the number of parts (Caffe's
# normalize: true with iter_size).
NORMALIZATIONS = ("sum", "valid_mean", "part_mean")
Batch = dict[str, Any]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    normalization: str,
    loss: Loss = losses.LOSSES["cross_entropy"],
    fused: bool = True,
    auxiliary: float = 0.5,
    at_scores: bool = False,
    accumulate: int = 1,
    remat: str = "none",
    frozen: Iterable[str] = (),
    seed: int | jax.Array = 0,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """Gives `train_step(state, batch, axis_name=None, across=None) -> (state, report)`.

    The batch holds `image` f32 `[b h w c]`, `label` `[b h w]` and `index` i32 `[b]`, each example's place in the global
    batch. What is differentiated is `loss(logits, labels)` summed over all devices, divided as NORMALIZATIONS says; an
    auxiliary head's is added, times `auxiliary`. It is computed row block by row block where net and loss allow that
    and `fused` does not forbid it: logits of full size are then never held. With `at_scores` the coarse scores are
    scored, against the labels of the pixels that they are centred on, and nothing is up-sampled. With `accumulate` k
    the batch is run as k parts after each other, part j being examples j, j + k, …, for the same result in less
    memory, but that batch norm sees a part at a time. `remat` is one of `ops.rematerialisation.POLICIES`: what is not
    kept for the backward pass.

    The report holds `loss_sum` and `pixels` (what the loss counts), whose quotient is the mean loss, and
    `gradient_norms`, one for each parameter. A step that meets a non-finite loss or gradient reports so and leaves
    parameters, statistics and buffers as they were, so that what caused it can be looked at.

    Under a mesh the net and its gradients run on each device by itself, and the optimizer for all at once:
    `across(compute, params, (step, batch_stats), batch)` brings the former about, and sums the gradients.
    """
    frozen = tuple(frozen)

    def compute(params: Any, begun: tuple[jax.Array, Any], batch: Batch, axis_name: str | None):
        """Counts and losses by head and running statistics, of all devices; and this device's gradients.

        What is frozen has the gradient None: nothing is computed, and nothing sent, for what nobody uses.
        """
        step, batch_stats = begun
        variables = {"params": params, "batch_stats": batch_stats}
        key = jax.random.fold_in(jax.random.key(seed), step)
        if at_scores:
            batch = batch | {"label": _at_scores(model, variables, batch)}
        resampling = None
        if fused and loss.by_parts and not at_scores:
            share = batch["image"].shape[0] // accumulate
            resampling = _last_resampling(model, variables, batch["image"][:share])
        coarse: dict[str, Any] = {"upsample": False} if at_scores or resampling is not None else {}
        # Only a net with batch norm has use for the other devices while it runs.
        net = model.clone(axis_name=axis_name) if batch_stats else model

        def over_devices(tree):
            return tree if axis_name is None else lax.psum(tree, axis_name)

        holds = optim.frozen_mask(params, frozen)
        learning = jax.tree.map(lambda p, hold: None if hold else p, params, holds)

        def loss_of(learning, params, batch_stats, part, divisors):
            logits, changed = net.apply(
                {"params": _instead_of_none(learning, params), "batch_stats": batch_stats},
                part["image"],
                train=True,
                **coarse,
                example_index=part["index"],
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            sums, total = {}, 0
            for head, scores, weight in _scored(logits, part["label"], auxiliary):
                labels = by_head(part["label"])[head]
                if resampling is None:
                    value, _ = loss(scores, labels)
                else:
                    value, _ = loss.finish(sum_over_rows(loss.sums, scores, labels, resampling))
                sums.setdefault(head, value)  # of an auxiliary head nothing is reported
                total += weight * value / divisors[head].astype(value.dtype)
            return total, (sums, changed.get("batch_stats", {}))

        parts = jax.tree.map(partial(_dealt, parts=accumulate), batch)
        images = over_devices(jnp.asarray(batch["image"].shape[0], jnp.int32))
        counts = over_devices(_counts(model, loss, parts["label"]))
        divisors = {head: _divisors(normalization, images, each) for head, each in counts.items()}

        def part_sums(batch_stats, part, divisors):
            gradient = jax.value_and_grad(rematerialised(loss_of, remat), has_aux=True)
            (_, (sums, batch_stats)), gradients = gradient(learning, params, batch_stats, part, divisors)
            return batch_stats, (sums, gradients)

        if accumulate == 1:
            first = {head: divisor[0] for head, divisor in divisors.items()}
            batch_stats, (sums, gradients) = part_sums(batch_stats, batch, first)
        else:
            first = jax.tree.map(lambda x: x[0], (parts, divisors))
            shapes = jax.eval_shape(part_sums, batch_stats, *first)[1]
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

            def add_part(carry, part):
                batch_stats, totals = carry
                batch_stats, more = part_sums(batch_stats, *part)
                return (batch_stats, jax.tree.map(jnp.add, totals, more)), None

            (batch_stats, (sums, gradients)), _ = lax.scan(add_part, (batch_stats, zeros), (parts, divisors))
        counted = {head: jnp.sum(each) for head, each in counts.items()}
        return (counted, over_devices(sums), batch_stats), gradients

    def train_step(
        state: TrainState,
        batch: Batch,
        axis_name: str | None = None,
        across: Callable[..., Any] | None = None,
    ):
        arguments = state.params, (state.step, state.batch_stats), batch
        if across is not None:
            found, gradients = across(compute, *arguments)
        else:
            found, gradients = compute(*arguments, axis_name)
            gradients = gradients if axis_name is None else lax.psum(gradients, axis_name)
        gradients = _instead_of_none(gradients, jax.tree.map(jnp.zeros_like, state.params))
        counted, sums, batch_stats = found
        norms = jnp.stack([jnp.sqrt(jnp.sum(jnp.square(g))).astype(jnp.float32) for g in jax.tree.leaves(gradients)])
        sound = jnp.isfinite(sum(sums.values())) & jnp.all(jnp.isfinite(norms))

        params, opt_state = _learned(optimizer, sound, gradients, state.params, state.opt_state)
        batch_stats = _chosen(sound, batch_stats, state.batch_stats)
        report = {"loss_sum": only_head(sums), "pixels": only_head(counted), "gradient_norms": norms}
        return TrainState(state.step + 1, params, batch_stats, opt_state), report

    return train_step


def _instead_of_none(tree: Any, other: Any) -> Any:
    """The leaves of `tree`, and those of `other` where it has None."""
    return jax.tree.map(
        lambda leaf, instead: instead if leaf is None else leaf, tree, other, is_leaf=lambda x: x is None
    )


def _dealt(x: jax.Array, parts: int) -> jax.Array:
    """`[b …]` as `[parts b/parts …]`: every so many-th example belongs to one part.

    Devices hold neighbours of the global batch, and so each holds its share of every part, the same part from any
    number of devices.
    """
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def _learned(optimizer: optax.GradientTransformation, sound: jax.Array, *operands: Any) -> tuple[Any, Any]:
    """Parameters and buffers that learned from `gradients, params, opt_state`, or those of before if not `sound`.

    On CPUs a branch: an elementwise choice reads new and old until the end, so that XLA copies what it would otherwise
    change in place (FCN-8s, 360×480: 457 MiB more, and a tenth of the step's time). On accelerators the choice is
    part of the update's own pass, and no branch waits for it.
    """

    def learn(gradients, params, opt_state):
        updates, learned = optimizer.update(gradients, opt_state, params)
        # Both branches have to give the same types, whatever an optimizer does to those of its buffers.
        learned = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.asarray(old).dtype), learned, opt_state)
        return optax.apply_updates(params, updates), learned

    return lax.platform_dependent(
        *operands,
        cpu=lambda *operands: lax.cond(sound, learn, lambda gradients, *old: old, *operands),
        default=lambda *operands: _chosen(sound, learn(*operands), operands[1:]),
    )


def _chosen(sound: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(partial(jnp.where, sound), new, old)


def _scored(logits: Any, labels: Any, auxiliary: float) -> Iterable[tuple[str, jax.Array, float]]:
    """Each head of the labels with its scores and the weight of its loss; the main one comes before auxiliary ones."""
    if isinstance(labels, Mapping) or not isinstance(logits, Mapping):
        return [(head, scores, 1.0) for head, scores in by_head(logits).items()]
    return [("", scores, auxiliary if place else 1.0) for place, scores in enumerate(logits.values())]


def _last_resampling(model: Any, variables: Any, image: jax.Array) -> Resampling | None:
    """A net's last resampling to pixels, where it has one that can be computed a few rows at a time."""
    if not hasattr(model, "resampling"):
        return None
    return model.resampling(_cells(model, variables, image), image.shape[1:3])


def _cells(model: nn.Module, variables: Any, image: jax.Array) -> tuple[int, int]:
    """Height and width of a net's coarse scores, without computing any."""
    scores = jax.eval_shape(partial(model.apply, upsample=False), variables, image)
    return jax.tree.leaves(scores)[0].shape[1:3]


def scores_by_head(model: nn.Module, variables: Any, image: jax.Array) -> tuple[dict[str, Any], Resampling | None]:
    """Scores of an image in use, by head: coarse ones with what brings them to pixels, or logits and None."""
    resampling = _last_resampling(model, variables, image)
    coarse: dict[str, Any] = {} if resampling is None else {"upsample": False}
    return by_head(model.apply(variables, image, train=False, **coarse)), resampling


def _at_scores(model: nn.Module, variables: Any, batch: Batch) -> Any:
    """The labels of the pixels that the coarse scores are centred on, 255 beyond the image, by head if several."""
    cells = _cells(model, variables, batch["image"])
    grid = model.score_grid()  # pyright: ignore[reportAttributeAccessIssue]
    return jax.tree.map(lambda labels: sample(labels, grid, cells, IGNORE), batch["label"])


def _counts(model: nn.Module, loss: Loss, labels: Any) -> dict[str, jax.Array]:
    """What the loss counts in each part, `[parts]` by head, of labels `[parts b h w]`."""
    classes = by_head(model.num_classes)  # pyright: ignore[reportAttributeAccessIssue]

    def count(num_classes: int, labels: jax.Array) -> jax.Array:
        # It depends on the labels alone, and what the loss computes beside it is dropped by the compiler.
        if not loss.by_parts:
            return loss(jnp.zeros((*labels.shape, num_classes)), labels)[1]
        # By rows: labels as ones and zeros of all classes would be as large as the logits.
        batch, height, width = labels.shape
        nothing = Resampling(np.zeros((height, 1)), np.zeros((width, 1)))
        return loss.finish(sum_over_rows(loss.sums, jnp.zeros((batch, 1, 1, num_classes)), labels, nothing))[1]

    return {head: jax.vmap(partial(count, classes[head]))(each) for head, each in by_head(labels).items()}


def _divisors(normalization: str, images: jax.Array, counts: jax.Array) -> jax.Array:
    """What the loss of each part is divided by, `[parts]`, of what it counts in each."""
    if normalization == "part_mean":
        return counts.size * _or_one(counts)
    total = images if normalization == "sum" else _or_one(jnp.sum(counts))
    return jnp.broadcast_to(total, counts.shape)


def _or_one(counts: jax.Array) -> jax.Array:
    """Without anything to count the loss is zero, whatever it is divided by."""
    return jnp.where(counts > 0, counts, jnp.ones_like(counts))


def make_eval_step(model: nn.Module) -> Callable[..., Any]:
    """Gives `eval_step(variables, batch, axis_name=None) -> confusion matrix i32 [c c]` of the whole batch."""

    def counted(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return metrics.confusion(labels, jnp.argmax(logits, axis=-1), logits.shape[-1])

    each_image = losses.each_image(counted)

    def eval_step(variables: Any, batch: Batch, axis_name: str | None = None) -> Any:
        scores, resampling = scores_by_head(model, variables, batch["image"])
        labels = by_head(batch["label"])
        count = each_image if resampling is None else partial(sum_over_rows, each_image, resampling=resampling)
        matrices = {head: jnp.sum(count(each, labels[head]), axis=0) for head, each in scores.items()}
        matrices = matrices if axis_name is None else lax.psum(matrices, axis_name)
        return only_head(matrices)

    return eval_step
