"""Timing on a machine that drifts: what is compared runs in turn, and medians are told with their range.

A machine that slows down for a minute slows everything down that is measured in it. So runs that are to be compared
take turns (ours, peer, ours, peer …): the ratio of two medians is then of the same minutes.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROUNDS = 5
_MATRIX_SIDE = 2048
_STREAM_VALUES = 2**25  # 128 MiB an array, more than any cache holds
_LONG_ENOUGH = 0.01  # seconds that a measurement lasts, so that the clock and a call's overhead do not matter


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call, until every array of its result is there."""
    begun = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begun


def repeated(function: Callable[[], Any], enough: float = _LONG_ENOUGH) -> Callable[[], float]:
    """`timed` for short calls: the mean seconds of as many calls in a row as last `enough` seconds."""
    once = timed(function)
    calls = max(1, min(1000, round(enough / max(once, 1e-6))))

    def run() -> float:
        begun = time.perf_counter()
        for _ in range(calls):
            result = function()
        jax.block_until_ready(result)
        return (time.perf_counter() - begun) / calls

    return run


def in_turn(
    runs: Mapping[str, Callable[[], float]], rounds: int = ROUNDS, warm_up: int = 1, settle: int = 0
) -> dict[str, list[float]]:
    """The seconds of `rounds` calls of each run, one of each in every round, after `warm_up` rounds that do not count.

    A run gives its own seconds: it may lie in another process. In each turn `settle` calls come before the one that
    counts, for work that is done over and over: a virtual machine's host takes back memory that lies free for some
    seconds, and who comes after a pause has to get it again (a step of FCN-8s: 3.5 s instead of 2.6).
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + rounds):
        for name, run in runs.items():
            for _ in range(settle):
                run()
            spent = run()
            if turn >= warm_up:
                seconds[name].append(spent)
    return seconds


def summary(seconds: list[float]) -> dict[str, float | int]:
    """`seconds` (their median), `fastest`, `slowest` and `rounds`, as a record holds them."""
    return {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "rounds": len(seconds),
    }


def matrix_rate(rounds: int = ROUNDS) -> float:
    """GFLOP/s of a 2048³ product of float32 matrices: what the machine's arithmetic gives now."""
    side = _MATRIX_SIDE
    rng = np.random.default_rng(0)
    left, right = (jnp.asarray(rng.standard_normal((side, side), np.float32)) for _ in range(2))
    product = jax.jit(jnp.matmul)
    seconds = in_turn({"product": lambda: timed(lambda: product(left, right))}, rounds)["product"]
    return 2 * side**3 / statistics.median(seconds) / 1e9


def bandwidth(rounds: int = 4 * ROUNDS) -> float:
    """GB/s of memory, of `a + 3 b` on arrays larger than any cache: two are read and one is written.

    Of the fastest run, as STREAM tells it (McCalpin 1995): a neighbour on the same memory is not the machine's limit.
    """
    first, second = jnp.ones(_STREAM_VALUES), jnp.ones(_STREAM_VALUES)
    triad = jax.jit(lambda a, b: a + 3 * b)
    seconds = in_turn({"triad": lambda: timed(lambda: triad(first, second))}, rounds)["triad"]
    return 3 * first.nbytes / min(seconds) / 1e9
