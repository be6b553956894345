"""The initializers of an ONNX model, by name and without the `onnx` package, which holds a model two or three times.

Field numbers and data types: onnx/onnx.proto of the ONNX project. Values are raw bytes, or numbers in a field that
several types share (a float16 is a number of `int32_data`), or lie in a file beside the model. What a graph computes
from constants of its nodes is no initializer and is passed over; exporters may have renamed a net's parameters.
"""

import contextlib
import math

import numpy as np

from fcn_jax.weights.files import Malformed, WeightFile
from fcn_jax.weights.onnx_external import FilesBeside
from fcn_jax.weights.protobuf import BYTES, VARINT, Integers, Numbers, Piece, extend_shape, fields, text
from fcn_jax.weights.raw_values import empty, finished, read_values, stored_bytes, stored_part

# Within the model; within the graph; within a sparse tensor; within an entry of external data.
GRAPH = 7
_INITIALIZER, _SPARSE_INITIALIZER = 5, 15
_SPARSE_VALUES = 1
_KEY, _VALUE = 1, 2
# Within a tensor.
_DIMS, _DATA_TYPE, _SEGMENT, _NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 3, 8, 9, 13, 14
_FLOAT_DATA, _INT32_DATA, _INT64_DATA, _DOUBLE_DATA, _UINT64_DATA = 4, 5, 7, 10, 11
_BESIDE = 1  # the data location "external"

# Data type → its name, and the field of its numbers where they are not raw.
_TYPES = {
    1: ("float32", _FLOAT_DATA),
    2: ("uint8", _INT32_DATA),
    3: ("int8", _INT32_DATA),
    4: ("uint16", _INT32_DATA),
    5: ("int16", _INT32_DATA),
    6: ("int32", _INT32_DATA),
    7: ("int64", _INT64_DATA),
    9: ("bool", _INT32_DATA),
    10: ("float16", _INT32_DATA),
    11: ("float64", _DOUBLE_DATA),
    12: ("uint32", _UINT64_DATA),
    13: ("uint64", _UINT64_DATA),
    16: ("bfloat16", _INT32_DATA),
}
_UNREAD_TYPES = {8: "string", 14: "complex64", 15: "complex128", **dict.fromkeys((17, 18, 19, 20, 24), "float8")}
_MAX_TENSORS = 1 << 16  # far beyond any net; bounds the objects made for a file of empty messages


def parse(file: WeightFile) -> dict[str, np.ndarray]:
    """All initializers of a model in the file's order. Raises Malformed."""
    graph = _graph(file)
    arrays: dict[str, np.ndarray] = {}
    with contextlib.closing(FilesBeside(file.path)) as beside:
        for number, wire_type, value in fields(file, graph.offset, graph.stop):
            if wire_type != BYTES or number not in (_INITIALIZER, _SPARSE_INITIALIZER):
                continue
            assert isinstance(value, Piece)
            if number == _SPARSE_INITIALIZER:
                raise Malformed(f"tensor {_sparse_name(file, value)!r} is sparse, which is not read")
            try:
                tensor = _Tensor(file, value)
            except Malformed as fault:
                raise Malformed(f"initializer {len(arrays)}: {fault}") from None
            if not tensor.name:
                raise Malformed("an initializer has no name")
            if tensor.name in arrays:
                raise Malformed(f"two tensors are named {tensor.name!r}")
            if len(arrays) == _MAX_TENSORS:
                raise Malformed(f"it holds more than {_MAX_TENSORS} tensors")
            try:
                arrays[tensor.name] = tensor.array(beside)
            except Malformed as fault:
                raise Malformed(f"tensor {tensor.name!r}: {fault}") from None
    if not arrays:
        raise Malformed("its graph has no initializers, so it holds no weights by name")
    return arrays


def _graph(file: WeightFile) -> Piece:
    graph = None
    for number, _, value in fields(file, 0, file.size):
        if number == GRAPH and isinstance(value, Piece):
            if graph:
                raise Malformed("it has two graphs")
            graph = value
    if graph is None:
        raise Malformed("it has no graph")
    return graph


def _sparse_name(file: WeightFile, sparse: Piece) -> str:
    for number, wire_type, value in fields(file, sparse.offset, sparse.stop):
        if number == _SPARSE_VALUES and wire_type == BYTES:
            assert isinstance(value, Piece)
            return _Tensor(file, value).name
    return ""


class _Tensor:
    """A TensorProto: what its fields say, and on demand its array."""

    def __init__(self, file: WeightFile, message: Piece):
        self._file, self._message = file, message
        self.name = ""
        self._type = self._location = 0
        self._shape: list[int] = []
        self._raw: Piece | None = None
        self._external: dict[str, str] = {}
        self._is_segment = False
        self._runs = {
            _FLOAT_DATA: Numbers(_FLOAT_DATA, "<f4"),
            _INT32_DATA: Integers(_INT32_DATA),
            _INT64_DATA: Integers(_INT64_DATA),
            _DOUBLE_DATA: Numbers(_DOUBLE_DATA, "<f8"),
            _UINT64_DATA: Integers(_UINT64_DATA),
        }
        for number, wire_type, value in fields(file, message.offset, message.stop):
            if number in self._runs:
                self._runs[number].see(number, wire_type, value)
            elif number == _DIMS and wire_type in (VARINT, BYTES):
                extend_shape(file, self._shape, value)
            elif isinstance(value, int):
                self._see_number(number, value)
            elif wire_type == BYTES:
                self._see_bytes(number, value)

    def _see_number(self, number: int, value: int) -> None:
        if number == _DATA_TYPE:
            self._type = value
        elif number == _DATA_LOCATION:
            self._location = value

    def _see_bytes(self, number: int, value: Piece) -> None:
        if number == _NAME:
            self.name = text(self._file, value)
        elif number == _RAW_DATA:
            if self._raw:
                raise Malformed("it holds raw data twice")
            self._raw = value
        elif number == _EXTERNAL_DATA:
            entry = {
                field: text(self._file, piece)
                for field, wire_type, piece in fields(self._file, value.offset, value.stop)
                if field in (_KEY, _VALUE) and isinstance(piece, Piece)
            }
            if entry.get(_KEY) in ("location", "offset", "length"):
                self._external[entry[_KEY]] = entry.get(_VALUE, "")
        elif number == _SEGMENT:
            self._is_segment = True

    def array(self, beside: FilesBeside) -> np.ndarray:
        """The values, from wherever they lie."""
        if self._is_segment:
            raise Malformed("it is a segment of a tensor, which is not read")
        if self._type not in _TYPES:
            raise Malformed(f"its type is {_UNREAD_TYPES.get(self._type, f'number {self._type}')}, which is not read")
        kind, number = _TYPES[self._type]
        size = stored_bytes(kind, self._shape)
        held = {field for field, run in self._runs.items() if run.most}
        raw = self._raw if self._raw and self._raw.size else None
        if len(held) + (raw is not None) + (self._location == _BESIDE) > 1:
            raise Malformed("it holds values in two places")
        if self._location == _BESIDE:
            source, offset = beside.find(self._external, size)
            return read_values(self._file, offset, kind, self._shape, source)
        if self._location:
            raise Malformed(f"its values are in location {self._location}, which is unknown")
        if raw:
            if raw.size != size:
                raise Malformed(f"shape {self._shape} of {kind} needs {size} bytes, and it holds {raw.size}")
            return read_values(self._file, raw.offset, kind, self._shape)
        if held - {number}:
            raise Malformed(f"its values are in field {held.pop()}, where those of {kind} are in field {number}")
        run = self._runs[number]
        return self._integers(run, kind) if isinstance(run, Integers) else self._numbers(run)

    def _numbers(self, run: Numbers) -> np.ndarray:
        if run.most != math.prod(self._shape):
            raise Malformed(f"shape {self._shape} does not fit its {run.most} values")
        return run.array(self._file, self._message, self._shape)

    def _integers(self, run: Integers, kind: str) -> np.ndarray:
        count, position = math.prod(self._shape), 0
        if count > run.most:
            raise Malformed(f"shape {self._shape} does not fit its {run.most} bytes of values")
        array = empty(self._file, kind, self._shape)
        # What a type's numbers stand for: a half's bits, a bool's byte, or an integer itself.
        bits = stored_part(array, kind)
        bits = bits.view({"float16": np.uint16, "bool": np.uint8}.get(kind, bits.dtype))
        for values in run.values(self._file, self._message):
            if run.number == _INT32_DATA:
                values = values.astype(np.uint32).view(np.int32)
            elif run.number == _INT64_DATA:
                values = values.view(np.int64)
            if position + len(values) > count:
                raise Malformed(f"shape {self._shape} does not fit its values, which are more")
            if (values < np.iinfo(bits.dtype).min).any() or (values > np.iinfo(bits.dtype).max).any():
                raise Malformed(f"a value in it is no {kind}")
            bits[position : position + len(values)] = values
            position += len(values)
        if position != count:
            raise Malformed(f"shape {self._shape} does not fit its {position} values")
        return finished(array, kind)
