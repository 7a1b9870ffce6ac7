"""The image prior against its dense covariance, its own samples, and closed forms of the cosine basis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pullback.errors import OptionError
from pullback.inversion.prior import Prior, fit_prior, natural_colour

STD = (0.229, 0.224, 0.225)
MEAN = (0.485, 0.456, 0.406)


def natural(size: tuple[int, int], power: float = 2.0, f0: float = 1.0) -> Prior:
    return Prior.natural(MEAN, STD, size, power, f0)


def dense(linear: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map of images, one column per unit image."""
    n = torch.Size(shape).numel()
    return linear(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).reshape(n, -1).mT


def samples_of(prior: Prior, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, prior.mean.numel(), *prior.size, generator=generator, dtype=torch.float64)
    return prior.mu(z) + prior.root(z)


@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    power=st.floats(0, 4),
    f0=st.floats(0.1, 8),
    channels=st.sampled_from([1, 2, 3]),
)
def test_covariance_is_symmetric_positive_definite_and_its_roots_are_roots(
    size: tuple[int, int], power: float, f0: float, channels: int
) -> None:
    prior = Prior.natural((0.5,) * channels, (0.2,) * channels, size, power, f0)
    shape = (channels, *size)
    c = dense(prior.covariance, shape)
    scale = c.abs().max()
    assert (c - c.mT).abs().max() < 1e-12 * scale
    assert torch.linalg.eigvalsh(c)[0] > 0
    for way, back in ((prior.root, prior.root_transpose), (prior.synthesis, prior.analysis)):
        root, transpose = dense(way, shape), dense(back, shape)
        assert (root @ root.mT - c).abs().max() < 1e-12 * scale
        assert (root.mT - transpose).abs().max() < 1e-12 * scale


@pytest.mark.parametrize("size", [(6, 6), (4, 7), (9, 3)])
def test_mean_pixel_variance_is_the_colour_covariance(size: tuple[int, int]) -> None:
    """Averaged over pixels, the covariance between channels at one pixel is `colour`, whatever the spectrum."""
    prior = natural(size, power=2.7, f0=1.3)
    c = dense(prior.covariance, (3, *size)).reshape(3, size[0] * size[1], 3, size[0] * size[1])
    per_pixel = torch.einsum("ipjp->ij", c) / (size[0] * size[1])
    assert torch.allclose(per_pixel, prior.colour, rtol=1e-12)


def test_spectrum_is_the_formula_in_cycles_per_longer_side() -> None:
    """Eigenvectors are cosines; k half-waves across the longer side are k/2 cycles, across a side half as long k."""
    prior = Prior(torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64), 3.0, 2.0, (8, 16))
    x = torch.arange(16, dtype=torch.float64) + 0.5
    along = torch.cos(torch.pi * 4 * x / 16).expand(8, 16)[None]  # 2 cycles along the longer side
    y = torch.arange(8, dtype=torch.float64) + 0.5
    across = torch.cos(torch.pi * 3 * y / 8)[:, None].expand(8, 16)[None]  # 1.5 cycles in 8 pixels: 3 in 16
    flat = torch.ones(1, 8, 16, dtype=torch.float64)
    gains = []
    for wave in (flat, along, across):
        out = prior.covariance(wave)
        gain = (out * wave).sum() / (wave * wave).sum()
        assert torch.allclose(out, gain * wave, atol=1e-12)
        gains.append(gain)
    assert torch.allclose(gains[1] / gains[0], torch.tensor((4 / (4 + 4.0)) ** 1.5, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(gains[2] / gains[0], torch.tensor((4 / (4 + 9.0)) ** 1.5, dtype=torch.float64), rtol=1e-12)


def test_nothing_wraps_around_the_border() -> None:
    """A spike at the left border: a periodic kernel would answer as strongly one pixel to the left, at the right border."""
    prior = Prior(torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64), 3.0, 1.0, (16, 32))
    spike = torch.zeros(1, 16, 32, dtype=torch.float64)
    spike[0, 8, 0] = 1
    row = prior.covariance(spike)[0, 8]
    assert row[1] > 0.5 * row[0]
    assert row[-1] < row[1:-1].min() + 1e-12
    assert row[-1].abs() < 0.1 * row[1]

    frequency = torch.fft.fftfreq(16, 1 / 32, dtype=torch.float64)[:, None] ** 2 + torch.fft.rfftfreq(32, 1 / 32) ** 2
    periodic = torch.fft.irfft2(torch.fft.rfft2(spike[0]) * (1 + frequency) ** -1.5, s=(16, 32))[8]
    assert not periodic[-1].abs() < 0.1 * periodic[1]


def test_samples_have_the_prior_s_moments() -> None:
    prior = replace(natural((4, 6)), mean=torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    samples = samples_of(prior, 60_000).flatten(1)
    c = dense(prior.covariance, (3, 4, 6))
    assert (samples.mean(0) - prior.mu(samples).flatten()).abs().max() < 0.03
    assert (samples.T.cov() - c).norm() < 0.03 * c.norm()


def test_natural_colours() -> None:
    """Unit variances after the usual preprocessing, eigenvectors close to the published components, narrower std: more variance."""
    prior = natural((8, 8))
    assert torch.allclose(prior.colour.diagonal(), torch.ones(3, dtype=torch.float64))
    assert not prior.mean.any()
    luminance = torch.linalg.eigh(natural_colour()).eigenvectors[:, -1].abs()
    assert torch.allclose(luminance, torch.tensor([0.5675, 0.5808, 0.5836], dtype=torch.float64), atol=0.02)
    half = Prior.natural((0.5,) * 3, (0.5,) * 3, (8, 8))
    assert torch.allclose(half.colour * 0.25, natural_colour())
    grey = Prior.natural((0.5,), (1.0,), (8, 8))
    assert grey.colour.shape == (1, 1)
    assert 0.2**2 < float(grey.colour) < 0.25**2
    assert torch.equal(Prior.natural((0.0,) * 4, (1.0,) * 4, (8, 8)).colour, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize(("power", "f0", "size"), [(2.0, 1.0, (24, 32)), (3.0, 4.0, (32, 20))])
def test_fit_finds_the_prior_that_samples_came_from(power: float, f0: float, size: tuple[int, int]) -> None:
    truth = replace(natural(size, power, f0), mean=torch.tensor([0.3, 0.0, -0.2], dtype=torch.float64))
    found = fit_prior(samples_of(truth, 400))
    assert found.power == pytest.approx(power, rel=0.03)
    assert found.f0 == pytest.approx(f0, rel=0.1)
    assert (found.colour - truth.colour).norm() < 0.1 * truth.colour.norm()
    assert (found.mean - truth.mean).abs().max() < 0.15
    assert found.size == size


def test_fit_of_photographs_is_a_natural_prior(load: ModuleType) -> None:
    prepare = load.preprocess("squeezenet1_1")
    images = torch.stack([prepare(image)[:, 32:-32, 32:-32] for _, image, _, _ in load.imagenet(40)])
    found = fit_prior(images)
    assert 2 < found.power < 5
    correlation = found.colour / torch.outer(found.colour.diagonal().sqrt(), found.colour.diagonal().sqrt())
    assert (correlation - natural((8, 8)).colour).abs().max() < 0.1


def test_fit_of_grey_pictures_stays_invertible() -> None:
    grey = samples_of(Prior.natural((0.5,), (0.2,), (8, 8)), 20).expand(-1, 3, -1, -1)
    found = fit_prior(grey)
    assert torch.isfinite(found.root(torch.ones(3, 8, 8))).all()


def test_dtype_device_gradient_and_inference_mode() -> None:
    prior = natural((7, 7), power=2.31)
    with torch.inference_mode():  # what is cached here must serve a backward pass later
        prior.root(torch.ones(3, 7, 7))
    z = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = prior.root(z)
    assert out.dtype == torch.float32
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((out * weight).sum(), z)
    assert torch.allclose(gradient, prior.root_transpose(weight), atol=1e-5)
    assert prior.root(z.detach().double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"f0": 0.0}, "f0 > 0"),
        ({"power": -1.0}, "power >= 0"),
        ({"mean": torch.zeros(2)}, "colour covariance"),
        ({"colour": -torch.eye(3)}, "positive definite"),
        ({"colour": torch.eye(3) + torch.triu(torch.ones(3, 3))}, "symmetric"),
    ],
)
def test_impossible_priors_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        replace(natural((4, 4)), **change)


@pytest.mark.parametrize("images", [torch.zeros(3, 8, 8), torch.ones(2, 3, 8, 8), torch.rand(2, 3, 2, 8)])
def test_fit_refuses_what_has_no_spectrum(images: Tensor) -> None:
    with pytest.raises(OptionError):
        fit_prior(images)
