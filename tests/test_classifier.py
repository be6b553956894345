"""What holds for every ImageNet classifier: how it is called, what it refuses, and where its gradients go."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import fill, filled, taps_function

from fcn_jax import models, optim, state

CLASSES = 5
# Each with the smallest image that gives one cell.
SMALLEST = {
    "vgg11": 193, "vgg11_lrn": 193, "vgg13": 193, "vgg16_1x1": 193, "vgg16": 193, "vgg19": 193,
    "alexnet": 199, "caffenet": 199, "googlenet": 223,
}  # fmt: skip
# One of each kind, for what has to be compiled.
KINDS = ("vgg16_1x1", "caffenet", "googlenet")
NARROW = {"width": 1 / 32, "fc_width": 8}
every_net = pytest.mark.parametrize("name", SMALLEST)
# GoogLeNet takes a minute to compile.
every_kind = pytest.mark.parametrize("name", [*KINDS[:2], pytest.param(KINDS[2], marks=pytest.mark.slow)])
pytestmark = pytest.mark.usefixtures("fast_compilation")


def narrow(name: str, **changes):
    # GoogLeNet has layers of 16 channels; a single one would die.
    return models.create(name, CLASSES, **NARROW | ({"width": 1 / 8} if name == "googlenet" else {}) | changes)


def image(name: str) -> np.ndarray:
    """One of the smallest, not square."""
    size = SMALLEST[name]
    return np.random.RandomState(0).normal(size=(1, size, size + 1, 3)).astype(np.float32)


def cells(module, height: int, width: int) -> tuple[int, ...]:
    params = state.abstract_params(module)
    shape = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return jax.eval_shape(module.apply, {"params": params}, shape).shape[1:]


def last_layer(module) -> str:
    ((name,),) = module.class_layers().values()
    return name


@pytest.mark.parametrize(
    ("name", "size", "cells"),
    [("vgg11", 224, 7), ("vgg16_1x1", 224, 7), ("vgg19", 224, 7), ("alexnet", 227, 6), ("caffenet", 227, 6)],
)
def test_the_dense_net_is_the_fully_connected_one(name, size, cells):
    """On the net's own crop: fc6 flattens pool5, channels first, as Caffe does."""
    module = narrow(name, precision=jax.lax.Precision.HIGHEST)
    image = np.random.RandomState(1).normal(size=(2, size, size, 3)).astype(np.float32)
    taps = taps_function(module)(filled(module), image)[1]
    assert taps["pool5"].shape[:3] == (2, cells, cells)
    x = np.moveaxis(np.asarray(taps["pool5"], np.float64), -1, 1).reshape(2, -1)
    for layer in ("fc6", "fc7", "fc8"):
        kernel, bias = (np.asarray(filled(module)["params"][layer][leaf], np.float64) for leaf in ("kernel", "bias"))
        matrix = kernel.transpose(3, 2, 0, 1).reshape(kernel.shape[-1], -1)
        x = x @ matrix.T + bias[None]
        x = x if layer == "fc8" else np.maximum(x, 0)
        np.testing.assert_allclose(taps[layer][:, 0, 0], x, rtol=0, atol=1e-5 * np.abs(x).max())


# Sizes


@every_net
def test_the_smallest_image_gives_one_cell_and_a_smaller_one_is_refused(name):
    module, size = narrow(name), SMALLEST[name]
    assert cells(module, size, size) == (1, 1, CLASSES)
    with pytest.raises(ValueError, match=f"an image of {size}×{size - 1} pixels is too small for one cell; .*{size}×"):
        cells(module, size, size - 1)
    with pytest.raises(ValueError, match="is too small"):
        cells(module, 1, 500)


@every_net
def test_parameters_do_not_depend_on_the_image(name):
    module = narrow(name)
    shapes = [
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x), jnp.zeros((1, size, size, 3)))
        for size in (1, 32, SMALLEST[name])
    ]
    assert shapes[0] == shapes[1] == shapes[2]


def test_parameters_are_drawn_on_a_map_without_cells():
    """As training does it; He's deviation √(2 / inputs), biases zero. The last layer is drawn, too."""
    params = state.init_params(models.create("caffenet", 40, width=1 / 8, fc_width=60), seed=0)
    for layer, leaves in params.items():
        np.testing.assert_array_equal(leaves["bias"], 0, err_msg=layer)
        deviation = np.sqrt(2 / math.prod(leaves["kernel"].shape[:-1]))
        np.testing.assert_allclose(leaves["kernel"].std(), deviation, rtol=0.1, err_msg=layer)


# Calls


@every_kind
def test_scores_and_taps(name):
    module = narrow(name)
    scores, taps = taps_function(module)(filled(module), image(name))
    assert scores.shape == (1, 1, 1, CLASSES)
    np.testing.assert_array_equal(scores, taps[last_layer(module).replace("loss3_", "loss3/")])
    np.testing.assert_allclose(taps["prob"].sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(jnp.log(taps["prob"]), jax.nn.log_softmax(scores), rtol=1e-4, atol=1e-5)
    for blob, tap in jax.device_get(taps).items():
        assert np.any(tap != 0) and np.all(np.isfinite(tap)), blob


@every_net
def test_every_layer_has_its_blob_and_every_blob_its_grid(name):
    module = narrow(name)
    names = []

    def apply(variables, image):
        _, taps = module.apply(variables, image, return_taps=True)
        names.extend(taps)  # here: outside, JAX has sorted them
        return taps

    variables = {"params": state.abstract_params(module)}
    jax.eval_shape(apply, variables, image(name))
    assert list(module.grids()) == names
    assert set(variables["params"]) == {*module.layer_names(), last_layer(module)}
    assert set(variables["params"]) <= {blob.replace("/", "_") for blob in names}


@every_net
def test_the_last_layer_alone_knows_the_classes(name):
    shapes = [state.abstract_params(narrow(name).clone(num_classes=classes)) for classes in (7, 8)]
    differing = {layer for layer in shapes[0] if shapes[0][layer] != shapes[1][layer]}
    assert differing == {last_layer(narrow(name))}
    assert narrow(name).class_layers().keys() == {""}


def test_there_is_nothing_to_up_sample():
    module = narrow("caffenet")
    programs = [
        str(jax.make_jaxpr(functools.partial(module.apply, upsample=up))(filled(module), image("caffenet")))
        for up in (True, False)
    ]
    assert programs[0] == programs[1]


@pytest.mark.slow
@every_kind
def test_every_parameter_has_a_gradient(name):
    module = narrow(name, dropout=0.0)

    def loss(params):
        scores = module.apply({"params": params}, image(name), train=True)
        assert isinstance(scores, jax.Array)
        return jnp.sum(jnp.square(scores))

    gradients = jax.device_get(jax.jit(jax.grad(loss))(filled(module)["params"]))
    for parameter, gradient in zip(optim.parameter_names(gradients), jax.tree.leaves(gradients), strict=True):
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0), parameter


@every_net
def test_bfloat16(name):
    """Every layer computes in it; parameters and scores stay float32."""
    module = narrow(name, dtype=jnp.bfloat16)
    params = state.abstract_params(module)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    scores, taps = jax.eval_shape(functools.partial(module.apply, return_taps=True), {"params": params}, image(name))
    assert scores.dtype == taps.pop("prob").dtype == jnp.float32
    del taps[last_layer(module).replace("loss3_", "loss3/")]
    assert {tap.dtype for tap in taps.values()} == {jnp.dtype(jnp.bfloat16)}


def test_bfloat16_and_float64_agree():
    """Scores of the same parameters: 5 % and 1e-5 of the largest."""
    wanted, found = (
        taps_function(module)(filled(module), image("vgg11"))[0]
        for module in (narrow("vgg11"), narrow("vgg11", dtype=jnp.bfloat16))
    )
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.05 * np.abs(wanted).max())
    assert np.any(found != wanted)
    with jax.enable_x64():
        module = narrow("vgg11", dtype=jnp.float64)
        params = fill(state.abstract_params(module), np.float64)
        found = np.asarray(jax.jit(module.apply)({"params": params}, image("vgg11").astype(np.float64)))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_dropout():
    """In training alone, with masks of their own, and the same for any place of an example in the batch."""
    module = narrow("vgg11", fc_width=512)
    fed = np.repeat(image("vgg11"), 2, axis=0)

    @jax.jit
    def train(index):
        rngs = {"dropout": jax.random.key(0)}
        return module.apply(filled(module), fed, train=True, example_index=index, rngs=rngs, return_taps=True)

    calm = taps_function(module)(filled(module), fed)[1]
    scores, taps = train(jnp.array([0, 5]))
    assert not np.allclose(scores[0], scores[1])
    np.testing.assert_allclose(train(jnp.array([5, 7]))[0][0], scores[1], rtol=1e-4, atol=1e-5)
    dropped = taps["fc6"] == 0
    assert np.mean(dropped[calm["fc6"] > 0]) == pytest.approx(0.5, abs=0.1)
    np.testing.assert_allclose(taps["fc6"], np.where(dropped, 0, 2 * calm["fc6"]), rtol=1e-3, atol=1e-5)
    assert not np.array_equal(dropped, taps["fc7"] == 0)


# Arguments


@every_net
def test_channels_by_width_and_by_layer(name):
    first, *_, last = narrow(name).layer_names()
    module = models.create(name, 9, width=0.5, channels={first: 6, last: 22}, in_channels=4)
    kernels = {layer: leaves["kernel"].shape for layer, leaves in state.abstract_params(module).items()}
    assert kernels[first][2:] == (4, 6)
    assert kernels[last][-1] == 22
    assert kernels[last_layer(module)][-1] == 9
    full = {layer: leaves["kernel"].shape for layer, leaves in state.abstract_params(models.create(name, 9)).items()}
    for layer in set(kernels) - {first, last, last_layer(module)}:
        assert kernels[layer][-1] * 2 == full[layer][-1], layer


def test_fc_width():
    kernels = {
        layer: leaves["kernel"].shape
        for layer, leaves in state.abstract_params(narrow("vgg11", fc_width=30, channels={"fc7": 11})).items()
    }
    assert [kernels[layer] for layer in ("fc6", "fc7", "fc8")] == [(7, 7, 16, 30), (1, 1, 30, 11), (1, 1, 11, CLASSES)]


def test_a_net_can_be_a_static_argument():
    nets = [models.create("googlenet", 2, channels={"conv2_3x3": 4}) for _ in range(2)]
    assert nets[0] == nets[1] and hash(nets[0]) == hash(nets[1])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vgg11", {"channels": {"conv3_3": 3}}, "channels names conv3_3, the net has conv1_1, conv2_1"),
        ("vgg11", {"channels": {"fc8": 3}}, "channels names fc8, the net has"),
        ("googlenet", {"channels": {"fc6": 3}}, "channels names fc6, the net has conv1_7x7_s2"),
        ("vgg11", {"in_channels": 4}, "the image has 3 channels, the net takes 4"),
        ("vgg11", {"trunk": "vgg12"}, "trunk='vgg12' is none of vgg11, vgg11_lrn, vgg13"),
        ("alexnet", {"channels": {"conv1": 5}}, "conv2: 5 channels in and 256 out cannot be shared by 2 groups"),
        ("alexnet", {"channels": {"conv4": 5}}, "conv4: 384 channels in and 5 out cannot be shared by 2 groups"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(name, arguments, message):
    net = models.create(name, 3, **arguments)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
