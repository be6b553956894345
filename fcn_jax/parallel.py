"""One step on many devices; `hosts.py` has what several processes have to agree on.

One step function (`steps.py`) runs in either of two ways. `pmap` maps it over the devices, each with its share of
the batch, and completes the sums by collectives; `mesh` compiles it for the whole batch, sharded over a mesh, and
leaves the rest to XLA. State is replicated and never stacked: a checkpoint looks the same from any number of devices.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fcn_jax.errors import ConfigError
from fcn_jax.ops.convolution import over_several_devices

MODES = ("pmap", "mesh")
_AXIS = "data"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """The devices (those of all hosts by default) in a row, host after host, under the axis name `data`."""
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    # Auto axes: under the Explicit ones that jax.make_mesh defaults to, Linen's modules fail.
    return Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))


def pmap_step(step: Callable, mesh: Mesh, donate_state: bool = True) -> Callable:
    """`step(state, batch)` mapped over the devices: state and results un-stacked, batch stacked `[devices b …]`.

    With several hosts the results lie on this host's devices alone, replicated; see `hosts.everywhere`.
    """
    return jax.pmap(
        partial(step, axis_name=_AXIS),
        axis_name=_AXIS,
        in_axes=(None, 0),  # pyright: ignore[reportArgumentType]
        out_axes=None,  # pyright: ignore[reportArgumentType]
        devices=list(mesh.devices.flat),
        donate_argnums=(0,) if donate_state else (),
    )


def jit_step(step: Callable, mesh: Mesh, donate_state: bool = True) -> Callable:
    """`step(state, batch)` compiled for the whole batch, sharded over the mesh; state and results are replicated."""
    replicated = NamedSharding(mesh, PartitionSpec())

    def spread(*arguments: Any) -> Any:
        with over_several_devices() if mesh.size > 1 else contextlib.nullcontext():
            return step(*arguments)

    return jax.jit(
        spread,
        in_shardings=(replicated, NamedSharding(mesh, PartitionSpec(_AXIS))),
        out_shardings=replicated,
        donate_argnums=(0,) if donate_state else (),
    )


def wrap_step(step: Callable, mesh: Mesh, mode: str, donate_state: bool = True) -> Callable:
    """`pmap_step` or `jit_step`, by the name in a config's `parallel.mode`."""
    return {"pmap": pmap_step, "mesh": jit_step}[mode](step, mesh, donate_state)


def put_state(state: Any, mesh: Mesh) -> Any:
    """The state (host or device arrays) on every device. The result may share memory with what was given."""
    if jax.process_count() > 1:
        state = jax.device_get(state)
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def placed(abstract: Any, mesh: Mesh) -> Any:
    """The shapes and types of a state, placed as `put_state` places one."""
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), abstract)


def put_batch(batch: dict[str, Any], mesh: Mesh, mode: str) -> dict[str, Any]:
    """This host's batch, a tree of arrays `[b …]`, onto its devices in one explicit transfer, as `mode` takes it."""
    devices = len(mesh.local_devices)
    if mode == "pmap":
        batch = jax.tree.map(lambda x: x.reshape(devices, x.shape[0] // devices, *x.shape[1:]), batch)
    sharding = NamedSharding(mesh, PartitionSpec(_AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> int:
    """Images on each device at a time. Raises ConfigError where the batch cannot be split evenly."""
    parts = mesh.size * accumulate
    if batch_size % parts:
        times = f" times optim.accumulate={accumulate}" if accumulate > 1 else ""
        below = batch_size - batch_size % parts
        nearest = " or ".join(str(size) for size in (below, below + parts) if size)
        raise ConfigError(
            f"data.batch_size={batch_size} cannot be split over {mesh.size} devices{times}; {nearest} can"
        )
    return batch_size // parts
