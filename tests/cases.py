"""Every net once, narrow: a row here gives a model all the generic tests, in test_models.py or test_every_net.py."""

import dataclasses
import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax import models, optim, state

CLASSES = 3
NARROW = {"width": 1 / 32, "fc_width": 8}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model's name, its narrow widths, an image that no stride divides, and what else tells it from its kin."""

    name: str
    widths: dict[str, Any] = dataclasses.field(hash=False)
    size: tuple[int, int]
    args: dict[str, Any] = dataclasses.field(hash=False, default_factory=dict)

    @property
    def id(self) -> str:
        return "-".join([self.name, *(str(value) for value in self.args.values())])

    def narrow(self, **changes) -> Any:
        """The net at a width at which it runs in milliseconds."""
        return models.create(self.name, CLASSES, **self.widths | self.args | changes)

    def full(self) -> Any:
        """The published width, for 21 classes: for shapes only."""
        return models.create(self.name, 21, **self.args)

    def image(self, batch: int = 2) -> np.ndarray:
        return np.random.RandomState(0).normal(size=(batch, *self.size, 3)).astype(np.float32)


CASES = (
    Case("fcn32s", NARROW, (13, 6), {"padding": "caffe"}),
    Case("fcn16s", NARROW, (1, 70), {"padding": "same"}),
    Case("fcn8s", NARROW, (21, 1), {"padding": "caffe"}),
    Case("fcn8s", NARROW, (45, 58), {"padding": "same"}),
    Case("fcn16s_2015", NARROW, (40, 23), {"padding": "caffe"}),
    Case("fcn8s_2015", NARROW, (9, 52), {"padding": "caffe"}),
    Case("fcn8s_atonce", NARROW, (39, 41), {"padding": "same"}),
)


def fill(shapes: Any, dtype: Any = np.float32) -> Any:
    """Parameters from a hash of their names by NumPy's frozen generator: nothing depends on JAX's, no layer is zero."""

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = np.random.RandomState(zlib.crc32(name.encode())).normal(size=shape)
        return (values * (np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.1)).astype(dtype)

    leaves, structure = jax.tree.flatten(shapes)
    names = optim.parameter_names(shapes)
    return jax.tree.unflatten(structure, [draw(n, leaf.shape) for n, leaf in zip(names, leaves, strict=True)])


# The nets that are no FCN on VGG-16, in the order of models.MODELS: name, what makes it narrow, and an odd image.
SEGNET = {"width": 1 / 32}
OTHERS = (
    Case("fcn_alexnet", {"width": 1 / 16, "fc_width": 8}, (31, 50)),
    Case("fcn_googlenet", {"width": 1 / 8}, (37, 44)),
    Case("segnet", SEGNET, (37, 50)),
    Case("segnet", SEGNET, (33, 34), {"trunk": "vgg11"}),
    Case("bayesian_segnet", SEGNET, (37, 50), {"classifier": "camvid"}),
    Case("bayesian_segnet_pascal", SEGNET, (34, 33)),
    Case("segnet_basic", {"width": 1 / 8}, (19, 34)),
    Case("bayesian_segnet_basic", {"width": 1 / 8}, (19, 34)),
    *(
        Case(f"segnet_basic_{decoder}", {"width": 1 / 8}, (19, 34))
        for decoder in (
            *("bilinear", "encoder_addition", "single_channel", "fcn", "fcn_no_addition", "fcn_no_dim_reduction"),
            "fcn_no_addition_no_dim_reduction",
        )
    ),
    Case("deconvnet", {"width": 1 / 32, "fc_width": 8}, (37, 50)),
    Case("deeplab_largefov", {"width": 1 / 32, "fc_width": 16}, (37, 50)),
    Case("deeplab_msc", {"width": 1 / 32, "fc_width": 16}, (37, 50)),
    Case("fcn_resnet50", {"width": 1 / 16}, (37, 50)),
    Case("fcn_resnet101", {"width": 1 / 32}, (37, 50)),
)


@functools.cache
def filled(module: Any) -> dict[str, Any]:
    """A net's variables, all of them away from where they start, those of batch norm as it might have met them."""
    shapes = state.abstract_variables(module)
    variables = {"params": fill(shapes["params"])}
    if "batch_stats" in shapes:
        drawn = fill(shapes["batch_stats"])
        variables["batch_stats"] = {
            layer: {"mean": leaves["mean"], "var": np.exp(leaves["var"])} for layer, leaves in drawn.items()
        }
    return jax.tree.map(jnp.asarray, variables)


@functools.cache
def taps_function(module: Any):
    """`(variables, image) -> (logits, taps)`, compiled once for all tests."""
    return jax.jit(functools.partial(module.apply, return_taps=True))
