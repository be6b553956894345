"""Caffe's layers in NumPy, and the published nets as lists of them: an oracle that knows nothing of the library.

A net says, layer by layer, what its prototxt says: type, name, bottoms, tops and options under Caffe's names, at the
published widths. Dropout is left out: it does nothing in testing. Blobs are float64 `[b c h w]`, weights lie as in a
caffemodel: `{"conv1_1.0": [o i k k], "conv1_1.1": [o]}`.

Sources: Caffe's src/caffe/layers and its forks' (caffe-segnet: BN, Upsample; deeplab-public: Interp), and the prototxts
of BVLC, of the FCN release, SegNet-Tutorial, DeconvNet and DeepLab.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

Blobs = dict[str, np.ndarray]


class Layer(NamedTuple):
    """One layer of a prototxt."""

    kind: str
    name: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    options: dict[str, Any]


class Net(list[Layer]):
    """Layers in the order in which they run."""

    def add(self, kind: str, name: str, *bottoms: str, tops: tuple[str, ...] = (), **options: Any) -> str:
        """Puts a layer on top of `bottoms`, else of the last layer, and gives the name of its first top."""
        below = bottoms or (self[-1].tops[:1] if self else ("data",))
        self.append(Layer(kind, name, below, tops or (name,), options))
        return self[-1].tops[0]

    def conv(self, name: str, num_output: int, kernel_size: int, *bottoms: str, norm: str = "", **options: Any) -> str:
        """A convolution and what works in place behind it: a batch norm, if it has a name, and a ReLU."""
        kind = options.pop("kind", "Convolution")
        top = self.add(kind, name, *bottoms, num_output=num_output, kernel_size=kernel_size, **options)
        if norm:
            self.add("BN", norm, tops=(top,))
        return self.add("ReLU", f"relu_{name}", tops=(top,))

    def score(self, name: str, num_output: int, *bottoms: str, **options: Any) -> str:
        """A 1×1 convolution, or a larger one, and nothing behind it."""
        return self.add("Convolution", name, *bottoms, **{"num_output": num_output, "kernel_size": 1, **options})


# The layers


def convolution(x, kernel, bias=None, *, kernel_size, num_output=0, pad=0, stride=1, dilation=1, group=1):
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = ((n - dilation * (kernel_size - 1) - 1) // stride + 1 for n in x.shape[2:])
    y = np.zeros((len(x), len(kernel), height, width))
    for row, column in np.ndindex(kernel_size, kernel_size):
        seen = x[:, :, dilation * row :: stride, dilation * column :: stride][:, :, :height, :width]
        matrix = kernel[:, :, row, column].reshape(group, -1, kernel.shape[1])
        y += (matrix @ seen.reshape(len(x), group, kernel.shape[1], -1)).reshape(y.shape)
    return y if bias is None else y + bias.reshape(-1, 1, 1)


def deconvolution(
    x, kernel, bias=None, *, kernel_size, num_output=0, pad=0, stride=1, group=1, bias_term=True, lr_mult=1
):
    """Each cell scatters the kernel, `[i o/group k k]`, times its value: out[stride · i + k] += x[i] · kernel[k]."""
    assert bias_term == (bias is not None)
    batch, channels, height, width = x.shape
    across, along = (stride * (n - 1) + kernel_size for n in (height, width))
    y = np.zeros((batch, group * kernel.shape[1], across, along))
    cells = x.reshape(batch, group, channels // group, -1)
    for row, column in np.ndindex(kernel_size, kernel_size):
        matrix = kernel[:, :, row, column].reshape(group, channels // group, -1).swapaxes(1, 2)
        target = y[:, :, row : row + stride * height : stride, column : column + stride * width : stride]
        target += (matrix @ cells).reshape(target.shape)
    y = y[:, :, pad : across - pad, pad : along - pad]
    return y if bias is None else y + bias.reshape(-1, 1, 1)


def inner_product(x, kernel, bias, *, num_output=0):
    return x.reshape(len(x), -1) @ kernel.reshape(bias.size, -1).T + bias.ravel()


def pooling(x, *, kernel_size, stride=1, pad=0, pool="MAX"):
    """The last window may be cut, but none starts beyond image and pad. Of the maximum also the place, `h · W + w`."""
    counts = [-(-(n + 2 * pad - kernel_size) // stride) + 1 for n in x.shape[2:]]
    counts = [
        count - (pad > 0 and (count - 1) * stride >= n + pad) for count, n in zip(counts, x.shape[2:], strict=True)
    ]
    # Far enough for every window: what lies outside never is the maximum, and is nothing in a sum.
    sides = ((0, 0), (0, 0), *[(pad, pad + kernel_size + stride)] * 2)
    padded = np.pad(x, sides, constant_values=-np.inf if pool == "MAX" else 0)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel_size, kernel_size), (2, 3))
    windows = windows[:, :, ::stride, ::stride][:, :, : counts[0], : counts[1]]
    windows = windows.reshape(*windows.shape[:4], -1)
    starts = [stride * np.arange(count) - pad for count in counts]
    if pool == "AVE":
        rows, columns = (
            np.minimum(start + kernel_size, n + pad) - start for start, n in zip(starts, x.shape[2:], strict=True)
        )
        return windows.sum(axis=-1) / np.outer(rows, columns)
    row, column = np.divmod(windows.argmax(axis=-1), kernel_size)  # of equal values the first
    return windows.max(axis=-1), (starts[0][:, None] + row) * x.shape[3] + starts[1] + column


def upsample(x, mask, *, upsample_h=None, upsample_w=None):
    height, width = upsample_h or 2 * x.shape[2], upsample_w or 2 * x.shape[3]
    y = np.zeros((*x.shape[:2], height * width))
    np.put_along_axis(y, mask.reshape(*x.shape[:2], -1), x.reshape(*x.shape[:2], -1), axis=-1)
    return y.reshape(*x.shape[:2], height, width)


def lrn(x, *, local_size=5, alpha=1e-4, beta=0.75, k=1.0):
    rim = local_size // 2
    squares = np.pad(x**2, ((0, 0), (rim, rim), (0, 0), (0, 0)))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(local_size))
    return x / (k + alpha / local_size * total) ** beta


def interp(x, *, zoom_factor):
    """Linear between cells that keep their corners: n become n + (n − 1)(zoom − 1)."""
    matrices = [
        np.maximum(1 - np.abs(np.arange(zoom_factor * (n - 1) + 1)[:, None] / zoom_factor - np.arange(n)), 0)
        for n in x.shape[2:]
    ]
    return matrices[0] @ x @ matrices[1].T


def crop(x, like, *, offset):
    return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]


def eltwise(*parts):
    return sum(parts)


def softmax(x):
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


LAYERS = {
    "Convolution": convolution,
    "Deconvolution": deconvolution,
    "InnerProduct": inner_product,
    "Pooling": pooling,
    "Upsample": upsample,
    "LRN": lrn,
    "Interp": interp,
    "Crop": crop,
    "Eltwise": eltwise,
    "Softmax": softmax,
    "ReLU": lambda x: np.maximum(x, 0),
    "Concat": lambda *parts: np.concatenate(parts, axis=1),
    "Scale": lambda x, scale, *, value=1.0: x * scale.reshape(-1, 1, 1),
    "BN": lambda x, scale, shift: x * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1),
}


def run(net: Net, inputs: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> Blobs:
    """All blobs by name, the inputs too; of those that layers change in place the last."""
    blobs = {name: np.asarray(blob, np.float64) for name, blob in inputs.items()}
    for layer in net:
        _apply(layer, blobs, weights)
    return blobs


def draw(net: Net, inputs: Mapping[str, np.ndarray], widths: Mapping[int, int]) -> tuple[Blobs, Blobs]:
    """Random float32 weights for a narrow version of a net, and all blobs by them.

    `widths` gives narrow channel counts for published ones. Layers with `lr_mult=0` hold what the releases froze:
    bilinear kernels.
    """
    rng = np.random.default_rng(0)
    blobs, weights = {name: np.asarray(blob, np.float64) for name, blob in inputs.items()}, {}
    for layer in net:
        outputs = layer.options.get("num_output", 0)
        drawn = _drawn(layer, blobs[layer.bottoms[0]].shape, widths.get(outputs, outputs), rng)
        weights |= {f"{layer.name}.{index}": blob.astype(np.float32) for index, blob in enumerate(drawn)}
        _apply(layer, blobs, weights)
    return weights, blobs


def bilinear(channels: int, size: int) -> np.ndarray:
    """Up-sampling of each channel by itself, `[c c k k]`, as the FCN release fills it in."""
    factor = (size + 1) // 2
    taps = 1 - np.abs(np.arange(size) - (factor - 1 if size % 2 else factor - 0.5)) / factor
    return np.eye(channels)[:, :, None, None] * np.outer(taps, taps)


def _apply(layer: Layer, blobs: Blobs, weights: Mapping[str, np.ndarray]) -> None:
    names = [f"{layer.name}.{index}" for index in range(2)]
    parameters = [np.asarray(weights[name], np.float64) for name in names if name in weights]
    outputs = LAYERS[layer.kind](*(blobs[name] for name in layer.bottoms), *parameters, **layer.options)
    blobs.update(zip(layer.tops, outputs if isinstance(outputs, tuple) else (outputs,), strict=False))


def _drawn(layer: Layer, shape: tuple[int, ...], outputs: int, rng: np.random.Generator) -> list[np.ndarray]:
    options, inputs = layer.options, shape[1]
    bias = rng.normal(0, 0.5, outputs)
    if layer.kind == "InnerProduct":
        inputs = int(np.prod(shape[1:]))
        return [rng.normal(0, np.sqrt(2 / inputs), (outputs, inputs)), bias]
    if layer.kind == "Scale":
        return [np.full(inputs, options["value"])]
    if layer.kind == "BN":
        return [rng.uniform(0.5, 1.5, (1, inputs, 1, 1)), rng.normal(0, 0.5, (1, inputs, 1, 1))]
    if layer.kind not in ("Convolution", "Deconvolution"):
        return []
    size = options["kernel_size"]
    if layer.kind == "Convolution":
        inputs //= options.get("group", 1)
        return [rng.normal(0, np.sqrt(2 / (inputs * size**2)), (outputs, inputs, size, size)), bias]
    if options.get("lr_mult") == 0:
        return [bilinear(outputs, size)]
    deviation = options.get("stride", 1) / size * np.sqrt(2 / inputs)
    kernel = rng.normal(0, deviation, (inputs, outputs // options.get("group", 1), size, size))
    return [kernel, bias] if options.get("bias_term", True) else [kernel]


# The classifiers

# Table 1 of VGG's paper: the sizes of the kernels in each block.
VGG = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "A-LRN": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
VGG_WIDTHS = (64, 128, 256, 512, 512)


def vgg_trunk(column="D", *, first_pad=1, norm="", masks=False, hole5=1, pools=({"kernel_size": 2, "stride": 2},) * 5):
    """conv1_1 … pool5. `norm` makes a batch norm's name of a number as `1_1`; `hole5` dilates the fifth block."""
    net = Net()
    for block, (kernels, width, pool) in enumerate(zip(VGG[column], VGG_WIDTHS, pools, strict=True), start=1):
        for number, size in enumerate(kernels, start=1):
            hole, place = hole5 if block == 5 else 1, f"{block}_{number}"
            pad = first_pad if place == "1_1" else hole * (size // 2)
            net.conv(f"conv{place}", width, size, norm=norm.format(place), pad=pad, dilation=hole)
            if column == "A-LRN" and place == "1_1":
                # Krizhevsky's alpha of 1e-4 is not divided by the five channels, Caffe's is.
                net.add("LRN", "norm1", local_size=5, alpha=5 * 1e-4, beta=0.75, k=2)
        net.add("Pooling", f"pool{block}", tops=(f"pool{block}", *([f"pool{block}_mask"] if masks else [])), **pool)
    return net


def alexnet_trunk(order, first_pad=0):
    """conv1 … pool5, with `order` behind conv1 and conv2."""
    net = Net()
    rows = ((96, 11, first_pad, 4, 1), (256, 5, 2, 1, 2), (384, 3, 1, 1, 1), (384, 3, 1, 1, 2), (256, 3, 1, 1, 2))
    for number, (width, size, pad, stride, group) in enumerate(rows, start=1):
        net.conv(f"conv{number}", width, size, pad=pad, stride=stride, group=group)
        for kind in {1: order, 2: order, 5: ("pool",)}.get(number, ()):
            if kind == "pool":
                net.add("Pooling", f"pool{number}", kernel_size=3, stride=2)
            else:
                net.add("LRN", f"norm{number}", local_size=5, alpha=0.0001, beta=0.75)
    return net


def classifier(net):
    """fc6, fc7, fc8 and prob on a trunk."""
    for name in ("fc6", "fc7"):
        net.add("InnerProduct", name, num_output=4096)
        net.add("ReLU", f"relu{name[2:]}", tops=(name,))
    net.add("InnerProduct", "fc8", num_output=1000)
    net.add("Softmax", "prob")
    return net


def vgg(column):
    return classifier(vgg_trunk(column))


def alexnet():
    return classifier(alexnet_trunk(("norm", "pool")))


def caffenet():
    return classifier(alexnet_trunk(("pool", "norm")))


# Table 1 of GoogLeNet's paper: 1×1, 3×3 and what reduces it, 5×5 and what reduces it, the pool's projection.
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def googlenet():
    """Without the two auxiliary classifiers of its training."""
    net = Net()
    net.conv("conv1/7x7_s2", 64, 7, pad=3, stride=2)
    net.add("Pooling", "pool1/3x3_s2", kernel_size=3, stride=2)
    net.add("LRN", "pool1/norm1", local_size=5, alpha=0.0001, beta=0.75)
    net.conv("conv2/3x3_reduce", 64, 1)
    net.conv("conv2/3x3", 192, 3, pad=1)
    net.add("LRN", "conv2/norm2", local_size=5, alpha=0.0001, beta=0.75)
    below = net.add("Pooling", "pool2/3x3_s2", kernel_size=3, stride=2)
    for module, (one, reduce3, three, reduce5, five, projection) in INCEPTIONS.items():
        name = f"inception_{module}"
        net.conv(f"{name}/1x1", one, 1, below)
        net.conv(f"{name}/3x3_reduce", reduce3, 1, below)
        net.conv(f"{name}/3x3", three, 3, pad=1)
        net.conv(f"{name}/5x5_reduce", reduce5, 1, below)
        net.conv(f"{name}/5x5", five, 5, pad=2)
        net.add("Pooling", f"{name}/pool", below, kernel_size=3, stride=1, pad=1)
        net.conv(f"{name}/pool_proj", projection, 1)
        parts = [f"{name}/{part}" for part in ("1x1", "3x3", "5x5", "pool_proj")]
        below = net.add("Concat", f"{name}/output", *parts)
        if module in ("3b", "4e"):
            below = net.add("Pooling", f"pool{module[0]}/3x3_s2", kernel_size=3, stride=2)
    net.add("Pooling", "pool5/7x7_s1", pool="AVE", kernel_size=7, stride=1)
    net.add("InnerProduct", "loss3/classifier", num_output=1000)
    net.add("Softmax", "prob")
    return net


# The nets that score every pixel

SKIPS = (("pool4", "upscore2", 5, 0.01), ("pool3", "upscore_pool4", 9, 0.0001))
FINEST = {32: ("upscore", 64, 19), 16: ("upscore16", 32, 27), 8: ("upscore8", 16, 31)}


def upsampling(net, name, below, num_output, kernel_size, stride, **options):
    """A deconvolution that the release froze, unless `options` say otherwise."""
    options = {"bias_term": False, "lr_mult": 0, **options}
    return net.add(
        "Deconvolution", name, below, num_output=num_output, kernel_size=kernel_size, stride=stride, **options
    )


def fcn_trunk():
    net = vgg_trunk("D", first_pad=100)
    net.conv("fc6", 4096, 7)
    net.conv("fc7", 4096, 1)
    return net


def fcn(stride, heads=None, *, at_once=False, **learned):
    """voc-fcn32s … pascalcontext-fcn8s: `heads` are classes by the end of their layers' names, as `_sem`."""
    net = fcn_trunk()
    for head, classes in (heads or {"": 21}).items():
        fused = net.score(f"score_fr{head}", classes, "fc7")
        for pool, name, offset, factor in SKIPS[: {32: 0, 16: 1, 8: 2}[stride]]:
            up = upsampling(net, name + head, fused, classes, 4, 2, **learned)
            below = net.add("Scale", f"scale_{pool}", pool, value=factor) if at_once else pool
            skip = net.score(f"score_{pool}{head}", classes, below)
            net.add("Crop", f"score_{pool}{head}c", skip, up, offset=offset)
            fused = net.add("Eltwise", f"fuse_{pool}{head}", up, f"score_{pool}{head}c")
        name, kernel_size, offset = FINEST[stride]
        whole = upsampling(net, name + head, fused, classes, kernel_size, stride, **learned)
        net.add("Crop", f"score{head}", whole, "data", offset=offset)
    return net


def fcn_alexnet():
    net = alexnet_trunk(("pool", "norm"), first_pad=100)
    net.conv("fc6", 4096, 6)
    net.conv("fc7", 4096, 1)
    whole = upsampling(net, "upscore", net.score("score_fr", 21), 21, 63, 32)
    net.add("Crop", "score", whole, "data", offset=18)
    return net


def fcn8s_2015(classes, score, upscore2, upscore_pool4, *, bias_term):
    """The CVPR paper's FCN-8s, its layers' own names given. Up-sampling by two is learned, the last is not.

    Its Crop layers find their offsets as they run; those are written out here.
    """
    net = fcn_trunk()
    net.score(score, classes, tops=("score",))
    up = upsampling(net, upscore2, "score", classes, 4, 2, lr_mult=1, bias_term=bias_term)
    net.score("score-pool4", classes, "pool4")
    net.add("Crop", "score-pool4c", "score-pool4", up, offset=5)
    net.add("Eltwise", "score-fused", up, "score-pool4c")
    up = upsampling(net, upscore_pool4, "score-fused", classes, 4, 2, lr_mult=1)
    net.score("score-pool3", classes, "pool3")
    net.add("Crop", "score-pool3c", "score-pool3", up, offset=9)
    net.add("Eltwise", "score-final", up, "score-pool3c")
    upsampling(net, "upsample", "score-final", classes, 16, 8, tops=("bigscore",))
    net.add("Crop", "upscore", "bigscore", "data", offset=31)
    return net


def segnet(classes, sizes=(), *, further=""):
    """SegNet, the Bayesian ones too: those differ in their dropout, and in the `further` layer of scores that one has.

    `sizes` are `upsample_h` and `upsample_w` of the blocks from the last; a block that has none doubles its map.
    """
    net = vgg_trunk("D", norm="conv{}_bn", masks=True)
    explicit = dict(zip(range(5, 0, -1), sizes, strict=False))
    for block in range(5, 0, -1):
        below = net[-1].tops[0]
        size = dict(zip(("upsample_h", "upsample_w"), explicit.get(block, ()), strict=False))
        net.add("Upsample", f"upsample{block}", below, f"pool{block}_mask", tops=(f"pool{block}_D",), **size)
        for number in range(len(VGG["D"][block - 1]), 0, -1):
            name = f"conv{block}_{number}_D"
            if name == "conv1_1_D" and not further:
                net.score(name, classes, kernel_size=3, pad=1)
            else:  # a block's last convolution brings the width of the block below
                width = VGG_WIDTHS[max(block - 2, 0) if number == 1 else block - 1]
                net.conv(name, width, 3, norm=f"{name}_bn", pad=1)
    if further:
        net.score(further, classes, kernel_size=3, pad=1)
    net.add("Softmax", "prob")
    return net


def segnet_basic(up, *, groups=1, addition=False, scored=False, classes=11):
    """SegNet-Basic, and what its paper's table 1 compares it with (section 3.2); figure 3 says what is added.

    `up` is "unpool", "bilinear" or "learned"; behind unpooling stands a convolution in so many `groups`, for the
    single-channel decoder as many as there are channels. Without dimensions reduced (`scored`) the scores come last.
    """
    net = Net()
    net.add("LRN", "norm")
    for block in (1, 2, 3, 4):
        net.conv(f"conv{block}", 64, 7, norm=f"conv{block}_bn", pad=3)
        net.add("Pooling", f"pool{block}", tops=(f"pool{block}", f"pool{block}_mask"), kernel_size=2, stride=2)
    below, channels = "pool4", 64
    if scored:
        below, channels = net.score("conv_classifier", classes), classes
    for block in (4, 3, 2, 1):
        if up == "unpool":
            below = net.add("Upsample", f"upsample{block}", below, f"pool{block}_mask")
            name = f"conv_decode{block}"
            below = net.score(name, 64, below, kernel_size=7, pad=3, group=groups)
            net.add("BN", f"{name}_bn", tops=(name,))
        else:
            size = {"kernel_size": 4, "pad": 1} if up == "bilinear" else {"kernel_size": 8, "pad": 3, "lr_mult": 1}
            below = upsampling(net, f"upsample{block}", below, channels, stride=2, **size)
        if addition and block > 1:
            pooled = f"pool{block - 1}"
            pooled = net.score(f"score_{pooled}", classes, pooled) if scored else pooled
            below = net.add("Eltwise", f"fuse{block}", below, pooled)
    if scored:
        net.add("Eltwise", "score", below)
    else:
        net.score("conv_classifier", classes, below)
    net.add("Softmax", "prob")
    return net


def deconvnet():
    net = vgg_trunk("D", norm="bn{}", masks=True)
    net.conv("fc6", 4096, 7, norm="bnfc6")
    net.conv("fc7", 4096, 1, norm="bnfc7")
    net.conv("fc6-deconv", 512, 7, norm="fc6-deconv-bn", kind="Deconvolution")
    widths = {5: (512, 512, 512), 4: (512, 512, 256), 3: (256, 256, 128), 2: (128, 64), 1: (64, 64)}
    for block, numbers in widths.items():
        net.add("Upsample", f"unpool{block}", net[-1].tops[0], f"pool{block}_mask")
        for number, width in enumerate(numbers, start=1):
            place = f"{block}_{number}"
            net.conv(f"deconv{place}", width, 3, norm=f"debn{place}", kind="Deconvolution", pad=1)
    net.score("seg-score-voc", 21, tops=("seg-score",))
    return net


# What MSc adds: at the image and behind four poolings, by the stride that brings each to an eighth of the image.
BRANCHES = {"data": 8, "pool1": 4, "pool2": 2, "pool3": 1, "pool4": 1}


def deeplab(multi_scale=False):
    """DeepLab-LargeFOV. MSc scores each branch by a layer of its own and adds these scores to fc8's."""
    strides = (2, 2, 2, 1, 1)
    net = vgg_trunk("D", hole5=2, pools=[{"kernel_size": 3, "stride": stride, "pad": 1} for stride in strides])
    net.add("Pooling", "pool5a", pool="AVE", kernel_size=3, stride=1, pad=1)
    net.conv("fc6", 1024, 3, pad=12, dilation=12)
    net.conv("fc7", 1024, 1)
    scores = [net.score("fc8_voc12", 21)]
    for source, stride in BRANCHES.items() if multi_scale else ():
        net.conv(f"{source}_ms1", 128, 3, source, pad=1, stride=stride)
        net.conv(f"{source}_ms2", 128, 1)
        scores.append(net.score(f"{source}_ms3", 21))
    if multi_scale:
        net.add("Eltwise", "fc8_combine", *scores)
    net.add("Interp", "fc8_interp", zoom_factor=8)
    return net
