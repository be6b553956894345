"""Chunks: the pieces into which an HDF5 dataset is cut, and where in the file each of them lies.

Source: HDF5 File Format Specification, version 3.0, sections III.A.1 (tree of version 1), IV.A.2.i (layout) and VII.C
(fixed array). All chunks are of one size, so those at the far edges reach beyond the dataset. Which of them lies where
is kept in one of six ways; the two that are for datasets that grow are not read. A chunk may be missing, and then
stands for one value all over: weights are never so, and such a dataset is refused.
"""

import dataclasses
import math

import numpy as np

from fcn_jax.weights.files import Malformed
from fcn_jax.weights.hdf5_groups import CHUNK_NODES, tree_leaves
from fcn_jax.weights.hdf5_storage import Block, Storage

_TREE, _SINGLE, _IMPLICIT, _FIXED_ARRAY = range(4)  # the tree has no number in the format: version 3 knows no other
_UNREAD = {4: "an extensible array", 5: "a tree of version 2"}
_WHOLE_EDGES, _SINGLE_FILTERED = 1, 2  # bits of a layout's flags
_CHECKSUM_BYTES = 4

# Where a chunk lies, the bytes of it as stored, and a bit for every filter that was left out.
_PLACE = np.dtype([("address", "<u8"), ("size", "<u8"), ("mask", "<u4")])
_NOWHERE = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class Chunks:
    """How a dataset is cut, and where its chunks lie."""

    shape: tuple[int, ...]  # of the dataset
    chunk: tuple[int, ...]  # shape of a chunk
    value_bytes: int
    places: np.ndarray  # in C order: `address`, `size`, `mask`

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of chunks along each axis."""
        return _counts(self.shape, self.chunk)

    @property
    def unpacked_bytes(self) -> int:
        """The bytes of a chunk before filters."""
        return math.prod(self.chunk) * self.value_bytes


def find_chunks(storage: Storage, version: int, layout: Block, shape: tuple[int, ...], value_bytes: int) -> Chunks:
    """The chunks of a dataset, from what its layout says after version and class. Raises Malformed.

    That the file holds them was not yet seen.
    """
    kind, flags, single = _TREE, 0, None
    if version == 3:
        axes, address = layout.number(1), layout.address_if_any()
        sizes = [layout.number(4) for _ in range(axes)]
    else:
        flags, axes, width = layout.number(1), layout.number(1), layout.number(1)
        sizes = [layout.number(width) for _ in range(axes)]
        kind = layout.number(1)
        if kind == _SINGLE and flags & _SINGLE_FILTERED:
            single = layout.length(), layout.number(4)
        elif kind == _FIXED_ARRAY:
            layout.take(1)  # stands in the array's header too
        elif kind not in (_SINGLE, _IMPLICIT):
            raise Malformed(f"chunks in {_UNREAD.get(kind, f'an index of kind {kind}')} are not read")
        address = layout.address_if_any()
    if flags & _WHOLE_EDGES:
        raise Malformed("chunks without filters at its edges are not read")
    chunk = tuple(sizes[:-1])
    if not shape or len(chunk) != len(shape) or 0 in chunk or sizes[-1] != value_bytes:
        raise Malformed(f"chunks of {sizes} do not fit shape {list(shape)} with {value_bytes} bytes a value")
    if address is None:
        raise Malformed(f"it declares {math.prod(shape)} values and stores none")
    counts, unpacked_bytes = _counts(shape, chunk), math.prod(chunk) * value_bytes
    if unpacked_bytes > storage.file.max_bytes:
        raise Malformed(f"a chunk needs more than the {storage.file.max_bytes:,} bytes that are allowed")
    if kind == _TREE:
        places = _in_tree(storage, address, shape, chunk)
    elif kind == _FIXED_ARRAY:
        places = _in_fixed_array(storage, address, math.prod(counts), unpacked_bytes)
    elif kind == _IMPLICIT:
        places = _in_a_row(storage, address, math.prod(counts), unpacked_bytes)
    elif math.prod(counts) == 1:
        size, mask = single or (unpacked_bytes, 0)
        places = np.array([(address, size, mask)], _PLACE)
    else:
        raise Malformed(f"it declares {math.prod(counts)} chunks and stores one")
    return Chunks(shape, chunk, value_bytes, places)


def _counts(shape: tuple[int, ...], chunk: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-size // length) for size, length in zip(shape, chunk, strict=True))


def _in_tree(storage: Storage, root: int, shape: tuple[int, ...], chunk: tuple[int, ...]) -> np.ndarray:
    """Places from a tree, whose keys say where in the dataset a chunk begins."""
    counts = _counts(shape, chunk)
    entry = np.dtype(
        [
            ("size", "<u4"),
            ("mask", "<u4"),
            ("start", "<u8", (len(shape) + 1,)),  # the last is that of a value's bytes
            ("address", f"<u{storage.address_bytes}"),
        ]
    )
    count = math.prod(counts)
    if count * entry.itemsize > storage.file.size:
        raise Malformed(f"it declares {count} chunks, too many for a tree in a file of {storage.file.size} bytes")
    places = np.full(count, _NOWHERE, _PLACE)
    found = 0
    for number, leaf in tree_leaves(storage, root, CHUNK_NODES, entry.itemsize - storage.address_bytes):
        entries = np.frombuffer(leaf.rest(), entry)
        starts = entries["start"][:, :-1]
        lengths = np.array(chunk, np.uint64)
        if (starts % lengths).any() or (starts >= np.array(shape, np.uint64)).any():
            raise Malformed("a chunk begins where none can")
        indices = np.ravel_multi_index(tuple((starts // lengths).astype(np.int64).T), counts)
        for field in ("address", "size", "mask"):
            places[field][indices] = entries[field]
        found += number
    missing = int((places["address"] == _NOWHERE).sum())
    if missing or found != count:
        raise Malformed(f"it declares {count} chunks, of which {missing} are missing, and stores {found}")
    return places


def _in_a_row(storage: Storage, address: int, count: int, unpacked_bytes: int) -> np.ndarray:
    """Places of chunks that lie one after the other."""
    if count * unpacked_bytes > storage.file.size:
        raise Malformed(f"it declares {count} chunks of {unpacked_bytes} bytes in a file of {storage.file.size}")
    places = np.zeros(count, _PLACE)
    places["address"] = np.uint64(address) + np.arange(count, dtype=np.uint64) * np.uint64(unpacked_bytes)
    places["size"] = unpacked_bytes
    return places


def _in_fixed_array(storage: Storage, address: int, count: int, unpacked_bytes: int) -> np.ndarray:
    """Places from an array that is as long as the dataset has chunks, in pages if it is long."""
    head = storage.signed(address, b"FAHD", 3 + storage.length_bytes + storage.address_bytes)
    filtered, entry_bytes, page_bits = head.number(1), head.number(1), head.number(1)
    size_bytes = entry_bytes - storage.address_bytes - _PLACE["mask"].itemsize
    if filtered > 1 or not (1 <= size_bytes <= 8 if filtered else entry_bytes == storage.address_bytes):
        raise Malformed(f"entries of {entry_bytes} bytes in the array of its chunks are not read")
    if (length := head.length()) != count:
        raise Malformed(f"it declares {count} chunks and stores {length}")
    data = _entries(storage, head.address(), count, entry_bytes, 1 << page_bits)
    columns = np.frombuffer(data, np.uint8).reshape(count, entry_bytes)
    places = np.zeros(count, _PLACE)
    places["address"] = _numbers(columns[:, : storage.address_bytes])
    places["size"] = _numbers(columns[:, storage.address_bytes :][:, :size_bytes]) if filtered else unpacked_bytes
    places["mask"] = _numbers(columns[:, -4:]) if filtered else 0
    return places


def _entries(storage: Storage, address: int, count: int, entry_bytes: int, page: int) -> bytes:
    """The entries of an array, one after the other; `page` of them go on a page."""
    pages = -(-count // page) if count > page else 0
    head = storage.signed(address, b"FADB", 1 + storage.address_bytes + -(-pages // 8))
    head.take(1 + storage.address_bytes)
    start = address + 6 + storage.address_bytes + -(-pages // 8)
    if not pages:
        return storage.block(start, count * entry_bytes).rest()
    # A bit for each page that was ever written, the highest first.
    if not np.unpackbits(np.frombuffer(head.rest(), np.uint8))[:pages].all():
        raise Malformed(f"it declares {count} chunks and stores fewer")
    start += _CHECKSUM_BYTES
    data = bytearray()
    for first in range(0, count, page):
        size = min(page, count - first) * entry_bytes
        data += storage.block(start, size).rest()
        start += size + _CHECKSUM_BYTES
    return bytes(data)


def _numbers(columns: np.ndarray) -> np.ndarray:
    """Numbers of as many bytes as there are columns, a row each."""
    wide = np.zeros((len(columns), 8), np.uint8)
    wide[:, : columns.shape[1]] = columns
    return wide.view("<u8")[:, 0]
