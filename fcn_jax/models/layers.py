"""The layers that the nets share, as Flax modules around `ops`: convolution, up-sampling, dropout.

Parameters are float32 whatever the compute dtype, and lie flat under the release's layer names.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.ops import bilinear, convolution
from fcn_jax.ops.grid import Grid

# How an up-sampling layer is held: `fixed` is bilinear and no parameter, `grouped` one kernel a channel, `dense` a
# kernel for each pair of channels, as Caffe stores them, `dense_biased` the same with a bias. Parameters start
# bilinear; optim freezes or learns them.
UPSAMPLING_FORMS = ("fixed", "grouped", "dense", "dense_biased")


class Conv(nn.Module):
    """Convolution with a square kernel: `[b h w i]` to `[b h' w' features]`; see `ops.convolution.conv2d`."""

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
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.shape[-1] % self.groups or self.features % self.groups:
            shares = f"{x.shape[-1]} channels in and {self.features} out"
            raise ValueError(f"{self.name}: {shares} cannot be shared by {self.groups} groups")
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = convolution.conv2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            precision=self.precision,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            y = y + bias.astype(self.dtype)[None, None, None]
        return y

    def grid(self, grid: Grid) -> Grid:
        """Where the output's cells lie, for an input whose cells lie on `grid`."""
        return grid.conv(self.kernel_size, self.stride, self.padding, self.dilation)


class Upsample(nn.Module):
    """Transposed convolution by `stride` that starts, or stays, bilinear: `[b h w c]` to `[b s(h−1)+k s(w−1)+k c]`."""

    kernel_size: int
    stride: int
    form: str = "fixed"

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
        taps = bilinear.bilinear_kernel(self.kernel_size)
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
