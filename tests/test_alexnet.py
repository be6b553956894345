"""AlexNet and CaffeNet: published counts, sizes and fields, their order of pooling and normalisation, their groups."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import filled, taps_function
from flax import linen as nn

from fcn_jax import models, state
from fcn_jax.models import alexnet
from fcn_jax.models.layers import Conv
from fcn_jax.ops.grid import IMAGE
from fcn_jax.ops.normalization import local_response_norm
from fcn_jax.ops.pooling import max_pool

pytestmark = pytest.mark.usefixtures("fast_compilation")
every_net = pytest.mark.parametrize("name", ["alexnet", "caffenet"])


def narrow(name: str, **changes):
    return models.create(name, 5, **{"width": 1 / 32, "fc_width": 8} | changes)


def sizes(module, image: int) -> dict[str, int]:
    """The height of every blob."""
    shape = jax.ShapeDtypeStruct((1, image, 227, 3), jnp.float32)
    _, taps = jax.eval_shape(taps_function(module), {"params": state.abstract_params(module)}, shape)
    return {blob: tap.shape[1] for blob, tap in taps.items()}


@every_net
def test_published_parameters(name):
    params = state.abstract_params(models.create(name, 1000))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 60_965_224
    assert {layer: leaves["kernel"].shape for layer, leaves in params.items()} == {
        "conv1": (11, 11, 3, 96),
        "conv2": (5, 5, 48, 256),
        "conv3": (3, 3, 256, 384),
        "conv4": (3, 3, 192, 384),
        "conv5": (3, 3, 192, 256),
        "fc6": (6, 6, 256, 4096),
        "fc7": (1, 1, 4096, 4096),
        "fc8": (1, 1, 4096, 1000),
    }


@every_net
def test_published_sizes(name):
    found = sizes(narrow(name), 227)
    wanted = {"conv1": 55, "norm1": 27 if name == "caffenet" else 55, "pool1": 27, "conv2": 27, "pool2": 13, "pool5": 6}
    assert {blob: found[blob] for blob in wanted} == wanted
    assert (found["fc6"], found["prob"]) == (1, 1)
    assert sizes(narrow(name), 500)["fc8"] == 10  # the example of the FCN paper, section 3.1


def test_published_receptive_field():
    """Table 1 of the FCN paper: 355 pixels and a stride of 32 for the last layer."""
    found = narrow("alexnet").grids()
    fields = {blob: grid.receptive_field(3)[1] - grid.receptive_field(3)[0] + 1 for blob, grid in found.items()}
    assert {blob: fields[blob] for blob in ("conv1", "pool1", "pool2", "pool5", "fc6", "fc8")} == {
        "conv1": 11, "pool1": 19, "pool2": 67, "pool5": 195, "fc6": 355, "fc8": 355,
    }  # fmt: skip
    assert found["fc8"].step == 32


@pytest.mark.parametrize(("name", "order"), [("alexnet", ("norm", "pool")), ("caffenet", ("pool", "norm"))])
def test_the_order_of_pooling_and_normalisation(name, order):
    # Of the size at which ImageNet's pixels come; alpha is large, so that the order is seen.
    module = narrow(name, width=1 / 16, lrn_alpha=0.1)
    image = np.random.RandomState(0).normal(0, 60, (1, 199, 201, 3)).astype(np.float32)
    names = [blob for blob in module.grids() if blob[:4] in ("conv", "pool", "norm")]
    assert names == [
        *("conv1", f"{order[0]}1", f"{order[1]}1", "conv2", f"{order[0]}2", f"{order[1]}2"),
        *("conv3", "conv4", "conv5", "pool5"),
    ]
    taps = taps_function(module)(filled(module), image)[1]
    functions = {"pool": lambda x: max_pool(x, 3, 2), "norm": lambda x: local_response_norm(x, alpha=0.1)}
    for number in (1, 2):
        x = taps[f"conv{number}"]
        for step in order:
            before, x = x, functions[step](x)
            np.testing.assert_allclose(taps[f"{step}{number}"], x, rtol=1e-5, atol=1e-6)
            if step == "norm":
                assert np.abs(x - before).max() > 0.1 * np.abs(before).max()
    np.testing.assert_array_equal(taps["pool5"], max_pool(taps["conv5"], 3, 2))


@pytest.mark.parametrize(("layer", "fed"), [("conv2", "norm1"), ("conv4", "conv3"), ("conv5", "conv4")])
def test_two_groups(layer, fed):
    """The second half of the outputs comes from the second half of the inputs alone."""
    module = narrow("caffenet", precision=jax.lax.Precision.HIGHEST)
    image = np.random.RandomState(0).normal(size=(1, 199, 201, 3)).astype(np.float32)
    taps = taps_function(module)(filled(module), image)[1]
    kernel, bias = (np.asarray(filled(module)["params"][layer][leaf], np.float64) for leaf in ("kernel", "bias"))
    size, _, inputs, outputs = kernel.shape
    x = np.asarray(taps[fed], np.float64)
    assert x.shape[-1] == 2 * inputs
    x = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    for group in range(2):
        own = slice(group * outputs // 2, (group + 1) * outputs // 2)
        share = x[..., group * inputs : (group + 1) * inputs]
        windows = np.lib.stride_tricks.sliding_window_view(share, (size, size), (1, 2))
        wanted = np.maximum(np.einsum("bhwiyx,yxio->bhwo", windows, kernel[..., own]) + bias[own], 0)
        np.testing.assert_allclose(taps[layer][..., own], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_trunk_with_padding_and_suffix():
    """As the FCN release pads it: sizes of the blobs for images of 500 and 375 pixels."""
    made = []

    def conv(name, features, kernel_size, padding, stride, groups):
        made.append(name)
        return Conv(2, kernel_size, padding, stride, groups=groups, name=name)

    class Trunk(nn.Module):
        @nn.compact
        def __call__(self, image):
            blobs = alexnet.trunk(conv, image, IMAGE, first_padding=100, suffix="_x")
            return {name: x for name, (x, _) in blobs.items()}

    taps, variables = jax.eval_shape(
        lambda x: Trunk().init_with_output(jax.random.key(0), x), jnp.zeros((1, 500, 375, 3))
    )
    assert made == [f"{layer}_x" for layer in alexnet.LAYERS]
    assert set(variables["params"]) == set(made)
    assert {blob: taps[f"{blob}_x"].shape[1:3] for blob in ("conv1", "pool1", "norm1", "pool2", "pool5")} == {
        "conv1": (173, 142), "pool1": (86, 71), "norm1": (86, 71), "pool2": (43, 35), "pool5": (21, 17),
    }  # fmt: skip
    assert all(blob.endswith("_x") for blob in taps)
