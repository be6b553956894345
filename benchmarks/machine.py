"""What of the machine this process may use, and uses: cores, and resident memory as Linux tells it."""

import os
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
