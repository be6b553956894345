"""How long a picture takes from bytes of RGB to its labels, with the Predictor and at its own size.

    python -m benchmarks.predict_latency                            three sizes: some minutes on two cores
    python -m benchmarks.predict_latency --net segnet --sizes 360x480

`cold` is the first picture of a size, compilation among it (nothing is taken from a cache on disk), `seconds` those
that follow. PyTorch's, eager, in both orders of memory, and ONNX Runtime's are of the same net: subtract the mean, run,
take the largest; `ratio` is their seconds over ours. They have no `cold`: their nets are run once when they are made.
"""

import argparse
import contextlib
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import draws, nets, peer_nets, peers, records, timing
from fcn_jax.inputs import InputSpec
from fcn_jax.labels import DatasetInfo
from fcn_jax.predict import Predictor

_SIZES = ("375x500", "500x334", "360x480")
_SHOWN = ("net", "size", "runner", "ratio", "seconds", "fastest", "slowest", "cold")


def main() -> None:
    """Measures, prints the table, appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=peer_nets.NETS, default="fcn8s")
    parser.add_argument("--sizes", nargs="+", default=_SIZES, metavar="HEIGHTxWIDTH")
    parser.add_argument("--rounds", type=int, default=timing.ROUNDS)
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    arguments = parser.parse_args()
    predictor = make_predictor(arguments.net)
    where = records.circumstances(timing.matrix_rate(), peers.versions())
    log = records.Log("predict_latency", where, arguments.results)
    rows: list[dict[str, Any]] = []
    for text in arguments.sizes:
        height, _, width = text.partition("x")
        found = size_rows(arguments.net, predictor, (int(height), int(width)), arguments.rounds)
        log.append(found)
        rows += found
    print(records.table(rows, _SHOWN))


def make_predictor(net: str) -> Predictor:
    """A Predictor of the net with drawn weights."""
    model = nets.make(nets.Case(net, (32, 32), _options(net)))
    names = tuple(f"class {number}" for number in range(draws.CLASSES))
    spec = InputSpec("BGR", draws.MEAN, (draws.SCALE,) * 3)
    info = DatasetInfo("drawn", names, tuple((number, 0, 0) for number in range(draws.CLASSES)))
    return Predictor(model, jax.device_put(nets.variables(model)), spec, info, "drawn weights")


def size_rows(
    net: str, predictor: Callable[[np.ndarray], Any], size: tuple[int, int], rounds: int
) -> list[dict[str, Any]]:
    """The rows of one size, ours first."""
    picture = draws.picture(*size)
    begun = time.perf_counter()
    predictor(picture)
    cold = time.perf_counter() - begun

    def ours() -> np.ndarray:
        return predictor(picture)

    runs: dict[str, Callable[[], float]] = {"fcn_jax": functools.partial(timing.timed, ours)}
    with contextlib.ExitStack() as stack:
        for runtime in nets.runtimes("predict"):
            peer = stack.enter_context(peers.Peer())
            peer.ask(**nets.peer_command(nets.Case(net, size, _options(net)), "predict", runtime))
            runs[runtime] = peer.run
        return _rows(net, size, timing.in_turn(runs, rounds), cold)


def _rows(net: str, size: tuple[int, int], seconds: dict[str, list[float]], cold: float) -> list[dict[str, Any]]:
    ours = statistics.median(seconds["fcn_jax"])
    return [
        {
            "net": net,
            "size": "x".join(map(str, size)),
            "runner": runner,
            **timing.summary(spent),
            "ratio": statistics.median(spent) / ours,
            "cold": cold if runner == "fcn_jax" else None,
        }
        for runner, spent in seconds.items()
    ]


def _options(net: str) -> dict[str, Any]:
    return {"padding": "same"} if net == "fcn8s" else {}


if __name__ == "__main__":
    main()
