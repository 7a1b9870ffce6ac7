"""The cascade against the paper's equations written out with dense Jacobians."""

from __future__ import annotations

import pytest
import torch
from oracles.small_nets import image, small_encoder
from torch import Tensor

from pullback.encoders import Encoder
from pullback.inversion import Correctors, Inverter
from pullback.inversion.cascade import Cascade
from pullback.inversion.opened import Opened

LEVELS = (1, 2, 3)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return small_encoder()


def fitted(encoder: Encoder, seed: int = 3) -> Correctors:
    """Correctors with random gamma and beta, as if they had been fitted."""
    plain = Correctors.unfitted([3, *(s.channels for s in encoder.stages[:-1])]).to(
        torch.zeros((), dtype=torch.float64)
    )
    generator = torch.Generator().manual_seed(seed)
    for corrector in plain.levels:
        corrector.gamma.add_(torch.rand(corrector.gamma.shape, generator=generator, dtype=torch.float64))
        corrector.beta.add_(torch.randn(corrector.beta.shape, generator=generator, dtype=torch.float64))
    return plain


def dense_chain(encoder: Encoder, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Features and dense Jacobians of every step, straight from the module by autograd."""
    steps = [encoder.module.layer1, encoder.module.layer2, encoder.module.layer3]
    features, jacobians = [x], []
    for step in steps:
        at = features[-1]
        j = torch.autograd.functional.jacobian(lambda v, step=step: step(v[None])[0], at)
        features.append(step(at[None])[0].detach())
        jacobians.append(j.reshape(features[-1].numel(), at.numel()))
    return features, jacobians


def literal_cascade(
    features: list[Tensor], jacobians: list[Tensor], correctors: Correctors, seed: Tensor, level: int
) -> Tensor:
    """Equations (6) and (7), letter by letter."""
    v = seed
    for k in reversed(range(level)):
        v = (jacobians[k].T @ v.flatten()).reshape(features[k].shape)
        n = v[0].numel()
        centred = v - v.mean((1, 2), keepdim=True)
        eps = correctors.eps * centred.square().mean()
        norm = (centred.square().sum((1, 2), keepdim=True) + n * eps).sqrt()
        gamma, beta = (p.reshape(-1, 1, 1) for p in (correctors.levels[k].gamma, correctors.levels[k].beta))
        v = gamma * n**0.5 * centred / norm + beta if norm.any() else beta.expand_as(v)
    return v


@pytest.mark.parametrize("level", LEVELS)
def test_channel_pictures_are_the_literal_cascade(encoder: Encoder, level: int) -> None:
    x = image()
    features, jacobians = dense_chain(encoder, x)
    correctors = fitted(encoder)
    with Inverter(encoder, mode="additive", correctors=correctors)(x) as inv:
        streamed = {int(c): b for chunk in inv.channels(level) for c, b in zip(*chunk, strict=True)}
    live = [c for c in range(len(features[level])) if features[level][c].any()]
    assert sorted(streamed) == live
    for c in live:
        seed = torch.zeros_like(features[level])
        seed[c] = features[level][c]
        expected = literal_cascade(features, jacobians, correctors, seed, level)
        torch.testing.assert_close(streamed[c], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("level", LEVELS)
def test_additive_stage_is_the_weighted_sum_8(encoder: Encoder, level: int) -> None:
    with Inverter(encoder, mode="additive", correctors=fitted(encoder))(image()) as inv:
        alpha = inv.alpha(level)
        assert alpha.sum().item() == pytest.approx(1, abs=1e-14)
        total = sum(torch.einsum("k,kchw->chw", alpha[c], b) for c, b in inv.channels(level))
        torch.testing.assert_close(inv.stage(level).tensor, total, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_frozen_superposition_is_exact(encoder: Encoder, level: int) -> None:
    x, correctors = image(), fitted(encoder)
    with (
        Inverter(encoder, mode="frozen", correctors=correctors)(x) as frozen,
        Inverter(encoder, mode="fused", correctors=correctors)(x) as fused,
    ):
        alpha = frozen.alpha(level)
        total = sum(torch.einsum("k,kchw->chw", alpha[c], b) for c, b in frozen.channels(level))
        whole = frozen.stage(level).tensor
        scale = whole.abs().max()
        assert float((total - whole).abs().max() / scale) < 5e-14
        assert float((fused.stage(level).tensor - whole).abs().max() / scale) < 5e-14


def test_frozen_superposition_in_float32(encoder: Encoder) -> None:
    small = encoder.to(dtype=torch.float32)
    with Inverter(small, mode="frozen", correctors=fitted(encoder))(image().float()) as inv:
        total = sum(torch.einsum("k,kchw->chw", inv.alpha(3)[c], b) for c, b in inv.channels(3))
        whole = inv.stage(3).tensor
        assert float((total - whole).abs().max() / whole.abs().max()) < 1e-5


@pytest.mark.parametrize("mode", ["additive", "fused", "frozen"])
def test_without_biases_the_zero_seed_draws_nothing(encoder: Encoder, mode: str) -> None:
    with Inverter(encoder, mode=mode, correctors=fitted(encoder).bias_free())(image()) as inv:
        for level in LEVELS:
            picture = inv.stage(level)
            assert picture.null is not None and not picture.null.any()
            assert picture.tensor.any()


@pytest.mark.parametrize("mode", ["additive", "fused"])
def test_with_biases_the_zero_seed_draws_the_literal_null(encoder: Encoder, mode: str) -> None:
    x, correctors = image(), fitted(encoder)
    features, jacobians = dense_chain(encoder, x)
    with Inverter(encoder, mode=mode, correctors=correctors)(x) as inv:
        expected = literal_cascade(features, jacobians, correctors, torch.zeros_like(features[2]), 2)
        null = inv.stage(2).null
        assert null is not None
        torch.testing.assert_close(null, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e8])
def test_seed_scale_changes_nothing_in_a_normalising_cascade(encoder: Encoder, scale: float) -> None:
    opened = Opened(encoder, image())
    cascade = Cascade(opened.chain, fitted(encoder))
    seeds = opened.measure(3).seeds(opened.measure(3).live[:3])
    once, scaled = cascade.pull(seeds, 3), cascade.pull(seeds * scale, 3)
    assert float((once - scaled).abs().max() / once.abs().max()) < 1e-5


def test_own_split_adds_up_and_is_not_the_difference_to_the_zero_seed(encoder: Encoder) -> None:
    opened = Opened(encoder, image())
    cascade = Cascade(opened.chain, fitted(encoder))
    seed = opened.measure(3).seeds(opened.measure(3).live[:1])[0]
    f, t = cascade.own_split(seed, 3)
    picture = cascade.pull(seed[None], 3)[0]
    torch.testing.assert_close(f + t, picture, rtol=1e-9, atol=1e-9)
    zero = cascade.pull(cascade.zero_seed(3), 3)[0]
    assert float((t - zero).norm() / zero.norm()) > 1e-3


@pytest.mark.parametrize("mode", ["additive", "frozen"])
@pytest.mark.parametrize("weights", ["w*alpha", "w", "w*gap"])
def test_class_direction_and_hemispheres_12(encoder: Encoder, mode: str, weights: str) -> None:
    with Inverter(encoder, mode=mode, correctors=fitted(encoder))(image()) as inv:
        picture = inv.cls(2, weights=weights)
        omega = inv.importance(2, weights)
        parts = {"full": 0.0, "positive": 0.0, "negative": 0.0}
        for c, b in inv.channels(3):
            for name, chosen in (
                ("full", omega[c]),
                ("positive", omega[c].clamp_min(0)),
                ("negative", omega[c].clamp_max(0)),
            ):
                parts[name] = parts[name] + torch.einsum("k,kchw->chw", chosen, b)
        for name, expected in parts.items():
            torch.testing.assert_close(getattr(picture, name).tensor, expected, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(
            picture.full.tensor, picture.positive.tensor + picture.negative.tensor, rtol=0, atol=1e-12
        )


def test_importance_is_the_classifier_row_times_alpha(encoder: Encoder) -> None:
    with Inverter(encoder)(image()) as inv:
        row = encoder.module.fc.weight[2]
        torch.testing.assert_close(inv.class_weights(2), row.detach())
        torch.testing.assert_close(inv.importance(2), row.detach() * inv.alpha(3))
        # For a ReLU net with average pooling and a linear head: sum omega = (z_y - bias_y) / sum_k e_k.
        energy = inv.features(3).abs().mean((1, 2)).sum()
        expected = (inv.logits[2] - encoder.module.fc.bias[2]) / energy
        torch.testing.assert_close(inv.importance(2).sum(), expected.detach())


def test_dead_channels_are_counted_and_get_the_null(encoder: Encoder) -> None:
    dying = small_encoder()
    dying.module.layer3.bn2.weight.data[4] = 0
    dying.module.layer3.bn2.bias.data[4] = -50
    dying.module.layer3.down.weight.data[4] = 0
    with Inverter(dying, mode="additive", correctors=fitted(encoder))(image()) as inv:
        assert inv.dead(3) >= 1
        assert inv.alpha(3)[4] == 0
        picture = inv.channel(3, 4)
        assert picture.null is not None and torch.equal(picture.tensor, picture.null)
        assert any("dead" in note for note in picture.notes)
        assert all(4 not in c for c, _ in inv.channels(3))


def test_a_level_with_one_position_has_no_corrector_and_says_so() -> None:
    tiny = small_encoder(size=4)  # stages 2 x 2, 1 x 1, 1 x 1
    with Inverter(tiny, mode="fused")(image(size=4)) as inv:
        picture = inv.stage(3)
        assert picture.tensor.any()
        assert any("level 2" in note for note in picture.notes)
