"""A weight file as its readers see it: random access that believes no size which the file states.

Every reader is a function `parse(file: WeightFile) -> {name: array}`. What it takes from the file it takes through
`at` and `array`, so that nothing is read beyond the file's end and no array is made before its bytes were seen to be
there and the caller's cap was seen to allow them. Numbers go straight into their arrays: the file itself is never held.
"""

import contextlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fcn_jax.errors import WeightFileError

# The largest nets of the kind have a gigabyte; what declares more than this is taken for a fault unless the caller
# says otherwise.
MAX_BYTES = 8 << 30
_MAX_AXES = 32  # of Caffe's blobs; NumPy stops at 64


class Malformed(Exception):
    """What a reader finds wrong. `weights.read` turns it into a WeightFileError that names the file."""


class WeightFile:
    """An open file of known size, with the number of bytes that its arrays may still take."""

    def __init__(self, file: BinaryIO, path: Path | None = None, max_bytes: int | None = None):
        self._file = file
        self.path = path  # None for bytes in memory
        self.size = file.seek(0, os.SEEK_END)
        self.max_bytes = MAX_BYTES if max_bytes is None else max_bytes
        self._left = self.max_bytes

    @classmethod
    def of(cls, data: bytes, max_bytes: int | None = None) -> "WeightFile":
        """Bytes in memory as a file."""
        return cls(io.BytesIO(data), max_bytes=max_bytes)

    def at(self, offset: int, size: int) -> bytes:
        """So many bytes from `offset` on. For headers: arrays are read by `array`. Raises Malformed past the end."""
        self._require(offset, size)
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise Malformed("it was cut short while it was read")
        return data

    def array(self, offset: int, dtype: np.dtype | str, shape: Sequence[int]) -> np.ndarray:
        """The array whose values lie at `offset`, in C order, read into memory of its own."""
        dtype = np.dtype(dtype)
        self._require(offset, self.nbytes(dtype, shape))
        array = self.empty(dtype, shape)
        self.read_into(offset, array)
        return array

    def read_into(self, offset: int, array: np.ndarray) -> None:
        """Fills an array (in C order, from `empty`) with the bytes at `offset`."""
        self._require(offset, array.nbytes)
        self._file.seek(offset)
        target = memoryview(array.reshape(-1).view(np.uint8))  # pyright: ignore[reportArgumentType]
        while len(target):
            count = self._file.readinto(target)  # pyright: ignore[reportAttributeAccessIssue]
            if not count:
                raise Malformed("it was cut short while it was read")
            target = target[count:]

    def empty(self, dtype: np.dtype | str, shape: Sequence[int]) -> np.ndarray:
        """An array to be filled, counted against the cap. The caller has seen that the file holds its values."""
        size = self.nbytes(dtype, shape)
        if size > self._left:
            raise Malformed(f"its arrays need more than the {self.max_bytes:,} bytes that are allowed")
        self._left -= size
        return np.empty(tuple(shape), dtype)

    @staticmethod
    def nbytes(dtype: np.dtype | str, shape: Sequence[int]) -> int:
        """The bytes of an array. Raises Malformed for a shape that none can have."""
        if len(shape) > _MAX_AXES:
            raise Malformed(f"a shape of {len(shape)} axes, where {_MAX_AXES} are the most")
        if any(size < 0 for size in shape):
            raise Malformed(f"a shape with a negative size: {list(shape)}")
        # An axis of 0 makes the array empty, and NumPy multiplies the others all the same.
        if math.prod(size for size in shape if size) * np.dtype(dtype).itemsize > np.iinfo(np.int64).max:
            raise Malformed(f"a shape that no array can have: {list(shape)}")
        return math.prod(shape) * np.dtype(dtype).itemsize

    def _require(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise Malformed(f"{size} bytes at {offset} are said to be there, and the file has {self.size}")


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], max_bytes: int | None = None) -> Iterator[WeightFile]:
    """A weight file to read from. Raises WeightFileError where there is none, or it is empty or cannot be read."""
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise WeightFileError(f"{path}: {what}; name the downloaded weights by init.weights or --weights")
    try:
        with path.open("rb") as stream:
            file = WeightFile(stream, path, max_bytes)
            if not file.size:
                raise WeightFileError(f"{path}: the file is empty")
            yield file
    except OSError as error:
        raise WeightFileError(f"{path}: cannot be read: {error.strerror}") from None
