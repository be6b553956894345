import math
import time

import hdf5_data_writer as data
import hdf5_writer as writer
import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from readers_under_fire import assert_lean, assert_same, cuts, flips, parse_or_refuse, peak_memory

from fcn_jax.weights.files import Malformed, WeightFile, opened
from fcn_jax.weights.hdf5 import parse

KERNEL = np.arange(12, dtype=np.float32).reshape(3, 4)
BIAS = np.array([0.5, -2.0], np.float32)
FILTERS = (
    (),
    (data.DEFLATE,),
    (data.SHUFFLE,),
    (data.SHUFFLE, data.DEFLATE),
    (data.SHUFFLE, data.DEFLATE, data.FLETCHER32),
    (data.FLETCHER32,),
)


def read(content: bytes) -> dict[str, np.ndarray]:
    return parse(WeightFile.of(content))


def values(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """What tools/golden_hdf5.py writes."""
    steps = (np.arange(math.prod(shape)) * 37 + seed * 11) % 101
    return (steps / 4 if np.dtype(dtype).kind == "f" else steps).astype(dtype).reshape(shape)


FIRST = 96  # address of what an image takes first
OPAQUE = (writer.DATATYPE, b"\x15\0\0\0" + writer.number(2, 4))
BFLOAT16 = (
    writer.DATATYPE,
    b"\x11\x20\x0f\0" + writer.number(2, 4) + bytes([0, 0, 16, 0, 7, 8, 0, 7]) + writer.number(127, 4),
)


# Real files.

CHUNKED = {
    name: values((5, 7), "<f4", seed)
    for seed, name in enumerate(
        ("plain", "deflated", "checked", "only_shuffled", "only_checked", "whole", "whole_deflated")
    )
}
BIG_ENDIAN = values((2, 3, 4), "<f8", 20)


def in_byte_order(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: arrays[name] for name in sorted(arrays, key=str.encode)}


def keras_layers(last: str) -> dict[str, np.ndarray]:
    """The layers in Keras's order, which is not that of the names."""
    return {
        "conv/conv/kernel:0": values((2, 2), "<f4", 10),
        "conv/conv/bias:0": values((2, 3), "<f4", 11),
        f"{last}/{last}/kernel:0": values((2, 2), "<f4", 20),
        "added": values((1,), "<f4", 99),
    }


REAL = {
    "old_groups.h5": {
        "bool": values((5,), "u1", 7) % 2 == 0,
        "compact": values((3,), "<f4", 2),
        "deep/again": values((4,), "<i2", 3),
        "deep/er": values((4,), "<i2", 3),
        "nothing": np.zeros((0, 3), np.float32),
        "scalar": values((), "<f4", 1),
    },
    "new_groups.h5": {
        "few/a": values((3,), "<f4", ord("a")),
        "few/ü": values((3,), "<f4", ord("ü")),
        **in_byte_order(
            {f"many/n{index}": values((3,), "<f4", ord("a")) for index in range(1, 50)}
            | {"many/n0": values((2, 2), "<f8", 50)}
        ),
        **{f"ordered/n{index}": values((3,), "<f4", ord("ü")) for index in range(12, 0, -1)},
        "ordered/n0": values((), "<i8", 5),
        "tracked/z": values((2,), "<f4", ord("z")),
        "tracked/y": values((2,), "<f4", ord("y")),
        "types/big_f4": values((2, 3), "<f4", 1),
        "types/big_u2": values((2, 3), "<u2", 4),
        "types/i1": values((2, 3), "i1", 3),
        "types/little_f2": values((2, 3), "<f2", 0),
        "types/little_f8": values((2, 3), "<f8", 2),
    },
    "chunks_in_trees.h5": in_byte_order(
        {name: CHUNKED[name] for name in ("plain", "checked", "whole")}
        | {"big_endian": BIG_ENDIAN, "growing": values((3, 3), "<i4", 21)}
    ),
    "chunks_in_arrays.h5": in_byte_order(CHUNKED | {"big_endian": BIG_ENDIAN, "implicit": values((5, 7), "<f4", 30)}),
    "chunks_of_today.h5": {
        "big_endian": BIG_ENDIAN,
        "checked": CHUNKED["checked"],
        "whole_deflated": CHUNKED["whole_deflated"],
    },
    "keras_3.weights.h5": {
        "layers/conv2d/vars/0": values((2, 2, 2, 3), "<f4", 0),
        "layers/conv2d/vars/1": values((3,), "<f4", 1),
        "layers/dense/vars/0": values((3, 2), "<f4", 2),
        "layers/dense/vars/1": values((2,), "<f4", 3),
    },
    "keras_2.h5": keras_layers("dense"),
    "keras_of_today.h5": keras_layers("a/dense"),
    "net.caffemodel.h5": {
        "data/conv1/0": values((2, 1, 3, 3), "<f4", 0),
        "data/conv1/1": values((2,), "<f4", 1),
        "data/fc8/0": values((2, 1, 3, 3), "<f4", 2),
        "data/fc8/1": values((2,), "<f4", 3),
    },
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(name):
    with opened(GOLDEN / "hdf5" / name) as file:
        found = parse(file)
    assert_same(found, REAL[name])
    assert all(array.flags.owndata or array.base is not None for array in found.values())


def test_every_real_file_is_listed():
    assert sorted(REAL) == sorted(path.name for path in (GOLDEN / "hdf5").iterdir())


# Written here.


@pytest.mark.parametrize("version", [0, 1, 2, 3])
@pytest.mark.parametrize("user_block", [0, 512, 4096])
def test_superblocks(version, user_block):
    arrays = {"bias": BIAS, "kernel": KERNEL}
    assert_same(read(data.file_of(arrays, version=version, user_block=user_block)), arrays)


def test_a_file_behind_bytes_that_it_does_not_know():
    arrays = {"bias": BIAS, "kernel": KERNEL}
    content = b"#" * 1024 + data.file_of(arrays)
    assert_same(read(content), arrays)
    with pytest.raises(Malformed, match=f"should have {len(content)} bytes and has {len(content) - 1}"):
        read(content[:-1])


def test_an_array_of_two_names_is_read_once():
    image = writer.Image()
    address = data.dataset(image, KERNEL)
    found = read(image.finish(writer.group(image, {"a": address, "b": address})))
    assert found["a"] is found["b"]


def test_a_signature_elsewhere_is_none():
    with pytest.raises(Malformed, match="no HDF5 signature"):
        read(data.file_of({"a": BIAS}, user_block=256))


@st.composite
def stored(draw):
    """An array with how it is kept: `write(image, array)` gives its layout, and what else its header has."""
    kinds = ["?", "i1", "u1"] + [f"{order}{kind}" for order in "<>" for kind in ("i2", "u4", "i8", "f2", "f4", "f8")]
    dtype = np.dtype(draw(st.sampled_from(kinds)))
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    raw = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, math.prod(shape) * dtype.itemsize, np.uint8)
    array = raw.view(np.uint8 if dtype.kind == "b" else dtype)
    array = (array > 99 if dtype.kind == "b" else array).reshape(shape)
    filters = draw(st.sampled_from(FILTERS))
    chunk = tuple(draw(st.integers(1, size + 2)) for size in shape)
    how = draw(st.sampled_from(("contiguous", "compact") + ("tree", "array", "pages", "single", "row") * bool(shape)))

    def write(image):
        if how == "contiguous":
            return [data.contiguous(image, array)]
        if how == "compact":
            return [data.compact(array)]
        if how == "row":
            return [data.in_a_row(image, array, chunk)]
        listed = [data.filters(filters, dtype.itemsize, draw(st.sampled_from((1, 2))))] if filters else []
        if how == "single":
            return [data.single(image, array, filters), *listed]
        if how == "tree":
            mask = draw(st.integers(0, (1 << len(filters)) - 1))
            return [data.in_tree(image, array, chunk, filters, mask), *listed]
        return [data.in_array(image, array, chunk, filters, 10 if how == "array" else 0), *listed]

    return array, write


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=5)
PATHS = st.tuples(st.lists(NAMES.map("group {}".format), max_size=2), NAMES.map("array {}".format))


@settings(deadline=None, max_examples=100)
@given(arrays=st.dictionaries(PATHS.map(lambda path: (*path[0], path[1])), stored(), min_size=1), draw=st.data())
def test_what_is_written_is_read(arrays, draw):
    image = writer.Image()
    groups: dict[tuple[str, ...], dict[str, int]] = {(): {}}
    for (*above, name), (array, write) in arrays.items():
        for depth in range(len(above)):
            groups.setdefault(tuple(above[: depth + 1]), {})
        header = draw.draw(st.sampled_from([writer.header, writer.old_header]))
        messages = [data.shape(array.shape, draw.draw(st.sampled_from([1, 2]))), data.type_of(array.dtype)]
        groups[tuple(above)][name] = image.put(header(*messages, *write(image)))
    for path in sorted(groups, key=len, reverse=True):
        group = draw.draw(st.sampled_from([writer.group, writer.old_group, writer.dense_group]))
        address = group(image, groups[path])
        groups.get(path[:-1], {})[path[-1] if path else ""] = address
    found = read(image.finish(groups[()].pop(""), version=draw.draw(st.sampled_from([0, 1, 2, 3]))))
    wanted = {"/".join(path): array.astype(array.dtype.newbyteorder("=")) for path, (array, _) in arrays.items()}
    assert set(found) == set(wanted)
    assert_same({path: found[path] for path in wanted}, wanted)


# Order.


def keras_file(layers: list[bytes], weights: dict[str, list[bytes]], variable: bool = False, version: int = 3) -> bytes:
    """A file with a group a layer, each with the listed weights, and attributes that tell their order."""
    image = writer.Image()

    def attribute(name, items):
        return data.heap_texts(image, name, items) if variable else data.texts(name, items, version)

    groups = {}
    for layer, names in weights.items():
        inside = {name.decode(): data.dataset(image, BIAS) for name in sorted(names)}
        groups[layer] = writer.group(image, inside, attribute(b"weight_names", names))
    return image.finish(writer.group(image, groups, attribute(b"layer_names", layers)))


@pytest.mark.parametrize(("variable", "version"), [(False, 1), (False, 2), (False, 3), (True, 3)])
def test_keras_tells_the_order(variable, version):
    weights = {"a": [b"w", b"b"], "z": [b"v", b"u"], "m": [b"t"]}
    found = read(keras_file([b"z", b"gone", b"a", b"z"], weights, variable, version))
    assert list(found) == ["z/v", "z/u", "a/w", "a/b", "m/t"]


def test_layers_that_are_listed_often_are_sought_once():
    weights = [b"%04d" % index for index in range(5000)]
    image = writer.Image()
    array = data.dataset(image, BIAS)
    layer = writer.group(image, {"0001": array}, data.texts(b"weight_names", weights))
    content = image.finish(writer.group(image, {"z": layer}, data.texts(b"layer_names", [b"z"] * 50_000)))
    start = time.perf_counter()
    assert list(read(content)) == ["z/0001"]
    assert time.perf_counter() - start < 5


def test_attributes_that_are_no_texts_tell_nothing():
    image = writer.Image()
    layer = writer.group(image, {"b": data.dataset(image, BIAS), "a": data.dataset(image, BIAS)})
    numbers = data.attribute(b"layer_names", data.type_of(np.dtype("f8"))[1], data.shape([0])[1], b"")
    empty = data.attribute(b"layer_names", b"\x13\0\0\0" + bytes(4), data.shape([1 << 60])[1], b"")
    shared = (writer.ATTRIBUTE, b"\x03\x01" + numbers[1][2:])
    for message in (numbers, empty, shared):
        assert list(read(image.finish(writer.group(image, {"layer": layer}, message)))) == ["layer/a", "layer/b"]


def test_texts_of_no_length_have_no_place():
    image = writer.Image()
    layer = writer.group(image, {"b": data.dataset(image, BIAS)})
    names = data.attribute(
        b"layer_names", data.VARIABLE_TEXT, data.shape([2])[1], bytes(4) + writer.NOWHERE + bytes(20)
    )
    assert list(read(image.finish(writer.group(image, {"layer": layer}, names)))) == ["layer/b"]


def test_only_the_weights_of_a_whole_model_are_read():
    image = writer.Image()
    broken = image.put(b"broken")
    model = writer.group(image, {"layer": writer.group(image, {"kernel": data.dataset(image, KERNEL)})})
    root = writer.group(image, {"optimizer_weights": broken, "model_weights": model})
    assert_same(read(image.finish(root)), {"layer/kernel": KERNEL})


# Under fire.


def small_files() -> dict[str, bytes]:
    """A file for each of the ways to keep groups, with datasets in each of the ways to keep values."""
    files = {}
    square = KERNEL[:3, :3]

    image = writer.Image()
    packed = [data.single(image, square, (data.SHUFFLE, data.DEFLATE)), data.filters((data.SHUFFLE, data.DEFLATE), 4)]
    layer = {"kernel": data.dataset(image, square, *packed), "bias": data.dataset(image, BIAS, data.compact(BIAS))}
    layer = writer.group(image, layer, data.texts(b"weight_names", [b"kernel", b"bias"]))
    files["links"] = image.finish(
        writer.group(image, {"layer": layer}, data.heap_texts(image, b"layer_names", [b"layer"]))
    )

    image = writer.Image()
    layout = data.in_tree(image, square, (3, 3), (data.DEFLATE,))
    messages = [data.shape((3, 3), 1), data.type_of(square.dtype), layout, data.filters((data.DEFLATE,), 4, 1)]
    layer = writer.old_group(image, {"kernel": image.put(writer.old_header(*messages))})
    files["symbols"] = image.finish(layer, version=0)

    image = writer.Image()
    kernel = data.dataset(image, square, data.in_array(image, square, (2, 3), page_bits=0))
    files["heap"] = image.finish(writer.dense_group(image, {"kernel": kernel, "bias": kernel}, first=32))
    return files


@pytest.mark.parametrize("kind", small_files())
def test_cut_files_are_refused(kind):
    content = small_files()[kind]
    assert parse_or_refuse(parse, content) is not None
    assert all(parse_or_refuse(parse, part) is None for part in cuts(content))


def test_cut_files_that_hide_it_are_refused():
    """The superblock states the size that the file then has."""
    for kind in ("links", "heap"):
        content = small_files()[kind]
        assert content[28:36] == writer.number(len(content))
        for length in range(36, len(content) - 16):
            parse_or_refuse(parse, content[:28] + writer.number(length) + content[36:length])


@pytest.mark.parametrize("kind", small_files())
def test_flipped_bits_are_borne(kind):
    content = small_files()[kind]
    for flipped in flips(content):
        parse_or_refuse(parse, flipped, max_bytes=1 << 20)


@pytest.mark.parametrize("how", ["contiguous", "whole", "chunks", "odd", "big"])
def test_memory(how):
    array = np.zeros((2000, 3000), ">f4" if how == "big" else "<f4")
    array[:, ::7] = np.arange(2000)[:, None]
    image = writer.Image()
    filters = (data.SHUFFLE, data.DEFLATE)
    layout = {
        "contiguous": lambda: [data.contiguous(image, array)],
        "whole": lambda: [data.single(image, array, filters), data.filters(filters, 4)],
        "chunks": lambda: [data.in_tree(image, array, (100, 200), filters), data.filters(filters, 4)],
        "odd": lambda: [data.in_tree(image, array, (1999, 2999), filters), data.filters(filters, 4)],
        "big": lambda: [data.contiguous(image, array)],
    }[how]()
    content = image.finish(writer.group(image, {"a": data.dataset(image, array, *layout)}))
    np.testing.assert_array_equal(read(content)["a"], array)
    assert_lean(parse, content, array.nbytes)


def test_nothing_is_made_for_values_that_are_not_there():
    image = writer.Image()
    image.put(bytes(1 << 20))
    layout = (writer.LAYOUT, b"\x03\x01" + writer.number(FIRST) + writer.number(3 << 20))
    messages = [data.shape([3 << 20]), data.type_of(np.dtype("i1")), layout]
    content = image.finish(writer.group(image, {"a": image.put(writer.header(*messages))}))
    assert parse_or_refuse(parse, content) is None
    assert peak_memory(lambda: parse_or_refuse(parse, content)) < 1 << 17


@pytest.mark.parametrize("opaque", [False, True])
def test_bfloat16_becomes_float32_without_a_copy(opaque):
    """HDF5 knows none: some write a float with its bits, Keras writes opaque bytes and says so beside them."""
    halves = np.arange(1 << 23, dtype="<u2")
    image = writer.Image()
    messages = [data.shape(halves.shape), data.contiguous(image, halves)]
    if opaque:
        text = b"\x13\0\0\0" + writer.number(8, 4)
        messages += [OPAQUE, data.attribute(b"dtype", text, data.shape([])[1], b"bfloat16")]
    else:
        messages += [BFLOAT16]
    content = image.finish(writer.group(image, {"a": image.put(writer.header(*messages))}))
    found = read(content)["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view("<u4"), halves.astype("<u4") << 16)
    del found
    assert_lean(parse, content, 2 * halves.nbytes)


# What a small file can ask for.


def nested(depth: int) -> bytes:
    image = writer.Image()
    address = writer.group(image, {"a": data.dataset(image, BIAS)})
    for _ in range(depth):
        address = writer.group(image, {"g": address})
    return image.finish(address)


def test_groups_in_groups():
    assert_same(read(nested(60)), {"g/" * 60 + "a": BIAS})


def group_in_itself() -> bytes:
    image = writer.Image()
    return image.finish(writer.group(image, {"g": FIRST}))


def header_in_itself() -> bytes:
    image = writer.Image()
    return image.finish(
        image.put(writer.old_header((writer.CONTINUATION, writer.number(FIRST + 16) + writer.number(24))))
    )


def tree_of_one_child(symbols: bool) -> bytes:
    """A tree whose nodes have nothing but the same node below, many times."""
    image = writer.Image()
    heap = image.put(b"HEAP" + bytes(4) + writer.number(8) + writer.NOWHERE + writer.number(image.put(bytes(8))))
    node = image.put(b"SNOD\x01\0" + bytes(2))
    for level in range(20):
        head = b"TREE" + bytes([not symbols, level]) + writer.number(9, 2) + writer.NOWHERE * 2
        node = image.put(head + (bytes(8 if symbols else 24) + writer.number(node)) * 9)
    messages = [(writer.SYMBOL_TABLE, writer.number(node) + writer.number(heap))]
    if not symbols:
        messages = [data.shape([2]), data.type_of(np.dtype("f4")), data.tree_layout(node, (1, 4))]
    return image.finish(writer.group(image, {"a": image.put(writer.header(*messages))}))


def new_tree_of_one_child() -> bytes:
    image = writer.Image()
    link = writer.link(b"n", FIRST)
    heap = image.put(writer.heap_header(image.put(link), 0))
    record = bytes(9) + writer.number(len(link), 2)
    node = image.put(b"BTLF\0\x05" + writer.CHECKSUM)
    # By depth: the bytes of the number of all records below, of which nodes of 64 bytes allow two to four each.
    for depth, below in enumerate((0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3)):
        child = writer.number(node) + bytes([2 if depth else 0]) + bytes(below)
        node = image.put(b"BTIN\0\x05" + record * 2 + child * 3 + writer.CHECKSUM)
    tree = image.put(writer.tree_header(node, 2, 0, 15, 64))
    return image.finish(
        image.put(writer.header((writer.LINK_INFO, b"\0\0" + writer.number(heap) + writer.number(tree))))
    )


def shared_values() -> bytes:
    image = writer.Image()
    array = np.zeros(10_000, np.float32)
    layout = data.contiguous(image, array)
    return image.finish(writer.group(image, {f"n{index}": data.dataset(image, array, layout) for index in range(50)}))


def shared_chunks() -> bytes:
    image = writer.Image()
    packed = data.apply([data.DEFLATE], bytes(1 << 20), 1)
    key = writer.number(len(packed), 4) + bytes(4)
    address = image.put(packed)
    entries = [(key + writer.number(start << 20) + bytes(8), address) for start in range(200)]
    layout = data.tree_layout(writer.old_tree(image, 1, entries, 200), (1 << 20, 1))
    messages = [data.shape([200 << 20]), data.type_of(np.dtype("u1")), layout, data.filters([data.DEFLATE], 1)]
    return image.finish(writer.group(image, {"a": image.put(writer.header(*messages))}))


def shared_names() -> bytes:
    """Every name is the end of the one before."""
    image = writer.Image()
    array = data.dataset(image, BIAS)
    names = image.put(b"n" * 20_000 + bytes(1))
    heap = image.put(b"HEAP" + bytes(4) + writer.number(20_001) + writer.NOWHERE + writer.number(names))
    entries = (writer.number(start) + writer.number(array) + bytes(24) for start in range(1000))
    node = image.put(b"SNOD\x01\0" + writer.number(1000, 2) + b"".join(entries))
    tree = writer.old_tree(image, 0, [(bytes(8), node)])
    return image.finish(image.put(writer.old_header((writer.SYMBOL_TABLE, writer.number(tree) + writer.number(heap)))))


def shared_texts() -> bytes:
    image = writer.Image()
    kind, body, *_ = data.heap_texts(image, b"layer_names", [b"t" * 10_000])
    start, reference = body[:-16].replace(writer.number(1) + b"", writer.number(1000), 1), body[-16:]
    return image.finish(writer.group(image, {"a": data.dataset(image, BIAS)}, (kind, start + reference * 1000)))


CIRCLES = {
    "group in itself": (group_in_itself, "'g': the group is met a second time"),
    "header in itself": (header_in_itself, "run in circles or overlap"),
    "symbols": (lambda: tree_of_one_child(True), "'a': its structures run in circles or overlap"),
    "chunks": (lambda: tree_of_one_child(False), "'a': its structures run in circles or overlap"),
    "links": (new_tree_of_one_child, "run in circles or overlap"),
    "nested": (lambda: nested(3000), "run in circles or overlap"),
    "values": (shared_values, "run in circles or overlap"),
    "chunks' values": (shared_chunks, "run in circles or overlap"),
    "names": (shared_names, "run in circles or overlap"),
    "texts": (shared_texts, "run in circles or overlap"),
}


@pytest.mark.parametrize("kind", CIRCLES)
def test_circles_are_left(kind):
    write, fault = CIRCLES[kind]
    file = WeightFile.of(write())

    def refused():
        with pytest.raises(Malformed, match=fault):
            parse(file)

    start = time.perf_counter()
    assert peak_memory(refused) < 5 * file.size + (1 << 18)
    assert time.perf_counter() - start < 2
