"""What a run settles with its folder and its weights before the first step."""

import threading

import numpy as np
import pytest
import tiny

from fcn_jax import config as experiment
from fcn_jax import workdirs
from fcn_jax.errors import CheckpointError, ConfigError
from fcn_jax.inputs import FCN_INPUT, IMAGENET_INPUT

VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


@pytest.fixture
def torchvisions(tmp_path):
    """A file with the names of torchvision's VGG-16, which tell what its net wants to see."""
    leaves = {"weight": np.zeros((1, 1, 3, 3), np.float32), "bias": np.zeros(1, np.float32)}
    path = tmp_path / "vgg16.npz"
    np.savez(path, **{f"features.{place}.{leaf}": value for place in VGG16 for leaf, value in leaves.items()})
    return str(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"input.order": ""},
        {"input.order": "RGB", "input.mean": IMAGENET_INPUT.mean, "input.scale": IMAGENET_INPUT.scale},
    ],
)
def test_the_file_says_what_its_net_sees(torchvisions, tmp_path, fields):
    config = tiny.config(**{"init.weights": torchvisions} | fields)
    assert workdirs.settle_input(config, tmp_path / "run")
    assert experiment.input_spec(config) == IMAGENET_INPUT


def test_another_input_is_refused(torchvisions, tmp_path):
    """A recipe made for Caffe's weights, started from torchvision's."""
    config = tiny.config(**{"init.weights": torchvisions, "input.mean": FCN_INPUT.mean, "input.scale": ()})
    with pytest.raises(
        ConfigError, match=r"input\.\* contradict init\.weights: .*vgg16\.npz .* --config\.input\.order="
    ):
        workdirs.settle_input(config, tmp_path / "run")


def test_pictures_of_others_stay(tmp_path):
    """The strips of a run would be laid over them."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "holiday.png").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=r"pictures holds files, and .* no run: choose another --workdir"):
        tiny.claimed(tmp_path, tiny.config())


def test_what_another_host_wrote_may_be_seen_late(tmp_path, monkeypatch):
    """As mounts of networks and buckets show it."""
    later = threading.Timer(0.3, (tmp_path / "there").touch)
    later.start()
    assert workdirs._not_seen(tmp_path, [".", "there"]) == ""
    later.join()
    monkeypatch.setattr(workdirs, "_SHARED_SECONDS", 0.1)
    assert workdirs._not_seen(tmp_path, ["there", "nowhere"]) == "nowhere"


def test_a_claimed_folder_holds_no_trace_of_looking_for_it(tmp_path):
    config = tiny.config()
    with workdirs.claimed(tmp_path / "run", config, tiny.source(config, "train").info):
        assert (tmp_path / "run" / "checkpoints").is_dir()
        assert not list((tmp_path / "run").glob(".seen*"))
