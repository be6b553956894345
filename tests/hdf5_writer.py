"""A small writer of HDF5 files, of their objects and groups: the variants of the format, and structures for faults."""

import itertools
from collections.abc import Mapping, Sequence

NOWHERE = b"\xff" * 8
CHECKSUM = bytes(4)
DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL_FILES = 0x1, 0x2, 0x3, 0x6, 0x7
LAYOUT, FILTERS, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE = 0x8, 0xB, 0xC, 0x10, 0x11

Message = tuple[int, bytes] | tuple[int, bytes, int]  # kind, body, flags


def number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


class Image:
    """The bytes of a file to be, with room for a superblock in front."""

    def __init__(self):
        self._data = bytearray(96)

    def put(self, data: bytes) -> int:
        """Appends a structure and gives its address."""
        self._data += bytes(-len(self._data) % 8) + data
        return len(self._data) - len(data)

    def finish(self, root: int, version: int = 2, user_block: int = 0) -> bytes:
        """The file with its superblock."""
        ends = number(user_block) + NOWHERE + number(user_block + len(self._data))
        head = b"\x89HDF\r\n\x1a\n" + bytes([version])
        if version < 2:
            head += bytes([0, 0, 0, 0, 8, 8, 0]) + bytes(8 + 4 * version) + ends + NOWHERE + bytes(8) + number(root)
        else:
            head += bytes([8, 8, 0]) + ends + number(root) + CHECKSUM
        return b"#" * user_block + head + bytes(self._data[len(head) :])


# Objects.


def messages(*given: Message, order: bool = False) -> bytes:
    """Messages as version 2 has them, with a number for the order of creation or not."""
    parts = []
    for kind, body, *flags in given:
        parts += [bytes([kind]), number(len(body), 2), bytes(flags or 1), bytes(2 * order), body]
    return b"".join(parts)


def header(*given: Message, flags: int = 0) -> bytes:
    """An object header of version 2."""
    body = messages(*given, order=bool(flags & 0x4))
    before = bytes(16 * bool(flags & 0x20) + 4 * bool(flags & 0x10))
    return b"OHDR\x02" + bytes([flags | 2]) + before + number(len(body), 4) + body + CHECKSUM


def old_messages(*given: Message) -> bytes:
    parts = []
    for kind, body, *flags in given:
        body += bytes(-len(body) % 8)
        parts += [number(kind, 2), number(len(body), 2), bytes(flags or 1), bytes(3), body]
    return b"".join(parts)


def old_header(*given: Message) -> bytes:
    """An object header of version 1."""
    body = old_messages(*given)
    return b"\x01\0" + number(len(given), 2) + number(1, 4) + number(len(body), 4) + bytes(4) + body


# Groups.


def link(name: bytes, address: int, order: int | None = None) -> bytes:
    created = b"" if order is None else number(order)
    return bytes([1, 0x4 if created else 0]) + created + number(len(name), 1) + name + number(address)


def group(image: Image, links: Mapping[str, int], *given: Message) -> int:
    """A group with a message for each link."""
    listed = [(LINK, link(name.encode(), address)) for name, address in links.items()]
    return image.put(header((LINK_INFO, b"\0\0" + NOWHERE * 2), *listed, *given))


def old_group(image: Image, links: Mapping[str, int], *given: Message, most: int = 2) -> int:
    """A group with a symbol table, whose nodes have at most so many entries."""
    names, entries = bytes(8), []
    for name, address in sorted((name.encode(), address) for name, address in links.items()):
        entries.append(number(len(names)) + number(address) + bytes(24))
        names += name + b"\0"
    nodes = [entries[start : start + most] for start in range(0, len(entries), most)]
    leaves = [image.put(b"SNOD\x01\0" + number(len(node), 2) + b"".join(node)) for node in nodes]
    heap = image.put(b"HEAP" + bytes(4) + number(len(names)) + NOWHERE + number(image.put(names)))
    tree = old_tree(image, 0, [(bytes(8), leaf) for leaf in leaves], most)
    return image.put(old_header((SYMBOL_TABLE, number(tree) + number(heap)), *given))


def old_tree(image: Image, kind: int, entries: Sequence[tuple[bytes, int]], most: int = 2) -> int:
    """A tree of version 1 over keys with addresses, at most so many a node."""
    for level in itertools.count():
        parents = []
        for start in range(0, len(entries), most) or [0]:
            node = entries[start : start + most]
            body = b"".join(key + number(address) for key, address in node)
            head = b"TREE" + bytes([kind, level]) + number(len(node), 2) + NOWHERE * 2
            parents.append((node[0][0] if node else b"", image.put(head + body)))
        if len(parents) == 1:
            return parents[0][1]
        entries = parents
    raise AssertionError


def dense_group(image: Image, links: Mapping[str, int], node_bytes: int = 512, first: int = 512) -> int:
    """A group whose links lie in a heap, with a tree that lists them."""
    blocks, identifiers, start = [b""], [], 0  # of the last block in the heap
    for name, address in links.items():
        body = link(name.encode(), address)
        if len(blocks[-1]) + len(body) > _block_bytes(len(blocks) - 1, first):
            start += _block_bytes(len(blocks) - 1, first)
            blocks.append(b"")
        identifiers.append(bytes(5) + number(start + len(blocks[-1]), 4) + number(len(body), 2))
        blocks[-1] += body
    addresses = [image.put(block.ljust(_block_bytes(index, first), b"\0")) for index, block in enumerate(blocks)]
    rows = -(-len(blocks) // 4) if len(blocks) > 1 else 0
    root = image.put(heap_table(addresses, rows)) if rows else addresses[0]
    heap = image.put(heap_header(root, rows, first=first))
    tree = new_tree(image, identifiers, node_bytes)
    return image.put(header((LINK_INFO, b"\0\0" + number(heap) + number(tree))))


def _block_bytes(index: int, first: int) -> int:
    return first << max(0, index // 4 - 1)


def heap_table(addresses: Sequence[int], rows: int) -> bytes:
    table = b"".join(map(number, addresses)) + NOWHERE * (4 * rows - len(addresses))
    return b"FHIB\0" + bytes(12) + table + CHECKSUM


def heap_header(root: int, rows: int, filters: int = 0, first: int = 512, largest: int = 1 << 16) -> bytes:
    head = b"FRHP\0" + number(7, 2) + number(filters, 2) + b"\0" + number(4096, 4) + bytes(96)
    head += number(4, 2) + number(first) + number(largest) + number(32, 2) + number(1, 2) + number(root)
    return head + number(rows, 2) + CHECKSUM


def tree_header(root: int, count: int, total: int, depth: int, node_bytes: int = 512, kind: int = 5) -> bytes:
    head = b"BTHD\0" + bytes([kind]) + number(node_bytes, 4) + number(11, 2) + number(depth, 2) + bytes(2)
    return head + number(root) + number(count, 2) + number(total) + CHECKSUM


def new_tree(image: Image, records: Sequence[bytes], node_bytes: int) -> int:
    """A tree of version 2 over records of 11 bytes."""
    room = node_bytes - 10
    most, totals, pointers = [room // 11], [room // 11], []
    while totals[-1] < len(records):
        below = _width(totals[-1]) if len(most) > 1 else 0
        pointers.append((_width(most[-1]), below))
        size = 8 + sum(pointers[-1])
        most.append((room - size) // (11 + size))
        totals.append(most[-1] + (most[-1] + 1) * totals[-1])

    def node(records: Sequence[bytes], depth: int) -> tuple[int, int]:
        if not depth:
            return image.put(b"BTLF\0\x05" + b"".join(records) + CHECKSUM), len(records)
        count = max(1, -(-(len(records) - totals[depth - 1]) // (totals[depth - 1] + 1)))
        bounds = [round(i * (len(records) + 1) / (count + 1)) for i in range(count + 2)]
        own = [records[bound - 1] for bound in bounds[1:-1]]
        body = b"".join(own)
        for start, end in itertools.pairwise(bounds):
            address, inside = node(records[start : end - 1], depth - 1)
            widths = pointers[depth - 1]
            below = number(end - 1 - start, widths[1]) if widths[1] else b""
            body += number(address) + number(inside, widths[0]) + below
        return image.put(b"BTIN\0\x05" + body + CHECKSUM), len(own)

    root, count = node(records, len(most) - 1)
    return image.put(tree_header(root, count, len(records), len(most) - 1, node_bytes))


def _width(most: int) -> int:
    return max(1, -(-most.bit_length() // 8))
