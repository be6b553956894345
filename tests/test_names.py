"""Files of other programs: what their names mean, and that kernels arrive in Caffe's layout."""

import numpy as np
import pytest

from fcn_jax import weights
from fcn_jax.inputs import FCN_INPUT, IMAGENET_INPUT, SEGNET_INPUT, VGG_INPUT
from fcn_jax.weights.names import CAFFE, name_blobs

# Columns A, B, D and E of the VGG paper: places of the convolutions among torchvision's `features`.
TORCHVISION = {
    "vgg11": (0, 3, 6, 8, 11, 13, 16, 18),
    "vgg13": (0, 2, 5, 7, 10, 12, 15, 17, 20, 22),
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "vgg19": (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
}
DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2,) * 5, "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


def places(net: str) -> list[str]:
    return [f"conv{block}_{layer}" for block, depth in enumerate(DEPTHS[net], 1) for layer in range(1, depth + 1)]


def arrays(names, shape=(2, 1, 3, 3)) -> dict[str, np.ndarray]:
    """An array for each name, of a value that tells which."""
    return {name: np.full(shape, place, np.float32) for place, name in enumerate(names)}


def leaves(layers) -> list[str]:
    return [f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]


@pytest.mark.parametrize("net", TORCHVISION)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torchvision(net, prefix):
    layers = [f"features.{index}" for index in TORCHVISION[net]] + ["classifier.0", "classifier.3", "classifier.6"]
    blobs = arrays(prefix + name for name in leaves(layers))
    named = name_blobs(blobs)
    wanted = [f"{layer}.{index}" for layer in (*places(net), "fc6", "fc7", "fc8") for index in (0, 1)]
    assert list(named.blobs) == wanted
    assert [int(blob.flat[0]) for blob in named.blobs.values()] == list(range(len(wanted)))
    assert named.origin.input_spec == IMAGENET_INPUT
    assert named.shown("fc6.0") == f"fc6.0 = {prefix}classifier.0.weight"


def test_timm():
    layers = [f"features.{index}" for index in TORCHVISION["vgg16"]] + ["pre_logits.fc1", "pre_logits.fc2", "head.fc"]
    named = name_blobs(arrays(leaves(layers)))
    assert list(named.blobs)[-6::2] == ["fc6.0", "fc7.0", "fc8.0"]
    assert named.origin.input_spec == IMAGENET_INPUT


def test_nets_with_batch_norm_are_not_taken_for_those_without():
    """vgg16_bn: another net; its names stay what they are, so that the transfer refuses them by name."""
    layers = [f"features.{index}" for index in (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)]
    named = name_blobs(arrays(leaves(layers)))
    assert list(named.blobs) == leaves(layers) and named.origin is CAFFE


def test_names_that_an_origin_does_not_explain_stay():
    names = [*leaves(f"features.{index}" for index in TORCHVISION["vgg11"]), "extra.weight", "features.0.scale"]
    assert set(name_blobs(arrays(names)).blobs) >= {"extra.weight", "features.0.scale", "conv1_1.0"}


def test_segnet_basic_as_it_was_published():
    """The prototxts of SegNet-Tutorial's Example_Models call the classifier so."""
    named = name_blobs(arrays(["conv1.0", "conv1.1", "dense_softmax_inner_prod.0", "dense_softmax_inner_prod.1"]))
    assert {"conv_classifier.0", "conv_classifier.1"} < set(named.blobs)


def test_torchfcn():
    named = name_blobs(arrays(["conv1_1.weight", "conv1_1.bias", "score_fr.weight", "upscore.weight"]))
    assert list(named.blobs) == ["conv1_1.0", "conv1_1.1", "score_fr.0", "upscore.0"]
    # Whoever trained under Caffe's names; the release, where it is known, says what the net sees.
    assert named.origin.input_spec is None
    assert weights.expected_input(named.blobs) == FCN_INPUT
    assert weights.expected_input(named.blobs, "segnet") == SEGNET_INPUT


KERAS_NAMES = {
    "Keras 1": ("{0}/{0}_W_1:0", "{0}/{0}_b_1:0"),
    "Keras 2": ("{0}/{0}/kernel:0", "{0}/{0}/bias:0"),
    "Keras 3, legacy": ("{0}/{0}/kernel", "{0}/{0}/bias"),
}


@pytest.mark.parametrize("generation", KERAS_NAMES)
def test_keras(generation):
    keras = [place.replace("conv", "block").replace("_", "_conv") for place in places("vgg16")]
    names = [name.format(layer) for layer in (*keras, "fc2", "predictions") for name in KERAS_NAMES[generation]]
    kernel = np.random.default_rng(0).standard_normal((3, 3, 2, 5)).astype(np.float32)
    named = name_blobs(dict.fromkeys(names, kernel))
    wanted = [f"{layer}.{index}" for layer in (*places("vgg16"), "fc7", "fc8") for index in (0, 1)]
    assert list(named.blobs) == wanted
    np.testing.assert_array_equal(named.blobs["conv3_2.0"], kernel.transpose(3, 2, 0, 1))
    assert named.origin.input_spec == VGG_INPUT


def test_keras_3_counts_its_layers():
    counted = ["conv2d", *(f"conv2d_{number}" for number in range(1, 13))]
    names = [f"layers/{layer}/vars/{index}" for layer in sorted(counted) for index in (0, 1)]
    names += [f"layers/{layer}/vars/{index}" for layer in ("dense", "dense_1", "dense_2") for index in (0, 1)]
    names += ["optimizer/vars/0"]
    named = name_blobs(arrays(names))
    by_file = {named.file_names[name]: name for name in named.blobs}
    assert by_file["layers/conv2d_2/vars/0"] == "conv2_1.0"
    assert by_file["layers/conv2d_12/vars/1"] == "conv5_3.1"
    assert by_file["layers/dense_1/vars/1"] == "fc7.1"
    assert "optimizer/vars/0" not in named.blobs


def test_flattening_channels_last():
    """Row (y, x, c) of Keras' fc1 is tap (y, x) of channel c: a product over the flattened map says the same."""
    rng = np.random.default_rng(0)
    channels, outputs = 3, 4
    kernel = rng.standard_normal((7 * 7 * channels, outputs))
    names = {f"{layer}_W": np.zeros((3, 3, 1, channels)) for layer in places("vgg16")}
    names |= {f"{layer}_b": np.zeros(channels) for layer in places("vgg16")}
    named = name_blobs(names | {"fc6_W": kernel, "fc6_b": np.zeros(outputs), "fc7_W": kernel[:4], "fc7_b": np.zeros(4)})
    pool5 = rng.standard_normal((7, 7, channels))
    np.testing.assert_allclose(
        np.einsum("yxc,ocyx->o", pool5, named.blobs["fc6.0"]), pool5.reshape(-1) @ kernel, rtol=1e-12
    )
    np.testing.assert_array_equal(named.blobs["fc7.0"][:, :, 0, 0], kernel[:4].T)
    spec = named.origin.input_spec
    assert spec is not None and (spec.order, spec.mean) == ("RGB", (123.68, 116.779, 103.939))


def test_the_nets_of_2015():
    names = [
        "score-fr.0",
        "score-fr.1",
        "score2.0",
        "score2.1",
        "score-pool4.0",
        "score4.0",
        "score-pool3.0",
        "upsample.0",
    ]
    wanted = ["score_fr.0", "score_fr.1", "upscore2.0", "upscore2.1", "score_pool4.0", "upscore_pool4.0"]
    assert list(name_blobs(arrays(names)).blobs) == [*wanted, "score_pool3.0", "upscore8.0"]


def test_caffe():
    blobs = arrays(["inception_3a/1x1.0", "conv1_1_bgrd.0", "conv1_2.1"])
    named = name_blobs(blobs)
    assert list(named.blobs) == ["inception_3a_1x1.0", "conv1_1.0", "conv1_2.1"]
    assert named.origin is CAFFE and named.file_names["conv1_1.0"] == "conv1_1_bgrd.0"


def test_caffes_hdf5():
    assert list(name_blobs(arrays(["data/conv1_1/0", "data/conv1_1/1"])).blobs) == ["conv1_1.0", "conv1_1.1"]


@pytest.mark.parametrize("names", [("score_fr.0", "score-fr.0"), ("score-fr.0", "score_fr.0")])
def test_two_arrays_for_one_place(names):
    assert list(name_blobs(arrays(names)).blobs) == ["score_fr.0", f"{names[1]} (again)"]
