"""SegNet, SegNet-Basic, DeconvNet and DeepLab-LargeFOV: every blob that Caffe and its forks stored."""

import functools
import json

import jax
import numpy as np
import pytest

from fcn_jax import weights

RELEASES = ("segnet", "segnet-basic", "deconvnet", "deeplab-largefov")
TOLERANCE = 1e-5  # of a blob's largest magnitude; the references agree among themselves to about 1e-6


def read_case(folder) -> dict[str, np.ndarray]:
    with np.load(folder / "case.npz") as case:
        return {name: case[name] if name == "meta" else np.moveaxis(case[name], 1, -1) for name in case.files}


def assert_close(found, wanted: np.ndarray, name: str, tolerance: float = TOLERANCE) -> None:
    assert found.shape == wanted.shape, name
    difference = np.max(np.abs(np.asarray(found, np.float64) - wanted)) / np.max(np.abs(wanted))
    assert difference <= tolerance, f"{name} differs by {difference:.1e} of its largest value"


@pytest.mark.parametrize("release", RELEASES)
def test_every_stored_blob(shared, release):
    folder = shared / "parity" / release
    blobs = read_case(folder)
    del blobs["meta"]
    module, variables = weights.load_model(folder / "net.caffemodel", release, precision=jax.lax.Precision.HIGHEST)
    logits, taps = jax.jit(functools.partial(module.apply, return_taps=True))(variables, blobs.pop("in.data"))
    assert len(blobs) >= 8
    for name, wanted in blobs.items():
        found = taps[name.partition(".")[2]]
        if name.endswith("_mask"):
            np.testing.assert_array_equal(found, wanted, name)
        else:
            assert_close(found, wanted, name)
    assert any(logits is tap or np.array_equal(logits, tap) for tap in taps.values())


def test_batch_statistics_of_segnet(shared):
    """BN in training: the statistics of a batch of three, and the scores by them."""
    folder = shared / "parity" / "segnet-bnlearn"
    blobs = read_case(folder)
    assert json.loads(str(blobs.pop("meta")))["batch"] == 3
    module, variables = weights.load_model(
        folder / "net.caffemodel", "segnet", precision=jax.lax.Precision.HIGHEST, momentum=0.0
    )
    image = blobs.pop("in.data")
    apply = jax.jit(functools.partial(module.apply, train=True, return_taps=True, mutable=["batch_stats"]))
    (_, taps), changed = apply(variables, image)
    # 25 batch norms amplify rounding: Caffe is 1.8e-5 from float64, PyTorch in float32 2.1e-5 (the case's reldiff).
    assert_close(taps["conv1_1_D"], blobs.pop("out.conv1_1_D"), "conv1_1_D", tolerance=1e-4)
    assert len(blobs) == 2 * 25
    for name, wanted in blobs.items():
        layer, _, kind = name.removeprefix("out.").rpartition("-")
        found = np.asarray(changed["batch_stats"][layer][kind], np.float64)
        if kind == "var":  # kept unbiased
            values = taps[layer.removesuffix("_bn")].size / found.size
            found *= (values - 1) / values
        assert_close(found, wanted.ravel(), name)
