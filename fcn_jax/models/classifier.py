"""The ImageNet classifiers as dense nets: VGG A to E, AlexNet, CaffeNet and GoogLeNet.

A fully connected layer on a map of fixed size is a convolution with a kernel of that size. Written so, a classifier
takes any image that is large enough and gives a map of class scores, one cell for the crop that it was made for (224
pixels a side, AlexNet's 227). Source: Sermanet et al., "OverFeat", ICLR 2014, section 3.5; Long, Shelhamer and Darrell,
CVPR 2015, figure 2.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.models import trunks
from fcn_jax.models.layers import Conv, Dropout
from fcn_jax.models.trunks import TRUNKS, Blobs
from fcn_jax.ops.grid import IMAGE, Grid
from fcn_jax.ops.pooling import average_pool


class Classifier(nn.Module):
    """A net that scores the input blob `[b h w channels]` on a map, `[b h' w' num_classes]`.

    `width` multiplies all channel counts and `fc_width` sets those of fc6 and fc7, in nets that have them (4096 · width
    by default); `channels` overrides single layers but the last. Compute runs in `dtype`; parameters and scores are
    float32 or better.
    """

    num_classes: int
    trunk: str = "vgg16"
    width: float = 1.0
    fc_width: int | None = None
    channels: Mapping[str, int] | None = None
    lrn_alpha: float = 1e-4
    dropout: float | None = None  # None: as published
    in_channels: int = 3
    dtype: Any = jnp.float32
    precision: jax.lax.PrecisionLike = None

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
        blobs = self.blobs(image, train, example_index)
        taps = {name: x for name, (x, _) in blobs.items()}
        scores = taps[TRUNKS[self.trunk].scores]
        return (scores, taps) if return_taps else scores

    @nn.compact
    def blobs(self, image: jax.Array, train: bool = False, example_index: jax.Array | None = None) -> Blobs:
        """Every layer's output by the release's blob names, with the grid that it lies on."""
        self._check(image)
        trunk = TRUNKS[self.trunk]
        rate = trunk.dropout if self.dropout is None else self.dropout

        def dropout(name: str, x: jax.Array) -> jax.Array:
            return Dropout(rate, name=name)(x, train=train, example_index=example_index)

        pad_first, pad_fc6 = trunk.paddings["valid"]
        options = {name: getattr(self, name) for name in trunk.options}
        blobs = trunk.run(self._conv, image, IMAGE, first_padding=pad_first, **options)
        x, grid = blobs[next(reversed(blobs))]
        if trunk.fc6 is None:
            x, grid = average_pool(x, kernel=7, stride=1), grid.conv(kernel=7)
            blobs["pool5/7x7_s1"] = x, grid = dropout("pool5_drop_7x7_s1", x), grid
        else:
            blobs |= trunks.fully_connected(self._conv, dropout, x, grid, trunk.fc6, pad_fc6)
            x, grid = blobs["fc7"]
        (score,) = self.class_layers()[""]
        x = Conv(self.num_classes, 1, dtype=self.dtype, precision=self.precision, name=score)(x)
        x = x.astype(np.promote_types(x.dtype, np.float32))
        return blobs | {trunk.scores: (x, grid), "prob": (nn.softmax(x), grid)}

    @property
    def smallest(self) -> int:
        """Pixels a side of the smallest image, which gives one cell."""
        return TRUNKS[self.trunk].smallest

    def grids(self) -> dict[str, Grid]:
        """The grid of every blob, by name: its stride, place and receptive field."""
        return trunks.grids(self, lambda net, image: net.blobs(image))

    def layer_names(self) -> tuple[str, ...]:
        """The layers with parameters, in order, but the last."""
        return trunks.inner_layers(self.trunk)

    def first_layers(self) -> tuple[str, ...]:
        """The layer that sees the image."""
        return self.layer_names()[:1]

    def class_layers(self) -> dict[str, tuple[str, ...]]:
        """By head ("" for the only one): the layers that have an output for each class."""
        return {"": (TRUNKS[self.trunk].scores.replace("/", "_"),)}

    def _check(self, image: jax.Array) -> None:
        trunks.check(self, image, self.layer_names() if self.trunk in TRUNKS else ())
        height, width = image.shape[1:3]
        # Parameters do not depend on the image: any will do to make them.
        if min(height, width) < self.smallest and not self.is_initializing():
            raise ValueError(
                f"an image of {height}×{width} pixels is too small for one cell; the smallest is "
                f"{self.smallest}×{self.smallest}"
            )

    def _conv(self, *shape: Any, **options: Any) -> Conv:
        return trunks.conv(self, *shape, **options)
