"""What the small writer of HDF5 files puts into datasets and attributes: shapes, types, layouts, filters, texts."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from hdf5_writer import (
    ATTRIBUTE,
    CHECKSUM,
    DATASPACE,
    DATATYPE,
    FILTERS,
    LAYOUT,
    Image,
    Message,
    group,
    header,
    number,
    old_tree,
)

DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3


def shape(sizes: Sequence[int], version: int = 2) -> Message:
    dims = b"".join(map(number, sizes))
    return DATASPACE, bytes([version, len(sizes), 0]) + (bytes(5) if version == 1 else b"\x01") + dims


_FLOATS = {2: (15, 10, 5, 15), 4: (31, 23, 8, 127), 8: (63, 52, 11, 1023)}  # sign, mantissa, exponent, bias


def type_of(dtype: np.dtype) -> Message:
    size, big = dtype.itemsize, dtype.byteorder == ">"
    if dtype.kind == "b":
        base = type_of(np.dtype("i1"))[1]
        return DATATYPE, b"\x38\x02\0\0" + number(1, 4) + base + b"FALSE\0TRUE\0\0\x01"
    if dtype.kind in "iu":
        head = bytes([0x10, big | 8 * (dtype.kind == "i"), 0, 0])
        return DATATYPE, head + number(size, 4) + number(0, 2) + number(8 * size, 2)
    sign, mantissa, exponent, bias = _FLOATS[size]
    head = bytes([0x11, big | 0x20, sign, 0]) + number(size, 4) + number(0, 2) + number(8 * size, 2)
    return DATATYPE, head + bytes([mantissa, exponent, 0, mantissa]) + number(bias, 4)


def filters(kinds: Sequence[int], value_bytes: int, version: int = 2) -> Message:
    body = bytes([version, len(kinds)]) + (bytes(6) if version == 1 else b"")
    for kind in kinds:
        settings = {SHUFFLE: number(value_bytes, 4), DEFLATE: number(4, 4)}.get(kind, b"")
        name = b"filter\0\0" if version == 1 else b""
        body += number(kind, 2) + (number(len(name), 2) if version == 1 else b"") + number(1, 2)
        body += number(len(settings) // 4, 2) + name + settings
        body += bytes(4) if version == 1 and len(settings) else b""
    return FILTERS, body


def apply(kinds: Sequence[int], data: bytes, value_bytes: int) -> bytes:
    for kind in kinds:
        if kind == SHUFFLE:
            data = np.frombuffer(data, np.uint8).reshape(-1, value_bytes).T.tobytes()
        data = zlib.compress(data, 1) if kind == DEFLATE else data + b"summ" if kind == FLETCHER32 else data
    return data


def pieces(array: np.ndarray, chunk: Sequence[int]) -> list[tuple[tuple[int, ...], bytes]]:
    """Where each chunk begins, and its bytes; beyond the array's edges are zeros."""
    counts = [-(-size // step) for size, step in zip(array.shape, chunk, strict=True)]
    found = []
    for index in np.ndindex(*counts):
        start = tuple(at * step for at, step in zip(index, chunk, strict=True))
        part = array[tuple(slice(at, at + step) for at, step in zip(start, chunk, strict=True))]
        whole = np.zeros(chunk, array.dtype)
        whole[tuple(slice(size) for size in part.shape)] = part
        found.append((start, whole.tobytes()))
    return found


def contiguous(image: Image, array: np.ndarray) -> Message:
    return LAYOUT, b"\x03\x01" + number(image.put(array.tobytes())) + number(array.nbytes)


def compact(array: np.ndarray) -> Message:
    return LAYOUT, b"\x03\x00" + number(array.nbytes, 2) + array.tobytes()


def in_tree(image: Image, array: np.ndarray, chunk: Sequence[int], kinds: Sequence[int] = (), mask: int = 0) -> Message:
    """Chunks with a tree of version 1; `mask` has a bit for every filter that is left out."""
    used = [kind for bit, kind in enumerate(kinds) if not mask >> bit & 1]
    entries = []
    for start, data in pieces(array, chunk):
        data = apply(used, data, array.itemsize)
        key = number(len(data), 4) + number(mask, 4) + b"".join(map(number, start)) + bytes(8)
        entries.append((key, image.put(data)))
    return tree_layout(old_tree(image, 1, entries), (*chunk, array.itemsize))


def tree_layout(tree: int, sizes: Sequence[int]) -> Message:
    return LAYOUT, b"\x03\x02" + bytes([len(sizes)]) + number(tree) + b"".join(number(size, 4) for size in sizes)


def new_layout(kind: int, sizes: Sequence[int], settings: bytes, address: int, flags: int = 0) -> Message:
    """The layout of version 4 of chunks that are not in a tree of version 1."""
    head = bytes([4, 2, flags, len(sizes), 2]) + b"".join(number(size, 2) for size in sizes)
    return LAYOUT, head + bytes([kind]) + settings + number(address)


def in_array(
    image: Image, array: np.ndarray, chunk: Sequence[int], kinds: Sequence[int] = (), page_bits: int = 10
) -> Message:
    """Chunks with a fixed array, in pages of so many bits."""
    entries = []
    for _, data in pieces(array, chunk):
        data = apply(kinds, data, array.itemsize)
        entries.append(number(image.put(data)) + (number(len(data), 3) + bytes(4) if kinds else b""))
    page = 1 << page_bits
    head = b"FADB\0" + bytes([bool(kinds)]) + bytes(8)
    if len(entries) > page:
        pages = [b"".join(entries[start : start + page]) + CHECKSUM for start in range(0, len(entries), page)]
        written = np.packbits(np.ones(len(pages), bool)).tobytes()
        data = image.put(head + written + CHECKSUM + b"".join(pages))
    else:
        data = image.put(head + b"".join(entries) + CHECKSUM)
    start = image.put(array_header(len(entries[0]), len(entries), data, bool(kinds), page_bits))
    return new_layout(3, (*chunk, array.itemsize), bytes([page_bits]), start)


def array_header(entry_bytes: int, count: int, address: int, filtered: bool = False, page_bits: int = 10) -> bytes:
    return b"FAHD\0" + bytes([filtered, entry_bytes, page_bits]) + number(count) + number(address) + CHECKSUM


def single(image: Image, array: np.ndarray, kinds: Sequence[int] = ()) -> Message:
    data = apply(kinds, array.tobytes(), array.itemsize)
    settings = number(len(data)) + bytes(4) if kinds else b""
    return new_layout(1, (*array.shape, array.itemsize), settings, image.put(data), 2 * bool(kinds))


def in_a_row(image: Image, array: np.ndarray, chunk: Sequence[int]) -> Message:
    data = b"".join(data for _, data in pieces(array, chunk))
    return new_layout(2, (*chunk, array.itemsize), b"", image.put(data))


def dataset(image: Image, array: np.ndarray, layout: Message | None = None, *given: Message) -> int:
    """A dataset, in one stretch unless a layout is given, with further messages."""
    return image.put(header(shape(array.shape), type_of(array.dtype), layout or contiguous(image, array), *given))


def attribute(name: bytes, datatype: bytes, dataspace: bytes, values: bytes, version: int = 3) -> Message:
    parts = [name + b"\0", datatype, dataspace]
    sizes = b"".join(number(len(part), 2) for part in parts)
    if version == 1:
        parts = [part + bytes(-len(part) % 8) for part in parts]
    return ATTRIBUTE, bytes([version, 0]) + sizes + (b"\0" if version == 3 else b"") + b"".join(parts) + values


def texts(name: bytes, items: Sequence[bytes], version: int = 3) -> Message:
    """Texts of a fixed length."""
    size = max(map(len, items))
    values = b"".join(item.ljust(size, b"\0") for item in items)
    return attribute(name, b"\x13\0\0\0" + number(size, 4), shape([len(items)])[1], values, version)


VARIABLE_TEXT = b"\x19\x01\0\0" + number(16, 4) + type_of(np.dtype("u1"))[1]


def heap_texts(image: Image, name: bytes, items: Sequence[bytes]) -> Message:
    """Texts of any length, in a heap."""
    body = b""
    for index, item in enumerate(items, start=1):
        body += number(index, 2) + bytes(6) + number(len(item)) + item + bytes(-len(item) % 8)
    body += bytes(16)
    heap = image.put(b"GCOL\x01\0\0\0" + number(16 + len(body)) + body)
    references = (number(len(item), 4) + number(heap) + number(index, 4) for index, item in enumerate(items, start=1))
    return attribute(name, VARIABLE_TEXT, shape([len(items)])[1], b"".join(references))


def file_of(arrays: Mapping[str, np.ndarray], **options: int) -> bytes:
    """A plain file of arrays beside each other; options are those of `Image.finish`."""
    image = Image()
    return image.finish(group(image, {name: dataset(image, array) for name, array in arrays.items()}), **options)
