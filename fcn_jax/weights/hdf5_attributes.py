"""Attributes that are texts: with them Keras tells the order of layers and of their weights.

Source: HDF5 File Format Specification, version 3.0, sections IV.A.2.m (attribute) and III.E (global heap). h5py before
3.0 wrote lists of texts with a fixed length each; later ones put every text into a heap of the whole file. Attributes
that are kept outside of an object's header, as only large or numerous ones are, are not seen.
"""

import math

from fcn_jax.weights.files import Malformed
from fcn_jax.weights.hdf5_objects import ATTRIBUTE, Header
from fcn_jax.weights.hdf5_storage import Block, Storage
from fcn_jax.weights.hdf5_types import FIXED_TEXT, VARIABLE_LENGTH, shape_of, type_class

_SHARED = 3  # bits of an attribute's flags: type or shape stand elsewhere
_TEXT = 1  # what varies in length, in the lowest bits of that class


class Attributes:
    """The attributes of a file's objects."""

    def __init__(self, storage: Storage):
        self._storage = storage
        self._heaps: dict[int, dict[int, bytes]] = {}  # address → number → text

    def texts(self, header: Header, name: str) -> list[str]:
        """The texts of an attribute, one or a list; none where it has no such attribute, or no texts in it."""
        for body in header.every(ATTRIBUTE):
            found, datatype, dataspace = _described(body)
            if found == name.encode() and datatype is not None:
                return self._texts(datatype, math.prod(shape_of(dataspace)), body)
        return []

    def _texts(self, datatype: Block, count: int, values: Block) -> list[str]:
        kind, bits, size = type_class(datatype)
        is_variable = kind == VARIABLE_LENGTH and bits & 0xF == _TEXT
        if not size or not (is_variable or kind == FIXED_TEXT):
            return []
        if count * size > values.left:
            raise Malformed(f"an attribute claims {count} texts in {values.left} bytes")
        items = [values.part(size) for _ in range(count)]
        encoded = [self._in_heap(item) if is_variable else item.rest() for item in items]
        return [item.partition(b"\0")[0].decode(errors="replace") for item in encoded]

    def _in_heap(self, reference: Block) -> bytes:
        """The text that a reference leads to."""
        length, address, number = reference.number(4), reference.address_if_any(), reference.number(4)
        if not length or address is None:
            return b""
        self._storage.charge(length)
        if address not in self._heaps:
            self._heaps[address] = _heap(self._storage, address)
        text = self._heaps[address].get(number, b"")[:length]
        if len(text) < length:
            raise Malformed(f"a text of {length} bytes is not where an attribute says")
        return text


def _described(body: Block) -> tuple[bytes, Block | None, Block]:
    """Name, type (None where it is not read) and shape; what is left of the body are the values."""
    version, flags = body.number(1), body.number(1)
    if version not in (1, 2, 3):
        raise Malformed(f"attribute version {version} is not read")
    sizes = [body.number(2) for _ in range(3)]
    if version == 3:
        body.take(1)  # how the name is encoded
    # Version 1 fills each up to 8 bytes.
    name, datatype, dataspace = (body.part(size + (-size % 8 if version == 1 else 0)) for size in sizes)
    shared = version > 1 and flags & _SHARED
    return name.rest().partition(b"\0")[0], None if shared else datatype, dataspace


def _heap(storage: Storage, address: int) -> dict[int, bytes]:
    """The pieces of the heap at an address, by number."""
    head = storage.block(address, 8 + storage.length_bytes)
    if head.take(8) != b"GCOL\x01\0\0\0":
        raise Malformed(f"at {address} is no heap of texts")
    block = storage.block(address, head.length())
    block.take(8 + storage.length_bytes)
    pieces = {}
    while block.left >= 8 + storage.length_bytes:
        number = block.part(8).number(2)
        if not number:
            break  # the rest is free
        size = block.length()
        pieces[number] = block.take(size)
        block.take(min(-size % 8, block.left))
    return pieces
