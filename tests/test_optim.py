"""Optimizers against the loops that they are defined by; schedules, rules and frozen sets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from fcn_jax import optim
from fcn_jax.errors import ConfigError

SHAPES = {"conv1": {"bias": (3,), "kernel": (2, 3)}, "fc6": {"bias": (2,), "kernel": (3, 2)}, "up": {"kernel": (2, 2)}}
NAMES = ["conv1/bias", "conv1/kernel", "fc6/bias", "fc6/kernel", "up/kernel"]


def fields(**changes) -> ConfigDict:
    """A config's `optim` group: plain SGD at a fixed rate, but for the changes."""
    group = {
        "name": "sgd", "lr": 0.1, "momentum": 0.9, "beta2": 0.999, "weight_decay": 0.0,
        "lr_multipliers": (), "decay_multipliers": (), "frozen": (), "schedule": "fixed", "warmup_steps": 0,
        "warmup_from": 0.0, "boundaries": (), "gamma": 0.1, "power": 0.9, "clip_norm": 0.0,
    }  # fmt: skip
    return ConfigDict(group | changes)


def draw(seed: int):
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(generator.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def by_name(tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf, np.float64) for name, leaf in zip(NAMES, jax.tree.leaves(tree), strict=True)}


def zeros() -> dict[str, np.ndarray]:
    return {name: np.zeros_like(value) for name, value in by_name(draw(0)).items()}


def run(group: ConfigDict, steps: int, total_steps: int = 100):
    """Parameters after each step from `draw(0)`, on the gradients `draw(1)`, `draw(2)` …; and the last state."""
    params = draw(0)
    optimizer = optim.make_optimizer(group, total_steps, params)
    state, trajectory = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(draw(step + 1), state, params)
        params = optax.apply_updates(params, updates)
        trajectory.append(by_name(params))
    return trajectory, state


def assert_trajectory(found, wanted):
    for step, (a, b) in enumerate(zip(found, wanted, strict=True)):
        for name in NAMES:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6, err_msg=f"{name} after step {step}")


def test_sgd_is_caffes():
    """Rate and multipliers inside the momentum, so that a rate that falls leaves the buffer as it was."""
    group = fields(
        momentum=0.99, weight_decay=0.05, schedule="step", boundaries=(3, 5), gamma=0.1,
        lr_multipliers=(("*/bias", 2.0), ("up/*", 0.0)), decay_multipliers=(("*/bias", 0.0), ("fc6/bias", 3.0)),
    )  # fmt: skip
    rates = [0.1] * 3 + [0.01] * 2 + [0.001] * 3
    lr_mult = {"conv1/bias": 2, "conv1/kernel": 1, "fc6/bias": 2, "fc6/kernel": 1, "up/kernel": 0}
    decay_mult = {"conv1/bias": 0, "conv1/kernel": 1, "fc6/bias": 3, "fc6/kernel": 1, "up/kernel": 1}
    w, v, wanted = by_name(draw(0)), zeros(), []
    for step, rate in enumerate(rates):
        g = by_name(draw(step + 1))
        for name in NAMES:
            v[name] = 0.99 * v[name] + rate * lr_mult[name] * (g[name] + 0.05 * decay_mult[name] * w[name])
            w[name] = w[name] - v[name]
        wanted.append(dict(w))
    assert_trajectory(run(group, len(rates))[0], wanted)


def test_torch_sgd_has_the_rate_outside():
    group = fields(
        name="torch_sgd", weight_decay=0.05, schedule="step", boundaries=(2,), gamma=0.1,
        lr_multipliers=(("fc6/*", 10.0),), decay_multipliers=(("*/bias", 0.0),),
    )  # fmt: skip
    w, v, wanted = by_name(draw(0)), zeros(), []
    for step, rate in enumerate([0.1, 0.1, 0.01, 0.01]):
        g = by_name(draw(step + 1))
        for name in NAMES:
            v[name] = 0.9 * v[name] + g[name] + (0 if name.endswith("bias") else 0.05) * w[name]
            w[name] = w[name] - rate * (10 if name.startswith("fc6") else 1) * v[name]
        wanted.append(dict(w))
    assert_trajectory(run(group, 4)[0], wanted)


def test_adamw():
    group = fields(
        name="adamw", lr=0.01, weight_decay=0.1, schedule="poly", power=1.0, warmup_steps=2,
        lr_multipliers=(("*/bias", 2.0),), decay_multipliers=(("*/bias", 0.0),),
    )  # fmt: skip
    rates = [0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025]
    w, wanted = by_name(draw(0)), []
    m, v = zeros(), zeros()
    for step, rate in enumerate(rates, start=1):
        g = by_name(draw(step))
        for name in NAMES:
            bias = name.endswith("bias")
            m[name] = 0.9 * m[name] + 0.1 * g[name]
            v[name] = 0.999 * v[name] + 0.001 * g[name] ** 2
            direction = m[name] / (1 - 0.9**step) / (np.sqrt(v[name] / (1 - 0.999**step)) + 1e-8)
            w[name] = w[name] - rate * (2 if bias else 1) * (direction + (0 if bias else 0.1) * w[name])
        wanted.append(dict(w))
    assert_trajectory(run(group, len(rates), total_steps=6)[0], wanted)


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"schedule": "fixed"}, {0: 2, 99: 2, 1000: 2}),
        ({"schedule": "step", "boundaries": (10, 20)}, {0: 2, 9: 2, 10: 0.2, 19: 0.2, 20: 0.02, 99: 0.02}),
        ({"schedule": "step", "boundaries": (10,), "gamma": 0.5}, {9: 2, 10: 1}),
        ({"schedule": "poly", "power": 0.9}, {0: 2, 50: 2 * 0.5**0.9, 99: 2 * 0.01**0.9, 100: 0, 101: 0}),
        ({"schedule": "cosine"}, {0: 2, 25: 1 + np.cos(np.pi / 4), 50: 1, 100: 0, 150: 0}),
        ({"schedule": "fixed", "warmup_steps": 4}, {0: 0.5, 1: 1, 3: 2, 4: 2, 99: 2}),
        ({"schedule": "cosine", "warmup_steps": 20}, {0: 0.1, 19: 2, 20: 2, 60: 1, 100: 0}),
        ({"schedule": "poly", "power": 1.0, "warmup_steps": 20}, {10: 1.1, 20: 2, 60: 1, 100: 0}),
        ({"schedule": "step", "boundaries": (10,), "warmup_steps": 5}, {4: 2, 9: 2, 10: 0.2}),
        ({"schedule": "cosine", "warmup_steps": 100}, {99: 2, 100: 2}),
        ({"schedule": "poly", "power": 1.0, "warmup_steps": 20, "warmup_from": 0.25}, {0: 0.5, 10: 1.25, 20: 2, 60: 1}),
    ],
)
def test_schedules(changes, values):
    rate = optim.make_schedule(fields(lr=2.0, **changes), total_steps=100)
    found = [jnp.asarray(rate(jnp.asarray(step, jnp.int32))) for step in values]
    np.testing.assert_allclose(jnp.stack(found), list(values.values()), atol=1e-6)
    assert all(value.dtype == jnp.float32 for value in found)


def test_clipping_shortens_the_whole_gradient_and_never_lengthens_it():
    norm = np.sqrt(sum(np.sum(g**2) for g in by_name(draw(1)).values()))
    start, gradient = by_name(draw(0)), by_name(draw(1))
    for limit, factor in ((0.5, 0.5 / norm), (100.0, 1.0)):
        (after,), _ = run(fields(clip_norm=limit), 1)
        assert_trajectory([after], [{name: start[name] - 0.1 * factor * gradient[name] for name in NAMES}])


def test_clipping_comes_before_the_decay_and_measures_what_learns():
    """As Caffe's solver does; a frozen layer's gradient shortens nobody else's."""
    (after,), _ = run(fields(clip_norm=1.0, weight_decay=0.5, frozen=("fc6/*",)), 1)
    start, gradient = by_name(draw(0)), by_name(draw(1))
    learned = [name for name in NAMES if not name.startswith("fc6")]
    norm = np.sqrt(sum(np.sum(gradient[name] ** 2) for name in learned))
    wanted = {name: start[name] - 0.1 * (gradient[name] / norm + 0.5 * start[name]) for name in learned}
    assert_trajectory([after], [start | wanted])


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_frozen_parameters_stay_and_hold_no_buffers(name):
    trajectory, state = run(fields(name=name, weight_decay=0.5, frozen=("conv1/*", "up/kernel")), 3)
    start = by_name(draw(0))
    for parameter in NAMES:
        held = parameter.startswith(("conv1", "up"))
        assert np.array_equal(trajectory[-1][parameter], start[parameter]) == held, parameter
    buffers = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert buffers == [(2,), (3, 2)] * (2 if name == "adamw" else 1)


def test_the_last_matching_rule_holds():
    rules = (("*", 0.0), ("fc6/*", 1.0), ("*/bias", 3.0))
    (after,), _ = run(fields(lr_multipliers=rules), 1)
    start, gradient = by_name(draw(0)), by_name(draw(1))
    factors = {"conv1/bias": 3, "conv1/kernel": 0, "fc6/bias": 3, "fc6/kernel": 1, "up/kernel": 0}
    assert_trajectory([after], [{name: start[name] - 0.1 * factors[name] * gradient[name] for name in NAMES}])


def test_names_and_frozen_mask():
    params = draw(0)
    assert optim.parameter_names(params) == NAMES
    mask = optim.frozen_mask(params, ("up*", "*/bias"))
    assert jax.tree.leaves(mask) == [True, False, True, False, True]
    assert not any(jax.tree.leaves(optim.frozen_mask(params, ())))


@pytest.mark.parametrize("field", ["lr_multipliers", "decay_multipliers", "frozen"])
def test_a_pattern_that_matches_nothing_is_refused(field):
    patterns = ("conv1/*", "fc8/*")
    value = patterns if field == "frozen" else tuple((pattern, 1.0) for pattern in patterns)
    message = rf"^optim\.{field}: 'fc8/\*' matches no parameter; they are conv1/bias, .*, up/kernel$"
    with pytest.raises(ConfigError, match=message):
        optim.make_optimizer(fields(**{field: value}), 10, draw(0))


def test_names_that_are_none_are_refused_at_once():
    with pytest.raises(ConfigError, match=r"optim\.name: no optimizer 'adam'; there are sgd, torch_sgd, adamw"):
        optim.make_optimizer(fields(name="adam"), 10, draw(0))
    with pytest.raises(ConfigError, match=r"optim\.schedule: no 'linear'; there are fixed, step, poly, cosine"):
        optim.make_optimizer(fields(schedule="linear"), 10, draw(0))


def test_shapes_are_enough_to_make_one():
    shapes = jax.eval_shape(lambda: draw(0))
    optimizer = optim.make_optimizer(fields(frozen=("up/*",), clip_norm=1.0), 10, shapes)
    assert jax.tree.structure(jax.eval_shape(optimizer.init, shapes)) == jax.tree.structure(optimizer.init(draw(0)))
