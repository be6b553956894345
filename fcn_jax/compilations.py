"""Which programs were compiled, how long that took, and what for: a line for each that kept the user waiting.

What the compiler leaves behind is given back to the system.

Compiling a step takes from seconds to minutes, for each new shape anew; what was compiled before is found on disk. JAX
tells when it compiles (`jax.monitoring`), and a caller what it is about to run.
"""

import contextlib
import contextvars
import ctypes
import logging
import sys
from collections.abc import Iterator, Sequence

from jax import monitoring

_COMPILED = "/jax/core/compile/backend_compile_duration"
_FOUND = "/jax/compilation_cache/cache_hits"
_WORTH_A_LINE = 1.0  # seconds
_LOG = logging.getLogger(__name__)
_PURPOSE: contextvars.ContextVar[str] = contextvars.ContextVar("purpose", default="")


@contextlib.contextmanager
def of(purpose: str, shape: Sequence[int]) -> Iterator[None]:
    """A context in which what is compiled is for `purpose` and a shape: ("the step, for batches", (4, 128, 128, 3))."""
    token = _PURPOSE.set(f"{purpose} of {' × '.join(map(str, shape))}")
    try:
        yield
    finally:
        _PURPOSE.reset(token)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """A context in which every compilation of a second or more is told in a line, and what it was for.

    Shorter ones are logged, and seen with a command's --verbosity=0. What the compiler leaves behind goes back to the
    system, before the program needs its own memory.
    """
    found = False

    def note_found(event: str, **_: str | int) -> None:
        nonlocal found
        found = found or event == _FOUND

    def tell(event: str, duration_secs: float, **about: str | int) -> None:
        nonlocal found
        if event != _COMPILED:
            return
        how = "found compiled, read" if found else "compiled"
        found = False
        purpose = _PURPOSE.get() or about.get("fun_name", "a program")
        if duration_secs >= _WORTH_A_LINE:
            print(f"{how} in {duration_secs:.1f} s: {purpose}", flush=True)
            give_back_memory()
        else:
            _LOG.info("%s in %.3f s: %s", how, duration_secs, purpose)

    monitoring.register_event_listener(note_found)
    monitoring.register_event_duration_secs_listener(tell)
    try:
        yield
    finally:
        monitoring.unregister_event_listener(note_found)
        monitoring.unregister_event_duration_listener(tell)


def give_back_memory() -> None:
    """Hands what is free in this process back to the system, where glibc holds it (400 MiB behind FCN-8s' step)."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim.argtypes = [ctypes.c_size_t]
        trim(0)
