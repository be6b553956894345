"""What a label is.

Labels are `uint8` maps `[h w]`, and `uint16` where a classifier with more than 255 classes predicts them. One value
means "not there", for void pixels, crop borders and the filler images of a last batch alike: `IGNORE`. Other
conventions (SegNet's 11, torchfcn's −1) end at the data set's own file.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

IGNORE = 255


def best_labels(scores: Any) -> Any:
    """The labels `[…]` of the largest scores or probabilities, an array `[… classes]` of NumPy or JAX.

    They are uint8, and uint16 where there are more classes than IGNORE leaves room for, from 256 on.
    """
    return scores.argmax(axis=-1).astype(np.uint8 if scores.shape[-1] <= IGNORE else np.uint16)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Names and colours of a data set's classes, in the order of the label values.

    `absent` names those that the data set's test images are known not to show. A mean over classes leaves them out
    where the truth has none of their pixels, even if they were predicted: no net could score there.
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # RGB, one a class
    absent: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "absent", tuple(self.absent))  # a list where it was read from JSON
        if unknown := set(self.absent) - set(self.class_names):
            raise ValueError(f"{self.name}: absent names no classes: {', '.join(sorted(unknown))}")
        if len(self.palette) != len(self.class_names):
            raise ValueError(f"{self.name}: {len(self.class_names)} classes, {len(self.palette)} colours")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


# What a data set's classes are called: one set of them, or one for each head of a net with several outputs.
Info: TypeAlias = DatasetInfo | Mapping[str, DatasetInfo]


def by_head(value: Any) -> dict[str, Any]:
    """What belongs to the heads of a net, by head: the only one of most nets is called ""."""
    return dict(value) if isinstance(value, Mapping) else {"": value}


def only_head(values: Mapping[str, Any]) -> Any:
    """The other way: a value itself where there is one head, without a name."""
    return values[""] if set(values) == {""} else dict(values)


def class_counts(info: Info) -> int | dict[str, int]:
    """The number of classes, by head if there are several."""
    return only_head({head: each.num_classes for head, each in by_head(info).items()})


def is_class(labels: Any, num_classes: int) -> Any:
    """Which pixels count, bool of the labels' shape (NumPy or JAX): those labelled with a class.

    Void (255) and stray values do not.
    """
    labels = labels.astype("int32")
    return (labels >= 0) & (labels < num_classes) & (labels != IGNORE)


def voc_palette(num_colors: int) -> tuple[tuple[int, int, int], ...]:
    """The colour map of PASCAL VOC's label images: bit k of the label, by threes, fills the colours from the top.

    Source: the VOC development kit's `VOClabelcolormap`. Entry 255 is (224, 224, 192), the cream of VOC's void.
    """
    colors = []
    for label in range(num_colors):
        red = green = blue = 0
        for bit in range(8):
            red |= (label >> (3 * bit) & 1) << (7 - bit)
            green |= (label >> (3 * bit + 1) & 1) << (7 - bit)
            blue |= (label >> (3 * bit + 2) & 1) << (7 - bit)
        colors.append((red, green, blue))
    return tuple(colors)
