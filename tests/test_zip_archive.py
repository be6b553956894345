import dataclasses
import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from readers_under_fire import cuts, flips, peak_memory

from fcn_jax.weights import zip_archive
from fcn_jax.weights.files import Malformed, WeightFile
from fcn_jax.weights.zip_archive import entries, read_entry, read_entry_into

TEXT = b"some bytes that repeat, " * 20
WIDE = 0xFFFFFFFF


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@dataclasses.dataclass
class Member:
    """A member as its two headers tell it; what is not given is right."""

    name: bytes = b"a"
    data: bytes = TEXT
    method: int = 8
    packed: bytes | None = None
    size: int | None = None
    compressed_size: int | None = None
    crc32: int | None = None
    flags: int = 0
    local_name: bytes | None = None
    padding: bytes = b""
    zip64: bytes = b""
    offset: int | None = None


def archive(
    *members: Member, count: int | None = None, directory: bytes | None = None, comment: bytes = b"", **end: int
) -> bytes:
    """A small independent writer, which lies where it is told to."""
    body, listed = b"", b""
    for member in members:
        packed = (
            member.packed if member.packed is not None else deflated(member.data) if member.method == 8 else member.data
        )
        crc32 = zlib.crc32(member.data) if member.crc32 is None else member.crc32
        size = len(member.data) if member.size is None else member.size
        compressed_size = len(packed) if member.compressed_size is None else member.compressed_size
        offset = len(body) if member.offset is None else member.offset
        name = member.name if member.local_name is None else member.local_name
        # The sizes of a local header are not to be looked at: torch leaves them 0.
        body += struct.pack("<4s5H3L2H", b"PK\3\4", 20, 8, member.method, 0, 0, 0, 0, 0, len(name), len(member.padding))
        body += name + member.padding + packed
        listed += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, member.flags, member.method, 0, 0, crc32, compressed_size, size,
            len(member.name), len(member.zip64), 0, 0, 0, 0, offset,
        )  # fmt: skip
        listed += member.name + member.zip64
    listed = listed if directory is None else directory
    count = len(members) if count is None else count
    values = {"disk": 0, "first_disk": 0, "here": count, "count": count, "size": len(listed), "offset": len(body)} | end
    return body + listed + struct.pack("<4s4H2LH", b"PK\5\6", *values.values(), len(comment)) + comment


def wide(*numbers: int, kind: int = 1) -> bytes:
    return struct.pack(f"<2H{len(numbers)}Q", kind, 8 * len(numbers), *numbers)


def unpack(data: bytes, **options: bool) -> dict[str, bytes]:
    file = WeightFile.of(data)
    found = {}
    for name, entry in entries(file).items():
        array = file.empty("u1", [entry.size])
        read_entry_into(file, entry, array, **options)
        found[name] = array.tobytes()
        assert read_entry(file, entry, entry.size, **options) == found[name]
    return found


def test_reads_bytes_written_out_by_hand():
    data = bytes.fromhex(
        "504b0304 1400 0000 0000 0000 0000 43beb7e8 01000000 01000000 0100 0000 61 61"
        "504b0102 1400 1400 0000 0000 0000 0000 43beb7e8 01000000 01000000 0100 0000 0000"
        "0000 0000 00000000 00000000 61"
        "504b0506 0000 0000 0100 0100 2f000000 20000000 0000"
    )
    assert unpack(data) == {"a": b"a"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("streamed", [False, True])
def test_archives_of_the_standard_library(method, streamed):
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return not streamed  # a pipe's sizes stand behind the data

    stream = Pipe()
    large = np.random.default_rng(0).bytes(200_000) + bytes(200_000)
    with zipfile.ZipFile(stream, "w", method) as target:
        target.comment = b"a comment PK\5\6 with a signature in it, and with what follows"
        target.writestr("folder/a", TEXT)
        target.writestr("ä", b"")
        with target.open("large", "w", force_zip64=True) as member:
            member.write(large)
    assert unpack(stream.getvalue()) == {"folder/a": TEXT, "ä": b"", "large": large}


def test_the_local_header_decides_where_data_is():
    data = archive(Member(padding=bytes(37)), Member(b"b", method=0))
    assert unpack(data) == {"a": TEXT, "b": TEXT}
    assert entries(WeightFile.of(data))["a"].offset == 30 + 1 + 37


def test_zip64_sizes_and_directory():
    packed = deflated(TEXT)
    extra = wide(7, kind=9) + wide(len(TEXT), len(packed), 0)
    member = Member(zip64=extra, size=WIDE, compressed_size=WIDE, offset=WIDE)
    assert unpack(archive(member)) == {"a": TEXT}
    assert unpack(archive(dataclasses.replace(member, zip64=wide(len(packed)), size=None, offset=None))) == {"a": TEXT}
    data = archive(Member())
    assert unpack(in_zip64(data)) == {"a": TEXT}


def in_zip64(data: bytes, signature: bytes = b"PK\6\6", place: int | None = None) -> bytes:
    """The same archive with its counts in a directory of zip64."""
    disk, first_disk, here, count, size, offset = struct.unpack("<4H2L", data[-18:-2])
    body, place = data[:-22], len(data) - 22 if place is None else place
    end = struct.pack("<4sQ2H2L4Q", signature, 44, 45, 45, disk, first_disk, here, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, place, 1)
    return body + end + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, WIDE, WIDE, 0)


def test_no_members():
    assert entries(WeightFile.of(archive())) == {}


def test_checksums_may_be_ignored():
    data = archive(Member(crc32=0), Member(b"b", method=0, crc32=0))
    assert unpack(data, check=False) == {"a": TEXT, "b": TEXT}
    with pytest.raises(Malformed, match="member 'a' does not have its checksum"):
        unpack(data)


SIZE, PACKED = len(TEXT), len(deflated(TEXT))
FAULTS = {
    "it has no zip directory at its end": b"PK\3\4" + bytes(100),
    "it has no zip directory at its end ": archive(Member())[:-1],
    "it is a part of a zip archive in several files": archive(Member(), disk=1),
    "it is a part of a zip archive in several files ": archive(Member(), here=2),
    "its zip directory is not where it should be": archive(Member(), offset=3),
    "its zip directory is not where it should be ": b"before" + archive(Member()),
    "its zip64 directory is not where it should be": in_zip64(archive(Member()), signature=b"PK\6\5"),
    "are said to be there": in_zip64(archive(Member()), place=1 << 60),
    "its directory claims 3 members in": archive(Member(), count=3),
    "its zip directory is cut short": archive(Member(name=b"long" * 20), Member(b"b"), count=3),
    "its zip directory does not end with its last member": archive(Member(), Member(b"b"), count=1),
    "its zip directory is broken": archive(directory=bytes(46), count=1),
    "the name of a member has 5000 bytes": archive(Member(b"x" * 5000)),
    "two members are named 'a'": archive(Member(), Member()),
    r"no UTF-8: b'\\xff'": archive(Member(b"\xff")),
    "member 'a' is encrypted": archive(Member(flags=1)),
    "member 'a' is packed by method 12": archive(Member(method=12)),
    "member 'a' is not where the directory says": archive(Member(local_name=b"b")),
    "member 'b' is not where the directory says": archive(Member(), Member(b"b", offset=3)),
    "30 bytes at 65536 are said": archive(Member(offset=65536)),
    f"member 'a' claims 65536 bytes at 31, and the file has {len(archive(Member()))}": archive(
        Member(compressed_size=65536)
    ),
    f"member 'a' is stored and has two sizes, {SIZE} and 9": archive(Member(method=0, compressed_size=9)),
    f"member 'a' claims {1 << 20} bytes, more than {PACKED} can": archive(Member(size=1 << 20)),
    "member 'a' overlaps": archive(Member(compressed_size=PACKED + 40)),
    "member 'b' overlaps": archive(Member(compressed_size=PACKED + 1), Member(b"b")),
    "member 'a' has no zip64 sizes": archive(Member(size=WIDE)),
    "member 'a' has no zip64 sizes ": archive(Member(size=WIDE, zip64=wide(SIZE, kind=2))),
    "member 'a' has no zip64 sizes  ": archive(Member(size=WIDE, compressed_size=WIDE, zip64=wide(SIZE))),
    "member 'a' is no deflated data": archive(Member(packed=b"\xff" * 30)),
    "member 'a' unpacks to less than its size": archive(Member(size=SIZE + 1)),
    "member 'a' unpacks to less than its size ": archive(Member(packed=deflated(TEXT)[:-3])),
    "member 'a' unpacks to more than its size": archive(Member(size=SIZE - 1)),
    "member 'a' does not end where its packed bytes do": archive(Member(packed=deflated(TEXT) + b"x")),
    "member 'a' does not end where its packed bytes do ": archive(Member(data=b"", packed=b"\0\0\0\xff\xff")),
    "member 'a' does not have its checksum": archive(Member(crc32=7)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault):
    with pytest.raises(Malformed, match=fault.strip()) as error:
        unpack(FAULTS[fault])
    assert "\n" not in str(error.value)


def test_packed_bytes_that_end_where_a_piece_does():
    """What follows lies in a piece that nobody has to read, and is missed all the same."""
    data = bytes((1 << 16) - 5)
    packed = b"\1" + struct.pack("<2H", len(data), len(data) ^ 0xFFFF) + data  # one stored block
    assert len(packed) == zip_archive._PIECE
    assert unpack(archive(Member(data=data, packed=packed))) == {"a": data}
    with pytest.raises(Malformed, match="does not end where its packed bytes do"):
        unpack(archive(Member(data=data, packed=packed + b"x")))


def test_sizes_that_do_not_fit_what_is_asked_for():
    file = WeightFile.of(archive(Member()))
    entry = entries(file)["a"]
    with pytest.raises(Malformed, match=f"member 'a' has {SIZE} bytes where 4 are needed"):
        read_entry_into(file, entry, file.empty("f4", []))
    with pytest.raises(Malformed, match=f"member 'a' has {SIZE} bytes where {SIZE - 1} are the most"):
        read_entry(file, entry, SIZE - 1)
    stream = zip_archive.EntryStream(file, entry)
    assert stream.take(4) == TEXT[:4] and stream.left == SIZE - 4
    with pytest.raises(Malformed, match=f"member 'a' has {SIZE} bytes, too few for what it holds"):
        stream.take(SIZE)


def test_too_many_members(monkeypatch):
    monkeypatch.setattr(zip_archive, "_MAX_MEMBERS", 2)
    with pytest.raises(Malformed, match="it holds more than 2 members"):
        entries(WeightFile.of(archive(Member(), Member(b"b"), Member(b"c"))))


def refused(data: bytes) -> bool:
    try:
        return unpack(data) != {"a": TEXT, "b": TEXT}
    except Malformed:
        return True


SMALL = archive(Member(padding=b"xy"), Member(b"b", method=0))


@pytest.mark.parametrize("data", [SMALL, in_zip64(SMALL)], ids=["zip", "zip64"])
def test_truncated_and_flipped(data):
    assert not refused(data)
    assert all(refused(cut) for cut in cuts(data))
    for flipped in flips(data):
        refused(flipped)


def test_a_bomb_is_bounded_by_what_deflate_can_do():
    data = archive(Member(data=bytes(1 << 20)))
    assert len(data) < 2000
    file = WeightFile.of(data, max_bytes=1 << 20)
    entry = entries(file)["a"]
    assert peak_memory(lambda: read_entry_into(file, entry, file.empty("u1", [entry.size]))) < 1.3 * (1 << 20)
