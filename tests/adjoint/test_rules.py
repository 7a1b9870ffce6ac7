"""The table of rules, entry by entry: functions of numbers, sums and products, against the dense Jacobian by autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles.lowered import a_point, assert_both_products_are_dense, assert_exact, dense, lower, network
from torch import Tensor
from torch.nn import functional as F

Function = Callable[[Tensor], Tensor]
SHAPE = (3, 4, 5)
POINTWISE: dict[str, Function] = {
    "relu": torch.relu,
    "relu in place": lambda x: (x + 0).relu_(),
    "relu6": lambda x: F.relu6(4 * x),
    "relu6 in place": lambda x: F.relu6(4 * x, inplace=True),
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "leaky relu in place": lambda x: F.leaky_relu(x.clone(), 0.1, inplace=True),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1, -0.2, 0.3], dtype=x.dtype)),
    "randomized leaky relu": F.rrelu,
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.4),
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "silu in place": lambda x: F.silu(x.clone(), inplace=True),
    "mish": F.mish,
    "hardswish": lambda x: F.hardswish(3 * x),
    "hardswish in place": lambda x: F.hardswish(3 * x, inplace=True),
    "hardsigmoid": lambda x: F.hardsigmoid(3 * x),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "log sigmoid": lambda x: -F.softplus(-x),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "threshold": lambda x: F.threshold(x, 0.3, -1.0),
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": lambda x: x.abs().log(),
    "log1p": lambda x: x.square().log1p(),
    "sqrt": lambda x: (x * x + 1).sqrt(),
    "rsqrt": lambda x: (x * x + 1).rsqrt(),
    "reciprocal": torch.reciprocal,
    "abs": torch.abs,
    "negative": lambda x: -x,
    "square": torch.square,
    "power": lambda x: x**3,
    "power of a number": lambda x: 2**x,
    "power of a tensor": lambda x: x.abs() ** x,
    "sine": torch.sin,
    "cosine": torch.cos,
    "arctangent": torch.atan,
    "arctangent of two": lambda x: torch.atan2(x, x + 2),
    "error function": torch.erf,
    "clamp": lambda x: x.clamp(-0.5, 0.9),
    "clamp below": lambda x: x.clamp(min=0.1),
    "clamp by tensors": lambda x: x.clamp(torch.full((4, 5), -0.4).double(), torch.full((5,), 0.6).double()),
    "maximum of itself and a constant": lambda x: torch.maximum(x, torch.full((4, 1), 0.2).double()),
    "minimum of two": lambda x: torch.minimum(x, x.flip(2)),
    "where": lambda x: torch.where(x > 0.2, x, 0.1 * x * x),
    "where a constant": lambda x: torch.where(x > 0.2, x, torch.zeros((), dtype=x.dtype)),
    "masked fill": lambda x: x.masked_fill(x < 0, 3.0),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x.exp(), value=0.7),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.exp(), value=0.7),
    "rounding, flat": lambda x: x + x.round() + torch.floor(x) * 0.5,
    "sign": lambda x: x * x.sign(),
    "comparison": lambda x: x * (x > 0),
    "remainder": lambda x: torch.remainder(x, 0.7),
    "nan to num": torch.nan_to_num,
}
GAPS = {  # left to autograd
    "minimum of two": {"flip"},
    "prelu": {"prelu_kernel"},
    "randomized leaky relu": {"empty_like", "rrelu_with_noise"},
    "softsign": {"div"},
}


@pytest.mark.parametrize("name", POINTWISE)
def test_number_to_number(name: str) -> None:
    net, x = network(POINTWISE[name]), a_point(*SHAPE)
    program = lower(net, x)
    assert set(program.unknown) <= GAPS.get(name, set())
    assert_both_products_are_dense(program, dense(net, x))


def test_slopes_where_they_jump() -> None:
    """At zero and at the bounds, as autograd takes them."""
    at = torch.tensor([-1.0, -0.0, 0.0, 1.0, 6.0, 7.0], dtype=torch.float64).reshape(1, 2, 3)
    for function in (torch.relu, F.relu6, F.hardtanh, torch.abs, F.leaky_relu, lambda x: torch.maximum(x, x * 2)):
        net = network(function)
        assert_both_products_are_dense(lower(net, at), dense(net, at))
    assert lower(network(torch.relu), at).pull(torch.ones(1, 1, 2, 3, dtype=torch.float64)).flatten().tolist() == [
        0, 0, 0, 1, 1, 1
    ]  # fmt: skip


SUMS: dict[str, Function] = {
    "x + x": lambda x: x + x,
    "x - x": lambda x: x - 2 * x,
    "x + f(x)": lambda x: x + x.exp(),
    "f(x) + x": lambda x: x.exp() + x,
    "in place": lambda x: (2 * x).add_(x),
    "in place on itself": lambda x: (y := 2 * x).add_(y),
    "with a weight": lambda x: torch.add(x.exp(), x, alpha=-0.3),
    "less, with a weight": lambda x: torch.sub(x.exp(), x, alpha=0.3),
    "weight of zero": lambda x: torch.add(x.exp(), x, alpha=0),
    "a number": lambda x: x + 1.5,
    "from a number": lambda x: 1.5 - x,
    "number less twice": lambda x: torch.rsub(x, 2.0, alpha=3),
    "a tensor": lambda x: torch.ones(4, 1, dtype=x.dtype) - x,
    "of smaller": lambda x: x.mean((2, 3), keepdim=True) + x,
    "to smaller": lambda x: x - x.mean(1, keepdim=True),
    "smaller, weighted": lambda x: torch.add(x, x.sum((0, 1)), alpha=0.4),
    "outer": lambda x: x.mean(2, keepdim=True) + x.mean(3, keepdim=True),
    "one number to all": lambda x: x.sum() + x,
    "three ways": lambda x: x.relu() + x.sigmoid() + x,
    "towards a constant that is larger": lambda x: x.mean() + torch.ones(2, 3, dtype=x.dtype)[None],
}
PRODUCTS: dict[str, Function] = {
    "x * x": lambda x: x * x,
    "x * f(x)": lambda x: x * x.sigmoid(),
    "f(x) * x": lambda x: x.sigmoid() * x,
    "in place": lambda x: (2 * x).mul_(x.cos()),
    "x * x * x": lambda x: x * x * x,
    "a number": lambda x: 1.7 * x,
    "minus": lambda x: x * -1,
    "zero": lambda x: x * 0 + x.exp() * 0.5,
    "a scalar tensor": lambda x: x * torch.tensor(0.3, dtype=x.dtype),
    "per channel": lambda x: x * torch.arange(1.0, 4, dtype=x.dtype).reshape(3, 1, 1),
    "per column": lambda x: x * torch.arange(1.0, 6, dtype=x.dtype),
    "a mask": lambda x: x * (torch.arange(5) > 2),
    "integers": lambda x: x * torch.arange(5),
    "to a larger constant": lambda x: x.mean(1, keepdim=True) * torch.arange(1.0, 4, dtype=x.dtype).reshape(3, 1, 1),
    "squeeze and excite": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "excite and squeeze": lambda x: x.mean((2, 3), keepdim=True).sigmoid() * x,
    "outer": lambda x: x.mean(2, keepdim=True) * x.mean(3, keepdim=True),
    "one number": lambda x: x * x.sum(),
    "norm": lambda x: x / (1 + x.square().sum(1, keepdim=True)).sqrt(),
    "divided by a number": lambda x: x / 3,
    "divided by a tensor": lambda x: x / torch.arange(1.0, 6, dtype=x.dtype),
    "divided in place": lambda x: (2 * x).div_(7),
    "divisor": lambda x: 2 / (x * x + 1),
    "both divided": lambda x: x.exp() / (x * x + 1),
    "straight through": lambda x: x + (x.round() - x).detach(),
    "detached factor": lambda x: x * x.exp().detach(),
    "without grad": lambda x: x * _without_grad(x),
}


def _without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.exp().mean(1, keepdim=True)


@pytest.mark.parametrize("name", SUMS)
def test_sums(name: str) -> None:
    assert_exact(SUMS[name], shape=SHAPE)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    net, x = network(PRODUCTS[name]), a_point(*SHAPE)
    program = lower(net, x)
    assert set(program.unknown) <= {"div"}
    assert_both_products_are_dense(program, dense(net, x))
