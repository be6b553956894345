"""AlexNet, and CaffeNet, which only pools before it normalises.

Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012 (figure
2); the nets as released (`bvlc_alexnet`, `bvlc_reference_caffenet`). Once two graphics cards held half of the channels
each: conv2, conv4 and conv5 still have two groups that do not see each other.

    layer   kernel, stride   channels   then                                        stride, receptive field
    conv1   11×11, 4         96         3×3 max pooling of stride 2, normalisation  8, 19
    conv2   5×5              256        3×3 max pooling of stride 2, normalisation  16, 67
    conv3   3×3              384                                                    16, 99
    conv4   3×3              384                                                    16, 131
    conv5   3×3              256        3×3 max pooling of stride 2                 32, 195
    fc6     6×6              4096                                                   32, 355
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from fcn_jax.ops.grid import Grid
from fcn_jax.ops.normalization import local_response_norm
from fcn_jax.ops.pooling import max_pool

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
# Channels, kernel, padding, stride, groups.
SHAPES = ((96, 11, 0, 4, 1), (256, 5, 2, 1, 2), (384, 3, 1, 1, 1), (384, 3, 1, 1, 2), (256, 3, 1, 1, 2))
ORDERS = {"pool_first": ("pool", "norm"), "norm_first": ("norm", "pool")}


def trunk(
    conv: Callable[..., Any],
    x: jax.Array,
    grid: Grid,
    order: str = "pool_first",
    first_padding: int = 0,
    lrn_alpha: float = 1e-4,
    suffix: str = "",
) -> dict[str, tuple[jax.Array, Grid]]:
    """Runs the trunk inside the calling module; `conv(name, features, kernel_size, padding, stride, groups)` makes a
    layer of it, whose channels must be even.

    Gives each layer's output, after its ReLU, with the grid that it lies on, by the release's names conv1 … pool5.
    `order` is CaffeNet's (`pool_first`) or AlexNet's, `lrn_alpha` is Caffe's; `suffix` is added to all names.
    """
    blobs = {}
    after = {1: ORDERS[order], 2: ORDERS[order], 5: ("pool",)}
    for number, (features, kernel, padding, stride, groups) in enumerate(SHAPES, start=1):
        module = conv(
            f"conv{number}{suffix}", features, kernel, first_padding if number == 1 else padding, stride, groups
        )
        x, grid = blobs[f"conv{number}{suffix}"] = nn.relu(module(x)), module.grid(grid)
        for step in after.get(number, ()):
            if step == "pool":
                x, grid = max_pool(x, kernel=3, stride=2), grid.conv(kernel=3, stride=2)
            else:
                x = local_response_norm(x, alpha=lrn_alpha)
            blobs[f"{step}{number}{suffix}"] = x, grid
    return blobs
