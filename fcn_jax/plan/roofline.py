"""The least time that a step can take: by arithmetic, by memory, and by what devices have to tell each other.

Nothing reaches its peaks, so that a real step is slower; how much, only the machine tells. The time that a compiler
estimates for its own program is no measure of it and is not looked at.
"""

import dataclasses

from fcn_jax.plan.slices import Chip, Slice


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds a step, at the least."""

    compute: float
    memory: float
    all_reduce: float

    @property
    def step(self) -> float:
        """Arithmetic and traffic overlap; gradients are summed when both are done."""
        return max(self.compute, self.memory) + self.all_reduce

    @property
    def bound(self) -> str:
        """What the step waits for."""
        return max((self.compute, "arithmetic"), (self.memory, "memory"), (self.all_reduce, "all-reduce"))[1]


def roofline(part: Slice, passes: float, traffic: float, reduced: float) -> Roofline:
    """Of a step with these bfloat16 passes, bytes of memory traffic and bytes summed over devices, on each device."""
    chip = part.chip
    assert chip is not None
    return Roofline(
        compute=passes / (chip.flops / chip.devices),
        memory=traffic / (chip.memory_bandwidth / chip.devices),
        all_reduce=all_reduce_seconds(part, reduced),
    )


def all_reduce_seconds(part: Slice, size: float) -> float:
    """Seconds to sum `size` bytes over the chips of a slice.

    A sum over n chips is scattered and gathered: each sends 2 · (n − 1)/n of its size, over all its links. An axis that
    closes to a ring is used both ways; a chain has half of that (Austin et al., "How to scale your model", 2025,
    chapter 3).
    """
    chip = part.chip
    if chip is None or part.chips == 1:
        return 0.0
    ways = sum(_ways(chip, length) for length in part.shape if length > 1)
    return 2 * size * (part.chips - 1) / part.chips / (ways * chip.link_bandwidth)


def _ways(chip: Chip, length: int) -> int:
    return 2 if chip.wraps(length) else 1
