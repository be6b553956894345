"""The least time of a step, by hand."""

import pytest

from fcn_jax.plan.compiled_text import Collective
from fcn_jax.plan.roofline import collective_seconds, roofline
from fcn_jax.plan.slices import parse


def test_a_step_waits_for_the_slowest_and_then_for_the_sum():
    line = roofline(parse("v5e:1x1"), passes=197e12, traffic=819e9 / 2, given=[Collective("all-reduce", 1, 10**9)])
    assert (line.compute, line.memory, line.collectives) == (1.0, 0.5, 0.0)
    assert line.step == 1.0 and line.bound == "arithmetic"
    assert roofline(parse("v5e:1x1"), 197e10, 819e9, []).bound == "memory"


@pytest.mark.parametrize(
    ("traffic", "expected", "bound"),
    [(819e9 / 10, 0.16, "collectives"), (819e9, 1.01, "memory"), (819e9 * 0.155, 0.165, "memory")],
)
def test_collectives_behind_other_work_are_waited_for_where_they_take_longer(traffic, expected, bound):
    """150 ms of them, beside traffic of longer or shorter, and 10 ms alone."""
    given = [Collective("all-gather", 1, 10**9, behind=True), Collective("collective-permute", 1, 10**9)]
    line = roofline(parse("v5e:4x4"), passes=0, traffic=traffic, given=given)
    assert line.step == pytest.approx(expected) and line.collectives == pytest.approx(0.16) and line.bound == bound


@pytest.mark.parametrize(
    ("topology", "links"),
    [
        *(("v5e:4x4", 2), ("v5e:16x16", 4), ("v5e:8x16", 3), ("v5e:1x2", 1)),
        *(("v4:4x4x4", 6), ("v4:2x4x4", 3), ("v5p:4x4x8", 6), ("v5p:2x2x4", 3), ("v5p:2x2x1", 2)),
    ],
)
def test_a_ring_is_used_both_ways_and_a_chain_once(topology, links):
    part = parse(topology)
    share = (part.chips - 1) / part.chips
    assert part.chip is not None
    assert collective_seconds(part, "all-reduce", 1e9) == pytest.approx(
        2e9 * share / (links * part.chip.link_bandwidth)
    )


@pytest.mark.parametrize(
    ("kind", "times"),
    [("all-gather", 15), ("reduce-scatter", 15 / 16), ("all-to-all", 15 / 16), ("collective-permute", 1)],
)
def test_what_is_gathered_passes_every_chip(kind, times):
    """Sixteen chips in chains of four, of two links of 50 GB/s each."""
    assert collective_seconds(parse("v5e:4x4"), kind, 1e9) == pytest.approx(times * 1e9 / 100e9)
