"""Random numbers that stay the same for ever: the raw 64-bit stream of PCG64, whose order NumPy guarantees.

NumPy promises to keep the streams of its bit generators and of `SeedSequence`, but not those of the distributions on
top (its policy NEP 19). So the distributions needed for drawing, uniform ones only, are made here from the raw words.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]
T = TypeVar("T")


class Dice:
    """Uniform numbers from a key of non-negative integers; equal keys roll equal numbers, other keys independent ones."""

    def __init__(self, *key: int) -> None:
        self._words = np.random.PCG64(np.random.SeedSequence(key))

    def field(self, *shape: int) -> Field:
        """An array of the given shape, uniform in [0, 1)."""
        words = self._words.random_raw(prod(shape)) >> np.uint64(11)
        return (words.astype(np.float64) * 2.0**-53).reshape(shape)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number, uniform in [low, high)."""
        return low + (high - low) * ((self._words.random_raw() >> 11) * 2.0**-53)

    def integer(self, count: int) -> int:
        """One of 0 .. count - 1, each equally often."""
        return int(self.uniform(0, count))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def sign(self) -> float:
        """-1.0 or 1.0, each half of the time."""
        return 1.0 if self.chance(0.5) else -1.0

    def choice(self, options: Sequence[T]) -> T:
        """One of the options, each equally often."""
        return options[self.integer(len(options))]
