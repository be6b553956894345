"""How many images fit a device: memory grows evenly with them, so that two compilations tell, and a third checks.

As a rule: TPUs lay some batches out with less padding than others (SegNet of 360×480: 7.9 GiB for four images, 7.7 for
eight; DeepLab-LargeFOV of 321×321: 8.9 for thirty and for thirty-one), so that the two lie well apart, and where the
check then promises more, it is asked again.
"""

import dataclasses
import time
from collections.abc import Callable

from fcn_jax.plan.program import NotRemembered, Program, TooLarge

SECONDS = 300.0  # by default: what a plan may take
_LONGER = 1.3  # FCN-8s compiles for one image in 139 s, for five in 182, for fourteen in 166
_FURTHER = 1.05  # times what is known to fit has to be promised for another compilation
_APART = 1.5  # times the first share is far enough from it for a line
_LEAST = 0.5  # of what images seem to take: what they take at the least, or the two do not lie on a line


@dataclasses.dataclass(frozen=True)
class Capacity:
    """The largest share of a batch that was compiled, and how sure it is that there is none larger.

    `predicted` follows from two compilations, as `fixed` bytes and `each` an image; `largest` compiled. `refused` is
    the smallest share that the compiler found too large, and `multiple` what shares are multiples of.
    """

    fixed: float
    each: float
    predicted: int
    largest: Program
    refused: int | None
    multiple: int
    hurried: bool = False  # a compilation was not begun for want of time

    @property
    def promised(self) -> int | None:
        """What was predicted, where it was not compiled for want of time."""
        more = self.hurried and self.refused is None and self.predicted > self.largest.per_device
        return self.predicted if more else None

    @property
    def exact(self) -> bool:
        """Whether one more, or one more part of it, is known not to fit."""
        return self.refused == self.largest.per_device + self.multiple


def largest_batch(
    compile_for: Callable[[int, bool], Program],
    first: Program,
    available: float,
    *,
    multiple: int = 1,
    seconds: float = SECONDS,
    search: bool = False,
) -> Capacity:
    """The largest share of a batch on a device, in multiples of `multiple`, that fits into `available` bytes.

    From `first` and a share of half of what then seems to fit (or all, where that is not far from the first) a line is
    laid, and the share where it meets the available memory is compiled; where it does not fit, smaller ones are, and
    where much is left, larger ones. No compilation is begun that would not end in `seconds` if it took somewhat longer
    than the longest before: `compile_for(share, at_once)` is then asked for what is remembered alone. With `search`
    there is no such limit, and the bounds are narrowed until no share lies between them.
    """
    start, longest = time.monotonic(), first.seconds
    known, refused, hurried = [first], None, False

    def tried(share: int) -> bool:
        """Whether a share is known to fit now, and was not before; for want of time not, and it is not refused."""
        nonlocal refused, longest, hurried
        if hurried or share <= known[-1].per_device or (refused is not None and share >= refused):
            return False
        begun = time.monotonic()
        try:
            program = compile_for(share, not search and begun - start + _LONGER * longest > seconds)
            fits = program.memory.total <= available
        except NotRemembered:
            hurried = True
            return False
        except TooLarge:
            fits = False
        longest = max(longest, time.monotonic() - begun)
        if fits:
            known.append(program)  # pyright: ignore[reportPossiblyUnboundVariable]
        else:
            refused = share
        return fits

    # Half of what seems to fit: small batches are laid out otherwise than large ones.
    fixed, each = _line(known)
    seems = (available - fixed) / each
    far = seems / 2 >= _APART * first.per_device
    for share in (seems / 2, seems / 4) if far else (seems, (first.per_device + seems) / 2):
        if tried(max(_rounded(share, multiple), first.per_device + multiple)):
            break
    while True:
        fixed, each = _line(known)
        largest = known[-1].per_device
        predicted = max(_rounded((available - fixed) / each, multiple), largest)
        if predicted <= _FURTHER * largest:
            break
        # What is promised, or less of it where that does not fit.
        promised = predicted if refused is None else min(predicted, refused - multiple)
        shares = (promised, 0.95 * promised, 0.9 * promised, (largest + promised) / 2)
        if not any(tried(_rounded(share, multiple)) for share in shares):
            break
    while search and refused != known[-1].per_device + multiple:
        low = known[-1].per_device
        share = low + max(_rounded(low / 16, multiple), multiple) if refused is None else (low + refused) / 2
        tried(max(_rounded(share, multiple), low + multiple))
    fixed, each = _line(known)
    predicted = max(predicted, known[-1].per_device)
    return Capacity(fixed, each, predicted, known[-1], refused, multiple, hurried)


def _line(known: list[Program]) -> tuple[float, float]:
    """Bytes without images and bytes an image, by the first and the last of these.

    Of one, and of two that no line goes through, all that may be images'.
    """
    first, last = known[0], known[-1]
    each = at_most = (last.memory.temporaries + last.memory.batch) / last.per_device
    if last.per_device > first.per_device:
        between = (last.memory.total - first.memory.total) / (last.per_device - first.per_device)
        if between >= _LEAST * at_most:
            each = between
    each = max(each, 1.0)
    return last.memory.total - each * last.per_device, each


def _rounded(share: float, multiple: int) -> int:
    return int(share) - int(share) % multiple
