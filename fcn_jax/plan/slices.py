"""TPU slices that are not here: what they are made of, and devices to compile for.

Peaks are those that Google publishes (docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e, read in 2026; links of v4:
Jouppi et al., "TPU v4", ISCA 2023). Memory is what the compiler says that it may use, in the line with which it refuses
a program that is too large (libtpu 0.0.42).
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from fcn_jax.errors import ConfigError, UserError, did_you_mean, one_line

LOCAL = "local"
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of chip, a device each."""

    name: str
    flops: float  # a second, bfloat16
    memory_bandwidth: float  # bytes a second
    memory: float  # bytes that a program may use
    links: int  # to neighbours
    link_bandwidth: float  # bytes a second and direction
    wraps_at: int  # chips of an axis that closes to a ring: see Slice.rings
    host: tuple[int, ...] = (2, 2, 1)  # chips of one host
    cores: str = ""  # what makes two of them one device, where that has to be asked for

    @property
    def axes(self) -> int:
        return self.links // 2


CHIPS = {
    # 275 TFLOP/s, 32 GiB, 1200 GB/s; six links of 50 GB/s.
    "v4": Chip("v4", 275e12, 1200e9, 30.75 * GIB, 6, 50e9, 4, cores="megacore"),
    # 197 TFLOP/s, 16 GB, 819 GB/s; 400 GB/s over four links, both directions counted.
    "v5e": Chip("v5e", 197e12, 819e9, 15.75 * GIB, 4, 50e9, 16),
    # 459 TFLOP/s, 95 GB, 2765 GB/s; 1200 GB/s over six links, both directions counted.
    "v5p": Chip("v5p", 459e12, 2765e9, 95.74 * GIB, 6, 100e9, 4),
    # 918 TFLOP/s, 32 GB, 1638 GB/s; 800 GB/s over four links, both directions counted.
    "v6e": Chip("v6e", 918e12, 1638e9, 31.25 * GIB, 4, 100e9, 16),
}
# libtpu is told that it runs on no TPU machine: else it asks the cloud's metadata server, for minutes. Its lock is for
# processes that would share a chip, and here is none.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# The shapes in which slices are let, by the number of axes.
_SHAPES = {
    2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    3: ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8)),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of one kind in a grid, `v5e:4x4`; without a chip the devices of this machine."""

    chip: Chip | None
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}" if self.chip else LOCAL

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def rings(self) -> tuple[bool, ...]:
        """Whether each axis is a ring, not a chain."""
        chip = self.chip
        if chip is None:
            return (False,) * len(self.shape)
        if chip.axes == 2:
            return tuple(length == chip.wraps_at for length in self.shape)
        # The links that close v4 and v5p lead out of cubes of 4×4×4 chips: slices of whole cubes alone have them.
        return (all(length % chip.wraps_at == 0 for length in self.shape),) * len(self.shape)


def parse(topology: str) -> Slice:
    """The slice of that name. Raises ConfigError, with what there is, for one that cannot be."""
    if topology == LOCAL:
        return Slice(None, (jax.device_count(),))
    kind, _, grid = topology.partition(":")
    if kind not in CHIPS:
        hint = did_you_mean(kind, CHIPS)
        raise ConfigError(f"--topology={topology}: no chip {kind!r}{hint}; there are {', '.join(CHIPS)}, and {LOCAL}")
    chip = CHIPS[kind]
    example = f"{kind}:{'x'.join(map(str, _SHAPES[chip.axes][3]))}"
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", grid):
        raise ConfigError(f"--topology={topology} names no grid of chips: {example}")
    shape = tuple(map(int, grid.split("x")))
    if len(shape) != chip.axes:
        raise ConfigError(f"--topology={topology}: {kind} lies in {chip.axes} dimensions, as {example}")
    if chip.axes == 2 and max(shape) > chip.wraps_at:
        raise ConfigError(f"--topology={topology}: {kind} goes up to {kind}:{chip.wraps_at}x{chip.wraps_at}")
    return Slice(chip, shape)


def family(chip: Chip) -> list[Slice]:
    """The slices of a kind of chip from the smallest to 256 chips."""
    return [Slice(chip, shape) for shape in _SHAPES[chip.axes]]


def devices(part: Slice) -> Sequence[Any]:
    """The devices of a slice, to compile for, or those of this machine.

    Raises UserError where libtpu is missing, ConfigError where it knows no such slice.
    """
    if part.chip is None:
        return jax.devices()
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology={part} needs the TPU compiler: pip install 'fcn_jax[plan]', or name {LOCAL}")
    host = [min(*pair) for pair in zip(part.chip.host, (*part.shape, 1), strict=False)]
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    cores = {"chip_config_name": part.chip.cores} if part.chip.cores else {}
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=str(part), chips_per_host_bounds=tuple(host), **cores
        )
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = one_line(error, 200)
        raise ConfigError(f"--topology={part}: {reason}; as let: {', '.join(map(str, family(part.chip)))}") from None
    return topology.devices
