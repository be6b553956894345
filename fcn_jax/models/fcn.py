"""FCN-32s, FCN-16s and FCN-8s on VGG-16.

Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015 (figure 3); Shelhamer,
Long and Darrell, PAMI 2017 (figure 3, and 8s at once); the nets as released (`voc-fcn32s` … `voc-fcn8s-atonce`).

The classifier's fully connected layers become convolutions (fc6 7×7, fc7 1×1) and score every class on a map of stride
32. Finer stages are scored too and added, coarse scores up-sampled by two each time; one last bilinear transposed
convolution brings the sum to pixels.

    net        scores          up-sampling before the sum, and the last         offsets of the crops (100 pixels of pad)
    FCN-32s    fc7             upscore 64/32                                    19
    FCN-16s    + pool4         upscore2 4/2, upscore16 32/16                    5, 27
    FCN-8s     + pool3         upscore2, upscore_pool4 4/2, upscore8 16/8       5, 9, 31

The release pads the image by 100 pixels so that any size passes fc6; `padding="same"` pads fc6 instead, wasting
nothing. The offsets are not written anywhere: `ops.Grid` derives them, for both.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.models import vgg
from fcn_jax.models.layers import Conv, Dropout, Upsample
from fcn_jax.ops.grid import IMAGE, Grid, crop_to_overlap

PADDINGS = {"caffe": (100, 0), "same": (1, 3)}  # of conv1_1 and of fc6
# Up-sampling layers by the stride of the finest scores: a step of two before each skip, and the last to pixels.
UPSAMPLING = {32: ("upscore",), 16: ("upscore2", "upscore16"), 8: ("upscore2", "upscore_pool4", "upscore8")}


class FCN(nn.Module):
    """Scores every pixel of the input blob `[b h w channels]`, any h and w ≥ 1, with `num_classes` logits.

    `width` multiplies all channel counts and `fc_width` sets those of fc6 and fc7 (4096 · width by default);
    `channels` overrides single layers. `pool_scales` multiplies pool4 and pool3 before they are scored (at once: 0.01,
    0.0001). `upsampling` is one of layers.UPSAMPLING_FORMS, or such a form by layer name. Compute runs in `dtype`;
    parameters, up-sampling and logits in float32 or better.
    """

    num_classes: int
    stride: int = 8
    padding: str = "same"
    width: float = 1.0
    fc_width: int | None = None
    channels: Mapping[str, int] | None = None
    pool_scales: tuple[float, float] = (1.0, 1.0)
    dropout: float = 0.5
    upsampling: str | Mapping[str, str] = "fixed"
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
        """Logits `[b h w c]`; the coarse scores before the last up-sampling with `upsample=False`.

        With `return_taps` also every layer's output by the release's blob names. Training takes the `dropout` stream;
        `example_index [b]` tells each example's place in the global batch, where that is split over devices.
        """
        blobs = self.blobs(image, train, upsample, example_index)
        taps = {name: x for name, (x, _) in blobs.items()}
        scores = taps[next(reversed(taps))]
        return (scores, taps) if return_taps else scores

    @nn.compact
    def blobs(
        self, image: jax.Array, train: bool, upsample: bool, example_index: jax.Array | None
    ) -> dict[str, tuple[jax.Array, Grid]]:
        """Every layer's output by the release's blob names, with the grid that it lies on; the scores come last."""
        self._check(image)
        pad_first, pad_fc6 = PADDINGS[self.padding]
        blobs = vgg.trunk(self._conv, image, IMAGE, first_padding=pad_first)

        x, grid = blobs["pool5"]
        fc_width = self._scaled(4096) if self.fc_width is None else self.fc_width
        for name, size, pad in (("fc6", 7, pad_fc6), ("fc7", 1, 0)):
            conv = self._conv(name, fc_width, size, pad)
            x, grid = nn.relu(conv(x)), conv.grid(grid)
            x = Dropout(self.dropout, name=f"drop{name[2:]}")(x, train=train, example_index=example_index)
            blobs[name] = x, grid
        x = self._score("score_fr", x)
        blobs["score_fr"] = x, grid

        *upscores, last_upscore = UPSAMPLING[self.stride]
        for upscore, pool, scale in zip(upscores, ("pool4", "pool3"), self.pool_scales, strict=False):
            up = self._upsample(upscore, 4, 2)
            x, grid = blobs[upscore] = up(x), up.grid(grid)
            skip, skip_grid = blobs[pool]
            if scale != 1:
                skip = skip * jnp.asarray(scale, skip.dtype)
                blobs[f"scale_{pool}"] = skip, skip_grid
            skip = self._score(f"score_{pool}", skip)
            blobs[f"score_{pool}"] = skip, skip_grid
            skip, x, grid = crop_to_overlap(skip, skip_grid, x, grid)
            blobs[f"score_{pool}c"] = skip, skip_grid.crop(skip_grid.offset_of(grid))
            x = x + skip
            blobs[f"fuse_{pool}"] = x, grid

        if upsample:
            up = self._upsample(last_upscore, 2 * self.stride, self.stride)
            grid = up.grid(grid)
            offset = grid.offset_of(IMAGE)
            blobs["score"] = up(x, offset=offset, size=(image.shape[1], image.shape[2])), grid.crop(offset)
        return blobs

    def grids(self) -> dict[str, Grid]:
        """The grid of every blob, by name: its stride, place and receptive field (404 pixels for fc6)."""
        found: dict[str, Grid] = {}

        def trace(key, image):
            blobs, _ = self.init_with_output(key, image, False, True, None, method="blobs")
            found.update({name: grid for name, (_, grid) in blobs.items()})

        jax.eval_shape(trace, jax.random.key(0), jnp.zeros((1, 32, 32, self.in_channels)))
        return found

    def _check(self, image: jax.Array) -> None:
        if image.shape[-1] != self.in_channels:
            raise ValueError(f"the image has {image.shape[-1]} channels, the net takes {self.in_channels}")
        for field, value, choices in (("padding", self.padding, PADDINGS), ("stride", self.stride, UPSAMPLING)):
            if value not in choices:
                raise ValueError(f"{field}={value!r} is none of {', '.join(map(str, choices))}")
        for field, names, layers in (
            ("channels", self.channels or (), [*vgg.layer_names(), "fc6", "fc7"]),
            ("upsampling", () if isinstance(self.upsampling, str) else self.upsampling, UPSAMPLING[self.stride]),
        ):
            if unknown := set(names) - set(layers):
                raise ValueError(f"{field} names {', '.join(sorted(unknown))}, the net has {', '.join(layers)}")

    def _conv(self, name: str, features: int, kernel_size: int, padding: int) -> Conv:
        features = (self.channels or {}).get(name, features if name in ("fc6", "fc7") else self._scaled(features))
        return Conv(features, kernel_size, padding, dtype=self.dtype, precision=self.precision, name=name)

    def _score(self, name: str, x: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros_init()
        x = Conv(self.num_classes, 1, kernel_init=zeros, dtype=self.dtype, precision=self.precision, name=name)(x)
        return x.astype(np.promote_types(x.dtype, np.float32))

    def _upsample(self, name: str, kernel_size: int, stride: int) -> Upsample:
        form = self.upsampling if isinstance(self.upsampling, str) else self.upsampling.get(name, "fixed")
        return Upsample(kernel_size, stride, form, name=name)

    def _scaled(self, features: int) -> int:
        return max(1, round(features * self.width))
