"""Counting classes and weighing them: by the papers' definitions, on three images that can be counted by eye."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fcn_jax import config as experiment
from fcn_jax.data import balance
from fcn_jax.data.camvid import INFO, RELEASED_WEIGHTS
from fcn_jax.errors import ConfigError
from fcn_jax.labels import DatasetInfo

ROOT = Path(__file__).parents[1]
THREE = DatasetInfo("three", ("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))


class Source:
    """Two images of ten pixels, one of twenty; class c never occurs."""

    info = THREE
    labels = (
        np.array([[0] * 8 + [1, 255]], np.uint8),
        np.array([[0] * 10], np.uint8),
        np.array([[1] * 5 + [255] * 15], np.uint8),
    )

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"label": self.labels[index]}


def test_counts():
    counts = balance.count(Source())
    np.testing.assert_array_equal(counts.pixels, [18, 6, 0])
    np.testing.assert_array_equal(counts.images_with, [2, 2, 0])
    np.testing.assert_array_equal(counts.image_pixels, [20, 30, 0])  # void pixels among them
    assert counts.images == 3


def test_weights_by_hand():
    counts = balance.count(Source())
    frequency = np.array([18 / 20, 6 / 30])
    np.testing.assert_allclose(balance.median_frequency(counts), [*(np.median(frequency) / frequency), 0])
    np.testing.assert_allclose(balance.enet(counts), [1 / np.log(1.02 + 0.75), 1 / np.log(1.02 + 0.25), 0])
    np.testing.assert_allclose(balance.inverse(counts), [1 / (3 * 0.75), 1 / (3 * 0.25), 0])


def test_a_config_names_the_file(tmp_path):
    (tmp_path / "balance.json").write_text(balance.to_json(balance.count(Source()), "three", "train"))
    config = experiment.default()
    config.loss.class_weights = str(tmp_path / "balance.json")
    for formula, weigh in balance.FORMULAS.items():
        config.loss.balancing = formula
        experiment.validate(config)
        found = experiment.class_weights(config, THREE)
        assert found is not None
        np.testing.assert_allclose(found, weigh(balance.count(Source())), rtol=1e-6)


def test_the_released_weights_of_camvid():
    """`class_weighting` of SegNet-Tutorial's segnet_train.prototxt."""
    config = experiment.default()
    config.loss.class_weights = "camvid-released"
    found = experiment.class_weights(config, INFO)
    assert found is not None and found.dtype == np.float32
    wanted = {
        **{"Sky": 0.2595, "Building": 0.1826, "Pole": 4.5640, "Road": 0.1417, "Pavement": 0.9051, "Tree": 0.3826},
        **{"SignSymbol": 9.6446, "Fence": 1.8418, "Car": 0.6823, "Pedestrian": 6.2478, "Bicyclist": 7.3614},
    }
    np.testing.assert_allclose(found, [wanted[name] for name in INFO.class_names], rtol=1e-6)
    assert list(RELEASED_WEIGHTS) == list(INFO.class_names)
    with pytest.raises(ConfigError, match=r"'camvid-released' are of Sky, .*; the classes are a, b, c"):
        experiment.class_weights(config, THREE)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot be read"), ("{}", "holds no weights by"), ("no json", "holds no weights by"), ("[1]", "holds no")],
)
def test_files_that_hold_none(tmp_path, text, message):
    if text is not None:
        (tmp_path / "balance.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        balance.read_weights(tmp_path / "balance.json", "enet")


def test_weights_are_of_cross_entropy_alone():
    config = experiment.default()
    config.loss.update(class_weights="camvid-released", name="dice")
    with pytest.raises(ConfigError, match=r"class_weights weigh loss\.name='cross_entropy', and it is 'dice'"):
        experiment.validate(config)


def test_camvids_counts_are_the_published_ones(shared):
    """Of the labels that SegNet's authors shipped, void counted as their twelfth class."""
    config = experiment.default()
    config.data.update(name="camvid", root=str(shared / "data" / "camvid"))
    from fcn_jax import data

    counts = balance.count(data.open_split(config.data, "train"))
    np.testing.assert_array_equal(counts.pixels[[0, 1, 6, 10]], [10_682_767, 14_750_079, 743_859, 184_967])
    np.testing.assert_array_equal(counts.images_with[[0, 1, 7, 10]], [366, 365, 173, 201])
    weights = balance.median_frequency(counts)
    wanted = [0.2793, 0.2017, 4.7865, 0.1490, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587]
    np.testing.assert_allclose(weights, wanted, atol=5e-5)


def test_the_command(tmp_path):
    output = tmp_path / "balance.json"
    command = [sys.executable, "-m", "fcn_jax.data", "stats", "--config", "configs/fcn8s.py", "--output", str(output)]
    command += ["--config.data.shapes.train_images=3", "--config.data.shapes.height=40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "3 images" in done.stdout and "median_frequency" in done.stdout
    written = json.loads(output.read_text())
    assert written["images"] == 3 and written["weights"].keys() == balance.FORMULAS.keys()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 1 and "exists: choose another --output" in again.stderr
