"""The iterative methods through a session: Wiener against dense algebra, blind against its own promises, the leaky pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from oracles.small_nets import Deaf, image, randomised, small_encoder
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.encoders import Encoder
from pullback.errors import OptionError
from pullback.inversion import Inverter, Prior
from pullback.inversion.blind import blind_inverse, recipe_for
from pullback.inversion.inverter import STARTS
from pullback.inversion.iterative import BOLD, CAREFUL
from pullback.inversion.leaky import leaky_rules, search_rules
from pullback.inversion.taught import decoders
from pullback.inversion.wiener import WienerSolver

LEVELS = (1, 2, 3)
RIDGE = 1e-2
CONVERGED = 2000


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return small_encoder()


@pytest.fixture(scope="module")
def prior() -> Prior:
    """With a mean that is no zero, so that it cannot be forgotten."""
    natural = Prior.natural((0.5,) * 3, (0.25,) * 3, (16, 16))
    return replace(natural, mean=torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64))


def sample(prior: Prior, seed: int = 0) -> Tensor:
    """An image that the prior expects, (3, 16, 16)."""
    noise = image(seed)
    return prior.mu(noise) + prior.root(noise)


class Dense:
    """The Wiener inverse of a stage in matrices, straight from the module by autograd."""

    def __init__(self, encoder: Encoder, x: Tensor, level: int, prior: Prior) -> None:
        steps = [encoder.module.layer1, encoder.module.layer2, encoder.module.layer3][:level]

        def features(v: Tensor) -> Tensor:
            for step in steps:
                v = step(v)
            return v

        self.features = features(x[None])[0].detach()
        j = torch.autograd.functional.jacobian(lambda v: features(v[None])[0], x)
        self.j = j.reshape(self.features.numel(), x.numel())
        unit = torch.eye(x.numel(), dtype=torch.float64).reshape(-1, *x.shape)
        self.c = prior.covariance(unit).reshape(x.numel(), x.numel())
        self.mu = prior.mu(x).reshape(-1)
        self.b = self.features.flatten() - self.j @ x.flatten()
        self.kernel = self.j @ self.c @ self.j.T
        solver = WienerSolver(
            lambda v: (v.flatten(1) @ self.j.T).reshape(-1, *self.features.shape),
            lambda w: (w.flatten(1) @ self.j).reshape(-1, *x.shape),
            prior,
            x.shape,
            self.features.shape,
            ridge=RIDGE,
            seed=0,
        )
        self.m = solver.scale(self.features)
        self.shape = x.shape

    def picture(self, features: Tensor) -> Tensor:
        """mu + C J^T (J C J^T + ridge * m * I)^-1 (F - b - J mu)."""
        system = self.kernel + RIDGE * self.m * torch.eye(len(self.kernel), dtype=torch.float64)
        z = torch.linalg.solve(system, features.flatten() - self.b - self.j @ self.mu)
        return (self.mu + self.c @ self.j.T @ z).reshape(self.shape)


def wiener(encoder: Encoder, prior: Prior, steps: int = CONVERGED) -> Inverter:
    return Inverter(encoder, "wiener", prior=prior, ridge=RIDGE, steps=steps)


# ---- Wiener -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_wiener_pictures_are_the_dense_solution(encoder: Encoder, prior: Prior, level: int) -> None:
    x = sample(prior)
    dense = Dense(encoder, x, level, prior)
    assert dense.m == pytest.approx(float(dense.kernel.diagonal().mean()), rel=0.5)
    with wiener(encoder, prior)(x) as inv:
        picture = inv.stage(level)
        foreign = encoder.features(sample(prior, 1), level)
        swapped = inv.from_features(foreign, level)
    for found, expected in (
        (picture.tensor, dense.picture(dense.features)),
        (picture.null, dense.picture(torch.zeros_like(dense.features))),
        (swapped.tensor, dense.picture(foreign)),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(picture.tensor, swapped.tensor, atol=1e-2)
    assert 0 < picture.figures["relative residual"] <= 1e-6
    assert 0 < picture.figures["null: relative residual"] <= 1e-6


def test_wiener_of_an_invertible_stage_is_the_image(prior: Prior) -> None:
    """A gate that is open everywhere and a small ridge: the signal space is everything."""

    class Open(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.fc = nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.mix(x) + 100).mean((2, 3)))

    encoder = Encoder.from_module(randomised(Open(), 0), stages=["mix"], input_shape=(3, 16, 16))
    x = sample(prior)
    with Inverter(encoder, "wiener", prior=prior, ridge=1e-9, steps=CONVERGED)(x) as inv:
        torch.testing.assert_close(inv.stage(1).tensor, x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("level", LEVELS)
def test_wiener_channels_superpose_in_the_converged_limit(encoder: Encoder, prior: Prior, level: int) -> None:
    x = sample(prior)
    mu = prior.mu(x)
    with wiener(encoder, prior)(x) as inv:
        whole = inv.stage(level).tensor
        parts = {int(c): b - mu for chunk in inv.channels(level) for c, b in zip(*chunk, strict=True)}
    torch.testing.assert_close(mu + sum(parts.values()), whole, rtol=0, atol=1e-4 * float(whole.abs().max()))
    assert min(float(part.abs().max()) for part in parts.values()) > 0


def test_wiener_class_directions_weigh_the_channels(encoder: Encoder, prior: Prior) -> None:
    x = sample(prior)
    with wiener(encoder, prior)(x) as inv:
        direction = inv.cls(2)
        scale = inv.importance(2) / inv.alpha(3)
        expected = sum(
            scale[int(c)] * (b - prior.mu(x)) for chunk in inv.channels(3) for c, b in zip(*chunk, strict=True)
        )
    tolerance = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(direction.full.tensor, expected, rtol=0, atol=tolerance)
    parts = direction.positive.tensor + direction.negative.tensor
    torch.testing.assert_close(direction.full.tensor, parts, rtol=0, atol=1e-12)


def test_more_steps_leave_a_smaller_residual_and_say_so(encoder: Encoder, prior: Prior) -> None:
    residuals = []
    for steps in (2, 10, 50):
        with wiener(encoder, prior, steps)(sample(prior)) as inv:
            picture = inv.stage(2)
        assert picture.figures["steps"] == steps
        residuals.append(picture.figures["relative residual"])
    assert residuals[0] > 2 * residuals[1] > 4 * residuals[2]


def test_a_dead_channel_of_the_wiener_inverse_is_the_mean_colour(prior: Prior) -> None:
    dying = small_encoder()
    dying.module.layer3.bn2.bias.data[4] = -50
    x = sample(prior)
    with wiener(dying, prior, 5)(x) as inv:
        picture = inv.channel(3, 4)
    torch.testing.assert_close(picture.tensor, prior.mu(x), rtol=0, atol=0)
    assert any("dead" in note for note in picture.notes)


# ---- blind --------------------------------------------------------------------------------------------------------


def test_blind_finds_more_of_a_shallow_stage_than_its_start(encoder: Encoder, prior: Prior) -> None:
    x = sample(prior)
    mu = prior.mu(x)
    with Inverter(encoder, "blind", prior=prior, steps=150)(x) as inv:
        picture = inv.stage(1)
        target = inv.features(1)
    assert picture.called == "drawn from the features alone"
    assert float((picture.tensor - x).norm() / (mu - x).norm()) < 0.7

    def misfit(of: Tensor) -> float:
        return float((encoder.features(of, 1) - target).norm() / target.norm())

    assert picture.figures["feature misfit"] == pytest.approx(misfit(picture.tensor))
    assert misfit(picture.tensor) < 0.2 * misfit(mu)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("level", LEVELS)
def test_the_null_of_the_blind_inverse_is_that_of_zero_features(
    encoder: Encoder, prior: Prior, level: int, start: str
) -> None:
    x = sample(prior)
    with Inverter(encoder, "blind", prior=prior, start=start, steps=25)(x) as inv:
        picture = inv.stage(level)
        features = inv.features(level)
        other = inv.from_features(torch.ones_like(features), level)
    zero = torch.zeros_like(features)[None]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    alone = blind_inverse(
        encoder.stretch(level, rules=partial(search_rules, slope=picture.figures["leak"])),
        zero,
        prior,
        recipe_for(2**level, taught=start == "taught"),
        scale=encoder.features(prior.mu(x) + prior.root(noise), level).norm()[None],
        steps=25,
        start=decoders(encoder, prior)[level](zero, prior.size) if start == "taught" else None,
    )
    assert torch.equal(picture.null, alone.x[0])
    assert not torch.equal(picture.null, picture.tensor)
    left = encoder.features(picture.null, level).norm() / features.norm()
    assert picture.figures["null: feature misfit"] == pytest.approx(float(left))
    assert not torch.allclose(other.tensor, picture.tensor)


@pytest.mark.usefixtures("own_cache")
def test_a_stage_that_is_silent_on_noise_has_a_blind_picture_all_the_same(prior: Prior) -> None:
    """Features that only the image itself wakes: there is no scale for the null picture to be found on any other picture."""

    encoder = Encoder.from_module(randomised(Deaf(), 0), stages=["gate"], input_shape=(3, 16, 16))
    picture = Inverter(encoder, "blind", prior=prior, start="mean", steps=3)(sample(prior) + 100).stage(1)
    assert torch.isfinite(picture.tensor).all() and torch.isfinite(picture.null).all()


def test_no_gate_of_the_image_takes_part_in_a_blind_picture(encoder: Encoder, prior: Prior) -> None:
    """The same features asked for in a session on another image: the same picture, bit for bit."""
    x, other = sample(prior), sample(prior, 1)
    features = encoder.features(x, 2)
    inverter = Inverter(encoder, "blind", prior=prior, steps=20)
    with inverter(x) as own, inverter(other) as foreign:
        assert torch.equal(own.stage(2).tensor, foreign.from_features(features, 2).tensor)
    with wiener(encoder, prior, 20)(x) as own, wiener(encoder, prior, 20)(other) as foreign:
        assert not torch.allclose(own.stage(2).tensor, foreign.from_features(features, 2).tensor, atol=1e-2)


def test_the_blind_inverse_draws_whole_stages_only(encoder: Encoder) -> None:
    with Inverter(encoder, "blind", steps=1)(image()) as inv:
        for ask in (
            lambda: inv.channel(2, 0),
            lambda: next(inv.channels(2)),
            lambda: inv.cls(1),
            lambda: inv.scalar(lambda f: f.sum()),
        ):
            with pytest.raises(OptionError, match="whole stages only"):
                ask()


# ---- both ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["wiener", "blind"])
def test_a_number_of_steps_gives_the_same_bits_twice(encoder: Encoder, prior: Prior, method: str) -> None:
    pictures = []
    for batch in ([0, 1], [0, 1], [0, 2]):
        x = torch.stack([sample(prior, seed) for seed in batch])
        with Inverter(encoder, method, prior=prior, steps=12)(x) as inv:
            pictures.append(inv.stage(2))
    first, again, beside_another = pictures
    assert torch.equal(first.tensor, again.tensor) and torch.equal(first.null, again.null)
    assert torch.equal(first.tensor[0], beside_another.tensor[0])
    assert not torch.equal(first.tensor[1], beside_another.tensor[1])


@pytest.mark.parametrize("method", ["wiener", "blind"])
def test_a_budget_of_seconds_is_a_number_of_steps(
    encoder: Encoder, prior: Prior, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pullback.inversion.blind.LATE", float("inf"))  # a busy machine must not cut the search off
    with Inverter(encoder, method, prior=prior, seconds=0.05)(sample(prior)) as inv:
        timed = inv.stage(2)
    with Inverter(encoder, method, prior=prior, steps=int(timed.figures["steps"]))(sample(prior)) as inv:
        assert torch.equal(inv.stage(2).tensor, timed.tensor)


@pytest.mark.parametrize("method", ["wiener", "blind"])
def test_a_prior_for_another_size_is_refused(encoder: Encoder, method: str) -> None:
    with pytest.raises(OptionError, match=r"\(8, 8\).*\(16, 16\)"):
        Inverter(encoder, method, prior=Prior.natural((0.5,) * 3, (0.25,) * 3, (8, 8)))(image())


def test_a_gradient_is_no_feature_that_the_wiener_inverse_could_draw(encoder: Encoder, prior: Prior) -> None:
    with wiener(encoder, prior, 1)(sample(prior)) as inv, pytest.raises(OptionError, match="scalar's gradient"):
        inv.scalar(lambda f: f.sum())


# ---- the leaky pass -----------------------------------------------------------------------------------------------


class Gated(nn.Module):
    """conv, gate, conv, gate, `leave`: one stage, whose output is what `leave` makes of its last gate."""

    def __init__(self, gate: Callable[[Tensor], Tensor], leave: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.gate, self.leave, self.fc = gate, leave, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.gate(3 * self.conv1(x) + 1)
        return self.fc(self.leave(self.gate(3 * self.conv2(inner))).mean((2, 3)))


def relu_in_place_through_a_view(x: Tensor) -> Tensor:
    F.relu_(x.view(len(x), -1))
    return x


# name -> (gate, its ceiling, what comes after the last gate)
GATES: dict[str, tuple[Callable[[Tensor], Tensor], float, nn.Module]] = {
    "relu": (F.relu, float("inf"), nn.Identity()),
    "relu in place": (F.relu_, float("inf"), nn.Identity()),
    "relu6": (F.relu6, 6.0, nn.Identity()),
    "relu6 in place": (lambda x: F.relu6(x, inplace=True), 6.0, nn.Identity()),
    "clamp": (lambda x: x.clamp(min=0), float("inf"), nn.Identity()),
    "clamp in place": (lambda x: x.clamp_(0, 6), 6.0, nn.Identity()),
    "in place through a view": (relu_in_place_through_a_view, float("inf"), nn.Dropout()),
    "before a pooling": (F.relu, float("inf"), nn.MaxPool2d(2)),
    "before a concatenation": (
        lambda x: torch.cat([F.relu(x[:, :3]), F.relu(x[:, 3:])], 1), float("inf"), nn.Identity(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GATES)
def test_the_leaky_pass_is_exact_forward_and_lets_a_fifth_through_backward(name: str) -> None:
    gate, ceiling, leave = GATES[name]
    net = randomised(Gated(gate, leave), 0)
    view = (
        name == "in place through a view"
    )  # whose output is written through another tensor, so no gate is seen to make it
    encoder = Encoder.from_module(net, stages=["conv2" if view else "leave"], input_shape=(3, 8, 8))

    x = image(size=8)[None].requires_grad_()
    out = encoder.stretch(1, rules=partial(leaky_rules, slope=0.2))(x)
    with torch.no_grad():
        pre1 = 3 * net.conv1(x) + 1
        pre2 = 3 * net.conv2(pre1.clamp(0, ceiling))
        assert torch.equal(out, encoder.features(x, 1))
    w = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found,) = torch.autograd.grad(out, x, w)

    if view:
        g = w / 3
    else:
        last = pre2.clone().requires_grad_()
        (g,) = torch.autograd.grad(leave(last.clamp(0, ceiling)), last, w)  # the last gate: exact, closed is closed
        closed = (pre2 <= 0) | (pre2 >= ceiling)
        assert closed.any() and not g[closed].any()
    g = 3 * F.conv_transpose2d(g, net.conv2.weight, stride=2, padding=1, output_padding=1)
    off = (pre1 <= 0) | (pre1 >= ceiling)
    assert 0.05 < off.double().mean() < 0.95
    g = torch.where(off, 0.2 * g, g)
    g = 3 * F.conv_transpose2d(g, net.conv1.weight, padding=1)
    torch.testing.assert_close(found, g, rtol=1e-10, atol=1e-12)


def test_without_a_last_gate_every_gate_leaks() -> None:
    """A linear bottleneck: the stage's output is signed, and all of its gates lie inside."""

    net = randomised(Gated(F.relu, nn.Identity()), 0)
    encoder = Encoder.from_module(net, stages=["conv1", "conv2"], input_shape=(3, 8, 8))
    tape = encoder.tape(image(size=8)[None])
    assert len(leaky_rules(tape, tape.input, encoder.point(tape, 2), 0.2)) == 1
    assert len(leaky_rules(tape, tape.input, encoder.point(tape, 1), 0.2)) == 0


@pytest.fixture
def bold_leads_uphill(own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted backward pass that points uphill for leaks above 0.1."""
    real = Encoder.stretch

    def stretch(self: Encoder, stage: int, *, rules: partial[object] | None = None) -> Callable[[Tensor], Tensor]:
        run = real(self, stage, rules=rules)
        return (lambda x: run(2 * x.detach() - x)) if rules and rules.keywords["slope"] > 0.1 else run

    monkeypatch.setattr(Encoder, "stretch", stretch)


def test_the_blind_inverse_is_bold_where_that_leads_downhill(encoder: Encoder, prior: Prior) -> None:
    assert Inverter(encoder, "blind", prior=prior, steps=15)(sample(prior)).stage(2).figures["leak"] == BOLD


@pytest.mark.usefixtures("bold_leads_uphill")
@pytest.mark.parametrize("steps", [6, 10, 15])
def test_the_blind_inverse_is_careful_where_boldness_leads_nowhere(encoder: Encoder, prior: Prior, steps: int) -> None:
    picture = Inverter(encoder, "blind", prior=prior, steps=steps)(sample(prior)).stage(2)
    assert picture.figures["leak"] == CAREFUL and picture.figures["steps"] == steps
    assert picture.figures["feature misfit"] < 0.97
    assert not any("nothing of the features" in note for note in picture.notes)


@pytest.mark.usefixtures("bold_leads_uphill")
@pytest.mark.parametrize("seconds", [0.05, 0.3])
def test_seconds_after_a_change_of_leak_are_replayed_by_steps(
    encoder: Encoder, prior: Prior, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pullback.inversion.blind.LATE", float("inf"))  # a busy machine must not cut the search off
    timed = Inverter(encoder, "blind", prior=prior, seconds=seconds)(sample(prior)).stage(2)
    assert timed.figures["leak"] == CAREFUL
    again = Inverter(encoder, "blind", prior=prior, steps=int(timed.figures["steps"]))(sample(prior)).stage(2)
    assert again.figures == timed.figures
    assert torch.equal(again.tensor, timed.tensor) and torch.equal(again.null, timed.null)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.usefixtures("own_cache")
def test_a_search_that_never_leaves_its_start_says_so(
    encoder: Encoder, prior: Prior, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Encoder.stretch

    def uphill(self: Encoder, stage: int, *, rules: partial[object] | None = None) -> Callable[[Tensor], Tensor]:
        run = real(self, stage, rules=rules)
        return (lambda x: run(2 * x.detach() - x)) if rules else run

    monkeypatch.setattr(Encoder, "stretch", uphill)
    notes = Inverter(encoder, "blind", prior=prior, start=start, steps=12)(sample(prior)).stage(3).notes
    assert any("nothing of the features (steps: 12" in note for note in notes)
    assert any("null picture is no more than its start" in note for note in notes)
    monkeypatch.setattr(Encoder, "stretch", real)
    notes = Inverter(encoder, "blind", prior=prior, start=start, steps=60)(sample(prior)).stage(3).notes
    assert not any("nothing of the features" in note for note in notes)
