"""SegNet's dropout: behind which blobs, in the tutorial's net and in the one for PASCAL VOC."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import filled

from fcn_jax import models, weights

pytestmark = pytest.mark.usefixtures("fast_compilation")
# By the prototxts: dropout right behind a blob, or before the pooling that gives it.
DEEPER = {"pool3", "pool4", "pool5", "conv5_1_D", "conv4_1_D", "conv3_1_D"}
RELEASES = {
    "bayesian-segnet": (DEEPER, set()),
    "bayesian-segnet-pascal": (
        {"pool5", "conv5_1_D", "conv4_1_D", "conv3_1_D", "conv2_1_D"},
        {"pool1", "pool2", "pool3", "pool4"},
    ),
}


@pytest.mark.parametrize("name", RELEASES)
def test_behind_which_blobs_dropout_is_applied(name):
    """At a rate of 0.9 a tenth is left of each, or that of four in each window."""
    release = weights.RELEASES[name]
    module = models.create(release.model, 3, width=1 / 2, dropout=0.9, **release.arguments)
    variables = filled(module)
    image = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def kept(variables, key):
        _, taps = module.apply(variables, image, stochastic=True, return_taps=True, rngs={"dropout": key})
        return {blob: jnp.mean(x != 0) for blob, x in taps.items() if blob.startswith(("pool", "conv"))}

    shares = kept(variables, jax.random.key(0))
    pools = {f"pool{block}" for block in range(1, 6)}
    behind, before = RELEASES[name]
    assert {blob for blob in pools | {f"conv{block}_1_D" for block in range(2, 6)} if shares[blob] < 0.11} == behind
    assert {blob for blob in pools if 0.11 < shares[blob] < 0.35} == before


def test_without_samples_there_is_no_dropout():
    module = models.create("bayesian_segnet", 3, width=1 / 32, dropout=0.99)
    plain = models.create("segnet", 3, width=1 / 32)
    image = np.ones((1, 32, 32, 3), np.float32)
    found = jax.jit(module.apply)(filled(module), image)
    np.testing.assert_array_equal(found, jax.jit(plain.apply)(filled(module), image))
