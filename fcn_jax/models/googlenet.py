"""GoogLeNet: nine modules, each of which looks at its map with kernels of several sizes at once.

Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, table 1 and figure 3; the net as released
(`bvlc_googlenet`), without the two auxiliary classifiers, which only served its training.

A module joins four branches: 1×1, 3×3 and 5×5, the latter two on fewer channels that a 1×1 convolution has left, and a
3×3 max pooling of stride 1 followed by 1×1. The release's layer names hold slashes, which separate the levels of a Flax
tree: the layer of the blob "inception_3a/1x1" is called inception_3a_1x1. Every pooling rounds up.

    after            stride, receptive field        after            stride, receptive field
    pool1/3x3_s2     4, 11                          pool3/3x3_s2     16, 107
    pool2/3x3_s2     8, 27                          pool4/3x3_s2     32, 459
    inception_3b     8, 91                          inception_5b     32, 715 (and 907 after pool5/7x7_s1)
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fcn_jax.ops.grid import Grid
from fcn_jax.ops.normalization import local_response_norm
from fcn_jax.ops.pooling import max_pool

# Channels of 1×1; 3×3, reduced and then; 5×5, reduced and then; the pooling's projection.
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
BRANCHES = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")


def layer_names() -> list[str]:
    """The convolutions' names, in order."""
    stem = ["conv1_7x7_s2", "conv2_3x3_reduce", "conv2_3x3"]
    return stem + [f"inception_{module}_{branch}" for module in MODULES for branch in BRANCHES]


def trunk(
    conv: Callable[..., Any], x: jax.Array, grid: Grid, first_padding: int = 3, suffix: str = ""
) -> dict[str, tuple[jax.Array, Grid]]:
    """Runs the trunk inside the calling module; `conv(name, features, kernel_size, padding, stride)` makes a layer of
    it.

    Gives each layer's output, after its ReLU, with the grid that it lies on, by the release's names conv1/7x7_s2 …
    inception_5b/output. `suffix` is added to all names.
    """
    blobs = {}

    def convolve(name, x, grid, features, kernel, padding=0, stride=1):
        module = conv(name.replace("/", "_") + suffix, features, kernel, padding, stride)
        x, grid = blobs[name + suffix] = nn.relu(module(x)), module.grid(grid)
        return x, grid

    def pool(name, x, grid, stride=2, padding=0):
        pooled = max_pool(x, 3, stride, padding), grid.conv(3, stride, padding)
        blobs[name + suffix] = pooled
        return pooled

    def normalise(name, x, grid):
        x, grid = blobs[name + suffix] = local_response_norm(x), grid
        return x, grid

    def inception(name, x, grid, alone, reduced_3, wide_3, reduced_5, wide_5, projected):
        branches = [
            convolve(f"{name}/1x1", x, grid, alone, 1),
            convolve(f"{name}/3x3", *convolve(f"{name}/3x3_reduce", x, grid, reduced_3, 1), wide_3, 3, 1),
            convolve(f"{name}/5x5", *convolve(f"{name}/5x5_reduce", x, grid, reduced_5, 1), wide_5, 5, 2),
            convolve(f"{name}/pool_proj", *pool(f"{name}/pool", x, grid, 1, 1), projected, 1),
        ]
        widest = branches[2][1]  # what 5×5 sees contains what the other branches see
        blobs[f"{name}/output{suffix}"] = joined = jnp.concatenate([x for x, _ in branches], axis=-1), widest
        return joined

    x, grid = convolve("conv1/7x7_s2", x, grid, 64, 7, first_padding, 2)
    x, grid = normalise("pool1/norm1", *pool("pool1/3x3_s2", x, grid))
    x, grid = convolve("conv2/3x3_reduce", x, grid, 64, 1)
    x, grid = normalise("conv2/norm2", *convolve("conv2/3x3", x, grid, 192, 3, 1))
    x, grid = pool("pool2/3x3_s2", x, grid)
    for module, channels in MODULES.items():
        x, grid = inception(f"inception_{module}", x, grid, *channels)
        if module in ("3b", "4e"):
            x, grid = pool(f"pool{module[0]}/3x3_s2", x, grid)
    return blobs
