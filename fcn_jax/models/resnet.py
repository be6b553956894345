"""ResNet-50 and ResNet-101, as the trunk of dense nets.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; with the stride of a stage
on its 3×3 convolution, as torchvision has it ("v1.5"), and the strides of the last two stages traded for dilation.

    stage   blocks (50, 101)   channels   stride   dilation of the 3×3, first block and others
    conv1   7×7                64         2        pooled by 3×3 to stride 4, rounding down
    layer1  3                  256        4        1
    layer2  4                  512        8        1
    layer3  6, 23              1024       8        1, 2
    layer4  3                  2048       8        2, 4

Layers are called as torchvision calls them, dots included. Source: torchvision/models/resnet.py.
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from fcn_jax.ops import rematerialisation
from fcn_jax.ops.pooling import max_pool

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STRIDES = (1, 2, 1, 1)  # of the first block of a stage
DILATIONS = ((1, 1), (1, 1), (1, 2), (2, 4))  # of the first block of a stage, and of the others
EXPANSION = 4

ConvNorm = Callable[..., jax.Array]


def trunk(conv_norm: ConvNorm, x: jax.Array, depth: int, prefix: str = "") -> dict[str, jax.Array]:
    """Runs the trunk inside the calling module: each stage's output by name, `layer1` … `layer4`.

    `conv_norm(x, conv's name, norm's name, features, kernel_size, stride=1, dilation=1)` makes a convolution without
    bias, padded to keep the size at stride 1, and the batch norm behind it; `prefix` goes before all layers' names.
    """
    x = nn.relu(conv_norm(x, f"{prefix}conv1", f"{prefix}bn1", 64, 7, stride=2))
    # Rounding down, unlike Caffe: the last window must lie within the padded map.
    height, width = ((size - 1) // 2 + 1 for size in x.shape[1:3])
    x = max_pool(x, 3, 2, 1)[:, :height, :width]
    stages = {}
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        for block in range(blocks):
            stride = STRIDES[stage - 1] if block == 0 else 1
            dilation = DILATIONS[stage - 1][min(block, 1)]
            name = f"{prefix}layer{stage}.{block}."
            x = _bottleneck(conv_norm, x, name, 64 * 2 ** (stage - 1), stride, dilation, projected=block == 0)
        stages[f"layer{stage}"] = x
    return stages


def _bottleneck(
    conv_norm: ConvNorm, x: jax.Array, name: str, features: int, stride: int, dilation: int, projected: bool
) -> jax.Array:
    """1×1, 3×3, 1×1, and what came in added; where the shape changes that is projected first."""
    y = nn.relu(conv_norm(x, f"{name}conv1", f"{name}bn1", features, 1))
    y = nn.relu(conv_norm(y, f"{name}conv2", f"{name}bn2", features, 3, stride=stride, dilation=dilation))
    y = conv_norm(y, f"{name}conv3", f"{name}bn3", EXPANSION * features, 1)
    if projected:
        x = conv_norm(x, f"{name}downsample.0", f"{name}downsample.1", EXPANSION * features, 1, stride=stride)
    return rematerialisation.mark(nn.relu(x + y), rematerialisation.BLOCK)
