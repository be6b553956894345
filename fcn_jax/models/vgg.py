"""The VGG nets: eleven to nineteen layers of small kernels.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, table 1.
Every convolution is 3×3 with a padding of one pixel (the third ones of net C are 1×1) and has a ReLU; five times a 2×2
max pooling halves the map, rounding up. Two 3×3 layers see 5×5 pixels and three see 7×7, with fewer parameters than one
large kernel would have.

    block   channels   after pooling: stride, receptive field (net D, pixels)
    1       64         2, 6
    2       128        4, 16
    3       256        8, 44
    4       512        16, 100
    5       512        32, 212
    fc6     4096       32, 404
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from fcn_jax.ops import surroundings
from fcn_jax.ops.grid import Grid
from fcn_jax.ops.normalization import local_response_norm

# Kernel sizes of the convolutions in each of the five blocks, by the paper's column.
VARIANTS = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "A-LRN": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
NETS = {"vgg11": "A", "vgg11_lrn": "A-LRN", "vgg13": "B", "vgg16_1x1": "C", "vgg16": "D", "vgg19": "E"}

CHANNELS = (64, 128, 256, 512, 512)
LRN_ALPHA, LRN_K = 5e-4, 2.0  # Krizhevsky's: his alpha of 1e-4 is not divided by the five channels, as ours is


def layer_names(variant: str = "D") -> list[str]:
    """The convolutions' names, in order."""
    return [
        f"conv{block}_{layer}"
        for block, kernels in enumerate(VARIANTS[variant], start=1)
        for layer in range(1, len(kernels) + 1)
    ]


def trunk(
    conv: Callable[..., Any],
    x: jax.Array,
    grid: Grid,
    variant: str = "D",
    first_padding: int = 1,
    suffix: str = "",
    pool: Callable[[jax.Array, Grid], tuple[jax.Array, Grid]] | None = None,
) -> dict[str, tuple[jax.Array, Grid]]:
    """Runs the trunk inside the calling module; `conv(name, features, kernel_size, padding)` makes a layer of it.

    Gives each layer's output, after its ReLU, with the grid that it lies on, by the release's names conv1_1 … pool5.
    `suffix` is added to all names, of layers and of blobs. `pool(x, grid)` takes the place of the 2×2 max pooling.
    """
    pool = halve if pool is None else pool
    blobs = {}
    for block, (kernels, channels) in enumerate(zip(VARIANTS[variant], CHANNELS, strict=True), start=1):
        for layer, kernel in enumerate(kernels, start=1):
            name = f"conv{block}_{layer}"
            padding = first_padding if name == "conv1_1" else kernel // 2
            module = conv(name + suffix, channels, kernel, padding)
            # With 100 pixels of padding the map is held as what the image reaches, and its surroundings.
            x, grid = jax.tree.map(nn.relu, module(x)), module.grid(grid)
            blobs[name + suffix] = surroundings.whole(x), grid
            if variant == "A-LRN" and name == "conv1_1":
                x = jax.tree.map(partial(local_response_norm, alpha=LRN_ALPHA, k=LRN_K), x)
                blobs[f"norm1{suffix}"] = surroundings.whole(x), grid
        x, grid = pool(x, grid)
        blobs[f"pool{block}{suffix}"] = surroundings.whole(x), grid
    return blobs


def halve(x: Any, grid: Grid) -> tuple[Any, Grid]:
    """A 2×2 max pooling of stride two."""
    return surroundings.max_pool(x), grid.conv(kernel=2, stride=2)
