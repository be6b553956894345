"""How many floating-point operations a program's convolutions and matrix products take, counted in its own text.

The compiler's count takes the body of a loop once; this one follows loops, and of the forms that a platform can choose
from (`lax.platform_dependent`) it takes the leanest. Multiplications by padding count, those by the zeros that dilate a
map do not.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations (a product and a sum are two) of `function(*arguments)`, arrays or their shapes."""
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        length = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2 * length * equation.outvars[0].aval.size
    inner = [_of_jaxpr(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "cond":
        return min(inner)
    return params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _of_convolution(equation: Any) -> int:
    kernel = equation.invars[1].aval
    dimensions, params = equation.params["dimension_numbers"], equation.params
    outputs = kernel.shape[dimensions.rhs_spec[0]]
    products = 2 * equation.outvars[0].aval.size * kernel.size // outputs
    # A dilated map, or a dilated kernel of the kernel's gradient, holds zeros between its values.
    return products // math.prod(params["lhs_dilation"])


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The programs among an equation's parameters: of a loop, a branch, a call."""
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(each, "eqns"):
                yield each
            elif hasattr(each, "jaxpr") and hasattr(each.jaxpr, "eqns"):
                yield each.jaxpr
