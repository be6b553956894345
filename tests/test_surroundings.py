"""A map held as core and surroundings is the map, cell by cell, and so are its gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import models
from fcn_jax.ops import convolution, pooling, surroundings
from fcn_jax.ops.surroundings import Surrounded

# Kernel sizes of a trunk, 0 for a pooling.
LAYERS = (3, 3, 0, 3, 1, 0, 3, 3, 0, 3, 0, 5, 3)
CHANNELS = 3
MORE_SIZES = (((1, 1), 100, 11), ((130, 6), 40, 4), ((64, 64), 13, 0))


@pytest.fixture(autouse=True)
def small_maps_count(monkeypatch):
    monkeypatch.setattr(surroundings, "_ENOUGH", 0)


def kernels():
    generator = np.random.default_rng(0)
    return [
        (
            jnp.asarray(generator.normal(0, 1 / max(size, 1), (size, size, CHANNELS, CHANNELS)), jnp.float32),
            jnp.asarray(generator.normal(size=CHANNELS), jnp.float32),
        )
        for size in LAYERS
    ]


def trunk(image, parameters, padding, ops):
    """Every layer's output; the first pads by `padding`, the others by half their kernels."""
    outputs = []
    x = image
    for place, (size, (kernel, bias)) in enumerate(zip(LAYERS, parameters, strict=True)):
        if size:
            x = ops.conv2d(x, kernel, padding=padding if place == 0 else size // 2)
            x = jax.tree.map(lambda x, bias=bias: jax.nn.relu(x + bias[None, None, None]), x)
        else:
            x = ops.max_pool(x)
        outputs.append(x)
    return outputs


class Plain:
    conv2d = staticmethod(convolution.conv2d)
    max_pool = staticmethod(pooling.max_pool)


def image_of(size):
    return jax.random.normal(jax.random.key(size[0]), (2, *size, CHANNELS))


@pytest.mark.parametrize(
    ("size", "padding", "surrounded"),
    [
        *(((40, 51), 100, 9), ((5, 130), 60, 6), ((33, 34), 11, 0)),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in MORE_SIZES),
    ],
)
def test_every_cell_is_the_plain_maps(size, padding, surrounded):
    image, parameters = image_of(size), kernels()

    @jax.jit
    def both(image, parameters):
        found = trunk(image, parameters, padding, surroundings)
        held.append(sum(isinstance(x, Surrounded) for x in found))
        assert [x.shape for x in found] == [surroundings.whole(x).shape for x in found]
        return [surroundings.whole(x) for x in found], trunk(image, parameters, padding, Plain)

    held = []
    for found, wanted in zip(*both(image, parameters), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * float(jnp.max(wanted)))
    assert held[0] >= surrounded, held


@pytest.mark.slow
@pytest.mark.parametrize("size", [(40, 51), (2, 77)])
def test_gradients_are_the_plain_maps(size):
    image, parameters = image_of(size), kernels()

    @jax.jit
    def gradients(image, parameters):
        def loss(ops):
            def of(image, parameters):
                x = surroundings.whole(trunk(image, parameters, 100, ops)[-1])
                return jnp.sum(jnp.sin(3 * x) * jax.random.normal(jax.random.key(1), x.shape))

            return jax.grad(of, argnums=(0, 1))(image, parameters)

        return loss(surroundings), loss(Plain)

    found, wanted = gradients(image, parameters)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if a.size:
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(jnp.max(jnp.abs(b)) + 1e-6))


def test_a_small_net_is_compiled_as_it_is(monkeypatch):
    image, ((kernel, _), *_) = image_of((20, 21)), kernels()
    saved = 2 * (120 * 121 - 20 * 21) * kernel.size
    for enough, surrounded in ((saved, True), (saved + 1, False)):
        monkeypatch.setattr(surroundings, "_ENOUGH", enough)
        assert isinstance(surroundings.conv2d(image, kernel, padding=50), Surrounded) == surrounded


def test_a_strided_layer_makes_the_map_whole():
    image, ((kernel, _), *_) = image_of((20, 21)), kernels()
    x = surroundings.conv2d(image, kernel, padding=50)
    assert isinstance(x, Surrounded)
    found = surroundings.conv2d(x, kernel, stride=2, padding=1)
    wanted = convolution.conv2d(convolution.conv2d(image, kernel, padding=50), kernel, stride=2, padding=1)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert not isinstance(surroundings.conv2d(image, kernel, padding=1), Surrounded)


def test_the_released_net_does_not_pay_for_its_padding():
    """At 375×500 a FCN-32s padded by 100 takes two thirds of the multiplications, by the compiler's count."""
    model = models.create("fcn32s", 3, padding="caffe", width=1 / 16)
    image = jax.ShapeDtypeStruct((1, 375, 500, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def flops():
        lowered = jax.jit(lambda variables, image: model.apply(variables, image)).lower(variables, image)
        counted: Any = lowered.cost_analysis()
        return counted["flops"]

    ours = flops()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surroundings, "_ENOUGH", 10**15)
        assert ours < 0.75 * flops()
