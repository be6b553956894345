"""SegNet's dropout: behind which blobs, in the tutorial's nets and in the one for PASCAL VOC."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import filled

from fcn_jax import models, state, weights

pytestmark = pytest.mark.usefixtures("fast_compilation")
# By the prototxts: dropout right behind a blob, or before the pooling that gives it.
DEEPER = {"pool3", "pool4", "pool5", "conv5_1_D", "conv4_1_D", "conv3_1_D"}
RELEASES = {
    "bayesian-segnet": (DEEPER, set()),
    "bayesian-segnet-pascal": (
        {"pool5", "conv5_1_D", "conv4_1_D", "conv3_1_D", "conv2_1_D"},
        {"pool1", "pool2", "pool3", "pool4"},
    ),
    "bayesian-segnet-basic": ({"pool3", "pool4", "conv_decode4", "conv_decode3"}, set()),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param("bayesian-segnet", marks=pytest.mark.slow), "bayesian-segnet-pascal", "bayesian-segnet-basic"],
)
def test_behind_which_blobs_dropout_is_applied(name):
    """At a rate of 0.9 a tenth is left of each, or that of four in each window."""
    release = weights.RELEASES[name]
    module = models.create(release.model, 3, width=1 / 2, dropout=0.9, **release.arguments)
    variables = filled(module)
    image = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)

    @jax.jit
    def kept(variables, key):
        _, taps = module.apply(variables, image, stochastic=True, return_taps=True, rngs={"dropout": key})
        return {blob: jnp.mean(x != 0) for blob, x in taps.items() if blob.startswith(("pool", "conv"))}

    shares = kept(variables, jax.random.key(0))
    behind, before = RELEASES[name]
    blobs = {blob for blob in shares if re.fullmatch(r"pool\d|conv\d(_\d(_D)?)?|conv_decode\d", blob)}
    assert {blob for blob in blobs if shares[blob] < 0.13} == behind
    assert {blob for blob in blobs if blob.startswith("pool") and 0.13 < shares[blob] < 0.35} == before
    # The net for PASCAL has both at pool5.
    assert (shares.get("pool5", 1) < 0.05) == (name == "bayesian-segnet-pascal")


def test_dropout_where_there_is_no_such_blob():
    module = models.create("segnet", 3, width=1 / 32, trunk="vgg11", dropout_after=("pool3", "conv3_3"))
    with pytest.raises(ValueError, match="dropout_after names conv3_3: on vgg11 it is one of conv1_1, conv2_1"):
        state.abstract_variables(module)


def test_dropout_where_a_decoder_has_no_such_blob():
    module = models.create("segnet_basic_bilinear", 3, width=1 / 8, dropout_after=("pool3", "conv_decode4"))
    with pytest.raises(ValueError, match="dropout_after names conv_decode4: on bilinear it is one of pool1, pool2"):
        state.abstract_variables(module)


def test_without_samples_there_is_no_dropout():
    module = models.create("bayesian_segnet", 3, width=1 / 32, dropout=0.99)
    plain = models.create("segnet", 3, width=1 / 32)
    image = np.ones((1, 32, 32, 3), np.float32)
    found = jax.jit(module.apply)(filled(module), image)
    np.testing.assert_array_equal(found, jax.jit(plain.apply)(filled(module), image))
