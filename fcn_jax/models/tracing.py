"""What a net tells about its blobs without computing any."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fcn_jax.ops.grid import Grid


def grids(module: nn.Module, method: str | Callable = "blobs") -> dict[str, Grid]:
    """The grid of every blob by name.

    `method` is the net's that gives each blob with its grid, for an image, whether in training, whether to up-sample,
    and the examples' indices.
    """
    found: dict[str, Grid] = {}

    def trace(key, image):
        blobs, _ = module.init_with_output(key, image, False, True, None, method=method)
        found.update({name: grid for name, (_, grid) in blobs.items()})

    channels = module.in_channels  # pyright: ignore[reportAttributeAccessIssue]
    jax.eval_shape(trace, jax.random.key(0), jnp.zeros((1, 32, 32, channels)))
    return found
