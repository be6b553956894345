"""The NumPy interpreter of Caffe's nets against Caffe: every stored blob, from the case's own weights."""

import caffe_nets
import numpy as np
import pytest

from fcn_jax import weights

SIFT_FLOW = {"_sem": 33, "_geo": 3}
NETS = {
    "voc-fcn32s": caffe_nets.fcn(32),
    "voc-fcn16s": caffe_nets.fcn(16),
    "voc-fcn8s": caffe_nets.fcn(8),
    "voc-fcn8s-atonce": caffe_nets.fcn(8, at_once=True),
    "voc-fcn-alexnet": caffe_nets.fcn_alexnet(),
    "siftflow-fcn16s": caffe_nets.fcn(16, SIFT_FLOW),
    "pascalcontext-fcn8s": caffe_nets.fcn(8, {"": 60}),
    "vgg16-ilsvrc-v1": caffe_nets.vgg("D"),
    "segnet": caffe_nets.segnet(11, sizes=((6, 7), (11, 13))),  # for the case's image of 88×104
    "deconvnet": caffe_nets.deconvnet(),
    "deeplab-largefov": caffe_nets.deeplab(),
}
TOLERANCE = 1e-5  # of a blob's largest magnitude


@pytest.mark.parametrize("release", NETS)
def test_every_stored_blob(shared, release):
    folder = shared / "parity" / release
    with np.load(folder / "case.npz") as case:
        stored = {name.partition(".")[2]: case[name] for name in case.files if name != "meta"}
    blobs = caffe_nets.run(NETS[release], {"data": stored.pop("data")}, weights.read(folder / "net.caffemodel"))
    assert len(stored) >= 5
    for name, wanted in stored.items():
        assert blobs[name].shape == wanted.shape, name
        difference = np.abs(blobs[name] - wanted).max() / np.abs(wanted).max()
        assert difference <= (0 if name.endswith("_mask") else TOLERANCE), f"{name} differs by {difference:.1e}"
