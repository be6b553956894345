"""What every reader of weight files must bear: cut files, flipped bits, and a watch on its memory."""

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np

from fcn_jax.weights.files import Malformed, WeightFile

Parse = Callable[[WeightFile], dict[str, np.ndarray]]


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """The same names in the same order, with the same values, shapes and dtypes."""
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, strict=True)


def parse_or_refuse(parse: Parse, data: bytes, max_bytes: int | None = None) -> dict[str, np.ndarray] | None:
    """What a reader gives, or None where it refuses as it may; any other error is the test's failure."""
    try:
        return parse(WeightFile.of(data, max_bytes))
    except Malformed as fault:
        assert str(fault) and "\n" not in str(fault)
        return None


def cuts(data: bytes) -> Iterator[bytes]:
    """A file cut short at every length."""
    return (data[:length] for length in range(len(data)))


def flips(data: bytes) -> Iterator[bytes]:
    """A file with each of its bits flipped once."""
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        yield bytes(flipped)


def peak_memory(work: Callable[[], object]) -> int:
    """The bytes that Python and NumPy held at once during the work."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def assert_lean(parse: Parse, data: bytes, declared: int) -> None:
    """A reader takes little more than the arrays need, and nothing where they are more than it may take."""
    file = WeightFile.of(data)
    found: list[dict[str, np.ndarray]] = []
    peak = peak_memory(lambda: found.append(parse(file)))
    assert sum(array.nbytes for array in found[0].values()) == declared
    assert peak < 1.3 * declared + (1 << 20)
    tight = WeightFile.of(data, declared - 1)
    assert peak_memory(lambda: _assert_refused(parse, tight)) < declared


def _assert_refused(parse: Parse, file: WeightFile) -> None:
    try:
        parse(file)
    except Malformed as fault:
        assert f"more than the {file.max_bytes:,} bytes" in str(fault)
    else:
        raise AssertionError("the cap was passed")
