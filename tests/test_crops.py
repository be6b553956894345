"""DeconvNet's training crops: single objects, windows of a file, and what lies outside the image."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_voc import write_year

from fcn_jax import data
from fcn_jax.data import crops
from fcn_jax.errors import ConfigError, DataError

CLASSES = np.zeros((40, 60), np.uint8)
CLASSES[10:20, 10:30] = 15
CLASSES[10:30, 40:50] = 15
CLASSES[9, 10:30] = 255
OBJECTS = np.where(CLASSES == 15, np.where(np.arange(60) < 35, 1, 2), CLASSES).astype(np.uint8)


@pytest.fixture
def fields(tmp_path):
    year = tmp_path / "VOCdevkit" / "VOC2012"
    write_year(year, {"train": ["a"], "val": ["a"]}, CLASSES)
    image = np.zeros((40, 60, 3), np.uint8)
    image[CLASSES == 15] = 250
    Image.fromarray(image).save(year / "JPEGImages" / "a.jpg", quality=100)
    (year / "SegmentationObject").mkdir()
    Image.fromarray(OBJECTS).save(year / "SegmentationObject" / "a.png")
    return SimpleNamespace(
        name="voc2012",
        root=str(tmp_path / "VOCdevkit"),
        cache=str(tmp_path / "cache"),
        threads=2,
        voc=SimpleNamespace(sbd_root="", crops="objects", boxes_root=""),
    )


def test_a_crop_for_each_object(fields):
    source = data.open_split(fields, "train")
    assert len(source) == 2 and source.info.num_classes == 21
    first, second = source[0], source[1]
    assert (first["id"], second["id"]) == ("a_1", "a_2")
    assert first["image"].shape == (250, 250, 3) and first["label"].shape == source.size(0) == (250, 250)
    assert set(np.unique(first["label"])) == {0, 15, 255}
    assert np.mean(first["label"] == 15) == pytest.approx(1 / 1.2**2, abs=0.02)
    assert first["image"][125, 125].min() > 200 and first["image"][0, 125].max() < 60
    # The other person is background in each.
    assert np.mean(second["label"] == 15) == pytest.approx(1 / 1.2**2, abs=0.02)


def test_other_objects_are_background():
    label = crops.of_object(CLASSES, OBJECTS, 2)
    assert label[15, 15] == 0 and label[15, 45] == 15 and label[9, 15] == 255


def test_beyond_the_image_there_is_nothing():
    image = np.full((4, 5, 3), 7, np.uint8)
    found = crops.cut(image, (-2, -1, 7, 6), 0)
    assert found.shape == (7, 9, 3)
    np.testing.assert_array_equal(found[1:5, 2:7], image)
    assert found.sum() == image.sum()
    np.testing.assert_array_equal(crops.cut(image, (1, 2, 4, 4), 0), image[2:4, 1:4])
    for beside in ((-5, 0, -2, 4), (6, 0, 9, 4), (0, -5, 5, -1), (0, 4, 5, 9)):
        assert not crops.cut(image, beside, 0).any()


def test_boxes_grow_about_their_centre():
    assert crops.enlarged((10, 20, 20, 40)) == (9, 18, 21, 42)


def test_windows_of_a_file(fields, tmp_path):
    fields.voc.crops, fields.voc.boxes_root = "windows", str(tmp_path / "boxes")
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / "a.txt").write_text("0 0 60 40\n5 5 70 30\n")
    source = data.open_split(fields, "train")
    assert len(source) == 2
    np.testing.assert_array_equal(np.unique(source[0]["label"]), [0, 15, 255])
    assert np.all(source[1]["label"][:, -20:] == 255) and np.all(source[1]["image"][:, -20:] == 0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"crops": "object"}, ConfigError, "data.voc.crops='object' is none of objects, windows"),
        ({"crops": "windows"}, ConfigError, "data.voc.boxes_root is empty"),
        ({"crops": "windows", "boxes_root": "nowhere"}, DataError, "a.txt: no boxes can be read"),
    ],
)
def test_what_is_refused(fields, changes, error, message):
    fields.voc = SimpleNamespace(**vars(fields.voc) | changes)
    with pytest.raises(error, match=message):
        data.open_split(fields, "train")


def test_files_without_a_box(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="list no box"):
        crops.listed_windows(["a"], tmp_path)
