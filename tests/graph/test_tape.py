from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.families import NETS
from oracles.steps import STEPS, Steps
from oracles.taped import batch, double_twin, image, relative, taped, vjp
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.encoders.twin import read_logits
from pullback.errors import EncoderError
from pullback.graph import INPUT, Point, plain_autograd, record


@pytest.mark.parametrize("name", NETS)
def test_a_replay_is_the_network_at_any_image(name: str) -> None:
    """Recorded at one image, replayed at another: values and VJPs are the network's own."""
    net = double_twin(name)
    tape = taped(net, batch(name))
    for x in (batch(name), batch(name, seed=1)):
        again, repulled = vjp(lambda x: tape.replay(x, [tape.output])[0], x)
        with plain_autograd(x.device):
            assert relative(again, read_logits(net(x.clone()))) < 1e-12
        if not getattr(NETS[name], "own_backward", False):
            _, pulled = vjp(lambda x: read_logits(net(x)), x)
            assert relative(repulled, pulled) < 1e-12


@pytest.mark.parametrize("name", NETS)
def test_everything_passes_through_every_cut(name: str) -> None:
    """The rest of the network runs from a cut's value alone: recorded at one image, it gives the other image's logits."""
    net = double_twin(name)
    tape = taped(net, batch(name))
    x = batch(name, seed=1)
    logits, pulled = vjp(lambda x: tape.replay(x, [tape.output])[0], x)
    assert tape.cuts[0] == tape.input
    assert tape.cuts[-1] == tape.output
    some = tape.cuts[:: 1 + len(tape.cuts) // 12]
    for cut, value in zip(some, tape.replay(x, some), strict=True):
        out, cotangent = vjp(lambda v, cut=cut: tape.replay(v, [tape.output], start=cut)[0], value)
        assert relative(out, logits) < 1e-12
        _, chained = vjp(lambda x, cut=cut: tape.replay(x, [cut])[0], x, cotangent)
        assert relative(chained, pulled) < 1e-12 or float(pulled.norm()) == 0


@settings(max_examples=60)
@given(steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=6))
def test_any_sequence_of_writes_and_views(steps: list[str]) -> None:
    torch.manual_seed(0)
    net = Steps(steps).double().requires_grad_(False)
    x, other = torch.randn(2, 1, 4, 5, 5, dtype=torch.float64)
    tape = taped(net, x)
    value, pulled = vjp(net, other)
    again, repulled = vjp(lambda x: tape.replay(x, [tape.output])[0], other)
    assert relative(again, value) < 1e-12
    assert relative(repulled, pulled) < 1e-12
    for cut, at in zip(tape.cuts, tape.replay(other, tape.cuts), strict=True):
        (out,) = tape.replay(at, [tape.output], start=cut)
        assert relative(out, value) < 1e-12


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (F.relu(self.conv(x)) + x).mean((2, 3))


def test_a_value_with_a_way_around_it_is_no_cut() -> None:
    tape = taped(Residual().double().requires_grad_(False), image())
    names = [tape.ops[p.op].name for p in tape.cuts if p.op != INPUT]
    assert names == ["add", "mean"]
    convolution = next(Point(i, op.outputs[0]) for i, op in enumerate(tape.ops) if op.name == "convolution")
    with pytest.raises(EncoderError, match=r"add.* reads a value from before the starting point"):
        tape.replay(image(), [tape.output], start=convolution)


def test_a_partly_overwritten_tensor_is_a_cut_once_it_is_whole() -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.sin(x)
            y[:, :1] *= 2
            return y.mean((2, 3))

    tape = taped(Written(), image())
    [y] = [p for p in tape.cuts if len(tape.shapes[p.tensor]) == 4 and "copy" in tape.ops[p.op].name]
    (value,) = tape.replay(image(), [y])
    expected = torch.sin(image())
    expected[:, :1] *= 2
    assert torch.equal(value, expected)


def test_values_are_kept_from_later_writes() -> None:
    """A point's value is the one before the in-place operation that follows it."""

    class Overwrites(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.sin(x)
            return y.neg_().exp_().mean((2, 3))

    tape = taped(Overwrites(), image())
    values = dict(zip([tape.ops[p.op].name for p in tape.cuts], tape.replay(image(), tape.cuts), strict=True))
    assert torch.equal(values["sin"], image().sin())
    assert torch.equal(values["neg"], -image().sin())
    x = image()
    tape.replay(x, [tape.output])
    assert torch.equal(x, image())


def test_an_overwritten_input_leaves_the_callers_tensor_alone() -> None:
    class Normalises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(1).mean((2, 3))

    x = image()
    tape, leaf, _ = record(Normalises(), x)
    tape.replay(x, [tape.output])
    assert torch.equal(x, image())
    assert torch.equal(leaf, image())


@pytest.mark.parametrize(
    ("function", "depends"),
    [
        (lambda x: x if x.mean() > 0 else -x, True),
        (lambda x: x * x.max().item(), True),
        (lambda x: x * x[x > 0].sum(), True),
        (lambda x: x * len(torch.nonzero(x > 0)), True),
        (lambda x: torch.where(x > 0, x, -x), False),
        (lambda x: x * torch.ones(3).sum().item(), False),
        (lambda x: x if x.shape[-1] > 3 else -x, False),
    ],
    ids=["branch", "item", "boolean mask", "nonzero", "where", "item of a constant", "branch on the shape"],
)
def test_dependence_on_the_numbers_of_the_image(function: Callable[[Tensor], Tensor], depends: bool) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x).flatten(1)

    assert taped(Net(), image()).data_dependent is depends


def test_rules_stand_in_for_operations() -> None:
    net = double_twin("plain")
    tape = taped(net, batch("plain"))
    relus = {i: (lambda x: x) for i, op in enumerate(tape.ops) if op.name == "relu"}
    linear = [m for m in net.level1 if not isinstance(m, nn.ReLU)]
    (value,) = tape.replay(batch("plain"), [tape.returned_by("level1")[0]], rules=relus)
    assert relative(value, nn.Sequential(*linear)(batch("plain"))) < 1e-12


def test_modules_of_a_network_return_what_their_hooks_see() -> None:
    net = double_twin("one_relu")
    seen: list[Tensor] = []
    handle = net.relu.register_forward_hook(lambda m, args, out: seen.append(out.clone()))
    net(batch("one_relu"))
    handle.remove()
    tape = taped(net, batch("one_relu"))
    points = tape.returned_by("relu")
    assert len(points) == 5
    for value, expected in zip(tape.replay(batch("one_relu"), points), seen, strict=True):
        assert torch.equal(value, expected)
    assert tape.returned_by("nothing") == []


def test_a_module_that_hands_its_input_on_returns_the_value_made_before() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hand_on = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            y = torch.sin(x)
            z = x.mean((2, 3))  # between the value and the module that returns it
            return self.hand_on(y).mean((2, 3)) + z

    tape = taped(Net(), image())
    [point] = tape.returned_by("hand_on")
    assert tape.ops[point.op].name == "sin"
    assert torch.equal(tape.replay(image(), [point])[0], image().sin())
