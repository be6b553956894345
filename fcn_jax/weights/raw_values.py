"""Numbers as they lie in weight files, one after the other and little-endian, by the names of their dtypes.

NumPy knows no bfloat16, the upper half of a float32: such values come back as float32. They are read into the rear half
of the array's own memory and widened there from the front, so that no second array is needed.
"""

from collections.abc import Sequence

import numpy as np

from fcn_jax.weights.files import Malformed, WeightFile

BFLOAT16 = "bfloat16"
# Name → bytes as they are stored.
STORED = {
    **{f"{kind}{8 * size}": np.dtype(f"<{kind[0]}{size}") for kind in ("int", "uint") for size in (1, 2, 4, 8)},
    **{f"float{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    "bool": np.dtype("?"),
    BFLOAT16: np.dtype("<u2"),
}
_CHUNK = 1 << 15


def stored_bytes(kind: str, shape: Sequence[int]) -> int:
    """The bytes that an array takes in a file. Raises Malformed for a shape that none can have."""
    return WeightFile.nbytes(STORED[kind], shape)


def read_values(
    file: WeightFile, offset: int, kind: str, shape: Sequence[int], source: WeightFile | None = None
) -> np.ndarray:
    """The array whose values lie at `offset` of the file, or of the `source` that the file names instead of itself."""
    source = source or file
    size = stored_bytes(kind, shape)
    if not 0 <= offset <= source.size - size:
        raise Malformed(f"{size} bytes at {offset} are said to be there, and there are {source.size}")
    array = empty(file, kind, shape)
    source.read_into(offset, stored_part(array, kind))
    return finished(array, kind)


def empty(file: WeightFile, kind: str, shape: Sequence[int]) -> np.ndarray:
    """An array to be filled, counted against the cap of the file."""
    return file.empty("<f4" if kind == BFLOAT16 else STORED[kind], shape)


def stored_part(array: np.ndarray, kind: str) -> np.ndarray:
    """The memory of an array from `empty` that takes the values as they are stored, one axis."""
    flat = array.reshape(-1)
    return flat.view(np.uint16)[flat.size :] if kind == BFLOAT16 else flat


def finished(array: np.ndarray, kind: str) -> np.ndarray:
    """The array itself, once its stored part is filled."""
    if kind == BFLOAT16:
        halves, wide = stored_part(array, kind), array.reshape(-1).view(np.uint32)
        for start in range(0, array.size, _CHUNK):
            # A value's new place never lies behind its old one, so what is overwritten was read.
            wide[start : start + _CHUNK] = halves[start : start + _CHUNK].astype(np.uint32) << np.uint32(16)
    elif kind == "bool":
        check_booleans(array)
    return array


def check_booleans(array: np.ndarray) -> None:
    """Raises Malformed for a bool that is neither 0 nor 1, with which NumPy would compute nonsense."""
    if array.view(np.uint8).max(initial=0) > 1:
        raise Malformed("a bool in it is neither 0 nor 1")
