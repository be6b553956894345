"""The wire format of protocol buffers, as far as weight files need it: no package, no schema compiler.

A message is a run of fields. Each begins with a varint `number << 3 | wire type`; what follows is a varint (type 0),
eight bytes (1), a length and so many bytes (2) or four bytes (5). Source: the "Encoding" page of Protocol Buffers.

Nothing is copied on the way: values of type 2 are views into the file's own bytes, and no size that a file states is
believed before that many bytes were seen to be there.
"""

from collections.abc import Iterator

import numpy as np

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

_UINT64 = (1 << 64) - 1
_MAX_VARINT_BYTES = 10
_MAX_FIELD_NUMBER = (1 << 29) - 1


class Malformed(Exception):
    """Bytes that are not a well-formed message. Readers turn it into a WeightFileError that names the file."""


def read_varint(buffer: memoryview, position: int) -> tuple[int, int]:
    """The unsigned 64-bit number at `position`, and the position after it."""
    value = 0
    for count in range(_MAX_VARINT_BYTES):
        if position + count >= len(buffer):
            raise Malformed("it ends inside a number")
        byte = buffer[position + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value & _UINT64, position + count + 1
    raise Malformed(f"a number is longer than {_MAX_VARINT_BYTES} bytes")


def signed(value: int) -> int:
    """The int64 (or sign-extended int32) that an unsigned varint stands for."""
    return value - (1 << 64) if value >> 63 else value


def fields(buffer: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """The fields of a message in their order: (number, wire type, value); a value of any type but 0 is a view."""
    position, end = 0, len(buffer)
    while position < end:
        key, position = read_varint(buffer, position)
        number, wire_type = key >> 3, key & 7
        if not 0 < number <= _MAX_FIELD_NUMBER:
            raise Malformed(f"field number {number} is not possible")
        if wire_type == VARINT:
            value, position = read_varint(buffer, position)
            yield number, wire_type, value
            continue
        if wire_type == BYTES:
            size, position = read_varint(buffer, position)
        elif wire_type == FIXED32:
            size = 4
        elif wire_type == FIXED64:
            size = 8
        else:  # 3 and 4 delimit groups, which weight formats never used; 6 and 7 do not exist
            raise Malformed(f"field {number} is of wire type {wire_type}, which weight files do not use")
        if size > end - position:
            raise Malformed(f"field {number} claims {size} bytes where {end - position} are left")
        yield number, wire_type, buffer[position : position + size]
        position += size


def varints(buffer: memoryview) -> Iterator[int]:
    """The numbers of a packed repeated integer field."""
    position = 0
    while position < len(buffer):
        value, position = read_varint(buffer, position)
        yield value


class Numbers:
    """A repeated float or double field, packed or not, gathered piece by piece.

    One packed piece, which is what real files hold, stays a view. Many pieces are joined in one growing buffer, because
    a list of small views would need many times the memory of the file.
    """

    def __init__(self, dtype: str):
        self._dtype = np.dtype(dtype)
        self._bytes: memoryview | bytearray | None = None

    def append(self, piece: memoryview) -> None:
        """Add one packed run or one single number."""
        if len(piece) % self._dtype.itemsize:
            raise Malformed(f"{len(piece)} bytes are no whole number of {self._dtype.name} values")
        if self._bytes is None:
            self._bytes = piece
            return
        if isinstance(self._bytes, memoryview):
            self._bytes = bytearray(self._bytes)
        self._bytes += piece

    def __len__(self) -> int:
        return 0 if self._bytes is None else len(self._bytes) // self._dtype.itemsize

    def array(self) -> np.ndarray:
        """The values, one axis, read-only where they are a view into the file."""
        return np.frombuffer(b"" if self._bytes is None else self._bytes, self._dtype)
