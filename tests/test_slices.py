"""Slices by name, and one plain line for those that cannot be."""

import pytest

from fcn_jax.errors import ConfigError, UserError
from fcn_jax.plan import slices


def test_a_slice_is_chips_in_a_grid():
    part = slices.parse("v5e:4x4")
    assert (str(part), part.chips) == ("v5e:4x4", 16)
    assert slices.parse("local").chip is None


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        ("v5x:4x4", "did you mean 'v5"),
        ("v5e", "names no grid of chips: v5e:4x4"),
        ("v5e:4x", "names no grid"),
        ("v5e:0x4", "names no grid"),
        ("v5e:2x2x2", "lies in 2 dimensions"),
        ("v5p:4x4", "lies in 3 dimensions, as v5p:2x4x4"),
        ("v6e:32x32", "goes up to v6e:16x16"),
    ],
)
def test_an_impossible_slice_is_refused_in_one_line(topology, words):
    with pytest.raises(ConfigError, match="--topology") as caught:
        slices.parse(topology)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("topology", "rings"),
    [
        ("v5e:8x16", (False, True)),
        ("v6e:16x16", (True, True)),
        ("v6e:8x8", (False, False)),
        ("v4:4x4x4", (True, True, True)),
        ("v5p:4x8x12", (True, True, True)),
        ("v5p:2x4x4", (False, False, False)),
        ("v4:4x4x1", (False, False, False)),
    ],
)
def test_an_axis_of_sixteen_chips_is_a_ring_and_every_one_of_whole_cubes(topology, rings):
    assert slices.parse(topology).rings == rings


def test_a_missing_compiler_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setattr(slices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fcn_jax\[plan\]'"):
        slices.devices(slices.parse("v5e:4x4"))


def test_every_family_goes_from_the_smallest_to_256_chips():
    for chip in slices.CHIPS.values():
        sizes = [part.chips for part in slices.family(chip)]
        assert sizes == sorted(sizes) and sizes[-1] == 256
        assert [slices.parse(str(part)) for part in slices.family(chip)] == slices.family(chip)


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu")
def test_the_compiler_knows_every_slice_of_the_table():
    for name in ("v5e:1x1", "v5e:4x4", "v4:2x2x1", "v5p:2x2x2", "v6e:2x4"):
        part = slices.parse(name)
        assert len(slices.devices(part)) == part.chips  # a v4's and a v5p's two cores are one device
    with pytest.raises(ConfigError, match="as let: v5e:1x1"):
        slices.devices(slices.parse("v5e:3x5"))
