"""Datasets: from the messages of an HDF5 object to its array.

Source: HDF5 File Format Specification, version 3.0, section IV.A.2.i (layout). Values lie within the header, in one
stretch of the file, or in chunks. HDF5 makes room for values as late as it can: a dataset that was declared and never
written has none, and reads as zeros in other readers.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from fcn_jax.weights import raw_values
from fcn_jax.weights.files import Malformed
from fcn_jax.weights.hdf5_attributes import Attributes
from fcn_jax.weights.hdf5_chunks import find_chunks
from fcn_jax.weights.hdf5_filters import check_chunks, filters_of, unpack_chunks
from fcn_jax.weights.hdf5_objects import DATASPACE, DATATYPE, EXTERNAL_FILES, FILTERS, LAYOUT, Header
from fcn_jax.weights.hdf5_storage import Storage
from fcn_jax.weights.hdf5_types import ElementType, element_type, shape_of

_COMPACT, _CONTIGUOUS, _CHUNKED, _VIRTUAL = range(4)
_KERAS_TYPE = "dtype"  # the attribute by which Keras 3 marks a bfloat16


def dataset(storage: Storage, header: Header, attributes: Attributes) -> np.ndarray | None:
    """The array of a dataset, or None where its values are no numbers. Raises Malformed."""
    if header.has(EXTERNAL_FILES):
        raise Malformed("its values lie in another file, which is not opened")
    element = element_type(header.only(DATATYPE), attributes.texts(header, _KERAS_TYPE))
    if element is None:
        return None
    shape = shape_of(header.only(DATASPACE))
    raw_values.stored_bytes(element.kind, shape)  # refuses what no array can have
    if 0 in shape:
        return raw_values.empty(storage.file, element.kind, shape)
    return _read(storage, header, element, shape)


def _read(storage: Storage, header: Header, element: ElementType, shape: tuple[int, ...]) -> np.ndarray:
    fill = _source(storage, header, shape, raw_values.STORED[element.kind].itemsize)
    array = raw_values.empty(storage.file, element.kind, shape)
    values = raw_values.stored_part(array, element.kind)
    fill(values)
    if element.big_endian:
        values.byteswap(inplace=True)
    return raw_values.finished(array, element.kind)


def _source(storage: Storage, header: Header, shape: tuple[int, ...], value_bytes: int) -> Callable[[np.ndarray], None]:
    """What fills the memory of a dataset, one axis of values, with its bytes, which were seen to be there."""
    layout = header.only(LAYOUT)
    version, kind = layout.number(1), layout.number(1)
    if version not in (3, 4, 5):
        raise Malformed(f"layout version {version} is not read")
    if kind == _CHUNKED:
        filters = filters_of(header.only(FILTERS), value_bytes) if header.has(FILTERS) else []
        chunks = find_chunks(storage, version, layout, shape, value_bytes)
        check_chunks(storage, chunks, filters)
        return functools.partial(unpack_chunks, storage, chunks, filters)
    if kind == _COMPACT:
        data = layout.take(layout.number(2))
        _check(shape, value_bytes, len(data))
        return lambda values: np.copyto(values.view(np.uint8), np.frombuffer(data, np.uint8))
    if kind == _CONTIGUOUS:
        address = layout.address_if_any()
        if address is None:
            raise Malformed(f"it declares {math.prod(shape)} values and stores none")
        _check(shape, value_bytes, size := layout.length())
        storage.claim(address, size)
        return functools.partial(storage.file.read_into, storage.base + address)
    raise Malformed("a virtual dataset is not read" if kind == _VIRTUAL else f"layout class {kind} is not read")


def _check(shape: tuple[int, ...], value_bytes: int, size: int) -> None:
    if math.prod(shape) * value_bytes != size:
        raise Malformed(f"shape {list(shape)} with {value_bytes} bytes a value does not fit the {size} bytes stored")
