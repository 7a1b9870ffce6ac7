from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.awkward_nets import AWKWARD, Awkward
from oracles.families import FAMILIES
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.encoders.twin import read_logits, twin
from pullback.errors import EncoderError
from pullback.graph import INPUT, Point, Tape, plain_autograd, record

NETS: dict[str, Callable[[], nn.Module]] = {**AWKWARD, **FAMILIES}


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
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        value = function(leaf.clone())
        if w is None:
            w = torch.randn(value.shape, generator=torch.Generator().manual_seed(5), dtype=value.dtype)
        (pulled,) = torch.autograd.grad(value, leaf, w, materialize_grads=True, allow_unused=True)
    return value.detach(), pulled


def taped(net: nn.Module, x: Tensor) -> Tape:
    return record(net, x, read_logits)[0]


@pytest.mark.parametrize("name", NETS)
def test_a_replay_is_the_network_at_any_image(name: str) -> None:
    """Recorded at one image, replayed at another: values and VJPs are the network's own."""
    net = double_twin(name)
    tape = taped(net, batch(name))
    for x in (batch(name), batch(name, seed=1)):
        again, repulled = vjp(lambda x: tape.replay(x, [tape.output])[0], x)
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


class Steps(nn.Module):
    """A network that does the given steps to a tensor (N, 4, 5, 5): functions, writes through views, sums with the past."""

    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self.steps = steps
        self.conv = nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        past = x.clone()
        for step in self.steps:
            x, past = getattr(self, step)(x, past), x.clone()
        return x

    def convolve(self, x: Tensor, past: Tensor) -> Tensor:
        return self.conv(x)

    def swish(self, x: Tensor, past: Tensor) -> Tensor:
        return F.silu(x)

    def scale_in_place(self, x: Tensor, past: Tensor) -> Tensor:
        return x.mul_(1.25)

    def add_past(self, x: Tensor, past: Tensor) -> Tensor:
        return x + past

    def add_past_in_place(self, x: Tensor, past: Tensor) -> Tensor:
        x += past.roll(1, 3)
        return x

    def write_channels(self, x: Tensor, past: Tensor) -> Tensor:
        x[:, 1:3] += 1
        return x

    def write_transposed(self, x: Tensor, past: Tensor) -> Tensor:
        x.transpose(2, 3)[:, :, 1].mul_(past[:, :, 2])
        return x

    def write_from_past(self, x: Tensor, past: Tensor) -> Tensor:
        x[:, :, 2:] = past[:, :, :3]
        return x

    def write_both_halves(self, x: Tensor, past: Tensor) -> Tensor:
        a, b = x[:, :2], x[:, 2:]
        a.sub_(b)
        b.add_(a, alpha=0.5)
        return x

    def return_a_view(self, x: Tensor, past: Tensor) -> Tensor:
        return x.transpose(2, 3)

    def fill_empty(self, x: Tensor, past: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, ::2] = x[:, ::2]
        y[:, 1::2] = past[:, ::2].tanh()
        return y

    def concatenate(self, x: Tensor, past: Tensor) -> Tensor:
        return torch.cat([x[:, 2:], past[:, :2]], 1)


STEPS = [name for name in vars(Steps) if not name.startswith("_") and name != "forward"]


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


def image(channels: int = 3) -> Tensor:
    return torch.randn(1, channels, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_a_value_with_a_way_around_it_is_no_cut() -> None:
    tape = taped(Residual().double().requires_grad_(False), image())
    names = [tape.ops[p.op].name for p in tape.cuts if p.op != INPUT]
    assert names == ["add", "mean"]
    convolution = next(Point(i, op.outputs[0]) for i, op in enumerate(tape.ops) if op.name == "convolution")
    with pytest.raises(EncoderError, match="add.* reads a value from before the starting point"):
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


def test_what_a_network_computes_under_no_grad_has_no_derivative() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                scale = x.abs().mean()
            return (x / scale).flatten(1)

    tape = taped(Scaled(), image())
    _, expected = vjp(Scaled(), image())
    _, pulled = vjp(lambda x: tape.replay(x, [tape.output])[0], image())
    assert relative(pulled, expected) < 1e-12


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


@pytest.mark.parametrize(
    ("name", "function"),
    [("custom_backward", "_SwishBackward"), ("straight_through", "_QuantizeBackward"), ("backward_hooks", None)],
)
def test_a_backward_pass_of_ones_own_is_named(name: str, function: str | None) -> None:
    notes = taped(double_twin(name), batch(name)).notes
    assert [function in note for note in notes] == ([True] if function else [])


def test_straight_through_rounding_has_the_derivative_of_rounding() -> None:
    net = double_twin("straight_through")
    tape = taped(net, batch("straight_through"))
    _, own = vjp(net, batch("straight_through"))
    _, pulled = vjp(lambda x: tape.replay(x, [tape.output])[0], batch("straight_through"))
    assert float(own.norm()) > 0
    assert float(pulled.norm()) == 0


def test_the_reentrant_kind_of_checkpoint_is_differentiated_through() -> None:
    name = "checkpointed_reentrant"
    _, expected = vjp(twin(AWKWARD["checkpointed"]()).double(), batch(name))
    tape = taped(double_twin(name), batch(name))
    _, pulled = vjp(lambda x: tape.replay(x, [tape.output])[0], batch(name))
    assert relative(pulled, expected) < 1e-12


class Counts(nn.Module):
    """Keeps a count of its runs in a buffer, and uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.runs[:1] += 1
        return (x * self.runs.sum()).flatten(1)


def test_a_replay_begins_with_the_state_that_the_run_began_with() -> None:
    net = Counts()
    for runs in (1, 2):
        tape = taped(net, image())
        for _ in range(2):
            assert torch.equal(tape.replay(image(), [tape.output])[0], runs * image().flatten(1))
    assert float(net.runs[0]) == 2


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused, self.noise = nn.Dropout(), nn.Dropout2d()

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.noise(x).flatten(1)


def test_random_draws_on_the_way_to_the_output_are_named() -> None:
    tape = taped(Draws().train(), image())
    assert [draw.split(" in ")[1] for draw in tape.draws] == ["noise"]
    assert "draws random numbers" in tape.notes[0]
    assert taped(Draws().eval(), image()).draws == ()


@pytest.mark.parametrize("compile", [torch.jit.script, lambda net: torch.jit.trace(net, image())])
def test_scripted_and_traced_networks(compile: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).double().eval().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tape = taped(twin(compile(net)), image())
    value, pulled = vjp(net, image())
    again, repulled = vjp(lambda x: tape.replay(x, [tape.output])[0], image())
    assert relative(again, value) < 1e-12
    assert relative(repulled, pulled) < 1e-12


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


# ---- what recording leaves behind ---------------------------------------------------------------------------------


class Fails(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        self.conv(x)
        torch.rand(3)
        raise self.error


@contextmanager
def nothing() -> Iterator[None]:
    yield


def global_state() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(), torch.utils._python_dispatch._get_current_dispatch_mode(),
        torch.random.get_rng_state().tolist(),
    )  # fmt: skip


SCOPES: dict[str, Callable[[], Any]] = {
    "plain": nothing,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("error", [None, RuntimeError("broken\nin two lines"), KeyboardInterrupt(), ValueError()])
def test_recording_leaves_no_trace(scope: str, error: BaseException | None) -> None:
    net = double_twin("train_mode") if error is None else Fails(error).double().requires_grad_(False)
    x = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    with SCOPES[scope]():
        before = global_state()
        if error is None:
            tape, leaf, logits = record(net, x)
            assert leaf.requires_grad
            assert logits.requires_grad
            assert logits.dtype == torch.float64
            assert not any(c.is_inference() for c in tape.constants.values())
        elif isinstance(error, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                record(net, x)
        else:
            with pytest.raises(EncoderError, match=r"\(1, 3, 32, 32\).*float64.*(broken|no message)") as raised:
                record(net, x)
            assert raised.value.__cause__ is error
            assert "\n" not in str(raised.value)
        assert global_state() == before
    hooks = [h for m in net.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert hooks == []


def test_the_output_must_come_from_the_input() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.kept

    net = Constant()
    net.kept = torch.ones(1, 2)
    with pytest.raises(EncoderError, match="does not come from a tensor operation"):
        record(net, image())


def test_plain_autograd_lifts_every_switch() -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        state = torch.random.get_rng_state()
        with plain_autograd(torch.device("cpu")):
            x = torch.ones(2, 2, requires_grad=True)
            torch.rand(5)
            assert (x @ x).dtype == torch.float32
            assert (x @ x).requires_grad
        assert torch.is_inference_mode_enabled()
        assert torch.equal(torch.random.get_rng_state(), state)


def test_recording_does_not_load_the_compiler() -> None:
    import subprocess
    import sys

    code = (
        "import sys, torch; from torch import nn; from pullback.graph import record;"
        "record(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()).requires_grad_(False), torch.zeros(1, 3, 4, 4));"
        "print('torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert run.stdout.strip() == "False"


def test_awkward_networks_are_built_the_same_each_time() -> None:
    awkward: Awkward = AWKWARD["plain"]
    a, b = awkward().state_dict(), awkward().state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
