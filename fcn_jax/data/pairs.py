"""An image and its mask belong together by name: finding such pairs in folders, and checking that they fit.

Where an example has more files than these two, they are a group.
"""

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from fcn_jax.data import images
from fcn_jax.errors import DataError
from fcn_jax.labels import IGNORE

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Pair:
    """The files of one example; the id is their common stem."""

    id: str
    image: Path
    mask: Path


@dataclasses.dataclass(frozen=True)
class Group:
    """The files of an example: images by kind, label maps by head, and what the labels depend on besides."""

    id: str
    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    others: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them, in a fixed order."""
        return (*self.images.values(), *self.masks.values(), *self.others)


def list_images(folder: Path) -> dict[str, Path]:
    """The image files directly in a folder by stem, sorted. Hidden files and other suffixes are passed over."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check the path in the config's data group")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in images.SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(f"{folder}: {found[path.stem].name} and {path.name} share a stem; keep one of the two")
        found[path.stem] = path
    if not found:
        raise DataError(f"{folder}: holds no images ({', '.join(images.SUFFIXES)}); check the path")
    return found


def pair_by_stem(image_folder: Path, mask_folder: Path) -> list[Pair]:
    """Every image of one folder with the mask of the same stem in the other, by stem. Nothing may be left over."""
    pictures, masks = list_images(image_folder), list_images(mask_folder)
    without_mask = [path.name for stem, path in pictures.items() if stem not in masks]
    without_image = [path.name for stem, path in masks.items() if stem not in pictures]
    if without_mask or without_image:
        complaints = []
        if without_mask:
            complaints.append(f"{len(without_mask)} images of {image_folder} have no mask: {some(without_mask)}")
        if without_image:
            complaints.append(f"{len(without_image)} masks of {mask_folder} have no image: {some(without_image)}")
        raise DataError(f"{'; '.join(complaints)}; pairs share their stem: rename or remove these files")
    return [Pair(stem, pictures[stem], masks[stem]) for stem in sorted(pictures)]


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, for a message of one line."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def require_same_size(
    image: Path, image_size: tuple[int, int], other: Path, other_size: tuple[int, int], what: str = "mask"
) -> None:
    """DataError when another file of an example, (height, width), is not of the image's size."""
    if image_size == other_size:
        return
    (h, w), (other_h, other_w) = image_size, other_size
    hint = "one of them is turned (EXIF orientation)" if (h, w) == (other_w, other_h) else "they must agree"
    raise DataError(f"{other}: the {what} is {other_w}×{other_h}, its image {image.name} is {w}×{h}; {hint}")


def require_labels(path: Path, labels: np.ndarray, num_classes: int) -> None:
    """DataError when a label `u8[h w]` is neither a class nor 255."""
    if labels.ndim != 2:
        raise DataError(f"{path}: holds colours, not labels; save the mask as a palette or grey PNG of class numbers")
    values = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    wrong = values[(values >= num_classes) & (values != IGNORE)]
    if wrong.size:
        raise DataError(
            f"{path}: holds the label {wrong[0]}, but the classes are 0…{num_classes - 1} (and {IGNORE} for void); "
            "correct the mask or the list of classes"
        )


def stamp(paths: Iterable[Path]) -> tuple[int, ...]:
    """Sizes and times of an example's files: changes when one of them does. DataError when one is not there."""
    numbers: list[int] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the data set's files") from None
        numbers += [status.st_size, status.st_mtime_ns]
    return tuple(numbers)


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """`map` on threads, a few items ahead of the reader: big results never pile up."""
    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool:
        while chunk := list(itertools.islice(items, 16 * max(threads, 1))):
            yield from pool.map(function, chunk)
