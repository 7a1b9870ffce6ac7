"""How alike two pictures are, beyond their mean and contrast."""

from __future__ import annotations

import math

from numpy.typing import ArrayLike
from torch import Tensor

from pullback.errors import ImageError
from pullback.measures.values import tensor_of


def correlation(a: Tensor | ArrayLike, b: Tensor | ArrayLike) -> float:
    """Pearson correlation over all values of two tensors or arrays of one shape, in [-1, 1]; nan where one is constant.

    Raises ImageError for two shapes, or for what holds no numbers.
    """
    x, y = (tensor_of(values, "a picture", ImageError).detach().double() for values in (a, b))
    if x.shape != y.shape:
        raise ImageError(
            f"pictures of shapes {tuple(x.shape)} and {tuple(y.shape)} have no correlation; give one shape"
        )
    x, y = x.flatten(), y.flatten()
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 0 else math.nan
