"""PASCAL-Context: the 10,103 images of VOC 2010's train and val, every pixel labelled, with the 59 commonest classes.

Mottaghi et al., "The role of context for object detection and semantic segmentation in the wild", 2014. A label file
holds the numbers of some 459 classes; the data set's `labels.txt` says which name a number has, and the 59 are found by
name. Whatever else a pixel shows is class 0, background, so that no pixel is void and the nets have 60 outputs.
"""

from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data import images, lists, matlab, prepared, voc
from fcn_jax.data.pairs import Group, some
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.labels import DatasetInfo, voc_palette

# fmt: off
CLASS_NAMES = (
    *voc.CLASS_NAMES,
    "bag", "bed", "bench", "book", "building", "cabinet", "ceiling", "clothes", "computer", "cup",
    "door", "fence", "floor", "flower", "food", "grass", "ground", "keyboard", "light", "mountain",
    "mouse", "curtain", "platform", "sign", "plate", "road", "rock", "shelves", "sidewalk", "sky",
    "snow", "bedcloth", "track", "tree", "truck", "wall", "water", "window", "wood",
)
# fmt: on
INFO = DatasetInfo(name="pascal_context", class_names=CLASS_NAMES, palette=voc_palette(len(CLASS_NAMES)))

SPLITS = {"train": 4998, "val": 5105}  # images, by VOC 2010's lists
# What labels.txt calls some of the 59.
_NAMES_IN_FILE = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}


class PascalContext(prepared.PairBuilder):
    """One of PASCAL-Context's splits."""

    classes = INFO

    @classmethod
    def read_labels(cls, path: Path) -> np.ndarray:
        numbers, labels = matlab.read_labels(path, "LabelMap"), read_translation(_names_file(path.parents[1]))
        # Number 0 is background; so is whatever lies beyond the table.
        return labels[np.where((numbers < 0) | (numbers >= len(labels)), 0, numbers)]


def open_split(fields: Any, split: str) -> prepared.PreparedSplit:
    """The split "train" or "val": VOC 2010 at `fields.root`, labels at `fields.pascal_context.labels_root`."""
    if split not in SPLITS:
        raise ConfigError(f"pascal_context has no split {split!r}; it has {', '.join(SPLITS)}")
    year = voc.find_year(fields.root, "VOC2010", "Main")
    if not fields.pascal_context.labels_root:
        raise ConfigError(
            "data.pascal_context.labels_root is empty; give PASCAL-Context's folder of labels.txt and trainval/"
        )
    labels_root = Path(fields.pascal_context.labels_root).expanduser()
    if not (labels_root / "trainval").is_dir():
        raise DataError(
            f"{labels_root}: no trainval/ there; set data.pascal_context.labels_root to the folder above it"
        )
    read_translation(_names_file(labels_root))
    names = lists.read_names(year / "ImageSets" / "Main" / f"{split}.txt")
    lists.say_if_others(f"pascal_context {split}", len(names), SPLITS[split])
    found = [
        Group(
            name,
            {"image": year / "JPEGImages" / f"{name}.jpg"},
            {"": labels_root / "trainval" / f"{name}.mat"},
            others=(_names_file(labels_root),),
        )
        for name in names
    ]
    return prepared.open_prepared(PascalContext, split, found, cache=fields.cache, threads=fields.threads)


def read_translation(path: Path) -> np.ndarray:
    """The label `u8` of each number, of the data set's file of lines `number: name`; 0 for all but the 59 classes."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; copy PASCAL-Context's labels.txt there, which names the label files' numbers"
        )
    numbers: dict[str, int] = {}
    for line in filter(str.strip, images.read_bytes(path).decode("utf-8-sig", errors="replace").splitlines()):
        number, colon, name = (part.strip() for part in line.partition(":"))
        if not colon or not number.isdecimal() or len(number) > 4:
            raise DataError(f"{path}: the line {line.strip()!r} is not `number: name`; copy the file again")
        numbers.setdefault(name.replace(" ", ""), int(number))
    names = [_NAMES_IN_FILE.get(name, name) for name in CLASS_NAMES[1:]]
    if missing := [name for name in names if name not in numbers]:
        raise DataError(f"{path}: names no {some(missing)}; copy the data set's labels.txt, of all its 459 lines")
    labels = np.zeros(max(numbers.values()) + 1, np.uint8)
    labels[[numbers[name] for name in names]] = np.arange(1, len(CLASS_NAMES))
    return labels


def _names_file(labels_root: Path) -> Path:
    return labels_root / "labels.txt"
