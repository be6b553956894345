"""Weight files into nets.

    read(path)                                  a file's arrays, by name, in its own layout
    load(path, variables, model=name, skip=())  into the variables of a net, strictly
    transfer(blobs, variables, model=name, …)   the same for arrays at hand, with a report of what came from where
    load_model(path, model)                     the net that the file itself tells, and its variables
    RELEASES                                    what the published files are

Only this file knows the nets: the readers know their formats, `matching` compares names and shapes.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax import models
from fcn_jax.errors import ConfigError
from fcn_jax.weights import caffemodel, matching, measure
from fcn_jax.weights.formats import format_of
from fcn_jax.weights.matching import NetForm, Report
from fcn_jax.weights.releases import RELEASES, Release

__all__ = ["RELEASES", "Release", "Report", "load", "load_model", "read", "transfer"]

READERS = {"caffemodel": caffemodel.read}


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of a weight file by name, in the file's order and layout; its format is told by its content.

    Raises WeightFileError, naming file and fault, for files that are broken or of a format that is not read.
    """
    return READERS[format_of(path)](path)


def load(path: str | os.PathLike[str], variables: Any, model: str, skip: str | Sequence[str] = ()) -> Any:
    """The variables of a net with all of its parameters taken from a file; see `transfer`."""
    return transfer(read(path), variables, model=model, skip=skip, source=str(path))[0]


def transfer(
    blobs: Mapping[str, np.ndarray],
    variables: Any,
    model: str,
    skip: str | Sequence[str] = (),
    source: str = "weights",
) -> tuple[Any, Report]:
    """Puts the arrays of a file into `variables` of a net, whose `model` is a model's or a release's name.

    Strict: everything fits, or one WeightFileError lists all that is missing, unused or of another shape. `skip` names
    layers, exactly or as `fc*`: those of the net keep their initialisation, those of the file are not read. `source` is
    what errors call the arrays.
    """
    return matching.match(blobs, variables, net_form(model), skip, source)


def load_model(path: str | os.PathLike[str], model: str, **arguments: Any) -> tuple[nn.Module, Any]:
    """The net that a file holds, and its variables.

    Channels, classes, scales and the form of each up-sampling layer are read off the tensors: exactly bilinear ones
    become fixed, others parameters, dense or grouped as they are stored. `model` is a model's or a release's name;
    `arguments` of `models.create` win over what the file tells. Padding is Caffe's 100 pixels unless given.
    """
    name, own_arguments = _resolve(model)
    form = net_form(model)
    blobs = read(path)
    layers = [layer for layer in _parameter_shapes(models.create(name, 1)) if layer not in form.upsampling]
    measured = measure.fcn_arguments(blobs, layers, form, str(path))
    module = models.create(name, **{"padding": "caffe", **measured, **own_arguments, **arguments})
    form = NetForm(form.name, form.upsampling, _pool_scales(module))
    variables, _ = matching.match(blobs, {"params": _parameter_shapes(module)}, form, (), str(path))
    return module, variables


def _resolve(model: str) -> tuple[str, Mapping[str, Any]]:
    release = RELEASES.get(model)
    if release is not None:
        return release.model, release.arguments
    if model not in models.MODELS:
        known = ", ".join([*models.MODELS, *RELEASES])
        raise ConfigError(f"{model!r} is neither a model nor a release; they are {known}")
    return model, {}


@functools.cache
def net_form(model: str) -> NetForm:
    """What the net of a model's or release's name does without parameters, asked from the net itself."""
    name, arguments = _resolve(model)
    # In the dense form every up-sampling layer has a kernel, and they alone have no bias.
    parameters = _parameter_shapes(models.create(name, 1, upsampling="dense"))
    upsampling = {layer: leaves["kernel"].shape[0] for layer, leaves in parameters.items() if "bias" not in leaves}
    return NetForm(model, upsampling, _pool_scales(models.create(name, 1, **arguments)))


def _pool_scales(module: Any) -> dict[str, float]:
    skips = {32: (), 16: ("pool4",), 8: ("pool4", "pool3")}[module.stride]
    return dict(zip(skips, module.pool_scales, strict=False))


def _parameter_shapes(module: nn.Module) -> Any:
    image = jax.ShapeDtypeStruct((1, 1, 1, getattr(module, "in_channels", 3)), jnp.float32)
    return jax.eval_shape(lambda image: module.init(jax.random.key(0), image), image)["params"]
