"""The other nets of the FCN release: on AlexNet and GoogLeNet, with two heads, and of two streams."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import NARROW, filled

from fcn_jax import models, optim, state

pytestmark = pytest.mark.usefixtures("fast_compilation")
SIFT_FLOW = {"sem": 33, "geo": 3}
TWO_HEADS = models.create("fcn16s", {"sem": 4, "geo": 3}, **NARROW)
TWO_STREAMS = models.create("fcn32s", 3, streams=("color", "hha"), in_channels=6, **NARROW)
ALEXNET = models.create("fcn_alexnet", 3, width=1 / 24, fc_width=8)
GOOGLENET = models.create("fcn_googlenet", 3, width=1 / 4)
FAMILY = {"two heads": TWO_HEADS, "two streams": TWO_STREAMS, "AlexNet": ALEXNET, "GoogLeNet": GOOGLENET}
# GoogLeNet takes a minute to compile.
every_net = pytest.mark.parametrize(
    "net", [pytest.param(net, id=name, marks=[pytest.mark.slow] * (net is GOOGLENET)) for name, net in FAMILY.items()]
)


def image(module, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, height, width, module.in_channels)).astype(np.float32)


def run(module, params, blob, **options) -> Any:
    return module.apply({"params": params}, blob, **options)


def shapes(module, height: int, width: int) -> tuple:
    """Shapes of the logits and of every blob, without computing any."""
    blob = jax.ShapeDtypeStruct((1, height, width, module.in_channels), jnp.float32)
    variables = {"params": state.abstract_params(module)}
    return jax.eval_shape(lambda variables, blob: module.apply(variables, blob, return_taps=True), variables, blob)


@pytest.mark.parametrize(
    ("name", "classes", "arguments", "trained", "fixed"),
    [
        ("fcn32s", SIFT_FLOW, {}, 134_408_036, (33**2 + 3**2) * 4096),
        ("fcn16s", SIFT_FLOW, {}, 134_426_504, (33**2 + 3**2) * 1040),
        ("fcn8s", SIFT_FLOW, {}, 134_435_756, (33**2 + 3**2) * 288),
        ("fcn32s", 40, {"in_channels": 4}, 134_425_000, 40**2 * 4096),
        ("fcn32s", 40, {"streams": ("color", "hha"), "in_channels": 6}, 268_848_848, 40**2 * 4096),
        ("fcn32s", 60, {}, 134_506_364, 60**2 * 4096),
        ("fcn16s", 60, {}, 134_537_144, 60**2 * 1040),
        ("fcn8s", 60, {}, 134_552_564, 60**2 * 288),
        ("fcn_alexnet", 21, {}, 56_954_261, 21**2 * 63**2),
        ("fcn_googlenet", 21, {}, 5_995_077, 21**2 * 63**2),
    ],
)
def test_published_parameter_counts(name, classes, arguments, trained, fixed):
    """With the up-sampling fixed, and as the release holds it: dense kernels, frozen."""
    for form, wanted in (("fixed", trained), ("dense", trained + fixed)):
        params = state.abstract_params(models.create(name, classes, upsampling=form, **arguments))
        assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == wanted


@pytest.mark.parametrize(
    ("size", "conv1", "pool1", "pool2", "pool5", "fc6", "upscore"),
    [(500, 173, 86, 43, 21, 16, 543), (375, 142, 71, 35, 17, 12, 415)],
)
def test_published_sizes_on_alexnet(size, conv1, pool1, pool2, pool5, fc6, upscore):
    module = ALEXNET.clone(padding="caffe")
    _, taps = shapes(module, size, 1)
    wanted = {"conv1": conv1, "pool1": pool1, "pool2": pool2, "pool5": pool5, "fc6": fc6, "score": size}
    assert {name: taps[name].shape[1] for name in wanted} == wanted
    grids = module.grids()
    coarse = grids["score_fr"].transposed_conv(63, 32)
    assert 32 * (fc6 - 1) + 63 == upscore and coarse.offset_of(grids["score"]) == 18
    first, last = grids["fc6"].receptive_field(5)
    assert last - first + 1 == 355


def test_a_kernel_of_64_does_not_fit_alexnet():
    grids = ALEXNET.clone(padding="caffe").grids()
    with pytest.raises(ValueError, match=r"the grids are -?18\.5 cells apart, not a whole number"):
        grids["score_fr"].transposed_conv(64, 32).offset_of(grids["score"])


@every_net
@pytest.mark.parametrize("padding", ["caffe", "same"])
def test_every_size_comes_back(net, padding):
    for height, width in ((1, 2), (17, 31), (33, 64), (1199, 375)):
        logits, _ = shapes(net.clone(padding=padding), height, width)
        assert {leaf.shape[1:3] for leaf in jax.tree.leaves(logits)} == {(height, width)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "every"), [("fcn32s", 3), ("fcn16s", 3), ("fcn8s", 1), ("fcn_alexnet", 3), ("fcn_googlenet", 3)]
)
def test_sizes_from_1_to_1200_of_the_full_net_come_back(name, every):
    """As height or as width, by the shapes of the whole net as it was published.

    All of them for FCN-8s, which has the crops of all; else every third from 64 on, whatever strides of 32 leave over.
    """
    module = models.create(name, 21, padding="caffe")
    variables = {"params": state.abstract_params(module)}
    for height in (*range(1, 64), *range(64, 601, every)):
        blob = jax.ShapeDtypeStruct((1, height, 1201 - height, 3), jnp.float32)
        assert jax.eval_shape(module.apply, variables, blob).shape == (1, height, 1201 - height, 21)


@pytest.mark.slow
@every_net
def test_every_parameter_has_a_gradient(net):
    # Wide enough that no bias of a narrow layer keeps it silent everywhere.
    size = (40, 50)

    def loss(params):
        logits = net.apply({"params": params}, image(net, *size), train=True, rngs={"dropout": jax.random.key(0)})
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(logits))

    gradients = jax.device_get(jax.jit(jax.grad(loss))(filled(net)["params"]))
    for name, gradient in zip(optim.parameter_names(gradients), jax.tree.leaves(gradients), strict=True):
        assert np.all(np.isfinite(gradient)), name
        assert np.any(gradient != 0), name


def test_two_heads_share_a_trunk():
    params, blob = filled(TWO_HEADS)["params"], image(TWO_HEADS, 20, 33)
    logits, taps = run(TWO_HEADS, params, blob, return_taps=True)
    assert {head: x.shape for head, x in logits.items()} == {"sem": (2, 20, 33, 4), "geo": (2, 20, 33, 3)}
    for head, x in logits.items():
        np.testing.assert_array_equal(x, taps[f"score_{head}"])
        alone = models.create("fcn16s", x.shape[-1], **NARROW)
        own = {layer: params[layer if layer in params else f"{layer}_{head}"] for layer in filled(alone)["params"]}
        found = run(alone, own, blob)
        np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-6)
    coarse = run(TWO_HEADS, params, blob, upsample=False)
    np.testing.assert_allclose(coarse["geo"], taps["fuse_pool4_geo"], rtol=1e-5, atol=1e-6)


def test_two_streams_are_two_nets():
    """Each sees its own channels; the scores are the mean of the two nets'."""
    blob = image(TWO_STREAMS, 20, 33)
    params = filled(TWO_STREAMS)["params"]
    parts = []
    for stream, channels in (("color", slice(0, 3)), ("hha", slice(3, 6))):
        alone = models.create("fcn32s", 3, **NARROW)
        own = {layer: params[layer + stream] for layer in filled(alone)["params"]}
        parts.append(run(alone, own, blob[..., channels]))
    found = run(TWO_STREAMS, params, blob)
    np.testing.assert_allclose(found, (parts[0] + parts[1]) / 2, rtol=0, atol=1e-5 * float(jnp.abs(found).max()))


def test_what_the_weight_transfer_asks():
    assert TWO_HEADS.class_layers() == {
        "sem": ("score_fr_sem", "score_pool4_sem"), "geo": ("score_fr_geo", "score_pool4_geo")
    }  # fmt: skip
    assert TWO_HEADS.upsampling_kernels() == {
        "upscore2_sem": 4, "upscore16_sem": 32, "upscore2_geo": 4, "upscore16_geo": 32
    }  # fmt: skip
    assert TWO_STREAMS.class_layers() == {"": ("score_frcolor", "score_frhha")}
    assert TWO_STREAMS.first_layers() == ("conv1_1color", "conv1_1hha")
    assert ALEXNET.upsampling_kernels() == {"upscore": 63}


def test_a_bias_in_the_up_sampling():
    """As score2 of the FCN-8s of 2015 has one: added to every pixel that the layer gives."""
    plain = models.create("fcn8s", 3, upsampling={"upscore2": "dense"}, **NARROW)
    biased = models.create("fcn8s", 3, upsampling={"upscore2": "dense_biased"}, **NARROW)
    params = {layer: dict(leaves) for layer, leaves in filled(plain)["params"].items()}
    assert state.abstract_params(biased)["upscore2"]["bias"].shape == (3,)
    blob = image(plain, 9, 9)
    _, before = run(plain, params, blob, return_taps=True)
    params["upscore2"]["bias"] = jnp.array([1.0, -2.0, 0.5])
    _, after = run(biased, params, blob, return_taps=True)
    wanted = before["upscore2"] + params["upscore2"]["bias"][None, None, None]
    np.testing.assert_allclose(after["upscore2"], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trunk": "vgg18"}, "trunk='vgg18' is none of vgg11, "),
        ({"trunk": "caffenet"}, "stride=8: skips are defined for one stream on a VGG trunk"),
        ({"streams": ("a", "b"), "in_channels": 6}, "stride=8: skips are defined for one stream on a VGG trunk"),
        ({"streams": ("a", "b"), "stride": 32}, "3 channels cannot be shared by 2 streams"),
    ],
)
def test_what_is_refused(arguments, message):
    module = models.create("fcn8s", 3, **arguments)
    blob = jnp.zeros((1, 8, 8, module.in_channels))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), blob)
