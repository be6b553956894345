"""SIGTERM: the run saves, leaves with a code of its own, and goes on bitwise where it left."""

import json
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import tiny

from fcn_jax import evaluation, preemption, progress, training
from fcn_jax.checkpoints import Checkpoints
from fcn_jax.preemption import Preempted, Preemption

pytestmark = pytest.mark.usefixtures("fast_compilation")
FIELDS = {"model.dropout": 0.2, "data.augment.flip": True, "train.pictures": 0, "data.shapes.val_images": 9}


def train(workdir):
    return jax.device_get(training.train(tiny.config(**FIELDS), workdir))


def steps_of(workdir) -> set[int]:
    return {int(path.name) for path in (workdir / "checkpoints").iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("uninterrupted"))


def signal_in(monkeypatch, owner, name, when) -> None:
    """Sends this process the signal on entering a function, where `when(its arguments)`."""
    function = getattr(owner, name)

    def signalled(*args, **kwargs):
        if when(*args):
            signal.raise_signal(signal.SIGTERM)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, signalled)


def assert_goes_on(workdir, uninterrupted) -> None:
    for found, wanted in zip(jax.tree.leaves(train(workdir)), jax.tree.leaves(uninterrupted), strict=True):
        assert np.asarray(found).tobytes() == np.asarray(wanted).tobytes()


@pytest.mark.slow
def test_after_a_step(monkeypatch, uninterrupted, tmp_path, capsys):
    """Step 5 is one at which nothing would have been saved."""
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signal_in(patch, progress.Progress, "add", lambda self, step, *_: step == 5)
        with pytest.raises(Preempted, match="left after step 5 of 12; the same command goes on"):
            train(tmp_path)
    assert 5 in steps_of(tmp_path) and max(steps_of(tmp_path)) == 5
    assert "a second signal ends it now" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert_goes_on(tmp_path, uninterrupted)


@pytest.mark.slow
def test_in_an_evaluation(monkeypatch, uninterrupted, tmp_path, capsys):
    """It is broken off, and its step is saved without a score; the next start begins with that evaluation."""
    with monkeypatch.context() as patch:
        signal_in(patch, evaluation.parallel, "put_batch", lambda batch, *_: "index" not in batch)
        with pytest.raises(Preempted, match="left after step 6"):
            train(tmp_path)
        assert "the evaluation after step 6 was broken off" in capsys.readouterr().out
        assert max(steps_of(tmp_path)) == 6
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            assert checkpoints.restore_params("best")[0] == 6  # for want of a score, the latest
            assert checkpoints.unscored(6)
        # The evaluation of step 6 is begun, and broken off again.
        with pytest.raises(Preempted, match="left after step 6"):
            train(tmp_path)
    with monkeypatch.context() as patch:
        after = []
        signal_in(patch, evaluation.parallel, "put_batch", lambda batch, *_: "index" not in batch and after)
        signal_in(patch, progress.Progress, "add", lambda self, step, *_: step == 12 and after.append(step))
        with pytest.raises(Preempted, match="left after step 12"):
            train(tmp_path)
    assert max(steps_of(tmp_path)) == 12
    # Killed while it saved that step anew, behind the scores.
    (tmp_path / "checkpoints" / "12").rename(tmp_path / "checkpoints" / "12.aside")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/mean_iou" in line] == [6]
    assert_goes_on(tmp_path, uninterrupted)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert [line["step"] for line in lines if "val/mean_iou" in line] == [6, 12]
    assert not list((tmp_path / "checkpoints").glob("*.aside"))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.restore_params("best")[0] in (6, 12) and not checkpoints.unscored(12)
    capsys.readouterr()
    train(tmp_path)
    assert "finished at step 12 of 12; nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_in_the_statistics_of_the_training_set(monkeypatch, tmp_path):
    """They are computed at the next start, from the same parameters, and end as those of an undisturbed run."""
    changes = {"model.name": "segnet", "model.fc_width": 0, "train.statistics_batches": 3, "train.steps": 3}
    changes |= {"model.dropout": -1.0, "optim.name": "sgd", "optim.lr": 1e-3}

    def train(workdir):
        return jax.device_get(training.train(tiny.config(**FIELDS | changes), workdir))

    wanted = train(tmp_path / "calm")
    with monkeypatch.context() as patch:
        signal_in(patch, training.parallel, "put_batch", lambda batch, *_: set(batch) == {"image"})
        with pytest.raises(Preempted, match="left after step 3"):
            train(tmp_path / "left")
    assert max(steps_of(tmp_path / "left")) == 3
    for a, b in zip(jax.tree.leaves(train(tmp_path / "left")), jax.tree.leaves(wanted), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    with Checkpoints(tmp_path / "left", read_only=True) as checkpoints:
        saved = checkpoints.restore_variables("latest")[1]["batch_stats"]
    for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(wanted.batch_stats), strict=True):
        np.testing.assert_array_equal(a, b)


PROGRAM = """
import ctypes, os, signal, time
from fcn_jax.preemption import Preemption
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in its background ignore it
with Preemption() as preemption:
    preemption.worth_saving = {saving}
    os.kill(os.getpid(), signal.SIGTERM)
    while not preemption.asked:
        pass
    time.sleep(0.3)  # for the line to be printed
    {then}
"""


@pytest.mark.parametrize(
    ("then", "code"),
    [
        ("pass", 0),
        ("time.sleep(1); os.kill(os.getpid(), signal.SIGTERM); ctypes.CDLL(None).sleep(60)", 128 + signal.SIGTERM),
        # One signal, passed on by a supervisor to whom it was sent as well.
        ("os.kill(os.getpid(), signal.SIGTERM); ctypes.CDLL(None).sleep(1)", 0),
        ("os.kill(os.getpid(), signal.SIGINT); ctypes.CDLL(None).sleep(1)", -signal.SIGINT),
    ],
)
def test_a_second_signal_ends_the_process_whatever_it_is_doing(then, code):
    """Also in a call out of Python, which its own handlers wait for. Other signals are left alone."""
    command = [sys.executable, "-c", PROGRAM.format(then=then, saving=True)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("asked to leave (SIGTERM): saving after this step")


def test_where_nothing_is_to_be_saved_the_first_signal_ends_it():
    command = [sys.executable, "-c", PROGRAM.format(then="ctypes.CDLL(None).sleep(60)", saving=False)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == preemption.EXIT_CODE
    assert done.stderr == "asked to leave (SIGTERM) before the first step\n"


@pytest.mark.parametrize(("saving", "code"), [(False, preemption.EXIT_CODE), (True, 128 + signal.SIGTERM)])
def test_signals_count_where_nobody_reads_the_line(saving, code):
    """A group of processes is ended, and with it the `tee` that this one writes into."""
    then = "time.sleep(1); os.kill(os.getpid(), signal.SIGTERM); ctypes.CDLL(None).sleep(60)"
    command = [sys.executable, "-c", PROGRAM.format(then=then, saving=saving)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(timeout=50) == code


def test_a_signal_that_a_library_took_is_taken_back():
    then = "signal.signal(signal.SIGTERM, signal.SIG_DFL); preemption.listen(); os.kill(os.getpid(), signal.SIGTERM)"
    command = [sys.executable, "-c", PROGRAM.format(then=then, saving=True)]
    assert subprocess.run(command, capture_output=True, timeout=50).returncode == 0


def test_threads_take_no_signals():
    seen = []

    def body():
        with Preemption() as preempted:
            seen.append(preempted.asked)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]


def test_the_commands_code():
    """A supervisor tells it from success, from a user's mistake, and from a crash."""
    assert preemption.EXIT_CODE == os.EX_TEMPFAIL
