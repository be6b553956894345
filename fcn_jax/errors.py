"""What a user can mend: one line that names the file or field, the value found and the remedy.

The commands print such an error as one line and exit; everything else is a bug and keeps its traceback.
"""

import contextlib
import difflib
import errno
import sys
from collections.abc import Iterable

# EX_SOFTWARE of sysexits.h, with which a command ends on everything else: a fault of ours, or of the machine's.
CRASHED = 70


def did_you_mean(given: object, choices: Iterable[str]) -> str:
    """The end of such a line, `; did you mean 'fcn8s'?`, or nothing where no choice is close."""
    close = difflib.get_close_matches(str(given), list(choices), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_line(said: object, limit: int | None = None) -> str:
    """What a library's error says, or a text, without its line breaks; the first `limit` characters of it."""
    return " ".join(str(said).split())[:limit]


def tell(line: str) -> None:
    """Prints a line on the error stream; where nobody reads that any more, nothing."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


# What disks, networks and the mounts of buckets meet for a moment, and no user can mend.
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET)


def of_storage(error: BaseException) -> bool:
    """Whether an error comes of a fault of storage that may pass."""
    seen: BaseException | None = error
    while seen is not None and not (isinstance(seen, OSError) and seen.errno in _PASSING):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


class UserError(Exception):
    """A fault in what the user gave. The message is one plain line."""


class ConfigError(UserError):
    """A field, value or combination in a config that cannot work."""


class DataError(UserError):
    """An image, mask, list or folder that is missing, unreadable or contradictory."""


class WeightFileError(UserError):
    """A weight file that cannot be read, or that does not fit the net."""


class CheckpointError(UserError):
    """A working directory that cannot be resumed or served as asked."""


class HostLost(UserError):
    """Another host cannot be reached: nothing is wrong with the command, it is to be run again."""


class NonFiniteError(UserError):
    """Training met a NaN or an infinity."""
