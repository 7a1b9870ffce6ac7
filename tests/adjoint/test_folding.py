"""Batch norms and constant factors on either side of convolutions: folded or not, the products are the dense Jacobian."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles.lowered import a_point, assert_both_products_are_dense, dense, drawn, lower, network
from torch import Tensor, nn

from pullback.adjoint import Program
from pullback.graph import record

NORM = nn.BatchNorm2d
CHAINS: dict[str, Callable[[], list[nn.Module]]] = {
    "conv, norm": lambda: [nn.Conv2d(4, 6, 3, padding=1), NORM(6)],
    "norm, conv": lambda: [NORM(4), nn.Conv2d(4, 6, 3, padding=1)],
    "norm, conv, norm": lambda: [NORM(4), nn.Conv2d(4, 6, 3, padding=1), NORM(6)],
    "conv, norm, norm": lambda: [nn.Conv2d(4, 6, 3, padding=1), NORM(6), NORM(6, eps=0.3)],
    "norms alone": lambda: [NORM(4), NORM(4)],
    "norm, norm, conv": lambda: [NORM(4), NORM(4), nn.Conv2d(4, 2, 1)],
    "grouped between": lambda: [NORM(4), nn.Conv2d(4, 6, 3, groups=2), NORM(6)],
    "depthwise between": lambda: [NORM(4), nn.Conv2d(4, 8, 3, groups=4, padding=1), NORM(8)],
    "transposed between": lambda: [NORM(4), nn.ConvTranspose2d(4, 6, 2, 2), NORM(6)],
    "transposed, grouped between": lambda: [NORM(4), nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2), NORM(6)],
    "stem": lambda: [nn.Conv2d(4, 6, 3, 2, 1), NORM(6), nn.ReLU()],
    "strided between": lambda: [NORM(4), nn.Conv2d(4, 6, 2, 3), NORM(6)],
    "pre-activation": lambda: [NORM(4), nn.ReLU(), nn.Conv2d(4, 6, 3), NORM(6), nn.ReLU(), nn.Conv2d(6, 3, 1)],
    "two convolutions, one norm between": lambda: [nn.Conv2d(4, 6, 3), NORM(6), nn.Conv2d(6, 3, 3)],
    "norm, pool": lambda: [NORM(4), nn.MaxPool2d(2), NORM(4)],
    "norm, relu, pool": lambda: [nn.Conv2d(4, 5, 3), NORM(5), nn.ReLU(), nn.MaxPool2d(3, 2, 1)],
    "line": lambda: [nn.Flatten(2), nn.BatchNorm1d(4), nn.Conv1d(4, 6, 5, 2), nn.BatchNorm1d(6)],
    "volume": lambda: [nn.Unflatten(1, (2, 2)), nn.BatchNorm3d(2), nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str) -> None:
    net, x = drawn(nn.Sequential(*CHAINS[name]())), a_point(4, 6, 5)
    program = lower(net, x)
    assert program.unknown == ()
    assert_both_products_are_dense(program, dense(net, x))


FACTORS: dict[str, Callable[..., Tensor]] = {
    "a number after": lambda x, conv, norm: 0.3 * conv(x),
    "a number before": lambda x, conv, norm: conv(x / 0.3),
    "minus": lambda x, conv, norm: 1 - conv(2 - x),
    "per channel after": lambda x, conv, norm: norm(conv(x) * torch.arange(6.0).reshape(6, 1, 1)),
    "per column after": lambda x, conv, norm: norm(conv(x)) * torch.arange(5.0),
    "per row and channel": lambda x, conv, norm: norm(conv(x) * torch.arange(36.0).reshape(6, 6, 1)),
    "an image's factor after": lambda x, conv, norm: norm(conv(x) * x.detach().mean()),
    "an image's factor between": lambda x, conv, norm: conv(0.5 * x * x.detach().mean((2, 3), keepdim=True)) * 3,
    "the output of the convolution read twice": lambda x, conv, norm: (y := conv(x)) * 2 + norm(y),
    "one convolution twice": lambda x, conv, norm: torch.cat([norm(conv(x)), 3 * conv(x.relu())], 1),
    "one norm twice": lambda x, conv, norm: norm(norm(conv(x)).relu()),
    "a sum in the middle": lambda x, conv, norm: norm(conv(x) + conv(x.relu())) * 2,
}  # fmt: skip


@pytest.mark.parametrize("name", FACTORS)
def test_factors(name: str) -> None:
    net, x = network(FACTORS[name], nn.Conv2d(4, 6, 3, padding=1), NORM(6)), a_point(4, 6, 5)
    program = lower(net, x)
    assert program.unknown == ()
    assert_both_products_are_dense(program, dense(net, x))


@pytest.mark.parametrize("width", [1, 6])
def test_a_factor_along_the_width_is_none_per_channel(width: int) -> None:
    """One channel, or as many channels as columns: what broadcasts along the last axis is not taken for channels."""
    net = network(lambda x, conv: conv(x) * torch.arange(1.0, 7).double(), nn.Conv2d(4, width, 1))
    x = a_point(4, 6, 6)
    assert_both_products_are_dense(lower(net, x), dense(net, x))


def test_stretches_of_one_tape_share_kernels_but_not_scales() -> None:
    """With and without the norm, forwards and backwards, in either order: each stretch its own kernel."""
    net, x = drawn(nn.Sequential(nn.Conv2d(4, 6, 3), NORM(6), nn.ReLU(), nn.Conv2d(6, 5, 3), NORM(5))), a_point(4, 6, 5)
    tape, _, _ = record(net, x[None])
    packed: dict[object, Tensor] = {}
    for parts in ([0, 1, 2], [0], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1], [0]):
        [end] = tape.returned_by(str(parts[-1]))
        program = Program.lower(tape, tape.input, end, x, packed)
        assert_both_products_are_dense(program, dense(net[: parts[-1] + 1], x))
    [start] = tape.returned_by("0")
    at = net[0](x[None])[0]
    program = Program.lower(tape, start, tape.output, at, packed)
    assert_both_products_are_dense(program, dense(net[1:], at))


def test_batch_norm_in_closed_form() -> None:
    """gamma / sqrt(variance + eps) per channel, times the kernel of a 1 x 1 convolution."""
    conv, norm = nn.Conv2d(2, 1, 1, bias=False), NORM(1, eps=0.25)
    net = drawn(nn.Sequential(conv, norm))
    net[0].weight.copy_(torch.tensor([3.0, -2.0]).reshape(1, 2, 1, 1))
    net[1].weight.fill_(5.0)
    net[1].running_var.fill_(2.0)
    pulled = lower(net, a_point(2, 1, 1)).pull(torch.ones(1, 1, 1, 1, dtype=torch.float64))
    expected = torch.tensor([3.0, -2.0], dtype=torch.float64) * 5 / 1.5
    assert float((pulled.flatten() - expected).abs().max()) < 1e-14
