"""An HDF5 file as its structures see it: addresses, numbers of widths that the file itself sets, and a budget.

Source: HDF5 File Format Specification, version 3.0, section II (superblock) and VIII.A (undefined addresses). An HDF5
file may stand behind 512, 1024, 2048 … bytes of something else; its addresses then count from its signature.
Structures point to each other freely, so a small file can make a reader go over the same bytes for ever: all that is
read is counted, and what exceeds the file's size by far is refused.
"""

import itertools

from fcn_jax.weights.files import Malformed, WeightFile

SIGNATURE = b"\x89HDF\r\n\x1a\n"

_FIRST_USER_BLOCK = 512
_WIDTHS = (4, 8)
# A whole file is read once, a few of its headers twice; every block has a cost of its own, that none is free.
_BUDGET_OF_FILE = 4
_COST_OF_BLOCK = 8


class Block:
    """Bytes of a structure, taken from front to back. What would go past their end is Malformed."""

    def __init__(self, data: bytes, address_bytes: int, length_bytes: int):
        self._data, self._position = data, 0
        self.address_bytes, self.length_bytes = address_bytes, length_bytes

    @property
    def left(self) -> int:
        return len(self._data) - self._position

    def take(self, size: int) -> bytes:
        start, self._position = self._position, self._position + size
        if self._position > len(self._data):
            raise Malformed(f"a structure of {len(self._data)} bytes is too short for what it holds")
        return self._data[start : self._position]

    def rest(self) -> bytes:
        return self.take(self.left)

    def part(self, size: int) -> "Block":
        """The next bytes as a block of their own."""
        return Block(self.take(size), self.address_bytes, self.length_bytes)

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def length(self) -> int:
        return self.number(self.length_bytes)

    def address(self) -> int:
        address = self.address_if_any()
        if address is None:
            raise Malformed("an address leads nowhere")
        return address

    def address_if_any(self) -> int | None:
        """An address, or None for the one that stands for nothing stored."""
        value = self.number(self.address_bytes)
        return None if value == (1 << 8 * self.address_bytes) - 1 else value


class Storage:
    """The file behind its superblock. Raises Malformed where there is none that is read, or the file was cut short."""

    def __init__(self, file: WeightFile):
        self.file = file
        self.base = _signature_place(file)
        self._left = _BUDGET_OF_FILE * file.size
        start = self.base + len(SIGNATURE)
        head = file.at(start, min(100, file.size - start))
        version = head[0] if head else 0
        if version > 3:
            raise Malformed(f"superblock version {version} is not read")
        # Versions 0 and 1 have the versions of four other structures in front of the widths.
        places = (5, 6) if version < 2 else (1, 2)
        widths = [head[place] if place < len(head) else 0 for place in places]
        if any(width not in _WIDTHS for width in widths):
            raise Malformed(f"addresses of {widths[0]} and lengths of {widths[1]} bytes are not read")
        self.address_bytes, self.length_bytes = widths
        block = Block(head, *widths)
        block.take({0: 16, 1: 20, 2: 4, 3: 4}[version])
        base = block.address()
        block.take(self.address_bytes)  # of free space or of more about the file
        size = self.base + block.address() - base
        if size > file.size:
            raise Malformed(f"it should have {size} bytes and has {file.size}")
        if version < 2:
            block.take(2 * self.address_bytes)  # the driver's information, the name of the root
        self.root = block.address()

    def charge(self, cost: int) -> None:
        """Counts work. Raises Malformed once it is more than a file of this size can need."""
        self._left -= cost
        if self._left < 0:
            raise Malformed("its structures run in circles or overlap")

    def claim(self, address: int, size: int) -> None:
        """Counts values that are read elsewhere. Raises Malformed unless the file has them."""
        if self.base + address + size > self.file.size:
            raise Malformed(f"{size} bytes at {address} are said to be there, and the file has {self.file.size}")
        self.charge(size)

    def block(self, address: int, size: int) -> Block:
        """So many bytes at an address."""
        self.charge(size + _COST_OF_BLOCK)
        return self.over(self.file.at(self.base + address, size))

    def signed(self, address: int, signature: bytes, size: int) -> Block:
        """So many bytes behind a signature and a version, which is 0 wherever this is asked."""
        block = self.block(address, len(signature) + 1 + size)
        found = block.take(len(signature))
        if found != signature:
            raise Malformed(f"at {address} is no {signature.decode()} but {found!r}")
        if version := block.number(1):
            raise Malformed(f"{signature.decode()} version {version} is not read")
        return block

    def over(self, data: bytes) -> Block:
        """Bytes at hand as a block."""
        return Block(data, self.address_bytes, self.length_bytes)


def _signature_place(file: WeightFile) -> int:
    offsets = itertools.chain([0], (_FIRST_USER_BLOCK << power for power in itertools.count()))
    for offset in itertools.takewhile(lambda offset: offset + len(SIGNATURE) <= file.size, offsets):
        if file.at(offset, len(SIGNATURE)) == SIGNATURE:
            return offset
    raise Malformed("it has no HDF5 signature")
