"""What is planned where the data is not at hand: classes and image sizes that its authors publish."""

import importlib
from pathlib import Path
from typing import Any

from fcn_jax.errors import ConfigError
from fcn_jax.labels import DatasetInfo, Info, voc_palette

# Module of `data`, and height and width of most training images.
KNOWN = {
    "camvid": ("camvid", (360, 480)),
    "voc2012": ("voc", (500, 500)),  # the longer side is 500; any height and width up to that occurs
    "nyud": ("nyud", (480, 640)),
    "siftflow": ("siftflow", (256, 256)),
    "pascal_context": ("pascal_context", (500, 500)),
}


def classes(fields: Any, asked: int | None = None) -> Info:
    """The classes of the config's `data`: the data set's own, or those of the folder, or as many as asked for."""
    if asked is not None:
        return DatasetInfo(fields.name, tuple(f"class {n}" for n in range(asked)), voc_palette(asked))
    if fields.name == "shapes":
        return importlib.import_module("fcn_jax.data.synthetic").INFO
    if fields.name in KNOWN:
        return importlib.import_module(f"fcn_jax.data.{KNOWN[fields.name][0]}").INFO
    file = Path(fields.root).expanduser() / Path(fields.folder.classes).expanduser()
    if not file.is_file():
        raise ConfigError(f"{file} is not there, so that the classes are unknown: give their number by --classes=21")
    return importlib.import_module("fcn_jax.data.classes").read_classes(file).info("folder")


def image_size(fields: Any, asked: str = "") -> tuple[tuple[int, int], str]:
    """Height and width of a training image, and where that comes from. Raises ConfigError where nothing tells."""
    if asked:
        height, _, width = asked.partition("x")
        if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
            raise ConfigError(f"--size={asked} is no height and width: --size=500x500")
        return (int(height), int(width)), "--size"
    if all(fields.augment.crop):
        return tuple(fields.augment.crop), "data.augment.crop"
    if fields.name == "shapes":
        return (fields.shapes.height, fields.shapes.width), "data.shapes"
    if fields.name == "voc2012" and fields.voc.crops:
        return (importlib.import_module("fcn_jax.data.crops").SIZE,) * 2, "data.voc.crops"
    if fields.name not in KNOWN:
        raise ConfigError("training images may be of any size: name one by --size=HxW, or set data.augment.crop")
    return KNOWN[fields.name][1], f"assumed for {fields.name}, whose images vary; --size=HxW names another"
