"""HDF5 files as Keras and Caffe write them, read without libhdf5.

Source: HDF5 File Format Specification, version 3.0. A file is a tree of groups, and every dataset of numbers in it is
an array, named by its path. What is no array of numbers is passed over; what is one, kept in a way that no weight file
needs, is refused by name. A whole Keras model has its weights beside those of its optimizer: only the former are read.
The order of layers and weights is in Keras's attributes; the file itself mostly has them by name.
"""

import numpy as np

from fcn_jax.weights.files import Malformed, WeightFile
from fcn_jax.weights.hdf5_attributes import Attributes
from fcn_jax.weights.hdf5_datasets import dataset
from fcn_jax.weights.hdf5_groups import links
from fcn_jax.weights.hdf5_objects import DATATYPE, LAYOUT, LINK, LINK_INFO, SYMBOL_TABLE, Header
from fcn_jax.weights.hdf5_storage import Storage

_MODEL = "model_weights"
_LAYERS, _WEIGHTS = "layer_names", "weight_names"
_OF_GROUPS = (SYMBOL_TABLE, LINK_INFO, LINK)


def parse(file: WeightFile) -> dict[str, np.ndarray]:
    """All datasets of numbers by their paths: in Keras's order if that is told, else in that of creation or of names.

    Of a whole Keras model those below `model_weights`, by their paths there. Raises Malformed.
    """
    tree = _Tree(Storage(file))
    while tree.waiting:
        address, path = tree.waiting.pop()
        try:
            tree.visit(address, path)
        except Malformed as fault:
            raise Malformed(f"{path!r}: {fault}" if path else str(fault)) from None
    if not tree.arrays:
        raise Malformed("it holds no arrays of numbers")
    return tree.in_order()


class _Tree:
    """The groups and datasets of a file, visited one by one: each once, so that no circle is followed."""

    def __init__(self, storage: Storage):
        self.arrays: dict[str, np.ndarray] = {}  # by path
        self.waiting = [(storage.root, "")]  # addresses and paths, the next one last
        self._storage, self._attributes = storage, Attributes(storage)
        self._groups: set[int] = set()
        self._datasets: dict[int, np.ndarray | None] = {}
        self._layers: list[str] = []
        self._weights: dict[str, list[str]] = {}  # by the path of the layer

    def visit(self, address: int, path: str) -> None:
        """Reads a dataset, or lists what is in a group."""
        self._storage.charge(len(path))
        if address not in self._datasets:
            header = Header(self._storage, address)
            if any(header.has(kind) for kind in _OF_GROUPS):
                self._enter(header, address, path)
                return
            if not path:
                raise Malformed("at its root is no group")
            if header.has(LAYOUT):
                self._datasets[address] = dataset(self._storage, header, self._attributes)
            elif header.has(DATATYPE):
                self._datasets[address] = None  # a type that has a name
            else:
                raise Malformed("it is neither a group nor a dataset")
        array = self._datasets[address]
        if array is not None:
            self.arrays[path] = array

    def _enter(self, header: Header, address: int, path: str) -> None:
        if address in self._groups:
            raise Malformed("the group is met a second time")
        self._groups.add(address)
        children = links(self._storage, header)
        if address == self._storage.root and _MODEL in children:
            self.waiting.append((children[_MODEL], ""))
            return
        if not path:
            self._layers = self._attributes.texts(header, _LAYERS)
        elif self._layers:
            self._weights[path] = self._attributes.texts(header, _WEIGHTS)
        paths = [(child, f"{path}/{name}" if path else name) for name, child in children.items()]
        self.waiting += reversed(paths)

    def in_order(self) -> dict[str, np.ndarray]:
        """The arrays by path: first those that Keras lists, layer by layer, then the others as they were met."""
        listed = (f"{layer}/{name}" for layer in dict.fromkeys(self._layers) for name in self._weights.get(layer, ()))
        return {path: self.arrays[path] for path in listed if path in self.arrays} | self.arrays
