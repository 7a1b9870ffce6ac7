"""The architecture of `builtin:scenes`: a small residual ReLU encoder after He et al. 2016 (basic blocks), in plain torch."""

from __future__ import annotations

from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the output, (N, outputs, H / stride, W / stride), comes straight out of a ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


class ScenesNet(nn.Module):
    """A stem of stride 2, four residual stages of strides 1, 2, 2, 2, mean pooling and a linear read-out."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 5, 2, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.layer1 = Residual(32, 32, 1)
        self.layer2 = Residual(32, 64, 2)
        self.layer3 = Residual(64, 128, 2)
        self.layer4 = Residual(128, 256, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 128, 128) -> (N, classes)
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return self.fc(self.pool(x).flatten(1))


def scenes_net(classes: int = 16) -> nn.Module:
    """The network of `builtin:scenes` with random weights: 1.2 million parameters, input (N, 3, 128, 128), logits (N, classes)."""
    return ScenesNet(classes)
