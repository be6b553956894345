"""Object headers: what an HDF5 group or dataset says of itself, in messages.

Source: HDF5 File Format Specification, version 3.0, section IV.A. Version 1 has no signature and begins with its
version; version 2 begins with OHDR, and its checksums are passed over. A header goes on in other places of the file,
which are listed by messages of their own. A message may also stand in for one that several objects share.
"""

import dataclasses

from fcn_jax.weights.files import Malformed
from fcn_jax.weights.hdf5_storage import Block, Storage

DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL_FILES = 0x1, 0x2, 0x3, 0x6, 0x7
LAYOUT, FILTERS, ATTRIBUTE, SYMBOL_TABLE = 0x8, 0xB, 0xC, 0x11
_CONTINUATION = 0x10
_NAMES = {DATASPACE: "shape", DATATYPE: "type", LAYOUT: "layout", FILTERS: "list of filters"}

_SHARED = 2  # bit of a message's flags
_TIMES, _PHASES, _CREATION_ORDER = 0x20, 0x10, 0x4  # bits of a header's flags
_CHECKSUM_BYTES = 4


@dataclasses.dataclass(frozen=True)
class _Message:
    kind: int
    flags: int
    body: bytes


class Header:
    """The messages of the object at an address. Raises Malformed."""

    def __init__(self, storage: Storage, address: int):
        self._storage = storage
        start = storage.block(address, 6)
        signature = start.take(4)
        if signature == b"OHDR":
            version, flags = start.number(1), start.number(1)
            if version != 2:
                raise Malformed(f"object header version {version} is not read")
            before = (16 if flags & _TIMES else 0) + (4 if flags & _PHASES else 0)
            size_bytes = 1 << (flags & 3)
            block = storage.block(address + 6, before + size_bytes)
            block.take(before)
            first = storage.block(address + 6 + before + size_bytes, block.number(size_bytes))
            self._messages = _messages(storage, first, flags)
        elif signature[0] == 1:
            first = storage.block(address + 16, storage.block(address + 8, 4).number(4))
            self._messages = _messages(storage, first, None)
        else:
            raise Malformed(f"at {address} is no object header")

    def has(self, kind: int) -> bool:
        return any(message.kind == kind for message in self._messages)

    def every(self, kind: int) -> list[Block]:
        """What the messages of a kind hold, but for those that stand in for another."""
        messages = (message for message in self._messages if message.kind == kind and not message.flags & _SHARED)
        return [self._storage.over(message.body) for message in messages]

    def only(self, kind: int) -> Block:
        """What the one message of a kind holds."""
        found = [message for message in self._messages if message.kind == kind]
        if len(found) != 1:
            raise Malformed(f"it has {len(found)} messages for its {_NAMES[kind]}")
        if found[0].flags & _SHARED:
            raise Malformed(f"a {_NAMES[kind]} that is shared is not read")
        return self._storage.over(found[0].body)


def _messages(storage: Storage, block: Block, flags: int | None) -> list[_Message]:
    """The messages from a header's first block on; `flags` are those of version 2, None for version 1."""
    head_bytes = 8 if flags is None else 6 if flags & _CREATION_ORDER else 4
    found, blocks = [], [block]
    while blocks:
        block = blocks.pop()
        while block.left >= head_bytes:
            head = block.part(head_bytes)
            kind, size, message_flags = head.number(2 if flags is None else 1), head.number(2), head.number(1)
            if kind != _CONTINUATION:
                found.append(_Message(kind, message_flags, block.take(size)))
                continue
            body = block.part(size)
            address, length = body.address(), body.length()
            if flags is None:
                blocks.append(storage.block(address, length))
                continue
            rest = storage.block(address, length)
            if rest.take(4) != b"OCHK":
                raise Malformed(f"an object header does not go on at {address}")
            blocks.append(rest.part(max(0, rest.left - _CHECKSUM_BYTES)))
    return found
