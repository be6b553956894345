"""The largest batch, on programs whose memory is known."""

import types
from typing import Any

import pytest

from fcn_jax.plan.capacity import largest_batch
from fcn_jax.plan.program import TooLarge


class Compiler:
    """Compiles programs of `fixed + each · images` bytes, and refuses those above `limit`."""

    def __init__(self, fixed: int, each: int, limit: int, bend: int = 0):
        self.fixed, self.each, self.limit, self.bend = fixed, each, limit, bend
        self.asked: list[int] = []

    def __call__(self, images: int):
        self.asked.append(images)
        total = self.fixed + self.each * images + self.bend * images**2
        if total > self.limit:
            raise TooLarge
        memory = types.SimpleNamespace(total=total, temporaries=self.each * images, batch=0)
        return types.SimpleNamespace(per_device=images, memory=memory, seconds=0.0)


def found(compiler, **arguments):
    first = compiler(arguments.pop("start", 1))
    compiler.asked.clear()
    return largest_batch(compiler, first, compiler.limit, **arguments)


def test_two_compilations_and_a_check_find_the_largest():
    compiler = Compiler(fixed=100, each=10, limit=1005)
    capacity = found(compiler)
    assert (capacity.largest.per_device, capacity.predicted) == (90, 90)
    assert (capacity.fixed, capacity.each) == pytest.approx((100, 10))
    assert len(compiler.asked) == 2 and not capacity.exact


def test_shares_are_made_of_whole_parts():
    assert found(Compiler(100, 10, 1005), start=4, multiple=4).largest.per_device == 88


def test_a_check_that_leaves_much_is_followed_by_another():
    """As SegNet on a v5e: four images are laid out like eight."""

    def compiler(images) -> Any:
        total = {1: 217, 4: 790}.get(images, 769 + 80 * (images - 8))
        return types.SimpleNamespace(
            per_device=images,
            memory=types.SimpleNamespace(total=total, temporaries=total - 36, batch=0),
            seconds=0.0,
        )

    assert largest_batch(compiler, compiler(1), 1575).largest.per_device == 18


@pytest.mark.parametrize("start", [1, 4, 17, 26, 30, 50])
def test_shares_that_are_laid_out_alike_promise_no_more_than_images_take(start):
    """As DeepLab-LargeFOV on a v5e: thirty images are laid out like thirty-one."""
    asked = []

    def compiler(images) -> Any:
        asked.append(images)
        temporaries = 270 * -(-images // 8) * 8
        if temporaries > 15_510:
            raise TooLarge
        memory = types.SimpleNamespace(total=240 + temporaries, temporaries=temporaries, batch=0)
        return types.SimpleNamespace(per_device=images, memory=memory, seconds=0.0)

    first = compiler(start)
    assert 50 < largest_batch(compiler, first, 15_750).largest.per_device <= 56
    assert max(asked) < 70 and len(asked) <= 8


def test_a_prediction_that_does_not_fit_is_lowered():
    compiler = Compiler(fixed=1000, each=100, limit=10_000, bend=1)
    capacity = found(compiler)
    assert max(compiler.asked) >= (capacity.refused or 0) > capacity.largest.per_device > 50
    assert (capacity.largest.per_device, capacity.refused) == (57, 58)
    assert found(Compiler(100, 10, 1000, bend=1)).largest.per_device > 10  # where even half does not fit


@pytest.mark.parametrize("bend", [0, 1])
def test_a_search_ends_where_one_more_does_not_fit(bend):
    compiler = Compiler(fixed=100, each=10, limit=1000, bend=bend)
    capacity = found(compiler, search=True)
    assert capacity.exact and capacity.refused == capacity.largest.per_device + 1
    best = max(images for images in range(1, 200) if 100 + 10 * images + bend * images**2 <= 1000)
    assert capacity.largest.per_device == best


def test_where_the_first_just_fits_nothing_larger_is_claimed():
    capacity = found(Compiler(fixed=100, each=10, limit=115), search=True)
    assert capacity.largest.per_device == 1


def test_no_time_no_check():
    compiler = Compiler(fixed=100, each=10, limit=1005)
    capacity = found(compiler, seconds=-1)
    assert compiler.asked == [] and capacity.largest.per_device == 1
    assert capacity.promised == capacity.predicted > 1


def test_what_is_hardly_more_is_not_promised():
    """It was not compiled either, but time would not change that."""
    compiler = Compiler(fixed=100, each=100, limit=2050, bend=-1)
    capacity = found(compiler)
    assert capacity.largest.per_device < capacity.predicted < 1.05 * capacity.largest.per_device
    assert capacity.promised is None and capacity.refused is None
