"""PyTorch and ONNX Runtime beside us: processes in an environment of their own, which `make peers` makes.

Where there is no such environment there are no peers, and the scripts measure fcn_jax alone.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import ROOT
from fcn_jax.errors import UserError

_PYTHON = ROOT / ".venv-peers" / "bin" / "python"


class PeerError(UserError):
    """A peer could not do what it was asked."""


def python() -> Path | None:
    """The peers' Python: FCN_JAX_PEERS, else that of .venv-peers; None if there is none."""
    path = Path(os.environ.get("FCN_JAX_PEERS") or _PYTHON)
    return path if path.is_file() else None


def versions() -> dict[str, str]:
    """The peers' versions by package; empty without peers."""
    if python() is None:
        return {}
    with Peer("benchmarks.peer_worker") as peer:
        return peer.ask(do="versions")


class Peer:
    """A process of the peers, from its start to the end of the context. Raises PeerError for what it cannot do."""

    def __init__(self, module: str = "benchmarks.peer_worker", *arguments: str):
        interpreter = python()
        if interpreter is None:
            raise PeerError("there is no environment of the peers: make peers")
        self._process = subprocess.Popen(
            [str(interpreter), "-m", module, *arguments],
            cwd=ROOT,
            # Nothing of our environment but the repository is on its path.
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def ask(self, **command: Any) -> dict[str, Any]:
        """The reply to one command."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"the peer's process ended at {command['do']!r} (exit code {self._process.wait()})")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerError(f"the peer at {command['do']!r}: {reply['error']}")
        return reply

    def run(self) -> float:
        """Seconds of one unit of work, by the peer's own clock."""
        return self.ask(do="run")["seconds"]

    def output(self) -> np.ndarray:
        """The logits `[b h w c]` of its weights as they are now."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "output.npy"
            self.ask(do="output", path=str(path))
            return np.load(path)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two arrays, relative to the largest value."""
    if ours.shape != theirs.shape:
        raise PeerError(f"the peer's output is {theirs.shape}, ours {ours.shape}")
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))
