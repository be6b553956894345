"""What a run tells of itself: here, how long it waited for data."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fcn_jax import config as experiment
from fcn_jax.progress import Progress


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
