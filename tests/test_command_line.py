"""Every mistake on a command line is one plain line on the error stream, and an exit code; never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from fcn_jax import command_line
from fcn_jax.errors import ConfigError, DataError

ROOT = Path(__file__).parents[1]


def run(*arguments: str, program: str = "train.py") -> tuple[int, str]:
    """Exit code and the one line of the error stream."""
    command = [sys.executable, *program.split(), *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
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
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        command_line.run(lambda arguments: 1 // 0)


def test_words_that_belong_to_no_flag():
    command_line.refuse_arguments([])
    with pytest.raises(ConfigError, match=r"cannot make anything of 'a b': fields are set as --config\.optim\.lr=1e-3"):
        command_line.refuse_arguments(["a", "b"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("no variant 'x'"), "error: no variant 'x'"),
        (flags.UnrecognizedFlagError("wokdir", suggestions=["workdir"]), "Did you mean: workdir ?"),
        (AttributeError('\'Did you mean "lr" instead of "lrr"?\''), "error: no config field 'lrr'; did you mean 'lr'?"),
        (AttributeError("module 'config_config' has no attribute 'get_config'"), "the file has no function get_config"),
        (
            ValueError("Invalid path 'optim-lr'"),
            "error: Invalid path 'optim-lr': fields are set as --config.optim.lr=1e-3",
        ),
        (OSError("Failed loading\n  [Errno 2] No such file: 'a.py'"), "--config cannot be read: No such file: 'a.py'"),
        (IndexError("tuple index out of range"), "error: "),
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
