"""FCN-32s, FCN-16s and FCN-8s, on any of the trunks that the papers and the release put under them.

Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015 (figure 3); Shelhamer,
Long and Darrell, PAMI 2017 (figure 3, and 8s at once); the nets as released (`voc-fcn32s` … `pascalcontext-fcn8s`).

The classifier's fully connected layers become convolutions (on VGG fc6 is 7×7, fc7 1×1) and score every class on a map
of stride 32. Finer stages are scored too and added, coarse scores up-sampled by two each time; one last bilinear
transposed convolution brings the sum to pixels.

    net        scores          up-sampling before the sum, and the last         offsets of the crops (100 pixels of pad)
    FCN-32s    fc7             upscore 64/32 (AlexNet, GoogLeNet: 63/32)        19 (18)
    FCN-16s    + pool4         upscore2 4/2, upscore16 32/16                    5, 27
    FCN-8s     + pool3         upscore2, upscore_pool4 4/2, upscore8 16/8       5, 9, 31

The release pads the image by 100 pixels so that any size passes fc6; `padding="same"` pads fc6 instead, wasting
nothing. The offsets are not written anywhere: `ops.Grid` derives them, for both.

Two nets of the release branch. SIFT Flow's has two heads, each a whole set of score and up-sampling layers over one
trunk; NYUD's late fusion has two streams, each a whole net for its half of the channels, whose scores are averaged.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.models import trunks
from fcn_jax.models.layers import Conv, Dropout, Upsample
from fcn_jax.models.trunks import TRUNKS, Blobs
from fcn_jax.ops import bilinear
from fcn_jax.ops.grid import IMAGE, Grid, crop_to_overlap
from fcn_jax.ops.resampling import Resampling

# Up-sampling layers by the stride of the finest scores: a step of two before each skip, and the last to pixels.
UPSAMPLING = {32: ("upscore",), 16: ("upscore2", "upscore16"), 8: ("upscore2", "upscore_pool4", "upscore8")}
SKIPS = {32: (), 16: ("pool4",), 8: ("pool4", "pool3")}
PADDINGS = ("caffe", "same")


class FCN(nn.Module):
    """Scores every pixel of the input blob `[b h w channels]`, any h and w ≥ 1, with `num_classes` logits.

    A mapping `num_classes` gives a head for each of its names, and logits as a dict. Of several `streams`, each is fed
    its even share of `in_channels`. `width` multiplies all channel counts and `fc_width` sets those of fc6 and fc7
    (4096 · width by default); `channels` overrides single layers. `pool_scales` multiplies pool4 and pool3 before they
    are scored (at once: 0.01, 0.0001). `upsampling` is one of layers.UPSAMPLING_FORMS, or such a form by layer name.
    Compute runs in `dtype`; parameters, up-sampling and logits in float32 or better.
    """

    num_classes: int | Mapping[str, int]
    trunk: str = "vgg16"
    stride: int = 8
    padding: str = "same"
    streams: tuple[str, ...] = ("",)
    width: float = 1.0
    fc_width: int | None = None
    channels: Mapping[str, int] | None = None
    pool_scales: tuple[float, float] = (1.0, 1.0)
    lrn_alpha: float = 1e-4
    dropout: float | None = None  # None: as published
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
    ) -> Any:
        """Logits `[b h w c]`, or `{head: logits}`; the coarse scores before the last up-sampling with `upsample=False`.

        With `return_taps` also every layer's output by the release's blob names. Training takes the `dropout` stream;
        `example_index [b]` tells each example's place in the global batch, where that is split over devices.
        """
        blobs, outputs = self.blobs(image, train, upsample, example_index)
        taps = {name: x for name, (x, _) in blobs.items()}
        logits = {head: taps[name] for head, name in outputs.items()}
        logits = logits if isinstance(self.num_classes, Mapping) else logits[""]
        return (logits, taps) if return_taps else logits

    @nn.compact
    def blobs(
        self, image: jax.Array, train: bool, upsample: bool, example_index: jax.Array | None
    ) -> tuple[Blobs, dict[str, str]]:
        """Every layer's output by the release's blob names, with the grid that it lies on; and each head's last."""
        self._check(image)
        trunk = TRUNKS[self.trunk]
        pad_first, pad_fc6 = trunk.paddings[self.padding]
        rate = trunk.dropout if self.dropout is None else self.dropout

        def dropout(name: str, x: jax.Array) -> jax.Array:
            return Dropout(rate, name=name)(x, train=train, example_index=example_index)

        blobs: Blobs = {}
        outputs: dict[str, str] = {}
        share = self.in_channels // len(self.streams)
        for place, stream in enumerate(self.streams):
            part = image[..., place * share : (place + 1) * share]
            options = {name: getattr(self, name) for name in trunk.options}
            blobs |= trunk.run(self._conv, part, IMAGE, first_padding=pad_first, suffix=stream, **options)
            x, grid = blobs[next(reversed(blobs))]
            if trunk.fc6 is None:
                x = dropout("drop", x)
            else:
                blobs |= trunks.fully_connected(self._conv, dropout, x, grid, trunk.fc6, pad_fc6, stream)
                x, grid = blobs[f"fc7{stream}"]
            for head, num_classes in self._heads().items():
                blobs[f"score_fr{stream}{head}"] = self._score(f"score_fr{stream}{head}", x, num_classes), grid

        *upscores, last_upscore = UPSAMPLING[self.stride]
        for head, num_classes in self._heads().items():
            name = self._fuse_streams(blobs, head)
            for upscore, pool in zip(upscores, SKIPS[self.stride], strict=True):
                x, grid = blobs[name]
                up = self._upsample(upscore + head, 4, 2)
                x, grid = blobs[upscore + head] = up(x), up.grid(grid)
                skip, skip_grid = blobs[self._scale(blobs, pool)]
                skip = self._score(f"score_{pool}{head}", skip, num_classes)
                blobs[f"score_{pool}{head}"] = skip, skip_grid
                skip, x, grid = crop_to_overlap(skip, skip_grid, x, grid)
                blobs[f"score_{pool}{head}c"] = skip, skip_grid.crop(skip_grid.offset_of(grid))
                name = f"fuse_{pool}{head}"
                blobs[name] = x + skip, grid
            if upsample:
                x, grid = blobs[name]
                up = self._upsample(last_upscore + head, self._last_kernel(), self.stride)
                grid = up.grid(grid)
                offset = grid.offset_of(IMAGE)
                name = f"score{head}"
                blobs[name] = up(x, offset=offset, size=(image.shape[1], image.shape[2])), grid.crop(offset)
            outputs[head.removeprefix("_")] = name
        return blobs, outputs

    def grids(self) -> dict[str, Grid]:
        """The grid of every blob, by name: its stride, place and receptive field (404 pixels for fc6)."""
        return trunks.grids(self, lambda net, image: net.blobs(image, False, True, None)[0])

    def score_grid(self) -> Grid:
        """Where the scores of `upsample=False` lie."""
        grids = self.grids()
        names = [name for name in grids if name.startswith(("score_fr", "score_fused", "fuse_pool"))]
        return min((grids[name] for name in names), key=lambda grid: grid.step)

    def resampling(self, cells: tuple[int, int], size: tuple[int, int]) -> Resampling | None:
        """The last up-sampling, of scores of `cells` (h, w) to an image of `size` (H, W); None where it is learned."""
        *_, last = UPSAMPLING[self.stride]
        forms = {self._upsampling_form(last + head) for head in self._heads()}
        if forms != {"fixed"}:
            return None
        kernel = self._last_kernel()
        offset = self.score_grid().transposed_conv(kernel, self.stride).offset_of(IMAGE)
        return bilinear.upsampling(cells, kernel, self.stride, offset=offset, size=size)

    def first_layers(self) -> tuple[str, ...]:
        """The layers that see the image: one a stream."""
        return tuple(TRUNKS[self.trunk].layers[0] + stream for stream in self.streams)

    def layer_names(self) -> tuple[str, ...]:
        """The layers below the scores, in order, those of one stream after those of another."""
        return tuple(layer + stream for stream in self.streams for layer in trunks.inner_layers(self.trunk))

    def class_layers(self) -> dict[str, tuple[str, ...]]:
        """By head ("" for the only one): the layers that have an output for each class."""
        coarse = [f"score_fr{stream}" for stream in self.streams]
        finer = [f"score_{pool}" for pool in SKIPS[self.stride]]
        return {head.removeprefix("_"): tuple(name + head for name in (*coarse, *finer)) for head in self._heads()}

    def upsampling_kernels(self) -> dict[str, int]:
        """The size of each up-sampling layer's kernel."""
        *upscores, last = UPSAMPLING[self.stride]
        sizes = {**dict.fromkeys(upscores, 4), last: self._last_kernel()}
        return {name + head: size for head in self._heads() for name, size in sizes.items()}

    def pool_factors(self) -> dict[str, float]:
        """What pool4 and pool3 are multiplied by before they are scored, where the net has these skips."""
        return dict(zip(SKIPS[self.stride], self.pool_scales, strict=False))

    def _heads(self) -> dict[str, int]:
        """Classes by the end of a head's layer names: `_sem`, or nothing for the only head."""
        if isinstance(self.num_classes, Mapping):
            return {f"_{head}": count for head, count in self.num_classes.items()}
        return {"": self.num_classes}

    def _check(self, image: jax.Array) -> None:
        trunks.check(self, image, self.layer_names() if self.trunk in TRUNKS else ())
        for field, value, choices in (("padding", self.padding, PADDINGS), ("stride", self.stride, UPSAMPLING)):
            if value not in choices:
                raise ValueError(f"{field}={value!r} is none of {', '.join(map(str, choices))}")
        if self.stride != 32 and (len(self.streams) > 1 or TRUNKS[self.trunk].kernel != 64):
            raise ValueError(f"stride={self.stride}: skips are defined for one stream on a VGG trunk")
        if self.in_channels % len(self.streams):
            raise ValueError(f"{self.in_channels} channels cannot be shared by {len(self.streams)} streams")
        named = () if isinstance(self.upsampling, str) else self.upsampling
        if unknown := set(named) - set(self.upsampling_kernels()):
            known = ", ".join(self.upsampling_kernels())
            raise ValueError(f"upsampling names {', '.join(sorted(unknown))}, the net has {known}")

    def _fuse_streams(self, blobs: Blobs, head: str) -> str:
        """The name of a head's coarse scores; those of several streams are averaged."""
        names = [f"score_fr{stream}{head}" for stream in self.streams]
        if len(names) == 1:
            return names[0]
        total = sum((blobs[name][0] for name in names[1:]), blobs[names[0]][0])
        blobs[f"score_fused{head}"] = total * jnp.asarray(1 / len(names), total.dtype), blobs[names[0]][1]
        return f"score_fused{head}"

    def _scale(self, blobs: Blobs, pool: str) -> str:
        """The name of the skip's features as they are scored: multiplied by a factor where the net has one."""
        factor, name = self.pool_factors()[pool], f"scale_{pool}"
        if factor == 1:
            return pool
        if name not in blobs:  # heads share it
            features, grid = blobs[pool]
            blobs[name] = features * jnp.asarray(factor, features.dtype), grid
        return name

    def _last_kernel(self) -> int:
        return TRUNKS[self.trunk].kernel if self.stride == 32 else 2 * self.stride

    def _conv(self, *shape: Any, **options: Any) -> Conv:
        return trunks.conv(self, *shape, **options)

    def _score(self, name: str, x: jax.Array, num_classes: int) -> jax.Array:
        zeros = nn.initializers.zeros_init()
        x = Conv(num_classes, 1, kernel_init=zeros, dtype=self.dtype, precision=self.precision, name=name)(x)
        return x.astype(np.promote_types(x.dtype, np.float32))

    def _upsample(self, name: str, kernel_size: int, stride: int) -> Upsample:
        return Upsample(kernel_size, stride, self._upsampling_form(name), name=name)

    def _upsampling_form(self, name: str) -> str:
        return self.upsampling if isinstance(self.upsampling, str) else self.upsampling.get(name, "fixed")
