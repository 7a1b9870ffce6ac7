"""Convolutions of every geometry: the program's products are the dense Jacobian."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles.lowered import a_point, assert_both_products_are_dense, assert_exact, dense, gap, lower, network
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.adjoint import Program, convolution
from pullback.adjoint.maps import empty
from pullback.graph import record

GEOMETRIES: dict[str, tuple[tuple[int, int, Any], dict[str, Any], tuple[int, ...]]] = {
    "same": ((3, 4, 3), {"padding": 1}, (3, 5, 7)),
    "valid": ((3, 4, 3), {}, (3, 5, 7)),
    "wide padding": ((3, 4, 3), {"padding": 2}, (3, 4, 5)),
    "padding beyond the kernel": ((3, 4, 3), {"padding": 4}, (3, 4, 5)),
    "padding beyond a kernel of one": ((3, 4, 1), {"padding": 1}, (3, 4, 5)),
    "one by one": ((5, 4, 1), {}, (5, 3, 4)),
    "one by one, strided": ((5, 4, 1), {"stride": 2}, (5, 6, 5)),
    "even kernel": ((3, 4, 2), {"padding": 1}, (3, 5, 4)),
    "even kernel, one axis": ((3, 4, (4, 1)), {"padding": (2, 0)}, (3, 6, 3)),
    "padded by name": ((3, 4, (3, 5)), {"padding": "same"}, (3, 5, 6)),
    "two axes, two of everything": (
        (3, 4, (3, 2)), {"stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)}, (3, 7, 6)
    ),
    "dilated": ((3, 4, 3), {"dilation": 2, "padding": 2}, (3, 6, 7)),
    "dilated and strided": ((3, 4, 3), {"dilation": 2, "padding": 1, "stride": 2}, (3, 8, 7)),
    "grouped": ((6, 4, 3), {"groups": 2, "padding": 1}, (6, 5, 4)),
    "grouped and strided": ((6, 4, 3), {"groups": 2, "padding": 1, "stride": 2}, (6, 5, 6)),
    "depthwise": ((5, 5, 3), {"groups": 5, "padding": 1}, (5, 5, 4)),
    "depthwise with multiplier": ((3, 6, 3), {"groups": 3, "padding": 1}, (3, 5, 4)),
    "depthwise, strided, few channels": ((3, 3, 3), {"groups": 3, "padding": 1, "stride": 2}, (3, 6, 5)),
    "many channels, strided": ((9, 4, 3), {"stride": 2, "padding": 1}, (9, 6, 7)),
    "stem": ((3, 6, 7), {"stride": 2, "padding": 3}, (3, 9, 11)),
    "stem, even side": ((3, 6, 3), {"stride": 2, "padding": 1}, (3, 8, 10)),
    "stem, rows that no kernel reaches": ((3, 4, 2), {"stride": 3}, (3, 10, 8)),
    "stride above kernel": ((1, 4, 1), {"stride": 3}, (1, 8, 9)),
    "stride 4, one channel": ((1, 4, 3), {"stride": 4}, (1, 12, 11)),
    "stride 3, padding 2": ((1, 4, 5), {"stride": 3, "padding": 2}, (1, 11, 10)),
    "stride 2, padding beyond the kernel": ((2, 4, 2), {"stride": 2, "padding": 3}, (2, 6, 5)),
    "patches": ((3, 6, 4), {"stride": 4}, (3, 8, 12)),
    "kernel as large as the image": ((3, 4, (5, 4)), {}, (3, 5, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", GEOMETRIES)
def test_planes(name: str) -> None:
    arguments, options, shape = GEOMETRIES[name]
    assert_exact(lambda x, layer: layer(x), nn.Conv2d(*arguments, **options), shape=shape)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 4, 3, padding=1), (3, 9)),
        (nn.Conv1d(2, 4, 4, stride=3), (2, 12)),
        (nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=2), (4, 9)),
        (nn.Conv3d(2, 3, 3, padding=1), (2, 3, 4, 5)),
        (nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1), groups=2), (2, 3, 4, 5)),
        (nn.ConvTranspose1d(3, 2, 3, stride=2), (3, 5)),
        (nn.ConvTranspose2d(3, 2, 3), (3, 4, 5)),
        (nn.ConvTranspose2d(3, 2, 2, stride=2), (3, 4, 3)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 3, 4)),
        (nn.ConvTranspose2d(3, 2, 3, stride=3, dilation=2, bias=False), (3, 3, 2)),
        (nn.ConvTranspose3d(2, 2, 2, stride=2), (2, 2, 3, 2)),
    ],
    ids=str,
)
def test_lines_volumes_and_transposed(layer: nn.Module, shape: tuple[int, ...]) -> None:
    assert_exact(lambda x, layer: layer(x), layer, shape=shape)


def test_asymmetric_padding() -> None:
    """TensorFlow's "same": a pad of its own, then a valid convolution."""
    for pads in ((0, 1, 0, 1), (1, 2, 0, 3), (-1, 1, 2, -1)):
        net = network(lambda x, conv, pads=pads: conv(F.pad(x, pads)), nn.Conv2d(3, 4, 3, 2))
        x = a_point(3, 8, 7)
        assert_both_products_are_dense(lower(net, x), dense(net, x))


def test_kernels_flipped_by_hand() -> None:
    """y = [a b c] * x on a row of three, padded by one: J is the matrix of a correlation."""
    conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    planar = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False)
    expected = torch.tensor([[2.0, 3, 0], [1, 2, 3], [0, 1, 2]], dtype=torch.float64)
    for layer, shape in ((conv, (1, 3)), (planar, (1, 1, 3))):
        net = network(lambda x, layer: layer(x), layer)
        next(iter(net.parameters())).copy_(torch.tensor([1.0, 2, 3]).reshape(layer.weight.shape))
        program = lower(net, a_point(*shape))
        rows = program.pull(torch.eye(3, dtype=torch.float64).reshape(3, *shape))
        assert torch.equal(rows.reshape(3, 3), expected)


def test_several_images_inside_the_network() -> None:
    """Windows moved to the batch axis, as window attention and some shifts do."""
    net = network(
        lambda x, conv, pool, norm: pool(norm(conv(x.reshape(3, 2, 6, 5)))).reshape(1, -1),
        nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(3),
    )  # fmt: skip
    x = a_point(6, 6, 5)
    assert_both_products_are_dense(lower(net, x), dense(net, x))


def test_a_kernel_that_the_image_makes() -> None:
    """Dynamic convolution: two routes for the gradient; the kernels of one image must not serve another."""

    def dynamic(x: Tensor, detached: bool) -> Tensor:
        kernel = x.mean((2, 3)).reshape(1, 3, 1, 1) * torch.ones(2, 3, 3, 3, dtype=x.dtype)
        return F.conv2d(x, kernel.detach() if detached else kernel, padding=1)

    for detached in (False, True):
        net = network(lambda x, detached=detached: dynamic(x, detached))
        tape, _, _ = record(net, a_point(1, 3, 4, 5))
        packed: dict[Any, Tensor] = {}
        for seed in (1, 2):
            x = a_point(3, 4, 5, seed=seed)
            program = Program.lower(tape, tape.input, tape.output, x, packed)
            assert_both_products_are_dense(program, dense(net, x))


ADDED = {
    name: way
    for way, names in {
        "both": ("same", "valid", "wide padding", "one by one", "even kernel", "dilated", "grouped", "depthwise"),
        "push": ("grouped and strided", "dilated and strided", "stem, even side", "padding beyond the kernel"),
    }.items()
    for name in names
}


@pytest.mark.skipif(convolution._add_conv2d is None, reason="torch was built without oneDNN")
@pytest.mark.parametrize("name", ADDED)
def test_added_in_one_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """total += J^T w and J v in float32 are the sums that float64 finds, and oneDNN makes them where memory is dense."""
    arguments, options, shape = GEOMETRIES[name]
    net, x = network(lambda x, layer: layer(x), nn.Conv2d(*arguments, **options)), a_point(*shape)
    exact = lower(net, x).edges[0].map
    program = lower(net.float(), x.float())
    rounded = program.edges[0].map
    adding, calls = convolution._add_conv2d, []

    def counted(*arguments: Any) -> None:
        calls.append(arguments)
        adding(*arguments)

    monkeypatch.setattr(convolution, "_add_conv2d", counted)
    inner, outer = (5, 1, *shape), (5, 1, *program.value.shape)
    for way, taken, made in (("pull", outer, inner), ("push", inner, outer)):
        w, start = a_point(*taken), a_point(*made, seed=2)
        expected = start + getattr(exact, way)(w, False)
        apart = torch.zeros(*made[:-1], 2 * made[-1])[..., ::2]
        for total, dense_memory in ((empty(start.float(), made[1:]), True), (apart, False)):
            total.copy_(start)
            calls.clear()
            getattr(rounded, f"add_{way}")(total, w.float(), False)
            assert len(calls) == (dense_memory and ADDED[name] in ("both", way))
            assert gap(total.double(), expected) < 1e-6


@settings(max_examples=60)
@given(
    channels=st.sampled_from([1, 2, 3, 4, 5]),
    sides=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.one_of(st.integers(1, 4).map(lambda s: (s, s)), st.tuples(st.integers(1, 4), st.integers(1, 4))),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 2)]),
    grouped=st.sampled_from([False, False, True]),
)
def test_any_geometry(
    channels: int,
    sides: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    grouped: bool,
) -> None:
    assume(all(n + 2 * p >= d * (k - 1) + 1 for n, p, d, k in zip(sides, padding, dilation, kernel, strict=True)))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": channels if grouped else 1}
    net = network(lambda x, conv: conv(x), nn.Conv2d(channels, channels if grouped else 2, kernel, **options))
    x = a_point(channels, *sides)
    program = lower(net, x)
    w = a_point(3, *program.value.shape, seed=1)
    v = a_point(3, *x.shape, seed=2)
    with torch.enable_grad():
        leaf = x.clone()[None].requires_grad_()
        expected = [torch.autograd.grad(net(leaf), leaf, row[None])[0] for row in w]
    assert float((program.pull(w) - torch.cat(expected)).abs().max()) < 1e-11
    conv = next(iter(net.parts))
    linear = F.conv2d(v, conv.weight, None, stride, padding, dilation, options["groups"])
    assert float((program.push(v) - linear).abs().max()) < 1e-11
