"""Tools about plans: what is compiled is remembered, what does not fit ends the command, and a plan becomes a row."""

import json
import os
import sys

import pytest
from counting_compiler import CountingCompiler

from fcn_jax.config import default
from fcn_jax.plan import planning, slices
from tools import plans_table, pod_check


@pytest.fixture
def compiler(monkeypatch):
    """Plans for v5e without its compiler; FCN-16s is too large."""
    compiler = CountingCompiler(too_large=["fcn16s"])
    compiler.install(monkeypatch)
    return compiler


@pytest.fixture
def in_this_process(monkeypatch):
    """Where the compiler of the tests is."""
    monkeypatch.setattr(pod_check, "apart", lambda work, *arguments: work(*arguments))


@pytest.fixture
def printed(monkeypatch, capsys):
    """`printed(tool, *arguments)`: the exit code of a command, and the lines that it prints."""

    def run(tool, *arguments):
        monkeypatch.setattr(sys, "argv", ["tool.py", *map(str, arguments)])
        return tool.main(), capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The only source file that a pod check knows of, in a folder of its own."""
    monkeypatch.setattr(pod_check, "ROOT", tmp_path)
    path = tmp_path / "fcn_jax" / "steps.py"
    path.parent.mkdir()
    path.write_text("a = 1\n")
    return path


@pytest.mark.usefixtures("in_this_process")
def test_a_pod_check_compiles_what_it_does_not_know(compiler, printed, source):
    arguments = (pod_check, "--topology=v5e:2x4", "fcn32s", "segnet_basic")
    code, lines = printed(*arguments)
    assert code == 0 and compiler.nets == ["fcn32s", "segnet_basic"]
    assert [line.split()[0] for line in lines[1:3]] == compiler.nets
    assert lines[3] == "2 of 2 fit v5e:2x4"
    assert printed(*arguments) == (code, lines) and len(compiler.nets) == 2
    # Stopped while it wrote the second.
    results = source.parents[1] / "runs" / "pod_check.jsonl"
    results.write_text(results.read_text()[:-20])
    for _ in range(2):
        assert printed(*arguments) == (code, lines) and compiler.nets[2:] == ["segnet_basic"]
    # Another slice, other sources.
    printed(pod_check, "--topology=v5e:2x2", "fcn32s")
    source.write_text("a = 2\n")
    printed(pod_check, "--topology=v5e:2x4", "fcn32s")
    assert compiler.nets[3:] == ["fcn32s"] * 2


@pytest.mark.usefixtures("in_this_process")
def test_a_pod_check_fails_where_a_net_does(compiler, printed, source):
    """Again, too, when it is told from what was written down."""
    for _ in range(2):
        code, lines = printed(pod_check, "--topology=v5e:2x4", "fcn32s", "fcn16s")
        assert code == 1 and compiler.nets == ["fcn32s", "fcn16s"]
        assert lines[2].startswith("fcn16s ") and "does not fit v5e:2x4: 17.0 GiB needed" in lines[2]
        assert lines[3] == "1 of 2 fit v5e:2x4; not fcn16s"


def test_a_compiler_that_ends_its_process_ends_no_pod_check():
    """And is asked again the next time."""
    assert pod_check.apart(dict, [("memory", 1)]) == {"memory": 1}
    result = pod_check.apart(os.abort)
    assert result["passing"] and result["fault"].startswith("does not compile: the compiler ended the process")


@pytest.mark.parametrize("argument", ["--topology=v9:2x4", "fcn9s"])
def test_what_a_pod_check_cannot_mean_is_one_line(compiler, argument, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pod_check.py", argument])
    assert pod_check.main() == 1 and compiler.nets == []
    line = capsys.readouterr().err
    assert line.startswith("error: ") and argument in line and line.count("\n") == 1


def test_a_plan_is_a_row_of_the_table(compiler, printed, tmp_path):
    config = default()
    config.model.update(name="fcn32s", width=1 / 16, fc_width=16)
    config.data.update(name="voc2012", batch_size=16)
    question = planning.ask(config, slices.parse("v5e:2x4"), size="64x96")
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(planning.answer(question)))
    _, lines = printed(plans_table, path, "--derive=v5e:1x1,v5e:16x16")
    head, rule, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert rule == ["---"] * len(head)
    found = [dict(zip(head, row, strict=True)) for row in rows]
    assert {row["experiment"] for row in found} == {"experiment, float32, 64×96"}
    # What was asked, the most that fits, slices that follow.
    assert [row["slice"] for row in found] == ["v5e:2x4", "v5e:2x4", "v5e:1x1", "v5e:16x16"]
    assert [row[""] for row in found] == ["compiled", "compiled", "derived", "derived"]
    assert [row["images a chip"] for row in found] == ["2", "29", "2", "2"]
    assert [row["memory, GiB"] for row in found] == ["2.00", "15.50", "2.00", "2.00"]
    assert [row["largest batch a chip"] for row in found] == ["29 (compiled)", "", "29 (compiled)", "29 (compiled)"]
    asked = found[0]
    assert (asked["temporaries, GiB"], asked["TFLOP"]) == ("1.00", "3.00")
    assert (asked["least time"], asked["bound by"], asked["images/s at most"]) == ("15.2 ms", "arithmetic", "1,051")
    (row,) = plans_table.rows(planning.answer(question, largest=False), [])
    assert row.endswith("| 1,051 | – | compiled |")


@pytest.mark.parametrize("plan", [{"step": {"memory": {}}}, {"sweep": []}, []])
def test_what_is_no_plan_for_a_slice_is_one_line(plan, monkeypatch, capsys, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    monkeypatch.setattr(sys, "argv", ["plans_table.py", str(path)])
    assert plans_table.main() == 1
    line = capsys.readouterr().err
    assert line.startswith(f"error: {path} is no plan of a step on a slice") and line.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "derive", "words"),
    [
        (None, "", "plan.json: [Errno 2] No such file"),
        ('{"step": ', "", "plan.json: Expecting value"),
        ('{"step": {"roofline": {}}, "slices": [], "topology": "v5e:4x4"}', "v5e:9x9", "--derive=v5e:9x9: nothing"),
    ],
)
def test_what_cannot_be_read_or_derived_is_one_line(text, derive, words, monkeypatch, capsys, tmp_path):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["plans_table.py", str(path), f"--derive={derive}"])
    assert plans_table.main() == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ") and words in line and line.count("\n") == 1
