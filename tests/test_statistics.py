"""Batch norm's statistics over several batches: the mean of what each batch gives alone."""

import jax
import numpy as np
import pytest

from fcn_jax import models, state, statistics

pytestmark = pytest.mark.usefixtures("fast_compilation")


@pytest.mark.slow
def test_is_the_mean_of_the_batches():
    model = models.create("bayesian_segnet_basic", 3, width=1 / 16)
    variables = state.init_variables(model, 0)
    batches = [np.random.RandomState(seed).normal(seed, 3, size=(2, 9, 12, 3)).astype(np.float32) for seed in range(3)]
    found = statistics.over_batches(model, variables, iter(batches))
    assert jax.tree.structure(found) == jax.tree.structure(variables["batch_stats"])
    apply = jax.jit(
        lambda image: model.apply(
            variables, image, train=True, stochastic=False, return_taps=True, mutable=["batch_stats"]
        )[1]
    )
    alone = [apply(batch)["batch_stats"] for batch in batches]
    for layer, leaves in found.items():
        # One step from mean 0 and variance 1 with a momentum of 0.9 holds a tenth of what the batch gave.
        mean = np.mean([10 * np.asarray(stats[layer]["mean"]) for stats in alone], axis=0)
        var = np.mean([10 * (np.asarray(stats[layer]["var"]) - 0.9) for stats in alone], axis=0)
        np.testing.assert_allclose(leaves["mean"], mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(leaves["var"], var, rtol=1e-2, atol=1e-3)


def test_without_a_batch():
    model = models.create("segnet_basic", 3, width=1 / 16)
    with pytest.raises(ValueError, match="no batch"):
        statistics.over_batches(model, state.init_variables(model, 0), iter(()))
