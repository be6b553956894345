"""Data sets, one a file, and the way from their files to batches.

A data source has `info: DatasetInfo`, a length, and `source[i] -> {"image": u8[h w 3], "label": u8[h w], "id": str}`:
RGB, and label 255 for void. It is deterministic, picklable, and safe to read from several threads. With `size(i)`,
height and width, hosts need not read each other's images to know the largest of a batch. What differs is said by the
source: an image `[h w k]`, of bytes or float32, has `channels` other than "RGB" ("RGBD", "RGBHHA", "HHA"); and where
the labels are a dict of maps, one for each head of a net, so is `info`, in the order of the heads.
"""

import importlib
from collections.abc import Callable
from typing import Any

from fcn_jax.errors import ConfigError, did_you_mean


def _opener(module: str) -> Callable[[Any, str], Any]:
    """`open_split` of a module of this room. Imported on use: TFDS takes most of a second, and shapes do without."""

    def open_split(fields: Any, split: str) -> Any:
        return importlib.import_module(f"{__name__}.{module}").open_split(fields, split)

    return open_split


DATASETS: dict[str, Callable[[Any, str], Any]] = {
    "shapes": _opener("synthetic"),
    "folder": _opener("folder"),
    "camvid": _opener("camvid"),
    "voc2012": _opener("voc"),
    "nyud": _opener("nyud"),
    "siftflow": _opener("siftflow"),
    "pascal_context": _opener("pascal_context"),
}


def open_split(fields: Any, split: str) -> Any:
    """The data source that the config's `data` group names. ConfigError on names that do not exist."""
    if fields.name not in DATASETS:
        hint = did_you_mean(fields.name, DATASETS)
        raise ConfigError(f"data.name is {fields.name!r}; the data sets are {', '.join(DATASETS)}{hint}")
    return DATASETS[fields.name](fields, split)
