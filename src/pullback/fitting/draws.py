"""What is drawn at random in a fit. Each draw has a generator of its own, so that it depends on its place alone."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def generator(*place: int | str) -> torch.Generator:
    """A generator on the CPU seeded from what is drawn and where: ("channels", seed, step, index)."""
    digest = hashlib.sha256(repr(place).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def draw_channels(alpha: Tensor, count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` channels drawn with probability alpha (C,), each once, and their shares of the draws: (K,), (K,), K <= count.

    `sum_k share_k B_k` is then an unbiased estimate of `sum_c alpha_c B_c`; a channel drawn twice is pulled back once.
    """
    reached = alpha.double().cpu().cumsum(0)
    at = torch.rand(count, generator=source, dtype=torch.float64, device="cpu")
    # The first channel whose cumulated share exceeds the number: dead channels, which add nothing, are never met.
    drawn, times = torch.searchsorted(reached / reached[-1], at, right=True).unique(return_counts=True)
    return drawn.to(alpha.device), (times / count).to(alpha)


def place_in_order(position: int, count: int, seed: int) -> int:
    """Which of `count` pictures stands at a position of the endless order: every epoch a new permutation."""
    epoch, place = divmod(position, count)
    return int(_permutation(count, seed, epoch)[place])


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator("order", seed, epoch), device="cpu")
