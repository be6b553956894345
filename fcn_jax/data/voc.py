"""PASCAL VOC 2012 segmentation, with the Semantic Boundaries Dataset (SBD) and the validation set of the FCN paper.

Everingham et al., "The PASCAL visual object classes challenge", 2010; Hariharan et al., "Semantic contours from
inverse detectors", 2011. FCN trains on SBD's train list (8,498 images) and is scored on `seg11valid`, the 736 images of
VOC 2011's val that are not in that list: the two overlap, and an early version of the paper scored images that it had
trained on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data import crops, images, lists, matlab, prepared
from fcn_jax.data.pairs import Group, Pair
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.labels import IGNORE, DatasetInfo, Info, voc_palette

# fmt: off
CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
INFO = DatasetInfo(name="voc2012", class_names=CLASS_NAMES, palette=voc_palette(len(CLASS_NAMES)))

VOC_SPLITS = ("train", "val", "trainval")
# VOC's lists grown by all that SBD has besides: what DeepLab and most since train on. What is not in VOC's val, or all.
AUGMENTED = {"train_aug": "train", "trainval_aug": "trainval"}
SPLITS = (*VOC_SPLITS, "sbd_train", "seg11valid", *AUGMENTED)
CROPS = ("", "objects", "windows")
SEG11VALID_IMAGES = 736
AUGMENTED_IMAGES = {"train_aug": 10_582, "trainval_aug": 12_031}


class Voc2012(prepared.PairBuilder):
    """One of VOC's or SBD's splits: masks are palette PNGs, or SBD's MATLAB files."""

    classes = INFO

    @classmethod
    def read_labels(cls, path: Path) -> np.ndarray:
        return read_sbd_labels(path) if path.suffix == ".mat" else images.read_mask(path)


class Voc2012Objects(prepared.PairBuilder):
    """The same with a second map, of the objects: their numbers, counted in each image."""

    classes: Info = {  # noqa: RUF012
        "class": INFO,
        "object": DatasetInfo("objects", tuple(f"object {n}" for n in range(IGNORE)), voc_palette(IGNORE)),
    }

    @classmethod
    def read_labels(cls, path: Path) -> np.ndarray:
        if path.suffix != ".mat":
            return images.read_mask(path)
        if path.parent.name == "inst":
            return matlab.read_labels(path, "GTinst", "Segmentation").astype(np.uint8)
        return read_sbd_labels(path)


def open_split(fields: Any, split: str) -> Any:
    """A split of the VOCdevkit (or one of its years) at `fields.root`, or of SBD at `fields.voc.sbd_root`.

    With `fields.voc.crops` not of whole images, but of crops around single objects, or of windows that are listed in
    the folder `fields.voc.boxes_root`; see `data.crops`.
    """
    if fields.voc.crops not in CROPS:
        raise ConfigError(f"data.voc.crops={fields.voc.crops!r} is none of {', '.join(filter(None, CROPS))}")
    found = split_pairs(fields, split)
    keep = {"cache": fields.cache, "threads": fields.threads}
    if fields.voc.crops == "objects":
        groups = [Group(p.id, {"image": p.image}, {"class": p.mask, "object": objects_of(p.mask)}) for p in found]
        base = prepared.open_prepared(Voc2012Objects, f"{split}-objects", groups, **keep)
        return crops.Crops(base, INFO, crops.object_windows(base, fields.threads))
    base = prepared.open_prepared(Voc2012, split, found, **keep)
    if fields.voc.crops == "windows":
        if not fields.voc.boxes_root:
            raise ConfigError("data.voc.boxes_root is empty; give the folder that holds <image>.txt with its boxes")
        boxes = Path(fields.voc.boxes_root).expanduser()
        return crops.Crops(base, INFO, crops.listed_windows([pair.id for pair in found], boxes))
    return base


def split_pairs(fields: Any, split: str) -> list[Pair]:
    """The images and class masks of a split."""
    if split not in SPLITS:
        raise ConfigError(f"voc2012 has no split {split!r}; it has {', '.join(SPLITS)}")
    if split == "sbd_train":
        sbd = find_sbd(fields.voc.sbd_root)
        return sbd_pairs(sbd, sbd_train(sbd))
    if split == "seg11valid":
        voc = find_year(fields.root, "VOC2011")
        names = seg11valid(voc_list(voc, "val"), sbd_train(find_sbd(fields.voc.sbd_root)))
        lists.say_if_others("seg11valid", len(names), SEG11VALID_IMAGES)
        return voc_pairs(voc, names)
    voc = find_year(fields.root, "VOC2012")
    if split in AUGMENTED:
        sbd = find_sbd(fields.voc.sbd_root)
        names, known = voc_list(voc, AUGMENTED[split]), {*voc_list(voc, "train"), *voc_list(voc, "val")}
        more = [name for name in (*sbd_train(sbd), *lists.read_names(sbd / "val.txt")) if name not in known]
        lists.say_if_others(split, len(names) + len(more), AUGMENTED_IMAGES[split])
        # VOC's own masks where there are any: SBD's have no void.
        return voc_pairs(voc, names) + sbd_pairs(sbd, more)
    return voc_pairs(voc, voc_list(voc, split))


def objects_of(mask: Path) -> Path:
    """The map of objects beside a map of classes: VOC's SegmentationObject, SBD's inst."""
    return mask.parent.parent / {"SegmentationClass": "SegmentationObject", "cls": "inst"}[mask.parent.name] / mask.name


def find_year(root: str, year: str, lists_of: str = "Segmentation") -> Path:
    """The folder of a year's images and lists: `root` itself, in it, in its VOCdevkit, or beside it."""
    if not root:
        raise ConfigError(f"data.root is empty; give the VOCdevkit folder, which holds {year}")
    start = Path(root).expanduser()
    candidates = [start / year, start / "VOCdevkit" / year, start.parent / year]
    # A folder of a name of its own is taken for the year in question, but not for VOC2011, which another goes with.
    if start.name == year or (year != "VOC2011" and not start.name.startswith("VOC20")):
        candidates.insert(0, start)
    for folder in candidates:
        if (folder / "ImageSets" / lists_of).is_dir():
            return folder
    raise DataError(f"{start}: no {year}/ImageSets/{lists_of} there; set data.root to the VOCdevkit that holds {year}")


def find_sbd(sbd_root: str) -> Path:
    """The folder of SBD that holds `train.txt`, `img` and `cls`: `sbd_root` itself or its `dataset`."""
    if not sbd_root:
        raise ConfigError("data.voc.sbd_root is empty; give SBD's folder, benchmark_RELEASE, which holds dataset/")
    start = Path(sbd_root).expanduser()
    for folder in (start, start / "dataset", start / "benchmark_RELEASE" / "dataset"):
        if (folder / "train.txt").is_file():
            return folder
    raise DataError(f"{start}: no train.txt there or in its dataset/; set data.voc.sbd_root to SBD's benchmark_RELEASE")


def voc_list(voc: Path, split: str) -> list[str]:
    """The image names of a published split."""
    return lists.read_names(voc / "ImageSets" / "Segmentation" / f"{split}.txt")


def sbd_train(sbd: Path) -> list[str]:
    """The image names of SBD's train list."""
    return lists.read_names(sbd / "train.txt")


def seg11valid(voc2011_val: Sequence[str], sbd_train_names: Sequence[str]) -> list[str]:
    """VOC 2011's val without what SBD trains on (footnote 7 of Long, Shelhamer, Darrell, 2015)."""
    trained_on = set(sbd_train_names)
    return [name for name in voc2011_val if name not in trained_on]


def voc_pairs(voc: Path, names: Sequence[str]) -> list[Pair]:
    """The files of VOC's images and class masks."""
    return [Pair(n, voc / "JPEGImages" / f"{n}.jpg", voc / "SegmentationClass" / f"{n}.png") for n in names]


def sbd_pairs(sbd: Path, names: Sequence[str]) -> list[Pair]:
    """The files of SBD's images and class masks."""
    return [Pair(n, sbd / "img" / f"{n}.jpg", sbd / "cls" / f"{n}.mat") for n in names]


def read_sbd_labels(path: Path) -> np.ndarray:
    """The labels `u8[h w]` in an SBD file: field `Segmentation` of the MATLAB struct `GTcls`."""
    return matlab.read_labels(path, "GTcls", "Segmentation").astype(np.uint8)
