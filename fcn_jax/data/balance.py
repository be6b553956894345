"""How often the classes of a data set occur, and the weights that balance them in a loss.

    median_frequency    median of all frequencies, by the class's own, which is its pixels by all pixels of the images
                        that show it (Eigen and Fergus, ICCV 2015, section 6.3.2; SegNet)
    enet                1 / ln(1.02 + p) with the class's share p of all pixels (Paszke et al., ENet, 2016, section 5.2)
    inverse             1 / (c · p) for c classes: every class weighs the same in the whole set

Void pixels count for nothing, except in the sizes of images by the first formula, as in SegNet's. A class that never
occurs has the weight 0: no pixel would ask for it.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.errors import ConfigError
from fcn_jax.labels import is_class


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of each class int64 `[c]`: its pixels, the images that show it, and all pixels of these images."""

    class_names: tuple[str, ...]
    images: int  # of the whole split
    pixels: np.ndarray
    images_with: np.ndarray
    image_pixels: np.ndarray


def count(source: Any, head: str = "") -> Counts:
    """Counts the labels of a data source, those of one head where it has several."""
    info = source.info[head] if head else source.info
    pixels, images_with, image_pixels = np.zeros((3, info.num_classes), np.int64)
    for index in range(len(source)):
        label = source[index]["label"]
        label = label[head] if head else label
        found = np.bincount(label[is_class(label, info.num_classes)].ravel(), minlength=info.num_classes)
        pixels += found
        images_with += found > 0
        image_pixels += np.where(found > 0, label.size, 0)
    return Counts(tuple(info.class_names), len(source), pixels, images_with, image_pixels)


def median_frequency(counts: Counts) -> np.ndarray:
    """Weights f64 `[c]` by the definition above."""
    present = counts.pixels > 0
    frequency = counts.pixels / np.maximum(counts.image_pixels, 1)
    return np.where(present, np.median(frequency[present]) / np.where(present, frequency, 1), 0)


def enet(counts: Counts) -> np.ndarray:
    """Weights f64 `[c]` by the definition above."""
    return np.where(counts.pixels > 0, 1 / np.log(1.02 + _shares(counts)), 0)


def inverse(counts: Counts) -> np.ndarray:
    """Weights f64 `[c]` by the definition above."""
    present = counts.pixels > 0
    return np.where(present, 1 / (len(present) * np.where(present, _shares(counts), 1)), 0)


FORMULAS: dict[str, Callable[[Counts], np.ndarray]] = {
    "median_frequency": median_frequency,
    "enet": enet,
    "inverse": inverse,
}


def to_json(counts: Counts, data: str, split: str) -> str:
    """The counts, and the weights by every formula, by class name."""

    def by_name(values: np.ndarray) -> dict[str, float]:
        return dict(zip(counts.class_names, values.tolist(), strict=True))

    described = {
        "data": data,
        "split": split,
        "images": counts.images,
        "pixels": by_name(counts.pixels),
        "images_with": by_name(counts.images_with),
        "image_pixels": by_name(counts.image_pixels),
        "weights": {name: by_name(formula(counts)) for name, formula in FORMULAS.items()},
    }
    return json.dumps(described, indent=1) + "\n"


def read_weights(path: Path, formula: str) -> Mapping[str, float]:
    """The weights by class name that `to_json` wrote. Raises ConfigError where there are none."""
    try:
        weights = json.loads(path.read_text())["weights"][formula]
        return {str(name): float(weight) for name, weight in weights.items()}
    except OSError as error:
        raise ConfigError(
            f"loss.class_weights: {path} cannot be read ({error.strerror}); python -m fcn_jax.data stats writes it"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"loss.class_weights: {path} holds no weights by {formula}; python -m fcn_jax.data stats writes them"
        ) from None


def _shares(counts: Counts) -> np.ndarray:
    return counts.pixels / max(counts.pixels.sum(), 1)
