"""One step on many devices; `hosts.py` has what several processes have to agree on.

One step function (`steps.py`) runs in either of two ways. `pmap` maps it over the devices, each with its share of
the batch, and completes the sums by collectives; `mesh` compiles it for the whole batch, sharded over a mesh, maps net
and gradients over the devices, and leaves the optimizer to XLA. State is replicated and never stacked, or on request,
under `mesh`, sharded: each device then keeps its share of the large parameters and of their buffers, borrows the
others' for the net, and gets its share of the summed gradients (ZeRO: Rajbhandari et al., SC 2020). Left to itself XLA
splits layers instead of images, and sends activations around. Either way a checkpoint looks the same from any number
of devices.
"""

import collections
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fcn_jax.errors import ConfigError

MODES = ("pmap", "mesh")
_AXIS = "data"
_WORTH_SHARDING = 2**14  # values; biases and statistics are not
# Compiler options that put the collectives of a program on CPUs in its order.
IN_ORDER: dict[str, Any] = {"xla_cpu_enable_concurrency_optimized_scheduler": False}


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """The devices (those of all hosts by default) in a row, host after host, under the axis name `data`.

    Raises ConfigError where hosts have unequal numbers of them.
    """
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        counts = collections.Counter(device.process_index for device in devices)
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{count} on host {host}" for host, count in sorted(counts.items()))
            raise ConfigError(f"hosts must have as many devices each; there are {told}")
    # Auto axes: under the Explicit ones that jax.make_mesh defaults to, Linen's modules fail.
    return Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))


def pmap_step(step: Callable, mesh: Mesh, donate_state: bool = True) -> Callable:
    """`step(state, batch)` mapped over the devices: state and results un-stacked, batch stacked `[devices b …]`.

    With several hosts the results lie on this host's devices alone, replicated; see `joined`.
    """
    return jax.pmap(
        partial(step, axis_name=_AXIS),
        axis_name=_AXIS,
        in_axes=(None, 0),  # pyright: ignore[reportArgumentType]
        out_axes=None,  # pyright: ignore[reportArgumentType]
        devices=list(mesh.devices.flat),
        donate_argnums=(0,) if donate_state else (),
    )


def wrap_train_step(step: Callable, mesh: Mesh, mode: str, shard_state: bool = False) -> Callable:
    """`step(state, batch)` of `steps.make_train_step` on the devices of a mesh, as a config's `parallel.mode` says.

    The state is donated, and the new one lies where it lay: whole on every device, or, under `mesh` with `shard_state`,
    as `put_state` sharded it. The report is replicated. Under `pmap` no state is sharded.
    """
    if mode == "pmap":
        return pmap_step(step, mesh)

    def on_mesh(state: Any, batch: Any) -> Any:
        state, report = step(state, batch, across=partial(_on_each_device, mesh, shard_state))
        return jax.lax.with_sharding_constraint(state, _shardings(state, mesh, shard_state)), report

    return _jitted(on_mesh, mesh, shard_state, out_shardings=(None, NamedSharding(mesh, PartitionSpec())), donate=True)


def wrap_eval_step(step: Callable, mesh: Mesh, mode: str, shard_state: bool = False) -> Callable:
    """`step(variables, batch)` of `steps.make_eval_step`, likewise; the variables stay, and are gathered if sharded."""
    if mode == "pmap":
        return pmap_step(step, mesh, donate_state=False)
    whole, split = PartitionSpec(), PartitionSpec(_AXIS)
    mapped = jax.shard_map(
        partial(step, axis_name=_AXIS), mesh=mesh, in_specs=(whole, split), out_specs=whole, check_vma=False
    )
    return _jitted(mapped, mesh, shard_state, out_shardings=NamedSharding(mesh, whole), donate=False)


def _jitted(step: Callable, mesh: Mesh, shard_state: bool, out_shardings: Any, donate: bool) -> Callable:
    """`step(state, batch)` compiled for the whole batch, sharded over the mesh."""
    # None: where the state lies already.
    state = None if shard_state else NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step,
        in_shardings=(state, NamedSharding(mesh, PartitionSpec(_AXIS))),
        out_shardings=out_shardings,
        donate_argnums=(0,) if donate else (),
        compiler_options=in_order(mesh.devices.flat),
    )


def _on_each_device(mesh: Mesh, shard_state: bool, compute: Callable, params: Any, begun: Any, batch: Any) -> Any:
    """`compute(params, begun, batch, axis_name)` on each device, for its images; and the sum of all gradients.

    What each holds a share of is gathered before, and of that gradient each gets its share alone. A gradient that is
    None, of what does not learn, stays so.
    """
    specs = jax.tree.map(lambda sharding: sharding.spec, _shardings(params, mesh, shard_state))

    def gathered(share: jax.Array, spec: PartitionSpec) -> jax.Array:
        return jax.lax.all_gather(share, _AXIS, axis=len(spec) - 1, tiled=True) if spec else share

    def summed(gradient: jax.Array | None, spec: PartitionSpec) -> jax.Array | None:
        if gradient is None:
            return None
        if not spec:
            return jax.lax.psum(gradient, _AXIS)
        return jax.lax.psum_scatter(gradient, _AXIS, scatter_dimension=len(spec) - 1, tiled=True)

    def device_step(shares: Any, begun: Any, batch: Any) -> Any:
        found, gradients = compute(jax.tree.map(gathered, shares, specs), begun, batch, _AXIS)
        return found, jax.tree.map(summed, gradients, specs, is_leaf=lambda leaf: leaf is None)

    # Unchecked: what differs between devices is followed otherwise, and gradients would be summed twice, once by the
    # differentiation itself.
    everywhere, split = PartitionSpec(), PartitionSpec(_AXIS)
    mapped = jax.shard_map(
        device_step,
        mesh=mesh,
        in_specs=(specs, everywhere, split),
        out_specs=(everywhere, specs),
        check_vma=False,
    )
    return mapped(params, begun, batch)


def put_state(state: Any, mesh: Mesh, shard_state: bool = False) -> Any:
    """The state (host or device arrays) onto the devices: whole on each, or in shares.

    The result may share memory with what was given.
    """
    if jax.process_count() > 1:
        state = jax.device_get(state)
    return jax.device_put(state, _shardings(state, mesh, shard_state))


def placed(abstract: Any, mesh: Mesh, shard_state: bool = False) -> Any:
    """The shapes and types of a state, placed as `put_state` places one."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        abstract,
        _shardings(abstract, mesh, shard_state),
    )


def whole(tree: Any, mesh: Mesh) -> Any:
    """Arrays as a step leaves them, each whole on every device of the mesh: what is sharded is gathered.

    Every host has to come by.
    """
    tree = joined(tree, mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    if all(x.sharding.is_fully_replicated for x in jax.tree.leaves(tree)):
        return tree
    gather = jax.jit(lambda tree: tree, out_shardings=replicated, compiler_options=in_order(mesh.devices.flat))
    return gather(tree)


def joined(tree: Any, mesh: Mesh) -> Any:
    """Replicated arrays as pmap leaves them, each host's its own, as what they are: one array on the whole mesh."""
    if jax.process_count() == 1:
        return tree
    replicated = NamedSharding(mesh, PartitionSpec())

    def join(x: jax.Array) -> jax.Array:
        if not x.is_fully_addressable:
            return x
        shards = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, replicated, shards)

    return jax.tree.map(join, tree)


def on_one_device(tree: Any) -> Any:
    """Arrays that are whole on every device as arrays on this host's first one."""
    return jax.tree.map(lambda x: jax.device_put(x.addressable_data(0), jax.local_devices()[0]), tree)


def in_order(devices: Iterable[Any]) -> dict[str, Any] | None:
    """IN_ORDER where a program on these devices needs it.

    A CPU's devices start those that do not depend on each other in any order, and where there are fewer cores than
    devices, each waits for ever in another one.
    """
    platforms = [device.platform for device in devices]
    several = len(platforms) > 1 and platforms[0] == "cpu"
    return IN_ORDER if several else None


def _shardings(tree: Any, mesh: Mesh, shard_state: bool) -> Any:
    """Where the leaves of a state lie, shapes being all that counts: by the longest axis that the devices divide."""

    def sharding(x: Any) -> NamedSharding:
        even = [axis for axis, length in enumerate(x.shape) if length % mesh.size == 0]
        if not shard_state or not even or math.prod(x.shape) < _WORTH_SHARDING:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(even, key=lambda axis: (x.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, _AXIS))

    return jax.tree.map(sharding, tree)


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
