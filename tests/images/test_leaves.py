"""Synthetic pictures: their promised statistics, and that a seed is a picture."""

from __future__ import annotations

import numpy as np
import pytest

from pullback.images.leaves import dead_leaves

ROOT = np.linalg.cholesky(np.array([[0.06, 0.05, 0.04], [0.05, 0.06, 0.05], [0.04, 0.05, 0.07]]))


def test_a_seed_is_a_picture() -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the global generator must not be touched
    first, again, other = dead_leaves(3, (40, 56), ROOT), dead_leaves(3, (40, 56), ROOT), dead_leaves(4, (40, 56), ROOT)
    assert first.shape == (3, 40, 56) and np.isfinite(first).all()
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_colours_have_about_the_covariance_that_was_asked_for() -> None:
    values = np.stack([dead_leaves(seed, (32, 32), ROOT) for seed in range(400)]).transpose(1, 0, 2, 3).reshape(3, -1)
    covariance, wanted = np.cov(values), ROOT @ ROOT.T
    assert np.abs(values.mean(1)).max() < 0.05
    assert (np.diag(covariance) / np.diag(wanted)).min() > 0.8 and (np.diag(covariance) / np.diag(wanted)).max() < 2
    correlations, asked = (c / np.sqrt(np.outer(np.diag(c), np.diag(c))) for c in (covariance, wanted))
    assert np.abs(correlations - asked).max() < 0.15


def test_power_falls_with_frequency_as_in_photographs() -> None:
    """Between f^-1.5 and f^-3.5 from 2 to 16 cycles a picture; white noise would have slope 0."""
    grey = np.stack([dead_leaves(seed, (64, 64), ROOT).mean(0) for seed in range(80)])
    power = (np.abs(np.fft.rfft2(grey - grey.mean((1, 2), keepdims=True))) ** 2).mean(0)
    f = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64)) * 64
    chosen = (f >= 2) & (f <= 16)
    slope = np.polyfit(np.log(f[chosen]), np.log(power[chosen]), 1)[0]
    assert -3.5 < slope < -1.5


@pytest.mark.parametrize(("size", "channels"), [((8, 8), 1), ((5, 31), 2), ((16, 16), 6)])
def test_any_size_and_number_of_channels(size: tuple[int, int], channels: int) -> None:
    assert dead_leaves(0, size, np.eye(channels)).shape == (channels, *size)
