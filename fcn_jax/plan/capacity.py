"""How many images fit a device: memory grows evenly with them, so that two compilations tell, and a third checks."""

import dataclasses
import time
from collections.abc import Callable

from fcn_jax.plan.program import Program, TooLarge


@dataclasses.dataclass(frozen=True)
class Capacity:
    """The largest share of a batch that was compiled, and how sure it is that there is none larger.

    `predicted` follows from two compilations, `fixed` and `each` bytes; `largest` compiled. `refused` is the smallest
    share that the compiler found too large.
    """

    fixed: float
    each: float
    predicted: int
    largest: Program
    refused: int | None

    @property
    def exact(self) -> bool:
        return self.refused is not None and self.refused <= self.largest.per_device + self.step

    step: int = 1


def largest_batch(
    compile_for: Callable[[int], Program],
    first: Program,
    available: float,
    *,
    multiple: int = 1,
    seconds: float = 240,
    search: bool = False,
) -> Capacity:
    """The largest share of a batch on a device, in multiples of `multiple`, that fits into `available` bytes.

    From `first` and a second share of a few times its size a line is laid, and the share where it meets the available
    memory is compiled; where it does not fit, smaller ones are, while `seconds` last. With `search` the bounds are
    narrowed until no share lies between them.
    """
    start = time.monotonic()
    refused: int | None = None

    def tried(share: int) -> Program | None:
        nonlocal refused
        try:
            program = compile_for(share)
        except TooLarge:
            program = None
        if program is None or program.memory.total > available:
            refused = min(refused or share, share)
            return None
        return program

    known = [first]
    second = _second(first, available, multiple)
    while second > first.per_device:
        program = tried(second)
        if program is not None:
            known.append(program)
            break
        second = _rounded((first.per_device + second) // 2, multiple)
    fixed, each = _line(known)
    predicted = max(_rounded(int((available - fixed) // each), multiple), known[-1].per_device)
    share = predicted if refused is None else min(predicted, refused - multiple)
    while share > known[-1].per_device and (search or time.monotonic() - start < seconds):
        program = tried(share)
        if program is not None:
            known.append(program)
            share = _rounded((share + refused) // 2, multiple) if search and refused else share
            if search and refused is None:
                share += max(_rounded(share // 8, multiple), multiple)
        else:
            share = (
                _rounded((known[-1].per_device + share) // 2, multiple)
                if search
                else _rounded(int(share * 0.9), multiple)
            )
    return Capacity(fixed, each, predicted, known[-1], refused, multiple)


def _line(known: list[Program]) -> tuple[float, float]:
    """Bytes without images and bytes an image, of the smallest and largest of these."""
    first, last = known[0], known[-1]
    if last.per_device == first.per_device:
        each = (first.memory.temporaries + first.memory.batch) / first.per_device
    else:
        each = (last.memory.total - first.memory.total) / (last.per_device - first.per_device)
    each = max(each, 1.0)
    return first.memory.total - each * first.per_device, each


def _second(first: Program, available: float, multiple: int) -> int:
    """Half of what seems to fit: memory of small batches is laid out otherwise than that of large ones."""
    fixed, each = _line([first])
    return max(_rounded(int((available - fixed) // each / 2), multiple), 0)


def _rounded(share: int, multiple: int) -> int:
    return share - share % multiple
