import os
import pickle
import time
from typing import Any

import pytest
import torch_writer as writer
from hypothesis import given, settings
from hypothesis import strategies as st
from readers_under_fire import cuts, flips, peak_memory

from fcn_jax.weights import pickle_reader
from fcn_jax.weights.files import Malformed, WeightFile
from fcn_jax.weights.pickle_reader import Global, Opaque, Pairs

BUILDERS = {
    "some.maker": lambda arguments: ("made", arguments),
    "argparse.Namespace": lambda _: Opaque("Namespace"),
}


def load(data: bytes, start: int = 0) -> Any:
    """The value of a pickle that ends where the bytes end."""
    value, end = pickle_reader.load(WeightFile.of(data), start, len(data), BUILDERS, lambda identity: ("id", identity))
    assert end == len(data)
    return value


def plain(value: Any) -> Any:
    """Pairs as dicts, in what was read; sets are gone."""
    if isinstance(value, Pairs):
        return {plain(key): plain(item) for key, item in value.items}
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value))
    return value


VALUES = {
    "none": None,
    "booleans": (True, False),
    "integers": [0, 255, 256, 65535, 65536, -1, 2**31 - 1, -(2**31), 2**31, -(2**63), 0x1950A86A20F9469CFC6C],
    "floats": [0.0, -1.5, float("inf"), 1e300],
    "texts": ["", "abc", "äöü", "𝛼" * 100, "long" * 100],
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "lists": [[], [1], [[1, 2], [3]]],
    "dicts": {"a": 1, 2: {}, None: {"b": {"c": 3}}, (1, 2): [4]},
    "many": {f"key{index}": [index] * 3 for index in range(3000)},
    "shared": [["x"]] * 300,
    "long": ["a" * 70000, "b" * 140000, "c"],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", VALUES)
def test_reads_what_python_writes(name, protocol):
    assert plain(load(pickle.dumps(VALUES[name], protocol))) == VALUES[name]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_reads_bytes(protocol):
    assert load(pickle.dumps([b"", b"\xff" * 300], protocol)) == [b"", b"\xff" * 300]
    if protocol == 5:
        assert load(pickle.dumps(bytearray(b"ab"), protocol)) == b"ab"


def test_one_object_stays_one():
    value = load(pickle.dumps([["x"]] * 2, 2))
    assert value[0] is value[1]


def test_a_circle_is_read():
    circle: list[Any] = []
    circle.append(circle)
    value = load(pickle.dumps(circle, 2))
    assert value[0] is value


def test_sets_are_gone_and_what_they_held_with_them():
    assert load(pickle.dumps({1, 2}, 4)) == Opaque("set")


def test_strings_of_python_2_are_text_or_bytes():
    assert load(b"\x80\x02(U\x03abcT\x02\x00\x00\x00\xc3\xa4U\x01\xfft.") == ("abc", "ä", b"\xff")


def test_starts_and_ends_where_it_should():
    data = b"xx" + pickle.dumps(1, 2) + pickle.dumps(2, 2)
    value, end = pickle_reader.load(WeightFile.of(data), 2, len(data), {}, print)
    assert value == 1 and data[end:] == pickle.dumps(2, 2)
    assert load(data, end) == 2


@pytest.mark.parametrize("filling", [*range(65520, 65545), *range(65536 - 260, 65536 - 240)])
def test_values_across_the_borders_of_pieces(filling):
    data = writer.pickled(
        writer.group(b"B" + filling.to_bytes(4, "little") + bytes(filling), writer.named("some.maker"))
    )
    assert load(data) == (bytes(filling), Global("some.maker"))


def test_globals_only_look_up():
    assert load(writer.pickled(writer.named("some.maker"))) == Global("some.maker")
    assert load(writer.pickled(writer.call("some.maker", writer.number(3)))) == ("made", (3,))
    assert load(b"\x80\x04\x8c\x04some\x8c\x05maker\x93)\x81.") == ("made", ())
    assert load(b"\x80\x02K\x07Q.") == ("id", 7)


def test_state_and_items_of_what_is_opaque_are_dropped():
    namespace = writer.named("argparse.Namespace") + b")\x81"
    assert load(writer.pickled(namespace + writer.mapping({"lr": b"K\x01"}) + b"b")) == Opaque("Namespace")
    assert load(writer.pickled(namespace + b"K\x01a(K\x02eK\x01K\x02s(u")) == Opaque("Namespace")
    assert plain(load(writer.pickled(writer.mapping({"a": b"K\x01"}) + b"}b"))) == {"a": 1}


class Evil:
    """What runs a command in a pickle that is loaded."""

    def __init__(self, function: Any, *arguments: Any):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nothing_is_executed(protocol, tmp_path):
    trace = tmp_path / "trace"
    for function, name in [(os.system, "posix.system"), (eval, "eval"), (getattr, "getattr")]:
        data = pickle.dumps(Evil(function, f"touch {trace}", *["x"] * (function is getattr)), protocol)
        with pytest.raises(Malformed, match=rf"it wants to call [a-z_.]*{name}; only tensors and plain containers"):
            load(data)
    assert not trace.exists()


FAULTS = [
    ("cut short", b"\x80\x02"),
    ("is cut short, or larger", b"\x80\x02X\xff\xff\xff\xffabc."),
    ("is cut short, or larger", b"\x80\x02T\xff\xff\xff\xffabc."),
    ("is cut short, or larger", b"\x80\x02B\xff\xff\xff\xffabc."),
    ("is cut short, or larger", b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\xffabc."),
    ("is cut short, or larger", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffN."),
    ("the opcode 0x30", b"\x80\x02N0."),
    ("the opcode 0x00", b"\x80\x02\x00"),
    ("protocol 1,", b"\x80\x01N."),
    ("protocol 6,", b"\x80\x06N."),
    ("uses a value that is not there", b"\x80\x02."),
    ("uses a value that is not there", b"\x80\x02](K\x01ss."),
    ("uses a value that is not there", b"\x80\x02K\x01(\x85."),
    ("uses a value that is not there", b"\x80\x02(q\x00."),
    ("uses a mark that is not there", b"\x80\x02K\x01t."),
    ("recalls a value that it never kept", b"\x80\x02h\x05."),
    ("appends to what is no list", b"\x80\x02}K\x01a."),
    ("sets items of what is no dict", b"\x80\x02]K\x01K\x02s."),
    ("has a key without a value", b"\x80\x02}(K\x01u."),
    ("a text that is no UTF-8", b"\x80\x02X\x01\x00\x00\x00\xff."),
    ("calls what is no function", b"\x80\x02K\x01)R."),
    ("calls what is no function", writer.pickled(writer.named("some.maker") + b"]R")),
    ("names a global that cannot be one", b"\x80\x04K\x01K\x02\x93."),
    ("names a global that cannot be one", b"\x80\x02cbad name\nx\n."),
    ("names a global that cannot be one", b"\x80\x02c\xff\nx\n."),
    ("names a global that cannot be one", writer.pickled(writer.text("a" * 257) + writer.text("b") + b"\x93")),
    ("a name without an end", b"\x80\x02cabc"),
    ("a name without an end", b"\x80\x02c" + b"a" * 300 + b"\nb\n."),
    (r"it wants to call some.thing\.else_;", b"\x80\x02csome.thing\nelse_\n."),
]


@pytest.mark.parametrize(("fault", "data"), FAULTS)
def test_faults_are_named(fault, data):
    with pytest.raises(Malformed, match=fault) as error:
        load(data)
    assert "\n" not in str(error.value)


def test_cut_and_flipped():
    data = pickle.dumps({"a": [1, 2.5, (3, "b")], "c": {4: 1 << 70, 5: b"x"}}, 2) + b"tail"
    whole = data[:-4]
    for cut in cuts(whole):
        with pytest.raises(Malformed):
            load(cut)
    refused = 0
    for flipped in flips(data):
        try:
            pickle_reader.load(WeightFile.of(flipped), 0, len(flipped), BUILDERS, str)
        except Malformed:
            refused += 1
    assert refused > 100


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 60))
def test_foreign_bytes(inserted, position):
    data = pickle.dumps({"a": [1, 2.5, (3, "b")], "c": {4: 1 << 70}}, 4)
    for hostile in (data[:position] + inserted + data[position:], b"\x80\x02" + inserted):
        try:
            pickle_reader.load(WeightFile.of(hostile), 0, len(hostile), BUILDERS, lambda identity: identity)
        except Malformed as fault:
            assert "\n" not in str(fault)


SCALARS = st.none() | st.booleans() | st.integers(-(2**300), 2**300) | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=30,
)


@settings(deadline=None)
@given(TREES, st.integers(2, 5))
def test_any_tree_of_plain_values(value, protocol):
    assert plain(load(pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize(
    "data",
    [b")" + b"\x85" * 200_000, b"]" * 200_000 + b"a" * 199_999, b"}N" * 100_000 + b"N" + b"s" * 100_000],
    ids=["tuples", "lists", "dicts"],
)
def test_deep_nests_overflow_nothing(data):
    load(writer.pickled(data))


def test_keys_are_never_hashed():
    """Integers whose hashes are all the same would fill a dict in a time that grows with their number squared."""
    keys = b"".join(writer.number(index * (2**61 - 1)) + b"N" for index in range(50_000))
    start = time.process_time()
    assert len(load(writer.pickled(b"}(" + keys + b"u")).items) == 50_000
    assert time.process_time() - start < 5


def test_long_names_are_not_joined_over_and_over():
    long = writer.text("a" * 1_000_000) + b"q\x00"
    start = time.process_time()
    with pytest.raises(Malformed, match="cannot be one"):
        load(b"\x80\x02" + long + b"h\x00h\x00\x93" * 50_000 + b".")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("opcode", [b"]", b"}", b"(", b")", b"K\x01", b"cargparse\nNamespace\n"])
def test_memory_is_bounded_by_the_file(opcode):
    data = b"\x80\x02" + opcode * (2000 // len(opcode))

    def work() -> None:
        with pytest.raises(Malformed, match="cut short"):
            load(data)

    assert peak_memory(work) < 400_000


def test_steps_and_bytes_are_bounded(monkeypatch):
    monkeypatch.setattr(pickle_reader, "MAX_STEPS", 1000)
    with pytest.raises(Malformed, match="more than 1,000 steps"):
        load(b"\x80\x02" + b"N" * 1000 + b".")
    monkeypatch.setattr(pickle_reader, "MAX_BYTES", 500)
    with pytest.raises(Malformed, match="larger than it may be"):
        load(b"\x80\x02" + b"N" * 600 + b".")
    assert load(b"\x80\x02" + b"N" * 400 + b".") is None
