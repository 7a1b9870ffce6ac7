"""What tests of tapes share: functions as networks, images, tapes in float64, and cotangents pulled back by autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from oracles.families import NETS
from torch import Tensor, nn

from pullback.encoders.twin import read_logits, twin
from pullback.graph import Tape, plain_autograd, record


class Apply(nn.Module):
    """A function as a network, with the modules that it uses."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def double_twin(name: str) -> nn.Module:
    return twin(NETS[name]()).double()


def batch(name: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, *NETS[name].input_shape, generator=generator, dtype=torch.float64)
    return x + 1 - x.mean()  # the same branch of the branching network whatever the seed


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def vjp(function: Callable[[Tensor], Tensor], x: Tensor, w: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The value of `function` at `x`, and a cotangent (default: a random one) pulled back by autograd."""
    with plain_autograd(x.device):
        leaf = x.detach().clone().requires_grad_()
        value = function(leaf.clone())
        if w is None:
            w = torch.randn(value.shape, generator=torch.Generator().manual_seed(5), dtype=value.dtype)
        (pulled,) = torch.autograd.grad(value, leaf, w, materialize_grads=True, allow_unused=True)
    return value.detach(), pulled


def taped(net: nn.Module, x: Tensor) -> Tape:
    return record(net, x, read_logits)[0]


def image(channels: int = 3) -> Tensor:
    return torch.randn(1, channels, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
