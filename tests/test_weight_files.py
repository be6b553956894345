"""What every reader stands on: nothing beyond the file's end, no array that the cap does not allow."""

import io

import numpy as np
import pytest

from fcn_jax.errors import WeightFileError
from fcn_jax.weights.files import Malformed, WeightFile, opened

DATA = bytes(range(64))


def test_bytes_and_arrays_by_offset():
    file = WeightFile.of(DATA)
    assert (file.size, file.at(60, 4)) == (64, DATA[60:])
    array = file.array(4, "<u2", (2, 3))
    np.testing.assert_array_equal(array, np.frombuffer(DATA[4:16], "<u2").reshape(2, 3))
    assert array.flags.owndata and array.flags.writeable
    scalar = file.array(8, "u1", ())
    assert scalar.shape == () and scalar == 8


@pytest.mark.parametrize(("offset", "size"), [(60, 5), (64, 1), (-1, 1), (0, -1), (1 << 63, 1)])
def test_nothing_beyond_the_end(offset, size):
    with pytest.raises(Malformed, match=rf"{size} bytes at {offset} are said to be there, and the file has 64"):
        WeightFile.of(DATA).at(offset, size)


@pytest.mark.parametrize(
    ("shape", "fault"),
    [
        ((17,), "68 bytes at 0 are said to be there"),
        ((2, -3), r"a negative size: \[2, -3\]"),
        ((1,) * 33, "a shape of 33 axes, where 32 are the most"),
        ((1 << 40, 1 << 40), "a shape that no array can have"),
        ((0, 1 << 62), "a shape that no array can have"),
    ],
)
def test_shapes_that_lie(shape, fault):
    with pytest.raises(Malformed, match=fault):
        WeightFile.of(DATA).array(0, "<f4", shape)


def test_the_cap_holds_for_all_arrays_together():
    file = WeightFile.of(DATA, max_bytes=40)
    file.array(0, "<f4", (5,))
    file.array(0, "<f4", (5,))
    with pytest.raises(Malformed, match="need more than the 40 bytes that are allowed"):
        file.array(0, "u1", (1,))


class Shrinking(io.BytesIO):
    """A file that loses its end while it is read."""

    def read(self, size=-1):
        return super().read(size)[:-1]

    def readinto(self, buffer):
        return 0


def test_a_file_that_is_cut_while_it_is_read():
    file = WeightFile(Shrinking(DATA))
    for read in (lambda: file.at(0, 4), lambda: file.array(0, "u1", (4,))):
        with pytest.raises(Malformed, match="it was cut short while it was read"):
            read()


def test_opening(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "net").write_bytes(DATA)
    for name, fault in (("nothing", "no such file"), (".", "is a folder, not a file"), ("empty", "the file is empty")):
        with pytest.raises(WeightFileError, match=fault), opened(tmp_path / name):
            pass
    with opened(str(tmp_path / "net")) as file:
        assert file.path == tmp_path / "net" and file.size == 64
