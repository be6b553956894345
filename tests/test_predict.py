"""From a run's folder, or a released file, to label maps of images of any size, and to one class's heat."""

import subprocess
import sys
from pathlib import Path

import caffemodel_writer as writer
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fcn_jax import config as experiment
from fcn_jax import models, picture_files, predict, proposals, state, visualize, weights
from fcn_jax.checkpoints import Checkpoints
from fcn_jax.data import images
from fcn_jax.errors import CheckpointError, ConfigError, DataError, WeightFileError
from fcn_jax.inputs import NYUD_COLOR_DEPTH_INPUT, VGG_INPUT
from fcn_jax.labels import DatasetInfo, by_head

ROOT = Path(__file__).parents[1]
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


def write_run(folder, seeds):
    """A workdir with a checkpoint of random parameters for each seed, the first of them the best."""
    config = tiny.config()
    workdir = tiny.claimed(folder, config)
    model = experiment.make_model(config, 8)
    saved = [randomly(state.abstract_params(model), seed) for seed in seeds]
    with Checkpoints(workdir) as checkpoints:
        for step, params in enumerate(saved, start=1):
            checkpoints.save(step, state.create(params, optax.sgd(1.0)), 1 / step)
    return workdir, model, saved


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with checkpoints 1 (the best) and 2, its net, and their parameters."""
    return write_run(tmp_path_factory.mktemp("run"), (1, 2))


@pytest.mark.parametrize(("checkpoint", "place"), [("best", 0), ("latest", 1), ("2", 1)])
def test_a_run_is_rebuilt_from_its_folder(run, checkpoint, place):
    workdir, model, saved = run
    predictor = predict.Predictor.from_workdir(workdir, checkpoint)
    assert by_head(predictor.info)[""].class_names[1] == "disc"
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
    path = tmp_path / "voc-fcn8s.caffemodel"
    path.write_bytes(writer.net(writer.blobs_of(params)))
    predictor = predict.Predictor.from_weights(path, "voc-fcn8s")
    assert by_head(predictor.info)[""].class_names[15] == "person"
    image = picture((20, 31))
    # The release sees BGR minus its mean.
    blob = image[..., ::-1].astype(np.float32) - np.array([[[104.00698793, 116.66876762, 122.67891434]]], np.float32)
    np.testing.assert_array_equal(
        predictor(image), np.argmax(jax.jit(model.apply)({"params": params}, blob[None])[0], -1)
    )


def test_flags_name_one_net(run, tmp_path):
    assert predict.from_flags(str(run[0]), "2", None, None).origin.startswith("step 2 of")
    for workdir, file in ((None, None), ("runs/a", "a.caffemodel")):
        with pytest.raises(ConfigError, match=r"name a run by --workdir, or a released file by --weights FILE --model"):
            predict.from_flags(workdir, "best", file, None)
    with pytest.raises(ConfigError, match=r"--weights needs --model, one of voc-fcn32s"):
        predict.from_flags(None, "best", "a.caffemodel", None)
    with pytest.raises(ConfigError, match=r"'voc-fcn8' is neither a model nor a release; .* did you mean 'voc-fcn8s'"):
        predict.from_flags(None, "best", "a.caffemodel", "voc-fcn8")
    with pytest.raises(WeightFileError, match=r"nothing\.caffemodel"):
        predict.from_flags(None, "best", str(tmp_path / "nothing.caffemodel"), "voc-fcn8s")
    with pytest.raises(CheckpointError, match=r"--workdir .*nowhere is no folder"):
        predict.from_flags(str(tmp_path / "nowhere"), "best", None, None)


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory):
    """A released net of two heads, narrow, with other numbers of classes than the release's."""
    module = models.create("fcn16s", {"sem": 5, "geo": 3}, width=1 / 32, fc_width=4)
    params = randomly(state.abstract_params(module), 0)
    blobs = {
        f"{layer}.{index}": np.transpose(np.asarray(leaf), (3, 2, 0, 1)) if leaf.ndim == 4 else np.asarray(leaf)
        for layer, leaves in params.items()
        for index, leaf in enumerate((leaves["kernel"], leaves["bias"]))
    }
    path = tmp_path_factory.mktemp("weights") / "net.caffemodel"
    path.write_bytes(writer.net(blobs))
    return predict.Predictor.from_weights(path, "siftflow-fcn16s")


def test_several_heads(two_heads):
    labels = two_heads(picture((9, 14)))
    assert {head: (label.shape, label.dtype) for head, label in labels.items()} == {
        "sem": ((9, 14), np.uint8), "geo": ((9, 14), np.uint8)
    }  # fmt: skip
    shares = sum(two_heads.heatmap(picture((9, 14)), label, "geo") for label in range(3))
    np.testing.assert_allclose(shares, 1, rtol=1e-6)
    assert {head: info.num_classes for head, info in two_heads.info.items()} == {"sem": 5, "geo": 3}


@pytest.fixture(scope="module")
def classifier():
    """A narrow VGG with ImageNet's thousand classes."""
    module = models.create("vgg11", 1000, width=1 / 32, fc_width=4)
    variables = {"params": randomly(state.abstract_params(module), 0)}
    info = weights.RELEASES["vgg16-ilsvrc"].info
    return predict.Predictor(module, variables, VGG_INPUT, info, "a classifier"), module, variables


@pytest.mark.slow
def test_a_classifiers_map_lies_where_its_cells_look(classifier):
    predictor, module, variables = classifier
    image = picture((230, 262))
    _, taps = module.apply(variables, predictor.input_spec(image)[None], return_taps=True)
    heat, cells = predictor.heatmap(image, 281), np.asarray(taps["prob"][0, ..., 281])
    grid = module.grids()["prob"]
    assert predictor.is_classifier and heat.shape == (230, 262) and cells.shape == (2, 3)
    for row in range(2):
        for column in range(3):
            places = [
                min(max(round(float(grid.start + cell * grid.step)), 0), size - 1)
                for cell, size in ((row, 230), (column, 262))
            ]
            assert heat[tuple(places)] == pytest.approx(cells[row, column], rel=0.05)
    labels = predictor(image)  # more of them than a byte can tell
    assert labels.dtype == np.uint16 and labels.max() > 255
    assert np.array_equal(labels, taps["prob"][0].argmax(axis=-1))
    assert heat.min() >= cells.min() * (1 - 1e-6) and heat.max() <= cells.max() * (1 + 1e-6)
    np.testing.assert_allclose(predictor.class_probabilities(image).sum(), 1, rtol=1e-5)


def test_a_picture_too_small_for_a_classifier(classifier):
    with pytest.raises(DataError, match="a picture of 200×100 pixels is too small for a classifier: it takes 193×193"):
        classifier[0].heatmap(picture((100, 200)), 0)


def test_a_picture_that_is_not_for_the_net_does_not_end_the_others(tmp_path, capsys):
    paths = [tmp_path / name for name in ("small.png", "broken.png", "large.png")]
    visualize.write_png(paths[0], picture((10, 20)))
    paths[1].write_bytes(b"no picture")
    visualize.write_png(paths[2], picture((30, 20)))

    def heat(image):
        if len(image) < 20:
            raise DataError("too small")
        return np.full(image.shape[:2], 0.5, np.float32)

    assert picture_files.write_heatmaps(heat, "tabby", paths, tmp_path / "out") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["large_heatmap.png"]
    said = capsys.readouterr()
    assert f"error: {paths[0]}: too small" in said.err and str(paths[1]) in said.err and "3/3" in said.out


def test_classes_are_found_by_any_of_their_names(classifier):
    predictor = classifier[0]
    for text in ("tabby", "tabby cat", "tabby, tabby cat", "281"):
        assert predictor.find_class(text) == ("", 281, "tabby, tabby cat")
    with pytest.raises(
        ConfigError, match=r"'crane' is more than one class: 134 \(crane\), 517 \(crane\); give its number"
    ):
        predictor.find_class("crane")
    with pytest.raises(ConfigError, match=r"no class 'taby'; did you mean 'tabby'\?"):
        predictor.find_class("taby")


def test_what_a_classifier_sees(classifier, tmp_path, capsys):
    visualize.write_png(tmp_path / "photo.png", picture((224, 224)))
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert predict.name_classes(classifier[0], [tmp_path / "photo.png", tmp_path / "broken.png"]) == 1
    printed = capsys.readouterr().out.strip()
    assert printed.startswith(f"1/2 {tmp_path / 'photo.png'}: ") and printed.count(" % ") == predict.MOST_PROBABLE


def test_pictures_are_no_rooms_with_depth(run):
    _, model, saved = run
    predictor = predict.Predictor(model, {"params": saved[0]}, NYUD_COLOR_DEPTH_INPUT, INFO, "a net")
    with pytest.raises(
        DataError, match=r"the net takes 4 channels \(BGRD\), a picture has 3: score it on its data set"
    ):
        predictor(picture((4, 4)))


@pytest.mark.slow
def test_boxes_and_an_ensemble(run, tmp_path):
    """The command gives what `proposals` says of the same boxes, alone and with another net."""
    image = picture((130, 150))
    visualize.write_png(tmp_path / "a.png", image)
    (tmp_path / "a.txt").write_text("0 0 120 125\n20 5 150 130\n")
    boxes = [(0, 0, 120, 125), (20, 5, 150, 130)]
    (tmp_path / "second").mkdir()
    second = write_run(tmp_path / "second", (7,))[0]  # another label in places: of many seeds only some give that
    net, other = (predict.Predictor.from_workdir(workdir) for workdir in (run[0], second))
    command = [sys.executable, "-m", "fcn_jax.predict", "--workdir", str(run[0]), str(tmp_path / "a.png")]

    def labels(name, *more):
        done = subprocess.run(
            [*command, "--output", str(tmp_path / name), *more], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return images.read_mask(tmp_path / name / "a.png")

    boxed = labels("alone", "--boxes", str(tmp_path))
    np.testing.assert_array_equal(boxed, proposals.label(net, image, boxes))
    both = labels("both", "--boxes", str(tmp_path), "--ensemble", str(second))
    np.testing.assert_array_equal(both, proposals.label(net, image, boxes, other))
    assert np.any(both != boxed)
    for more, message in (
        (("--ensemble", str(run[0])), "--ensemble adds a net to the one that --boxes shows crops to"),
        (("--boxes", str(tmp_path), "--ensemble", "voc-fcn8s=none.caffemodel"), "none.caffemodel"),
        (("--boxes", str(tmp_path), "--ensemble", "nowhere"), "nowhere is neither the folder of a run nor RELEASE="),
    ):
        done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
