"""Plans: quickly with a compiler that only counts, and slowly with the real one for a slice that is not here."""

import json
import os
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting_compiler import ONE_SUM, CountingCompiler
from jax.sharding import SingleDeviceSharding

from fcn_jax import parallel
from fcn_jax.config import default
from fcn_jax.errors import ConfigError, UserError
from fcn_jax.plan import planning, program, slices, tables
from fcn_jax.plan.compiled_text import CompiledText
from fcn_jax.plan.program import TooLarge
from fcn_jax.plan.roofline import collective_seconds

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config():
    config = default()
    config.model.update(name="fcn32s", width=1 / 16, fc_width=16)
    config.data.update(name="voc2012", batch_size=16)
    config.train.steps = 100
    return config


@pytest.fixture
def compiler(monkeypatch):
    """Plans for v5e without its compiler."""
    compiler = CountingCompiler()
    compiler.install(monkeypatch)
    return compiler


def test_a_plan_says_what_fits_what_moves_and_what_the_run_takes(config, compiler):
    part = slices.parse("v5e:2x4")
    plan = planning.answer(planning.ask(config, part, size="64x64"))
    assert compiler.asked[0] == ("fcn32s", (64, 64), 2)  # 16 images on 8 devices
    assert plan["largest"]["images_a_device"] == 29  # 1 GiB and 29.5 halves of one
    assert plan["largest_step"]["images_a_step"] == 29 * 8
    assert plan["step"]["memory"]["largest"] == "temporaries"
    assert plan["step"]["collectives"] == [{"kind": "all-reduce", "count": 1, "size": 4000, "behind": False}]
    assert plan["step"]["roofline"]["memory"] == 0  # what is summed has its own time
    rows = {row["topology"]: row for row in plan["slices"]}
    assert [name for name, row in rows.items() if not row["derived"]] == ["v5e:2x4"]
    assert rows["v5e:1x1"]["collectives"] == 0 < rows["v5e:16x16"]["collectives"]
    here = rows["v5e:2x4"]
    assert here["run_hours"] == pytest.approx(100 * here["step"] / 3600)
    assert here["run_chip_hours"] == pytest.approx(8 * here["run_hours"])
    text = "\n".join(tables.plan_lines(plan))
    assert "voc" not in text.split("\n")[1] and "roofline: at least" in text and "derived" in text
    assert "1,600 images, the config's 100 steps of 16\n" in text
    assert "\n  beside, in fast memory" in text
    assert "largest batch: 29 images a device, compiled" in text and "29 images: at least" in text
    json.dumps(plan)


def test_a_plan_in_a_hurry_predicts_the_largest_batch(config, compiler):
    plan = planning.answer(planning.ask(config, slices.parse("v5e:2x4"), size="64x64"), seconds=0)
    assert len(compiler.asked) == 1 and "largest_step" not in plan
    first, second = tables.capacity_lines(plan["largest"], None)
    promised = plan["largest"]["predicted"]
    assert promised > 2 and first.startswith(f"largest batch: {promised} images a device, predicted from 2;")
    assert "not compiled for want of time" in second


def test_what_a_single_chip_would_sum_among_others_is_its_gradients(config, compiler):
    """Its program has no collectives; what is derived for other slices has."""
    compiler.text = ONE_SUM.replace("all-reduce(%x), to_apply=%add", "negate(%x)")
    plan = planning.answer(planning.ask(config, slices.parse("v5e:1x1"), size="64x64"))
    assert plan["step"]["collectives"] == [] and plan["step"]["roofline"]["collectives"] == 0
    rows = {row["topology"]: row["collectives"] for row in plan["slices"]}
    part = slices.parse("v5e:4x4")
    gradients = plan["step"]["memory"]["parameters"]
    assert rows["v5e:4x4"] == collective_seconds(part, "all-reduce", gradients) > rows["v5e:1x1"] == 0


def test_a_batch_that_cannot_be_split_is_told_and_rounded_up(config, compiler):
    config.data.batch_size = 1
    question = planning.ask(config, slices.parse("v5e:2x4"), size="64x64")
    assert question.per_device == 1
    assert "data.batch_size=1 cannot be split over 8 devices" in question.notes[0]
    assert "--config.data.batch_size=8" in question.notes[0]
    plan = planning.answer(question, largest=False)
    (here,) = (row for row in plan["slices"] if not row["derived"])
    assert (here["images_a_step"], here["run_hours"]) == (8, pytest.approx(100 / 8 * here["step"] / 3600))
    first, second, *_ = tables.slice_lines(plan)
    assert first.endswith("100 images, the config's 100 steps of 1") and "for as many images on each slice" in second
    config.optim.accumulate = 3
    assert planning.ask(config, slices.parse("v5e:2x4"), size="64x64").per_device == 3


def test_what_does_not_fit_is_one_line_with_a_remedy(config, compiler):
    config.data.batch_size = 8 * 64
    question = planning.ask(config, slices.parse("v5e:2x4"), size="64x64")
    with pytest.raises(UserError, match=r"does not fit v5e:2x4: 17.0 GiB needed, 15.75 GiB there; try fewer than 64"):
        planning.answer(question)


def test_options_are_compared_in_all_combinations(config, compiler):
    options = ["model.dtype=float32,bfloat16", "loss.fused=true,false", "data.batch_size=8"]
    found = dict(planning.compare(config, slices.parse("v5e:2x4"), options, "64x64", None))
    assert len(found) == 4 and "model.dtype=bfloat16, loss.fused=False, data.batch_size=8" in found
    lines = list(tables.comparison_lines(list(found.values()), list(found)))
    assert len(lines) == 5
    for wrong, words in (
        ("loss.fusd=true", "did you mean 'loss.fused'"),
        ("loss.fused=maybe", "true or false"),
        ("data.augment.crop=321,321", "data.augment.crop holds several values"),
        ("optim.boundaries=1000,2000", "optim.boundaries holds several values"),
    ):
        with pytest.raises(ConfigError, match=words):
            list(planning.compare(config, slices.parse("v5e:2x4"), [wrong], "64x64", None))


def test_a_combination_that_cannot_be_does_not_end_a_comparison(config, compiler):
    options = ["parallel.mode=pmap,mesh", "parallel.shard_state=false,true"]
    found = dict(planning.compare(config, slices.parse("v5e:2x4"), options, "64x64", None))
    assert ["fault" in step for step in found.values()] == [False, True, False, False]
    lines = list(tables.comparison_lines(list(found.values()), list(found)))
    assert "parallel.shard_state" in lines[2] and "GiB" in lines[3]
    with pytest.raises(ConfigError, match="fcn9s"):
        next(planning.compare(config, slices.parse("v5e:2x4"), ["model.name=fcn9s"], "64x64", None))


def test_an_error_of_the_compiler_in_the_search_leaves_the_plan(config, compiler, monkeypatch):
    def compile_step(assembly, mesh, size, per_device, *rest):
        if per_device > 2:
            raise jax.errors.JaxRuntimeError("INTERNAL: of\nthe moment")
        return compiler.compile_step(assembly, mesh, size, per_device)

    monkeypatch.setattr(planning, "compile_step", compile_step)
    plan = planning.answer(planning.ask(config, slices.parse("v5e:2x4"), size="64x64"))
    assert plan["notes"][-1].endswith("ended in an error of the compiler: INTERNAL: of the moment")
    assert "largest" not in plan and plan["notes"][-1] in list(tables.plan_lines(plan))


def test_layouts_are_listed_on_request(config, compiler):
    compiler.text = ONE_SUM.replace("all-reduce(%x), to_apply=%add", "copy(%x)")
    plan = planning.answer(planning.ask(config, slices.parse("v5e:2x4"), size="64x64"), largest=False)
    assert plan["step"]["layout"]["copied"] == 2 * 1024 * 4  # 1,000 values, read and written, padded
    lines = list(tables.plan_lines(plan, layout=True))
    assert "layout copies: 1 a step, 8.0 KiB; the largest" in lines
    assert any("96 B of 4.0 KiB  f32[1000]" in line for line in lines)
    assert not any("layout copies:" in line for line in tables.plan_lines(plan))


def test_a_sweep_doubles_until_it_does_not_fit(config, compiler):
    steps = list(planning.sweep(planning.ask(config, slices.parse("v5e:2x4"), size="64x64")))
    assert [step["images_a_device"] for step in steps] == [1, 2, 4, 8, 16, 32]
    assert "memory" in steps[-2] and "do not fit" in steps[-1]["fault"]
    with pytest.raises(ConfigError, match="--sweep: the devices of local do not tell what memory they have"):
        next(planning.sweep(planning.ask(config, slices.parse("local"), size="64x64")))


def test_what_the_compiler_lets_pass_may_be_too_large(config, compiler, monkeypatch):
    monkeypatch.setattr(compiler, "limit", float("inf"))
    config.data.batch_size = 8 * 64
    with pytest.raises(UserError, match=r"does not fit v5e:2x4: 33.0 GiB needed"):
        planning.answer(planning.ask(config, slices.parse("v5e:2x4"), size="64x64"))


def test_of_a_sharded_state_no_other_slices_are_derived(config, compiler):
    config.parallel.update(mode="mesh", shard_state=True)
    plan = planning.answer(planning.ask(config, slices.parse("v5e:2x4"), size="64x64"))
    assert [row["topology"] for row in plan["slices"]] == ["v5e:2x4"]
    assert not any("derived" in line for line in tables.plan_lines(plan))


@pytest.mark.slow
def test_the_step_is_compiled_for_the_devices_of_this_machine(config, fast_compilation, monkeypatch):
    """The real compiler, for CPUs: state, optimizer and batch are counted, and the state is given back in place."""
    config.data.batch_size = 8
    question = planning.ask(config, slices.parse("local"), size="32x32")
    for mode in ("pmap", "mesh"):
        question.assembly.config.parallel.mode = mode
        compiled = question.compile()
        memory = compiled.memory
        assert memory.parameters == 4 * sum(
            leaf.size for leaf in jax.tree.leaves(question.assembly.variables["params"])
        )
        assert memory.optimizer >= memory.parameters
        assert memory.batch == 32 * 32 * (3 * 4 + 1) + 4
        assert memory.results < memory.parameters
    whole = memory
    monkeypatch.setattr(parallel, "_WORTH_SHARDING", 1)
    question.assembly.config.parallel.shard_state = True
    memory = question.compile().memory
    assert 1 / 8 < memory.parameters / whole.parameters < 1 / 4 and memory.batch == whole.batch
    assert memory.optimizer < whole.optimizer / 4 and memory.padding < 2**16
    plan = planning.answer(question)
    assert "roofline" not in plan["step"] and "slices" not in plan and plan["step"]["operations"]["convolutions"] > 0


def test_the_command_refuses_in_one_line():
    command = [sys.executable, "-m", "fcn_jax.plan", "--config", "configs/fcn8s.py:voc2012", "--topology", "v9:2x2"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: --topology=v9:2x2: no chip 'v9'")


def test_one_image_in_use_needs_no_optimizer(config):
    figures = planning.latency(planning.ask(config, slices.parse("local"), size="32x32"))
    assert figures["memory"]["optimizer"] == 0 < figures["memory"]["parameters"]
    assert figures["operations"]["convolutions"] > 0 and figures["images_a_step"] == 1
    assert "one image of 32×32" in next(tables.latency_lines((32, 32), figures))


@pytest.mark.parametrize("passed", [False, True])
def test_an_image_that_does_not_fit_is_one_line(config, compiler, monkeypatch, passed):
    """Refused by the compiler, or let pass."""

    def compile_prediction(assembly, mesh, size, remember):
        if not passed:
            raise TooLarge("17.0 GiB needed")
        return program.Program(1, program.Memory(0, 0, 0, 0, 0, 17 * 2**30, 0, 0), ONE_SUM, 0.0)

    monkeypatch.setattr(planning, "compile_prediction", compile_prediction)
    question = planning.ask(config, slices.parse("v5e:1x1"), size="64x64")
    with pytest.raises(UserError, match=r"does not fit v5e:1x1: 17.0 GiB needed, 15.75 GiB there; try smaller images"):
        planning.latency(question)


def sizes_by_kind(text: CompiledText) -> Counter[str]:
    sizes = Counter[str]()
    for each in text.collectives():
        sizes[each.kind] += each.size
    return sizes


def narrow(name: str, **fields):
    config = default()
    config.model.update(name=name, width=1 / 8, dtype="bfloat16", **fields)
    config.data.update(name="voc2012", batch_size=8)
    return config


def opcodes(text: CompiledText) -> set[str]:
    return {each.opcode for each in text.everything()}


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu")
def test_what_a_step_is_not_to_hold_would_be_seen():
    """A gather, a scatter and a call of the host are in the text of a program that has them."""

    def holding(x, places):
        jax.debug.callback(lambda x: None, x[0])
        return x[places], jnp.zeros_like(x).at[places].add(x)

    device = SingleDeviceSharding(slices.devices(slices.parse("v5e:1x1"))[0])
    shapes = ((64, 128), jnp.float32), ((64,), jnp.int32)
    arguments = [jax.ShapeDtypeStruct(*each, sharding=device) for each in shapes]
    text = CompiledText(jax.jit(holding).lower(*arguments).compile().as_text() or "")
    assert opcodes(text) >= {"gather", "scatter"}
    assert text.host_transfers()


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("fcn8s", "pmap"), ("segnet", "pmap"), ("deconvnet", "pmap"), ("fcn8s", "mesh"), ("deeplab_largefov", "mesh"),
        ("fcn_resnet50", "mesh"),
    ],
)  # fmt: skip
def test_a_real_step_is_compiled_for_a_slice_that_is_not_here(name, mode):
    """It computes in bfloat16 where that is asked, waits for no host, and neither scatters nor gathers."""
    config = narrow(name)
    config.parallel.mode = mode
    question = planning.ask(config, slices.parse("v5e:2x2"), size="64x96")
    compiled = question.compile()
    text = CompiledText(compiled.text)
    assert text.host_transfers() == []
    assert not opcodes(text) & {"gather", "scatter"}
    instructions = text.everything()
    convolutions = [each for each in instructions if "conv_general" in each.origin and each.opcode == "convolution"]
    assert len(convolutions) > 20
    for each in convolutions:
        assert text.operand_types(each) == {"bf16"}, each.origin
    kinds = sizes_by_kind(text)
    # Every gradient is summed in float32, once; of batch norm's statistics each device tells its own.
    assert set(kinds) - {"all-gather"} == {"all-reduce"}
    assert kinds.get("all-gather", 0) < 0.01 * kinds["all-reduce"]
    assert 1 <= kinds["all-reduce"] / compiled.memory.parameters < 1.1
    assert compiled.memory.results < 2**16  # the state is given back in place


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu")
def test_a_sharded_state_is_compiled_for_a_slice_that_is_not_here():
    """Each chip holds a fourth of the large kernels and of their momentum, and gets as much of their gradients."""
    config = narrow("fcn8s")
    config.parallel.update(mode="mesh", shard_state=True)
    question = planning.ask(config, slices.parse("v5e:2x2"), size="64x96")
    compiled = question.compile()
    whole = 4 * sum(leaf.size for leaf in jax.tree.leaves(question.assembly.variables["params"]))
    assert 1 / 4 < compiled.memory.parameters / whole < 0.3 > compiled.memory.optimizer / whole
    kinds = sizes_by_kind(CompiledText(compiled.text))
    assert set(kinds) == {"all-gather", "all-reduce", "reduce-scatter"}
    # Every gradient is summed in float32, once, and every share given once, for the sake of bfloat16 at half its size.
    assert 1 <= (kinds["all-reduce"] + kinds["reduce-scatter"]) / whole < 1.1 and kinds["all-reduce"] < whole / 8
    assert kinds["all-gather"] < 0.55 * compiled.memory.parameters
    assert compiled.memory.results < 2**16


def test_what_was_compiled_is_remembered(tmp_path, monkeypatch):
    class Lowered:
        text = "module"

        def as_text(self):
            return self.text

    made = []

    def compiled(lowered):
        made.append(lowered.text)
        if lowered.text == "large":
            return {"shortage": "20.1 GiB needed"}
        return {
            "memory": {"arguments": 1, "temporaries": 2, "results": 3, "code": 4},
            "text": lowered.text,
            "seconds": 9.0,
        }

    monkeypatch.setattr(program, "_compiled", compiled)
    mesh = parallel.make_mesh(jax.devices()[:1])
    held = {"parameters": 1, "statistics": 0, "optimizer": 0, "batch": 0}

    def run(lowered):
        return program._compile(lowered, mesh, held, 1, tmp_path)

    first, second = run(Lowered()), run(Lowered())
    assert made == ["module"] and first == second and first.memory.total == 10
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:20])  # cut short, it is made again
    assert run(Lowered()) == first and len(made) == 2
    large = Lowered()
    large.text = "large"
    for _ in range(2):
        with pytest.raises(TooLarge, match=r"20\.1 GiB"):
            run(large)
    assert made.count("large") == 1


def grid(*shape) -> Any:
    """A mesh of chips that tell where in their slice they lie."""
    chips = [types.SimpleNamespace(device_kind="TPU v5", coords=list(place)) for place in np.ndindex(shape)]
    return types.SimpleNamespace(devices=np.array(chips))


def test_what_was_compiled_for_as_many_chips_in_another_grid_is_another_program(tmp_path, monkeypatch):
    made = []
    lowered = types.SimpleNamespace(as_text=lambda: "module")
    memory = {"arguments": 1, "temporaries": 2, "results": 3, "code": 4}

    def compiled(lowered):
        made.append(lowered)
        return {"memory": memory, "text": "", "seconds": float(len(made))}

    monkeypatch.setattr(program, "_compiled", compiled)
    held = {"parameters": 1, "statistics": 0, "optimizer": 0, "batch": 0}
    shapes = [(2, 4, 8), (4, 4, 4), (2, 4, 8), (4, 4, 4)]
    found = [program._compile(lowered, grid(*shape), held, 1, tmp_path).seconds for shape in shapes]
    assert found == [1, 2, 1, 2]


def test_a_shortage_is_read_off_the_compilers_line():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.13G of 15.75G hbm."
    assert program._shortage(message) == "20.1 GiB needed"
    assert program._shortage("RESOURCE_EXHAUSTED: too much") == "more memory needed than there is"
