"""What of the machine this process may use, and uses: cores, and resident memory as Linux tells it."""

import os
import time
from pathlib import Path

_STATUS = Path("/proc/self/status")


def memory() -> dict[str, int]:
    """`now` and `peak`, bytes; zeros where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    except OSError:
        lines = {}
    return {
        name: 1024 * int(lines.get(field, "0 kB").split()[0]) for name, field in (("now", "VmRSS"), ("peak", "VmHWM"))
    }


def forget_peak() -> bool:
    """Lets the peak begin anew at what is resident now; False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


class Others:
    """How busy other processes keep the machine while something is measured: `share()` of its cores since the start.

    What this process and those that it has started use does not count. A measurement with more than a few hundredths
    of it should be made again.
    """

    def __init__(self):
        self._begun = time.perf_counter()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def share(self) -> float:
        """0 where nothing else ran (or the system does not tell), 1 where others had all cores."""
        passed = (time.perf_counter() - self._begun) * (os.cpu_count() or 1)
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        return min(max(others / passed, 0.0), 1.0)


def _busy_seconds() -> float:
    """Processor seconds of all processes since the machine was started."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _wait, interrupts, soft = (int(field) for field in fields[:7])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Processor seconds of this process, of all that it has started, and of all that those have started."""
    spent: dict[int, float] = {}
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold blanks.
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        process = int(path.parent.name)
        parents[process] = int(fields[1])
        # Its own user and system time, and that of children that have ended.
        spent[process] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    family = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(spent.get(process, 0.0) for process in family)
