"""Confusion matrices and scores by hand, with classes that are absent and labels that are none."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from fcn_jax.metrics import Scores, confusion, scores

count = jax.jit(confusion, static_argnums=2)


def test_confusion_by_hand():
    labels = jnp.array([[0, 0, 1], [2, 2, 2]], jnp.uint8)
    predictions = jnp.array([[0, 1, 1], [2, 0, 2]])
    matrix = confusion(labels, predictions, 3)
    assert matrix.dtype == jnp.int32
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 1, 0], [1, 0, 2]])  # rows: truth


def test_labels_and_predictions_that_are_no_class_are_left_out():
    labels = jnp.array([0, 255, -1, 3, 21, 1, 1, 0, 2])
    predictions = jnp.array([0, 0, 1, 1, 2, 255, -1, 3, 1])
    np.testing.assert_array_equal(confusion(labels, predictions, 3), [[1, 0, 0], [0, 0, 0], [0, 1, 0]])


maps = numpy_st.arrays(np.int32, 30, elements=st.integers(-2, 7) | st.sampled_from([21, 255, 256, 2**31 - 1]))


@settings(max_examples=50, deadline=None)
@given(maps, maps)
def test_masked_is_compressed_and_parts_add_up(labels, predictions):
    valid = (labels >= 0) & (labels < 5) & (predictions >= 0) & (predictions < 5)
    wanted = np.zeros((5, 5), int)
    np.add.at(wanted, (labels[valid], predictions[valid]), 1)
    matrix = count(labels, predictions, 5)
    np.testing.assert_array_equal(matrix, wanted)
    parts = [count(labels[i::2], predictions[i::2], 5) for i in range(2)]
    np.testing.assert_array_equal(parts[0] + parts[1], matrix)


def test_255_is_void_even_with_more_classes_than_that():
    assert confusion(jnp.array([255, 256]), jnp.array([256, 256]), 300).sum() == 1


def test_bytes_do_not_overflow():
    """Row times number of classes exceeds a byte."""
    labels = jnp.full(7, 200, jnp.uint8)
    matrix = np.asarray(confusion(labels, labels, 201))
    assert matrix[200, 200] == matrix.sum() == 7


def test_scores_by_hand():
    found = scores(np.array([[6, 2], [1, 3]]))
    assert found.pixel_accuracy == pytest.approx(9 / 12)
    np.testing.assert_allclose(found.accuracy, [6 / 8, 3 / 4])
    np.testing.assert_allclose(found.iou, [6 / 9, 3 / 6])
    assert found.mean_accuracy == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert found.mean_iou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert found.frequency_weighted_iou == pytest.approx(8 / 12 * 6 / 9 + 4 / 12 * 3 / 6)
    assert all(type(value) is float for value in found[:4])


def test_a_class_in_neither_truth_nor_prediction_is_left_out():
    found = scores(np.array([[6, 0, 2], [0, 0, 0], [1, 0, 3]]))
    assert found[:4] == pytest.approx(scores(np.array([[6, 2], [1, 3]]))[:4])
    assert np.isnan(found.iou[1]) and np.isnan(found.accuracy[1])


def test_a_class_predicted_but_never_true_counts_zero_in_mean_iou_alone():
    found = scores(np.array([[6, 1, 1], [0, 0, 0], [0, 0, 4]]))
    assert found.iou[1] == 0 and np.isnan(found.accuracy[1])
    assert found.mean_iou == pytest.approx((6 / 8 + 0 + 4 / 5) / 3)
    assert found.mean_accuracy == pytest.approx((6 / 8 + 1) / 2)
    assert found.frequency_weighted_iou == pytest.approx(8 / 12 * 6 / 8 + 4 / 12 * 4 / 5)


def test_a_class_never_predicted_counts_zero():
    found = scores(np.array([[5, 0], [3, 0]]))
    assert (found.iou[1], found.accuracy[1]) == (0, 0)
    assert found.mean_iou == pytest.approx(5 / 16)


def test_perfect():
    assert scores(np.diag([3, 1, 4]))[:4] == (1, 1, 1, 1)


def test_nothing_counted_is_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores(np.zeros((3, 3), np.int32))
    assert isinstance(found, Scores)
    assert all(np.isnan(value).all() for value in found)


def test_matrices_of_a_device_and_of_a_whole_split():
    """Counts past the range of int32 and of float32's integers."""
    assert scores(jnp.array([[3, 1], [0, 0]]))[0] == 0.75
    big = np.array([[2**40 + 1, 0], [2, 2**40]], np.int64)
    assert scores(big).pixel_accuracy == pytest.approx(1 - 2 / (2**41 + 3), abs=1e-15)
