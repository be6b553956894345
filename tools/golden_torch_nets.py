"""Writes tests/golden/torch_nets/: narrow nets saved by torch with what torch computes from them.

Runs where torch is installed, which this project does not need:

    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch numpy
    /tmp/torch/bin/python tools/golden_torch_nets.py

The modules have the names, layouts and order of operations of torchvision's VGG and FCN on ResNet and of wkentaro's
FCNs, at a thirty-second of VGG's width and a sixty-fourth of ResNet's, so that a file has some ten kilobytes; weights
are random numbers of float16, mostly multiples of 2⁻¹⁰, and kept as such. Images and labels are formulas (`image`,
`labels`), which the tests repeat. All is computed in float64. The files here are of torch 2.13.0.

    NAME.pth        the state dict                  NAME.npz        logits, in inference
    NAME_step.pth   a state dict after one training step, gradients in place of the parameters, in float64
    NAME_step.npz   logits of both heads in that step, and their losses
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "golden" / "torch_nets"
# By the number of layers: convolutions in each block of VGG, bottlenecks in each stage of ResNet.
VGG_BLOCKS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
VGG_CHANNELS = (2, 4, 8, 16, 16)
RESNET_STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# torchfcn's up-sampling by stride, in the order of its state dicts: kernels, of twice their stride.
UPSCORES = {
    32: {"upscore": 64},
    16: {"upscore2": 4, "upscore16": 32},
    8: {"upscore2": 4, "upscore8": 16, "upscore_pool4": 4},
}
LAST = {32: ("upscore", 19), 16: ("upscore16", 27), 8: ("upscore8", 31)}  # and where its output is cropped
SKIPS = {"pool4": ("upscore2", 5), "pool3": ("upscore_pool4", 9)}  # what is up-sampled to it, and where it is cropped


def image(height: int, width: int, count: int = 1) -> np.ndarray:
    """Input blobs `[n h w c]` that wobble between −2 and 2."""
    places = np.arange(count * height * width * 3).reshape(count, height, width, 3)
    return ((places * 7919) % 257 - 128) / 64


def labels(height: int, width: int, count: int, classes: int) -> np.ndarray:
    """Labels `[n h w]` of all classes, a few pixels without one."""
    found = (np.arange(count * height * width) * 7919) % 257 % (classes + 1)
    return np.where(found == classes, 255, found).reshape(count, height, width)


class VGG(nn.Module):
    """torchvision's: features, average pooling to 7×7, classifier."""

    def __init__(
        self,
        layers: int,
        normed: bool = False,
        classes: int = 5,
        wide: int = 6,
        widths: Sequence[int] = VGG_CHANNELS,
    ):
        super().__init__()
        features, channels = [], 3
        for depth, width in zip(VGG_BLOCKS[layers], widths, strict=True):
            for _ in range(depth):
                norm = [nn.BatchNorm2d(width)] if normed else []
                features += [nn.Conv2d(channels, width, 3, padding=1), *norm, nn.ReLU()]
                channels = width
            features.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, wide), nn.ReLU(), nn.Dropout(),
            nn.Linear(wide, wide), nn.ReLU(), nn.Dropout(),
            nn.Linear(wide, classes),
        )  # fmt: skip

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class TorchFCN(nn.Module):
    """torchfcn's: 100 pixels of pad, pooling that rounds up, kernels of the up-sampling dense.

    With `bilinear` these are what torchfcn starts and leaves them at. `scales` multiply pools before they are scored.
    """

    def __init__(
        self,
        stride: int,
        classes: int = 4,
        scales: Mapping[str, float] | None = None,
        bilinear: bool = False,
        wide: int = 6,
    ):
        super().__init__()
        self.stride, self.scales = stride, scales or {}
        self.skips = [pool for pool, (upscore, _) in SKIPS.items() if upscore in UPSCORES[stride]]
        channels = 3
        for name, (features, padding) in self.trunk():
            setattr(self, name, nn.Conv2d(channels, features, 3, padding=padding))
            channels = features
        self.fc6, self.fc7 = nn.Conv2d(channels, wide, 7), nn.Conv2d(wide, wide, 1)
        self.score_fr = nn.Conv2d(wide, classes, 1)
        for pool in reversed(self.skips):
            setattr(self, f"score_{pool}", nn.Conv2d(VGG_CHANNELS[int(pool[-1]) - 1], classes, 1))
        for name, kernel in UPSCORES[stride].items():
            layer = nn.ConvTranspose2d(classes, classes, kernel, stride=kernel // 2, bias=False)
            setattr(self, name, layer)
            if bilinear:
                taps = 1 - (torch.arange(kernel) - (kernel - 1) / 2).abs() * 2 / kernel
                between = torch.eye(classes)[:, :, None, None]
                layer.weight = nn.Parameter(between * torch.outer(taps, taps), requires_grad=False)

    @staticmethod
    def trunk():
        """Names of the convolutions, each with its channels and padding."""
        for block, (depth, features) in enumerate(zip(VGG_BLOCKS[16], VGG_CHANNELS, strict=True), start=1):
            for layer in range(1, depth + 1):
                yield f"conv{block}_{layer}", (features, 100 if block == layer == 1 else 1)

    def forward(self, x):
        height, width = x.shape[2:]
        pools = {}
        for block, depth in enumerate(VGG_BLOCKS[16], start=1):
            for layer in range(1, depth + 1):
                x = functional.relu(getattr(self, f"conv{block}_{layer}")(x))
            x = pools[f"pool{block}"] = functional.max_pool2d(x, 2, 2, ceil_mode=True)
        x = self.score_fr(functional.relu(self.fc7(functional.relu(self.fc6(x)))))
        for pool in self.skips:
            upscore, offset = SKIPS[pool]
            x = getattr(self, upscore)(x)
            score = getattr(self, f"score_{pool}")(pools[pool] * self.scales.get(pool, 1))
            x = x + score[:, :, offset : offset + x.shape[2], offset : offset + x.shape[3]]
        upscore, offset = LAST[self.stride]
        return getattr(self, upscore)(x)[:, :, offset : offset + height, offset : offset + width]


class Bottleneck(nn.Module):
    def __init__(self, channels: int, features: int, stride: int, dilation: int, projected: bool):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, features, 1, bias=False), nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv3, self.bn3 = nn.Conv2d(features, 4 * features, 1, bias=False), nn.BatchNorm2d(4 * features)
        self.downsample = None
        if projected:
            project = nn.Conv2d(channels, 4 * features, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(4 * features))

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class Backbone(nn.Module):
    """torchvision's ResNet with the strides of layer3 and layer4 traded for dilation."""

    def __init__(self, layers: int, width: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        channels = width
        placed = zip(RESNET_STAGES[layers], (1, 2, 1, 1), ((1, 1), (1, 1), (1, 2), (2, 4)), strict=True)
        for stage, (blocks, stride, (first, others)) in enumerate(placed):
            features, bottlenecks = width * 2**stage, []
            for block in range(blocks):
                dilation = others if block else first
                bottlenecks.append(Bottleneck(channels, features, 1 if block else stride, dilation, not block))
                channels = 4 * features
            setattr(self, f"layer{stage + 1}", nn.Sequential(*bottlenecks))

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        third = self.layer3(self.layer2(self.layer1(x)))
        return self.layer4(third), third


class FCNResNet(nn.Module):
    """torchvision's fcn_resnet50 and 101 with their auxiliary head."""

    def __init__(self, layers: int, classes: int = 4, width: int = 1):
        super().__init__()
        self.classes = classes
        self.backbone = Backbone(layers, width)
        self.classifier, self.aux_classifier = self.head(32 * width), self.head(16 * width)

    def head(self, channels: int):
        inner = channels // 4
        return nn.Sequential(
            nn.Conv2d(channels, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(), nn.Dropout(0.1),
            nn.Conv2d(inner, self.classes, 1),
        )  # fmt: skip

    def heads(self, x):
        """Logits of the head and of the auxiliary one."""
        last, third = self.backbone(x)
        return [
            functional.interpolate(scores, x.shape[-2:], mode="bilinear", align_corners=False)
            for scores in (self.classifier(last), self.aux_classifier(third))
        ]

    def forward(self, x):
        return self.heads(x)[0]


@dataclasses.dataclass(frozen=True)
class Net:
    """How a module is made, the image that it sees, and what becomes of it."""

    make: Callable[[], nn.Module]
    size: tuple[int, int] | None  # None: the file alone is of use
    factors: Mapping[str, float] = dataclasses.field(default_factory=dict)  # weights larger than others, by name
    images: int = 0  # of a training step
    separate: bool = False  # a storage for each tensor, as modules are saved; else one for all of a kind, in less space


# A net's place in the table is the seed of its weights.
NETS = {
    "vgg16": Net(partial(VGG, 16), (224, 224), separate=True),
    "fcn8s": Net(partial(TorchFCN, 8), (19, 26), separate=True),
    "fcn_resnet50": Net(partial(FCNResNet, 50), (33, 26), images=2, separate=True),
    "vgg11": Net(partial(VGG, 11), (224, 224)),
    "vgg13": Net(partial(VGG, 13), (224, 224)),
    "vgg19": Net(partial(VGG, 19), (224, 224)),
    "vgg11_bn": Net(partial(VGG, 11, normed=True, classes=2, wide=1, widths=(1,) * 5), None),
    "fcn32s": Net(partial(TorchFCN, 32, classes=2), (37, 30)),
    "fcn16s": Net(partial(TorchFCN, 16, classes=2, bilinear=True), (31, 23)),
    # Weights make up for the scales as training would, in powers of two, so that the skips count in the sum.
    "fcn8s_atonce": Net(
        partial(TorchFCN, 8, classes=3, scales={"pool4": 0.01, "pool3": 0.0001}, bilinear=True),
        (22, 27),
        factors={"score_pool4.weight": 2**7, "score_pool3.weight": 2**13},
    ),
    "fcn_resnet101": Net(partial(FCNResNet, 101), (33, 26)),
}


def fill(module: nn.Module, seed: int, factors: Mapping[str, float]) -> None:
    """Random weights of He's deviation, statistics of about what they would be; all of them exact in float16.

    Frozen parameters stay what they are.
    """
    generator = torch.Generator().manual_seed(seed)
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name in frozen or not tensor.is_floating_point():
                continue
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.dim() > 1:
                values *= (2 / tensor[0].numel()) ** 0.5
            elif name.endswith(("running_var", "weight")):
                values = 1 + 0.25 * values.clamp(-2, 2)
            else:
                values *= 0.25
            # From 2 on float16 is coarser than 2⁻¹⁰.
            tensor.copy_(((values * 1024).round() / 1024 * factors.get(name, 1)).half())


def channels_first(blob: np.ndarray):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(blob, -1, 1)))


def in_one_storage(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors as views of one storage for each type: torch writes some 300 bytes around a storage."""
    found = {}
    for dtype in {tensor.dtype for tensor in state.values()}:
        of_type = {name: tensor for name, tensor in state.items() if tensor.dtype == dtype}
        flat = torch.cat([tensor.flatten() for tensor in of_type.values()])
        parts = flat.split([tensor.numel() for tensor in of_type.values()])
        found |= {name: part.view_as(of_type[name]) for name, part in zip(of_type, parts, strict=True)}
    return {name: found[name] for name in state}


def train_step(name: str, module: FCNResNet, size: tuple[int, int], images: int) -> None:
    """Writes what torch computes in a step without dropout: logits, losses, gradients and the statistics after it."""
    for layer in module.train().modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0
    wanted = torch.from_numpy(labels(*size, images, module.classes))
    logits = module.heads(channels_first(image(*size, images)))
    loss, auxiliary = (functional.cross_entropy(scores, wanted, ignore_index=255) for scores in logits)
    (loss + 0.5 * auxiliary).backward()
    state = {name: parameter.grad for name, parameter in module.named_parameters()} | dict(module.named_buffers())
    torch.save(in_one_storage(state), FOLDER / f"{name}_step.pth")
    out, aux = (scores.detach().numpy().astype(np.float32) for scores in logits)
    np.savez_compressed(FOLDER / f"{name}_step.npz", out=out, aux=aux, losses=[loss.item(), auxiliary.item()])
    print(f"{name}: losses {loss.item():.3g} and {auxiliary.item():.3g}")


def main() -> None:
    """Writes a checkpoint and an archive of logits for each net, and what its training step gives."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed, (name, net) in enumerate(NETS.items()):
        module = net.make().eval().double()
        fill(module, seed, net.factors)
        state = {key: x.half() if x.is_floating_point() else x for key, x in module.state_dict().items()}
        torch.save(state if net.separate else in_one_storage(state), FOLDER / f"{name}.pth")
        if net.size is None:
            continue
        with torch.no_grad():
            logits = module(channels_first(image(*net.size))).numpy()
        np.savez_compressed(FOLDER / f"{name}.npz", logits=logits.astype(np.float32))
        print(f"{name}: logits {logits.shape}, largest {np.abs(logits).max():.3g}")
        if net.images:
            train_step(name, module, net.size, net.images)


if __name__ == "__main__":
    main()
