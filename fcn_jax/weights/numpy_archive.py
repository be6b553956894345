"""NumPy's own files: `.npz`, a zip archive of arrays, and `.npy`, one array, which is called `arr_0` as in an archive.

Source: the docstring of numpy.lib.format. An array's header is the text of a Python dictionary; it is matched against
the only form that plain numbers have, so nothing in it is evaluated and no pickle is ever loaded. An array in Fortran
order comes back as a transposed view, so that it needs no second copy.
"""

import re

import numpy as np

from fcn_jax.weights.files import Malformed, WeightFile
from fcn_jax.weights.raw_values import check_booleans
from fcn_jax.weights.zip_archive import EntryStream, entries

MAGIC = b"\x93NUMPY"
SUFFIX = ".npy"
_UNNAMED = "arr_0"
_LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}  # by version
_MAX_HEADER = 10_000  # as in NumPy

# Three items in any order; Python 2 wrote sizes with an L.
_ITEMS = (
    r"""["']descr["']\s*:\s*["'](?P<dtype>[^"']*)["']""",
    r"""["']fortran_order["']\s*:\s*(?P<fortran>True|False)""",
    r"""["']shape["']\s*:\s*\((?P<shape>(?:\s*\d{1,20}L?\s*,)*(?:\s*\d{1,20}L?)?\s*)\)""",
)
_HEADER = re.compile(r"\{\s*(?:(?:" + "|".join(_ITEMS) + r")\s*,?\s*){3}\}\s*", re.ASCII)
_DTYPE = re.compile(r"[<>|=]?(?:f[248]|[iu][1248]|b1)")


def parse(file: WeightFile) -> dict[str, np.ndarray]:
    """All arrays, named as an archive's members are without `.npy`, in the archive's order. Raises Malformed."""
    if file.size >= len(MAGIC) and file.at(0, len(MAGIC)) == MAGIC:
        return {_UNNAMED: _array(file, _Stream(file))}
    arrays = {}
    for name, entry in entries(file).items():
        if not name.endswith(SUFFIX):
            raise Malformed(f"member {name!r} is no {SUFFIX} array")
        stream = EntryStream(file, entry)
        name = name.removesuffix(SUFFIX)
        try:
            arrays[name] = _array(file, stream)
        except Malformed as fault:
            raise Malformed(f"array {name!r}: {fault}") from None
        stream.finish()
    if not arrays:
        raise Malformed("it holds no arrays")
    return arrays


class _Stream:
    """The bytes of a file from first to last, as of a member of an archive."""

    def __init__(self, file: WeightFile):
        self._file, self._position = file, 0

    @property
    def left(self) -> int:
        return self._file.size - self._position

    def take(self, size: int) -> bytes:
        self._position += size
        return self._file.at(self._position - size, size)

    def fill(self, array: np.ndarray) -> None:
        self._file.read_into(self._position, array)
        self._position += array.nbytes


def _array(file: WeightFile, stream: _Stream | EntryStream) -> np.ndarray:
    dtype, fortran, shape = _described(stream)
    size = file.nbytes(dtype, shape)
    if stream.left != size:
        raise Malformed(f"shape {shape} of {dtype.name} needs {size} bytes, and it holds {stream.left}")
    array = file.empty(dtype.newbyteorder("<"), shape[::-1] if fortran else shape)
    stream.fill(array)
    if dtype.byteorder == ">":
        array.byteswap(inplace=True)
    if dtype == np.bool_:
        check_booleans(array)
    return array.transpose() if fortran else array


def _described(stream: _Stream | EntryStream) -> tuple[np.dtype, bool, list[int]]:
    """What an array's header says: dtype, whether it is in Fortran order, shape."""
    start = stream.take(len(MAGIC) + 2)
    length_bytes = _LENGTH_BYTES.get(start[len(MAGIC) :])
    if not start.startswith(MAGIC) or length_bytes is None:
        raise Malformed(f"it begins with {start!r}, which no {SUFFIX} array does")
    length = int.from_bytes(stream.take(length_bytes), "little")
    if length > _MAX_HEADER:
        raise Malformed(f"its header claims {length} bytes, where {_MAX_HEADER} are the most")
    text = stream.take(length).decode("latin-1")
    match = _HEADER.fullmatch(text)
    if match is None or None in match.groups():
        raise Malformed(f"its header is not that of plain numbers: {text[:80]!r}")
    if match["dtype"].lstrip("|") == "O":
        raise Malformed("it holds Python objects (a pickle), which are never loaded")
    if not _DTYPE.fullmatch(match["dtype"]):
        raise Malformed(f"it is of dtype {match['dtype'][:20]!r}, which is not read")
    shape = [int(size) for size in re.findall(r"\d+", match["shape"])]
    return np.dtype(match["dtype"]), match["fortran"] == "True", shape
