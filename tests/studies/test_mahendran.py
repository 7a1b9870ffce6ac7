"""Mahendran & Vedaldi: the loss against finite differences, the penalty by hand, and a search that finds what it is for."""

from __future__ import annotations

import pytest
import torch
from oracles.small_nets import image, small_encoder
from torch import Tensor

from pullback.measures import correlation
from pullback.studies import mahendran as room
from pullback.studies.mahendran import mahendran, penalty, search, variation_weight


def test_penalty_by_hand() -> None:
    u = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]], dtype=torch.float64)
    powers = (0 + 1 + 64 + 4096) / 4
    steps = (1 + 4) + (4 + 9)  # across, then down
    assert float(penalty(u, 0.5)) == pytest.approx(0.009 * powers + 0.5 * steps / 4)


def test_gradient_of_the_penalty_is_that_of_finite_differences() -> None:
    u = torch.randn(1, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = torch.randn(1, 3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaf = u.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(leaf, 5.0).sum(), leaf)
    step = 1e-6
    expected = (penalty(u + step * v, 5.0) - penalty(u - step * v, 5.0)) / (2 * step)
    assert float((gradient * v).sum()) == pytest.approx(float(expected), rel=1e-7)


def test_the_first_step_goes_down_the_whole_loss_as_finite_differences_see_it() -> None:
    """Adam's first step is the learning rate times the sign of the gradient: each coordinate tells."""
    encoder = small_encoder()
    run, target = encoder.stretch(2), encoder.features(image(), 2)[None]
    scale, start = target.flatten(1).norm(dim=1), image(3)[None] * 0.1
    found = search(run, target, scale, start, 5.0, steps=1, seconds=None).u

    def loss(u: Tensor) -> float:
        misfit = (encoder.features(u, 2) - target).flatten(1).norm(dim=1) / scale
        return float(misfit.square() + penalty(u, 5.0))

    generator = torch.Generator().manual_seed(5)
    for place in torch.randperm(start.numel(), generator=generator)[:25].tolist():
        nudge = torch.zeros_like(start).flatten()
        nudge[place] = 1e-5
        slope = (loss(start + nudge.view_as(start)) - loss(start - nudge.view_as(start))) / 2e-5
        moved = float((found - start).flatten()[place])
        assert moved == pytest.approx(-room.RATE * (1 if slope > 0 else -1), rel=1e-3)


def test_items_of_a_batch_do_not_feel_each_other() -> None:
    encoder = small_encoder()
    run, target = encoder.stretch(2), encoder.features(torch.stack([image(0), image(1)]), 2)
    scale, start = target.flatten(1).norm(dim=1), torch.stack([image(2), image(3)])
    both = search(run, target, scale, start, 0.5, steps=5, seconds=None).u
    alone = search(run, target[1:], scale[1:], start[1:], 0.5, steps=5, seconds=None).u
    assert torch.allclose(both[1:], alone, atol=1e-9)


def test_it_finds_a_smooth_image_from_its_first_stage() -> None:
    encoder = small_encoder()
    x = torch.nn.functional.interpolate(image(4)[None, :, :4, :4], (16, 16), mode="bicubic")[0]
    with mahendran(encoder, steps=300)(x) as session:
        picture = session.stage(1)
    assert picture.null is not None
    assert correlation(picture.tensor, x) > 0.7
    assert picture.figures["feature misfit"] < 0.3
    assert abs(correlation(picture.null, x)) < 0.4


def test_same_steps_same_bits_and_foreign_features_draw_the_other_image() -> None:
    encoder = small_encoder()
    method = mahendran(encoder, steps=20, seed=3)
    with method(image(0)) as session, method(image(1)) as other:
        first, again = session.stage(2).tensor, session.stage(2).tensor
        foreign = session.from_features(encoder.features(image(1), 2), 2).tensor
        assert torch.equal(first, again)
        assert torch.equal(foreign, other.stage(2).tensor)


def test_seconds_pick_a_number_of_steps() -> None:
    with mahendran(small_encoder(), seconds=0.2)(image()) as session:
        assert int(session.stage(1).figures["steps"]) >= room.FEWEST


def test_deeper_stages_want_more_smoothing() -> None:
    assert [variation_weight(s) for s in (2, 4, 8, 16, 32)] == [0.5, 0.5, 5, 5, 50]
