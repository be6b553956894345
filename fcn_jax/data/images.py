"""Reading pictures and label masks, from files and from bytes.

Images come as RGB `u8[h w 3]` whatever the file holds; masks come as they are meant: the index plane of palette and
grey files, never the palette's colours. Both follow the EXIF orientation, so that a photograph and its mask agree.
Pillow decides what a file is; OpenCV decodes the plain cases, because it is up to twice as fast at JPEG.
"""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from fcn_jax.errors import DataError

# The loader's threads are the parallelism; OpenCV's own would fight with them.
cv2.setNumThreads(0)

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

# What Pillow raises on files that are cut off, damaged or no images at all.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_PLAIN = {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L")}
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file; DataError when it is missing, a folder or not readable by this user."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path, and where it is named") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
    if not data:
        raise DataError(f"{path}: the file is empty; copy it again or remove it")
    return data


def read_image(path: str | Path) -> np.ndarray:
    """The picture in a file, RGB `u8[h w 3]`."""
    return decode_image(read_bytes(path), path)


def read_mask(path: str | Path) -> np.ndarray:
    """The mask in a file: labels `u8[h w]`, or colours `u8[h w 3]` when the file stores colours."""
    return decode_mask(read_bytes(path), path)


def read_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the picture in a file, upright: by the beginning of a JPEG, by all of other files."""
    with contextlib.suppress(*_DECODING_ERRORS), Image.open(path) as image:
        if image.format == "JPEG":
            return _upright_size(image, b"")
    return size_in(read_bytes(path), path)


def size_in(data: bytes, name: str | Path) -> tuple[int, int]:
    """Height and width of the picture in a file's bytes, upright; as a rule nothing is decoded."""
    image = _open(data, name)
    if image.format == "TIFF":  # which Pillow turns when it loads them, by itself
        image = _upright(image, data, name)
        return image.height, image.width
    return _upright_size(image, data)


def _upright_size(image: Image.Image, data: bytes) -> tuple[int, int]:
    turned = _orientation(data, image) > 4  # by a quarter
    return (image.width, image.height) if turned else (image.height, image.width)


def decode_image(data: bytes, name: str | Path) -> np.ndarray:
    """The picture in a file's bytes, RGB `u8[h w 3]`, alpha dropped, 16 bits made 8; errors call it `name`."""
    image = _open(data, name)
    if (image.format, image.mode) in _PLAIN and _orientation(data, image) == 1 and _looks_complete(data, image):
        # Cut-off files are left to Pillow, which refuses them: OpenCV before version 5 fills in what is missing.
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if pixels is not None:
            return pixels
    image = _upright(image, data, name)
    if image.mode in _SIXTEEN_BIT:  # Pillow would clip these instead of scaling them
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise DataError(f"{name}: pixels of 32 bits are not supported; save the image with 8 or 16 bits a channel")
    return np.array(image.convert("RGB"))


def decode_mask(data: bytes, name: str | Path) -> np.ndarray:
    """The mask in a file's bytes: labels `u8[h w]`, or colours `u8[h w 3]` when the file stores colours."""
    image = _open(data, name)
    if image.format == "JPEG":
        raise DataError(f"{name}: JPEG blurs labels, so a mask cannot be a JPEG; save masks as PNG")
    scale = _grey_scale(data, image)
    image = _upright(image, data, name)
    if image.mode in ("RGB", "RGBA"):
        return np.array(image)[..., :3].copy()
    if image.mode == "LA":
        image = image.getchannel("L")
    if image.mode not in ("1", "P", "L", "I", *_SIXTEEN_BIT):
        raise DataError(f"{name}: a mask cannot be of mode {image.mode}; save it as a palette, grey or RGB PNG")
    labels = np.asarray(image)
    worst = int(labels.min()) if labels.min() < 0 else int(labels.max())
    if not 0 <= worst <= 255:
        raise DataError(f"{name}: holds the label {worst}; labels are 0…254, and 255 for void")
    return labels.astype(np.uint8) // np.uint8(scale)


def decode_depth(data: bytes, name: str | Path) -> np.ndarray:
    """The depth map in the bytes of a grey picture of 16 bits: its values as they are, `u16[h w]`."""
    image = _upright(_open(data, name), data, name)
    if image.mode not in ("I", *_SIXTEEN_BIT):  # "I": what older versions of Pillow make of 16 bits
        raise DataError(
            f"{name}: a depth map is a grey PNG of 16 bits, this is of mode {image.mode}; copy the depth itself"
        )
    return np.asarray(image).astype(np.uint16)


def encode_mask(labels: np.ndarray) -> bytes:
    """Labels `u8[h w]` as a grey PNG, the one form that every reader takes for an index plane."""
    done, data = cv2.imencode(".png", labels)
    if not done:
        raise ValueError(f"labels of shape {labels.shape} and type {labels.dtype} cannot be written as PNG")
    return data.tobytes()


def _open(data: bytes, name: str | Path) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except _DECODING_ERRORS as error:
        what = "too large" if isinstance(error, Image.DecompressionBombError) else "not an image, or damaged"
        raise DataError(f"{name}: {what}; replace the file or remove it") from None


def _upright(image: Image.Image, data: bytes, name: str | Path) -> Image.Image:
    """The decoded image, turned as its EXIF orientation asks."""
    try:
        image.load()
    except _DECODING_ERRORS as error:
        raise DataError(f"{name}: damaged or cut off ({error}); copy the file again or remove it") from None
    return image if _orientation(data, image) == 1 else ImageOps.exif_transpose(image)


def _orientation(data: bytes, image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 is upright."""
    # A PNG's EXIF may follow the pixels, so that asking Pillow for it decodes the image: ask only if there is one.
    if image.format == "PNG" and b"eXIf" not in data and b"Raw profile type" not in data:
        return 1
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def _looks_complete(data: bytes, image: Image.Image) -> bool:
    """Whether the end of a JPEG or PNG is where it should be. A "no" is only a suspicion: decoding decides."""
    ending = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(image.format or "")
    return ending is not None and ending in data[-16:]


def _grey_scale(data: bytes, image: Image.Image) -> int:
    """By how much Pillow has multiplied the labels: it stretches PNG greys of 2 and 4 bits to 0…255."""
    # In a PNG's first chunk, byte 24 of the file is the bit depth and byte 25 the colour type, 0 for grey.
    if image.format == "PNG" and data[25] == 0 and data[24] in (2, 4):
        return 255 // (2 ** data[24] - 1)
    return 1
