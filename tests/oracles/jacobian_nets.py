"""Small networks that use every trick which a Jacobian can stumble over, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Function = Callable[[Tensor], Tensor]
IN_SHAPE = (3, 8, 8)


def _conv(*args: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(*args, **options)  # type: ignore[arg-type]


class _Twice(nn.Module):
    """One ReLU module used three times, a residual sum, an in-place addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = _conv(3, 4, 3, padding=1), _conv(4, 4, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        y = self.second(x)
        y += x
        return self.relu(self.second(self.relu(y)))


class _Functional(nn.Module):
    """No modules inside: weights as buffers, concatenation, slices, an odd-shaped result."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(4, 3, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.conv2d(x, self.weight, stride=2).chunk(2, dim=1)
        both = torch.cat([a.clamp(min=0) * b, F.avg_pool2d(x[:, :1], 2)], dim=1)
        return both.flatten(2).transpose(1, 2)


class _Branch(nn.Module):
    """A path that the numbers decide, per sample alike."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = _conv(3, 2, 3), _conv(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if x.detach().sum() > 0 else self.other(x).relu()


def _drawn(net: nn.Module) -> nn.Module:
    """Weights and batch-norm statistics off their initial values, evaluation mode, frozen."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else 0.4 * drawn)
    return net.double().eval().requires_grad_(False)


def _scripted() -> Function:
    net = _drawn(nn.Sequential(_conv(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(net, a_point()[None])


def _begins_in_place(x: Tensor) -> Tensor:
    return x.sub_(0.1).mul_(2).relu_()


NETS: dict[str, Callable[[], Function]] = {
    "in-place relu, batch norm, max-pool": lambda: _drawn(
        nn.Sequential(
            _conv(3, 5, 3, padding=1, bias=False),
            nn.BatchNorm2d(5),
            nn.ReLU(True),
            nn.MaxPool2d(3, 2, 1),
            _conv(5, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(True),
        )
    ),
    "module used three times": lambda: _drawn(_Twice()),
    "functional": lambda: _drawn(_Functional()),
    "branch": lambda: _drawn(_Branch()),
    "begins in place": lambda: _begins_in_place,
    "groups, dilation, stride": lambda: _drawn(
        nn.Sequential(
            _conv(3, 6, 3, groups=3, dilation=2, padding=2), nn.ReLU6(), _conv(6, 4, (1, 3), stride=(1, 2)), nn.SiLU()
        )
    ),
    "padding by name and by reflection": lambda: _drawn(
        nn.Sequential(_conv(3, 4, 3, padding="same"), nn.ReLU(), _conv(4, 2, 3, padding=1, padding_mode="reflect"))
    ),
    "transposed convolution, pooling by mean": lambda: _drawn(
        nn.Sequential(
            _conv(3, 4, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, stride=2), nn.AdaptiveAvgPool2d(2)
        )
    ),
    "group and layer norm, gelu": lambda: _drawn(
        nn.Sequential(_conv(3, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 5))
    ),
    "batch norm without affine part": lambda: _drawn(
        nn.Sequential(nn.BatchNorm2d(3, affine=False), _conv(3, 2, 3), nn.Tanh())
    ),
    "hard sigmoid (no second derivative)": lambda: _drawn(
        nn.Sequential(_conv(3, 4, 3), nn.Hardsigmoid(), nn.Hardswish())
    ),
    "trainable weights": lambda: _drawn(nn.Sequential(_conv(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).requires_grad_(
        True
    ),
    "scripted": _scripted,
    "one number": lambda: lambda x: x.flatten(1).square().sum(1),
}


def a_point(seed: int = 0, shape: tuple[int, ...] = IN_SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(function: Function, x: Tensor) -> Tensor:
    """The oracle: the Jacobian at x by autograd's own dense routine, (out_size, in_size)."""
    full = torch.autograd.functional.jacobian(lambda one: function(one[None].clone())[0], x)
    return full.reshape(-1, x.numel())


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).detach().norm() / expected.detach().norm())
