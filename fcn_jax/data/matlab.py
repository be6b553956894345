"""Label maps in MATLAB's files, as SBD, NYUDv2, SIFT Flow and PASCAL-Context store them.

MATLAB counts from 1, and so do these data sets: their 0, or −1, is what has no label.
"""

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from fcn_jax.data import images
from fcn_jax.errors import DataError, one_line
from fcn_jax.labels import IGNORE


def read_labels(path: Path, variable: str, *fields: str) -> np.ndarray:
    """The whole numbers `i32[h w]` in a variable of a file, or in a field of the struct that it holds."""
    images.read_bytes(path)
    try:
        content = loadmat(path, struct_as_record=False)
    # loadmat meets a damaged file with whatever its parser stumbles over: ValueError, TypeError, KeyError, zlib.error …
    except Exception as error:
        raise DataError(f"{path}: not a readable MATLAB file ({one_line(error)}); copy it again") from None
    name = ".".join((variable, *fields))
    try:
        values = content[variable]
        for field in fields:
            values = getattr(values.item(), field)
    except (KeyError, AttributeError, ValueError):
        there = ", ".join(key for key in content if not key.startswith("__")) or "nothing"
        raise DataError(f"{path}: no {name} in it, but {there}; is it another data set's file?") from None
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf" and values.ndim == 2 and values.size:
        with np.errstate(invalid="ignore"):  # NaN, which is no whole number either
            labels = values.astype(np.int32)
        if (labels == values).all():
            return labels
    raise DataError(f"{path}: {name} is no map of whole numbers; is it another data set's file?")


def labels_from_one(numbers: np.ndarray) -> np.ndarray:
    """Classes counted from 1 as labels `u8` from 0; 0 and less become 255, and what no label can be 254."""
    return np.where(numbers < 1, IGNORE, np.minimum(numbers - 1, IGNORE - 1)).astype(np.uint8)
