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
        assert crop.shape == (224, 224, 3) and crop.dtype == np.float32
        return np.broadcast_to(np.float32(next(seen)), (224, 224, 2))

    return scores


def test_the_largest_score_of_all_boxes_counts():
    boxes = [(0, 0, 150, 120), (100, 0, 300, 240)]
    best = proposals.score_map(said([1, -2], [0.5, 3]), IMAGE, boxes, 2)
    np.testing.assert_allclose(best[0, 0], [1, 0])  # never below zero
    np.testing.assert_allclose(best[0, 120], [1, 3])
    np.testing.assert_allclose(best[200, 200], [0.5, 3])
    np.testing.assert_allclose(best[200, 0], [0, 0])


def test_small_boxes_do_not_count_among_the_fifty():
    boxes = [(0, 0, 300, 111), (0, 0, 111, 240)] + [(0, 0, 112, 112)] * 60
    calls = []
    proposals.score_map(lambda crop: calls.append(1) or np.zeros((224, 224, 2)), IMAGE, boxes, 2)
    assert len(calls) == 50


def test_scores_follow_the_picture():
    """A crop's own brightness comes back at the places it was taken from."""
    image = np.zeros((240, 300, 3), np.uint8)
    image[50:170, 60:200] = 200
    best = proposals.score_map(lambda crop: crop[..., :2] / 200, image, [(20, 10, 280, 230)], 2)
    assert best[100, 130, 0] > 0.99 and best[20, 30, 0] < 0.01 and best.shape == (240, 300, 2)


def test_the_ensemble():
    best, other = np.array([[[2.0, 3]]]), np.array([[[-1.0, 0.5]]])
    np.testing.assert_array_equal(proposals.ensemble(best, other), [[[0, 1.5]]])


@pytest.mark.parametrize("box", [(-60, -30, 240, 200), (120, 100, 420, 330), (-50, -40, 350, 300)])
def test_beyond_the_image_a_box_sees_black(box):
    left, top, right, bottom = box
    image = np.full((240, 300, 3), 100, np.uint8)
    best = proposals.score_map(lambda crop: crop[..., :1], image, [box], 1)
    covered = np.zeros((240, 300), bool)
    covered[max(top, 0) : bottom, max(left, 0) : right] = True
    assert not best[~covered].any()
    # Away from the image's own edge, where black is mixed in.
    inner = np.pad(covered[4:-4, 4:-4], 4)
    np.testing.assert_allclose(best[inner], 100, atol=1e-4)


def test_a_box_beside_the_image_says_nothing():
    best = proposals.score_map(said([5, 5], [6, 6]), IMAGE, [(-400, 0, -200, 240), (300, 0, 500, 240)], 2)
    assert not best.any()


@pytest.mark.parametrize("size", [(3, 2), (4, 9)])
def test_resizing_averages_what_becomes_fewer_and_interpolates_what_becomes_more(size):
    values = np.random.RandomState(0).uniform(size=(6, 4, 3))
    found = proposals.resized(values, size)
    for axis, count in enumerate(size):
        factor = values.shape[axis] / count
        place = (np.arange(count)[:, None] + 0.5) * factor - 0.5 - np.arange(values.shape[axis])
        weights = np.maximum(0, 1 - np.abs(place) / max(factor, 1))
        weights /= weights.sum(axis=1, keepdims=True)
        values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
    np.testing.assert_allclose(found, values, atol=1e-6)


def test_files_of_boxes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("1 2 30 40 0.9\n\n5,6,70.4,80\n")
    assert read_boxes(path) == [(1, 2, 30, 40), (5, 6, 70, 80)]
    path.write_text("-1 0 4 4\n")  # of an enlarged object, say
    assert read_boxes(path) == [(-1, 0, 4, 4)]
    for line in ("1 2 3", "a b c d", "5 5 5 9", "4 4 0 0", "nan 0 1 1", "inf 0 1 1"):
        path.write_text(f"0 0 1 1\n{line}\n")
        with pytest.raises(DataError, match=r"a\.txt, line 2: "):
            read_boxes(path)
    with pytest.raises(DataError, match="no boxes can be read"):
        read_boxes(tmp_path / "b.txt")
