"""The user's module and the caller's switches stay as they were."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from oracles.awkward_modules import Plain, settled
from oracles.awkward_nets import AWKWARD
from oracles.encoded import relative
from oracles.untouched import untouched
from safetensors.torch import save_file
from torch import Tensor, nn

from pullback.encoders.checking import check
from pullback.encoders.encoder import Encoder
from pullback.encoders.sources import load_encoder
from pullback.errors import EncoderError


class Fuse(nn.Module):
    """Passes its input on until it blows; every copy of it hangs on the same fuse."""

    error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(3)
        if Fuse.error is not None:
            raise Fuse.error
        return x


class Fused(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.fuse = Fuse()
        self.drop = nn.Dropout(0.5)
        self.level2.register_forward_hook(lambda module, args, out: None)

    def features(self, x: Tensor) -> Tensor:
        return self.level3(self.drop(self.fuse(self.level2(self.level1(x)))))


def used_net() -> nn.Module:
    """In train mode, with gradients, a frozen parameter and hooks: much that could be changed."""
    net = settled(Fused()).train()
    net(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    net.level1[0].weight.requires_grad_(False)
    return net


X = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
CALLS: dict[str, Callable[[nn.Module, Encoder], Any]] = {
    "from_module": lambda net, encoder: Encoder.from_module(net, input_shape=(3, 32, 32)),
    "from_module with stages": lambda net, encoder: Encoder.from_module(net, stages=["level2"], input_shape=(3, 32, 32)),
    "features": lambda net, encoder: encoder.features(X.expand(5, 3, 32, 32), 2),
    "logits": lambda net, encoder: encoder.logits(X.expand(5, 3, 32, 32)),
    "levels": lambda net, encoder: encoder.levels(X[:, :28]),
    "jacobian": lambda net, encoder: encoder.jacobian(X[:, :28], 3).vm(torch.randn(2, 10, 7, 8, generator=torch.Generator())),
    "jacobian of a stretch": lambda net, encoder: encoder.jacobian(X[:, :28], "logits", 2).mv(torch.ones(8, 14, 16)),
    "double": lambda net, encoder: encoder.double(),
    "repr and digest": lambda net, encoder: (repr(encoder), encoder.weights_digest),
}  # fmt: skip
RUNS_NOTHING = {"repr and digest"}
SCOPES: dict[str, Callable[[], Any]] = {
    "plain": lambda: torch.enable_grad(),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("call", CALLS)
def test_the_users_module_is_untouched(call: str, scope: str) -> None:
    net = used_net()
    made = Encoder.from_module(net, input_shape=(3, 32, 32))
    with untouched(net), SCOPES[scope]():
        CALLS[call](net, made)


@pytest.mark.parametrize("error", [RuntimeError("blown"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [call for call in CALLS if call not in RUNS_NOTHING])
def test_the_users_module_is_untouched_after_a_failure(
    call: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = used_net()
    made = Encoder.from_module(net, input_shape=(3, 32, 32))
    monkeypatch.setattr(Fuse, "error", error)
    with untouched(net), pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else EncoderError):
        CALLS[call](net, made)
    monkeypatch.setattr(Fuse, "error", None)
    assert relative(made.logits(X), Encoder.from_module(net, input_shape=(3, 32, 32)).logits(X)) < 1e-5


@pytest.mark.parametrize("scope", ["no_grad", "inference_mode", "autocast"])
def test_results_are_the_same_whatever_the_caller_has_switched(scope: str) -> None:
    made = Encoder.from_module(AWKWARD["plain"](), input_shape=(3, 32, 32))
    w = torch.ones(10, 8, 8)
    expected = [made.features(X), made.logits(X), made.jacobian(X, 3).vm(w), made.jacobian(X, 3).mv(X)]
    with SCOPES[scope]():
        again = Encoder.from_module(AWKWARD["plain"](), input_shape=(3, 32, 32))
        x = X.clone()
        found = [again.features(x), again.logits(x), again.jacobian(x, 3).vm(w.clone()), again.jacobian(x, 3).mv(x)]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
        assert not a.is_inference()
        assert not a.requires_grad


def test_weights_fill_a_copy_of_a_network_that_a_factory_hands_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = used_net()
    holder = ModuleType("user_nets")
    holder.shared = lambda: net  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "user_nets", holder)
    stored = {name: torch.full_like(tensor, 0.01) for name, tensor in net.state_dict().items()}
    save_file(stored, tmp_path / "w.safetensors")
    with untouched(net):
        made = load_encoder(
            "module:user_nets:shared", weights=tmp_path / "w.safetensors", preprocessing="size=32;resize=32"
        )
    for name, tensor in made.module.state_dict().items():
        assert torch.equal(tensor, stored[name])


def test_the_callers_tensor_is_not_written() -> None:
    made = Encoder.from_module(AWKWARD["inplace_on_input"](), input_shape=(3, 32, 32))
    x = X.clone().requires_grad_()
    made.features(x)
    made.jacobian(x, 2).vm(torch.ones(8, 16, 16))
    assert torch.equal(x, X)
    assert x.grad is None


# ---- modules that copying does not reach --------------------------------------------------------------------------


class Keeping(nn.Module):
    """Keeps a network in a function."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.run = lambda x: inner(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def patched_whole(net: nn.Module) -> nn.Module:
    old = net.forward
    net.forward = lambda x: old(x)
    return net


def patched_block(net: nn.Module) -> nn.Module:
    patched_whole(net.level2[1])  # a batch norm: entered without a call of any module
    return net


class Patched(Plain):
    """Its forward is replaced by one of its own methods, as a method: the copy then has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.other  # type: ignore[method-assign]

    def other(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reach", [patched_whole, patched_block, Keeping])
def test_a_forward_that_reaches_back_to_the_users_module_is_refused_before_it_changes_it(
    reach: Callable[[nn.Module], nn.Module], training: bool
) -> None:
    net = settled(Plain()).train(training)
    made = reach(net)
    with untouched(net), pytest.raises(EncoderError, match=r"reaches back to a tensor of shape .*make it a method"):
        Encoder.from_module(made, input_shape=(3, 32, 32))
    with untouched(net):
        found = check(made, X)
    assert not found.fits
    assert "reaches back" in str(found)


def test_a_forward_that_is_replaced_by_a_method_and_modules_outside_the_registry_are_copied() -> None:
    net = settled(Patched()).train()
    net.level2 = Hiding(net.level2)
    with untouched(net), untouched(net.level2.hidden[0]):
        made = Encoder.from_module(net, input_shape=(3, 32, 32))
    assert torch.equal(made.logits(X), net.eval()(X[None])[0])


class Hiding(nn.Module):
    """Holds a network where `modules()` does not look, makes one as it runs, and counts in a tensor of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.hidden = [inner.eval()]
        self.calls = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return nn.PReLU(init=1.0)(self.hidden[0](x))


def test_the_users_own_hooks_are_noted_and_torchs_are_not() -> None:
    seen: list[Tensor] = []
    net = settled(Plain())
    assert not Encoder.from_module(net, input_shape=(3, 32, 32)).notes
    net.level1.register_forward_hook(lambda module, args, out: seen.append(out))
    (note,) = Encoder.from_module(net, input_shape=(3, 32, 32)).notes
    assert "own hooks run on the copy too" in note
    assert seen
