"""What a config and its classes make: the net, its optimizer, the state that they start from, and the step.

Training runs the step that is made here, and `plan` compiles the very same one for hardware that is not here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from fcn_jax import config as experiment
from fcn_jax import losses, optim, parallel, state, steps
from fcn_jax.errors import ConfigError
from fcn_jax.labels import Info, class_counts


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The net of an experiment, the shapes and types of its variables, and its optimizer."""

    config: experiment.Config
    model: nn.Module
    variables: Any
    optimizer: optax.GradientTransformation

    def begin(self, variables: Any) -> state.TrainState:
        """The state before the first step of the net with these variables."""
        return state.create(variables["params"], self.optimizer, variables.get("batch_stats"))

    def abstract_state(self, mesh: Mesh) -> state.TrainState:
        """The shapes and types of the state, placed as a run places it."""
        abstract = jax.eval_shape(self.begin, self.variables)
        return parallel.placed(abstract, mesh, self.config.parallel.shard_state)

    def train_step(self, class_weights: np.ndarray | None = None) -> Callable[..., Any]:
        """What one step computes: `steps.make_train_step` as the config says, before it is spread over devices."""
        config = self.config
        return steps.make_train_step(
            self.model,
            self.optimizer,
            loss=losses.make_loss(config.loss, class_weights),
            fused=config.loss.fused,
            auxiliary=config.loss.auxiliary,
            at_scores=config.loss.at_scores,
            normalization=config.loss.normalization,
            accumulate=config.optim.accumulate,
            remat=config.train.remat,
            frozen=config.optim.frozen,
            seed=config.seed,
        )

    def compiled_train_step(self, mesh: Mesh, class_weights: np.ndarray | None = None) -> Callable[..., Any]:
        """The step as a run calls it, on the devices of `mesh`: `(state, batch) -> (state, report)`."""
        options = self.config.parallel
        return parallel.wrap_train_step(
            self.train_step(class_weights), mesh, options.mode, shard_state=options.shard_state
        )


def assemble(config: experiment.Config, info: Info) -> Assembly:
    """The parts of an experiment on data of these classes. Raises ConfigError for fields that cannot go together."""
    model = experiment.make_model(config, class_counts(info))
    try:
        variables = state.abstract_variables(model)
    except ValueError as error:
        # Fields that each may be set, and that this net cannot have together.
        raise ConfigError(f"model: {error}") from None
    if config.train.statistics_batches and "batch_stats" not in variables:
        raise ConfigError(f"train.statistics_batches are of batch norm, and {config.model.name} has none")
    optimizer = optim.make_optimizer(config.optim, config.train.steps, variables["params"])
    return Assembly(config, model, variables, optimizer)
