"""What is told of compilations: those that took long, what they were for, and whether they were found on disk."""

import ctypes
import os
import platform
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from fcn_jax import compilations


@pytest.fixture
def every_one(monkeypatch):
    monkeypatch.setattr(compilations, "_WORTH_A_LINE", 0.0)


def doubled(x):
    return 2 * x


def lines_of(capsys, name: str) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if name in line]


def test_each_new_shape_is_told_once_with_its_purpose(every_one, capsys):
    function = jax.jit(doubled)
    with compilations.told():
        for size in (3, 4, 3):
            x = jnp.zeros(size)
            with compilations.of("a doubling, for rows", (1, size)):
                function(x)
    lines = lines_of(capsys, "doubling")
    assert [re.sub(r"[\d.]+ s", "… s", line) for line in lines] == [
        "compiled in … s: a doubling, for rows of 1 × 3",
        "compiled in … s: a doubling, for rows of 1 × 4",
    ]


def test_without_a_purpose_the_function_is_named(every_one, capsys):
    with compilations.told():
        jax.jit(doubled)(jnp.zeros(5))
    assert len(lines_of(capsys, "doubled")) == 1


def test_quick_ones_are_logged_and_those_outside_are_not_told(capsys, caplog):
    with compilations.told(), caplog.at_level("INFO", logger="fcn_jax.compilations"):
        jax.jit(doubled)(jnp.zeros(6))
    jax.jit(doubled)(jnp.zeros(7))
    assert capsys.readouterr().out == ""
    assert len([line for line in caplog.messages if re.fullmatch(r"compiled in 0\.\d+ s: .*doubled.*", line)]) == 1


def test_what_is_found_on_disk_is_told_apart(every_one, capsys):
    with compilations.told():
        for _ in range(2):
            jax.clear_caches()
            jax.jit(doubled)(jnp.zeros(8))
    how = [line.partition(" in ")[0] for line in lines_of(capsys, "doubled")]
    assert how == ["compiled", "found compiled, read"]


def test_what_a_compiler_leaves_behind_is_given_back(every_one, monkeypatch):
    given = []
    monkeypatch.setattr(compilations, "give_back_memory", lambda: given.append(True))
    x = jnp.zeros(9)
    with compilations.told():
        jax.jit(doubled)(x)
    assert given == [True]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or "LD_PRELOAD" in os.environ, reason="of glibc's malloc")
def test_free_memory_goes_back_to_the_system():
    """Pieces too small for maps of their own, freed but for the last, which keeps the heap as long as it was."""

    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    pieces = [libc.malloc(2**14) for _ in range(2**12)]
    for piece in pieces:
        ctypes.memset(piece, 1, 2**14)
    for piece in pieces[:-1]:
        libc.free(piece)
    before = resident()
    compilations.give_back_memory()
    assert before - resident() > 2**25
    libc.free(pieces[-1])
