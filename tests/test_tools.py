"""Tools about plans: what is compiled is remembered, what does not fit ends the command, and a plan becomes a row."""

import json
import sys
from types import SimpleNamespace

import jax
import pytest

from fcn_jax.config import default
from fcn_jax.plan import operations, planning, published, slices
from fcn_jax.plan.program import Memory, Program, TooLarge
from tools import plans_table, pod_check

GIB = 2**30
# One all-reduce of 1,000 values.
TEXT = """HloModule step
ENTRY %main (x: f32[1000]) -> f32[1000] {
  %x = f32[1000]{0:T(1024)} parameter(0)
  ROOT %sum = f32[1000]{0:T(1024)} all-reduce(%x), to_apply=%add
}
"""


@pytest.fixture
def compiled(monkeypatch):
    """Nets in the order in which they were compiled, by a compiler for v5e that only counts: FCN-16s is too large."""
    nets = []

    def compile_step(assembly, mesh, size, per_device, class_weights=None, remember=None):
        nets.append(assembly.config.model.name)
        memory = Memory(GIB, 0, GIB, per_device, 2 * GIB + per_device, per_device * GIB // 2, 0, GIB)
        if nets[-1] == "fcn16s" or memory.total > slices.CHIPS["v5e"].memory:
            raise TooLarge("17.0 GiB needed")
        return Program(per_device, memory, TEXT, 0.0)

    def count(function, *arguments, platform):
        return operations.Operations(1e12, 2e12, 5e12, 3e12)

    monkeypatch.setattr(planning, "compile_step", compile_step)
    monkeypatch.setattr(operations, "count", count)
    monkeypatch.setattr(published, "forward", lambda model, size, train=False: 1e9)
    monkeypatch.setattr(slices, "devices", lambda part: jax.devices()[: part.device_count])
    return nets


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
    monkeypatch.setattr(pod_check, "metadata", SimpleNamespace(version=lambda package: "0.1"))
    path = tmp_path / "fcn_jax" / "steps.py"
    path.parent.mkdir()
    path.write_text("a = 1\n")
    return path


def test_a_pod_check_compiles_what_it_does_not_know(compiled, printed, source):
    arguments = (pod_check, "--topology=v5e:2x4", "fcn32s", "segnet_basic")
    code, lines = printed(*arguments)
    assert code == 0 and compiled == ["fcn32s", "segnet_basic"]
    assert [line.split()[0] for line in lines[1:3]] == compiled
    assert lines[3] == "2 of 2 fit v5e:2x4"
    assert printed(*arguments) == (code, lines) and len(compiled) == 2
    # Stopped while it wrote the second.
    results = source.parents[1] / "runs" / "pod_check.jsonl"
    results.write_text(results.read_text()[:-20])
    for _ in range(2):
        assert printed(*arguments) == (code, lines) and compiled[2:] == ["segnet_basic"]
    # Another slice, other sources.
    printed(pod_check, "--topology=v5e:2x2", "fcn32s")
    source.write_text("a = 2\n")
    printed(pod_check, "--topology=v5e:2x4", "fcn32s")
    assert compiled[3:] == ["fcn32s"] * 2


def test_a_pod_check_fails_where_a_net_does(compiled, printed, source):
    """Again, too, when it is told from what was written down."""
    for _ in range(2):
        code, lines = printed(pod_check, "--topology=v5e:2x4", "fcn32s", "fcn16s")
        assert code == 1 and compiled == ["fcn32s", "fcn16s"]
        assert lines[2].startswith("fcn16s ") and "does not fit v5e:2x4: 17.0 GiB needed" in lines[2]
        assert lines[3] == "1 of 2 fit v5e:2x4; not fcn16s"


@pytest.mark.parametrize("argument", ["--topology=v9:2x4", "fcn9s"])
def test_what_a_pod_check_cannot_mean_is_one_line(compiled, argument, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pod_check.py", argument])
    assert pod_check.main() == 1 and compiled == []
    line = capsys.readouterr().err
    assert line.startswith("error: ") and argument in line and line.count("\n") == 1


def test_a_plan_is_a_row_of_the_table(compiled, printed, tmp_path):
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
    assert [row["images a chip"] for row in found] == ["2", "25", "2", "2"]
    assert [row["memory, GiB"] for row in found] == ["4.00", "15.50", "4.00", "4.00"]
    assert [row["largest batch a chip"] for row in found] == ["25 (compiled)", "", "25 (compiled)", "25 (compiled)"]
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
