"""Draws depend on their place alone, and the pictures drawn from them are unbiased."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.encoded import relative
from oracles.small_nets import image, small_encoder

from pullback.fitting.draws import draw_channels, generator, place_in_order
from pullback.fitting.objective import Picture, correctors_of, levels_of, start_of
from pullback.fitting.recipe import Recipe
from pullback.inversion.cascade import Cascade

ALPHA = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.125, 0.125, 0.0])


def test_draws_depend_on_the_place_and_not_on_the_order_of_calls() -> None:
    places = [("channels", 0, step, index) for step in (0, 1) for index in (0, 1)]
    forwards = [torch.rand(4, generator=generator(*p)).tolist() for p in places]
    backwards = [torch.rand(4, generator=generator(*p)).tolist() for p in reversed(places)]
    assert forwards == backwards[::-1]
    assert len({tuple(f) for f in forwards}) == 4


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=20).filter(lambda a: sum(a) > 0), st.integers(1, 9), st.integers(0)
)
def test_shares_sum_to_one_over_live_channels(energy: list[float], count: int, seed: int) -> None:
    alpha = torch.tensor(energy, dtype=torch.float64) / sum(energy)
    drawn, shares = draw_channels(alpha, count, generator(seed))
    assert float(shares.sum()) == pytest.approx(1)
    assert bool((alpha[drawn] > 0).all())
    assert len(set(drawn.tolist())) == len(drawn) <= count


def test_enumerated_draws_have_the_shares_of_alpha_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every eighth of [0, 1) once: shares are then the lengths of the channels' intervals."""
    monkeypatch.setattr(torch, "rand", lambda n, **kw: torch.arange(n, dtype=torch.float64) / n)
    drawn, shares = draw_channels(ALPHA, 8, generator(0))
    assert drawn.tolist() == [1, 2, 4, 5]
    assert shares.tolist() == ALPHA[drawn].tolist()


def test_the_mean_over_draws_is_the_whole_picture() -> None:
    encoder, x = small_encoder(), image()
    picture, channels = Picture.open(encoder, x, 8), levels_of(encoder)
    at = start_of(channels) + 0.3
    correctors = correctors_of(at, channels, x)
    each = Cascade(picture.chain, correctors).pull(picture.at.seeds(torch.arange(16)), 3)
    whole = picture.whole(correctors, 8)
    assert relative(torch.einsum("k,kchw->chw", picture.at.alpha, each), whole) < 1e-12

    def estimate(seed: int, alpha: Any = picture.at.alpha) -> torch.Tensor:
        drawn, shares = draw_channels(alpha, 4, generator(seed))
        return torch.einsum("k,kchw->chw", shares, each[drawn])

    drawn_picture, _ = picture.estimate(correctors, Recipe(channels=4), generator(5))
    assert relative(drawn_picture, estimate(5)) < 1e-12

    def error(alpha: torch.Tensor) -> float:
        """Of the mean of 2000 estimates, in standard errors (rms over pixels)."""
        made = torch.stack([estimate(s, alpha) for s in range(2000)])
        return float(((made.mean(0) - whole) / (made.std(0) / 2000**0.5)).square().mean().sqrt())

    assert error(picture.at.alpha) < 2.5
    live = (picture.at.alpha > 0).double()
    assert error(live / live.sum()) > 5  # drawn evenly, the mean is another picture


def test_order_visits_every_picture_once_an_epoch() -> None:
    epochs = [[place_in_order(7 * e + i, 7, 3) for i in range(7)] for e in range(4)]
    assert all(sorted(e) == list(range(7)) for e in epochs)
    assert len({tuple(e) for e in epochs}) > 1
    assert [place_in_order(i, 7, 4) for i in range(7)] != epochs[0]
