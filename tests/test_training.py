"""Whole runs, tiny ones: what they leave, how they go on, and how they fail."""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import caffemodel_writer as writer
import jax
import numpy as np
import optax
import pytest
import tiny

from fcn_jax import config as experiment
from fcn_jax import parallel, state, training, workdirs
from fcn_jax.checkpoints import Checkpoints
from fcn_jax.errors import CheckpointError, ConfigError, DataError, NonFiniteError, WeightFileError
from fcn_jax.preemption import EXIT_CODE

ROOT = Path(__file__).parents[1]


pytestmark = pytest.mark.usefixtures("fast_compilation")


def train(workdir: Path, **changes) -> tuple[state.TrainState, str]:
    """The final state of a tiny run, and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        final = training.train(tiny.config(**changes), workdir)
    return jax.device_get(final), printed.getvalue()


def metrics_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def checkpoints_of(workdir: Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def saved_params(workdir: Path, which: str = "latest"):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore_params(which)[1]


def assert_same_bits(found, wanted) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of twelve steps: its directory, its final state and what it printed."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, *train(workdir, **{"model.dropout": 0.2, "data.augment.flip": True})


class TestARun:
    def test_learns(self, run):
        losses = [line["train/loss"] for line in metrics_of(run[0])]
        assert losses[-1] < 0.7 * losses[0]
        assert int(run[1].step) == 12

    def test_leaves_what_it_says(self, run):
        workdir, final, printed = run
        assert {path.name.split(".")[0] for path in workdir.glob("[!.]*")} == {
            "checkpoints", "classes", "config", "events", "metrics", "pictures",
        }  # fmt: skip
        assert checkpoints_of(workdir) <= {"6", "10", "12"}
        assert {"10", "12"} <= checkpoints_of(workdir)
        assert len(list((workdir / "pictures").glob("*.png"))) == 2
        assert json.loads((workdir / "classes.json").read_text())["class_names"][1] == "disc"
        assert experiment.load(workdir / "config.json").train.steps == 12
        assert_same_bits(saved_params(workdir), final.params)
        assert "61,792 parameters, 8 classes" in printed
        assert "6 images to train on, 3 to validate on" in printed
        assert "batches of 8 images, 1 on each device at a time" in printed
        assert re.search(r"step  3/12  loss \d\.\d{4}  [\d.]+ images/s  ETA \d:\d\d:\d\d  waiting for data", printed)
        assert printed.endswith(f"finished: {workdir}\n")

    def test_reports_each_step_once(self, run):
        lines = metrics_of(run[0])
        assert [line["step"] for line in lines] == [3, 6, 9, 12]
        assert [line["step"] for line in lines if "val/mean_iou" in line] == [6, 12]
        for name in ("val/pixel_accuracy", "val/mean_accuracy", "val/frequency_weighted_iou", "val/iou/00_background"):
            assert 0 <= lines[1][name] <= 1
        assert all(line["train/images_per_second"] > 0 and 0 <= line["train/data_wait"] <= 1 for line in lines)

    def test_warns_of_one_sided_predictions(self, run):
        assert re.search(r"^warning: 100\.0 % of the predictions are 'background'\.", run[2], re.MULTILINE)


CHANGES = {"model.dropout": 0.2, "data.augment.flip": True}


class TestGoingOn:
    @pytest.fixture(scope="class")
    @classmethod
    def resumed(cls, tmp_path_factory):
        """The same run, stopped at step 5 and called again with other intervals."""
        workdir = tmp_path_factory.mktemp("resumed")
        train(workdir, **CHANGES, **{"train.steps": 5})
        # As a run that was killed after step 6 leaves it: reported, but not saved.
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "train/loss": 7.0}\n{"step": 7, "train/lo')
        return workdir, *train(workdir, **CHANGES, **{"train.log_every": 2, "train.checkpoint_every": 5})

    def test_ends_in_the_same_bits(self, run, resumed):
        assert "resumed from step 5" in resumed[2]
        assert_same_bits(resumed[1], run[1])

    def test_reports_each_step_once(self, resumed):
        assert [line["step"] for line in metrics_of(resumed[0])] == [3, 5, 6, 8, 10, 12]
        assert metrics_of(resumed[0])[2]["train/loss"] < 7

    def test_a_finished_run_says_so(self, run):
        before = {path: path.stat().st_mtime_ns for path in (run[0] / "checkpoints").rglob("*")}
        final, printed = train(run[0], **CHANGES)
        assert printed == f"{run[0]}: finished at step 12 of 12; nothing to do\n"
        assert_same_bits(final, run[1])
        assert {path: path.stat().st_mtime_ns for path in (run[0] / "checkpoints").rglob("*")} == before
        assert [line["step"] for line in metrics_of(run[0])] == [3, 6, 9, 12]

    def test_another_config_is_refused_with_a_diff(self, run):
        before = (run[0] / "config.json").read_text()
        differences = r"\(data\.augment\.flip: True → False; optim\.lr: 0\.01 → 0\.1\)"
        with pytest.raises(
            ConfigError, match=rf"{re.escape(str(run[0]))} holds a run with another config {differences}"
        ):
            train(run[0], **{"model.dropout": 0.2, "optim.lr": 0.1, "train.steps": 20})
        assert (run[0] / "config.json").read_text() == before

    def test_checkpoints_without_a_config_are_left_alone(self, run, tmp_path):
        (tmp_path / "checkpoints" / "1").mkdir(parents=True)
        with pytest.raises(CheckpointError, match=r"holds a run without its config\.json: choose another --workdir"):
            train(tmp_path)

    def test_a_start_that_failed_binds_no_config(self, tmp_path):
        path = tmp_path / "other.caffemodel"
        path.write_bytes(writer.net({"ip.0": np.ones((2, 2), np.float32)}))
        with pytest.raises(WeightFileError, match=r"other\.caffemodel does not fit fcn32s"):
            train(tmp_path, **{"init.weights": str(path)})
        assert (tmp_path / "config.json").exists()
        tiny.claimed(tmp_path, tiny.config(**{"optim.lr": 0.5}))
        assert experiment.load(tmp_path / "config.json").optim.lr == 0.5

    @pytest.mark.parametrize("name", ["config.json", "classes.json"])
    def test_files_of_others_are_left_alone(self, tmp_path, name):
        (tmp_path / name).write_text('["background", "roof"]')
        with pytest.raises(CheckpointError, match=rf"{name} (is no config|holds no classes) of a run"):
            train(tmp_path)
        assert (tmp_path / name).read_text() == '["background", "roof"]'

    def test_other_classes_are_another_run(self, run, tmp_path):
        workdir = tmp_path / "run"
        shutil.copytree(run[0], workdir)
        classes = (workdir / "classes.json").read_text()
        (workdir / "classes.json").write_text(classes.replace("disc", "plate"))
        with pytest.raises(CheckpointError, match=r"holds a run with the classes background, plate, .* has now .*disc"):
            train(workdir, **{"model.dropout": 0.2, "data.augment.flip": True})

    def test_two_at_once_are_refused(self, tmp_path):
        fields = tiny.config()
        elsewhere = workdirs.claimed(tmp_path, fields, tiny.source(fields, "train").info)
        with elsewhere, pytest.raises(CheckpointError, match="another process is training in"):
            train(tmp_path)


def test_frozen_layers_stay_put(tmp_path, monkeypatch):
    """FCN-32s-fixed: only the scores learn. Traced, and with the flag that makes GPUs repeat themselves."""
    tuned = {"optim.frozen": ("conv*", "fc*"), "train.steps": 2, "train.pictures": 0, "train.eval_every": 0}
    given = os.environ["XLA_FLAGS"]
    monkeypatch.setenv("XLA_FLAGS", given)  # and so put back
    monkeypatch.setattr(training, "train", functools.partial(training.train, profile=True))
    final, printed = train(tmp_path, **{"deterministic": True}, **tuned)
    assert os.environ["XLA_FLAGS"] == f"{given} --xla_gpu_deterministic_ops=true"
    assert "all parameters are drawn from seed 0, none is from a file" in printed
    assert f"wrote a trace of steps 2 to 2 into {tmp_path}/plugins/profile" in printed
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    initial = state.init_params(experiment.make_model(tiny.config(), 8), 0)
    for layer in initial:
        if layer == "score_fr":
            assert np.max(np.abs(final.params[layer]["kernel"])) > 1e-3
        else:
            assert_same_bits(final.params[layer], jax.device_get(initial[layer]))


NO_EXTRAS = {
    "train.log_every": 20,
    "train.pictures": 0,
    "train.eval_every": 0,
    "train.checkpoint_every": 1,
    "optim.name": "sgd",
}


class TestNonFinite:
    def test_nothing_of_it_is_saved(self, tmp_path):
        """Parameters of 1e25 are numbers still, and so are their steps' checkpoints; what they compute is none."""
        message = (
            r"^step 2: the loss is nan; first non-finite: gradient of conv\w+/\w+ \(\d+ of 22 gradients\)\. Nothing of "
        )
        with pytest.raises(NonFiniteError, match=message) as caught:
            train(tmp_path, **NO_EXTRAS, **{"optim.lr": 1e30})
        assert "\n" not in str(caught.value)
        assert checkpoints_of(tmp_path) == {"1"}
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(saved_params(tmp_path))))

    def test_parameters_are_named(self, tmp_path):
        """The very step that makes a parameter infinite is not saved."""
        message = r"^step 1: parameter conv1_1/(bias|kernel) is not finite; nothing of this step was saved$"
        with pytest.raises(NonFiniteError, match=message):
            train(tmp_path, **NO_EXTRAS, **{"optim.lr": 3e38, "optim.lr_multipliers": (("*", 1e5),)})
        assert checkpoints_of(tmp_path) == set()


class TestStart:
    """Where the parameters before the first step come from."""

    @staticmethod
    def initial(**changes):
        config = tiny.config(**changes)
        return training.initial_variables(config, experiment.make_model(config, 8), tiny.source(config, "train").info)[
            "params"
        ]

    @staticmethod
    def save(workdir, params, **changes):
        config = tiny.config(**changes)
        workdir.mkdir(exist_ok=True)
        tiny.claimed(workdir, config)
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(3, state.create(params, optax.sgd(1.0)), 0.5)

    @staticmethod
    def randomly(params, seed: int):
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda x: jax.numpy.asarray(rng.standard_normal(x.shape), x.dtype), params)

    def test_new_layers_may_start_small(self):
        plain, small = self.initial(), self.initial(**{"init.fc_scale": 0.25})
        assert_same_bits(small["fc6"]["kernel"], plain["fc6"]["kernel"] * 0.25)
        assert_same_bits(small["fc7"]["kernel"], plain["fc7"]["kernel"] * 0.25)
        assert_same_bits(small["conv1_1"], plain["conv1_1"])

    def test_stages(self, tmp_path, capsys):
        """32s, then 16s, then 8s: each takes what it shares with the one before; its new score layer is zero."""
        params = self.randomly(self.initial(), 0)
        previous = {"model.name": "fcn32s"}
        for name, new in (("fcn16s", "score_pool4"), ("fcn8s", "score_pool3")):
            workdir = tmp_path / previous["model.name"]
            self.save(workdir, params, **previous)
            following = {"model.name": name, "init.workdir": str(workdir)}
            started = self.initial(**following)
            assert not np.any(started[new]["kernel"])
            assert_same_bits({layer: started[layer] for layer in params}, params)
            assert started.keys() - params.keys() == {new}
            assert re.search(
                rf"parameters from step 3 of .*{previous['model.name']}; {new} start", capsys.readouterr().out
            )
            params, previous = self.randomly(started, 1), following

    def test_from_the_same_net(self, tmp_path, capsys):
        params = self.randomly(self.initial(), 0)
        self.save(tmp_path, params)
        assert_same_bits(self.initial(**{"init.workdir": str(tmp_path)}), params)
        assert "61,792 of 61,792 parameters from step 3" in capsys.readouterr().out

    def test_a_run_that_does_not_fit(self, tmp_path):
        with pytest.raises(
            CheckpointError, match=r"init\.workdir=.*nowhere is not the workdir of a run: train that stage"
        ):
            self.initial(**{"init.workdir": str(tmp_path / "nowhere")})
        self.save(tmp_path, self.initial())
        with pytest.raises(CheckpointError, match=r"init\.workdir=.*: fc6 has \{.*\} there and \{.*\} here"):
            self.initial(**{"init.workdir": str(tmp_path), "model.fc_width": 8})

    def write_file(self, path, left_out=()):
        params = self.randomly(self.initial(), 5)
        kept = {layer: leaves for layer, leaves in params.items() if layer not in left_out}
        path.write_bytes(writer.net(writer.blobs_of(kept)))
        return params

    def test_from_a_weight_file(self, tmp_path, capsys):
        path = tmp_path / "net.caffemodel"
        written = self.write_file(path, left_out=("score_fr",))
        started = self.initial(**{"init.weights": str(path), "init.skip": ("fc7", "score_*"), "init.fc_scale": 0.5})
        assert re.search(
            r"[\d,]+ of 61,792 parameters from .*net\.caffemodel; fc7, score_fr start anew", capsys.readouterr().out
        )
        drawn = self.initial()
        for layer in drawn:
            if layer == "fc7":
                assert_same_bits(started[layer]["kernel"], drawn[layer]["kernel"] * 0.5)
            elif layer != "score_fr":
                assert_same_bits(started[layer], written[layer])

    def test_a_file_that_does_not_fit(self, tmp_path):
        path = tmp_path / "net.caffemodel"
        with pytest.raises(WeightFileError, match=r"net\.caffemodel"):
            self.initial(**{"init.weights": str(path)})
        self.write_file(path, left_out=("conv3_2",))
        with pytest.raises(
            WeightFileError, match=r"net\.caffemodel does not fit fcn32s: missing in the file: conv3_2\.0"
        ):
            self.initial(**{"init.weights": str(path)})


class TestBeforeTheFirstStep:
    """What can be known is known before anything is written."""

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            (
                {"data.batch_size": 12},
                ConfigError,
                r"^data\.batch_size=12 cannot be split over 8 devices; 8 or 16 can$",
            ),
            ({"data.train_split": "trian"}, ConfigError, r"no split 'trian', only train and val"),
            ({"optim.frozen": ("conv9*",)}, ConfigError, r"optim\.frozen: 'conv9\*' matches no parameter"),
            ({"data.name": "folder", "data.root": "/nowhere"}, (ConfigError, DataError), r"/nowhere"),
        ],
    )
    def test_faults_are_found(self, tmp_path, changes, error, message):
        with pytest.raises(error, match=message) as caught:
            train(tmp_path / "run", **changes)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import tiny

def get_config():
    # Large enough that a save takes a while.
    return tiny.config(**{{
        "model.fc_width": 300, "model.dropout": 0.2, "data.batch_size": 2, "data.augment.flip": True,
        "train.checkpoint_every": 1, "train.steps": 9, "train.pictures": 0,
    }})
"""


@pytest.mark.slow
class TestKilled:
    """`kill -9`, then the same command again: bitwise the same parameters as an uninterrupted run."""

    @pytest.fixture(scope="class")
    @classmethod
    def start(cls, tmp_path_factory):
        """Starts the program on a workdir, as users run it: on one device, and with all of the compiler's effort."""
        folder = tmp_path_factory.mktemp("killed")
        (folder / "killed.py").write_text(PROGRAM.format(tests=str(ROOT / "tests")))
        environment = os.environ | {
            "XLA_FLAGS": "",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        }

        def start(workdir: Path) -> subprocess.Popen:
            command = [sys.executable, "train.py", "--config", str(folder / "killed.py"), "--workdir", str(workdir)]
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )

        return start

    @staticmethod
    def finish(process: subprocess.Popen) -> str:
        printed = process.communicate(timeout=300)[0].decode()
        assert process.returncode == 0, printed
        return printed

    @pytest.fixture(scope="class")
    @classmethod
    def uninterrupted(cls, start, tmp_path_factory):
        workdir = tmp_path_factory.mktemp("uninterrupted")
        cls.finish(start(workdir))
        return jax.device_get(saved_params(workdir))

    @staticmethod
    def kill_when(process: subprocess.Popen, moment) -> None:
        until = time.monotonic() + 300
        while process.poll() is None and not moment():
            assert time.monotonic() < until
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    @staticmethod
    def is_saving(workdir: Path, from_step: int) -> bool:
        """Whether a save of a step from that one on has begun and is not complete."""
        names = (path.name.partition(".orbax-checkpoint-tmp") for path in (workdir / "checkpoints").glob("*"))
        return any(unfinished and int(step) >= from_step for step, unfinished, _ in names)

    def check(self, workdir, start, uninterrupted) -> None:
        printed = self.finish(start(workdir))
        assert_same_bits(jax.device_get(saved_params(workdir)), uninterrupted)
        assert [line["step"] for line in metrics_of(workdir)] == [3, 6, 9], printed
        assert not any(".orbax" in name for name in checkpoints_of(workdir))
        assert not list(workdir.glob("*.partial"))

    def test_during_a_save(self, start, uninterrupted, tmp_path):
        process = start(tmp_path)
        self.kill_when(process, lambda: self.is_saving(tmp_path, 4))
        assert process.returncode == -signal.SIGKILL
        assert "9" not in checkpoints_of(tmp_path)
        self.check(tmp_path, start, uninterrupted)

    def test_asked_to_leave(self, start, uninterrupted, tmp_path):
        """SIGTERM, in whatever the program is doing: it saves, and its code asks to be run again."""
        process = start(tmp_path)
        while process.poll() is None and not (tmp_path / "checkpoints" / "2").is_dir():
            time.sleep(0.001)
        process.terminate()
        printed = process.communicate(timeout=300)[0].decode()
        assert process.returncode == EXIT_CODE, printed
        assert "the same command goes on" in printed.splitlines()[-1]
        self.check(tmp_path, start, uninterrupted)

    def test_asked_before_its_first_step(self, start, uninterrupted, tmp_path):
        """While that is compiled there is nothing to save, and it ends at once."""
        process = start(tmp_path)
        for line in process.stdout:
            if b"compiling the step" in line:
                process.terminate()
                asked = time.monotonic()
        process.wait(timeout=300)
        assert time.monotonic() - asked < 2
        assert process.returncode == EXIT_CODE
        self.check(tmp_path, start, uninterrupted)

    @pytest.mark.slow
    def test_again_and_again(self, start, uninterrupted, tmp_path):
        """Before the first step, in saves, between saves, and after a report: six kills of one run."""

        def reported(step: int) -> bool:
            metrics = tmp_path / "metrics.jsonl"
            return metrics.exists() and f'"step": {step},' in metrics.read_text()

        moments = (
            lambda: (tmp_path / "config.json").exists(),
            lambda: self.is_saving(tmp_path, 1),
            lambda: (tmp_path / "checkpoints" / "2").is_dir(),
            lambda: reported(3),
            lambda: self.is_saving(tmp_path, 5),
            lambda: reported(6),
        )
        for moment in moments:
            process = start(tmp_path)
            self.kill_when(process, moment)
            assert process.returncode == -signal.SIGKILL
        self.check(tmp_path, start, uninterrupted)


def test_state_on_one_device_and_on_eight_is_the_same(run):
    """A run may go on on other devices."""
    with Checkpoints(run[0], read_only=True) as checkpoints:
        mesh = parallel.make_mesh(jax.local_devices()[:1])
        restored = checkpoints.restore(12, parallel.put_state(run[1], mesh))
    assert_same_bits(jax.device_get(restored), run[1])


@pytest.mark.slow
@pytest.mark.parametrize("shard_state", [False, True])
def test_a_run_on_a_mesh_goes_on_in_the_same_bits(tmp_path, monkeypatch, shard_state):
    monkeypatch.setattr(parallel, "_WORTH_SHARDING", 64)
    changes = {**CHANGES, "parallel.mode": "mesh", "parallel.shard_state": shard_state}
    wanted, printed = train(tmp_path / "whole", **changes)
    assert len(list((tmp_path / "whole" / "pictures").glob("*.png"))) == 2
    assert "val: mean IU" in printed
    train(tmp_path / "parts", **changes, **{"train.steps": 5})
    found, printed = train(tmp_path / "parts", **changes)
    assert "resumed from step 5" in printed
    assert_same_bits(found, wanted)


@pytest.mark.slow
def test_a_run_goes_on_on_other_devices_another_way(tmp_path, monkeypatch):
    """Eight devices, then two with sharded state, then four in two parts: the run on eight, to rounding."""
    monkeypatch.setattr(parallel, "_WORTH_SHARDING", 64)
    make_mesh = parallel.make_mesh
    exact = {**CHANGES, "optim.name": "sgd", "optim.lr": 0.05}
    wanted, _ = train(tmp_path / "eight", **exact)
    sharded = {"parallel.mode": "mesh", "parallel.shard_state": True, "train.remat": "blocks"}
    for last, count, fields in ((4, 8, {}), (8, 2, sharded), (12, 4, {"optim.accumulate": 2})):
        monkeypatch.setattr(parallel, "make_mesh", lambda count=count: make_mesh(jax.local_devices()[:count]))
        found, printed = train(tmp_path / "moved", **exact, **fields, **{"train.steps": last})
        assert f"on {count} cpu devices" in printed and ("resumed from step" in printed) == (last > 4)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.max(np.abs(b)))
