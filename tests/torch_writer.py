"""Checkpoints of torch.save put together from opcodes: whole ones, and the parts to build faults from."""

import io
import math
import struct
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

NONE, FALSE = b"N", b"\x89"
FOUR = np.arange(4, dtype="<f4").tobytes()
STORAGES = {
    **{"float64": "Double", "float32": "Float", "float16": "Half", "int64": "Long", "int32": "Int", "int16": "Short"},
    **{"int8": "Char", "uint8": "Byte", "bool": "Bool"},
}


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def group(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def numbers(values: Sequence[int]) -> bytes:
    return group(*map(number, values))


def mapping(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def named(function: str) -> bytes:
    """A global."""
    module, _, name = function.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def call(function: str, *arguments: bytes) -> bytes:
    return named(function) + group(*arguments) + b"R"


def storage(key: str, count: int, kind: str = "torch.FloatStorage", legacy: bool = False) -> bytes:
    """A persistent id; legacy ones say of what they are a view, nothing as a rule."""
    return group(text("storage"), named(kind), text(key), text("cpu"), number(count), *[NONE] * legacy) + b"Q"


def tensor(stored: bytes, offset: int, sizes: Sequence[int], strides: Sequence[int] | None = None) -> bytes:
    """A view of a storage, in C order where no strides are given."""
    if strides is None:
        strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    view = (stored, number(offset), numbers(sizes), numbers(strides))
    return call("torch._utils._rebuild_tensor_v2", *view, FALSE, call("collections.OrderedDict"))


def view(
    offset: int, sizes: Sequence[int], strides: Sequence[int] | None = None, count: int = 4, kind: str = "Float"
) -> bytes:
    """A tensor in the storage "0"."""
    return tensor(storage("0", count, f"torch.{kind}Storage"), offset, sizes, strides)


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def archive(
    top: bytes,
    storages: Mapping[str, bytes],
    more: Mapping[str, bytes] | None = None,
    *,
    deflated: bool = False,
    byteorder: bytes = b"little",
) -> bytes:
    """A zip archive of the pickle of `top`, with `more` members beside the usual ones."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as members:
        members.writestr("net/data.pkl", pickled(top))
        members.writestr("net/version", b"3\n")
        if byteorder:
            members.writestr("net/byteorder", byteorder)
        for key, values in storages.items():
            members.writestr(f"net/data/{key}", values)
        for name, content in (more or {}).items():
            members.writestr(name, content)
    return data.getvalue()


def one(value: bytes) -> bytes:
    """An archive of the dict {"x": value}, with a storage "0" of four floats."""
    return archive(mapping({"x": value}), {"0": FOUR})


def pickles(top: bytes, storages: Mapping[str, tuple[int, bytes]]) -> bytes:
    """A legacy file; a storage is given by its element count and its bytes."""
    head = [number(0x1950A86A20F9469CFC6C), number(1001), mapping({"little_endian": b"\x88"}), top]
    keys = b"](" + b"".join(map(text, storages)) + b"e"
    values = b"".join(struct.pack("<q", count) + content for count, content in storages.values())
    return b"".join(map(pickled, [*head, keys])) + values


def checkpoint(arrays: Mapping[str, np.ndarray], *, legacy: bool = False, deflated: bool = False) -> bytes:
    """A state dict in which each array has a storage of its own."""
    top, storages = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        stored = storage(str(key), array.size, f"torch.{STORAGES[array.dtype.name]}Storage", legacy)
        top[name] = tensor(stored, 0, array.shape)
        storages[str(key)] = (array.size, array.tobytes())
    if legacy:
        return pickles(mapping(top), storages)
    return archive(mapping(top), {key: values for key, (_, values) in storages.items()}, deflated=deflated)
