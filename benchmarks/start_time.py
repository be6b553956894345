"""Seconds from the start of `train.py --config configs/fcn8s.py` to its first step done: what a newcomer waits.

    python -m benchmarks.start_time                     three minutes on two cores

`cold` starts with an empty cache of compiled programs, `warm` with the one that the start before has filled. The
command is the user's own; the process is ended when it has told its first step.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import records, timing
from fcn_jax.errors import UserError

_SHOWN = ("config", "cache", "ratio", "seconds", "fastest", "slowest", "rounds")


def main() -> None:
    """Measures, prints the table, appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/fcn8s.py")
    parser.add_argument("--rounds", type=int, default=timing.ROUNDS)
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    arguments = parser.parse_args()
    log = records.Log("start_time", records.circumstances(timing.matrix_rate()), arguments.results)
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for name in seconds:
                seconds[name].append(first_step(arguments.config, Path(cache)))
    cold = timing.summary(seconds["cold"])["seconds"]
    rows: list[dict[str, Any]] = [
        {
            "config": arguments.config,
            "cache": name,
            **timing.summary(spent),
            "ratio": timing.summary(spent)["seconds"] / cold,
        }
        for name, spent in seconds.items()
    ]
    print(records.table(rows, _SHOWN))
    log.append(rows)


def first_step(config: str, cache: Path, *arguments: str) -> float:
    """Seconds of one start with that folder of compiled programs, which it fills. UserError where it ends before."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "train.py", "--config", config, "--workdir", f"{workdir}/run"]
        command += ["--config.train.log_every=1", *arguments]
        begun = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=records.ROOT,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": os.fspath(cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        told: list[str] = []
        try:
            for line in process.stdout:
                told.append(line)
                if line.startswith("step ") and "loss" in line:
                    return time.perf_counter() - begun
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    raise UserError(f"{' '.join(command)} ended before its first step: {told[-1].strip() if told else 'nothing said'}")


if __name__ == "__main__":
    main()
