"""What the table of rules does not hold: operations left to autograd, and writes through views, which are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles.lowered import a_point, assert_both_products_are_dense, dense, lower, network
from torch import Tensor
from torch.nn import functional as F

from pullback.adjoint import Unsupported

Function = Callable[[Tensor], Tensor]
SHAPE = (3, 4, 5)
WITHOUT_RULE: dict[str, tuple[Function, tuple[str, ...]]] = {
    "group norm": (lambda x: F.group_norm(x[:, :2], 2), ("native_group_norm",)),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), ("upsample_bilinear2d",)),
    "nearest": (lambda x: F.interpolate(x, size=(7, 3)), ("upsample_nearest2d",)),
    "reflection": (lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"), ("reflection_pad2d",)),
    "log softmax": (lambda x: x.log_softmax(1), ("log_softmax",)),
    "cumulated": (lambda x: x.cumsum(2).exp(), ("cumsum",)),
    "gathered": (lambda x: x[:, [2, 0, 0]], ("index",)),
    "flipped": (lambda x: x.exp().flip(3), ("flip",)),
    "largest of channels": (lambda x: x.amax(1, keepdim=True) + x, ("amax",)),
    "sorted": (lambda x: x.sort(-1).values, ("sort",)),
    "topk": (lambda x: x.topk(2, 1)[0] * 2, ("topk",)),
    "variance": (lambda x: x.var((2, 3)), ("var",)),
    "norm": (lambda x: x / x.norm(dim=1, keepdim=True), ("linalg_vector_norm", "div")),
    "unfold": (lambda x: F.unfold(x, 2), ("im2col",)),
    "adaptive max pool": (lambda x: F.adaptive_max_pool2d(x, 2), ("adaptive_max_pool2d",)),
    "max pool of a line": (lambda x: F.max_pool1d(x[0], 2)[None], ("max_pool2d_with_indices",)),
    "volume pool": (lambda x: F.avg_pool3d(x, 2), ("avg_pool3d",)),
    "roll of all": (lambda x: x.roll(7), ("roll",)),
    "in place, no rule": (lambda x: (2 * x).cumsum_(2), ("cumsum",)),
    "two with two": (lambda x: torch.cat(torch.aminmax(x, dim=2), 1), ("aminmax",)),
    "of lists": (lambda x: sum(x.unbind(2)), ("unbind",)),
    "stacked": (lambda x: torch.stack([x, x.exp()], 2), ("stack",)),
    "halves": (lambda x: F.glu(x.repeat(1, 1, 2, 1), 2), ("repeat", "glu")),
}


@pytest.mark.parametrize("name", WITHOUT_RULE)
def test_what_has_no_rule_is_left_to_autograd(name: str) -> None:
    function, unknown = WITHOUT_RULE[name]
    net, x = network(function), a_point(*SHAPE)
    program = lower(net, x)
    assert set(program.unknown) <= set(unknown)
    assert_both_products_are_dense(program, dense(net, x), 1e-12)


VIEWS_WRITTEN: dict[str, Function] = {
    "a slice": lambda x: _written(2 * x, lambda y: y[:, :2].mul_(3)),
    "a view of all": lambda x: _written(2 * x, lambda y: y.view(-1).relu_()),
    "filled": lambda x: _written(2 * x, lambda y: y[:, 0].zero_()),
    "an empty one, filled from x": lambda x: _filled(x),
    "base, then the view": lambda x: _through_a_view(x),
    "circular padding": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
}


def _written(y: Tensor, write: Callable[[Tensor], Tensor]) -> Tensor:
    write(y)
    return y * 2


def _filled(x: Tensor) -> Tensor:
    made = torch.zeros(1, 6, 4, 5, dtype=x.dtype)
    made[:, ::2] = x
    made[:, 1::2] = -x * x
    return made.exp()


def _through_a_view(x: Tensor) -> Tensor:
    y = 2 * x
    seen = y.view(3, 20)
    y.mul_(x)
    return seen[None] * 2


@pytest.mark.parametrize("name", VIEWS_WRITTEN)
def test_writes_through_views_are_refused(name: str) -> None:
    with pytest.raises(Unsupported, match="another name"):
        lower(network(VIEWS_WRITTEN[name]), a_point(*SHAPE))


def test_a_written_view_that_is_itself_read() -> None:
    """The base is not looked at again: nothing to refuse."""
    net, x = network(lambda x: (2 * x)[:, 1:].mul_(x[:, :2]) + x[:, 1:]), a_point(*SHAPE)
    assert_both_products_are_dense(lower(net, x), dense(net, x))


@pytest.mark.parametrize("function", [lambda x: x.detach() * 2, lambda x: (x > 0).double(), lambda x: x.round()])
def test_without_any_derivative(function: Function) -> None:
    try:
        program = lower(network(function), a_point(*SHAPE))
    except Unsupported:
        return
    assert not program.pull(a_point(2, *SHAPE, seed=1)).any()


def test_what_changes_its_precision_on_the_way_is_refused() -> None:
    net, x = network(lambda x: x.float().mean((2, 3), dtype=torch.float64)), a_point(*SHAPE)
    with pytest.raises(Unsupported, match=r"float32 of torch\.float64"):
        lower(net, x)
