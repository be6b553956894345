"""Crops of another source's images, warped to one size: what DeconvNet learns from.

Noh, Hong and Han, ICCV 2015, section 4.2, and the authors' training scripts. First come crops around single objects,
enlarged, in which every other object is background; then windows that a file proposes, labelled as they are. A crop is
the box warped to 250×250 pixels; what lies outside the image is black and void. The random crop of 224×224 and the
mirroring are the augmentation's (`data.augment`).
"""

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fcn_jax.data.boxes import Box, read_boxes
from fcn_jax.errors import DataError
from fcn_jax.labels import IGNORE, DatasetInfo

SIZE = 250
ENLARGED = 1.2  # the paper's, as far as is known: no script of the release makes these crops


@dataclasses.dataclass(frozen=True)
class Window:
    """A box of an image of the source; around one object, its number there."""

    index: int
    box: Box
    object: int = 0


class Crops:
    """A data source with an example for each window. The base's labels are by head, `class` and `object`, or plain."""

    channels = "RGB"

    def __init__(self, base: Any, info: DatasetInfo, windows: Sequence[Window]):
        self.info, self._base, self._windows = info, base, list(windows)

    def __len__(self) -> int:
        return len(self._windows)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a crop."""
        return SIZE, SIZE

    def __getitem__(self, index: int) -> dict:
        window = self._windows[index]
        example = self._base[window.index]
        label = example["label"]
        if window.object:
            label = of_object(label["class"], label["object"], window.object)
        box = enlarged(window.box) if window.object else window.box
        image = cut(example["image"], box, 0)
        label = cut(label, box, IGNORE)
        size = (SIZE, SIZE)
        return {
            "image": cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
            "label": cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT),
            "id": f"{example['id']}_{window.object or '_'.join(map(str, window.box))}",
        }


def object_windows(base: Any, threads: int) -> list[Window]:
    """A window around every object of a source whose labels are `{"class": …, "object": …}`, in order."""

    def windows(index: int) -> list[Window]:
        label = base[index]["label"]
        objects, classes = label["object"], label["class"]
        found = []
        for number in np.unique(objects):
            mine = objects == number
            # VOC's contours are void in both maps; an object without a pixel of its own class teaches nothing.
            if number in (0, IGNORE) or not np.any(classes[mine] % IGNORE):
                continue
            rows, columns = np.flatnonzero(mine.any(axis=1)), np.flatnonzero(mine.any(axis=0))
            box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
            found.append(Window(index, box, int(number)))
        return found

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return [window for each in pool.map(windows, range(len(base))) for window in each]


def listed_windows(ids: Sequence[str], folder: Path) -> list[Window]:
    """The windows that `<id>.txt` in a folder lists for the images of a source, in its order. DataError without any."""
    windows = [Window(index, box) for index, name in enumerate(ids) for box in read_boxes(folder / f"{name}.txt")]
    if not windows:
        raise DataError(f"{folder}: its files list no box for the {len(ids)} images")
    return windows


def of_object(classes: np.ndarray, objects: np.ndarray, number: int) -> np.ndarray:
    """Labels u8 `[h w]` in which one object has its class, what is void stays so, and all else is background."""
    return np.where(objects == number, classes, np.where(classes == IGNORE, IGNORE, 0)).astype(np.uint8)


def enlarged(box: Box, factor: float = ENLARGED) -> Box:
    """A box about the same centre; it may leave the image."""
    left, top, right, bottom = box
    wider, taller = ((factor - 1) / 2 * side for side in (right - left, bottom - top))
    return round(left - wider), round(top - taller), round(right + wider), round(bottom + taller)


def cut(array: np.ndarray, box: Box, fill: int) -> np.ndarray:
    """The part of an array `[h w …]` in a box, with `fill` where that leaves it."""
    left, top, right, bottom = box
    whole = np.full((bottom - top, right - left, *array.shape[2:]), fill, array.dtype)
    inside = array[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    whole[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]] = inside
    return whole
