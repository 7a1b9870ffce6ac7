"""How alike two pictures are, beyond their mean and contrast."""

from __future__ import annotations

import math

from torch import Tensor


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation over all values of two tensors of one shape, in [-1, 1]; nan where one of them is constant."""
    x, y = (t.detach().double().flatten() for t in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 else math.nan
