"""From Caffe's layouts to the nets': each function gives the array in the wanted shape, or None where it cannot.

Caffe's convolution is `[out in/group k k]` and becomes `[k k in/group out]`; its inner product `[out in·k·k]` flattens
channels first, so it is a convolution once reshaped; its deconvolution `[in out/group k k]` scatters exactly as
`ops.bilinear.transposed_conv` does, unflipped. Biases and legacy inner products carry axes of length 1 in front.
"""

import math
from collections.abc import Sequence

import numpy as np

from fcn_jax.ops.bilinear import bilinear_kernel


def convolution(blob: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Kernel `[k k i o]` from a convolution `[o i k k]`, or an inner product `[o i·k·k]` or `[1 1 o i·k·k]`."""
    height, width, inputs, outputs = shape
    oihw = (outputs, inputs, height, width)
    flat = (outputs, inputs * height * width)
    if blob.shape != oihw and blob.shape not in (flat, (1, 1, *flat)):
        return None
    return blob.reshape(oihw).transpose(2, 3, 1, 0)


def vector(blob: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Bias `[o]` from a blob with any number of axes of length 1 around its one."""
    (length,) = shape
    if blob.size != length or max(blob.shape, default=1) != length:
        return None
    return blob.reshape(length)


def transposed_convolution(blob: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Kernel `[k k i o]` (dense) or `[k k 1 c]` (grouped) from a deconvolution `[i o k k]` or `[c 1 k k]`.

    The two forms pass into each other where that is exact: a grouped file onto a dense kernel's diagonal, and a dense
    file, if it is zero off its diagonal, onto a grouped kernel.
    """
    height, width, inputs, outputs = shape
    grouped_file, dense_file = (outputs, 1, height, width), (outputs, outputs, height, width)
    if inputs == 1:
        if blob.shape == grouped_file:
            return blob.transpose(2, 3, 1, 0)
        if blob.shape == dense_file and _is_diagonal(blob):
            return _diagonal(blob)[:, None].transpose(2, 3, 1, 0)
        return None
    if blob.shape == (inputs, outputs, height, width):
        return blob.transpose(2, 3, 0, 1)
    if blob.shape == grouped_file and inputs == outputs:
        dense = np.zeros(dense_file, blob.dtype)
        dense[np.arange(outputs), np.arange(outputs)] = blob[:, 0]
        return dense.transpose(2, 3, 0, 1)
    return None


def deconvolution(blob: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Kernel `[k k i o]` from a learned deconvolution `[i o k k]`."""
    height, width, inputs, outputs = shape
    return blob.transpose(2, 3, 0, 1) if blob.shape == (inputs, outputs, height, width) else None


def is_bilinear(blob: np.ndarray, kernel_size: int) -> bool:
    """Whether a deconvolution blob `[c c k k]` or `[c 1 k k]` is exactly bilinear up-sampling of each channel alone.

    Exactly, in float32: the kernels of a net hold fractions of powers of two, so nothing is lost to rounding.
    """
    if not is_upsampling(blob, kernel_size):
        return False
    taps = bilinear_kernel(kernel_size)
    own = blob[:, 0] if blob.shape[1] == 1 else _diagonal(blob)
    square = np.outer(taps, taps).astype(np.float32)
    return bool(np.all(own.astype(np.float32) == square)) and (blob.shape[1] == 1 or _is_diagonal(blob))


def is_upsampling(blob: np.ndarray, kernel_size: int) -> bool:
    """Whether a blob has the shape of an up-sampling layer: `[c c k k]` or `[c 1 k k]`."""
    channels = blob.shape[0] if blob.ndim == 4 else 0
    return blob.shape in ((channels, channels, kernel_size, kernel_size), (channels, 1, kernel_size, kernel_size))


def constant(blob: np.ndarray) -> float | None:
    """The one value of a blob, or None where its values differ. NaN differs from itself."""
    first = blob.flat[0]
    return float(first) if bool(np.all(blob == first)) else None


def describe(shape: Sequence[int]) -> str:
    """A shape as errors show it: `64×3×3×3`."""
    return "×".join(map(str, shape)) or "scalar"


def size(shape: tuple[int, ...]) -> int:
    """The number of values in an array of a shape."""
    return math.prod(shape)


def _diagonal(blob: np.ndarray) -> np.ndarray:
    channels = np.arange(len(blob))
    return blob[channels, channels]


def _is_diagonal(blob: np.ndarray) -> bool:
    return np.count_nonzero(blob) == np.count_nonzero(_diagonal(blob))
