"""What a run settles with its folder and its weights before the first step."""

import errno
import fcntl
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


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    """As Lustre is, unless mounted with them."""

    def refuse(*arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (tmp_path / ".lock").open("w") as file:
        workdirs._lock(file, tmp_path)
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path} knows no locks")


def test_of_several_hosts_the_first_waits_for_a_lock(tmp_path, monkeypatch):
    """A file system of a network keeps that of a host which vanished for a while."""
    monkeypatch.setattr(workdirs.jax, "process_count", lambda: 2)
    before = (tmp_path / ".lock").open("w")
    workdirs._lock(before, tmp_path)
    threading.Timer(0.3, before.close).start()
    with (tmp_path / ".lock").open("w") as file:
        workdirs._lock(file, tmp_path)


def test_a_lock_of_nobody_can_be_removed(tmp_path):
    with (tmp_path / ".lock").open("w") as first, (tmp_path / ".lock").open("w") as second:
        workdirs._lock(first, tmp_path)
        with pytest.raises(CheckpointError, match=r"another process is training in .*if none is, remove .*\.lock$"):
            workdirs._lock(second, tmp_path)
