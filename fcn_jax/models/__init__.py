"""The networks, one paper a page; `create` makes them by name."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
from flax.core import freeze

from fcn_jax.errors import ConfigError, did_you_mean
from fcn_jax.models import segnet, segnet_basic
from fcn_jax.models.classifier import Classifier
from fcn_jax.models.deconvnet import DeconvNet
from fcn_jax.models.deeplab import DeepLab
from fcn_jax.models.fcn import FCN
from fcn_jax.models.fcn_resnet import FCNResNet
from fcn_jax.models.segnet import SegNet
from fcn_jax.models.segnet_basic import SegNetBasic
from fcn_jax.models.trunks import TRUNKS

MODELS = {
    "fcn32s": partial(FCN, stride=32),
    "fcn16s": partial(FCN, stride=16),
    "fcn8s": partial(FCN, stride=8),
    "fcn8s_atonce": partial(FCN, stride=8, pool_scales=(0.01, 0.0001)),
    # The nets of 2015 learn their up-sampling by two, the first with a bias; the last stays bilinear.
    "fcn16s_2015": partial(FCN, stride=16, upsampling=freeze({"upscore2": "dense_biased"})),
    "fcn8s_2015": partial(FCN, stride=8, upsampling=freeze({"upscore2": "dense_biased", "upscore_pool4": "dense"})),
    "fcn_alexnet": partial(FCN, trunk="caffenet", stride=32),
    "fcn_googlenet": partial(FCN, trunk="googlenet", stride=32),
    "segnet": SegNet,
    "bayesian_segnet": partial(SegNet, dropout_after=segnet.BAYESIAN),
    "bayesian_segnet_pascal": partial(SegNet, dropout_after=segnet.EVERY_BLOCK),
    "segnet_basic": SegNetBasic,
    "bayesian_segnet_basic": partial(SegNetBasic, dropout_after=segnet_basic.BAYESIAN),
    **{
        f"segnet_basic_{decoder}": partial(SegNetBasic, decoder=decoder)
        for decoder in segnet_basic.DECODERS
        if decoder != "basic"
    },
    "deconvnet": DeconvNet,
    "deeplab_largefov": DeepLab,
    "deeplab_msc": partial(DeepLab, multi_scale=True),
    "fcn_resnet50": partial(FCNResNet, depth=50),
    "fcn_resnet101": partial(FCNResNet, depth=101),
    **{name: partial(Classifier, trunk=name) for name in TRUNKS},
}


# Those that give a score to every pixel; the others classify.
SEGMENTATION = tuple(name for name in MODELS if name not in TRUNKS)


def arguments(name: str) -> frozenset[str]:
    """What the net of that name can be told beside its classes: the fields of its module."""
    made: Any = MODELS[name]
    module: Any = made.func if isinstance(made, partial) else made
    return frozenset(field.name for field in dataclasses.fields(module)) - {"num_classes", "parent", "name"}


def create(name: str, num_classes: int | Mapping[str, int], **args) -> nn.Module:
    """The net of that name, for `num_classes` classes; `args` are the fields of its module (see `models.fcn.FCN`).

    A mapping `num_classes` gives a net with a head for each of its names.
    """
    if name not in MODELS:
        raise ConfigError(f"no model named {name!r}; there are {', '.join(MODELS)}{did_you_mean(name, MODELS)}")
    # A net must be hashable, to be a static argument; plain dicts are not.
    hashable: dict[str, Any] = {
        field: freeze(value) if isinstance(value, dict) else value
        for field, value in {"num_classes": num_classes, **args}.items()
    }
    return MODELS[name](**hashable)
