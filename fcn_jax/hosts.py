"""Several hosts as one run: how their processes find each other, agree, and who speaks.

A host is a process with devices of its own. All run the same command; each reads its rows of every global batch; of a
checkpoint each writes a part, and all else the first one alone writes and prints. What is agreed on here is agreed on
by collectives: every host has to come by, in the same order.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fcn_jax.errors import ConfigError, HostLost, UserError, of_storage, one_line, tell
from fcn_jax.preemption import EXIT_CODE

AUTO = "auto"
_GRACE_SECONDS = 3.0  # in which hosts that end for the same fault do so together
_stall_seconds = 3600.0
_MESSAGE = 1000  # bytes that other hosts are told, of a fault or of what the first one says


def join(
    coordinator: str,
    count: int | None,
    index: int | None,
    *,
    start_seconds: int,
    heartbeat_seconds: int,
    stall_seconds: int = 3600,
) -> None:
    """Makes this process host number `index` of `count`, before the first use of a device.

    `coordinator` is HOST:PORT of the first one, or `auto` where the environment tells everything (TPU slices, Slurm,
    Open MPI). Where the hosts do not come together within `start_seconds` the process ends with one line and exit code
    75. A host of which nothing is heard for `heartbeat_seconds` ends the others; so do those that wait for one which
    does live, but does not get on, for `stall_seconds`. Raises ConfigError for what cannot work, HostLost where the
    connection fails, or where this machine has another process in that place.
    """
    global _stall_seconds
    if coordinator != AUTO and (count is None or index is None or not 0 <= index < count):
        raise ConfigError(
            f"--coordinator={coordinator} needs --hosts, the same for all, and --host from 0 to one less; "
            f"they are {count} and {index}"
        )
    if coordinator != AUTO and not coordinator.rpartition(":")[2].isdigit():
        raise ConfigError(f"--coordinator={coordinator} names no port: HOST:PORT, or {AUTO}")
    _stall_seconds = stall_seconds
    if coordinator != AUTO:
        _take_place(f"{coordinator}-{index}", start_seconds)
    # SIGTERM is `preemption`'s; the notifier of JAX's own service would take it first.
    jax.config.update("jax_enable_preemption_service", False)

    late = (
        f"in {start_seconds} s not all hosts came together at --coordinator={coordinator} (this is host "
        f"{'?' if index is None else index} of {count or '?'}): start the others, or look at the address"
    )
    # JAX's own answer to its deadline is to abort with a stack trace.
    with _within(start_seconds, late):
        try:
            jax.distributed.initialize(
                None if coordinator == AUTO else coordinator,
                count,
                index,
                initialization_timeout=start_seconds + 60,
                heartbeat_timeout_seconds=heartbeat_seconds,
            )
        except (ValueError, RuntimeError) as error:
            remedy = "; the environment does not tell it: name HOST:PORT" if coordinator == AUTO else ""
            lost = isinstance(error, jax.errors.JaxRuntimeError)
            message = f"--coordinator={coordinator}: {one_line(error, 300)}"
            raise HostLost(message) if lost else ConfigError(message + remedy) from None


def _take_place(place: str, seconds: float) -> int | None:
    """Holds a place among the hosts of a run for this machine's process, to its end. Raises HostLost where another has.

    A second process in the same place would be let in by JAX, and end the first one. Gives the descriptor of the lock,
    which stays open; None where there are no locks to be had.
    """
    path = Path(tempfile.gettempdir(), f"fcn_jax-{re.sub('[^0-9A-Za-z.-]', '_', place)}.lock")
    try:
        held = os.open(path, os.O_RDWR | os.O_CREAT)
        if locked(held, seconds):
            return held
        os.close(held)
    except OSError:
        return None
    coordinator, _, index = place.rpartition("-")
    raise HostLost(
        f"another process of this machine is host {index} at --coordinator={coordinator}: end it, or name another port"
    )


def locked(file: int | IO, seconds: float) -> bool:
    """Whether an open file could be locked within that time, against other processes. Raises OSError without locks."""
    last = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= last:
                return False
            time.sleep(0.2)


@contextlib.contextmanager
def _within(seconds: float, late: str) -> Iterator[None]:
    """What is not done in that time ends the process, with one line and exit code 75."""

    def give_up() -> None:
        tell(f"error: {late}")
        os._exit(EXIT_CODE)  # a supervisor of this host starts it again, to wait for the others

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def waiting() -> contextlib.AbstractContextManager[None]:
    """A context in which this host may wait for what others compute, or for their word; for `stall_seconds` at most."""
    if jax.process_count() == 1:
        return contextlib.nullcontext()
    late = f"waited {_stall_seconds} s for the other hosts: one of them lives but does not get on; look what it does"
    return _within(_stall_seconds, late)


def _gathered(value: np.ndarray) -> np.ndarray:
    """That of each host, along a new first axis."""
    with waiting():
        return np.asarray(multihost_utils.process_allgather(value))


def end_alone(code: int) -> int:
    """The exit code of a process that ends for a fault, also where the other hosts do not come to their end with it.

    JAX waits for all of them at a process's end, and aborts where they do not come.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        timer = threading.Timer(_GRACE_SECONDS, os._exit, (code,))
        timer.daemon = True
        timer.start()
    return code


def is_first() -> bool:
    """Whether this host is the one that reports and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_alone_speaks() -> Iterator[None]:
    """What other hosts print is dropped; errors are not."""
    with contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A part of the start in which no host waits for others: where one meets an error, all end with it.

    Where that is a UserError, the others raise one, too; else, and where storage failed, they raise HostLost.
    """
    fault: Exception | None = None
    try:
        yield
    except Exception as error:
        fault = error
    if jax.process_count() > 1:
        told = np.zeros(_MESSAGE, np.uint8)
        if fault is not None:
            mended = isinstance(fault, UserError) and not of_storage(fault)
            said = f"u{fault}" if mended else f"c{type(fault).__name__}: {fault}"
            text = one_line(said).encode()[:_MESSAGE]
            told[: len(text)] = np.frombuffer(text, np.uint8)
        for host, message in enumerate(_gathered(told)):
            if fault is None and message.any():
                text = bytes(message[message > 0]).decode(errors="replace")
                fault = (UserError if text[0] == "u" else HostLost)(f"host {host}: {text[1:]}")
    if fault is not None:
        raise fault


def check_equal(text: str, what: str) -> None:
    """Raises ConfigError on every host unless all have the same text."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    gathered = _gathered(digest)
    others = [host for host, each in enumerate(gathered) if not np.array_equal(each, gathered[0])]
    if others:
        raise ConfigError(
            f"{what} of host{'s' if len(others) > 1 else ''} {', '.join(map(str, others))} "
            f"differ{'s' if len(others) == 1 else ''} from that of host 0: start all with the same command"
        )


def first_says(text: str) -> str:
    """The first host's text, on all of them; at most 1000 bytes, what is behind is cut off."""
    if jax.process_count() == 1:
        return text
    told = np.zeros(_MESSAGE, np.uint8)
    encoded = text.encode()[:_MESSAGE]
    told[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    with waiting():
        heard = np.asarray(multihost_utils.broadcast_one_to_all(told))
    return bytes(heard[heard > 0]).decode()


def total(counts: Any) -> np.ndarray:
    """The sum over all hosts of an array of whole numbers ≥ 0, int64."""
    counts = np.asarray(counts, np.int64)
    if jax.process_count() == 1:
        return counts
    # In two parts, as JAX's arrays hold 32 bits.
    parts = np.stack([counts >> 30, counts & (2**30 - 1)]).astype(np.int32)
    high, low = _gathered(parts).astype(np.int64).sum(axis=0)
    return (high << 30) + low


class Asked:
    """`asked(flag)`: whether any host's flag was set, the same answer on all of them.

    With several hosts it is the answer to the call before, so that no device is waited for.
    """

    def __init__(self, mesh: Mesh):
        self._mesh, self._pending = mesh, None
        self._any = jax.jit(lambda flags: flags.max(), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, flag: bool) -> bool:
        if jax.process_count() == 1:
            return flag
        before = self._pending
        sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        flags = np.full(len(self._mesh.local_devices), flag, np.int32)
        self._pending = self._any(jax.make_array_from_process_local_data(sharding, flags))
        if before is None:
            return False
        with waiting():
            return bool(before)
