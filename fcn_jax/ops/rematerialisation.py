"""What the backward pass of a step finds again of the forward pass, and what it computes once more to save memory.

Operations mark what they give by the marks below; nets need say nothing, but for a residual block, which no operation
of its own ends. A function is cut into segments where a block ends. Of a segment the backward pass finds again what
came in, and computes it once more when its turn has come; a policy names what it finds besides:

    none           everything: nothing is computed again
    convolutions   what convolutions give: ReLU, batch norm, dropout and pooling are computed again
    blocks         nothing: convolutions are computed again, a block at a time

One checkpoint around the whole function would not do: everything would be computed again as soon as the backward pass
begins, and held until it is wanted.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

CONVOLUTION, BLOCK, STATISTICS = "convolution", "block", "statistics"
# Statistics are kept in any case: they are small, and to compute them again devices would have to meet again.
POLICIES = {"none": None, "convolutions": (CONVOLUTION, STATISTICS), "blocks": (STATISTICS,)}


def mark(x: Any, name: str) -> Any:
    """The same array or tree of arrays, which a policy may keep; without one it has no effect."""
    return jax.tree.map(lambda x: checkpoint_name(x, name), x)


def rematerialised(function: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """The same function, of whose computation its gradient finds again what the policy keeps. Raises ValueError."""
    if policy not in POLICIES:
        raise ValueError(f"no rematerialisation policy {policy!r}; there are {', '.join(POLICIES)}")
    kept = POLICIES[policy]
    if kept is None:
        return function
    keep = jax.checkpoint_policies.save_only_these_names(*kept)

    def by_segments(*arguments: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        known = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
        known |= dict(zip(program.jaxpr.invars, jax.tree.leaves(arguments), strict=True))
        for segment in _segments(program.jaxpr):
            computed = jax.checkpoint(core.jaxpr_as_fun(core.ClosedJaxpr(segment, ())), policy=keep)
            given = [known[each] for each in segment.invars]
            known |= dict(zip(segment.outvars, computed(*given), strict=True))
        results = [known[each] if isinstance(each, core.Var) else each.val for each in program.jaxpr.outvars]
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return by_segments


def _segments(jaxpr: core.Jaxpr) -> Iterator[core.Jaxpr]:
    """The equations up to the end of each block, as functions of what they need to what is wanted of them later."""
    ends = [place for place, equation in enumerate(jaxpr.eqns, start=1) if _ends_a_block(equation)]
    last_use = dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))
    for place, equation in reversed(list(enumerate(jaxpr.eqns))):
        for variable in _variables(equation.invars):
            last_use.setdefault(variable, place)
    for start, end in zip([0, *ends], [*ends, len(jaxpr.eqns)], strict=True):
        equations = jaxpr.eqns[start:end]
        made = dict.fromkeys(variable for equation in equations for variable in equation.outvars)
        used = dict.fromkeys(variable for equation in equations for variable in _variables(equation.invars))
        given = [variable for variable in used if variable not in made]
        wanted = [variable for variable in made if last_use.get(variable, 0) >= end]
        yield core.Jaxpr((), given, wanted, equations, jaxpr.effects, jaxpr.debug_info.with_unknown_names())


def _ends_a_block(equation: core.JaxprEqn) -> bool:
    return equation.primitive.name == "name" and equation.params["name"] == BLOCK


def _variables(atoms: Sequence[Any]) -> Iterator[core.Var]:
    return (each for each in atoms if isinstance(each, core.Var))
