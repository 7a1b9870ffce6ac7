"""Nothing of the user's changes: every public function, ending well, in an exception, or in an interrupt, on five networks."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from oracles.command import picture
from oracles.small_nets import SmallNet
from oracles.untouched import untouched
from torch import Tensor, nn
from torch.nn import functional as F

import pullback as pb
from pullback.explain import explain
from pullback.explain.options import SECONDS
from pullback.inversion import Inverter

SIZE = 16
PACKAGE = str(Path(pb.__file__).parent)
STAGES = ["layer1", "layer2", "layer3"]


# ---- the networks, as users have them ------------------------------------------------------------------------------


class Dropping(SmallNet):
    """Dropout and batch norm, left in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.layer3(self.drop(self.layer2(self.layer1(x))))).flatten(1))


class InPlace(SmallNet):
    """Normalises its input in place, counts its calls in a buffer, keeps its last features."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = x.sub_(0.1)
        self.last = self.layer1(x)
        return self.fc(self.pool(self.layer3(self.layer2(self.last))).flatten(1))


class Noisy(SmallNet):
    """Draws at every pass, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.layer2(self.layer1(x + 0.01 * torch.randn_like(x))), 0.3, training=True)
        return self.fc(self.pool(self.layer3(x)).flatten(1))


def in_training() -> nn.Module:
    """In the middle of training: gradients, some parameters frozen, one module in eval mode."""
    net = Dropping().train()
    net(torch.randn(4, 3, SIZE, SIZE)).sum().backward()
    net.layer1.conv1.weight.requires_grad_(False)
    net.layer2.bn1.eval()
    return net


def hooked() -> nn.Module:
    """Hooks of every kind, one of which changes what passes."""
    net = SmallNet().eval()
    net.layer1.register_forward_hook(lambda module, args, out: out * 1.5)
    net.layer2.register_forward_pre_hook(lambda module, args: None)
    net.layer2.register_forward_hook(lambda module, args, kwargs, out: None, with_kwargs=True, always_call=True)
    net.layer3.register_full_backward_hook(lambda module, gave, got: None)
    net.register_state_dict_post_hook(lambda module, state, prefix, metadata: None)
    net.fc.weight.register_hook(lambda grad: grad)
    return net


def counting() -> nn.Module:
    net = InPlace().eval()
    net(torch.randn(2, 3, SIZE, SIZE))
    return net


def widened() -> nn.Module:
    """float64, frozen, channels last."""
    return SmallNet().double().eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def noisy() -> nn.Module:
    return Noisy().eval()


NETS = {make.__name__: make for make in (in_training, hooked, counting, widened, noisy)}


def made(name: str) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return NETS[name]()


# ---- the calls ----------------------------------------------------------------------------------------------------


def image(seed: int = 0) -> Tensor:
    return torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def split(net: nn.Module) -> pb.Encoder:
    return pb.Encoder.from_module(net, stages=STAGES, input_shape=(3, SIZE, SIZE))


def load(net: nn.Module) -> None:
    """By name, from a factory that hands out the user's own network."""
    holder = types.ModuleType("untouched_user_module")
    holder.factory = lambda: net  # type: ignore[attr-defined]
    sys.modules["untouched_user_module"] = holder
    options = "size=16;resize=16;mean=0.5;std=0.25"
    encoder = pb.load_encoder("module:untouched_user_module:factory", preprocessing=options, stages=STAGES)
    encoder.double().logits(image())


def features(net: nn.Module) -> None:
    encoder = split(net)
    encoder.features(torch.stack([image(), image(1)]), 2)
    encoder.logits(image())
    encoder.preprocess(picture())


def jacobian(net: nn.Module) -> None:
    with split(net).jacobian(image(), 2) as j:
        v = torch.stack([j.vm(j.value), j.vm(-j.value)])
        j.mv(v)
        j.vm(j.mv(v))
        j.bias()
        j.as_scipy().matvec(np.ones(j.shape[1]))
        pb.adjoint_test(j)


def stages(method: str, mode: str) -> Callable[[nn.Module], None]:
    def run(net: nn.Module) -> None:
        budget = {"steps": 2} if method in ("wiener", "blind") else {}
        encoder = split(net)
        with Inverter(encoder, method, mode, **budget)(torch.stack([image(), image(1)])) as inv:
            inv.stage(2)
        with Inverter(encoder, method, mode, **budget)(image()) as inv:
            inv.stage()
            inv.from_features(2 * inv.features(1), 1)
            if method != "blind":
                inv.channel(2, 3)
                next(inv.channels(3))
                inv.cls(1)
                inv.certificate(2, unit=(0, 1, 1))
            if method in ("cascade", "vjp"):
                inv.scalar(lambda f: f.square().sum())

    return run


def read_out_that_raises(net: nn.Module) -> None:
    def read_out(features: Tensor) -> Tensor:
        raise ZeroDivisionError

    with Inverter(split(net))(image()) as inv, pytest.raises(ZeroDivisionError):
        inv.scalar(read_out)


def wrong_calls(net: nn.Module) -> None:
    """Mistakes that are found half-way."""
    encoder = split(net)
    for mistake in (
        lambda: pb.Encoder.from_module(net, stages=["nothing"], input_shape=(3, SIZE, SIZE)),
        lambda: pb.Encoder.from_module(net, input_shape=(5, SIZE, SIZE)),
        lambda: encoder.features(torch.zeros(3, 1, 1), "nothing"),
        lambda: encoder.jacobian(image(), 2).mv(torch.zeros(2, 2)),
        lambda: Inverter(encoder)(image()).cls(99),
        lambda: Inverter(encoder, "blind", steps=1)(image()).scalar(torch.sum),
    ):
        with pytest.raises(pb.PullbackError):
            mistake()


def check(net: nn.Module) -> None:
    pb.check(net, image())


def report(net: nn.Module) -> None:
    encoder = split(net)
    explain(
        encoder, encoder.preprocess(image()), picture=picture((SIZE, SIZE)), file_name="x", origin="a test", digest="0",
        mask=torch.ones(SIZE, SIZE), quality="draft",
    )  # fmt: skip


CALLS: dict[str, Callable[[nn.Module], None]] = {
    "from_module": lambda net: print(split(net)),
    "load_encoder": load,
    "check": check,
    "features and logits": features,
    "Jacobian": jacobian,
    "cascade, additive": stages("cascade", "additive"),
    "cascade, fused": stages("cascade", "fused"),
    "cascade, frozen": stages("cascade", "frozen"),
    "raw VJP": stages("vjp", "frozen"),
    "Wiener": stages("wiener", "frozen"),
    "blind": stages("blind", "frozen"),
    "a read-out that raises": read_out_that_raises,
    "mistakes": wrong_calls,
    "explain": report,
}


@pytest.fixture(autouse=True)
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SECONDS, "draft", 1e-6)
    monkeypatch.delitem(sys.modules, "untouched_user_module", raising=False)


# ---- how they end --------------------------------------------------------------------------------------------------


class Boom(Exception):
    """What no code expects."""


@contextmanager
def bursting(at: int | None, error: type[BaseException]) -> Iterator[list[int]]:
    """Raise `error` at the `at`-th call of a function of the package (None: count them), wherever that is."""
    calls = [0]

    def watch(frame: types.FrameType, event: str, _: Any) -> None:
        # A generator of a context manager that is called to clean up is let through, as are closing and leaving.
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE) or frame.f_lasti > 0:
            return
        if frame.f_code.co_name in ("__exit__", "close"):
            return
        calls[0] += 1
        if calls[0] == at:
            raise error

    sys.setprofile(watch)
    try:
        yield calls
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", NETS)
def test_the_users_module_and_every_global_switch_stay_as_they_are(name: str, call: str) -> None:
    net = made(name)
    with untouched(net):
        CALLS[call](net)
    with bursting(None, Boom) as calls:
        CALLS[call](net)
    shares = np.random.default_rng(len(call) + len(name)).uniform(0, 1, 6)
    for n, share in enumerate(shares):
        at, error = 1 + int(share * calls[0]), (Boom, KeyboardInterrupt)[n % 2]
        answers = suppress(
            Boom, KeyboardInterrupt, pb.PullbackError
        )  # to any exception of a network, some code, with words
        with untouched(net), bursting(at, error) as reached, answers:
            CALLS[call](net)
        assert reached[0] >= at


class Failing(SmallNet):
    """Fails at the forward pass whose number is in `fails_at`, which all copies share."""

    runs: ClassVar = [0]
    fails_at = 0
    error: type[BaseException] = RuntimeError

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(x))
        Failing.runs[0] += 1
        if Failing.runs[0] == Failing.fails_at:
            raise Failing.error("in the middle of a forward pass")
        return self.fc(self.pool(self.layer3(F.dropout(x, 0.5, self.training))).flatten(1))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", ["from_module", "load_encoder", "check", "Jacobian", "Wiener", "explain"])
def test_a_network_that_fails_at_its_nth_forward_pass(
    call: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng([]):
        net = Failing().train()
    monkeypatch.setattr(Failing, "error", error)
    told = []
    for number in (1, 2, 3):
        monkeypatch.setattr(Failing, "runs", [0])
        monkeypatch.setattr(Failing, "fails_at", number)
        with untouched(net):
            try:
                CALLS[call](net)
            except (pb.PullbackError, KeyboardInterrupt) as ended:
                told.append(type(ended))
    if error is KeyboardInterrupt:
        assert told and set(told) == {KeyboardInterrupt}
    else:
        assert KeyboardInterrupt not in told and (told or call == "check")


@pytest.mark.parametrize("call", ["from_module", "Jacobian", "cascade, frozen", "blind", "explain"])
def test_under_the_callers_own_switches(call: str) -> None:
    """Unusual ones, which the library must neither mind nor reset."""
    net = made("in_training")
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True, warn_only=True)
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), untouched(net):
            CALLS[call](net)
        with torch.no_grad(), untouched(net):
            CALLS[call](net)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(False)


def test_what_watches_here_sees_every_kind_of_change() -> None:
    def flag(net: nn.Module) -> None:
        net.layer1.conv1.weight.requires_grad_(False)

    def value(net: nn.Module) -> None:
        with torch.no_grad():
            net.layer1.conv1.weight[0, 0, 0, 0] += 1e-6

    def gradient(net: nn.Module) -> None:
        net.fc.bias.grad = torch.zeros(5)

    changes: list[Callable[[Any], object]] = [
        flag,
        value,
        gradient,
        lambda net: net.layer2.bn1.train(),
        lambda net: net.layer2.bn1.running_mean.add_(1),
        lambda net: net.layer1.register_forward_hook(lambda *a: None),
        lambda net: setattr(net.fc, "weight", nn.Parameter(net.fc.weight.detach().clone())),
        lambda net: net.half(),
        lambda net: setattr(net, "extra", 1),
        lambda net: torch.rand(1),
        lambda net: random.random(),
        lambda net: np.random.rand(),  # noqa: NPY002
        lambda net: torch.set_grad_enabled(False),
        lambda net: torch.set_num_threads(torch.get_num_threads() + 1),
    ]
    threads = torch.get_num_threads()
    for change in changes:
        net = SmallNet().eval()
        try:
            with pytest.raises(AssertionError, match="changed"), untouched(net):
                change(net)
        finally:
            torch.set_grad_enabled(True)
            torch.set_num_threads(threads)
