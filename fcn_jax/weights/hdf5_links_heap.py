"""Where a new group keeps many links: a fractal heap holds them, a tree of version 2 tells where in it they lie.

Source: HDF5 File Format Specification, version 3.0, sections III.A.2 (tree) and III.G (heap). The heap is a table of
blocks, a row of so many of a size; the first two rows have blocks of the first size, each further row of twice the
size before. A heap in which a row has tables of its own holds ten thousands of links and is not read.
"""

from collections.abc import Iterator

from fcn_jax.weights.files import Malformed
from fcn_jax.weights.hdf5_storage import Block, Storage

_NODE_BYTES = 10  # of a tree's node without its records: signature, version, kind, checksum
_MAX_DEPTH = 16
_OFFSET_BITS = 64  # the most that a heap's addresses may have
_KIND_OF_OBJECT = 0x30  # bits of a heap object's first byte; 0 for those within blocks


def heap_objects(storage: Storage, heap_address: int, tree_address: int, kind: int) -> Iterator[Block]:
    """The objects of a heap that a tree lists, each a block. Raises Malformed."""
    heap = _Heap(storage, heap_address)
    for record in _records(storage, tree_address, kind):
        record.take(4)  # the hash of the name
        yield heap.find(record)


class _Heap:
    """A fractal heap, with the addresses of its blocks."""

    def __init__(self, storage: Storage, address: int):
        self._storage = storage
        width = storage.length_bytes
        head = storage.signed(address, b"FRHP", 17 + 12 * width + 3 * storage.address_bytes)
        head.take(2)  # the bytes of an object's identifier
        filter_bytes, _, largest_object = head.number(2), head.number(1), head.number(4)
        if filter_bytes:
            raise Malformed("a heap with filters is not read")
        head.take(10 * width + 2 * storage.address_bytes)  # statistics, large objects
        self._width, self._first_bytes, largest_block = head.number(2), head.length(), head.length()
        bits = head.number(2)
        head.take(2)
        root, rows = head.address(), head.number(2)
        if bits > _OFFSET_BITS or not self._width or not self._first_bytes:
            raise Malformed(f"the heap at {address} has no sizes that one can have")
        self._offset_bytes = -(-bits // 8)
        self._length_bytes = -(-min(largest_block, largest_object).bit_length() // 8)
        self._blocks: list[int | None] = [root]
        if rows:
            if self._size_of_row(rows - 1) > largest_block:
                raise Malformed("a heap with tables in its table is not read")
            count = rows * self._width
            table = storage.signed(
                root, b"FHIB", storage.address_bytes + self._offset_bytes + count * storage.address_bytes
            )
            table.take(storage.address_bytes + self._offset_bytes)
            self._blocks = [table.address_if_any() for _ in range(count)]

    def find(self, identifier: Block) -> Block:
        """The object with an identifier, as a tree's record gives it."""
        if identifier.number(1) & _KIND_OF_OBJECT:
            raise Malformed("large objects of a heap are not read")
        offset, length = identifier.number(self._offset_bytes), identifier.number(self._length_bytes)
        # Rows from the second on begin at width · first size · 1, 2, 4, …
        row = (offset // (self._width * self._first_bytes)).bit_length()
        size = self._size_of_row(row)
        start = self._width * size if row else 0
        column, within = divmod(offset - start, size)
        place = row * self._width + column
        address = self._blocks[place] if place < len(self._blocks) else None
        if address is None or within + length > size:
            raise Malformed("an object is not within its heap")
        return self._storage.block(address + within, length)

    def _size_of_row(self, row: int) -> int:
        return self._first_bytes << max(0, row - 1)


def _records(storage: Storage, address: int, kind: int) -> Iterator[Block]:
    """The records of a tree of version 2, in no order."""
    head = storage.signed(address, b"BTHD", 15 + storage.address_bytes + storage.length_bytes)
    found, node_bytes, record_bytes, depth = head.number(1), head.number(4), head.number(2), head.number(2)
    head.take(2)
    if found != kind or not record_bytes or depth > _MAX_DEPTH:
        raise Malformed(f"the tree at {address} (kind {found}, depth {depth}) is none of links by name")
    widths = _count_widths(storage, node_bytes, record_bytes, depth)
    nodes = [(head.address(), head.number(2), depth)]
    while nodes:
        address, count, depth = nodes.pop()
        # A child is an address, the number of its records, and but for leaves the number of all records below.
        child_bytes = storage.address_bytes + sum(widths[depth - 1]) if depth else 0
        children = count + 1 if depth else 0
        node = storage.signed(address, b"BTIN" if depth else b"BTLF", 1 + count * record_bytes + children * child_bytes)
        node.take(1)
        for _ in range(count):
            yield node.part(record_bytes)
        for _ in range(children):
            child = node.part(child_bytes)
            nodes.append((child.address(), child.number(widths[depth - 1][0]), depth - 1))


def _count_widths(storage: Storage, node_bytes: int, record_bytes: int, depth: int) -> list[tuple[int, int]]:
    """The bytes that two numbers take in a parent, by the depth of the child: of its records, and of all below it."""
    most = total = (node_bytes - _NODE_BYTES) // record_bytes
    widths = [(_bytes_for(most), 0)]
    for _ in range(depth):
        child_bytes = storage.address_bytes + sum(widths[-1])
        most = (node_bytes - _NODE_BYTES - child_bytes) // (record_bytes + child_bytes)
        if most < 1:
            raise Malformed("the nodes of a tree have no room for records")
        total = most + (most + 1) * total
        widths.append((_bytes_for(most), _bytes_for(total)))
    return widths


def _bytes_for(most: int) -> int:
    return max(1, -(-most.bit_length() // 8))
