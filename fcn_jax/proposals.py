"""DeconvNet's way through an image: crop by crop, as object proposals say, and the best score of all at each pixel.

Noh, Hong and Han, ICCV 2015, section 4.3; the authors' scripts (inference/*.m). Of an image's boxes the first fifty are
taken, in the order of their file, and of these the ones whose shorter side has 112 pixels or more. Each crop is resized
to 224×224, scored, and its scores are resized back to the box; at each pixel the largest score of each class counts,
and at least zero. So a pixel in no box is background.

Whose boxes they are is the file's concern: the authors took EdgeBox's.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cv2
import numpy as np

from fcn_jax.data.boxes import Box
from fcn_jax.errors import DataError

MOST, SHORTEST, CROP = 50, 112, 224


def score_map(
    scores: Callable[[np.ndarray], np.ndarray], image: np.ndarray, boxes: Iterable[Box], num_classes: int
) -> np.ndarray:
    """The largest scores over the boxes, f32 `[h w c]`, none below zero.

    `scores(crop u8 [224 224 3]) -> f32 [224 224 c]`. Raises DataError for a box that leaves the image.
    """
    height, width = image.shape[:2]
    best = np.zeros((height, width, num_classes), np.float32)
    for left, top, right, bottom in list(boxes)[:MOST]:
        if right > width or bottom > height:
            raise DataError(f"the box {left} {top} {right} {bottom} leaves the image of {width}×{height} pixels")
        if min(right - left, bottom - top) < SHORTEST:
            continue
        crop = cv2.resize(image[top:bottom, left:right], (CROP, CROP), interpolation=cv2.INTER_LINEAR)
        back = resized(np.asarray(scores(crop)), (bottom - top, right - left))
        place = best[top:bottom, left:right]
        np.maximum(place, back, out=place)
    return best


def ensemble(best: np.ndarray, other: np.ndarray) -> np.ndarray:
    """DeconvNet's scores times another net's, FCN-8s', where those are above zero: EDeconvNet, as released.

    Both `[h w c]`. The paper describes the mean of the two; the released script multiplies.
    """
    return best * np.maximum(other, 0)


def label(predictor: Any, image: np.ndarray, boxes: Sequence[Box], other: Any = None) -> np.ndarray:
    """Labels u8 `[h w]` of an image by its boxes; with the scores of an `other` predictor for the whole image, by both.

    See `ensemble`.
    """
    best = score_map(predictor.scores, image, boxes, predictor.info.num_classes)
    if other is not None:
        best = ensemble(best, other.scores(image))
    return best.argmax(axis=-1).astype(np.uint8)


def resized(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scores `[h w c]` at another size, linear between cells' centres."""
    planes = [
        cv2.resize(np.ascontiguousarray(plane), size[::-1], interpolation=cv2.INTER_LINEAR)
        for plane in np.moveaxis(scores, -1, 0)
    ]
    return np.stack(planes, axis=-1)
