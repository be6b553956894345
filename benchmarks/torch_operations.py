"""The layers of `peer_nets` as PyTorch computes them, eagerly."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from benchmarks import draws


class Operations:
    """Layers on maps `[b c h w]`, whose weights are drawn when a layer is first met.

    `channels_last` keeps kernels in that order in memory, and maps follow; with `learn` gradients are asked for.
    """

    def __init__(self, channels_last: bool = False, learn: bool = False):
        self._order = torch.channels_last if channels_last else torch.contiguous_format
        self._learn = learn
        self._parameters: dict[tuple[str, str], torch.Tensor] = {}
        self._fixed: dict[tuple[int, int], torch.Tensor] = {}

    def image(self, blob: np.ndarray) -> torch.Tensor:
        """A blob `[b h w c]` as the nets take it."""
        return torch.from_numpy(np.ascontiguousarray(blob.transpose(0, 3, 1, 2))).contiguous(memory_format=self._order)

    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The kind of every learned parameter with its values."""
        for (_, kind), tensor in self._parameters.items():
            if tensor.requires_grad:
                yield kind, tensor

    def conv(
        self,
        x: torch.Tensor,
        layer: str,
        channels: int,
        kernel: int,
        padding: int = 0,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
    ) -> torch.Tensor:
        weight = self._drawn(layer, "kernel", (kernel, kernel, x.shape[1], channels))
        offset = self._drawn(layer, "bias", (channels,)) if bias else None
        return functional.conv2d(x, weight, offset, stride, padding, dilation)

    def batch_norm(self, x: torch.Tensor, layer: str, epsilon: float) -> torch.Tensor:
        mean, var, scale, bias = (self._drawn(layer, kind, (x.shape[1],)) for kind in ("mean", "var", "scale", "bias"))
        return functional.batch_norm(x, mean, var, scale, bias, training=False, eps=epsilon)

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x, inplace=True)

    def product(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        return x @ self._drawn(layer, "mean", (x.shape[3], x.shape[3]))

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def max_pool(self, x: torch.Tensor, kernel: int, stride: int, padding: int = 0, ceil: bool = True) -> torch.Tensor:
        return functional.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil)

    def average_pool(self, x: torch.Tensor, kernel: int) -> torch.Tensor:
        return functional.avg_pool2d(x, kernel, stride=1, padding=kernel // 2)

    def max_pool_with_places(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, places = functional.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
        return values, places

    def unpool(self, x: torch.Tensor, places: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        return functional.max_unpool2d(x, places, 2, 2, output_size=list(size))

    def bilinear_deconv(self, x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
        weight = self._fixed.get((x.shape[1], kernel))
        if weight is None:
            weight = self._fixed[x.shape[1], kernel] = _bilinear(x.shape[1], kernel)
        return functional.conv_transpose2d(x, weight, stride=stride)

    def interpolate(self, x: torch.Tensor, size: Sequence[int], align_corners: bool) -> torch.Tensor:
        return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)

    def crop(self, x: torch.Tensor, offset: int, size: Sequence[int]) -> torch.Tensor:
        return x[:, :, offset : offset + size[0], offset : offset + size[1]]

    def size(self, x: torch.Tensor) -> tuple[int, int]:
        return x.shape[2], x.shape[3]

    def _drawn(self, layer: str, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = self._parameters.get((layer, kind))
        if tensor is None:
            values: Any = draws.parameter(layer, kind, shape)
            if kind == "kernel":
                values = np.ascontiguousarray(values.transpose(3, 2, 0, 1))
            tensor = torch.from_numpy(values)
            if kind == "kernel":
                tensor = tensor.contiguous(memory_format=self._order)
            tensor.requires_grad_(self._learn and kind not in ("mean", "var"))
            self._parameters[layer, kind] = tensor
        return tensor


def _bilinear(channels: int, kernel: int) -> torch.Tensor:
    """A dense transposed convolution's kernel `[c c k k]` that up-samples each channel alone."""
    weight = np.zeros((channels, channels, kernel, kernel), np.float32)
    weight[np.arange(channels), np.arange(channels)] = draws.bilinear(kernel)
    return torch.from_numpy(weight)
