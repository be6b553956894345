import io
import math
import struct
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_writer as writer
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from readers_under_fire import assert_lean, assert_same, cuts, flips, parse_or_refuse, peak_memory

from fcn_jax.weights.files import Malformed, WeightFile, opened
from fcn_jax.weights.torch_checkpoint import parse

GOLDEN = Path(__file__).parent / "golden" / "torch"
KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1)
BIAS = np.array([0.5, -2.0], np.float32)
ARRAYS = {"conv.weight": KERNEL, "conv.bias": BIAS, "count": np.array(7, np.int64)}
X = writer.view(0, [4])
STATE = writer.mapping({"x": X})
FOUND = {"x": np.arange(4, dtype=np.float32)}  # what STATE is


def read(data: bytes, max_bytes: int | None = None) -> dict[str, np.ndarray]:
    return parse(WeightFile.of(data, max_bytes))


def golden(name: str) -> dict[str, np.ndarray]:
    with opened(GOLDEN / f"{name}.pth") as file:
        return parse(file)


def refused(data: bytes, fault: str) -> None:
    with pytest.raises(Malformed, match=fault) as error:
        read(data)
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000


def ramp(first: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    """What the tensors of the golden files hold; see tools/golden_torch.py."""
    values = np.arange(first, first + math.prod(shape)).reshape(shape)
    if dtype == np.bool_:
        return values % 2 == 1
    return (values / 4 if np.issubdtype(dtype, np.floating) else values).astype(dtype)


def zipped(top: bytes, more: Mapping[str, bytes] | None = None, **options: Any) -> bytes:
    """An archive with a storage "0" of four floats."""
    return writer.archive(top, {"0": writer.FOUR}, more, **options)


# What torch itself wrote.


@pytest.mark.parametrize("name", ["state", "state-legacy", "state-protocol4"])
def test_state_dicts_of_torch(name):
    shapes = {"0.weight": (2, 3, 3, 3), "0.bias": (2,), "1.weight": (2,), "1.bias": (2,)}
    shapes |= {"1.running_mean": (2,), "1.running_var": (2,)}
    wanted = {name: ramp(index, *shape) for index, (name, shape) in enumerate(shapes.items())}
    wanted["1.num_batches_tracked"] = ramp(6, dtype=np.int64)
    kinds = "float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool uint16 uint32 uint64"
    for index, kind in enumerate(kinds.split()):
        dtype = np.dtype("float32" if kind == "bfloat16" else kind)
        wanted[f"kinds.{kind}"] = ramp(index, 2, 3, dtype=dtype.type)
    wanted["scalar"] = ramp(6)
    wanted["empty"] = np.empty((0, 3), np.float32)
    assert_same(golden(name), wanted)


@pytest.mark.parametrize("name", ["views", "views-legacy"])
def test_views_of_torch(name):
    matrix = ramp(0, 4, 6)
    # The kernel's values count in C order, though its channels lie last in the file.
    wanted = {
        "matrix": matrix,
        "again": matrix,
        "transposed": matrix.T,
        "rows": matrix[1:3],
        "column": matrix[:, 2],
        "every_second": matrix[::2, 1::2].T,
        "one": matrix[3:, 5:],
        "channels_last": ramp(0, 2, 3, 2, 2),
        "parameter": ramp(40, 3),
        "buffer": ramp(50, 3),
        "halves": matrix[:, ::3],
    }
    found = golden(name)
    assert_same(found, wanted)
    for array in found.values():  # none is a window into another
        array[...] = -1
    assert not any(np.shares_memory(found["matrix"], found[other]) for other in wanted if other != "matrix")


@pytest.mark.parametrize("name", ["training", "training-legacy", "training-protocol5"])
def test_training_checkpoints_of_torch(name):
    assert_same(golden(name), {"weight": ramp(0, 3, 2, 1, 1), "bias": ramp(10, 3)})


def test_nested_dicts_of_torch():
    assert_same(golden("nested"), {"encoder.weight": ramp(0, 2), "heads.a.bias": ramp(5, 1)})


@pytest.mark.parametrize("name", ["state", "views", "training", "nested"])
def test_archives_of_torch_that_were_packed_anew(name):
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(GOLDEN / f"{name}.pth") as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in reversed(old.namelist()):
            new.writestr(member, old.read(member))
    assert_same(read(packed.getvalue()), golden(name))


def test_torchscript_is_refused_by_name():
    refused((GOLDEN / "script.pth").read_bytes(), r"it is a TorchScript archive; save the state_dict\(\)")


def test_tensors_of_other_sorts_are_refused_by_name():
    refused((GOLDEN / "unread.pth").read_bytes(), "tensor 'complex': it has the dtype complex64, which is not read")


# What was put together by hand.


def test_reads_bytes_written_out_by_hand():
    # {"x": torch.tensor([1., -2.])}, legacy, a pickle a line.
    data = bytes.fromhex(
        "80028a0a6cfc9c46f9206aa850192e"
        "80024de9032e"
        "80027d2e"
        "80027d58010000007863746f7263682e5f7574696c730a5f72656275696c645f74656e736f720a"
        "28285807000000" + b"storage".hex() + "63746f7263680a466c6f617453746f726167650a"
        "580100000037580300000063707"
        "54b024e74514b004b02854b01857452732e"
        "80025d580100000037612e"
        "0200000000000000"
        "0000803f000000c0"
    )
    assert_same(read(data), {"x": np.array([1.0, -2.0], np.float32)})


@pytest.mark.parametrize("form", [{}, {"deflated": True}, {"legacy": True}])
def test_keeps_names_order_and_layout(form):
    assert_same(read(writer.checkpoint(ARRAYS, **form)), ARRAYS)


def test_dicts_of_python_2_come_as_lists_of_items():
    pair = b"](" + b"U\x01a" + X + b"e"
    top = writer.call("collections.OrderedDict", b"](" + pair + b"e")
    assert_same(read(zipped(top)), {"a": np.arange(4, dtype=np.float32)})


def test_old_tensors_and_sizes():
    size = writer.call("torch.Size", writer.numbers([2, 2]))
    old = writer.call("torch._utils._rebuild_tensor", writer.storage("0", 4), b"K\x00", size, writer.numbers([2, 1]))
    assert_same(read(writer.one(old)), {"x": np.arange(4, dtype=np.float32).reshape(2, 2)})


def test_parameters_with_attributes_are_tensors():
    parameter = writer.call("torch._utils._rebuild_parameter_with_state", X, b"\x88", writer.NONE, b"}")
    assert read(writer.one(parameter))["x"].shape == (4,)


def test_files_from_before_the_byte_order_was_written():
    assert_same(read(writer.archive(writer.mapping({"x": X}), {"0": writer.FOUR}, byteorder=b"")), FOUND)


def test_checksums_that_torch_was_told_not_to_compute():
    data = bytearray(zipped(STATE))
    place = -1
    while (place := data.find(b"PK\x01\x02", place + 1)) >= 0:
        data[place + 16 : place + 20] = bytes(4)
    assert_same(read(bytes(data)), FOUND)


def test_what_no_tensor_uses_is_not_looked_at():
    top = writer.mapping({"x": X, "y": b"K\x01", "z": writer.group(writer.tensor(writer.storage("9", 1), 0, [1]))})
    assert_same(read(writer.archive(top, {"0": writer.FOUR, "5": b"?"})), FOUND)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_the_state_of_a_training_checkpoint_is_taken(key):
    rest = {"epoch": b"K\x01", "x": writer.view(1, [1]), "ema": writer.mapping({"x": writer.view(2, [1])})}
    top = {
        **rest,
        "net": writer.mapping({"x": writer.view(3, [1])}),
        key: writer.mapping({"y": X, "n": b"K\x01"}),
    }
    assert_same(read(zipped(writer.mapping(top))), {"y": np.arange(4, dtype=np.float32)})


def test_a_state_without_tensors_of_its_own_is_a_dict_like_others():
    top = writer.mapping({"model": writer.mapping({"encoder": writer.mapping({"x": X})})})
    assert list(read(zipped(top))) == ["model.encoder.x"]


def test_tensors_of_the_top_level_win_over_nested_ones():
    top = writer.mapping({"a": writer.mapping({"x": writer.view(0, [1])}), "y": X})
    assert list(read(zipped(top))) == ["y"]


def test_a_dict_without_tensors_may_be_met_twice():
    shared = writer.mapping({"lr": b"K\x01"}) + b"q\x05"
    top = writer.mapping({"a": shared, "b": b"h\x05", "c": writer.mapping({"x": X})})
    assert list(read(zipped(top))) == ["c.x"]


def test_dicts_that_share_dicts_are_passed_through_once():
    """A hundred million ways lead to the innermost of them."""
    shared = writer.mapping({"lr": b"K\x01"}) + b"q\x05"
    for _ in range(6):
        shared = writer.mapping({"0": shared, **{str(index): b"h\x05" for index in range(1, 22)}}) + b"q\x05"
    start = time.process_time()
    assert list(read(zipped(writer.mapping({"a": shared, "c": STATE})))) == ["c.x"]
    assert time.process_time() - start < 2


def test_bounds_that_are_just_met():
    deep = STATE
    for _ in range(8):
        deep = writer.mapping({"d": deep})
    assert list(read(zipped(deep))) == ["d." * 8 + "x"]
    assert list(read(zipped(writer.mapping({"a" * 512: X})))) == ["a" * 512]
    top = writer.mapping({"x": writer.tensor(writer.storage("0" * 64, 4), 0, [4])})
    assert_same(read(writer.archive(top, {"0" * 64: writer.FOUR})), FOUND)


def test_keys_that_are_no_text_name_nothing():
    top = b"}(K\x00" + writer.mapping({"x": writer.view(0, [1])}) + writer.text("a") + writer.mapping({"y": X}) + b"u"
    assert list(read(zipped(top))) == ["a.y"]


def test_storages_that_are_not_wanted_may_be_of_any_dtype():
    odd = writer.group(writer.tensor(writer.storage("1", 2, "torch.ComplexFloatStorage", True), 0, [2]))
    top = writer.mapping({"x": writer.tensor(writer.storage("0", 4, legacy=True), 0, [4]), "odd": odd})
    assert_same(read(writer.pickles(top, {"1": (2, bytes(16)), "0": (4, writer.FOUR)})), FOUND)


REFUSED_TOPS = [
    ("no dict of tensors", X),
    ("no dict of tensors", b"]" + X + b"a"),
    ("no tensors with names", b"}"),
    ("no tensors with names", writer.mapping({"x": b"K\x01"})),
    ("no tensors with names", b"}K\x01" + X + b"s"),
    (
        "two values are named 'x'",
        writer.mapping({"x": X}) + writer.text("x") + X + b"s",
    ),
    (
        "two tensors are named 'a.b.c'",
        writer.mapping(
            {
                "a": writer.mapping({"b": writer.mapping({"c": writer.view(0, [1])})}),
                "a.b": writer.mapping({"c": writer.view(0, [1])}),
            }
        ),
    ),
    (
        "the dict 'b' has tensors and is met a second time",
        writer.mapping({"a": writer.mapping({"x": writer.view(0, [1])}) + b"q\x09", "b": b"h\x09"}),
    ),
    ("the dict 'a' has tensors and is met", b"}q\x09" + writer.text("a") + b"h\x09s"),
    ("more than 8 deep", b"}" + (writer.text("a") + b"}") * 12 + b"s" * 12),
    ("a name has 513 characters", writer.mapping({"a" * 513: writer.view(0, [1])})),
    (r"a name is no UTF-8: b'\\xff'", b"}U\x01\xff" + writer.view(0, [1]) + b"s"),
    ("an item of a dict", writer.call("collections.OrderedDict", b"]K\x01a")),
    ("an item of a dict", writer.call("collections.OrderedDict", b"]" + writer.numbers([1, 2, 3]) + b"a")),
    ("wants to call torch.nn.modules.linear.Linear; only", writer.call("torch.nn.modules.linear.Linear")),
    ("refers to what is no storage", b"K\x01Q"),
    ("refers to what is no storage", writer.group(writer.text("module"), *[b"N"] * 4) + b"Q"),
    ("a part of another", writer.group(writer.text("storage"), *[b"N"] * 4, writer.numbers([1, 2, 3])) + b"Q"),
    ("without a class or a key", writer.storage("0", 4, "numpy.dtype")),
    ("without a class or a key", writer.group(writer.text("storage"), *[b"N"] * 4) + b"Q"),
    ("without a class or a key", writer.storage("0" * 65, 4)),
    ("an impossible size", writer.storage("0", -1)),
    ("an impossible size", writer.storage("0", 1 << 63)),
    ("a tensor without a storage", writer.call("torch._utils._rebuild_tensor_v2", b"N", *[b")"] * 3)),
    ("a tensor without a storage", writer.call("torch._utils._rebuild_tensor", writer.storage("0", 4))),
    (
        "a tensor without a dtype",
        writer.call("torch._utils._rebuild_tensor_v3", writer.storage("0", 4), *[b")"] * 5, b"N"),
    ),
    (
        "a tensor without a dtype",
        writer.call("torch._utils._rebuild_tensor_v3", writer.storage("0", 4), *[b")"] * 5, writer.named("torch.Size")),
    ),
    ("a parameter without a tensor", writer.call("torch._utils._rebuild_parameter", b"N")),
    ("a parameter without a tensor", writer.call("torch._utils._rebuild_parameter")),
    ("a class that is not read", writer.call("torch._tensor._rebuild_from_type_v2", b"N", b"N")),
    (
        "a class that is not read",
        writer.call("torch._tensor._rebuild_from_type_v2", writer.named("torch.Size"), b"N", b")"),
    ),
]


@pytest.mark.parametrize(("fault", "top"), REFUSED_TOPS)
def test_pickles_that_hold_no_state(fault, top):
    refused(zipped(top), fault)


REFUSED_ARCHIVES = [
    ("neither a zip archive nor a pickle", b"no checkpoint"),
    ("neither a zip archive nor a pickle", b"P"),
    ("neither a zip archive nor a pickle", bytes(600)),
    ("a tar archive of torch 0.1", bytes(257) + b"ustar\0" + bytes(1000)),
    ("no zip directory", b"PK\x03\x04" + bytes(100)),
    ("byte order is b'middle'", zipped(STATE, byteorder=b"middle")),
    ("'net/byteorder' has 7 bytes", zipped(STATE, byteorder=b"littler")),
    ("0 members <name>/data.pkl", zipped(STATE).replace(b"data.pkl", b"date.pkl")),
    ("2 members <name>/data.pkl", zipped(STATE, {"other/data.pkl": b""})),
    ("'net/../x' would lie outside", zipped(STATE, {"net/../x": b""})),
    ("'/etc' would lie outside", zipped(STATE, {"/etc": b""})),
    ("would lie outside", zipped(STATE, {"net\\x": b""})),
    ("TorchScript", zipped(STATE, {"net/constants.pkl": b""})),
    ("TorchScript", zipped(STATE, {"net/code/__torch__.py": b""})),
    ("3 bytes follow the end of its pickle", zipped(STATE + b".NN")),
    ("'net/data.pkl' has 200", zipped(STATE + b"N" * 200_000, {"0": writer.FOUR}, deflated=True)),
]


@pytest.mark.parametrize(("fault", "data"), REFUSED_ARCHIVES)
def test_archives_that_are_not_whole(fault, data):
    refused(data, fault)


def test_lies_in_the_directory():
    data = zipped(STATE)
    member = data.rindex(b"PK\x01\x02")
    assert data[member + 46 :].startswith(b"net/data/0")
    for place, value, fault in [
        (8, b"\x01\x00", "is encrypted"),
        (10, b"\x0c\x00", "packed by method 12"),
        (20, struct.pack("<L", 12), "has two sizes"),
        (20, struct.pack("<LL", 400, 400), "claims 400 bytes|overlaps"),
        (20, struct.pack("<LL", 12, 12), "12 bytes where 16 are declared"),
        (24, struct.pack("<L", 0xFFFFFFFF), "no zip64 sizes"),
        (42, struct.pack("<L", 0), "is not where the directory says"),
    ]:
        lying = data[: member + place] + value + data[member + place + len(value) :]
        refused(lying, fault)
    with pytest.warns(UserWarning, match="Duplicate"):
        doubled = zipped(STATE, {"net/data/0": writer.FOUR})
    refused(doubled, "two members are named 'net/data/0'")


def test_deflated_values_that_end_early_or_late():
    """The declared sizes hold and the stream does not."""
    for values, fault in [(bytes(8000), "less than its size"), (bytes(8008), "more than its size")]:
        data = bytearray(
            writer.archive(writer.mapping({"x": writer.view(0, [2001], count=2001)}), {"0": values}, deflated=True)
        )
        member = data.rindex(b"PK\x01\x02")
        data[member + 24 : member + 28] = struct.pack("<L", 8004)
        refused(bytes(data), f"tensor 'x': .*{fault}")


def legacy(top: bytes, **storages: tuple[int, bytes]) -> bytes:
    return writer.pickles(top, {key.removeprefix("s"): values for key, values in storages.items()})


LEGACY = writer.mapping({"x": writer.tensor(writer.storage("0", 4, legacy=True), 0, [4])})
WHOLE = legacy(LEGACY, s0=(4, writer.FOUR))
TWO = writer.mapping({"x": X, "y": writer.view(0, [2], kind="Double", count=2)})
REFUSED_PICKLES = [
    ("not one of torch.save", writer.pickled(STATE)),
    ("not one of torch.save", b"\x80"),
    ("its format is not 1001", WHOLE.replace(writer.number(1001), writer.number(1002))),
    (
        "its format is not 1001",
        WHOLE.replace(writer.number(0x1950A86A20F9469CFC6C), b"\x8a\x0bl\xfc\x9cF\xf9 j\xa8P\x19\x01"),
    ),
    ("larger than it may be", WHOLE.replace(writer.number(1001), b"N" * 5000 + writer.number(1001))),
    ("list of storages is broken", WHOLE.replace(b"](" + writer.text("0") + b"e.", b"}.")),
    ("list of storages is broken", WHOLE.replace(b"](" + writer.text("0") + b"e.", b"]K\x00a.")),
    ("list of storages is broken", WHOLE.replace(b"](" + writer.text("0"), b"](" + 2 * writer.text("0"))),
    ("does not list the storages", WHOLE.replace(b"](" + writer.text("0") + b"e.", b"].")),
    ("does not list the storages", legacy(LEGACY, s0=(4, writer.FOUR), s1=(4, writer.FOUR))),
    ("two storages have one key", legacy(TWO, s0=(4, writer.FOUR))),
    ("has 5 elements where 4 are declared", legacy(LEGACY, s0=(5, writer.FOUR))),
    ("end at .* and the file has", legacy(LEGACY, s0=(4, writer.FOUR[:12]))),
    ("end at .* and the file has", WHOLE + b"x"),
]


@pytest.mark.parametrize(("fault", "data"), REFUSED_PICKLES)
def test_pickles_that_are_not_whole(fault, data):
    assert list(read(WHOLE)) == ["x"]
    refused(data, fault)


# Under fire.

FORMS = [{}, {"deflated": True}, {"legacy": True}]


@pytest.mark.parametrize("form", FORMS)
def test_cut_at_every_length(form):
    data = writer.checkpoint(ARRAYS, **form)
    assert read(data)
    for cut in cuts(data):
        assert parse_or_refuse(parse, cut) is None


@pytest.mark.parametrize("name", ["views", "views-legacy", "training-protocol5"])
def test_golden_files_cut_at_every_length(name):
    for cut in cuts((GOLDEN / f"{name}.pth").read_bytes()):
        assert parse_or_refuse(parse, cut) is None


@pytest.mark.parametrize("form", FORMS)
def test_every_flipped_bit_is_refused_or_harmless(form):
    data = writer.checkpoint({"a": KERNEL, "b": BIAS.astype(np.float16)}, **form)
    for flipped in flips(data):
        assert size_of(parse_or_refuse(parse, flipped)) <= len(data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["views-legacy", "nested", "training-legacy"])
def test_every_flipped_bit_of_golden_files(name):
    data = (GOLDEN / f"{name}.pth").read_bytes()
    for flipped in flips(data):
        assert size_of(parse_or_refuse(parse, flipped)) <= len(data)


def size_of(arrays: dict[str, np.ndarray] | None) -> int:
    return sum(array.nbytes for array in (arrays or {}).values())


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 700), st.integers(0, 30), st.sampled_from(FORMS))
def test_foreign_bytes_in_the_middle(inserted, position, dropped, form):
    data = writer.checkpoint(ARRAYS, **form)
    parse_or_refuse(parse, data[:position] + inserted + data[position + dropped :])


DTYPES = st.sampled_from([np.dtype(kind) for kind in writer.STORAGES])
SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
STATES = st.dictionaries(st.text(min_size=1, max_size=20), arrays_of.arrays(DTYPES, SHAPES), min_size=1, max_size=4)


@settings(deadline=None)
@given(STATES, st.sampled_from(FORMS))
def test_any_state_dict(state, form):
    assert_same(read(writer.checkpoint(state, **form)), state)


@pytest.mark.parametrize("form", FORMS)
def test_memory_of_a_large_tensor(form):
    large = np.arange(5 << 20, dtype=np.int32).reshape(5, -1) % 1000
    assert_lean(parse, writer.checkpoint({"x": large}, **form), large.nbytes)


@pytest.mark.parametrize(
    "data",
    [
        zipped(writer.mapping({"x": writer.view(0, [1 << 40], count=1 << 40)})),
        writer.pickles(
            writer.mapping({"x": writer.tensor(writer.storage("0", 1 << 40, legacy=True), 0, [1 << 40])}),
            {"0": (1 << 40, writer.FOUR)},
        ),
        writer.archive(b"}" * 100_000 + b"N", {}, deflated=True),
        writer.archive(b"]" + b"}" * 500 + b"N", {}),
    ],
    ids=["storage", "legacy storage", "deflated pickle", "objects"],
)
def test_small_files_take_little(data):
    assert len(data) < 2000
    assert peak_memory(lambda: parse_or_refuse(parse, data)) < 300_000
