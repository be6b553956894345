"""The published lists of splits: text files of image names."""

import sys
from pathlib import Path

from fcn_jax.data import images
from fcn_jax.errors import DataError


def read_names(path: Path, origin: str = "") -> list[str]:
    """The names in a list, one a line. `origin` says where a list that is not there comes from."""
    if origin and not path.is_file():
        raise DataError(f"{path}: no such list; copy it from {origin}")
    names = images.read_bytes(path).decode("utf-8", errors="replace").split()
    if not names:
        raise DataError(f"{path}: the list is empty; copy it again")
    return names


def say_if_others(split: str, number: int, published: int) -> None:
    """A line on the error stream where a split has not as many images as the FCN paper: scores cannot be compared."""
    if number != published:
        note = f"{split}: {number} images, the paper has {published}; the lists are others"
        print(note, file=sys.stderr, flush=True)
