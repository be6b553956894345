"""Several hosts, here processes on this machine: one and the same run, however it starts, breaks off and goes on."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import test_parallel

from fcn_jax import hosts, parallel
from fcn_jax.checkpoints import Checkpoints
from fcn_jax.errors import DataError, HostLost, UserError
from fcn_jax.preemption import EXIT_CODE
from tools import supervise

ROOT = Path(__file__).parents[1]
SUPERVISE = (sys.executable, str(ROOT / "tools" / "supervise.py"), "--pause=0")
KILLS = int(os.environ.get("FCN_JAX_KILLS", "2"))  # of a supervised run
PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import tiny
import os
import tempfile
import time

from fcn_jax import parallel, workdirs
from fcn_jax.data import loader, synthetic
from fcn_jax.errors import DataError

whole = loader.train_batches

def damaged(*arguments, **options):
    for number, batch in enumerate(whole(*arguments, **options)):
        if number == 4:
            raise DataError("an image is damaged")
        yield batch

def stuck(*arguments, **options):
    for number, batch in enumerate(whole(*arguments, **options)):
        if number == 4:
            time.sleep(300)
        yield batch

def get_config(mode):
    parallel._WORTH_SHARDING = 64
    if mode == "damaged":
        mode = "pmap"
        if "--host=1" in sys.argv:
            loader.train_batches = damaged
    if mode == "strange":
        mode = "pmap"
        if "--host=1" in sys.argv:
            draw = synthetic.Shapes.__getitem__
            synthetic.Shapes.__getitem__ = lambda shapes, index: draw(shapes, index) | {{"id": f"other_{{index}}"}}
    if mode in ("asleep", "stuck"):
        if "--host=1" in sys.argv and mode == "asleep":
            workdirs.settle_input = lambda *arguments: time.sleep(300)
        if "--host=1" in sys.argv and mode == "stuck":
            loader.train_batches = stuck
        mode = "pmap"
    if mode == "apart":
        mode = "pmap"
        workdirs._SHARED_SECONDS = 1
        os.chdir(tempfile.mkdtemp())
    if mode == "fewer":
        mode = "pmap"
        if "--host=1" in sys.argv:
            synthetic.Shapes.__len__ = lambda shapes: shapes.num_images - 1
    if mode == "normed":
        return tiny.config(**{{
            "model.name": "segnet_basic", "model.trunk": "", "model.fc_width": 0, "optim.name": "sgd", "optim.lr": 1e-3,
            "data.shapes.val_images": 9, "train.eval_every": 0, "train.checkpoint_every": 2,
            "train.statistics_batches": 2, "train.pictures": 0,
        }})
    return tiny.config(**{{
        "model.dropout": 0.2, "data.augment.flip": True, "data.shapes.val_images": 9,
        "parallel.mode": "mesh" if mode == "shards" else mode, "parallel.shard_state": mode == "shards",
        "train.log_every": 1, "train.eval_every": 12, "train.checkpoint_every": 3,
    }})
"""
FIFTY_STEPS = """
import sys
import jax
import numpy as np
import test_parallel
from fcn_jax import hosts, parallel

address, host, name, mode, path = sys.argv[1:]
hosts.join(address, 2, int(host), start_seconds=60, heartbeat_seconds=60)
assert jax.device_count() == 8
parallel._WORTH_SHARDING = 1
_, end = test_parallel.TestEveryFamily.run(name, (8, mode, 1))
if hosts.is_first():
    np.savez(path, *jax.tree.leaves(end))
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """`start(workdir, count, mode, own, supervised, steps)`: the processes of a run, which share eight devices.

    `supervised` is True for one supervisor of all, "each" for one of each host.
    """
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "hosts.py").write_text(PROGRAM.format(tests=str(ROOT / "tests")))
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    started: list[subprocess.Popen] = []

    def start(
        workdir, count=2, mode="pmap", own=((), ()), supervised=False, steps=12, devices=None
    ) -> list[subprocess.Popen]:
        port = supervise.free_port()
        processes = []
        for host in range(1 if supervised is True else count):
            command = [sys.executable, "train.py", "--config", f"{folder / 'hosts.py'}:{mode}"]
            command += ["--workdir", str(workdir), f"--config.train.steps={steps}"]
            if supervised is True:
                command = [*SUPERVISE, f"--hosts={count}", "--", *command]
                command += ["--start_timeout=30", "--heartbeat=10"]
            elif count > 1:
                command += [f"--coordinator=127.0.0.1:{port}", f"--hosts={count}", f"--host={host}", *own[host]]
                command += ["--start_timeout=60", "--heartbeat=10"]
            if supervised == "each":
                command = [*SUPERVISE, "--", *command]
            flags = f"--xla_force_host_platform_device_count={devices[host] if devices else 8 // count}"
            with (workdir.parent / f"{workdir.name}-{host}.log").open("w") as log:
                process = subprocess.Popen(
                    command, cwd=ROOT, env=environment | {"XLA_FLAGS": flags}, stdout=log, stderr=subprocess.STDOUT
                )
            processes.append(process)
        started.extend(processes)
        return processes

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()


def codes(processes) -> list[int]:
    return [process.wait(timeout=200) for process in processes]


def printed(workdir, host) -> str:
    """What a host said, without what Gloo's threads print across each other about their connections."""
    text = (workdir.parent / f"{workdir.name}-{host}.log").read_text()
    # Our own line may have begun in the middle of one of theirs.
    lines = re.sub(r"^.*Gloo.*(?=error: )", "", text, flags=re.MULTILINE).splitlines(keepends=True)
    return "".join(line for line in lines if not re.search(r"Gloo|peer ranks|^\d*$", line))


def until_step(workdir, step) -> None:
    last = time.monotonic() + 200
    while not re.search(rf"^step +{step}/", (workdir.parent / f"{workdir.name}-0.log").read_text(), re.MULTILINE):
        assert time.monotonic() < last
        time.sleep(0.05)


def children(process, count) -> list[int]:
    """The processes that a supervisor has started, when all are there."""
    while True:
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        if len(found) == count:
            return [int(each) for each in found]
        assert process.poll() is None
        time.sleep(0.02)


def params(workdir, last=12):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step, params = checkpoints.restore_params("latest")
    assert step == last
    return jax.device_get(params)


def reported(workdir) -> list[dict]:
    """The lines of metrics.jsonl, one a step however many hosts there are and however often they start."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    return lines


def assert_same(found, wanted, tolerance) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


def assert_goes_on(start, workdir, wanted) -> None:
    """Started again, the run ends in the bits of an undisturbed one."""
    assert codes(start(workdir)) == [0, 0], printed(workdir, 0)
    assert_same(params(workdir), params(wanted), 0)
    reported(workdir)


@pytest.mark.slow
class TestRuns:
    @pytest.fixture(scope="class")
    @classmethod
    def one(cls, start, tmp_path_factory):
        """The run on one host with eight devices."""
        workdir = tmp_path_factory.mktemp("one") / "run"
        assert codes(start(workdir, 1)) == [0], printed(workdir, 0)
        return workdir

    @pytest.fixture(scope="class")
    @classmethod
    def two(cls, start, tmp_path_factory):
        workdir = tmp_path_factory.mktemp("two") / "run"
        assert codes(start(workdir)) == [0, 0], printed(workdir, 0)
        return workdir

    def test_two_hosts_do_what_one_does(self, one, two):
        assert_same(params(two), params(one), 1e-4)
        here, there = reported(two), reported(one)
        assert len(list(two.glob("events.out.tfevents.*"))) == 1
        for mine, theirs in zip(here, there, strict=True):
            assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-4)
        assert here[-1]["val/pixel_accuracy"] == pytest.approx(there[-1]["val/pixel_accuracy"], abs=1e-3)
        assert "9 of 9 images" in printed(two, 0)
        assert printed(two, 1) == ""

    @pytest.mark.parametrize("mode", ["mesh", "shards"])
    def test_a_mesh_over_two_hosts(self, one, start, tmp_path, mode):
        workdir = tmp_path / "run"
        assert codes(start(workdir, mode=mode)) == [0, 0], printed(workdir, 0)
        assert_same(params(workdir), params(one), 1e-4)

    def test_batch_norm_is_of_all_hosts(self, start, tmp_path):
        """In the steps, and in the statistics of the training set at the end."""
        found = {}
        for count in (1, 2):
            workdir = tmp_path / f"run{count}"
            assert codes(start(workdir, count, mode="normed", steps=4)) == [0] * count, printed(workdir, 0)
            with Checkpoints(workdir, read_only=True) as checkpoints:
                found[count] = jax.device_get(checkpoints.restore_variables("latest")[1])
        assert_same(found[2]["batch_stats"], found[1]["batch_stats"], 1e-4)

        def kernels(count):
            return [leaves["kernel"] for leaves in found[count]["params"].values() if "kernel" in leaves]

        assert_same(kernels(2), kernels(1), 1e-4)

    @pytest.mark.parametrize("mode", ["pmap", "shards"])
    def test_four_hosts_go_on_where_two_left(self, one, start, tmp_path, mode):
        """SIGTERM to one of them makes all leave after the same step."""
        workdir = tmp_path / "run"
        processes = start(workdir, mode=mode)
        until_step(workdir, 4)
        processes[1].terminate()
        assert codes(processes) == [EXIT_CODE] * 2, printed(workdir, 0)
        left = [printed(workdir, host).splitlines()[-1] for host in (0, 1)]
        assert left[0] == left[1] and "the same command goes on" in left[0]
        assert codes(start(workdir, 4, mode=mode, own=((),) * 4)) == [0] * 4, printed(workdir, 0)
        assert_same(params(workdir), params(one), 1e-4)
        reported(workdir)

    def test_two_hosts_go_on_where_one_left_and_one_where_two_did(self, one, start, tmp_path):
        workdir = tmp_path / "run"
        for count, step in ((1, 3), (2, 7)):
            processes = start(workdir, count)
            until_step(workdir, step)
            processes[0].terminate()
            assert codes(processes) == [EXIT_CODE] * count, printed(workdir, 0)
        assert codes(start(workdir, 1)) == [0], printed(workdir, 0)
        assert "resumed from step" in printed(workdir, 0)
        assert_same(params(workdir), params(one), 1e-4)
        reported(workdir)

    @pytest.mark.parametrize("victim", [0, 1])
    def test_a_host_is_killed(self, two, start, tmp_path, victim):
        """The other ends within the heartbeat; started again, the run ends in the same bits."""
        workdir = tmp_path / "run"
        processes = start(workdir)
        until_step(workdir, 5)
        processes[victim].send_signal(signal.SIGKILL)
        begun = time.monotonic()
        assert processes[1 - victim].wait(timeout=60) not in (0, 1, 2)  # which a supervisor would not start again
        assert time.monotonic() - begun < 30
        assert_goes_on(start, workdir, two)

    @pytest.mark.parametrize("victim", [0, 1])
    def test_a_host_that_stands_still_is_lost(self, start, tmp_path, victim):
        """Its connections stay open: it is the heartbeat alone that tells."""
        workdir = tmp_path / "run"
        processes = start(workdir)
        until_step(workdir, 5)
        processes[victim].send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        try:
            assert processes[1 - victim].wait(timeout=60) not in (0, 1, 2)
        finally:
            processes[victim].kill()
        # The flag's ten seconds; without it they would be a hundred.
        assert 5 < time.monotonic() - begun < 40

    def test_a_second_signal_ends_a_host_and_loses_nothing_saved(self, two, start, tmp_path):
        workdir = tmp_path / "run"
        processes = start(workdir)
        until_step(workdir, 5)
        for process in processes:
            process.terminate()
        time.sleep(1.1)  # before that it would be an echo of the first
        for process in processes:
            process.terminate()
        found = codes(processes)
        # The first one may have been quick enough to save and leave, or to be about to: then nobody minds the second.
        ends = {128 + signal.SIGTERM, -signal.SIGTERM, EXIT_CODE, -signal.SIGABRT}
        assert set(found) <= ends and any(found), found
        saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
        assert saved >= 3
        assert_goes_on(start, workdir, two)

    def test_a_supervisor_on_each_host_brings_a_lost_one_back(self, two, start, tmp_path):
        """Each starts its own process, always at the same port."""
        workdir = tmp_path / "run"
        processes = start(workdir, supervised="each")
        until_step(workdir, 5)
        (victim,) = children(processes[1], 1)
        os.kill(victim, signal.SIGKILL)
        assert codes(processes) == [0, 0], printed(workdir, 0) + printed(workdir, 1)
        assert "attempt 1: exit codes -9" in printed(workdir, 1)
        assert_same(params(workdir), params(two), 0)
        reported(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), [("fcn8s", "pmap"), ("segnet_basic", "shards")])
def test_fifty_steps_in_float64_are_those_of_one_device(tmp_path, fast_compilation, name, mode):
    """Of a net without batch norm and of one with it, over two processes of four devices."""
    port = supervise.free_port()
    flags = "--xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FIFTY_STEPS, f"127.0.0.1:{port}", str(host), name, mode, str(tmp_path / "end.npz")],
            cwd=ROOT / "tests", env=environment | {"PYTHONPATH": str(ROOT)},
        )
        for host in range(2)
    ]  # fmt: skip
    try:
        assert codes(processes) == [0, 0]
    finally:
        for process in processes:
            process.kill()
    _, wanted = test_parallel.TestEveryFamily.run(name, (1, "mesh", 1))
    with np.load(tmp_path / "end.npz") as file:
        found = [file[f"arr_{place}"] for place in range(len(jax.tree.leaves(wanted)))]
    test_parallel.assert_close(jax.tree.unflatten(jax.tree.structure(wanted), found), wanted, 1e-10, least=1e-3)


@pytest.mark.slow
def test_a_host_that_fails_alone_ends_the_others(start, tmp_path):
    """It says why; the others notice within the heartbeat."""
    workdir = tmp_path / "run"
    begun = time.monotonic()
    found = codes(start(workdir, mode="damaged"))
    assert found[1] == 1 and found[0] not in (0, 1, 2), found
    assert printed(workdir, 1) == "error: an image is damaged\n"
    assert time.monotonic() - begun < 80


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["asleep", "stuck"])
def test_a_host_that_lives_and_does_not_get_on_is_not_waited_for_for_ever(start, tmp_path, mode):
    """As on a mount that hangs: while it opens its data, and in the loop. It ends with those that waited."""
    workdir = tmp_path / "run"
    flag = ("--stall_timeout=12",)
    found = codes(start(workdir, mode=mode, own=(flag, flag)))
    assert found[0] == EXIT_CODE and found[1] not in (0, 1, 2), found
    assert "error: waited 12 s for the other hosts: one of them lives but does not get on" in printed(workdir, 0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pmap", "shards"])
def test_a_supervised_run_survives_its_kills(start, tmp_path, mode):
    """Kills of either host, one after another; the end is an undisturbed run's, bit for bit.

    Every other one comes behind a step, and the rest at any moment of a start: while hosts join, restore and compile.
    """
    calm, workdir, steps = tmp_path / "calm", tmp_path / "killed", 20 * KILLS
    process = start(calm, mode=mode, supervised=True, steps=steps)[0]
    assert process.wait(timeout=200) == 0, printed(calm, 0)
    (process,) = start(workdir, mode=mode, supervised=True, steps=steps)
    chance = random.Random(0)
    for kill in range(KILLS):
        victim = chance.choice(children(process, 2))
        if kill % 2:
            time.sleep(chance.uniform(0, 4))
        else:
            until_step(workdir, 20 * kill + chance.randint(1, 3))
            time.sleep(chance.uniform(0, 0.1))
        os.kill(victim, signal.SIGKILL)
        attempts = time.monotonic() + 100
        while f"attempt {kill + 1}: exit codes" not in printed(workdir, 0):
            assert time.monotonic() < attempts
            time.sleep(0.05)
    assert process.wait(timeout=300) == 0, printed(workdir, 0)
    assert_same(params(workdir, steps), params(calm, steps), 0)


@pytest.mark.slow
def test_a_supervisor_passes_the_signal_on(start, tmp_path):
    workdir = tmp_path / "run"
    (process,) = start(workdir, supervised=True)
    until_step(workdir, 4)
    process.terminate()
    assert process.wait(timeout=100) == EXIT_CODE, printed(workdir, 0)
    assert "attempt 1: exit codes 75, 75" in printed(workdir, 0)
    (process,) = start(workdir, supervised=True)
    assert process.wait(timeout=200) == 0, printed(workdir, 0)
    reported(workdir)


@pytest.mark.parametrize(("code", "attempts"), [(0, 1), (1, 1), (70, 3), (75, 3)])
def test_the_supervisor_starts_again_what_may_go_on(code, attempts):
    command = [*SUPERVISE, "--restarts=2", "--", sys.executable, "-c", f"exit({code})"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.count("attempt") == attempts
    assert done.returncode == (1 if code == 75 else code)


def supervised(tmp_path, script, *options, arguments=()):
    """A supervisor, begun, of a Python script with a --workdir."""
    (tmp_path / "train.py").write_text(script)
    command = [*SUPERVISE, *options, "--", sys.executable, "train.py"]
    return subprocess.Popen(
        [*command, f"--workdir={tmp_path}", *arguments],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize(("code", "others"), [(1, 75), (2, -9), (1, 70)])
def test_a_mistake_of_one_host_alone_is_given_up_in_time(tmp_path, code, others):
    """It may have been the fault of the moment; but there are no twenty of those without a new checkpoint."""
    script = f"import os, sys; code = {code} if '--host=1' in sys.argv else {others}\n"
    script += "os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)"
    process = supervised(tmp_path, script, "--hosts=2")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.count("attempt")) == (code, 3)
    assert err == "failed again and again without a new checkpoint: not started again\n"


def test_a_mistake_behind_a_checkpoint_may_be_the_fault_of_the_moment(tmp_path):
    """A mount that is not there yet as a machine starts."""
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    process = supervised(tmp_path, "exit(1)", arguments=["--coordinator=here:1"])
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.count("attempt")) == (1, 3), err
    assert (tmp_path / "given_up").read_text().startswith("5 ")


def test_between_starts_in_a_row_there_are_pauses(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    progress = supervise.Progress(tmp_path, 3, others=False)
    pauses = [progress.pause(5)]
    for _ in range(1200):
        progress.hopeless(failed=False)
        pauses.append(progress.pause(5))
    assert pauses[:6] == [0, 5, 10, 20, 40, 60] and set(pauses[6:]) == {60}
    (tmp_path / "checkpoints" / "6").mkdir()
    progress.hopeless(failed=False)
    assert progress.pause(5) == 0


def test_a_signal_from_the_terminal_lets_the_run_save(tmp_path):
    """It goes to the whole group, in which the run is not."""
    script = "import sys, time; sys.path.insert(0, sys.argv[2]); from fcn_jax.preemption import Preemption\n"
    script += "with Preemption() as preemption:\n    preemption.worth_saving = True; print('on', flush=True)\n"
    script += "    while not preemption.asked: time.sleep(0.01)\n    sys.exit(75)"
    process = supervised(tmp_path, script, arguments=[str(ROOT)])
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (EXIT_CODE, "attempt 1: exit codes 75\n"), err


def test_a_signal_ends_a_pause(tmp_path):
    process = supervised(tmp_path, "exit(75)", "--pause=60")
    assert process.stdout is not None and process.stdout.readline() == "attempt 1: exit codes 75\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == EXIT_CODE


@pytest.mark.parametrize(("prefix", "attempts"), [((), 1), (("nohup",), 2)])
def test_a_closed_terminal_ends_a_supervisor_unless_it_was_asked_not_to(tmp_path, prefix, attempts):
    (tmp_path / "train.py").write_text("import time; print('on', flush=True); time.sleep(2); exit(75)")
    command = [*prefix, *SUPERVISE, "--restarts=1", "--"]
    process = subprocess.Popen([*command, sys.executable, "train.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=60)[0].count("attempt") == attempts


def test_a_command_that_is_none_is_one_line(tmp_path):
    command = [*SUPERVISE, "--hosts=2", "--", "./no-such-program"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "error: ./no-such-program: No such file or directory\n")
    assert done.stdout == "attempt 1: exit codes 1, 1\n"


def test_a_host_that_gives_up_for_a_mistake_tells_the_others(tmp_path):
    """Theirs wait for it in vain, and would be started again and again."""
    process = supervised(tmp_path, "exit(1)", arguments=["--coordinator=here:1"])
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.count("attempt")) == (1, 3), err
    assert (tmp_path / "given_up").read_text().startswith("-1 ")  # behind no checkpoint


@pytest.mark.parametrize(("code", "told"), [(75, 75), (0, 0), (143, 75), (1, 1), (70, 70)])
@pytest.mark.parametrize("to_all", [False, True])
def test_a_signal_to_a_supervisor_or_to_its_whole_group(tmp_path, code, told, to_all):
    """As a service manager sends it: the run gets it twice, and has the time that it needs. What fails then is told."""
    script = "import sys, time; sys.path.insert(0, sys.argv[2]); from fcn_jax.preemption import Preemption\n"
    script += "with Preemption() as preemption:\n    preemption.worth_saving = True; print('on', flush=True)\n"
    script += f"    while not preemption.asked: time.sleep(0.01)\n    time.sleep(0.8); sys.exit({code})"
    process = supervised(tmp_path, script, arguments=[str(ROOT)])
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    (os.killpg if to_all else os.kill)(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (told, f"attempt 1: exit codes {code}\n"), err


@pytest.mark.parametrize(("gained", "attempts"), [(False, 3), (True, 5)])
def test_the_supervisor_gives_up_what_crashes_and_gains_nothing(tmp_path, gained, attempts):
    """A run of two checkpoints; each crash behind a new one begins the count anew."""
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, pathlib; found = list(pathlib.Path(sys.argv[1].split('=')[1], 'checkpoints').iterdir())\n"
        f"if {gained} and len(found) < 4: (found[0].parent / str(3 * len(found))).mkdir()\n"
        "sys.exit(70)"
    )
    command = [*SUPERVISE, "--", sys.executable, str(script), f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.count("attempt") == attempts, done.stdout
    assert done.returncode == 70
    assert done.stderr == "failed again and again without a new checkpoint: not started again\n"
    assert not (tmp_path / "given_up").exists()  # there is nobody to be told


def test_a_supervisor_gives_up_with_that_of_another_host(tmp_path):
    """Its own process only waits for that one in vain; what was given up before it began does not count."""
    given_up, script = tmp_path / "given_up", tmp_path / "train.py"
    given_up.write_text("7 before\n")
    script.write_text(
        "import sys, pathlib; here = pathlib.Path(sys.argv[0]).parent; second = (here / 'first').exists()\n"
        "(here / ('given_up' if second else 'first')).write_text('-1 now'); sys.exit(75)"
    )
    command = [*SUPERVISE, "--", sys.executable, str(script), "--workdir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.count("attempt")) == (1, 2)


def test_what_was_given_up_and_mended_since_does_not_count(tmp_path):
    """A new checkpoint tells that it was."""
    progress = supervise.Progress(tmp_path, 3, others=True)
    assert not progress.hopeless(failed=False)
    supervise.Progress(tmp_path, 3, others=True).give_up()
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    assert not progress.hopeless(failed=False) and not progress.hopeless(failed=False)
    supervise.Progress(tmp_path, 3, others=True).give_up()  # again
    assert progress.hopeless(failed=False)


def test_what_was_given_up_behind_a_checkpoint_counts(tmp_path):
    """Also where both are seen for the first time at once."""
    progress = supervise.Progress(tmp_path, 3, others=True)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    supervise.Progress(tmp_path, 3, others=True).give_up()
    os.utime(tmp_path / "checkpoints" / "5", (2**32, 2**32))  # of folders, buckets tell no time to rely on
    assert progress.hopeless(failed=False) == "another host has given up"


def test_what_is_given_up_twice_behind_the_same_checkpoint_counts_twice(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    supervise.Progress(tmp_path, 3, others=True).give_up()
    progress = supervise.Progress(tmp_path, 3, others=True)
    assert not progress.hopeless(failed=False)
    supervise.Progress(tmp_path, 3, others=True).give_up()
    assert progress.hopeless(failed=False)


@pytest.mark.parametrize("content", ["", "5", "x y", "5 a b"])
def test_a_mark_cut_short_is_none(tmp_path, content):
    progress = supervise.Progress(tmp_path, 3, others=True)
    (tmp_path / "given_up").write_text(content)
    assert not progress.hopeless(failed=False)


@pytest.mark.parametrize("workdir", [None, "a/file"])
def test_crashes_in_a_row_count_where_no_checkpoint_can_be_seen(tmp_path, capsys, workdir):
    (tmp_path / "a").touch()
    progress = supervise.Progress(workdir and tmp_path / workdir, 2, others=True)
    assert [bool(progress.hopeless(failed)) for failed in (True, False, True, True)] == [False, False, False, True]
    assert (workdir is None) == ("are not told" not in capsys.readouterr().err)


@pytest.mark.parametrize(
    ("command", "workdir", "others"),
    [
        (["python", "train.py", "--workdir", "a b"], "a b", False),
        (["train.py", "--config=x", "-workdir=b"], "b", False),
        (["train.py", "--workdir=", "--coordinator=auto"], None, True),
        (["train.py", "--workdirs=b"], None, False),
        (["taskset", "-c", "0-3", "srun", "-w", "node7", "train.py", "--workdir=a", "--workdir=b"], "b", False),
    ],
)
def test_the_supervisor_finds_the_workdir_in_the_command(command, workdir, others):
    assert supervise.named_by(command) == (workdir and Path(workdir), others)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "own", "message"),
    [
        ("pmap", "--config.optim.lr=0.5", "the config of host 1 differs from that of host 0"),
        ("pmap", "--config.optim.lr=-1", "optim.lr=-1.0 must be at least 0"),
        ("apart", "--workdir=run", "run is not the folder that host 0 sees"),
        ("fewer", "", "the data of host 1 differs from that of host 0"),
        ("strange", "", "the data of host 1 differs from that of host 0"),
    ],
)
def test_what_one_host_gets_wrong_all_say(start, tmp_path, mode, own, message):
    workdir, own = tmp_path / "run", (own,) if own else ()
    assert codes(start(workdir, mode=mode, own=(own if mode == "apart" else (), own))) == [1, 1]
    for host in (0, 1):
        assert message in printed(workdir, host)
        assert printed(workdir, host).count("\n") == 1


@pytest.mark.slow
def test_hosts_of_unequal_numbers_of_devices_are_refused(start, tmp_path):
    workdir = tmp_path / "run"
    assert codes(start(workdir, devices=(2, 1))) == [1, 1]
    for host in (0, 1):
        assert printed(workdir, host) == (
            "error: hosts must have as many devices each; there are 2 on host 0, 1 on host 1\n"
        )


@pytest.mark.parametrize("host", [0, 1])
def test_a_host_that_never_comes(start, tmp_path, host):
    command = [sys.executable, "train.py", "--config", "configs/fcn8s.py", "--workdir", str(tmp_path)]
    port = supervise.free_port()
    command += [f"--coordinator=127.0.0.1:{port}", "--hosts=2", f"--host={host}", "--start_timeout=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == EXIT_CODE
    assert done.stderr.splitlines()[-1].startswith("error: in 3 s not all hosts came together")
    assert f"this is host {host} of 2" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hosts=2"], "need --coordinator"),
        (["--coordinator=here:1"], "needs --hosts"),
        (["--coordinator=here:1", "--hosts=2", "--host=2"], "--host from 0 to one less; they are 2 and 2"),
        (["--coordinator=here", "--hosts=2", "--host=1"], "names no port"),
        (["--coordinator=auto"], "the environment does not tell it"),
    ],
)
def test_flags(arguments, message):
    command = [sys.executable, "train.py", "--config", "configs/fcn8s.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_alone_nothing_is_gathered():
    np.testing.assert_array_equal(hosts.total([5, 2**40]), [5, 2**40])
    asked = hosts.Asked(parallel.make_mesh())
    assert not asked(False) and asked(True)
    hosts.check_equal("a", "the config")


@pytest.mark.parametrize(("number", "told"), [(errno.ENOENT, UserError), (errno.EIO, HostLost)])
def test_what_storage_fails_one_host_is_worth_another_start_of_all(monkeypatch, number, told):
    """Where it is nothing that a user can mend: a supervisor gives up at once what fails all hosts for that."""
    sent = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", lambda said: (sent.append(said), said[None])[1])
    with pytest.raises(DataError), hosts.together():
        try:
            raise OSError(number, "no", "image.png")
        except OSError:
            raise DataError("image.png: cannot be read") from None
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", lambda said: np.stack([sent[0], said]))
    with pytest.raises(UserError, match=r"^host 0: .*image.png: cannot be read") as error, hosts.together():
        pass
    assert error.type is told


def test_a_place_among_hosts_is_of_one_process(monkeypatch, tmp_path):
    """JAX would let the second one in, and end the first one for it."""
    monkeypatch.setattr(hosts.tempfile, "gettempdir", lambda: str(tmp_path))
    first, second = hosts._take_place("here:1-0", 0), hosts._take_place("here:1-1", 0)
    with pytest.raises(HostLost, match=r"another process of this machine is host 0 at --coordinator=here:1: end it"):
        hosts._take_place("here:1-0", 0.3)
    threading.Timer(0.3, os.close, [first]).start()
    later = hosts._take_place("here:1-0", 30)
    assert later is not None and second is not None
    os.close(later)
    os.close(second)


def test_without_a_folder_for_locks_every_place_is_free(monkeypatch):
    monkeypatch.setattr(hosts.tempfile, "gettempdir", lambda: "/nowhere")
    assert hosts._take_place("here:1-0", 0) is hosts._take_place("here:1-0", 0) is None


@pytest.mark.parametrize("reader", ["there", "gone"])
def test_what_takes_too_long_is_one_line(reader):
    """Also where nobody reads it any more."""
    program = "import time; from fcn_jax import hosts\nwith hosts._within(0.2, 'too late'): time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    if reader == "gone":
        process.stderr.close()
    said = process.communicate(timeout=60)[1] if reader == "there" else process.wait(timeout=60) and ""
    assert process.returncode == EXIT_CODE
    assert said == ("error: too late\n" if reader == "there" else "")
