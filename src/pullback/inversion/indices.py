"""What a caller may number: whole numbers of any library's type, and units of a stage by three of them."""

from __future__ import annotations

import operator
from typing import Any

import torch

from pullback.errors import PullbackError, StageError


def index_of(value: Any, expected: str = "a whole number as index", error: type[PullbackError] = StageError) -> int:
    """`value` as a plain int. Raises `error` for what is no whole number, True and 1.0 included."""
    try:
        if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
            raise TypeError
        return operator.index(value)
    except TypeError:
        shape = getattr(value, "shape", ())
        said = f"a {type(value).__name__} of shape {tuple(shape)}" if shape else repr(value)
        raise error(f"expected {expected}, got {said}") from None


def unit_of(value: Any) -> tuple[int, ...]:
    """Several such. Raises StageError."""
    try:
        return tuple(map(index_of, value))
    except TypeError:
        raise StageError(f"expected a unit (channel, row, column), got {value!r}") from None
