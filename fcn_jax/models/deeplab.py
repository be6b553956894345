"""DeepLab-LargeFOV: VGG-16 with holes, whose scores stay at an eighth of the image.

Chen, Papandreou, Kokkinos, Murphy and Yuille, "Semantic Image Segmentation with Deep Convolutional Nets and Fully
Connected CRFs", ICLR 2015; the nets as released (deeplab-public, deeplab_largeFOV and vgg128_noup). The CRF that the
paper puts behind it is not part of the net.

    layers            kernel   stride   dilation        map of 321×321
    conv1 … conv4     3        1        1               321, 161, 81, 41
    pool1 … pool3     3        2                        161, 81, 41
    pool4             3        1                        41
    conv5             3        1        2
    pool5, pool5a     3        1        (max, mean)
    fc6               3        1        12, 1024 of it  field of view 224 pixels
    fc7, fc8          1        1

Scores lie on the pixels 0, 8, 16 … exactly; the last resampling is linear between them. Training compares them with the
labels of those pixels and up-samples nothing.

The multi-scale variant (MSc) adds five branches, at the image and behind pool1 to pool4, each a 3×3 of stride 8, 4, 2,
1 and 1 and a 1×1, 128 channels and dropout of a half each, and the scores of each branch to fc8's, as released; it is
the same that fc8 sees them all beside fc7, as the paper has it. They are trained after the net without them, and alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.models import trunks, vgg
from fcn_jax.models.layers import Conv, Dropout, channels_of
from fcn_jax.ops import bilinear
from fcn_jax.ops.grid import IMAGE, Grid
from fcn_jax.ops.pooling import average_pool, max_pool
from fcn_jax.ops.resampling import Resampling

SCORES, COMBINED = "fc8_voc12", "fc8_combine"  # the sum over the branches of MSc
STRIDE = 8
POOL_STRIDES = (2, 2, 2, 1, 1)
# What a branch of MSc steps over, to an eighth of the image.
BRANCHES = {"data": 8, "pool1": 4, "pool2": 2, "pool3": 1, "pool4": 1}


class DeepLab(nn.Module):
    """Scores every pixel of the input blob `[b h w channels]`, any h and w ≥ 1, with `num_classes` logits.

    `multi_scale` adds the branches of MSc. `width` multiplies all channel counts and `fc_width` sets those of fc6 and
    fc7 (1024 · width by default); `channels` overrides single layers. Compute runs in `dtype`; parameters, resampling
    and logits are float32 or better.
    """

    num_classes: int
    multi_scale: bool = False
    width: float = 1.0
    fc_width: int | None = None
    channels: Mapping[str, int] | None = None
    dropout: float = 0.5
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
    ) -> Any:
        """Logits `[b h w c]`; the scores at an eighth of the image with `upsample=False`.

        With `return_taps` also every layer's output by the release's blob names. Training takes the `dropout` stream;
        `example_index [b]` tells each example's place in the global batch.
        """
        taps = {name: x for name, (x, _) in self.blobs(image, train, example_index).items()}
        logits = taps[COMBINED if self.multi_scale else SCORES]
        if upsample:
            logits = taps["fc8_interp"] = self.resampling(logits.shape[1:3], image.shape[1:3])(logits)
        return (logits, taps) if return_taps else logits

    @nn.compact
    def blobs(
        self, image: jax.Array, train: bool, example_index: jax.Array | None
    ) -> dict[str, tuple[jax.Array, Grid]]:
        """Every layer's output by the release's blob names, with the grid that it lies on; the scores come last."""
        trunks.check_layers(self, image, self.layer_names())
        strides = iter(POOL_STRIDES)

        def conv(name: str, published: int, kernel_size: int, padding: int) -> Conv:
            dilation = 2 if name.startswith("conv5") else 1
            return self._conv(name, published, kernel_size, dilation * padding, dilation)

        def pool(x: jax.Array, grid: Grid) -> tuple[jax.Array, Grid]:
            stride = next(strides)
            return max_pool(x, 3, stride, 1), grid.conv(3, stride, 1)

        def dropout(name: str, x: jax.Array) -> jax.Array:
            return Dropout(self.dropout, name=name)(x, train=train, example_index=example_index)

        blobs = vgg.trunk(conv, image, IMAGE, pool=pool)
        x, grid = blobs["pool5"]
        x, grid = blobs["pool5a"] = average_pool(x, 3, 1, 1), grid.conv(3, 1, 1)
        for name, kernel_size, dilation in (("fc6", 3, 12), ("fc7", 1, 1)):
            module = self._conv(name, 1024, kernel_size, dilation * (kernel_size // 2), dilation)
            x, grid = nn.relu(module(x)), module.grid(grid)
            x, grid = blobs[name] = dropout(f"drop{name[2:]}", x), grid
        blobs[SCORES] = self._scored(SCORES, x), grid
        if self.multi_scale:
            self._add_branches(blobs, image, dropout)
        return blobs

    def _scored(self, name: str, x: jax.Array) -> jax.Array:
        init, numbers = nn.initializers.normal(0.01), {"dtype": self.dtype, "precision": self.precision}
        scores = Conv(self.num_classes, 1, kernel_init=init, **numbers, name=name)(x)
        return scores.astype(np.promote_types(scores.dtype, np.float32))

    def _add_branches(self, blobs, image, dropout) -> None:
        """MSc: two layers at each scale and their scores, cut or filled to the map of fc8's, and the sum of all."""
        total, scores_grid = blobs[SCORES]
        size = total.shape[1:3]
        for source, stride in BRANCHES.items():
            x, grid = (image, IMAGE) if source == "data" else blobs[source]
            for number, (kernel_size, step) in enumerate(((3, stride), (1, 1)), start=1):
                name = f"{source}_ms{number}"
                module = self._conv(name, 128, kernel_size, kernel_size // 2, stride=step, spread=0.001)
                x, grid = nn.relu(module(x)), module.grid(grid)
                x, grid = blobs[name] = dropout(f"drop_{name}", x), grid
            missing = [max(whole - n, 0) for whole, n in zip(size, x.shape[1:3], strict=True)]
            x = jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
            name = f"{source}_ms3"
            scores, _ = blobs[name] = self._scored(name, x[:, : size[0], : size[1]]), scores_grid
            total += scores
        blobs[COMBINED] = total, scores_grid

    def grids(self) -> dict[str, Grid]:
        """The grid of every blob, by name: its stride, place and receptive field."""
        return trunks.grids(self, lambda net, image: net.blobs(image, False, None))

    def score_grid(self) -> Grid:
        """Where the scores of `upsample=False` lie: on every eighth pixel from the first on."""
        return self.grids()[SCORES]

    def resampling(self, cells: Sequence[int], size: Sequence[int]) -> Resampling:
        """The last interpolation, of scores of `cells` (h, w), the first on the first pixel, to `size` (H, W)."""
        whole = bilinear.interpolation(cells, [STRIDE * (n - 1) + 1 for n in cells], align_corners=True)
        return whole.crop(*size)

    def first_layers(self) -> tuple[str, ...]:
        """The layer that sees the image (beside MSc's own branch)."""
        return ("conv1_1",)

    def class_layers(self) -> dict[str, tuple[str, ...]]:
        """By head ("" for the only one): the layers that have an output for each class."""
        return {"": (SCORES, *(f"{source}_ms3" for source in BRANCHES if self.multi_scale))}

    def layer_names(self) -> tuple[str, ...]:
        """The convolutions, in order, but the last."""
        branches = [f"{source}_ms{number}" for source in BRANCHES for number in (1, 2)] if self.multi_scale else []
        return (*vgg.layer_names(), "fc6", "fc7", *branches)

    def _conv(
        self,
        name: str,
        published: int,
        kernel_size: int,
        padding: int,
        dilation: int = 1,
        stride: int = 1,
        spread: float | None = None,
    ) -> Conv:
        """A layer; its kernel starts as He's, or with `spread` as its standard deviation."""
        init = nn.initializers.he_normal() if spread is None else nn.initializers.normal(spread)
        return Conv(
            channels_of(self, name, published),
            kernel_size,
            padding,
            stride,
            dilation,
            kernel_init=init,
            dtype=self.dtype,
            precision=self.precision,
            name=name,
        )
