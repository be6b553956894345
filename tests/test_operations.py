"""Operations counted by shapes: against arithmetic by hand and against published counts."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from fcn_jax.models.layers import Conv
from fcn_jax.ops.convolution import conv2d
from fcn_jax.plan import operations, published


def shapes(*dims):
    return [jax.ShapeDtypeStruct(each, jnp.float32) for each in dims]


def test_a_convolution_counts_every_tap_of_every_output():
    image, kernel = shapes((2, 9, 11, 3), (3, 3, 3, 5))
    done = operations.count(lambda x, k: conv2d(x, k, padding=1), image, kernel)
    assert done.convolutions == 2 * (2 * 9 * 11 * 5) * (3 * 3 * 3) == done.passes
    grouped = operations.count(lambda x, k: conv2d(x, k, groups=2), *shapes((1, 8, 8, 4), (3, 3, 2, 6)))
    assert grouped.convolutions == 2 * (6 * 6 * 6) * (3 * 3 * 2)


def test_gradients_cost_twice_what_the_forward_pass_does_whatever_the_stride():
    image, kernel = shapes((1, 16, 16, 4), (2, 2, 4, 8))

    def loss(x, k):
        return conv2d(x, k, stride=2).sum()

    forward = operations.count(loss, image, kernel).convolutions
    assert forward == 2 * (8 * 8 * 8) * (2 * 2 * 4)
    both = operations.count(jax.grad(loss, argnums=(0, 1)), image, kernel).convolutions
    # Nobody asks for the value, which is not computed.
    assert both == 2 * forward
    with_value = operations.count(jax.value_and_grad(loss, argnums=(0, 1)), image, kernel).convolutions
    assert with_value == 3 * forward


def test_loops_count_each_round_and_platforms_their_own_branch():
    x, y = shapes((4, 6), (6, 5))

    def loop(x, y):
        return lax.fori_loop(0, 7, lambda _, total: total + x @ y, jnp.zeros((4, 5)))

    assert operations.count(loop, x, y).products == 7 * 2 * 4 * 6 * 5

    def by_platform(x, y):
        return lax.platform_dependent(x, y, cpu=lambda x, y: x @ y + x @ y, default=lambda x, y: x @ y)

    assert operations.count(by_platform, x, y).products == 2 * 4 * 6 * 5
    assert operations.count(by_platform, x, y, platform="cpu").products == 2 * 2 * 4 * 6 * 5


def test_the_highest_precision_takes_six_passes_and_bfloat16_one():
    x, y = shapes((4, 6), (6, 5))
    plain = operations.count(lambda x, y: x @ y, x, y)
    highest = operations.count(lambda x, y: jnp.matmul(x, y, precision="highest"), x, y)
    assert (plain.passes, highest.passes) == (plain.products, 6 * plain.products)
    half = [jax.ShapeDtypeStruct(each.shape, jnp.bfloat16) for each in (x, y)]
    assert operations.count(lambda x, y: jnp.matmul(x, y, precision="highest"), *half).passes == plain.products


def test_the_rest_is_counted_by_what_it_gives():
    assert operations.count(lambda x: jnp.sin(x) * x, *shapes((3, 4))).rest == 2 * 12


@pytest.mark.parametrize("name", list(published.COUNTS))
def test_published_counts_are_met(name):
    """To the digits that are published; GoogLeNet's paper rounds, and pads another way than the release."""
    count = published.COUNTS[name]
    tolerance = {"vgg16": 0.003, "caffenet": 0.001, "googlenet": 0.06}.get(name, 1e-4)
    assert published.counted(count) == pytest.approx(count.multiply_adds, rel=tolerance)


def test_layers_are_counted_through_flax():
    layer = Conv(8, 3, 1)
    image = jnp.zeros((1, 6, 6, 4))
    variables = jax.eval_shape(layer.init, jax.random.key(0), image)
    assert operations.count(layer.apply, variables, image).convolutions == 2 * (6 * 6 * 8) * (9 * 4)
