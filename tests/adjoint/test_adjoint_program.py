"""Programs of random small networks: both products against autograd, and what may not change them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.encoded import encoder, images
from oracles.families import NETS
from oracles.lowered import a_point, dense, drawn, gap, lower, network, units
from oracles.taped import double_twin
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.adjoint import LARGEST_BATCH, Program, Unsupported
from pullback.encoders.twin import read_logits
from pullback.graph import plain_autograd, record

SHAPE = (4, 6, 6)
KINDS = (
    "conv", "strided", "grouped", "transposed", "norm", "relu", "relu in place", "scale", "swish", "add", "weighted",
    "add in place", "product", "gate", "cat", "max pool", "average pool", "part", "shuffle", "channel norm",
)  # fmt: skip
Plan = Sequence[tuple[str, int, int]]


class Random(nn.Module):
    """A little graph of operations: each of a plan's lines takes two of the values so far, and makes one."""

    def __init__(self, plan: Plan, whole: bool) -> None:
        super().__init__()
        self.plan, self.whole = plan, whole
        self.layers = nn.ModuleDict()

    def layer(self, i: int, make: Callable[[], nn.Module]) -> nn.Module:
        if str(i) not in self.layers:
            self.layers[str(i)] = drawn(make(), seed=i)
        return self.layers[str(i)]

    def forward(self, x: Tensor) -> Tensor:
        values, unused = [x], {0}
        for i, (kind, first, second) in enumerate(self.plan):
            a, b = first % len(values), second % len(values)
            values.append(self.made(i, kind, values[a], values[b]))
            unused = (unused - {a, b}) | {i + 1}
        if self.whole:
            return values[-1]
        return torch.cat([values[i].mean((2, 3)) for i in sorted(unused)], 1)

    def made(self, i: int, kind: str, x: Tensor, y: Tensor) -> Tensor:
        c, (h, w) = x.shape[1], x.shape[2:]
        alike = x.shape == y.shape
        match kind:
            case "conv" | "strided" | "grouped":
                return self.layer(i, lambda: self.convolution(kind, i, c))(x)
            case "transposed" if min(h, w) > 1:
                return self.layer(i, lambda: self.convolution(kind, i, c))(x)
            case "norm":
                return self.layer(i, lambda: nn.BatchNorm2d(c))(x)
            case "relu":
                return F.relu(x)
            case "relu in place":
                return F.relu_(self.layer(i, lambda: nn.Conv2d(c, 3, 1))(x))
            case "scale":
                return 0.7 * x
            case "swish":
                return x * torch.sigmoid(x)
            case "add" if alike:
                return x + y
            case "weighted" if alike:
                return torch.sub(x, y, alpha=0.4)
            case "add in place" if alike:
                return (0.3 * x).add_(y)
            case "product" if alike:
                return x * y
            case "gate":
                return x * torch.sigmoid(y.mean((1, 2, 3), keepdim=True))
            case "cat" if x.shape[2:] == y.shape[2:]:
                return torch.cat([x, y], 1)
            case "max pool" if min(h, w) > 1:
                return F.max_pool2d(x, 2, 1 + i % 2)
            case "average pool" if min(h, w) > 1:
                return F.avg_pool2d(x, 2, ceil_mode=bool(i % 2))
            case "part" if c > 1:
                return x[:, i % 2 :: 2]
            case "shuffle" if c % 2 == 0:
                return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
            case "channel norm" if c > 2:  # the norm of two numbers is a sign
                return F.layer_norm(x.permute(0, 2, 3, 1), (c,), eps=0.1).permute(0, 3, 1, 2)
        return x - 0.1  # nothing that fits

    @staticmethod
    def convolution(kind: str, i: int, c: int) -> nn.Module:
        if kind == "conv":
            return nn.Conv2d(c, 3 + i % 3, 1 + 2 * (i % 2), padding=i % 2)
        if kind == "strided":
            return nn.Conv2d(c, 4, 3, 2, 1)
        if kind == "grouped":
            return nn.Conv2d(c, c, 3, padding=1, groups=c)
        return nn.ConvTranspose2d(c, 2, 2, 1, 1 if i % 2 else 0)


@st.composite
def random_nets(draw: st.DrawFn) -> nn.Module:
    lines = st.tuples(st.sampled_from(KINDS), st.integers(0, 20), st.integers(0, 20))
    recent = st.tuples(st.sampled_from(KINDS), st.just(-1), st.integers(-3, 20))
    plan = draw(st.lists(st.one_of(lines, recent), min_size=1, max_size=9))
    return Random(plan, draw(st.booleans())).double().eval()


def lowered(net: nn.Module, x: Tensor) -> Program | None:
    with torch.no_grad():
        net(x[None])  # makes the layers
    net.requires_grad_(False)
    try:
        return lower(net, x)
    except Unsupported:
        return None


def vjps(net: nn.Module, x: Tensor, w: Tensor) -> Tensor:
    with plain_autograd(x.device):
        leaf = x.clone()[None].requires_grad_()
        out = read_logits(net(leaf.clone()))
        return torch.cat([torch.autograd.grad(out, leaf, row[None], retain_graph=True)[0] for row in w])


def near(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    """In units of b; of one hundredth, where norms make everything cancel."""
    return float((a - b).norm()) <= tolerance * max(float(b.norm()), 0.01)


@settings(max_examples=60)
@given(random_nets(), st.integers(0, 3))
def test_any_graph_has_the_vjps_of_autograd_and_their_adjoint(net: nn.Module, seed: int) -> None:
    x = a_point(*SHAPE, seed=seed)
    program = lowered(net, x)
    assert program is not None
    assert program.unknown == ()
    w, v = a_point(7, *program.value.shape, seed=8), a_point(6, *SHAPE, seed=9)
    kept_w, kept_v = w.clone(), v.clone()
    pulled, pushed = program.pull(w), program.push(v)
    assert near(pulled, vjps(net, x, w))
    one, other = pushed.flatten(1) @ w.flatten(1).T, v.flatten(1) @ pulled.flatten(1).T
    assert float((one - other).abs().max()) <= 1e-12 * float(pushed.norm() * w.norm() + v.norm() * pulled.norm())
    assert torch.equal(w, kept_w) and torch.equal(v, kept_v)
    assert torch.equal(program.pull(w), pulled) and torch.equal(program.push(v), pushed)
    if program.value.dim() == 3:  # channel by channel, as seeds are
        single = torch.zeros_like(w)
        for k, channel in enumerate(k % w.shape[1] for k in range(len(w))):
            single[k, channel] = w[k, channel]
        assert near(program.pull(single), vjps(net, x, single))
        assert near(program.pull(torch.cat([single, w]), 3), torch.cat([program.pull(single), pulled]))
    for batch in (1, 2, 5, 64):
        assert near(program.pull(w, batch), pulled)
        assert near(program.push(v, batch), pushed)
    with patch("pullback.adjoint.program._FITTING", 8 * 200):
        segmented = lower(net, x)
    assert near(segmented.pull(w), pulled)
    assert near(segmented.push(v), pushed)


@settings(max_examples=20)
@given(random_nets())
def test_layout_and_origin_of_cotangents_change_nothing(net: nn.Module) -> None:
    program = lowered(net, a_point(*SHAPE))
    assert program is not None
    w = a_point(3, *program.value.shape, seed=8)
    pulled = program.pull(w)
    assert near(program.pull(w.transpose(0, -1).contiguous().transpose(0, -1)), pulled)
    if w.dim() == 4:
        assert near(program.pull(w.contiguous(memory_format=torch.channels_last)), pulled)
    assert near(program.pull(torch.stack([w, w], -1)[..., 1]), pulled)
    assert near(program.pull(w[:1].expand_as(w))[2], pulled[0])
    assert near(program.pull(torch.cat([w, torch.zeros_like(w)]))[:3], pulled)
    with torch.inference_mode():
        inferred = w.clone()
    assert near(program.pull(inferred), pulled)
    wanted = w.clone().requires_grad_()
    assert near(program.pull(wanted), pulled)
    assert not program.pull(wanted).requires_grad
    empty = program.pull(w[:0])
    assert empty.shape == (0, *SHAPE)
    assert program.push(empty).shape == (0, *program.value.shape)


def test_more_rows_than_fit_at_once() -> None:
    net, x = drawn(nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1))), a_point(*SHAPE)
    program, w = lower(net, x), a_point(2 * LARGEST_BATCH + 3, 2, 4, 4, seed=1)
    whole = program.pull(w)
    assert near(whole, vjps(net, x, w))
    assert near(program.pull(w, len(w)), whole)


@pytest.mark.parametrize("name", ["densenet", "mobilenet v3", "inplace_relu"])
@pytest.mark.parametrize("fitting", [1, 8 * 3000, 8 * 40000])
def test_segments_of_real_blocks(name: str, fitting: int) -> None:
    """Deep layers take many rows at a time, shallow ones few: the numbers are those of one row at a time."""
    net = double_twin(name)
    x = a_point(*NETS[name].input_shape)
    w = a_point(13, *read_logits(net(x[None])).shape[1:], seed=1)
    with patch("pullback.adjoint.program._FITTING", fitting):
        program = lower(net, x)
    pulled = program.pull(w)
    assert near(pulled, vjps(net, x, w))
    v = a_point(13, *x.shape, seed=2)
    one, other = program.push(v).flatten(1) @ w.flatten(1).T, v.flatten(1) @ pulled.flatten(1).T
    assert gap(one, other) < 1e-11


def test_memory_that_is_stated_grows_with_the_batch() -> None:
    net, x = double_twin("resnet basic"), a_point(3, 32, 32)
    program = lower(net, x)
    for way in ("pull", "push"):
        bytes_needed = [program.working_bytes(way, batch) for batch in (1, 2, 4, 8)]
        assert bytes_needed[0] >= 8 * x.numel()
        assert bytes_needed == sorted(bytes_needed) and bytes_needed[-1] > bytes_needed[0]
    assert 0 < program.kept_bytes < 2**20


def test_the_point_of_a_program_is_its_own() -> None:
    """x * x keeps x: what the caller does to the image afterwards must not reach a Jacobian of an encoder (which clones)."""
    net = network(lambda x, conv: conv(x * x), nn.Conv2d(3, 2, 1))
    x = a_point(3, 4, 4)
    at = x.clone()
    program = lower(net, at)
    expected = dense(net, x)
    assert gap(program.pull(units((2, 4, 4))).flatten(1), expected) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_seeds_of_one_channel(dtype: torch.dtype) -> None:
    """F 1_c and its neighbours: dead channels, no channel at all, dilated kernels, a pool and a gate on the way."""
    for dilation in (1, 2):
        conv = nn.Conv2d(4, 5, 3, padding=dilation, dilation=dilation)
        net = drawn(nn.Sequential(nn.Conv2d(4, 4, 3), conv, nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2))).to(dtype)
        x = a_point(4, 8, 8, dtype=dtype)
        program = lower(net, x)
        w = torch.diag_embed(a_point(5, 9, seed=2, dtype=dtype).T).movedim(0, -1).unflatten(-1, (3, 3))
        w[3] = 0
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
        expected = vjps(net.double(), x.double(), w.double())
        assert near(program.pull(w).double(), expected, tolerance)
        assert near(program.pull(w, 2).double(), expected, tolerance)
        assert near(program.pull(w.contiguous(memory_format=torch.channels_last)).double(), expected, tolerance)
        assert not program.pull(w)[3].any()


@pytest.mark.parametrize("name", ["resnet basic", "vgg", "densenet", "mobilenet v2", "squeezenet", "convnext", "views"])
def test_seeds_of_all_channels_add_up(name: str) -> None:
    """J^T w is the sum over channels of J^T of w in that channel alone, at every stage."""
    found, [x] = encoder(name), images(name, 1)
    for stage in range(1, found.depth + 1):
        J = found.jacobian(x, stage)
        w = a_point(*J.out_shape, seed=1)
        channels = len(w) if len(w) < 40 else 40
        w[channels:] = 0
        seeds = torch.zeros(channels, *w.shape, dtype=w.dtype)
        seeds[range(channels), range(channels)] = w[:channels]
        assert near(J.vm(seeds).sum(0), J.vm(w))


def test_stretches_chain_to_the_whole() -> None:
    """J_l^T is the product of the adjoints of the stretches between any of a tape's cuts."""
    net, x = double_twin("resnet basic"), a_point(3, 32, 32)
    tape, _, _ = record(net, x[None], read_logits)
    cuts = [cut for cut in tape.cuts if tape.shapes[cut.tensor]][:: len(tape.cuts) // 6]
    cuts = [*dict.fromkeys((tape.input, *cuts, tape.output))]
    at = tape.replay(x[None], cuts)
    pulled = w = a_point(2, *at[-1].shape[1:], seed=1)
    for start, value, end in reversed(list(zip(cuts, at, cuts[1:], strict=False))):
        pulled = Program.lower(tape, start, end, value[0], {}).pull(pulled)
    assert near(pulled, vjps(net, x, w))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_to_another_precision(dtype: torch.dtype) -> None:
    for name in ("resnet basic", "mobilenet v3", "convnext"):
        net = double_twin(name)
        x = a_point(*NETS[name].input_shape)
        program = lower(net, x)
        w = a_point(3, *program.value.shape, seed=1)
        exact, rounded = program.pull(w), program.to(dtype)
        assert rounded.dtype == dtype
        assert rounded.pull(w).dtype == w.dtype
        error = float((rounded.pull(w) - exact).norm() / exact.norm())
        assert 0 < error < {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
        pushed = program.push(exact)
        assert float((rounded.push(exact) - pushed).norm() / pushed.norm()) < {torch.float32: 1e-5}.get(dtype, 0.1)
        assert torch.equal(program.pull(w), exact)  # the first keeps its own numbers


def test_operations_without_rule_in_another_precision() -> None:
    """Group norm is left to autograd in the network's own precision, between convolutions in another."""
    net = drawn(nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 2, 3)))
    program = lower(net, a_point(*SHAPE))
    w = a_point(3, 2, 2, 2, seed=1)
    exact = program.pull(w)
    rounded = program.to(torch.float32)
    assert near(rounded.pull(w), exact, 1e-5)
    assert near(rounded.push(exact), program.push(exact), 1e-5)
