"""Which format a weight file has, by its content: suffixes lie, and downloads fail quietly.

Most formats sign their first bytes. Protocol buffers do not: an ONNX model and a caffemodel are told apart by the
numbers and wire types of their outermost fields, among which those of Caffe's and TensorFlow's other files stand out.
"""

import contextlib
import itertools
from collections import Counter

from fcn_jax.errors import WeightFileError
from fcn_jax.weights import numpy_archive
from fcn_jax.weights.files import Malformed, WeightFile
from fcn_jax.weights.protobuf import BYTES, VARINT, Piece, fields
from fcn_jax.weights.zip_archive import entries

READ = "Caffe's .caffemodel, torch checkpoints, safetensors, HDF5 (Keras, Caffe), ONNX models and NumPy's .npz"

_HEAD_BYTES = 512
_HDF5 = b"\x89HDF\r\n\x1a\n"
_MAGIC_NUMBER = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # as a pickle has it; torch's since 0.1
_FRAME = b"\x95"  # with eight bytes of length, in pickles of protocol 4 and above
_SORTED_TABLE = 0xDB4775248B80FB57.to_bytes(8, "little")  # the last bytes of TensorFlow's checkpoint index

_MAX_FIELDS = 1 << 10
_BLOB = "is a single Caffe blob, such as a mean image (.binaryproto)"

# First bytes → what such a file is.
_FOREIGN = (
    (b"\x1f\x8b", "is compressed by gzip; unpack it first"),
    (b"BZh", "is compressed by bzip2; unpack it first"),
    (b"\xfd7zXZ\x00", "is compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; unpack it first"),
    (b"MATLAB 5.0", "is a MATLAB file (.mat)"),
    (b"MATLAB 7.3", "is a MATLAB file (.mat)"),
    (b"\x89PNG", "is a PNG picture"),
    (b"\xff\xd8\xff", "is a JPEG picture"),
    (b"GGUF", "is a GGUF file"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself"),
)


def format_of(file: WeightFile) -> str:
    """The name of a file's reader: caffemodel, torch, safetensors, hdf5, onnx or numpy.

    Raises WeightFileError that says what the file is, where it is nothing that is read. Whatever is not recognised
    goes to the caffemodel reader, which finds out.
    """
    head = file.at(0, min(_HEAD_BYTES, file.size))
    if not head:
        raise _refused(file, "is empty")
    for signature, description in _FOREIGN:
        if head.startswith(signature):
            raise _refused(file, description)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _kind_of_zip(file)
    if head.startswith(numpy_archive.MAGIC):
        return "numpy"
    if _is_hdf5(file):
        return "hdf5"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return _kind_of_pickle(file, head)
    if head[8:9] == b"{" and (head[9:10] == b'"' or int.from_bytes(head[:8], "little") < 1 << 32):
        return "safetensors"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<":
        raise _refused(file, "is a web page (HTML or XML), which a failed download leaves")
    if _is_text(head):
        raise _refused(file, "is a text file (a .prototxt describes a net and holds no weights)")
    if head[257:262] == b"ustar":
        raise _refused(file, "is a tar archive; unpack it first")
    if head[4:8] == b"TFL3":
        raise _refused(file, "is a TensorFlow Lite model")
    if file.size >= len(_SORTED_TABLE) and file.at(file.size - len(_SORTED_TABLE), len(_SORTED_TABLE)) == _SORTED_TABLE:
        raise _refused(file, "is the index of a TensorFlow checkpoint")
    return _kind_of_message(file)


def _kind_of_zip(file: WeightFile) -> str:
    try:
        names = list(entries(file))
    except Malformed as fault:
        raise WeightFileError(f"{_name(file)}: not a whole zip archive: {fault}") from None
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    if names and all(name.endswith(numpy_archive.SUFFIX) for name in names):
        return "numpy"
    if "model.weights.h5" in names:
        raise _refused(file, "is a Keras archive (.keras), whose member 'model.weights.h5' can be read once unpacked")
    what = f"of something else, such as {names[0][:80]!r}" if names else "without members"
    raise _refused(file, f"is a zip archive {what}")


def _is_hdf5(file: WeightFile) -> bool:
    """The signature stands at the beginning, or at 512, 1024, … behind what a user put in front."""
    offsets = itertools.chain([0], (512 << power for power in itertools.count()))
    offsets = itertools.takewhile(lambda offset: offset + len(_HDF5) <= file.size, offsets)
    return any(file.at(offset, len(_HDF5)) == _HDF5 for offset in offsets)


def _kind_of_pickle(file: WeightFile, head: bytes) -> str:
    first = head[2:]
    if first.startswith(_FRAME):
        first = first[9:]
    if first.startswith(_MAGIC_NUMBER):
        return "torch"
    raise _refused(
        file, "is a pickle that torch did not save; such files are never loaded, as they can run any program"
    )


def _kind_of_message(file: WeightFile) -> str:
    """Tells messages apart by their outermost fields, also of a file that was cut short: its reader says so."""
    seen: Counter[tuple[int, int]] = Counter()
    starts = set()  # first bytes of field 2
    with contextlib.suppress(Malformed):
        for number, wire_type, value in itertools.islice(fields(file, 0, file.size), _MAX_FIELDS):
            seen[number, wire_type] += 1
            if number == 2 and isinstance(value, Piece) and value.offset < file.size:
                starts.add(file.at(value.offset, 1))
    if (100, BYTES) in seen:  # layers of a caffemodel
        return "caffemodel"
    if (1, VARINT) not in seen:  # 1 is the name of a net, and 2 are its layers in V1
        if seen[1, BYTES] > 1:
            raise _refused(file, "is a TensorFlow graph (a frozen .pb)")
        if (7, BYTES) in seen and not starts:
            raise _refused(file, _BLOB)
        return "caffemodel"
    if (2, VARINT) in seen:  # 1 to 4 are the sizes of a blob
        raise _refused(file, _BLOB)
    if (4, VARINT) in seen or seen[3, BYTES] > 1:  # 1 and 4 are the iteration and the step, 3 the history
        raise _refused(file, "is a Caffe .solverstate, which holds no net")
    if (7, BYTES) not in seen and b"\n" in starts:  # 1 is the version, 2 a graph whose first field is 1
        raise _refused(file, "is a TensorFlow SavedModel")
    return "onnx"


def _is_text(head: bytes) -> bool:
    return all(32 <= byte < 127 or byte in b"\t\n\r" for byte in head)


def _name(file: WeightFile) -> str:
    return "weights" if file.path is None else str(file.path)


def _refused(file: WeightFile, description: str) -> WeightFileError:
    return WeightFileError(f"{_name(file)}: {description}; weights are read from {READ}")
