"""Faults in formats with headers of their own: NumPy's arrays, safetensors, HDF5.

A header that is a text is changed as the tree that it is, and written with a right length or a lying one. An HDF5 file
is a net of structures that point to each other: pointers are turned to other structures, numbers in them changed.
"""

import ast
import copy
import functools
import json
import math
import re
from collections.abc import Sequence
from random import Random
from typing import Any

from tools.fuzzing.faults import LARGEST, TEXTS, blind, few, integer, number, replaced, shuffle_parts

_SHAPES = ([], [0], [1], [12], [2, 0, 3], [4, 3], [-1], [1 << 62], [1 << 31, 1 << 31], [0, 1 << 62, 4], [1] * 40)
_SIZES = {"<f4": 4, ">f8": 8, "<i8": 8, "|b1": 1, "<f2": 2, "<u8": 8, "|i1": 1}
_DTYPES = (*_SIZES, "<f4", ">f8", "|b1", "<f2", "<u8", "|O", "<c8", "<U5", "", "f4,f4", [("a", "<f4")], "é", None)
_CODES = {"F32": 4, "F64": 8, "BF16": 2, "BOOL": 1, "I8": 1, "U64": 8, "F8_E4M3": 1, "C64": 8, "": 1}
_MOST_VALUES = 1 << 14  # bytes

_STRUCTURES = re.compile(rb"\x89HDF|OHDR|OCHK|TREE|SNOD|HEAP|FRHP|FHIB|BTHD|BTLF|BTIN|FAHD|FADB|GCOL")


def _shape(random: Random) -> list[int]:
    if random.random() < 0.5:
        return list(random.choice(_SHAPES))
    return [integer(random) for _ in range(random.randrange(5))]


def npy(random: Random, data: bytes, files: Sequence[bytes]) -> bytes:
    """An array whose header says something else, with the values that it had, or as many as are said now."""
    width = 2 if data[6] == 1 else 4
    start = 8 + width
    stop = start + int.from_bytes(data[8:start], "little")
    header, values = ast.literal_eval(data[start:stop].decode()), data[stop:]
    for _ in few(random):
        kind = random.randrange(6)
        if kind < 3:
            header["shape"] = tuple(_shape(random))
        elif kind == 3:
            header["descr"] = random.choice(_DTYPES)
        elif kind == 4:
            header["fortran_order"] = random.choice((True, False, True, False, 1, None))
        else:
            members = list(header.items())
            shuffle_parts(random, members, [("more", integer(random)), ("shape", (integer(random),))])
            header = dict(members)
    text = repr(header).encode()
    if random.random() < 0.15:
        text = blind(random, text, [text])
    if random.random() < 0.7:
        size = math.prod(header.get("shape", ())) * _SIZES.get(str(header.get("descr")), 1)
        size = size if 0 <= size < _MOST_VALUES else 3
        values = (values or b"\1")[:size]
        values += b"\1" * (size - len(values))
    version = data[6] if random.random() < 0.8 else random.choice((1, 2, 3, 4))
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    if random.random() < 0.1:
        length = number(random, [len(text)], len(length))
    return data[:6] + bytes([version, 0]) + length + text + values


class _Object(list):
    """A JSON object as the list of its members [name, value], of which two may have one name."""


class _Text(str):
    """JSON as it is written."""


_LEAVES = (
    None,
    True,
    0.5,
    1e300,
    _Object(),
    [],
    [[]],
    "\ud800",
    *TEXTS,
    *_CODES,
    _Text("[" * 3000),
    _Text('{"a":' * 500),
)


def _json(tree: Any) -> str:
    if isinstance(tree, _Object):
        return "{" + ",".join(f"{json.dumps(name)}:{_json(value)}" for name, value in tree) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(map(_json, tree)) + "]"
    return tree if isinstance(tree, _Text) else json.dumps(tree)


def safetensors(random: Random, data: bytes, files: Sequence[bytes]) -> bytes:
    """A header whose tree has other leaves and branches, if need be with places and values that fit it."""
    stop = 8 + int.from_bytes(data[:8], "little")
    tree = json.loads(data[8:stop], object_pairs_hook=lambda pairs: _Object(map(list, pairs)))
    values = data[stop:]
    for _ in few(random):
        levels: list[list] = [tree]
        for level in levels:
            inner = [member[1] for member in level] if isinstance(level, _Object) else level
            levels += [value for value in inner if isinstance(value, list)]
        _change(random, random.choice(levels))
        if len(_json(tree)) > LARGEST:
            break
    if random.random() < 0.7:
        values = bytes(_lay_out(tree))
    text = _json(tree).encode("utf-8", "surrogatepass")
    if random.random() < 0.1:
        text = blind(random, text, [text])
    length = number(random, [len(text)], 8) if random.random() < 0.1 else len(text).to_bytes(8, "little")
    return length + text + values


def _change(random: Random, level: list) -> None:
    """Changes a member of an object or of a list."""
    if not level or random.random() < 0.2:
        new = [[random.choice(("x", "dtype", "__metadata__", "shape")), integer(random)]]
        shuffle_parts(random, level, new if isinstance(level, _Object) else [integer(random), "x"])
        return
    numbers = [integer(random, [value for value in level if isinstance(value, int)]) for _ in range(4)]
    leaf = copy.deepcopy(random.choice(_LEAVES))
    value = random.choice((*numbers, _shape(random), random.choice(list(_CODES)), leaf))
    place = random.randrange(len(level))
    if not isinstance(level, _Object):
        level[place] = value
    elif random.random() < 0.2:
        level[place] = [random.choice((*TEXTS, level[-1][0], "\ud800")), level[place][1]]
    else:
        name = level[place][0]
        level[place] = [name, _shape(random) if name == "shape" and random.random() < 0.7 else value]


def _lay_out(tree: _Object) -> int:
    """Gives each tensor the place that its dtype and shape ask for, and tells how many bytes they all take."""
    position = 0
    for _, entry in tree:
        members = dict(entry) if isinstance(entry, _Object) else {}
        shape, code = members.get("shape"), members.get("dtype")
        if isinstance(shape, list) and all(type(size) is int for size in shape) and isinstance(code, str):
            size = math.prod(shape) * _CODES.get(code, 4)
            end = position + size if 0 <= size < _MOST_VALUES else position
            entry[:] = [member for member in entry if member[0] != "data_offsets"] + [["data_offsets", [position, end]]]
            position = end
    return position


@functools.lru_cache(maxsize=64)
def _net(data: bytes) -> tuple[list[list[int]], list[int]]:
    """Where structures begin, sort by sort, and where addresses of structures or of other things seem to be."""
    structures: dict[bytes, list[int]] = {}
    for match in _STRUCTURES.finditer(data):
        structures.setdefault(match[0], []).append(match.start())
    values = {place: int.from_bytes(data[place : place + 8], "little") for place in range(len(data) - 8)}
    pointers = [place for place, value in values.items() if value and value % 8 == 0 and value < len(data)]
    return list(structures.values()), pointers


def hdf5(random: Random, data: bytes, files: Sequence[bytes]) -> bytes:
    """Structures with other addresses and numbers, in each other's places or copied over each other."""
    structures, pointers = _net(data)
    for _ in few(random):
        kind, size = random.randrange(6), random.choice((1, 1, 2, 4, 8))
        place, other = (random.choice(random.choice(structures)) for _ in range(2))
        near = [len(data), place, other]
        if kind == 0:
            data = replaced(data, random.choice(pointers), number(random, near, 8))
        elif kind == 1:
            pointer = random.choice(pointers)
            data = replaced(data, random.choice(pointers), data[pointer : pointer + 8])
        elif kind == 2:
            within = random.randrange(random.choice((16, 64, 160)))
            data = replaced(data, place + within, number(random, near, size))
        elif kind == 3:
            aligned = random.randrange(len(data) // size) * size
            data = replaced(data, aligned, number(random, near, size))
        else:
            length = random.choice((4, 8, 16, 64, 256))
            part = data[other : other + length]
            if kind == 4:
                data = replaced(data, other, data[place : place + length])
            data = replaced(data, place, part)
    return data
