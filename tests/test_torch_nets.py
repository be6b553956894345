"""Checkpoints laid out as torchvision's and torchfcn's, saved by torch: they load without it and give its logits."""

from pathlib import Path

import jax
import numpy as np
import pytest

from fcn_jax import weights
from fcn_jax.inputs import FCN_INPUT, IMAGENET_INPUT

FOLDER = Path(__file__).parent / "golden" / "torch_nets"  # made by tools/golden_torch_nets.py
SIZES = {"vgg16": (224, 224), "fcn8s": (19, 26), "fcn_resnet50": (33, 26)}


def image(height: int, width: int) -> np.ndarray:
    places = np.arange(height * width * 3).reshape(1, height, width, 3)
    return (((places * 7919) % 257 - 128) / 64).astype(np.float32)


@pytest.mark.parametrize("model", SIZES)
def test_logits_are_those_of_torch(model):
    net = weights.load_net(FOLDER / f"{model}.pth", model)
    logits = jax.jit(net.module.apply)(net.variables, image(*SIZES[model]))
    wanted = np.load(FOLDER / f"{model}.npz")["logits"]
    found = np.moveaxis(np.asarray(logits), -1, 1).reshape(wanted.shape)
    assert np.max(np.abs(found - wanted)) <= 1e-5 * np.max(np.abs(wanted))
    assert net.input_spec == (FCN_INPUT if model == "fcn8s" else IMAGENET_INPUT)


def test_the_files_tell_their_nets():
    assert weights.load_net(FOLDER / "vgg16.pth", "vgg16").module.num_classes == 5
    fcn = weights.load_net(FOLDER / "fcn8s.pth", "fcn8s").module
    assert (fcn.num_classes, fcn.padding, set(fcn.upsampling.values())) == (4, "caffe", {"dense"})
    resnet = weights.load_net(FOLDER / "fcn_resnet50.pth", "fcn_resnet50").module
    assert (resnet.width, resnet.auxiliary) == (1 / 64, True)


def test_nothing_of_a_file_is_left_out():
    blobs = weights.read(FOLDER / "fcn_resnet50.pth")
    counted = [name for name in blobs if not name.endswith("num_batches_tracked")]
    assert len(counted) < len(blobs)
    report = weights.load_net(FOLDER / "fcn_resnet50.pth", "fcn_resnet50").report
    assert report.num_loaded == sum(blobs[name].size for name in counted) and not report.unread
