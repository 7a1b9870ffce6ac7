from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from oracles.awkward_nets import AWKWARD
from oracles.taped import batch, double_twin, image, relative, taped, vjp
from torch import Tensor, nn

from pullback.encoders.twin import twin
from pullback.errors import EncoderError
from pullback.graph import plain_autograd, record


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
        self.register_buffer("runs", torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.runs[:] += 1
        return (x * self.runs).flatten(1)


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
    net = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        .double()
        .eval()
        .requires_grad_(False)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tape = taped(twin(compile(net)), image())
    value, pulled = vjp(net, image())
    again, repulled = vjp(lambda x: tape.replay(x, [tape.output])[0], image())
    assert relative(again, value) < 1e-12
    assert relative(repulled, pulled) < 1e-12


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
    code = (
        "import sys, torch; from torch import nn; from pullback.graph import record;"
        "record(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()).requires_grad_(False), torch.zeros(1, 3, 4, 4));"
        "print('torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert run.stdout.strip() == "False"
