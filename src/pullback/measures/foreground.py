"""Foreground energy proportion, equation (95): the share of a picture's energy inside a mask, beside the mask's area."""

from __future__ import annotations

import math
from dataclasses import dataclass

from numpy.typing import ArrayLike
from torch import Tensor

from pullback.errors import ImageError, MaskError
from pullback.measures.values import tensor_of
from pullback.pictures import Picture


@dataclass(frozen=True)
class ForegroundEnergy:
    """share: energy inside the mask over all energy; area: the mask's share of the image; both in [0, 1] or nan."""

    share: float
    area: float

    @property
    def lift(self) -> float:
        """share / area: 1 when the picture does not care about the mask."""
        return self.share / self.area if self.area else math.nan


def foreground_energy(picture: Picture | Tensor | ArrayLike, mask: Tensor | ArrayLike) -> ForegroundEnergy:
    """FEP(X, M) = sum_{p in M} ||X(p)||^2 / sum_p ||X(p)||^2 over colours, not centred (95).

    picture: (C, H, W), or a map (H, W). mask: (H, W), boolean or in [0, 1]; NaN means unknown and leaves both sums.
    Either may be an array. An empty mask or a picture without energy gives nan. Raises MaskError when sizes or values
    do not fit, MaskError or ImageError for what holds no numbers.
    """
    x = picture.tensor if isinstance(picture, Picture) else tensor_of(picture, "a picture", ImageError)
    energy = x.detach().double().square()
    energy = energy.sum(-3) if x.ndim > 2 else energy
    m = tensor_of(mask, "a mask", MaskError).to(energy)
    if tuple(m.shape) != tuple(energy.shape):
        raise MaskError(
            f"mask of size {tuple(m.shape)} for a picture of size {tuple(energy.shape)}; both must be (H, W) alike"
        )
    known = ~m.isnan()
    if bool(((m < 0) | (m > 1))[known].any()):
        raise MaskError(
            f"mask values reach from {float(m[known].min()):g} to {float(m[known].max()):g}; expected [0, 1], or NaN for unknown"
        )
    inside, total = float((energy * m)[known].sum()), float(energy[known].sum())
    area = float(m[known].mean()) if bool(known.any()) else math.nan
    return ForegroundEnergy(inside / total if total > 0 and area > 0 else math.nan, area)
