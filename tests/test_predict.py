"""From a run's folder, or a released file, to label maps of images of any size; nothing is overwritten unasked."""

import json

import caffemodel_writer as writer
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from PIL import Image

from fcn_jax import config as experiment
from fcn_jax import models, predict, state, visualize
from fcn_jax.checkpoints import Checkpoints
from fcn_jax.errors import CheckpointError, ConfigError, DataError, WeightFileError
from fcn_jax.labels import DatasetInfo

SIZES = [(1, 1), (7, 200), (33, 47)]
INFO = DatasetInfo("halves", ("dark", "bright"), ((10, 20, 30), (200, 210, 220)))


pytestmark = pytest.mark.usefixtures("fast_compilation")


def randomly(params, seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, np.sqrt(2 / max(np.prod(x.shape[:-1]), 8)), x.shape), x.dtype), params
    )


def picture(size, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with checkpoints 1 (the best) and 2, its net, and their parameters."""
    config = tiny.config()
    workdir = tiny.claimed(tmp_path_factory.mktemp("run"), config)
    model = experiment.make_model(config, 8)
    saved = [randomly(state.abstract_params(model), seed) for seed in (1, 2)]
    with Checkpoints(workdir) as checkpoints:
        for step, (params, score) in enumerate(zip(saved, (0.9, 0.1), strict=True), start=1):
            checkpoints.save(step, state.create(params, optax.sgd(1.0)), score)
    return workdir, model, saved


@pytest.mark.parametrize(("checkpoint", "place"), [("best", 0), ("latest", 1), ("2", 1)])
def test_a_run_is_rebuilt_from_its_folder(run, checkpoint, place):
    workdir, model, saved = run
    predictor = predict.Predictor.from_workdir(workdir, checkpoint)
    assert predictor.info.class_names[1] == "disc"
    assert predictor.origin == f"step {place + 1} of {workdir}"
    image = picture((33, 47))
    logits = model.apply({"params": saved[place]}, predictor.input_spec(image)[None])
    np.testing.assert_array_equal(predictor(image), np.argmax(logits[0], axis=-1))


def test_images_of_any_size(run):
    predictor = predict.Predictor.from_workdir(str(run[0]))
    for size in SIZES:
        label = predictor(picture(size))
        assert (label.shape, label.dtype) == (size, np.uint8)


def test_a_folder_that_is_no_run(tmp_path, run):
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        predict.Predictor.from_workdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint '7'"):
        predict.Predictor.from_workdir(run[0], "7")
    (tmp_path / "config.json").write_text((run[0] / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"classes\.json holds no classes of a run"):
        predict.Predictor.from_workdir(tmp_path)
    (tmp_path / "classes.json").write_text((run[0] / "classes.json").read_text())
    with pytest.raises(CheckpointError, match=r"holds no checkpoint"):
        predict.Predictor.from_workdir(tmp_path)


def test_a_released_file(tmp_path):
    model = models.create("fcn8s", 21, padding="caffe", width=1 / 32, fc_width=8)
    params = randomly(state.abstract_params(model), 3)
    blobs = {}
    for layer, leaves in params.items():
        blobs[f"{layer}.0"] = np.ascontiguousarray(np.transpose(leaves["kernel"], (3, 2, 0, 1)))
        blobs[f"{layer}.1"] = np.asarray(leaves["bias"])
    path = tmp_path / "voc-fcn8s.caffemodel"
    path.write_bytes(writer.net(blobs))
    predictor = predict.Predictor.from_weights(path, "voc-fcn8s")
    assert predictor.info.class_names[15] == "person"
    image = picture((20, 31))
    # The release sees BGR minus its mean.
    blob = image[..., ::-1].astype(np.float32) - np.array([[[104.00698793, 116.66876762, 122.67891434]]], np.float32)
    np.testing.assert_array_equal(predictor(image), np.argmax(model.apply({"params": params}, blob[None])[0], -1))


def test_flags_name_one_net(run, tmp_path):
    assert predict.from_flags(str(run[0]), "2", None, None).origin.startswith("step 2 of")
    for workdir, weights in ((None, None), ("runs/a", "a.caffemodel")):
        with pytest.raises(ConfigError, match=r"name a run by --workdir, or a released file by --weights FILE --model"):
            predict.from_flags(workdir, "best", weights, None)
    with pytest.raises(ConfigError, match=r"--weights needs --model, one of voc-fcn32s"):
        predict.from_flags(None, "best", "a.caffemodel", None)
    with pytest.raises(ConfigError, match=r"no release named 'voc-fcn8'; there are voc-fcn32s"):
        predict.from_flags(None, "best", "a.caffemodel", "voc-fcn8")
    with pytest.raises(WeightFileError, match=r"nothing\.caffemodel"):
        predict.from_flags(None, "best", str(tmp_path / "nothing.caffemodel"), "voc-fcn8s")
    with pytest.raises(CheckpointError, match=r"--workdir .*nowhere is no folder"):
        predict.from_flags(str(tmp_path / "nowhere"), "best", None, None)


class Brightness(predict.Predictor):
    """A predictor that can be checked by eye."""

    def __init__(self):
        self.info = INFO

    def __call__(self, image):
        return (image.mean(-1) > 127).astype(np.uint8)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for number, size in enumerate(SIZES):
        visualize.write_png(folder / f"photo_{number}.png", picture(size, number))
    return folder


def test_outputs_read_back(photos, tmp_path, capsys):
    output = tmp_path / "out"
    assert predict.predict_files(Brightness(), predict.find_images([str(photos)]), output) == 0
    assert {path.name for path in output.iterdir()} == {
        "legend.png", "classes.json",
        *(f"photo_{number}{end}" for number in range(3) for end in (".png", "_overlay.png")),
    }  # fmt: skip
    for number, size in enumerate(SIZES):
        with Image.open(output / f"photo_{number}.png") as label:
            assert label.mode == "P"
            np.testing.assert_array_equal(np.asarray(label), Brightness()(picture(size, number)))
            assert (label.getpalette() or [])[3:6] == [200, 210, 220]
        with Image.open(output / f"photo_{number}_overlay.png") as overlay:
            assert overlay.size == size[::-1]
    assert json.loads((output / "classes.json").read_text())["class_names"] == ["dark", "bright"]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert printed[1].startswith(f"2/3 {photos / 'photo_1.png'} → {output / 'photo_1.png'} (")


def predict_again(paths, output, **arguments):
    return predict.predict_files(Brightness(), paths, output, **arguments)


def test_nothing_is_overwritten_unasked(photos, tmp_path):
    output = tmp_path / "out"
    predict_again([photos / "photo_0.png"], output)
    before = (output / "photo_0.png").read_bytes()
    with pytest.raises(DataError, match=r"out/photo_0\.png exists: choose another --output, or say --overwrite"):
        predict_again(predict.find_images([str(photos)]), output)
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
        predict_again(predict.find_images([str(photos)]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unreadable_image_is_named_and_passed_over(photos, tmp_path, capsys):
    (photos / "photo_1.png").write_bytes(b"no image")
    assert predict_again(predict.find_images([str(photos)]), tmp_path / "out") == 1
    assert f"error: {photos / 'photo_1.png'}: not an image" in capsys.readouterr().err
    assert (tmp_path / "out" / "photo_2.png").exists()
    assert not (tmp_path / "out" / "photo_1.png").exists()


def test_images_are_found(photos, tmp_path):
    (photos / "notes.txt").write_text("no image")
    everything = [photos / f"photo_{number}.png" for number in range(3)]
    assert predict.find_images([str(photos)]) == everything
    assert predict.find_images([str(photos / "photo_[12].png"), str(everything[0])]) == everything[1:] + everything[:1]
    assert predict.find_images([str(everything[0]), str(photos)]) == everything  # named twice, predicted once
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", photos / "photo_9.png", photos / "*.gif"):
        with pytest.raises(DataError, match=r"^no image at .*: name image files, folders of them or globs$"):
            predict.find_images([str(nothing)])


def test_two_images_of_one_name_are_refused(photos, tmp_path):
    visualize.write_png(tmp_path / "other" / "photo_1.png", picture((2, 2)))
    with pytest.raises(DataError, match=r"photos/photo_1\.png and .*other/photo_1\.png would give the same output"):
        predict.find_images([str(photos), str(tmp_path / "other")])
