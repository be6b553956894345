"""What holds for every net of the table: its names and shapes, any size of image, gradients, half precision."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, CLASSES, OTHERS, filled
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax import models, optim, state
from fcn_jax.labels import by_head

every_net = pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.id)
pytestmark = pytest.mark.usefixtures("fast_compilation")


def test_every_model_has_a_row():
    assert {case.name for case in (*CASES, *OTHERS)} == set(models.SEGMENTATION)


@every_net
def test_names_and_shapes(case, golden):
    """At full size, with the number of parameters."""
    shapes = state.abstract_variables(case.full())
    described = {}
    for collection, tree in shapes.items():
        for name, leaf in zip(optim.parameter_names(tree), jax.tree.leaves(tree), strict=True):
            described[name if collection == "params" else f"{collection}: {name}"] = "×".join(map(str, leaf.shape))
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    golden(f"shapes-{case.name}{case.args.get('trunk', '')}", {"parameters": parameters, "shapes": described})


@pytest.mark.slow
@every_net
def test_logits(case, golden):
    """At a few places, in float64 so that no digit depends on the machine; and the same in float32."""
    with jax.enable_x64():
        module = case.narrow(dtype=jnp.float64)
        variables = jax.tree.map(lambda x: x.astype(np.float64), jax.device_get(filled(case.narrow())))
        logits = np.asarray(jax.jit(module.apply)(variables, case.image(1).astype(np.float64)))
    assert logits.dtype == np.float64 and logits.shape == (1, *case.size, CLASSES)
    flat = logits.ravel()
    probes = [float(f"{flat[i]:.6g}") for i in np.linspace(0, flat.size - 1, 8).astype(int)]
    golden(f"logits-{case.name}{case.args.get('trunk', '')}", probes)
    logits32 = jax.jit(case.narrow().apply)(filled(case.narrow()), case.image(1))
    assert logits32.dtype == jnp.float32
    np.testing.assert_allclose(logits32, logits, rtol=0, atol=3e-5 * np.abs(logits).max())


@pytest.mark.slow
@every_net
@settings(deadline=None, max_examples=6)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_any_size_comes_back(case, height, width):
    module = case.narrow()
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    variables = state.abstract_variables(module)
    logits = jax.eval_shape(module.apply, variables, image)
    assert logits.shape == (1, height, width, CLASSES)
    assert logits.dtype == jnp.float32
    scores = jax.eval_shape(functools.partial(module.apply, upsample=False), variables, image)
    assert scores.shape[3] == CLASSES and scores.shape[1] <= height + 31


@pytest.mark.parametrize(
    "case",
    [
        *CASES[:2],
        *(
            pytest.param(case, marks=pytest.mark.slow)
            for case in (*CASES[2:], *OTHERS)
            if hasattr(case.narrow(), "resampling")
        ),
    ],
    ids=lambda case: case.id,
)
def test_logits_are_scores_resampled(case):
    module = case.narrow()
    image = case.image(1)
    logits, scores = jax.jit(
        lambda variables: (module.apply(variables, image), module.apply(variables, image, upsample=False))
    )(filled(module))
    found = module.resampling(scores.shape[1:3], image.shape[1:3])(scores)
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5 * np.abs(logits).max())


@pytest.mark.slow
@every_net
def test_a_single_pixel(case):
    """The smallest image there is, for real."""
    logits = jax.jit(case.narrow().apply)(filled(case.narrow()), case.image(1)[:, :1, :1])
    assert logits.shape == (1, 1, 1, CLASSES) and np.all(np.isfinite(logits))


@pytest.mark.slow
@every_net
def test_every_parameter_has_a_gradient(case):
    """In training, where batch norm is by the batch: what a bias in front of it adds it takes away, gradient."""
    module = case.narrow()
    variables = filled(module)

    def loss(params):
        given = variables | {"params": params}
        rngs = {"dropout": jax.random.key(0)}
        logits, _ = module.apply(given, case.image(), train=True, rngs=rngs, mutable=["batch_stats"])
        probed = [
            jnp.sum(jnp.square(x) * np.linspace(0.5, 1.5, x.size, dtype=np.float32).reshape(x.shape))
            for x in by_head(logits).values()
        ]
        return sum(probed)

    gradients = jax.device_get(jax.jit(jax.grad(loss))(variables["params"]))
    for name, gradient in zip(optim.parameter_names(gradients), jax.tree.leaves(gradients), strict=True):
        assert np.all(np.isfinite(gradient)), name
        layer, kind = name.split("/")
        norms = variables.get("batch_stats", {})
        taken_away = norms and kind == "bias" and layer not in norms and layer not in module.class_layers()[""]
        assert taken_away or np.any(gradient != 0), name


@pytest.mark.slow
@every_net
def test_bfloat16(case):
    """Layers compute in it; parameters, statistics and logits stay float32; logits differ by 5 % of the largest, RMS.

    That is what some fifty layers of eight bits give at these widths; at full width sums are longer and errors smaller.
    """
    module = case.narrow(dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.abstract_variables(module)))
    wanted = jax.jit(case.narrow().apply)(filled(case.narrow()), case.image(1))
    found = jax.jit(module.apply)(filled(case.narrow()), case.image(1))
    assert found.dtype == jnp.float32
    difference = np.abs(found - wanted)
    assert np.sqrt(np.mean(difference**2)) <= 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("name", "classes", "args", "parameters"),
    [
        ("segnet", 11, {}, 29_449_355),
        ("segnet", 12, {}, 29_449_932),
        ("segnet", 21, {}, 29_455_125),
        ("segnet", 37, {}, 29_464_357),
        ("segnet_basic", 11, {}, 1_416_587),
        ("deconvnet", 21, {}, 251_805_653),
        ("deconvnet", 21, {"fc_width": 1024}, 81_896_789 + 21_120),  # published without its batch norms
        ("deeplab_largefov", 21, {}, 20_505_429),
        ("fcn_resnet50", 21, {}, 35_322_218),
        ("fcn_resnet101", 21, {}, 54_314_346),
    ],
)
def test_published_parameter_counts(name, classes, args, parameters):
    shapes = state.abstract_params(models.create(name, classes, **args))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == parameters
