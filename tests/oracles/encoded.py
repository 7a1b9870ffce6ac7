"""What tests of encoders share: small networks as encoders in float64, images, values seen by the networks' own hooks."""

from __future__ import annotations

from functools import cache

import torch
from oracles.families import NETS
from torch import Tensor

from pullback.encoders.encoder import Encoder
from pullback.encoders.twin import read_logits, twin
from pullback.graph import plain_autograd

SPATIAL = [name for name in NETS if name not in ("transformer", "perceptron")]


@cache
def encoder(name: str) -> Encoder:
    """In float64; half precision is widened here, as everything else."""
    return Encoder.from_module(NETS[name](), input_shape=NETS[name].input_shape).double()


def images(name: str, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *NETS[name].input_shape, generator=generator, dtype=torch.float64)


def points(name: str) -> list[int | str]:
    """The stages of a network, and its logits."""
    found = encoder(name)
    return [*range(1, found.depth + 1), "logits"] if name in SPATIAL else ["logits"]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def hooked(name: str, stage: int | str, x: Tensor) -> Tensor:
    """The value with its graph that the network's own forward pass returns at a stage, seen by a hook on the module."""
    net = twin(NETS[name]()).double()
    with plain_autograd(x.device):
        if stage == "logits":
            return read_logits(net(x.clone()))
        module, _, call = encoder(name).stage(stage).name.partition("#")
        seen: list[Tensor] = []
        handle = net.get_submodule(module).register_forward_hook(lambda m, args, out: seen.append(out.clone()))
        net(x.clone())
        handle.remove()
        return seen[int(call or 1) - 1]


def has_module(name: str, stage: int | str) -> bool:
    modules = dict(NETS[name]().named_modules())
    return stage == "logits" or encoder(name).stage(stage).name.partition("#")[0] in modules
