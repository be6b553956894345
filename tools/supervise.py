"""Runs a training command, on one host or on several processes of this machine, and again until it is finished.

    python tools/supervise.py [--hosts 2] [--restarts 20] -- python train.py --config configs/fcn8s.py --workdir runs/a

A run that was killed, crashed (exit code 70), lost a host, waited for one in vain, or was asked to leave (75) is
started again and goes on from its newest checkpoint; where there is no new one, after a pause that grows from five
seconds to a minute. One that crashed, or failed for what a user has to mend (1 and 2), three times without a new
checkpoint in its --workdir (in a row, where it names none) is not; nor, at once, one that so failed on all its hosts,
started here, before there is any checkpoint. SIGTERM is passed on, and ends the supervisor with 75 when the run has
left; so are SIGINT and SIGHUP, as SIGTERM. They reach the process that is started here: a script around it has to
`exec` it. Where each host is a machine of its own, a supervisor on each starts its process, and the processes wait for
each other; that one of them has given up the others see in the --workdir.
"""

import argparse
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fcn_jax.errors import CRASHED
from fcn_jax.preemption import EXIT_CODE

LONGEST_PAUSE = 60.0  # seconds
GRACE_SECONDS = 120  # for the other hosts to notice that one is gone
MISTAKES = (1, 2)  # a user's
# A fault of the program's own. Not so SIGABRT, by which JAX ends a process whose coordinator is gone.
CRASHES = (CRASHED, *(-number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=_positive, default=1, help="processes to start on this machine")
    parser.add_argument("--restarts", type=int, default=20, help="how often at most")
    parser.add_argument(
        "--crashes", type=_positive, default=3, help="how many without a new checkpoint in --workdir end it"
    )
    parser.add_argument("--pause", type=float, default=5.0, help="seconds before the first start again in a row")
    parser.add_argument("command", nargs="+", help="after --: the command to run")
    options = parser.parse_args()
    processes: list[subprocess.Popen] = []
    leaving = False

    def ask_to_leave() -> None:
        for process in processes:
            process.send_signal(signal.SIGTERM)

    def pass_on(number: int, frame: object) -> None:
        nonlocal leaving
        leaving = True
        ask_to_leave()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks for
            signal.signal(number, pass_on)
    workdir, others = named_by(options.command)
    progress = Progress(workdir, options.crashes, others)
    for attempt in range(options.restarts + 1):
        missing: list[int] = []
        try:
            start(options.command, options.hosts, processes)
        except OSError as error:
            print(f"error: {options.command[0]}: {error.strerror}", file=sys.stderr)
            missing = [MISTAKES[0]] * (options.hosts - len(processes))
        if leaving or missing:  # asked while they were started; none is to wait for what never comes
            ask_to_leave()
        codes = [*wait(processes), *missing]
        print(f"attempt {attempt + 1}: exit codes {', '.join(map(str, codes))}", flush=True)
        if not any(codes):
            return 0
        faults = [code for code in codes if code in (*CRASHES, *MISTAKES)]
        if leaving:
            return _exit_code(faults) if faults else EXIT_CODE
        if all(code in MISTAKES for code in codes) and not (progress.begun or others):
            return codes[0]
        # Behind a checkpoint, or on some hosts, a mistake may be the fault of the moment: a mount that is missing.
        if reason := progress.hopeless(failed=bool(faults)):
            print(f"{reason}: not started again", file=sys.stderr)
            return _exit_code(faults) if faults else 1
        longest = progress.pause(options.pause) if attempt < options.restarts else 0
        ended = time.monotonic()
        while time.monotonic() < ended + longest:
            if leaving:
                return EXIT_CODE
            time.sleep(0.1)
    progress.give_up()
    print(f"not finished after {options.restarts} restarts", file=sys.stderr)
    return 1


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def _exit_code(faults: Sequence[int]) -> int:
    """That of a run which these codes ended: a user's mistake, if there is one; a crash otherwise."""
    return next((code for code in faults if code in MISTAKES), CRASHED)


def named_by(command: Sequence[str]) -> tuple[Path | None, bool]:
    """The --workdir that a command names, and whether it names other hosts, which have supervisors of their own."""
    found = {"workdir": "", "coordinator": ""}
    for word, following in zip(command, [*command[1:], ""], strict=True):
        dashed, equals, value = word.partition("=")
        for name in found:
            if dashed in (f"--{name}", f"-{name}"):
                found[name] = value if equals else following
    return Path(found["workdir"]).expanduser() if found["workdir"] else None, bool(found["coordinator"])


class Progress:
    """Whether failures are worth another start: as long as there are new checkpoints between them.

    Supervisors of other hosts are told by a file in the working directory. Where that cannot be reached, or is not
    known, failures in a row count.
    """

    def __init__(self, workdir: Path | None, most: int, others: bool):
        self._failures = 0
        self._fruitless = 0  # attempts in a row without a new checkpoint
        self._workdir, self._most, self._others = workdir, most, others
        self._newest, self._given_up = self._checkpoint(), self._mark()

    def hopeless(self, failed: bool) -> str:
        """Why to give up, behind an attempt that did not finish; empty where it is worth another one."""
        newest, given_up = self._checkpoint(), self._mark()
        self._fruitless += 1
        if newest is None and not failed:
            self._failures = 0
        if newest is not None and (self._newest is None or newest > self._newest):
            self._newest, self._failures, self._fruitless = newest, 0, 0
        self._failures += failed
        if failed and self._failures >= self._most:
            self.give_up()
            blind = " (seen: none, as the command names no --workdir)" if self._workdir is None else ""
            return f"failed again and again without a new checkpoint{blind}"
        # What was given up before a checkpoint was mended since.
        new = given_up is not None and given_up != self._given_up and given_up[0] >= _known(newest)
        return "another host has given up" if new else ""

    def pause(self, first: float) -> float:
        """Seconds to wait before the next start: `first`, then twice as long each time, none behind a checkpoint."""
        return min(first * 2.0 ** min(self._fruitless - 1, 9), LONGEST_PAUSE) if self._fruitless else 0.0

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from, as far as can be seen."""
        return _known(self._checkpoint()) >= 0

    def _checkpoint(self) -> int | None:
        """The step of the newest one, -1 if there is none, None where that cannot be seen."""
        if self._workdir is None:
            return None
        try:
            names = [each.name for each in (self._workdir / "checkpoints").iterdir()]
        except FileNotFoundError:
            return -1
        except OSError:
            return None
        return max((int(name) for name in names if name.isdigit()), default=-1)

    def _mark(self) -> tuple[int, str] | None:
        """Behind which step a supervisor gave up, and which time that was; None where none did."""
        if self._workdir is None:
            return None
        try:
            step, which = (self._workdir / "given_up").read_text().split()
            return int(step), which
        except (OSError, ValueError):
            return None

    def give_up(self) -> None:
        """Tells the supervisors of other hosts, if there are any."""
        if self._workdir is None or not self._others:
            return
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            # Neither times nor their order: folders on buckets have none to rely on.
            (self._workdir / "given_up").write_text(f"{_known(self._checkpoint())} {secrets.token_hex(8)}\n")
        except OSError as error:
            print(f"the supervisors of other hosts are not told: {error}", file=sys.stderr)


def _known(step: int | None) -> int:
    return -1 if step is None else step


def free_port() -> int:
    """A TCP port of this machine that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command: list[str], hosts: int, processes: list[subprocess.Popen]) -> None:
    """Starts the processes of one attempt, which find each other at a port that is free now, in place of those before.

    Raises OSError for a command that cannot be started.
    """
    processes.clear()
    flags = [f"--coordinator=127.0.0.1:{free_port()}", f"--hosts={hosts}"] if hosts > 1 else []
    for host in range(hosts):
        own = [f"--host={host}"] if hosts > 1 else []
        # Out of our group: to a signal from the terminal they would not know what to save.
        processes.append(subprocess.Popen([*command, *flags, *own], process_group=0))


def wait(processes: list[subprocess.Popen]) -> list[int]:
    """Their exit codes, when all have ended; where one failed, the others are killed after a while."""
    failed_at = None
    while any(process.poll() is None for process in processes):
        if failed_at is None and any(process.returncode for process in processes):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    return [process.returncode for process in processes]


if __name__ == "__main__":
    sys.exit(main())
