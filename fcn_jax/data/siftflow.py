"""SIFT Flow: 2,686 outdoor scenes of 256×256, each with two label maps: 33 semantic classes and 3 of geometry.

Liu, Yuen, Torralba, "SIFT Flow: dense correspondence across scenes and its applications", 2011; geometry by Tighe,
Lazebnik, 2010. Files lie as the FCN release's `siftflow_layers.py` reads them. Cow, desert and moon are in no test
image: a mean over the test set's classes that counts them as 0, because a net predicted them once, is too low.
"""

from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data import lists, matlab, prepared
from fcn_jax.data.pairs import Group
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.labels import DatasetInfo, voc_palette

# fmt: off
SEMANTIC = (
    "awning", "balcony", "bird", "boat", "bridge", "building", "bus", "car", "cow", "crosswalk", "desert",
    "door", "fence", "field", "grass", "moon", "mountain", "person", "plant", "pole", "river", "road",
    "rock", "sand", "sea", "sidewalk", "sign", "sky", "staircase", "streetlight", "sun", "tree", "window",
)
# fmt: on
GEOMETRIC = ("sky", "horizontal", "vertical")

# Black stays the colour of what has no label.
INFO = {
    "sem": DatasetInfo("siftflow", SEMANTIC, voc_palette(1 + len(SEMANTIC))[1:], absent=("cow", "desert", "moon")),
    "geo": DatasetInfo("siftflow", GEOMETRIC, ((70, 130, 180), (128, 64, 128), (220, 160, 60))),
}
SPLITS = {"trainval": 2486, "test": 200}  # images, by the release's lists
_SCENES = "spatial_envelope_256x256_static_8outdoorcategories"
_FOLDERS = {"image": f"Images/{_SCENES}", "sem": f"SemanticLabels/{_SCENES}", "geo": f"GeoLabels/{_SCENES}"}


class SiftFlow(prepared.PairBuilder):
    """One of SIFT Flow's splits."""

    classes = INFO

    @classmethod
    def read_labels(cls, path: Path) -> np.ndarray:
        # Void is 0 in the semantic labels and −1 in the geometric ones.
        return matlab.labels_from_one(matlab.read_labels(path, "S"))


def open_split(fields: Any, split: str) -> prepared.PreparedSplit:
    """The split "trainval" or "test" of the SIFT Flow folder `fields.root`."""
    if split not in SPLITS:
        raise ConfigError(f"siftflow has no split {split!r}; it has {', '.join(SPLITS)}")
    if not fields.root:
        raise ConfigError("data.root is empty; give the SIFT Flow folder that holds Images/ and SemanticLabels/")
    root = Path(fields.root).expanduser()
    for folder in _FOLDERS.values():
        if not (root / folder).is_dir():
            raise DataError(f"{root}: SIFT Flow's {folder}/ is not there; check data.root")
    names = lists.read_names(root / f"{split}.txt", "the FCN release's data/sift-flow")
    lists.say_if_others(f"siftflow {split}", len(names), SPLITS[split])
    found = [
        Group(
            name,
            {"image": root / _FOLDERS["image"] / f"{name}.jpg"},
            {head: root / _FOLDERS[head] / f"{name}.mat" for head in INFO},
        )
        for name in names
    ]
    return prepared.open_prepared(SiftFlow, split, found, cache=fields.cache, threads=fields.threads)
