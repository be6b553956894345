"""Working directories: what a run writes there before its first step, so that nothing else is ever laid over it."""

import contextlib
import errno
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import jax
import numpy as np

from fcn_jax import checkpoints, hosts, transplant, weights
from fcn_jax import config as experiment
from fcn_jax.errors import CheckpointError, ConfigError, tell
from fcn_jax.labels import Info, by_head
from fcn_jax.report import METRICS_FILE

# In which a host sees what another one wrote: mounts of networks and buckets remember for a minute what was not there.
_SHARED_SECONDS = 120.0
# What flock says where a file system has none, as Lustre unless mounted with it.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def claim(workdir: Path, config: experiment.Config, info: Info, free: Iterable[str] = ()) -> None:
    """Writes what the run is into its directory, or checks that it is the same run; see `config.check_resume`.

    A start that failed before its first report leaves nothing that another config could spoil.
    """
    path, classes = workdir / experiment.CONFIG_FILE, workdir / experiment.CLASSES_FILE
    begun = _begun(workdir)
    if not begun and any((workdir / "pictures").glob("*")):
        raise CheckpointError(f"{workdir}/pictures holds files, and {workdir} no run: choose another --workdir")
    if begun and not path.exists():
        raise CheckpointError(f"{workdir} holds a run without its {path.name}: choose another --workdir")
    # What is there must be ours: a folder of data may hold files of these names too.
    saved = experiment.load(path) if path.exists() else config
    saved_info = experiment.load_classes(classes) if classes.exists() else info
    if begun:
        experiment.check_resume(config, saved, workdir, free)
        saved_names, names = (
            [name for each in by_head(i).values() for name in each.class_names] for i in (saved_info, info)
        )
        if saved_names != names:
            raise CheckpointError(
                f"{workdir} holds a run with the classes {', '.join(saved_names)}, the data has now "
                f"{', '.join(names)}: choose another --workdir"
            )
    _write(classes, experiment.classes_to_json(info))
    _write(path, experiment.to_json(config))


@contextlib.contextmanager
def claimed(workdir: Path, config: experiment.Config, info: Info, free: Iterable[str] = ()) -> Iterator[None]:
    """The directory is this run's, and nobody else trains in it. The lock ends with the process, however that ends."""
    # A name that no host has looked for before, of a file that is closed: what buckets show at once.
    mark = workdir / f".seen-{secrets.token_hex(8)}"
    there: list[str] = []
    with contextlib.ExitStack() as stack:
        with hosts.together():
            if hosts.is_first():
                workdir.mkdir(parents=True, exist_ok=True)
                _lock(stack.enter_context((workdir / ".lock").open("w")), workdir)
                claim(workdir, config, info, free)
                there = [*checkpoints.prepare(workdir), mark.name]
                mark.touch()
        names = hosts.first_says(" ".join(there)).split()
        try:
            with hosts.together():
                if missing := _not_seen(workdir, names):
                    raise CheckpointError(
                        f"{workdir} is not the folder that host 0 sees ({missing} is not there): all hosts need the "
                        "same one"
                    )
        finally:
            mark.unlink(missing_ok=True)
        yield


def _lock(file: IO, workdir: Path) -> None:
    """Locks the open file of a working directory, or raises CheckpointError where another process has."""
    # A host that vanished keeps its locks on a file system of a network for a while.
    try:
        free = hosts.locked(file, _SHARED_SECONDS if jax.process_count() > 1 else 0)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        tell(f"warning: {workdir} knows no locks: see to it that nothing else trains there")
        return
    if not free:
        raise CheckpointError(
            f"another process is training in {workdir}: choose another --workdir, or, if none is, remove {file.name}"
        )


def _not_seen(folder: Path, names: Sequence[str]) -> str:
    """The first of these that cannot be seen in a folder, within the time that other hosts' files may take; or none."""
    last = time.monotonic() + _SHARED_SECONDS
    while missing := next((name for name in names if not (folder / name).exists()), ""):
        if time.monotonic() > last:
            return missing
        time.sleep(0.5)
    return ""


def settle_input(config: experiment.Config, workdir: Path) -> Mapping[str, np.ndarray] | None:
    """Writes into a config that leaves it open what the net wants to see; gives the blobs of `init.weights` if read.

    A run that is gone on with keeps what it began with; else the weights that it starts from say it.
    """
    if _begun(workdir) and (workdir / experiment.CONFIG_FILE).exists():
        if not config.input.order:
            experiment.set_input(config, experiment.input_spec(experiment.load(workdir / experiment.CONFIG_FILE)))
        return None
    blobs = weights.read(Path(config.init.weights).expanduser()) if config.init.weights else None
    if not config.input.order:
        experiment.set_input(
            config, weights.expected_input(blobs) if blobs is not None else transplant.input_of(config)
        )
    elif blobs is not None and not config.init.extra_channels:
        told, seen = weights.told_input(blobs), experiment.input_spec(config)
        if told not in (None, seen):
            raise ConfigError(
                f"input.* contradict init.weights: {config.init.weights} was trained on {told}, and the net would see "
                f"{seen}; leave it to the file by --config.input.order="
            )
    return blobs


def _begun(workdir: Path) -> bool:
    """Whether a run has left something there that another config could spoil."""
    metrics = workdir / METRICS_FILE
    return any((workdir / "checkpoints").glob("*")) or (metrics.exists() and metrics.stat().st_size > 0)


def _write(path: Path, text: str) -> None:
    """Whole or not at all, whatever kills the process."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
