"""DeconvNet's crops: which boxes count, where their scores go, and that the largest of them stays."""

import numpy as np
import pytest

from fcn_jax import proposals
from fcn_jax.data.boxes import read_boxes
from fcn_jax.errors import DataError

IMAGE = np.random.RandomState(0).randint(0, 255, (240, 300, 3)).astype(np.uint8)


def said(*values):
    """A net that gives a crop the same scores everywhere, other ones each time."""
    seen = iter(values)

    def scores(crop):
        assert crop.shape == (224, 224, 3) and crop.dtype == np.uint8
        return np.broadcast_to(np.float32(next(seen)), (224, 224, 2))

    return scores


def test_the_largest_score_of_all_boxes_counts():
    boxes = [(0, 0, 150, 120), (100, 0, 300, 240)]
    best = proposals.score_map(said([1, -2], [0.5, 3]), IMAGE, boxes, 2)
    np.testing.assert_allclose(best[0, 0], [1, 0])  # never below zero
    np.testing.assert_allclose(best[0, 120], [1, 3])
    np.testing.assert_allclose(best[200, 200], [0.5, 3])
    np.testing.assert_allclose(best[200, 0], [0, 0])


def test_small_boxes_and_those_after_the_fiftieth_are_passed_over():
    boxes = [(0, 0, 300, 111), (0, 0, 111, 240)] + [(0, 0, 112, 112)] * 60
    calls = []
    proposals.score_map(lambda crop: calls.append(1) or np.zeros((224, 224, 2)), IMAGE, boxes, 2)
    assert len(calls) == 48


def test_scores_follow_the_picture():
    """A crop's own brightness comes back at the places it was taken from."""
    image = np.zeros((240, 300, 3), np.uint8)
    image[50:170, 60:200] = 200
    best = proposals.score_map(lambda crop: crop[..., :2] / 200, image, [(20, 10, 280, 230)], 2)
    assert best[100, 130, 0] > 0.99 and best[20, 30, 0] < 0.01 and best.shape == (240, 300, 2)


def test_the_ensemble():
    best, other = np.array([[[2.0, 3]]]), np.array([[[-1.0, 0.5]]])
    np.testing.assert_array_equal(proposals.ensemble(best, other), [[[0, 1.5]]])


def test_a_box_that_leaves_the_image():
    with pytest.raises(DataError, match="the box 0 0 301 240 leaves the image of 300×240 pixels"):
        proposals.score_map(said([0, 0]), IMAGE, [(0, 0, 301, 240)], 2)


def test_files_of_boxes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("1 2 30 40 0.9\n\n5,6,70.4,80\n")
    assert read_boxes(path) == [(1, 2, 30, 40), (5, 6, 70, 80)]
    for line in ("1 2 3", "a b c d", "5 5 5 9", "-1 0 4 4", "nan 0 1 1", "inf 0 1 1"):
        path.write_text(f"0 0 1 1\n{line}\n")
        with pytest.raises(DataError, match=r"a\.txt, line 2: "):
            read_boxes(path)
    with pytest.raises(DataError, match="no boxes can be read"):
        read_boxes(tmp_path / "b.txt")
