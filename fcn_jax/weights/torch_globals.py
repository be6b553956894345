"""What the globals in a torch checkpoint's pickle stand for: storages, tensors, containers, and what is of no interest.

Sources: torch/_utils.py, torch/storage.py and torch/serialization.py of PyTorch. dtypes that came late have no storage
class of their own: their storages are untyped, counted in bytes, and the tensor names its dtype.
"""

import dataclasses
from typing import Any

from fcn_jax.weights.files import Malformed
from fcn_jax.weights.pickle_reader import Builder, Global, Opaque, Pairs
from fcn_jax.weights.raw_values import BFLOAT16, STORED

# Storage class → dtype of its elements.
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
    "_UntypedStorage": "uint8",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
# The bytes of an element of those that are not read; storages of them may lie between others.
_UNREAD_BYTES = {
    **{"complex64": 8, "complex128": 16},
    **{"qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1},
}
_MAX_KEY = 64  # keys are numbers
_DTYPES = (
    *STORED,
    *_UNREAD_BYTES,
    *("complex32", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
)
# What training checkpoints hold beside tensors, by module. None of it is an array of the file; this is the whole list.
_INERT = {
    "argparse": ("Namespace",),
    "collections": ("Counter", "deque"),
    "pathlib": ("PosixPath", "WindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),
    "__builtin__": ("set", "frozenset", "bytes", "bytearray", "list", "dict"),
    "builtins": ("set", "frozenset", "bytes", "bytearray", "list", "dict"),
    "_codecs": ("encode",),  # how protocol 2 writes bytes
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("scalar", "_reconstruct"),
    "numpy.core.numeric": ("_frombuffer",),
    "numpy._core.multiarray": ("scalar", "_reconstruct"),
    "numpy._core.numeric": ("_frombuffer",),
    "torch": ("Tensor", "device", "per_tensor_affine", "per_channel_affine", *_DTYPES, *_STORAGES),
    "torch.cuda": tuple(_STORAGES),
    "torch.storage": tuple(_STORAGES),
    "torch.nn.parameter": ("Parameter", "Buffer"),
    "torch.serialization": ("_get_layout",),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements that lies outside of the pickle."""

    key: str
    kind: str  # dtype
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * (STORED[self.kind].itemsize if self.kind in STORED else _UNREAD_BYTES[self.kind])


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage. Offset and strides count elements; none of the numbers is checked yet."""

    storage: Storage
    kind: str  # dtype
    offset: Any
    sizes: Any
    strides: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Unread:
    """A tensor of a sort that is not read."""

    sort: str


def storage(identity: Any) -> Storage:
    """The storage of a persistent id: "storage", class, key, device, element count, and in old files the view it is."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise Malformed("its pickle refers to what is no storage")
    _, kind, key, _, count, *view = identity
    if view and view[0] is not None:
        raise Malformed("a storage in it is a part of another, as torch before 0.4 wrote them; save it anew")
    class_name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else ""
    if class_name not in _STORAGES or not isinstance(key, str) or len(key) > _MAX_KEY:
        raise Malformed("its pickle has a storage without a class or a key")
    if type(count) is not int or not 0 <= count < 1 << 63:
        raise Malformed("its pickle has a storage of an impossible size")
    return Storage(key, _STORAGES[class_name], count)


def _tensor(arguments: tuple[Any, ...]) -> Tensor:
    if len(arguments) < 4 or not isinstance(arguments[0], Storage):
        raise Malformed("its pickle has a tensor without a storage")
    return Tensor(arguments[0], arguments[0].kind, *arguments[1:4])


def _tensor_v2(arguments: tuple[Any, ...]) -> Tensor | Unread:
    """The arguments of `_tensor`, two of no interest, and bits that say what was not done to the values yet."""
    if any(isinstance(bits, Pairs) and bits.items for bits in arguments[6:7]):
        return Unread("a view that is yet to be negated or conjugated")
    return _tensor(arguments)


def _tensor_v3(arguments: tuple[Any, ...]) -> Tensor | Unread:
    """The same with the dtype before the bits."""
    dtype = arguments[6].name.removeprefix("torch.") if len(arguments) > 6 and isinstance(arguments[6], Global) else ""
    if dtype not in _DTYPES:
        raise Malformed("its pickle has a tensor without a dtype")
    tensor = _tensor_v2(arguments[:6] + arguments[7:8])
    return tensor if isinstance(tensor, Unread) else dataclasses.replace(tensor, kind=dtype)


def _parameter(arguments: tuple[Any, ...]) -> Tensor | Unread:
    if not arguments or not isinstance(arguments[0], Tensor | Unread):
        raise Malformed("its pickle has a parameter without a tensor")
    return arguments[0]


def _tensor_of_type(arguments: tuple[Any, ...]) -> Tensor | Unread:
    """What makes the tensor, its class, the arguments of the former, and attributes."""
    maker, values = (arguments[0], arguments[2]) if len(arguments) > 2 else (None, None)
    if not isinstance(maker, Global) or maker.name not in _TENSORS or not isinstance(values, tuple):
        raise Malformed("its pickle has a tensor of a class that is not read")
    return _TENSORS[maker.name](values)


def _dict(arguments: tuple[Any, ...]) -> Pairs:
    """An OrderedDict, to which Python 2 gives a list of its items."""
    return Pairs(arguments[0]) if arguments and isinstance(arguments[0], list) else Pairs()


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return arguments[0] if arguments and isinstance(arguments[0], tuple) else ()


def _opaque(name: str) -> Builder:
    return lambda _: Opaque(name)


def _unread(sort: str) -> Builder:
    return lambda _: Unread(sort)


_TENSORS: dict[str, Builder] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
}
BUILDERS: dict[str, Builder] = {
    **{f"{module}.{name}": _opaque(f"{module}.{name}") for module, names in _INERT.items() for name in names},
    **_TENSORS,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda _: Pairs(),
    "torch.Size": _size,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
    "torch._utils._rebuild_qtensor": _unread("quantised"),
    "torch._utils._rebuild_sparse_tensor": _unread("sparse"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unread("on the meta device and has no values"),
}
