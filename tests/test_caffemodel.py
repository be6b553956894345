import caffemodel_writer as writer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readers_under_fire import assert_lean, assert_same, cuts, flips, parse_or_refuse, peak_memory

from fcn_jax.errors import WeightFileError
from fcn_jax.weights import caffemodel, read
from fcn_jax.weights.files import Malformed, WeightFile

KERNEL = np.arange(12, dtype=np.float32).reshape(2, 3, 2, 1)
BIAS = np.array([0.5, -2.0], np.float32)
BLOBS = {"conv1.0": KERNEL, "conv1.1": BIAS, "a.b/c.0": np.full((1, 1), 7, np.float32)}


def parse(data: bytes) -> dict[str, np.ndarray]:
    return caffemodel.parse(WeightFile.of(data))


def layer(*blobs: bytes, name: bytes = b"conv1") -> bytes:
    return writer.message(100, writer.message(1, name) + b"".join(writer.message(7, blob) for blob in blobs))


def floats(*values: float) -> bytes:
    return writer.message(5, np.array(values, np.float32).tobytes())


def test_reads_bytes_written_out_by_hand():
    # layer { name: "ip" blobs { shape { dim: 1 dim: 2 } data: [1.0, -2.0] } }
    data = bytes.fromhex("a20616 0a026970 3a10 3a040a020102 2a080000803f000000c0")
    assert_same(parse(data), {"ip.0": np.array([[1.0, -2.0]], np.float32)})


@pytest.mark.parametrize("packed", [True, False])
def test_v2_keeps_names_order_and_layout(packed):
    assert_same(parse(writer.net(BLOBS, packed=packed)), BLOBS)


@pytest.mark.parametrize("packed", [True, False])
def test_v1_keeps_legacy_dimensions(packed):
    found = parse(writer.net(BLOBS, v1=True, packed=packed))
    wanted = {"conv1.0": KERNEL, "conv1.1": BIAS.reshape(1, 1, 1, 2), "a.b/c.0": np.full((1, 1, 1, 1), 7, np.float32)}
    assert_same(found, wanted)


@pytest.mark.parametrize("packed", [True, False])
def test_double_data_stays_double(packed):
    blobs = {"conv1.0": np.array([1 / 3, 2.0])}
    assert_same(parse(writer.net(blobs, packed=packed)), blobs)


def test_pieces_of_data_are_joined_in_order():
    pieces = floats(1, 2) + writer.float32(5, 3.0) + writer.message(5, b"")
    pieces += floats(4)
    assert_same(parse(layer(writer.shape([4]) + pieces)), {"conv1.0": np.array([1, 2, 3, 4], np.float32)})


def test_a_shape_without_axes_is_a_scalar():
    assert_same(parse(layer(writer.blob(np.array(3.0, np.float32)))), {"conv1.0": np.array(3.0, np.float32)})


def test_legacy_dimensions_win_over_a_shape_as_in_caffe():
    legacy = writer.number(1, 1) + writer.number(2, 1) + writer.number(3, 2) + writer.number(4, 3)
    data = writer.shape([6]) + legacy + writer.message(5, np.zeros(6, "<f4").tobytes())
    assert parse(layer(data))["conv1.0"].shape == (1, 1, 2, 3)


def test_double_data_wins_over_data_as_in_caffe():
    data = layer(writer.shape([1]) + floats(1) + writer.float64(8, 2.0))
    assert_same(parse(data), {"conv1.0": np.array([2.0])})


def test_unknown_fields_and_gradients_are_passed_over():
    odd = writer.number(55, 3) + writer.float64(56, 1.0) + writer.message(57, b"\xff\xff") + writer.float32(58, 1.0)
    odd += writer.message(1000, b"x")
    diff = writer.message(6, np.ones(2, "<f4").tobytes())
    content = writer.message(1, b"conv1") + odd + writer.message(7, odd + writer.blob(BIAS) + diff) + odd
    assert_same(parse(odd + writer.message(100, content) + odd), {"conv1.0": BIAS})


def test_layers_without_blobs_may_share_a_name():
    assert_same(parse(layer(name=b"data") * 2 + layer(writer.blob(BIAS))), {"conv1.0": BIAS})


def test_gradients_are_not_read():
    """They may be as large as the weights; a cap that the weights alone fill holds with them, too."""
    diff = writer.message(6, np.ones(2, "<f4").tobytes())
    file = WeightFile.of(layer(writer.blob(BIAS) + diff), max_bytes=BIAS.nbytes)
    assert_same(caffemodel.parse(file), {"conv1.0": BIAS})


def test_names_of_no_encoding_stay_visible():
    assert list(parse(layer(writer.blob(BIAS), name=b"conv\xff"))) == ["conv\\xff.0"]


def test_many_windows_of_keys():
    """Keys are read through small windows; numbers may lie across their borders."""
    blobs = {f"layer{index}.0": np.full(3, index, np.float32) for index in range(300)}
    assert_same(parse(writer.net(blobs)), blobs)
    assert_same(parse(writer.net(blobs, packed=False)), blobs)


FAULTS = {
    "no layer in it holds weights; is it": b"",
    "no layer in it holds weights": writer.message(1, b"a net"),
    "field 5 claims 100 bytes where 4 are left": layer(writer.shape([25]) + b"\x2a\x64" + bytes(4)),
    "field 100 claims": writer.net(BLOBS)[:-1],
    "claims 18446744073709551615 bytes": writer.varint(100 << 3 | 2) + writer.varint(-1) + b"abc",
    "it ends inside a number": b"\xa2",
    "a number is longer than 10 bytes": b"\xff" * 11,
    "field number 0 is not possible": b"\x02\x00",
    "wire type 3": writer.varint(9 << 3 | 3),
    r"blob 1 of layer 'conv1': shape \[3\] does not fit its 2": layer(
        writer.blob(BIAS), writer.shape([3]) + floats(1, 2)
    ),
    r"shape \[4294967296, 4294967296, 4294967296\]": layer(writer.shape([1 << 32] * 3) + floats(1)),
    r"shape \[-1, -1\]": layer(writer.shape([-1, -1]) + floats(1)),
    # Bits beyond the 64th are dropped, as protobuf does.
    r"shape \[-1\] does not fit": layer(writer.message(7, writer.message(1, b"\xff" * 9 + b"\x7f")) + floats(1)),
    "more than 32 axes": layer(writer.shape([1] * 33) + floats(1)),
    r"shape \[0, 2, 0, 0\]": layer(writer.number(2, 2) + floats(1, 2)),
    "it holds no values": layer(writer.shape([0])),
    "3 bytes are no whole number of float32": layer(writer.shape([1]) + writer.message(5, b"abc")),
    "two layers named 'conv1' hold weights": layer(writer.blob(BIAS)) * 2,
    "mixes `layers`": writer.net({"a.0": BIAS}, v1=True) + writer.net({"b.0": BIAS}),
    "more than 65536 blobs": layer(*[b""] * 65537),
    "name of a layer has 5000 bytes": layer(writer.blob(BIAS), name=bytes(5000)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault):
    with pytest.raises(Malformed, match=fault) as error:
        parse(FAULTS[fault])
    assert "\n" not in str(error.value)


def test_a_fault_names_its_file(tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(FAULTS["field 100 claims"])
    with pytest.raises(WeightFileError, match=r"net\.caffemodel: not a whole caffemodel: field 100 claims"):
        read(path)


def test_too_many_blobs_over_all(monkeypatch):
    monkeypatch.setattr(caffemodel, "_MAX_BLOBS", 3)
    assert len(parse(writer.net({f"{name}.0": BIAS for name in "abc"}))) == 3
    with pytest.raises(Malformed, match="it holds more than 3 blobs"):
        parse(writer.net({f"{name}.0": BIAS for name in "abcd"}))


def refused_or_bounded(data: bytes) -> dict[str, np.ndarray]:
    found = parse_or_refuse(caffemodel.parse, data) or {}
    assert all(array.size and array.nbytes <= len(data) for array in found.values())
    return found


@pytest.mark.parametrize("v1", [False, True])
def test_truncated_at_every_length(v1):
    data = writer.net(BLOBS, v1=v1)
    whole = parse(data)
    assert len(whole) == len(BLOBS)
    for cut in cuts(data):
        found = refused_or_bounded(cut)
        # Only a cut between two layers leaves a readable file, which holds fewer names and nothing else.
        assert len(found) < len(whole)
        assert_same(found, {name: whole[name] for name in found})


@pytest.mark.parametrize("packed", [True, False])
def test_every_flipped_bit_is_refused_or_harmless(packed):
    for flipped in flips(writer.net(BLOBS, packed=packed)):
        refused_or_bounded(flipped)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 200), st.integers(0, 30))
def test_foreign_bytes_in_the_middle(inserted, position, dropped):
    data = writer.net(BLOBS)
    refused_or_bounded(data[:position] + inserted + data[position + dropped :])


@pytest.mark.parametrize(
    "data",
    [
        layer(writer.shape([1 << 20]) + writer.float32(5, 1.0) * (1 << 16)),
        layer(writer.shape([1 << 40]) + floats(1)) + writer.message(9, bytes(1 << 18)),
        layer((writer.shape([1]) + floats(1)) * (1 << 15)),
    ],
    ids=["unpacked", "lying", "repeated"],
)
def test_memory_is_bounded_by_the_file(data):
    assert peak_memory(lambda: refused_or_bounded(data)) < 2 * len(data)


def test_memory_is_that_of_the_arrays():
    size = 6 << 20
    values = np.arange(size, dtype=np.float32)
    assert_lean(caffemodel.parse, layer(writer.blob(values)), values.nbytes)
    halves = [writer.message(5, half.tobytes()) for half in np.split(values, 2)]
    assert_lean(caffemodel.parse, layer(writer.shape([size]) + b"".join(halves)), values.nbytes)


def test_the_suffix_does_not_matter(tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(writer.net(BLOBS))
    assert_same(read(str(path)), BLOBS)
