"""Tensors as torch keeps them: views of storages by offset, sizes and strides, read into arrays of their own.

A tensor is read in the order of its values in memory, and the array's axes are put in the tensor's order afterwards:
kernels whose channels lie last, and transposed matrices, then need no second array.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from fcn_jax.weights import raw_values
from fcn_jax.weights.files import Malformed, WeightFile
from fcn_jax.weights.torch_globals import Storage, Tensor, Unread
from fcn_jax.weights.zip_archive import STORED, Entry, EntryStream

_PIECE = 1 << 16
_MAX_AXES = 32
# Views that skip values, and views of deflated storages, pass over bytes that they do not need. Bounds the time that a
# file can ask for.
_MAX_SKIPPED = 16  # times the file's size


class Source(Protocol):
    """The bytes of a storage, read forwards."""

    def cost(self, size: int) -> int:
        """How many bytes are read for so many that are wanted."""
        ...

    def read_into(self, position: int, array: np.ndarray) -> None:
        """Fills an array in C order."""
        ...

    def finish(self) -> None:
        """Checks what can only be seen at the end."""
        ...


class Plain:
    """A storage that lies in the file as it is."""

    def __init__(self, file: WeightFile, start: int):
        self._file, self._start = file, start

    def cost(self, size: int) -> int:
        return size

    def read_into(self, position: int, array: np.ndarray) -> None:
        self._file.read_into(self._start + position, array)

    def finish(self) -> None:
        pass


class Deflated:
    """A storage in a deflated member of an archive."""

    def __init__(self, file: WeightFile, entry: Entry):
        self._stream, self._size, self._position = EntryStream(file, entry), entry.size, 0

    def cost(self, size: int) -> int:
        return self._size

    def read_into(self, position: int, array: np.ndarray) -> None:
        self._skip_to(position)
        self._stream.fill(array)
        self._position += array.nbytes

    def finish(self) -> None:
        self._skip_to(self._size)
        self._stream.finish()

    def _skip_to(self, position: int) -> None:
        while self._position < position:
            self._position += len(self._stream.take(min(_PIECE, position - self._position)))


def member_source(file: WeightFile, entry: Entry) -> Source:
    """A member of an archive as a storage's bytes."""
    return Plain(file, entry.offset) if entry.method == STORED else Deflated(file, entry)


class TensorReader:
    """Reads the tensors of a file whose storages `find` finds, each as large as it says."""

    def __init__(self, file: WeightFile, find: Callable[[Storage], Source], big_endian: bool = False):
        self._file, self._find, self._big_endian = file, find, big_endian
        self._may_skip = _MAX_SKIPPED * file.size

    def read(self, tensor: Tensor | Unread) -> np.ndarray:
        """The values of a tensor. Raises Malformed."""
        if isinstance(tensor, Unread):
            raise Malformed(f"it is {tensor.sort}, which is not read")
        if tensor.kind not in raw_values.STORED:
            raise Malformed(f"it has the dtype {tensor.kind}, which is not read")
        sizes, strides, offset = _numbers(tensor.sizes), _numbers(tensor.strides), _numbers((tensor.offset,))[0]
        if len(sizes) != len(strides):
            raise Malformed(f"it has {len(sizes)} sizes and {len(strides)} strides")
        wanted, step = raw_values.stored_bytes(tensor.kind, sizes), raw_values.stored_bytes(tensor.kind, ())
        # From the slowest axis to the fastest; axes of one element say nothing.
        axes = sorted((axis for axis, size in enumerate(sizes) if size > 1), key=lambda axis: -strides[axis])
        shape, steps = [sizes[axis] for axis in axes], [step * strides[axis] for axis in axes]
        extent = _extent(shape, steps, step) if wanted else 0
        if step * offset + extent > tensor.storage.nbytes:
            raise Malformed(f"it needs the bytes up to {step * offset + extent} of {tensor.storage.nbytes}")
        if not wanted:
            return raw_values.empty(self._file, tensor.kind, sizes)
        source = self._find(tensor.storage)
        self._may_skip -= source.cost(extent) - wanted  # never less than nothing: no two values share memory
        if self._may_skip < 0:
            raise Malformed(f"such tensors pass over more than {_MAX_SKIPPED} times the file's bytes")
        array = raw_values.empty(self._file, tensor.kind, shape)
        values = raw_values.stored_part(array, tensor.kind).reshape(shape)
        _gather(source, step * offset, steps, values)
        source.finish()
        if self._big_endian:
            values.byteswap(inplace=True)
        array = raw_values.finished(array, tensor.kind)
        return array.transpose([axes.index(axis) for axis in sorted(axes)]).reshape(sizes)


def _numbers(values: Any) -> list[int]:
    if not isinstance(values, tuple) or len(values) > _MAX_AXES:
        raise Malformed(f"its sizes or strides are no tuple of {_MAX_AXES} numbers at most")
    if not all(type(value) is int and 0 <= value < 1 << 63 for value in values):
        raise Malformed("its offset, sizes or strides are impossible")
    return list(values)


def _extent(shape: Sequence[int], steps: Sequence[int], step: int) -> int:
    """The bytes from a view's first value to its last. Raises Malformed where values would share memory."""
    extent = step
    for size, stride in zip(reversed(shape), reversed(steps), strict=True):
        if stride < extent:
            raise Malformed("its strides repeat values")
        extent += (size - 1) * stride
    return extent


def _gather(source: Source, position: int, steps: Sequence[int], target: np.ndarray) -> None:
    """Fills an array in C order with the values at `position`, which are `steps` bytes apart along its axes."""
    extent = target.itemsize + sum((size - 1) * step for size, step in zip(target.shape, steps, strict=True))
    if extent == target.nbytes:
        source.read_into(position, target)
    elif extent <= _PIECE:
        piece = np.empty(extent, np.uint8)
        source.read_into(position, piece)
        target[...] = np.ndarray(target.shape, target.dtype, piece, strides=tuple(steps))
    else:
        rows = max(1, _PIECE // steps[0])
        for start in range(0, len(target), rows):
            part = target[start : start + rows]
            if rows == 1:
                _gather(source, position + start * steps[0], steps[1:], part.reshape(part.shape[1:]))
            else:
                _gather(source, position + start * steps[0], steps, part)
