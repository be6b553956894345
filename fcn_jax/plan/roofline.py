"""The least time that a step can take: by arithmetic, by memory, and by what devices have to tell each other.

A collective takes the time of its links, in which it reads and writes memory, too: that traffic is not counted besides.
Nothing reaches its peaks, so that a real step is slower; how much, only the machine tells. The time that a compiler
estimates for its own program is no measure of it and is not looked at.
"""

import dataclasses
from collections.abc import Iterable

from fcn_jax.plan.compiled_text import Collective
from fcn_jax.plan.slices import Slice


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds a step, at the least."""

    compute: float
    memory: float
    collectives: float
    behind: float  # of these, what other work does not wait for

    @property
    def step(self) -> float:
        """Arithmetic, traffic and collectives behind them overlap; all others run while a device does nothing else."""
        return max(self.compute, self.memory, self.behind) + self.collectives - self.behind

    @property
    def bound(self) -> str:
        """What the step waits for."""
        sent = max(self.behind, self.collectives - self.behind)
        return max((self.compute, "arithmetic"), (self.memory, "memory"), (sent, "collectives"))[1]


def roofline(part: Slice, passes: float, traffic: float, given: Iterable[Collective]) -> Roofline:
    """Of a step with these bfloat16 passes, bytes of traffic beside that of collectives, and collectives, a device."""
    chip = part.chip
    assert chip is not None
    sent = [(collective_seconds(part, each.kind, each.size), each.behind) for each in given]
    return Roofline(
        compute=passes / chip.flops,
        memory=traffic / chip.memory_bandwidth,
        collectives=sum(seconds for seconds, _ in sent),
        behind=sum(seconds for seconds, behind in sent if behind),
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
    ways = sum(2 if ring else 1 for length, ring in zip(part.shape, part.rings, strict=True) if length > 1)
    scattered = (part.chips - 1) / part.chips
    sent = {"all-reduce": 2 * scattered, "all-gather": part.chips - 1, "collective-permute": 1}.get(kind, scattered)
    return size * sent / (ways * chip.link_bandwidth)
