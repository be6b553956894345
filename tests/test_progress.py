"""What a run tells of itself: here, how long it waited for data."""

import time
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import config as experiment
from fcn_jax import parallel
from fcn_jax.progress import Progress, first_nonfinite


class Value:
    """An array of a step that is still running, or no longer."""

    def __init__(self, ready):
        self._ready = ready

    def is_ready(self):
        return self._ready

    def __array__(self, dtype=None, copy=None):
        return np.ones(1)

    def __float__(self):
        return 1.0


@pytest.mark.parametrize(("before", "waited"), [("none", True), ("running", False), ("done", True)])
def test_waits_that_no_device_sees_do_not_count(before, waited, capsys):
    lines: list[dict[str, float]] = []
    reporter: Any = SimpleNamespace(scalars=lambda step, entries: lines.append(entries))
    config = experiment.default()
    config.train.log_every = config.train.steps = 2
    progress = Progress(config, reporter, ["w"], lambda step: 0.1)

    def add(step, ready):
        values: Any = {name: Value(ready) for name in ("loss_sum", "pixels", "gradient_norms")}
        state: Any = None
        progress.add(step, values, state)

    if before != "none":
        add(1, before == "done")
    with progress.waiting():
        time.sleep(0.05)
    add(2, True)
    assert (lines[0]["train/data_wait"] > 0) == waited
    assert "waiting for data" in capsys.readouterr().out


@pytest.mark.parametrize("shard_state", [None, False, True])
def test_the_first_nonfinite_parameter_is_named(shard_state):
    """On one device, whole on several, and in shares."""

    def named(params):
        params = jax.tree.map(jnp.asarray, params)
        if shard_state is not None:
            params = parallel.put_state(params, parallel.make_mesh(), shard_state)
        return first_nonfinite(params)

    params = {
        "first": {"kernel": np.zeros((2, 16, 64, 8))},
        "second": {"kernel": np.ones((1, 1, 64, 256)), "b": np.ones(3)},
    }
    assert named(params) is None
    for value in (np.nan, np.inf, -np.inf):
        broken = jax.tree.map(np.array, params)
        broken["second"]["kernel"][0, 0, 3, 1] = value
        assert named(broken) == "second/kernel"
        broken["first"]["kernel"][1, 0, 0, 0] = value
        assert named(broken) == "first/kernel"
