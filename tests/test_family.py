"""SegNet, DeconvNet, DeepLab and FCN-ResNet through the program: trained, resumed, scored, asked how sure they are."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from fcn_jax import config as experiment
from fcn_jax import evaluation, parallel, training, uncertainty, visualize
from fcn_jax.checkpoints import Checkpoints
from fcn_jax.data import images
from fcn_jax.errors import ConfigError
from fcn_jax.models.deeplab import BRANCHES
from fcn_jax.predict import Predictor

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fast_compilation")]
ROOT = Path(__file__).parents[1]
NETS = {
    "bayesian_segnet": {"model.width": 1 / 32},
    "segnet_basic_fcn": {"model.width": 1 / 8, "model.trunk": ""},
    "deconvnet": {"model.width": 1 / 32, "model.fc_width": 8, "model.trunk": ""},
    "deeplab_largefov": {"model.width": 1 / 32, "model.fc_width": 8, "model.trunk": "", "loss.at_scores": True},
    "fcn_resnet50": {"model.width": 1 / 16, "model.trunk": ""},
}


def config(name, **changes):
    plain = {
        "model.name": name,
        "train.pictures": 0,
        "model.padding": "same",
        "train.steps": 2,
        "train.checkpoint_every": 1,
    }
    fields = {"model.fc_width": 0, "model.dropout": -1.0, **plain, **NETS[name], **changes}
    return tiny.config(**fields)


def variables(workdir):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore_variables("latest")[1])


@pytest.mark.parametrize("name", NETS)
def test_a_resumed_run_ends_in_the_same_bits(name, tmp_path):
    training.train(config(name), tmp_path / "whole")
    training.train(config(name, **{"train.steps": 1}), tmp_path / "halves")
    training.train(config(name), tmp_path / "halves")
    whole, halves = variables(tmp_path / "whole"), variables(tmp_path / "halves")
    assert ("batch_stats" in whole) == (name != "deeplab_largefov")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(halves), strict=True):
        np.testing.assert_array_equal(a, b, jax.tree_util.keystr(path))
    predictor = Predictor.from_workdir(tmp_path / "whole")
    picture = np.random.RandomState(0).randint(0, 255, (23, 31, 3)).astype(np.uint8)
    assert predictor(picture).shape == (23, 31)


@pytest.fixture(scope="module")
def bayesian(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("bayesian")
    training.train(config("bayesian_segnet", **{"train.statistics_batches": 3}), workdir)
    return workdir


def test_statistics_are_computed_at_the_end(bayesian, tmp_path):
    training.train(config("bayesian_segnet"), tmp_path)
    exact, running = variables(bayesian), variables(tmp_path)
    for a, b in zip(jax.tree.leaves(exact["params"]), jax.tree.leaves(running["params"]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(exact["batch_stats"]["conv1_1_bn"]["mean"], running["batch_stats"]["conv1_1_bn"]["mean"])


def test_samples_tell_how_sure_a_net_is(bayesian):
    picture = np.random.RandomState(0).randint(0, 255, (20, 24, 3)).astype(np.uint8)
    predictor = Predictor.from_workdir(bayesian, samples=5)
    found = predictor.uncertainty(picture)
    np.testing.assert_array_equal(predictor(picture), found["label"])
    assert found["entropy"].shape == found["mutual_information"].shape == (20, 24)
    assert 0 < found["mutual_information"].mean() < found["entropy"].mean() <= 1
    np.testing.assert_allclose(predictor.probabilities(picture).sum(-1), 1, rtol=1e-5)
    calm = Predictor.from_workdir(bayesian)
    with pytest.raises(ConfigError, match="say --samples"):
        calm.uncertainty(picture)


def test_calibration_is_part_of_the_result(bayesian, tmp_path):
    predictor = Predictor.from_workdir(bayesian, samples=2)
    source = tiny.source(config("bayesian_segnet"), "val")
    (result,) = evaluation.evaluate_predictor(source, predictor, None, predictor.probabilities).values()
    assert "expected calibration error" in result.table()
    result.write(tmp_path, "val", predictor.origin)
    assert '"calibration_error"' in (tmp_path / "val.json").read_text()
    assert result.reliability is not None and result.reliability[:, 0].sum() == result.matrix.sum()


def test_the_commands_take_samples(bayesian, tmp_path):
    """`predict` paints labels and uncertainty, `evaluate` says the calibration; both of the mean of the samples."""
    picture = np.random.RandomState(0).randint(0, 255, (20, 24, 3)).astype(np.uint8)
    visualize.write_png(tmp_path / "a.png", picture)

    def said(*command):
        done = subprocess.run(
            [sys.executable, *command, "--workdir", str(bayesian), "--samples", "3"],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    output = tmp_path / "pictures"
    printed = said("-m", "fcn_jax.predict", str(tmp_path / "a.png"), "--output", str(output))
    assert "entropy 0." in printed and "mutual information 0." in printed
    predictor = Predictor.from_workdir(bayesian, samples=3)
    found = predictor.uncertainty(picture)
    assert {path.name for path in output.iterdir()} == {"a.png", "a_entropy.png", "a_mutual_information.png"}
    np.testing.assert_array_equal(images.read_mask(output / "a.png"), found["label"])
    for kind in ("entropy", "mutual_information"):
        wanted = visualize.heatmap(picture, found[kind] / found[kind].max())
        np.testing.assert_allclose(images.read_image(output / f"a_{kind}.png").astype(int), wanted, atol=2)

    printed = said("evaluate.py", "--calibration", "--output", str(tmp_path / "scores"))
    result = json.loads((tmp_path / "scores" / "val.json").read_text())
    assert f"expected calibration error {result['calibration_error']:.4f}" in printed
    source = tiny.source(config("bayesian_segnet"), "val")
    (scored,) = evaluation.evaluate_predictor(source, predictor, None, predictor.probabilities).values()
    assert scored.reliability is not None and result["confusion"] == scored.matrix.tolist()
    assert result["calibration_error"] == pytest.approx(uncertainty.calibration_error(scored.reliability), abs=1e-3)


def test_nets_without_dropout_cannot_be_sampled(tmp_path):
    training.train(config("segnet_basic_fcn", **{"train.steps": 1}), tmp_path)
    with pytest.raises(ConfigError, match="has no dropout in testing"):
        Predictor.from_workdir(tmp_path, samples=2)


def test_parts_that_are_normalised_by_themselves_stay_what_they_are(tmp_path):
    training.train(config("segnet_basic_fcn", **{"train.steps": 1, "data.batch_size": 16}), tmp_path)
    with pytest.raises(ConfigError, match=r"another config \(optim\.accumulate: 1 → 2\)"):
        training.train(config("segnet_basic_fcn", **{"data.batch_size": 16, "optim.accumulate": 2}), tmp_path)


def test_statistics_of_the_training_set_are_the_same_on_any_devices(tmp_path, monkeypatch):
    """Of the same parameters: two runs that learn nothing."""
    still = {"optim.lr": 0.0, "train.steps": 1, "train.statistics_batches": 3}
    make_mesh, found = parallel.make_mesh, []
    for count in (1, 8):
        monkeypatch.setattr(parallel, "make_mesh", lambda count=count: make_mesh(jax.local_devices()[:count]))
        training.train(config("segnet_basic_fcn", **still), tmp_path / str(count))
        found.append(variables(tmp_path / str(count))["batch_stats"])
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_branches_are_added_to_a_net(tmp_path):
    training.train(config("deeplab_largefov"), tmp_path / "plain")
    grown = {"model.name": "deeplab_msc", "init.workdir": str(tmp_path / "plain"), "train.steps": 2}
    training.train(config("deeplab_largefov", **grown, **{"optim.frozen": ("conv*", "fc*")}), tmp_path / "grown")
    before, after = variables(tmp_path / "plain")["params"], variables(tmp_path / "grown")["params"]
    for layer, leaves in before.items():
        for kind, values in leaves.items():
            np.testing.assert_array_equal(after[layer][kind], values)
    assert after.keys() - before.keys() == {f"{source}_ms{n}" for source in BRANCHES for n in (1, 2, 3)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.padding": "caffe"}, "model.padding='caffe': bayesian_segnet has no padding"),
        ({"model.fc_width": 9}, "model.fc_width=9: bayesian_segnet has no fc_width"),
    ],
)
def test_fields_that_a_net_does_not_have(changes, message):
    with pytest.raises(ConfigError, match=message):
        experiment.make_model(config("bayesian_segnet", **changes), 3)


def test_a_trunk_that_a_net_cannot_stand_on(tmp_path):
    with pytest.raises(ConfigError, match="model: trunk='alexnet' is none of vgg11"):
        training.train(config("bayesian_segnet", **{"model.trunk": "alexnet"}), tmp_path)
