"""The wire format of protocol buffers, as far as weight files need it: no package, no schema compiler.

A message is a run of fields. Each begins with a varint `number << 3 | wire type`; what follows is a varint (type 0),
eight bytes (1), a length and so many bytes (2) or four bytes (5). Source: the "Encoding" page of Protocol Buffers.

A message is a place in the file, and is walked there: values of any type but 0 are places, too. Repeated numbers are
therefore counted on one walk and read on a second, straight into the array that the first one allowed.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fcn_jax.weights.files import Malformed, WeightFile

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

MAX_TEXT = 1 << 12
MAX_AXES = 32  # kMaxBlobAxes of Caffe; NumPy stops at 64
_UINT64 = (1 << 64) - 1
_MAX_VARINT_BYTES = 10
_MAX_FIELD_NUMBER = (1 << 29) - 1
_WINDOW = 512  # bytes read at a time for keys and lengths
_CHUNK = 1 << 13  # bytes of packed varints decoded at a time


class Piece(NamedTuple):
    """Where in the file a value's bytes lie."""

    offset: int
    size: int

    @property
    def stop(self) -> int:
        return self.offset + self.size


class _Varints:
    """Reads one varint after the other from a stretch of the file, through small windows."""

    def __init__(self, file: WeightFile, start: int, stop: int):
        self._file, self.position, self._stop = file, start, stop
        self._window, self._window_start = b"", start

    def next(self) -> int:
        """The unsigned 64-bit number at the position, which moves past it."""
        index = self.position - self._window_start
        if index + _MAX_VARINT_BYTES > len(self._window):
            self._window = self._file.at(self.position, min(_WINDOW, self._stop - self.position))
            self._window_start, index = self.position, 0
        value = 0
        for count, byte in enumerate(self._window[index : index + _MAX_VARINT_BYTES]):
            value |= (byte & 0x7F) << (7 * count)
            if byte < 0x80:
                self.position += count + 1
                return value & _UINT64
        if len(self._window) - index < _MAX_VARINT_BYTES:
            raise Malformed("it ends inside a number")
        raise Malformed(f"a number is longer than {_MAX_VARINT_BYTES} bytes")


def signed(value: int) -> int:
    """The int64 (or sign-extended int32) that an unsigned varint stands for."""
    return value - (1 << 64) if value >> 63 else value


def fields(file: WeightFile, start: int, stop: int) -> Iterator[tuple[int, int, int | Piece]]:
    """The fields of the message between two offsets, in their order: (number, wire type, value).

    The value of a varint is its number, that of any other type a place. Raises Malformed.
    """
    varints = _Varints(file, start, stop)
    while varints.position < stop:
        key = varints.next()
        number, wire_type = key >> 3, key & 7
        if not 0 < number <= _MAX_FIELD_NUMBER:
            raise Malformed(f"field number {number} is not possible")
        if wire_type == VARINT:
            yield number, wire_type, varints.next()
            continue
        if wire_type == BYTES:
            size = varints.next()
        elif wire_type == FIXED32:
            size = 4
        elif wire_type == FIXED64:
            size = 8
        else:  # 3 and 4 delimit groups, which weight formats never used; 6 and 7 do not exist
            raise Malformed(f"field {number} is of wire type {wire_type}, which weight files do not use")
        if size > (left := stop - varints.position):
            raise Malformed(f"field {number} claims {size} bytes where {left} are left (cut short? copy it anew)")
        piece = Piece(varints.position, size)
        varints.position += size
        yield number, wire_type, piece


def text(file: WeightFile, piece: Piece) -> str:
    """A name or the like. Raises Malformed for one that is too long to be one, or no UTF-8."""
    if piece.size > MAX_TEXT:
        raise Malformed(f"a name of {piece.size} bytes, where {MAX_TEXT} are the most")
    data = file.at(*piece)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Malformed(f"a name that is no UTF-8: {data[:80]!r}") from None


def extend_shape(file: WeightFile, shape: list[int], value: int | Piece) -> None:
    """Adds what a field of sizes holds, one of them or a packed run, to a shape of at most `MAX_AXES`."""
    if isinstance(value, int):
        sizes = iter([value])
    else:
        sizes = _packed(file, value)
    for size in sizes:
        if len(shape) == MAX_AXES:
            raise Malformed(f"a shape of more than {MAX_AXES} axes")
        shape.append(signed(size))


def _packed(file: WeightFile, piece: Piece) -> Iterator[int]:
    varints = _Varints(file, piece.offset, piece.stop)
    while varints.position < piece.stop:
        yield varints.next()


class Numbers:
    """A repeated float or double field, packed or not: `see` every field of a message, then read the `array`."""

    def __init__(self, number: int, dtype: str):
        self._dtype = np.dtype(dtype)
        self._keys = {(number, BYTES), (number, FIXED32 if self._dtype.itemsize == 4 else FIXED64)}
        self.most = 0  # exactly as many values

    def see(self, number: int, wire_type: int, value: int | Piece) -> None:
        """Counts the values of one packed run or one single number; any other field is passed over."""
        if (number, wire_type) not in self._keys:
            return
        assert isinstance(value, Piece)
        if value.size % self._dtype.itemsize:
            raise Malformed(f"{value.size} bytes are no whole number of {self._dtype.name} values")
        self.most += value.size // self._dtype.itemsize

    def array(self, file: WeightFile, message: Piece, shape: Sequence[int]) -> np.ndarray:
        """The values, as many as the shape needs, from the message whose fields were all seen."""
        array = file.empty(self._dtype, shape)
        flat, position = array.reshape(-1), 0
        for number, wire_type, value in fields(file, message.offset, message.stop):
            if (number, wire_type) in self._keys:
                assert isinstance(value, Piece)
                count = value.size // self._dtype.itemsize
                file.read_into(value.offset, flat[position : position + count])
                position += count
        return array


class Integers:
    """A repeated integer field, packed or not: `see` every field of a message, then walk the `values`."""

    def __init__(self, number: int):
        self.number = number
        self.most = 0  # values at the most: one to a byte

    def see(self, number: int, wire_type: int, value: int | Piece) -> None:
        """Counts the values of one packed run or one single number; any other field is passed over."""
        if number == self.number and wire_type in (VARINT, BYTES):
            self.most += 1 if isinstance(value, int) else value.size

    def values(self, file: WeightFile, message: Piece) -> Iterator[np.ndarray]:
        """The values as u64[n], some at a time, from the message whose fields were all seen."""
        singles: list[int] = []
        for number, wire_type, value in fields(file, message.offset, message.stop):
            if number != self.number or wire_type not in (VARINT, BYTES):
                continue
            if isinstance(value, int):
                singles.append(value)
            if singles and (len(singles) == _CHUNK or not isinstance(value, int)):
                yield np.array(singles, np.uint64)
                singles.clear()
            if not isinstance(value, int):
                yield from _decoded(file, value)
        if singles:
            yield np.array(singles, np.uint64)


def _decoded(file: WeightFile, piece: Piece) -> Iterator[np.ndarray]:
    """The values of a packed run, a chunk at a time: a loop over the bytes of a large one would take minutes."""
    position = piece.offset
    while position < piece.stop:
        chunk = np.frombuffer(file.at(position, min(_CHUNK, piece.stop - position)), np.uint8)
        ends = np.flatnonzero(chunk < 0x80) + 1
        starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        longest = int((ends - starts).max(initial=0))
        if longest > _MAX_VARINT_BYTES or (not len(ends) and len(chunk) >= _MAX_VARINT_BYTES):
            raise Malformed(f"a number is longer than {_MAX_VARINT_BYTES} bytes")
        if not len(ends):
            raise Malformed("it ends inside a number")
        values = np.zeros(len(ends), np.uint64)
        for count in range(longest):
            there = starts + count < ends
            bits = (chunk[starts[there] + count] & 0x7F).astype(np.uint64)
            values[there] |= bits << np.uint64(7 * count)
        yield values
        position += int(ends[-1])
