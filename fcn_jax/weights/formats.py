"""Which format a weight file has, by its first bytes: suffixes lie, and downloads fail quietly."""

import os
from pathlib import Path

from fcn_jax.errors import WeightFileError

_HEAD_BYTES = 512

# First bytes → what the file is and what to do with it.
_FOREIGN = (
    (b"PK\x03\x04", "is a zip archive (a torch checkpoint or .npz)"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file (Keras, or Caffe's .caffemodel.h5)"),
    (b"\x93NUMPY", "is a single NumPy array (.npy)"),
    (b"\x1f\x8b", "is compressed by gzip"),
    (b"\x08", "is an ONNX model, a Caffe mean image or a .solverstate"),
    *((b"\x80" + bytes([protocol]), "is a pickle (an old torch checkpoint)") for protocol in range(2, 6)),
)


def format_of(path: str | os.PathLike[str]) -> str:
    """The name of the reader for a file: "caffemodel". Every other format is refused by name.

    Protocol buffers have no signature, so whatever is not recognised as something else goes to the caffemodel reader,
    which finds out.
    """
    head = _head(path)
    for signature, description in _FOREIGN:
        if head.startswith(signature):
            raise _refused(path, description)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        raise _refused(path, "is a safetensors file")
    if head.lstrip()[:1] == b"<":
        raise _refused(path, "is a web page (HTML or XML), which a failed download leaves")
    if head.startswith(b"version https://git-lfs"):
        raise _refused(path, "is a Git LFS pointer, not the file itself")
    if _is_text(head):
        raise _refused(path, "is a text file (a .prototxt describes a net and holds no weights)")
    return "caffemodel"


def _head(path: str | os.PathLike[str]) -> bytes:
    if not Path(path).is_file():
        found = "is a folder, not a file" if Path(path).is_dir() else "no such file"
        raise WeightFileError(f"{path}: {found}")
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise WeightFileError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        raise WeightFileError(f"{path}: the file is empty")
    return head


def _is_text(head: bytes) -> bool:
    return all(32 <= byte < 127 or byte in b"\t\n\r" for byte in head)


def _refused(path: str | os.PathLike[str], description: str) -> WeightFileError:
    return WeightFileError(f"{path}: {description}; weights are read from Caffe's binary .caffemodel")
