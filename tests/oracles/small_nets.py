"""Small networks in float64 whose Jacobians are small enough to be written out densely."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.encoders import Encoder, Preprocessing


def randomised(net: nn.Module, seed: int) -> nn.Module:
    """Batch norms with statistics and affine parameters that are no near-identity, biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.3
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
            module.weight.data = torch.rand(module.num_features, generator=generator) + 0.5
            module.bias.data = torch.randn(module.num_features, generator=generator) * 0.2
        elif isinstance(module, nn.Conv2d | nn.Linear):
            fan = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2 / fan) ** 0.5
            if module.bias is not None:
                module.bias.data = torch.randn(module.bias.shape, generator=generator) * 0.1
    return net.double().eval()


class Residual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.down = nn.Conv2d(cin, cout, 1, stride, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + self.down(x))


class SmallNet(nn.Module):
    """Three rectified residual stages 8, 12, 16 wide on 3 x 16 x 16, global average pooling, five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2, self.layer3 = Residual(3, 8, 2), Residual(8, 12, 2), Residual(12, 16, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.layer3(self.layer2(self.layer1(x)))).flatten(1))


def small_encoder(seed: int = 0, size: int = 16) -> Encoder:
    preprocessing = Preprocessing(size=(size, size), resize=None, mean=(0.5,) * 3, std=(0.25,) * 3)
    stages = ["layer1", "layer2", "layer3"]
    return Encoder.from_module(randomised(SmallNet(), seed), stages=stages, name="small", preprocessing=preprocessing)


def image(seed: int = 0, size: int = 16) -> Tensor:
    return torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Deaf(nn.Module):
    """Hears nothing but what is far brighter than any usual picture."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.fc = nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gate(F.avg_pool2d(x, 2) - 50).mean((2, 3)))
