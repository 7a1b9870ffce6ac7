"""A picture to try things on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pullback.pictures import Display, Picture, Provenance


@pytest.fixture
def make() -> Callable[..., Picture]:
    """make(tensor, null, mode=..., ...): a picture in which unit mean and std make colours easy to compute by hand."""

    def picture(tensor: Tensor, null: Tensor | None = None, **fields: Any) -> Picture:
        channels = tensor.shape[-3] if tensor.dim() >= 3 else 3
        provenance = Provenance("net", "aa" * 32, "bb" * 32, {"eps": 1e-6, "shape": (3, 2)}, "0.0", 7)
        defaults: dict[str, Any] = {
            "mode": "cascade, frozen, unfitted", "called": "adjoint picture", "caption": "Stage 2.", "natural": True,
            "display": Display((0.5,) * channels, (0.25,) * channels), "figures": {"misfit": 0.25, "steps": 40},
            "notes": ("a note",), "provenance": provenance,
        }  # fmt: skip
        return Picture(tensor, null, **{**defaults, **fields})

    return picture


@pytest.fixture
def noise() -> Callable[..., Tensor]:
    """noise(3, 8, 8): normal numbers, the same each time."""
    return lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(0))
