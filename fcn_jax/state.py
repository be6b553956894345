"""What training carries from step to step: arrays and nothing else."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import core


@flax.struct.dataclass
class TrainState:
    """Steps done (int32 scalar), the net's parameters, its running statistics (or {}), and the optimizer's buffers."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What the net's `apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_variables(model: nn.Module, seed: int) -> Any:
    """A net's parameters and running statistics, as drawn from `seed`. They do not depend on the image's size."""
    key = jax.random.key(seed)
    image = jnp.zeros((1, 32, 32, model.in_channels))  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(key, core.Tracer) or jax.default_backend() != "cpu":
        return jax.jit(model.init)(key, image)
    # LLVM's third level unrolls the rounds of the random bits: a compilation three times as long for the same values.
    return jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 2})(key, image)


def init_params(model: nn.Module, seed: int) -> Any:
    """The parameters alone of `init_variables`."""
    return init_variables(model, seed)["params"]


def abstract_variables(model: nn.Module) -> Any:
    """The shapes and types of a net's variables, without computing or holding any."""
    return jax.eval_shape(lambda: init_variables(model, 0))


def abstract_params(model: nn.Module) -> Any:
    """The shapes and types of a net's parameters."""
    return abstract_variables(model)["params"]


def create(params: Any, optimizer: optax.GradientTransformation, batch_stats: Any = None) -> TrainState:
    """The state before the first step. Under `jax.eval_shape` this gives its shapes."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats={} if batch_stats is None else batch_stats,
        opt_state=optimizer.init(params),
    )
