"""Strict transfer: every parameter of the net comes from the file and all of the file goes into the net, or one error
lists what is missing, unused, of another shape or in contradiction. Exceptions are named by the caller, never guessed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.errors import WeightFileError
from fcn_jax.weights import layout, names
from fcn_jax.weights.names import Named

_COLLECTIONS = ("params", "batch_stats")  # what files hold of a net


@dataclasses.dataclass(frozen=True)
class NetForm:
    """What a net's variables alone do not tell: which layers up-sample or scatter, and the constants of its scales."""

    name: str
    upsampling: Mapping[str, int] = dataclasses.field(default_factory=dict)  # layer → kernel size
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)  # "pool4" → factor before it is scored
    deconvolutions: tuple[str, ...] = ()  # layers with learned kernels that scatter


@dataclasses.dataclass(frozen=True)
class Report:
    """What a transfer did. The mappings hold numbers of values, by parameter ("fc6.kernel") or blob ("fc8.0")."""

    source: str
    loaded: Mapping[str, int]  # parameters that came from the file
    kept: Mapping[str, int]  # parameters that keep their initialisation, as `skip` said
    unread: Mapping[str, int]  # blobs of the file left unread, as `skip` said
    confirmed: tuple[str, ...]  # blobs that state exactly what the net computes without a parameter

    @property
    def num_loaded(self) -> int:
        return sum(self.loaded.values())

    @property
    def num_kept(self) -> int:
        return sum(self.kept.values())

    def __str__(self) -> str:
        text = f"{self.num_loaded:,} of {self.num_loaded + self.num_kept:,} parameters from {self.source}"
        if self.kept:
            text += f"; {', '.join(_layers(self.kept))} start anew"
        if self.unread:
            text += f"; {', '.join(_layers(self.unread))} of the file not used"
        return text


def match(named: Named, variables: Any, form: NetForm, skip: str | Sequence[str], source: str) -> tuple[Any, Report]:
    """Variables of the same structure with the blobs in place of their leaves, and the report.

    Leaves need a shape and a dtype only. Arrays come back as jax arrays of the leaf's dtype; skipped leaves stay.
    """
    named.check_origin(source)
    if "params" not in variables:
        raise ValueError("variables hold no 'params': give the whole of what the net's init returned")
    blobs = named.blobs
    leaves = {path: leaf for path, leaf in _leaves(variables) if path[0] in _COLLECTIONS}
    targets = {names.blob_name(*path[1:]): path for path in leaves}
    constants = {f"{layer}.0" for layer in form.upsampling} | {f"scale_{pool}.0" for pool in form.scales}
    layers = {names.layer_of(name) for name in [*targets, *constants, *blobs]}
    skipped = _skipped_layers((skip,) if isinstance(skip, str) else skip, layers, source)

    faults = _Faults()
    arrays: dict[tuple[str, ...], jax.Array] = {}
    for name in sorted(targets):
        path, leaf = targets[name], leaves[targets[name]]
        if path[1] in skipped:
            continue
        if name not in blobs:
            faults.missing.append(f"{name} ({layout.describe(leaf.shape)})")
            continue
        array = _convert(blobs[name], path[1:], leaf.shape, form)
        if array is None:
            faults.add_misshapen(named.shown(name), blobs[name].shape, leaf.shape)
        else:
            # A copy of its own, so that the bytes of the whole file do not stay in memory behind it.
            arrays[path] = jnp.asarray(np.array(array, leaf.dtype, order="C"))

    read = {name: blob for name, blob in blobs.items() if names.layer_of(name) not in skipped}
    faults.unused += [
        f"{named.file_names.get(name, name)} ({layout.describe(blob.shape)})"
        for name, blob in read.items()
        if name not in targets and name not in constants
    ]
    _check_upsampling({name: blob for name, blob in read.items() if name not in targets}, form, faults)
    _check_scales(read, leaves, form, skipped, faults, named.origin)
    faults.raise_if_any(source, form.name)

    report = Report(
        source=source,
        loaded={".".join(path[1:]): layout.size(leaf.shape) for path, leaf in leaves.items() if path in arrays},
        kept={".".join(path[1:]): layout.size(leaf.shape) for path, leaf in leaves.items() if path not in arrays},
        unread={name: blob.size for name, blob in blobs.items() if name not in read and name not in targets},
        confirmed=tuple(name for name in read if name in constants and name not in targets),
    )
    loaded = jax.tree_util.tree_map_with_path(lambda path, leaf: arrays.get(_keys(path), leaf), variables)
    return loaded, report


@dataclasses.dataclass
class _Faults:
    missing: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)
    misshapen: list[str] = dataclasses.field(default_factory=list)
    contradicting: list[str] = dataclasses.field(default_factory=list)

    def add_misshapen(self, name: str, file: Sequence[int], net: Sequence[int]) -> None:
        self.misshapen.append(f"{name} (file {layout.describe(file)}, net {layout.describe(net)})")

    def raise_if_any(self, source: str, net: str) -> None:
        lists = (
            ("missing in the file:", self.missing),
            ("in the file only:", self.unused),
            ("of another shape:", self.misshapen),
            ("contradicting the net:", self.contradicting),
        )
        found = "; ".join(f"{title} {', '.join(entries)}" for title, entries in lists if entries)
        if found:
            remedy = "layers named in skip start anew, or stay unread"
            raise WeightFileError(f"{source} does not fit {net}: {found}; {remedy}")


def _convert(blob: np.ndarray, path: tuple[str, ...], shape: tuple[int, ...], form: NetForm) -> np.ndarray | None:
    layer, leaf = path
    if leaf != "kernel":
        return layout.vector(blob, shape)
    if layer in form.upsampling:
        return layout.transposed_convolution(blob, shape)
    if layer in form.deconvolutions:
        return layout.deconvolution(blob, shape)
    return layout.convolution(blob, shape)


def _check_upsampling(blobs: Mapping[str, np.ndarray], form: NetForm, faults: _Faults) -> None:
    """A fixed up-sampling layer takes nothing from a file, but a file that states another kernel is another net's."""
    for layer, kernel_size in form.upsampling.items():
        name = f"{layer}.0"
        if name not in blobs:
            continue
        blob = blobs[name]
        if not layout.is_upsampling(blob, kernel_size):
            faults.add_misshapen(name, blob.shape, (*blob.shape[:2], kernel_size, kernel_size))
        elif not layout.is_bilinear(blob, kernel_size):
            choice = "grouped" if blob.shape[1] < blob.shape[0] else "dense"
            faults.contradicting.append(
                f"{name} is not the bilinear kernel that the net has fixed (with upsampling={choice!r} it is a "
                "parameter and can be loaded)"
            )


def _check_scales(
    blobs: Mapping[str, np.ndarray],
    leaves: Mapping[tuple[str, ...], Any],
    form: NetForm,
    skipped: set[str],
    faults: _Faults,
    origin: names.Origin,
) -> None:
    """Scores trained on scaled features are wrong on unscaled ones: the file's factors must be the net's.

    Files of an origin that has them in its code alone cannot tell: the name of the model does.
    """
    for pool, factor in form.scales.items():
        name, score = f"scale_{pool}.0", f"score_{pool}"
        if name in blobs:
            scored = leaves.get(("params", score, "kernel"))
            channels = blobs[name].size if scored is None else scored.shape[2]
            if layout.vector(blobs[name], (channels,)) is None:
                faults.add_misshapen(name, blobs[name].shape, (channels,))
                continue
            value = layout.constant(blobs[name])
            stated = "different values" if value is None else f"{value:g}"
        elif f"{score}.0" in blobs and f"scale_{pool}" not in skipped and not origin.scales_in_code:
            value, stated = 1.0, "none"
        else:
            continue
        if value is None or np.float32(value) != np.float32(factor):
            faults.contradicting.append(f"{name} ({stated} in the file, the net has pool_scales {factor:g} for {pool})")


def _skipped_layers(patterns: Sequence[str], layers: set[str], source: str) -> set[str]:
    for pattern in patterns:
        if not any(names.matches(layer, pattern) for layer in layers):
            known = ", ".join(sorted(layers))
            raise WeightFileError(f"{source}: skip names {pattern!r}, no layer of file or net; they are {known}")
    return {layer for layer in layers if any(names.matches(layer, pattern) for pattern in patterns)}


def _leaves(variables: Any) -> list[tuple[tuple[str, ...], Any]]:
    return [(_keys(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(variables)]


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(str(entry.key) for entry in path)


def _layers(arrays: Mapping[str, int]) -> list[str]:
    return list(dict.fromkeys(names.layer_of(name) for name in arrays))
