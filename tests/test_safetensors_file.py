import json
import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from readers_under_fire import assert_lean, assert_same, cuts, flips, parse_or_refuse, peak_memory

from fcn_jax.errors import WeightFileError
from fcn_jax.weights import read, safetensors_file
from fcn_jax.weights.files import Malformed, WeightFile

GOLDEN = Path(__file__).parent / "golden" / "safetensors" / "dtypes.safetensors"
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BOOL": "bool", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip
KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)


def framed(header: str | bytes, values: bytes = b"") -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return len(header).to_bytes(8, "little") + header + values


def one(values: bytes, **changes: object) -> bytes:
    """A file of one tensor, as a header with changes describes it; None leaves an entry out."""
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, len(values)]} | changes
    return framed(json.dumps({"w": {key: value for key, value in entry.items() if value is not None}}), values)


def file_of(arrays: Mapping[str, np.ndarray], **metadata: str) -> bytes:
    """A small independent writer."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    values = b""
    for name, array in arrays.items():
        offsets = [len(values), len(values) + array.nbytes]
        header[name] = {"dtype": codes[array.dtype.name], "shape": array.shape, "data_offsets": offsets}
        values += array.tobytes()
    return framed(json.dumps(header), values)


def parse(data: bytes) -> dict[str, np.ndarray]:
    return safetensors_file.parse(WeightFile.of(data))


def metadata(data: bytes) -> dict[str, str]:
    return safetensors_file.metadata(WeightFile.of(data))


def test_reads_bytes_written_out_by_hand():
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    data = bytes.fromhex("3600000000000000") + header + bytes.fromhex("0000803f000000c0")
    assert_same(parse(data), {"w": np.array([1.0, -2.0], np.float32)})
    assert metadata(data) == {}


def test_a_file_of_the_package_is_read():
    found = read(GOLDEN)
    assert set(found) == {*DTYPES.values(), "bfloat16", "scalar", "empty"}
    values = np.arange(6).reshape(2, 3)
    for kind in [*DTYPES.values(), "bfloat16"]:
        wanted = values % 2 == 1 if kind == "bool" else values if kind.startswith("u") else values - 3
        wanted = wanted.astype("float32" if kind == "bfloat16" else kind)
        np.testing.assert_array_equal(found[kind], wanted, strict=True)
    assert_same(
        {name: found[name] for name in ("scalar", "empty")},
        {"scalar": np.array(0.5, np.float32), "empty": np.zeros((0, 3), np.float32)},
    )
    assert metadata(GOLDEN.read_bytes()) == {"made by": "the package"}


def test_names_come_in_the_order_of_the_header_whatever_that_of_the_values():
    header = '{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    assert_same(parse(framed(header, b"\x07\x08")), {"b": np.array([8], np.uint8), "a": np.array([7], np.uint8)})


def test_spaces_escapes_and_unknown_keys():
    header = (
        ' { "__metadata__" : { "a\\"}{" : "{\\u00e9,\\n" , "b":"" } ,\n\t"\\u03b1\\\\" : '
        '{ "shape" : [ 1 ] , "data_offsets":[0,1],"dtype":"U8", "note":"}" } } \n '
    ).lstrip(" ")
    data = framed(header, b"\x07")
    assert_same(parse(data), {"α\\": np.array([7], np.uint8)})
    assert metadata(data) == {'a"}{': "{é,\n", "b": ""}


def test_bfloat16_is_widened_exactly():
    bits = np.arange(1 << 16, dtype=np.uint16)
    found = parse(one(bits.tobytes(), dtype="BF16", shape=[256, 256]))["w"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), (bits.astype(np.uint32) << np.uint32(16)).reshape(256, 256))


ENTRY = '"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
DESCRIBED = "tensor 'w' is described by"
FAULTS = {
    "8 bytes at 0 are said": bytes(7),
    "its header claims 100000001 bytes, where": (100_000_001).to_bytes(8, "little") + b"{",
    "its header claims 18446744073709551615 bytes": b"\xff" * 8 + b"{}",
    "its header claims 3 bytes, and the file has 10": (3).to_bytes(8, "little") + b"{}",
    "it holds no tensors": framed("{}"),
    "it holds no tensors ": framed('{"__metadata__":{"a":"b"}}'),
    "not the JSON that it should be at b''": framed(""),
    r"not the JSON that it should be at b'\['": framed("["),
    r"not the JSON that it should be at b' \{": framed(" {" + ENTRY + "}", b"x"),
    r"not the JSON that it should be at b'\{\"w\":": framed("{" + ENTRY, b"x"),
    "not the JSON that it should be at b',}'": framed("{" + ENTRY + ",}", b"x"),
    r"not the JSON that it should be at b'\{\"w\":3": framed('{"w":3}'),
    r"not the JSON that it should be at b'\{\"a\":\{\"b\":\{": framed('{"a":{"b":{}}}'),
    r"not the JSON that it should be at b'\{\"a\":1\}'": framed('{"__metadata__":{"a":1},' + ENTRY + "}", b"x"),
    "its header goes on behind its JSON with b'{}'": framed("{" + ENTRY + "}{}", b"x"),
    "two tensors are named 'w'": framed("{" + ENTRY + "," + ENTRY + "}", b"x"),
    "two tensors are named '__metadata__'": framed('{"__metadata__":{},"__metadata__":{},' + ENTRY + "}", b"x"),
    "two tensors are named 'a'": framed('{"__metadata__":{"a":"","a":""},' + ENTRY + "}", b"x"),
    r"no UTF-8 or wrongly escaped: b'\"\\xff\"'": framed(b'{"\xff":{}}'),
    r"no UTF-8 or wrongly escaped: b'\"\\\\ud800\"'": framed('{"\\ud800":{}}'),
    r"no UTF-8 or wrongly escaped: b'\"\\\\q\"'": framed('{"\\q":{}}'),
    "names longer than 4096 bytes": framed('{"' + "x" * 5000 + '":{}}'),
    DESCRIBED + r" b'\{\}'": framed('{"w":{}}'),
    DESCRIBED: framed('{"w":{"dtype":"F32"' + " " * 5000 + "}}"),
    DESCRIBED + " ": framed('{"w":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}', b"x"),
    DESCRIBED + "  ": framed('{"w":{"dtype":' + "[" * 2000 + "}}"),
    DESCRIBED + "   ": framed('{"w":{"dtype":' + "[" * 2000 + "]" * 2000 + "}}"),
    DESCRIBED + "    ": one(b"", shape=None),
    DESCRIBED + "     ": one(b"", data_offsets=[0]),
    DESCRIBED + "      ": one(b"", data_offsets=[0, 1, 2]),
    DESCRIBED + "       ": one(bytes(4), shape=4),
    DESCRIBED + "        ": one(bytes(4), shape=[True]),
    DESCRIBED + "         ": one(bytes(4), shape=[1.0]),
    DESCRIBED + "          ": one(bytes(4), shape=[-1]),
    DESCRIBED + "           ": one(bytes(4), shape=[1 << 63]),
    DESCRIBED + "            ": one(bytes(4), data_offsets=["0", "4"]),
    "tensor 'w' is of dtype 'F8_E4M3'": one(bytes(6), dtype="F8_E4M3"),
    "tensor 'w' is of dtype '3'": one(bytes(6), dtype=3),
    r"shape \[2, 3\] of float32 needs 24 bytes, and it has 20": one(bytes(20)),
    r"needs 24 bytes, and it has -24": one(bytes(24), data_offsets=[24, 0]),
    "tensor 'w': a shape of 33 axes": one(bytes(4), shape=[1] * 33),
    "tensor 'w' begins at byte 1 of the values, where 0 are before it": one(bytes(25), data_offsets=[1, 25]),
    "tensor 'b' begins at byte 0 of the values, where 1 are before it": framed(
        "{" + ENTRY.replace("w", "a") + "," + ENTRY.replace("w", "b") + "}", b"x"
    ),
    "its tensors take 24 bytes, and 25 follow": one(bytes(25), data_offsets=[0, 24]),
    "its tensors take 24 bytes, and 23 follow": one(bytes(23), data_offsets=[0, 24]),
    "tensor 'w': a bool in it is neither": one(b"\x02", dtype="BOOL", shape=[1]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault):
    with pytest.raises(Malformed, match=fault.strip()) as error:
        parse(FAULTS[fault])
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_too_many_tensors(monkeypatch):
    monkeypatch.setattr(safetensors_file, "_MAX_TENSORS", 2)
    assert len(parse(file_of({"a": KERNEL, "b": KERNEL}))) == 2
    with pytest.raises(Malformed, match="more than 2 of them"):
        parse(file_of({"a": KERNEL, "b": KERNEL, "c": KERNEL}))


MIXED = {
    "conv1.weight": KERNEL,
    "half": np.array([1, -2], np.float16),
    "ok": np.array(True),
    "n": np.zeros((0, 2), np.int64),
}


def test_truncated_at_every_length():
    data = file_of(MIXED, note="a text")
    assert_same(parse(data), MIXED)
    for cut in cuts(data):
        assert parse_or_refuse(safetensors_file.parse, cut) is None


def test_every_flipped_bit_is_refused_or_harmless():
    data = file_of(MIXED, note="a text")
    for flipped in flips(data):
        found = parse_or_refuse(safetensors_file.parse, flipped) or {}
        assert sum(array.nbytes for array in found.values()) < len(data)


def test_memory_is_that_of_the_arrays():
    values = np.arange(6 << 20, dtype=np.float32)
    assert_lean(safetensors_file.parse, file_of({"w": values}), values.nbytes)
    assert_lean(safetensors_file.parse, one(values.tobytes(), dtype="BF16", shape=[12 << 20]), 2 * values.nbytes)


@pytest.mark.parametrize(
    "text", ['{"w":{"dtype":[' + "[]," * 300_000, '{"' + "\\n" * 500_000, '{"w":{' + '"",' * 300_000, "{" * 900_000]
)
def test_a_bad_header_takes_no_more_memory_than_it_has_bytes(text):
    data = framed(text)
    assert peak_memory(lambda: parse_or_refuse(safetensors_file.parse, data)) < 1.5 * len(data)


def written(tmp_path: Path, arrays: Mapping[str, np.ndarray], texts: Mapping[str, str] | None = None) -> bytes:
    path = tmp_path / "net.safetensors"
    safetensors_file.write(path, arrays, texts or {})
    assert [name.name for name in tmp_path.iterdir()] == [path.name]
    return path.read_bytes()


def test_writes_bytes_that_are_known(tmp_path):
    data = written(tmp_path, {"w": np.array([1.0, -2.0], np.float32)}, {"a": "b"})
    header = b'{"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}' + b" " * 1
    assert data == framed(header, bytes.fromhex("0000803f000000c0")) and len(header) % 8 == 0


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        numpy_strategies.arrays(
            st.sampled_from(sorted(DTYPES.values())), numpy_strategies.array_shapes(min_dims=0, min_side=0, max_side=4)
        ),
        min_size=1,
        max_size=4,
    ),
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])), max_size=3
    ),
)
def test_what_was_written_is_read(tmp_path_factory, arrays, texts):
    folder = tmp_path_factory.mktemp("written")
    data = written(folder, arrays, texts)
    assert_same(parse(data), arrays)
    assert metadata(data) == texts


def test_any_layout_of_an_array_is_written_by_value(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {
        "transposed": values.T,
        "strided": values[:, ::-2],
        "big": values.astype(">f4"),
        "bf": np.array([1.5], ml_dtypes.bfloat16),
    }
    found = parse(written(tmp_path, arrays))
    assert_same(found, {name: array.astype(np.float32) for name, array in arrays.items()})


def test_wide_values_lie_in_front_so_that_all_are_aligned(tmp_path):
    arrays = {"a": np.zeros(3, np.uint8), "b": np.zeros(3, np.float64), "c": np.zeros(3, np.float16)}
    data = written(tmp_path, arrays)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert [entry["data_offsets"] for entry in header.values()] == [[30, 33], [0, 24], [24, 30]]


def test_what_stands_there_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    before = written(tmp_path, {"w": KERNEL})
    after = written(tmp_path, {"w": KERNEL + 1})
    assert before != after

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightFileError, match=r"net\.safetensors: cannot be written: No space left"):
        written(tmp_path, {"w": KERNEL})
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    assert (tmp_path / "net.safetensors").read_bytes() == after


def test_what_cannot_be_written_is_named(tmp_path):
    for arrays, fault in (
        ({"w": np.zeros(1, np.complex64)}, "'w' is complex64, which safetensors does not hold"),
        ({"__metadata__": KERNEL}, "no tensor can be named '__metadata__'"),
        ({"\ud800": KERNEL}, r"no tensor can be named '\\ud800'"),
    ):
        with pytest.raises(WeightFileError, match=fault):
            safetensors_file.write(tmp_path / "net.safetensors", arrays, {})
    with pytest.raises(WeightFileError, match="cannot be written: No such file"):
        safetensors_file.write(tmp_path / "nowhere" / "net.safetensors", {"w": KERNEL}, {})
    assert list(tmp_path.iterdir()) == []


def test_texts_that_are_no_unicode_are_written_escaped(tmp_path):
    data = written(tmp_path, {"ä": KERNEL}, {"source": os.fsdecode(b"net\xff.pth")})
    assert metadata(data) == {"source": "net\\udcff.pth"} and list(parse(data)) == ["ä"]


def test_writing_takes_little_memory(tmp_path):
    array = np.zeros((2048, 1024), np.float32).T
    assert peak_memory(lambda: safetensors_file.write(tmp_path / "w", {"w": array}, {})) < 2 << 20
