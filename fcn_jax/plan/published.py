"""Published counts of multiply-adds, beside which ours are printed: those of the classifiers under the nets, and FCN's.

Classifiers: Sze, Chen, Yang, Emer, "Efficient processing of deep neural networks", Proceedings of the IEEE 2017, table
II; FCN on ResNet: torchvision's `_ops` of `fcn_resnet50` and `fcn_resnet101`.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from fcn_jax import models, state
from fcn_jax.plan import operations


@dataclasses.dataclass(frozen=True)
class Published:
    """Multiply-adds of one image of `size` pixels a side, in convolutions and fully connected layers."""

    name: str
    num_classes: int
    size: int
    multiply_adds: float
    source: str


_SZE = "Sze et al. 2017, table II"
COUNTS = {
    "vgg16": Published("vgg16", 1000, 224, 15.5e9, _SZE),
    "caffenet": Published("caffenet", 1000, 227, 724e6, f"{_SZE} (AlexNet)"),
    "googlenet": Published("googlenet", 1000, 224, 1.5e9, "its paper, CVPR 2015, section 1, rounded"),
    "fcn_resnet50": Published("fcn_resnet50", 21, 520, 152.717e9, "torchvision, with the auxiliary head"),
    "fcn_resnet101": Published("fcn_resnet101", 21, 520, 232.738e9, "torchvision, with the auxiliary head"),
}


def count_for(model: Any, name: str) -> Published | None:
    """The published count that there is for the net of that name, or for the classifier it grew from."""
    trunk = "vgg16" if name.startswith(("segnet", "bayesian_segnet", "deconvnet", "deeplab")) else ""
    trunk = "" if "basic" in name else trunk
    return COUNTS.get(name) or COUNTS.get(getattr(model, "trunk", "") or trunk)


def counted(published: Published) -> float:
    """Our count of the same net and image, in multiply-adds."""
    # An auxiliary head computes in training alone.
    return forward(models.create(published.name, published.num_classes), (published.size, published.size), train=True)


def forward(model: Any, size: tuple[int, int], train: bool = False) -> float:
    """Multiply-adds of convolutions and matrix products on the way from one image of `size` to its coarse scores."""

    def scores(variables, image):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, image, train=train, upsample=False, rngs=rngs, mutable=["batch_stats"])

    image = jax.ShapeDtypeStruct((1, *size, model.in_channels), np.float32)
    done = operations.count(scores, state.abstract_variables(model), image)
    return (done.convolutions + done.products) / 2
