"""VOC's and SBD's layouts on tiny files, and the validation set of the FCN paper's footnote 7."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fcn_jax import data
from fcn_jax.data import voc
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.labels import voc_palette

LABELS = np.array([[0, 15, 255], [20, 1, 0]], np.uint8)


def write_year(folder, lists, labels=LABELS):
    """A year of VOC: JPEG images and palette masks."""
    for name in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    for split, names in lists.items():
        (folder / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            Image.fromarray(np.full((2, 3, 3), 80, np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
            mask = Image.fromarray(labels)
            mask.putpalette(np.array(voc_palette(256), np.uint8).tobytes())
            mask.save(folder / "SegmentationClass" / f"{name}.png")


def write_sbd(folder, names):
    for name in ("img", "cls"):
        (folder / "dataset" / name).mkdir(parents=True)
    (folder / "dataset" / "train.txt").write_text("\n".join(names))
    for name in names:
        Image.fromarray(np.full((2, 3, 3), 80, np.uint8)).save(folder / "dataset/img" / f"{name}.jpg")
        content = {"Segmentation": np.minimum(LABELS, 20), "Boundaries": np.zeros(1), "CategoriesPresent": [1, 15]}
        savemat(folder / "dataset/cls" / f"{name}.mat", {"GTcls": content})


@pytest.fixture
def fields(tmp_path):
    devkit = tmp_path / "VOCdevkit"
    write_year(devkit / "VOC2012", {"train": ["2007_1", "2007_2"], "val": ["2008_1"]})
    write_year(devkit / "VOC2011", {"val": ["2008_1", "2008_2", "2008_3"]})
    write_sbd(tmp_path / "benchmark_RELEASE", ["2008_2", "2010_1"])
    return SimpleNamespace(
        name="voc2012",
        root=str(devkit),
        cache=str(tmp_path / "cache"),
        threads=2,
        voc=SimpleNamespace(sbd_root=str(tmp_path / "benchmark_RELEASE"), crops="", boxes_root=""),
    )


def ids(source):
    return [source[i]["id"] for i in range(len(source))]


def test_palette_masks_become_labels(fields):
    source = data.open_split(fields, "train")
    assert ids(source) == ["2007_1", "2007_2"] and ids(data.open_split(fields, "val")) == ["2008_1"]
    assert np.array_equal(source[0]["label"], LABELS)
    assert source[0]["image"].shape == (2, 3, 3) and (source[0]["image"] == 80).all()
    assert source.size(0) == (2, 3)
    assert source.info.num_classes == 21 and source.info.class_names[15] == "person"
    assert source.info.palette[15] == (192, 128, 128)


@pytest.mark.parametrize("root", ["VOCdevkit", "VOCdevkit/VOC2012", "VOCdevkit/VOC2011", "."])
def test_the_root_may_be_any_of_its_folders(fields, tmp_path, root):
    assert voc.find_year(str(tmp_path / root), "VOC2012") == tmp_path / "VOCdevkit" / "VOC2012"
    assert voc.find_year(str(tmp_path / root), "VOC2011") == tmp_path / "VOCdevkit" / "VOC2011"


def test_a_renamed_year_is_taken_for_2012(tmp_path):
    write_year(tmp_path / "pascal", {"val": ["2008_1"]})
    assert voc.find_year(str(tmp_path / "pascal"), "VOC2012") == tmp_path / "pascal"
    with pytest.raises(DataError, match=r"no VOC2011/ImageSets/Segmentation there"):
        voc.find_year(str(tmp_path / "pascal"), "VOC2011")
    with pytest.raises(DataError, match=r"no VOC2012/ImageSets/Main there"):
        voc.find_year(str(tmp_path / "pascal"), "VOC2012", "Main")


def test_sbd_labels_come_out_of_matlab_files(fields):
    source = data.open_split(fields, "sbd_train")
    assert ids(source) == ["2008_2", "2010_1"]
    assert np.array_equal(source[1]["label"], [[0, 15, 20], [20, 1, 0]]) and source[1]["label"].dtype == np.uint8


def test_other_structs_are_no_labels_of_sbd(fields, tmp_path):
    path = tmp_path / "benchmark_RELEASE/dataset/cls/2010_1.mat"
    for content, message in (
        ({"GTinst": {"Segmentation": LABELS}}, r"2010_1\.mat: no GTcls\.Segmentation in it, but GTinst"),
        ({"GTcls": {"Boundaries": LABELS}}, r"no GTcls\.Segmentation in it, but GTcls"),
        ({"GTcls": LABELS}, r"no GTcls\.Segmentation in it, but GTcls"),
        (
            {"GTcls": {"Segmentation": np.zeros((2, 3, 3))}},
            r"2010_1\.mat: GTcls\.Segmentation is no map of whole numbers",
        ),
    ):
        savemat(path, content)
        with pytest.raises(DataError, match=message):
            data.open_split(fields, "sbd_train")


def test_seg11valid_leaves_out_what_sbd_trains_on(fields, capfd):
    source = data.open_split(fields, "seg11valid")
    assert ids(source) == ["2008_1", "2008_3"]
    assert "seg11valid: 2 images, the paper has 736" in capfd.readouterr().err


def test_voc_grown_by_sbd(fields, tmp_path, capfd):
    """No image of VOC's val is trained on, none comes twice, and VOC's masks come before SBD's, which know no void."""
    write_sbd(tmp_path / "more", ["2008_1", "2008_2", "2007_2", "2010_1", "2010_2"])
    folder = tmp_path / "more" / "dataset"
    (folder / "train.txt").write_text("2008_1\n2008_2\n2007_2\n")
    (folder / "val.txt").write_text("2010_1\n2010_2\n")
    fields.voc.sbd_root = str(tmp_path / "more")
    source = data.open_split(fields, "train_aug")
    assert ids(source) == ["2007_1", "2007_2", "2008_2", "2010_1", "2010_2"]
    assert (source[1]["label"] == LABELS).all() and (source[2]["label"] == np.minimum(LABELS, 20)).all()
    assert "train_aug: 5 images, the paper has 10582" in capfd.readouterr().err
    write_year(tmp_path / "VOC2012", {"train": ["2007_1"], "val": ["2008_1"], "trainval": ["2007_1", "2008_1"]})
    fields.root = str(tmp_path / "VOC2012")
    assert ids(data.open_split(fields, "trainval_aug")) == ["2007_1", "2008_1", "2008_2", "2007_2", "2010_1", "2010_2"]


def test_seg11valid_of_736_needs_no_word():
    names = [f"2008_{number}" for number in range(voc.SEG11VALID_IMAGES + 5)]
    assert voc.seg11valid(names, names[:5]) == names[5:] and len(names[5:]) == 736


def test_what_is_missing_is_named(fields, tmp_path):
    with pytest.raises(ConfigError, match=r"voc2012 has no split 'test'; it has train, val, trainval, sbd_train"):
        data.open_split(fields, "test")
    with pytest.raises(DataError, match=r"trainval\.txt: no such file"):
        data.open_split(fields, "trainval")
    (tmp_path / "VOCdevkit/VOC2012/SegmentationClass/2007_2.png").unlink()
    with pytest.raises(DataError, match=r"2007_2\.png: cannot be read"):
        data.open_split(fields, "train")
    (tmp_path / "benchmark_RELEASE/dataset/cls/2010_1.mat").write_text("no matlab")
    with pytest.raises(DataError, match=r"2010_1\.mat: not a readable MATLAB file"):
        data.open_split(fields, "sbd_train")
    (tmp_path / "benchmark_RELEASE/dataset/train.txt").write_text("\n")
    with pytest.raises(DataError, match=r"train\.txt: the list is empty"):
        data.open_split(fields, "seg11valid")
    fields.voc.sbd_root = str(tmp_path)
    (tmp_path / "benchmark_RELEASE").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"no train\.txt there or in its dataset/"):
        data.open_split(fields, "sbd_train")
    fields.voc.sbd_root = ""
    with pytest.raises(ConfigError, match=r"data.voc.sbd_root is empty"):
        data.open_split(fields, "seg11valid")
    fields.root = ""
    with pytest.raises(ConfigError, match=r"data.root is empty"):
        data.open_split(fields, "val")
