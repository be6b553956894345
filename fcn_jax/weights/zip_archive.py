"""A zip archive of tensors: its directory, read with suspicion, and its members, unpacked into arrays.

Source: APPNOTE.TXT of PKWARE, sections 4.3 to 4.5. Stored and deflated members are read, also of zip64; nothing is ever
extracted to disk. A member's data does not lie where the directory says: the directory points to a local header, whose
own padding decides (torch fills it up, so that tensors are aligned).
"""

import dataclasses
import struct
import zlib

import numpy as np

from fcn_jax.weights.files import Malformed, WeightFile

STORED, DEFLATED = 0, 8

_END, _END64_LOCATOR, _END64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_MEMBER, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_END_BYTES, _MEMBER_BYTES, _LOCAL_BYTES = 22, 46, 30
_MAX_COMMENT = (1 << 16) - 1
_IN_ZIP64 = (1 << 32) - 1  # what stands for "see the zip64 field"
_ENCRYPTED = 1  # bit of a member's flags
_MAX_MEMBERS = 1 << 16  # far beyond any net; bounds the objects made for a file of empty members
_MAX_NAME = 1 << 12
_MAX_EXPANSION = 1032  # deflate's: 258 bytes out of two bits
_PIECE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Entry:
    """A member of an archive, whose packed bytes were seen to lie in the file."""

    name: str
    offset: int  # of the packed data
    compressed_size: int
    size: int
    method: int
    crc32: int

    @property
    def stop(self) -> int:
        """Where the packed data ends."""
        return self.offset + self.compressed_size


def entries(file: WeightFile) -> dict[str, Entry]:
    """The members of an archive by name, in the order of its directory. Raises Malformed."""
    count, position, end = _directory(file)
    if count > _MAX_MEMBERS:
        raise Malformed(f"it holds more than {_MAX_MEMBERS} members")
    if count * _MEMBER_BYTES > end - position:
        raise Malformed(f"its directory claims {count} members in {end - position} bytes")
    start = position
    found: dict[str, Entry] = {}
    spans = []
    for _ in range(count):
        entry, header, position = _member(file, position, end)
        if entry.name in found:
            raise Malformed(f"two members are named {entry.name!r}")
        found[entry.name] = entry
        spans.append((header, entry.stop, entry.name))
    if position != end:
        raise Malformed("its zip directory does not end with its last member")
    last = 0
    for header, stop, name in sorted(spans):
        if header < last or stop > start:
            raise Malformed(f"member {name!r} overlaps what lies beside it")
        last = stop
    return found


def read_entry_into(file: WeightFile, entry: Entry, array: np.ndarray, check: bool = True) -> None:
    """Fills an array (in C order, from `file.empty`) with a member's unpacked bytes, which must be as many.

    `check` compares the checksum; torch can be told to write none.
    """
    if entry.size != array.nbytes:
        raise Malformed(f"member {entry.name!r} has {entry.size} bytes where {array.nbytes} are needed")
    stream = EntryStream(file, entry)
    stream.fill(array)
    stream.finish(check)


def read_entry(file: WeightFile, entry: Entry, limit: int, check: bool = True) -> bytes:
    """A member's unpacked bytes, at most `limit` of them."""
    if entry.size > limit:
        raise Malformed(f"member {entry.name!r} has {entry.size} bytes where {limit} are the most")
    stream = EntryStream(file, entry)
    data = stream.take(entry.size)
    stream.finish(check)
    return data


class EntryStream:
    """A member's unpacked bytes from first to last, for those that hold a header and values."""

    def __init__(self, file: WeightFile, entry: Entry):
        self._file, self._entry = file, entry
        self._position = entry.offset
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == DEFLATED else None
        self._pending = b""  # packed bytes that were read and not yet unpacked
        self.left = entry.size  # bytes that are yet to be taken
        self._crc32 = 0

    def take(self, size: int) -> bytes:
        """The next bytes. For headers: values are read by `fill`."""
        data = bytearray(self._claimed(size))
        self._fill(np.frombuffer(data, np.uint8))
        return bytes(data)

    def fill(self, array: np.ndarray) -> None:
        """Fills an array in C order with the next bytes."""
        self._claimed(array.nbytes)
        self._fill(array.reshape(-1).view(np.uint8))

    def finish(self, check: bool = True) -> None:
        """To be called once all bytes were taken. Raises Malformed unless the member ends there, as its checksum."""
        assert not self.left
        if self._inflate is not None:
            if self._unpack(1):
                raise self._fault("unpacks to more than its size")
            if not self._inflate.eof or self._inflate.unused_data or self._position != self._entry.stop:
                raise self._fault("does not end where its packed bytes do")
        if check and self._crc32 != self._entry.crc32:
            raise self._fault("does not have its checksum")

    def _claimed(self, size: int) -> int:
        if size > self.left:
            raise self._fault(f"has {self._entry.size} bytes, too few for what it holds")
        self.left -= size
        return size

    def _fill(self, target: np.ndarray) -> None:
        position = 0
        while position < len(target):
            part = target[position : position + _PIECE]
            if self._inflate is None:
                self._file.read_into(self._position, part)
                self._position += len(part)
            else:
                piece = self._unpack(len(part))
                if not piece:
                    raise self._fault("unpacks to less than its size")
                part = part[: len(piece)]
                part[:] = np.frombuffer(piece, np.uint8)
            self._crc32 = zlib.crc32(part.data, self._crc32)
            position += len(part)

    def _unpack(self, most: int) -> bytes:
        """Some inflated bytes, or none where the packed ones end."""
        assert self._inflate is not None
        piece = b""
        while not piece and not self._inflate.eof:
            packed = self._pending
            if not packed:
                packed = self._file.at(self._position, min(_PIECE, self._entry.stop - self._position))
                self._position += len(packed)
            try:
                piece = self._inflate.decompress(packed, most)
            except zlib.error:
                raise self._fault("is no deflated data") from None
            self._pending = self._inflate.unconsumed_tail
            if not packed:
                break
        return piece

    def _fault(self, text: str) -> Malformed:
        return Malformed(f"member {self._entry.name!r} {text}")


def _directory(file: WeightFile) -> tuple[int, int, int]:
    """The number of members, and where their directory begins and ends."""
    tail_start = max(0, file.size - _END_BYTES - _MAX_COMMENT)
    tail = file.at(tail_start, file.size - tail_start)
    place = tail.rfind(_END)
    while place >= 0 and place + _END_BYTES + int.from_bytes(tail[place + 20 : place + 22], "little") != len(tail):
        place = tail.rfind(_END, 0, place)
    if place < 0:
        raise Malformed("it has no zip directory at its end")
    disk, first_disk, here, count, size, offset = struct.unpack_from("<4H2L", tail, place + 4)
    stop = tail_start + place
    if stop >= 20 and file.at(stop - 20, 4) == _END64_LOCATOR:
        stop = int.from_bytes(file.at(stop - 12, 8), "little")
        if file.at(stop, 4) != _END64:
            raise Malformed("its zip64 directory is not where it should be")
        disk, first_disk, here, count, size, offset = struct.unpack("<2L4Q", file.at(stop + 16, 40))
    if disk or first_disk or here != count:
        raise Malformed("it is a part of a zip archive in several files")
    if offset + size != stop:
        raise Malformed("its zip directory is not where it should be")
    return count, offset, stop


def _member(file: WeightFile, position: int, limit: int) -> tuple[Entry, int, int]:
    """A member, where its local header is, and where the directory goes on."""
    head = _within(file, position, _MEMBER_BYTES, limit)
    if not head.startswith(_MEMBER):
        raise Malformed("its zip directory is broken")
    flags, method, crc32, compressed_size, size, name_size, extra_size, comment_size, _, _, _, header = (
        struct.unpack_from("<2H4x3L5HLL", head, 8)
    )
    position += _MEMBER_BYTES
    if name_size > _MAX_NAME:
        raise Malformed(f"the name of a member has {name_size} bytes, more than {_MAX_NAME}")
    name_bytes = _within(file, position, name_size, limit)
    extra = _within(file, position + name_size, extra_size, limit)
    position += name_size + extra_size + comment_size
    try:
        name = name_bytes.decode()
    except UnicodeDecodeError:
        raise Malformed(f"the name of a member is no UTF-8: {name_bytes!r}") from None
    size, compressed_size, header = _wide(name, extra, [size, compressed_size, header])
    if flags & _ENCRYPTED:
        raise Malformed(f"member {name!r} is encrypted")
    if method not in (STORED, DEFLATED):
        raise Malformed(f"member {name!r} is packed by method {method}, where stored and deflated ones are read")
    local = file.at(header, _LOCAL_BYTES)
    local_name_size, local_extra_size = struct.unpack_from("<2H", local, 26)
    if not local.startswith(_LOCAL) or file.at(header + _LOCAL_BYTES, local_name_size) != name_bytes:
        raise Malformed(f"member {name!r} is not where the directory says")
    offset = header + _LOCAL_BYTES + local_name_size + local_extra_size
    if offset + compressed_size > file.size:
        raise Malformed(f"member {name!r} claims {compressed_size} bytes at {offset}, and the file has {file.size}")
    if method == STORED and size != compressed_size:
        raise Malformed(f"member {name!r} is stored and has two sizes, {size} and {compressed_size}")
    if size > _MAX_EXPANSION * compressed_size:
        raise Malformed(f"member {name!r} claims {size} bytes, more than {compressed_size} can unpack to")
    return Entry(name, offset, compressed_size, size, method, crc32), header, position


def _within(file: WeightFile, position: int, size: int, limit: int) -> bytes:
    if position + size > limit:
        raise Malformed("its zip directory is cut short")
    return file.at(position, size)


def _wide(name: str, extra: bytes, numbers: list[int]) -> list[int]:
    """Size, packed size and offset, with those that do not fit 32 bits taken from the zip64 field."""
    if _IN_ZIP64 not in numbers:
        return numbers
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        wide = extra[position + 4 : position + 4 + size]
        position += 4 + size
        if kind == 1 and len(wide) >= 8 * numbers.count(_IN_ZIP64):
            given = iter(struct.unpack_from(f"<{len(wide) // 8}Q", wide))
            return [next(given) if number == _IN_ZIP64 else number for number in numbers]
    raise Malformed(f"member {name!r} has no zip64 sizes")
