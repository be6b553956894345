"""Faults in zip archives and in pickles, of which torch's checkpoints and NumPy's archives are made.

An archive's numbers are changed where they stand, in its headers and its directory, or its members are changed and
packed anew, with right sizes and checksums, so that what reads the members gets to see them. A pickle is a list of
opcodes with their arguments.
"""

import functools
import io
import pickletools
import struct
import zipfile
from collections.abc import Sequence
from random import Random

from tools.fuzzing.faults import TEXTS, Fault, blind, few, integer, number, replaced, shuffle_parts
from tools.fuzzing.good_files import Member, packed, unpacked
from tools.fuzzing.headers import npy

# Signature → places and widths of the numbers behind it.
_RECORDS = {
    b"PK\x03\x04": ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    b"PK\x01\x02": ((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4)),
    b"PK\x05\x06": ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
    b"PK\x06\x06": ((4, 8), (16, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8)),
    b"PK\x06\x07": ((4, 4), (8, 8), (16, 4)),
}
_NAMES = (*TEXTS, "net/data.pkl", "net/byteorder", "net/data/0", "net/data/1", "net/code/x", "\udcff")

_GLOBALS = (
    "os system",
    "builtins eval",
    "torch load",
    "torch FloatStorage",
    "torch bfloat16",
    "torch Size",
    "numpy dtype",
)
_GLOBALS += ("collections OrderedDict", "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v3")
_GLOBALS += ("torch._utils _rebuild_parameter", "torch._tensor _rebuild_from_type_v2", "collections defaultdict")
_VALUES = [
    b"N",
    b"\x88",
    b")",
    b"]",
    b"}",
    b"G\x7f\xf0" + bytes(6),
    b"K\0\x85",
    b"X\1\0\0\0x",
    b"\x8a\1\xff",
    b"B\1\0\0\0x",
]
_NEW_STEPS = (
    _VALUES
    + [bytes([opcode]) for opcode in range(256)]
    + [f"c{name}\n".replace(" ", "\n").encode() for name in _GLOBALS]
)
_NEW_STEPS += [
    b"cos\nsystem\n(X\4\0\0\0truetR",
    b"]q\0h\0a",
    b"}q\1h\1h\1s",
    b"K\x01\x85R",
    b")R",
    b"\x8a\xff" + b"\x7f" * 255,
]
_NEW_STEPS += [
    b"(" * 3000,
    b"]" * 3000 + b"a" * 2999,
    b")" + b"\x85" * 5000,
    b"K\0" + b"}\x86" * 2000,
    b"NN\x86" * 3000,
]


def archive(random: Random, data: bytes, files: Sequence[bytes]) -> bytes:
    """An archive with lying numbers, or one of other members."""
    if random.random() < 0.4:
        return _lying(random, data)
    members = list(_members(data))
    if random.random() < 0.8:
        place = random.choice([i for i, (name, *_) in enumerate(members) if _fault_for(name) != blind])
        name, content, method = members[place]
        others = [other for known, other, _ in members if _fault_for(known) != blind]
        members[place] = name, _fault_for(name)(random, content, others), method
        if random.random() < 0.7:
            return packed(members, random.random() < 0.1)
    for _ in few(random):
        place = random.randrange(len(members) or 1)
        kind = random.randrange(4)
        if kind == 0 or not members:
            shuffle_parts(random, members, _members(random.choice(files)))
            continue
        name, content, method = members[place]
        if kind == 1:
            name = random.choice((*_NAMES, members[0][0], members[-1][0]))
        elif kind == 2:
            method = zipfile.ZIP_STORED if method else zipfile.ZIP_DEFLATED
        else:
            content = blind(random, content, [content])
        members[place] = name, content, method
    return packed(members, random.random() < 0.1)


def _fault_for(name: str) -> Fault:
    return pickles if name.endswith("data.pkl") else npy if name.endswith(".npy") else blind


@functools.lru_cache(maxsize=64)
def _members(data: bytes) -> tuple[Member, ...]:
    return tuple(unpacked(data))


def _lying(random: Random, data: bytes) -> bytes:
    records = [(place, signature) for signature in _RECORDS for place in _places(data, signature)]
    for _ in few(random):
        start, signature = random.choice(records)
        place, size = random.choice(_RECORDS[signature])
        now = int.from_bytes(data[start + place : start + place + size], "little")
        near = (now, len(data), start, random.choice(records)[0], 0xFFFF, 0xFFFFFFFF)
        data = replaced(data, start + place, number(random, near, size))
    return data


@functools.lru_cache(maxsize=1024)
def _places(data: bytes, part: bytes) -> tuple[int, ...]:
    found, place = [], data.find(part)
    while place >= 0:
        found.append(place)
        place = data.find(part, place + 1)
    return tuple(found)


@functools.lru_cache(maxsize=64)
def _steps(data: bytes) -> tuple[tuple[bytes, ...], bytes]:
    """The opcodes of all pickles at the beginning, with their arguments, and what follows."""
    stream, steps = io.BytesIO(data), []
    while data[stream.tell() : stream.tell() + 1] == b"\x80":
        places = [place for _, _, place in pickletools.genops(stream) if place is not None]
        steps += [data[start:end] for start, end in zip(places, [*places[1:], stream.tell()], strict=True)]
    return tuple(steps), data[stream.tell() :]


def pickles(random: Random, data: bytes, files: Sequence[bytes]) -> bytes:
    """Opcodes in other places, and with other arguments."""
    given, rest = _steps(data)
    steps = list(given)
    for _ in few(random):
        if not steps or random.random() < 0.4:
            shuffle_parts(random, steps, random.choice((given, _NEW_STEPS)))
        else:
            place = random.randrange(len(steps))
            steps[place] = _with_argument(random, steps[place], given, len(data))
    return b"".join(steps) + rest


def _with_argument(random: Random, step: bytes, steps: Sequence[bytes], size: int) -> bytes:
    opcode = step[:1]
    if opcode in b"KMJNX\x88\x89\x8a\x8c)" and random.random() < 0.15:
        return random.choice(_VALUES)
    if opcode in b"KMJ\x8a":
        value = integer(random, [size]) * random.choice((1, 1, 1, -1))
        encoded = value.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + encoded
    if opcode in b"hqjr" and len(step) > 1:
        return opcode + number(random, [step[1]], len(step) - 1)
    if opcode == b"c":
        return f"c{random.choice(_GLOBALS)}\n".replace(" ", "\n").encode()
    if opcode in b"X\x8c":
        words = [
            *(text.encode() for text in _NAMES[:-1]),
            *(word for name in _GLOBALS for word in name.encode().split()),
        ]
        text = random.choice([*words, *(other[5:] for other in steps if other[:1] == b"X")])
        length = len(text) if random.random() < 0.8 else integer(random, [len(text)]) & 0xFFFFFFFF
        return b"X" + struct.pack("<L", length) + text
    return blind(random, step, [step])
