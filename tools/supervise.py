"""Runs a training command, on one host or on several processes of this machine, and again until it is finished.

    python tools/supervise.py [--hosts 2] [--restarts 20] -- python train.py --config configs/fcn8s.py --workdir runs/a

A run that was killed, crashed (exit code 70), lost a host, waited for one in vain, or was asked to leave (75) is
started again and goes on from its newest checkpoint; one that failed for what a user has to mend (1 and 2) is not, nor
one that crashed three times without a new checkpoint in its --workdir. SIGTERM is passed on, and ends the supervisor
with 75 when the run has saved and left. Where each host is a machine of its own, a supervisor on each starts its
process, and the processes wait for each other; that one of them has given up the others see in the --workdir.
"""

import argparse
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

GRACE_SECONDS = 120  # for the other hosts to notice that one is gone


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=1, help="processes to start on this machine")
    parser.add_argument("--restarts", type=int, default=20, help="how often at most")
    parser.add_argument("--crashes", type=int, default=3, help="how many without a new checkpoint in --workdir end it")
    parser.add_argument("command", nargs="+", help="after --: the command to run")
    options = parser.parse_args()
    processes: list[subprocess.Popen] = []
    leaving = False

    def pass_on(number: int, frame: object) -> None:
        nonlocal leaving
        leaving = True
        for process in processes:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    progress = Progress(workdir_of(options.command), options.crashes)
    for attempt in range(options.restarts + 1):
        processes[:] = start(options.command, options.hosts)
        if leaving:  # asked while they were started
            pass_on(signal.SIGTERM, None)
        codes = wait(processes)
        print(f"attempt {attempt + 1}: exit codes {', '.join(map(str, codes))}", flush=True)
        if not any(codes):
            return 0
        if leaving:
            return EXIT_CODE
        if all(code in (1, 2) for code in codes):  # else one was lost, and the others failed for that
            return codes[0]
        if progress.hopeless(crashed=CRASHED in codes):
            print("crashed again and again without a new checkpoint: not started again", file=sys.stderr)
            return CRASHED
    print(f"not finished after {options.restarts} restarts", file=sys.stderr)
    return 1


def workdir_of(command: Sequence[str]) -> Path | None:
    """The --workdir that a command names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workdir", "-workdir", type=Path)
    workdir = parser.parse_known_args(command)[0].workdir
    return workdir and workdir.expanduser()


class Progress:
    """Whether crashes are worth another start: as long as there are new checkpoints between them.

    Supervisors of other hosts are told by a file in the working directory. Without one nothing is known, and hopeless
    is nothing.
    """

    def __init__(self, workdir: Path | None, most: int):
        self._crashes = 0
        self._workdir, self._most, self._begun = workdir, most, time.time()
        self._newest = self._checkpoint()

    def hopeless(self, crashed: bool) -> bool:
        """Whether to give up, behind an attempt that did not finish."""
        if self._workdir is None:
            return False
        if (newest := self._checkpoint()) > self._newest:
            self._newest, self._crashes = newest, 0
        self._crashes += crashed
        given_up = self._workdir / "given_up"
        if crashed and self._crashes >= self._most:
            self._workdir.mkdir(parents=True, exist_ok=True)
            given_up.touch()
            return True
        # Of an earlier start: mended meanwhile.
        return given_up.exists() and given_up.stat().st_mtime > self._begun

    def _checkpoint(self) -> int:
        """The step of the newest one, -1 if there is none."""
        found = self._workdir.glob("checkpoints/*") if self._workdir else ()
        return max((int(each.name) for each in found if each.name.isdigit()), default=-1)


def start(command: list[str], hosts: int) -> list[subprocess.Popen]:
    """The processes of one attempt, which find each other at a port that is free now."""
    if hosts == 1:
        return [subprocess.Popen(command)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [f"--coordinator=127.0.0.1:{port}", f"--hosts={hosts}"]
    return [subprocess.Popen([*command, *flags, f"--host={host}"]) for host in range(hosts)]


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
