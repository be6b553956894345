"""What comes of reading one weight file, watched: arrays, a plain refusal, or something that must not be.

An audit hook sees all that the interpreter opens, imports, compiles and starts; it cannot be taken off, so it sleeps
between files. A signal ends a reader that does not.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fcn_jax import weights
from fcn_jax.errors import WeightFileError

CAP = 1 << 20  # bytes that arrays may take, at most
PEAK = 1.3 * CAP + 1.5e6  # bytes of memory
SLOW, SLOW_FOR_NOW, STUCK = 1.0, 0.01, 20.0  # seconds
_KINDS = "biuf"  # of dtypes
_HARMLESS = ("builtins.id",)  # events


@dataclasses.dataclass
class Outcome:
    """What came of an input: `fault` is empty unless it is a finding."""

    read: bool
    fault: str = ""
    seconds: float = 0.0
    peak: int = 0  # bytes, where they were traced


class Watch:
    """Sees what this thread does while a reader is at work: all but reading in one folder is noted and refused."""

    _hooked: "Watch | None" = None  # the only one, as a hook cannot be taken off

    def __init__(self):
        self._folder, self._thread = "", 0  # 0 while nobody is watched
        self.seen: list[str] = []

    @classmethod
    def hooked(cls) -> "Watch":
        """The watch, which the first call puts in its place."""
        if cls._hooked is None:
            cls._hooked = cls()
            sys.addaudithook(cls._hooked._see)
        return cls._hooked

    @contextlib.contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        """Watches this thread."""
        self.seen, self._folder, self._thread = [], str(folder), threading.get_ident()
        try:
            yield
        finally:
            self._thread = 0

    def _see(self, event: str, arguments: tuple) -> None:
        if self._thread != threading.get_ident() or event in _HARMLESS:
            return
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int):  # a file that is open already
                return
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode or "") & set("wax+")
            if not writes and os.path.dirname(os.fspath(path)) == self._folder:
                return
        self.seen.append(f"{event} {arguments!r:.200}")
        raise RuntimeError(f"a reader wants to {event}")


class _Stuck(BaseException):
    """Not to be caught by what is stuck."""


def _stop_reading(*_: object) -> None:
    raise _Stuck(f"it did not end within {STUCK:.0f} s")


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Makes warnings errors, and lets no reader go on for ever. For the main thread."""
    before = signal.signal(signal.SIGALRM, _stop_reading)
    try:
        with warnings.catch_warnings(action="error"):
            yield
    finally:
        signal.signal(signal.SIGALRM, before)


def outcome_of(path: Path, traced: bool = False, cap: int = CAP) -> Outcome:
    """Reads a file in a folder of its own under a cap for its arrays, and judges what happens."""
    outcome = _once(path, cap)
    for _ in range(2):
        if outcome.seconds > SLOW_FOR_NOW and not outcome.fault:
            outcome.seconds = min(outcome.seconds, _once(path, cap).seconds)
    if outcome.seconds > SLOW and not outcome.fault:
        outcome.fault = f"it takes {outcome.seconds:.1f} s"
    if traced and not outcome.fault:
        tracemalloc.start()
        _once(path, cap)
        outcome.peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if outcome.peak > PEAK:
            outcome.fault = f"it takes {outcome.peak:,} bytes of memory"
    return outcome


def _once(path: Path, cap: int) -> Outcome:
    watch, outcome = Watch.hooked(), Outcome(False)
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, STUCK)
    try:
        with watch.over(path.parent):
            arrays = weights.read(path, max_bytes=cap)
        outcome.read, outcome.fault = True, _fault_of_arrays(arrays, cap)
    except WeightFileError as error:
        text = str(error)
        if not text.startswith(f"{path}: ") or not text.isprintable():
            outcome.fault = f"not a line that names the file: {text!r}"
    except (Exception, SystemExit, _Stuck) as error:
        outcome.fault = f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    outcome.seconds = time.perf_counter() - start
    if watch.seen:
        outcome.fault = f"it does what no reader may do: {'; '.join(watch.seen)}"
    return outcome


def _fault_of_arrays(arrays: object, cap: int) -> str:
    if not isinstance(arrays, dict) or not arrays:
        return f"not a dict of arrays: {arrays!r:.80}"
    for name, array in arrays.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            return f"not an array with a name: {name!r}"
        if array.dtype.kind not in _KINDS or not array.dtype.isnative:
            return f"array {name!r} is of dtype {array.dtype}"
        if array.dtype == np.bool_ and array.view(np.uint8).max(initial=0) > 1:
            return f"array {name!r} has bools that are neither"
    total = sum({id(array): array.nbytes for array in arrays.values()}.values())  # in HDF5 two names may share one
    return f"arrays of {total:,} bytes passed the cap" if total > cap else ""
