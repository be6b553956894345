"""The safetensors format, read and written without the `safetensors` package.

Source: the format's description in the README of huggingface/safetensors. Eight bytes hold the length of a header; the
header is JSON, `{name: {"dtype", "shape", "data_offsets"}}`, and the values follow, which must tile the rest of the
file without hole or overlap. The package maps files into memory, where one that shrinks kills the process, has no bound
on what it allocates, and lets the last of two equal names win: so the header is read here, a member at a time.
"""

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.errors import WeightFileError
from fcn_jax.weights.files import Malformed, WeightFile
from fcn_jax.weights.raw_values import BFLOAT16, read_values, stored_bytes

_LENGTH_BYTES = 8
_MAX_HEADER = 100_000_000  # the format's own
_MAX_ENTRY = 1 << 12
_MAX_TENSORS = 1 << 16  # far beyond any net; bounds the objects made for a file of small entries
_PIECE = 1 << 16
_METADATA = "__metadata__"

_KINDS = {
    **{f"I{size}": f"int{size}" for size in (8, 16, 32, 64)},
    **{f"U{size}": f"uint{size}" for size in (8, 16, 32, 64)},
    **{f"F{size}": f"float{size}" for size in (16, 32, 64)},
    "BOOL": "bool",
    "BF16": BFLOAT16,
}
_CODES = {kind: code for code, kind in _KINDS.items()}

# JSON, as much of it as a header has: members are names with objects that hold no objects, or texts in those of the
# metadata. The quantifiers are possessive, so that a match takes no time and no memory beyond the text's length.
_SPACE = rb"[ \t\r\n]*+"
_STRING = rb'"(?:[^"\\\x00-\x1f]++|\\.)*+"'
_OBJECT = rb"\{(?:[^{}\"]++|" + _STRING + rb")*+\}"
_EMPTY = re.compile(rb"\{" + _SPACE + rb"\}")
_TENSOR = re.compile(_SPACE.join((b"", b"(" + _STRING + b")", b":", b"(" + _OBJECT + b")", b"([,}])")))
_TEXT = re.compile(_SPACE.join((b"", b"(" + _STRING + b")", b":", b"(" + _STRING + b")", b"([,}])")))


def parse(file: WeightFile) -> dict[str, np.ndarray]:
    """All tensors of a file in the order of its header. Raises Malformed."""
    header = _header(file)
    start = _LENGTH_BYTES + len(header)
    places: dict[str, tuple[int, int, str, list[int]]] = {}
    for name, text in _members(header, _TENSOR):
        if name == _METADATA:
            _texts(text)
        else:
            places[name] = _place(name, text)
    if not places:
        raise Malformed("it holds no tensors")
    position = 0
    for name, (begin, end, _, _) in sorted(places.items(), key=lambda item: item[1][:2]):
        if begin != position:
            raise Malformed(f"tensor {name!r} begins at byte {begin} of the values, where {position} are before it")
        position = end
    if start + position != file.size:
        raise Malformed(f"its tensors take {position} bytes, and {file.size - start} follow the header")
    arrays = {}
    for name, (begin, _, kind, shape) in places.items():
        try:
            arrays[name] = read_values(file, start + begin, kind, shape)
        except Malformed as fault:
            raise Malformed(f"tensor {name!r}: {fault}") from None
    return arrays


def metadata(file: WeightFile) -> dict[str, str]:
    """The texts that a file's header holds beside its tensors, by name. Raises Malformed."""
    for name, text in _members(_header(file), _TENSOR):
        if name == _METADATA:
            return _texts(text)
    return {}


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file whole or not at all, in the place of one that may be there. Raises WeightFileError.

    What is no Unicode in the texts of the metadata, as in the name of a file it may be, is written escaped.
    """
    path = Path(path)
    header: dict[str, Any] = (
        {_METADATA: {_plain(key): _plain(text) for key, text in metadata.items()}} if metadata else {}
    )
    header |= {name: _described(path, name, array) for name, array in arrays.items()}
    # From the widest values to the narrowest, so that each tensor lies at a multiple of its values' size.
    order = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    position = 0
    for name in order:
        header[name]["data_offsets"] = [position, position + arrays[name].nbytes]
        position += arrays[name].nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            with beside.open("xb") as stream:
                stream.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
                for name in order:
                    for piece in _pieces(arrays[name]):
                        stream.write(piece)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise WeightFileError(f"{path}: cannot be written: {error.strerror}") from None


def _header(file: WeightFile) -> bytes:
    size = int.from_bytes(file.at(0, _LENGTH_BYTES), "little")
    if size > _MAX_HEADER:
        raise Malformed(f"its header claims {size} bytes, where {_MAX_HEADER} are the most")
    if size > file.size - _LENGTH_BYTES:
        raise Malformed(f"its header claims {size} bytes, and the file has {file.size}")
    return file.at(_LENGTH_BYTES, size)


def _members(text: bytes, member: re.Pattern[bytes]) -> Iterator[tuple[str, bytes]]:
    """The members of an object, name and JSON each, with `member` as the form that they must have."""
    text = text.rstrip(b" \t\r\n")
    if _EMPTY.fullmatch(text):
        return
    names: set[str] = set()
    position, closing = 1, b","
    while closing == b",":
        match = member.match(text, position) if text.startswith(b"{") else None
        if match is None:
            raise Malformed(f"its header is not the JSON that it should be at {text[position - 1 : position + 39]!r}")
        if len(match[1]) > _MAX_ENTRY or len(names) == _MAX_TENSORS:
            raise Malformed(f"its header has names longer than {_MAX_ENTRY} bytes or more than {_MAX_TENSORS} of them")
        name, position, closing = _string(match[1]), match.end(), match[3]
        if name in names:
            raise Malformed(f"two tensors are named {name!r}")
        names.add(name)
        yield name, match[2]
    if position != len(text):
        raise Malformed(f"its header goes on behind its JSON with {text[position : position + 40]!r}")


def _texts(text: bytes) -> dict[str, str]:
    return {name: _string(value) for name, value in _members(text, _TEXT)}


def _string(text: bytes) -> str:
    try:
        string = json.loads(text.decode())
        string.encode()  # fails for half a surrogate pair, which JSON can escape
    except ValueError:
        raise Malformed(f"its header has a text that is no UTF-8 or wrongly escaped: {text[:40]!r}") from None
    return string


def _place(name: str, text: bytes) -> tuple[int, int, str, list[int]]:
    """Where among the values a tensor begins and ends, its dtype and its shape."""
    try:
        if len(text) > _MAX_ENTRY:
            raise ValueError
        pairs = json.loads(text.decode(), object_pairs_hook=list)
        entry = dict(pairs)
        if len(entry) != len(pairs):
            raise ValueError
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(shape, list) or any(type(n) is not int or not 0 <= n < 1 << 63 for n in [*shape, begin, end]):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Malformed(
            f"tensor {name!r} is described by {text[:80]!r}, not by dtype, shape and data_offsets"
        ) from None
    kind = _KINDS.get(code) if isinstance(code, str) else None
    if kind is None:
        raise Malformed(f"tensor {name!r} is of dtype {str(code)[:20]!r}, which is not read")
    try:
        size = stored_bytes(kind, shape)
    except Malformed as fault:
        raise Malformed(f"tensor {name!r}: {fault}") from None
    if end - begin != size:
        raise Malformed(f"tensor {name!r}: shape {shape} of {kind} needs {size} bytes, and it has {end - begin}")
    return begin, end, kind, shape


def _described(path: Path, name: str, array: np.ndarray) -> dict[str, Any]:
    if array.dtype.name not in _CODES:
        raise WeightFileError(f"{path}: {name!r} is {array.dtype.name}, which safetensors does not hold")
    if name == _METADATA or name != _plain(name):
        raise WeightFileError(f"{path}: no tensor can be named {name!r}")
    return {"dtype": _CODES[array.dtype.name], "shape": list(array.shape)}


def _plain(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _pieces(array: np.ndarray) -> Iterator[bytes]:
    """An array's values in C order and little-endian, some at a time: a transposed one is not copied as a whole."""
    pieces = np.nditer(
        array,
        ["external_loop", "buffered", "zerosize_ok"],
        op_dtypes=[array.dtype.newbyteorder("<")],
        order="C",
        casting="equiv",
        buffersize=_PIECE,
    )
    for piece in pieces:
        yield np.asarray(piece).tobytes()
