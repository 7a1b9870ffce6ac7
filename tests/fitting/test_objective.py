"""The objective and its derivative against a cascade that autograd differentiates twice, and against finite differences."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from oracles.encoded import relative
from oracles.small_nets import image, small_encoder
from torch import Tensor

from pullback.fitting import objective
from pullback.fitting.draws import draw_channels, generator
from pullback.fitting.objective import (
    Picture,
    correctors_of,
    distance,
    floor,
    judge,
    judge_whole,
    levels_of,
    sample,
    start_of,
)
from pullback.fitting.recipe import LOSSES, MODES, Recipe
from pullback.inversion import Inverter
from pullback.inversion.correctors import EPS

ENCODER = small_encoder()
CHANNELS = levels_of(ENCODER)
X = image()
STEPS = [ENCODER.module.layer1, ENCODER.module.layer2, ENCODER.module.layer3]


def parameters(seed: int = 3) -> Tensor:
    """gamma about 1.5 and beta about 0, at random."""
    source = torch.Generator().manual_seed(seed)
    start = start_of(CHANNELS)
    return start + torch.rand(start.shape, generator=source, dtype=torch.float64) * 0.8 - 0.2


def naive(at: Tensor, recipe: Recipe, draw: torch.Generator) -> Tensor:
    """The objective letter by letter: J^T w by autograd with a graph of its own, so that it can be differentiated again."""
    points = [X]
    for step in STEPS:
        points.append(step(points[-1][None])[0].detach())
    deepest = points[-1]
    if recipe.mode == "additive":
        drawn, shares = draw_channels(deepest.abs().mean((1, 2)), recipe.channels, draw)
        seeds = [deepest * torch.nn.functional.one_hot(c, len(deepest))[:, None, None] for c in drawn]
    else:
        seeds, shares = [deepest], torch.ones(1, dtype=torch.float64)
    cuts = [0, *torch.tensor(CHANNELS).repeat_interleave(2).cumsum(0).tolist()]
    parts = [at[a:b] for a, b in pairwise(cuts)]
    total = torch.zeros_like(X)
    for share, seed in zip(shares, seeds, strict=True):
        v = seed
        for k in (2, 1, 0):
            leaf = points[k].clone().requires_grad_()
            (v,) = torch.autograd.grad(STEPS[k](leaf[None])[0], leaf, v, create_graph=True)
            centred = v - v.mean((1, 2), keepdim=True)
            square = centred.square().mean((1, 2), keepdim=True)
            normaliser = (square + EPS * square.mean()).sqrt()
            if recipe.mode == "frozen":
                normaliser = normaliser.detach()
            v = parts[2 * k][:, None, None] * centred / normaliser + parts[2 * k + 1][:, None, None]
        total = total + share * v
    return (total - X).abs().mean() if recipe.loss == "l1" else (total - X).square().mean()


def compare(recipe: Recipe) -> None:
    leaf = parameters().requires_grad_()
    expected = naive(leaf, recipe, generator("test"))
    (slope,) = torch.autograd.grad(expected, leaf)
    losses, gradient = sample(Picture.open(ENCODER, X, 8), parameters(), CHANNELS, recipe, generator("test"))
    assert losses.loss == pytest.approx(float(expected.detach()), rel=1e-9)
    assert relative(gradient, slope) < 1e-8
    assert (gradient.dtype, gradient.shape) == (torch.float64, (2 * sum(CHANNELS),))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradient_are_those_of_a_cascade_differentiated_twice(mode: str, loss: str) -> None:
    compare(Recipe(mode=mode, loss=loss, channels=5))


@pytest.mark.parametrize("fault", ["no derivative through J^T", "J^T forgotten in the derivative's scale"])
def test_a_fault_in_the_derivative_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault.startswith("no"):
        monkeypatch.setattr(objective._Differentiable, "vm", lambda self, w: self.jacobian.vm(w.detach()))
    else:
        true = objective._PullBack.backward

        def wrong(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
            return true(ctx, *grads)[0] * 1.001, None

        monkeypatch.setattr(objective._PullBack, "backward", staticmethod(wrong))
    with pytest.raises(AssertionError):
        compare(Recipe(channels=5))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mode", ["additive", "fused"])
def test_gradient_by_finite_differences(mode: str, loss: str) -> None:
    recipe, picture, at = Recipe(mode=mode, loss=loss, channels=4), Picture.open(ENCODER, X, 8), parameters()
    _, gradient = sample(picture, at, CHANNELS, recipe, generator("test"))
    direction = torch.randn(at.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    h = 1e-6
    up, down = (judge(picture, at + s * h * direction, CHANNELS, recipe, generator("test")).loss for s in (1, -1))
    assert float(gradient @ direction) == pytest.approx((up - down) / (2 * h), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_without_biases_the_zero_seed_draws_nothing(mode: str, loss: str) -> None:
    losses = judge(
        Picture.open(ENCODER, X, 8), start_of(CHANNELS), CHANNELS, Recipe(mode=mode, loss=loss), generator(1)
    )
    assert losses.zero == pytest.approx(float((X.abs() if loss == "l1" else X**2).mean()), rel=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_zero_seed_is_the_null_picture_that_inverters_show(mode: str) -> None:
    at = parameters()
    losses = judge(Picture.open(ENCODER, X, 8), at, CHANNELS, Recipe(mode=mode), generator(1))
    with Inverter(ENCODER, mode=mode, correctors=correctors_of(at, CHANNELS, X))(X) as session:
        shown = session.stage(3)
    assert losses.zero == pytest.approx(float(distance(shown.null, X, "l1")), rel=1e-9)
    if mode != "additive":
        assert losses.loss == pytest.approx(float(distance(shown.tensor, X, "l1")), rel=1e-9)


def test_whole_loss_is_that_of_the_additive_picture() -> None:
    at = parameters()
    with Inverter(ENCODER, mode="additive", correctors=correctors_of(at, CHANNELS, X))(X) as session:
        shown = session.stage(3).tensor
    found = judge_whole(Picture.open(ENCODER, X, 8), at, CHANNELS, Recipe(channels=3))
    assert found == pytest.approx(float(distance(shown, X, "l1")), rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_single_colour_is_nearer_than_the_floor(loss: str) -> None:
    found = float(floor(X, loss))
    grid = torch.linspace(-3, 3, 2001, dtype=torch.float64)
    each = (X.flatten(1)[:, None] - grid[:, None]).abs() ** (1 if loss == "l1" else 2)
    best = float(each.mean(2).min(1).values.mean())
    assert found <= best
    assert found == pytest.approx(best, rel=1e-3)
    assert float(floor(torch.full((3, 4, 5), 0.25), loss)) == 0


def test_a_picture_takes_one_forward_pass_and_equals_the_features() -> None:
    picture = Picture.open(ENCODER, X, 8)
    for k, (jacobian, features) in enumerate(zip(picture.chain, ENCODER.levels(X)[1:], strict=True)):
        assert relative(jacobian.value, features) < 1e-12, k
        assert jacobian.forwards == 1
    sample(picture, parameters(), CHANNELS, Recipe(), generator(1))
    assert [j.forwards for j in picture.chain] == [1, 1, 1]


def test_nothing_of_the_encoder_takes_a_gradient() -> None:
    sample(Picture.open(ENCODER, X, 8), parameters(), CHANNELS, Recipe(), generator(1))
    assert all(p.grad is None and not p.requires_grad for p in ENCODER.module.parameters())
