from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles.jacobian_nets import a_point
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pullback.operator.frozen import FrozenParameters

aten = torch.ops.aten
WEIGHT = a_point(1, (6, 3, 3, 3))
MEAN, VARIANCE, SCALE, SHIFT = a_point(2, (3,)), a_point(3, (3,)).exp(), a_point(4, (3,)), a_point(5, (3,))

CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "conv2d": lambda x: F.conv2d(x, WEIGHT, a_point(6, (6,)), stride=2, padding=(1, 0), dilation=2),
    "conv2d, numbers in one-tuples": lambda x: F.conv2d(x, WEIGHT, None, (2,), (1,), (1,)),
    "conv2d, groups": lambda x: F.conv2d(x, WEIGHT[:, :1], groups=3),
    "conv2d, padding by name": lambda x: F.conv2d(x, WEIGHT, padding="same"),
    "conv2d, one sample": lambda x: F.conv2d(x[0], WEIGHT),
    "recorded convolution": lambda x: aten.convolution.default(
        x, WEIGHT, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1
    ),
    "recorded transposed convolution": lambda x: aten.convolution.default(
        x, WEIGHT.transpose(0, 1), None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1
    ),
    "batch norm": lambda x: F.batch_norm(x, MEAN, VARIANCE, SCALE, SHIFT, eps=1e-3),
    "batch norm, plain": lambda x: F.batch_norm(x, MEAN, VARIANCE),
    "batch norm, batch statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "batch norm of lines": lambda x: F.batch_norm(x.flatten(2), MEAN, VARIANCE, SCALE, SHIFT),
    "recorded batch norm": lambda x: aten.native_batch_norm.default(
        x, SCALE, SHIFT, MEAN, VARIANCE, False, 0.1, 1e-3
    )[0],
}  # fmt: skip


def derivatives(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """F(x), J^T w, and J v as the derivative of the former with respect to w."""
    x = a_point(0, (2, 3, 9, 8)).requires_grad_()
    out = function(x)
    w = a_point(7, tuple(out.shape)).requires_grad_()
    (pulled,) = torch.autograd.grad(out, x, w, create_graph=True)
    (pushed,) = torch.autograd.grad(pulled, w, a_point(8, tuple(x.shape)))
    return out.detach(), pulled.detach(), pushed


@pytest.mark.parametrize("name", CASES)
def test_values_have_the_same_bits_and_derivatives_agree(name: str) -> None:
    expected = derivatives(CASES[name])
    with FrozenParameters():
        got = derivatives(CASES[name])
    assert torch.equal(got[0], expected[0])
    for a, b in zip(got[1:], expected[1:], strict=True):
        assert torch.allclose(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("net", [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(3).eval()])
def test_trainable_parameters_keep_their_gradients(net: nn.Module) -> None:
    with FrozenParameters():
        net(torch.ones(1, 3, 4, 4, requires_grad=True)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_autocast_and_mixed_types_run_as_ever() -> None:
    x = a_point(0, (1, 3, 8, 8)).float().requires_grad_()
    with FrozenParameters(), torch.autocast("cpu", torch.bfloat16):
        out = F.conv2d(x, WEIGHT.float())
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out.sum(), x)[0].dtype == torch.float32


def test_a_recorder_sees_the_operations_of_the_network() -> None:
    class Recorder(TorchDispatchMode):
        seen: tuple[tuple[str, bool], ...] = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.seen += ((str(func), torch.is_grad_enabled()),)
            return func(*args, **(kwargs or {}))

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval().requires_grad_(False)
    x = torch.zeros(1, 3, 8, 8, requires_grad=True)
    with FrozenParameters(), Recorder() as recorder:
        net(x)
    operations = [entry for entry in recorder.seen if "empty" not in entry[0] and "detach" not in entry[0]]
    assert operations == [("aten.convolution.default", True), ("aten.native_batch_norm.default", True)]
