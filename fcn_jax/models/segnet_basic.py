"""SegNet-Basic, and the decoders that SegNet's paper compares with its own: a table of small nets.

Badrinarayanan, Kendall and Cipolla, PAMI 2017, section 3.2 and table 1; SegNet-Basic and Bayesian SegNet-Basic as
released (SegNet-Tutorial, Models/segnet_basic_*.prototxt).

All share one encoder: the input's local response normalisation, then four times a 7×7 convolution to 64 channels with
batch norm, ReLU and a 2×2 pooling. What brings the map of stride 16 back to pixels, four times by two, is the row:

    row                                   up-sampling             then                     pooled maps       parameters
    bilinear                              bilinear, fixed         –                        –                 0.61 M
    basic                                 unpooling               7×7, 64 to 64            –                 1.42 M
    encoder_addition                      unpooling               7×7, 64 to 64            added, 64         1.42 M
    single_channel                        unpooling               7×7, each channel alone  –                 0.63 M
    fcn                                   8×8 learned, classes    –                        scored and added  0.65 M
    fcn_no_addition                       8×8 learned, classes    –                        –                 0.64 M
    fcn_no_dim_reduction                  8×8 learned, 64         –                        added, 64         1.66 M
    fcn_no_addition_no_dim_reduction      8×8 learned, 64         –                        –                 1.66 M

The pooled maps are those of the encoder (figure 3, of FCN's decoder: behind the pooling; taken to hold for
encoder_addition, too): pool3 meets what comes up from pool4, pool2 and pool1 the next two, and at the image's own size
there is none. Decoders have no ReLU. The release's convolutions have biases, the paper's none.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.models import trunks
from fcn_jax.models.layers import BatchNorm, Conv, DropoutSites, Upsample, channels_of
from fcn_jax.models.segnet import EPSILON, SHIFT
from fcn_jax.ops.grid import IMAGE, Grid, crop_to_overlap
from fcn_jax.ops.normalization import local_response_norm
from fcn_jax.ops.unpooling import flat_indices, max_pool_with_places, unpool

BLOCKS = (1, 2, 3, 4)
CHANNELS, KERNEL = 64, 7
BAYESIAN = ("pool3", "pool4", "conv_decode4", "conv_decode3")


@dataclasses.dataclass(frozen=True)
class Decoder:
    """How a map is brought up by two: a row of the paper's table 1."""

    up: str  # "unpool", "bilinear" or "learned"
    convolution: str = ""  # behind it: "full", "single" (each channel alone) or none
    addition: bool = False  # of the encoder's pooled maps of that size
    scored: bool = False  # classes, not 64 channels, are brought up: the deepest map is scored first


DECODERS = {
    "bilinear": Decoder("bilinear"),
    "basic": Decoder("unpool", "full"),
    "encoder_addition": Decoder("unpool", "full", addition=True),
    "single_channel": Decoder("unpool", "single"),
    "fcn": Decoder("learned", addition=True, scored=True),
    "fcn_no_addition": Decoder("learned", scored=True),
    "fcn_no_dim_reduction": Decoder("learned", addition=True),
    "fcn_no_addition_no_dim_reduction": Decoder("learned"),
}


class SegNetBasic(nn.Module):
    """Scores every pixel of the input blob `[b h w channels]`, any h and w ≥ 1, with `num_classes` logits.

    `decoder` is a row of DECODERS. The other fields are those of `models.segnet.SegNet`.
    """

    num_classes: int
    decoder: str = "basic"
    width: float = 1.0
    channels: Mapping[str, int] | None = None
    dropout_after: tuple[str, ...] = ()
    dropout: float = 0.5
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
        """Logits `[b h w c]`; see `models.segnet.SegNet`."""
        stochastic = train if stochastic is None else stochastic
        blobs = self.blobs(image, train, stochastic, example_index)
        taps = {name: x for name, (x, _) in blobs.items()}
        (score,) = self.class_layers()[""][:1]
        logits = taps["score"] if DECODERS[self.decoder].scored else taps[score]
        return (logits, taps) if return_taps else logits

    @nn.compact
    def blobs(
        self, image: jax.Array, train: bool, stochastic: bool, example_index: jax.Array | None
    ) -> dict[str, tuple[jax.Array, Grid]]:
        """Every layer's output by the release's blob names, with the grid that it lies on."""
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder={self.decoder!r} is none of {', '.join(DECODERS)}")
        trunks.check_layers(self, image, self.layer_names())
        decoder = DECODERS[self.decoder]
        dropped = DropoutSites(self, stochastic, example_index)

        def normed(name: str, x: jax.Array, grid: Grid, features: int, groups: int = 1) -> tuple[jax.Array, Grid]:
            conv = self._conv(name, features, KERNEL, groups)
            norm = BatchNorm(self.momentum, EPSILON, self.axis_name, self.dtype, SHIFT, name=f"{name}_bn")
            return norm(conv(x), train=train), conv.grid(grid)

        def scored(name: str, x: jax.Array) -> jax.Array:
            x = self._conv(name, self.num_classes, 1)(x)
            return x.astype(np.promote_types(x.dtype, np.float32))

        blobs = {"norm": (local_response_norm(image.astype(self.dtype)), IMAGE)}
        x, grid = blobs["norm"]
        places: dict[int, jax.Array] = {}
        for block in BLOCKS:
            x, grid = normed(f"conv{block}", x, grid, channels_of(self, f"conv{block}", CHANNELS))
            x, grid = blobs[f"conv{block}"] = nn.relu(x), grid
            largest, places[block] = max_pool_with_places(x)
            mask, grid = flat_indices(places[block], x.shape[-1], x.shape[2]), grid.conv(kernel=2, stride=2)
            x = dropped(f"pool{block}", largest)
            blobs |= {f"pool{block}": (x, grid), f"pool{block}_mask": (mask, grid)}

        (score, *skips) = self.class_layers()[""]
        if decoder.scored:
            x, grid = blobs[score] = scored(score, x), grid
        for block in reversed(BLOCKS):
            size, name = blobs[f"conv{block}"][0].shape[1:3], f"upsample{block}"
            if decoder.up == "unpool":
                x, grid = unpool(x, places[block], size), grid.transposed_conv(2, 2)
            else:
                kernel, offset = (4, 1) if decoder.up == "bilinear" else (8, 3)
                x = self._up(name, x, size, kernel, offset)
                grid = grid.transposed_conv(kernel, 2).crop(offset)
            blobs[name] = x, grid
            if decoder.convolution:
                name = f"conv_decode{block}"
                groups = x.shape[-1] if decoder.convolution == "single" else 1
                features = x.shape[-1] if groups > 1 else channels_of(self, name, CHANNELS)
                x, grid = normed(name, x, grid, features, groups)
                x, grid = blobs[name] = dropped(name, x), grid
            if decoder.addition and block > 1:
                pooled, pooled_grid = blobs[f"pool{block - 1}"]
                if decoder.scored:
                    skip = skips[len(BLOCKS) - block]
                    pooled, _ = blobs[skip] = scored(skip, pooled), pooled_grid
                x, pooled, grid = crop_to_overlap(x, grid, pooled, pooled_grid)
                x, grid = blobs[f"fuse{block}"] = x + pooled, grid
        dropped.check(self.decoder)
        if decoder.scored:
            blobs["score"] = x, grid
        else:
            x, grid = blobs[score] = scored(score, x), grid
        return blobs | {"prob": (nn.softmax(x), grid)}

    def _up(self, name: str, x: jax.Array, size: tuple[int, ...], kernel: int, offset: int) -> jax.Array:
        """By two, cut to the encoder's size: bilinear, or by 8×8 kernels that start so."""
        form = "dense" if kernel == 8 else "fixed"
        return Upsample(kernel, 2, form, start=4, name=name)(x, offset=offset, size=(size[0], size[1]))

    def grids(self) -> dict[str, Grid]:
        """The grid of every blob, by name: its stride, place and receptive field."""
        return trunks.grids(self, lambda net, image: net.blobs(image, False, False, None))

    def score_grid(self) -> Grid:
        """Where the scores of `upsample=False` lie: on the image's own pixels."""
        return IMAGE

    def first_layers(self) -> tuple[str, ...]:
        """The layer that sees the image."""
        return ("conv1",)

    def class_layers(self) -> dict[str, tuple[str, ...]]:
        """By head ("" for the only one): the layers that have an output for each class."""
        decoder = DECODERS[self.decoder]
        scored = reversed(BLOCKS[:-1]) if decoder.scored and decoder.addition else ()
        return {"": ("conv_classifier", *(f"score_pool{block}" for block in scored))}

    def deconvolutions(self) -> tuple[str, ...]:
        """The layers whose kernels scatter."""
        learned = DECODERS[self.decoder].up == "learned"
        return tuple(f"upsample{block}" for block in reversed(BLOCKS)) if learned else ()

    def layer_names(self) -> tuple[str, ...]:
        """The convolutions whose widths are free, in order."""
        decoders = [f"conv_decode{block}" for block in reversed(BLOCKS)]
        encoders = [f"conv{block}" for block in BLOCKS]
        return (*encoders, *(decoders if DECODERS[self.decoder].convolution == "full" else ()))

    def _conv(self, name: str, features: int, kernel_size: int, groups: int = 1) -> Conv:
        return Conv(
            features,
            kernel_size,
            kernel_size // 2,
            groups=groups,
            dtype=self.dtype,
            precision=self.precision,
            name=name,
        )
