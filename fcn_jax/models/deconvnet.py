"""DeconvNet: VGG-16 down to a single cell, and a net of unpooling and learned deconvolution that mirrors it up again.

Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015 (figure 2); the net as released
(HyeonwooNoh/DeconvNet, DeconvNet_inference_deploy.prototxt). Made for crops of 224×224 around single objects.

    down   conv1_1 … pool5 of VGG-16, fc6 7×7 and fc7 1×1 of 4096                      224 → 112 … 7 → 1
    up     fc6-deconv 7×7 of 512, then five times unpooling and two or three 3×3:
           deconv5 512×3 | deconv4 512,512,256 | deconv3 256,256,128 | deconv2 128,64 | deconv1 64×2, seg-score 1×1

Every convolution and deconvolution but the last has a batch norm and a ReLU; there is no dropout. An image that leaves
fc6 less than its seven cells is scored as if zeros lay right of and below pool5.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.models import trunks, vgg
from fcn_jax.models.layers import BatchNorm, Conv, Deconv, Normed, RememberedPools, channels_of
from fcn_jax.models.segnet import EPSILON, SHIFT
from fcn_jax.ops.grid import IMAGE, Grid

FC6 = 7
# Deconvolutions of each block, from the last: a block ends in the channels of the next.
DECODER = {5: (512, 512, 512), 4: (512, 512, 256), 3: (256, 256, 128), 2: (128, 64), 1: (64, 64)}
SCORES = "seg-score-voc"


class DeconvNet(nn.Module):
    """Scores every pixel of the input blob `[b h w channels]`, any h and w ≥ 1, with `num_classes` logits.

    `width` multiplies all channel counts and `fc_width` sets those of fc6 and fc7 (4096 · width by default; SegNet's
    paper compares with 1024); `channels` overrides single layers. Variables are parameters and `batch_stats`, which
    keep `momentum` of their past; over the devices of `axis_name` statistics are of all. Compute runs in `dtype`;
    parameters, statistics and logits are float32 or better.
    """

    num_classes: int
    width: float = 1.0
    fc_width: int | None = None
    channels: Mapping[str, int] | None = None
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
    ) -> Any:
        """Logits `[b h w c]`. `upsample` has no effect: the decoder ends at pixels; nor has `example_index`.

        With `return_taps` also every layer's output by the release's blob names, masks of indices among them. Training
        changes `batch_stats`.
        """
        blobs = self.blobs(image, train)
        taps = {name: x for name, (x, _) in blobs.items()}
        return (taps["seg-score"], taps) if return_taps else taps["seg-score"]

    @nn.compact
    def blobs(self, image: jax.Array, train: bool) -> dict[str, tuple[jax.Array, Grid]]:
        """Every layer's output by the release's blob names, with the grid that it lies on."""
        trunks.check_layers(self, image, self.layer_names())
        pools = RememberedPools()

        def normed(module: Any, norm: str) -> Normed:
            norm_layer = BatchNorm(self.momentum, EPSILON, self.axis_name, self.dtype, SHIFT, name=norm)
            return Normed(module, norm_layer, train)

        def conv(name: str, published: int, kernel_size: int, padding: int) -> Normed:
            norm = f"bn{name}" if name.startswith("fc") else name.replace("conv", "bn")
            module = Conv(channels_of(self, name, published), kernel_size, padding, **self._numbers(), name=name)
            return normed(module, norm)

        def deconv(name: str, norm: str, published: int, kernel_size: int, padding: int) -> Normed:
            module = Deconv(channels_of(self, name, published), kernel_size, padding, **self._numbers(), name=name)
            return normed(module, norm)

        blobs = vgg.trunk(conv, image, IMAGE, pool=pools.pool)
        blobs |= pools.masks(blobs)
        x, grid = blobs["pool5"]
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (0, max(FC6 - height, 0)), (0, max(FC6 - width, 0)), (0, 0)))
        for name, kernel_size in (("fc6", FC6), ("fc7", 1)):
            module = conv(name, 4096, kernel_size, 0)
            x, grid = blobs[name] = nn.relu(module(x)), module.grid(grid)
        module = deconv("fc6-deconv", "fc6-deconv-bn", 512, FC6, 0)
        x, grid = nn.relu(module(x))[:, :height, :width], module.grid(grid)
        blobs["fc6-deconv"] = x, grid
        for block, features in DECODER.items():
            x, grid = blobs[f"unpool{block}"] = pools.unpool(x, grid, block)
            for number, published in enumerate(features, start=1):
                name = f"deconv{block}_{number}"
                module = deconv(name, f"debn{block}_{number}", published, 3, 1)
                x, grid = blobs[name] = nn.relu(module(x)), module.grid(grid)
        x = Conv(self.num_classes, 1, kernel_init=nn.initializers.normal(0.01), **self._numbers(), name=SCORES)(x)
        return blobs | {"seg-score": (x.astype(np.promote_types(x.dtype, np.float32)), grid)}

    def grids(self) -> dict[str, Grid]:
        """The grid of every blob, by name: its stride, place and receptive field."""
        return trunks.grids(self, lambda net, image: net.blobs(image, False))

    def score_grid(self) -> Grid:
        """Where the scores of `upsample=False` lie: on the image's own pixels."""
        return IMAGE

    def first_layers(self) -> tuple[str, ...]:
        """The layer that sees the image."""
        return ("conv1_1",)

    def class_layers(self) -> dict[str, tuple[str, ...]]:
        """By head ("" for the only one): the layers that have an output for each class."""
        return {"": (SCORES,)}

    def deconvolutions(self) -> tuple[str, ...]:
        """The layers whose kernels scatter."""
        return tuple(name for name in self.layer_names() if "deconv" in name)

    def layer_names(self) -> tuple[str, ...]:
        """The convolutions and deconvolutions, in order, but the last."""
        decoder = [f"deconv{block}_{number}" for block, row in DECODER.items() for number in range(1, len(row) + 1)]
        return (*vgg.layer_names(), "fc6", "fc7", "fc6-deconv", *decoder)

    def _numbers(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "precision": self.precision}
