"""Faults that need no knowledge of a format: bits, bytes, slices and numbers, for fuzz_readers.py.

A fault is a function `(random, data, files) -> data`, where `files` are other good files of the same format. Numbers
are those at which things break: around powers of two, and those that mean something where they are put.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Fault = Callable[[Random, bytes, Sequence[bytes]], bytes]

TEXTS = (
    "",
    "x",
    "0",
    "1",
    "weight",
    "../up",
    "/root",
    "a/data.pkl",
    "arr_0.npy",
    "external.bin",
    "é\n",
    "b" * 300,
    "c" * 5000,
)

_POWERS = (7, 8, 15, 16, 31, 32, 53, 62, 63, 64)
_EDGES = [sign * (1 << power) + step for power in _POWERS for step in (-1, 0, 1) for sign in (1, -1)]
LARGEST = 1 << 16  # bytes from which on a file grows no more


def few(random: Random) -> range:
    """How many faults a file is given."""
    return range(random.choice((1, 1, 1, 2, 3, 8)))


def integer(random: Random, near: Sequence[int] = ()) -> int:
    """A number that is wrong at random, or one of those that are meaningful, or beside it."""
    kind = random.randrange(4)
    if kind == 0:
        return random.choice(_EDGES)
    if kind == 1 and near:
        return random.choice(near) + random.choice((-8, -1, 0, 0, 0, 1, 8))
    if kind == 2:
        return random.choice((0, 1, random.randrange(40)))
    return random.getrandbits(random.choice((4, 8, 16, 24, 32, 64)))


def number(random: Random, near: Sequence[int] = (), size: int | None = None) -> bytes:
    """Such a number in so many bytes, little-endian; in 1, 2, 4 or 8 unless told."""
    size = size or random.choice((1, 2, 4, 8))
    return (integer(random, near) & (1 << 8 * size) - 1).to_bytes(size, "little")


def replaced(data: bytes, place: int, new: bytes) -> bytes:
    """Data with other bytes at a place."""
    return data[:place] + new + data[place + len(new) :]


def shuffle_parts(random: Random, parts: list[Any], others: Sequence[Any]) -> None:
    """Drops, moves or repeats one of a list's elements, or adds one of others."""
    kind = random.randrange(4) if parts else 3
    place = random.randrange(len(parts) + (kind == 3))
    if kind == 0:
        del parts[place]
    elif kind == 1:
        part = parts.pop(place)
        parts.insert(random.randrange(len(parts) + 1), part)
    elif kind == 2:
        parts[place:place] = [parts[place]] * random.choice((1, 1, 2, 40, 300))
    elif others:
        parts.insert(place, random.choice(others))


def blind(random: Random, data: bytes, files: Sequence[bytes]) -> bytes:
    """Changes of bits, bytes, numbers and slices anywhere, cuts, and ends of other files."""
    for _ in few(random):
        start = random.randrange(len(data) + 1)
        end = min(len(data), start + random.choice((1, 1, 2, 4, 8, 30, 100, len(data))))
        before, there, after = data[:start], data[start:end], data[end:]
        kind = random.randrange(9)
        if kind == 0 and there:
            data = replaced(data, start, bytes([there[0] ^ 1 << random.randrange(8)]))
        elif kind == 1:
            data = before + bytes([random.choice((0, 1, 10, 127, 128, 255))]) * len(there) + after
        elif kind == 2:
            data = before + number(random, [len(data)]) + there + after
        elif kind == 3:
            data = replaced(data, start, number(random, [len(data)]))
        elif kind == 4:
            data = before + after
        elif kind == 5:
            data = before + there * random.choice((2, 3, 50)) + after
        elif kind == 6:
            place = random.randrange(len(data) + 1)
            data = replaced(data, place, there)
        elif kind == 7:
            data = before
        else:
            other = random.choice(files)
            data = before + other[random.randrange(len(other) + 1) :]
        data = data[:LARGEST]
    return data
