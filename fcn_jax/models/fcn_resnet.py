"""FCN on ResNet: the FCN that people train today, as torchvision has it.

A dilated ResNet of stride 8, a small head on its last stage, and bilinear interpolation (half-pixel centres) to the
image's size; in training an auxiliary head on the stage before.

    head        3×3 to a quarter of the channels, batch norm, ReLU, dropout of a tenth, 1×1 to the classes
    classifier  on layer4: 2048 → 512 → classes          aux_classifier   on layer3: 1024 → 256 → classes

Source: torchvision/models/segmentation/fcn.py; weights `fcn_resnet50_coco`, `fcn_resnet101_coco`.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.models import resnet
from fcn_jax.models.layers import BatchNorm, Conv, Dropout
from fcn_jax.ops import bilinear
from fcn_jax.ops.grid import Grid
from fcn_jax.ops.resampling import Resampling

BACKBONE = "backbone."
STRIDE = 8
SCORES, AUXILIARY = "classifier.", "aux_classifier."


class FCNResNet(nn.Module):
    """Scores every pixel of the input blob `[b h w channels]`, any h and w ≥ 1, with `num_classes` logits.

    `width` multiplies all channel counts. Variables are parameters and `batch_stats`, which keep `momentum` of their
    past (torch's momentum of 0.1 is the share of what is new); over the devices of `axis_name` statistics are of all.
    Compute runs in `dtype`; parameters, statistics, interpolation and logits in float32 or better.
    """

    num_classes: int
    depth: int = 50
    auxiliary: bool = True
    width: float = 1.0
    dropout: float = 0.1
    momentum: float = 0.9
    axis_name: str | None = None
    in_channels: int = 3
    dtype: Any = jnp.float32
    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        upsample: bool = True,
        return_taps: bool = False,
        example_index: jax.Array | None = None,
    ) -> Any:
        """Logits `[b h w c]`, in training with an auxiliary head `{"out", "aux"}`; coarse ones with `upsample=False`.

        With `return_taps` also the stages' outputs and the coarse scores by name. Training takes the `dropout` stream
        and changes `batch_stats`.
        """
        if image.shape[-1] != self.in_channels:
            raise ValueError(f"the image has {image.shape[-1]} channels, the net takes {self.in_channels}")

        def conv_norm(x, conv, norm, features, kernel_size, stride=1, dilation=1):
            x = self._conv(conv, features, kernel_size, stride, dilation, use_bias=False)(x)
            return self._norm(norm)(x, train=train)

        def head(x, name):
            features = x.shape[-1] // 4
            x = self._conv(f"{name}0", features, 3, use_bias=False, scaled=False)(x)
            x = nn.relu(self._norm(f"{name}1")(x, train=train))
            x = Dropout(self.dropout, name=f"{name}3")(x, train=train, example_index=example_index)
            x = self._conv(f"{name}4", self.num_classes, 1, scaled=False)(x)
            return x.astype(np.promote_types(x.dtype, np.float32))

        taps = resnet.trunk(conv_norm, image, self.depth, BACKBONE)
        scores = {"out": head(taps["layer4"], SCORES)}
        if self.auxiliary and (train or self.is_initializing()):
            scores["aux"] = head(taps["layer3"], AUXILIARY)
        taps |= {f"score_{name}": x for name, x in scores.items()}
        if upsample:
            scores = {name: bilinear.interpolate(x, image.shape[1:3]) for name, x in scores.items()}
        logits = scores if train and self.auxiliary else scores["out"]
        return (logits, taps) if return_taps else logits

    def resampling(self, cells: Sequence[int], size: Sequence[int]) -> Resampling:
        """The last interpolation, of scores of `cells` (h, w) to an image of `size` (H, W)."""
        return bilinear.interpolation(cells, size)

    def first_layers(self) -> tuple[str, ...]:
        """The layer that sees the image."""
        return (f"{BACKBONE}conv1",)

    def class_layers(self) -> dict[str, tuple[str, ...]]:
        """By head ("" for the only one): the layers that have an output for each class."""
        return {"": (f"{SCORES}4", *((f"{AUXILIARY}4",) if self.auxiliary else ()))}

    def score_grid(self) -> Grid:
        """Where the scores of `upsample=False` lie: every stride is two, and centred on its first pixel."""
        return Grid(step=Fraction(STRIDE))

    def _norm(self, name: str) -> BatchNorm:
        return BatchNorm(self.momentum, 1e-5, self.axis_name, self.dtype, name=name)

    def _conv(
        self,
        name: str,
        features: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        use_bias: bool = True,
        scaled: bool = True,
    ) -> Conv:
        return Conv(
            max(1, round(features * self.width)) if scaled else features,
            kernel_size,
            dilation * (kernel_size // 2),
            stride,
            dilation,
            use_bias=use_bias,
            dtype=self.dtype,
            precision=self.precision,
            name=name,
        )
