"""Networks of CIFAR-10 for the reconstruction study, one of them certified to be robust, as `module:` encoders; and its pictures.

    python scripts/cifar10.py cifar10_test2000.npz pictures --count 40
    pullback study reconstruction pictures --out study --encoder module:scripts.cifar10:certified \\
        --weights cifar10_certified_l2.safetensors --preprocessing "mean=0.485,0.456,0.406;std=0.225;size=32;resize=32"

The certified network is the small one of Wong et al. (2018), "Scaling provable adversarial defenses"; the other one is the
ResNet-20 of He et al. (2016), trained without a thought of robustness.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F


def certified() -> nn.Module:
    """Two strided convolutions and two linear layers, for (N, 3, 32, 32)."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


class _Block(nn.Module):
    """Two convolutions; a shortcut without parameters: every second pixel, zero channels on both sides."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.stride, self.missing = stride, (outer - inner) // 2

    def forward(self, x: Tensor) -> Tensor:
        made = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.missing, self.missing))
        return F.relu(made + short)


class _ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(_Block(16, 32, 2), _Block(32, 32, 1), _Block(32, 32, 1))
        self.layer3 = nn.Sequential(_Block(32, 64, 2), _Block(64, 64, 1), _Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def resnet20() -> nn.Module:
    return _ResNet20()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="an npz file with x (N, 32, 32, 3) uint8")
    parser.add_argument("out", type=Path, help="a folder for the pictures, made where it is missing")
    parser.add_argument("--count", type=int, default=40, help="so many, the first ones")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    with np.load(chosen.archive) as archive:
        for number, picture in enumerate(archive["x"][: chosen.count]):
            Image.fromarray(picture).save(chosen.out / f"{number:04d}.png")


if __name__ == "__main__":
    main()
