from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from oracles.awkward_nets import AWKWARD, Plain, must_not_compile, settled
from oracles.families import FAMILIES
from oracles.untouched import untouched
from PIL import Image
from torch import Tensor, nn

from pullback.encoders.encoder import Encoder
from pullback.encoders.preprocessing import Preprocessing
from pullback.encoders.splitting import find
from pullback.encoders.twin import read_logits, twin
from pullback.errors import ClassError, EncoderError, ImageError, NumericsError, StageError

NETS = {**AWKWARD, **FAMILIES}
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
    with torch.enable_grad():
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


# ---- features -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_features_are_what_the_networks_own_hooks_see(name: str) -> None:
    x = images(name, 1)
    compared = [stage for stage in points(name) if has_module(name, stage)]
    assert compared
    for stage in compared:
        assert relative(encoder(name).features(x, stage), hooked(name, stage, x)) < 1e-12


@pytest.mark.parametrize("name", [name for name in NETS if name != "batch_mixing"])
def test_an_image_has_the_same_features_alone_and_in_a_batch(name: str) -> None:
    x = images(name, 3)
    changed = x.clone()
    changed[1] = images(name, 1, seed=1)[0]
    for stage in points(name):
        together = encoder(name).features(x, stage)
        for alone, one in zip(x, together, strict=True):
            assert relative(encoder(name).features(alone, stage), one) < 1e-12
        beside = encoder(name).features(changed, stage)
        assert torch.equal(beside[::2], together[::2]), "a neighbour in the batch changed an image's features"
        assert not torch.equal(beside[1], together[1])


@pytest.mark.parametrize("name", SPATIAL)
def test_levels_are_the_image_and_the_features_of_every_stage(name: str) -> None:
    [x] = images(name, 1)
    levels = encoder(name).levels(x)
    assert len(levels) == encoder(name).depth + 1
    assert torch.equal(levels[0], x)
    for number, level in enumerate(levels[1:], start=1):
        assert torch.equal(level, encoder(name).features(x, number))
        assert tuple(level.shape) == encoder(name).stage(number).shape
    assert torch.equal(encoder(name).features(x), levels[-1])


@pytest.mark.parametrize("name", SPATIAL)
def test_stretches_compose_to_the_whole(name: str) -> None:
    [x] = images(name, 1)
    at = points(name)
    values = {stage: encoder(name).features(x, stage)[None] for stage in at}
    for i, start in enumerate(at[:-1]):
        for stage in at[i + 1 :]:
            with torch.no_grad():
                value = encoder(name).stretch(stage, start, along=x)(values[start])
            assert relative(value, values[stage]) < 1e-12


def test_a_branching_network_takes_each_image_its_own_way() -> None:
    x = images("branching", 2)
    x[0] += 0.5 - x[0].mean()
    x[1] -= 0.5 + x[1].mean()
    net = twin(NETS["branching"]()).double()
    both = encoder("branching").logits(x)
    assert encoder("branching").data_dependent
    for one, image in zip(both, x, strict=True):
        assert relative(one, net(image[None])[0]) < 1e-12
        J = encoder("branching").jacobian(image, "logits")
        with torch.enable_grad():
            leaf = image[None].clone().requires_grad_()
            (expected,) = torch.autograd.grad(net(leaf)[0, 2], leaf)
        assert relative(J.vm(torch.eye(5, dtype=x.dtype)[2]), expected[0]) < 1e-12
        for stage in (1, 2, 3):
            assert encoder("branching").features(image, stage).shape == encoder("branching").stage(stage).shape
    assert not encoder("plain").data_dependent


def test_half_precision_stays_half() -> None:
    half = Encoder.from_module(AWKWARD["half"](), input_shape=(3, 32, 32))
    x = images("half", 1)[0]
    assert half.dtype == torch.float16
    assert half.features(x).dtype == torch.float16
    assert relative(half.features(x).double(), encoder("half").features(x)) < 1e-2


# ---- the Jacobian -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_vjps_are_those_of_the_networks_own_autograd(name: str) -> None:
    if getattr(NETS[name], "own_backward", False):
        pytest.skip("its own backward pass is not the derivative of its forward pass")
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
    pairs = [(stage, 0) for stage in at] + list(zip(at[1:], at[:-1], strict=True))
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
    for start, stage in reversed(list(zip(at, at[1:], strict=False))):
        pulled = encoder(name).jacobian(x, stage, start).vm(pulled)
    assert relative(pulled, whole.vm(w)) < 1e-12 or float(whole.vm(w).norm()) == 0


@pytest.mark.parametrize("name", [name for name in SPATIAL if name != "straight_through"])
def test_a_piecewise_linear_network_is_its_jacobian_and_bias_nearby(name: str) -> None:
    """F(x) = J x + b, and the same J and b hold at a point so near that no gate flips; smooth networks bend."""
    [x] = images(name, 1)
    step = 1e-7 * images(name, 1, seed=4)[0]
    bend = 0.0
    for stage in points(name)[:-1]:
        with encoder(name).jacobian(x, stage) as J:
            F = encoder(name).features(x, stage)
            assert relative(J.mv(x) + J.bias(), F) < 1e-12
            moved = encoder(name).features(x + step, stage)
            error = relative(J.mv(x + step) + J.bias() - F, moved - F)
        bend = max(bend, error)
    noise = 1e-16 * 1e7 * 1e2
    assert (bend < noise) is NETS[name].piecewise_linear, f"{bend:.1e}"


def test_the_bias_of_one_layer_in_closed_form() -> None:
    conv = nn.Conv2d(3, 4, 3, 1, 1)
    net = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).double()
    x = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    J = Encoder.from_module(net, input_shape=(3, 6, 6)).jacobian(x, "1")
    with torch.no_grad():
        open_gates = (conv(x[None])[0] > 0).double()
    assert relative(J.bias(), open_gates * conv.bias.detach()[:, None, None]) < 1e-12


@pytest.mark.parametrize("name", ["transformer", "perceptron"])
def test_without_spatial_stages_the_jacobian_still_works(name: str) -> None:
    [x] = images(name, 1)
    for error in (lambda: encoder(name).stages, lambda: encoder(name).features(x), lambda: encoder(name).jacobian(x, 1)):
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


# ---- the user's module and the caller's switches ------------------------------------------------------------------


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
def test_the_users_module_is_untouched_after_a_failure(call: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_callers_tensor_is_not_written() -> None:
    made = Encoder.from_module(AWKWARD["inplace_on_input"](), input_shape=(3, 32, 32))
    x = X.clone().requires_grad_()
    made.features(x)
    made.jacobian(x, 2).vm(torch.ones(8, 16, 16))
    assert torch.equal(x, X)
    assert x.grad is None


# ---- errors -------------------------------------------------------------------------------------------------------


def plain() -> Encoder:
    return encoder("plain")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: plain().features(X[:2]), ImageError, r"\(3, H, W\).*got shape \(2, 32, 32\)"),
        (lambda: plain().features(X[0]), ImageError, r"got shape \(32, 32\)"),
        (lambda: plain().features((X * 255).byte()), ImageError, "floating-point.*uint8"),
        (lambda: plain().features(X / 0), ImageError, "not finite"),
        (lambda: plain().jacobian(X[None], 1), ImageError, "one image"),
        (lambda: plain().features(X, 4), StageError, r"no stage 4; stages are 1 \(level1\), 2 \(level2\), 3 \(level3\)"),
        (lambda: plain().features(X, -1), StageError, "no stage -1"),
        (lambda: plain().features(X, True), StageError, "no stage True"),
        (lambda: plain().features(X, 2.5), StageError, "no stage 2.5"),
        (lambda: plain().features(X, "levle2"), StageError, "no module 'levle2'.*nearest: level2"),
        (lambda: plain().jacobian(X, 1, 2), StageError, "stage 1 comes before stage 2"),
        (lambda: plain().stretch(2, 1), StageError, "needs the image"),
        (lambda: plain().features(X[:, :0]), EncoderError, r"failed on an input of shape \(1, 3, 0, 32\)"),
        (lambda: plain().class_index("tabby"), ClassError, "class names are not known"),
        (lambda: Encoder.from_module(AWKWARD["plain"](), input_shape=(1, 32, 32)), EncoderError, r"\(1, 1, 32, 32\)"),
        (lambda: Encoder.from_module(AWKWARD["plain"](), stages=["x"], input_shape=(3, 32, 32)), StageError, "no module 'x'"),
        (lambda: Encoder.from_module(AWKWARD["plain"](), classes=["a"], input_shape=(3, 32, 32)), ClassError, "1 class names.*5 outputs"),
        (lambda: Encoder.from_module(torch.relu), EncoderError, "expected a torch.nn.Module"),
    ],
)
def test_errors_name_the_value_and_what_to_do(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    net = AWKWARD["plain"]()
    with torch.no_grad():
        net.level2[3].weight[0, 0, 0, 0] = value
    with pytest.raises(NumericsError, match=re.escape("level2.3.weight")):
        Encoder.from_module(net, input_shape=(3, 32, 32))


class Without(Plain):
    """Its forward pass carries no gradient."""

    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.spoil = spoil

    def forward(self, x: Tensor) -> Tensor:
        return self.spoil(super().forward(x))


@pytest.mark.parametrize(
    "spoil",
    [torch.no_grad()(lambda x: x * 2), lambda x: x.argmax(1, keepdim=True) * 1.0, lambda x: torch.from_numpy(x.detach().numpy())],
    ids=["no_grad", "argmax", "numpy"],
)
def test_a_network_without_a_gradient_is_refused(spoil: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(EncoderError, match=r"no gradient.*no_grad|does not come from a tensor operation"):
        Encoder.from_module(settled(Without(spoil)), input_shape=(3, 32, 32))


# ---- what an encoder says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AWKWARD)
def test_the_self_check_and_its_notes(name: str) -> None:
    made = Encoder.from_module(AWKWARD[name](), input_shape=AWKWARD[name].input_shape)
    if AWKWARD[name].own_backward:
        assert not made.vjp_discrepancy < 1e-3
    else:
        assert made.vjp_discrepancy < {torch.float16: 5e-2}.get(made.dtype, 1e-5)
    assert bool(made.notes) is bool(AWKWARD[name].note)
    assert AWKWARD[name].note in " ".join(made.notes)
    assert all(note in repr(made) for note in made.notes)
    assert made.double().notes == made.notes or name in ("straight_through",)


def test_what_an_encoder_prints() -> None:
    made = Encoder.from_module(
        AWKWARD["plain"](), name="mine", classes=list("abcde"), input_shape=(3, 32, 32), notes=["random weights"]
    )
    lines = repr(made).splitlines()
    assert lines[0] == "Encoder mine: input 3x32x32, 5 classes, float32 on cpu"
    assert "note: random weights" in lines
    assert [line.split()[1] for line in lines[2:5]] == ["level1", "level2", "level3"]
    assert made.class_index("c") == 2
    assert made.class_name(2) == "c"
    assert encoder("plain").class_name(2) == "class 2"


def test_an_encoder_in_another_type_is_a_copy() -> None:
    single = Encoder.from_module(AWKWARD["plain"](), name="mine", classes=list("abcde"), input_shape=(3, 32, 32))
    double = single.double()
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert (double.name, double.classes, double.preprocessing) == (single.name, single.classes, single.preprocessing)
    assert single.features(X.double()).dtype == torch.float32
    assert double.features(X).dtype == torch.float64
    assert relative(single.features(X).double(), double.features(X)) < 1e-6


def test_the_digest_tells_weights_apart() -> None:
    net = AWKWARD["plain"]()
    digest = Encoder.from_module(net, input_shape=(3, 32, 32)).weights_digest
    assert digest == Encoder.from_module(AWKWARD["plain"](), input_shape=(3, 32, 32)).weights_digest
    assert re.fullmatch("[0-9a-f]{64}", digest)
    with torch.no_grad():
        net.level1[1].running_mean[0] += 1e-3
    assert digest != Encoder.from_module(net, input_shape=(3, 32, 32)).weights_digest
    assert Encoder.from_module(net, input_shape=(3, 32, 32), weights_digest="given").weights_digest == "given"


def test_a_network_without_a_card_gets_an_assumed_preprocessing() -> None:
    made = Encoder.from_module(AWKWARD["one_channel"](), input_shape=(1, 28, 28))
    assert made.preprocessing.channels == 1
    assert made.preprocessing.size == (28, 28)
    assert made.preprocessing.assumed
    x = made.preprocess(Image.new("RGB", (50, 40), "red"))
    assert x.shape == (1, 28, 28)
    assert made.features(x).shape == (10, 7, 7)
    given = Preprocessing((16, 24), None)
    assert Encoder.from_module(AWKWARD["plain"](), preprocessing=given).input_shape == (3, 16, 24)


def test_a_compiled_network_is_recorded_without_compiling() -> None:
    made = Encoder.from_module(torch.compile(Plain(), backend=must_not_compile), input_shape=(3, 32, 32))
    made.jacobian(X, 2).vm(torch.ones(8, 16, 16))
    assert find(made.tape(X[None]), "level2").op > 0
