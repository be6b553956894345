import os
from pathlib import Path

import numpy as np
import pytest
from caffemodel_writer import float32, float64, message, number, varint
from hypothesis import given, settings
from hypothesis import strategies as st
from readers_under_fire import assert_lean, assert_same, cuts, flips, parse_or_refuse, peak_memory

from fcn_jax.errors import WeightFileError
from fcn_jax.weights import onnx_model, read
from fcn_jax.weights.files import Malformed, WeightFile

GOLDEN = Path(__file__).parent / "golden"
CODES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    "float64": 11, "uint32": 12, "uint64": 13, "bfloat16": 16,
}  # fmt: skip
KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)


def golden_values(kind: str) -> np.ndarray:
    """What tools/golden_weight_files.py puts into a tensor; bfloat16 is read as float32."""
    array = np.arange(6).reshape(2, 3)
    if kind == "bool":
        return array % 2 == 1
    return (array if kind.startswith("u") else array - 3).astype("float32" if kind == "bfloat16" else kind)


def tensor(name: str, kind: int | str, dims: list[int], *contents: bytes) -> bytes:
    code = CODES[kind] if isinstance(kind, str) else kind
    return b"".join([*(number(1, size) for size in dims), number(2, code), *contents, message(8, name.encode())])


def raw(name: str, array: np.ndarray) -> bytes:
    return tensor(name, array.dtype.name, list(array.shape), message(9, array.tobytes()))


def external(name: str, array: np.ndarray, **entries: object) -> bytes:
    pairs = [message(1, key.encode()) + message(2, str(value).encode()) for key, value in entries.items()]
    contents = [message(13, pair) for pair in pairs]
    return tensor(name, array.dtype.name, list(array.shape), *contents, number(14, 1))


def model(*tensors: bytes, field: int = 5) -> bytes:
    graph = message(2, b"a graph") + b"".join(message(field, content) for content in tensors)
    return number(1, 8) + message(2, b"a test") + message(7, graph) + message(8, number(2, 17))


def parse(data: bytes, max_bytes: int | None = None) -> dict[str, np.ndarray]:
    return onnx_model.parse(WeightFile.of(data, max_bytes))


def test_reads_bytes_written_out_by_hand():
    # ir_version 8, graph { initializer { dims: 2 data_type: FLOAT name: "w" raw_data: 1.0, -2.0 } }
    data = bytes.fromhex("0808 3a13 2a11 0802 1001 420177 4a08 0000803f000000c0")
    assert_same(parse(data), {"w": np.array([1.0, -2.0], np.float32)})


@pytest.mark.parametrize("name", ["raw", "numbers", "external"])
def test_files_of_the_package_are_read(name):
    wanted = {kind: golden_values(kind) for kind in ["bool", "bfloat16", "float16", "float32", "float64"]}
    wanted |= {f"{sign}int{bits}": golden_values(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}
    assert_same(read(GOLDEN / "onnx" / f"{name}.onnx"), wanted)


@pytest.mark.parametrize(
    ("kind", "field", "extremes"),
    [
        *((f"int{bits}", 5, [-(1 << bits - 1), (1 << bits - 1) - 1, -1]) for bits in (8, 16, 32)),
        ("uint8", 5, [0, 255, 128]),
        ("uint16", 5, [0, 65535, 300]),
        ("int64", 7, [-(1 << 63), (1 << 63) - 1, -1]),
        ("uint32", 11, [0, (1 << 32) - 1, 128]),
        ("uint64", 11, [0, (1 << 64) - 1, 128]),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_integers_of_every_width(kind, field, extremes, packed):
    if packed:
        values = message(field, b"".join(map(varint, extremes)))
    else:
        values = b"".join(number(field, value) for value in extremes)
    assert_same(parse(model(tensor("n", kind, [3], values))), {"n": np.array(extremes, kind)})


def test_runs_and_single_numbers_are_joined_in_order():
    values = (
        message(7, varint(1) + varint(-2)) + number(7, 300) + number(7, 4) + message(7, b"") + message(7, varint(5))
    )
    assert_same(parse(model(tensor("n", "int64", [5], values))), {"n": np.array([1, -2, 300, 4, 5])})
    values = message(4, np.array([1, 2], np.float32).tobytes()) + float32(4, 3)
    assert_same(parse(model(tensor("x", "float32", [3], values))), {"x": np.array([1, 2, 3], np.float32)})
    values = float64(10, 1 / 3) + message(10, np.array([2.0]).tobytes())
    assert_same(parse(model(tensor("x", "float64", [2], values))), {"x": np.array([1 / 3, 2])})


def test_a_negative_int32_of_five_bytes_is_read_as_protobuf_does():
    assert_same(parse(model(tensor("n", "int32", [1], number(5, (1 << 32) - 2)))), {"n": np.array([-2], np.int32)})


@pytest.mark.parametrize("packed", [True, False])
def test_more_numbers_than_are_decoded_at_a_time(packed):
    values = np.arange(-20_000, 20_000, dtype=np.int64)
    encoded = [varint(value) if packed else number(7, value) for value in values.tolist()]
    field = message(7, b"".join(encoded)) if packed else b"".join(encoded)
    assert_same(parse(model(tensor("n", "int64", [40_000], field))), {"n": values})


def test_bfloat16_is_widened_exactly():
    bits = np.arange(1 << 16, dtype=np.uint16)
    wanted = (bits.astype(np.uint32) << np.uint32(16)).reshape(256, 256)
    for values in (message(9, bits.tobytes()), message(5, b"".join(map(varint, bits.tolist())))):
        found = parse(model(tensor("x", "bfloat16", [256, 256], values)))["x"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found.view(np.uint32), wanted, strict=True)


def test_scalars_and_empty_tensors():
    data = model(raw("scalar", np.array(2.0)), tensor("roi", "float32", [0]), tensor("none", "int64", [2, 0]))
    assert_same(
        parse(data), {"scalar": np.array(2.0), "roi": np.zeros(0, np.float32), "none": np.zeros((2, 0), np.int64)}
    )


def test_unknown_fields_and_packed_dims_are_passed_over_and_read():
    content = message(1, b"\x02\x03") + tensor("w", "float32", [], message(9, KERNEL.tobytes()), message(12, b"text"))
    content += number(77, 1) + float64(78, 1.0) + number(9, 3) + number(13, 1)
    data = number(99, 3) + model(content) + message(20, b"training")
    assert_same(parse(data), {"w": KERNEL})


FAULTS = {
    "it has no graph": number(1, 8) + message(2, b"a test"),
    "it has two graphs": model(raw("w", KERNEL)) * 2,
    "its graph has no initializers": model(),
    "an initializer has no name": model(raw("", KERNEL)),
    "two tensors are named 'w'": model(raw("w", KERNEL), raw("w", KERNEL)),
    "tensor 'w' is sparse": model(message(2, b"") + message(1, raw("w", KERNEL)), field=15),
    "tensor '' is sparse": model(number(3, 1), field=15),
    r"a name that is no UTF-8: b'\\xff'": model(message(8, b"\xff")),
    "a name of 5000 bytes": model(message(8, bytes(5000))),
    "field 7 claims": model(raw("w", KERNEL))[:-8],
    "tensor 'w': its type is string": model(tensor("w", 8, [1], message(6, b"text"))),
    "tensor 'w': its type is complex64": model(tensor("w", 14, [1], message(9, bytes(8)))),
    "tensor 'w': its type is float8": model(tensor("w", 17, [1], message(9, bytes(1)))),
    "tensor 'w': its type is number 22": model(tensor("w", 22, [1], message(9, bytes(1)))),
    "it is a segment of a tensor": model(tensor("w", "float32", [1], message(3, b""), message(9, bytes(4)))),
    r"shape \[2, 3\] of float32 needs 24 bytes, and it holds 20": model(
        tensor("w", "float32", [2, 3], message(9, bytes(20)))
    ),
    "needs 24 bytes, and it holds 28": model(tensor("w", "float32", [2, 3], message(9, bytes(28)))),
    r"shape \[2, 3\] does not fit its 5 values": model(tensor("w", "float32", [2, 3], message(4, bytes(20)))),
    r"negative size: \[-1\]": model(tensor("w", "float32", [-1], message(9, bytes(4)))),
    "initializer 0: a shape of more than 32 axes": model(tensor("w", "float32", [1] * 33, message(9, bytes(4)))),
    r"shape \[1099511627776\] does not fit its 2 bytes": model(tensor("w", "int64", [1 << 40], message(7, b"\1\2"))),
    r"shape \[2\] does not fit its values, which are more": model(tensor("w", "int64", [2], message(7, b"\1\2\3"))),
    r"shape \[3\] does not fit its 2 values": model(tensor("w", "int64", [3], message(7, b"\1\x80\2"))),
    r"shape \[2\] does not fit its 0 values": model(tensor("w", "float32", [2])),
    "it ends inside a number": model(tensor("w", "int64", [1], message(7, b"\x80"))),
    "a number is longer than 10 bytes": model(tensor("w", "int64", [1], message(7, b"\x80" * 11 + b"\1"))),
    "a value in it is no uint8": model(tensor("w", "uint8", [1], number(5, 256))),
    "a value in it is no int8": model(tensor("w", "int8", [1], number(5, -129))),
    "a value in it is no float16": model(tensor("w", "float16", [1], number(5, -1))),
    "a value in it is no bool": model(tensor("w", "bool", [1], number(5, 256))),
    "a bool in it is neither 0 nor 1 ": model(tensor("w", "bool", [1], number(5, 2))),
    "a value in it is no uint32": model(tensor("w", "uint32", [1], number(11, 1 << 32))),
    "a bool in it is neither 0 nor 1": model(tensor("w", "bool", [1], message(9, b"\x02"))),
    "3 bytes are no whole number of float32": model(tensor("w", "float32", [1], message(4, b"abc"))),
    "it holds values in two places": model(tensor("w", "float32", [1], message(9, bytes(4)), float32(4, 1))),
    "it holds values in two places ": model(tensor("w", "float32", [1], message(9, bytes(4)), number(14, 1))),
    "holds raw data twice": model(tensor("w", "float32", [1], message(9, bytes(4)) * 2)),
    "its values are in field 7, where those of float32 are in field 4": model(
        tensor("w", "float32", [1], number(7, 1))
    ),
    "its values are in location 2": model(tensor("w", "float32", [1], number(14, 2))),
    "the model is not a file": model(external("w", KERNEL, location="w.bin")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault):
    with pytest.raises(Malformed, match=fault.strip()) as error:
        parse(FAULTS[fault])
    assert "\n" not in str(error.value)


def test_too_many_tensors(monkeypatch):
    monkeypatch.setattr(onnx_model, "_MAX_TENSORS", 2)
    assert len(parse(model(raw("a", KERNEL), raw("b", KERNEL)))) == 2
    with pytest.raises(Malformed, match="it holds more than 2 tensors"):
        parse(model(raw("a", KERNEL), raw("b", KERNEL), raw("c", KERNEL)))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with values for a model, and one outside."""
    (tmp_path / "net" / "inner").mkdir(parents=True)
    for index, path in enumerate(["net/w.bin", "net/inner/w.bin", "outside.bin"]):
        (tmp_path / path).write_bytes(bytes(8) + (KERNEL + index).tobytes() + b"rest")
    return tmp_path / "net"


def read_beside(folder: Path, *tensors: bytes, max_bytes: int | None = None) -> dict[str, np.ndarray]:
    (folder / "net.onnx").write_bytes(model(*tensors))
    return read(folder / "net.onnx", max_bytes)


def test_external_data(folder):
    (folder / "link.bin").symlink_to("inner/w.bin")
    tensors = [
        external("a", KERNEL, location="w.bin", offset=8, length=24, checksum="any"),
        external("b", KERNEL, location="inner/w.bin", offset=8),
        external("c", KERNEL, location=".//inner/w.bin", offset="08"),
        external("d", KERNEL, location="link.bin", offset=8),
        external("e", np.zeros(2, np.float32), location="link.bin"),
        raw("f", KERNEL),
    ]
    wanted = {"a": KERNEL, **dict.fromkeys("bcd", KERNEL + 1), "e": np.zeros(2, np.float32), "f": KERNEL}
    assert_same(read_beside(folder, *tensors), wanted)


def test_external_data_counts_against_the_cap(folder):
    tensors = [external(name, KERNEL, location="w.bin", offset=8) for name in "ab"]
    assert len(read_beside(folder, *tensors, max_bytes=48)) == 2
    with pytest.raises(WeightFileError, match="tensor 'b': its arrays need more than the 47 bytes"):
        read_beside(folder, *tensors, max_bytes=47)


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ({}, "'', which is no path within the folder of the model"),
        ({"location": "../outside.bin"}, "'../outside.bin', which is no path within"),
        ({"location": "inner/../w.bin"}, "no path within"),
        ({"location": "inner\\..\\..\\outside.bin"}, "no path within"),
        ({"location": "/dev/zero"}, "'/dev/zero', which is no path within"),
        ({"location": "C:\\w.bin"}, "no path within"),
        ({"location": "nothing.bin"}, "'nothing.bin' beside the model cannot be read: No such file"),
        ({"location": "w\0.bin"}, "beside the model cannot be read: no name of a file"),
        ({"location": "x" * 300}, "beside the model cannot be read: File name too long"),
        ({"location": "out.bin"}, "'out.bin', a link that leads out of the folder"),
        ({"location": "up/outside.bin"}, "a link that leads out of the folder"),
        ({"location": "zero"}, "a link that leads out of the folder"),
        ({"location": "circle"}, "beside the model cannot be read: Too many levels of symbolic links"),
        ({"location": "inner"}, "beside the model cannot be read: Is a directory"),
        ({"location": "pipe"}, "'pipe' beside the model is no regular file"),
        ({"location": "w.bin", "offset": 13}, "has 36 bytes, and it needs 37"),
        ({"location": "w.bin", "offset": -1}, "no offset or length '-1'"),
        ({"location": "w.bin", "offset": "1e1"}, "no offset or length '1e1'"),
        ({"location": "w.bin", "offset": "1" * 30}, "no offset or length '1111"),
        ({"location": "w.bin", "length": 23}, "it needs 24 bytes, and its external data has 23"),
    ],
)
def test_external_data_never_leaves_the_folder_or_the_file(folder, entries, fault):
    (folder / "out.bin").symlink_to("../outside.bin")
    (folder / "up").symlink_to("..")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
    with pytest.raises(WeightFileError, match=r"net\.onnx: not a whole ONNX model: tensor 'w': ") as error:
        read_beside(folder, external("w", KERNEL, **entries))
    assert fault in str(error.value) and "\n" not in str(error.value)


MIXED = model(
    raw("conv1.weight", KERNEL),
    tensor("half", "float16", [2], number(5, 15360), number(5, 0)),
    tensor("n", "int64", [2], message(7, varint(300) + varint(-1))),
    tensor("b", "bfloat16", [1], message(9, b"\x80\x3f")),
    tensor("ok", "bool", [1], message(9, b"\x01")),
)


def test_truncated_at_every_length():
    whole = parse(MIXED)
    assert len(whole) == 5
    # Behind the graph there is one more field, whose absence nobody can see.
    graph = len(MIXED) - len(message(8, number(2, 17)))
    for cut in cuts(MIXED):
        found = parse_or_refuse(onnx_model.parse, cut)
        assert (found is not None) == (len(cut) == graph)


def test_every_flipped_bit_is_refused_or_harmless():
    for flipped in flips(MIXED):
        found = parse_or_refuse(onnx_model.parse, flipped) or {}
        assert sum(array.nbytes for array in found.values()) < 8 * len(MIXED)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.integers(0, len(MIXED)), st.integers(0, 30))
def test_foreign_bytes_in_the_middle(inserted, position, dropped):
    parse_or_refuse(onnx_model.parse, MIXED[:position] + inserted + MIXED[position + dropped :])


def test_memory_is_that_of_the_arrays():
    values = np.arange(6 << 20, dtype=np.float32)
    assert_lean(onnx_model.parse, model(raw("w", values)), values.nbytes)
    halves = message(9, values.view(np.uint16).tobytes())
    assert_lean(onnx_model.parse, model(tensor("w", "bfloat16", [12 << 20], halves)), 2 * values.nbytes)
    numbers = message(7, varint(300) * (1 << 20))
    assert_lean(onnx_model.parse, model(tensor("w", "int64", [1 << 20], numbers)), 8 << 20)


def test_a_small_file_takes_little_memory():
    for data in (model(*[b""] * 400), model(tensor("w", "int64", [1 << 60], message(7, bytes(900))))):
        assert peak_memory(lambda data=data: parse_or_refuse(onnx_model.parse, data)) < 200_000


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_was_written_is_read(data):
    arrays = {}
    for name in data.draw(st.lists(st.text(min_size=1, max_size=5), unique=True, min_size=1, max_size=4)):
        kind = data.draw(st.sampled_from(sorted(set(CODES) - {"bfloat16"})))
        shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        arrays[name] = rng.integers(0, 2, shape).astype(kind)
    assert_same(parse(model(*(raw(name, array) for name, array in arrays.items()))), arrays)
