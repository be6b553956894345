"""DeconvNet's way through an image: crop by crop, as object proposals say, and the best score of all at each pixel.

Noh, Hong and Han, ICCV 2015, section 4.3; the authors' scripts (inference/*.m). Of an image's boxes, in the order of
their file, the first fifty count whose shorter side has 112 pixels or more; what of them lies outside the image is
black. Each crop is resized to 224×224, scored, and its scores are resized back to the box; at each pixel the largest
score of each class counts, and at least zero. So a pixel in no box is background. (The script that was released then
cuts the map out of its frame one pixel too early, down and to the right; that is not repeated.)

Whose boxes they are is the file's concern: the authors took EdgeBox's.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from fcn_jax.data.boxes import Box
from fcn_jax.data.crops import cut

MOST, SHORTEST, CROP = 50, 112, 224


def score_map(
    scores: Callable[[np.ndarray], np.ndarray], image: np.ndarray, boxes: Iterable[Box], num_classes: int
) -> np.ndarray:
    """The largest scores over the boxes of an image u8 `[h w 3]`, f32 `[h w c]`, none below zero.

    `scores(crop f32 [224 224 3], of 0 to 255) -> f32 [224 224 c]`.
    """
    height, width = image.shape[:2]
    best = np.zeros((height, width, num_classes), np.float32)
    large = (box for box in boxes if min(box[2] - box[0], box[3] - box[1]) >= SHORTEST)
    for left, top, right, bottom in islice(large, MOST):
        crop = resized(cut(image, (left, top, right, bottom), 0), (CROP, CROP))
        back = resized(np.asarray(scores(crop)), (bottom - top, right - left))
        # The image as the box sees it: nothing where it does not reach.
        np.maximum(best, cut(back, (-left, -top, width - left, height - top), 0), out=best)
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


def resized(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values `[h w c]` at another size as f32, linear between cells' centres, and averaged where they become fewer.

    So does MATLAB's `imresize`, with which the authors resized crops and scores.
    """
    height, width = size
    parts = [
        Image.fromarray(np.ascontiguousarray(plane, np.float32)).resize((width, height), Image.Resampling.BILINEAR)
        for plane in np.moveaxis(planes, -1, 0)
    ]
    return np.stack([np.asarray(part) for part in parts], axis=-1)
