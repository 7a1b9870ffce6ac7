from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.awkward_nets import SPATIAL
from oracles.families import FAMILIES
from oracles.steps import STEPS, Steps
from oracles.taped import Apply
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.encoders.splitting import split
from pullback.encoders.twin import read_logits, twin
from pullback.graph import Point, Tape, pull_support, record


def generic(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights without zeros or symmetries, so that what can be seen is seen."""
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(generic(*p.shape, seed=seed + i) / p[0].numel() ** 0.5)  # keeps activations off saturation
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d) and m.running_var is not None:
                m.running_mean.copy_(0.3 * generic(m.num_features))
    return net.double().eval().requires_grad_(False)


def pattern(tape: Tape, x: Tensor, at: Point, unit: int, start: Point | None = None) -> Tensor:
    """Where the derivative of one unit at `at` is not zero: a row of the dense Jacobian, by autograd."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        (value,) = tape.replay(leaf.clone(), [at], start=start)
        (row,) = torch.autograd.grad(value.flatten()[unit], leaf)
    return row != 0


def supports(tape: Tape, at: Point, unit: int, start: Point | None = None) -> Tensor:
    seed = torch.zeros(tape.shapes[at.tensor], dtype=torch.bool)
    seed.view(-1)[unit] = True
    return pull_support(tape, seed, at, start).mask


def some_units(tape: Tape, at: Point, count: int) -> list[int]:
    size = torch.Size(tape.shapes[at.tensor]).numel()
    return torch.randperm(size, generator=torch.Generator().manual_seed(7))[:count].tolist()


def agree(net: nn.Module, x: Tensor, *, equal: bool, count: int = 12) -> None:
    """The derivative of some units is inside the structural field, and fills it if `equal`."""
    tape, _, _ = record(net, x)
    for unit in some_units(tape, tape.output, count):
        true, field = pattern(tape, x, tape.output, unit), supports(tape, tape.output, unit)
        assert not (true & ~field).any(), f"unit {unit}: a derivative outside the field"
        if equal:
            assert torch.equal(true, field), (
                f"unit {unit}: {int(field.sum())} positions in the field, {int(true.sum())} in fact"
            )


def squeeze_excite(x: Tensor, down: nn.Module, up: nn.Module) -> Tensor:
    return x * torch.sigmoid(up(F.silu(down(x.mean((2, 3), keepdim=True)))))


def shuffle(x: Tensor, groups: int = 2) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def attention(x: Tensor, project: nn.Module) -> Tensor:
    n, c, h, w = x.shape
    q, k, v = project(x.flatten(2).transpose(1, 2)).chunk(3, -1)
    weights = (q @ k.transpose(1, 2)).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(n, c, h, w)


def write_into(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :2] = x[:, 2:]
    y[:, 2:, 1:] = x[:, :2, :-1]
    y[:, :, :, 0].mul_(2)
    y[:, :, 2:4] = 0
    y[:, :, 4:5].zero_().add_(x[:, :1, 5:6])
    return y


CONV = nn.Conv2d
# Operations by themselves on a (1, 4, 7, 6) tensor: those whose derivative fills the field, and those that may stay inside.
EXACT: dict[str, Callable[[], nn.Module]] = {
    "stride": lambda: CONV(4, 3, 3, 2, 1),
    "dilation": lambda: CONV(4, 3, (3, 2), dilation=2),
    "grouped convolution": lambda: CONV(4, 6, 3, padding=1, groups=2),
    "depthwise convolution": lambda: CONV(4, 4, 3, padding=1, groups=4),
    "transposed convolution": lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "batch norm of the batch": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "instance norm": lambda: nn.InstanceNorm2d(4),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "layer norm over channels": lambda: Apply(
        lambda x, n: n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(4)
    ),
    "layer norm over everything": lambda: nn.LayerNorm((4, 7, 6)),
    "average pooling": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "adaptive pooling": lambda: nn.AdaptiveAvgPool2d((3, 2)),
    "strided slice": lambda: Apply(lambda x: x[:, 1:, ::2, 1:]),
    "concatenation": lambda: Apply(lambda x: torch.cat([x.roll(1, 2), x[:, :1].exp()], 1)),
    "split": lambda: Apply(lambda x: x.split([1, 3], 1)[1] * x.chunk(2, 1)[0][:, :1]),
    "shuffle": lambda: Apply(shuffle),
    "pixel shuffle": lambda: nn.PixelShuffle(2),
    "padding by reflection": lambda: nn.ReflectionPad2d(2),
    "flip and roll": lambda: Apply(lambda x: x.flip(2).roll((1, 2), (1, 3))),
    "nearest upsampling": lambda: nn.UpsamplingNearest2d(scale_factor=2),
    "squeeze-excite": lambda: Apply(squeeze_excite, CONV(4, 3, 1), CONV(3, 4, 1)),
    "softmax over channels": lambda: nn.Softmax(1),
    "linear over width": lambda: nn.Linear(6, 5),
    "attention": lambda: Apply(attention, nn.Linear(4, 12)),
    "dataflow of two maps": lambda: Apply(lambda x: x[:, :2] * x[:, 2:].roll(1, 3) / (2 + x[:, :2].sin())),
    "rows and columns": lambda: Apply(lambda x: x.mean(2, keepdim=True) + x.sum(3, keepdim=True)),
    "masked fill": lambda: Apply(lambda x: x.roll(1, 3).masked_fill(torch.eye(7, 6) > 2, 0.5)),
    "stack and unbind": lambda: Apply(lambda x: torch.stack(x.unbind(3)[::-1], 3)),
    "writes through views": lambda: Apply(write_into),
    "index select": lambda: Apply(lambda x: x.index_select(1, torch.tensor([2, 0, 2]))),
    "index": lambda: Apply(lambda x: x[:, [3, 1, 0, 2]][:, :, torch.tensor([0, 2])]),
}
INSIDE: dict[str, Callable[[], nn.Module]] = {
    "max-pooling": lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "dilated max-pooling": lambda: nn.MaxPool2d(2, 1, dilation=2),
    "adaptive max-pooling": lambda: nn.AdaptiveMaxPool2d((3, 2)),
    "largest": lambda: Apply(lambda x: x.amax((2, 3), keepdim=True) + x.max(1, keepdim=True)[0]),
    "largest of all": lambda: Apply(lambda x: (x * x.max()).flatten(1)),
    "relu": lambda: nn.ReLU(),
    "bilinear upsampling": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "prelu": lambda: nn.PReLU(4),
    "rounding": lambda: Apply(lambda x: x * torch.round(x)),
    "detached": lambda: Apply(lambda x: x + x.roll(2, 2).detach()),
    "fused attention": lambda: Apply(
        lambda x: F.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)[None]] * 3).flatten(1)
    ),
    "index by the numbers of the image": lambda: Apply(lambda x: x.gather(3, x.argsort(3))),
    "cumulative sum": lambda: Apply(lambda x: x.cumsum(3)),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_field_is_the_pattern_of_the_jacobian(name: str) -> None:
    agree(randomised(EXACT[name]()), generic(1, 4, 7, 6), equal=True)


@pytest.mark.parametrize("name", INSIDE)
def test_the_field_holds_the_pattern_of_the_jacobian(name: str) -> None:
    agree(randomised(INSIDE[name]()), generic(1, 4, 7, 6), equal=False)


def test_a_detached_value_reaches_nothing() -> None:
    tape, _, _ = record(Apply(lambda x: x + x.roll(2, 2).detach()), generic(1, 4, 7, 6))
    assert int(supports(tape, tape.output, 0).sum()) == 1


@st.composite
def layers(draw: st.DrawFn) -> list[Callable[[int], tuple[nn.Module, int]]]:
    """Up to five layers; each takes the number of channels and gives a module and its own number of channels."""
    convolution = st.tuples(
        st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), st.integers(0, 2), st.sampled_from([1, 2]),
        st.sampled_from([1, 2, 4]), st.sampled_from([4, 8]),
    ).map(lambda a: lambda c: (CONV(c, a[5], a[0], a[1], a[2] + a[3], a[3], groups=a[4]), a[5]))  # fmt: skip
    same: list[Callable[[int], nn.Module]] = [
        lambda c: nn.Softplus(), lambda c: nn.BatchNorm2d(c), lambda c: CONV(c, c, 3, 1, 1, groups=c), lambda c: nn.AvgPool2d(2, 1),
        lambda c: Apply(shuffle), lambda c: Apply(squeeze_excite, CONV(c, 3, 1), CONV(3, c, 1)), lambda c: nn.GroupNorm(2, c),
        lambda c: Apply(lambda x, n: n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(c)),
        lambda c: Apply(lambda x, f: x + f(x), CONV(c, c, 3, 1, 1)), lambda c: nn.Upsample(scale_factor=2),
    ]  # fmt: skip
    joined = st.just(lambda c: (Apply(lambda x, f: torch.cat([x, F.softplus(f(x))], 1), CONV(c, 4, 3, 1, 1)), c + 4))
    keeping = st.sampled_from(same).map(lambda make: lambda c: (make(c), c))
    return draw(st.lists(st.one_of(convolution, keeping, joined), min_size=1, max_size=5))


@settings(max_examples=40)
@given(layers=layers(), height=st.integers(5, 9), width=st.integers(5, 9))
def test_fields_of_random_networks(
    layers: list[Callable[[int], tuple[nn.Module, int]]], height: int, width: int
) -> None:
    """Smooth activations and generic weights: the pattern of the dense Jacobian is the field itself."""
    modules, channels = [], 4
    for layer in layers:
        module, channels = layer(channels)
        modules.append(module)
    agree(randomised(nn.Sequential(*modules)), generic(1, 4, height, width), equal=True, count=4)


@settings(max_examples=30)
@given(steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=5))
def test_fields_of_any_sequence_of_writes_and_views(steps: list[str]) -> None:
    agree(randomised(Steps(steps)), generic(1, 4, 5, 5), equal=False, count=3)


@pytest.mark.parametrize("name", [*SPATIAL, *FAMILIES])
def test_fields_of_the_stages_of_networks(name: str) -> None:
    made = {**SPATIAL, **FAMILIES}[name]
    net = twin(made()).double()
    x = generic(1, *made.input_shape)
    tape, _, _ = record(net, x, read_logits)
    start = tape.input
    for boundary in split(tape):
        [unit] = some_units(tape, boundary.point, 1)
        assert not (pattern(tape, x, boundary.point, unit) & ~supports(tape, boundary.point, unit)).any()
        (value,) = tape.replay(x, [start])
        between = pattern(tape, value, boundary.point, unit, start)
        assert not (between & ~supports(tape, boundary.point, unit, start)).any()
        start = boundary.point


def test_a_union_of_seeds_sees_the_union_of_their_fields() -> None:
    tape, _, _ = record(
        randomised(nn.Sequential(CONV(4, 4, 3, 2, 1, groups=2), nn.Softplus(), CONV(4, 3, 3))), generic(1, 4, 9, 9)
    )
    shape = tape.shapes[tape.output.tensor]
    seed = generic(*shape) > 0.5
    together = pull_support(tape, seed, tape.output).mask
    apart = [supports(tape, tape.output, int(u)) for u in seed.flatten().nonzero()]
    assert torch.equal(together, torch.stack(apart).any(0))
    assert not pull_support(tape, torch.zeros(shape, dtype=torch.bool), tape.output).mask.any()


def test_images_of_a_batch_do_not_see_each_other() -> None:
    tape, _, _ = record(
        randomised(nn.Sequential(CONV(4, 4, 3), nn.InstanceNorm2d(4), nn.Softplus(), CONV(4, 3, 3))),
        generic(2, 4, 7, 7),
    )
    mask = supports(tape, tape.output, 0)
    assert mask[0].any()
    assert not mask[1].any()


def test_what_looks_everywhere_is_named_with_its_module() -> None:
    net = nn.Sequential(CONV(4, 4, 3, 1, 1), Apply(squeeze_excite, CONV(4, 3, 1), CONV(3, 4, 1)), CONV(4, 4, 3, 1, 1))
    tape, _, _ = record(randomised(net), generic(1, 4, 9, 9))
    seed = torch.zeros(1, 4, 9, 9, dtype=torch.bool)
    seed[..., 4, 4] = True
    support = pull_support(tape, seed, tape.output)
    assert support.everywhere == ("mean in 1",)
    assert support.unknown == ()


def test_growing_to_the_whole_image_is_no_operation_that_looks_everywhere() -> None:
    tape, _, _ = record(randomised(nn.Sequential(*[CONV(4, 4, 3, 1, 1) for _ in range(5)])), generic(1, 4, 7, 7))
    support = pull_support(tape, torch.ones(1, 4, 7, 7, dtype=torch.bool), tape.output)
    assert support.mask.all()
    assert support.everywhere == ()


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x.cumsum(3), "cumsum"),
        (lambda x: torch.fft.rfft2(x).abs(), "fft_r2c"),
        (nn.MaxPool2d(2, 1, dilation=2), "max_pool2d"),
    ],
)
def test_an_operation_without_a_rule_is_named_and_sees_everything(
    function: Callable[[Tensor], Tensor], name: str
) -> None:
    tape, _, _ = record(Apply(function), generic(1, 4, 7, 6))
    seed = torch.zeros(tape.shapes[tape.output.tensor], dtype=torch.bool)
    seed.view(-1)[0] = True
    support = pull_support(tape, seed, tape.output)
    assert len(support.unknown) == 1
    assert name in support.unknown[0]
    assert support.mask.all()
