"""HDF5 files of every kind that is read, written by h5py and Keras into tests/golden/hdf5.

    python tools/golden_hdf5.py

Needs h5py 3.16 with HDF5 2.0 and Keras 3, which the project itself does not. What tests/test_hdf5.py expects is not
taken from here: it computes the values anew, and knows the names.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "numpy")

import h5py  # pyright: ignore[reportMissingImports]
import keras  # pyright: ignore[reportMissingImports]
import numpy as np

LIBRARY = ctypes.CDLL(h5py.h5p.__file__)  # for what h5py has no name for
FOLDER = Path(__file__).parents[1] / "tests" / "golden" / "hdf5"
DTYPES = ("<f2", ">f4", "<f8", "i1", ">u2")


def values(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Numbers that are exact in every dtype, and differ between neighbours and between seeds."""
    steps = (np.arange(np.prod(shape, dtype=int)) * 37 + seed * 11) % 101
    return (steps / 4 if np.dtype(dtype).kind == "f" else steps).astype(dtype).reshape(shape)


def create(path: Path, version: str, tree_order: int = 0, width: int = 8, user_block: int = 0) -> h5py.File:
    """A file of that version of HDF5, with little room left free in it.

    Trees of the oldest version may have few entries a node, so that few names make them high; `width` is that of
    addresses and lengths.
    """
    creation, access = h5py.h5p.create(h5py.h5p.FILE_CREATE), h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    creation.set_sizes(width, width)
    creation.set_userblock(user_block)
    if tree_order:
        order = ctypes.c_uint(tree_order)
        assert LIBRARY.H5Pset_sym_k(ctypes.c_int64(creation.id), order, order) >= 0
        assert LIBRARY.H5Pset_istore_k(ctypes.c_int64(creation.id), order) >= 0
    lowest = {
        "earliest": h5py.h5f.LIBVER_EARLIEST,
        "v108": h5py.h5f.LIBVER_V18,
        "v110": h5py.h5f.LIBVER_V110,
        "latest": h5py.h5f.LIBVER_LATEST,
    }
    access.set_libver_bounds(lowest[version], max(lowest[version], h5py.h5f.LIBVER_V110))
    access.set_meta_block_size(256)
    assert LIBRARY.H5Pset_small_data_block_size(ctypes.c_int64(access.id), ctypes.c_uint64(64)) >= 0
    return h5py.File(h5py.h5f.create(bytes(path), fcpl=creation, fapl=access))


def old_groups(path: Path) -> None:
    """Groups in groups, and what is no array of numbers."""
    with create(path, "earliest", tree_order=2) as file:
        file["bool"] = values((5,), "u1", 7) % 2 == 0
        file["scalar"] = values((), "<f4", 1)[()]
        file.create_dataset("compact", data=values((3,), "<f4", 2), dcpl=compact())
        file["nothing"] = np.zeros((0, 3), np.float32)
        file["deep/er"] = values((4,), "<i2", 3)
        file["deep/again"] = file["deep/er"]
        file["soft"] = h5py.SoftLink("/scalar")
        file["texts"] = np.array([b"ab", b"c"])
        file["pairs"] = np.zeros(1, [("a", "<f4"), ("b", "<i4")])
        file["type"] = np.dtype("<f4")
        file["reference"] = file["scalar"].ref


def compact() -> h5py.h5p.PropDCID:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.COMPACT)
    return creation


def new_groups(path: Path) -> None:
    """Some dtypes; links as messages and in a heap, by name and by creation; all behind 512 bytes of something else."""
    with create(path, "latest", user_block=512) as file:
        for seed, dtype in enumerate(DTYPES):
            file[f"types/{dtype.replace('<', 'little_').replace('>', 'big_')}"] = values((2, 3), dtype, seed)
        few = file.create_group("few")
        for name in ("ü", "a"):
            few[name] = values((3,), "<f4", ord(name))
        few["outside"] = h5py.ExternalLink("other.h5", "/few/a")
        tracked = file.create_group("tracked", track_order=True)
        for name in ("z", "y"):
            tracked[name] = values((2,), ">f4", ord(name))
        many = file.create_group("many")
        for index in range(50):
            many[f"n{index}"] = few["a"] if index else values((2, 2), "<f8", 50)
        ordered = file.create_group("ordered", track_order=True)
        for index in range(12, 0, -1):
            ordered[f"n{index}"] = few["ü"]
        ordered["n0"] = values((), "<i8", 5)[()]


CHUNKED = {
    "plain": {"chunks": (2, 4)},
    "deflated": {"chunks": (4, 4), "compression": "gzip"},
    "checked": {"chunks": (3, 5), "compression": "gzip", "shuffle": True, "fletcher32": True},
    "only_shuffled": {"chunks": (4, 6), "shuffle": True},
    "only_checked": {"chunks": (5, 6), "fletcher32": True},
    "whole": {"chunks": (5, 7)},
    "whole_deflated": {"chunks": (5, 7), "compression": "gzip", "shuffle": True},
}


def chunks(file: h5py.File, names: str) -> None:
    for seed, (name, options) in enumerate(CHUNKED.items()):
        if name in names.split():
            file.create_dataset(name, data=values((5, 7), "<f4", seed), **options)
    data = values((2, 3, 4), ">f8", 20)
    file.create_dataset("big_endian", data=data, chunks=(2, 2, 3), compression="gzip", shuffle=True)


def chunks_in_trees(path: Path) -> None:
    with create(path, "earliest", tree_order=1) as file:
        chunks(file, "plain checked whole")
        file.create_dataset("growing", data=values((3, 3), "<i4", 21), chunks=(2, 8), maxshape=(None, None))


def chunks_in_arrays(path: Path) -> None:
    """Layouts of version 4: one chunk, no index, fixed arrays."""
    with create(path, "v110") as file:
        chunks(file, " ".join(CHUNKED))
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        file.create_dataset("implicit", data=values((5, 7), "<f4", 30), chunks=(2, 4), dcpl=early)


def chunks_of_today(path: Path) -> None:
    """Layouts of version 5."""
    with create(path, "latest") as file:
        chunks(file, "checked whole_deflated")


def keras_3(path: Path) -> None:
    """Weights alone, of two layers, one in bfloat16."""
    net = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.Conv2D(3, 2, name="first"),
            keras.layers.Dense(2, name="last", dtype="bfloat16"),
        ]
    )
    net.set_weights([values(array.shape, "<f4", seed) for seed, array in enumerate(net.get_weights())])
    net.save_weights(path)


def keras_2(path: Path) -> None:
    """A whole model, as Keras 2 with h5py 2 laid it out: texts of fixed length."""
    with create(path, "earliest", tree_order=2) as file:
        file.attrs["keras_version"] = np.bytes_(b"2.2.4")
        file.attrs["model_config"] = np.bytes_(b"{}")
        keras_layers(file.create_group("model_weights"), "dense", lambda names: np.array(names, "S"))
        file["optimizer_weights/iterations:0"] = np.int64(3)


def keras_of_today(path: Path) -> None:
    """Weights alone, as Keras writes them now into its old format: texts of any length."""
    with create(path, "v108") as file:
        keras_layers(file, "a/dense", lambda names: np.array(names, h5py.string_dtype()))


def keras_layers(group: h5py.Group, last: str, texts: Callable) -> None:
    layers = {"input_1": (), "conv": ("kernel:0", "bias:0"), last: ("kernel:0",)}
    group.attrs["layer_names"] = texts([name.encode() for name in layers])
    group.attrs["backend"] = np.bytes_(b"tensorflow")
    for seed, (layer, weights) in enumerate(layers.items()):
        names = [f"{layer}/{weight}" for weight in weights]
        inner = group.create_group(layer)
        inner.attrs["weight_names"] = texts([name.encode() for name in names]) if names else np.zeros(0)
        for index, name in enumerate(names):
            inner[name] = values((2, 2 + index), "<f4", 10 * seed + index)
    group["added"] = values((1,), "<f4", 99)


def caffe(path: Path) -> None:
    """As Caffe's Net::ToHDF5 lays it out; with addresses of 4 bytes, which is rare."""
    with create(path, "earliest", tree_order=2, width=4) as file:
        for seed, layer in enumerate(("conv1", "fc8")):
            file[f"data/{layer}/0"] = values((2, 1, 3, 3), "<f4", 2 * seed)
            file[f"data/{layer}/1"] = values((2,), "<f4", 2 * seed + 1)
        file.create_group("data/pool1")


FILES = {
    "old_groups.h5": old_groups,
    "new_groups.h5": new_groups,
    "chunks_in_trees.h5": chunks_in_trees,
    "chunks_in_arrays.h5": chunks_in_arrays,
    "chunks_of_today.h5": chunks_of_today,
    "keras_3.weights.h5": keras_3,
    "keras_2.h5": keras_2,
    "keras_of_today.h5": keras_of_today,
    "net.caffemodel.h5": caffe,
}


def main() -> None:
    """Writes all files anew and prints their sizes."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, write in FILES.items():
        path = FOLDER / name
        write(path)
        print(f"{path.stat().st_size:6d}  {name}")


if __name__ == "__main__":
    main()
