"""A small writer of caffemodels: the format's variants on purpose, and single fields to build faults from."""

import struct
from collections.abc import Mapping, Sequence

import numpy as np


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded + bytes([value]))


def number(field: int, value: int) -> bytes:
    """A field of wire type 0."""
    return varint(field << 3) + varint(value)


def message(field: int, content: bytes) -> bytes:
    """A field of wire type 2: text, packed numbers or a message."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def float32(field: int, value: float) -> bytes:
    """A field of wire type 5."""
    return varint(field << 3 | 5) + struct.pack("<f", value)


def float64(field: int, value: float) -> bytes:
    """A field of wire type 1."""
    return varint(field << 3 | 1) + struct.pack("<d", value)


def shape(sizes: Sequence[int], packed: bool = True) -> bytes:
    """The BlobShape field of a blob."""
    if packed:
        return message(7, message(1, b"".join(map(varint, sizes))))
    return message(7, b"".join(number(1, size) for size in sizes))


def blob(array: np.ndarray, *, legacy: bool = False, packed: bool = True) -> bytes:
    """A BlobProto; float64 arrays go into double_data. Legacy blobs have four dimensions, 1 in front."""
    if legacy:
        sizes = (1,) * (4 - array.ndim) + array.shape
        dimensions = b"".join(number(field, size) for field, size in enumerate(sizes, start=1))
    else:
        dimensions = shape(array.shape, packed)
    double = array.dtype == np.float64
    if packed:
        values = message(8 if double else 5, array.astype("<f8" if double else "<f4").tobytes())
    else:
        values = b"".join(float64(8, x) if double else float32(5, x) for x in array.ravel().tolist())
    return dimensions + values


def net(blobs: Mapping[str, np.ndarray], *, v1: bool = False, packed: bool = True) -> bytes:
    """A NetParameter of `{"layer.index": array}`; V1 nets have legacy blobs."""
    layers: dict[str, list[np.ndarray]] = {}
    for name, array in blobs.items():
        layers.setdefault(name.rpartition(".")[0], []).append(array)
    encoded = [message(1, b"a net")]
    for name, arrays in layers.items():
        contents = [blob(array, legacy=v1, packed=packed) for array in arrays]
        if v1:
            layer = message(3, b"top") + message(4, name.encode()) + number(5, 4)
            encoded.append(message(2, layer + b"".join(message(6, content) for content in contents)))
        else:
            layer = message(1, name.encode()) + message(2, b"Convolution") + message(4, b"top")
            encoded.append(message(100, layer + b"".join(message(7, content) for content in contents)))
    return b"".join(encoded)


def blobs_of(params: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """A net's parameters as Caffe's blobs: kernels `[out in kh kw]`, then biases."""
    blobs = {}
    for layer, leaves in params.items():
        blobs[f"{layer}.0"] = np.ascontiguousarray(np.transpose(leaves["kernel"], (3, 2, 0, 1)))
        blobs[f"{layer}.1"] = np.asarray(leaves["bias"])
    return blobs
