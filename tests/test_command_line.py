"""Every mistake on a command line is one plain line on the error stream, and an exit code; never a traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from fcn_jax import command_line
from fcn_jax.errors import CRASHED, CheckpointError, ConfigError, DataError
from fcn_jax.preemption import EXIT_CODE

ROOT = Path(__file__).parents[1]


def run(*arguments: str, program: str = "train.py") -> tuple[int, str]:
    """Exit code and the one line of the error stream."""
    command = [sys.executable, *program.split(), *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config.optim.lrr=1",), "no config field 'lrr'; did you mean 'lr'?"),
        pytest.param(("--config.optim.lr=fast",), "fast", marks=pytest.mark.slow),
        pytest.param(("--config.data.augment.scale=3",), "data.augment.scale", marks=pytest.mark.slow),
        (("--wokdir=x",), "did you mean"),
        (("--config.optim-lr=1",), "fields are set as --config.optim.lr=1e-3"),
        (("--workdir", "gs://bucket/runs"), "gs://bucket/runs: no path of a file system; mount the bucket"),
        pytest.param(("--config.data.root=s3://b/c",), "=s3://b/c: no path of", marks=pytest.mark.slow),
    ],
)
def test_train_refuses(arguments, message):
    code, line = run("--config", "configs/fcn8s.py", *arguments)
    assert code in (1, 2)
    assert message.lower() in line.lower()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", "configs/fcn8s.py:shape"), "did you mean 'shapes'"),
        (("--config", "configs/missing.py"), "configs/missing.py"),
        pytest.param(
            ("--config", "configs/missing.py", "--config.optim.lr=1"), "configs/missing.py", marks=pytest.mark.slow
        ),
        pytest.param(
            ("--config", "configs/fcn8s.py", "optim.lr=1"),
            "cannot make anything of 'optim.lr=1'",
            marks=pytest.mark.slow,
        ),
        ((), "name an experiment: --config configs/fcn8s.py"),
    ],
)
def test_train_needs_an_experiment(arguments, message):
    code, line = run(*arguments)
    assert code in (1, 2)
    assert message in line


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("-m fcn_jax.predict", (), "name images, folders or globs"),
        (
            "-m fcn_jax.plan",
            ("--config", "configs/fcn8s.py:voc2012", "--topology", "v9z:4x4"),
            "--topology=v9z:4x4: no chip 'v9z'",
        ),
        ("evaluate.py", ("--workdir", "/nowhere"), "/nowhere/config.json is missing"),
        (
            "evaluate.py",
            ("--config", "configs/fcn8s.py", "--predictions", "x", "--weights", "y"),
            "--predictions and --weights contradict each other",
        ),
    ],
)
def test_other_commands_refuse(program, arguments, message):
    code, line = run(*arguments, program=program)
    assert code == 1
    assert message in line


def test_train_refuses_a_batch_that_cannot_be_split(monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    workdir = tmp_path / "run"
    code, line = run("--config", "configs/fcn8s.py", "--config.data.batch_size=3", "--workdir", str(workdir))
    assert (code, line) == (1, "error: data.batch_size=3 cannot be split over 2 devices; 2 or 4 can")
    assert not workdir.exists()


@pytest.mark.slow
def test_plan_tells_how_its_compiler_is_installed():
    start = "import runpy, sys; sys.modules['libtpu'] = None; runpy.run_module('fcn_jax.plan', None, '__main__', True)"
    arguments = ("--config", "configs/fcn8s.py:voc2012", "--topology", "v5e:4x4")
    code, line = run(start, *arguments, program="-c")
    assert code == 1
    assert line == "error: --topology=v5e:4x4 needs the TPU compiler: pip install 'fcn_jax[plan]', or name local"


def test_a_user_error_is_one_line(monkeypatch, capsys):
    ends = []
    monkeypatch.setattr(command_line.app, "run", lambda guarded, flags_parser: ends.append(guarded(["program", "a"])))

    def main(arguments):
        assert arguments == ["a"]
        raise DataError("photo.png: no such file")

    command_line.run(main)
    assert ends == [1]
    assert capsys.readouterr().err == "error: photo.png: no such file\n"
    command_line.run(lambda arguments: None)
    assert ends == [1, None]
    with pytest.raises(SystemExit) as end:  # a bug keeps its traceback
        command_line.run(lambda arguments: 1 // 0)
    assert end.value.code == CRASHED
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["run/config.json", None])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_fault_of_storage_is_worth_another_start(monkeypatch, capsys, file, wrapped):
    """Also where a reader made it its user's: the mount of a bucket fails for a moment."""
    ends = []
    monkeypatch.setattr(command_line.app, "run", lambda guarded, flags_parser: ends.append(guarded(["program"])))

    def main(arguments):
        try:
            raise OSError(errno.EIO, "Input/output error", file)
        except OSError as error:
            if not wrapped:
                raise
            raise DataError(f"photo.png: cannot be read ({error.strerror})") from None

    command_line.run(main)
    assert ends == [CRASHED] and "Input/output error" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["run/config.json", None])
def test_what_a_user_can_mend_on_a_disk_is_not(monkeypatch, capsys, file):
    """What fails as it is written does not say which file that is."""
    ends = []
    monkeypatch.setattr(command_line.app, "run", lambda guarded, flags_parser: ends.append(guarded(["program"])))

    def main(arguments):
        raise OSError(errno.ENOSPC, "No space left on device", file)

    command_line.run(main)
    assert ends == [1] and capsys.readouterr().err == f"error: {file or 'a file'}: No space left on device\n"


@pytest.mark.parametrize(
    ("hosts", "said", "code"),
    [
        (1, "INTERNAL: it broke", CRASHED),
        (2, "INTERNAL: Gloo all-reduce failed: Connection closed by peer", EXIT_CODE),
        (2, "INVALID_ARGUMENT: no such layout", CRASHED),  # which another start would meet again
        (2, "RESOURCE_EXHAUSTED: 3 GiB", 1),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_the_runtime_says_tells_a_lost_host_from_a_crash(monkeypatch, capsys, hosts, said, code, wrapped):
    """Also behind an error of whoever called it, as of one that waits to save a checkpoint."""
    ends = []
    monkeypatch.setattr(command_line.app, "run", lambda guarded, flags_parser: ends.append(guarded(["program"])))
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    monkeypatch.setattr(command_line.hosts, "end_alone", lambda code: code)

    def main(arguments):
        try:
            raise jax.errors.JaxRuntimeError(said)
        except jax.errors.JaxRuntimeError as error:
            if not wrapped:
                raise
            raise ValueError("not saved") from error

    if code == CRASHED:
        with pytest.raises(SystemExit) as end:
            command_line.run(main)
        ends.append(end.value.code)
    else:
        command_line.run(main)
    assert ends == [code] and said in capsys.readouterr().err


@pytest.mark.parametrize(("hosts", "code"), [(1, 1), (2, EXIT_CODE)])
def test_a_lost_host_behind_a_users_error(monkeypatch, capsys, hosts, code):
    """As where a checkpoint cannot be restored for want of it."""
    ends = []
    monkeypatch.setattr(command_line.app, "run", lambda guarded, flags_parser: ends.append(guarded(["program"])))
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    monkeypatch.setattr(command_line.hosts, "end_alone", lambda code: code)

    def main(arguments):
        try:
            raise jax.errors.JaxRuntimeError("INTERNAL: Gloo all-reduce failed: Connection closed by peer")
        except jax.errors.JaxRuntimeError as error:
            raise CheckpointError("it cannot be restored") from error

    command_line.run(main)
    assert ends == [code] and capsys.readouterr().err == "error: it cannot be restored\n"


@pytest.mark.parametrize("named", [False, True])
def test_what_was_compiled_is_kept(tmp_path, named):
    """In a folder of the user's, unless the environment names one."""
    program = (
        "import jax; from fcn_jax import command_line; command_line.run(lambda _: print(jax.jit(jax.numpy.sin)(1.0)))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    if named:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "mine")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    kept = [folder for folder in (".cache/fcn_jax/compiled", "mine") if any((tmp_path / folder).glob("*"))]
    assert kept == (["mine"] if named else [".cache/fcn_jax/compiled"])


def test_words_that_belong_to_no_flag():
    command_line.refuse_arguments([])
    with pytest.raises(ConfigError, match=r"cannot make anything of 'a b': fields are set as --config\.optim\.lr=1e-3"):
        command_line.refuse_arguments(["a", "b"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("no variant 'x'"), "error: no variant 'x'"),
        (flags.UnrecognizedFlagError("wokdir", suggestions=["workdir"]), "Did you mean: workdir ?"),
        (OSError("Failed loading\n  [Errno 13] Denied: 'a.py'"), "--config cannot be read: Denied: 'a.py'"),
        (
            flags.Error('Traceback\n  File "a.py", line 3, in f\nNameError: no b'),
            "error: a.py, line 3: NameError: no b",
        ),
    ],
)
def test_flags_that_cannot_be_parsed(monkeypatch, capsys, error, line):
    def refuse(arguments):
        raise error

    monkeypatch.setattr(command_line.flags, "FLAGS", refuse)
    with pytest.raises(SystemExit) as end:
        command_line._parse(["train.py"])
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert line in printed
    assert printed.count("\n") == 1


@pytest.fixture
def parsed(monkeypatch):
    """`parsed(path, *arguments)`: the config flag as a program has it, after its command line was read."""

    def parse(path, *arguments):
        defined = flags.FlagValues()
        config = config_flags.DEFINE_config_file("config", None, "", flag_values=defined)
        monkeypatch.setattr(command_line.flags, "FLAGS", defined)
        monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(path), *arguments])
        for module in [name for name in sys.modules if name.startswith("config_")]:  # of a file read before
            monkeypatch.delitem(sys.modules, module)
        command_line._parse(sys.argv)
        return command_line.experiment(config)

    return parse


START = """from fcn_jax import config as experiment
def get_config(variant=None):
    config = experiment.default()
    """


def test_a_config_file_is_read(parsed, tmp_path):
    (tmp_path / "own.py").write_text(f"{START}config.seed = 3\n    return config\n")
    assert parsed(tmp_path / "own.py", "--config.optim.lr=1e-3").optim.lr == 1e-3


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("config.optim.lr = 'fast'", "TypeError: Could not override field 'lr'"),
        ("config.seed = 1 // 0", "ZeroDivisionError: integer division or modulo by zero"),
        ("config.seed = 1 + 'a'", "TypeError: unsupported operand"),
        ("config.seed = seeed", "NameError: name 'seeed' is not defined"),
        ("config.seed =", "SyntaxError: invalid syntax"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_fault_in_a_config_file_is_placed(parsed, tmp_path, capsys, text, fault):
    """In the file that the user wrote, not in a library that it calls."""
    (tmp_path / "own.py").write_text(f"{START}{text}\n    return config\n")
    with pytest.raises(SystemExit):
        parsed(tmp_path / "own.py")
    printed = capsys.readouterr().err
    assert f"{tmp_path}/own.py, line 4: {fault}" in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("data.batch_size=1.5", "data.batch_size=1.5 must be a whole number"),
        ("optim.lr=fast", "optim.lr=fast must be a number"),
        ("deterministic=maybe", "deterministic=maybe must be True or False"),
        ("optim.lrr=1", "no config field 'lrr'; did you mean 'lr'?"),
        ("optim-lr=1", "fields are set as --config.optim.lr=1e-3"),
        ("data.augment.crop.x=3", "a number, a text or a tuple has no fields of its own"),
    ],
)
def test_a_field_that_cannot_be_set_is_named(parsed, capsys, argument, line):
    with pytest.raises(SystemExit):
        parsed(ROOT / "configs" / "fcn8s.py", f"--config.{argument}")
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "has no function get_config"), ("def get_config(variant=None):\n    return {}\n", "get_config gives dict")],
)
def test_a_file_that_gives_no_config(parsed, tmp_path, capsys, text, message):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises((SystemExit, ConfigError)) as end:
        parsed(tmp_path / "own.py")
    assert message in capsys.readouterr().err + str(end.value)


def test_a_missing_config_file_has_a_neighbour(parsed):
    with pytest.raises(ConfigError, match=r"there is no file .*configs/fcn8\.py; did you mean 'fcn8s\.py'\?"):
        parsed(ROOT / "configs" / "fcn8.py")


def test_hosts_that_did_not_come_together_are_several(monkeypatch):
    """To ask for their number is to wait for them again, and fails."""

    def fail():
        raise RuntimeError("Unable to initialize backend")

    monkeypatch.setattr(jax, "process_count", fail)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert command_line._code_of_fault(jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: topology")) == EXIT_CODE
