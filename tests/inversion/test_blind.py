"""The blind inverse on maps whose answer is known, and on a small convolutional net."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pullback.errors import NumericsError, OptionError
from pullback.inversion import blind
from pullback.inversion.blind import LADDER, Recipe, blind_inverse, recipe_for
from pullback.inversion.budget import check_budget
from pullback.inversion.prior import Prior

SIZE = (12, 10)
RECIPE = Recipe(power=2.0, f0=1.0, amplitude=1.0, tau=1e-6)


@pytest.fixture
def prior() -> Prior:
    return replace(
        Prior.natural((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), SIZE),
        mean=torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64),
    )


@pytest.fixture
def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU()
        )


def samples(prior: Prior, count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    z = torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return prior.mu(z) + prior.root(z)


def features_of(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)


def norms(features: Tensor) -> Tensor:
    return features.flatten(1).norm(dim=1)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_an_invertible_linear_map_is_inverted(prior: Prior) -> None:
    mix = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q

    def features(x: Tensor) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", mix, x.flip(-1)) + 0.5

    x = samples(prior, 2, torch.float64)
    result = blind_inverse(features, features(x), prior, replace(RECIPE, tau=0.0), steps=400)
    assert ((result.x - x).flatten(1).norm(dim=1) < 0.01 * x.flatten(1).norm(dim=1)).all()
    assert (result.misfit < 0.01).all()
    assert result.x.dtype == torch.float64


def test_the_penalty_pulls_towards_the_mean_picture(prior: Prior) -> None:
    """With features x itself: the stronger tau, the closer to mu; without the image's scale it would be the image."""
    x = samples(prior, 1)
    distances = []
    for tau in (0.0, 3e-3, 1.0):
        result = blind_inverse(lambda v: v, x, prior, replace(RECIPE, tau=tau), steps=100)
        distances.append(float((result.x - prior.mu(x)).norm() / (x - prior.mu(x)).norm()))
    assert distances[0] > 0.95 > distances[1] > 0.5 > distances[2]


def test_a_planted_image_is_found_again(prior: Prior, net: nn.Sequential) -> None:
    x = samples(prior, 2)
    result = blind_inverse(net, features_of(net, x), prior, RECIPE, steps=150)
    assert (result.misfit < 0.2 * result.history[0]).all()
    assert min(correlation(a, b) for a, b in zip(result.x, x, strict=True)) > 0.75
    assert correlation(result.x[0], x[1]) < 0.4


@pytest.fixture
def quiet_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start at mu itself, so that the first steps can be written down."""
    monkeypatch.setattr(blind, "START", 0.0)


def test_a_network_that_is_silent_at_the_mean_is_inverted_all_the_same(prior: Prior) -> None:
    """Without biases and with mu = 0 every gate is shut at mu, and no gradient would ever come through."""
    silent = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.ReLU())
    prior = replace(prior, mean=torch.zeros_like(prior.mean))
    target = silent(samples(prior, 1)).detach()
    assert not silent(prior.mu(target)[None]).any()
    result = blind_inverse(silent, target, prior, RECIPE, steps=60)
    assert result.misfit < 0.7 * result.history[0]


@pytest.mark.usefixtures("quiet_start")
def test_the_start_is_the_mean_picture_and_the_misfits_are_true(prior: Prior, net: nn.Sequential) -> None:
    target = features_of(net, samples(prior, 2))
    result = blind_inverse(net, target, prior, RECIPE, steps=3)
    norm = target.flatten(1).norm(dim=1)
    mu = prior.mu(target).expand(2, -1, -1, -1)
    assert result.history.shape == (3, 2)
    assert torch.allclose(result.history[0], (features_of(net, mu) - target).flatten(1).norm(dim=1) / norm)
    assert torch.allclose(result.misfit, (features_of(net, result.x) - target).flatten(1).norm(dim=1) / norm)


@pytest.mark.usefixtures("quiet_start")
def test_zero_features_take_the_scale_of_their_neighbour(prior: Prior, net: nn.Sequential) -> None:
    own = features_of(net, samples(prior, 1))
    target = torch.cat([own, torch.zeros_like(own)])
    scale = own.norm().expand(2)
    result = blind_inverse(net, target, prior, RECIPE, steps=40, scale=scale)
    mu = prior.mu(own)[None]
    assert torch.allclose(result.history[0, 1], features_of(net, mu).norm() / own.norm())
    assert torch.allclose(result.misfit[1], features_of(net, result.x[1:]).norm() / own.norm())
    assert result.misfit[1] < result.history[0, 1]
    with pytest.raises(OptionError, match="scale"):
        blind_inverse(net, target, prior, RECIPE, steps=40)


def test_neighbours_do_not_matter_and_nothing_is_random(prior: Prior, net: nn.Sequential) -> None:
    target = features_of(net, samples(prior, 3))
    state = torch.random.get_rng_state()
    pairs = [target[[0, 1]], target[[0, 2]] * 50, target[[0, 1]]]
    pairs[1][0] = target[0]
    first, other, again = (blind_inverse(net, pair, prior, RECIPE, steps=12) for pair in pairs)
    assert torch.equal(first.x[0], other.x[0]) and not torch.equal(first.x[1], other.x[1])
    assert torch.equal(first.x, again.x) and torch.equal(first.history, again.history)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_recipe_s_spectrum_replaces_the_prior_s(prior: Prior, net: nn.Sequential) -> None:
    target = features_of(net, samples(prior, 1))
    twin = blind_inverse(net, target, replace(prior, power=3.5, f0=0.3), RECIPE, steps=5)
    assert torch.equal(twin.x, blind_inverse(net, target, prior, RECIPE, steps=5).x)
    assert not torch.equal(twin.x, blind_inverse(net, target, prior, replace(RECIPE, power=3.5), steps=5).x)


@pytest.mark.usefixtures("quiet_start")
def test_the_first_step_is_the_sign_of_the_gradient_through_root_and_amplitude(
    prior: Prior, net: nn.Sequential
) -> None:
    """Adam's first step is its rate times the sign: x - mu = amplitude * R (-0.1 sign R^T dF), by the chain rule by hand."""
    target = features_of(net, samples(prior, 1))
    mu = prior.mu(target)[None].clone().requires_grad_()
    (net(mu) - target).norm().backward()
    z = -0.1 * prior.root_transpose(mu.grad).sign()
    for amplitude in (1.0, 2.5):
        result = blind_inverse(net, target, prior, replace(RECIPE, amplitude=amplitude), steps=1)
        assert torch.allclose(result.x - mu, amplitude * prior.root(z), atol=1e-4)


def test_under_no_grad_and_without_traces(prior: Prior, net: nn.Sequential) -> None:
    target = net(samples(prior, 1))
    assert target.requires_grad
    usual = blind_inverse(net, target, prior, RECIPE, steps=5)
    with torch.no_grad():
        assert torch.equal(blind_inverse(net, target, prior, RECIPE, steps=5).x, usual.x)
    assert not usual.x.requires_grad and not usual.history.requires_grad and not usual.misfit.requires_grad
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_seconds_choose_a_rung_that_steps_reproduces_bit_for_bit(
    prior: Prior, net: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(blind, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    costs = iter([5.0])  # the first call warms up and must not count as the pace

    def slow(x: Tensor) -> Tensor:
        clock.now += next(costs, 1.0)
        return net(x)

    target = features_of(net, samples(prior, 1))
    budgeted = blind_inverse(slow, target, prior, RECIPE, seconds=50.0)
    assert budgeted.steps == 40  # 44 seconds are left after two trials
    fixed = blind_inverse(net, target, prior, RECIPE, steps=40)
    assert torch.equal(budgeted.x, fixed.x) and torch.equal(budgeted.history, fixed.history)
    assert blind_inverse(slow, target, prior, RECIPE, seconds=0.5).steps == LADDER[0]
    assert blind_inverse(slow, target, prior, RECIPE, seconds=50.0, steps=100).steps == 40
    assert blind_inverse(slow, target, prior, RECIPE, seconds=50.0, steps=7).steps == 7


def test_a_machine_that_slows_down_ends_the_search_and_it_is_told(
    prior: Prior, net: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(blind, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    costs = iter([1.0] * 12)  # of the first steps; every later one costs 10

    def slowing(x: Tensor) -> Tensor:
        clock.now += next(costs, 10.0)
        return net(x)

    target = features_of(net, samples(prior, 1))
    result = blind_inverse(slowing, target, prior, RECIPE, seconds=42.0)
    assert result.steps == 40 and len(result.history) == 17  # 12 + 5 x 10 s: the first time beyond 1.25 x 42
    assert result.misfit < result.history[0]


@pytest.mark.parametrize("steps", [2, 3, 10])
def test_the_nearest_step_is_kept_whatever_the_penalty(prior: Prior, net: nn.Sequential, steps: int) -> None:
    """Adam's first step alone, 0.1 for each value of z, costs more penalty than any misfit that it can gain."""
    target = features_of(net, samples(prior, 2))
    tau = 0.1
    assert tau * 0.1**2 * target.new_empty(3, *SIZE).numel() > 0.3
    result = blind_inverse(net, target, prior, replace(RECIPE, tau=tau), steps=steps)
    assert (result.misfit < 0.9 * result.history[0]).all()
    assert (result.misfit <= result.history.amin(0)).all()
    assert torch.allclose(result.misfit, norms(features_of(net, result.x) - target) / norms(target))


def test_of_equal_misfits_the_last_counts(prior: Prior) -> None:
    """Features that nothing changes: only the prior speaks, and it has spoken longest at the end."""
    seen = []

    def deaf(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return 0 * x

    result = blind_inverse(deaf, torch.ones(1, 3, *SIZE), prior, RECIPE, steps=15)
    assert (result.misfit == 1).all() and (result.history == 1).all()
    assert torch.equal(result.x, seen[15]) and not torch.equal(seen[15], seen[14])


def test_the_default_dtype_of_the_caller_changes_no_bit(prior: Prior, net: nn.Sequential) -> None:
    target = features_of(net, samples(prior, 1))
    usual = blind_inverse(net, target, prior, RECIPE, steps=3)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(blind_inverse(net, target, prior, RECIPE, steps=3).x, usual.x)
    finally:
        torch.set_default_dtype(before)


# ---- the retreat --------------------------------------------------------------------------------------------------


def backwards(net: nn.Module) -> blind.Map:
    """The same numbers with the gradient reversed: the misfit cannot fall."""
    return lambda x: net(2 * x.detach() - x)


@pytest.mark.parametrize("steps", [3, 10, 11, 30])
def test_a_search_that_leads_nowhere_is_given_up_for_the_retreat(prior: Prior, net: nn.Sequential, steps: int) -> None:
    target = features_of(net, samples(prior, 2))
    calls = []

    def uphill(x: Tensor) -> Tensor:
        calls.append(x)
        return backwards(net)(x)

    straight = blind_inverse(net, target, prior, RECIPE, steps=steps)
    kept = blind_inverse(net, target, prior, RECIPE, steps=steps, retreat=uphill)
    assert not kept.retreated and torch.equal(kept.x, straight.x)
    calls.clear()
    turned = blind_inverse(uphill, target, prior, RECIPE, steps=steps, retreat=net)
    assert turned.retreated and turned.steps == steps and len(calls) == min(steps + 1, 11)
    assert torch.equal(turned.x, straight.x) and torch.equal(turned.history, straight.history)
    assert torch.equal(turned.misfit, straight.misfit)
    stubborn = blind_inverse(uphill, target, prior, RECIPE, steps=steps)
    assert not stubborn.retreated and len(stubborn.history) == steps


def test_a_short_search_is_shown_where_its_retreat_comes_no_nearer(prior: Prior, net: nn.Sequential) -> None:
    target = features_of(net, samples(prior, 1))
    recipe = replace(RECIPE, amplitude=0.02)  # too timid for the trial
    alone = blind_inverse(net, target, prior, recipe, steps=10)
    assert blind.FALL * alone.history[0] < alone.misfit < alone.history[0]
    result = blind_inverse(net, target, prior, recipe, steps=10, retreat=backwards(net))
    assert not result.retreated and torch.equal(result.x, alone.x)


def test_to_come_nearer_than_a_start_beyond_zero_features_is_not_enough(prior: Prior) -> None:
    """Features x, a flat start, a wave without mean to be found: a gradient that sees the mean alone leads from 3 to 1."""
    wave = torch.cos(2 * torch.pi * torch.arange(SIZE[1]) / SIZE[1]).expand(1, 3, *SIZE)
    prior = replace(prior, mean=torch.full_like(prior.mean, 2.0))

    def flat(x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return x.detach() + mean - mean.detach()

    astray = blind_inverse(flat, wave, prior, RECIPE, steps=60)
    assert astray.history[0] > 2.9 and astray.history[10] < blind.FALL * astray.history[0] and astray.misfit > 0.99
    result = blind_inverse(flat, wave, prior, RECIPE, steps=60, retreat=lambda x: x)
    assert result.retreated and result.misfit < 0.5


@pytest.mark.parametrize(("seconds", "steps"), [(44.0, 40), (27.5, 25), (17.5, 15), (2.0, 10)])
def test_seconds_that_met_a_retreat_are_replayed_by_steps(
    prior: Prior, net: nn.Sequential, monkeypatch: pytest.MonkeyPatch, seconds: float, steps: int
) -> None:
    """A retreat of twice the pace: timed anew it would get more steps, and within the first budget it would be cut off."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(blind, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def ticking(run: blind.Map, cost: float) -> blind.Map:
        def slow(x: Tensor) -> Tensor:
            clock.now += cost
            return run(x)

        return slow

    target = features_of(net, samples(prior, 2))
    uphill = backwards(net)
    for pace in (0.5, 1.0):
        clock.now = 0.0
        timed = blind_inverse(ticking(uphill, 1.0), target, prior, RECIPE, seconds=seconds, retreat=ticking(net, pace))
        assert timed.retreated and timed.steps == len(timed.history) == steps
        assert clock.now <= max(blind.LATE * seconds, 12) + 14  # the trial, timed gradients and last looks included
        replayed = blind_inverse(uphill, target, prior, RECIPE, steps=timed.steps, retreat=net)
        assert replayed.retreated and torch.equal(replayed.x, timed.x) and torch.equal(replayed.misfit, timed.misfit)


def test_numbers_of_other_libraries_are_numbers(prior: Prior, net: nn.Sequential) -> None:
    target = features_of(net, samples(prior, 1))
    result = blind_inverse(net, target, prior, RECIPE, steps=np.int64(2))
    assert result.steps == 2 and type(result.steps) is int
    assert check_budget(None, np.float32(2.5)) is None


@pytest.mark.parametrize(("taught", "kinds"), [(False, 3), (True, 4)])
def test_recipes_ask_more_of_the_prior_with_depth(taught: bool, kinds: int) -> None:
    recipes = [recipe_for(stride, taught=taught) for stride in (2, 4, 8, 16, 32, 64)]
    assert recipes[0] == recipes[1] and recipes[4] == recipes[5]
    assert [r.tau for r in recipes] == sorted(r.tau for r in recipes)
    assert len(set(recipes)) == kinds


@pytest.mark.usefixtures("quiet_start")
def test_the_search_begins_at_the_start_that_it_is_given(prior: Prior, net: nn.Sequential) -> None:
    """The first misfit is the start's own, and with a penalty beyond all features the picture stays there."""
    x = samples(prior, 2)
    target, start = features_of(net, x), x + 0.1 * samples(prior, 2, seed=1)
    result = blind_inverse(net, target, prior, RECIPE, steps=3, start=start)
    assert torch.allclose(result.history[0], norms(features_of(net, start) - target) / norms(target))
    held = blind_inverse(net, target, prior, replace(RECIPE, amplitude=1e-9), steps=20, start=start)
    assert torch.allclose(held.x, start, atol=1e-6)
    nearer = blind_inverse(net, target, prior, RECIPE, steps=60, start=start)
    assert (nearer.misfit < 0.5 * nearer.history[0]).all()


def test_what_cannot_be_inverted_is_refused(prior: Prior, net: nn.Sequential) -> None:
    target = features_of(net, samples(prior, 1))
    with pytest.raises(OptionError, match="steps, seconds, or both"):
        blind_inverse(net, target, prior, RECIPE)
    steps: list[Any] = [0, -1, True, 2.0, "3", float("nan")]
    for count in steps:
        with pytest.raises(OptionError, match="steps must be a positive whole number"):
            blind_inverse(net, target, prior, RECIPE, steps=count)
    seconds: list[Any] = [0.0, True, "3", float("nan"), [1]]
    for time in seconds:
        with pytest.raises(OptionError, match="seconds must be a positive number"):
            blind_inverse(net, target, prior, RECIPE, seconds=time)
    with pytest.raises(NumericsError, match="finite"):
        blind_inverse(lambda x: net(x) * float("nan"), target, prior, RECIPE, steps=2)
