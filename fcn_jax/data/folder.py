"""One's own data without code: a folder of images, a folder of masks, a file of class names.

Everything that can be known is checked when a split is opened, over the whole set: pairs, sizes, files cut off, and
every value in every mask. Training then never starts on data that would spoil it hours later. Files are read where they
lie.
"""

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fcn_jax.data import images, pairs
from fcn_jax.data.classes import Classes, label_of_values, read_classes, read_colors
from fcn_jax.data.pairs import Pair
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.labels import IGNORE, DatasetInfo

SPLITS = ("train", "val", "all")


@dataclasses.dataclass(frozen=True)
class Decoder:
    """From a mask file's values or colours to labels."""

    values: tuple[int, ...]  # the label of each value 0…255 of an index mask; −1: not allowed
    colors: dict[int, int]  # red << 16 | green << 8 | blue -> label; empty: colour masks are refused

    def __call__(self, mask: np.ndarray, path: Path) -> np.ndarray:
        """Labels `u8[h w]` of a mask as `images.read_mask` gives it."""
        if mask.ndim == 2:
            labels = np.asarray(self.values, np.int16)[mask]
        else:
            codes = _codes(mask)
            # One more than any colour closes the table, so that searching never runs past its end.
            known = np.array([*sorted(self.colors), 1 << 24], np.int32)
            places = np.searchsorted(known, codes)
            labels = np.array([self.colors.get(code, -1) for code in known.tolist()], np.int16)[places]
            labels[known[places] != codes] = -1
        if (labels < 0).any():
            raise DataError(f"{path}: the mask has changed since it was checked; start again")
        return labels.astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Folder:
    """A split as a data source."""

    info: DatasetInfo
    pairs: tuple[Pair, ...]
    decoder: Decoder
    channels: ClassVar[str] = "RGB"

    def __len__(self) -> int:
        return len(self.pairs)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, without decoding it."""
        return images.read_size(self.pairs[index].image)

    def __getitem__(self, index: int) -> dict:
        pair = self.pairs[index]
        image = images.read_image(pair.image)
        label = self.decoder(images.read_mask(pair.mask), pair.mask)
        pairs.require_same_size(pair.image, image.shape[:2], pair.mask, label.shape)
        return {"image": image, "label": label, "id": pair.id}


def open_split(fields: Any, split: str) -> Folder:
    """The split "train", "val" or "all" of `fields.folder`, the whole set checked. Paths start at `fields.root`."""
    folder = fields.folder
    if split not in SPLITS:
        raise ConfigError(f"folder has no split {split!r}; it has {', '.join(SPLITS)}")
    if folder.value_255 not in ("", "class", "void"):
        raise ConfigError(f"data.folder.value_255 is {folder.value_255!r}; it is 'class', 'void' or ''")
    for field in ("images", "masks", "classes"):
        if not getattr(folder, field):
            raise ConfigError(f"data.folder.{field} is empty; give the path of the {field}")
    root = Path(fields.root).expanduser()
    if not root.is_dir():
        raise DataError(f"data.root={fields.root}: there is no such folder; name the one that holds images and masks")
    classes = read_classes(root / Path(folder.classes).expanduser())
    if folder.colors:
        classes = read_colors(root / Path(folder.colors).expanduser(), classes)
    found = pairs.pair_by_stem(*(root / Path(path).expanduser() for path in (folder.images, folder.masks)))
    contents = _scan(tuple((pair, pairs.stamp((pair.image, pair.mask))) for pair in found), fields.threads)
    decoder = _decoder(found, contents, classes, folder.value_255)
    members = _members(folder, root, [pair.id for pair in found], split)
    chosen = tuple(pair for pair in found if pair.id in members)
    if not chosen:
        raise DataError(
            f"folder: the split {split!r} is empty ({len(found)} pairs in all); "
            f"change data.folder.{split}_list or data.folder.val_fraction"
        )
    return Folder(classes.info("folder"), chosen, decoder)


def _codes(mask: np.ndarray) -> np.ndarray:
    """RGB `u8[h w 3]` as one number a pixel, `i32[h w]`."""
    red, green, blue = (mask[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


@functools.lru_cache(maxsize=4)
def _scan(stamped: tuple[tuple[Pair, tuple[int, ...]], ...], threads: int) -> tuple[tuple[bool, frozenset[int]], ...]:
    """Of each mask: whether it stores colours, and the values or colour codes in it. Remembered for the next split."""
    print(f"checking {len(stamped)} pairs of images and masks …", file=sys.stderr, flush=True)

    def contents(pair: Pair) -> tuple[bool, frozenset[int]]:
        mask = images.read_mask(pair.mask)
        # Decoded, as its header tells nothing of the damage behind it.
        pairs.require_same_size(pair.image, images.read_image(pair.image).shape[:2], pair.mask, mask.shape[:2])
        if mask.ndim == 3:
            return True, frozenset(np.unique(_codes(mask)).tolist())
        return False, frozenset(np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist())

    return tuple(pairs.in_order(contents, (pair for pair, _ in stamped), threads))


def _decoder(
    found: Sequence[Pair], contents: Sequence[tuple[bool, frozenset[int]]], classes: Classes, value_255: str
) -> Decoder:
    """How this set's masks become labels, or a DataError that names the first file to say no."""
    values = label_of_values(classes)
    in_index_masks = {value for colored, present in contents if not colored for value in present}
    if IGNORE in in_index_masks and in_index_masks <= {0, IGNORE} and not value_255:
        raise DataError(
            f"{found[0].mask}: like all masks here it holds only 0 and 255; set data.folder.value_255 to 'class' if "
            "255 means the second line of the classes file, or to 'void' if 255 is to be ignored"
        )
    if value_255 == "class":
        if values[1] < 0:
            raise ConfigError("data.folder.value_255 is 'class', but the classes file has one line; add the second")
        values[IGNORE] = values[1]
    colors = _label_of_colors(classes)
    for pair, (colored, present) in zip(found, contents, strict=True):
        if colored:
            _require_known_colors(pair.mask, present, colors)
            continue
        if value_255 == "class" and not present <= {0, IGNORE}:
            raise DataError(
                f"{pair.mask}: holds {min(present - {0, IGNORE})}, but data.folder.value_255='class' is for masks of "
                "0 and 255 alone; set it to 'void'"
            )
        wrong = [value for value in sorted(present) if values[value] < 0]
        if wrong:
            raise DataError(
                f"{pair.mask}: holds the label {wrong[0]}, but the classes file has the lines "
                f"0…{len(classes.lines) - 1} (and {IGNORE} is void); correct the mask or add the class"
            )
    return Decoder(tuple(values.tolist()), colors)


def _label_of_colors(classes: Classes) -> dict[int, int]:
    if classes.colors is None:
        return {}
    codes = (red << 16 | green << 8 | blue for red, green, blue in classes.colors)
    return dict(zip(codes, classes.labels, strict=True))


def _require_known_colors(path: Path, present: frozenset[int], colors: dict[int, int]) -> None:
    unknown = [f"({code >> 16}, {code >> 8 & 255}, {code & 255})" for code in sorted(present - colors.keys())]
    if unknown and not colors:
        raise DataError(
            f"{path}: the mask stores colours: {pairs.some(unknown, 12)}; give each class its colour in the classes "
            "file (name red green blue) or in data.folder.colors"
        )
    if unknown:
        raise DataError(
            f"{path}: colours of no class: {pairs.some(unknown, 12)}; add them to the classes file, as 'void' where "
            "they are to be ignored"
        )


def _members(folder: Any, root: Path, stems: Sequence[str], split: str) -> set[str]:
    """The stems of a split: from its list, or what the other's list leaves, or by the seeded fraction."""
    if split == "all":
        return set(stems)
    lists = {
        name: _read_list(root / Path(path).expanduser(), stems)
        for name, path in (("train", folder.train_list), ("val", folder.val_list))
        if path
    }
    if len(lists) == 2 and (both := sorted(lists["train"] & lists["val"])):
        raise DataError(f"folder: {pairs.some(both)} in train_list and in val_list; scores would flatter: remove one")
    if split in lists:
        return lists[split]
    if lists:
        return set(stems).difference(*lists.values())
    if not 0 <= folder.val_fraction < 1:
        raise ConfigError(f"data.folder.val_fraction is {folder.val_fraction}; it needs 0 <= val_fraction < 1")
    # By hash, not by shuffling: pairs that are added later move hardly any other across.
    ranked = sorted(stems, key=lambda stem: hashlib.sha256(f"{folder.split_seed} {stem}".encode()).digest())
    num_val = round(len(stems) * folder.val_fraction)
    return set(ranked[:num_val] if split == "val" else ranked[num_val:])


def _read_list(path: Path, stems: Sequence[str]) -> set[str]:
    """The stems named in a list file, one a line, with or without suffix."""
    known = set(stems)
    lines = [line.strip() for line in images.read_bytes(path).decode("utf-8-sig", errors="replace").splitlines()]
    named = [line if line in known else Path(line).stem for line in lines if line]
    unknown = [name for name in named if name not in known]
    if unknown:
        raise DataError(f"{path}: names pairs that are not there: {pairs.some(unknown)}; correct the list")
    return set(named)
