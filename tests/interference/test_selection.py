"""Channel selection against LAPACK's pivoted Cholesky factorisation, exhaustive search and hand-computed cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import lapack

from pullback.errors import OptionError, StageError
from pullback.interference import covariance, select_channels


def some_features(images: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    return torch.randn(images, channels, generator=generator, dtype=torch.float64) @ mixing


def test_covariance_is_numpy_s() -> None:
    x = some_features(9, 4)
    assert np.allclose(covariance(x), np.cov(x.numpy(), rowvar=False), rtol=1e-12)
    maps = torch.randn(5, 3, 2, 4)
    assert torch.allclose(covariance(maps), torch.cov(maps.double().mean((2, 3)).mT))


@pytest.mark.parametrize("k", [1, 63, 64, 65, 150])
def test_the_pivots_are_lapack_s(k: int) -> None:
    x = some_features(400, 150)
    _, pivots, _, _ = lapack.dpstrf(covariance(x).numpy(), lower=1)
    found = select_channels(x, k)
    assert found.channels.tolist() == (pivots[:k] - 1).tolist()
    chosen = covariance(x)[found.channels][:, found.channels]
    assert found.log_det == pytest.approx(float(torch.linalg.slogdet(chosen).logabsdet), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), channels=st.integers(2, 9), data=st.data())
def test_every_choice_is_the_best_next_one(seed: int, channels: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, channels))
    ridge = data.draw(st.sampled_from([0.0, 0.3]))
    x = some_features(30, channels, seed)
    sigma = covariance(x) + ridge * torch.eye(channels, dtype=torch.float64)
    chosen: list[int] = []
    for _ in range(k):
        chosen.append(max(set(range(channels)) - set(chosen), key=lambda c: float(_det(sigma, [*chosen, c]))))
    assert select_channels(x, k, ridge=ridge).channels.tolist() == chosen


def test_ties_go_to_the_lowest_index() -> None:
    column = torch.tensor([1.0, -1.0, 2.0, 0.0])
    other = torch.tensor([1.0, 1.0, 0.0, -2.0])
    x = torch.stack([0 * column, column, column, other], 1)
    assert select_channels(x, 2).channels.tolist() == [3, 1]
    assert select_channels(x, 4, ridge=0.5).channels.tolist() == [3, 1, 2, 0]


def test_greedy_is_within_its_bound_of_the_best() -> None:
    x = some_features(50, 7)
    sigma = covariance(x) + torch.eye(7, dtype=torch.float64)
    best = max(float(_det(sigma, list(s)).log()) for s in itertools.combinations(range(7), 3))
    assert (1 - 1 / np.e) * best <= select_channels(x, 3, ridge=1.0).log_det <= best + 1e-9


def test_bad_arguments_are_named() -> None:
    x = some_features(5, 8)
    for k in (0, 9, True, 2.0):
        with pytest.raises(OptionError, match="k="):
            select_channels(x, k)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="only 4 channels"):
        select_channels(x, 5)
    with pytest.raises(OptionError, match="ridge=-1"):
        select_channels(x, 2, ridge=-1)
    with pytest.raises(StageError, match=r"\(8,\)"):
        select_channels(x[0], 2)


def _det(sigma: torch.Tensor, chosen: list[int]) -> torch.Tensor:
    return torch.linalg.det(sigma[chosen][:, chosen])
