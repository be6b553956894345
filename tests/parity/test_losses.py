"""Value and gradient of the loss against SoftmaxWithLoss of BVLC's Caffe, of SegNet's and of DeepLab's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import losses

CASES = (
    *("bvlc_sum_n1", "bvlc_sum_n3", "bvlc_valid_n3", "bvlc_all_ignored", "bvlc_big_logits"),
    *("segnet_weighted", "segnet_plain", "deeplab"),
)


@pytest.fixture(scope="module")
def archive(shared):
    with np.load(shared / "parity" / "losses" / "case.npz") as case:
        return {name: case[name] for name in case.files}


def options(archive) -> dict[str, dict]:
    return {case["name"]: case for case in json.loads(str(archive["meta"]))["cases"]}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(archive, case):
    described = options(archive)[case]
    normalize = described["normalize"]
    class_weights = None if described["weights"] is None else jnp.asarray(described["weights"], jnp.float32)
    logits = jnp.moveaxis(archive[f"{case}.logits"], 1, -1)
    labels = archive[f"{case}.label"][:, 0]
    labels = jnp.where(np.isin(labels, described["ignore"]), 255, labels)

    def loss(logits):
        total, count = losses.cross_entropy(logits, labels, class_weights)
        return total / (jnp.maximum(count, 1).astype(total.dtype) if normalize else len(labels))

    value, gradient = jax.value_and_grad(loss)(logits)
    wanted = np.moveaxis(archive[f"{case}.grad"], 1, -1)
    np.testing.assert_allclose(value, archive[f"{case}.loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_no_case_is_left_out(archive):
    assert options(archive).keys() == set(CASES)
