"""Convolutions of NHWC maps with HWIO kernels, lowered to what is fast on the machine at hand.

XLA's own convolutions are the rule. On CPUs there are three exceptions. The first two are written as shifted slices
(patches) times a matrix. Large kernels: fc6, 7×7 over 512 channels, runs at less than half the rate of a matrix
product, and with padding on a map smaller than the kernel it falls into a naive loop (12 s forward for an image of
180×240). And few input channels, a net's first layer, for the sake of precision: XLA sums the kernel's gradient one
pixel after another in float32 (3 to 64 channels, 283×317 pixels: largest error 8e-6 of the largest value, by patches
4e-7). Groups, third, are computed one after another, each as a convolution of its own. The choice is made when the
program is lowered, so the same function compiles for a TPU from a laptop.

Measured on two CPU cores, jax 0.10.2, one 12×15 map of 512 channels to 4096, 7×7, "same": forward 0.81 s by XLA's
convolution and 0.43 s by patches, with both gradients 4.2 s and 1.5 s. AlexNet's conv2 on 34×34, two groups: forward
38 ms by XLA's grouped convolution and 10 ms one by one, with both gradients 169 ms and 24 ms. (The machine was busy:
read the ratios.)
"""

import jax
import jax.numpy as jnp
from jax import lax

_PATCHES_FROM_KERNEL = 5
_PATCHES_UP_TO_CHANNELS = 4


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Cross-correlates `x [b h w i]` with `kernel [k k i/groups o]`, zero padded, to `[b h' w' o]`.

    `h' = floor((h + 2·padding − dilation·(k − 1) − 1) / stride) + 1`, as in Caffe and PyTorch. Of several groups each
    computes its share of the outputs, in order, from its share of the inputs.
    """

    def native(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=[(padding, padding)] * 2,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
            precision=precision,
        )

    def by_groups(x, kernel):
        return jnp.concatenate(
            [
                conv2d(*shares, stride=stride, padding=padding, dilation=dilation, precision=precision)
                for shares in zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
            ],
            axis=-1,
        )

    def by_patches(x, kernel):
        return _patches_times_matrix(x, kernel, stride, padding, dilation, precision)

    if groups > 1:
        return lax.platform_dependent(x, kernel, cpu=by_groups, default=native)
    if max(kernel.shape[:2]) < _PATCHES_FROM_KERNEL and kernel.shape[2] > _PATCHES_UP_TO_CHANNELS:
        return native(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=by_patches, default=native)


def deconv2d(x: jax.Array, kernel: jax.Array, *, padding: int = 0, precision: lax.PrecisionLike = None) -> jax.Array:
    """Transposed convolution of stride 1 of `x [b h w i]` with `kernel [k k i o]`, to `[b h+k−1−2p w+k−1−2p o]`.

    It scatters, `out[i + k − p] += x[i] · w[k]`, and so is the convolution with the flipped kernel and a padding of
    `k − 1 − p`. A kernel larger than the map (DeconvNet's 7×7 from one cell) would meet almost nothing but padding:
    there each cell times the kernel is laid over the others'.
    """
    size = kernel.shape[0]
    if size <= min(x.shape[1:3]):
        return conv2d(x, kernel[::-1, ::-1], padding=size - 1 - padding, precision=precision)
    products = jnp.einsum("bhwi,klio->bhkwlo", x, kernel, precision=precision)
    batch, height, _, width, _, features = products.shape
    whole = jnp.zeros((batch, height + size - 1, width + size - 1, features), products.dtype)
    for row in range(height):
        for column in range(width):
            at = (0, row, column, 0)
            patch = lax.dynamic_slice(whole, at, (batch, size, size, features)) + products[:, row, :, column]
            whole = lax.dynamic_update_slice(whole, patch, at)
    return whole[:, padding : whole.shape[1] - padding, padding : whole.shape[2] - padding]


def _patches_times_matrix(x, kernel, stride, padding, dilation, precision):
    kernel_height, kernel_width, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    # How far each tap travels over the map: not at all where the map is smaller than the kernel.
    height = max(x.shape[1] - dilation * (kernel_height - 1), 0)
    width = max(x.shape[2] - dilation * (kernel_width - 1), 0)
    patches = jnp.concatenate(
        [
            x[:, top : top + height : stride, left : left + width : stride]
            for top in range(0, dilation * kernel_height, dilation)
            for left in range(0, dilation * kernel_width, dilation)
        ],
        axis=-1,
    )
    matrix = kernel.reshape(kernel_height * kernel_width * channels, features)
    return jnp.tensordot(patches, matrix, axes=1, precision=precision)
