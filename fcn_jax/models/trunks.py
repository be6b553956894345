"""The classifiers below their scores, as rows of a table.

`classifier` makes dense classifiers of them, and `fcn` nets that score every pixel.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from fcn_jax.models import alexnet, googlenet, vgg
from fcn_jax.models.layers import Conv, channels_of
from fcn_jax.ops.grid import Grid

Blobs = dict[str, tuple[jax.Array, Grid]]


@dataclasses.dataclass(frozen=True)
class Trunk:
    """A classifier's convolutional layers, and what its fully connected ones become."""

    run: Callable[..., Blobs]  # of (conv, image, grid, first_padding=, suffix=); the last blob is the map to be scored
    layers: tuple[str, ...]
    smallest: int  # pixels a side that give the classifier one cell
    paddings: Mapping[str, tuple[int, int]]  # of the first layer and of fc6: in the classifier, in FCNs
    fc6: int | None  # size of its kernel; None: the map itself is scored, by the classifier after an average over 7×7
    kernel: int  # of an FCN's transposed convolution by 32; with 64 AlexNet's grids would be half a cell apart
    scores: str = "fc8"  # the classifier's blob of scores
    dropout: float = 0.5
    multiple: int = 1  # what channel counts are multiples of
    options: tuple[str, ...] = ()  # fields of the net that `run` takes too


_VGG = Trunk(
    run=vgg.trunk,
    layers=(),
    smallest=6 * 32 + 1,  # fc6 needs 7 cells of 32 pixels, of which one pixel of the last is enough
    paddings={"valid": (1, 0), "caffe": (100, 0), "same": (1, 3)},
    fc6=7,
    kernel=64,
)
_ALEXNET = Trunk(
    run=alexnet.trunk,
    layers=alexnet.LAYERS,
    # fc6 needs 6 cells of pool5, so 12 of conv5, 24 of conv2 and 48 of conv1, whose last starts 4 · 47 pixels on.
    smallest=4 * 47 + 11,
    paddings={"valid": (0, 0), "caffe": (100, 0), "same": (5, 3)},
    fc6=6,
    kernel=63,
    multiple=2,  # two groups share them
    options=("lrn_alpha",),
)
TRUNKS = {
    **{
        name: dataclasses.replace(_VGG, run=partial(vgg.trunk, variant=column), layers=tuple(vgg.layer_names(column)))
        for name, column in vgg.NETS.items()
    },
    "alexnet": dataclasses.replace(_ALEXNET, run=partial(alexnet.trunk, order="norm_first")),
    "caffenet": dataclasses.replace(_ALEXNET, run=partial(alexnet.trunk, order="pool_first")),
    # Its FCN was never released: what the papers leave open (pad, crop) follows the others.
    "googlenet": Trunk(
        run=googlenet.trunk,
        layers=tuple(googlenet.layer_names()),
        # The average needs 7 cells, so 14 before pool4, 28, 56, and 112 of conv1, whose last is centred 2 · 111 on.
        smallest=2 * 111 + 1,
        paddings={"valid": (3, 0), "caffe": (100, 0), "same": (3, 0)},
        fc6=None,
        kernel=63,
        scores="loss3/classifier",
        dropout=0.4,
    ),
}


def conv(net: Any, name: str, features: int, kernel_size: int, padding: int, stride: int = 1, groups: int = 1) -> Conv:
    """A layer of a net, whose channel count its fields `channels`, `fc_width` and `width` decide, in this order."""
    features = channels_of(net, name, features, TRUNKS[net.trunk].multiple)
    return Conv(
        features, kernel_size, padding, stride, groups=groups, dtype=net.dtype, precision=net.precision, name=name
    )


def fully_connected(
    conv: Callable[..., Conv],
    dropout: Callable[[str, jax.Array], jax.Array],
    x: jax.Array,
    grid: Grid,
    kernel_size: int,
    padding: int,
    suffix: str = "",
) -> Blobs:
    """fc6 and fc7 as convolutions, each with its dropout, by name; `conv(name, features, kernel_size, padding)`."""
    blobs: Blobs = {}
    for name, size, pad in (("fc6", kernel_size, padding), ("fc7", 1, 0)):
        layer = conv(name + suffix, 4096, size, pad)
        x, grid = nn.relu(layer(x)), layer.grid(grid)
        x = dropout(f"drop{name[2:]}{suffix}", x)
        blobs[name + suffix] = x, grid
    return blobs


def inner_layers(trunk: str) -> tuple[str, ...]:
    """The layers with parameters of a classifier, in order, but the last."""
    row = TRUNKS[trunk]
    return row.layers if row.fc6 is None else (*row.layers, "fc6", "fc7")


def check(net: Any, image: jax.Array, layers: tuple[str, ...]) -> None:
    """Raises ValueError for an image of other channels, a trunk that is none, or `channels` of layers that are none."""
    if net.trunk not in TRUNKS:
        raise ValueError(f"trunk={net.trunk!r} is none of {', '.join(TRUNKS)}")
    check_layers(net, image, layers)


def check_layers(net: Any, image: jax.Array, layers: tuple[str, ...]) -> None:
    """Raises ValueError for an image of other channels, or `channels` of layers that are none."""
    if image.shape[-1] != net.in_channels:
        raise ValueError(f"the image has {image.shape[-1]} channels, the net takes {net.in_channels}")
    if unknown := set(net.channels or ()) - set(layers):
        raise ValueError(f"channels names {', '.join(sorted(unknown))}, the net has {', '.join(layers)}")


def grids(net: nn.Module, blobs: Callable[..., Blobs]) -> dict[str, Grid]:
    """The grid of every blob by name, without computing any; `blobs(net, image)` gives each blob with its grid."""
    found: dict[str, Grid] = {}

    def trace(key, image):
        traced, _ = net.init_with_output(key, image, method=blobs)
        found.update({name: grid for name, (_, grid) in traced.items()})

    channels: int = net.in_channels  # pyright: ignore[reportAttributeAccessIssue]
    jax.eval_shape(trace, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, channels), "float32"))
    return found
