"""Every fault that is named in an HDF5 file, each in a file that has it and nothing else."""

import functools
import zlib
from collections.abc import Callable

import hdf5_data_writer as data
import hdf5_writer as writer
import numpy as np
import pytest
from hdf5_writer import NOWHERE, Image, Message, number

from fcn_jax.weights.files import Malformed, WeightFile
from fcn_jax.weights.hdf5 import parse

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
SHAPE, FLOAT32, INT8 = data.shape(ARRAY.shape), data.type_of(ARRAY.dtype), data.type_of(np.dtype("i1"))
PLAIN = data.file_of({"a": ARRAY})
FIRST = 96  # address of what an image takes first


def assert_faults(faults: dict[str, bytes]) -> None:
    for message, content in faults.items():
        with pytest.raises(Malformed) as error:
            parse(WeightFile.of(content))
        assert str(error.value) == message


def changed(content: bytes, position: int, new: bytes) -> bytes:
    return content[:position] + new + content[position + len(new) :]


def with_root(write: Callable[[Image], int]) -> bytes:
    image = Image()
    return image.finish(write(image))


def with_object(*messages: Message, old: bool = False) -> bytes:
    """A file in which `a` has an object header of these messages."""
    image = Image()
    header = (writer.old_header if old else writer.header)(*messages)
    return image.finish(writer.group(image, {"a": image.put(header)}))


def with_array(write: Callable[[Image], list[Message]], shape: Message = SHAPE, dtype: Message = FLOAT32) -> bytes:
    """A file in which `a` is a dataset with what `write` puts there."""
    image = Image()
    header = writer.header(shape, dtype, *write(image))
    return image.finish(writer.group(image, {"a": image.put(header)}))


def test_superblock():
    old = data.file_of({"a": ARRAY}, version=0)
    assert_faults(
        {
            "it has no HDF5 signature": b"no" * 600,
            "superblock version 4 is not read": changed(PLAIN, 8, b"\x04"),
            "addresses of 8 and lengths of 2 bytes are not read": changed(PLAIN, 10, b"\x02"),
            "addresses of 16 and lengths of 8 bytes are not read": changed(old, 13, b"\x10"),
            "addresses of 0 and lengths of 0 bytes are not read": PLAIN[:8],
            "a structure of 4 bytes is too short for what it holds": PLAIN[:12],
            "a structure of 14 bytes is too short for what it holds": PLAIN[:22],
            f"it should have {len(PLAIN)} bytes and has {len(PLAIN) - 1}": PLAIN[:-1],
            "an address leads nowhere": changed(PLAIN, 36, NOWHERE),
            f"6 bytes at {1 << 40} are said to be there, and the file has {len(PLAIN)}": changed(
                PLAIN, 36, number(1 << 40)
            ),
        }
    )


def test_object_headers():
    image = Image()
    elsewhere = image.put(b"OHCK" + bytes(20))
    continued = writer.header((writer.CONTINUATION, number(elsewhere) + number(20)))
    assert_faults(
        {
            "'a': at 96 is no object header": with_root(lambda image: writer.group(image, {"a": image.put(bytes(8))})),
            "'a': object header version 3 is not read": with_object().replace(b"OHDR\x02", b"OHDR\x03", 1),
            "'a': it is neither a group nor a dataset": with_object(),
            "at its root is no group": with_root(lambda image: data.dataset(image, ARRAY)),
            "it holds no arrays of numbers": with_root(lambda image: writer.group(image, {})),
            "an object header does not go on at 96": image.finish(image.put(continued)),
            "'a': it has 2 messages for its type": with_array(lambda image: [data.compact(ARRAY), FLOAT32]),
            "'a': it has 0 messages for its shape": with_object(FLOAT32, data.compact(ARRAY)),
            "'a': a type that is shared is not read": with_object(SHAPE, (*FLOAT32[:2], 2), data.compact(ARRAY)),
            "'a': its values lie in another file, which is not opened": with_object(
                SHAPE, FLOAT32, data.compact(ARRAY), (writer.EXTERNAL_FILES, bytes(8))
            ),
        }
    )


def test_what_is_passed_over():
    """Texts, records, references and named types beside an array."""
    image = Image()
    text, record, reference, varying = (bytes([0x10 | kind, 0, 0, 0]) + number(8, 4) for kind in (3, 6, 7, 9))
    links = {f"{index}": image.put(writer.header(FLOAT32)) for index in range(2)}
    for index, kind in enumerate((text, record, reference, varying)):
        layout = data.contiguous(image, ARRAY)
        links[f"not {index}"] = image.put(writer.header(SHAPE, (writer.DATATYPE, kind), layout))
    links["a"] = data.dataset(image, ARRAY)
    soft = bytes([1, 0x8, 1]) + b"\x04soft" + number(2, 2) + b"/a"
    external = bytes([1, 0x18, 64]) + b"\0\x03out" + number(7, 2) + b"\0b.h5\0a"
    root = writer.group(image, links, (writer.LINK, soft), (writer.LINK, external))
    assert list(parse(WeightFile.of(image.finish(root)))) == ["a"]


def test_headers_that_go_on():
    image = Image()
    later = writer.messages(FLOAT32, order=True)
    block = image.put(b"OCHK" + later + b"\0\0\0" + writer.CHECKSUM)
    goes_on = (writer.CONTINUATION, number(block) + number(len(later) + 11))
    new = image.put(writer.header(SHAPE, goes_on, data.contiguous(image, ARRAY), flags=0x34))
    later = writer.old_messages(FLOAT32)
    goes_on = (writer.CONTINUATION, number(image.put(later)) + number(len(later)))
    old = image.put(writer.old_header(SHAPE, goes_on, data.contiguous(image, ARRAY)))
    found = parse(WeightFile.of(image.finish(writer.group(image, {"new": new, "old": old}))))
    np.testing.assert_array_equal(found["new"], ARRAY)
    np.testing.assert_array_equal(found["old"], ARRAY)


def test_shapes():
    def file(shape: bytes) -> bytes:
        return with_object((writer.DATASPACE, shape), FLOAT32, data.compact(ARRAY))

    assert_faults(
        {
            "'a': dataspace version 3 is not read": file(b"\x03\0\0\0"),
            "'a': it has no shape (a null dataspace)": file(b"\x02\0\0\x02"),
            "'a': a structure of 4 bytes is too short for what it holds": file(b"\x02\x02\0\x01"),
            "'a': a shape of 33 axes, where 32 are the most": file(data.shape([1] * 33)[1]),
            f"'a': a shape that no array can have: [0, {1 << 62}]": file(data.shape([0, 1 << 62])[1]),
            "'a': shape [3, 3] with 4 bytes a value does not fit the 24 bytes stored": file(data.shape([3, 3])[1]),
        }
    )


def test_types():
    def file(kind: int, bits: bytes, size: int, rest: bytes = b"") -> bytes:
        message = (writer.DATATYPE, bytes([kind]) + bits.ljust(3, b"\0") + number(size, 4) + rest)
        return with_object(SHAPE, message, data.compact(ARRAY))

    def float_of(size: int, bits: bytes, first: int, *form: int) -> bytes:
        *places, bias = form
        return file(0x11, bits, size, number(first, 2) + number(8 * size, 2) + bytes(places) + number(bias, 4))

    assert_faults(
        {
            "'a': datatype version 6 is not read": file(0x60, b"", 4),
            "'a': datatype version 0 is not read": file(0x00, b"", 4),
            "'a': integers of 24 bits in 4 bytes are not read": file(0x10, b"", 4, number(0, 2) + number(24, 2)),
            "'a': integers of 128 bits in 16 bytes are not read": file(0x10, b"", 16, number(0, 2) + number(128, 2)),
            "'a': integers of 32 bits in 4 bytes are not read": file(0x10, b"", 4, number(1, 2) + number(32, 2)),
            "'a': floats of 8 bits, 4 of them the exponent's, are not read": float_of(1, b"\x20", 0, 3, 4, 0, 3, 7),
            "'a': floats of 32 bits, 8 of them the exponent's, are not read": float_of(
                4, b"\x60", 0, 23, 8, 0, 23, 127
            ),
            "'a': enumerations are not read, but for bool": file(0x38, b"\x02", 1, INT8[1] + b"TRUE\0FALSE\0\0\x01"),
            "'a': values of class time and 4 bytes are not read": file(0x12, b"", 4),
            "'a': values of class opaque and 2 bytes are not read": file(0x15, b"", 2),
            "'a': values of class array and 8 bytes are not read": file(0x1A, b"", 8),
            "'a': values of class complex and 8 bytes are not read": file(0x5B, b"", 8),
            "'a': values of class 15 and 8 bytes are not read": file(0x1F, b"", 8),
            "'a': a bool in it is neither 0 nor 1": with_array(
                lambda image: [data.contiguous(image, np.full((2, 3), 2, np.uint8))],
                dtype=data.type_of(np.dtype("?")),
            ),
        }
    )


def test_old_bools():
    """Names filled up to 8 bytes, as versions 1 and 2 have them."""
    names = b"FALSE\0\0\0TRUE\0\0\0\0"
    message = (writer.DATATYPE, b"\x18\x02\0\0" + number(1, 4) + INT8[1] + names + b"\0\x01")
    image = Image()
    layout = data.compact(np.array([1, 0, 1], np.uint8))
    content = image.finish(writer.group(image, {"a": image.put(writer.old_header(data.shape([3]), message, layout))}))
    assert parse(WeightFile.of(content))["a"].tolist() == [True, False, True]


def test_layouts():
    def file(layout: bytes) -> bytes:
        return with_object(SHAPE, FLOAT32, (writer.LAYOUT, layout))

    size = len(file(b"\x03\x01" + bytes(16)))
    assert_faults(
        {
            "'a': layout version 2 is not read": file(b"\x02\x01" + bytes(20)),
            "'a': layout class 4 is not read": file(b"\x03\x04"),
            "'a': a virtual dataset is not read": file(b"\x04\x03" + bytes(12)),
            "'a': it declares 6 values and stores none": file(b"\x03\x01" + NOWHERE + number(24)),
            "'a': shape [2, 3] with 4 bytes a value does not fit the 20 bytes stored": file(
                b"\x03\x01" + number(96) + number(20)
            ),
            "'a': shape [2, 3] with 4 bytes a value does not fit the 2 bytes stored": file(b"\x03\0\x02\0ab"),
            f"'a': 24 bytes at {size - 23} are said to be there, and the file has {size}": file(
                b"\x03\x01" + number(size - 23) + number(24)
            ),
        }
    )
    with pytest.raises(Malformed, match=r"^'a': its arrays need more than the 23 bytes that are allowed$"):
        parse(WeightFile.of(PLAIN, max_bytes=23))


def test_old_groups():
    image = Image()
    array = data.dataset(image, ARRAY)
    good = image.finish(writer.old_group(image, {"a": array}))
    tree, heap, symbols = (good.index(signature) for signature in (b"TREE", b"HEAP", b"SNOD"))

    def named(names: bytes, *entries: bytes) -> bytes:
        image = Image()
        assert data.dataset(image, ARRAY, data.compact(ARRAY)) == FIRST
        heap = image.put(b"HEAP" + bytes(4) + number(len(names)) + NOWHERE + number(image.put(names)))
        node = image.put(b"SNOD\x01\0" + number(len(entries), 2) + b"".join(entries))
        tree = writer.old_tree(image, 0, [(bytes(8), node)])
        return image.finish(image.put(writer.old_header((writer.SYMBOL_TABLE, number(tree) + number(heap)))))

    entry = number(1) + number(FIRST) + bytes(24)
    node = f"an entry of the symbol table at {named(bytes(3), entry).index(b'SNOD')} has no name or no object"
    assert list(parse(WeightFile.of(named(b"\0a\0", entry)))) == ["a"]
    soft = number(1) + NOWHERE + number(2, 4) + bytes(20)
    assert list(parse(WeightFile.of(named(b"\0a\0b\0", soft, number(3) + entry[8:])))) == ["b"]
    assert_faults(
        {
            f"at {heap} is no HEAP but b'HEAT'": changed(good, heap, b"HEAT"),
            "HEAP version 1 is not read": changed(good, heap, b"HEAP\x01"),
            f"at {tree} is no node of its tree": changed(good, tree, b"TREF"),
            f"at {symbols} is no symbol table": changed(good, symbols, b"SNOD\x02"),
            "two links are named 'a'": named(b"\0a\0", entry, entry),
            "'' is no name": named(b"\0\0\0", entry),
            "'.' is no name": named(b"\0.\0", entry),
            "'../a' is no name": named(b"\0../a\0", entry),
            r"a name is no UTF-8: b'\xff'": named(b"\0\xff\0", entry),
            node: named(b"\0aa", entry),
        }
    )
    assert_faults({node: named(bytes(3), number(9) + entry[8:])})
    assert_faults({node: named(b"\0a\0", number(1) + NOWHERE + bytes(24))})
    image = Image()
    array = data.dataset(image, ARRAY)
    good = image.finish(writer.old_group(image, dict.fromkeys("abcdefghi", array)))
    root = good.rindex(b"TREE")
    level = good[root + 5]
    assert level > 1
    message = f"a node of level {level - 1} is where one of level {level} should be"
    assert_faults({message: changed(good, root + 5, bytes([level + 1]))})


def test_new_groups():
    def linked(body: bytes) -> bytes:
        return with_root(lambda image: writer.group(image, {}, (writer.LINK, body)))

    assert_faults(
        {
            "link version 2 is not read": linked(b"\x02" + writer.link(b"a", FIRST)[1:]),
            "an address leads nowhere": linked(b"\x01\0\x01a" + NOWHERE),
            "link info version 1 is not read": with_root(
                lambda image: image.put(writer.header((writer.LINK_INFO, b"\x01\0" + NOWHERE * 2)))
            ),
        }
    )


@pytest.mark.parametrize(("count", "node_bytes", "depth"), [(1, 512, 0), (45, 512, 0), (60, 512, 1), (200, 128, 2)])
def test_many_links(count, node_bytes, depth):
    image = Image()
    arrays = {f"n{index}": np.array([index], np.int16) for index in range(count)}
    addresses = {name: data.dataset(image, array) for name, array in arrays.items()}
    content = image.finish(writer.dense_group(image, addresses, node_bytes))
    assert content[content.index(b"BTHD") + 12] == depth
    found = parse(WeightFile.of(content))
    assert list(found) == sorted(arrays)
    assert all(found[name] == array for name, array in arrays.items())


def test_links_in_a_heap():
    link = writer.link(b"a", FIRST)
    record = bytes(9) + number(len(link), 2)

    def file(
        record: bytes = record, rows: int = 0, depth: int = 0, kind: int = 5, node: int = 512, **heap: int
    ) -> bytes:
        image = Image()
        assert data.dataset(image, ARRAY, data.compact(ARRAY)) == FIRST
        root = image.put(link.ljust(512, b"\0"))
        if rows:
            root = image.put(writer.heap_table([root], rows))
        heap_address = image.put(writer.heap_header(root, rows, **heap))
        leaf = image.put(b"BTLF\0\x05" + record + writer.CHECKSUM)
        tree = image.put(writer.tree_header(leaf, 1, 1, depth, node, kind))
        tracked = b"\0\x01" + bytes(8)
        return image.finish(image.put(writer.header((writer.LINK_INFO, tracked + number(heap_address) + number(tree)))))

    def at(offset: int, length: int = len(link)) -> bytes:
        return bytes(5) + number(offset, 4) + number(length, 2)

    assert list(parse(WeightFile.of(file()))) == list(parse(WeightFile.of(file(rows=2)))) == ["a"]
    heap, tree = (file().index(signature) for signature in (b"FRHP", b"BTHD"))
    none = "an object is not within its heap"
    assert_faults(
        {
            "a heap with filters is not read": file(filters=4),
            "a heap with tables in its table is not read": file(rows=9, largest=1 << 15),
            f"the heap at {heap} has no sizes that one can have": file(first=0),
            f"the tree at {tree} (kind 6, depth 0) is none of links by name": file(kind=6),
            f"the tree at {tree} (kind 5, depth 17) is none of links by name": file(depth=17),
            "the nodes of a tree have no room for records": file(depth=1, node=32),
            "large objects of a heap are not read": file(bytes(4) + b"\x10" + record[5:]),
            none: file(at(512)),
        }
    )
    for content in (file(at(501)), file(at(512), rows=1), file(at(2048), rows=1), file(at(0xFFFFFFF0), rows=1)):
        assert_faults({none: content})


def test_attributes():
    kind, body, *_ = data.texts(b"layer_names", [b"a", b"b"])

    def file(body: bytes) -> bytes:
        return with_root(lambda image: writer.group(image, {"a": data.dataset(image, ARRAY)}, (kind, body)))

    image = Image()
    array = data.dataset(image, ARRAY)
    listed = data.heap_texts(image, b"layer_names", [b"abc", b"de"])
    good = image.finish(writer.group(image, {"a": array}, listed))
    heap = good.index(b"GCOL")
    missing = "a text of 3 bytes is not where an attribute says"
    assert_faults(
        {
            "attribute version 4 is not read": file(b"\x04" + body[1:]),
            "an attribute claims 2 texts in 1 bytes": file(body[:-1]),
            f"at {heap} is no heap of texts": changed(good, heap, b"GCOL\x02"),
            missing: changed(good, heap + 16, b"\x07"),
            "a structure of 80 bytes is too short for what it holds": changed(good, heap + 24, number(100)),
        }
    )
    assert_faults({missing: changed(good, heap + 16, b"\0")})  # which ends the heap
    assert_faults({missing: changed(good, heap + 24, b"\x02")})


CHUNKED = np.arange(30, dtype=np.float32).reshape(5, 6)
BOTH = (data.SHUFFLE, data.DEFLATE)


def chunked(
    layout: Callable[[Image], Message], kinds: tuple[int, ...] = (), array: np.ndarray = CHUNKED, version: int = 2
) -> bytes:
    """A file in which `a` has chunks."""
    listed = [data.filters(kinds, 4, version)] if kinds else []
    return with_array(lambda image: [layout(image), *listed], data.shape(array.shape))


def test_trees_of_chunks():
    def file(change: Callable[[list[tuple[bytes, int]]], object]) -> bytes:
        def layout(image: Image) -> Message:
            entries = []
            for start, content in data.pieces(CHUNKED, (2, 4)):
                key = number(len(content), 4) + bytes(4) + b"".join(map(number, start)) + bytes(8)
                entries.append((key, image.put(content)))
            change(entries)
            return data.tree_layout(writer.old_tree(image, 1, entries), (2, 4, 4))

        return chunked(layout)

    def moved(entries, start: tuple[int, int]) -> None:
        entries[3] = (entries[3][0][:8] + b"".join(map(number, start)) + bytes(8), entries[3][1])

    np.testing.assert_array_equal(parse(WeightFile.of(file(lambda entries: None)))["a"], CHUNKED)
    assert_faults(
        {
            "'a': it declares 6 chunks, of which 1 are missing, and stores 5": file(lambda entries: entries.pop()),
            "'a': it declares 6 chunks, of which 0 are missing, and stores 7": file(
                lambda entries: entries.append(entries[0])
            ),
            "'a': it declares 6 chunks, of which 1 are missing, and stores 6": file(
                lambda entries: moved(entries, (0, 0))
            ),
            "'a': it declares 6 values and stores none": with_object(
                SHAPE, FLOAT32, (writer.LAYOUT, b"\x03\x02\x03" + NOWHERE + bytes([2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]))
            ),
        }
    )
    for start in ((1, 4), (6, 0), (0, 8)):
        assert_faults({"'a': a chunk begins where none can": file(functools.partial(moved, start=start))})
    many = with_array(lambda image: [data.tree_layout(FIRST, (1, 4))], data.shape([1 << 30]))
    message = f"'a': it declares {1 << 30} chunks, too many for a tree in a file of {len(many)} bytes"
    assert_faults({message: many})


def test_layouts_of_chunks():
    def file(layout: Message, shape: Message = SHAPE) -> bytes:
        return with_object(shape, FLOAT32, layout)

    sizes = (2, 3, 4)
    wide = writer.LAYOUT, b"\x04\x02\0\x03\x08" + b"".join(map(number, (1 << 62, 3, 4))) + b"\x01" + number(FIRST)
    row = file(data.new_layout(2, (1, 1, 4), b"", FIRST), data.shape([100, 100]))
    assert_faults(
        {
            "'a': chunks in an extensible array are not read": file(data.new_layout(4, sizes, bytes(5), FIRST)),
            "'a': chunks in a tree of version 2 are not read": file(data.new_layout(5, sizes, bytes(6), FIRST)),
            "'a': chunks in an index of kind 6 are not read": file(data.new_layout(6, sizes, b"", FIRST)),
            "'a': chunks without filters at its edges are not read": file(data.new_layout(1, sizes, b"", FIRST, 1)),
            "'a': chunks of [3, 4] do not fit shape [2, 3] with 4 bytes a value": file(data.tree_layout(96, (3, 4))),
            "'a': chunks of [2, 3, 8] do not fit shape [2, 3] with 4 bytes a value": file(
                data.tree_layout(96, (2, 3, 8))
            ),
            "'a': chunks of [0, 3, 4] do not fit shape [2, 3] with 4 bytes a value": file(
                data.tree_layout(96, (0, 3, 4))
            ),
            "'a': chunks of [4] do not fit shape [] with 4 bytes a value": file(
                data.tree_layout(96, (4,)), data.shape([])
            ),
            "'a': a chunk needs more than the 8,589,934,592 bytes that are allowed": file(wide),
            "'a': it declares 2 chunks and stores one": file(data.new_layout(1, (2, 2, 4), b"", FIRST)),
            f"'a': it declares 10000 chunks of 4 bytes in a file of {len(row)}": row,
            "'a': a shape of 33 axes, where 32 are the most": file(
                data.tree_layout(96, [1] * 33 + [4]), data.shape([1] * 33)
            ),
        }
    )


def test_arrays_of_chunks():
    good = chunked(lambda image: data.in_array(image, CHUNKED, (2, 4)))
    head = good.index(b"FAHD")
    pages = chunked(lambda image: data.in_array(image, CHUNKED, (2, 4), page_bits=1))
    packed = chunked(lambda image: data.in_array(image, CHUNKED, (2, 4), BOTH), BOTH)
    for content in (good, pages, packed):
        np.testing.assert_array_equal(parse(WeightFile.of(content))["a"], CHUNKED)
    entries = "'a': entries of {} bytes in the array of its chunks are not read"
    assert_faults(
        {
            entries.format(8): changed(good, head + 5, b"\x01"),
            entries.format(9): changed(good, head + 6, b"\x09"),
            entries.format(15): changed(good, head + 5, b"\x02\x0f"),
            entries.format(12): changed(packed, packed.index(b"FAHD") + 6, b"\x0c"),
            entries.format(21): changed(packed, packed.index(b"FAHD") + 6, b"\x15"),
            "'a': it declares 6 chunks and stores 7": changed(good, head + 8, b"\x07"),
            "'a': it declares 6 chunks and stores fewer": changed(pages, pages.index(b"FADB") + 14, b"\xc0"),
        }
    )


def test_filters():
    def file(kinds: tuple[int, ...], version: int = 2, value_bytes: int = 4) -> bytes:
        listed = data.filters(kinds, value_bytes, version)
        return with_array(lambda image: [data.single(image, ARRAY), listed])

    named = b"\x02\x01" + number(32001, 2) + number(6, 2) + number(1, 2) + number(1, 2) + b"blosc\0" + bytes(4)
    assert_faults(
        {
            "'a': filter list version 3 is not read": file((), 3),
            "'a': filter 4 (szip) is not read": file((4,)),
            "'a': filter 32000 (lzf) is not read": file((data.SHUFFLE, 32000), 1),
            "'a': filter 9 (unknown) is not read": file((9,)),
            "'a': filter 32001 (blosc) is not read": with_array(
                lambda image: [data.single(image, ARRAY), (writer.FILTERS, named)]
            ),
            "'a': filters in the order [1, 2] are not read": file((data.DEFLATE, data.SHUFFLE)),
            "'a': filters in the order [1, 1] are not read": file((data.DEFLATE, data.DEFLATE)),
            "'a': the filter shuffle is set to [8], where a value has 4 bytes": file((data.SHUFFLE,), 1, 8),
        }
    )


def test_contents_of_chunks():
    def file(
        content: bytes, kinds: tuple[int, ...] = (data.DEFLATE,), size: int | None = None, address: int | None = None
    ) -> bytes:
        def layout(image: Image) -> Message:
            place = image.put(content) if address is None else address
            stated = len(content) if size is None else size
            return data.new_layout(1, (*ARRAY.shape, 4), number(stated) + bytes(4), place, 2)

        return chunked(layout, kinds, ARRAY)

    raw = ARRAY.tobytes()
    packed = data.apply([data.DEFLATE], raw, 4)
    end = f"'a': a chunk is said to be where the file of {len(file(packed))} bytes has ended"
    no_end = "'a': the deflated data of a chunk does not end where it should"
    assert_faults(
        {
            end: file(packed, size=1 << 63),
            "'a': a chunk of 24 bytes is said to be kept in 0": file(packed, size=0),
            "'a': a chunk of 24 bytes is said to be kept in 23": file(raw, (data.SHUFFLE,), size=23),
            "'a': a chunk of 24 bytes is said to be kept in 24": file(raw, (data.FLETCHER32,)),
            "'a': a chunk of it is no deflated data": file(b"no deflated data"),
            "'a': a chunk unpacks to more than its 24 bytes": file(data.apply([data.DEFLATE], raw + b"a", 4)),
            "'a': a chunk unpacks to 23 bytes instead of 24": file(data.apply([data.DEFLATE], raw[1:], 4)),
            no_end: file(packed[:-4]),
        }
    )
    assert_faults({no_end: file(b"ab", (data.DEFLATE, data.FLETCHER32))})
    assert_faults({no_end: file(packed + b"more")})
    assert_faults({no_end: file(packed + bytes(1 << 16))})
    assert_faults({end: file(packed, size=(1 << 64) - FIRST)})  # which would end at 0
    for address in (len(file(packed)) - 1, 1 << 62, (1 << 64) - 2):
        assert_faults({end: file(packed, address=address).ljust(len(file(packed)), b"\0")})


@pytest.mark.parametrize("more", [b"", b"more"])
def test_a_chunk_that_is_followed_by_more(more):
    """Its deflated data ends where the first piece of 64 KiB does."""
    array = np.arange(65525).astype(np.uint8)
    packed = zlib.compress(array.tobytes(), 0)
    assert len(packed) == 1 << 16
    image = Image()
    stated = number(len(packed + more)) + bytes(4)
    layout = data.new_layout(1, (array.size, 1), stated, image.put(packed + more), 2)
    address = data.dataset(image, array, layout, data.filters([data.DEFLATE], 1))
    content = image.finish(writer.group(image, {"a": address}))
    if more:
        assert_faults({"'a': the deflated data of a chunk does not end where it should": content})
    else:
        np.testing.assert_array_equal(parse(WeightFile.of(content))["a"], array)
