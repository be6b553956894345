"""What an HDF5 dataset's values are: its shape, and numbers of a size, an order and a form.

Source: HDF5 File Format Specification, version 3.0, sections IV.A.2.b (dataspace) and IV.A.2.d (datatype). Floats are
described down to the place of every bit, so a float16, a bfloat16 and anything else of 2 bytes are the same class. h5py
writes a bool as an enumeration of FALSE and TRUE, and a bfloat16, which HDF5 does not know, as two bytes of anything.
"""

import dataclasses

from fcn_jax.weights.files import Malformed
from fcn_jax.weights.hdf5_storage import Block
from fcn_jax.weights.raw_values import BFLOAT16

FIXED_TEXT, OPAQUE, VARIABLE_LENGTH = 3, 5, 9
_INTEGER, _FLOAT, _COMPOUND, _REFERENCE, _ENUMERATION = 0, 1, 6, 7, 8
# Classes of what is no weight: it is passed over. The others are named where they are met.
_NO_NUMBERS = (FIXED_TEXT, _COMPOUND, _REFERENCE, VARIABLE_LENGTH)
_CLASSES = {2: "time", 4: "bit field", OPAQUE: "opaque", 10: "array", 11: "complex"}

_BIG_ENDIAN, _VAX, _SIGNED = 0x1, 0x40, 0x8  # bits of the classes
# Where exponent and mantissa lie: first bit and number of bits each; what is added to the exponent.
_FLOATS = {
    (2, 10, 5, 0, 10, 15): "float16",
    (2, 7, 8, 0, 7, 127): BFLOAT16,
    (4, 23, 8, 0, 23, 127): "float32",
    (8, 52, 11, 0, 52, 1023): "float64",
}
# Names filled up to 8 bytes, and not.
_BOOLEANS = (b"FALSE\0\0\0TRUE\0\0\0\0\0\1", b"FALSE\0TRUE\0\0\1")


@dataclasses.dataclass(frozen=True)
class ElementType:
    """What a value is, as `raw_values` calls it, and whether its bytes lie the other way round."""

    kind: str
    big_endian: bool = False


def shape_of(block: Block) -> tuple[int, ...]:
    """The shape that a message gives; () for a scalar. Raises Malformed."""
    version, axes, _ = block.number(1), block.number(1), block.number(1)
    if version == 1:
        block.take(5)
    elif version == 2:
        if block.number(1) == 2:
            raise Malformed("it has no shape (a null dataspace)")
    else:
        raise Malformed(f"dataspace version {version} is not read")
    return tuple(block.length() for _ in range(axes))


def type_class(block: Block) -> tuple[int, int, int]:
    """Class, its bits, and the bytes of a value: with these every type begins."""
    kind, bits, size = block.number(1), block.number(3), block.number(4)
    if not 1 <= kind >> 4 <= 5:
        raise Malformed(f"datatype version {kind >> 4} is not read")
    return kind & 0xF, bits, size


def element_type(block: Block, names: list[str]) -> ElementType | None:
    """The type that a message gives, or None where its values are no numbers. Raises Malformed.

    `names` are what an attribute of the dataset calls its type.
    """
    kind, bits, size = type_class(block)
    if kind in _NO_NUMBERS:
        return None
    if kind == OPAQUE and size == 2 and BFLOAT16 in names:
        return ElementType(BFLOAT16)
    if kind == _INTEGER:
        return _integer(block, bits, size)
    if kind == _FLOAT:
        return _float(block, bits, size)
    if kind == _ENUMERATION:
        base = type_class(block)
        block.take(4)  # of the integers: their first bit, their number of bits
        if base[0] == _INTEGER and size == base[2] == 1 and block.rest().startswith(_BOOLEANS):
            return ElementType("bool")
        raise Malformed("enumerations are not read, but for bool")
    raise Malformed(f"values of class {_CLASSES.get(kind, kind)} and {size} bytes are not read")


def _integer(block: Block, bits: int, size: int) -> ElementType:
    first_bit, count = block.number(2), block.number(2)
    if size not in (1, 2, 4, 8) or first_bit or count != 8 * size:
        raise Malformed(f"integers of {count} bits in {size} bytes are not read")
    sign = "int" if bits & _SIGNED else "uint"
    return ElementType(f"{sign}{8 * size}", bool(bits & _BIG_ENDIAN))


def _float(block: Block, bits: int, size: int) -> ElementType:
    first_bit, count = block.number(2), block.number(2)
    exponent, mantissa, bias = block.part(2), block.part(2), block.number(4)
    form = (size, exponent.number(1), exponent.number(1), mantissa.number(1), mantissa.number(1), bias)
    if form not in _FLOATS or first_bit or count != 8 * size or bits & _VAX:
        raise Malformed(f"floats of {count} bits, {form[2]} of them the exponent's, are not read")
    return ElementType(_FLOATS[form], bool(bits & _BIG_ENDIAN))
