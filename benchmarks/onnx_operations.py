"""The layers of `peer_nets` as nodes of an ONNX graph, and the session that runs it.

The graph is the plain one that an exporter writes; folding batch norm, fusing ReLUs and laying out memory are left to
ONNX Runtime, which does so when it loads a graph.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
import onnxruntime  # pyright: ignore[reportMissingImports]
from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports]

from benchmarks import draws
from benchmarks.peer_nets import pooled

_OPSET, _IR = 17, 8


@dataclasses.dataclass(frozen=True)
class Value:
    """A map of the graph: its name and shape `[b c h w]`."""

    name: str
    shape: tuple[int, ...]


class Operations:
    """Layers that add their nodes to a graph."""

    def __init__(self):
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def session(self, net: Callable[..., Any], shape: Sequence[int], threads: int, **options: Any) -> Any:
        """A session of `net` for blobs of that shape `[b c h w]`, its input called `image`."""
        image = Value("image", tuple(shape))
        scores = net(self, image, draws.CLASSES, **options)
        described = [
            helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, list(value.shape))
            for value in (image, scores)
        ]
        graph = helper.make_graph(self._nodes, "net", described[:1], described[1:], list(self._constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
        choices = onnxruntime.SessionOptions()
        choices.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(model.SerializeToString(), choices, providers=["CPUExecutionProvider"])

    def conv(
        self,
        x: Value,
        layer: str,
        channels: int,
        kernel: int,
        padding: int = 0,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
    ) -> Value:
        weight = draws.parameter(layer, "kernel", (kernel, kernel, x.shape[1], channels)).transpose(3, 2, 0, 1)
        inputs = [x.name, self._constant(f"{layer}/kernel", weight)]
        if bias:
            inputs.append(self._constant(f"{layer}/bias", draws.parameter(layer, "bias", (channels,))))
        size = tuple((n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n in x.shape[2:])
        return self._node(
            "Conv",
            inputs,
            (x.shape[0], channels, *size),
            kernel_shape=[kernel] * 2,
            pads=[padding] * 4,
            strides=[stride] * 2,
            dilations=[dilation] * 2,
        )

    def batch_norm(self, x: Value, layer: str, epsilon: float) -> Value:
        inputs = [
            self._constant(f"{layer}/{kind}", draws.parameter(layer, kind, (x.shape[1],)))
            for kind in ("scale", "bias", "mean", "var")
        ]
        return self._node("BatchNormalization", [x.name, *inputs], x.shape, epsilon=epsilon)

    def relu(self, x: Value) -> Value:
        return self._node("Relu", [x.name], x.shape)

    def product(self, x: Value, layer: str) -> Value:
        matrix = self._constant(layer, draws.parameter(layer, "mean", (x.shape[3], x.shape[3])))
        return self._node("MatMul", [x.name, matrix], x.shape)

    def add(self, x: Value, y: Value) -> Value:
        return self._node("Add", [x.name, y.name], x.shape)

    def max_pool(self, x: Value, kernel: int, stride: int, padding: int = 0, ceil: bool = True) -> Value:
        size = pooled(x.shape[2:], kernel, stride, padding, ceil)
        return self._node("MaxPool", [x.name], (*x.shape[:2], *size), **_window(x, size, kernel, stride, padding))

    def average_pool(self, x: Value, kernel: int) -> Value:
        window = _window(x, x.shape[2:], kernel, 1, kernel // 2)
        return self._node("AveragePool", [x.name], x.shape, count_include_pad=1, **window)

    def max_pool_with_places(self, x: Value) -> tuple[Value, str]:
        size = pooled(x.shape[2:], 2, 2, 0, ceil=True)
        # ONNX's MaxUnpool makes even maps only: odd ones are filled up before, and cut after it. What is pooled comes
        # from a ReLU, so that no zero of the filling is larger.
        odd = [length % 2 for length in x.shape[2:]]
        if any(odd):
            pads = self._constant(f"pads{len(self._nodes)}", np.array([0] * 6 + odd, np.int64))
            whole = (*x.shape[:2], *(2 * cells for cells in size))
            x = self._node("Pad", [x.name, pads], whole)
        places = f"places{len(self._nodes)}"
        largest = self._node(
            "MaxPool", [x.name], (*x.shape[:2], *size), more=[places], **_window(x, size, 2, 2, padding=0)
        )
        return largest, places

    def unpool(self, x: Value, places: str, size: Sequence[int]) -> Value:
        shape = (*x.shape[:2], *(2 * cells for cells in x.shape[2:]))
        whole = self._node("MaxUnpool", [x.name, places], shape, kernel_shape=[2, 2], strides=[2, 2])
        return self.crop(whole, 0, size)

    def bilinear_deconv(self, x: Value, kernel: int, stride: int) -> Value:
        channels = x.shape[1]
        weight = np.broadcast_to(draws.bilinear(kernel), (channels, 1, kernel, kernel))
        inputs = [x.name, self._constant(f"bilinear{len(self._nodes)}", weight)]
        shape = (x.shape[0], channels, *((cells - 1) * stride + kernel for cells in x.shape[2:]))
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "group": channels}
        return self._node("ConvTranspose", inputs, shape, **window)

    def interpolate(self, x: Value, size: Sequence[int], align_corners: bool) -> Value:
        shape = (*x.shape[:2], *size)
        wanted = self._constant(f"shape{len(self._nodes)}", np.array(shape, np.int64))
        mode = "align_corners" if align_corners else "half_pixel"
        inputs = [x.name, "", "", wanted]
        return self._node("Resize", inputs, shape, mode="linear", coordinate_transformation_mode=mode)

    def crop(self, x: Value, offset: int, size: Sequence[int]) -> Value:
        if offset == 0 and tuple(size) == x.shape[2:]:
            return x
        bounds = {"starts": [offset] * 2, "ends": [offset + n for n in size], "axes": [2, 3]}
        inputs = [self._constant(f"{name}{len(self._nodes)}", np.array(v, np.int64)) for name, v in bounds.items()]
        return self._node("Slice", [x.name, *inputs], (*x.shape[:2], *size))

    def size(self, x: Value) -> tuple[int, int]:
        return x.shape[2], x.shape[3]

    def _constant(self, name: str, values: np.ndarray) -> str:
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def _node(
        self, kind: str, inputs: list[str], shape: Sequence[int], more: Sequence[str] = (), **fields: Any
    ) -> Value:
        name = f"{kind}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name, *more], **fields))
        return Value(name, tuple(shape))


def _window(x: Value, size: Sequence[int], kernel: int, stride: int, padding: int) -> dict[str, Any]:
    """A pooling's fields, with the padding behind that makes its last window whole."""
    behind = [
        max((cells - 1) * stride + kernel - length - padding, 0)
        for cells, length in zip(size, x.shape[2:], strict=True)
    ]
    return {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding, padding, *behind]}
