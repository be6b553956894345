"""The net that a file itself tells: widths, classes, scales and forms of up-sampling, measured off its tensors."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax.core import FrozenDict

from fcn_jax.errors import WeightFileError
from fcn_jax.weights import layout
from fcn_jax.weights.matching import NetForm

# The layer whose bias tells the number of classes, and the one whose kernel tells the channels of the input.
_SCORE, _FIRST = "score_fr", "conv1_1"


def fcn_arguments(
    blobs: Mapping[str, np.ndarray], layers: Collection[str], form: NetForm, source: str
) -> dict[str, Any]:
    """Arguments of `models.create` for an FCN whose parameters have the file's shapes.

    `layers` are the net's convolutions. Whatever the file does not tell stays at the model's default, so that the
    strict transfer, which follows, can name it.
    """
    if f"{_SCORE}.1" not in blobs:
        raise WeightFileError(
            f"{source}: no {_SCORE}.1, whose length is the number of classes, so the file alone tells no {form.name}; "
            "to start one from a classifier's file, create the net and load into it with skip"
        )
    arguments: dict[str, Any] = {
        "num_classes": blobs[f"{_SCORE}.1"].size,
        # The bias tells the width whatever legacy shape the kernel has. Frozen, because jit keeps nets by their hash.
        "channels": FrozenDict(
            (layer, blobs[f"{layer}.1"].size)
            for layer in layers
            if not layer.startswith("score_") and f"{layer}.1" in blobs
        ),
        "upsampling": FrozenDict(
            (layer, _upsampling_form(blobs[f"{layer}.0"], size))
            for layer, size in form.upsampling.items()
            if f"{layer}.0" in blobs
        ),
    }
    first = blobs.get(f"{_FIRST}.0")
    if first is not None and first.ndim == 4:
        arguments["in_channels"] = first.shape[1]
    scales = {pool: _scale(blobs, pool, factor, source) for pool, factor in form.scales.items()}
    arguments["pool_scales"] = (scales.get("pool4", 1.0), scales.get("pool3", 1.0))
    return arguments


def _upsampling_form(blob: np.ndarray, kernel_size: int) -> str:
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
