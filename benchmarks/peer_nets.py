"""The nets as PyTorch and ONNX Runtime users have them, written once for both.

`operations` makes the layers: `torch_operations.Operations` computes them, `onnx_operations.Operations` builds a graph.
Layer names are those of fcn_jax, so that weights are drawn alike. FCN-8s with 100 pixels of padding is torchfcn's:
padded pooling, crops of 5, 9 and 31, and transposed convolutions, dense, whose bilinear kernels stay as they are.
Source of what differs from fcn_jax: wkentaro/pytorch-fcn, torchfcn/models/fcn8s.py.
"""

from collections.abc import Sequence
from typing import Any

VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
RESNET50 = ((64, 3, 1, (1, 1)), (128, 4, 2, (1, 1)), (256, 6, 1, (1, 2)), (512, 3, 1, (2, 4)))


def fcn8s(operations: Any, image: Any, classes: int, padding: str = "caffe") -> Any:
    """Scores of every pixel; `padding` as fcn_jax has it, "caffe" or "same"."""
    x, pools = image, {}
    for block, (channels, depth) in enumerate(VGG16, start=1):
        for number in range(1, depth + 1):
            first = block == number == 1 and padding == "caffe"
            x = operations.conv(x, f"conv{block}_{number}", channels, 3, padding=100 if first else 1)
            x = operations.relu(x)
        x = pools[block] = operations.max_pool(x, 2, 2)
    x = operations.relu(operations.conv(x, "fc6", 4096, 7, padding=0 if padding == "caffe" else 3))
    x = operations.relu(operations.conv(x, "fc7", 4096, 1))
    x = operations.conv(x, "score_fr", classes, 1)
    for pool, offset in ((4, 5), (3, 9)):
        x = operations.bilinear_deconv(x, 4, 2)
        skip = operations.conv(pools[pool], f"score_pool{pool}", classes, 1)
        if padding == "caffe":
            x = operations.add(x, operations.crop(skip, offset, operations.size(x)))
        else:
            x = operations.add(operations.crop(x, 1, operations.size(skip)), skip)
    x = operations.bilinear_deconv(x, 16, 8)
    return operations.crop(x, 31 if padding == "caffe" else 4, operations.size(image))


def segnet(operations: Any, image: Any, classes: int) -> Any:
    """An encoder that remembers places, and its mirror image; batch norm behind every convolution but the last."""

    def layer(x: Any, name: str, channels: int) -> Any:
        x = operations.conv(x, name, channels, 3, padding=1)
        return operations.relu(operations.batch_norm(x, f"{name}_bn", 1e-9))

    x, places, sizes = image, {}, {}
    for block, (channels, depth) in enumerate(VGG16, start=1):
        for number in range(1, depth + 1):
            x = layer(x, f"conv{block}_{number}", channels)
        sizes[block] = operations.size(x)
        x, places[block] = operations.max_pool_with_places(x)
    for block, (channels, depth) in reversed(list(enumerate(VGG16, start=1))):
        x = operations.unpool(x, places[block], sizes[block])
        below = VGG16[max(block - 2, 0)][0]
        for number in range(depth, 0, -1):
            if (block, number) == (1, 1):
                return operations.conv(x, "conv1_1_D", classes, 3, padding=1)
            x = layer(x, f"conv{block}_{number}_D", below if number == 1 else channels)
    return x


def deeplab_largefov(operations: Any, image: Any, classes: int) -> Any:
    """VGG-16 with holes; its scores of an eighth are interpolated with the corners aligned, and cropped."""
    x = image
    for block, (channels, depth) in enumerate(VGG16, start=1):
        dilation = 2 if block == 5 else 1
        for number in range(1, depth + 1):
            x = operations.conv(x, f"conv{block}_{number}", channels, 3, padding=dilation, dilation=dilation)
            x = operations.relu(x)
        x = operations.max_pool(x, 3, 2 if block < 4 else 1, padding=1)
    x = operations.average_pool(x, 3)
    x = operations.relu(operations.conv(x, "fc6", 1024, 3, padding=12, dilation=12))
    x = operations.relu(operations.conv(x, "fc7", 1024, 1))
    x = operations.conv(x, "fc8_voc12", classes, 1)
    whole = tuple(8 * (cells - 1) + 1 for cells in operations.size(x))
    return operations.crop(operations.interpolate(x, whole, align_corners=True), 0, operations.size(image))


def fcn_resnet50(operations: Any, image: Any, classes: int) -> Any:
    """torchvision's fcn_resnet50 without its auxiliary head."""

    def layer(x: Any, conv: str, norm: str, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> Any:
        padding = dilation * (kernel // 2)
        x = operations.conv(x, conv, channels, kernel, padding, stride, dilation, bias=False)
        return operations.batch_norm(x, norm, 1e-5)

    x = operations.relu(layer(image, "backbone.conv1", "backbone.bn1", 64, 7, stride=2))
    x = operations.max_pool(x, 3, 2, padding=1, ceil=False)
    for stage, (channels, depth, first_stride, dilations) in enumerate(RESNET50, start=1):
        for block in range(depth):
            name, stride = f"backbone.layer{stage}.{block}.", first_stride if block == 0 else 1
            dilation = dilations[min(block, 1)]
            y = operations.relu(layer(x, f"{name}conv1", f"{name}bn1", channels, 1))
            y = operations.relu(layer(y, f"{name}conv2", f"{name}bn2", channels, 3, stride, dilation))
            y = layer(y, f"{name}conv3", f"{name}bn3", 4 * channels, 1)
            if block == 0:
                x = layer(x, f"{name}downsample.0", f"{name}downsample.1", 4 * channels, 1, stride)
            x = operations.relu(operations.add(y, x))
    x = operations.relu(layer(x, "classifier.0", "classifier.1", 512, 3))
    x = operations.conv(x, "classifier.4", classes, 1)
    return operations.interpolate(x, operations.size(image), align_corners=False)


def product(operations, image, classes):
    """No net: each channel of a square image times a drawn matrix, for what the machine's arithmetic gives."""
    return operations.product(image, "product")


NETS = {
    "fcn8s": fcn8s,
    "segnet": segnet,
    "deeplab_largefov": deeplab_largefov,
    "fcn_resnet50": fcn_resnet50,
    "product": product,
}


def pooled(size: Sequence[int], kernel: int, stride: int, padding: int, ceil: bool) -> tuple[int, ...]:
    """A map's size after pooling; rounding up, the last window has to start within the map or its padding before."""
    sizes = []
    for length in size:
        steps = length + 2 * padding - kernel
        cells = (-(-steps // stride) if ceil else steps // stride) + 1
        sizes.append(cells - 1 if ceil and padding and (cells - 1) * stride >= length + padding else cells)
    return tuple(sizes)
