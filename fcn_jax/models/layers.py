"""The layers that the nets share, as Flax modules around `ops`: convolution, batch norm, up-sampling, dropout.

Parameters are float32 whatever the compute dtype, and lie flat under the release's layer names.
"""

import dataclasses
import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.errors import ConfigError
from fcn_jax.ops import bilinear, convolution, rematerialisation, surroundings
from fcn_jax.ops.grid import Grid
from fcn_jax.ops.unpooling import flat_indices, max_pool_with_places, unpool

# How an up-sampling layer is held: `fixed` is bilinear and no parameter, `grouped` one kernel a channel, `dense` a
# kernel for each pair of channels, as Caffe stores them, `dense_biased` the same with a bias. Parameters start
# bilinear; optim freezes or learns them.
UPSAMPLING_FORMS = ("fixed", "grouped", "dense", "dense_biased")


def is_fully_connected(layer: str) -> bool:
    """Whether a layer is one of a classifier's: fc6, fc7, or with a stream's name behind; fc6-deconv is none."""
    return re.fullmatch(r"fc[67]\w*", layer) is not None


def channels_of(net: Any, layer: str, published: int, multiple: int = 1) -> int:
    """A layer's channel count by the net's fields: `channels`, for fc6 and fc7 `fc_width`, else `published · width`.

    The latter is rounded to a multiple of `multiple`.
    """
    if net.channels and layer in net.channels:
        return net.channels[layer]
    if is_fully_connected(layer) and net.fc_width is not None:
        return net.fc_width
    return multiple * max(1, round(published * net.width / multiple))


class Conv(nn.Module):
    """Convolution with a square kernel: `[b h w i]` to `[b h' w' features]`; see `ops.convolution.conv2d`.

    Where its padding is wide, and for a map that is so held already, the result is `ops.surroundings.Surrounded`.
    """

    features: int
    kernel_size: int
    padding: int = 0
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    dtype: Any = jnp.float32
    precision: jax.lax.PrecisionLike = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        if x.shape[-1] % self.groups or self.features % self.groups:
            shares = f"{x.shape[-1]} channels in and {self.features} out"
            raise ValueError(f"{self.name}: {shares} cannot be shared by {self.groups} groups")
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = surroundings.conv2d(
            jax.tree.map(lambda x: x.astype(self.dtype), x),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            precision=self.precision,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            y = jax.tree.map(lambda y: y + bias.astype(self.dtype)[None, None, None], y)
        return y

    def grid(self, grid: Grid) -> Grid:
        """Where the output's cells lie, for an input whose cells lie on `grid`."""
        return grid.conv(self.kernel_size, self.stride, self.padding, self.dilation)


class BatchNorm(nn.Module):
    """Normalises each channel of `[b h w c]` by its mean and variance, then scales and shifts it.

    Training takes the statistics of the batch, over all devices along `axis_name` if that is given, and moves the
    running ones (`batch_stats`) towards them, keeping `momentum` of the old; otherwise the running ones are taken. The
    running variance is the unbiased one, as in PyTorch and in the scripts of SegNet's authors. A file of nets whose
    statistics are folded into scale and shift, as theirs and DeconvNet's, is a mean of 0 and a variance of 1: with an
    epsilon of 1e-9 float32 then computes `scale · x + shift` exactly. Statistics are float32 or better.

    Source: Ioffe and Szegedy, ICML 2015; caffe-segnet's bn_layer.cpp (epsilon 1e-9).
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = jnp.float32
    shift: float = 0.0  # where the bias starts

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones_init(), shape)
        bias = self.param("bias", nn.initializers.constant(self.shift), shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        wide = x.astype(np.promote_types(x.dtype, np.float32))
        center, spread = mean.value.astype(wide.dtype), var.value.astype(wide.dtype)
        if train:
            center, spread, count = self._statistics(wide)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                unbiased = spread * (count / max(count - 1, 1))
                for running, new in ((mean, center), (var, unbiased)):
                    kept = self.momentum * running.value
                    running.value = kept + (1 - self.momentum) * new.astype(running.value.dtype)
        factor = scale.astype(wide.dtype) / jnp.sqrt(spread + self.epsilon)
        centered = wide - center[None, None, None]
        return (centered * factor[None, None, None] + bias.astype(wide.dtype)[None, None, None]).astype(self.dtype)

    def _statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Mean and biased variance of each channel, and over how many values."""
        count = x.size // x.shape[-1]
        # Marked one by one: the derivative of what follows from them asks for each.
        kept = partial(rematerialisation.mark, name=rematerialisation.STATISTICS)
        mean = kept(jnp.mean(x, axis=(0, 1, 2)))
        # Not E[x²] − E[x]², which cancels where a channel's mean is far from zero.
        var = kept(jnp.mean(jnp.square(x - mean[None, None, None]), axis=(0, 1, 2)))
        if self.axis_name is not None and not self.is_initializing():
            means, variances = kept(jax.lax.all_gather((mean, var), self.axis_name))
            mean = jnp.mean(means, axis=0)
            var = jnp.mean(variances + jnp.square(means - mean[None]), axis=0)
            count *= means.shape[0]
        if count == 1 and not self.is_initializing():
            raise ConfigError(
                f"{self.name}: a batch norm over a single value has nothing to learn from; more images a step, or "
                "larger ones, give it more"
            )
        return mean, var, count


@dataclasses.dataclass(frozen=True)
class Normed:
    """A convolution and the batch norm behind it, as one layer of a trunk."""

    conv: Any
    norm: BatchNorm
    train: bool

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x), train=self.train)

    def grid(self, grid: Grid) -> Grid:
        """Where the output's cells lie, for an input whose cells lie on `grid`."""
        return self.conv.grid(grid)


class RememberedPools:
    """An encoder's poolings, which a decoder undoes: `pool` is handed to a trunk, `unpool` told the block."""

    def __init__(self):
        self._pooled: list[
            tuple[jax.Array, tuple[int, ...]]
        ] = []  # places in the windows, and the shape before pooling

    def pool(self, x: jax.Array, grid: Grid) -> tuple[jax.Array, Grid]:
        """A 2×2 max pooling of stride two, of the next block."""
        largest, places = max_pool_with_places(x)
        self._pooled.append((places, x.shape))
        return largest, grid.conv(kernel=2, stride=2)

    def unpool(self, x: jax.Array, grid: Grid, block: int) -> tuple[jax.Array, Grid]:
        """Values back at the places of a block's pooling, blocks counted from 1."""
        places, shape = self._pooled[block - 1]
        return unpool(x, places, shape[1:3]), grid.transposed_conv(2, 2)

    def masks(self, blobs: dict[str, tuple[jax.Array, Grid]]) -> dict[str, tuple[jax.Array, Grid]]:
        """The release's blobs `pool1_mask` …, each on the grid of its pooled map among `blobs`."""
        return {
            f"pool{block}_mask": (flat_indices(places, shape[3], shape[2]), blobs[f"pool{block}"][1])
            for block, (places, shape) in enumerate(self._pooled, start=1)
        }


class Deconv(nn.Module):
    """Learned transposed convolution of stride 1: `[b h w i]` to `[b h+k−1−2p w+k−1−2p features]`, kernel `[k k i o]`.

    The kernel scatters, as Caffe's does: `out[i + k − p] += x[i] · w[k]`.
    """

    features: int
    kernel_size: int
    padding: int = 0
    dtype: Any = jnp.float32
    precision: jax.lax.PrecisionLike = None
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.01)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = convolution.deconv2d(
            x.astype(self.dtype), kernel.astype(self.dtype), padding=self.padding, precision=self.precision
        )
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return y + bias.astype(self.dtype)[None, None, None]

    def grid(self, grid: Grid) -> Grid:
        """Where the output's cells lie, for an input whose cells lie on `grid`."""
        return grid.transposed_conv(self.kernel_size, 1).crop(self.padding)


class Upsample(nn.Module):
    """Transposed convolution by `stride` that starts, or stays, bilinear: `[b h w c]` to `[b s(h−1)+k s(w−1)+k c]`.

    A parameter starts as the bilinear kernel of `start` taps, `kernel_size` unless given, amid zeros.
    """

    kernel_size: int
    stride: int
    form: str = "fixed"
    start: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, offset: int = 0, size: tuple[int, int] | None = None) -> jax.Array:
        """With `offset` and `size` `(H, W)` only that part of the output is given."""
        if self.form not in UPSAMPLING_FORMS:
            raise ValueError(
                f"{self.name}: no form {self.form!r} of up-sampling; there are {', '.join(UPSAMPLING_FORMS)}"
            )
        if self.form == "fixed":
            return bilinear.upsample_bilinear(x, self.kernel_size, self.stride, offset=offset, size=size)
        kernel = self.param("kernel", self._bilinear_init, x.shape[-1])
        y = bilinear.transposed_conv(x, kernel.astype(x.dtype), self.stride)
        if self.form == "dense_biased":
            bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
            y = y + bias.astype(y.dtype)[None, None, None]
        height, width = size if size is not None else (y.shape[1] - offset, y.shape[2] - offset)
        return y[:, offset : offset + height, offset : offset + width]

    def _bilinear_init(self, key: jax.Array, channels: int) -> jax.Array:
        start = self.start or self.kernel_size
        rim = (self.kernel_size - start) // 2
        taps = np.pad(bilinear.bilinear_kernel(start), rim)
        between = np.ones((1, channels)) if self.form == "grouped" else np.eye(channels)
        return jnp.asarray(np.outer(taps, taps)[:, :, None, None] * between, jnp.float32)

    def grid(self, grid: Grid) -> Grid:
        """Where the output's cells lie, for an input whose cells lie on `grid`."""
        return grid.transposed_conv(self.kernel_size, self.stride)


class Dropout(nn.Module):
    """Elementwise inverted dropout whose mask belongs to the example, not to its place on a device.

    Each example's mask comes from the `dropout` stream and the example's index in the global batch, so it is the same
    on any number of devices, and for any split of a batch.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, example_index: jax.Array | None = None) -> jax.Array:
        if not train or self.rate == 0:
            return x
        if example_index is None:
            example_index = jnp.arange(x.shape[0])
        key = self.make_rng("dropout")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_index)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))


class DropoutSites:
    """Dropout behind those of a net's blobs that its `dropout_after` names, each called by its name as it is made."""

    def __init__(self, net: Any, stochastic: bool, example_index: jax.Array | None):
        self._net, self._stochastic, self._example_index = net, stochastic, example_index
        self._passed: set[str] = set()

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        """The blob as it goes on."""
        self._passed.add(name)
        if name not in self._net.dropout_after:
            return x
        dropout = Dropout(self._net.dropout, name=f"drop_{name}")
        return dropout(x, train=self._stochastic, example_index=self._example_index)

    def check(self, where: str) -> None:
        """Raises ValueError, once all blobs have passed, for a name that was none of them."""
        if missed := set(self._net.dropout_after) - self._passed:
            raise ValueError(
                f"dropout_after names {', '.join(sorted(missed))}: on {where} it is one of "
                f"{', '.join(sorted(self._passed))}"
            )
