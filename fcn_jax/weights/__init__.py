"""Weight files into nets.

    read(path)                                  a file's arrays, by name, in its own layout
    load(path, variables, model=name, skip=())  into the variables of a net, strictly
    transfer(blobs, variables, model=name, …)   the same for arrays at hand, with a report of what came from where
    load_model(path, model)                     the net that the file itself tells, and its variables
    load_net(path, model)                       the same with what it expects to see
    RELEASES                                    what the published files are

Only this file knows the nets: the readers know their formats, `names` the files' names, `matching` compares shapes.
"""

import functools
import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from fcn_jax import models, state
from fcn_jax.errors import ConfigError, WeightFileError, did_you_mean
from fcn_jax.inputs import FCN_INPUT, InputSpec
from fcn_jax.labels import DatasetInfo, Info, by_head, class_counts, only_head, voc_palette
from fcn_jax.weights import matching, measure, names
from fcn_jax.weights.files import Malformed, opened
from fcn_jax.weights.formats import format_of
from fcn_jax.weights.matching import NetForm, Report
from fcn_jax.weights.names import name_blobs
from fcn_jax.weights.releases import RELEASES, Release

__all__ = [
    "RELEASES",
    "Net",
    "Release",
    "Report",
    "expected_input",
    "load",
    "load_model",
    "load_net",
    "read",
    "transfer",
]

# Format → the module whose `parse` reads it, imported on use, and what errors call such a file.
READERS = {
    "caffemodel": ("caffemodel", "caffemodel"),
    "torch": ("torch_checkpoint", "torch checkpoint"),
    "safetensors": ("safetensors_file", "safetensors file"),
    "hdf5": ("hdf5", "HDF5 file"),
    "onnx": ("onnx_model", "ONNX model"),
    "numpy": ("numpy_archive", "file of NumPy arrays"),
}


def read(path: str | os.PathLike[str], max_bytes: int | None = None) -> dict[str, np.ndarray]:
    """All arrays of a weight file by name, in the file's order and layout; its format is told by its content.

    Read are Caffe's .caffemodel, torch checkpoints, safetensors, HDF5 (Keras, Caffe), ONNX models and NumPy's .npz and
    .npy. `max_bytes` bounds what the arrays may take together (8 GiB unless given). Raises WeightFileError, naming file
    and fault, for files that are broken, too large or of a format that is not read.
    """
    with opened(path, max_bytes) as file:
        module, what = READERS[format_of(file)]
        reader = importlib.import_module(f"{__name__}.{module}")
        try:
            return reader.parse(file)
        except Malformed as fault:
            raise WeightFileError(f"{path}: not a whole {what}: {fault}") from None


def load(path: str | os.PathLike[str], variables: Any, model: str | nn.Module, skip: str | Sequence[str] = ()) -> Any:
    """The variables of a net with all of its parameters taken from a file; see `transfer`."""
    return transfer(read(path), variables, model=model, skip=skip, source=str(path))[0]


def transfer(
    blobs: Mapping[str, np.ndarray],
    variables: Any,
    model: str | nn.Module,
    skip: str | Sequence[str] = (),
    source: str = "weights",
    name: str = "",
) -> tuple[Any, Report]:
    """Puts the arrays of a file into `variables` of a net, given as a module or a model's or a release's name.

    Strict: everything fits, or one WeightFileError lists all that is missing, unused or of another shape. `skip` names
    layers, exactly or as `fc*`: those of the net keep their initialisation, those of the file are not read. `source` is
    what errors call the arrays, and `name` what they call a module.
    """
    form = net_form(model) if isinstance(model, str) else _form_of(model, name or type(model).__name__)
    return matching.match(name_blobs(blobs), variables, form, skip, source)


class Net(NamedTuple):
    """A net from a file: the module, its variables, what it expects to see, and what was loaded."""

    module: nn.Module
    variables: Any
    input_spec: InputSpec
    report: Report


def load_model(path: str | os.PathLike[str], model: str, **arguments: Any) -> tuple[nn.Module, Any]:
    """The net that a file holds, and its variables; see `load_net`."""
    net = load_net(path, model, **arguments)
    return net.module, net.variables


def load_net(path: str | os.PathLike[str], model: str, **arguments: Any) -> Net:
    """The net that a file holds, with its variables.

    Channels, classes, scales and the form of each up-sampling layer are read off the tensors: exactly bilinear ones
    become fixed, others parameters, dense or grouped as they are stored. `model` is a model's or a release's name;
    `arguments` of `models.create` win over what the file tells. An FCN's padding is Caffe's 100 pixels unless given.
    """
    release = _release(model)
    blobs = read(path)
    named = name_blobs(blobs)
    named.check_origin(str(path))
    prototype = _prototype(model)
    form = _form_of(prototype, model)
    class_layers = prototype.class_layers()
    if isinstance(prototype, models.FCNResNet):
        measured = measure.resnet_arguments(named, class_layers, form, str(path))
    else:
        measured = measure.arguments(
            named,
            form,
            layers=prototype.layer_names(),
            first_layers=prototype.first_layers(),
            class_layers=class_layers,
            source=str(path),
        )
    if isinstance(prototype, models.FCN):
        measured["padding"] = "caffe"
    module = models.create(release.model, **{**measured, **release.arguments, **arguments})
    variables = state.abstract_variables(module)
    # What only the training used is passed over where it is there.
    skip = [
        pattern for pattern in release.left_out if any(names.matches(names.layer_of(b), pattern) for b in named.blobs)
    ]
    variables, report = matching.match(named, variables, _form_of(module, model), skip, str(path))
    return Net(module, variables, expected_input(blobs, model), report)


def expected_input(blobs: Mapping[str, np.ndarray], model: str = "") -> InputSpec:
    """What a net with these weights expects to see: told by their origin, else by the release, else as the FCN release.

    torchvision's expect RGB scaled by mean and deviation, Caffe's BGR minus a mean; the kernels stay as they are.
    """
    told = told_input(blobs)
    if told is not None:
        return told
    return RELEASES[model].input_spec if model in RELEASES else FCN_INPUT


def told_input(blobs: Mapping[str, np.ndarray]) -> InputSpec | None:
    """What a file's names alone tell of the input its net expects; None where they tell nothing, as Caffe's."""
    return name_blobs(blobs).origin.input_spec


def classes_of(module: nn.Module, model: str) -> Info:
    """What the classes of a net from a file are called: as the release says, else ImageNet's thousand, else numbers."""
    counts = by_head(module.num_classes)  # pyright: ignore[reportAttributeAccessIssue]
    for release in (model, "vgg16-ilsvrc"):
        if release in RELEASES and by_head(class_counts(RELEASES[release].info)) == counts:
            return RELEASES[release].info
    return only_head(
        {
            head: DatasetInfo(head or model, tuple(f"class {label}" for label in range(count)), voc_palette(count))
            for head, count in counts.items()
        }
    )


def with_extra_channels(blobs: Mapping[str, np.ndarray], module: nn.Module) -> dict[str, np.ndarray]:
    """The arrays of a file, the first layer's kernel grown to the net's input: each further channel starts as the mean.

    So the FCN release began its net of colour and depth with a classifier's weights.
    """
    named = name_blobs(blobs)
    grown = dict(named.blobs)
    channels: int = module.in_channels  # pyright: ignore[reportAttributeAccessIssue]
    for name in module.first_layers():  # pyright: ignore[reportAttributeAccessIssue]
        kernel = grown.get(f"{name}.0")
        if kernel is not None and kernel.ndim == 4 and kernel.shape[1] < channels:
            extra = np.repeat(kernel.mean(axis=1, keepdims=True), channels - kernel.shape[1], axis=1)
            grown[f"{name}.0"] = np.concatenate([kernel, extra], axis=1)
    return grown


def default_net(model: str) -> tuple[nn.Module, Any]:
    """The net of a model's or release's name at its published size, and its classes; VOC's 21 where no release says."""
    release = _release(model)
    classes = class_counts(release.info) if release.dataset else 21
    return models.create(release.model, classes, **release.arguments), classes


def net_form(model: str) -> NetForm:
    """What the net of a model's or release's name does without parameters, asked from the net itself."""
    return _form_of(_prototype(model), model)


def _release(model: str) -> Release:
    """The release of that name; a model's name stands for that model with any weights."""
    if model in RELEASES:
        return RELEASES[model]
    if model not in models.MODELS:
        known = ", ".join([*models.MODELS, *RELEASES])
        raise ConfigError(
            f"{model!r} is neither a model nor a release; they are {known}"
            f"{did_you_mean(model, [*models.MODELS, *RELEASES])}"
        )
    return Release(model, {}, FCN_INPUT, "")


@functools.cache
def _prototype(model: str) -> Any:
    """The net of a model's or release's name with one class a head, to be asked and never run."""
    release = _release(model)
    classes = dict.fromkeys(release.heads, 1) if release.heads else 1
    channels = 3 * len(release.arguments.get("streams", ("",)))
    return models.create(release.model, classes, **{**release.arguments, "in_channels": channels})


def _form_of(module: Any, name: str) -> NetForm:
    def asked(method: str, default: Any) -> Any:
        return getattr(module, method)() if hasattr(module, method) else default

    return NetForm(name, asked("upsampling_kernels", {}), asked("pool_factors", {}), asked("deconvolutions", ()))
