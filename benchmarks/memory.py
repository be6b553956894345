"""How much memory a step takes, beside PyTorch, and the loss head by itself.

    python -m benchmarks.memory                          both parts: a quarter of an hour on two cores
    python -m benchmarks.memory --cases fcn8s-same       some cases
    python -m benchmarks.memory --parts head             the compiler's figures alone
    python -m benchmarks.memory --parts slice            those of a TPU that is not here (extra `plan`: libtpu)

Steps: each runs in processes of its own, three one after another, and what is told is the peak of the resident memory,
the median of them: over all of its life, imports and compilation and the drawing of weights among it, and over its
later steps alone. `ratio` is ours over the peer's: below one we take less.

Head: the temporaries, by the compiler, of loss and gradient from FCN-8s' coarse scores, with full-size logits (plain)
and row block by row block (fused); `ratio` is fused over plain. For a TPU the memory traffic, too, as plans count it;
nothing runs there, and nothing is recorded.
"""

import argparse
import contextlib
import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from benchmarks import draws, machine, nets, peers, records, timing
from fcn_jax import compilations, losses, metrics, models
from fcn_jax.ops.resampling import map_rows, sum_over_rows
from fcn_jax.plan import slices
from fcn_jax.plan.compiled_text import CompiledText

_MIB = 2**20
_STEPS = 3
_CASES = [name for name, case in nets.CASES.items() if "own step" in case.works]
_SHOWN = ("part", "what", "runner", "ratio", "peak_mib", "steps_mib", "seconds")
_HEAD = (8, 512, 512)  # images, height, width
_STRIDE = 8
_SLICE = "v5e:1x1"


def main() -> None:
    """Measures, prints the table, appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("step", "head", "slice"), default=["step", "head"])
    parser.add_argument("--cases", nargs="+", choices=_CASES, default=_CASES)
    parser.add_argument("--processes", type=int, default=3, help="that run the steps of each kind")
    parser.add_argument("--rounds", type=int, default=timing.ROUNDS, help="of the head")
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "WORK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, work = arguments.measure
        print(json.dumps(of_steps(nets.CASES[name], work)))
        return
    if "slice" in arguments.parts:
        if len(arguments.parts) > 1:
            parser.error("--parts slice: by itself, as nothing is measured")
        # What is compiled for other machines JAX keeps and cannot read back.
        jax.config.update("jax_enable_compilation_cache", False)
        print(records.table(slice_rows(_HEAD), ("what", "runner", "peak_mib", "moved_mib")))
        return
    where = records.circumstances(timing.matrix_rate(), peers.versions())
    log = records.Log("memory", where, arguments.results)
    for part in arguments.parts:
        measures = {
            "step": [functools.partial(step_rows, name, arguments.processes) for name in arguments.cases],
            "head": [functools.partial(head_rows, _HEAD, arguments.rounds)],
        }
        for measure in measures[part]:
            rows = measure()
            print(records.table(rows, _SHOWN), flush=True)
            log.append(rows)


def of_steps(case: nets.Case, work: str) -> dict[str, int]:
    """Bytes of this process at its peak (`life`), and at that of its last steps alone (`steps`)."""
    step = nets.WORKS[work](case)
    # As training runs it; a step through the public names is on its own.
    with compilations.told() if work == "own step" else contextlib.nullcontext():
        step()
    life = machine.memory()["peak"]
    forgotten = machine.forget_peak()
    for _ in range(_STEPS):
        step()
    peak = machine.memory()["peak"]
    return {"life": max(life, peak), "steps": peak if forgotten else 0}


def step_rows(name: str, processes: int) -> list[dict[str, Any]]:
    """The peak of processes that run steps, in turn: our two forms, and PyTorch's in both orders of memory. Medians."""
    case = nets.CASES[name]
    runs = {f"fcn_jax, {work}": functools.partial(_ours, name, work) for work in ("own step", "plain step")}
    runs |= {runtime: functools.partial(_peers, case, runtime) for runtime in nets.runtimes("own step")}
    found = {runner: [] for runner in runs}
    for _ in range(processes):
        for runner, run in runs.items():
            found[runner].append(run())
    middle = {
        runner: {part: statistics.median(each[part] for each in peaks) for part in ("life", "steps")}
        for runner, peaks in found.items()
    }
    least = min((each["life"] for runner, each in middle.items() if not runner.startswith("fcn_jax")), default=None)
    return [
        {
            "part": "step",
            "what": name,
            "runner": runner,
            "ratio": each["life"] / least if least else None,
            "peak_mib": each["life"] / _MIB,
            "steps_mib": each["steps"] / _MIB,
            "seconds": None,
        }
        for runner, each in middle.items()
    ]


def _ours(name: str, work: str) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", name, work]
    done = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _peers(case: nets.Case, runtime: str) -> dict[str, int]:
    with peers.Peer() as peer:
        peer.ask(**nets.peer_command(case, "own step", runtime))
        peer.ask(do="run")
        life = peer.ask(do="memory")["peak"]
        forgotten = peer.ask(do="forget_peak")["done"]
        for _ in range(_STEPS):
            peer.ask(do="run")
        peak = peer.ask(do="memory")["peak"]
    return {"life": max(life, peak), "steps": peak if forgotten else 0}


def head_rows(shape: tuple[int, int, int], rounds: int) -> list[dict[str, Any]]:
    """Temporaries and seconds of each loss with its gradient, and of evaluation's confusion matrix, fused and plain."""
    resampling, cells = resampled(shape)
    scores = jnp.asarray(np.random.default_rng(0).standard_normal((shape[0], *cells, draws.CLASSES), np.float32))
    labels = jnp.asarray(draws.labels(*shape))
    rows = []
    for what, (plain, fused) in heads(resampling).items():
        programs = {"plain": jax.jit(plain), "fused": jax.jit(fused)}
        compiled = {form: program.lower(scores, labels).compile() for form, program in programs.items()}
        runs = {
            form: functools.partial(timing.timed, functools.partial(program, scores, labels))
            for form, program in compiled.items()
        }
        seconds = timing.in_turn(runs, rounds)
        analyses: dict[str, Any] = {form: program.memory_analysis() for form, program in compiled.items()}
        sizes = {form: analysis.temp_size_in_bytes for form, analysis in analyses.items()}
        rows += [
            {
                "part": "head",
                "what": what,
                "runner": form,
                "ratio": sizes[form] / sizes["plain"],
                "peak_mib": sizes[form] / _MIB,
                "steps_mib": None,
                "seconds": timing.summary(seconds[form])["seconds"],
            }
            for form in programs
        ]
    return rows


def slice_rows(shape: tuple[int, int, int], chosen: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The same, or what is chosen of it, for a chip of a slice: temporaries and traffic by the compiled program."""
    device = SingleDeviceSharding(slices.devices(slices.parse(_SLICE))[0])
    resampling, cells = resampled(shape)
    scores = jax.ShapeDtypeStruct((shape[0], *cells, draws.CLASSES), jnp.float32, sharding=device)
    labels = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=device)
    compared = heads(resampling)
    rows = []
    for what in chosen or compared:
        for form, function in zip(("plain", "fused"), compared[what], strict=True):
            compiled: Any = jax.jit(function).lower(scores, labels).compile()
            rows.append(
                {
                    "what": what,
                    "runner": form,
                    "peak_mib": compiled.memory_analysis().temp_size_in_bytes / _MIB,
                    "moved_mib": sum(CompiledText(compiled.as_text()).traffic().values()) / _MIB,
                }
            )
    return rows


def resampled(shape: tuple[int, int, int]) -> tuple[Any, tuple[int, ...]]:
    """FCN-8s' last resampling to images of a shape `(b, h, w)`, and height and width of the scores that it takes."""
    size = shape[1:]
    cells = tuple(-(-side // _STRIDE) for side in size)
    return models.create("fcn8s", draws.CLASSES).resampling(cells, size), cells


def heads(resampling: Any) -> dict[str, tuple[Any, Any]]:
    """Of each loss, and of evaluation: what the plain and the fused form compute of scores and labels."""
    weights = jnp.linspace(0.5, 1.5, draws.CLASSES)
    chosen = {
        "cross_entropy": losses.LOSSES["cross_entropy"],
        "cross_entropy, weighted": losses.of_pixels(losses.cross_entropy, class_weights=weights),
        "focal": losses.LOSSES["focal"],
        "dice": losses.LOSSES["dice"],
    }

    def both(loss: losses.Loss) -> tuple[Any, Any]:
        def plain(scores, labels):
            return loss(resampling(scores), labels)[0]

        def fused(scores, labels):
            return loss.finish(sum_over_rows(loss.sums, scores, labels, resampling))[0]

        return jax.value_and_grad(plain), jax.value_and_grad(fused)

    def confusion(logits, labels):
        return metrics.confusion(labels, jnp.argmax(logits, axis=-1), draws.CLASSES)

    def matrix(scores, labels):
        return confusion(resampling(scores), labels)

    def matrix_by_rows(scores, labels):
        each = losses.each_image(confusion)
        return jnp.sum(sum_over_rows(each, scores, labels, resampling), axis=0)

    def classes(scores, labels):
        return jnp.argmax(resampling(scores), axis=-1).astype(jnp.uint8)

    def classes_by_rows(scores, labels):
        return map_rows(lambda logits: jnp.argmax(logits, axis=-1).astype(jnp.uint8), scores, resampling)

    return {name: both(loss) for name, loss in chosen.items()} | {
        "confusion": (matrix, matrix_by_rows),
        "argmax": (classes, classes_by_rows),
    }


if __name__ == "__main__":
    main()
