"""Filters: what was done to the chunks of an HDF5 dataset, undone on their way into its array.

Source: HDF5 File Format Specification, version 3.0, section IV.A.2.l. The filter "shuffle" puts the first bytes of all
values in front, then all second ones. So a chunk is a C-order array of bytes, with the axis of a value's bytes first
if it was shuffled and last if not, and is copied box by box as it comes out of the file: no chunk is ever held whole.
"""

import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from fcn_jax.weights.files import Malformed
from fcn_jax.weights.hdf5_chunks import Chunks
from fcn_jax.weights.hdf5_storage import Block, Storage

_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3
_ORDER = [_SHUFFLE, _DEFLATE, _FLETCHER32]  # in which they are applied
_UNREAD = {4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf", 32001: "blosc", 32004: "lz4", 32015: "zstd"}
_FIRST_NAMED = 256  # filters from here on have a name in version 2
_CHECKSUM_BYTES = 4

_MAX_EXPANSION = 1032  # deflate's: 258 bytes out of two bits
_PIECE = 1 << 16


def filters_of(block: Block, value_bytes: int) -> list[int]:
    """The filters that a message lists, in the order in which they were applied. Raises Malformed for any not read."""
    version, count = block.number(1), block.number(1)
    if version not in (1, 2):
        raise Malformed(f"filter list version {version} is not read")
    block.take(6 if version == 1 else 0)
    found = []
    for _ in range(count):
        kind = block.number(2)
        name_bytes = block.number(2) if version == 1 or kind >= _FIRST_NAMED else 0
        block.take(2)  # whether it may be left out
        numbers = block.number(2)
        block.take(name_bytes)
        settings = [block.number(4) for _ in range(numbers)]
        block.take(4 if version == 1 and numbers % 2 else 0)
        if kind not in _ORDER:
            raise Malformed(f"filter {kind} ({_UNREAD.get(kind, 'unknown')}) is not read")
        if kind == _SHUFFLE and settings != [value_bytes]:
            raise Malformed(f"the filter shuffle is set to {settings}, where a value has {value_bytes} bytes")
        found.append(kind)
    if found != [kind for kind in _ORDER if kind in found]:
        raise Malformed(f"filters in the order {found} are not read")
    return found


def check_chunks(storage: Storage, chunks: Chunks, filters: list[int]) -> None:
    """Raises Malformed unless all chunks are within the file and as many bytes as can give what they should."""
    addresses, sizes, masks = (chunks.places[field] for field in ("address", "size", "mask"))
    end = storage.file.size - storage.base
    # Each for itself first, so that their sum cannot overflow.
    if (sizes > end).any() or (addresses > end).any() or (addresses + sizes > end).any():
        raise Malformed(f"a chunk is said to be where the file of {storage.file.size} bytes has ended")
    storage.charge(int(sizes.sum()))
    checksums = _CHECKSUM_BYTES * _used(filters, _FLETCHER32, masks)
    wanted = chunks.unpacked_bytes
    possible = np.where(_used(filters, _DEFLATE, masks), sizes * _MAX_EXPANSION >= wanted, sizes == wanted + checksums)
    if not possible.all():
        size = int(sizes[~possible][0])
        raise Malformed(f"a chunk of {wanted} bytes is said to be kept in {size}")


def unpack_chunks(storage: Storage, chunks: Chunks, filters: list[int], values: np.ndarray) -> None:
    """Fills the memory of a dataset, one axis of values, from its chunks, which were checked."""
    plain = values.view(np.uint8).reshape(*chunks.shape, chunks.value_bytes)
    shuffled = np.moveaxis(plain, -1, 0)
    for index in range(len(chunks.places)):
        address, size, mask = chunks.places[index].item()
        corner = np.unravel_index(index, chunks.counts)
        # What reaches beyond the dataset is cut off by the slice.
        region = tuple(
            slice(int(at) * step, (int(at) + 1) * step) for at, step in zip(corner, chunks.chunk, strict=True)
        )
        if _used(filters, _FLETCHER32, mask):
            size -= _CHECKSUM_BYTES
        pieces = _packed(storage, address, size)
        if _used(filters, _DEFLATE, mask):
            pieces = _inflated(pieces)
        if _used(filters, _SHUFFLE, mask):
            _fill(shuffled[(slice(None), *region)], (chunks.value_bytes, *chunks.chunk), pieces)
        else:
            _fill(plain[region], (*chunks.chunk, chunks.value_bytes), pieces)


def _used(filters: list[int], kind: int, masks: Any) -> Any:
    """Whether a filter was applied, by the bits of those that were left out: of a chunk, or of an array of them."""
    return masks >> filters.index(kind) & 1 == 0 if kind in filters else masks != masks


def _packed(storage: Storage, address: int, size: int) -> Iterator[bytes]:
    for start in range(0, size, _PIECE):
        yield storage.file.at(storage.base + address + start, min(_PIECE, size - start))


def _inflated(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """What zlib's stream in some pieces unpacks to, in pieces."""
    inflate = zlib.decompressobj()
    for packed in pieces:
        while packed and not inflate.eof:
            try:
                piece = inflate.decompress(packed, _PIECE)
            except zlib.error:
                raise Malformed("a chunk of it is no deflated data") from None
            packed = inflate.unconsumed_tail
            yield piece
        if inflate.eof:
            break
    if not inflate.eof or inflate.unused_data or next(pieces, b""):
        raise Malformed("the deflated data of a chunk does not end where it should")


def _fill(target: np.ndarray, shape: tuple[int, ...], pieces: Iterator[bytes]) -> None:
    """Copies a C-order array of bytes of a shape, coming in pieces, to a target that may be shorter on any axis."""
    position, total = 0, math.prod(shape)
    for piece in pieces:
        if position + len(piece) > total:
            raise Malformed(f"a chunk unpacks to more than its {total} bytes")
        start = 0
        for box, sizes in _boxes(shape, position, position + len(piece)):
            end = start + math.prod(sizes)
            part = target[box]
            values = np.frombuffer(piece, np.uint8)[start:end].reshape(sizes)
            part[...] = values[tuple(slice(size) for size in part.shape)]
            start = end
        position += len(piece)
    if position != total:
        raise Malformed(f"a chunk unpacks to {position} bytes instead of {total}")


def _boxes(shape: tuple[int, ...], start: int, end: int) -> Iterator[tuple[tuple[slice, ...], tuple[int, ...]]]:
    """A stretch of an array of bytes in C order as boxes, two an axis at most: where each is, and its shape."""
    while start < end:
        # The outermost axis along which whole rows begin here and fit.
        axis, row = len(shape) - 1, 1
        while axis and start % (row * shape[axis]) == 0 and start + row * shape[axis] <= end:
            row *= shape[axis]
            axis -= 1
        *outer, first = (int(at) for at in np.unravel_index(start // row, shape[: axis + 1]))
        count = min((end - start) // row, shape[axis] - first)
        box = (*(slice(at, at + 1) for at in outer), slice(first, first + count))
        yield box, (*(1 for _ in outer), count, *shape[axis + 1 :])
        start += count * row
