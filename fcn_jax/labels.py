"""What a label is.

Labels are `uint8` maps `[h w]`. One value means "not there", for void pixels, crop borders and the filler images of a
last batch alike: `IGNORE`. Other conventions (SegNet's 11, torchfcn's −1) end at the data set's own file.
"""

import dataclasses
from typing import Any

IGNORE = 255


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Names and colours of a data set's classes, in the order of the label values."""

    name: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # RGB, one a class

    def __post_init__(self):
        if len(self.palette) != len(self.class_names):
            raise ValueError(f"{self.name}: {len(self.class_names)} classes, {len(self.palette)} colours")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


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
