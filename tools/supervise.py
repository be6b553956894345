"""Runs a training command, on one host or on several processes of this machine, and again until it is finished.

    python tools/supervise.py [--hosts 2] [--restarts 20] -- python train.py --config configs/fcn8s.py --workdir runs/a

A run that was killed, crashed (exit code 70), lost a host, waited for one in vain, or was asked to leave (75) is
started again and goes on from its newest checkpoint; one that failed for what a user has to mend (1 and 2) is not, nor
one that crashed three times without a new checkpoint in its --workdir (where none is named, three times at all).
SIGTERM is passed on, and ends the supervisor with 75 when the run has saved and left. Where each host is a machine of
its own, a supervisor on each starts its process, and the processes wait for each other.
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
    parser.add_argument("--crashes", type=int, default=3, help="how many without a new checkpoint end it")
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
    crashes, newest = 0, newest_checkpoint(options.command)
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
        before, newest = newest, newest_checkpoint(options.command)
        crashes = (crashes if newest == before else 0) + (CRASHED in codes)
        if crashes >= options.crashes:
            print(f"{crashes} crashes without a new checkpoint: not started again", file=sys.stderr)
            return CRASHED
    print(f"not finished after {options.restarts} restarts", file=sys.stderr)
    return 1


def newest_checkpoint(command: Sequence[str]) -> int | None:
    """The step of the newest checkpoint in the command's --workdir; None where there is none, or none is named."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workdir", "-workdir", type=Path)
    workdir = parser.parse_known_args(command)[0].workdir
    found = () if workdir is None else workdir.expanduser().glob("checkpoints/*")
    return max((int(each.name) for each in found if each.name.isdigit()), default=None)


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
