"""Channels chosen by the volume of their covariance (Algorithm 1): greedy selection is a pivoted Cholesky factorisation.

The next channel is the one with the largest diagonal of the Schur complement, its variance given those chosen before; the
product of these variances is the determinant of the chosen covariance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pullback.errors import OptionError, StageError
from pullback.measures.values import tensor_of

_PANEL = 128
_LIKELY = 3 * _PANEL  # channels whose rows are made at the beginning of a panel; few others are chosen within it
_ROUNDING = 1e-12  # of the largest variance: what a Schur complement of less than it says is rounding


@dataclass(frozen=True, eq=False)
class Selection:
    """channels (k,) in the order of their choice; gains (k,): the conditional variance that each had when it was chosen.

    log_det: the log of the determinant of the chosen channels' covariance (plus ridge), the sum of log gains.
    """

    channels: Tensor
    gains: Tensor

    @property
    def log_det(self) -> float:
        return float(self.gains.log().sum())


def covariance(features: Tensor | ArrayLike) -> Tensor:
    """Covariance (C, C) over images, float64, of features (N, C), or of the spatial means of (N, C, H, W)."""
    x = tensor_of(features, "features", StageError).double()
    if x.dim() not in (2, 4) or len(x) < 2:
        raise StageError(
            f"features of shape {tuple(x.shape)}, where (N, C) or (N, C, H, W) of two images or more was expected"
        )
    x = x if x.dim() == 2 else x.mean((2, 3))
    x = x - x.mean(0)
    return x.mT @ x / (len(x) - 1)


def select_channels(features: Tensor | ArrayLike, k: int, *, ridge: float = 0.0) -> Selection:
    """k of C channels, greedily by the volume of their covariance over images; ties go to the lowest index.

    features: (N, C), or (N, C, H, W), whose spatial means count. With a ridge the objective is log det(Sigma_S + ridge I),
    which is monotone up to a constant and submodular where ridge >= 1 in units of the features, and only then is the greedy
    choice within 1 - 1/e of the best. Raises StageError, OptionError: also where fewer than k channels vary independently.
    """
    sigma = covariance(features)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(sigma):
        raise OptionError(f"k={k!r} channels of {len(sigma)}: give a whole number from 1 to {len(sigma)}")
    if not ridge >= 0:
        raise OptionError(f"ridge={ridge!r} must be 0 or above")
    sigma = sigma.cpu()
    sigma.diagonal().add_(ridge)
    return Selection(*pivoted(sigma, k))


def pivoted(sigma: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k pivots of a symmetric positive semidefinite matrix (C, C) and the diagonals that they had.

    A row of the Schur complement is made when its channel is chosen, so that channels that never are cost nothing. For each
    panel the rows of the likeliest are made together, by one matrix product.
    """
    rows, diagonal = sigma.numpy(), sigma.diagonal().numpy().copy()
    least = _ROUNDING * diagonal.max()
    channels, gains = np.empty(k, np.int64), np.empty(k)
    factor = np.zeros((k, len(rows)))
    for start in range(0, k, _PANEL):
        before = factor[:start]
        likely = np.argsort(diagonal)[-_LIKELY:]
        made = dict(zip(likely.tolist(), rows[likely] - _product(before[:, likely].T, before), strict=True))
        for done in range(start, min(start + _PANEL, k)):
            pivot = int(diagonal.argmax())  # the first of equals
            gain = diagonal[pivot]
            if not gain > least:
                raise OptionError(
                    f"only {done} channels vary independently over these images, fewer than k={k}: give more images, or a ridge"
                )
            row = made[pivot] if pivot in made else rows[pivot] - before[:, pivot] @ before
            panel = factor[start:done]
            factor[done] = (row - panel[:, pivot] @ panel) / np.sqrt(gain)
            diagonal -= factor[done] ** 2
            diagonal[pivot] = -np.inf
            channels[done], gains[done] = pivot, gain
    return torch.from_numpy(channels), torch.from_numpy(gains)


def _product(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """left @ right, by torch's BLAS and threads: numpy's own would stand in their way."""
    product: NDArray[np.float64] = (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()
    return product
