"""What a gradient does to the parameters: an Optax chain.

`sgd` follows Caffe: `v = momentum·v + rate·multiplier·(gradient + decay·multiplier·w)`, `w −= v`. The rate is inside
the momentum buffer, so a change of rate takes effect over the buffer's memory. Source: Caffe's sgd_solver.cpp
(Normalize, Regularize, ComputeUpdateValue). `torch_sgd` is PyTorch's, which differs wherever the rate changes:
`v = momentum·v + gradient + decay·multiplier·w`, `w −= rate·multiplier·v`.

Multipliers and frozen sets are rules: patterns, as of a shell, over names of layers (`fc6`) or parameters (`*/bias`).
"""

import fnmatch
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fcn_jax.errors import ConfigError

SCHEDULES = ("fixed", "step", "poly", "cosine")
OPTIMIZERS = ("sgd", "torch_sgd", "adamw")
Rules = Iterable[tuple[str, float]]


def make_optimizer(fields: Any, total_steps: int, params: Any) -> optax.GradientTransformation:
    """The optimizer of a config's `optim` group (see `config.default`) for `params` (arrays or their shapes).

    Raises ConfigError for names that are none, and for a rule that matches no parameter.
    """
    for field in ("lr_multipliers", "decay_multipliers"):
        _check_rules(field, [pattern for pattern, _ in fields[field]], params)
    rate = make_schedule(fields, total_steps)
    decay = _by_rules(fields.decay_multipliers, lambda factor, u, p: u + fields.weight_decay * factor * p)
    multiply = _by_rules(fields.lr_multipliers, lambda factor, u, p: u * factor)
    if fields.name == "sgd":
        steps = [decay, optax.scale_by_schedule(rate), multiply, optax.trace(fields.momentum)]
    elif fields.name == "torch_sgd":
        steps = [decay, optax.trace(fields.momentum), multiply, optax.scale_by_schedule(rate)]
    elif fields.name == "adamw":
        steps = [
            optax.scale_by_adam(b1=fields.momentum, b2=fields.beta2),
            decay,
            optax.scale_by_schedule(rate),
            multiply,
        ]
    else:
        raise ConfigError(f"optim.name: no optimizer {fields.name!r}; there are {', '.join(OPTIMIZERS)}")
    if fields.clip_norm:
        steps.insert(0, optax.clip_by_global_norm(fields.clip_norm))
    chain = optax.chain(*steps, optax.scale(-1.0))
    if not fields.frozen:
        return chain
    # Frozen parameters hold no momentum and do not decay: they have no optimizer at all.
    labels = jax.tree.map(lambda frozen: "frozen" if frozen else "learned", frozen_mask(params, fields.frozen))
    return optax.partition({"learned": chain, "frozen": optax.set_to_zero()}, labels)


def make_schedule(fields: Any, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step (counted from 0), by the config's `optim` group."""
    if fields.schedule not in SCHEDULES:
        raise ConfigError(f"optim.schedule: no {fields.schedule!r}; there are {', '.join(SCHEDULES)}")

    def rate(step):
        step = jnp.asarray(step, jnp.result_type(float))
        warmup = fields.warmup_steps
        # Decay runs over the steps after the warm-up.
        done = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
        if fields.schedule == "fixed":
            factor = jnp.ones_like(step)
        elif fields.schedule == "step":
            passed = sum((step >= boundary).astype(step.dtype) for boundary in fields.boundaries)
            factor = jnp.asarray(fields.gamma, step.dtype) ** passed
        elif fields.schedule == "poly":
            factor = (1 - done) ** fields.power
        else:  # cosine
            factor = (1 + jnp.cos(jnp.pi * done)) / 2
        ramp = 1.0
        if warmup and fields.warmup_from:
            ramp = jnp.minimum(fields.warmup_from + (1 - fields.warmup_from) * step / warmup, 1.0)
        elif warmup:
            ramp = jnp.minimum((step + 1) / warmup, 1.0)
        return fields.lr * ramp * factor

    return rate


def parameter_names(params: Any) -> list[str]:
    """`layer/kind` of each leaf, in the order of `jax.tree.leaves`."""
    return [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def frozen_mask(params: Any, patterns: Iterable[str]) -> Any:
    """Which parameters a frozen set holds: a tree of bools. Raises ConfigError for a pattern that matches none."""
    patterns = tuple(patterns)
    _check_rules("frozen", patterns, params)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(_matches(_name(path), pattern) for pattern in patterns), params
    )


def _by_rules(rules: Rules, function) -> optax.GradientTransformation:
    """Applies `function(factor, update, param)` to each leaf; the last rule that matches its name gives the factor."""

    def factor(path) -> float:
        matching = [factor for pattern, factor in rules if _matches(_name(path), pattern)]
        return matching[-1] if matching else 1.0

    def update(updates, state, params):
        return jax.tree_util.tree_map_with_path(lambda path, u, p: function(factor(path), u, p), updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)  # pyright: ignore[reportArgumentType]


def _check_rules(field: str, patterns: Iterable[str], params: Any) -> None:
    names = parameter_names(params)
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            raise ConfigError(f"optim.{field}: {pattern!r} matches no parameter; they are {', '.join(names)}")


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern means the parameter `layer/kind`, by its name or by its layer's."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name.partition("/")[0], pattern)


def _name(path) -> str:
    return "/".join(entry.key for entry in path)
