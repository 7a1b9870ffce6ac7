"""The network's own run in its quick form: the same function and the same gradient as autograd through the recording."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles.encoded import SPATIAL, encoder, images, relative
from oracles.families import LIBRARY, NETS, library_net
from oracles.lowered import a_point, drawn, network
from oracles.taped import taped
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.adjoint import primal, primal_rules
from pullback.encoders import Encoder
from pullback.encoders.twin import twin
from pullback.graph import Point, Rule, Tape, plain_autograd

ALWAYS, NEVER = 0.0, float("inf")


def both(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The values at a batch and the gradient of their product with a fixed cotangent."""
    with plain_autograd(x.device):
        leaf = x.clone().requires_grad_()
        out = run(leaf)
        w = a_point(*out.shape, seed=5, dtype=out.dtype)
        return out.detach(), torch.autograd.grad(out, leaf, w)[0]


def assert_same(found: Encoder, stage: int | str, x: Tensor, tolerance: float, flips: float | None = None) -> None:
    """flips: what gates next to zero, which rounding may turn over, are allowed to change of the gradient."""
    quick, plain = both(found.stretch(stage, rules=primal_rules), x), both(found.stretch(stage), x)
    for a, b, most in zip(quick, plain, (tolerance, flips or tolerance), strict=True):
        assert a.shape == b.shape
        assert relative(a, b) < most


@pytest.mark.parametrize("worth", [ALWAYS, NEVER], ids=["ours", "autograd's"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", list(NETS))
def test_every_family_and_every_awkward_network(
    name: str, count: int, worth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(primal, "_WORTH", worth)
    found, x = encoder(name), images(name, count)
    for stage in [*(range(1, found.depth + 1) if name in SPATIAL else ()), "logits"]:
        assert_same(found, stage, x, 1e-12)


@pytest.mark.parametrize("worth", [ALWAYS, NEVER], ids=["ours", "autograd's"])
@pytest.mark.parametrize("name", list(LIBRARY))
def test_networks_of_the_libraries(name: str, worth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primal, "_WORTH", worth)
    size = LIBRARY[name]
    single = Encoder.from_module(library_net(name, num_classes=10), input_shape=(3, size, size))
    exact, x = single.double(), a_point(1, 3, size, size)
    for stage in range(1, single.depth + 1):
        assert_same(single, stage, x.float(), 2e-5, flips=0.02)
        assert_same(exact, stage, x, 1e-12)


def ruled(net: nn.Module, x: Tensor) -> tuple[Tape, list[str]]:
    """The recording, and the names of its operations that have rules."""
    tape = taped(net, x)
    return tape, [tape.ops[i].name for i in primal_rules(tape, tape.input, tape.output)]


def assert_run(net: nn.Module, x: Tensor, names: list[str], tolerance: float = 1e-12) -> None:
    """Exactly these operations have rules, and the replay with them is the network."""
    tape, found = ruled(net, x)
    assert sorted(found) == sorted(names)
    rules = primal_rules(tape, tape.input, tape.output)
    for a, b in zip(both(lambda t: tape.replay(t, [tape.output], rules=rules)[0], x), both(net, x), strict=True):
        assert relative(a, b) < tolerance


CONV, NORM = "convolution", "native_batch_norm"


def norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels)


@pytest.mark.parametrize("worth", [ALWAYS, NEVER], ids=["ours", "autograd's"])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 6, 1, stride=2),
        nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.Conv2d(4, 6, (1, 3), padding=(0, 2), stride=(2, 1)),
        nn.Conv2d(4, 6, 5),
    ],
    ids=lambda c: str(c)[6:],
)
def test_each_kind_of_convolution_with_the_norm_behind_it(
    conv: nn.Conv2d, worth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(primal, "_WORTH", worth)
    net = drawn(nn.Sequential(conv, norm(conv.out_channels), nn.ReLU(inplace=True)))
    assert_run(net, a_point(3, 4, 9, 8), [CONV, NORM])
    assert_run(net[:2].float(), a_point(1, 4, 9, 8, dtype=torch.float32), [CONV, NORM], 1e-5)  # type: ignore[index]


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_with_and_without_weights(affine: bool) -> None:
    net = drawn(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=affine, eps=0.1)))
    assert_run(net, a_point(2, 4, 7, 7), [CONV, NORM])


def test_what_is_read_twice_is_not_folded() -> None:
    net = network(lambda x, c, n: (y := c(x)) + n(y), nn.Conv2d(4, 4, 3), norm(4))
    assert_run(net, a_point(1, 4, 7, 7), [CONV, NORM])


class Through(nn.Module):
    """A function in a chain of modules."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("worth", [ALWAYS, NEVER], ids=["ours", "autograd's"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "modules",
    [
        [norm(4), nn.Conv2d(4, 4, 3)],
        [nn.Conv2d(4, 4, 3), Through(lambda x: x[0][None] if len(x) == 1 else x), norm(4), nn.Conv2d(4, 4, 1)],
        [nn.Conv2d(4, 4, 3), Through(lambda x: x.unsqueeze(-1)), nn.BatchNorm3d(4)],
        [nn.Conv2d(4, 4, 3), Through(torch.relu), norm(4), nn.Conv2d(4, 4, 3)],
    ],
    ids=["first", "after a selection", "of volumes", "between convolutions"],
)
def test_a_norm_by_itself_is_a_scale_and_a_shift(
    modules: list[nn.Module], count: int, worth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own backward pass misreads some layouts of a single image."""
    monkeypatch.setattr(primal, "_WORTH", worth)
    names = [CONV] * sum(isinstance(m, nn.Conv2d) for m in modules) + [NORM]
    assert_run(drawn(nn.Sequential(*modules)), a_point(count, 4, 8, 7), names)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, c, n: n(c(x).chunk(2, 1)[0]),
        lambda x, c, n: n(c(x)[:, :4].transpose(2, 3)),
        lambda x, c, n: F.instance_norm(c(x)),
        lambda x, c, n: torch.view_as_complex(c(x)[..., :2].contiguous()).abs(),
        lambda x, c, n: torch.as_strided_scatter(c(x), x[:, :1, :2, :2], (len(x), 1, 2, 2), (200, 1, 2, 1)),
        lambda x, c, n: F.batch_norm(c(x), None, None, training=True),
        lambda x, c, n: c(x).as_strided((len(x), 2), (2, 1)),
    ],
    ids=["chunk", "transposed", "instance", "complex", "scatter", "statistics of the batch", "strided"],
)
def test_operations_that_may_insist_on_a_layout_leave_the_whole_network_as_it_is(
    function: Callable[..., Tensor], count: int
) -> None:
    net = network(function, nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 4))
    assert_run(net, a_point(count, 4, 7, 7), [])


def test_a_norm_under_no_grad_lets_nothing_through() -> None:
    def half(x: Tensor, c: nn.Module, n: nn.Module) -> Tensor:
        y = c(x)
        with torch.no_grad():
            z = n(y)
        return z * x[:, :4, 1:-1, 1:-1]

    assert_run(network(half, nn.Conv2d(4, 4, 3), norm(4)), a_point(1, 4, 7, 7), [CONV, NORM])


def test_kernels_made_of_the_image_and_transposed_convolutions_stay() -> None:
    dynamic = network(lambda x: F.conv2d(x, x[:, :, :3, :3]))
    assert_run(dynamic, a_point(1, 4, 7, 7), [])
    assert_run(drawn(nn.ConvTranspose2d(4, 3, 3)), a_point(1, 4, 7, 7), [])
    assert_run(drawn(nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, 3))), a_point(1, 4, 7, 7), ["view"])


def test_the_value_between_convolution_and_norm_can_be_asked_for() -> None:
    net = drawn(nn.Sequential(nn.Conv2d(4, 6, 3), norm(6), nn.ReLU()))
    x = a_point(1, 4, 7, 7)
    tape = taped(net, x)
    (end,) = tape.returned_by("0")
    rules = primal_rules(tape, tape.input, end)
    assert [tape.ops[i].name for i in rules] == [CONV]
    assert relative(tape.replay(x, [end], rules=rules)[0], net[0](x)) < 1e-12  # type: ignore[index]


def test_a_path_that_the_image_chooses_has_no_rules() -> None:
    net = network(lambda x, c: c(x) if x.detach().sum().item() > 0 else -c(x), nn.Conv2d(4, 4, 3))
    assert ruled(net, a_point(1, 4, 7, 7))[1] == []


def test_a_stretch_follows_the_parameters() -> None:
    found = Encoder.from_module(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()), input_shape=(3, 9, 9)
    )
    x = a_point(1, 3, 9, 9, dtype=torch.float32)
    run = found.stretch("logits", rules=primal_rules)
    first = run(x)
    with torch.no_grad():
        next(found.module.parameters()).mul_(2)
    assert relative(run(x), found.stretch("logits")(x)) < 1e-6
    assert not torch.allclose(run(x), first)


def test_views_that_are_written_through_have_no_rules() -> None:
    def written(x: Tensor, c: nn.Module) -> Tensor:
        y = c(x)
        y.view(-1).mul_(2)
        return y

    def written_before(x: Tensor, c: nn.Module) -> Tensor:
        return c(x).relu_().view(len(x), -1)

    assert_run(network(written, nn.Conv2d(4, 4, 3)), a_point(1, 4, 7, 7), [])
    assert_run(network(written_before, nn.Conv2d(4, 4, 3)), a_point(1, 4, 7, 7), [CONV, "view"])


def test_a_view_is_that_of_the_recorded_layout() -> None:
    net = network(lambda x, c: c(x).view(1, 2, 50), nn.Conv2d(4, 4, 3))
    assert_run(net, a_point(1, 4, 7, 7), [CONV, "view"])


def test_a_stretch_from_the_middle_begins_there() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    found = Encoder.from_module(drawn(net), input_shape=(3, 9, 9)).double()
    x = a_point(3, 9, 9)
    for start in ("0", "1", "2"):
        at = found.features(x, start)[None]
        quick = both(found.stretch("logits", start, along=x, rules=primal_rules), at)
        plain = both(found.stretch("logits", start, along=x), at)
        assert all(relative(a, b) < 1e-12 for a, b in zip(quick, plain, strict=True))


def test_rules_are_asked_once_for_a_tape() -> None:
    found, asked = encoder("plain"), []

    def rules(tape: Tape, start: Point, end: Point) -> dict[int, Rule]:
        asked.append(tape)
        return primal_rules(tape, start, end)

    run = found.stretch(1, rules=rules)
    for _ in range(3):
        for count in (1, 2):
            run(images("plain", count))
    assert len(asked) == 2


@pytest.mark.parametrize("worth", [ALWAYS, NEVER], ids=["ours", "autograd's"])
def test_a_first_run_under_inference_mode(worth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primal, "_WORTH", worth)
    found, x = encoder("plain"), images("plain", 1)
    run = found.stretch(1, rules=primal_rules)
    with torch.inference_mode():
        run(x)
    for a, b in zip(both(run, x), both(found.stretch(1), x), strict=True):
        assert relative(a, b) < 1e-12


def test_large_kernels_are_kept_as_the_library_has_them_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primal, "_WORTH", ALWAYS)
    net = twin(nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 1, stride=2)).eval())
    tape = taped(net, a_point(1, 8, 9, 9, dtype=torch.float32))
    kept: dict[tuple[int, str], Tensor] = {}
    made = primal.Convolution._ready

    def ready(self: primal.Convolution, way: str, *, blocked: bool = False) -> Tensor:
        kept[self.operation, way] = found = made(self, way, blocked=blocked)
        return found

    monkeypatch.setattr(primal.Convolution, "_ready", ready)
    rules = primal_rules(tape, tape.input, tape.output)
    both(lambda t: tape.replay(t, [tape.output], rules=rules)[0], a_point(1, 8, 9, 9, dtype=torch.float32))
    assert {way for _, way in kept} == {"native", "flipped", "spread"}
    assert all(kernel.is_mkldnn for kernel in kept.values())
