"""Which pictures a command was given, and what it writes: nothing is overwritten unasked."""

import json

import numpy as np
import pytest
from PIL import Image

from fcn_jax import picture_files, visualize
from fcn_jax.errors import DataError
from fcn_jax.labels import DatasetInfo

SIZES = [(1, 1), (7, 200), (33, 47)]
INFO = DatasetInfo("halves", ("dark", "bright"), ((10, 20, 30), (200, 210, 220)))


def picture(size, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def brightness(image: np.ndarray) -> np.ndarray:
    """A predictor that can be checked by eye."""
    return (image.mean(-1) > 127).astype(np.uint8)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for number, size in enumerate(SIZES):
        visualize.write_png(folder / f"photo_{number}.png", picture(size, number))
    return folder


def test_outputs_read_back(photos, tmp_path, capsys):
    output = tmp_path / "out"
    assert predict_again(picture_files.find_images([str(photos)]), output) == 0
    assert {path.name for path in output.iterdir()} == {
        "legend.png", "classes.json",
        *(f"photo_{number}{end}" for number in range(3) for end in (".png", "_overlay.png")),
    }  # fmt: skip
    for number, size in enumerate(SIZES):
        with Image.open(output / f"photo_{number}.png") as label:
            assert label.mode == "P"
            np.testing.assert_array_equal(np.asarray(label), brightness(picture(size, number)))
            assert (label.getpalette() or [])[3:6] == [200, 210, 220]
        with Image.open(output / f"photo_{number}_overlay.png") as overlay:
            assert overlay.size == size[::-1]
    assert json.loads((output / "classes.json").read_text())["class_names"] == ["dark", "bright"]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert printed[1].startswith(f"2/3 {photos / 'photo_1.png'} → {output / 'photo_1.png'} (")


def predict_again(paths, output, **arguments):
    return picture_files.write_labels(lambda image, _: brightness(image), INFO, paths, output, **arguments)


def test_nothing_is_overwritten_unasked(photos, tmp_path):
    output = tmp_path / "out"
    predict_again([photos / "photo_0.png"], output)
    before = (output / "photo_0.png").read_bytes()
    with pytest.raises(DataError, match=r"out/photo_0\.png exists: choose another --output, or say --overwrite"):
        predict_again(picture_files.find_images([str(photos)]), output)
    assert not (output / "photo_1.png").exists()
    predict_again([photos / "photo_1.png"], output)  # a further image of the same classes joins
    (output / "photo_0.png").write_bytes(b"")
    predict_again([photos / "photo_0.png"], output, overwrite=True)
    assert (output / "photo_0.png").read_bytes() == before
    with pytest.raises(DataError, match=r"photos/photo_2\.png is an input and would be overwritten"):
        predict_again([photos / "photo_2.png"], photos, overwrite=True)


@pytest.mark.parametrize("name", ["legend.png", "classes.json"])
def test_files_of_others_are_left_alone(photos, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(DataError, match=rf"out/{name} exists"):
        predict_again([photos / "photo_0.png"], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.parametrize("name", ["legend", "photo_0_overlay"])
def test_outputs_that_would_cover_each_other(photos, tmp_path, name):
    visualize.write_png(photos / f"{name}.png", picture((2, 2)))
    with pytest.raises(DataError, match=rf"two of the outputs would be .*out/{name}\.png"):
        predict_again(picture_files.find_images([str(photos)]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unreadable_image_is_named_and_passed_over(photos, tmp_path, capsys):
    (photos / "photo_1.png").write_bytes(b"no image")
    assert predict_again(picture_files.find_images([str(photos)]), tmp_path / "out") == 1
    assert f"error: {photos / 'photo_1.png'}: not an image" in capsys.readouterr().err
    assert (tmp_path / "out" / "photo_2.png").exists()
    assert not (tmp_path / "out" / "photo_1.png").exists()


def test_images_are_found(photos, tmp_path):
    (photos / "notes.txt").write_text("no image")
    everything = [photos / f"photo_{number}.png" for number in range(3)]
    assert picture_files.find_images([str(photos)]) == everything
    assert (
        picture_files.find_images([str(photos / "photo_[12].png"), str(everything[0])])
        == everything[1:] + everything[:1]
    )
    assert picture_files.find_images([str(everything[0]), str(photos)]) == everything  # named twice, predicted once
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", photos / "photo_9.png", photos / "*.gif"):
        with pytest.raises(DataError, match=r"^no image at .*: name image files, folders of them or globs$"):
            picture_files.find_images([str(nothing)])


def test_two_images_of_one_name_are_refused(photos, tmp_path):
    visualize.write_png(tmp_path / "other" / "photo_1.png", picture((2, 2)))
    with pytest.raises(DataError, match=r"photos/photo_1\.png and .*other/photo_1\.png would give the same output"):
        picture_files.find_images([str(photos), str(tmp_path / "other")])


def test_several_heads_give_several_files(photos, tmp_path):
    output = tmp_path / "out"
    infos = {"sem": INFO, "geo": DatasetInfo("parts", ("low", "high"), ((1, 1, 1), (2, 2, 2)))}

    def both(image):
        return {"sem": brightness(image), "geo": 1 - brightness(image)}

    assert picture_files.write_labels(lambda image, _: both(image), infos, [photos / "photo_2.png"], output) == 0
    assert {path.name for path in output.iterdir()} == {
        *("photo_2_sem.png", "photo_2_sem_overlay.png", "photo_2_geo.png", "photo_2_geo_overlay.png"),
        *("legend_sem.png", "legend_geo.png", "classes.json"),
    }
    with Image.open(output / "photo_2_geo.png") as label:
        np.testing.assert_array_equal(np.asarray(label), 1 - brightness(picture(SIZES[2], 2)))
    assert json.loads((output / "classes.json").read_text())["geo"]["class_names"] == ["low", "high"]


def test_heatmaps(photos, tmp_path, capsys):
    output = tmp_path / "out"

    def heat(image):
        return np.pad(np.ones((1, 1), np.float32), ((3, image.shape[0] - 4), (5, image.shape[1] - 6)))

    paths = [photos / "photo_1.png", photos / "photo_2.png"]
    assert picture_files.write_heatmaps(heat, "tabby", paths, output) == 0
    assert {path.name for path in output.iterdir()} == {"photo_1_heatmap.png", "photo_2_heatmap.png"}
    with Image.open(output / "photo_2_heatmap.png") as painted:
        found = np.asarray(painted).astype(int)
    grey = np.rint(picture(SIZES[2], 2).astype(np.float32).mean(-1)).astype(int)
    assert (found[0] == grey[0, :, None]).all() and found[3, 5, 0] > found[3, 5, 2] + 20
    assert "(tabby: 100.0 % at row 3, column 5)" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"photo_1_heatmap\.png exists"):
        picture_files.write_heatmaps(heat, "tabby", paths, output)
