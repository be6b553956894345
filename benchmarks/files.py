"""Pictures and masks on disk, written for a measurement, and the batches that our loader makes of them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from benchmarks import draws, machine
from fcn_jax import config as experiment
from fcn_jax import data
from fcn_jax.data import loader
from fcn_jax.inputs import InputSpec

CLASSES_FILE = "classes.txt"


def write_pairs(folder: Path, count: int, size: tuple[int, int], suffix: str = ".jpg") -> None:
    """Writes `images/NNN<suffix>`, `masks/NNN.png` and the file of class names: a `folder` data set."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        cv2.imwrite(os.fspath(folder / "images" / f"{number:03}{suffix}"), draws.picture(*size, seed=number))
        cv2.imwrite(os.fspath(folder / "masks" / f"{number:03}.png"), draws.labels(1, *size)[0])
    names = [f"class {number}" for number in range(draws.CLASSES)]
    (folder / CLASSES_FILE).write_text("\n".join(names) + "\n")


def our_batches(folder: Path, batch_size: int, augment: dict[str, Any]) -> Iterator[dict]:
    """Endless training batches of such a folder, read by as many threads as there are cores."""
    fields = _source_fields(folder, augment)
    source = data.open_split(fields, "all")
    return loader.train_batches(
        source,
        fields.augment,
        InputSpec("BGR", draws.MEAN, (draws.SCALE,) * 3),
        batch_size=batch_size,
        seed=0,
        start_step=0,
        threads=fields.threads,
    )


def _source_fields(folder: Path, augment: dict[str, Any]) -> Any:
    fields: Any = experiment.default().data
    fields.update(name="folder", root=os.fspath(folder), threads=machine.cores())
    fields.augment.update(augment)
    return fields
