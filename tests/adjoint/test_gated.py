"""Products on live entries: what the kernels calculate, what they leave out, and what stands in where they cannot serve."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.lowered import a_point, assert_both_products_are_dense, dense, drawn, lower, network, units
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.adjoint import Program, compiled, discrepancy
from pullback.adjoint.convolution import Convolution, Geometry
from pullback.adjoint.gated import FEWEST, Gated, columns, mixed
from pullback.adjoint.live import Rows, live_entries, operations
from pullback.adjoint.nearby import nearby
from pullback.adjoint.schedule import WAYS, Way, stretches
from pullback.encoders import Encoder
from pullback.errors import OptionError

SHAPE = (3, 9, 7)


@pytest.fixture(autouse=True)
def compiler() -> None:
    if compiled.kernels(torch.float64) is None:
        pytest.skip("needs a C compiler")


def gated(program: Program, way: Way = "pull") -> list[Gated]:
    found = mixed(program.edges, way, None, program.dtype) or []
    return [segment for segment in found if isinstance(segment, Gated)]


def convolutions(net: nn.Module) -> int:
    """How many steps they take: one, or one for each group."""
    found = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    return sum(1 if m.groups == m.in_channels == m.out_channels else m.groups for m in found)


def steps(segments: list[Gated], kind: int) -> int:
    return sum(step.kind == kind for segment in segments for step in segment._steps)


CASES: dict[str, tuple[Callable[..., Tensor], list[Callable[[], nn.Module]]]] = {
    "plain": (lambda x, a, b: b(a(x).relu()).relu(), [lambda: nn.Conv2d(3, 5, 3), lambda: nn.Conv2d(5, 12, 3)]),
    "strided, dilated, padded": (
        lambda x, a, b: b(a(x).relu()).relu(),
        [lambda: nn.Conv2d(3, 5, 3, 2, (1, 2)), lambda: nn.Conv2d(5, 12, (3, 2), 1, 2, (2, 1))],
    ),
    "pointwise, strided": (
        lambda x, a, b: b(a(x).relu()).relu(),
        [lambda: nn.Conv2d(3, 9, 1), lambda: nn.Conv2d(9, 10, 1, 2)],
    ),
    "depthwise": (
        lambda x, a, b, c: c(b(a(x).relu()).relu()).relu(),
        [lambda: nn.Conv2d(3, 70, 3), lambda: nn.Conv2d(70, 70, 3, 2, 1, groups=70), lambda: nn.Conv2d(70, 9, 1)],
    ),
    "wide depthwise": (
        lambda x, a, b, c: c(b(a(x).relu()).relu()).relu(),
        [lambda: nn.Conv2d(3, 300, 1), lambda: nn.Conv2d(300, 300, 3, groups=300), lambda: nn.Conv2d(300, 9, 1)],
    ),
    "grouped": (
        lambda x, a, b, c: c(b(a(x).relu()).relu()).relu(),
        [lambda: nn.Conv2d(3, 12, 3), lambda: nn.Conv2d(12, 18, 3, 2, 1, groups=3), lambda: nn.Conv2d(18, 9, 1)],
    ),
    "grouped with few": (
        lambda x, a, b: b(a(x).relu()).relu(),
        [lambda: nn.Conv2d(3, 8, 3), lambda: nn.Conv2d(8, 16, 3, groups=8)],
    ),
    "residual": (
        lambda x, a, b, c: (lambda y: (c(b(y).relu()) + y).relu())(a(x).relu()),
        [lambda: nn.Conv2d(3, 9, 3, 1, 1), *[lambda: nn.Conv2d(9, 9, 3, 1, 1)] * 2],
    ),
    "pooled": (
        lambda x, a, b: b(F.max_pool2d(a(x).relu(), 3, 2, 1)).relu(),
        [lambda: nn.Conv2d(3, 9, 3), lambda: nn.Conv2d(9, 10, 2)],
    ),
    "pooled, leaky": (
        lambda x, a, b: b(F.max_pool2d(F.leaky_relu(a(x).relu() - 0.1, 0.2), 2)).relu(),
        [lambda: nn.Conv2d(3, 9, 3), lambda: nn.Conv2d(9, 10, 2)],
    ),
    "scaled": (lambda x, a, n, b: b(n(a(x).relu()).relu()).relu(), [
        lambda: nn.Conv2d(3, 9, 3), lambda: nn.BatchNorm2d(9), lambda: nn.Conv2d(9, 10, 2),
    ]),
    "concatenated": (
        lambda x, a, b, c: c(torch.cat([a(x).relu(), b(x).relu()], 1)).relu(),
        [lambda: nn.Conv2d(3, 4, 1), lambda: nn.Conv2d(3, 6, 3, 1, 1), lambda: nn.Conv2d(10, 9, 3)],
    ),
    "dense block": (
        lambda x, a, b, c: c(torch.cat([x, b(torch.cat([x, a(x.relu())], 1).relu())], 1).relu()),
        [lambda: nn.Conv2d(3, 4, 1), lambda: nn.Conv2d(7, 6, 3, 1, 1), lambda: nn.Conv2d(9, 9, 3)],
    ),
    "padded apart, cropped": (
        lambda x, a, b: b(F.pad(a(x).relu(), (1, 0, 2, 1)))[:, 2:, 1:, :-2].relu(),
        [lambda: nn.Conv2d(3, 9, 3), lambda: nn.Conv2d(9, 12, 3)],
    ),
    "shortcut without weights": (
        lambda x, a, b: (lambda y: (b(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))).relu())(a(x).relu()),
        [lambda: nn.Conv2d(3, 9, 3, 1, 1), lambda: nn.Conv2d(9, 12, 3, 2, 1)],
    ),
    "every second channel": (
        lambda x, a, b: b(a(x).relu()[:, ::2]).relu(),
        [lambda: nn.Conv2d(3, 9, 3), lambda: nn.Conv2d(5, 12, 3)],
    ),
    "twice": (
        lambda x, a, b: (lambda y: b(y + y).relu())(a(x).relu()),
        [lambda: nn.Conv2d(3, 9, 3), lambda: nn.Conv2d(9, 12, 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_both_products_equal_the_dense_jacobian(case: str) -> None:
    function, make = CASES[case]
    net = network(function, *[m() for m in make])
    x = a_point(*SHAPE)
    program = lower(net, x)
    for way in WAYS:
        assert sum(steps(gated(program, way), kind) for kind in (2, 3)) == convolutions(net)  # all by the kernels
    assert_both_products_are_dense(program, dense(net, x))


@pytest.mark.parametrize("case", CASES)
def test_in_single_precision(case: str) -> None:
    function, make = CASES[case]
    net = network(function, *[m() for m in make])
    x = a_point(*SHAPE)
    expected = dense(net, x)
    rows = lower(net.float(), x.float()).pull(units(tuple(net(x.float()[None]).shape[1:]), torch.float32))
    assert float((rows.flatten(1).double() - expected).norm() / expected.norm()) < 1e-5


def test_a_column_depends_on_nothing_beside_it() -> None:
    """Bits of a cotangent: among others, more of them, on more threads, alone in its vector."""
    net = drawn(nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 12, 3), nn.ReLU()))
    program = lower(net, a_point(*SHAPE))
    w = a_point(3 * columns(torch.float64) + 3, 12, 5, 3, seed=1)
    together = program.pull(w)
    assert torch.equal(together[:FEWEST], program.pull(w[:FEWEST]))
    assert torch.equal(together, program.pull(w, FEWEST))  # the last chunk has fewer
    others = torch.cat([w[:1], 1e9 * w[1:FEWEST].flip(0)])
    assert torch.equal(program.pull(others)[0], together[0])
    torch.set_num_threads(3)
    try:
        assert torch.equal(program.pull(w), together)
    finally:
        torch.set_num_threads(1)


@settings(max_examples=40)
@given(st.data())
def test_rows_that_are_asked_for_are_the_dense_ones(data: st.DataObject) -> None:
    """Any number of cotangents, in any layout of memory, zeros among them."""
    net = drawn(nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 12, 3), nn.ReLU()))
    x = a_point(*SHAPE)
    program, expected = lower(net, x), dense(net, x)
    count = data.draw(st.integers(FEWEST, 40))
    w = a_point(count, 12, 5, 3, seed=count)
    w[data.draw(st.integers(0, count - 1))] = 0
    layout = data.draw(st.sampled_from(["plain", "channels last", "turned", "every second", "expanded"]))
    match layout:
        case "channels last":
            w = w.contiguous(memory_format=torch.channels_last)
        case "turned":
            w = w.mT.contiguous().mT
        case "every second":
            w = torch.stack([w, w], 1)[:, 0]
        case "expanded":
            w = w[:1].expand(count, -1, -1, -1)
    pulled = program.pull(w, data.draw(st.sampled_from([None, 7, 9, 64])))
    assert torch.allclose(pulled.flatten(1), w.flatten(1) @ expected, rtol=0, atol=1e-12 * float(expected.norm()))


@pytest.mark.parametrize("shape", [(3, 12, 1), (3, 1, 12), (3, 2, 2)])
def test_axes_of_one_position_may_have_any_stride(shape: tuple[int, ...]) -> None:
    kernel = tuple(min(n, 2) for n in shape[1:])
    net = drawn(nn.Sequential(nn.Conv2d(3, 9, kernel, padding=1), nn.ReLU(), nn.Conv2d(9, 12, kernel), nn.ReLU()))
    net = net if 1 not in shape else drawn(nn.Sequential(nn.Conv2d(3, 9, kernel), nn.ReLU()))
    x = a_point(*shape)
    program, expected = lower(net, x), dense(net, x)
    channels, height, width = program.value.shape
    w = a_point(FEWEST + 1, height * width, channels, seed=2).mT.unflatten(2, (height, width))
    wild = [1, 1, 1, 1]
    for axis, n in enumerate(w.shape):
        wild[axis] = w.stride(axis) if n > 1 else 10**6
    for laid in (w, w.as_strided(w.shape, wild)):
        assert torch.allclose(program.pull(laid).flatten(1), w.flatten(1) @ expected, rtol=0, atol=1e-11)


def test_what_lies_in_memory_under_another_sign_or_type() -> None:
    net = drawn(nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 12, 3), nn.ReLU()))
    x = a_point(*SHAPE)
    program, expected = lower(net, x), dense(net, x)
    w = torch.complex(a_point(9, 12, 5, 3), a_point(9, 12, 5, 3, seed=1)).conj().imag
    assert w.is_neg()
    assert torch.allclose(program.pull(w).flatten(1), w.clone().flatten(1) @ expected, rtol=0, atol=1e-11)
    pulled = program.pull(w.float())
    assert pulled.dtype == torch.float32
    assert torch.allclose(pulled.flatten(1).double(), w.clone().flatten(1) @ expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [3, 9])
def test_rows_of_another_shape_or_device_are_refused(rows: int) -> None:
    program = lower(drawn(nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU())), a_point(*SHAPE))
    with pytest.raises(OptionError, match=r"rows of shape .*12, 5, 3.* where \(K, \*\(9, 7, 5\)\)"):
        program.pull(a_point(rows, 12, 5, 3))
    with pytest.raises(OptionError, match="on meta"):
        program.push(a_point(rows, *SHAPE).to("meta"))


def test_large_kernels_are_left_to_dense_convolutions() -> None:
    net = drawn(
        nn.Sequential(nn.Conv2d(3, 9, (1, 3)), nn.ReLU(), nn.Conv2d(9, 9, (3, 200), padding=(1, 100)), nn.ReLU())
    )
    program = lower(net, a_point(*SHAPE))
    assert steps(gated(program), 2) == 1
    assert_both_products_are_dense(program, dense(net, a_point(*SHAPE)))


def test_a_program_can_be_copied_after_a_product() -> None:
    """Addresses are not copied: a copy plans anew."""
    program = lower(drawn(nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU())), a_point(*SHAPE))
    w = a_point(9, *program.value.shape)
    before = program.pull(w)
    assert torch.equal(copy.copy(program).pull(w), before)
    assert copy.deepcopy(program).live_operations("pull") == 0 < program.live_operations("pull")


def test_nobody_is_served_by_what_is_not_yet_found_right() -> None:
    program = lower(drawn(nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU())), a_point(*SHAPE))
    w = a_point(9, *program.value.shape)
    expected = program.pull(w[:3])

    def interrupted(tried: Program, asked: str) -> bool:
        assert asked == "live pull"
        assert torch.equal(program.pull(w[:3]), expected)
        raise KeyboardInterrupt

    program.trust = interrupted
    with pytest.raises(KeyboardInterrupt):
        program.pull(w)
    asked = []
    program.trust = lambda tried, way: bool(asked.append(way))  # not right
    assert torch.equal(program.pull(w)[:3], program.pull(w[:3]))
    program.pull(w)
    assert asked == ["live pull"]


def test_only_live_entries_have_rows() -> None:
    """Of each value those that a gate on neither side shuts, counted by hand."""
    net = drawn(nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(9, 12, 1), nn.ReLU()))
    x = a_point(*SHAPE)
    program = lower(net, x)
    first = net[0](x[None])
    pooled, chosen = F.max_pool2d(first.relu(), 2, return_indices=True)
    last = net[3](pooled)
    segment = [e for stretch in stretches(program.edges, "pull") for e in stretch]
    live = live_entries(segment, "pull")
    by_shape = {mask.shape: int(mask.sum()) for mask in live.values()}
    assert by_shape[(3, 2, 12)] == int((last > 0).sum())  # what is read of the output, and of the second convolution's
    assert by_shape[(7, 5, 9)] == int((pooled > 0).sum())  # of the first convolution's output: what the pool has chosen
    assert by_shape[(9, 7, 3)] == 9 * 7 * 3
    whole, left = operations(segment, live)
    first_costs, last_costs = 2 * 27 * 9 * 35, 2 * 9 * 12 * 6
    assert whole == first_costs + last_costs
    share = float((last > 0).float().mean()) * float((pooled > 0).float().mean())
    assert left == pytest.approx(first_costs * float((pooled > 0).sum()) / (9 * 35) + last_costs * share, abs=1)
    assert chosen.shape == pooled.shape


def test_where_no_gate_is_shut_dense_convolutions_serve() -> None:
    net = drawn(nn.Sequential(nn.Conv2d(3, 9, 3), nn.GELU(), nn.Conv2d(9, 12, 3)))
    program = lower(net, a_point(*SHAPE))
    assert gated(program) == []
    assert_both_products_are_dense(program, dense(net, a_point(*SHAPE)))


def test_a_network_whose_every_gate_is_shut() -> None:
    net = network(lambda x, a, b: b((a(x) * 0 - 1).relu()).relu(), nn.Conv2d(3, 9, 3), nn.Conv2d(9, 12, 3))
    program = lower(net, a_point(*SHAPE))
    assert not program.pull(units((12, 5, 3))).any()
    assert not program.push(units(SHAPE)).any()


def test_between_stretches_that_the_kernels_do_not_know() -> None:
    """Group norm has no rule: autograd inside, rows on either side."""
    net = network(
        lambda x, a, n, b: b(n(a(x).relu()).relu()).relu(), nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 9, 3)
    )
    x = a_point(*SHAPE)
    program = lower(net, x)
    assert len(gated(program)) == 2
    assert_both_products_are_dense(program, dense(net, x))


@pytest.mark.parametrize("way", WAYS)
def test_positions_of_a_convolution(way: Way) -> None:
    """Lists of who reads whom against the definition of a convolution, on an awkward geometry."""
    kernel, stride, padding, dilation, inner = (3, 2), (2, 3), (2, 0), (2, 1), (7, 8)
    outer = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(inner, kernel, stride, padding, dilation, strict=True)
    )
    g = Geometry(stride, padding, dilation, False, (0, 0), 1, (1, 1, *inner), (1, 1, *outer))
    near, from_, tap = (t.tolist() for t in nearby(g, kernel, way, {}))
    found = {(p, from_[e], tap[e]) for p in range(len(near) - 1) for e in range(near[p], near[p + 1])}
    expected = set()
    for oy in range(outer[0]):
        for ox in range(outer[1]):
            for ky in range(kernel[0]):
                for kx in range(kernel[1]):
                    y, x = oy * 2 - 2 + 2 * ky, ox * 3 + kx
                    if 0 <= y < inner[0] and 0 <= x < inner[1]:
                        out, read, t = oy * outer[1] + ox, y * inner[1] + x, ky * kernel[1] + kx
                        expected.add((read, out, 5 - t) if way == "pull" else (out, read, t))
    assert found == expected
    assert len(from_) == len(expected)


def test_views_of_rows() -> None:
    live = np.random.default_rng(0).random((4, 5, 6)) < 0.5
    rows = Rows.of(live, 0)
    place = slice(1, 4, 2), slice(0, 5), slice(2, 5)
    part = rows.part(place)
    number = rows.numbers().reshape(live.shape)
    assert np.array_equal(part.numbers().reshape(part.live.shape), number[place])
    for p, (first, last) in enumerate(zip(part.begin, part.end, strict=True)):
        assert part.channel[first:last].tolist() == np.flatnonzero(part.live.reshape(-1, 3)[p]).tolist()
    whole = np.zeros((6, 6, 9), bool)
    inside = slice(1, 5), slice(0, 5), slice(3, 9)
    whole[inside] = live
    within = rows.within(inside, whole)
    assert np.array_equal(within.numbers().reshape(whole.shape)[inside], number)
    for p, (first, last) in enumerate(zip(within.begin, within.end, strict=True)):
        assert within.channel[first:last].tolist() == np.flatnonzero(whole.reshape(-1, 9)[p]).tolist()


def a_net() -> nn.Module:
    return drawn(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
            nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        )
    )  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_fault_in_the_kernels_is_noticed_and_dense_products_serve(
    way: Way, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    by_rows = Convolution.by_rows
    monkeypatch.setattr(Convolution, "by_rows", lambda self, asked: by_rows(self, asked).flip(0).contiguous())
    net, x = a_net(), a_point(3, 16, 16)
    expected = dense(net[:7], x)
    J = Encoder.from_module(net, input_shape=(3, 16, 16)).jacobian(x, "6")
    with caplog.at_level(logging.WARNING):
        got = J.vm(units(J.out_shape)).flatten(1) if way == "pull" else J.mv(units(J.in_shape)).flatten(1).T
    assert float((got - expected).norm() / expected.norm()) < 1e-12
    assert f"{way} on live entries differs" in caplog.text


def test_the_measure_of_that_fault() -> None:
    program = lower(a_net(), a_point(3, 16, 16))
    assert discrepancy(program, "live pull") < 1e-14
    assert discrepancy(program, "live push") < 1e-14
    pull = program.pull
    program.pull = lambda w, batch=None: pull(w, batch) * (1.01 if len(w) >= FEWEST else 1)  # type: ignore[method-assign]
    assert discrepancy(program, "live pull") == pytest.approx(0.01)
