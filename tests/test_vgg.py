"""The VGG nets: what their paper publishes, and that the dense net is the fully connected one on every crop."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import filled, taps_function
from flax import linen as nn

from fcn_jax import models, state
from fcn_jax.models import vgg
from fcn_jax.models.layers import Conv
from fcn_jax.ops.grid import IMAGE

pytestmark = pytest.mark.usefixtures("fast_compilation")
# Table 1, and 2 of the paper: layers with parameters, and how many these are.
NETS = {
    "vgg11": (11, 132_863_336),
    "vgg11_lrn": (11, 132_863_336),
    "vgg13": (13, 133_047_848),
    "vgg16_1x1": (16, 133_638_952),
    "vgg16": (16, 138_357_544),
    "vgg19": (19, 143_667_240),
}
every_net = pytest.mark.parametrize("name", NETS)


def narrow(name: str, **changes):
    return models.create(name, 5, **{"width": 1 / 32, "fc_width": 8} | changes)


@every_net
def test_published_depths_and_parameter_counts(name):
    params = state.abstract_params(models.create(name, 1000))
    assert (len(params), sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))) == NETS[name]
    assert params["fc6"]["kernel"].shape == (7, 7, 512, 4096)
    fully_connected = sum(math.prod(leaf.shape) for layer in ("fc6", "fc7") for leaf in params[layer].values())
    assert fully_connected == 119_545_856


@every_net
def test_published_sizes(name):
    module = narrow(name)
    variables = {"params": state.abstract_params(module)}
    for image, cells in ((224, 1), (256, 2), (384, 6), (500, 10)):
        shape = jax.ShapeDtypeStruct((1, image, 224, 3), jnp.float32)
        assert jax.eval_shape(module.apply, variables, shape).shape == (1, cells, 1, 5)


def test_published_receptive_fields():
    found = narrow("vgg16").grids()
    for blob, field, stride in (("pool3", 44, 8), ("pool4", 100, 16), ("pool5", 212, 32), ("fc6", 404, 32)):
        first, last = found[blob].receptive_field(7)
        assert (last - first + 1, found[blob].step) == (field, stride)
    assert found["prob"] == found["fc8"] == found["fc6"]


def test_layer_names():
    assert vgg.layer_names("A") == [
        *("conv1_1", "conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2"),
    ]
    assert vgg.layer_names() == vgg.layer_names("D")
    assert [name for name in vgg.layer_names("E") if name not in vgg.layer_names("D")] == [
        *("conv3_4", "conv4_4", "conv5_4"),
    ]


def test_kernels_of_column_c():
    """Its third convolutions are 1×1; all others of any net are 3×3."""
    for name in NETS:
        params = state.abstract_params(narrow(name))
        sizes = {layer: leaves["kernel"].shape[0] for layer, leaves in params.items() if layer.startswith("conv")}
        thirds = {layer for layer in sizes if layer in ("conv3_3", "conv4_3", "conv5_3") and name == "vgg16_1x1"}
        assert sizes == {layer: 1 if layer in thirds else 3 for layer in sizes}


def test_normalisation_of_column_a_lrn():
    """After the first ReLU, with Krizhevsky's numbers: k is 2, and 1e-4 multiplies the sum over five channels."""
    module, plain = (narrow(name, channels={"conv1_1": 8}) for name in ("vgg11_lrn", "vgg11"))
    # Of the size at which ImageNet's pixels come, so that it does something.
    image = np.random.RandomState(0).normal(0, 60, (1, 193, 194, 3)).astype(np.float32)
    taps = taps_function(module)(filled(module), image)[1]
    x = np.pad(np.asarray(taps["conv1_1"], np.float64), ((0, 0), (0, 0), (0, 0), (2, 2)))
    squares = sum(x[..., shift : shift + 8] ** 2 for shift in range(5))
    np.testing.assert_allclose(taps["norm1"], x[..., 2:-2] * (2 + 1e-4 * squares) ** -0.75, rtol=1e-5)
    without = taps_function(plain)(filled(plain), image)[1]
    np.testing.assert_array_equal(taps["conv1_1"], without["conv1_1"])
    assert "norm1" not in without
    assert np.abs(taps["pool1"] - without["pool1"]).max() > 0.4 * np.abs(without["pool1"]).max()


def test_first_padding_and_suffix():
    """As a stream of a net that has two of them."""
    made = {}

    def conv(name, features, kernel_size, padding):
        made[name] = (features, kernel_size, padding)
        return Conv(1, kernel_size, padding, name=name)

    class Stream(nn.Module):
        @nn.compact
        def __call__(self, image):
            blobs = vgg.trunk(conv, image, IMAGE, "B", first_padding=100, suffix="color")
            return {name: x for name, (x, _) in blobs.items()}

    taps, variables = jax.eval_shape(lambda x: Stream().init_with_output(jax.random.key(0), x), jnp.zeros((1, 9, 7, 3)))
    assert set(variables["params"]) == {f"{name}color" for name in vgg.layer_names("B")} == set(made)
    assert set(taps) == set(made) | {f"pool{block}color" for block in range(1, 6)}
    assert taps["conv1_1color"].shape == (1, 207, 205, 1)
    assert made["conv1_1color"] == (64, 3, 100)
    assert made["conv5_2color"] == (512, 3, 1)


def test_every_cell_of_a_larger_image_is_the_net_on_its_window_of_pool5():
    module = narrow("vgg11")
    image = np.random.RandomState(2).normal(size=(1, 256, 225, 3)).astype(np.float32)
    taps = taps_function(module)(filled(module), image)[1]
    assert taps["fc8"].shape == (1, 2, 2, 5)
    kernel, bias = (np.asarray(filled(module)["params"]["fc6"][leaf]) for leaf in ("kernel", "bias"))
    for row in range(2):
        for column in range(2):
            window = np.asarray(taps["pool5"])[0, row : row + 7, column : column + 7]
            wanted = np.maximum(np.einsum("hwi,hwio->o", window, kernel) + bias, 0)
            np.testing.assert_allclose(taps["fc6"][0, row, column], wanted, rtol=1e-4, atol=1e-5)


@every_net
@pytest.mark.parametrize("model", ["fcn8s", "segnet"])
def test_any_of_them_is_the_trunk_of_fcn_and_segnet(name, model):
    """With its own layers, and an output of the image's size, whatever that is."""
    module = models.create(model, 3, trunk=name, width=1 / 32)
    params = state.abstract_params(module)
    depth = NETS[name][0] - 3
    encoder = [layer for layer in params if layer.startswith("conv") and not layer.endswith(("_D", "_bn"))]
    assert len(encoder) == depth
    if model == "segnet":
        assert len([layer for layer in params if layer.endswith("_D")]) == depth
    logits = jax.eval_shape(module.apply, state.abstract_variables(module), jnp.zeros((1, 41, 22, 3)))
    assert logits.shape == (1, 41, 22, 3)


@every_net
@pytest.mark.parametrize("model", ["fcn8s", "segnet"])
def test_a_trunk_of_any_depth_scores_every_pixel(name, model):
    module = models.create(model, 3, trunk=name, width=1 / 32, **({"fc_width": 8} if model == "fcn8s" else {}))
    image = np.random.RandomState(0).normal(size=(1, 41, 22, 3)).astype(np.float32)
    logits = np.asarray(jax.jit(module.apply)(filled(module), image))
    assert logits.shape == (1, 41, 22, 3) and np.all(np.isfinite(logits))
    # From place to place they differ, and so they are not biases alone.
    assert np.all(np.ptp(logits, axis=(1, 2)) > 0)
