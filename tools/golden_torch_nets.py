"""Writes tests/golden/torch_nets/: narrow nets saved by torch with the logits that torch computes from them.

Runs where torch is installed, which this project does not need:

    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch numpy
    /tmp/torch/bin/python tools/golden_torch_nets.py

The modules have the names, layouts and order of operations of torchvision's VGG and FCN on ResNet and of wkentaro's
FCN-8s, at a thirty-second of their width, so that a file has some ten kilobytes; weights are random multiples of
2⁻¹⁰ kept as float16, which loses nothing. The images are a formula (`image`), which the tests repeat. Logits are those
of float64. The files here are of torch 2.13.0.
"""

from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "golden" / "torch_nets"
VGG16 = ((2, 2), (4, 4), (8, 8, 8), (16, 16, 16), (16, 16, 16))


def image(height: int, width: int, channels: int = 3) -> np.ndarray:
    """An input blob `[1 h w c]` that wobbles between −2 and 2."""
    places = np.arange(height * width * channels).reshape(1, height, width, channels)
    return ((places * 7919) % 257 - 128) / 64


class VGG(nn.Module):
    """torchvision's: features, average pooling to 7×7, classifier."""

    def __init__(self, classes: int = 5, wide: int = 6):
        super().__init__()
        layers, channels = [], 3
        for block in VGG16:
            for features in block:
                layers += [nn.Conv2d(channels, features, 3, padding=1), nn.ReLU()]
                channels = features
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, wide), nn.ReLU(), nn.Dropout(),
            nn.Linear(wide, wide), nn.ReLU(), nn.Dropout(),
            nn.Linear(wide, classes),
        )  # fmt: skip

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class FCN8s(nn.Module):
    """torchfcn's: 100 pixels of pad, pooling that rounds up, kernels of the up-sampling dense."""

    def __init__(self, classes: int = 4, wide: int = 6):
        super().__init__()
        channels = 3
        for number, block in enumerate(VGG16, start=1):
            for layer, features in enumerate(block, start=1):
                padding = 100 if number == layer == 1 else 1
                setattr(self, f"conv{number}_{layer}", nn.Conv2d(channels, features, 3, padding=padding))
                channels = features
        self.fc6, self.fc7 = nn.Conv2d(channels, wide, 7), nn.Conv2d(wide, wide, 1)
        self.score_fr = nn.Conv2d(wide, classes, 1)
        self.score_pool3, self.score_pool4 = nn.Conv2d(8, classes, 1), nn.Conv2d(16, classes, 1)
        self.upscore2 = nn.ConvTranspose2d(classes, classes, 4, stride=2, bias=False)
        self.upscore8 = nn.ConvTranspose2d(classes, classes, 16, stride=8, bias=False)
        self.upscore_pool4 = nn.ConvTranspose2d(classes, classes, 4, stride=2, bias=False)

    def forward(self, x):
        height, width = x.shape[2:]
        pools = {}
        for number, block in enumerate(VGG16, start=1):
            for layer in range(1, len(block) + 1):
                x = functional.relu(getattr(self, f"conv{number}_{layer}")(x))
            x = pools[number] = functional.max_pool2d(x, 2, 2, ceil_mode=True)
        x = self.score_fr(functional.relu(self.fc7(functional.relu(self.fc6(x)))))
        for up, score, pool, offset in (
            (self.upscore2, self.score_pool4, pools[4], 5),
            (self.upscore_pool4, self.score_pool3, pools[3], 9),
        ):
            x = up(x)
            x = x + score(pool)[:, :, offset : offset + x.shape[2], offset : offset + x.shape[3]]
        return self.upscore8(x)[:, :, 31 : 31 + height, 31 : 31 + width]


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
    """torchvision's ResNet-50 with the strides of layer3 and layer4 traded for dilation."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        channels = width
        for stage, (blocks, stride, first, others) in enumerate(
            ((3, 1, 1, 1), (4, 2, 1, 1), (6, 1, 1, 2), (3, 1, 2, 4))
        ):
            features, layers = width * 2**stage, []
            for block in range(blocks):
                dilation = others if block else first
                layers.append(Bottleneck(channels, features, 1 if block else stride, dilation, projected=not block))
                channels = 4 * features
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        third = self.layer3(self.layer2(self.layer1(x)))
        return self.layer4(third), third


class FCNResNet(nn.Module):
    """torchvision's fcn_resnet50 with its auxiliary head."""

    def __init__(self, classes: int = 4, width: int = 1):
        super().__init__()
        self.backbone = Backbone(width)
        self.classifier, self.aux_classifier = self.head(32 * width, classes), self.head(16 * width, classes)

    @staticmethod
    def head(channels: int, classes: int):
        inner = channels // 4
        return nn.Sequential(
            nn.Conv2d(channels, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(), nn.Dropout(0.1),
            nn.Conv2d(inner, classes, 1),
        )  # fmt: skip

    def forward(self, x):
        features, _ = self.backbone(x)
        return functional.interpolate(self.classifier(features), x.shape[-2:], mode="bilinear", align_corners=False)


NETS = {"vgg16": (VGG, (224, 224)), "fcn8s": (FCN8s, (19, 26)), "fcn_resnet50": (FCNResNet, (33, 26))}


def fill(module: nn.Module, seed: int) -> None:
    """Random weights of He's deviation, statistics of about what they would be; all of them exact in float16."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.dim() > 1:
                values *= (2 / tensor[0].numel()) ** 0.5
            elif name.endswith(("running_var", "weight")):
                values = 1 + 0.25 * values.clamp(-2, 2)
            else:
                values *= 0.25
            tensor.copy_((values * 1024).round() / 1024)


def main() -> None:
    """Writes a checkpoint and an archive of logits for each net."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed, (name, (make, size)) in enumerate(NETS.items()):
        module = make().eval().double()
        fill(module, seed)
        blob = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image(*size), -1, 1)))
        with torch.no_grad():
            logits = module(blob).numpy()
        state = {key: x.half() if x.is_floating_point() else x for key, x in module.state_dict().items()}
        torch.save(state, FOLDER / f"{name}.pth")
        np.savez_compressed(FOLDER / f"{name}.npz", logits=logits.astype(np.float32))
        print(f"{name}: logits {logits.shape}, largest {np.abs(logits).max():.3g}")


if __name__ == "__main__":
    main()
