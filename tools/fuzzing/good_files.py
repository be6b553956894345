"""Small whole weight files of every format and its variants, which fuzz_readers.py then breaks.

Taken are the golden files of tests/, and what the writers in tests/ make, with arrays of 640 kB among them where they
can be deflated to a few bytes. Archives are packed anew without the time of day, so that the same seed makes the same
inputs tomorrow.
"""

import io
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "tests"))

import caffemodel_writer as caffe  # pyright: ignore[reportMissingImports]
import hdf5_data_writer as data  # pyright: ignore[reportMissingImports]
import hdf5_writer as hdf5  # pyright: ignore[reportMissingImports]
import torch_writer as torch  # pyright: ignore[reportMissingImports]

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
BESIDE = GOLDEN / "onnx" / "external.bin"  # the values of external.onnx
_LARGEST = 16 << 10  # bytes of a golden file that is taken
_UNREAD = ("script.pth", "unread.pth")

Member = tuple[str, bytes, int]  # name, content, method

_KERNEL = np.arange(12, dtype=np.float32).reshape(3, 4)
_BIAS = np.array([0.5, -2.0, 8.0], np.float32)
_ARRAYS = {"conv.weight": _KERNEL, "conv.bias": _BIAS}
_ZEROS = np.zeros((400, 400), np.float32)


def good_files() -> dict[str, list[bytes]]:
    """The files by format; each is one that `weights.read` reads."""
    zipped, legacy = _golden("torch/*.pth", b"PK"), _golden("torch/*.pth", b"\x80")
    return {
        "caffemodel V1": _caffemodels(v1=True),
        "caffemodel V2": _caffemodels(v1=False),
        "torch zip": zipped + _torch_archives(),
        "torch legacy": [*legacy, torch.checkpoint(_ARRAYS, legacy=True)],
        "safetensors": [*_golden("safetensors/*.safetensors"), _safetensors()],
        "onnx": [*_golden("onnx/*.onnx"), _onnx()],
        "hdf5": _golden("hdf5/*.h5") + _hdf5_files(),
        "npz": _golden("torch_nets/*.npz") + _npz_files(),
        "npy": _npy_files(),
    }


def unpacked(archive: bytes) -> list[Member]:
    """The members of a zip archive, in the order of its directory."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return [(info.filename, opened.read(info), info.compress_type) for info in opened.infolist()]


def packed(members: Sequence[Member], wide: bool = False) -> bytes:
    """A zip archive with right sizes and checksums, if `wide` with a zip64 directory; names may be repeated."""
    body, directory = b"", b""
    for text, content, method in members:
        name = text.encode("utf-8", "surrogateescape")[:0xFFFF]
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        values = deflate.compress(content) + deflate.flush() if method == zipfile.ZIP_DEFLATED else content
        head = struct.pack(
            "<5H3L2H", 20, 0, method, 0, 33, zlib.crc32(content), len(values), len(content), len(name), 0
        )
        directory += b"PK\x01\x02\x14\0" + head + struct.pack("<3H2L", 0, 0, 0, 0, len(body)) + name
        body += b"PK\x03\x04" + head + name + values
    place = (len(members), len(members), len(directory), len(body))
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, *place, 0)
    if wide:
        record = b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, *place)
        end = record + b"PK\x06\x07" + struct.pack("<LQL", 0, len(body) + len(directory), 1) + end
    return body + directory + end


def _golden(pattern: str, start: bytes = b"") -> list[bytes]:
    paths = sorted(path for path in GOLDEN.glob(pattern) if path.name not in _UNREAD)
    contents = [path.read_bytes() for path in paths if path.stat().st_size <= _LARGEST]
    return [content for content in contents if content.startswith(start)]


def _caffemodels(v1: bool) -> list[bytes]:
    blobs = {"conv.0": _KERNEL.reshape(3, 1, 2, 2), "conv.1": _BIAS, "fc.0": _KERNEL.astype("f8")}
    return [caffe.net(blobs, v1=v1, packed=in_runs) for in_runs in (True, False)]


def _torch_archives() -> list[bytes]:
    kernel = torch.tensor(torch.storage("0", 12), 0, (3, 4))
    turned = torch.tensor(torch.storage("0", 12), 1, (2, 3), (1, 4))  # a view of every fourth value
    big_endian = torch.archive(
        torch.mapping({"weight": kernel, "turned": turned}), {"0": _KERNEL.astype(">f4").tobytes()}, byteorder=b"big"
    )
    plain = unpacked(torch.checkpoint(_ARRAYS | {"steps": np.array(7)}))
    large = unpacked(torch.checkpoint({"zeros": _ZEROS}))
    stored = [packed(unpacked(big_endian)), packed(plain), packed(plain, wide=True)]
    return [*stored, packed(_deflated(plain)), packed(_deflated(large))]


def _deflated(members: Sequence[Member]) -> list[Member]:
    return [(name, content, zipfile.ZIP_DEFLATED) for name, content, _ in members]


def _safetensors() -> bytes:
    place = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "bias": place}).encode()
    return struct.pack("<Q", len(header)) + header + _BIAS.tobytes()


def _onnx() -> bytes:
    tensors = caffe.message(2, b"a graph")
    for name, array in (("bias", _BIAS), ("empty", np.zeros((0, 3), np.float32))):
        dims = b"".join(caffe.number(1, size) for size in array.shape)
        fields = (dims, caffe.number(2, 1), caffe.message(8, name.encode()), caffe.message(9, array.tobytes()))
        tensors += caffe.message(5, b"".join(fields))
    return caffe.number(1, 8) + caffe.message(7, tensors)


def _hdf5_files() -> list[bytes]:
    files = [data.file_of(_ARRAYS, version=version, user_block=512 * (version == 3)) for version in range(4)]
    filters = (data.SHUFFLE, data.DEFLATE)
    image = hdf5.Image()
    layouts = {
        "compact": data.compact(_KERNEL),
        "tree": data.in_tree(image, _KERNEL, (2, 3), filters),
        "array": data.in_array(image, _KERNEL, (2, 3), filters),
        "pages": data.in_array(image, _KERNEL, (1, 1), page_bits=2),
        "single": data.single(image, _KERNEL, (data.FLETCHER32,)),
        "row": data.in_a_row(image, _KERNEL, (2, 2)),
    }
    used = {"tree": filters, "array": filters, "single": (data.FLETCHER32,)}
    for name, layout in layouts.items():
        given = [data.filters(used[name], _KERNEL.itemsize)] if name in used else []
        layouts[name] = data.dataset(image, _KERNEL, layout, *given)  # the address of the dataset
    files.append(image.finish(hdf5.group(image, layouts)))
    image = hdf5.Image()
    large = data.dataset(image, _ZEROS, data.in_tree(image, _ZEROS, (150, 400), filters), data.filters(filters, 4))
    files.append(image.finish(hdf5.group(image, {"zeros": large})))
    # A header that goes on twice, each time in as many bytes, so that it can be turned into a circle.
    image = hdf5.Image()
    link = (hdf5.LINK, hdf5.link(b"bias", data.dataset(image, _BIAS)))
    rest = b"OCHK" + hdf5.messages(link, (0, bytes(16))) + hdf5.CHECKSUM
    for _ in range(2):
        more = (hdf5.CONTINUATION, hdf5.number(image.put(rest)) + hdf5.number(len(rest)))
        rest = b"OCHK" + hdf5.messages((0, link[1]), more) + hdf5.CHECKSUM
    files.append(image.finish(image.put(hdf5.header(more))))
    for make in (hdf5.old_group, hdf5.dense_group):
        image = hdf5.Image()
        bias = data.dataset(image, _BIAS)
        inner = hdf5.group(image, {"bias": bias}, data.texts(b"weight_names", [b"bias"]))
        files.append(image.finish(make(image, {"layer": inner, "a": bias, "b": data.dataset(image, _KERNEL)})))
    image = hdf5.Image()
    layer = hdf5.group(image, {"w": data.dataset(image, _KERNEL)}, data.heap_texts(image, b"weight_names", [b"w"]))
    return [
        *files,
        image.finish(hdf5.group(image, {"layer": layer}, data.heap_texts(image, b"layer_names", [b"layer"]))),
    ]


def _npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version)
    return stream.getvalue()


def _npy_files() -> list[bytes]:
    arrays = [_KERNEL, np.asfortranarray(_KERNEL), np.array(0.5, ">f8"), np.zeros((0, 3), "<i8"), _BIAS > 0]
    return [_npy(array, ((1, 0), (2, 0), (3, 0))[index % 3]) for index, array in enumerate(arrays)]


def _npz_files() -> list[bytes]:
    members = [(f"layer/{index}.npy", content, zipfile.ZIP_STORED) for index, content in enumerate(_npy_files())]
    return [packed(members), packed(_deflated([*members, ("zeros.npy", _npy(_ZEROS), 0)]), wide=True)]
