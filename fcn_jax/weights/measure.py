"""The net that a file itself tells: widths, classes, scales and forms of up-sampling, measured off its tensors."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from flax.core import FrozenDict

from fcn_jax.errors import WeightFileError
from fcn_jax.weights import layout
from fcn_jax.weights.matching import NetForm
from fcn_jax.weights.names import Named


def arguments(
    named: Named,
    form: NetForm,
    *,
    layers: Collection[str],
    first_layers: Sequence[str],
    class_layers: Mapping[str, Sequence[str]],
    source: str,
) -> dict[str, Any]:
    """Arguments of `models.create` for a net whose parameters have the file's shapes.

    `layers` are those whose widths are free, `first_layers` the ones that see the image, and `class_layers`, by head
    ("" for the only one), those that have an output for each class. Whatever the file does not tell stays at the
    model's default, so that the strict transfer, which follows, can name it.
    """
    blobs = named.blobs
    found: dict[str, Any] = {
        "num_classes": _classes(named, class_layers, form, source),
        # The bias tells the width whatever legacy shape the kernel has. Frozen, because jit keeps nets by their hash.
        "channels": FrozenDict((layer, blobs[f"{layer}.1"].size) for layer in layers if f"{layer}.1" in blobs),
    }
    first = [blobs[f"{layer}.0"] for layer in first_layers if f"{layer}.0" in blobs]
    if first and all(kernel.ndim == 4 for kernel in first):
        found["in_channels"] = sum(kernel.shape[1] for kernel in first)
    if form.upsampling:
        found["upsampling"] = FrozenDict(
            (layer, _upsampling_form(blobs, layer, size))
            for layer, size in form.upsampling.items()
            if f"{layer}.0" in blobs
        )
    if form.scales:
        scales = {pool: _scale(blobs, pool, factor, source) for pool, factor in form.scales.items()}
        found["pool_scales"] = (scales.get("pool4", 1.0), scales.get("pool3", 1.0))
    return found


def resnet_arguments(
    named: Named, class_layers: Mapping[str, Sequence[str]], form: NetForm, source: str
) -> dict[str, Any]:
    """Arguments of `models.create` for an FCN on ResNet; its width is told by the first layer, of 64 as published."""
    scores, auxiliary = class_layers[""]
    found: dict[str, Any] = {
        "num_classes": _classes(named, {"": (scores,)}, form, source),
        "auxiliary": f"{auxiliary}.0" in named.blobs,
    }
    first = named.blobs.get("backbone.conv1.0")
    if first is not None and first.ndim == 4:
        found |= {"width": first.shape[0] / 64, "in_channels": first.shape[1]}
    return found


def _classes(named: Named, class_layers: Mapping[str, Sequence[str]], form: NetForm, source: str) -> Any:
    """The number of classes, by head if there are several: the length of the bias of each head's first layer."""
    classes: dict[str, int] = {}
    for head, (scores, *_) in class_layers.items():
        if f"{scores}.1" not in named.blobs:
            raise WeightFileError(
                f"{source}: no {scores}.1, whose length is the number of classes, so the file alone tells no "
                f"{form.name}; to start one from a classifier's file, create the net and load into it with skip"
            )
        classes[head] = named.blobs[f"{scores}.1"].size
    return classes.get("", FrozenDict(classes))


def _upsampling_form(blobs: Mapping[str, np.ndarray], layer: str, kernel_size: int) -> str:
    blob = blobs[f"{layer}.0"]
    if f"{layer}.1" in blobs:
        return "dense_biased"
    if not layout.is_upsampling(blob, kernel_size) or layout.is_bilinear(blob, kernel_size):
        return "fixed"
    return "dense" if blob.shape[0] == blob.shape[1] else "grouped"


def _scale(blobs: Mapping[str, np.ndarray], pool: str, default: float, source: str) -> float:
    """The factor of a frozen Scale layer: one value a channel in the file, a constant in the net."""
    name = f"scale_{pool}.0"
    if name not in blobs:
        return default
    value = layout.constant(blobs[name])
    if value is None:
        raise WeightFileError(f"{source}: {name} holds different values for its channels; the net has one for all")
    return value
