"""Caffe's binary `NetParameter` (.caffemodel) to `{"layer.index": array}`, without Caffe and without protobuf.

Two generations are read: V1 (`layers`, field 2, until 2014) and V2 (`layer`, field 100). Only names and blobs matter
here; every other field, also the numbers that forks of Caffe reused for fields of their own, is passed over. Arrays
have the file's own layout: blob 0 is the weight `[out in k k]` (inner product `[out in]`, deconvolution
`[in out/group k k]`), blob 1 the bias. Blobs without a `shape` have the four legacy dimensions, `1 1 1 n` for a bias;
they are kept so.

Field numbers: src/caffe/proto/caffe.proto of BVLC Caffe.

A file holds no count of its layers: one cut exactly between two layers is a well-formed smaller file. The strict
transfer finds that, as missing names.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fcn_jax.errors import WeightFileError
from fcn_jax.weights.protobuf import BYTES, FIXED32, FIXED64, VARINT, Malformed, Numbers, fields, signed, varints

# (layers within the net, name within the layer, blobs within the layer)
_V1_LAYERS, _V1_NAME, _V1_BLOBS = 2, 4, 6
_V2_LAYER, _V2_NAME, _V2_BLOBS = 100, 1, 7
# Within a blob: num, channels, height, width; float data; shape (with dim); double data.
_LEGACY_DIMENSIONS = (1, 2, 3, 4)
_DATA, _SHAPE, _DOUBLE_DATA = 5, 7, 8
_DIM = 1

_MAX_AXES = 32  # kMaxBlobAxes of Caffe; NumPy stops at 64
_MAX_BLOBS = 1 << 16  # far beyond any net; bounds the objects made for a file of empty messages


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All blobs of a caffemodel in the file's order, as views into one read of the file.

    Raises WeightFileError, naming the file and the fault, for anything that is not a whole caffemodel with weights.
    """
    try:
        if not Path(path).is_file():
            raise WeightFileError(f"{path}: no such file")
        data = Path(path).read_bytes()
    except OSError as error:
        raise WeightFileError(f"{path}: cannot be read: {error.strerror}") from None
    return parse(data, str(path))


def parse(data: bytes, source: str) -> dict[str, np.ndarray]:
    """`read` for bytes at hand; `source` is what errors call them."""
    if not data:
        raise WeightFileError(f"{source}: the file is empty")
    blobs: dict[str, np.ndarray] = {}
    try:
        for layer, index, blob in _blobs(memoryview(data)):
            name = f"{layer}.{index}"
            if name in blobs:
                raise Malformed(f"two layers named {layer!r} hold weights")
            if len(blobs) == _MAX_BLOBS:
                raise Malformed(f"it holds more than {_MAX_BLOBS} blobs")
            blobs[name] = blob
    except Malformed as fault:
        raise WeightFileError(f"{source}: not a whole caffemodel: {fault}") from None
    if not blobs:
        raise WeightFileError(f"{source}: no layer in it holds weights; is it a caffemodel?")
    return blobs


def _blobs(net: memoryview) -> Iterator[tuple[str, int, np.ndarray]]:
    generations = set()
    for number, wire_type, value in fields(net):
        if wire_type != BYTES or number not in (_V1_LAYERS, _V2_LAYER):
            continue
        generations.add(number)
        if len(generations) > 1:
            raise Malformed("it mixes `layers` (V1) and `layer` (V2)")
        assert isinstance(value, memoryview)
        name_field, blobs_field = (_V1_NAME, _V1_BLOBS) if number == _V1_LAYERS else (_V2_NAME, _V2_BLOBS)
        yield from _blobs_of_layer(value, name_field, blobs_field)


def _blobs_of_layer(layer: memoryview, name_field: int, blobs_field: int) -> Iterator[tuple[str, int, np.ndarray]]:
    name, messages = "", []
    for number, wire_type, value in fields(layer):
        if wire_type == BYTES and number == name_field:
            # Caffe does not check the encoding of names, so neither does this: what is no UTF-8 stays visible.
            name = bytes(value).decode("utf-8", "backslashreplace")
        elif wire_type == BYTES and number == blobs_field:
            messages.append(value)
            if len(messages) > _MAX_BLOBS:
                raise Malformed(f"layer {name!r} holds more than {_MAX_BLOBS} blobs")
    for index, message in enumerate(messages):
        try:
            yield name, index, _array(message)
        except Malformed as fault:
            raise Malformed(f"blob {index} of layer {name!r}: {fault}") from None


def _array(blob: memoryview) -> np.ndarray:
    legacy: dict[int, int] = {}
    shape: list[int] = []
    floats, doubles = Numbers("<f4"), Numbers("<f8")
    for number, wire_type, value in fields(blob):
        if isinstance(value, int):
            if number in _LEGACY_DIMENSIONS:
                legacy[number] = signed(value)
        elif number == _DATA and wire_type in (BYTES, FIXED32):
            floats.append(value)
        elif number == _DOUBLE_DATA and wire_type in (BYTES, FIXED64):
            doubles.append(value)
        elif number == _SHAPE and wire_type == BYTES:
            _extend_shape(shape, value)
    if legacy:  # Caffe, too, lets the legacy dimensions win; an absent one has the default of its field, 0
        shape = [legacy.get(number, 0) for number in _LEGACY_DIMENSIONS]
    values = (doubles if len(doubles) else floats).array()
    if any(size < 0 for size in shape) or math.prod(shape) != len(values):
        raise Malformed(f"shape {shape} does not fit its {len(values)} values")
    if not len(values):
        raise Malformed("it holds no values")
    return values.reshape(shape)


def _extend_shape(shape: list[int], message: memoryview) -> None:
    for number, wire_type, value in fields(message):
        if number != _DIM or wire_type not in (VARINT, BYTES):
            continue
        for size in [value] if isinstance(value, int) else varints(value):
            if len(shape) == _MAX_AXES:
                raise Malformed(f"a shape of more than {_MAX_AXES} axes")
            shape.append(signed(size))
