"""Caffe's binary `NetParameter` (.caffemodel) to `{"layer.index": array}`, without Caffe and without protobuf.

Two generations are read: V1 (`layers`, field 2, until 2014) and V2 (`layer`, field 100). Only names and blobs matter
here; every other field, also the numbers that forks of Caffe reused for fields of their own, is passed over, and so are
gradients (`diff`). Arrays have the file's own layout: blob 0 is the weight `[out in k k]` (inner product `[out in]`,
deconvolution `[in out/group k k]`), blob 1 the bias. Blobs without a `shape` have the four legacy dimensions, `1 1 1 n`
for a bias; they are kept so.

Field numbers: src/caffe/proto/caffe.proto of BVLC Caffe.

A file holds no count of its layers: one cut exactly between two layers is a well-formed smaller file. The strict
transfer finds that, as missing names.
"""

import math
from collections.abc import Iterator

import numpy as np

from fcn_jax.weights.files import Malformed, WeightFile
from fcn_jax.weights.protobuf import BYTES, MAX_TEXT, VARINT, Numbers, Piece, extend_shape, fields, signed

# (layers within the net, name within the layer, blobs within the layer)
_V1_LAYERS, _V1_NAME, _V1_BLOBS = 2, 4, 6
_V2_LAYER, _V2_NAME, _V2_BLOBS = 100, 1, 7
# Within a blob: num, channels, height, width; float data; shape (with dim); double data.
_LEGACY_DIMENSIONS = (1, 2, 3, 4)
_DATA, _SHAPE, _DOUBLE_DATA = 5, 7, 8
_DIM = 1

_MAX_BLOBS = 1 << 16  # far beyond any net; bounds the objects made for a file of empty messages


def parse(file: WeightFile) -> dict[str, np.ndarray]:
    """All blobs of a caffemodel in the file's order. Raises Malformed for what is no whole caffemodel with weights."""
    blobs: dict[str, np.ndarray] = {}
    for layer, index, blob in _blobs(file):
        name = f"{layer}.{index}"
        if name in blobs:
            raise Malformed(f"two layers named {layer!r} hold weights")
        if len(blobs) == _MAX_BLOBS:
            raise Malformed(f"it holds more than {_MAX_BLOBS} blobs")
        blobs[name] = blob
    if not blobs:
        raise Malformed("no layer in it holds weights; is it a caffemodel?")
    return blobs


def _blobs(file: WeightFile) -> Iterator[tuple[str, int, np.ndarray]]:
    generations = set()
    for number, wire_type, value in fields(file, 0, file.size):
        if wire_type != BYTES or number not in (_V1_LAYERS, _V2_LAYER):
            continue
        generations.add(number)
        if len(generations) > 1:
            raise Malformed("it mixes `layers` (V1) and `layer` (V2)")
        assert isinstance(value, Piece)
        name_field, blobs_field = (_V1_NAME, _V1_BLOBS) if number == _V1_LAYERS else (_V2_NAME, _V2_BLOBS)
        yield from _blobs_of_layer(file, value, name_field, blobs_field)


def _blobs_of_layer(
    file: WeightFile, layer: Piece, name_field: int, blobs_field: int
) -> Iterator[tuple[str, int, np.ndarray]]:
    name, count = "", 0
    for number, wire_type, value in fields(file, layer.offset, layer.stop):
        if wire_type != BYTES:
            continue
        assert isinstance(value, Piece)
        if number == name_field:
            if value.size > MAX_TEXT:
                raise Malformed(f"the name of a layer has {value.size} bytes, more than {MAX_TEXT}")
            # Caffe does not check the encoding of names, so neither does this: what is no UTF-8 stays visible.
            name = file.at(*value).decode("utf-8", "backslashreplace")
        elif number == blobs_field:
            count += 1
            if count > _MAX_BLOBS:
                raise Malformed(f"layer {name!r} holds more than {_MAX_BLOBS} blobs")
    index = 0
    for number, wire_type, value in fields(file, layer.offset, layer.stop):
        if number == blobs_field and wire_type == BYTES:
            assert isinstance(value, Piece)
            try:
                yield name, index, _array(file, value)
            except Malformed as fault:
                raise Malformed(f"blob {index} of layer {name!r}: {fault}") from None
            index += 1


def _array(file: WeightFile, blob: Piece) -> np.ndarray:
    legacy: dict[int, int] = {}
    shape: list[int] = []
    floats, doubles = Numbers(_DATA, "<f4"), Numbers(_DOUBLE_DATA, "<f8")
    for number, wire_type, value in fields(file, blob.offset, blob.stop):
        if isinstance(value, int):
            if number in _LEGACY_DIMENSIONS:
                legacy[number] = signed(value)
        elif number == _SHAPE and wire_type == BYTES:
            for inner, inner_type, sizes in fields(file, value.offset, value.stop):
                if inner == _DIM and inner_type in (VARINT, BYTES):
                    extend_shape(file, shape, sizes)
        floats.see(number, wire_type, value)
        doubles.see(number, wire_type, value)
    if legacy:  # Caffe, too, lets the legacy dimensions win; an absent one has the default of its field, 0
        shape = [legacy.get(number, 0) for number in _LEGACY_DIMENSIONS]
    values = doubles if doubles.most else floats
    if any(size < 0 for size in shape) or math.prod(shape) != values.most:
        raise Malformed(f"shape {shape} does not fit its {values.most} values")
    if not values.most:
        raise Malformed("it holds no values")
    return values.array(file, blob, shape)
