"""NYUDv2's layout on tiny files: four kinds of images, the logarithm of depth, and labels counted from 1."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fcn_jax import data
from fcn_jax.data import nyud
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.inputs import NYUD_COLOR_DEPTH_INPUT, NYUD_COLOR_HHA_INPUT, NYUD_COLOR_INPUT, NYUD_HHA_INPUT

SEGMENTATION = np.array([[0, 1, 40], [2, 31, 0]], np.uint8)
COLOR = np.array([[[10, 20, 30]] * 3] * 2, np.uint8)
DEPTH = np.array([[700, 2550, 9999], [1, 2, 65535]], np.uint16)
HHA = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


def write(root, number, *, color=COLOR, depth=DEPTH, hha=HHA, segmentation=SEGMENTATION):
    """One room, in the folders and under the names of the release."""
    for folder, pixels in (("images", color), ("depth", depth), ("hha", hha)):
        (root / "data" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "data" / folder / f"img_{number}.png")
    (root / "segmentation").mkdir(exist_ok=True)
    savemat(root / "segmentation" / f"img_{number}.mat", {"segmentation": segmentation, "other": np.zeros(3)})


@pytest.fixture
def fields(tmp_path):
    root = tmp_path / "nyud"
    for number in (5001, 5002, 5003):
        write(root, number)
    (root / "train.txt").write_text("5003\n5001\n")
    (root / "val.txt").write_text("5002\n")
    (root / "test.txt").write_text("5002")
    return SimpleNamespace(
        name="nyud",
        root=str(root),
        cache=str(tmp_path / "cache"),
        threads=2,
        nyud=SimpleNamespace(modality="color"),
    )


def of(fields, modality, split="train"):
    fields.nyud.modality = modality
    return data.open_split(fields, split)


def test_forty_classes_in_the_order_of_the_outputs():
    assert nyud.INFO.num_classes == 40
    some = {0: "wall", 1: "floor", 4: "chair", 19: "floor-mat", 27: "shower-curtain", 30: "person", 39: "otherprop"}
    assert all(nyud.INFO.class_names[label] == name for label, name in some.items())
    assert len(set(nyud.INFO.palette)) == 40 and (0, 0, 0) not in nyud.INFO.palette


def test_color_and_labels_from_one(fields):
    source = of(fields, "color")
    assert [source[i]["id"] for i in range(2)] == ["5003", "5001"] and source.info is nyud.INFO
    assert source[0]["label"].tolist() == [[255, 0, 39], [1, 30, 255]] and source[0]["label"].dtype == np.uint8
    assert np.array_equal(source[0]["image"], COLOR) and source[0]["image"].dtype == np.uint8
    assert source.channels == NYUD_COLOR_INPUT.channels


def test_hha_is_not_turned(fields):
    source = of(fields, "hha")
    assert np.array_equal(source[0]["image"], HHA) and source[0]["image"].dtype == np.uint8
    assert source.channels == NYUD_HHA_INPUT.channels == "HHA"
    assert np.array_equal(NYUD_HHA_INPUT(source[0]["image"])[..., 0], HHA[..., 0] - np.float32(132.431))


def test_color_with_the_logarithm_of_depth(fields):
    source = pickle.loads(pickle.dumps(of(fields, "color-d")))
    image = source[0]["image"]
    assert image.shape == (2, 3, 4) and image.dtype == np.float32 and np.array_equal(image[..., :3], COLOR)
    assert np.array_equal(image[..., 3], np.log(DEPTH.astype(np.float32)))
    assert source.channels == NYUD_COLOR_DEPTH_INPUT.channels
    blob = NYUD_COLOR_DEPTH_INPUT(image)
    assert blob[0, 1] == pytest.approx([30 - 116.190, 20 - 97.203, 10 - 92.318, np.log(2550) - 7.844], abs=1e-4)


def test_color_with_hha_behind(fields):
    source = of(fields, "color-hha")
    image = source[0]["image"]
    assert image.shape == (2, 3, 6) and image.dtype == np.uint8
    assert np.array_equal(image[..., :3], COLOR) and np.array_equal(image[..., 3:], HHA)
    assert source.channels == NYUD_COLOR_HHA_INPUT.channels


def test_modalities_are_prepared_apart(fields, tmp_path, capfd):
    """Their files have the same names, and might have the same sizes and times."""
    for modality in nyud.MODALITIES:
        of(fields, modality)
        of(fields, modality)
    assert capfd.readouterr().err.count("preparing nyud train (2 images) …") == 4
    assert len(list((tmp_path / "cache/nyud").iterdir())) == 4


def test_a_modality_needs_its_own_folders_only(fields, tmp_path):
    (tmp_path / "nyud/data/depth").rename(tmp_path / "elsewhere")
    assert len(of(fields, "color-hha")) == 2
    with pytest.raises(DataError, match=r"NYUDv2's data/depth/ is not there, which 'color-d' needs; check data.root"):
        of(fields, "color-d")


def test_trainval_is_both_where_it_has_no_list(fields, tmp_path, capfd):
    source = of(fields, "color", "trainval")
    assert [source[i]["id"] for i in range(3)] == ["5003", "5001", "5002"]
    assert "nyud trainval: 3 images, the paper has 795; the lists are others\n" in capfd.readouterr().err
    (tmp_path / "nyud/trainval.txt").write_text("5001\n")
    assert len(of(fields, "color", "trainval")) == 1


@pytest.mark.parametrize(("split", "number"), [("train", 381), ("val", 414), ("trainval", 795), ("test", 654)])
def test_the_papers_number_of_images_needs_no_word(split, number, capfd):
    nyud.lists.say_if_others(split, number, nyud.SPLITS[split])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "modality", "message"),
    [
        ({"depth": DEPTH * (DEPTH != 2)}, "color-d", r"depth/img_5003\.png: 1 pixels of depth 0, which has no log"),
        ({"depth": np.ones((2, 3), np.uint8)}, "color-d", r"a depth map is a grey PNG of 16 bits, this is of mode L"),
        ({"depth": DEPTH.T.copy()}, "color-d", r"the depth map is 2×3, its image img_5003\.png is 3×2"),
        ({"hha": HHA[:1]}, "color-hha", r"hha/img_5003\.png: the hha map is 3×1"),
        ({"segmentation": SEGMENTATION + 1}, "color", r"img_5003\.mat: holds the label 40, but the classes are 0…39"),
        ({"segmentation": np.full((2, 3), 257)}, "color", r"img_5003\.mat: holds the label 254"),
        ({"segmentation": SEGMENTATION.T}, "color", r"img_5003\.mat: the mask is 2×3"),
        ({"segmentation": SEGMENTATION + 0.5}, "color", r"img_5003\.mat: segmentation is no map of whole numbers"),
        ({"segmentation": np.full((2, 3), np.nan)}, "color", r"img_5003\.mat: segmentation is no map of whole numbers"),
        ({"segmentation": "text"}, "color", r"img_5003\.mat: segmentation is no map of whole numbers"),
    ],
)
def test_a_bad_file_is_one_plain_line(fields, tmp_path, change, modality, message):
    write(tmp_path / "nyud", 5003, **change)
    with pytest.raises(DataError, match=message) as caught:
        of(fields, modality)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(fields, tmp_path):
    (tmp_path / "nyud/data/images/img_5001.png").unlink()
    with pytest.raises(DataError, match=r"img_5001\.png: cannot be read"):
        of(fields, "color")
    (tmp_path / "nyud/test.txt").unlink()
    with pytest.raises(DataError, match=r"test\.txt: no such list; copy it from the FCN release's data/nyud"):
        of(fields, "color", "test")
    with pytest.raises(ConfigError, match=r"nyud has no split 'all'; it has train, val, trainval, test"):
        of(fields, "color", "all")
    with pytest.raises(
        ConfigError, match=r"modality is 'colour'; it is one of color, hha, color-d, color-hha; did you"
    ):
        of(fields, "colour")
    fields.root = ""
    with pytest.raises(ConfigError, match=r"data.root is empty; give the NYUDv2 folder"):
        of(fields, "color")
