"""Small members of well-known families, in float64 with batch norms as after training: dense enough to be checked whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from oracles.awkward_modules import settled
from oracles.awkward_nets import AWKWARD, Awkward, Shape
from torch import Tensor, nn

from pullback.encoders.torchvision_ops import import_timm, import_torchvision


@dataclass(frozen=True)
class Family:
    """A network of a family; `make` builds it, always the same one. piecewise_linear: only ReLUs, max-pools and linear maps."""

    make: Callable[[], nn.Module]
    piecewise_linear: bool
    input_shape: Shape = (3, 32, 32)

    def __call__(self) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return settled(self.make()).double()


def _resnet(block: str, layers: list[int]) -> nn.Module:
    resnet = import_torchvision().models.resnet
    return resnet.ResNet(getattr(resnet, block), layers, num_classes=7)


def _densenet() -> nn.Module:
    return import_torchvision().models.DenseNet(4, (2, 2, 2), 8, num_classes=7, memory_efficient=True)


def _vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 6), (6, 8), (8, 10)):
        layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(outputs, outputs, 3, 1, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(160, 12), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(12, 7)
    )


def _convnext() -> nn.Module:
    convnext = import_torchvision().models.convnext
    blocks = [convnext.CNBlockConfig(8, 12, 1), convnext.CNBlockConfig(12, 16, 1), convnext.CNBlockConfig(16, None, 1)]
    return convnext.ConvNeXt(blocks, stochastic_depth_prob=0.1, layer_scale=0.5, num_classes=7)


def _torchvision(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: import_torchvision().models.get_model(name, weights=None, num_classes=7, **options)


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: import_timm().create_model(name, num_classes=7, **options)


class Hybrid(nn.Module):
    """A small CNN whose deepest features become the tokens of an attention classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 1, 1), nn.ReLU()
        )
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.block = nn.TransformerEncoderLayer(12, 2, 16, dropout=0.1, batch_first=True, norm_first=True)
        self.fc = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.body(self.stem(x)).flatten(2).transpose(1, 2)
        return self.fc(self.block(tokens).mean(1))


FAMILIES: dict[str, Family] = {
    "resnet basic": Family(lambda: _resnet("BasicBlock", [1, 1, 1, 1]), True),
    "resnet bottleneck": Family(lambda: _resnet("Bottleneck", [1, 1, 1, 1]), True),
    "densenet": Family(_densenet, True),
    "vgg": Family(_vgg, True),
    "squeezenet": Family(_torchvision("squeezenet1_1"), True, (3, 47, 47)),
    "mobilenet v2": Family(_torchvision("mobilenet_v2", width_mult=0.25), True),
    "mobilenet v3": Family(_torchvision("mobilenet_v3_small", width_mult=0.35), False),
    "efficientnet": Family(_timm("test_efficientnet"), False),
    "convnext": Family(_convnext, False),
    "regnet": Family(_timm("test_byobnet"), False),
    "shufflenet": Family(_torchvision("shufflenet_v2_x0_5"), True),
    "hybrid": Family(Hybrid, False),
}

NETS: dict[str, Awkward | Family] = {**AWKWARD, **FAMILIES}


# Random weights, at sizes that leave the deepest stages a few pixels.
LIBRARY = {
    "torchvision:resnet18": 64,
    "torchvision:squeezenet1_1": 47,
    "torchvision:mobilenet_v2": 64,
    "torchvision:mobilenet_v3_small": 64,
    "torchvision:efficientnet_b0": 32,
    "torchvision:shufflenet_v2_x1_0": 64,
    "torchvision:googlenet": 64,
    "torchvision:densenet121": 64,
    "timm:mobilenetv2_100?pad_type=same": 61,
    "timm:efficientnet_lite0": 64,
    "timm:repvgg_a0": 64,
}


def library_net(spec: str, **options: object) -> nn.Module:
    """A network with random weights and batch norms as they are made."""
    library, _, name = spec.partition(":")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        if library == "timm":
            name, _, option = name.partition("?")
            return import_timm().create_model(name, **options, **dict([option.split("=")] if option else []))
        if name in ("googlenet", "vgg16_bn"):
            options["init_weights"] = False
        return import_torchvision().models.get_model(name, weights=None, **options)
