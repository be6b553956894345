import numpy as np
import pytest
from readers_under_fire import peak_memory

from fcn_jax.weights.files import Malformed, WeightFile
from fcn_jax.weights.raw_values import STORED, read_values, stored_bytes


@pytest.mark.parametrize("kind", sorted(set(STORED) - {"bfloat16"}))
def test_values_lie_one_after_the_other(kind):
    wanted = np.array([[0, 1, 1], [1, 0, 1]], kind)
    file = WeightFile.of(b"head" + wanted.tobytes() + b"tail")
    assert stored_bytes(kind, [2, 3]) == wanted.nbytes
    np.testing.assert_array_equal(read_values(file, 4, kind, [2, 3]), wanted, strict=True)


@pytest.mark.parametrize("count", [0, 1, 2, (1 << 15) - 1, 1 << 15, 100_001])
def test_bfloat16_is_widened_in_place(count):
    bits = np.random.default_rng(count).integers(0, 1 << 16, count, dtype=np.uint16)
    file = WeightFile.of(bits.tobytes())
    found = read_values(file, 0, "bfloat16", [count])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), bits.astype(np.uint32) << np.uint32(16), strict=True)
    assert peak_memory(lambda: read_values(file, 0, "bfloat16", [count])) < 4 * count + 400_000


def test_a_scalar_bfloat16():
    assert read_values(WeightFile.of(b"\xc0\x3f"), 0, "bfloat16", []) == np.array(1.5, np.float32)


def test_booleans_are_0_or_1():
    with pytest.raises(Malformed, match="neither 0 nor 1"):
        read_values(WeightFile.of(b"\0\1\2"), 0, "bool", [3])


@pytest.mark.parametrize(("offset", "shape"), [(0, [1 << 40]), (1, [2]), (-4, [1]), (1 << 70, [1])])
def test_nothing_is_made_before_its_bytes_are_there(offset, shape):
    file = WeightFile.of(bytes(8))
    with pytest.raises(Malformed, match=r"bytes at .* are said to be there, and there are 8"):
        read_values(file, offset, "float32", shape)


def test_values_of_another_file_count_against_the_cap_of_the_first():
    file, source = WeightFile.of(b"x", max_bytes=7), WeightFile.of(b"\1\0\0\0" * 2)
    assert read_values(file, 4, "int32", [], source) == 1
    with pytest.raises(Malformed, match="more than the 7 bytes"):
        read_values(file, 0, "int32", [], source)
