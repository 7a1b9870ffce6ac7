"""Small networks, each awkward in one way that real code is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CLASSES = 5


def settled(net: nn.Module) -> nn.Module:
    """Gives every batch norm statistics and weights of its own, as after training; eval mode."""
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            for tensor in (m.weight, m.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (m.bias, m.running_mean):
                nn.init.normal_(tensor, 0, 0.2)
    return net.eval()


def level(inputs: int, outputs: int, stride: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Two convolutions with batch norm, the first with the stride: one level of resolution."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), act(),
        nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), act(),
    )  # fmt: skip


class Plain(nn.Module):
    """Nothing awkward: three levels of two convolutions, pooling, a linear classifier. The others change one thing in it."""

    def __init__(self, channels: int = 3, act: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.level1 = level(channels, 6, 1, act)
        self.level2 = level(6, 8, 2, act)
        self.level3 = level(8, 10, 2, act)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(10, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        return self.level3(self.level2(self.level1(x)))

    def classify(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(x).flatten(1))

    def forward(self, x: Tensor) -> Any:
        return self.classify(self.features(x))


# ---- ReLUs and residuals ------------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """Residual blocks with in-place ReLUs everywhere and in-place additions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.layer1 = InPlaceBlock(6, 6, 1)
        self.layer2 = nn.Sequential(InPlaceBlock(6, 8, 2), InPlaceBlock(8, 8, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.layer2(self.layer1(self.stem(x)))).flatten(1))


class InPlaceBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.relu(y)


class InPlaceOnInput(Plain):
    """Normalises its input in place: the caller's own tensor, and a leaf of autograd."""

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.1
        return self.classify(self.features(x.div_(1.5)))


class OneReLU(nn.Module):
    """One ReLU module, used five times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.conv3, self.conv4 = nn.Conv2d(6, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.conv5 = nn.Conv2d(8, 10, 3, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            x = self.relu(conv(x))
        return self.fc(x.mean((2, 3)))


class Functional(nn.Module):
    """No submodule at all: parameters and functions."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 6, 6, 8, 8)
        self.kernels = nn.ParameterList(
            nn.Parameter(torch.randn(b, a, 3, 3) / (9 * a) ** 0.5) for a, b in pairwise(widths)
        )
        self.rows = nn.Parameter(torch.randn(CLASSES, 8))

    def forward(self, x: Tensor) -> Tensor:
        k = list(self.kernels)
        x = F.relu(F.conv2d(x, k[0], padding=1))
        x = F.max_pool2d(F.relu(F.conv2d(x, k[1], padding=1)), 2)
        x = F.relu(F.conv2d(x, k[2], padding=1))
        x = F.relu(F.conv2d(x, k[3], padding=1))
        return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), self.rows)


class CalledTwice(nn.Module):
    """One convolution module is called twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU())
        self.mix = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(6, 8, 2, 2), nn.ReLU())
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.mix(self.stem(x)))
        return self.fc(self.down(x).mean((2, 3)))


class Views(nn.Module):
    """Writes through views: into slices of feature maps, and into an empty tensor made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU()
        self.conv2, self.act2 = nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU()
        self.conv3, self.act3 = nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU()
        self.conv4, self.act4 = nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x[:, :2] += 1
        x = self.conv2(self.act1(x))
        x[:, 2:, 1:].mul_(0.5)
        x = self.act3(self.conv3(self.act2(x)))
        y = torch.zeros_like(x)
        y[:, ::2] = x[:, ::2]
        y[:, 1::2] = -x[:, 1::2]
        return self.fc(self.act4(self.conv4(y)).mean((2, 3)))


# ---- outputs and wrappers -----------------------------------------------------------------------------------------


@dataclass
class Output:
    hidden: Tensor
    logits: Tensor


class DataclassOutput(Plain):
    def forward(self, x: Tensor) -> Output:
        hidden = self.features(x)
        return Output(hidden, self.classify(hidden))


class DictOutput(Plain):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.features(x)
        return {"hidden": hidden, "logits": self.classify(hidden)}


class TupleOutput(Plain):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.features(x)
        return self.classify(hidden), hidden.mean((1, 2, 3))


def must_not_compile(graph: Any, inputs: Any) -> Any:
    """A backend for torch.compile: recognising a compiled network takes no compilation."""
    raise AssertionError("the network was compiled")


def compiled_whole() -> nn.Module:
    return torch.compile(settled(Plain()), backend=must_not_compile)  # type: ignore[return-value]


def compiled_part() -> nn.Module:
    net = settled(Plain())
    net.level2 = torch.compile(net.level2, backend=must_not_compile)  # type: ignore[assignment]
    net.level3.compile(backend=must_not_compile)
    return net


class CompiledFunction(Plain):
    """Calls a compiled function, which no unwrapping of modules finds."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = torch.compile(F.relu, backend=must_not_compile)

    def features(self, x: Tensor) -> Tensor:
        return self.relu(super().features(x))


# ---- state --------------------------------------------------------------------------------------------------------


class Dropout(Plain):
    """Left in train mode, with dropout and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.drop(self.features(x)))


def frozen() -> nn.Module:
    return settled(Plain()).requires_grad_(False)


def channels_last() -> nn.Module:
    return settled(ChannelsLast()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class ChannelsLast(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x.contiguous(memory_format=torch.channels_last)))


def under_inference_mode() -> nn.Module:
    """Parameters and buffers are inference tensors, which autograd refuses to save."""
    with torch.inference_mode():
        return settled(Plain())


def weight_normed() -> nn.Module:
    """The old weight norm keeps each weight as a plain attribute that hangs in a graph, and recomputes it in a hook."""
    net = settled(Plain())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for m in [m for m in net.modules() if isinstance(m, nn.Conv2d)]:
            torch.nn.utils.weight_norm(m)
    return net


def backward_hooked() -> nn.Module:
    """A backward hook, as Grad-CAM tools leave behind, hands each output on as a view of itself."""
    net = settled(Plain())
    net.level2.register_full_backward_hook(lambda module, into, out: None)
    return net


class Checkpointed(Plain):
    """Runs its middle under activation checkpointing, which recomputes it in the backward pass."""

    def features(self, x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the reentrant kind warns where nothing needs a gradient
            return self.level3(checkpoint(self.level2, self.level1(x), use_reentrant=self.reentrant))

    reentrant = False


class CheckpointedReentrant(Checkpointed):
    """The old kind is a custom autograd.Function around a part of the network, and refuses torch.autograd.grad."""

    reentrant = True


# ---- derivatives --------------------------------------------------------------------------------------------------


class _Swish(torch.autograd.Function):
    """Saves the input alone, as memory-efficient EfficientNets do; the backward pass is the true derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s * (1 + x * (1 - s)))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Swish.apply(x)


class _Quantize(torch.autograd.Function):
    """Straight-through rounding: the derivative is zero, the backward pass the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x * 8) / 8

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Quantize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Quantize.apply(x)


class Quantized(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.quantize = Quantize()

    def features(self, x: Tensor) -> Tensor:
        return self.level3(self.quantize(self.level2(self.level1(x))))


class Branching(Plain):
    """Which of two convolutions runs depends on the numbers in the image."""

    def __init__(self) -> None:
        super().__init__()
        self.bright, self.dark = nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)

    def features(self, x: Tensor) -> Tensor:
        branch = self.bright if x.mean() > 0 else self.dark
        return self.level3(self.level2(F.relu(branch(self.level1(x)))))


class InstanceNormed(Plain):
    """Instance norm runs as a batch norm over (1, N * C, H, W), and sees the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(6, affine=True)

    def features(self, x: Tensor) -> Tensor:
        return self.level3(self.level2(self.norm(self.level1(x))))


class Centre(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5 * x.mean(0, keepdim=True)


class BatchMixing(Plain):
    """Subtracts a share of the mean over the batch: neighbours change an image's result."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = Centre()

    def features(self, x: Tensor) -> Tensor:
        return self.level3(self.centre(self.level2(self.level1(x))))


# ---- no spatial stages --------------------------------------------------------------------------------------------


class VisionTransformer(nn.Module):
    """Patch embedding, class token, positions, one attention block."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.positions = nn.Parameter(torch.randn(1, 17, 12) * 0.1)
        self.block = nn.TransformerEncoderLayer(
            12, 3, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.fc(self.block(tokens)[:, 0])


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 16), nn.ReLU(), nn.Linear(16, CLASSES))
