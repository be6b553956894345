"""The real training step, compiled ahead of time from shapes alone."""

import dataclasses
import re
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from fcn_jax import evaluation
from fcn_jax.assembly import Assembly
from fcn_jax.labels import by_head, only_head

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TooLarge(Exception):
    """The compiler found no way to fit the program into a device's memory."""


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
    assembly: Assembly, mesh: Mesh, size: tuple[int, int], per_device: int, class_weights: np.ndarray | None = None
) -> Program:
    """Compiles the step for `per_device` images of `size` on each device. Raises TooLarge where it cannot fit."""
    state = assembly.abstract_state(mesh)
    batch = abstract_batch(assembly, size, per_device, mesh)
    held = {
        "parameters": _bytes(state.params),
        "statistics": _bytes(state.batch_stats),
        "optimizer": _bytes(state.opt_state),
        "batch": _bytes(batch) // mesh.size,
    }
    return _compile(assembly.compiled_train_step(mesh, class_weights), (state, batch), held, per_device)


def compile_prediction(assembly: Assembly, mesh: Mesh, size: tuple[int, int]) -> Program:
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
    return _compile(evaluation.predicted_labels(assembly.model), (variables, image), held, 1)


def _compile(function: Any, arguments: tuple[Any, ...], held: dict[str, int], per_device: int) -> Program:
    start = time.monotonic()
    lowered = function.lower(*arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLarge(_shortage(str(error))) from None
    stats = compiled.memory_analysis()
    memory = Memory(
        **held,
        arguments=stats.argument_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        results=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    return Program(per_device, memory, compiled.as_text(), time.monotonic() - start)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def _shortage(message: str) -> str:
    """What such an error says about sizes, in a few words."""
    sizes = re.findall(r"([\d.]+)([KMGT]?)(?=i?B?\b)", message)
    large = [float(number) * _UNITS[unit] for number, unit in sizes if unit in ("G", "T")]
    return f"{max(large) / 2**30:.1f} GiB needed" if large else "more memory needed than there is"
