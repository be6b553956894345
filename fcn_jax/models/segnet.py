"""SegNet: an encoder that remembers where its maxima stood, and a decoder that puts them back there.

Badrinarayanan, Kendall and Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation",
PAMI 2017 (figure 2); the nets as released (SegNet-Tutorial, Models/segnet_*.prototxt). Kendall, Badrinarayanan and
Cipolla, "Bayesian SegNet", BMVC 2017: the same with dropout in the deeper blocks, in testing too.

The encoder is VGG's trunk with a batch norm behind each convolution. The decoder is its mirror image: each block
unpools by the indices of the pooling that it mirrors, and convolves as often, the last time to the channels below.

    encoder   64,64 | 128,128 | 256×3 | 512×3 | 512×3          map of 360×480 after pooling: 180×240 … 12×15
    decoder   512×3 | 512,512,256 | 256,256,128 | 128,64 | 64, classes

Nothing but two bits a window passes from the one to the other. The paper's decoders have no ReLU; the release's have.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.models import trunks, vgg
from fcn_jax.models.layers import BatchNorm, Conv, DropoutSites, Normed, RememberedPools, channels_of
from fcn_jax.ops.grid import IMAGE, Grid

# caffe-segnet's; the decoder's names end in D, and a batch norm is called like its convolution.
EPSILON, SHIFT = 1e-9, 0.001
BAYESIAN = ("pool3", "pool4", "pool5", "conv5_1_D", "conv4_1_D", "conv3_1_D")
# The one for PASCAL VOC: in each block, the encoder's before its pooling, and once more where the decoder begins.
EVERY_BLOCK = (
    *("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3", "pool5"),
    *("conv5_1_D", "conv4_1_D", "conv3_1_D", "conv2_1_D"),
)


class SegNet(nn.Module):
    """Scores every pixel of the input blob `[b h w channels]`, any h and w ≥ 1, with `num_classes` logits.

    `trunk` is any of the VGG nets. `width` multiplies all channel counts; `channels` overrides single layers.
    `dropout_after` names the blobs behind which `dropout` is applied. `classifier` is the layer that gives the scores;
    another name than conv1_1_D is that of a further 3×3 convolution (the release for driving: `camvid`). Variables are
    parameters and `batch_stats`, which keep `momentum` of their past; over the devices of `axis_name` statistics are
    of all. Compute runs in `dtype`; parameters, statistics and logits are float32 or better.
    """

    num_classes: int
    trunk: str = "vgg16"
    width: float = 1.0
    channels: Mapping[str, int] | None = None
    dropout_after: tuple[str, ...] = ()
    dropout: float = 0.5
    classifier: str = "conv1_1_D"
    momentum: float = 0.9
    axis_name: str | None = None
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
        stochastic: bool | None = None,
    ) -> Any:
        """Logits `[b h w c]`. `upsample` has no effect: the decoder ends at pixels.

        With `return_taps` also every layer's output by the release's blob names, masks of indices among them. Training
        changes `batch_stats`, and takes the `dropout` stream where there is dropout; `stochastic` applies dropout
        without it (Monte Carlo samples), or training without dropout. `example_index [b]` tells each example's place
        in the global batch.
        """
        stochastic = train if stochastic is None else stochastic
        blobs = self.blobs(image, train, stochastic, example_index)
        taps = {name: x for name, (x, _) in blobs.items()}
        return (taps[self.classifier], taps) if return_taps else taps[self.classifier]

    @nn.compact
    def blobs(
        self, image: jax.Array, train: bool, stochastic: bool, example_index: jax.Array | None
    ) -> dict[str, tuple[jax.Array, Grid]]:
        """Every layer's output by the release's blob names, with the grid that it lies on."""
        if self.trunk not in vgg.NETS:
            raise ValueError(f"trunk={self.trunk!r} is none of {', '.join(vgg.NETS)}")
        trunks.check_layers(self, image, self.layer_names())
        variant = vgg.NETS[self.trunk]
        dropped = DropoutSites(self, stochastic, example_index)
        pools, depths = RememberedPools(), enumerate(map(len, vgg.VARIANTS[variant]), start=1)

        def layer(name: str, published: int, kernel_size: int, padding: int) -> Normed:
            conv = self._conv(name, channels_of(self, name, published), kernel_size, padding)
            norm = BatchNorm(self.momentum, EPSILON, self.axis_name, self.dtype, SHIFT, name=f"{name}_bn")
            return Normed(conv, norm, train)

        def pool(x: jax.Array, grid: Grid) -> tuple[jax.Array, Grid]:
            block, depth = next(depths)
            x, grid = pools.pool(dropped(f"conv{block}_{depth}", x), grid)
            return dropped(f"pool{block}", x), grid

        blobs = vgg.trunk(layer, image, IMAGE, variant, pool=pool)
        blobs |= pools.masks(blobs)
        x, grid = blobs["pool5"]
        for block, kernels in reversed(list(enumerate(vgg.VARIANTS[variant], start=1))):
            x, grid = blobs[f"pool{block}_D"] = pools.unpool(x, grid, block)
            for number, kernel in reversed(list(enumerate(kernels, start=1))):
                name = f"conv{block}_{number}_D"
                if name == self.classifier:
                    break
                # A block's last convolution brings the channels of the block below.
                published = vgg.CHANNELS[max(block - 2, 0)] if number == 1 else vgg.CHANNELS[block - 1]
                module = layer(name, published, kernel, kernel // 2)
                x, grid = nn.relu(module(x)), module.grid(grid)
                x, grid = blobs[name] = dropped(name, x), grid
        dropped.check(self.trunk)
        module = self._conv(self.classifier, self.num_classes, 3, 1)
        x = module(x)
        x = x.astype(np.promote_types(x.dtype, np.float32))
        return blobs | {self.classifier: (x, module.grid(grid)), "prob": (nn.softmax(x), grid)}

    def grids(self) -> dict[str, Grid]:
        """The grid of every blob, by name: its stride, place and receptive field."""
        return trunks.grids(self, lambda net, image: net.blobs(image, False, False, None))

    def score_grid(self) -> Grid:
        """Where the scores of `upsample=False` lie: on the image's own pixels."""
        return IMAGE

    def first_layers(self) -> tuple[str, ...]:
        """The layer that sees the image."""
        return ("conv1_1",)

    def class_layers(self) -> dict[str, tuple[str, ...]]:
        """By head ("" for the only one): the layers that have an output for each class."""
        return {"": (self.classifier,)}

    def layer_names(self) -> tuple[str, ...]:
        """The convolutions, in order, but the last."""
        encoder = vgg.layer_names(vgg.NETS[self.trunk])
        decoder = [f"{name}_D" for name in reversed(encoder)]
        return tuple(name for name in (*encoder, *decoder) if name != self.classifier)

    def _conv(self, name: str, features: int, kernel_size: int, padding: int) -> Conv:
        return Conv(features, kernel_size, padding, dtype=self.dtype, precision=self.precision, name=name)
