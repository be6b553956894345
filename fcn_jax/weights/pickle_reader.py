"""Pickles read as data: a machine of the opcodes that torch.save writes, in which nothing can be called.

Source: Lib/pickletools.py of CPython, protocols 2 to 5. A global is a name that the caller's table turns into a record,
or it is refused. Dicts become `Pairs`, lists of keys and values: a file can choose keys so that a dict of them takes
for ever, or nest them so deeply that hashing them overflows the stack.
"""

import dataclasses
import struct
from collections.abc import Callable, Mapping
from typing import Any

from fcn_jax.weights.files import Malformed, WeightFile

# Far beyond any checkpoint: a tensor takes forty steps or so. They bound the time and the objects of a hostile file.
MAX_STEPS = 1 << 20
MAX_BYTES = 64 << 20
_MAX_NAME = 256  # of a global, module and all
_PIECE = 1 << 16

Builder = Callable[[tuple[Any, ...]], Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Global:
    """A class or function by its full name, not the thing itself."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Opaque:
    """A value of which nothing but its class is kept."""

    name: str


@dataclasses.dataclass(slots=True, eq=False)
class Pairs:
    """What a dict holds: (key, value) each, or whatever else a constructor was given as its items."""

    items: list[Any] = dataclasses.field(default_factory=list)


def load(
    file: WeightFile, start: int, end: int, builders: Mapping[str, Builder], persistent: Callable[[Any], Any]
) -> tuple[Any, int]:
    """The value of the pickle at `start`, and where it ends, at `end` at the latest. Raises Malformed.

    `builders` are the globals that may occur, with what makes a record of their arguments; `persistent` makes one of
    the id of what lies outside of the pickle. Both are called often, and must not take longer for larger arguments.
    """
    cursor = _Cursor(file, start, min(end, start + MAX_BYTES))
    machine = _Machine(builders, persistent)
    for _ in range(MAX_STEPS):
        opcode = cursor.take(1)
        if opcode == b".":
            return machine.pop(), cursor.position
        step = _STEPS.get(opcode)
        if step is None:
            raise Malformed(f"its pickle has the opcode 0x{opcode.hex()}, which torch.save does not write")
        step(machine, cursor)
    raise Malformed(f"its pickle takes more than {MAX_STEPS:,} steps")


class _Cursor:
    """Bytes of a file one after another, read in pieces."""

    def __init__(self, file: WeightFile, start: int, end: int):
        self._file, self._base, self._end = file, start, end
        self._buffer, self._next = b"", 0

    @property
    def position(self) -> int:
        return self._base + self._next

    def take(self, size: int) -> bytes:
        if self._next + size > len(self._buffer):
            self._fill(size)
        start = self._next
        self._next += size
        return self._buffer[start : self._next]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def counted(self, layout: str) -> bytes:
        """What follows its own length."""
        return self.take(self.number(layout))

    def line(self) -> str:
        """Up to the next line feed, which is passed over. What is no UTF-8 cannot be a name and stays visible."""
        if len(self._buffer) - self._next <= _MAX_NAME:
            self._fill(0)
        stop = self._buffer.find(b"\n", self._next, self._next + _MAX_NAME + 1)
        if stop < 0:
            raise Malformed("its pickle has a name without an end")
        return self.take(stop + 1 - self._next)[:-1].decode("utf-8", "backslashreplace")

    def require(self, size: int) -> None:
        """Raises Malformed unless so many bytes are left."""
        if size > self._end - self.position:
            raise Malformed("its pickle is cut short, or larger than it may be")

    def _fill(self, size: int) -> None:
        self.require(size)
        position = self.position
        self._buffer = self._file.at(position, max(size, min(_PIECE, self._end - position)))
        self._base, self._next = position, 0


class _Machine:
    """The stack, cut into levels by marks as in CPython, and the memo."""

    def __init__(self, builders: Mapping[str, Builder], persistent: Callable[[Any], Any]):
        self._builders, self.persistent = builders, persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the levels under the last mark
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self.pop_last(1)[0]

    def pop_last(self, count: int) -> list[Any]:
        """The last values of this level, in the order in which they came."""
        if len(self._stack) < count:
            raise Malformed("its pickle uses a value that is not there")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def pop_mark(self) -> list[Any]:
        """All that lies above the last mark."""
        if not self._below:
            raise Malformed("its pickle uses a mark that is not there")
        values, self._stack = self._stack, self._below.pop()
        return values

    def protocol(self, version: int) -> None:
        if not 2 <= version <= 5:
            raise Malformed(f"its pickle is of protocol {version}, where 2 to 5 are read")

    def text(self, data: bytes, or_bytes: bool = False) -> None:
        """Pushes a text, or a string of Python 2, which may as well be bytes."""
        try:
            self.push(data.decode())
        except UnicodeDecodeError:
            if not or_bytes:
                raise Malformed("its pickle has a text that is no UTF-8") from None
            self.push(data)

    def append(self, values: list[Any]) -> None:
        """Adds to the list, or to the set, deque or the like, that is on the stack."""
        target = self.pop()
        if isinstance(target, list):
            target += values
        elif not isinstance(target, Opaque):
            raise Malformed("its pickle appends to what is no list")
        self.push(target)

    def set_items(self, values: list[Any]) -> None:
        target = self.pop()
        if len(values) % 2:
            raise Malformed("its pickle has a key without a value")
        if isinstance(target, Pairs):
            target.items += zip(values[::2], values[1::2], strict=True)
        elif not isinstance(target, Opaque):
            raise Malformed("its pickle sets items of what is no dict")
        self.push(target)

    def put(self, index: int | None = None) -> None:
        value = self.pop()
        self._memo[len(self._memo) if index is None else index] = value
        self.push(value)

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise Malformed("its pickle recalls a value that it never kept")
        self.push(self._memo[index])

    def named(self, module: Any, name: Any) -> None:
        """Pushes the global of that name, if it is one that may occur."""
        words = [word for word in (module, name) if isinstance(word, str) and len(word) <= _MAX_NAME]
        full = ".".join(words)
        if len(words) < 2 or not all(part.isidentifier() for part in full.split(".")):
            raise Malformed("its pickle names a global that cannot be one")
        if full not in self._builders:
            raise Malformed(f"it wants to call {full}; only tensors and plain containers are read")
        self.push(Global(full))

    def call(self) -> None:
        """Looks up what a global makes of its arguments: REDUCE and NEWOBJ alike."""
        target, arguments = self.pop_last(2)
        if not isinstance(target, Global) or not isinstance(arguments, tuple):
            raise Malformed("its pickle calls what is no function")
        self.push(self._builders[target.name](arguments))


# Opcode: what it does to the machine, given the bytes that follow.
_STEPS: dict[bytes, Callable[[_Machine, _Cursor], Any]] = {
    b"\x80": lambda machine, cursor: machine.protocol(cursor.number("<B")),
    b"\x95": lambda machine, cursor: cursor.require(cursor.number("<Q")),  # a frame, which only helps buffering
    b"(": lambda machine, cursor: machine.mark(),
    b"N": lambda machine, cursor: machine.push(None),
    b"\x88": lambda machine, cursor: machine.push(True),
    b"\x89": lambda machine, cursor: machine.push(False),
    b"J": lambda machine, cursor: machine.push(cursor.number("<i")),
    b"K": lambda machine, cursor: machine.push(cursor.number("<B")),
    b"M": lambda machine, cursor: machine.push(cursor.number("<H")),
    b"\x8a": lambda machine, cursor: machine.push(int.from_bytes(cursor.counted("<B"), "little", signed=True)),
    b"G": lambda machine, cursor: machine.push(cursor.number(">d")),
    b"X": lambda machine, cursor: machine.text(cursor.counted("<I")),
    b"\x8c": lambda machine, cursor: machine.text(cursor.counted("<B")),
    b"T": lambda machine, cursor: machine.text(cursor.counted("<I"), or_bytes=True),
    b"U": lambda machine, cursor: machine.text(cursor.counted("<B"), or_bytes=True),
    b"B": lambda machine, cursor: machine.push(cursor.counted("<I")),
    b"C": lambda machine, cursor: machine.push(cursor.counted("<B")),
    b"\x96": lambda machine, cursor: machine.push(cursor.counted("<Q")),
    b")": lambda machine, cursor: machine.push(()),
    b"\x85": lambda machine, cursor: machine.push(tuple(machine.pop_last(1))),
    b"\x86": lambda machine, cursor: machine.push(tuple(machine.pop_last(2))),
    b"\x87": lambda machine, cursor: machine.push(tuple(machine.pop_last(3))),
    b"t": lambda machine, cursor: machine.push(tuple(machine.pop_mark())),
    b"]": lambda machine, cursor: machine.push([]),
    b"a": lambda machine, cursor: machine.append(machine.pop_last(1)),
    b"e": lambda machine, cursor: machine.append(machine.pop_mark()),
    b"}": lambda machine, cursor: machine.push(Pairs()),
    b"s": lambda machine, cursor: machine.set_items(machine.pop_last(2)),
    b"u": lambda machine, cursor: machine.set_items(machine.pop_mark()),
    b"\x8f": lambda machine, cursor: machine.push(Opaque("set")),
    b"\x90": lambda machine, cursor: machine.append(machine.pop_mark()),
    b"q": lambda machine, cursor: machine.put(cursor.number("<B")),
    b"r": lambda machine, cursor: machine.put(cursor.number("<I")),
    b"\x94": lambda machine, cursor: machine.put(),
    b"h": lambda machine, cursor: machine.get(cursor.number("<B")),
    b"j": lambda machine, cursor: machine.get(cursor.number("<I")),
    b"c": lambda machine, cursor: machine.named(cursor.line(), cursor.line()),
    b"\x93": lambda machine, cursor: machine.named(*machine.pop_last(2)),
    b"R": lambda machine, cursor: machine.call(),
    b"\x81": lambda machine, cursor: machine.call(),
    b"b": lambda machine, cursor: machine.pop(),  # the state that the object below would be given
    b"Q": lambda machine, cursor: machine.push(machine.persistent(machine.pop())),
}
