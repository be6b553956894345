"""What a run tells while it runs: JSON lines and TensorBoard events in the workdir, one line on the console.

`metrics.jsonl` holds a JSON object a line, one line a step, steps rising. That stays true however a run ends: a report
is on disk when `scalars` returns, a rewritten file is finished beside the old one before it takes its place, and a
resumed run drops what the killed one reported after its last checkpoint, a half-written line included.
"""

import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import SupportsFloat

import numpy as np
from tensorboardX import SummaryWriter

from fcn_jax.errors import CheckpointError
from fcn_jax.metrics import Scores

METRICS_FILE = "metrics.jsonl"
# The four scores of the FCN paper: names in Scores and metrics.jsonl, and as a table says them.
OVERALL = {
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "mean_iou": "mean IU",
    "frequency_weighted_iou": "frequency weighted IU",
}


def due(step: int, every: int, last: int) -> bool:
    """Whether something is to happen after `step`: at multiples of `every` and at the last step; `every` 0: only there.

    Steps are counted from 1: nothing is due at step 0, unless that is the last one.
    """
    if every < 0:
        raise ValueError(f"every must be 0 or more, not {every}")
    return step == last or (every > 0 and step > 0 and step % every == 0)


class Reporter:
    """Writes a run's numbers and pictures to its workdir; with `active=False` (hosts other than 0) it writes nothing.

    `resume_step` is the step of the restored checkpoint, 0 for a fresh start: what was reported after it is dropped, as
    it will be reported again. Raises CheckpointError if the metrics of that workdir cannot be read.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int = 0, active: bool = True):
        self.active = active
        if not active:
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / METRICS_FILE
        kept = [(step, line) for step, line in _read_lines(self._path) if step <= resume_step]
        _replace(self._path, b"".join(line for _, line in kept))
        self._step, last_line = kept[-1] if kept else (-1, b"")
        self._values: dict[str, int | float | None] = json.loads(last_line) if last_line else {}
        self._tail = self._path.stat().st_size - len(last_line)  # where the line of the latest step begins
        continued = any(workdir.glob("events.out.tfevents.*"))
        self._board = SummaryWriter(
            str(workdir),
            purge_step=resume_step + 1 if continued else None,
            flush_secs=10,
            # An event file is named after the second it is opened in, and truncated: a quick restart would erase one.
            filename_suffix=f".{time.time_ns() % 10**9:09}",
        )

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Reports numbers of a step; a second report of the same step joins the first in one line.

        A NaN or infinity becomes null, as JSON knows neither. Steps must not fall.
        """
        if not self.active:
            return
        if step < self._step:
            raise ValueError(f"step {step} is reported after step {self._step}")
        numbers = {key: json_number(value) for key, value in values.items()}
        if step == self._step:
            self._values |= numbers
            head = self._path.read_bytes()[: self._tail]
            _replace(self._path, head + _encode(self._values))
        else:
            self._step, self._values = step, {"step": step} | numbers
            self._tail = self._path.stat().st_size
            with self._path.open("ab") as file:
                file.write(_encode(self._values))
        for key, number in numbers.items():
            if number is not None:
                self._board.add_scalar(key, number, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows a uint8 picture `[h w 3]` in TensorBoard."""
        if self.active:
            self._board.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Asks TensorBoard's writer, which works behind a queue, to put on disk what it holds; `scalars` needs none."""
        if self.active:
            self._board.flush()

    def close(self) -> None:
        if self.active:
            self._board.close()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def json_number(value: SupportsFloat) -> int | float | None:
    """A Python, NumPy or JAX number as JSON can hold it: a NaN or infinity becomes None."""
    if isinstance(value, int | np.integer):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _encode(values: Mapping) -> bytes:
    return (json.dumps(values, allow_nan=False) + "\n").encode()


def _read_lines(path: Path) -> list[tuple[int, bytes]]:
    """Step and bytes of each line; a torn last line is left out. Raises CheckpointError on any other bad line."""
    raw = path.read_bytes().splitlines() if path.exists() else []
    lines = []
    for number, line in enumerate(raw, start=1):
        try:
            lines.append((int(json.loads(line)["step"]), line + b"\n"))
        except (ValueError, TypeError, KeyError):
            if number < len(raw):
                raise CheckpointError(
                    f"{path}, line {number} is not a report with a step: mend that line or move the file away"
                ) from None
    return lines


def _replace(path: Path, content: bytes) -> None:
    """Gives the file new content at once: whoever looks, or whenever the program dies, it is the old or the new one."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def progress_line(
    step: int, total: int, loss: float, images_per_second: float, eta_seconds: float, wait_share: float
) -> str:
    """The console's line: `step  120/1200  loss 0.4312  58.1 images/s  ETA 0:01:23  waiting for data 2 %`.

    `wait_share` is the part of the time, 0…1, that the devices stood idle because no batch was ready.
    """
    speed = f"{images_per_second:.1f}" if images_per_second >= 10 else f"{images_per_second:.2f}"
    return (
        f"step {step:>{len(str(total))}}/{total}  loss {loss:.4f}  {speed} images/s  "
        f"ETA {_clock(eta_seconds)}  waiting for data {100 * wait_share:.0f} %"
    )


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def score_entries(scores: Scores, class_names: Sequence[str], prefix: str = "val") -> dict[str, float]:
    """Scores under the names they have in `metrics.jsonl`: `val/mean_iou`, `val/iou/03_road`, …

    In a class's name all but letters, digits, dots and hyphens become `_`: TensorBoard takes a slash for a folder.
    """
    entries = {f"{prefix}/{name}": float(getattr(scores, name)) for name in OVERALL}
    for index, (name, iou) in enumerate(zip(class_names, scores.iou, strict=True)):
        entries[f"{prefix}/iou/{index:02}_" + re.sub(r"[^\w.-]", "_", name)] = float(iou)
    return entries


def score_table(scores: Scores, class_names: Sequence[str]) -> str:
    """Accuracy and IU of each class, then the four scores, as plain text. `-`: the class does not occur."""
    width = max(len(name) for name in (*class_names, *OVERALL.values())) + 3
    lines = [f"{'class':<{width}}  {'accuracy':>8}  {'IU':>8}"]
    lines.append("-" * len(lines[0]))
    for index, (name, accuracy, iou) in enumerate(zip(class_names, scores.accuracy, scores.iou, strict=True)):
        lines.append(f"{f'{index:2} {name}':<{width}}  {_cell(accuracy)}  {_cell(iou)}")
    lines.append(lines[1])
    lines += [f"{title:<{width}}  {'':8}  {_cell(getattr(scores, name))}" for name, title in OVERALL.items()]
    absent = len(class_names) - int(np.isfinite(np.asarray(scores.iou, float)).sum())
    if absent:
        lines.append(f"{absent} of {len(class_names)} classes occur neither in the truth nor in the predictions")
    return "\n".join(lines)


def _cell(value: float) -> str:
    return f"{value:8.4f}" if math.isfinite(value) else f"{'-':>8}"
