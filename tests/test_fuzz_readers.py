"""The fuzzer finds nothing in the readers, and finds whatever a reader can do that none may."""

import os
import pickle
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from fcn_jax.errors import WeightFileError
from fcn_jax.weights import caffemodel
from tools import fuzz_readers
from tools.fuzzing import outcomes
from tools.fuzzing.good_files import good_files

EACH = 200  # inputs of a format
FILES = good_files()


@pytest.mark.parametrize("form", fuzz_readers.FAULTS)
def test_readers_refuse_or_read(form, capsys):
    numbers = range(EACH * len(fuzz_readers.FAULTS))
    rows = fuzz_readers.run(numbers, seed=1, chosen=form)
    assert list(rows) == [form]
    row = rows[form]
    assert not row.findings, capsys.readouterr().err
    assert len(row.seconds) == EACH
    # What is only refused at the door would test little, and so would faults that change nothing.
    assert 0.02 * EACH < row.read < 0.5 * EACH
    assert 0 < row.peak < outcomes.PEAK


def test_an_input_depends_on_seed_and_number_alone():
    first = [fuzz_readers.made(3, number, FILES) for number in range(90)]
    again = [fuzz_readers.made(3, number, good_files()) for number in reversed(range(90))]
    assert first == again[::-1]
    others = [fuzz_readers.made(4, number, FILES) for number in range(90)]
    assert sum(one != other for one, other in zip(first, others, strict=True)) > 75


def test_most_inputs_are_no_good_file():
    made = [fuzz_readers.made(5, number, FILES) for number in range(900)]
    changed = [data not in FILES[fuzz_readers.form_of(number)] for number, data in enumerate(made)]
    assert sum(changed) > 0.9 * len(made)
    assert len(set(made)) > 0.9 * len(made)
    assert max(map(len, made)) <= 1 << 18


@pytest.fixture
def judged(monkeypatch, tmp_path):
    """`judged(parse)`: the fault that is found in a reader."""
    path = tmp_path / "net.caffemodel"
    path.write_bytes(FILES["caffemodel V1"][0])

    def judge(parse, traced: bool = False) -> str:
        monkeypatch.setattr(caffemodel, "parse", parse)
        with outcomes.strict():
            outcome = outcomes.outcome_of(path, traced)
        return outcome.fault

    return judge


def fails(error: BaseException):
    def parse(_):
        raise error

    return parse


def test_a_good_reader_passes(judged):
    assert judged(caffemodel.parse, traced=True) == ""
    assert judged(fails(caffemodel.Malformed("it is broken"))) == ""


@pytest.mark.parametrize(
    "error", [IndexError("of what"), RecursionError(), MemoryError(), SystemExit(), AssertionError()]
)
def test_other_errors_are_found(judged, error):
    assert judged(fails(error)).startswith(type(error).__name__)


@pytest.mark.parametrize("text", ["no name", "{path}: two\nlines", "{path}: a\x1b[2J of a terminal"])
def test_errors_that_are_no_line_are_found(judged, text, tmp_path):
    error = WeightFileError(text.format(path=tmp_path / "net.caffemodel"))
    assert judged(fails(error)).startswith("not a line that names the file")


def test_warnings_are_found(judged):
    assert judged(lambda _: {"x": np.arange(3) / np.zeros(3)}).startswith("RuntimeWarning: ")
    assert judged(lambda _: warnings.warn("old", stacklevel=1)).startswith("UserWarning: old")


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        ([np.zeros(3)], "not a dict of arrays"),
        ({}, "not a dict of arrays"),
        ({b"x": np.zeros(3)}, "not an array with a name"),
        ({"x": [0.0]}, "not an array with a name"),
        ({"x": np.zeros(3, ">f4")}, "array 'x' is of dtype >f4"),
        ({"x": np.array([None])}, "array 'x' is of dtype object"),
        ({"x": np.array([0, 2], np.uint8).view(bool)}, "array 'x' has bools that are neither"),
        ({"x": np.zeros(outcomes.CAP, np.uint8), "y": np.zeros(1)}, "arrays of 1,048,584 bytes passed the cap"),
    ],
)
def test_results_that_are_no_arrays_are_found(judged, result, fault):
    assert judged(lambda _: result).startswith(fault)


def test_two_names_of_one_array_count_once(judged):
    array = np.zeros(outcomes.CAP, np.uint8)
    assert judged(lambda _: {"x": array, "y": array}) == ""


@pytest.mark.parametrize(
    "act",
    [
        lambda: Path(__file__).read_bytes(),
        lambda: os.open(os.devnull, os.O_RDONLY),
        lambda: os.system("true"),
        lambda: subprocess.run([sys.executable, "-V"]),
        lambda: eval("1 + 1"),
        lambda: compile("1 + 1", "", "eval"),
        lambda: pickle.loads(b"cos\nsystem\n."),
        lambda: __import__("this"),
        lambda: os.listdir("."),
        lambda: socket.socket(),
        lambda: os.remove("nothing"),
    ],
)
def test_deeds_are_found_and_refused(judged, act):
    done = []

    def parse(_):
        act()
        done.append(act)
        return {"x": np.zeros(3)}

    assert judged(parse).startswith("it does what no reader may do: ")
    assert not done


def test_deeds_are_found_also_where_the_reader_hides_them(judged):
    def parse(_):
        try:
            Path(__file__).read_bytes()
        except Exception:
            return {"x": np.zeros(3)}
        return None

    assert judged(parse).startswith("it does what no reader may do: open ")


def test_files_beside_the_input_are_only_read(judged, tmp_path):
    beside = tmp_path / "values"
    beside.write_bytes(b"123")
    assert judged(lambda _: {"x": np.frombuffer(beside.read_bytes(), np.uint8)}) == ""
    assert judged(lambda _: beside.write_bytes(b"")).startswith("it does what no reader may do: open ")
    assert judged(lambda _: os.open(beside, os.O_RDWR)).startswith("it does what no reader may do: open ")
    assert beside.read_bytes() == b"123"


def test_nothing_is_watched_between_readers(judged):
    judged(fails(IndexError()))
    with open(__file__) as stream:
        assert stream.read(3) == '"""'


def spin(seconds: float):
    def parse(_):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return {"x": np.zeros(3)}

    return parse


def test_slow_readers_are_found(judged, monkeypatch):
    monkeypatch.setattr(outcomes, "SLOW", 0.15)
    assert judged(spin(0.2)).startswith("it takes 0.")


def test_a_pause_of_the_machine_is_no_finding(judged, monkeypatch):
    monkeypatch.setattr(outcomes, "SLOW", 0.15)
    pauses = iter([0.2, 0.0, 0.0])
    assert judged(lambda _: spin(next(pauses))(None)) == ""


def test_readers_without_an_end_are_found(judged, monkeypatch):
    monkeypatch.setattr(outcomes, "STUCK", 0.1)
    assert judged(spin(60.0)).startswith("_Stuck: it did not end")


def test_memory_is_found(judged):
    def parse(_):
        return {"x": np.zeros(6 * outcomes.CAP, np.uint8)[:3].copy()}

    assert judged(parse) == ""
    assert judged(parse, traced=True).startswith("it takes 6,")


def test_findings_are_kept_with_how_to_make_them_again(monkeypatch, tmp_path, capsys):
    def outcome(path, traced, cap):
        return outcomes.Outcome(False, "IndexError: x" if path.read_bytes() == wanted else "", 0.25, 1 << 20)

    wanted = fuzz_readers.made(7, 13, FILES)
    monkeypatch.setattr(fuzz_readers, "outcome_of", outcome)
    command = ["fuzz_readers.py", "--inputs", "9", "--start", "9", "--seed", "7", "--keep", str(tmp_path / "found")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match=r"^True$"):
        fuzz_readers.main()
    printed = capsys.readouterr()
    assert (
        "safetensors: 'IndexError: x' (again: python tools/fuzz_readers.py --seed 7 --start 13 --inputs 1)"
        in printed.err
    )
    assert (tmp_path / "found" / "7-13").read_bytes() == wanted
    assert (tmp_path / "found" / "findings.txt").read_text() == f"7-13 {printed.err}"
    assert "| safetensors | 1 | 0 | 0 | 1 | 250.0 ms | 250.0 ms | 1.00 MiB |" in printed.out
    assert "| all | 9 | 0 | 8 | 1 | 250.0 ms | 250.0 ms | 1.00 MiB |" in printed.out


def test_a_run_without_findings_succeeds(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fuzz_readers.py", "--inputs", "9", "--format", "torch"])
    with pytest.raises(SystemExit, match=r"^False$"):
        fuzz_readers.main()
    assert "| torch zip | 1 |" in (printed := capsys.readouterr().out)
    assert "| all | 2 |" in printed
    monkeypatch.setattr(sys, "argv", ["fuzz_readers.py", "--format", "tensorflow"])
    with pytest.raises(SystemExit, match=r"^2$"):
        fuzz_readers.main()
