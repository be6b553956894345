"""Faults in protocol buffers (caffemodel, ONNX): a file is taken apart into fields, and these into theirs.

Any bytes that can be read as a message are taken for one, texts and values by chance too: put together again they are
what they were. A field is a list [number, wire type, value, lie], whose value is a number, bytes or a list of fields;
the lie is added to the length that is written, or is a number of bytes too many in a varint.
"""

from collections.abc import Sequence
from random import Random

from tools.fuzzing.faults import LARGEST, TEXTS, blind, few, integer, shuffle_parts

_MAX_DEPTH = 6
_DEPTHS = (1, 5, 40, 2000)
_MASK = (1 << 64) - 1


def message(random: Random, data: bytes, files: Sequence[bytes]) -> bytes:
    """Fields with other numbers, types, values and lengths, in other places, more often or within themselves."""
    top = _fields(data) or []
    for _ in few(random):
        levels = [top]
        for fields in levels:
            levels += [value for _, _, value, *_ in fields if isinstance(value, list)]
        fields = random.choice(levels)
        if not fields or random.random() < 0.3:
            shuffle_parts(random, fields, [_copy(field) for field in random.choice(levels)])
        else:
            _change(random, random.choice(fields), [len(data), *(field[0] for field in fields)])
        if len(_message(top)) > LARGEST:
            break
    return _message(top)


def _change(random: Random, field: list, near: Sequence[int]) -> None:
    kind = random.randrange(6)
    if kind == 0:
        field[0] = abs(integer(random, near)) & _MASK >> 3
    elif kind == 1:
        field[1] = random.randrange(8)
    elif kind == 2:
        field[3:] = [integer(random) % 12 if field[1] == 0 else integer(random, near)]
    elif kind == 3:
        content = _message([field])
        for _ in range(random.choice(_DEPTHS)):
            content = _encoded(field[0] << 3 | 2) + _encoded(len(content)) + content
        field[1:] = [2, content]
    elif isinstance(field[2], int):
        field[2] = integer(random, [field[2], *near])
    else:
        content = _message(field[2]) if isinstance(field[2], list) else field[2]
        texts = [text.encode() for text in TEXTS]
        field[2] = random.choice((blind(random, content, [content]), _encoded(integer(random)), random.choice(texts)))


def _copy(field: list) -> list:
    return [
        field[0],
        field[1],
        [_copy(inner) for inner in field[2]] if isinstance(field[2], list) else field[2],
        *field[3:],
    ]


def _fields(data: bytes, depth: int = 0) -> list[list] | None:
    """The fields of a message, or None for bytes that are none."""
    found, position = [], 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if not number or wire_type not in (0, 1, 2, 5):
            return None
        value, stop = _varint(data, position) if wire_type in (0, 2) else (0, position)
        if wire_type:
            start, stop = stop, stop + {1: 8, 2: value, 5: 4}[wire_type]
            value = data[start:stop]
        if stop > len(data):
            return None
        if wire_type == 2 and depth < _MAX_DEPTH:
            assert isinstance(value, bytes)
            value = _fields(value, depth + 1) or value
        found.append([number, wire_type, value])
        position = stop
    return found


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number and where it ends, which is behind the data if it does not end within."""
    value = shift = 0
    while position < len(data):
        byte, position = data[position], position + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position
    return value, position + 1


def _encoded(value: int, padding: int = 0) -> bytes:
    value &= _MASK
    groups = [value >> shift & 127 for shift in range(0, max(1, value.bit_length()), 7)] + [0] * padding
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def _message(fields: list[list]) -> bytes:
    parts = []
    for number, wire_type, value, *lie in fields:
        content = _message(value) if isinstance(value, list) else value
        if isinstance(content, int):
            content = _encoded(content, sum(lie) % 12)
        if wire_type == 2:
            content = _encoded(len(content) + sum(lie)) + content
        parts.append(_encoded(number << 3 | wire_type) + content)
    return b"".join(parts)
