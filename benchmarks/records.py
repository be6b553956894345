"""What was measured, kept: a table on the console, and rows of a tracked CSV that say where and when.

Every row names the commit, the versions, the machine and the day, and the rate of a matrix product in the same run:
rows of different days can be compared by their share of it.
"""

import csv
import dataclasses
import datetime
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from benchmarks import machine
from fcn_jax.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
_TOLERATED = 0.05  # share of the machine that others may take


@dataclasses.dataclass(frozen=True)
class Circumstances:
    """Where and when something was measured; the first columns of every CSV."""

    date: str
    commit: str  # "+" behind it: with changes that are not committed
    device: str
    cores: int
    jax: str
    jaxlib: str
    torch: str
    onnxruntime: str
    matrix_gflops: float  # of a 2048³ product in this run; see timing.matrix_rate


def circumstances(matrix_gflops: float, peers: Mapping[str, str] | None = None) -> Circumstances:
    """Those of this process; `peers` are the versions in the peers' environment, where there is one."""
    peers = peers or {}
    return Circumstances(
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        commit=commit(),
        device=device(),
        cores=machine.cores(),
        jax=metadata.version("jax"),
        jaxlib=metadata.version("jaxlib"),
        torch=peers.get("torch", ""),
        onnxruntime=peers.get("onnxruntime", ""),
        matrix_gflops=round(matrix_gflops, 1),
    )


def commit() -> str:
    """The commit that the working tree is at, with a "+" if files beside the results differ from it."""

    def git(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)

    try:
        found = git("rev-parse", "--short", "HEAD")
        changed = git("diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results").returncode
    except FileNotFoundError:  # no git
        return ""
    return found.stdout.strip() + "+" * bool(changed) if found.returncode == 0 else ""


def device() -> str:
    """What computes: the processor's name on CPUs, else what JAX calls the device."""
    first = jax.devices()[0]
    if first.platform != "cpu":
        return first.device_kind
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


class Log:
    """Appends rows to `<folder>/<script>.csv`, each with its circumstances.

    One of them is `others`, the share of the machine that other processes took since the log was begun or the rows
    before were appended: begin it where measuring begins.
    """

    def __init__(self, script: str, where: Circumstances, folder: Path = RESULTS):
        self.path, self.where = folder / f"{script}.csv", where
        self._others = machine.Others()

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends the rows to the file, which is made if need be.

        Raises DataError where the file has other columns: rows of two kinds do not belong into one file.
        """
        others = self._others.share()
        self._others = machine.Others()
        if others > _TOLERATED:
            print(f"other processes took {100 * others:.0f} % of the machine meanwhile: measure this again", flush=True)
        for row in rows:
            full = dataclasses.asdict(self.where) | {"others": round(others, 3)}
            full |= {name: _plain(value) for name, value in row.items()}
            known = columns(self.path)
            if known and known != list(full):
                odd = ", ".join(sorted(set(known) ^ set(full))) or "their order"
                raise DataError(f"{self.path} has other columns ({odd}); move it away, or begin another")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(full), lineterminator="\n")
                if not known:
                    writer.writeheader()
                writer.writerow(full)


def columns(path: Path) -> list[str]:
    """The columns of a CSV, none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return next(csv.reader(file), [])


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Those columns of the rows as aligned text; numbers stand to the right, with three digits that count."""
    cells = [list(names), *([_short(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(names))]
    right = [any(isinstance(row.get(name), (int, float)) for row in rows) for name in names]
    lines = [
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _short(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _plain(value: Any) -> Any:
    """As a CSV holds it: floats with five digits that count."""
    if value is None:
        return ""
    return float(f"{value:.5g}") if isinstance(value, float) else value
