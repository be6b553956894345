"""Images a second from files to batches, beside a PyTorch DataLoader with the same decoders on the same cores.

    python -m benchmarks.loader_rate                     two minutes on two cores
    python -m benchmarks.loader_rate --images 200 --batches 50

Both decode JPEG or PNG pictures of 375×500 (OpenCV) and PNG masks (Pillow), scale them by 0.5 to 1.5, cut 320×320, flip
every other one, subtract the mean and put eight into a batch. Ours has as many threads as there are cores; the
DataLoader as many worker processes, and once none. `ratio` is the images a second of ours over the peer's.
"""

import argparse
import functools
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import files, machine, peers, records, timing

_SIZE = (375, 500)
_CROP, _SCALE, _BATCH = (320, 320), (0.5, 1.5), 8
_SHOWN = ("format", "runner", "ratio", "images_per_second", "fastest", "slowest", "seconds")


def main() -> None:
    """Measures, prints the table, appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="files that are written")
    parser.add_argument("--batches", type=int, default=30, help="that a measurement takes")
    parser.add_argument("--rounds", type=int, default=timing.ROUNDS)
    parser.add_argument("--results", type=Path, default=records.RESULTS)
    arguments = parser.parse_args()
    log = records.Log("loader_rate", records.circumstances(timing.matrix_rate(), peers.versions()), arguments.results)
    rows: list[dict[str, Any]] = []
    for suffix in (".jpg", ".png"):
        with tempfile.TemporaryDirectory() as folder:
            files.write_pairs(Path(folder), arguments.images, _SIZE, suffix)
            found = format_rows(suffix, Path(folder), arguments.batches, arguments.rounds)
        log.append(found)
        rows += found
    print(records.table(rows, _SHOWN))


def format_rows(suffix: str, folder: Path, batches: int, rounds: int) -> list[dict[str, Any]]:
    """The rows of one format, ours first."""
    ours = "fcn_jax"
    runs = {ours: functools.partial(our_seconds, folder, batches)}
    if not peers.python():
        return _rows(suffix, batches, timing.in_turn(runs, rounds), ours)
    numbers = [str(number) for number in (*_CROP, *_SCALE)]
    with (
        peers.Peer("benchmarks.peer_loader", os.fspath(folder), str(_BATCH), str(machine.cores()), *numbers) as many,
        peers.Peer("benchmarks.peer_loader", os.fspath(folder), str(_BATCH), "0", *numbers) as alone,
    ):
        for name, peer in ((f"DataLoader, {machine.cores()} workers", many), ("DataLoader, 0 workers", alone)):
            runs[name] = functools.partial(_peer_seconds, peer, batches)
        return _rows(suffix, batches, timing.in_turn(runs, rounds), ours)


def our_seconds(folder: Path, batches: int) -> float:
    """Seconds from asking for an iterator to its last batch; the data set has been opened before, and is checked."""
    made = files.our_batches(folder, _BATCH, {"flip": True, "scale": _SCALE, "crop": _CROP})
    begun = time.perf_counter()
    for _ in itertools.islice(made, batches):
        pass
    spent = time.perf_counter() - begun
    made.close()  # pyright: ignore[reportAttributeAccessIssue]
    return spent


def _peer_seconds(peer: peers.Peer, batches: int) -> float:
    return peer.ask(do="run", batches=batches)["seconds"]


def _rows(suffix: str, batches: int, seconds: dict[str, list[float]], ours: str) -> list[dict[str, Any]]:
    images = batches * _BATCH
    return [
        {
            "format": suffix,
            "runner": runner,
            **timing.summary(spent),
            "ratio": statistics.median(spent) / statistics.median(seconds[ours]),
            "images_per_second": images / statistics.median(spent),
            "images": images,
        }
        for runner, spent in seconds.items()
    ]


if __name__ == "__main__":
    main()
