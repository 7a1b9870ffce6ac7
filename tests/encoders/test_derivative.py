"""Networks whose derivative is hard to have: a recurrent layer inside, values overwritten, parts in half precision."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback import Encoder, Inverter, check
from pullback.errors import EncoderError
from pullback.measures import leading_share


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 8, 3, 2, 1)
            self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
            self.third = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
            self.scan = nn.GRU(8, 8, batch_first=True)
            self.head = nn.Linear(8, 5)

    def rest(self, y: Tensor) -> Tensor:
        return self.head(self.third(self.second(y)).mean((2, 3)))


class Recurrent(Blocks):
    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        found, _ = self.scan(y.flatten(2).transpose(1, 2))
        return self.head(self.third(found.transpose(1, 2).reshape(y.shape)).mean((2, 3)))


class Adding(Blocks):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        y += 1
        return self.rest(y)


class Autocast(Blocks):
    """All of it, or the middle block alone."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if self.whole else nullcontext():
            y = F.relu(self.first(x))
            with torch.autocast("cpu", torch.bfloat16):
                y = self.second(y)
            return self.head(self.third(y if self.whole else y.float()).mean((2, 3))).float()


IMAGE = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(1))
METHODS = ["cascade", "vjp", "wiener", "blind", "decoder"]


def encoder_of(net: nn.Module) -> Encoder:
    return Encoder.from_module(net.eval(), input_shape=(3, 16, 16))


def drawn(encoder: Encoder, method: str, mode: str = "frozen") -> Tensor:
    steps = {"steps": 2} if method in ("wiener", "blind") else {}
    with Inverter(encoder, method, mode, **steps)(IMAGE) as session:
        return torch.stack([session.stage(s.number).tensor for s in encoder.stages])


def gradient(net: nn.Module, w: Tensor) -> Tensor:
    leaf = IMAGE[None].clone().requires_grad_()
    (found,) = torch.autograd.grad((net(leaf) * w).sum(), leaf)
    return found[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_recurrent_layer_between_convolutions(method: str) -> None:
    net = Recurrent()
    encoder = encoder_of(net)
    w = torch.arange(5.0)
    assert torch.allclose(encoder.jacobian(IMAGE, "logits").vm(w), gradient(net, w), atol=1e-6)
    assert encoder.stages[0].global_reason
    assert drawn(encoder, method).isfinite().all()


def test_a_value_that_a_derivative_needs_is_overwritten() -> None:
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(Adding(), torch.ones(5))
    with pytest.raises(
        EncoderError, match=r"autograd says: .* modified by an inplace operation: .*y = y \+ 1 instead of"
    ):
        encoder_of(Adding())
    found = check(Adding(), IMAGE)
    assert not found.fits
    assert "y = y + 1 instead of y += 1" in str(found)


@pytest.mark.parametrize("whole", [True, False])
def test_parts_under_autocast(whole: bool) -> None:
    net = Autocast(whole).eval()
    encoder = encoder_of(net)
    with torch.no_grad():
        y = F.relu(net.first(IMAGE[None]))
        expected = net.third(net.second(y)), net(IMAGE[None])[0]
    assert [level.dtype for level in encoder.levels(IMAGE)] == [torch.float32] * 3
    assert encoder.features(IMAGE).dtype == torch.float32
    assert torch.allclose(encoder.features(IMAGE), expected[0][0], atol=0.02)
    assert torch.equal(encoder.logits(IMAGE), expected[1])
    w = torch.arange(5.0)
    found, own = encoder.jacobian(IMAGE, "logits").vm(w), gradient(net, w)
    assert (found - own).norm() < 0.02 * own.norm()
    for method in METHODS:
        assert drawn(encoder, method).isfinite().all()
    assert drawn(encoder, "cascade", "additive").isfinite().all()
    assert "parts of it compute in bfloat16 (autocast?)" in str(check(net, IMAGE))


class Widening(Blocks):
    """The deepest block computes in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(F.relu(self.first(x))).to(self.third[0].weight)).mean((2, 3)).float())


KINDS = [*((method, "frozen") for method in METHODS), ("cascade", "additive"), ("cascade", "fused")]


@pytest.mark.parametrize(("method", "mode"), KINDS)
def test_a_part_in_float64_draws_what_the_same_network_in_float32_does(method: str, mode: str) -> None:
    plain, wide = Widening(), Widening()
    wide.third.double()
    assert [(s.name, s.gate) for s in encoder_of(wide).stages] == [(s.name, s.gate) for s in encoder_of(plain).stages]
    assert encoder_of(wide).features(IMAGE).dtype == torch.float64
    expected, found = (drawn(encoder_of(net), method, mode) for net in (plain, wide))
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 1e-4 * expected.norm()
    if method in ("cascade", "vjp"):
        with (
            Inverter(encoder_of(plain), method, mode)(IMAGE) as a,
            Inverter(encoder_of(wide), method, mode)(IMAGE) as b,
        ):
            one, other = (inv.cls(2).full.tensor for inv in (a, b))
            assert (one - other).norm() < 1e-4 * one.norm()


def test_a_part_in_float64_has_the_same_leading_share() -> None:
    plain, wide = Widening(), Widening()
    wide.third.double()
    a, b = (leading_share(encoder_of(net).jacobian(IMAGE, 2), block=2, depth=2) for net in (plain, wide))
    assert a.share == pytest.approx(b.share, rel=1e-4)


class Flushing(Blocks):
    """The second block's output passes through half precision, which has no numbers below 3e-8 but zero."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(F.relu(self.first(x))).half().float()).mean((2, 3)))


def test_a_map_that_was_cast_to_half_is_not_rectified() -> None:
    """A zero there may be an open gate's small value, so a certificate must not say that zeros have no derivative."""
    stage = encoder_of(Flushing()).stages[0]
    assert (stage.name, stage.rectified) == ("second", False)
    assert all(s.rectified for s in encoder_of(Widening()).stages)
