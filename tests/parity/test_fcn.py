"""The nets of the FCN release: every blob that Caffe stored, and weights of classifiers that start an FCN."""

import jax
import numpy as np
import pytest

from fcn_jax import models, weights
from fcn_jax.labels import by_head
from fcn_jax.ops import surroundings

RELEASES = (
    *("voc-fcn32s", "voc-fcn16s", "voc-fcn8s", "voc-fcn8s-atonce", "voc-fcn-alexnet"),
    *("nyud-fcn32s-color", "nyud-fcn32s-color-d", "nyud-fcn32s-color-hha"),
    *("siftflow-fcn16s", "pascalcontext-fcn8s"),
)
TOLERANCE = 1e-5  # of a blob's largest magnitude; the references agree among themselves to about 1e-6


def nhwc(blob: np.ndarray) -> np.ndarray:
    return np.moveaxis(blob, 1, -1)


def assert_close(found: jax.Array | np.ndarray, wanted: np.ndarray, name: str) -> None:
    assert found.shape == wanted.shape, name
    difference = np.max(np.abs(np.asarray(found, np.float64) - wanted)) / np.max(np.abs(wanted))
    assert difference <= TOLERANCE, f"{name} differs by {difference:.1e} of its largest value"


def run(path, model: str, image: np.ndarray) -> dict[str, jax.Array]:
    """All blobs of the net that a file tells, for an input `[b h w c]`."""
    module, variables = weights.load_model(path, model, precision=jax.lax.Precision.HIGHEST)
    apply = jax.jit(lambda variables, image: module.apply(variables, image, return_taps=True))
    logits, taps = apply(variables, image)
    for head, scores in by_head(logits).items():
        np.testing.assert_array_equal(scores, taps[f"score_{head}" if head else "score"])
    return taps


# The nets that have most layers of all kinds; the others are left to the full tier.
QUICK = ("voc-fcn8s", "nyud-fcn32s-color-d", "siftflow-fcn16s", "voc-fcn-alexnet")


@pytest.mark.parametrize(
    "release", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RELEASES]
)
def test_every_stored_blob(shared, release):
    folder = shared / "parity" / release
    with np.load(folder / "case.npz") as case:
        blobs = {name: case[name] for name in case.files if name != "meta"}
    inputs = [nhwc(blobs.pop(name)) for name in list(blobs) if name.startswith("in.")]
    taps = run(folder / "net.caffemodel", release, np.concatenate(inputs, axis=-1))
    assert {name.partition(".")[0] for name in blobs} == {"out", "mid"} and len(blobs) >= 7
    for name, wanted in blobs.items():
        assert_close(taps[name.partition(".")[2]], nhwc(wanted), name)


def test_padding_that_is_left_out_changes_no_blob(shared, monkeypatch):
    """At this width the whole map is computed; wider nets, and this one here, only what the image reaches."""
    monkeypatch.setattr(surroundings, "_ENOUGH", 0)
    test_every_stored_blob(shared, "voc-fcn8s")


def test_real_imagenet_weights_start_an_fcn8s(shared):
    path = shared / "data" / "VGG_ILSVRC_16_conv_layers.caffemodel"
    module = models.create("fcn8s", 11, fc_width=8)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(lambda image: module.init(jax.random.key(0), image), image)
    blobs = weights.read(path)
    variables, report = weights.transfer(blobs, shapes, model="fcn8s", skip=("fc*", "score_*"), source=path.name)
    assert report.num_loaded == 14_714_688  # the convolutions of VGG-16 as published
    params = variables["params"]
    np.testing.assert_array_equal(params["conv5_3"]["kernel"][2, 0, 17], blobs["conv5_3.0"][:, 17, 2, 0])
    assert {layer for layer, leaves in params.items() if isinstance(leaves["kernel"], jax.ShapeDtypeStruct)} == {
        "fc6", "fc7", "score_fr", "score_pool3", "score_pool4",
    }  # fmt: skip


def test_fully_connected_layers_of_a_v1_classifier_become_convolutions(shared):
    """A classifier's file starts an FCN; on the classifier's own pool5, fc6 and fc7 give its own activations."""
    folder = shared / "parity" / "vgg16-ilsvrc-v1"
    blobs = weights.read(folder / "net.caffemodel")
    module = models.create("fcn32s", 2, width=1 / 16, fc_width=48)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(lambda image: module.init(jax.random.key(0), image), image)
    params = weights.transfer(blobs, shapes, model="fcn32s", skip=("fc8", "score_fr"))[0]["params"]
    with np.load(folder / "case.npz") as case:
        pool5, fc6, fc7 = nhwc(case["mid.pool5"]), case["mid.fc6"], case["mid.fc7"]
    kernel, bias = np.asarray(params["fc6"]["kernel"], np.float64), np.asarray(params["fc6"]["bias"])
    assert_close(np.maximum(np.einsum("bhwi,hwio->bo", pool5, kernel) + bias[None], 0), fc6, "fc6")
    kernel, bias = np.asarray(params["fc7"]["kernel"], np.float64), np.asarray(params["fc7"]["bias"])
    assert_close(np.maximum(fc6 @ kernel[0, 0] + bias[None], 0), fc7, "fc7")
