"""A machine that is taken away: SIGTERM asks a run to save its state and to leave, with a code that says "again".

Clouds send the signal some thirty seconds before they stop a preemptible machine, and so do schedulers at the end of a
time limit. The same command then goes on where the run left.
"""

import os
import signal
import socket
import threading
import time

from fcn_jax.errors import UserError, tell

# EX_TEMPFAIL of sysexits.h: nothing is wrong with the command, it is to be run again.
EXIT_CODE = 75
# A signal to a whole group of processes, or a service, comes twice where a supervisor among them passes it on.
_ECHO_SECONDS = 1.0


class Preempted(UserError):
    """The run left because it was asked to; the message says what was saved."""


class Preemption:
    """While this context is open, the first SIGTERM only sets `asked`; one more than a second later ends the process.

    Until `worth_saving` is set there is nothing that would be lost, and the first one ends it, with EXIT_CODE. Outside
    of the main thread, where Python takes no signals, nothing is ever asked.
    """

    def __init__(self):
        self.asked = self.worth_saving = False
        self._open = False

    def __enter__(self) -> "Preemption":
        self._open = threading.current_thread() is threading.main_thread()
        if self._open:
            # Python's own handlers wait until a call into XLA returns, and take two signals for one meanwhile: a
            # compilation takes minutes. What arrives here is counted at once.
            listener, self._channel = socket.socketpair()
            self._channel.setblocking(False)
            self._handler = signal.signal(signal.SIGTERM, self._note) or signal.SIG_DFL
            self._channel_before = signal.set_wakeup_fd(self._channel.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._count, args=(listener,), name="preemption", daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        if self._open:
            signal.set_wakeup_fd(self._channel_before)
            signal.signal(signal.SIGTERM, self._handler)
            self._channel.close()

    def listen(self) -> None:
        """Listens again, behind a library that may have taken the signal for itself as it was loaded."""
        if self._open:
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.asked = True

    def _count(self, listener: socket.socket) -> None:
        first = None
        with listener:
            while number := listener.recv(1):
                if number[0] != signal.SIGTERM:
                    continue
                if first is None:
                    self._answer()
                    first = time.monotonic()  # not before: who reads what is printed may keep us waiting
                elif time.monotonic() - first > _ECHO_SECONDS:
                    os._exit(128 + signal.SIGTERM)

    def _answer(self) -> None:
        # Not to stdout, where only the first of several hosts is heard.
        if not self.worth_saving:
            tell("asked to leave (SIGTERM) before the first step")
            os._exit(EXIT_CODE)
        tell("asked to leave (SIGTERM): saving after this step; a second signal ends it now")
