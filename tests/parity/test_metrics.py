"""Confusion matrix and scores against the FCN release's own scoring."""

import json

import numpy as np
import pytest

from fcn_jax import metrics

CASES = (
    "voc21", "voc21_absent_gt", "voc21_absent_both", "voc21_never_predicted", "perfect", "all_wrong", "no_void",
    "mostly_void", "context60", "siftflow_sem33", "siftflow_geo3", "nyud40", "single_class", "stray_label",
)  # fmt: skip


@pytest.fixture(scope="module")
def archive(shared):
    with np.load(shared / "parity" / "metrics" / "case.npz") as case:
        return {name: case[name] for name in case.files}


@pytest.mark.parametrize("case", CASES)
def test_scores(archive, case):
    wanted = {name: archive[f"{case}.{name}"] for name in ("gt", "pred", "hist", "acc", "iu", "metrics")}
    matrix = np.asarray(metrics.confusion(wanted["gt"], wanted["pred"], len(wanted["hist"])))
    np.testing.assert_array_equal(matrix, wanted["hist"])
    scores = metrics.scores(matrix)
    means = (scores.pixel_accuracy, scores.mean_accuracy, scores.mean_iou, scores.frequency_weighted_iou)
    np.testing.assert_allclose(means, wanted["metrics"], rtol=1e-12)
    np.testing.assert_allclose(scores.accuracy, wanted["acc"], rtol=1e-12)
    np.testing.assert_allclose(scores.iou, wanted["iu"], rtol=1e-12)


def test_no_case_is_left_out(archive):
    assert {case["name"] for case in json.loads(str(archive["meta"]))["cases"]} == set(CASES)
