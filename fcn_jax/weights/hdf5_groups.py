"""Groups: the names in them and the objects that these lead to, in each of the three ways in which HDF5 keeps them.

Source: HDF5 File Format Specification, version 3.0, sections III.A to III.D (trees, symbol tables, local heap) and
IV.A.2.c, g (links). Old groups keep names in a heap and entries in a tree, by name. New ones keep links as messages,
and once there are many, in a heap with a tree, by the hash of the name. Links to other paths or files are passed over.
"""

from collections.abc import Iterator

from fcn_jax.weights.files import Malformed
from fcn_jax.weights.hdf5_links_heap import heap_objects
from fcn_jax.weights.hdf5_objects import LINK, LINK_INFO, SYMBOL_TABLE, Header
from fcn_jax.weights.hdf5_storage import Block, Storage

GROUP_NODES, CHUNK_NODES = 0, 1  # kinds of trees

_SOFT = 2  # what a symbol table's entry keeps: the heap's offset of another path
_HARD = 0
_TYPE, _ORDER, _ENCODING = 0x8, 0x4, 0x10  # bits of a link's flags
_TRACKED = 0x1  # bit of a group's flags: order of creation is kept
_LINKS_BY_NAME = 5


def links(storage: Storage, header: Header) -> dict[str, int]:
    """The names of a group with the addresses of what they lead to: in order of creation if it is kept, else by name.

    Raises Malformed.
    """
    found: dict[str, int] = {}
    for name, address in _named(storage, header):
        try:
            text = name.decode()
        except UnicodeDecodeError:
            raise Malformed(f"a name is no UTF-8: {name!r}") from None
        if text in ("", ".") or "/" in text:
            raise Malformed(f"{text!r} is no name")
        if text in found:
            raise Malformed(f"two links are named {text!r}")
        found[text] = address
    return found


def _named(storage: Storage, header: Header) -> list[tuple[bytes, int]]:
    for block in header.every(SYMBOL_TABLE):
        return list(_symbols(storage, block.address(), block.address()))
    found = [_link(block) for block in header.every(LINK)]
    for block in header.every(LINK_INFO):
        found += _dense(storage, block)
    # Those in the header lie in whatever order room was found for them.
    tracked = all(order is not None for order, _, _ in found)
    found.sort(key=lambda link: (link[0] if tracked else 0, link[1]))
    return [(name, address) for _, name, address in found if address is not None]


def tree_leaves(storage: Storage, root: int, kind: int, key_bytes: int) -> Iterator[tuple[int, Block]]:
    """The leaves of a tree of version 1, from left to right: the number of their entries, keys with addresses."""
    nodes: list[tuple[int, int | None]] = [(root, None)]
    while nodes:
        address, wanted_level = nodes.pop()
        head = storage.block(address, 8 + 2 * storage.address_bytes)
        if head.take(4) != b"TREE" or head.number(1) != kind:
            raise Malformed(f"at {address} is no node of its tree")
        level, count = head.number(1), head.number(2)
        if wanted_level is not None and level != wanted_level:
            raise Malformed(f"a node of level {level} is where one of level {wanted_level} should be")
        entries = storage.block(address + 8 + 2 * storage.address_bytes, count * (key_bytes + storage.address_bytes))
        if not level:
            yield count, entries
            continue
        children = []
        for _ in range(count):
            entries.take(key_bytes)
            children.append((entries.address(), level - 1))
        nodes += reversed(children)


def _symbols(storage: Storage, tree: int, heap: int) -> Iterator[tuple[bytes, int]]:
    head = storage.signed(heap, b"HEAP", 3 + 2 * storage.length_bytes + storage.address_bytes)
    head.take(3)
    size, _, address = head.length(), head.length(), head.address()
    names = storage.block(address, size).rest()
    for count, leaf in tree_leaves(storage, tree, GROUP_NODES, storage.length_bytes):
        for _ in range(count):
            leaf.take(storage.length_bytes)
            yield from _symbol_node(storage, leaf.address(), names)


def _symbol_node(storage: Storage, address: int, names: bytes) -> Iterator[tuple[bytes, int]]:
    head = storage.block(address, 8)
    if head.take(6) != b"SNOD\x01\0":
        raise Malformed(f"at {address} is no symbol table")
    entry_bytes = 2 * storage.address_bytes + 24
    entries = storage.block(address + 8, (count := head.number(2)) * entry_bytes)
    for _ in range(count):
        entry = entries.part(entry_bytes)
        offset, target, kept = entry.number(storage.address_bytes), entry.address_if_any(), entry.number(4)
        if kept == _SOFT:
            continue
        end = names.find(b"\0", offset)
        if end < 0 or target is None:
            raise Malformed(f"an entry of the symbol table at {address} has no name or no object")
        storage.charge(end - offset)
        yield names[offset:end], target


def _link(block: Block) -> tuple[int | None, bytes, int | None]:
    """Order of creation, name and address of a link; None for what it has not."""
    version, flags = block.number(1), block.number(1)
    if version != 1:
        raise Malformed(f"link version {version} is not read")
    kind = block.number(1) if flags & _TYPE else _HARD
    order = block.number(8) if flags & _ORDER else None
    if flags & _ENCODING:
        block.take(1)
    name = block.take(block.number(1 << (flags & 3)))
    if kind != _HARD:
        return order, name, None
    return order, name, block.address()


def _dense(storage: Storage, info: Block) -> list[tuple[int | None, bytes, int | None]]:
    """The links of a group that keeps them in a heap, in no order."""
    version, flags = info.number(1), info.number(1)
    if version:
        raise Malformed(f"link info version {version} is not read")
    if flags & _TRACKED:
        info.take(8)
    heap = info.address_if_any()
    if heap is None:
        return []
    return [_link(block) for block in heap_objects(storage, heap, info.address(), _LINKS_BY_NAME)]
