"""The patch form of a convolution is the convolution; the machine it is lowered for decides which one runs."""

import inspect
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

from fcn_jax.ops import convolution
from fcn_jax.ops.convolution import conv2d

ROOT = Path(__file__).parents[1]


def native(x, kernel, stride=1, padding=0, dilation=1, groups=1):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


def scene(size, kernel, channels=(3, 4)):
    generator = np.random.default_rng(kernel)
    x = generator.normal(size=(2, *size, channels[0])).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(generator.normal(size=(kernel, kernel, *channels)).astype(np.float32))


CASES = [
    # size, kernel, stride, padding, dilation
    ((6, 5), 1, 1, 0, 1),
    ((6, 5), 3, 1, 1, 1),
    ((7, 6), 3, 2, 100, 1),
    ((9, 8), 5, 1, 2, 1),
    ((9, 8), 5, 2, 2, 1),
    ((12, 15), 7, 1, 3, 1),
    ((7, 9), 7, 1, 0, 1),
    ((2, 1), 7, 1, 3, 1),
    ((19, 14), 7, 2, 3, 2),
    ((14, 13), 5, 1, 0, 3),
    ((14, 15), 5, 3, 1, 3),
    ((7, 6), 1, 2, 0, 1),
    ((7, 6), 1, 1, 1, 1),
    ((33, 40), 3, 1, 0, 1),
]


@pytest.mark.parametrize(("size", "kernel_size", "stride", "padding", "dilation"), CASES)
def test_equals_the_native_convolution(size, kernel_size, stride, padding, dilation):
    x, kernel = scene(size, kernel_size)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    found, wanted = jax.jit(lambda x, kernel: [convolve(x, kernel, **options) for convolve in (conv2d, native)])(
        x, kernel
    )
    expected = [(n + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1 for n in size]
    assert wanted.shape == (2, *expected, 4)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("size", "kernel_size", "stride", "padding", "dilation"), [CASES[i] for i in (5, 8)])
def test_gradients_equal_the_native_ones(size, kernel_size, stride, padding, dilation):
    x, kernel = scene(size, kernel_size)
    options = {"stride": stride, "padding": padding, "dilation": dilation}

    @jax.jit
    def gradients(x, kernel):
        losses = [lambda x, kernel, c=c: jnp.sum(jnp.sin(c(x, kernel, **options))) for c in (conv2d, native)]
        return [jax.grad(loss, argnums=(0, 1))(x, kernel) for loss in losses]

    for found, wanted in zip(*gradients(x, kernel), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding", "dilation", "channels", "in_blocks"),
    [
        ((6, 5), 7, 1, 3, 1, (3, 128), False),  # patches: few cells
        ((2, 1), 7, 1, 3, 1, (128, 4), False),  # fewer than the kernel's
        ((9, 7), 5, 2, 1, 2, (128, 2), False),
        ((30, 29), 5, 1, 2, 1, (256, 256), True),  # or more, of many channels
        ((7, 6), 1, 2, 0, 1, (24, 32), False),  # a matrix
    ],
)
def test_products_equal_the_native_convolution(size, kernel_size, stride, padding, dilation, channels, in_blocks):
    """Values and both gradients of what CPUs compute by products, of no convolution at all."""
    x, kernel = scene(size, kernel_size, channels)

    def pulled(convolve, x, kernel):
        convolve = partial(convolve, stride=stride, padding=padding, dilation=dilation)
        y, pull = jax.vjp(convolve, x, kernel)
        return y, *pull(jnp.asarray(np.random.default_rng(0).normal(size=y.shape), x.dtype))

    ours = jax.jit(partial(pulled, conv2d))
    for found, wanted in zip(ours(x, kernel), jax.jit(partial(pulled, native))(x, kernel), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    text = ours.trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" not in text and ("stablehlo.while" in text) == in_blocks


# Channels into and out of a convolution, and columns beyond what is wanted: of its output, and of its map's gradient.
COLUMNS = [
    # channels, size, kernel, padding, dilation, output, gradient
    ((3, 40), (9, 24), 3, 0, 1, 0, 0),  # images, as they come
    ((40, 20), (9, 24), 3, 1, 1, 0, 0),  # YNNPACK on small maps
    ((40, 40), (9, 24), 3, 1, 1, 1, 1),
    ((40, 40), (9, 24), 3, 0, 1, 3, 0),  # the gradient is larger than its own map, the output
    ((40, 8), (9, 24), 4, 0, 1, 3, 0),  # YNNPACK, at the width of the map
    ((40, 40), (6, 24), 3, 4, 2, 0, 5),
    ((8, 40), (6, 24), 3, 4, 2, 0, 4),
    ((8, 16), (9, 24), 3, 0, 1, 0, 0),  # Eigen at any size
    ((40, 40), (9, 3), 3, 1, 1, 0, 0),  # too narrow
]


@pytest.mark.parametrize(
    ("batch", "side", "channels", "more"),
    [
        # Of one image, where channels are many.
        (1, 12, (256, 512), 1), (1, 24, (256, 256), 0), (1, 48, (256, 256), 1), (1, 48, (128, 256), 0),
        # Of several, unless there are few channels in few cells, or few channels out of large maps.
        (4, 32, (64, 64), 1), (4, 32, (64, 21), 0), (8, 32, (64, 21), 1), (4, 128, (32, 32), 1),
        (4, 128, (64, 64), 0), (4, 128, (256, 21), 0), (4, 128, (128, 128), 1),
        (8, 64, (3, 64), 0), (8, 64, (64, 8), 0), (8, 64, (8, 64), 0), (4, 128, (32, 64), 1), (2, 64, (16, 128), 1),
    ],
)  # fmt: skip
def test_a_column_more_makes_it_the_faster_library(batch, side, channels, more):
    x: Any = jax.ShapeDtypeStruct((batch, side, side, channels[0]), jnp.float32)
    assert convolution._columns_more(x, channels, (side, side), 1) == more


@pytest.mark.parametrize(("channels", "size", "kernel_size", "padding", "dilation", "output", "gradient"), COLUMNS)
def test_columns_more_change_nothing_but_the_library(channels, size, kernel_size, padding, dilation, output, gradient):
    """They make XLA take the faster of a CPU's two libraries, and are cut; accelerators have none."""
    x, kernel = scene(size, kernel_size, channels)
    options = {"padding": padding, "dilation": dilation}
    ours, theirs = (partial(convolve, **options) for convolve in (conv2d, native))
    wanted = theirs(x, kernel)
    cotangent = jax.random.normal(jax.random.key(0), wanted.shape)
    pulled = [jax.jit(lambda x, c, f=f: jax.vjp(lambda x: f(x, kernel), x)[1](c)[0]) for f in (ours, theirs)]
    np.testing.assert_allclose(jax.jit(ours)(x, kernel), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(pulled[0](x, cotangent), pulled[1](x, cotangent), rtol=0, atol=1e-3)
    for function in (
        lambda f: jax.jvp(f, (x, kernel), (jnp.sin(x), jnp.cos(kernel)))[1],
        lambda f: jax.jvp(jax.grad(lambda x: jnp.sum(f(x, kernel) ** 2)), (x,), (jnp.sin(x),))[1],
        lambda f: jax.vmap(f, (None, 0))(x, jnp.stack([kernel, -kernel])),
    ):
        found, expected = (jax.jit(partial(function, f))() for f in (ours, theirs))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    for function, arguments, width, more in (
        (jax.jit(ours), (x, kernel), wanted.shape[2], output),
        (pulled[0], (x, cotangent), size[1], gradient),
    ):
        for platform, columns in (("cpu", width + more), ("tpu", width)):
            text = function.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
            line = next(line for line in text.splitlines() if "stablehlo.convolution(" in line)
            assert f"-> tensor<2x{line.split('-> tensor<')[1].split('x')[1]}x{columns}x" in line


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(4, 9), (5, 3)])
def test_a_map_smaller_than_the_kernel_gives_an_empty_one(size, stride):
    x, kernel = scene(size, 7)
    found = jax.eval_shape(lambda x: conv2d(x, kernel, stride=stride), x)
    assert found.size == 0
    assert found.shape == native(x, kernel, stride=stride).shape


@pytest.mark.parametrize("size", [(1, 9), (9, 1)])
def test_an_empty_map_leaves_the_kernel_without_a_gradient(size):
    x, kernel = scene(size, 3, (128, 256))
    assert not np.any(jax.grad(lambda kernel: jnp.sum(conv2d(x, kernel)))(kernel))


def test_a_kernel_need_not_be_square():
    x = jax.random.normal(jax.random.key(0), (1, 9, 8, 2))
    kernel = jax.random.normal(jax.random.key(1), (5, 3, 2, 2))
    found = jax.jit(lambda x: conv2d(x, kernel, padding=1))(x)
    np.testing.assert_allclose(found, native(x, kernel, padding=1), atol=1e-4)


@pytest.mark.parametrize(
    ("kernel_size", "channels", "size", "on_cpu"),
    [
        (3, 5, 9, True),
        (3, 3, 9, True),
        (7, 5, 9, True),
        (7, 5, 6, True),
        (5, 128, 9, True),
        (1, 5, 9, True),
        (7, 128, 6, False),
        (5, 256, 9, False),
        (1, 32, 9, False),
    ],
)
@pytest.mark.parametrize("differentiate", [False, True])
def test_the_platform_decides(kernel_size, channels, size, on_cpu, differentiate):
    """Only CPUs run products: where kernels are of one tap or large for their map, and channels not few.

    Lowering for a TPU from here leaves nothing of them behind.
    """

    def run(x, kernel):
        return jnp.sum(conv2d(x, kernel, padding=kernel_size // 2))

    function = jax.jit(jax.grad(run, argnums=(0, 1)) if differentiate else run)
    shapes = (1, size, size, channels), (kernel_size, kernel_size, channels, channels)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    traced = function.trace(*shapes)
    lowered = {platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "tpu")}
    assert ("stablehlo.convolution" in lowered["cpu"]) == on_cpu
    assert ("stablehlo.dot_general" in lowered["cpu"]) != on_cpu
    assert "stablehlo.convolution" in lowered["tpu"]
    assert "stablehlo.dot_general" not in lowered["tpu"]
    assert "stablehlo.concatenate" not in lowered["tpu"]


@pytest.mark.parametrize(("channels", "as_products"), [(8, 0), (16, 3)])
def test_kernels_of_one_tap_are_matrices_where_channels_are_not_few(channels, as_products):
    x, kernel = scene((6, 5), 1, (channels, channels))

    def pulled(convolve, x, kernel):
        y, pull = jax.vjp(convolve, x, kernel)
        return y, *pull(jnp.cos(y))

    ours = jax.jit(partial(pulled, conv2d))
    for found, wanted in zip(ours(x, kernel), pulled(native, x, kernel), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    text = ours.trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    assert text.count("stablehlo.dot_general") == as_products


def test_kernel_gradients_of_few_outputs_and_many_channels_are_not_by_bands():
    x, kernels = jnp.zeros((1, 48, 48, 1024)), [jnp.zeros((3, 3, 1024, outputs)) for outputs in (21, 64)]
    assert [convolution._gains_by_bands(x, kernel, 1, 1, 1) for kernel in kernels] == [False, True]


def test_under_jit_and_vmap():
    x, kernel = scene((6, 5), 7)
    kernels = jnp.stack([kernel, -kernel])
    found = jax.jit(jax.vmap(lambda kernel: conv2d(x, kernel, padding=3)))(kernels)
    wanted = native(x, kernel, padding=3)
    np.testing.assert_allclose(found, jnp.stack([wanted, -wanted]), atol=1e-4)


def test_precision_is_handed_on():
    x, kernel = scene((6, 5), 7)
    text = str(jax.make_jaxpr(lambda x: conv2d(x, kernel, padding=3, precision=lax.Precision.HIGHEST))(x))
    # Once in the convolution of CPUs, once in that of accelerators.
    assert (
        text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") + text.count("precision=Precision.HIGHEST") == 2
    )


# Groups


def grouped_scene(size, kernel, groups, inputs, outputs):
    """`inputs` and `outputs` are those of one group."""
    x, kernels = scene(size, kernel, (groups * inputs, groups * outputs))
    return x, kernels[:, :, :inputs]


# Size, kernel, stride, padding, groups, channels into and out of a group. AlexNet's own are of the first two kinds.
GROUPS = [
    ((9, 8), 5, 1, 2, 2, 6, 4),
    ((6, 5), 3, 1, 1, 2, 6, 3),
    ((19, 14), 5, 4, 0, 3, 1, 2),
    ((7, 6), 3, 2, 1, 2, 2, 2),
    ((4, 5), 1, 1, 0, 4, 5, 1),
    ((2, 1), 5, 1, 2, 2, 5, 2),  # smaller than the kernel
]


@pytest.mark.parametrize("case", GROUPS)
def test_groups_equal_the_native_convolution(case):
    size, kernel_size, stride, padding, groups, inputs, outputs = case
    x, kernel = grouped_scene(size, kernel_size, groups, inputs, outputs)
    options = {"stride": stride, "padding": padding, "groups": groups}

    @jax.jit
    def values_and_gradients(x, kernel):
        results = []
        for convolve in (conv2d, native):
            y, gradients_of = jax.vjp(lambda x, kernel, c=convolve: c(x, kernel, **options), x, kernel)
            results.append((y, *gradients_of(jnp.sin(y))))
        return results

    for found, wanted in zip(*values_and_gradients(x, kernel), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_a_group_sees_its_own_channels_alone(kernel_size):
    x, kernel = grouped_scene((6, 7), kernel_size, groups=2, inputs=5, outputs=3)
    found = jax.jit(lambda x: conv2d(x, kernel, padding=1, groups=2))(x)
    for group in range(2):
        share = native(x[..., 5 * group : 5 * group + 5], kernel[..., 3 * group : 3 * group + 3], padding=1)
        np.testing.assert_allclose(found[..., 3 * group : 3 * group + 3], share, atol=1e-4)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("differentiate", [False, True])
def test_groups_are_taken_apart_on_cpus_alone(kernel_size, differentiate):
    def run(x, kernel):
        return jnp.sum(conv2d(x, kernel, padding=kernel_size // 2, groups=2))

    function = jax.jit(jax.grad(run, argnums=(0, 1)) if differentiate else run)
    shapes = (1, 9, 9, 12), (kernel_size, kernel_size, 6, 4)
    traced = function.trace(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    lowered = {platform: traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "tpu")}
    assert "group_count = 2" not in lowered["cpu"]
    assert "stablehlo.convolution" in lowered["cpu"]
    assert "group_count = 2" in lowered["tpu"]
    assert "stablehlo.dot_general" not in lowered["tpu"]


def test_precision_is_handed_on_to_groups():
    x, kernel = grouped_scene((6, 5), 3, groups=2, inputs=5, outputs=2)
    traced = jax.make_jaxpr(lambda x: conv2d(x, kernel, groups=2, precision=lax.Precision.HIGHEST))(x)

    def precisions(jaxpr):
        """Of every convolution, however deep it lies; a function that is called twice counts twice."""
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                yield equation.params["precision"]
            for inner in jaxprs_in_params(equation.params):
                yield from precisions(inner)

    highest = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
    assert list(precisions(traced.jaxpr)) == [highest] * 5  # group by group, by CPUs and by others; and whole


# Some rows at a time


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "values", "by_columns"),
    [
        ("_PATCH_VALUES", 200, ""), ("_PATCH_VALUES", 2000, ""),
        ("_BAND_VALUES", 200, ""), ("_BAND_VALUES", 1000, ""),
        ("_BAND_VALUES", 1000, "at once"), ("_BAND_VALUES", 1000, "one after another"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (3, 0, 2)])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_rows_at_a_time_equal_the_whole(monkeypatch, limit, values, by_columns, stride, padding, dilation, kernel_size):
    """However many rows there are in a part, and with all derivatives: reverse, forward, one over the other."""
    monkeypatch.setattr(convolution, limit, values)
    monkeypatch.setattr(convolution, "_gains_by_columns", lambda x, kernel, stride: bool(by_columns) and stride == 1)
    monkeypatch.setattr(convolution, "_BANDS_AT_ONCE", 1 if by_columns == "one after another" else 100)
    x, kernel = scene((23, 18), kernel_size)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    by_patches = limit == "_PATCH_VALUES"
    monkeypatch.setattr(convolution, "_is_large", lambda *_: by_patches)
    assert by_patches or convolution._gains_by_bands(x, kernel, **options)

    # Not conv2d, which remembers what it traced before the limits were changed.
    untraced = inspect.unwrap(convolution._conv2d)

    def ours(x, kernel):
        return untraced(x, kernel, stride, padding, dilation, 1, None)

    def theirs(x, kernel):
        return native(x, kernel, **options)

    weights = np.random.RandomState(5).normal(size=theirs(x, kernel).shape).astype(np.float32)
    for function in (
        lambda f: f(x, kernel),
        lambda f: jax.grad(lambda x, k: jnp.sum(weights * f(x, k)), (0, 1))(x, kernel),
        lambda f: jax.jvp(f, (x, kernel), (x + 1, kernel - 1))[1],
        lambda f: jax.jvp(jax.grad(lambda k: jnp.sum(f(x, k) ** 3)), (kernel,), (kernel + 1,))[1],
        lambda f: jax.vmap(jax.grad(lambda k, w: jnp.sum(w * f(x, k))), (None, 0))(
            kernel, np.stack([weights, -weights])
        ),
    ):
        for a, b in zip(
            jax.tree.leaves(jax.jit(partial(function, ours))()), jax.tree.leaves(function(theirs)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


def test_kernel_gradients_of_large_maps_are_by_bands_on_cpus_alone():
    """Each of the bands that fit into the cache is a convolution of its own; the sum has a smaller error, too."""
    x = jax.ShapeDtypeStruct((1, 640, 480, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 8, 8), jnp.float32)
    gradient = jax.jit(jax.grad(lambda k, x: jnp.sum(conv2d(x, k, padding=1) ** 2)))
    traced = gradient.trace(kernel, x)
    counts = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution(")
        for platform in ("cpu", "tpu")
    }
    assert counts == {"cpu": 1 + convolution._MOST_BANDS, "tpu": 2}


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("size", "at_once"), [((45, 40), 4), ((45, 40), 2), ((5, 3), 4), ((3, 3), 4)])
def test_kernel_gradients_of_many_channels_are_of_one_dimension(monkeypatch, size, at_once, dilation):
    """On CPUs, where a one-dimensional convolution is the faster library's; accelerators convolve the map as it is."""
    monkeypatch.setattr(convolution, "_BANDS_AT_ONCE", at_once)
    # Not conv2d, which remembers what it traced before the limit was changed.
    untraced = inspect.unwrap(convolution._conv2d)
    x, kernel = scene(size, 3, (128, 256))
    options = {"padding": dilation, "dilation": dilation}

    def ours(x, kernel):
        return untraced(x, kernel, 1, dilation, dilation, 1, None)

    bands = convolution._bands(x, kernel, 1)
    assert bands == (3 if size == (45, 40) else 1)
    wanted, pull = jax.vjp(lambda kernel: native(x, kernel, **options), kernel)
    cotangents = jnp.stack([jnp.sin(wanted), jnp.cos(wanted)])
    gradient = jax.jit(lambda x, c: jax.vjp(lambda kernel: ours(x, kernel), kernel)[1](c)[0])
    for found, c in zip(jax.vmap(gradient, (None, 0))(x, cotangents), cotangents, strict=True):
        np.testing.assert_allclose(found, pull(c)[0], rtol=0, atol=1e-5 * np.abs(found).max())
    tangent = jax.jit(lambda x: jax.jvp(lambda kernel: ours(x, kernel), (kernel,), (kernel + 1,))[1])(x)
    np.testing.assert_allclose(tangent, native(x, kernel + 1, **options), atol=1e-5 * np.abs(tangent).max())
    traced = gradient.trace(x, cotangents[0])
    for platform, of_one_dimension in (("cpu", bands if bands <= at_once else 1), ("tpu", 0)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("dim_numbers = [b, 0, f]") == of_one_dimension


@pytest.mark.parametrize(
    ("size", "channels", "options", "by_columns", "loops"),
    [
        ((20, 24), (16, 24), {"padding": 1}, False, 0),  # whole
        ((20, 24), (16, 24), {"padding": 1, "stride": 2}, False, 0),
        ((180, 160), (8, 8), {"padding": 2, "dilation": 2}, False, 0),  # in bands
        ((20, 24), (128, 256), {"padding": 1}, True, 0),
        ((60, 64), (128, 256), {"padding": 1}, True, 1),
        ((60, 80), (128, 256), {"padding": 12, "dilation": 12}, True, 1),  # by its own size, not by the padded one
        ((96, 96), (128, 256), {"padding": 1}, False, 0),
    ],
)
def test_gradients_have_their_axes_in_xlas_own_order(size, channels, options, by_columns, loops):
    """In loops, as over the parts of a batch, XLA computes any other naively on CPUs, in fifty times the time."""
    x, kernel = scene(size, 3, channels)
    text = jax.jit(jax.grad(lambda x, k: jnp.sum(conv2d(x, k, **options) ** 2), (0, 1))).lower(x, kernel).as_text()
    orders = set(re.findall(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", text))
    of_columns = {"[b, 0, f]x[0, i, o]->[b, 0, f]"} if by_columns else set()
    assert orders == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"} | of_columns
    assert text.count("stablehlo.while") == loops


def test_a_gradient_that_nobody_wants_is_not_computed():
    """Of an image: the tangent of its convolution would be one of zeros."""
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 384, 480, 3), (3, 3, 3, 4)))
    tangent = jax.make_jaxpr(lambda x, k: jax.jvp(lambda k: conv2d(x, k, padding=1), (k,), (k,))[1])
    rows = -(-384 // convolution._bands(x, kernel, 1))  # pyright: ignore[reportArgumentType]
    # Of accelerators: value and tangent; of CPUs: the value, and the tangent in bands.
    assert str(tangent(x, kernel)).count("conv_general_dilated[") == 3 + -(-384 // rows)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation"),
    [
        ((17, 23), 7, 2, 20, 1),
        ((16, 9), 11, 4, 30, 1),  # as AlexNet: more padding behind than before
        ((5, 9), 3, 2, 7, 2),
        ((1, 1), 3, 8, 11, 1),  # no cell sees it
        ((6, 7), 1, 3, 5, 1),
        ((6, 7), 2, 4, 19, 3),
    ],
)
def test_a_strided_one_amid_wide_padding_computes_what_sees_the_image(size, kernel, stride, padding, dilation):
    x, weights = scene(size, kernel)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    expected, pulled = jax.vjp(partial(native, **options), x, weights)
    found, pull = jax.vjp(partial(conv2d, **options), x, weights)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    cotangent = jnp.asarray(np.random.default_rng(0).normal(size=expected.shape), jnp.float32)
    for one, other in zip(pull(cotangent), pulled(cotangent), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_of_a_strided_one_cells_of_padding_are_not_computed():
    x, weights = scene((500, 500), 7)
    text = (
        jax.jit(partial(conv2d, stride=2, padding=100)).trace(x, weights).lower(lowering_platforms=("tpu",)).as_text()
    )
    (made,) = re.findall(r"stablehlo.convolution.*-> tensor<2x(\d+)x(\d+)x4xf32>", text)
    assert made == ("253", "253")  # of 347 a side


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(("size", "taps", "stride", "padding"), [(224, 7, 2, 100), (64, 11, 4, 100), (32, 3, 2, 4)])
def test_a_strided_one_amid_wide_padding_is_compiled_for_a_tpu(size, taps, stride, padding):
    """As the first layers of FCN-GoogLeNet and FCN-AlexNet are. The compiler ends the process over XLA's own."""
    program = f"""
import jax
from jax.sharding import SingleDeviceSharding
from fcn_jax.ops import convolution
from fcn_jax.plan import slices

place = SingleDeviceSharding(slices.devices(slices.parse("v5e:1x1"))[0])
shapes = [(1, {size}, {size}, 3), ({taps}, {taps}, 3, 64)]
conv = lambda x, kernel: (convolution.conv2d(x, kernel, stride={stride}, padding={padding}) ** 2).sum()
arguments = [jax.ShapeDtypeStruct(shape, "float32", sharding=place) for shape in shapes]
jax.jit(jax.grad(conv, (0, 1))).lower(*arguments).compile()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[:300]
