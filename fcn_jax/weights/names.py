"""The only place where names change on their way from a file into a net.

Nets name their layers as the Caffe releases do, so a caffemodel needs next to no table: blob 0 of a layer is its kernel
and blob 1 its bias. That form, "conv1_1.0", is what all other files are brought to: each origin has a rule that
recognises its files by their names, and says how they lay out kernels and what their nets expect to see.

Sources: torchvision/models/vgg.py, timm/models/vgg.py, keras/applications/vgg16.py, wkentaro/pytorch-fcn, and the
prototxts of the FCN release.
"""

import dataclasses
import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from fcn_jax.errors import WeightFileError
from fcn_jax.inputs import IMAGENET_INPUT, VGG_INPUT, InputSpec

Renamed = dict[str, tuple[str, str]]  # the file's name → layer and leaf

# The BN layers of Caffe's forks have no running statistics; where they exist they follow scale and shift.
_INDEX = {"kernel": 0, "bias": 1, "scale": 0, "mean": 2, "var": 3}

# A batch norm's weight is its scale, which has the index of a kernel.
_TORCH_LEAVES = {"weight": "kernel", "bias": "bias", "running_mean": "mean", "running_var": "var"}
# What training leaves beside the parameters, of no use to a net in another framework.
_OF_TRAINING = re.compile(r".+\.num_batches_tracked|optimizer/.+")

# Layers of the releases, and of the FCN-8s of 2015, that bear other names than in their kin.
_CAFFE_LAYERS = {
    "conv1_1_bgrd": "conv1_1",
    "score-fr": "score_fr",
    "score59": "score_fr",
    "score2": "upscore2",
    "score-pool4": "score_pool4",
    "score4": "upscore_pool4",
    "upsample-fused-16": "upscore_pool4",
    "score-pool3": "score_pool3",
    "upsample": "upscore8",
    "dense_softmax_inner_prod": "conv_classifier",  # SegNet-Basic as SegNet-Tutorial trains it
}

# Convolutions in each block of the VGG nets, by how many a net has: columns A, B, C and D, E of the paper.
_VGG_DEPTHS = {8: (1, 1, 2, 2, 2), 10: (2, 2, 2, 2, 2), 13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Whose files these are."""

    name: str
    rename: Callable[[Sequence[str]], Renamed]  # of all names at once; nothing where they are not of this origin
    channels_last: bool = False  # kernels [k k i o], inner products [i o] that flatten channels last
    input_spec: InputSpec | None = None  # None: not told by the names; the release, or the user, says it
    refusal: str = ""  # why no net here can take them
    scales_in_code: bool = False  # what a net multiplies its pools by is no array of the file


@dataclasses.dataclass(frozen=True)
class Named:
    """The arrays of a file in Caffe's layouts under Caffe's names."""

    blobs: Mapping[str, np.ndarray]
    origin: Origin
    file_names: Mapping[str, str]  # "conv1_1.0" → what the file calls it, where that is another name

    def shown(self, name: str) -> str:
        """A blob as errors show it: with the file's own name where that is another."""
        return f"{name} = {self.file_names[name]}" if name in self.file_names else name

    def check_origin(self, source: str) -> None:
        """Raises WeightFileError for arrays of a kind of net that there is none of here."""
        if self.origin.refusal:
            raise WeightFileError(f"{source}: {self.origin.refusal}")


def blob_name(layer: str, leaf: str) -> str:
    """`("conv1_1", "bias")` to `"conv1_1.1"`."""
    return f"{layer}.{_INDEX[leaf]}"


def layer_of(blob: str) -> str:
    """`"conv1_1.1"` to `"conv1_1"`; layers' own names may hold dots."""
    return blob.rpartition(".")[0]


def matches(layer: str, pattern: str) -> bool:
    """Whether a pattern names a layer: exactly, or as a shell's patterns name files, `fc*` and `*_bn`."""
    return layer == pattern or fnmatch.fnmatchcase(layer, pattern)


def name_blobs(blobs: Mapping[str, np.ndarray]) -> Named:
    """The arrays of a file as if Caffe had written it. Names that their origin does not explain stay as they are."""
    for origin in ORIGINS:
        renamed = origin.rename(list(blobs))
        if not renamed:
            continue
        arrays: dict[str, np.ndarray] = {}
        file_names: dict[str, str] = {}
        for name, array in blobs.items():
            if _OF_TRAINING.fullmatch(name):
                continue
            target = blob_name(*renamed[name]) if name in renamed else name
            if target in arrays:
                target = f"{name} (again)"  # two arrays for one place: the second is unexplained, and so an error
            if name in renamed and origin.channels_last:
                array = _channels_first(array, renamed[name][0], blobs, renamed)
            arrays[target] = array
            if target != name:
                file_names[target] = name
        if origin is CAFFE:
            arrays |= _folded_statistics(arrays)
        return Named(arrays, origin, file_names)
    return Named(blobs, CAFFE, {})


def _folded_statistics(blobs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The mean of 0 and variance of 1 that batch norms of Caffe's forks stand for.

    Their files hold scale and shift with the statistics folded in (SegNet's and DeconvNet's, in inference mode). Files
    of a training in progress look the same and have none: there the statistics of the training set are to be computed.
    """
    statistics = {}
    for name, scale in blobs.items():
        layer = layer_of(name)
        shift = blobs.get(f"{layer}.1")
        named = name.endswith(".0") and "bn" in layer and scale.ndim == 4
        if named and shift is not None and scale.shape == shift.shape == (1, scale.size, 1, 1):
            statistics |= {
                f"{layer}.2": np.zeros(scale.size, np.float32),
                f"{layer}.3": np.ones(scale.size, np.float32),
            }
    return statistics


def _channels_first(array: np.ndarray, layer: str, blobs: Mapping[str, np.ndarray], renamed: Renamed) -> np.ndarray:
    """A kernel [k k i o] as [o i k k]; an inner product [i o] over a flattened map as the convolution that it is."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim != 2:
        return array
    inputs, outputs = array.shape
    below = next((blobs[name].shape[-1] for name, target in renamed.items() if target == ("conv5_3", "bias")), inputs)
    size = math.isqrt(inputs // below) if layer == "fc6" and below and inputs % below == 0 else 1
    if size * size * below != inputs:
        size, below = 1, inputs
    return array.reshape(size, size, below if layer == "fc6" else inputs, outputs).transpose(3, 2, 0, 1)


def _caffe(names: Sequence[str]) -> Renamed:
    """`layer.index`, or `data/layer/index` as Caffe's HDF5 files have it."""
    renamed: Renamed = {}
    for name in names:
        match = re.fullmatch(r"data/(.+)/([01])", name) or re.fullmatch(r"(.+)\.([01])", name)
        if match is None:
            return {}
        layer = _CAFFE_LAYERS.get(match[1], match[1])
        # In our tree a slash would divide layer and leaf.
        renamed[name] = layer.replace("/", "_"), ("kernel", "bias")[int(match[2])]
    return renamed


def _torchvision_vgg(names: Sequence[str]) -> Renamed:
    """features.0.weight …, classifier.0, 3 and 6; timm has pre_logits.fc1, fc2 and head.fc in their place."""
    layers = {
        **dict.fromkeys(("classifier.0", "pre_logits.fc1"), "fc6"),
        **dict.fromkeys(("classifier.3", "pre_logits.fc2"), "fc7"),
        **dict.fromkeys(("classifier.6", "head.fc"), "fc8"),
    }
    found = sorted(
        {int(match[1]) for name in names if (match := re.fullmatch(r"features\.(\d+)\.weight", _bare(name)))}
    )
    places = _vgg_places(len(found))
    # A convolution and its ReLU take two places, a pooling one. Nets with batch norm have others, and are not read.
    indices, index = {}, 0
    for place in places:
        index += place.endswith("_1") and place != "conv1_1"
        indices[index] = place
        index += 2
    if not places or found != list(indices):
        return {}
    layers |= {f"features.{index}": place for index, place in indices.items()}
    return _by_layer(names, layers.get)


def _torchvision_vgg_bn(names: Sequence[str]) -> Renamed:
    """features.1.running_mean …: a batch norm behind each convolution."""
    if not any(re.fullmatch(r"features\.\d+\.running_mean", _bare(name)) for name in names):
        return {}
    return _by_layer(names, lambda layer: layer)


def _torch_caffe_names(names: Sequence[str]) -> Renamed:
    """conv1_1.weight: torchfcn and others kept the names of the release."""
    if "conv1_1.weight" not in map(_bare, names):
        return {}
    return _by_layer(names, lambda layer: layer)


def _torchvision_fcn_resnet(names: Sequence[str]) -> Renamed:
    """backbone.layer1.0.conv1.weight, backbone.bn1.running_mean … classifier.4.bias: our layers' own names."""
    if "backbone.conv1.weight" not in map(_bare, names):
        return {}
    return _by_layer(names, lambda layer: layer)


def _torchvision_resnet(names: Sequence[str]) -> Renamed:
    """conv1.weight, layer1.0.conv1.weight … fc.bias: the classifier, whose layers are an FCN's backbone."""
    if not {"conv1.weight", "layer1.0.conv1.weight"} <= set(map(_bare, names)):
        return {}
    return _by_layer(names, lambda layer: f"backbone.{layer}")


def _keras_vgg(names: Sequence[str]) -> Renamed:
    """block1_conv1/…/kernel:0 (Keras 1: …_W_1:0), fc1, fc2, predictions; Keras 3 counts: layers/conv2d_1/vars/0."""
    layers = {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8", "dense": "fc6", "dense_1": "fc7", "dense_2": "fc8"}
    parts = {name: name.split("/") for name in names}
    counted = {part for split in parts.values() for part in split if re.fullmatch(r"conv2d(_\d+)?", part)}
    in_order = sorted(counted, key=lambda part: int(part.partition("_")[2] or 0))
    layers |= dict(zip(in_order, _vgg_places(len(in_order)), strict=False))
    renamed: Renamed = {}
    for name, split in parts.items():
        leaf = _keras_leaf(name)
        for part in split[:-1]:
            block = re.fullmatch(r"block(\d)_conv(\d)", part)
            layer = f"conv{block[1]}_{block[2]}" if block else layers.get(part)
            if layer and leaf:
                renamed[name] = layer, leaf
                break
    return renamed if any(layer == "conv1_1" for layer, _ in renamed.values()) else {}


def _keras_leaf(name: str) -> str | None:
    if re.search(r"(/kernel|_W(_\d+)?|vars/0)(:0)?$", name):
        return "kernel"
    return "bias" if re.search(r"(/bias|_b(_\d+)?|vars/1)(:0)?$", name) else None


def _frossard_vgg(names: Sequence[str]) -> Renamed:
    """conv1_1_W, conv1_1_b … fc8_b: VGG-16 as an .npz, converted for TensorFlow."""
    if "conv1_1_W" not in names:
        return {}
    split = {name: name.rpartition("_") for name in names}
    return {
        name: (layer, {"W": "kernel", "b": "bias"}[leaf]) for name, (layer, _, leaf) in split.items() if leaf in "Wb"
    }


def _vgg_places(count: int) -> list[str]:
    depths = _VGG_DEPTHS.get(count, ())
    return [f"conv{block}_{layer}" for block, depth in enumerate(depths, start=1) for layer in range(1, depth + 1)]


def _bare(name: str) -> str:
    """Without the prefix that torch's DataParallel puts before every name."""
    return name.removeprefix("module.")


def _by_layer(names: Iterable[str], layer_of_net: Callable[[str], str | None]) -> Renamed:
    """Names as torch composes them, `layer.weight` and `layer.bias`, by a rule for the layers."""
    renamed: Renamed = {}
    for name in names:
        layer, _, leaf = _bare(name).rpartition(".")
        target = layer_of_net(layer)
        if target and leaf in _TORCH_LEAVES:
            renamed[name] = target, _TORCH_LEAVES[leaf]
    return renamed


CAFFE = Origin("Caffe", _caffe)
ORIGINS = (
    CAFFE,
    Origin("torchvision (VGG)", _torchvision_vgg, input_spec=IMAGENET_INPUT),
    Origin(
        "torchvision (VGG with batch norm)",
        _torchvision_vgg_bn,
        input_spec=IMAGENET_INPUT,
        refusal="torchvision's VGG with batch norm, which no net here takes; its file of the same VGG without it loads",
    ),
    Origin("PyTorch with the release's names", _torch_caffe_names, scales_in_code=True),
    Origin("torchvision (FCN on ResNet)", _torchvision_fcn_resnet, input_spec=IMAGENET_INPUT),
    Origin("torchvision (ResNet)", _torchvision_resnet, input_spec=IMAGENET_INPUT),
    Origin("Keras (VGG)", _keras_vgg, channels_last=True, input_spec=VGG_INPUT),
    Origin(
        "VGG-16 for TensorFlow (.npz)",
        _frossard_vgg,
        channels_last=True,
        input_spec=InputSpec("RGB", tuple(reversed(VGG_INPUT.mean))),
    ),
)
