"""SegNet's dropout: behind which blobs, in the tutorial's net and in the one for PASCAL VOC."""

import jax
import numpy as np
import pytest
from cases import filled

from fcn_jax import models, weights

pytestmark = pytest.mark.usefixtures("fast_compilation")
DEEPER = {"pool3", "pool4", "pool5", "conv5_1_D", "conv4_1_D", "conv3_1_D"}
RELEASES = {"bayesian-segnet": DEEPER, "bayesian-segnet-pascal": DEEPER | {"pool1", "pool2", "conv2_1_D"}}


@pytest.mark.parametrize("name", RELEASES)
def test_behind_which_blobs_dropout_is_applied(name):
    """At a rate of nearly one little is left of them, and of no other blob of the encoder's or decoder's blocks."""
    release = weights.RELEASES[name]
    module = models.create(release.model, 3, width=1 / 4, dropout=0.99, **release.arguments)
    variables = filled(module)
    image = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def kept(variables, key):
        _, taps = module.apply(variables, image, stochastic=True, return_taps=True, rngs={"dropout": key})
        return {blob: (x != 0).mean() for blob, x in taps.items() if blob.startswith(("pool", "conv"))}

    shares = kept(variables, jax.random.key(0))
    ends = {f"pool{block}" for block in range(1, 6)} | {f"conv{block}_1_D" for block in range(2, 6)}
    assert {blob for blob in ends if shares[blob] < 0.05} == RELEASES[name]


def test_without_samples_there_is_no_dropout():
    module = models.create("bayesian_segnet", 3, width=1 / 32, dropout=0.99)
    plain = models.create("segnet", 3, width=1 / 32)
    image = np.ones((1, 32, 32, 3), np.float32)
    found = jax.jit(module.apply)(filled(module), image)
    np.testing.assert_array_equal(found, jax.jit(plain.apply)(filled(module), image))
