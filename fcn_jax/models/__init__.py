"""The networks, one paper a page; `create` makes them by name."""

from functools import partial
from typing import Any

import flax.linen as nn
from flax.core import freeze

from fcn_jax.errors import ConfigError, did_you_mean
from fcn_jax.models.fcn import FCN

MODELS = {
    "fcn32s": partial(FCN, stride=32),
    "fcn16s": partial(FCN, stride=16),
    "fcn8s": partial(FCN, stride=8),
    "fcn8s_atonce": partial(FCN, stride=8, pool_scales=(0.01, 0.0001)),
}


def create(name: str, num_classes: int, **args) -> nn.Module:
    """The net of that name, for `num_classes` classes; `args` are the fields of its module (see `models.fcn.FCN`)."""
    if name not in MODELS:
        raise ConfigError(f"no model named {name!r}; there are {', '.join(MODELS)}{did_you_mean(name, MODELS)}")
    # A net must be hashable, to be a static argument; plain dicts are not.
    hashable: dict[str, Any] = {
        field: freeze(value) if isinstance(value, dict) else value for field, value in args.items()
    }
    return MODELS[name](num_classes, **hashable)
