"""The nets: what the paper and the release publish about them, and what holds for each row of cases.py."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, CLASSES, NARROW, fill, filled, taps_function
from flax.errors import InvalidRngError

from fcn_jax import models, optim, state
from fcn_jax.errors import ConfigError
from fcn_jax.models.layers import Dropout, Upsample
from fcn_jax.ops.bilinear import upsample_bilinear
from fcn_jax.ops.pooling import pooled_size

pytestmark = pytest.mark.usefixtures("fast_compilation")

TRUNK = [
    *("conv1_1", "conv1_2", "pool1", "conv2_1", "conv2_2", "pool2", "conv3_1", "conv3_2", "conv3_3", "pool3"),
    *("conv4_1", "conv4_2", "conv4_3", "pool4", "conv5_1", "conv5_2", "conv5_3", "pool5", "fc6", "fc7", "score_fr"),
]
POOL4 = ["upscore2", "score_pool4", "score_pool4c", "fuse_pool4"]
POOL3 = ["upscore_pool4", "score_pool3", "score_pool3c", "fuse_pool3"]
TAPS = {
    "fcn32s": [*TRUNK, "score"],
    "fcn16s": [*TRUNK, *POOL4, "score"],
    "fcn8s": [*TRUNK, *POOL4, *POOL3, "score"],
    "fcn16s_2015": [*TRUNK, *POOL4, "score"],
    "fcn8s_2015": [*TRUNK, *POOL4, *POOL3, "score"],
    "fcn8s_atonce": [*TRUNK, POOL4[0], "scale_pool4", *POOL4[1:], POOL3[0], "scale_pool3", *POOL3[1:], "score"],
}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def count(module) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.abstract_params(module)))


def sizes(module, image: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Height and width of every blob, without computing any."""
    shape = jax.ShapeDtypeStruct((1, *image, module.in_channels), jnp.float32)
    taps = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, return_taps=True)[0][1], shape)
    return {name: tap.shape[1:3] for name, tap in taps.items()}


def one(name: str, **args):
    return models.create(name, 1, width=1 / 64, fc_width=1, **args)


# What is published


@pytest.mark.parametrize(
    ("name", "classes", "args", "parameters"),
    [
        ("fcn32s", 21, {}, 134_346_581),
        ("fcn16s", 21, {}, 134_357_354),
        ("fcn8s", 21, {}, 134_362_751),
        ("fcn8s_atonce", 21, {}, 134_362_751),
        ("fcn32s", 21, {"upsampling": "dense"}, 136_152_917),
        ("fcn16s", 21, {"upsampling": "dense"}, 134_815_994),
        ("fcn8s", 21, {"upsampling": "dense"}, 134_489_759),
        ("fcn8s", 21, {"upsampling": "grouped"}, 134_362_751 + 21 * (16 + 16 + 256)),
        ("fcn8s_2015", 21, {"padding": "caffe"}, 134_362_751 + 2 * 16 * 21 * 21 + 21),
        ("fcn32s", 40, {}, 134_424_424),
        ("fcn32s", 40, {"in_channels": 4}, 134_425_000),
        ("fcn16s", 60, {}, 134_537_144),
        ("fcn8s", 60, {"padding": "caffe"}, 134_552_564),
    ],
)
def test_published_parameter_counts(name, classes, args, parameters):
    assert count(models.create(name, classes, **args)) == parameters


def test_published_shapes_of_the_classifier():
    params = state.abstract_params(models.create("fcn8s", 21))
    assert params["fc6"]["kernel"].shape == (7, 7, 512, 4096)
    assert params["fc6"]["kernel"].size == 102_760_448
    trunk = {layer: leaves for layer, leaves in params.items() if layer.startswith("conv")}
    assert sum(leaf.size for leaf in jax.tree.leaves(trunk)) == 14_714_688
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("image", "conv1_1", "pools", "fc6", "upscore", "upscore2", "upscore16", "upscore_pool4", "upscore8"),
    [
        (500, 698, (349, 175, 88, 44, 22), 16, 544, 34, 560, 70, 568),
        (375, 573, (287, 144, 72, 36, 18), 12, 416, 26, 432, 54, 440),
        (366, 564, (282, 141, 71, 36, 18), 12, 416, 26, 432, 54, 440),
        (480, 678, (339, 170, 85, 43, 22), 16, 544, 34, 560, 70, 568),
        (640, 838, (419, 210, 105, 53, 27), 21, 704, 44, 720, 90, 728),
        (256, 454, (227, 114, 57, 29, 15), 9, 320, 20, 336, 42, 344),
        (224, 422, (211, 106, 53, 27, 14), 8, 288, 18, 304, 38, 312),
        (1, 199, (100, 50, 25, 13, 7), 1, 64, 4, 80, 10, 88),
    ],
)  # fmt: skip
def test_published_blob_sizes(image, conv1_1, pools, fc6, upscore, upscore2, upscore16, upscore_pool4, upscore8):
    found = sizes(one("fcn8s", padding="caffe"), (image, 1))
    wanted = {"conv1_1": conv1_1, "fc6": fc6, "upscore2": upscore2, "upscore_pool4": upscore_pool4, "score": image}
    wanted |= {f"pool{i}": size for i, size in enumerate(pools, start=1)}
    assert {name: found[name][0] for name in wanted} == wanted
    # The last up-sampling is computed only where the image is; before the crop it would be:
    for coarse, stride, size in (("score_fr", 32, upscore), ("fuse_pool4", 16, upscore16), ("fuse_pool3", 8, upscore8)):
        assert stride * (found[coarse][0] - 1) + 2 * stride == size


@pytest.mark.parametrize(
    ("name", "first", "last", "fading"),
    [
        ("fcn32s", [0.609375, 0.640625, 0.671875], 0.796875, 20),
        ("fcn16s", [0.6094, 0.6406, 0.6719, 0.7031, 0.7344, 0.7578], 0.7734, 36),
        ("fcn8s", [0.6094, 0.6367, 0.6602, 0.6836, 0.7070, 0.7305], 0.7539, 44),
    ],
)
def test_published_border_ramp(name, first, last, fading):
    """A constant score of 1 in an image of 500 pixels, through the net's own layers and crops."""
    module = one(name, padding="caffe")
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), state.abstract_params(module))
    params["score_fr"]["bias"] += 1
    logits = jax.jit(module.apply)({"params": params}, jnp.zeros((1, 500, 1, 3)))
    row = logits[0, :, 0, 0] / logits.max()  # across, the one column fades by a factor
    np.testing.assert_allclose(row[: len(first)], first, atol=5e-5)
    np.testing.assert_allclose(row[-1], last, atol=5e-5)
    assert jnp.sum(row < 1 - 1e-6) == fading


# Sizes


@functools.cache
def grids(module):
    return module.grids()


def predicted_sizes(module, image: int) -> dict[str, int]:
    """Sizes of blobs along one axis, by arithmetic; fails where a crop does not fit."""
    pad_first, pad_fc6 = {"caffe": (100, 0), "same": (1, 3)}[module.padding]
    size, found = image + 2 * pad_first - 2, {}
    for pool in range(1, 6):
        found[f"pool{pool}"] = size = pooled_size(size, 2, 2)
    found["fc6"] = size = size + 2 * pad_fc6 - 6
    for pool, up in (("pool4", "upscore2"), ("pool3", "upscore_pool4")):
        if up not in grids(module):
            break
        found[up] = size = 2 * size + 2
        offset = grids(module)[f"score_{pool}"].offset_of(grids(module)[up])
        found[f"fuse_{pool}"] = size = min(size - max(-offset, 0), found[pool] - max(offset, 0))
    last = list(grids(module))[-2]
    grid = grids(module)[last].transposed_conv(2 * module.stride, module.stride)
    assert size >= 1 and 0 <= grid.offset_of(grids(module)["score"]) <= module.stride * (size + 1) - image
    return found | {"score": image}


@pytest.mark.parametrize("padding", ["caffe", "same"])
@pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s"])
def test_every_size_from_1_to_1200_comes_back(name, padding):
    """By arithmetic for all of them, and what the arithmetic says is what the net does."""
    module = one(name, padding=padding)
    predicted = {size: predicted_sizes(module, size) for size in range(1, 1201)}
    traced = [(1, 2), (15, 16), (17, 31), (32, 33), (63, 65), (97, 1199), (500, 375)] if name == "fcn8s" else [(33, 64)]
    for image in traced:
        found = sizes(module, image)
        assert found["score"] == image
        for name in predicted[image[0]]:
            assert found[name] == tuple(predicted[size][name] for size in image), name


# Receptive fields


def extent_by_gradient(padding: str, height: int):
    """Gives `extent(blob, cell)`: the rows of an image `[height 1]` that reach a cell's gradient.

    All weights are positive, so that max pooling picks a window's last pixel where the image rises and its first where
    it falls.
    """
    module = one("fcn8s", padding=padding)
    shapes = state.abstract_params(module)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 3 / math.prod(leaf.shape[:-1])), shapes)

    def blobs(image):
        return module.apply({"params": params}, image, return_taps=True)[1]

    shape = jax.ShapeDtypeStruct((1, height, 1, 3), jnp.float32)
    zeros = jax.tree.map(lambda tap: np.zeros(tap.shape, np.float32), jax.eval_shape(blobs, shape))

    @jax.jit
    def gradient(image, chosen):
        return jax.vjp(blobs, image)[1](chosen)[0]

    def extent(blob: str, cell: int) -> tuple[int, int]:
        chosen = zeros | {blob: np.zeros_like(zeros[blob])}
        chosen[blob][0, cell, zeros[blob].shape[2] // 2] = 1
        rising = np.broadcast_to(np.arange(1, height + 1, dtype=np.float32)[None, :, None, None], shape.shape)
        falling, rising = (np.flatnonzero(gradient(image, chosen)[0, :, 0, 0]) for image in (rising[:, ::-1], rising))
        return int(falling[0]), int(rising[-1])

    return module, extent


@pytest.mark.parametrize(
    ("padding", "cells"),
    [
        ("same", {"conv1_1": 350, "pool3": 40, "pool4": 20, "pool5": 10, "fc6": 11}),
        ("same", {"fc6": 0, "upscore2": 21, "score_pool4c": 20, "fuse_pool4": 22, "fuse_pool3": 43, "score": 351}),
        ("same", {"upscore2": 20, "fuse_pool3": 42, "pool4": 43, "score": 699}),
        ("caffe", {"pool3": 60, "pool5": 14, "fc6": 11, "score_pool4c": 25, "fuse_pool3": 49, "score": 345}),
    ],
)
def test_receptive_fields_are_where_gradients_come_from(padding, cells):
    height = 700
    module, extent = extent_by_gradient(padding, height)
    for blob, cell in cells.items():
        first, last = grids(module)[blob].receptive_field(cell)
        assert extent(blob, cell) == (max(first, 0), min(last, height - 1)), (blob, cell)


@pytest.mark.parametrize("padding", ["caffe", "same"])
def test_receptive_fields_of_the_paper(padding):
    found = grids(one("fcn8s", padding=padding))
    assert list(found) == TAPS["fcn8s"]
    for blob, pixels in {
        "pool1": 6,
        "pool2": 16,
        "pool3": 44,
        "pool4": 100,
        "pool5": 212,
        "fc6": 404,
        "fc7": 404,
    }.items():
        first, last = found[blob].receptive_field(3)
        assert last - first + 1 == pixels
    assert (found["score"].start, found["score"].step) == (0, 1)


# Every row of cases.py


@every_case
def test_golden(case, golden):
    """Names and shapes at full size, and logits at a few places, in float64 so that no digit depends on the machine."""
    shapes = state.abstract_params(case.full())
    names = optim.parameter_names(shapes)
    with jax.enable_x64():
        module = case.narrow(dtype=jnp.float64)
        params = fill(state.abstract_params(module), np.float64)
        logits = np.asarray(jax.jit(module.apply)({"params": params}, case.image(1).astype(np.float64)))
    assert logits.dtype == np.float64
    flat = logits.ravel()
    probes = [float(f"{flat[i]:.6g}") for i in np.linspace(0, flat.size - 1, 8).astype(int)]
    shape_of = {name: list(leaf.shape) for name, leaf in zip(names, jax.tree.leaves(shapes), strict=True)}
    golden(case.id, {"parameters": count(case.full()), "shapes": shape_of, "logits": probes})
    # The same in float32.
    logits32 = taps_function(case.narrow())(filled(case.narrow()), case.image(1))[0]
    assert logits32.dtype == jnp.float32
    np.testing.assert_allclose(logits32, logits, rtol=0, atol=1e-5 * np.abs(logits).max())


@every_case
def test_logits_and_taps(case):
    names = []

    def apply(variables, image):
        logits, taps = case.narrow().apply(variables, image, return_taps=True)
        names.extend(taps)  # here: outside, JAX has sorted them
        return logits, taps

    logits, taps = jax.eval_shape(apply, filled(case.narrow()), case.image())
    assert logits.shape == taps["score"].shape == (2, *case.size, CLASSES)
    assert names == TAPS[case.name]


def test_nothing_is_scored_before_training():
    """Score layers and all biases start at zero, the rest as He's: standard deviation √(2 / inputs)."""
    params = state.init_params(models.create("fcn8s", CLASSES, width=1 / 16, fc_width=32), seed=0)
    for layer, leaves in params.items():
        np.testing.assert_array_equal(leaves["bias"], 0, err_msg=layer)
        if layer.startswith("score"):
            np.testing.assert_array_equal(leaves["kernel"], 0, err_msg=layer)
        else:
            kernel = leaves["kernel"]
            np.testing.assert_allclose(kernel.std(), np.sqrt(2 / math.prod(kernel.shape[:-1])), rtol=0.2, err_msg=layer)


@pytest.mark.slow
@every_case
def test_every_parameter_has_a_gradient(case):
    module = case.narrow(dropout=0.0)

    def loss(params):
        return jnp.sum(jnp.square(module.apply({"params": params}, case.image(), train=True)))

    gradients = jax.device_get(jax.jit(jax.grad(loss))(filled(module)["params"]))
    for name, gradient in zip(optim.parameter_names(gradients), jax.tree.leaves(gradients), strict=True):
        assert np.all(np.isfinite(gradient)), name
        assert np.any(gradient != 0), name


@every_case
def test_coarse_scores_alone(case):
    """Without the last up-sampling: the sum of the scores, from which the logits follow."""
    module = case.narrow()
    logits, taps = taps_function(module)(filled(module), case.image(1))
    coarse = jax.jit(functools.partial(module.apply, upsample=False))(filled(module), case.image(1))
    last = TAPS[case.name][-2]
    np.testing.assert_allclose(coarse, taps[last], rtol=1e-5, atol=1e-6)
    offset = grids(module)[last].transposed_conv(2 * module.stride, module.stride).offset_of(grids(module)["score"])
    found = upsample_bilinear(coarse, 2 * module.stride, module.stride, offset=offset, size=case.size)
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES[3:4], ids=lambda case: case.id)
def test_bfloat16(case):
    """Parameters and logits stay float32; the logits within 5 % of the largest."""
    module = case.narrow(dtype=jnp.bfloat16)
    logits, taps = taps_function(module)(filled(module), case.image(1))
    wanted = taps_function(case.narrow())(filled(case.narrow()), case.image(1))[0]
    assert (logits.dtype, taps["score_fr"].dtype, taps["fc7"].dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.abstract_params(module)))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=0.05 * np.abs(wanted).max())
    assert np.any(logits != wanted)


# Arguments


def test_channels_by_width_and_by_layer():
    shapes = state.abstract_params(
        models.create("fcn8s", 5, width=0.5, channels={"conv4_3": 7, "fc7": 9}, in_channels=4)
    )
    kernel = {layer: leaves["kernel"].shape for layer, leaves in shapes.items()}
    assert kernel["conv1_1"] == (3, 3, 4, 32)
    assert kernel["conv4_3"] == (3, 3, 256, 7)
    assert kernel["conv5_1"] == (3, 3, 7, 256)
    assert kernel["fc6"] == (7, 7, 256, 2048)
    assert kernel["fc7"] == (1, 1, 2048, 9)
    assert kernel["score_fr"] == (1, 1, 9, 5)
    assert kernel["score_pool4"] == (1, 1, 7, 5)
    assert kernel["score_pool3"] == (1, 1, 128, 5)
    shapes = state.abstract_params(models.create("fcn32s", 5, width=1e-6, fc_width=30))
    assert shapes["conv5_3"]["kernel"].shape == (3, 3, 1, 1)
    assert shapes["fc7"]["kernel"].shape == (1, 1, 30, 30)


def test_pool_scales():
    """At once, the skips are scaled before they are scored: their kernels weigh 0.01 and 0.0001 of what they were."""
    module, plain = (models.create(name, CLASSES, **NARROW) for name in ("fcn8s_atonce", "fcn8s"))
    image = CASES[-1].image(1)
    params = filled(module)["params"]
    scaled = {layer: dict(leaves) for layer, leaves in params.items()}
    scaled["score_pool4"]["kernel"] *= 0.01
    scaled["score_pool3"]["kernel"] *= 0.0001
    logits = taps_function(module)({"params": params}, image)[0]
    wanted = taps_function(plain)({"params": scaled}, image)[0]
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-6)


def test_up_sampling_starts_the_same_in_every_form():
    case = CASES[3]
    wanted = taps_function(case.narrow())(filled(case.narrow()), case.image(1))[0]
    others = filled(case.narrow())["params"]
    for form in ("grouped", {"upscore8": "dense", "upscore2": "grouped"}):
        module = case.narrow(upsampling=form)
        forms = dict.fromkeys(["upscore2", "upscore_pool4", "upscore8"], form) if isinstance(form, str) else form

        @jax.jit
        def up_sampling_layers(image, module=module):
            params = module.init(jax.random.key(0), image)["params"]
            return {layer: leaves for layer, leaves in params.items() if layer not in others}

        added = up_sampling_layers(case.image(1))
        assert added.keys() == forms.keys()
        for layer, leaves in added.items():
            size, between = 16 if layer == "upscore8" else 4, 1 if forms[layer] == "grouped" else CLASSES
            assert leaves["kernel"].shape == (size, size, between, CLASSES)
            assert leaves["kernel"].dtype == jnp.float32
        logits = jax.jit(module.apply)({"params": others | added}, case.image(1))
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_a_net_can_be_a_static_argument():
    nets = [models.create("fcn8s", 2, channels={"fc6": 4}, upsampling={"upscore2": "dense"}) for _ in range(2)]
    assert nets[0] == nets[1] and hash(nets[0]) == hash(nets[1])


def test_what_is_refused():
    with pytest.raises(ConfigError, match="no model named 'fcn4s'; there are fcn32s, fcn16s, fcn8s, fcn8s_atonce"):
        models.create("fcn4s", 21)
    with pytest.raises(ValueError, match="the image has 4 channels, the net takes 3"):
        jax.eval_shape(one("fcn32s").init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)))
    with pytest.raises(ValueError, match="upscore: no form 'learned' of up-sampling; there are fixed, grouped, dense"):
        jax.eval_shape(one("fcn32s", upsampling="learned").init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


# Dropout


def test_dropout_keeps_the_mean_and_zeroes_the_rest():
    x = jnp.ones((4, 50, 50, 3))
    for rate in (0.5, 0.2):
        y = np.asarray(Dropout(rate).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)}))
        assert set(np.unique(y)) == {0, np.float32(1 / (1 - rate))}
        np.testing.assert_allclose(y.mean((1, 2)), 1, atol=0.1)
        assert not np.array_equal(y[..., 0], y[..., 1])  # elementwise, not whole channels
    half = Dropout(0.5).apply({}, x.astype(jnp.bfloat16), train=True, rngs={"dropout": jax.random.key(0)})
    assert np.asarray(half).dtype == jnp.bfloat16


def test_dropout_belongs_to_the_example():
    """Equal examples get different masks; each keeps its own wherever it stands in whatever part of the batch."""
    x = jnp.ones((4, 6, 5, 8))

    def drop(x, index=None, seed=0):
        return np.asarray(
            Dropout(0.5).apply({}, x, train=True, example_index=index, rngs={"dropout": jax.random.key(seed)})
        )

    whole = drop(x)
    assert len({example.tobytes() for example in whole}) == 4
    np.testing.assert_array_equal(drop(x, jnp.arange(4)), whole)
    np.testing.assert_array_equal(drop(x[:2], jnp.array([3, 1])), whole[[3, 1]])
    assert not np.array_equal(drop(x, seed=1), whole)


@pytest.mark.slow
def test_dropout_in_the_net():
    """In training alone, under both fc6 and fc7 with masks of their own, and the same for any split of the batch."""
    module = CASES[1].narrow(fc_width=64)
    image = np.repeat(CASES[1].image(1), 2, axis=0)
    variables = filled(module)

    @jax.jit
    def train(image, index, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply(variables, image, train=True, example_index=index, rngs=rngs, return_taps=True)

    calm = taps_function(module)(variables, image)[0]
    np.testing.assert_array_equal(calm[0], calm[1])
    logits, taps = train(image, jnp.array([0, 5]), 0)
    assert not np.allclose(logits[0], logits[1])
    np.testing.assert_allclose(train(image, jnp.array([5, 7]), 0)[0][0], logits[1], rtol=1e-5, atol=1e-6)
    assert not np.allclose(train(image, jnp.array([0, 5]), 1)[0], logits)
    np.testing.assert_array_equal(taps["pool5"][0], taps["pool5"][1])
    assert not np.array_equal(taps["fc6"] == 0, taps["fc7"] == 0)
    with pytest.raises(InvalidRngError, match="dropout"):
        module.apply(variables, image, train=True)


def test_without_dropout_training_needs_no_key():
    module = one("fcn32s", dropout=0.0)
    shape = jax.eval_shape(lambda x: module.apply(filled(module), x, train=True), jnp.zeros((1, 8, 9, 3)))
    assert shape.shape == (1, 8, 9, 1)


def test_a_cut_of_learned_up_sampling():
    """Held as a parameter, the layer gives the same cut as the fixed form."""
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 2))
    wanted = np.asarray(Upsample(4, 2).apply({}, x, offset=1, size=(5, 3)))
    layer = Upsample(4, 2, "dense")
    found = np.asarray(layer.apply(layer.init(jax.random.key(0), x), x, offset=1, size=(5, 3)))
    assert found.shape == (1, 5, 3, 2)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": "valid"}, "padding='valid' is none of caffe, same"),
        ({"stride": 4}, "stride=4 is none of 32, 16, 8"),
        ({"channels": {"conv9_1": 3}}, "channels names conv9_1, the net has conv1_1"),
        (
            {"upsampling": {"upscore16": "dense"}},
            "upsampling names upscore16, the net has upscore2, upscore_pool4, upscore8",
        ),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, message):
    net = models.create("fcn8s", 3, **arguments)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
