"""The largest batch, on programs whose memory is known."""

import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.plan.capacity import largest_batch
from fcn_jax.plan.program import NotRemembered, TooLarge


class Compiler:
    """Compiles programs of `fixed + each · images` bytes, and refuses those above `limit`."""

    def __init__(self, fixed: int, each: int, limit: int, bend: int = 0):
        self.fixed, self.each, self.limit, self.bend = fixed, each, limit, bend
        self.asked: list[int] = []
        self.remembered: tuple[int, ...] = ()

    def __call__(self, images: int, at_once: bool = False):
        if at_once and images not in self.remembered:
            raise NotRemembered
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

    def compiler(images, at_once=False) -> Any:
        total: Any = {1: 217, 4: 790}.get(images, 769 + 80 * (images - 8))
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

    def compiler(images, at_once=False) -> Any:
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


def test_what_is_remembered_needs_no_time():
    compiler = Compiler(fixed=100, each=10, limit=1005)
    compiler.remembered = 45, 90
    capacity = found(compiler, seconds=-1)
    assert compiler.asked == [45, 90] and capacity.largest.per_device == 90 and capacity.promised is None


@given(st.lists(st.integers(0, 300), min_size=40, max_size=40), st.integers(1, 30), st.integers(1, 4), st.booleans())
def test_whatever_layouts_take_the_search_ends_and_says_what_it_tried(takes, start, multiple, search):
    """Memory that goes up and down from one share to the next, each asked for once."""
    asked = {}

    def compiler(images, at_once=False) -> Any:
        assert images not in asked and images % multiple == 0
        total = 50 + takes[images % 40] + images
        asked[images] = total <= 500
        if not asked[images]:
            raise TooLarge
        memory = types.SimpleNamespace(total=total, temporaries=total - 50, batch=0)
        return types.SimpleNamespace(per_device=images, memory=memory, seconds=0.0)

    capacity = largest_batch(compiler, compiler(start * multiple), 500, multiple=multiple, search=search)
    largest = capacity.largest.per_device
    assert asked[largest] and capacity.predicted >= largest
    refused = [share for share, fits in asked.items() if not fits]
    assert capacity.refused == min(refused, default=None) and all(share > largest for share in refused)
    assert capacity.exact or not search


def test_what_is_hardly_more_is_not_promised():
    """It was not compiled either, but time would not change that."""
    compiler = Compiler(fixed=100, each=100, limit=2050, bend=-1)
    capacity = found(compiler)
    assert capacity.largest.per_device < capacity.predicted < 1.05 * capacity.largest.per_device
    assert capacity.promised is None and capacity.refused is None
