"""What the backward pass of a step finds again of the forward pass, and what it computes once more to save memory.

Operations mark what they give by the marks below; nets need say nothing, but for a residual block, which no operation
of its own ends. A policy names the marks that are kept. All else between them is computed again when it is wanted:

    none           nothing is computed again
    convolutions   what convolutions give: ReLU, batch norm, dropout and pooling are computed again
    blocks         what poolings and residual blocks give: convolutions are computed again, a block at a time
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

CONVOLUTION, BLOCK, STATISTICS = "convolution", "block", "statistics"
# Statistics are kept in any case: they are small, and to compute them again devices would have to meet again.
POLICIES = {"none": None, "convolutions": (CONVOLUTION, STATISTICS), "blocks": (BLOCK, STATISTICS)}


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
    return jax.checkpoint(function, policy=jax.checkpoint_policies.save_only_these_names(*kept))
