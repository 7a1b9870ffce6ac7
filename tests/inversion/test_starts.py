"""Several starts of the blind inverse: the nearest is shown, and how far all lie apart is counted as by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from oracles.small_nets import image, small_encoder

from pullback.encoders import Encoder
from pullback.errors import OptionError
from pullback.graph import plain_autograd
from pullback.inversion import Inverter, Prior
from pullback.inversion.blind import blind_inverse, recipe_for
from pullback.inversion.iterative import SCATTER, scattered, spread
from pullback.inversion.leaky import leaky_rules


@pytest.fixture
def prior() -> Prior:
    return Prior.natural((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), tuple(image().shape[1:]))


def test_the_nearest_of_several_searches_is_shown(prior: Prior) -> None:
    """Each is the search of its own place, alone; the first is that of a single start."""
    encoder, x, steps = small_encoder(), image(), 12
    picture = Inverter(encoder, "blind", prior=prior, start="mean", starts=3, steps=steps)(x).stage(2)
    single = Inverter(encoder, "blind", prior=prior, start="mean", steps=steps)(x).stage(2)
    target = encoder.features(x, 2)[None]
    stride = x.shape[-2] / target.shape[-2]
    run = encoder.stretch(2, rules=partial(leaky_rules, slope=picture.figures["leak"]))
    with plain_autograd(x.device):
        alone = [
            blind_inverse(run, target, prior, recipe_for(stride), steps=steps, origin=origin[None].to(x))
            for origin in scattered(prior, 0, 3)
        ]
    misfits = [float(found.misfit) for found in alone]
    assert picture.figures["feature misfit"] == pytest.approx(min(misfits), rel=1e-4)
    assert torch.allclose(picture.tensor, alone[misfits.index(min(misfits))].x[0], atol=1e-4)
    assert single.figures["feature misfit"] == pytest.approx(misfits[0], rel=1e-4)
    assert picture.figures["spread of starts"] == pytest.approx(spread(torch.cat([f.x for f in alone])), rel=1e-3)
    assert picture.figures["starts"] == 3 and "starts" not in single.figures
    assert picture.figures["feature misfit"] <= single.figures["feature misfit"] * (1 + 1e-5)


def test_spread_by_hand() -> None:
    """Two pictures of the values 0, 4 and 2, 6: variance 2 at every pixel; their mean 1, 5 has the contrast 2."""
    assert spread(torch.tensor([[[[0.0, 4.0]]], [[[2.0, 6.0]]]])) == pytest.approx(math.sqrt(2) / 2)
    assert spread(torch.tensor([[[[0.0, 4.0]]], [[[0.0, 4.0]]]])) == 0
    assert spread(torch.zeros(3, 1, 4, 4)) == 0


def test_further_starts_are_scattered(prior: Prior) -> None:
    origins = scattered(prior, 7, 4)
    assert torch.equal(origins[:1], scattered(prior, 7, 1))
    assert float(origins[0].abs().max()) < 0.01
    assert [float(o.std()) for o in origins[1:]] == pytest.approx([SCATTER] * 3, rel=0.2)
    assert not torch.equal(origins[1], origins[2])
    assert len(scattered(prior, 2**63 - 1, 2)) == 2  # whose second seed would not fit


@pytest.mark.parametrize("starts", [0, -1, 1.0, True, "2", 17, None])
def test_numbers_of_starts_that_do_not_fit(starts: object) -> None:
    encoder: Encoder = small_encoder()
    with pytest.raises(OptionError, match=r"starts=.* from 1 to 16"):
        Inverter(encoder, "blind", starts=starts)  # type: ignore[arg-type]
