"""Multiply-adds of a program as it is written: exact for convolutions and matrix products, by shapes alone.

The compiled program cannot be asked: there a matrix product may be a convolution, one in float32 several in bfloat16,
and what the compiler counts leaves out what falls on padding. Published counts are of this kind: every tap of every
output cell, padding included.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jax.interpreters import partial_eval

# Passes through a bfloat16 multiplier for one product of float32: of three parts each, the largest one, three or six.
_PASSES = {lax.Precision.DEFAULT: 1, lax.Precision.HIGH: 3, lax.Precision.HIGHEST: 6}
# fmt: off
# What computes nothing: it moves, cuts or reads.
_MOVES = frozenset((
    "reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "slice", "dynamic_slice",
    "dynamic_update_slice", "concatenate", "pad", "gather", "copy", "copy_p", "device_put", "stop_gradient",
    "convert_element_type", "bitcast_convert_type", "iota", "rev", "split",
))
# fmt: on


@dataclasses.dataclass(frozen=True)
class Operations:
    """Floating point operations (a multiply-add is two) by kind; `passes` are those of convolutions and products.

    A pass is an operation of a bfloat16 multiplier: a product of float32 in the highest precision takes six.
    """

    convolutions: float = 0
    products: float = 0
    rest: float = 0
    passes: float = 0

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def times(self, count: float) -> "Operations":
        return Operations(*(count * each for each in dataclasses.astuple(self)))

    @property
    def total(self) -> float:
        return self.convolutions + self.products + self.rest


def count(function: Callable, *arguments: Any, platform: str = "tpu") -> Operations:
    """What `function` computes for arguments of these shapes, compiled for `platform`."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    # What nobody uses is not compiled.
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _of_jaxpr(used, platform)


def _of_jaxpr(jaxpr: Any, platform: str) -> Operations:
    total = Operations()
    for equation in jaxpr.eqns:
        total += _of_equation(equation, platform)
    return total


def _of_equation(equation: Any, platform: str) -> Operations:
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        flops = _convolution(equation)
        return Operations(convolutions=flops, passes=flops * _passes(equation))
    if name == "dot_general":
        flops = _product(equation)
        return Operations(products=flops, passes=flops * _passes(equation))
    if name == "cond":
        branches = [branch.jaxpr for branch in params["branches"]]
        if (platforms := params.get("branches_platforms")) is not None:
            # The default branch names no platforms, and is the last.
            chosen = next((n for n, names in enumerate(platforms) if names and platform in names), len(branches) - 1)
            return _of_jaxpr(branches[chosen], platform)
        return max((_of_jaxpr(branch, platform) for branch in branches), key=lambda each: each.total)
    inner = list(_inner(params))
    if name == "scan":
        return sum((_of_jaxpr(each, platform) for each in inner), Operations()).times(params["length"])
    if inner and not name.startswith("reduce"):
        return sum((_of_jaxpr(each, platform) for each in inner), Operations())
    if name in _MOVES:
        return Operations()
    # A reduction costs what it reads, the rest what it gives.
    touched = equation.invars if name.startswith("reduce") or name == "argmax" else equation.outvars
    return Operations(rest=sum(math.prod(value.aval.shape) for value in touched if hasattr(value.aval, "shape")))


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, core.Jaxpr):
                yield each


def _convolution(equation: Any) -> float:
    kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    spec = equation.params["dimension_numbers"].rhs_spec
    taps = math.prod(kernel[axis] for axis in spec[1:])  # input channels of a group, and space
    # A map that is spread with zeros between its cells meets them in all but this share of the products.
    return 2 * math.prod(out) * taps / math.prod(equation.params["lhs_dilation"])


def _product(equation: Any) -> float:
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    contracted, _ = equation.params["dimension_numbers"][0]
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _passes(equation: Any) -> int:
    if any(value.aval.dtype.itemsize < 4 for value in equation.invars[:2]):
        return 1
    asked = equation.params["precision"]
    return max((_PASSES.get(each, 1) for each in asked), default=1) if isinstance(asked, tuple) else 1
