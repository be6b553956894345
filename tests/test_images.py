"""Files of every kind that cameras and labelling tools write, and what is said about the broken ones."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fcn_jax.data import images
from fcn_jax.errors import DataError

ROTATED = 6  # EXIF: the camera was turned, show it a quarter turn clockwise


def picture(height=5, width=7, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path, pixels, *, mode=None, orientation=None, **options):
    image = Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode)
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(path, **options)
    return path


def grey_png(labels, bits):
    """A PNG of 1, 2, 4, 8 or 16 bits a pixel, written by hand: Pillow does not write all of them."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = labels.shape
    rows = b""
    for row in labels:
        number = "".join(f"{value:0{bits}b}" for value in row)
        number += "0" * (-len(number) % 8)
        rows += b"\0" + int(number, 2).to_bytes(len(number) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_rgb_png_keeps_every_value(tmp_path):
    pixels = picture()
    assert np.array_equal(images.read_image(save(tmp_path / "a.png", pixels)), pixels)


def test_jpeg_is_decoded_as_pillow_does(tmp_path):
    path = save(tmp_path / "a.jpg", picture(40, 30), quality=95)
    with Image.open(path) as image:
        assert np.array_equal(images.read_image(path), np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = ".tif" if mode == "CMYK" else ".png"
    path = save(tmp_path / f"a{suffix}", picture(), mode=mode)
    found = images.read_image(path)
    with Image.open(path) as image:
        assert found.dtype == np.uint8 and np.array_equal(found, np.asarray(image.convert("RGB")))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    (tmp_path / "a.png").write_bytes(grey_png(np.array([[0, 255, 256, 65535]]), 16))
    assert images.read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_orientation_turns_images(tmp_path, suffix):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 200  # left half bright: after a clockwise quarter turn, the upper half
    path = save(tmp_path / f"a.{suffix}", pixels, orientation=ROTATED)
    found = images.read_image(path)
    assert found.shape == (32, 16, 3)
    assert found[:16].min() > 190 and found[16:].max() < 10


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_sizes_are_those_of_upright_images(tmp_path, suffix, orientation):
    path = save(tmp_path / f"a.{suffix}", np.zeros((6, 9, 3), np.uint8), orientation=orientation)
    assert images.read_size(path) == images.read_image(path).shape[:2]


def test_exif_orientation_turns_masks_alike(tmp_path):
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    path = save(tmp_path / "a.png", labels, orientation=ROTATED)
    assert images.read_mask(path).tolist() == [[3, 0], [4, 1], [5, 2]]
    assert images.read_image(path).shape == (3, 2, 3)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_masks_of_all_depths_give_their_labels(tmp_path, bits):
    labels = np.arange(min(2**bits, 12), dtype=np.uint8).reshape(1, -1)
    (tmp_path / "a.png").write_bytes(grey_png(labels, bits))
    found = images.read_mask(tmp_path / "a.png")
    assert found.dtype == np.uint8 and np.array_equal(found, labels)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_palette_masks_give_indices_not_colours(tmp_path, bits):
    labels = np.array([[0, 1, 1, 0]], np.uint8)
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.ravel().tolist())
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(tmp_path / "a.png", bits=bits)
    assert np.array_equal(images.read_mask(tmp_path / "a.png"), labels)


def test_colour_masks_give_colours_without_alpha(tmp_path):
    pixels = picture()
    rgba = np.dstack([pixels, np.full(pixels.shape[:2], 7, np.uint8)])
    assert np.array_equal(images.read_mask(save(tmp_path / "a.png", pixels)), pixels)
    assert np.array_equal(images.read_mask(save(tmp_path / "b.png", rgba)), pixels)


def test_encoded_masks_come_back(tmp_path):
    labels = np.array([[0, 20, 255]], np.uint8)
    assert np.array_equal(images.decode_mask(images.encode_mask(labels), "mask"), labels)


def test_a_label_beyond_255_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(grey_png(np.array([[0, 300]]), 16))
    with pytest.raises(DataError, match=r"a\.png: holds the label 300; labels are 0…254, and 255 for void"):
        images.read_mask(tmp_path / "a.png")


def test_jpeg_masks_are_refused(tmp_path):
    path = save(tmp_path / "a.jpg", picture())
    with pytest.raises(DataError, match="JPEG blurs labels"):
        images.read_mask(path)


def test_files_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        images.read_image(tmp_path / "gone.png")
    with pytest.raises(DataError, match="cannot be read"):
        images.read_image(tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.png: the file is empty"):
        images.read_mask(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png: not an image, or damaged"):
        images.read_image(tmp_path / "text.png")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_files_cut_off_are_refused(tmp_path, suffix):
    buffer = io.BytesIO()
    Image.fromarray(picture(64, 64)).save(buffer, "JPEG" if suffix == "jpg" else "PNG")
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) * 2 // 3])
    with pytest.raises(DataError, match=rf"a\.{suffix}: damaged or cut off"):
        images.read_image(path)
