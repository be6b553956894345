"""The files beside an ONNX model that hold values of its tensors ("external data").

A model names such a file itself, so a name is followed only to a regular file inside the model's folder: neither up,
nor to an absolute path, nor through a link that leads out, nor to a device. Source: docs/ExternalData.md of the ONNX
project.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

from fcn_jax.weights.files import Malformed, WeightFile

_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
_MAX_DIGITS = 20


class FilesBeside:
    """The files in the folder of a model, of which the last one asked for is open."""

    def __init__(self, model: Path | None):
        self._folder = None if model is None else model.parent
        self._location = ""
        self._file: WeightFile | None = None
        self._stream = None

    def close(self) -> None:
        if self._stream:
            self._stream.close()

    def find(self, entries: Mapping[str, str], size: int) -> tuple[WeightFile, int]:
        """The file that the entries of a tensor name, and where in it its `size` bytes are."""
        location = entries.get("location", "")
        offset = _natural(entries.get("offset", "0"))
        length = _natural(entries.get("length", str(size)))
        if length != size:
            raise Malformed(f"it needs {size} bytes, and its external data has {length}")
        if self._file is None or location != self._location:
            self._open(location)
        assert self._file is not None
        if offset + size > self._file.size:
            raise Malformed(f"{location!r} beside the model has {self._file.size} bytes, and it needs {offset + size}")
        return self._file, offset

    def _open(self, location: str) -> None:
        self.close()
        path = self._path(location)
        try:
            descriptor = os.open(path, _FLAGS)
            self._stream = os.fdopen(descriptor, "rb")  # of a folder it closes the descriptor and raises
        except OSError as error:
            raise Malformed(f"{location!r} beside the model cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Malformed(f"{location!r} beside the model is no regular file")
        self._file, self._location = WeightFile(self._stream), location

    def _path(self, location: str) -> str:
        if self._folder is None:
            raise Malformed("its values are in a file beside the model, and the model is not a file")
        parts = PureWindowsPath(location)  # knows both kinds of slash, and drives
        if not location or parts.anchor or ".." in parts.parts:
            raise Malformed(f"its values are in {location!r}, which is no path within the folder of the model")
        try:
            folder = os.path.realpath(self._folder, strict=True)
            path = os.path.realpath(self._folder / location, strict=True)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no name of a file"
            raise Malformed(f"{location!r} beside the model cannot be read: {reason}") from None
        if not Path(path).is_relative_to(folder):
            raise Malformed(f"its values are in {location!r}, a link that leads out of the folder of the model")
        return path


def _natural(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS):
        raise Malformed(f"its external data has no offset or length {digits[:80]!r}")
    return int(digits)
