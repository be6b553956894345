"""The ImageNet classifiers: VGG-16 on its own crop, and CaffeNet's trunk as FCN-AlexNet pads it, as Caffe runs them."""

import functools

import jax
import numpy as np
from flax import linen as nn

from fcn_jax import models, weights
from fcn_jax.models import alexnet
from fcn_jax.models.layers import Conv
from fcn_jax.ops.grid import IMAGE

TOLERANCE = 1e-5  # of a blob's largest magnitude; the references agree among themselves to about 1e-6


def case(folder):
    """The stored blobs, channels last."""
    with np.load(folder / "case.npz") as archive:
        return {name: np.moveaxis(archive[name], 1, -1) for name in archive.files if name != "meta"}


def as_parameters(blobs, sizes: dict[str, int]):
    """Caffe's blobs as the nets hold them; an inner product, once its matrix is folded, is a convolution of `sizes`."""
    params = {}
    for name, blob in blobs.items():
        layer, _, index = name.rpartition(".")
        leaf = ("kernel", "bias")[int(index)]
        if leaf == "bias":
            value = blob.reshape(-1)
        else:
            size = sizes.get(layer, blob.shape[-1])
            outputs = blob.shape[2] if layer in sizes else blob.shape[0]
            value = blob.reshape(outputs, -1, size, size).transpose(2, 3, 1, 0)
        params.setdefault(layer, {})[leaf] = np.ascontiguousarray(value)
    return params


def assert_close(found, wanted: np.ndarray, name: str) -> None:
    assert found.shape == wanted.shape, name
    difference = np.max(np.abs(np.asarray(found, np.float64) - wanted)) / np.max(np.abs(wanted))
    assert difference <= TOLERANCE, f"{name} differs by {difference:.1e} of its largest value"


def test_the_dense_vgg16_is_caffes_fully_connected_one(shared):
    folder = shared / "parity" / "vgg16-ilsvrc-v1"
    blobs = case(folder)
    params = as_parameters(weights.read(folder / "net.caffemodel"), {"fc6": 7, "fc7": 1, "fc8": 1})
    module = models.create("vgg16", 50, width=1 / 16, fc_width=48, precision=jax.lax.Precision.HIGHEST)
    apply = jax.jit(functools.partial(module.apply, return_taps=True))
    scores, taps = apply({"params": params}, blobs.pop("in.data"))
    assert scores.shape == (1, 1, 1, 50)
    assert blobs.keys() == {"mid.pool5", "mid.fc6", "mid.fc7", "mid.fc8", "out.prob"}
    assert_close(taps["pool5"], blobs.pop("mid.pool5"), "pool5")
    for name, wanted in blobs.items():
        assert_close(taps[name.partition(".")[2]][:, 0, 0], wanted, name)


class Trunk(nn.Module):
    """CaffeNet's layers at an eighth of their width, 100 pixels around the image."""

    @nn.compact
    def __call__(self, image):
        def conv(name, features, kernel_size, padding, stride, groups):
            precision = jax.lax.Precision.HIGHEST
            return Conv(features // 8, kernel_size, padding, stride, groups=groups, precision=precision, name=name)

        blobs = alexnet.trunk(conv, image, IMAGE, first_padding=100)
        return {name: x for name, (x, _) in blobs.items()}


def test_the_trunk_of_caffenet(shared):
    folder = shared / "parity" / "voc-fcn-alexnet"
    blobs = case(folder)
    weight = {name: blob for name, blob in weights.read(folder / "net.caffemodel").items() if name.startswith("conv")}
    taps = jax.jit(Trunk().apply)({"params": as_parameters(weight, {})}, blobs["in.data"])
    for name in ("norm1", "norm2", "pool5"):
        assert_close(taps[name], blobs[f"mid.{name}"], name)
