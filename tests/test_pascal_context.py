"""PASCAL-Context's layout on tiny files: numbers of many classes, found by name among the 59."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fcn_jax import data
from fcn_jax.data import pascal_context
from fcn_jax.errors import ConfigError, DataError
from fcn_jax.labels import voc_palette

# Of the data set's 459 names: those of the 59, as the file spells them, and some others, in alphabetical order.
SPELLED = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth", "tvmonitor": "tv monitor"}
NAMES = sorted(
    {SPELLED.get(name, name) for name in pascal_context.CLASS_NAMES[1:]}
    | {"accordion", "baby carriage", "clothes tree", "pool table", "unknown", "wool"}
)


def number(name):
    return NAMES.index(name) + 1


LABEL_MAP = np.array(
    [
        [number("aeroplane"), number("table"), number("bedclothes"), number("cloth")],
        [number("wood"), number("tv monitor"), number("pool table"), number("unknown")],
        [0, number("clothes tree"), 459, 65535],
    ],
    np.uint16,
)
LABELS = [[1, 11, 52, 28], [59, 20, 0, 0], [0, 0, 0, 0]]


def write_names(path, names=NAMES):
    path.write_text("".join(f"{place}: {name}\n" for place, name in enumerate(names, start=1)))


@pytest.fixture
def fields(tmp_path):
    year, context = tmp_path / "VOCdevkit/VOC2010", tmp_path / "context"
    for folder in (year / "ImageSets/Main", year / "JPEGImages", context / "trainval"):
        folder.mkdir(parents=True)
    for split, names in {"train": ["2008_1", "2008_2"], "val": ["2009_1"]}.items():
        (year / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            Image.fromarray(np.full((3, 4, 3), 80, np.uint8)).save(year / "JPEGImages" / f"{name}.jpg")
            savemat(context / "trainval" / f"{name}.mat", {"LabelMap": LABEL_MAP})
    write_names(context / "labels.txt")
    return SimpleNamespace(
        name="pascal_context",
        root=str(tmp_path / "VOCdevkit"),
        cache=str(tmp_path / "cache"),
        threads=2,
        pascal_context=SimpleNamespace(labels_root=str(context)),
    )


def test_background_and_59_classes_in_the_order_of_the_outputs():
    info = pascal_context.INFO
    assert info.num_classes == 60 and len(set(info.class_names)) == 60
    some = {
        0: "background",
        1: "aeroplane",
        11: "diningtable",
        20: "tvmonitor",
        21: "bag",
        28: "clothes",
        42: "curtain",
    }
    some |= {50: "sky", 52: "bedcloth", 59: "wood"}
    assert all(info.class_names[label] == name for label, name in some.items())
    assert info.palette[:21] == voc_palette(21) and len(set(info.palette)) == 60


def test_numbers_become_labels_by_name(fields):
    source = data.open_split(fields, "train")
    assert [source[i]["id"] for i in range(2)] == ["2008_1", "2008_2"] and source.info is pascal_context.INFO
    assert source[0]["label"].tolist() == LABELS and source[0]["label"].dtype == np.uint8
    assert source[0]["image"].shape == (3, 4, 3) and (source[0]["image"] == 80).all()
    assert not (source[0]["label"] == 255).any()


def test_all_59_are_found(tmp_path):
    write_names(tmp_path / "labels.txt")
    labels = pascal_context.read_translation(tmp_path / "labels.txt")
    assert len(labels) == len(NAMES) + 1 and sorted(labels[labels > 0].tolist()) == list(range(1, 60))
    for label, name in enumerate(pascal_context.CLASS_NAMES[1:], start=1):
        assert labels[number(SPELLED.get(name, name))] == label


def test_numbers_are_the_files_own(fields, tmp_path):
    """Not the places of its lines; and when the file changes, so does the prepared copy."""
    data.open_split(fields, "val")
    path = tmp_path / "context/labels.txt"
    path.write_text("\ufeff" + "\n\n".join(reversed(path.read_text().splitlines())), encoding="utf-8")
    assert data.open_split(fields, "val")[0]["label"].tolist() == LABELS
    path.write_text(
        path.read_text(encoding="utf-8-sig").replace(": wood\n", ": would\n").replace(": wool\n", ": wood\n")
    )
    os.utime(path, ns=(1, 1))
    assert data.open_split(fields, "val")[0]["label"][1, 0] == 0
    assert len(list((tmp_path / "cache/pascal_context").iterdir())) == 3


def test_other_lists_than_the_releases_are_announced(fields, capfd):
    data.open_split(fields, "val")
    assert "pascal_context val: 1 images, the paper has 5105; the lists are others\n" in capfd.readouterr().err
    assert pascal_context.SPLITS == {"train": 4998, "val": 5105}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1: accordion\nwood\n", r"labels\.txt: the line 'wood' is not `number: name`; copy the file again"),
        ("1: accordion\nx: wood\n", r"the line 'x: wood' is not `number: name`"),
        ("99999: wood\n", r"the line '99999: wood' is not `number: name`"),
        (
            "1: aeroplane\n2: wood\n",
            r"labels\.txt: names no bicycle, bird, boat, bottle, bus and 52 more; copy the data",
        ),
        ("", r"labels\.txt: the file is empty"),
    ],
)
def test_a_bad_file_of_names_is_one_plain_line(fields, tmp_path, content, message):
    (tmp_path / "context/labels.txt").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        data.open_split(fields, "val")
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(fields, tmp_path):
    context = tmp_path / "context"
    savemat(context / "trainval/2009_1.mat", {"LabelMap": LABEL_MAP.T})
    with pytest.raises(DataError, match=r"2009_1\.mat: the mask is 3×4, its image 2009_1\.jpg is 4×3"):
        data.open_split(fields, "val")
    savemat(context / "trainval/2009_1.mat", {"S": LABEL_MAP})
    with pytest.raises(DataError, match=r"2009_1\.mat: no LabelMap in it, but S"):
        data.open_split(fields, "val")
    (context / "trainval/2009_1.mat").unlink()
    with pytest.raises(DataError, match=r"2009_1\.mat: cannot be read"):
        data.open_split(fields, "val")
    (context / "labels.txt").unlink()
    with pytest.raises(DataError, match=r"labels\.txt: no such file; copy PASCAL-Context's labels\.txt there"):
        data.open_split(fields, "val")
    fields.pascal_context.labels_root = str(context / "trainval")
    with pytest.raises(DataError, match=r"no trainval/ there; set data.pascal_context.labels_root to"):
        data.open_split(fields, "val")
    fields.pascal_context.labels_root = ""
    with pytest.raises(ConfigError, match=r"data.pascal_context.labels_root is empty; give PASCAL-Context's folder"):
        data.open_split(fields, "val")
    with pytest.raises(ConfigError, match=r"pascal_context has no split 'test'; it has train, val"):
        data.open_split(fields, "test")
    (tmp_path / "VOCdevkit/VOC2010/ImageSets/Main").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"no VOC2010/ImageSets/Main there; set data.root to the VOCdevkit that holds"):
        data.open_split(fields, "val")
    fields.root = ""
    with pytest.raises(ConfigError, match=r"data.root is empty; give the VOCdevkit folder, which holds VOC2010"):
        data.open_split(fields, "val")
