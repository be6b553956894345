"""The least time that a step can take: by arithmetic, by memory, and by what devices have to tell each other.

Nothing reaches its peaks, so that a real step is slower; how much, only the machine tells. The time that a compiler
estimates for its own program is no measure of it and is not looked at.
"""

import dataclasses
from collections.abc import Mapping

from fcn_jax.plan.slices import Chip, Slice


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds a step, at the least."""

    compute: float
    memory: float
    collectives: float

    @property
    def step(self) -> float:
        """Arithmetic and traffic overlap; gradients are summed when both are done."""
        return max(self.compute, self.memory) + self.collectives

    @property
    def bound(self) -> str:
        """What the step waits for."""
        return max((self.compute, "arithmetic"), (self.memory, "memory"), (self.collectives, "collectives"))[1]


def roofline(part: Slice, passes: float, traffic: float, given: Mapping[str, float]) -> Roofline:
    """Of a step with these bfloat16 passes, bytes of traffic and bytes given into collectives, on each device."""
    chip = part.chip
    assert chip is not None
    return Roofline(
        compute=passes / (chip.flops / chip.devices),
        memory=traffic / (chip.memory_bandwidth / chip.devices),
        collectives=sum(collective_seconds(part, kind, size) for kind, size in given.items()),
    )


def collective_seconds(part: Slice, kind: str, size: float) -> float:
    """Seconds of a collective into which each device of a slice gives `size` bytes.

    What is gathered passes every chip: each sends n − 1 times its size; of what is scattered or dealt out (n − 1)/n. A
    sum is scattered and gathered. All links are used; an axis that closes to a ring is used both ways, a chain has half
    of that (Austin et al., "How to scale your model", 2025, chapter 3).
    """
    chip = part.chip
    if chip is None or part.chips == 1:
        return 0.0
    ways = sum(_ways(chip, length) for length in part.shape if length > 1)
    scattered = (part.chips - 1) / part.chips
    gathered = (part.chips - 1) * chip.devices  # all that the devices of a chip give passes every other one
    sent = {"all-reduce": 2 * scattered, "all-gather": gathered, "collective-permute": 1}.get(kind, scattered)
    return size * sent / (ways * chip.link_bandwidth)


def _ways(chip: Chip, length: int) -> int:
    return 2 if chip.wraps(length) else 1
