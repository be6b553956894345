"""NYU Depth v2: 1,449 rooms by a Kinect, with 40 classes; as colour, as depth and as three channels of geometry, HHA.

Silberman et al., "Indoor segmentation and support inference from RGBD images", 2012; classes and splits of Gupta,
Arbeláez, Malik, 2013; HHA (horizontal disparity, height above ground, angle with gravity) of Gupta et al., 2014. Files
lie as the FCN release's `nyud_layers.py` reads them. Depth is the logarithm of millimetres, so pixels that the Kinect
could not measure must have been filled in.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data import images, lists, matlab, prepared
from fcn_jax.data.pairs import Group
from fcn_jax.errors import ConfigError, DataError, did_you_mean
from fcn_jax.labels import DatasetInfo, voc_palette

# fmt: off
CLASS_NAMES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor-mat",
    "clothes", "ceiling", "books", "refrigerator", "television",
    "paper", "towel", "shower-curtain", "box", "whiteboard",
    "person", "night-stand", "toilet", "sink", "lamp",
    "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)
# fmt: on
# Black stays the colour of what has no label, 0 in the files.
INFO = DatasetInfo(name="nyud", class_names=CLASS_NAMES, palette=voc_palette(1 + len(CLASS_NAMES))[1:])

SPLITS = {"train": 381, "val": 414, "trainval": 795, "test": 654}  # images, by the release's lists
_LISTS_FROM = "the FCN release's data/nyud"
_FOLDERS = {"image": "data/images", "depth": "data/depth", "hha": "data/hha"}


def decode_log_depth(data: bytes, name: str | Path) -> np.ndarray:
    """The logarithm of a depth map's millimetres, `f32[h w 1]`. DataError where a pixel has none."""
    depth = images.decode_depth(data, name)
    if not depth.all():
        raise DataError(
            f"{name}: {np.count_nonzero(depth == 0)} pixels of depth 0, which has no logarithm; give the depth maps "
            "whose holes are filled in, not the raw ones"
        )
    return np.log(depth.astype(np.float32))[..., None]


_PICTURE, _DEPTH = prepared.Picture(), prepared.Picture(decode_log_depth, stored_channels=1, stored_dtype=np.uint16)


class NyudColor(prepared.PairBuilder):
    """A split of colour images, and what the other kinds of them share: their labels."""

    classes = INFO

    @classmethod
    def read_labels(cls, path: Path) -> np.ndarray:
        return matlab.labels_from_one(matlab.read_labels(path, "segmentation"))


class NyudHha(NyudColor):
    """A split of HHA images."""

    pictures: Mapping[str, prepared.Picture] = {"hha": _PICTURE}
    channels = "HHA"


class NyudColorDepth(NyudColor):
    """A split of colour images with depth as their fourth channel."""

    pictures: Mapping[str, prepared.Picture] = {"image": _PICTURE, "depth": _DEPTH}
    channels = "RGBD"


class NyudColorHha(NyudColor):
    """A split of colour images with HHA behind."""

    pictures: Mapping[str, prepared.Picture] = {"image": _PICTURE, "hha": _PICTURE}
    channels = "RGBHHA"


# What an image shows, by the names of the release's nets.
MODALITIES = {"color": NyudColor, "hha": NyudHha, "color-d": NyudColorDepth, "color-hha": NyudColorHha}


def open_split(fields: Any, split: str) -> prepared.PreparedSplit:
    """A split of the NYUDv2 folder at `fields.root`, of the modality `fields.nyud.modality`."""
    if split not in SPLITS:
        raise ConfigError(f"nyud has no split {split!r}; it has {', '.join(SPLITS)}")
    modality = fields.nyud.modality
    if modality not in MODALITIES:
        hint = did_you_mean(modality, MODALITIES)
        raise ConfigError(f"data.nyud.modality is {modality!r}; it is one of {', '.join(MODALITIES)}{hint}")
    if not fields.root:
        raise ConfigError("data.root is empty; give the NYUDv2 folder that holds data/ and segmentation/")
    root, builder = Path(fields.root).expanduser(), MODALITIES[modality]
    for folder in (*(_FOLDERS[kind] for kind in builder.pictures), "segmentation"):
        if not (root / folder).is_dir():
            raise DataError(f"{root}: NYUDv2's {folder}/ is not there, which {modality!r} needs; check data.root")
    names = split_names(root, split)
    lists.say_if_others(f"nyud {split}", len(names), SPLITS[split])
    return prepared.open_prepared(
        builder, split, groups(root, names, list(builder.pictures)), cache=fields.cache, threads=fields.threads
    )


def split_names(root: Path, split: str) -> list[str]:
    """The image numbers of a split; "trainval" is train and val, where it has no list of its own."""
    if split == "trainval" and not (root / "trainval.txt").is_file():
        return split_names(root, "train") + split_names(root, "val")
    return lists.read_names(root / f"{split}.txt", _LISTS_FROM)


def groups(root: Path, names: list[str], kinds: list[str]) -> list[Group]:
    """The files of images and labels."""
    return [
        Group(
            name,
            {kind: root / _FOLDERS[kind] / f"img_{name}.png" for kind in kinds},
            {"": root / "segmentation" / f"img_{name}.mat"},
        )
        for name in names
    ]
