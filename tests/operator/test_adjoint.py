from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pullback.errors import OptionError
from pullback.operator import adjoint_test


@dataclass
class Pair:
    """Two matrices that claim to be each other's transpose."""

    forward: Tensor
    back: Tensor

    @property
    def in_shape(self) -> tuple[int, ...]:
        return (self.forward.shape[1],)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.forward.shape[0],)

    def mv(self, v: Tensor) -> Tensor:
        return self.forward @ v

    def vm(self, w: Tensor) -> Tensor:
        return self.back @ w


def matrix(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_a_true_adjoint_passes() -> None:
    assert adjoint_test(Pair(matrix(30, 20), matrix(30, 20).T)) < 1e-15


@pytest.mark.parametrize(
    ("wrong", "least"),
    [
        (lambda A: -A.T, 0.01),
        (lambda A: 2 * A.T, 0.01),
        (lambda A: A.T.flip(0), 0.01),
        (lambda A: 0 * A.T, 0.01),
        (lambda A: A.T.index_put((torch.tensor(3), torch.tensor(4)), torch.zeros(()).double()), 1e-5),
        (lambda A: (1 + 1e-9) * A.T, 1e-12),
    ],
)
def test_a_planted_error_is_seen(wrong, least: float) -> None:  # type: ignore[no-untyped-def]
    A = matrix(30, 20)
    assert adjoint_test(Pair(A, wrong(A))) > least


def test_the_discrepancy_by_hand() -> None:
    # One number each: |a v w - v b w| / (|a v w| + |v b w|) = |a - b| / (|a| + |b|), whatever v and w are.
    assert adjoint_test(Pair(torch.tensor([[3.0]]).double(), torch.tensor([[1.0]]).double())) == pytest.approx(0.5)


def test_zero_maps_and_numbers_that_are_none() -> None:
    zero = torch.zeros(3, 2, dtype=torch.float64)
    assert adjoint_test(Pair(zero, zero.T)) == 0
    assert adjoint_test(Pair(zero / 0, zero.T)) != adjoint_test(Pair(zero / 0, zero.T))


def test_seeds_and_generators() -> None:
    pair = Pair(matrix(4, 3), 1.1 * matrix(4, 3).T)
    state = torch.get_rng_state()
    assert adjoint_test(pair, seed=1) == adjoint_test(pair, seed=torch.Generator().manual_seed(1))
    assert adjoint_test(pair, seed=1) != adjoint_test(pair, seed=2)
    assert torch.equal(state, torch.get_rng_state())


def test_the_largest_of_all_trials_is_returned() -> None:
    pair = Pair(matrix(4, 3), 1.1 * matrix(4, 3).T)
    generator = torch.Generator().manual_seed(1)
    assert adjoint_test(pair, seed=1, trials=4) == max(adjoint_test(pair, seed=generator, trials=1) for _ in range(4))


def test_no_trial_is_no_test() -> None:
    with pytest.raises(OptionError, match="trials=0"):
        adjoint_test(Pair(matrix(4, 3), matrix(4, 3).T), trials=0)
