"""The VGG nets' convolutional layers.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, table 1.
Every convolution is 3×3 with a padding of one pixel and a ReLU; five times a 2×2 max pooling halves the map, rounding
up. Two 3×3 layers see 5×5 pixels and three see 7×7, with fewer parameters than one large kernel would have.

    block   channels   after pooling: stride, receptive field (net D, pixels)
    1       64         2, 6
    2       128        4, 16
    3       256        8, 44
    4       512        16, 100
    5       512        32, 212
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from fcn_jax.ops.grid import Grid
from fcn_jax.ops.pooling import max_pool

# Convolutions in each of the five blocks, by the paper's column.
VARIANTS = {"D": (2, 2, 3, 3, 3)}

CHANNELS = (64, 128, 256, 512, 512)


def layer_names(variant: str = "D") -> list[str]:
    """The convolutions' names, in order."""
    return [f"conv{block}_{layer}" for block, depth in enumerate(VARIANTS[variant], 1) for layer in range(1, depth + 1)]


def trunk(
    conv: Callable[..., nn.Module], x: jax.Array, grid: Grid, variant: str = "D", first_padding: int = 1
) -> dict[str, tuple[jax.Array, Grid]]:
    """Runs the trunk inside the calling module; `conv(name, features, kernel_size, padding)` makes a layer of it.

    Gives each layer's output, after its ReLU, with the grid that it lies on, by the release's names conv1_1 … pool5.
    """
    taps = {}
    for block, (depth, channels) in enumerate(zip(VARIANTS[variant], CHANNELS, strict=True), start=1):
        for layer in range(1, depth + 1):
            name = f"conv{block}_{layer}"
            module = conv(name, channels, 3, first_padding if name == "conv1_1" else 1)
            x, grid = nn.relu(module(x)), module.grid(grid)
            taps[name] = x, grid
        x, grid = max_pool(x), grid.conv(kernel=2, stride=2)
        taps[f"pool{block}"] = x, grid
    return taps
