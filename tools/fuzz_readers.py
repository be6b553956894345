"""Runs the readers of weight files on hundreds of thousands of broken files; whatever is not a plain refusal is listed.

    python tools/fuzz_readers.py --inputs 200000 --seed 0 [--start 0] [--format torch] [--keep FOLDER]

The package `fuzzing` makes good files (good_files.py) and breaks them, blindly (faults.py) and by what is known of
their formats (archives.py, headers.py, messages.py). They are read as users read them: by `fcn_jax.weights.read`, from
a file. Where there is /dev/shm the file is in memory: writing one takes 0.04 ms and reading it about 1 ms, so that no
shorter way in is needed.

Each input must give arrays within a cap, or a WeightFileError of one line that names the file, within a second. The cap
is 1 MiB, and for every seventh input 1 byte to 512 KiB. Any other exception or warning is a finding, and so is whatever
else a reader does: an audit hook refuses to open any file but those in the input's folder, and to import, compile or
start anything. Every 50th input is read once more under tracemalloc: 1.3 times 1 MiB and 1.5 MB must do. An input that
takes more than 10 ms is read again, up to twice, and the least time counts: the machine has other work, too.

Input number i depends on the seed and on i alone, and the formats take turns; so --start and --inputs split a run, and
--format leaves out the numbers of others. Findings are kept as files, with a line each in findings.txt that says how to
make them again. Prints a table in Markdown; the exit status is 1 where there are findings.
"""

import argparse
import dataclasses
import itertools
import math
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fcn_jax import weights
from tools.fuzzing.archives import archive, pickles
from tools.fuzzing.faults import LARGEST, Fault, blind
from tools.fuzzing.good_files import BESIDE, good_files
from tools.fuzzing.headers import hdf5, npy, safetensors
from tools.fuzzing.messages import message
from tools.fuzzing.outcomes import CAP, outcome_of, strict

FAULTS: dict[str, Fault] = {
    "caffemodel V1": message,
    "caffemodel V2": message,
    "torch zip": archive,
    "torch legacy": pickles,
    "safetensors": safetensors,
    "onnx": message,
    "hdf5": hdf5,
    "npz": archive,
    "npy": npy,
}
TRACED = 50  # every so many inputs are read for their memory, too
CAPPED = 7  # every so many inputs have a smaller cap


def form_of(number: int) -> str:
    """The format of an input."""
    return list(FAULTS)[number % len(FAULTS)]


def made(seed: int, number: int, files: dict[str, list[bytes]]) -> bytes:
    """Input so-and-so of a seed, of the good files of its format."""
    form, draw = form_of(number), random.Random(f"{seed}/{number}")
    data, way = draw.choice(files[form]), draw.random()
    if way < 0.7:
        data = FAULTS[form](draw, data, files[form])
    if way > 0.6:
        data = blind(draw, data, files[form])
    return data[: 4 * LARGEST] or b"\0"  # an empty file is refused before anything reads it


@dataclasses.dataclass
class Row:
    """What came of the inputs of one format."""

    read: int = 0
    findings: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)
    peak: int = 0


def run(numbers: Iterable[int], seed: int, chosen: str = "", keep: Path | None = None) -> dict[str, Row]:
    """Reads inputs by their numbers, those of the formats that begin as chosen. Tells of findings on stderr."""
    files = good_files()
    rows = {form: Row() for form in FAULTS if form.startswith(chosen)}
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder, strict():
        path = Path(folder).resolve() / "input"
        shutil.copy(BESIDE, path.parent)
        for data in itertools.chain(*files.values()):
            path.write_bytes(data)
            weights.read(path)  # imports the reader, which later would be a finding
        for number in numbers:
            if (form := form_of(number)) not in rows:
                continue
            path.write_bytes(data := made(seed, number, files))
            cap = CAP if number % CAPPED else 1 << number // CAPPED % 20
            outcome, row = outcome_of(path, number % TRACED == 0, cap), rows[form]
            row.seconds.append(outcome.seconds)
            row.peak = max(row.peak, outcome.peak)
            row.findings += bool(outcome.fault)
            row.read += outcome.read and not outcome.fault
            if outcome.fault:
                _tell(form, number, seed, outcome.fault, data, keep)
    return rows


def _tell(form: str, number: int, seed: int, fault: str, data: bytes, keep: Path | None) -> None:
    again = f"python tools/fuzz_readers.py --seed {seed} --start {number} --inputs 1"
    line = f"{form}: {fault!r:.500} (again: {again})"
    print(line, file=sys.stderr)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{seed}-{number}").write_bytes(data)
        with (keep / "findings.txt").open("a") as stream:
            stream.write(f"{seed}-{number} {line}\n")


def table(rows: dict[str, Row]) -> str:
    """Markdown: a row for each format, and one for all of them."""
    lines = [
        "| format | inputs | read | refused | findings | 99.9 % within | slowest | highest peak |",
        "|---" * 8 + "|",
    ]
    every = [second for row in rows.values() for second in row.seconds]
    total = Row(sum(r.read for r in rows.values()), sum(r.findings for r in rows.values()), every)
    total.peak = max(row.peak for row in rows.values())
    for form, row in [*rows.items(), ("all", total)]:
        count, times = len(row.seconds), sorted(row.seconds) or [0.0]
        cells = (form, f"{count:,}", f"{row.read:,}", f"{count - row.read - row.findings:,}", str(row.findings))
        times = (times[math.ceil(0.999 * len(times)) - 1], times[-1])
        cells += (*(f"{1000 * second:.1f} ms" for second in times), f"{row.peak / (1 << 20):.2f} MiB")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs, prints the table, and fails where something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="how many numbers")
    parser.add_argument("--start", type=int, default=0, help="the first number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", default="", help=f"only formats that begin so: {', '.join(FAULTS)}")
    parser.add_argument("--keep", type=Path, help="a folder for inputs that were findings")
    options = parser.parse_args()
    if not any(form.startswith(options.format) for form in FAULTS):
        parser.error(f"no format begins with {options.format!r}: {', '.join(FAULTS)}")
    rows = run(range(options.start, options.start + options.inputs), options.seed, options.format, options.keep)
    print(table(rows))
    sys.exit(any(row.findings for row in rows.values()))


if __name__ == "__main__":
    main()
