"""One's own data: every kind of mask, both ways to split, and the checks before training."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fcn_jax import data
from fcn_jax.errors import ConfigError, DataError

SIZE = (4, 6)


@pytest.fixture
def fields(tmp_path):
    """Two folders, filled by `add`, and the config that points to them."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    (tmp_path / "classes.txt").write_text("ground\ntree\nroof\n")
    folder = SimpleNamespace(
        images="images",
        masks="masks",
        classes="classes.txt",
        colors="",
        value_255="",
        train_list="",
        val_list="",
        val_fraction=0.25,
        split_seed=0,
    )
    return SimpleNamespace(name="folder", root=str(tmp_path), threads=2, folder=folder, path=tmp_path)


def add(fields, stem, mask, *, size=SIZE, suffix="png"):
    pixels = np.full((*size, 3), len(list((fields.path / "images").iterdir())), np.uint8)
    Image.fromarray(pixels).save(fields.path / "images" / f"{stem}.{suffix}")
    mask = np.asarray(mask, np.uint8)
    Image.fromarray(np.broadcast_to(mask, (*SIZE, *mask.shape[2:])).copy()).save(fields.path / "masks" / f"{stem}.png")


def test_a_source_of_pairs(fields):
    add(fields, "b", [[0, 1, 2, 255, 0, 0]])
    add(fields, "a", [[1]], suffix="jpg")
    source = data.open_split(fields, "all")
    assert [source[i]["id"] for i in range(len(source))] == ["a", "b"]
    assert source[1]["label"][0].tolist() == [0, 1, 2, 255, 0, 0] and source[1]["label"].dtype == np.uint8
    assert source[0]["image"].shape == (*SIZE, 3) and source[1]["image"].max() == 0
    assert source.size(0) == source.size(1) == SIZE
    assert source.info.class_names == ("ground", "tree", "roof") and source.info.num_classes == 3
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again[1]["label"], source[1]["label"])


def test_palette_masks_are_labels(fields):
    add(fields, "a", [[0]])
    image = Image.fromarray(np.full(SIZE, 2, np.uint8)).convert("L")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    image.save(fields.path / "masks" / "a.png")
    assert (data.open_split(fields, "all")[0]["label"] == 2).all()


def test_colour_masks_need_their_colours(fields):
    colors = np.array([[[0, 0, 0], [9, 8, 7], [1, 2, 3], [0, 0, 0], [1, 2, 3], [255, 255, 255]]])
    add(fields, "a", colors)
    with pytest.raises(
        DataError, match=r"a\.png: the mask stores colours: \(0, 0, 0\), \(1, 2, 3\), \(9, 8, 7\), \(255"
    ):
        data.open_split(fields, "all")
    (fields.path / "classes.txt").write_text("ground 0 0 0\ntree 1 2 3\nroof 4 5 6\n")
    with pytest.raises(DataError, match=r"a\.png: colours of no class: \(9, 8, 7\), \(255, 255, 255\); add them"):
        data.open_split(fields, "all")
    (fields.path / "classes.txt").write_text("ground 0 0 0\nvoid 255 255 255\ntree 1 2 3\nroof 9 8 7\n")
    source = data.open_split(fields, "all")
    assert source[0]["label"][0].tolist() == [0, 2, 1, 0, 1, 255]
    assert source.info.palette == ((0, 0, 0), (1, 2, 3), (9, 8, 7))


def test_colours_may_stand_in_a_file_of_their_own(fields):
    add(fields, "a", np.array([[[0, 0, 0], [9, 8, 7], [1, 2, 3], [0, 0, 0], [1, 2, 3], [0, 0, 0]]]))
    (fields.path / "colors.txt").write_text("0 0 0\n1 2 3\n9 8 7\n")
    fields.folder.colors = "colors.txt"
    assert data.open_split(fields, "all")[0]["label"][0].tolist() == [0, 2, 1, 0, 1, 0]


def test_masks_of_0_and_255_need_a_word(fields):
    add(fields, "a", [[0, 255, 0, 0, 0, 255]])
    add(fields, "b", [[0]])
    with pytest.raises(
        DataError, match=r"\.png: like all masks here it holds only 0 and 255; set data.folder.value_255 to 'class'"
    ):
        data.open_split(fields, "all")
    fields.folder.value_255 = "class"
    assert data.open_split(fields, "all")[0]["label"][0].tolist() == [0, 1, 0, 0, 0, 1]
    fields.folder.value_255 = "void"
    assert data.open_split(fields, "all")[0]["label"][0].tolist() == [0, 255, 0, 0, 0, 255]


def test_one_other_label_anywhere_settles_what_255_is(fields):
    add(fields, "a", [[0, 255, 0, 0, 0, 255]])
    add(fields, "b", [[1]])
    assert data.open_split(fields, "all")[0]["label"][0, 1] == 255
    fields.folder.value_255 = "class"
    with pytest.raises(DataError, match=r"b\.png: holds 1, but data.folder.value_255='class'"):
        data.open_split(fields, "all")


def test_255_cannot_be_the_second_class_of_one(fields):
    add(fields, "a", [[0, 255, 0, 0, 0, 255]])
    (fields.path / "classes.txt").write_text("ground\n")
    fields.folder.value_255 = "class"
    with pytest.raises(ConfigError, match=r"the classes file has one line"):
        data.open_split(fields, "all")


def test_labels_out_of_range_are_named(fields):
    add(fields, "a", [[0]])
    add(fields, "b", [[0, 1, 3, 7, 0, 0]])
    with pytest.raises(DataError, match=r"b\.png: holds the label 3, but the classes file has the lines 0…2"):
        data.open_split(fields, "all")


def test_unmatched_files_are_listed_on_both_sides(fields):
    for stem in "abc":
        add(fields, stem, [[0]])
    (fields.path / "masks" / "a.png").rename(fields.path / "masks" / "a_mask.png")
    (fields.path / "masks" / "b.png").unlink()
    with pytest.raises(DataError) as caught:
        data.open_split(fields, "all")
    assert "2 images of" in str(caught.value) and "have no mask: a.png, b.png" in str(caught.value)
    assert "1 masks of" in str(caught.value) and "have no image: a_mask.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_masks_left_over_are_listed_too(fields):
    for stem in "ab":
        add(fields, stem, [[0]])
    (fields.path / "images" / "a.png").unlink()
    with pytest.raises(DataError, match=r"^1 masks of [^;]* have no image: a\.png; pairs share their stem"):
        data.open_split(fields, "all")


def test_masks_that_change_while_training_are_noticed(fields):
    (fields.path / "classes.txt").write_text("ground 0 0 0\ntree 1 2 3\n")
    add(fields, "a", np.array([[[1, 2, 3]]]))
    add(fields, "b", [[1]])
    source = data.open_split(fields, "all")
    add(fields, "a", np.array([[[1, 2, 2]]]))
    add(fields, "b", [[2]])
    for index in range(2):
        with pytest.raises(DataError, match=r"[ab]\.png: the mask has changed since it was checked"):
            source[index]


def test_sizes_must_agree(fields):
    add(fields, "a", [[0]], size=(4, 7))
    with pytest.raises(DataError, match=r"a\.png: the mask is 6×4, its image a\.png is 7×4; they must agree"):
        data.open_split(fields, "all")
    add(fields, "a", [[0]], size=(6, 4))
    with pytest.raises(DataError, match=r"turned \(EXIF orientation\)"):
        data.open_split(fields, "all")


def test_damaged_images_are_found_before_training(fields):
    for stem in "ab":
        add(fields, stem, [[0]], size=SIZE)
    path = fields.path / "images" / "b.png"
    whole = path.read_bytes()
    for damaged in (whole[:50], whole[:45] + bytes(4) + whole[49:]):  # cut off; or spoilt behind a sound header
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"b\.png: damaged or cut off"):
            data.open_split(fields, "train")


def test_a_root_that_is_not_there(fields):
    fields.root = "/no/such/place"
    with pytest.raises(DataError, match=r"data\.root=/no/such/place: there is no such folder"):
        data.open_split(fields, "train")


def test_two_files_of_one_stem_and_things_that_are_no_images(fields):
    add(fields, "a", [[0]])
    (fields.path / "images" / "Thumbs.db").write_text("")
    (fields.path / "images" / "._a.png").write_text("")
    assert len(data.open_split(fields, "all")) == 1
    add(fields, "a", [[0]], suffix="jpg")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png share a stem"):
        data.open_split(fields, "all")


def test_empty_and_missing_folders(fields):
    with pytest.raises(DataError, match=r"images: holds no images"):
        data.open_split(fields, "all")
    fields.folder.images = "pictures"
    with pytest.raises(DataError, match=r"pictures: no such folder"):
        data.open_split(fields, "all")
    fields.folder.masks = ""
    with pytest.raises(ConfigError, match=r"data.folder.masks is empty"):
        data.open_split(fields, "all")


def stems(source):
    return {pair.id for pair in source.pairs}


def test_the_fraction_splits_by_seed(fields):
    for number in range(20):
        add(fields, f"image{number}", [[0]])
    train, val = (stems(data.open_split(fields, split)) for split in ("train", "val"))
    assert len(val) == 5 and len(train) == 15 and not train & val
    assert stems(data.open_split(fields, "val")) == val
    add(fields, "later", [[0]])
    assert len(stems(data.open_split(fields, "val")) ^ val) <= 1  # the others stay where they are
    fields.folder.split_seed = 1
    assert stems(data.open_split(fields, "val")) != val


def test_lists_split_by_name(fields):
    for stem in "abcd":
        add(fields, stem, [[0]])
    (fields.path / "val.txt").write_text("b\nd.png\n\n")
    fields.folder.val_list = "val.txt"
    assert stems(data.open_split(fields, "val")) == {"b", "d"}
    assert stems(data.open_split(fields, "train")) == {"a", "c"}
    (fields.path / "train.txt").write_text("a\n")
    fields.folder.train_list = "train.txt"
    assert stems(data.open_split(fields, "train")) == {"a"} and len(data.open_split(fields, "all")) == 4
    (fields.path / "train.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"b in train_list and in val_list"):
        data.open_split(fields, "train")
    (fields.path / "val.txt").write_text("z\n")
    with pytest.raises(DataError, match=r"val\.txt: names pairs that are not there: z"):
        data.open_split(fields, "val")


def test_an_empty_split_is_named(fields):
    add(fields, "a", [[0]])
    with pytest.raises(DataError, match=r"the split 'val' is empty \(1 pairs in all\)"):
        data.open_split(fields, "val")


def test_choices_are_checked(fields):
    add(fields, "a", [[0]])
    with pytest.raises(ConfigError, match=r"folder has no split 'test'; it has train, val, all"):
        data.open_split(fields, "test")
    fields.folder.val_fraction = 1.5
    with pytest.raises(ConfigError, match=r"val_fraction is 1.5"):
        data.open_split(fields, "val")
    fields.folder.value_255 = "yes"
    with pytest.raises(ConfigError, match=r"value_255 is 'yes'"):
        data.open_split(fields, "val")
    fields.name = "foldr"
    with pytest.raises(ConfigError, match=r"data.name is 'foldr'; .* did you mean 'folder'"):
        data.open_split(fields, "val")


def test_the_set_is_scanned_once_for_all_its_splits(fields, capsys):
    for stem in "abcd":
        add(fields, stem, [[0]])
    for split in ("train", "val", "train"):
        data.open_split(fields, split)
    assert capsys.readouterr().err == "checking 4 pairs of images and masks …\n"
    add(fields, "a", [[9]])  # a mask that changes is read again
    with pytest.raises(DataError, match=r"holds the label 9"):
        data.open_split(fields, "train")
