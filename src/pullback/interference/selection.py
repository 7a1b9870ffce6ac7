"""Channels chosen by the volume of their covariance (Algorithm 1): greedy selection is a pivoted Cholesky factorisation.

The next channel is the one with the largest diagonal of the Schur complement, its variance given those chosen before; the
product of these variances is the determinant of the chosen covariance. Blocked, so that nearly all of the work is one matrix
product for every `_PANEL` channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pullback.errors import OptionError, StageError
from pullback.measures.values import tensor_of

_PANEL = 64
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


def pivoted(schur: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k pivots of a symmetric positive semidefinite matrix (which is overwritten) and the diagonals that they had."""
    diagonal = schur.diagonal().numpy().copy()
    least = _ROUNDING * diagonal.max()
    channels, gains = np.empty(k, np.int64), np.empty(k)
    panel = np.zeros((_PANEL, len(schur)))  # rows of the factor that the Schur complement does not hold yet
    rows = schur.numpy()
    for done in range(k):
        at = done % _PANEL
        if at == 0 and done:
            filled = torch.from_numpy(panel)
            schur.addmm_(filled.mT, filled, alpha=-1)
        pivot = int(diagonal.argmax())  # the first of equals
        gain = diagonal[pivot]
        if not gain > least:
            raise OptionError(
                f"only {done} channels vary independently over these images, fewer than k={k}: give more images, or a ridge"
            )
        panel[at] = (rows[pivot] - panel[:at, pivot] @ panel[:at]) / np.sqrt(gain)
        diagonal -= panel[at] ** 2
        diagonal[pivot] = -np.inf
        channels[done], gains[done] = pivot, gain
    return torch.from_numpy(channels), torch.from_numpy(gains)
