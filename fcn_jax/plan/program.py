"""The real training step, compiled ahead of time from shapes alone."""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import math
import os
import re
import time
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from fcn_jax import evaluation
from fcn_jax.assembly import Assembly
from fcn_jax.labels import by_head, only_head

REMEMBERED = Path("~/.cache/fcn_jax/plans").expanduser()  # where commands keep what was compiled
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TooLarge(Exception):
    """The compiler found no way to fit the program into a device's memory."""


class NotRemembered(Exception):
    """The program would have to be compiled."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device. What the program is given (`arguments`) holds the state, which it gives back in place."""

    parameters: int
    statistics: int
    optimizer: int
    batch: int
    arguments: int  # all of the former, as laid out there
    temporaries: int
    results: int  # beside what is given back in place
    code: int

    @property
    def padding(self) -> int:
        """What layout adds to what the program is given."""
        return self.arguments - self.parameters - self.statistics - self.optimizer - self.batch

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.results + self.code


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step: images a step on each device, its memory, its text, and how long compiling took."""

    per_device: int
    memory: Memory
    text: str
    seconds: float


def abstract_batch(
    assembly: Assembly, size: tuple[int, int], per_device: int, mesh: Mesh | None = None
) -> dict[str, Any]:
    """Shapes of a batch as the loop puts it on the devices of `mesh`; without one, a single device's share."""
    mode = assembly.config.parallel.mode
    lead = (per_device,) if mesh is None else (mesh.size * per_device,) if mode == "mesh" else (mesh.size, per_device)
    placed = None if mesh is None else NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def shape(*rest: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*lead, *rest), dtype, sharding=placed)

    model: Any = assembly.model
    label = only_head({head: shape(*size, dtype=np.uint8) for head in by_head(model.num_classes)})
    image = shape(*size, model.in_channels, dtype=np.float32)
    return {"image": image, "label": label, "index": shape(dtype=np.int32)}


def compile_step(
    assembly: Assembly,
    mesh: Mesh,
    size: tuple[int, int],
    per_device: int,
    class_weights: np.ndarray | None = None,
    remember: Path | None = None,
    at_once: bool = False,
) -> Program:
    """Compiles the step for `per_device` images of `size` on each device. Raises TooLarge where it cannot fit.

    What was compiled before, by the same compiler, is read from the folder `remember`; with `at_once` nothing else is,
    and what is not there raises NotRemembered.
    """
    state = assembly.abstract_state(mesh)
    batch = abstract_batch(assembly, size, per_device, mesh)
    held = {
        "parameters": _bytes(state.params),
        "statistics": _bytes(state.batch_stats),
        "optimizer": _bytes(state.opt_state),
        "batch": _bytes(batch),
    }
    lowered = assembly.compiled_train_step(mesh, class_weights).lower(state, batch)
    return _compile(lowered, mesh, held, per_device, remember, at_once)


def compile_prediction(assembly: Assembly, mesh: Mesh, size: tuple[int, int], remember: Path | None = None) -> Program:
    """Compiles the labels of one image on the first device, as `Predictor` computes them. Raises TooLarge."""
    device = SingleDeviceSharding(mesh.devices.flat[0])
    arguments = (assembly.variables, abstract_batch(assembly, size, 1)["image"])
    variables, image = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), arguments)
    held = {
        "parameters": _bytes(variables["params"]),
        "statistics": _bytes(variables.get("batch_stats", {})),
        "optimizer": 0,
        "batch": _bytes(image),
    }
    return _compile(evaluation.predicted_labels(assembly.model).lower(variables, image), mesh, held, 1, remember)


def _compile(
    lowered: Any, mesh: Mesh, held: dict[str, int], per_device: int, remember: Path | None, at_once: bool = False
) -> Program:
    path = None
    if remember is not None:
        flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
        # As many chips in another grid get another program; TPUs tell where in theirs they lie.
        devices = [(each.device_kind, getattr(each, "coords", None)) for each in mesh.devices.flat]
        made_of = (compiler(), devices, *flags, lowered.as_text())
        path = remember / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]}.json.gz"
    known = _recall(path)
    if known is None:
        if at_once:
            raise NotRemembered
        known = _compiled(lowered)
        if path is not None:
            _keep(path, known)
    if "shortage" in known:
        raise TooLarge(known["shortage"])
    return Program(per_device, Memory(**held, **known["memory"]), known["text"], known["seconds"])


def _compiled(lowered: Any) -> dict[str, Any]:
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"shortage": _shortage(str(error))}
    stats = compiled.memory_analysis()
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return {"memory": memory, "text": compiled.as_text(), "seconds": time.monotonic() - start}


def compiler() -> str:
    """What compiles here: the versions of JAX and, where it is installed, of libtpu."""
    try:
        return f"jax {jax.__version__} libtpu {metadata.version('libtpu')}"
    except metadata.PackageNotFoundError:
        return f"jax {jax.__version__}"


def _recall(path: Path | None) -> dict[str, Any] | None:
    try:
        return None if path is None else json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error):
        return None  # not there, or cut short


def _keep(path: Path, known: dict[str, Any]) -> None:
    beside = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):  # it was compiled all the same
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(gzip.compress(json.dumps(known).encode()))
        beside.replace(path)


def _bytes(tree: Any) -> int:
    """On each device, of shapes that lie on some."""

    def held(leaf: Any) -> int:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * np.dtype(leaf.dtype).itemsize

    return sum(map(held, jax.tree.leaves(tree)))


def _shortage(message: str) -> str:
    """What such an error says about sizes, in a few words."""
    sizes = re.findall(r"([\d.]+)([KMGT]?)(?=i?B?\b)", message)
    large = [float(number) * _UNITS[unit] for number, unit in sizes if unit in ("G", "T")]
    return f"{max(large) / 2**30:.1f} GiB needed" if large else "more memory needed than there is"
