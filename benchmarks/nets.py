"""The nets that are measured, ours: with drawn weights, and a training step in two forms.

`plain_step` is what a reader of the public names writes: `apply`, `losses.cross_entropy`, `value_and_grad`, Optax's
SGD. `own_step` is the project's, put together as `training` does. Dropout is off on both sides of a comparison, so that
losses can be compared; it takes about a hundredth of a step.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import draws, peers
from fcn_jax import config as experiment
from fcn_jax import losses, models, optim, parallel, state, steps


@dataclasses.dataclass(frozen=True)
class Case:
    """A net and the image that it is measured on."""

    net: str
    size: tuple[int, int]  # height, width
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of the module, the peers' too
    works: tuple[str, ...] = ("forward",)
    images: int = 1


CASES = {
    "fcn8s-caffe": Case(
        *("fcn8s", (375, 500), {"padding": "caffe"}),
        works=("forward", "plain step", "own step"),
    ),
    "fcn8s-same": Case(
        *("fcn8s", (360, 480), {"padding": "same"}),
        works=("forward", "plain step", "own step"),
    ),
    "segnet": Case("segnet", (360, 480)),
    "deeplab_largefov": Case("deeplab_largefov", (360, 480)),
    "fcn_resnet50": Case("fcn_resnet50", (360, 480)),
}

# What the steps learn by: of the plain one as a reader writes it, of the own one as the FCN release has it.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "plain step": {"rate": 1e-9, "momentum": 0.9, "decay": 0.0, "biases": False},
    "own step": {"rate": 1e-9, "momentum": 0.9, "decay": 5e-4, "biases": True},
}


def runtimes(work: str) -> tuple[str, ...]:
    """The peers that take part, if there are any: ONNX Runtime does not learn."""
    found = ("torch", "torch channels_last", "onnxruntime")[: 2 if work.endswith("step") else 3]
    return found if peers.python() else ()


def make(case: Case) -> Any:
    """The net, for 21 classes."""
    options = dict(case.options)
    if "dropout" in models.arguments(case.net):
        options["dropout"] = 0.0
    return models.create(case.net, draws.CLASSES, **options)


def variables(model: Any) -> Any:
    """Its drawn variables, host arrays."""

    def draw(path: Any, like: Any) -> np.ndarray:
        layer, kind = (entry.key for entry in path[-2:])
        return draws.parameter(layer, kind, like.shape)

    return jax.tree_util.tree_map_with_path(draw, state.abstract_variables(model))


class Forward:
    """The forward pass, compiled: call it for the logits."""

    def __init__(self, case: Case):
        self._model = make(case)
        self._variables = jax.device_put(variables(self._model))
        self._image = jnp.asarray(draws.blob(case.images, *case.size))
        self._apply = jax.jit(lambda variables, image: self._model.apply(variables, image, train=False))

    def __call__(self) -> jax.Array:
        return self._apply(self._variables, self._image)

    def program(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The function and its arguments, to be looked at."""
        return self._apply, (self._variables, self._image)


class PlainStep:
    """A step through the public names; each call learns and gives the summed loss."""

    def __init__(self, case: Case):
        model, fields = make(case), OPTIMIZERS["plain step"]
        optimizer = optax.sgd(fields["rate"], momentum=fields["momentum"])
        params = jax.device_put(variables(model)["params"])
        self._state = params, optimizer.init(params)
        self._batch = (
            jnp.asarray(draws.blob(case.images, *case.size)),
            jnp.asarray(draws.labels(case.images, *case.size)),
        )

        def loss_of(params, image, labels):
            return losses.cross_entropy(model.apply({"params": params}, image, train=True), labels)[0]

        def step(state, image, labels):
            params, momentum = state
            loss, gradients = jax.value_and_grad(loss_of)(params, image, labels)
            updates, momentum = optimizer.update(gradients, momentum, params)
            return (optax.apply_updates(params, updates), momentum), loss

        self._step = jax.jit(step, donate_argnums=0)

    def __call__(self) -> jax.Array:
        self._state, loss = self._step(self._state, *self._batch)
        return jax.block_until_ready((loss, self._state))[0]

    def program(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The function and its arguments, to be looked at."""
        return self._step, (self._state, *self._batch)


class OwnStep:
    """The project's step on one device, as training runs it; each call learns and gives the summed loss.

    A call may be given a batch as the loader makes it; without, the drawn one stays on the device.
    """

    def __init__(self, case: Case, mode: str = "pmap"):
        config = experiment.default()
        fields = OPTIMIZERS["own step"]
        config.optim.update(lr=fields["rate"], momentum=fields["momentum"], weight_decay=fields["decay"])
        config.loss.normalization = "sum"
        model = make(case)
        drawn = variables(model)
        optimizer = optim.make_optimizer(config.optim, config.train.steps, drawn["params"])
        self._mesh, self._mode = parallel.make_mesh(jax.devices()[:1]), mode
        begun = state.create(jax.device_put(drawn["params"]), optimizer, drawn.get("batch_stats"))
        self._state = parallel.put_state(begun, self._mesh)
        self._make = steps.make_train_step(model, optimizer, normalization=config.loss.normalization)
        self._step = parallel.wrap_train_step(self._make, self._mesh, mode)
        self._batch = self.put(
            {
                "image": draws.blob(case.images, *case.size),
                "label": draws.labels(case.images, *case.size),
                "index": np.arange(case.images, dtype=np.int32),
            }
        )

    def put(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch onto the device."""
        return parallel.put_batch(batch, self._mesh, self._mode)

    def __call__(self, batch: dict[str, Any] | None = None) -> jax.Array:
        self._state, report = self._step(self._state, self._batch if batch is None else batch)
        return jax.block_until_ready((report["loss_sum"], self._state))[0]

    def program(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The step for one device and its arguments, to be looked at."""
        return self._make, (self._state, jax.tree.map(lambda x: x[0], self._batch))


WORKS: dict[str, Callable[[Case], Any]] = {"forward": Forward, "plain step": PlainStep, "own step": OwnStep}


def peer_command(case: Case, work: str, runtime: str) -> dict[str, Any]:
    """What a peer is told to build for the same work; `runtime` may have `channels_last` behind it."""
    name, _, order = runtime.partition(" ")
    return {
        "do": "build",
        "runtime": name,
        "net": case.net,
        "size": case.size,
        "images": case.images,
        "options": dict(case.options),
        "channels_last": order == "channels_last",
        "work": work.split()[-1],
        "optimizer": OPTIMIZERS.get(work),
    }
