"""Sketched energies and the leading share of the Gram matrix, against all channel pictures made one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback.errors import MaskError, OptionError
from pullback.measures import channel_energies, foreground_energy, leading_share
from pullback.operator import Jacobian

SIDE = 12


def a_jacobian(*, spread: float = 1.0, dead: int = 0, channels: int = 20) -> Jacobian:
    """Of a linear map to (channels, 3, 3), whose Gram matrix has a leading direction of the given strength."""
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(channels * 9, 3 * SIDE**2, generator=generator, dtype=torch.float64)
    matrix += spread * torch.randn(3 * SIDE**2, generator=generator, dtype=torch.float64)
    matrix = matrix.view(channels, 9, -1)
    matrix[:dead] = 0
    matrix = matrix.flatten(0, 1)
    x = torch.randn(3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return Jacobian(lambda batch: (batch.flatten(1) @ matrix.mT).view(-1, channels, 3, 3), x, chunk=8)


def pictures(jacobian: Jacobian) -> Tensor:
    """P_c = J^T F 1_c for every channel, (C, 3, H, W)."""
    return jacobian.vm(_seeds(jacobian.value))


def a_mask() -> Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    mask[3:9, 2:8] = 1
    mask[3, 2:8] = 0.5
    mask[0] = torch.nan
    return mask


def test_the_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """The laws are exact: 200 trials of 20 channels, of which those of one trial share their probes."""
    jacobian, mask = a_jacobian(), a_mask()
    made = pictures(jacobian)
    energy = made.square().sum((1, 2, 3))
    inside = torch.tensor([foreground_energy(p, mask).share for p in made], dtype=torch.float64)
    unknown = made[:, :, mask.isnan()].square().sum((1, 2))
    hits = torch.zeros(2, dtype=torch.float64)
    for seed in range(200):
        found = channel_energies(jacobian, mask=mask, probes=8, confidence=0.9, seed=seed)
        assert found.foreground is not None
        for i, (estimate, truth) in enumerate(((found.energy, energy - unknown), (found.foreground, inside))):
            hits[i] += ((estimate.low <= truth) & (truth <= estimate.high)).double().mean() / 200
    assert ((hits - 0.9).abs() < 0.02).all(), hits


@pytest.mark.parametrize("probes", [2, 3, 8, 32])
@pytest.mark.parametrize("spread", [0.0, 3.0, 100.0])
def test_the_interval_of_the_sum_covers_as_often_as_it_says(spread: float, probes: int) -> None:
    """From a flat spectrum to one of rank one: 1.64 standard errors on each side hold it in 54 to 89 % of the trials."""
    jacobian = a_jacobian(spread=spread)
    truth = pictures(jacobian).square().sum()
    found = [channel_energies(jacobian, probes=probes, confidence=0.9, seed=s).total for s in range(400)]
    assert sum(bool(t.low <= truth <= t.high) for t in found) / len(found) > 0.88
    if probes == 32:
        assert sum(float(t.high / t.low) for t in found) / len(found) < 2.5


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99999])
@pytest.mark.parametrize("probes", [2, 3, 40])
def test_one_channel_s_sum_has_the_exact_interval_of_its_energy(probes: int, confidence: float) -> None:
    found = channel_energies(a_jacobian(channels=1), probes=probes, confidence=confidence)
    ends = torch.stack([found.total.low, found.total.value, found.total.high])
    assert torch.allclose(ends, torch.cat([found.energy.low, found.energy.value, found.energy.high]), rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_the_interval_of_the_sum_has_no_unit_of_its_own(scale: float) -> None:
    """40 probes of 20 channels and 8: the Gram matrix of either side."""
    jacobian = a_jacobian()
    for probes in (8, 40):
        a = channel_energies(jacobian, probes=probes).total
        b = channel_energies(jacobian, features=scale * jacobian.value, probes=probes).total
        for own, scaled in ((a.low, b.low), (a.value, b.value), (a.high, b.high)):
            assert torch.isclose(scaled / scale / scale, own, rtol=1e-10)


def test_energies_and_their_sum_are_unbiased() -> None:
    jacobian = a_jacobian()
    energy = pictures(jacobian).square().sum((1, 2, 3))
    found = channel_energies(jacobian, probes=4000)
    assert torch.allclose(found.energy.value, energy, rtol=0.1)
    total = found.total
    assert 0.9 * energy.sum() < total.low < energy.sum() < total.high < 1.1 * energy.sum()
    assert torch.isclose(total.value, found.energy.value.sum(), rtol=1e-12)
    again = channel_energies(jacobian, probes=4000)
    assert torch.equal(found.energy.value, again.energy.value)


def test_dead_channels_have_no_energy_and_no_share() -> None:
    found = channel_energies(a_jacobian(dead=3), mask=torch.ones(SIDE, SIDE), probes=4)
    none = channel_energies(a_jacobian(), features=torch.zeros(20, 3, 3)).total
    assert none.value == none.low == none.high == 0
    assert not found.energy.value[:3].any() and not found.energy.high[:3].any() and found.energy.low[3:].all()
    assert found.foreground is not None
    assert found.foreground.value[:3].isnan().all() and (found.foreground.value[3:] == 1).all()


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_the_leading_share_is_that_of_the_gram_matrix(spread: float) -> None:
    jacobian = a_jacobian(spread=spread, channels=60)
    eigenvalues = torch.linalg.eigvalsh(_gram(jacobian))
    share = float(eigenvalues[-1] / eigenvalues.sum())
    found = leading_share(jacobian, block=6, depth=4, probes=200)
    assert found.largest == pytest.approx(float(eigenvalues[-1]), rel=0.02)
    assert abs(found.share - share) < 4 * found.standard_error + 0.02 * share
    assert found.products == 2 * 24 + 200


def test_the_leading_share_is_exact_where_the_space_holds_all_live_channels() -> None:
    jacobian = a_jacobian(dead=7)
    eigenvalues = torch.linalg.eigvalsh(_gram(jacobian))
    found = leading_share(jacobian, block=5, depth=3)
    assert found.share == pytest.approx(float(eigenvalues[-1] / eigenvalues.sum()), rel=1e-10)
    assert found.standard_error == 0 and found.products == 2 * 13


def test_on_the_embedded_encoder() -> None:
    encoder = pb.load_encoder("builtin:scenes")
    image = torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(0))
    with encoder.jacobian(image, 4) as jacobian:
        made = torch.cat([jacobian.vm(part) for part in _seeds(jacobian.value).split(64)])
        energy = made.double().square().sum((1, 2, 3))
        gram = made.flatten(1).double() @ made.flatten(1).double().mT
        share = float(torch.linalg.eigvalsh(gram)[-1] / gram.trace())
        found = channel_energies(jacobian, probes=32)
        live = energy > 0
        covered = ((found.energy.low <= energy) & (energy <= found.energy.high))[live].double().mean()
        assert covered > 0.85
        assert leading_share(jacobian).share == pytest.approx(share, rel=0.01)


def test_bad_arguments_are_named() -> None:
    jacobian = a_jacobian()
    with pytest.raises(OptionError, match="probes=1"):
        channel_energies(jacobian, probes=1)
    with pytest.raises(OptionError, match="confidence=2"):
        channel_energies(jacobian, confidence=2)
    with pytest.raises(OptionError, match=r"\(2, 3, 3\)"):
        channel_energies(jacobian, features=torch.ones(2, 3, 3))
    with pytest.raises(MaskError, match=r"\(4, 4\)"):
        channel_energies(jacobian, mask=torch.ones(4, 4))
    with pytest.raises(MaskError, match=r"\[0, 1\]"):
        channel_energies(jacobian, mask=2 * torch.ones(SIDE, SIDE))
    with pytest.raises(OptionError, match="block=0"):
        leading_share(jacobian, block=0)
    with pytest.raises(OptionError, match="every feature"):
        leading_share(jacobian, features=torch.zeros(20, 3, 3))


def _seeds(features: Tensor) -> Tensor:
    return torch.diag_embed(features.movedim(0, -1)).movedim((-2, -1), (0, 1))


def _gram(jacobian: Jacobian) -> Tensor:
    made = pictures(jacobian).flatten(1)
    return made @ made.mT
