"""Max-pooling: overlap, ties, ceil mode, dilation, gates folded through, against the dense Jacobian and by hand."""

from __future__ import annotations

import pytest
import torch
from oracles.lowered import a_point, assert_both_products_are_dense, dense, lower, network
from torch import nn

POOLS = {
    "tiles": nn.MaxPool2d(2),
    "overlap": nn.MaxPool2d(3, 2, 1),
    "overlap of all": nn.MaxPool2d(3, 1, 1),
    "ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "ceil, padded": nn.MaxPool2d((2, 3), 2, (1, 0), ceil_mode=True),
    "dilated": nn.MaxPool2d(2, 1, dilation=(2, 3)),
    "gaps": nn.MaxPool2d(1, 3),
    "one axis": nn.MaxPool2d((1, 3), (1, 2)),
}


@pytest.mark.parametrize("name", POOLS)
def test_windows(name: str) -> None:
    x = a_point(3, 7, 6)
    for function in (
        lambda x, pool: pool(x),
        lambda x, pool: pool(x.relu()),
        lambda x, pool: pool(0.3 * x.relu()).sigmoid(),
        lambda x, pool: pool(-2 * x),
        lambda x, pool: pool((x * x.detach()).relu()) + pool(x),
    ):
        net = network(function, POOLS[name])
        program = lower(net, x)
        assert program.unknown == ()
        assert_both_products_are_dense(program, dense(net, x))


@pytest.mark.parametrize("name", POOLS)
def test_ties(name: str) -> None:
    """Whole numbers and flat black regions, where several places of a window are largest."""
    for x in (a_point(2, 7, 6).round(), torch.zeros(2, 7, 6, dtype=torch.float64), -a_point(2, 7, 6).abs()):
        for function in (lambda x, pool: pool(x), lambda x, pool: pool(x.relu())):
            net = network(function, POOLS[name])
            assert_both_products_are_dense(lower(net, x), dense(net, x))


def test_one_window_by_hand() -> None:
    """The largest of 1 5 / 3 2 is at the upper right; halved before it, its slope is a half; a closed gate leaves nothing."""
    x = torch.tensor([[[1.0, 5], [3, 2]]], dtype=torch.float64)
    w = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert lower(network(lambda x: nn.MaxPool2d(2)(x / 2)), x).pull(w).flatten().tolist() == [0, 0.5, 0, 0]
    assert lower(network(lambda x: nn.MaxPool2d(2)(x.relu())), -x).pull(w).flatten().tolist() == [0, 0, 0, 0]


def test_indices_that_are_read() -> None:
    """Unpooling puts numbers back to the places that they came from."""

    def there_and_back(x, pool, unpool):  # type: ignore[no-untyped-def]
        y, at = pool(x)
        return unpool(y * y, at)

    net = network(there_and_back, nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2))
    x = a_point(3, 4, 6)
    program = lower(net, x)
    assert program.unknown == ("max_unpool2d",)
    assert_both_products_are_dense(program, dense(net, x))
