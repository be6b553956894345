import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from readers_under_fire import assert_lean, assert_same, cuts, flips, parse_or_refuse, peak_memory

from fcn_jax.errors import WeightFileError
from fcn_jax.weights import numpy_archive, read
from fcn_jax.weights.files import Malformed, WeightFile

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)
KINDS = [
    "float16",
    "float32",
    "float64",
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
]


def npz(arrays: Mapping[str, np.ndarray], packed: bool = False) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(stream, allow_pickle=True, **arrays)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def headed(header: str, values: bytes = b"", version: int = 1) -> bytes:
    """A .npy file of a header that is written as given."""
    text = header.encode("latin-1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<L", len(text)) + text + values


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def parse(data: bytes) -> dict[str, np.ndarray]:
    return numpy_archive.parse(WeightFile.of(data))


def test_reads_bytes_written_out_by_hand():
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }" + b" " * 12 + b"\n"
    data = bytes.fromhex("934e554d5059 0100 4600") + header + bytes.fromhex("0000803f000000c0")
    assert_same(parse(data), {"arr_0": np.array([1.0, -2.0], np.float32)})


@pytest.mark.parametrize("packed", [False, True])
def test_archives_keep_names_order_and_dtypes(packed):
    arrays = {f"layer/{kind}.0": np.arange(6).reshape(2, 3).astype(kind) for kind in KINDS}
    arrays |= {"z": np.array(2.5), "a": np.zeros((0, 3), np.float32)}
    assert_same(parse(npz(arrays, packed)), arrays)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions(version):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, KERNEL, version)
    assert_same(parse(stream.getvalue()), {"arr_0": KERNEL})


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8", ">i2", ">u4", ">i8", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("packed", [False, True])
def test_any_byte_order_and_axis_order(dtype, order, packed):
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 5, dtype, order=order)
    found = parse(npz({"x": array}, packed))["x"]
    assert found.dtype.isnative and found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(found, array)
    assert_same(parse(npy(array)), {"arr_0": found})


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }",
        '{"shape":(2,3),"fortran_order":False,"descr":"=f4"}',
        "{ 'fortran_order' : False,\n'descr':'f4' , 'shape' : ( 2 , 3 , ) }   \n",
    ],
)
def test_headers_of_other_writers(header):
    assert_same(parse(headed(header, KERNEL.tobytes())), {"arr_0": KERNEL})


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
PLAIN = "its header is not that of plain numbers"
FAULTS = {
    "it begins with b'": headed(GOOD).replace(b"\1\0", b"\4\0", 1),
    "array 'a': it begins with b'": zipped({"a.npy": b"\x93NUMPX\1\0" + bytes(50)}),
    "its header claims 10001 bytes": headed(" " * 10001),
    "are said to be there": b"\x93NUMPY\1\0",
    "array 'a': member 'a.npy' has 10 bytes, too few": zipped({"a.npy": b"\x93NUMPY\1\0\x40\0"}),
    PLAIN: headed("{}"),
    PLAIN + ': "__import__': headed("__import__('os')"),
    PLAIN + " ": headed("{'descr': '<f4', 'descr': '<f4', 'shape': (2, 3)}"),
    PLAIN + "  ": headed("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'more': 1}"),
    PLAIN + "   ": headed("{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3)}"),
    PLAIN + "    ": headed("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
    PLAIN + "     ": headed("{'descr': '<f4', 'fortran_order': False, 'shape': [2, 3]}"),
    PLAIN + "      ": headed("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}"),
    PLAIN + "       ": headed("(" * 9000),
    "a shape of 33 axes": headed(GOOD.replace("2, 3", "1, " * 33)),
    r"shape \[2, 3\] of float32 needs 24 bytes, and it holds 23": headed(GOOD, bytes(23)),
    r"array 'a': shape \[2, 3\] of float32 needs 24 bytes, and it holds 25": zipped({"a.npy": headed(GOOD, bytes(25))}),
    r"needs 3999999999999999996 bytes": headed(GOOD.replace("2, 3", "9" * 18)),
    "a shape that no array can have": headed(GOOD.replace("2, 3", "0, " + "9" * 19)),
    "it is of dtype '<c8'": npy(np.zeros(1, np.complex64)),
    "it is of dtype '<U3'": npy(np.array(["abc"])),
    "it is of dtype '<M8": npy(np.zeros(1, "M8[s]")),
    r"it is of dtype '\|V2'": npy(np.zeros(1, "V2")),
    "array 'a': it holds Python objects": npz({"a": np.array([None])}),
    "a bool in it is neither": headed("{'descr': '|b1', 'fortran_order': False, 'shape': ()}", b"\2"),
    "it holds no arrays": npz({}),
    "member 'text' is no .npy array": zipped({"a.npy": npy(KERNEL), "text": b"x"}),
    "member 'a.npy' does not have its checksum": npz({"a": KERNEL}).replace(KERNEL.tobytes(), bytes(24)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault):
    with pytest.raises(Malformed, match=fault.strip()) as error:
        parse(FAULTS[fault])
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_pickle_is_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    np.savez(tmp_path / "trap.npz", a=np.array([Trap()]))
    with pytest.raises(
        WeightFileError, match=r"trap\.npz: not a whole file of NumPy arrays: array 'a': it holds Python"
    ):
        read(tmp_path / "trap.npz")
    assert not (tmp_path / "sprung").exists()


MIXED = {"w": KERNEL, "n": np.asfortranarray(np.arange(4).reshape(2, 2)), "ok": np.array(True)}


@pytest.mark.parametrize("packed", [False, True])
def test_truncated_and_flipped(packed):
    data = npz(MIXED, packed)
    assert len(parse(data)) == 3
    assert all(parse_or_refuse(numpy_archive.parse, cut) is None for cut in cuts(data))
    for flipped in flips(data):
        found = parse_or_refuse(numpy_archive.parse, flipped) or {}
        assert all(name not in MIXED or np.array_equal(array, MIXED[name]) for name, array in found.items())


def test_a_single_array_truncated_and_flipped():
    data = npy(KERNEL)
    assert all(parse_or_refuse(numpy_archive.parse, cut) is None for cut in cuts(data))
    for flipped in flips(data):
        parse_or_refuse(numpy_archive.parse, flipped)


@pytest.mark.parametrize("packed", [False, True])
def test_memory_is_that_of_the_arrays(packed):
    array = np.asfortranarray(np.zeros((5, 1 << 20), ">f4"))
    assert_lean(numpy_archive.parse, npz({"w": array}, packed), array.nbytes)
    assert_lean(numpy_archive.parse, npy(array), array.nbytes)


def test_a_small_file_takes_little_memory():
    bomb = zipped({"a.npy": headed(GOOD.replace("2, 3", "16384, 256"), bytes(1 << 24))}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    assert peak_memory(lambda: parse_or_refuse(numpy_archive.parse, bomb, max_bytes=1 << 20)) < 300_000


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z/.0-9é]{1,6}", fullmatch=True),
        numpy_strategies.arrays(
            st.sampled_from(KINDS), numpy_strategies.array_shapes(min_dims=0, min_side=0, max_side=4)
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_what_numpy_writes_is_read(arrays, packed):
    arrays.pop("file", None)
    assert_same(parse(npz(arrays, packed)), arrays)
