"""The ImageNet classifiers: VGG-16 on its own crop, fully connected in Caffe, dense here."""

import functools

import jax
import numpy as np

from fcn_jax import weights

TOLERANCE = 1e-5  # of a blob's largest magnitude; the references agree among themselves to about 1e-6


def test_the_dense_vgg16_is_caffes_fully_connected_one(shared):
    """From the V1 file itself, whose inner products become convolutions; pool5 is a map, the rest are single cells."""
    folder = shared / "parity" / "vgg16-ilsvrc-v1"
    with np.load(folder / "case.npz") as archive:
        blobs = {name: np.moveaxis(archive[name], 1, -1) for name in archive.files if name != "meta"}
    module, variables = weights.load_model(
        folder / "net.caffemodel", "vgg16-ilsvrc", precision=jax.lax.Precision.HIGHEST
    )
    apply = jax.jit(functools.partial(module.apply, return_taps=True))
    scores, taps = apply(variables, blobs.pop("in.data"))
    assert scores.shape == (1, 1, 1, 50)
    assert blobs.keys() == {"mid.pool5", "mid.fc6", "mid.fc7", "mid.fc8", "out.prob"}
    for name, wanted in blobs.items():
        found = np.asarray(taps[name.partition(".")[2]], np.float64)
        found = found if name == "mid.pool5" else found[:, 0, 0]
        assert found.shape == wanted.shape, name
        difference = np.max(np.abs(found - wanted)) / np.max(np.abs(wanted))
        assert difference <= TOLERANCE, f"{name} differs by {difference:.1e} of its largest value"
