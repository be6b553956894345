"""Checkpoints of torch.save (.pth, .pt), read without torch: the zip archives since 1.6 and the pickles before.

Source: torch/serialization.py of PyTorch. Either way a pickle says what there is and the values lie outside of it: in
members `data/<key>` of the archive, or one after another behind the pickles, each behind its element count. Those
are little-endian whatever machine wrote them; an archive says it in a member `byteorder`.
"""

from typing import Any

import numpy as np

from fcn_jax.weights.files import Malformed, WeightFile
from fcn_jax.weights.pickle_reader import Pairs, load
from fcn_jax.weights.torch_globals import BUILDERS, Storage, Tensor, Unread, storage
from fcn_jax.weights.torch_tensors import Plain, Source, TensorReader, member_source
from fcn_jax.weights.zip_archive import STORED, entries, read_entry

# Under which name a training checkpoint keeps the net's tensors; the first that holds some wins.
_STATES = ("state_dict", "model_state_dict", "model", "net")
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAGIC_WITHIN = 32  # bytes: the number is the first that is pickled
_MAX_HEAD = 4096  # bytes of a pickle before that of the object
_MAX_NAME = 512
_MAX_DEPTH = 8


def parse(file: WeightFile) -> dict[str, np.ndarray]:
    """The tensors of a state dict, or of the one in a training checkpoint, in the file's order. Raises Malformed.

    Where a dict has tensors beside other things, these are passed over; where it has none, those of the dicts in it
    are taken, with names joined by dots.
    """
    head = file.at(0, min(4, file.size))
    if head == b"PK\x03\x04":
        top, reader = _read_archive(file)
    elif head[:1] == b"\x80":
        top, reader = _read_pickles(file)
    elif file.size > 512 and file.at(257, 5) == b"ustar":
        raise Malformed("it is a tar archive of torch 0.1; load it in torch and save it anew")
    else:
        raise Malformed("it is neither a zip archive nor a pickle")
    arrays = {}
    for name, tensor in _tensors(top).items():
        try:
            arrays[name] = reader.read(tensor)
        except Malformed as fault:
            raise Malformed(f"tensor {name!r}: {fault}") from None
    return arrays


def _read_archive(file: WeightFile) -> tuple[Any, TensorReader]:
    members = entries(file)
    for name in members:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise Malformed(f"member {name[:_MAX_NAME]!r} would lie outside of the archive")
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in members):
        raise Malformed("it is a TorchScript archive; save the state_dict() of its module instead")
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Malformed(f"it has {len(pickles)} members <name>/data.pkl, where torch.save writes one")
    root = pickles[0].removesuffix("data.pkl")
    order = b"little"
    if f"{root}byteorder" in members:
        order = read_entry(file, members[f"{root}byteorder"], len("little"), check=False)
    if order not in (b"little", b"big"):
        raise Malformed(f"its byte order is {order!r}, neither little nor big")

    def find(storage: Storage) -> Source:
        entry = members.get(f"{root}data/{storage.key}")
        if entry is None:
            raise Malformed(f"its values, data/{storage.key}, are not in the archive")
        if entry.size != storage.nbytes:
            raise Malformed(f"its storage has {entry.size} bytes where {storage.nbytes} are declared")
        return member_source(file, entry)

    entry = members[pickles[0]]
    if entry.method == STORED:
        top = _load_alone(file, entry.offset, entry.offset + entry.size)
    else:
        # No larger than the file: tensors outweigh their pickle, and a pickle of a thousand times that size would
        # make as many objects.
        data = read_entry(file, entry, file.size)
        top = _load_alone(WeightFile.of(data), 0, len(data))
    return top, TensorReader(file, find, order == b"big")


def _load_alone(file: WeightFile, start: int, end: int) -> Any:
    top, stop = load(file, start, end, BUILDERS, storage)
    if stop != end:
        raise Malformed(f"{end - stop} bytes follow the end of its pickle")
    return top


def _read_pickles(file: WeightFile) -> tuple[Any, TensorReader]:
    storages: dict[str, Storage] = {}

    def recall(identity: Any) -> Storage:
        found = storage(identity)
        if storages.setdefault(found.key, found) != found:
            raise Malformed("two storages have one key")
        return found

    if _MAGIC.to_bytes(10, "little") not in file.at(0, min(_MAGIC_WITHIN, file.size)):
        raise Malformed("it is a pickle, and not one of torch.save")
    values, position = [], 0
    for most in (_MAX_HEAD, _MAX_HEAD, _MAX_HEAD, file.size, file.size):
        value, position = load(file, position, min(file.size, position + most), BUILDERS, recall)
        values.append(value)
    magic, protocol, _machine, top, keys = values
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise Malformed(f"its format is not {_PROTOCOL}, the only one that torch has written")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise Malformed("its list of storages is broken")
    if set(keys) != set(storages):
        raise Malformed("it does not list the storages that its tensors use")
    places = {}
    for key in keys:
        count = int.from_bytes(file.at(position, 8), "little")
        if count != storages[key].count:
            raise Malformed(f"a storage has {count} elements where {storages[key].count} are declared")
        places[key] = position + 8
        position += 8 + storages[key].nbytes
    if position != file.size:
        raise Malformed(f"its storages end at {position}, and the file has {file.size} bytes")
    return top, TensorReader(file, lambda storage: Plain(file, places[storage.key]))


def _tensors(top: Any) -> dict[str, Tensor | Unread]:
    """The file's tensors by name."""
    if not isinstance(top, Pairs):
        raise Malformed("it holds no dict of tensors, but a value of another kind")
    named = _named(top)
    for key in _STATES:
        state = named.get(key)
        if isinstance(state, Pairs) and (tensors := _own(_named(state))):
            return tensors
    tensors = _own(named) or _nested(top)
    if not tensors:
        raise Malformed("it holds no tensors with names")
    return tensors


def _own(named: dict[str, Any]) -> dict[str, Tensor | Unread]:
    return {name: value for name, value in named.items() if isinstance(value, Tensor | Unread)}


def _nested(top: Pairs) -> dict[str, Tensor | Unread]:
    """Tensors in dicts within dicts, none of which may be met twice: names would multiply, in a circle without end."""
    found: dict[str, Tensor | Unread] = {}
    met: dict[int, bool] = {}  # whether tensors are in it, which one that is still open may have

    def walk(pairs: Pairs, prefix: str, depth: int) -> None:
        if met.get(id(pairs.items)):
            raise Malformed(f"the dict {prefix[:-1]!r} has tensors and is met a second time")
        if depth > _MAX_DEPTH:
            raise Malformed(f"dicts lie in dicts, more than {_MAX_DEPTH} deep")
        if id(pairs.items) in met:
            return
        met[id(pairs.items)] = True
        before = len(found)
        for name, value in _named(pairs, prefix).items():
            if isinstance(value, Pairs):
                walk(value, f"{name}.", depth + 1)
            elif name in found:
                raise Malformed(f"two tensors are named {name!r}")
            else:
                found[name] = value
        met[id(pairs.items)] = len(found) > before

    walk(top, "", 0)
    return found


def _named(pairs: Pairs, prefix: str = "") -> dict[str, Any]:
    """Tensors and dicts by name. What has no text for a key, as the state of an optimizer, is passed over."""
    named: dict[str, Any] = {}
    for pair in pairs.items:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise Malformed("an item of a dict is no key with a value")
        key, value = pair
        if not isinstance(value, Pairs | Tensor | Unread) or not isinstance(key, str | bytes):
            continue
        if isinstance(key, bytes):
            raise Malformed(f"a name is no UTF-8: {key[:_MAX_NAME]!r}")
        name = prefix + key
        if len(name) > _MAX_NAME:
            raise Malformed(f"a name has {len(name)} characters, where {_MAX_NAME} are the most")
        if name in named:
            raise Malformed(f"two values are named {name!r}")
        named[name] = value
    return named
