"""What the ImageNet classifiers share: their fields, how they are called, and fully connected layers as convolutions.

A fully connected layer on a map of fixed size is a convolution with a kernel of that size. Written so, a classifier
takes any image that is large enough and gives a map of class scores, one cell for the crop that it was made for.
Source: Sermanet et al., "OverFeat", ICLR 2014, section 3.5; Long, Shelhamer and Darrell, CVPR 2015, figure 2.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.models import tracing
from fcn_jax.models.layers import Conv, Dropout
from fcn_jax.ops.grid import Grid

Blobs = dict[str, tuple[jax.Array, Grid]]


class Classifier(nn.Module):
    """A net that scores the input blob `[b h w channels]` on a map, `[b h' w' num_classes]`.

    `width` multiplies all channel counts and `fc_width` sets those of fc6 and fc7, in nets that have them (4096 · width
    by default); `channels` overrides single layers but the last. Compute runs in `dtype`; parameters and scores are
    float32 or better.
    """

    num_classes: int
    width: float = 1.0
    fc_width: int | None = None
    channels: Mapping[str, int] | None = None
    dropout: float = 0.5
    in_channels: int = 3
    dtype: Any = jnp.float32
    precision: jax.lax.PrecisionLike = None

    SMALLEST: ClassVar[int]  # pixels a side that give one cell
    SCORES: ClassVar[str] = "fc8"  # the blob of the scores
    MULTIPLE: ClassVar[int] = 1  # of which all channel counts are multiples, where groups share them

    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        upsample: bool = True,
        return_taps: bool = False,
        example_index: jax.Array | None = None,
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Scores `[b h' w' c]` before the softmax. `upsample` has no effect: a classifier has nothing to up-sample.

        With `return_taps` also every layer's output by the release's blob names, the probabilities as `prob`. Training
        takes the `dropout` stream; `example_index [b]` tells each example's place in the global batch, where that is
        split over devices. Raises ValueError for an image that is too small for one cell.
        """
        blobs = self.blobs(image, train, upsample, example_index)
        taps = {name: x for name, (x, _) in blobs.items()}
        return (taps[self.SCORES], taps) if return_taps else taps[self.SCORES]

    def blobs(self, image: jax.Array, train: bool, upsample: bool, example_index: jax.Array | None) -> Blobs:
        """Every layer's output by the release's blob names, with the grid that it lies on."""
        raise NotImplementedError

    def layer_names(self) -> tuple[str, ...]:
        """The layers with parameters, in order, but the last."""
        raise NotImplementedError

    def grids(self) -> dict[str, Grid]:
        """The grid of every blob, by name: its stride, place and receptive field."""
        return tracing.grids(self)

    def first_layers(self) -> tuple[str, ...]:
        """The layer that sees the image."""
        return self.layer_names()[:1]

    def class_layers(self) -> dict[str, tuple[str, ...]]:
        """By head ("" for the only one): the layers that have an output for each class."""
        return {"": (self.SCORES.replace("/", "_"),)}

    def _check(self, image: jax.Array) -> None:
        if image.shape[-1] != self.in_channels:
            raise ValueError(f"the image has {image.shape[-1]} channels, the net takes {self.in_channels}")
        height, width = image.shape[1:3]
        # Parameters do not depend on the image: any will do to make them.
        if min(height, width) < self.SMALLEST and not self.is_initializing():
            raise ValueError(
                f"an image of {height}×{width} pixels is too small for one cell; the smallest is "
                f"{self.SMALLEST}×{self.SMALLEST}"
            )
        if unknown := set(self.channels or ()) - set(self.layer_names()):
            raise ValueError(
                f"channels names {', '.join(sorted(unknown))}, the net has {', '.join(self.layer_names())}"
            )

    def _conv(self, name: str, features: int, kernel_size: int, padding: int, stride: int = 1, groups: int = 1) -> Conv:
        features = (self.channels or {}).get(name, self._scaled(features))
        return Conv(
            features,
            kernel_size,
            padding,
            stride,
            groups=groups,
            dtype=self.dtype,
            precision=self.precision,
            name=name,
        )

    def _fully_connected(self, blobs: Blobs, kernel_size: int, train: bool, example_index: jax.Array | None) -> Blobs:
        """fc6, fc7, fc8 and the softmax on the last of the blobs; fc6 covers the map of the net's own crop."""
        x, grid = blobs[next(reversed(blobs))]
        fc_width = self._scaled(4096) if self.fc_width is None else self.fc_width
        for name, size in (("fc6", kernel_size), ("fc7", 1)):
            features = (self.channels or {}).get(name, fc_width)
            conv = Conv(features, size, dtype=self.dtype, precision=self.precision, name=name)
            x, grid = nn.relu(conv(x)), conv.grid(grid)
            x = Dropout(self.dropout, name=f"drop{name[2:]}")(x, train=train, example_index=example_index)
            blobs[name] = x, grid
        return blobs | self._scores(x, grid)

    def _scores(self, x: jax.Array, grid: Grid) -> Blobs:
        """The class scores and their softmax."""
        name = self.SCORES.replace("/", "_")
        x = Conv(self.num_classes, 1, dtype=self.dtype, precision=self.precision, name=name)(x)
        x = x.astype(np.promote_types(x.dtype, np.float32))
        return {self.SCORES: (x, grid), "prob": (nn.softmax(x), grid)}

    def _scaled(self, features: int) -> int:
        return self.MULTIPLE * max(1, round(features * self.width / self.MULTIPLE))
