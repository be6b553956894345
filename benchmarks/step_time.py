"""How long a forward pass and a training step take, beside PyTorch and ONNX Runtime in the same minutes.

    python -m benchmarks.step_time                                       every case and work, 20 minutes
    python -m benchmarks.step_time --cases fcn8s-same --works forward    some of them
    python -m benchmarks.step_time --cases fcn8s-same --data real        our steps, fed from JPEG and PNG files

Weights and images are the same on both sides, and so are the results, or the row says by how much they differ: of a
forward pass the logits, of steps the losses of the first and of every later one. `ratio` is the peer's seconds over
ours: above one we are faster. `share` is the rate of convolutions and matrix products over that of a 2048³ product in
the same run; the case `product` is that product itself, by us and by the peers.
"""

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import draws, files, nets, peers, records, timing
from benchmarks.nets import CASES, Case
from fcn_jax.plan import operations

_EQUAL = 1e-5  # largest difference over largest value
_PRODUCT, _SQUARE = "product", Case("product", (2048, 2048))
_SHOWN = ("case", "work", "data", "runner", "ratio", "seconds", "fastest", "slowest", "share", "difference", "note")


def main() -> None:
    """Measures, prints the table, appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=(_PRODUCT, *CASES), default=[_PRODUCT, *CASES])
    parser.add_argument("--works", nargs="+", choices=nets.WORKS, default=list(nets.WORKS))
    parser.add_argument("--data", choices=("synthetic", "real"), default="synthetic")
    parser.add_argument("--rounds", type=int, default=timing.ROUNDS)
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    arguments = parser.parse_args()
    rate = timing.matrix_rate()
    log = records.Log("step_time", records.circumstances(rate, peers.versions()), arguments.results)
    rows = []
    for name, work in itertools.product(arguments.cases, arguments.works):
        case = CASES.get(name, _SQUARE)
        if work not in case.works or (arguments.data == "real" and work != "own step"):
            continue
        if arguments.data == "real":
            found = [real_row(name, case, suffix, rate, arguments.rounds) for suffix in (".jpg", ".png")]
        elif case is _SQUARE:
            found = products(rate, arguments.rounds)
        else:
            found = compare(name, case, work, rate, arguments.rounds)
        # At once, so that what is cut short leaves what it had.
        log.append(found)
        rows += found
    print(f"2048³ matrix product: {rate:.0f} GFLOP/s")
    print(records.table(rows, _SHOWN))


def compare(name: str, case: Case, work: str, rate: float, rounds: int) -> list[dict[str, Any]]:
    """The rows of one work on one case, ours first."""
    ours = nets.WORKS[work](case)
    flops = _operations(*ours.program())
    begun = time.perf_counter()
    first = np.asarray(ours())
    cold = time.perf_counter() - begun
    losses: dict[str, list[float]] = {"fcn_jax": [float(first)] if first.ndim == 0 else []}
    with contextlib.ExitStack() as stack:
        runs = {"fcn_jax": lambda: timing.timed(lambda: _noted(losses["fcn_jax"], ours()))}
        others: dict[str, peers.Peer] = {}
        for runtime in nets.runtimes(work):
            peer = stack.enter_context(peers.Peer())
            peer.ask(**nets.peer_command(case, work, runtime))
            reply = peer.ask(do="run")
            losses[runtime] = [reply["loss"]] if "loss" in reply else []
            others[runtime] = peer
            runs[runtime] = _noting(peer, losses[runtime])
        differences = {
            runtime: peers.difference(first, peer.output()) if work == "forward" else None
            for runtime, peer in others.items()
        }
        seconds = timing.in_turn(runs, rounds, warm_up=0, settle=1)
    for runtime in others:
        if work != "forward":
            differences[runtime] = _largest_gap(losses["fcn_jax"], losses[runtime])
    ours_seconds = statistics.median(seconds["fcn_jax"])
    return [
        _row(
            *(name, work, runner, spent, flops if runner == "fcn_jax" else None, rate),
            ratio=statistics.median(spent) / ours_seconds,
            first_call=cold if runner == "fcn_jax" else None,
            difference=differences.get(runner),
            note="differs" if (differences.get(runner) or 0) > _EQUAL else "",
        )
        for runner, spent in seconds.items()
    ]


def products(rate: float, rounds: int) -> list[dict[str, Any]]:
    """Rows of three 2048³ products, the channels of an image each times a matrix: ours, and the peers'."""
    side = _SQUARE.size[0]
    image = np.ascontiguousarray(np.moveaxis(draws.blob(1, side, side), -1, 1))
    left, right = jnp.asarray(image), jnp.asarray(draws.parameter("product", "mean", (side, side)))
    product = jax.jit(jnp.matmul)
    with contextlib.ExitStack() as stack:
        runs = {"fcn_jax": lambda: timing.timed(lambda: product(left, right))}
        for runtime in ("torch", "onnxruntime") if peers.python() else ():
            peer = stack.enter_context(peers.Peer())
            peer.ask(**nets.peer_command(_SQUARE, "forward", runtime))
            runs[runtime] = peer.run
        seconds = timing.in_turn(runs, rounds, settle=1)
    ours = statistics.median(seconds["fcn_jax"])
    return [
        _row(_PRODUCT, "forward", runner, spent, 3 * 2.0 * side**3, rate, ratio=statistics.median(spent) / ours)
        for runner, spent in seconds.items()
    ]


def real_row(name: str, case: Case, suffix: str, rate: float, rounds: int) -> dict[str, Any]:
    """Our own step fed by the loader, from pictures of the case's size; the waiting for data counts."""
    step = nets.OwnStep(case)
    flops = _operations(*step.program())
    with tempfile.TemporaryDirectory() as folder:
        files.write_pairs(Path(folder), 16, case.size, suffix)
        batches = files.our_batches(Path(folder), batch_size=case.images, augment={"flip": True})
        step(step.put(next(batches)))
        seconds, waits = [], []
        for _ in range(max(rounds, 2)):
            begun = time.perf_counter()
            batch = step.put(next(batches))
            waits.append(time.perf_counter() - begun)
            step(batch)
            seconds.append(time.perf_counter() - begun)
    share = sum(waits) / sum(seconds)
    return _row(
        *(name, "own step", "fcn_jax", seconds, flops, rate),
        data=f"{suffix[1:]} files",
        wait_share=share,
        note=f"waiting {100 * share:.1f} %",
    )


def _row(
    case: str,
    work: str,
    runner: str,
    seconds: list[float],
    flops: float | None,
    rate: float,
    *,
    data: str = "synthetic",
    ratio: float = 1.0,
    first_call: float | None = None,
    wait_share: float | None = None,
    difference: float | None = None,
    note: str = "",
) -> dict[str, Any]:
    """What one runner did, as the CSV has it."""
    figures = _figures(seconds, flops, rate)
    return {"case": case, "work": work, "data": data, "runner": runner, **figures, "ratio": ratio} | {
        "first_call": first_call, "wait_share": wait_share, "difference": difference, "note": note,
    }  # fmt: skip


def _figures(seconds: list[float], flops: float | None, rate: float) -> dict[str, Any]:
    """Seconds, and rates where the operations are known: those of our program, which need not be the peers'."""
    summary = timing.summary(seconds)
    if flops is None:
        return {**summary, "gflop": None, "gflops": None, "share": None}
    achieved = flops / summary["seconds"] / 1e9
    return {**summary, "gflop": flops / 1e9, "gflops": achieved, "share": achieved / rate}


def _operations(function: Any, arguments: tuple[Any, ...]) -> float:
    """Of convolutions and matrix products as they are defined, whatever form a CPU computes them in."""
    count = operations.count(function, *arguments, platform="tpu")
    return count.convolutions + count.products


def _noted(losses: list[float], result: Any) -> Any:
    if result.ndim == 0:
        losses.append(float(result))
    return result


def _noting(peer: peers.Peer, losses: list[float]) -> Any:
    def run() -> float:
        reply = peer.ask(do="run")
        if "loss" in reply:
            losses.append(reply["loss"])
        return reply["seconds"]

    return run


def _largest_gap(ours: list[float], theirs: list[float]) -> float:
    """Of the losses of the same steps, relative to the larger: that the later ones agree says that gradients do."""
    return max(abs(a - b) / max(abs(a), abs(b)) for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
