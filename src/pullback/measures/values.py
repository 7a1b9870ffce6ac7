"""What a caller measures, a tensor or anything that numpy takes for an array of numbers, as a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.errors import PullbackError


def tensor_of(values: Any, what: str, error: type[PullbackError]) -> Tensor:
    """A dense real tensor as it is; arrays, nested lists and Pillow pictures copied, as float64 on the CPU. Raises `error`."""
    if isinstance(values, Tensor):
        if values.is_complex() or values.is_meta or values.layout is not torch.strided:
            kind = str(values.dtype if values.is_complex() else "meta" if values.is_meta else values.layout)
            raise error(f"{what}: expected a dense tensor of real numbers, got a {kind.removeprefix('torch.')} one")
        return values
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"its values are of type {array.dtype}")
    except (TypeError, ValueError) as refused:
        raise error(
            f"{what} of type {type(values).__name__} cannot be read as real numbers ({refused}); give a tensor or an array"
        ) from refused
    return torch.from_numpy(array.astype(np.float64))
