"""Paired bootstrap intervals of a mean over images: expanded percentile intervals (Hesterberg 2015), which keep their level
when there are few images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 10_000
CONFIDENCE = 0.95
FEW = 8  # values below which resampling cannot reach the level of its intervals


@dataclass(frozen=True)
class Interval:
    """The mean of `count` values and the ends of its interval; NaN where there are too few: 1 for the mean, 2 for the ends."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap(values: Iterable[float | None], *, seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """The interval of the mean of one value for each image; None and NaN are left out and not counted.

    For a paired comparison pass the differences: the images are drawn again, so both methods see the same ones.
    """
    known = np.array([v for v in values if v is not None and math.isfinite(v)], dtype=np.float64)
    n = len(known)
    if n < 2:
        return Interval(float(known[0]) if n else math.nan, math.nan, math.nan, n)
    drawn = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    means = known[drawn].mean(1)
    # The spread of resampled means is too small by sqrt((n - 1) / n), and normal where Student's t belongs.
    tail = stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf((1 - confidence) / 2, n - 1))
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(float(known.mean()), float(low), float(high), n)


def differences(a: Iterable[float | None], b: Iterable[float | None]) -> list[float | None]:
    """a - b of each image, None where either is missing."""
    return [None if x is None or y is None else x - y for x, y in zip(a, b, strict=True)]
