"""The release's other recipes end to end, on tiny data in its data sets' layouts: two heads, depth, late fusion."""

import json
import subprocess
import sys
from pathlib import Path

import caffemodel_writer as writer
import jax
import numpy as np
import pytest
import test_nyud as rooms
import test_siftflow as scenes

from configs import deeplab_largefov, fcn32s, fcn_alexnet
from fcn_jax import config as experiment
from fcn_jax import optim, state, training
from fcn_jax.checkpoints import Checkpoints
from fcn_jax.predict import Predictor

pytestmark = pytest.mark.usefixtures("fast_compilation")
ROOT = Path(__file__).parents[1]
SMALL = {
    "model.width": 1 / 16,
    "model.fc_width": 8,
    "model.padding": "same",
    "data.batch_size": 8,
    "data.threads": 2,
    "optim.lr": 1e-7,
    "init.weights": "",
    "init.skip": (),
    "train.steps": 2,
    "train.log_every": 1,
    "train.eval_every": 2,
    "train.checkpoint_every": 2,
    "train.pictures": 1,
}


def small(recipe, **changes) -> experiment.Config:
    """A published recipe, narrow and of two steps."""
    recipe.update_from_flattened_dict(SMALL | changes)
    return recipe


@pytest.fixture(scope="module")
def sift_flow(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sift")
    rng = np.random.default_rng(0)
    for name in "abc":
        semantic, geometric = rng.integers(0, 34, (2, 3)), rng.integers(-1, 4, (2, 3))
        scenes.write(root, name, semantic=semantic.astype(np.uint8), geometric=geometric.astype(np.int16))
    (root / "trainval.txt").write_text("a\nb\n")
    (root / "test.txt").write_text("c\n")
    return root


@pytest.mark.slow
def test_two_heads_are_trained_and_scored(sift_flow, tmp_path, capsys):
    changes = {"data.root": str(sift_flow), "data.cache": str(tmp_path / "cache")}
    workdir = tmp_path / "run"
    training.train(small(fcn32s.get_config("siftflow"), **changes), workdir)
    printed = capsys.readouterr().out
    assert "33 sem and 3 geo classes" in printed
    assert "val sem: mean IU" in printed and "val geo: mean IU" in printed
    entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = {name: value for entry in entries for name, value in entry.items()}
    # The first head's scores have the plain names, and the loss is the sum of the heads'.
    assert {"val/mean_iou", "val/geo/mean_iou", "val/iou/00_awning", "val/geo/iou/02_vertical"} <= last.keys()
    assert last["train/loss"] == pytest.approx(last["train/loss/sem"] + last["train/loss/geo"])
    assert last["train/loss/geo"] == pytest.approx(np.log(3), rel=0.2)

    predictor = Predictor.from_workdir(workdir)
    assert {head: label.shape for head, label in predictor(np.zeros((5, 4, 3), np.uint8)).items()} == {
        "sem": (5, 4), "geo": (5, 4)
    }  # fmt: skip
    command = [sys.executable, "evaluate.py", "--workdir", str(workdir), "--save_predictions"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = workdir / "evaluation"
    scores = {head: json.loads((folder / f"test_{head}.json").read_text()) for head in ("sem", "geo")}
    assert len(scores["sem"]["confusion"]) == 33 and len(scores["geo"]["confusion"]) == 3
    assert scores["sem"]["images"] == 1 and (folder / "test_predictions" / "geo" / "c.png").is_file()
    again = [*command[:2], "--config", "configs/fcn32s.py:siftflow", "--predictions", str(folder / "test_predictions")]
    again += [f"--config.{field}={value}" for field, value in changes.items()] + ["--output", str(tmp_path / "again")]
    done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "again" / "test_geo.json").read_text())["confusion"] == scores["geo"]["confusion"]


UNSCORED = {"train.eval_every": 0, "train.pictures": 0}


@pytest.fixture(scope="module")
def nyud(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("nyud")
    for number in (5001, 5002):
        rooms.write(root, number)
    (root / "trainval.txt").write_text("5001\n")
    (root / "test.txt").write_text("5002\n")
    return root


def restored(workdir: Path):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore_params("latest")[1]


@pytest.mark.slow
def test_late_fusion_joins_two_runs(nyud, tmp_path, capsys):
    changes = {"data.root": str(nyud), "data.cache": str(tmp_path / "cache"), **UNSCORED}
    for modality in ("color", "hha"):
        config = small(fcn32s.get_config(f"nyud-{modality}"), **changes, seed=len(modality))
        training.train(config, tmp_path / modality)
    runs = {"init.stream_workdirs": (str(tmp_path / "color"), str(tmp_path / "hha"))}
    config = small(fcn32s.get_config("nyud-color-hha"), **changes, **runs)
    assert experiment.input_spec(config).order == "BGRHHA"
    config.optim.lr = 0.0
    training.train(config, tmp_path / "fused")
    assert "parameters from step 2 of" in capsys.readouterr().out
    fused = restored(tmp_path / "fused")
    for stream in ("color", "hha"):
        for layer, leaves in restored(tmp_path / stream).items():
            jax.tree.map(np.testing.assert_array_equal, fused[layer + stream], leaves)


@pytest.mark.slow
def test_depth_starts_as_the_mean_of_the_colors(nyud, tmp_path):
    """The layer that sees four channels takes the file's kernel, and the mean of its three for depth."""
    source = {"data.root": str(nyud), "data.cache": str(tmp_path / "cache"), **UNSCORED}
    first = small(fcn32s.get_config("nyud-color"), **source)
    training.train(first, tmp_path / "color")
    color = restored(tmp_path / "color")
    blobs = {f"{layer}.0": np.transpose(leaves["kernel"], (3, 2, 0, 1)) for layer, leaves in color.items()}
    blobs |= {f"{layer}.1": np.asarray(leaves["bias"]) for layer, leaves in color.items()}
    path = tmp_path / "color.caffemodel"
    path.write_bytes(writer.net(blobs))
    recipe = small(fcn32s.get_config("nyud-color-d"), **source, **{"init.weights": str(path)})
    recipe.optim.lr = 0.0
    training.train(recipe, tmp_path / "depth")
    kernel, wanted = (tree["conv1_1"]["kernel"] for tree in (restored(tmp_path / "depth"), color))
    np.testing.assert_array_equal(kernel[:, :, :3], wanted)
    np.testing.assert_allclose(kernel[:, :, 3], wanted.mean(axis=2), rtol=1e-6)


def test_the_solver_of_fcn_alexnet():
    """The only one of the release with iter_size: 20 images of one another, and the mean of their means."""
    config = fcn_alexnet.get_config("voc2012")
    experiment.validate(config)
    assert (config.data.batch_size, config.optim.accumulate, config.loss.normalization) == (20, 20, "part_mean")
    assert (config.optim.lr, config.optim.momentum, config.train.steps) == (1e-4, 0.9, 100_000)
    assert config.optim.lr_multipliers == (("score_fr/bias", 2.0),)


@pytest.mark.parametrize("variant", ["voc2012", "voc2012-msc"])
def test_deeplabs_scores_learn_ten_times_as_fast(variant):
    """And their bias twenty times; of the multi-scale net the branches alone learn, and their scores so."""
    config = deeplab_largefov.get_config(variant)
    config.model.update(width=1 / 32, fc_width=4)
    shapes = state.abstract_params(experiment.make_model(config, 21))
    zeros, ones = (
        jax.tree.map(lambda leaf, value=value: np.full(leaf.shape, value, leaf.dtype), shapes) for value in (0, 1)
    )
    optimizer = optim.make_optimizer(config.optim, config.train.steps, shapes)
    # Of a gradient of ones, at zero, where nothing decays, the first step is the rate.
    updates = jax.jit(lambda gradient, params: optimizer.update(gradient, optimizer.init(params), params)[0])(
        ones, zeros
    )
    rates = {
        name: -float(update.flat[0]) / config.optim.lr
        for name, update in zip(optim.parameter_names(updates), map(np.asarray, jax.tree.leaves(updates)), strict=True)
    }
    for layer in shapes:
        older = layer.startswith(("conv", "fc"))
        wanted = (10, 20) if layer == "fc8_voc12" or layer.endswith("_ms3") else (1, 2)
        wanted = (0, 0) if older and variant == "voc2012-msc" else wanted
        assert (rates[f"{layer}/kernel"], rates[f"{layer}/bias"]) == pytest.approx(wanted), layer
