from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from oracles.awkward_nets import AWKWARD
from oracles.encoded import SPATIAL, encoder, has_module, hooked, images, points, relative
from oracles.families import NETS
from torch import Tensor, nn

from pullback.encoders.encoder import Encoder
from pullback.errors import EncoderError
from pullback.graph import Tape


@pytest.mark.parametrize("name", [name for name, net in NETS.items() if not getattr(net, "own_backward", False)])
def test_vjps_are_those_of_the_networks_own_autograd(name: str) -> None:
    x = images(name, 1).requires_grad_()
    for stage in [stage for stage in points(name) if has_module(name, stage)]:
        value = hooked(name, stage, x)
        w = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)
        (expected,) = torch.autograd.grad(value, x, w)
        assert relative(encoder(name).jacobian(x[0], stage).vm(w[0]), expected[0]) < 1e-12


@pytest.mark.parametrize("name", NETS)
def test_mv_and_vm_are_adjoint_between_all_neighbouring_stages(name: str) -> None:
    [x] = images(name, 1)
    at = points(name)
    pairs = [(stage, 0) for stage in at] + [(stage, start) for start, stage in pairwise(at)]
    for stage, start in pairs:
        J = encoder(name).jacobian(x, stage, start)
        generator = torch.Generator().manual_seed(2)
        v = torch.randn(J.in_shape, generator=generator, dtype=x.dtype)
        w = torch.randn(J.out_shape, generator=generator, dtype=x.dtype)
        pushed, pulled = J.mv(v), J.vm(w)
        scale = pushed.norm() * w.norm() + v.norm() * pulled.norm()
        assert abs((pushed * w).sum() - (v * pulled).sum()) <= 1e-12 * scale
        if name != "straight_through":
            assert float(pushed.norm()) > 0


@pytest.mark.parametrize("name", SPATIAL)
def test_jacobians_of_stretches_chain_to_the_whole(name: str) -> None:
    """Equation (5): J_l^T is the product of the adjoints of the stages."""
    [x] = images(name, 1)
    whole = encoder(name).jacobian(x, "logits")
    w = torch.randn(whole.out_shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    at = [0, *points(name)]
    pulled = w
    for start, stage in reversed(list(pairwise(at))):
        pulled = encoder(name).jacobian(x, stage, start).vm(pulled)
    assert relative(pulled, whole.vm(w)) < 1e-12 or float(whole.vm(w).norm()) == 0


def gates(tape: Tape, x: Tensor) -> dict[int, Callable[..., Any]]:
    """Stand-ins for ReLUs, max-pools and rounding that decide as at `x`, whatever they are given."""
    held: dict[int, Callable[..., Any]] = {}

    def relu(i: int, x: Tensor, low: float = 0, high: float = torch.inf) -> Tensor:
        inside, above = (x > low) & (x < high), x >= high
        held[i] = lambda x, *rest: torch.where(inside, x, torch.where(above, high, low))
        return x.clamp(low, high)

    def pool(i: int, x: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        out, at = torch.ops.aten.max_pool2d_with_indices(x, *settings)
        held[i] = lambda x, *rest: (x.flatten(2).gather(2, at.flatten(2)).view_as(out), at)
        return out, at

    def step(i: int, x: Tensor) -> Tensor:
        out = x.round()
        held[i] = lambda x: out
        return out

    stand_ins = {"round": step, "relu": relu, "hardtanh": relu, "max_pool2d_with_indices": pool}
    rules = {i: partial(stand_ins[op.name], i) for i, op in enumerate(tape.ops) if op.name in stand_ins}
    tape.replay(x, [tape.output], rules=rules)
    return held


@pytest.mark.parametrize("name", SPATIAL)
def test_a_piecewise_linear_network_is_its_jacobian_and_a_bias(name: str) -> None:
    """F(x) = J x + b, where b is what the network makes of a black image through the gates of x; others have more in them."""
    [x] = images(name, 1)
    tape = encoder(name).tape(x[None])
    through = gates(tape, x[None])
    worst = 0.0
    for stage in points(name):
        J = encoder(name).jacobian(x, stage)
        F = encoder(name).features(x, stage)
        assert relative(J.mv(x) + J.bias(), F) < 1e-12
        (b,) = tape.replay(torch.zeros_like(x)[None], [encoder(name).point(tape, stage)], rules=through)
        worst = max(worst, relative(J.mv(x) + b[0], F))
    assert worst < 1e-12 if NETS[name].piecewise_linear else worst > 1e-4


def test_the_bias_of_one_layer_in_closed_form() -> None:
    conv = nn.Conv2d(3, 4, 3, 1, 1)
    net = nn.Sequential(
        conv, nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).double()
    x = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    J = Encoder.from_module(net, input_shape=(3, 6, 6)).jacobian(x, "1")
    with torch.no_grad():
        open_gates = (conv(x[None])[0] > 0).double()
    assert relative(J.bias(), open_gates * conv.bias.detach()[:, None, None]) < 1e-12


@pytest.mark.parametrize("name", ["transformer", "perceptron"])
def test_without_spatial_stages_the_jacobian_still_works(name: str) -> None:
    [x] = images(name, 1)
    for error in (
        lambda: encoder(name).stages,
        lambda: encoder(name).features(x),
        lambda: encoder(name).jacobian(x, 1),
    ):
        with pytest.raises(EncoderError, match="no spatial stages"):
            error()
    module = {"transformer": "block", "perceptron": "2"}[name]
    J = encoder(name).jacobian(x, module)
    assert J.vm(torch.ones(J.out_shape, dtype=x.dtype)).shape == x.shape
    assert encoder(name).logits(x).shape == (5,)


def test_any_modules_output_can_be_a_stage() -> None:
    [x] = images("plain", 1)
    inner = encoder("plain").features(x, "level2.0")
    assert inner.shape == (8, 16, 16)
    assert relative(encoder("plain").jacobian(x, "level2.0").value, inner) < 1e-12
    assert torch.equal(encoder("plain").features(x, "level2"), encoder("plain").features(x, 2))
    assert torch.equal(encoder("plain").features(x, 0), x)


def test_stages_by_name_replace_the_automatic_ones() -> None:
    chosen = Encoder.from_module(AWKWARD["plain"](), stages=["level1.2", "level3"], input_shape=(3, 32, 32))
    assert [s.name for s in chosen.stages] == ["level1.2", "level3"]
    assert [s.name for s in chosen.double().stages] == ["level1.2", "level3"]
    assert chosen.features(images("plain", 1)[0], 1).shape == (6, 32, 32)
