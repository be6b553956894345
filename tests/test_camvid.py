"""CamVid's layout on tiny files, and the published pixel counts on the real ones."""

import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fcn_jax import data
from fcn_jax.data.camvid import Camvid
from fcn_jax.errors import ConfigError, DataError

# Pixels of the labels 0 … 10 and of void, counted in the published label images.
TRAIN_PIXELS = [
    *(10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385, 184967),
    2503995,
]
VAL_PIXELS = [*(1601620, 4531180, 98499, 5053176, 1521751, 2851125, 155724, 537197, 304716, 113531, 387010), 297271]


def write_camvid(root, split, masks):
    for folder in (split, f"{split}annot"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for stem, mask in masks.items():
        mask = np.asarray(mask, np.uint8)
        Image.fromarray(np.repeat(mask[..., None], 3, axis=2) + np.uint8(100)).save(root / split / f"{stem}.png")
        Image.fromarray(mask).save(root / f"{split}annot" / f"{stem}.png")


@pytest.fixture
def fields(tmp_path):
    write_camvid(tmp_path / "camvid", "train", {"b": [[0, 10, 11]], "a": [[3, 3, 3], [4, 4, 4]]})
    return SimpleNamespace(name="camvid", root=str(tmp_path / "camvid"), cache=str(tmp_path / "cache"), threads=2)


def test_pairs_in_order_with_void_as_255(fields, capfd):
    source = data.open_split(fields, "train")
    assert [source[i]["id"] for i in range(len(source))] == ["a", "b"]
    assert source[1]["label"].tolist() == [[0, 10, 255]]
    assert source[1]["image"].tolist() == [[[100] * 3, [110] * 3, [111] * 3]]
    assert source.info.num_classes == 11 and source.info.class_names[8] == "Car"
    data.open_split(fields, "train")  # the second time there is nothing to prepare, and nothing to say
    out, err = capfd.readouterr()
    assert (out, err) == ("", "preparing camvid train (2 images) …\n")
    assert "tensorflow" not in sys.modules


def test_a_label_of_no_class_is_found_while_preparing(fields, tmp_path):
    write_camvid(tmp_path / "camvid", "val", {"c": [[0, 12]]})
    with pytest.raises(DataError, match=r"^.*valannot/c\.png: holds the label 12, but the classes are 0…10.*$"):
        data.open_split(fields, "val")
    assert not list((tmp_path / "cache").glob("camvid/*val*"))


def test_what_is_missing_is_named(fields, tmp_path):
    with pytest.raises(DataError, match=r"CamVid's test/ and testannot/ are not there"):
        data.open_split(fields, "test")
    with pytest.raises(ConfigError, match=r"camvid has no split 'dev'; it has train, val, test"):
        data.open_split(fields, "dev")
    (tmp_path / "camvid" / "trainannot" / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 images of .* have no mask: b\.png"):
        data.open_split(fields, "train")
    fields.root = ""
    with pytest.raises(ConfigError, match=r"data.root is empty"):
        data.open_split(fields, "train")


def count_pixels(maps):
    counts = np.sum([np.bincount(label.ravel(), minlength=256) for label in maps], axis=0)
    return [*counts[:11].tolist(), int(counts[255])], int(counts.sum())


def test_published_pixel_counts_of_train(shared):
    paths = sorted((shared / "data/camvid/trainannot").iterdir())
    pixels, total = count_pixels(Camvid.read_labels(path) for path in paths)
    assert pixels == TRAIN_PIXELS and total == 367 * 360 * 480


def test_published_pixel_counts_of_val_through_the_prepared_copy(shared, tmp_path):
    fields = SimpleNamespace(name="camvid", root=str(shared / "data/camvid"), cache=str(tmp_path), threads=2)
    source = data.open_split(fields, "val")
    pixels, total = count_pixels(source[index]["label"] for index in range(len(source)))
    assert pixels == VAL_PIXELS and total == 101 * 360 * 480
    shutil.rmtree(tmp_path / "camvid")  # 25 MB
