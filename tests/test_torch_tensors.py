import math
import struct
from typing import Any

import numpy as np
import pytest
import torch_writer as writer
from hypothesis import given, settings
from hypothesis import strategies as st
from readers_under_fire import assert_lean, assert_same

from fcn_jax.weights import torch_tensors
from fcn_jax.weights.files import Malformed, WeightFile
from fcn_jax.weights.torch_checkpoint import parse

BIAS = np.array([0.5, -2.0], np.float32)


def read(data: bytes, max_bytes: int | None = None) -> dict[str, np.ndarray]:
    return parse(WeightFile.of(data, max_bytes))


def refused(data: bytes, fault: str) -> None:
    with pytest.raises(Malformed, match=fault) as error:
        read(data)
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000


@pytest.mark.parametrize("deflated", [False, True])
def test_files_of_big_endian_machines(deflated):
    storages = {"0": BIAS.astype(">f4").tobytes(), "1": (BIAS.view(np.uint32) >> 16).astype(">u2").tobytes()}
    storages["2"] = b"\x01\x00"
    tensors = {
        "x": writer.view(0, [2], count=2),
        "half": writer.tensor(writer.storage("1", 2, "torch.cuda.BFloat16Storage"), 0, [2]),
        "bool": writer.tensor(writer.storage("2", 2, "torch.BoolStorage"), 0, [2]),
    }
    data = writer.archive(writer.mapping(tensors), storages, byteorder=b"big", deflated=deflated)
    assert_same(read(data), {"x": BIAS, "half": BIAS, "bool": np.array([True, False])})


def test_strides_of_axes_with_one_element_say_nothing():
    found = read(writer.one(writer.view(0, [1, 4, 1], [0, 1, 7])))["x"]
    np.testing.assert_array_equal(found, np.arange(4, dtype=np.float32).reshape(1, 4, 1), strict=True)


def test_as_many_axes_as_are_allowed():
    assert read(writer.one(writer.view(0, [4] + [1] * 31)))["x"].shape == (4,) + (1,) * 31


@pytest.mark.parametrize("deflated", [False, True])
def test_views_that_skip_much_are_gathered_piece_by_piece(deflated):
    cube = np.arange(60 * 50 * 40, dtype=np.float32).reshape(60, 50, 40)
    stored = writer.storage("0", cube.size)
    views = {
        "thin": (cube[::30, ::2, ::7], [2, 25, 6], [60000, 80, 7], 0),
        "wide": (cube[:, 3:40, 1:].transpose(2, 0, 1), [39, 60, 37], [1, 2000, 40], 121),
        "rows": (cube.reshape(6, 20000)[::3, 5:], [2, 19995], [60000, 1], 5),
        "column": (cube.reshape(6, 20000)[:, 5], [6], [20000], 5),
    }
    top = {name: writer.tensor(stored, offset, sizes, strides) for name, (_, sizes, strides, offset) in views.items()}
    data = writer.archive(writer.mapping(top), {"0": cube.tobytes()}, deflated=deflated)
    assert_same(read(data), {name: array for name, (array, *_) in views.items()})


NO_VIEW = (b"K\x00", b")", b")", b"N", b"N")  # offset, sizes, strides and two things of no interest
NEGATED = (writer.storage("0", 4), *NO_VIEW, writer.mapping({"neg": b"\x88"}))
FLOAT8 = (writer.storage("0", 16, "torch.storage.UntypedStorage"), *NO_VIEW, writer.named("torch.float8_e5m2"))
REFUSED_TENSORS = [
    ("yet to be negated", writer.call("torch._utils._rebuild_tensor_v2", *NEGATED)),
    ("yet to be negated", writer.call("torch._utils._rebuild_tensor_v3", *FLOAT8, NEGATED[-1])),
    ("the dtype float8_e5m2", writer.call("torch._utils._rebuild_tensor_v3", *FLOAT8)),
    ("the dtype complex128", writer.view(0, [1], kind="ComplexDouble", count=1)),
    ("the dtype qint8", writer.view(0, [1], kind="QInt8", count=1)),
    ("it is quantised", writer.call("torch._utils._rebuild_qtensor")),
    ("it is sparse", writer.call("torch._utils._rebuild_sparse_tensor")),
    ("on the meta device and has no values", writer.call("torch._utils._rebuild_meta_tensor_no_storage")),
    ("needs the bytes up to 20 of 16", writer.view(0, [5])),
    ("needs the bytes up to 20 of 16", writer.view(1, [2, 2])),
    ("needs the bytes up to 20 of 16", writer.view(0, [2, 2], [3, 1])),
    ("needs the bytes up to 20 of 16", writer.view(5, [0])),
    ("strides repeat values", writer.view(0, [4, 2], [1, 0])),
    ("strides repeat values", writer.view(0, [2, 2], [1, 1])),
    ("strides repeat values", writer.view(0, [2, 3], [2, 1])),
    ("impossible", writer.view(-1, [1])),
    ("impossible", writer.view(0, [-1])),
    ("impossible", writer.view(0, [1], [-1])),
    ("impossible", writer.view(1 << 63, [1])),
    ("impossible", writer.view(0, [1 << 63])),
    ("2 sizes and 1 strides", writer.view(0, [2, 2], [1])),
    ("no tuple of 32 numbers", writer.view(0, [1] * 33)),
    ("needs the bytes up to", writer.view(0, [1 << 30] * 2, [1 << 30, 1])),
    ("a shape that no array can have", writer.view(0, [1 << 40] * 2, [1 << 40, 1])),
    ("a shape that no array can have", writer.view(0, [0, 1 << 62], [1, 1])),
    ("a shape that no array can have", writer.view(0, [1 << 62, 0], [1, 1])),
    ("data/1, are not in the archive", writer.tensor(writer.storage("1", 4), 0, [4])),
    ("data/../../etc, are not in the archive", writer.tensor(writer.storage("../../etc", 4), 0, [4])),
    ("has 16 bytes where 20 are declared", writer.view(0, [4], count=5)),
    ("has 16 bytes where 32 are declared", writer.view(0, [4], kind="Double")),
    ("a bool in it is neither 0 nor 1", writer.view(0, [16], kind="Bool", count=16)),
]


@pytest.mark.parametrize(("fault", "tensor"), REFUSED_TENSORS)
def test_tensors_that_cannot_be(fault, tensor):
    refused(writer.one(tensor), f"^tensor 'x': .*{fault}")


def test_sizes_are_a_tuple_of_integers():
    for odd in (b"]K\x01a", b"K\x04", writer.group(b"\x88"), writer.group(b"G" + struct.pack(">d", 1))):
        tensor = writer.call("torch._utils._rebuild_tensor", writer.storage("0", 4), b"K\x00", odd, odd)
        refused(writer.one(tensor), "tensor 'x': its (offset, )?sizes or strides are")


@st.composite
def views_of_an_array(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """An array, and a window of it with its axes in any order and a step along each."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    whole = np.arange(math.prod(sizes), dtype=np.int32).reshape(sizes)
    window = [slice(draw(st.integers(0, size - 1)), None, draw(st.integers(1, 3))) for size in sizes]
    return whole, whole[tuple(window)].transpose(draw(st.permutations(range(len(sizes)))))


@settings(deadline=None, max_examples=200)
@given(views_of_an_array(), st.sampled_from([1, 8, 64, 1 << 16]), st.booleans())
def test_any_view(arrays, piece, deflated):
    whole, window = arrays
    offset = (window.__array_interface__["data"][0] - whole.__array_interface__["data"][0]) // 4
    strides = [stride // 4 for stride in window.strides]
    tensor = writer.tensor(writer.storage("0", whole.size, "torch.IntStorage"), offset, window.shape, strides)
    data = writer.archive(writer.mapping({"x": tensor}), {"0": whole.tobytes()}, deflated=deflated)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_tensors, "_PIECE", piece)
        assert_same(read(data), {"x": window})


LARGE = np.arange(5 << 20, dtype=np.int32).reshape(5, -1)


@pytest.mark.parametrize(
    ("sizes", "strides", "kind", "declared"),
    [
        ([1 << 20, 5], [1, 1 << 20], "torch.IntStorage", 20 << 20),
        ([5, 1 << 19], [1 << 20, 2], "torch.IntStorage", 10 << 20),
        ([10 << 20], [1], "torch.BFloat16Storage", 40 << 20),
        ([5 << 20], [2], "torch.BFloat16Storage", 20 << 20),
    ],
    ids=["transposed", "skipping", "bfloat16", "bfloat16 skipping"],
)
def test_memory_of_large_views(sizes, strides, kind, declared):
    count = LARGE.nbytes // (2 if "BFloat16" in kind else 4)
    tensor = writer.tensor(writer.storage("0", count, kind), 0, sizes, strides)
    assert_lean(parse, writer.archive(writer.mapping({"x": tensor}), {"0": LARGE.tobytes()}), declared)


def test_shared_values_are_counted_for_each_tensor():
    data = writer.archive(writer.mapping({name: writer.view(0, [4]) for name in "abc"}), {"0": writer.FOUR})
    assert len(read(data, max_bytes=48)) == 3
    with pytest.raises(Malformed, match=r"tensor 'c': .*more than the 47 bytes"):
        read(data, max_bytes=47)


@pytest.mark.parametrize("deflated", [False, True])
def test_a_file_cannot_have_its_bytes_passed_over_again_and_again(deflated):
    values = np.random.default_rng(0).random(20_000, np.float32)  # which deflate hardly makes smaller
    stored = writer.storage("0", values.size)
    tensors = {f"x{index}": writer.tensor(stored, index, [2], [19_000]) for index in range(40)}
    data = writer.archive(writer.mapping(tensors), {"0": values.tobytes()}, deflated=deflated)
    refused(data, "tensor 'x[0-9]+': such tensors pass over more than 16 times")
    few = writer.archive(writer.mapping(dict(list(tensors.items())[:8])), {"0": values.tobytes()}, deflated=deflated)
    assert_same(read(few), {f"x{index}": values[[index, index + 19_000]] for index in range(8)})
