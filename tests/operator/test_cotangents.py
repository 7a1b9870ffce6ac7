from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pullback.errors import ClassError, StageError
from pullback.operator import Jacobian
from pullback.operator.cotangents import channel, channel_feature, energy, log_prob, logit, margin


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(scalar: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    return torch.autograd.grad(scalar(at), at)[0]


def slope(scalar: Callable[[Tensor], Tensor], at: Tensor, along: Tensor, step: float = 1e-5) -> float:
    """Central difference of a scalar along a direction."""
    return float(scalar(at + step * along) - scalar(at - step * along)) / (2 * step)


FEATURES, LOGITS = numbers(4, 3, 2), numbers(6)
ENTRIES = {
    "channel": (channel(2, (4, 3, 2), dtype=torch.float64), lambda F: F[2].sum(), FEATURES),
    "channel_feature": (channel_feature(FEATURES, 1), lambda F: F[1].square().sum() / 2, FEATURES),
    "logit": (logit(5, 6, dtype=torch.float64), lambda z: z[5], LOGITS),
    "margin": (margin(0, 4, 6, dtype=torch.float64), lambda z: z[0] - z[4], LOGITS),
    "log_prob": (log_prob(LOGITS, 3), lambda z: z.log_softmax(-1)[3], LOGITS),
    "energy": (energy(LOGITS), lambda z: z.softmax(-1).square().sum() / 2, LOGITS),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_each_is_the_gradient_of_its_scalar(name: str) -> None:
    cotangent, scalar, at = ENTRIES[name]
    assert cotangent.shape == at.shape
    assert torch.allclose(cotangent, gradient(scalar, at), rtol=1e-13, atol=1e-15)
    along = numbers(*at.shape, seed=1)
    assert slope(scalar, at, along) == pytest.approx(float((cotangent * along).sum()), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("name", ["channel", "channel_feature"])
def test_pulled_back_they_are_the_gradient_of_the_scalar(name: str) -> None:
    torch_net = nn.Sequential(nn.Conv2d(2, 4, (2, 3)), nn.ReLU()).double().requires_grad_(False)
    x = numbers(2, 4, 4)
    features = torch_net(x[None])[0]
    seed = channel(1, (4, 3, 2), dtype=torch.float64) if name == "channel" else channel_feature(features, 1)
    half_energy = (lambda F: F[1].sum()) if name == "channel" else (lambda F: F[1].square().sum() / 2)
    expected = gradient(lambda image: half_energy(torch_net(image[None])[0]), x)
    assert torch.allclose(Jacobian(torch_net, x).vm(seed), expected, rtol=1e-13, atol=1e-15)


def test_channel_features_add_up_to_the_features() -> None:
    assert torch.equal(sum(channel_feature(FEATURES, k) for k in range(4)), FEATURES)
    assert torch.equal(channel_feature(FEATURES, 2), FEATURES * channel(2, (4, 3, 2), dtype=torch.float64))


def test_energy_is_the_pull_back_of_the_probabilities() -> None:
    p = LOGITS.softmax(-1)
    assert torch.allclose(energy(LOGITS), (p.diag() - torch.outer(p, p)) @ p, rtol=1e-13, atol=1e-16)
    assert torch.allclose(energy(LOGITS), Jacobian(lambda z: z.softmax(-1), LOGITS).vm(p), rtol=1e-13, atol=1e-16)


def test_two_classes_by_hand() -> None:
    # p = (3/4, 1/4), |p|^2 = 10/16: energy = p * (p - 10/16) = (3/32, -3/32).
    z = torch.tensor([3.0, 1.0], dtype=torch.float64).log()
    assert torch.allclose(energy(z), torch.tensor([3.0, -3.0], dtype=torch.float64) / 32, rtol=1e-14)
    assert torch.allclose(log_prob(z, 1), torch.tensor([-3.0, 3.0], dtype=torch.float64) / 4, rtol=1e-14)


@pytest.mark.parametrize("function", [energy, lambda z: log_prob(z, 2)])
def test_batches_and_second_derivatives(function: Callable[[Tensor], Tensor]) -> None:
    batch = numbers(3, 5)
    assert torch.allclose(function(batch), torch.stack([function(row) for row in batch]), rtol=1e-14)
    assert torch.autograd.gradcheck(function, batch.requires_grad_())


def test_huge_logits_stay_finite() -> None:
    z = torch.tensor([1e4, -1e4, 0.0])
    assert energy(z).tolist() == [0, 0, 0]
    assert log_prob(z, 0).tolist() == [0, 0, 0]


def test_dtype_and_device() -> None:
    for made in (logit(1, 3, dtype=torch.float16, device="cpu"), channel(0, (2, 1, 1), dtype=torch.float16)):
        assert made.dtype == torch.float16
    assert margin(0, 1, 3).dtype == torch.get_default_dtype()


@pytest.mark.parametrize("k", [-1, 4, True])
def test_channels_that_do_not_exist(k: int) -> None:
    for call in (lambda: channel(k, (4, 3, 2)), lambda: channel_feature(FEATURES, k)):
        with pytest.raises(StageError, match=rf"no channel {k}: .* 0 to 3"):
            call()


@pytest.mark.parametrize("y", [-1, 6, True])
def test_classes_that_do_not_exist(y: int) -> None:
    for call in (lambda: logit(y, 6), lambda: margin(y, 2, 6), lambda: margin(2, y, 6), lambda: log_prob(LOGITS, y)):
        with pytest.raises(ClassError, match=rf"no class {y}: .* 0 to 5"):
            call()


def test_a_margin_needs_two_classes() -> None:
    with pytest.raises(ClassError, match="always zero"):
        margin(2, 2, 6)
