import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import caffemodel_writer as caffe
import numpy as np
import pytest
from caffemodel_writer import message, number

from fcn_jax.errors import WeightFileError
from fcn_jax.weights import READERS, formats, read
from fcn_jax.weights.files import WeightFile
from fcn_jax.weights.formats import format_of

GOLDEN = Path(__file__).parent / "golden"
BLOB = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
HDF5 = b"\x89HDF\r\n\x1a\n"


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return stream.getvalue()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return stream.getvalue()


ONNX = (
    number(1, 8) + message(2, b"pytorch") + message(3, b"2.0") + message(7, message(2, b"g")) + message(8, b"\x10\x11")
)
READ = {
    "caffemodel": [
        caffe.net({"a.0": BLOB}),
        caffe.net({"a.0": BLOB}, v1=True),
        caffe.net({"a.0": BLOB})[:-1],
        message(2, message(4, b"conv")),  # V1 without a name
        message(1, b"a net"),
        message(7, b"a fork's") + caffe.net({"a.0": BLOB}),
        message(7, b"a fork's") + caffe.net({"a.0": BLOB}, v1=True),
        b"\xff\xff\xff",  # what is nothing else
        bytes(600),
    ],
    "torch": [
        zipped("archive/data.pkl", "archive/data/0"),
        *(pickle.dumps(MAGIC_NUMBER, protocol) + pickle.dumps(1001, protocol) for protocol in range(2, 6)),
    ],
    "safetensors": [
        (2).to_bytes(8, "little") + b"{}",
        b"\xff" * 8 + b'{"a":',
        (1 << 20).to_bytes(8, "little") + b"{ ",
    ],
    "hdf5": [HDF5 + bytes(90), bytes(512) + HDF5, bytes(2048) + HDF5 + bytes(9)],
    "onnx": [
        ONNX,
        ONNX[:24],
        ONNX[:10],
        number(1, 8) + number(5, 1) + message(7, b""),
        number(1, 8) + message(2, b"\nproducer") + message(7, b""),
        message(2, b"pytorch") + number(1, 8) + message(8, b"") * 9 + message(7, b""),
    ],
    "numpy": [b"\x93NUMPY\1\0", zipped("a.npy", "b/c.npy")],
}


@pytest.mark.parametrize(
    ("wanted", "index"), [(name, index) for name, files in READ.items() for index in range(len(files))]
)
def test_formats_that_are_read(wanted, index):
    assert format_of(WeightFile.of(READ[wanted][index])) == wanted


def test_all_that_is_told_has_a_reader():
    assert set(READ) == set(READERS)
    for module, what in READERS.values():
        assert (Path(formats.__file__).parent / f"{module}.py").is_file() and what


REFUSED = {
    "is empty": b"",
    "is compressed by gzip": b"\x1f\x8b\x08\x00",
    "is compressed by bzip2": b"BZh9",
    "is compressed by xz": b"\xfd7zXZ\x00",
    "is compressed by zstd": b"\x28\xb5\x2f\xfd\x00",
    "is a 7z archive": b"7z\xbc\xaf\x27\x1c",
    "is a tar archive": tar(),
    "is a MATLAB file": b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(500),
    "is a MATLAB file ": b"MATLAB 7.3 MAT-file".ljust(512) + HDF5,
    "is a PNG picture": b"\x89PNG\r\n\x1a\n",
    "is a JPEG picture": b"\xff\xd8\xff\xe0",
    "is a GGUF file": b"GGUF\3\0\0\0",
    "is a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "is a web page": b"\n<!DOCTYPE html>",
    "is a web page ": b"\xef\xbb\xbf<?xml version='1.0'?>",
    "is a text file": b'name: "VGG"\nlayer {\n',
    "is a text file ": b'model_checkpoint_path: "model.ckpt"\n',
    "is a pickle that torch did not save": pickle.dumps({"a": BLOB}, 2),
    "is a pickle that torch did not save ": pickle.dumps({"a": BLOB}, 5),
    "not a whole zip archive: it has no zip directory": zipped("archive/data.pkl")[:-4],
    "is a zip archive without members": zipped(),
    "is a zip archive of something else, such as 'a.txt'": zipped("a.txt", "a.npy"),
    "is a Keras archive": zipped("metadata.json", "config.json", "model.weights.h5"),
    "is a TensorFlow Lite model": struct.pack("<L", 28) + b"TFL3" + bytes(20),
    "is the index of a TensorFlow checkpoint": b"\0\0\1\2" + bytes(40) + struct.pack("<Q", 0xDB4775248B80FB57),
    "is a TensorFlow SavedModel": number(1, 1) + message(2, message(1, message(4, b"serve"))),
    "is a TensorFlow graph": message(1, message(1, b"conv1")) + message(1, message(1, b"relu1")) + message(4, b""),
    "is a single Caffe blob": caffe.blob(BLOB, legacy=True),
    "is a single Caffe blob ": caffe.blob(BLOB.astype(np.float64)),
    "is a Caffe .solverstate": number(1, 100) + message(2, b"net.caffemodel") + message(3, caffe.blob(BLOB)) * 2,
    "is a Caffe .solverstate ": number(1, 100) + message(2, b"net.caffemodel") + number(4, 1),
}


@pytest.mark.parametrize("description", REFUSED)
def test_other_formats_are_refused_by_name(tmp_path, description):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(REFUSED[description])
    with pytest.raises(WeightFileError, match=rf"net\.caffemodel: (the file )?{description.strip()}") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_a_refusal_says_what_is_read():
    with pytest.raises(WeightFileError, match=r"^weights: is compressed .*; weights are read from .*safetensors"):
        format_of(WeightFile.of(REFUSED["is compressed by gzip"]))


def test_no_bytes_at_all():
    with pytest.raises(WeightFileError, match=r"^weights: is empty"):
        format_of(WeightFile.of(b""))


def test_the_suffix_does_not_matter(tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes((GOLDEN / "safetensors" / "dtypes.safetensors").read_bytes())
    assert "float32" in read(str(path))


def test_the_cap_is_that_of_the_caller(tmp_path):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffe.net({"a.0": BLOB}))
    assert list(read(path, max_bytes=24)) == ["a.0"]
    with pytest.raises(WeightFileError, match=r"net\.caffemodel: .*more than the 23 bytes that are allowed"):
        read(path, max_bytes=23)


def test_no_file_and_no_folder(tmp_path):
    with pytest.raises(WeightFileError, match=r"nowhere\.caffemodel: no such file"):
        read(tmp_path / "nowhere.caffemodel")
    with pytest.raises(WeightFileError, match="is a folder"):
        read(tmp_path)


def test_any_first_bytes_are_told_or_refused():
    """No file makes the telling itself fail, whatever it begins with."""
    rng = np.random.default_rng(0)
    heads = [head[:size] for files in READ.values() for head in files for size in (1, 9, 300)]
    for head in [*heads, *REFUSED.values()]:
        try:
            assert format_of(WeightFile.of(head + rng.bytes(40))) in READERS
        except WeightFileError as error:
            assert "\n" not in str(error)
