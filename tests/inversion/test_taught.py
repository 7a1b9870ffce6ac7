"""The self-taught start: a ridge decoder against least squares by another library, its layout, and what is kept on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.small_nets import image, randomised, small_encoder
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.encoders import Encoder
from pullback.errors import NumericsError
from pullback.inversion import Inverter, Prior, taught
from pullback.inversion.taught import Decoder, decoders
from pullback.measures import correlation

SIZE = (16, 16)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("PULLBACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taught, "PIXELS", 1)  # the fewest pictures


@pytest.fixture(scope="module")
def prior() -> Prior:
    return Prior.natural((0.5,) * 3, (0.25,) * 3, SIZE)


class Shrink(nn.Module):
    """A stage whose features are the means of 2 x 2 pixels, shifted to be positive: a linear decoder of their squares."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.fc = nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gate((F.avg_pool2d(x, 2) + 3) ** 2).mean((2, 3)))


@pytest.mark.usefixtures("few", "cache")
def test_what_a_linear_map_of_the_roots_can_draw_is_drawn(prior: Prior) -> None:
    """F = (mean + 3)^2: sqrt(F) - 3 is the 2 x 2 mean, so the decoder is about as near as the means themselves."""
    encoder = Encoder.from_module(randomised(Shrink(), 0), stages=["gate"], input_shape=(3, *SIZE))
    x = taught.synthetic(10_000, encoder, prior).to(encoder.dtype)
    drawn = decoders(encoder, prior)[1](encoder.features(x[None], 1), SIZE)[0]
    means = F.interpolate(F.avg_pool2d(x[None], 2), SIZE, mode="bicubic", align_corners=False)[0]
    assert drawn.shape == x.shape
    assert float((drawn - x).norm()) < 1.05 * float((means - x).norm())


class OneByOne(Shrink):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(1, 3, *SIZE))


@pytest.mark.usefixtures("few", "cache")
def test_a_network_that_takes_one_image_at_a_time(prior: Prior) -> None:
    one, many = (
        Encoder.from_module(randomised(net, 0), stages=["gate"], input_shape=(3, *SIZE))
        for net in (OneByOne(), Shrink())
    )
    assert torch.allclose(decoders(one, prior)[1].weight, decoders(many, prior)[1].weight, rtol=1e-3, atol=1e-5)


def test_cells_lie_where_their_pixels_are() -> None:
    """With weights that copy a channel to each value of a cell, position (i, j) of the features paints cell (i, j)."""
    features = torch.zeros(1, 600, 3, 4)  # too wide for a neighbourhood: inputs are the cell's own channels and 1
    features[0, 0, 1, 2] = 9.0
    weight = torch.zeros(601, 1 * 2 * 2)
    weight[0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    drawn = Decoder(weight, cell=2, ridge=1.0, error=0.0)(features, (6, 8))[0, 0]
    expected = torch.zeros(6, 8)
    expected[2:4, 4:6] = 3 * torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.allclose(drawn, expected, atol=1e-6)


@pytest.mark.parametrize("channels", [2, 600])
def test_inputs_are_signed_roots_around_a_cell(channels: int) -> None:
    features = torch.randn(2, channels, 3, 4, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.tensor([0, 2]), torch.tensor([0, 1])
    inputs = taught._inputs(features, rows, columns)
    roots = features.sign() * features.abs().sqrt()
    if channels == 600:
        expected = torch.cat([roots[:, :, rows, columns].mT, torch.ones(2, 2, 1)], 2)
    else:
        padded = F.pad(torch.cat([roots, torch.ones(2, 1, 3, 4)], 1), (1, 1, 1, 1))
        patches = F.unfold(padded, 3).reshape(2, channels + 1, 9, 3, 4)[:, :, :, rows, columns]  # by another way
        expected = torch.cat([patches.permute(0, 3, 2, 1).flatten(2), torch.ones(2, 2, 1)], 2)
    assert torch.equal(inputs, expected)


def test_the_solution_is_that_of_ridge_regression_and_its_ridge_the_best_one() -> None:
    dice = np.random.default_rng(0)
    x, truth = dice.standard_normal((60, 7)), dice.standard_normal((7, 2))
    y = x @ truth + 2.0 * dice.standard_normal((60, 2))
    fitted, held = taught._Sums(), taught._Sums()
    for part, of in ((slice(0, 20), fitted), (slice(20, 40), fitted), (slice(40, 60), held)):
        of.add(torch.from_numpy(x[part])[None], torch.from_numpy(y[part])[None])
    found = taught._solve(fitted, held, 1)
    errors = {}
    for ridge in taught.RIDGES:
        scale = np.sqrt(ridge * (x[:40] ** 2).sum(0).mean())
        stacked = np.vstack([x[:40], scale * np.eye(7)]), np.vstack([y[:40], np.zeros((7, 2))])
        weight = np.linalg.lstsq(*stacked, rcond=None)[0]
        errors[ridge] = ((x[40:] @ weight - y[40:]) ** 2).sum() / (y[40:] ** 2).sum()
        if ridge == found.ridge:
            np.testing.assert_allclose(found.weight.numpy(), weight, atol=1e-10)
    assert found.ridge == min(errors, key=errors.__getitem__)
    assert found.error == pytest.approx(errors[found.ridge])
    assert len(set(errors.values())) == len(errors)


@pytest.mark.usefixtures("few")
def test_taught_once_and_kept(prior: Prior, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small_encoder()
    first = decoders(encoder, prior)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(taught, "_teach", lambda *_: pytest.fail("taught again"))
    again = decoders(encoder, prior)
    for level, decoder in first.items():
        assert torch.equal(again[level].weight, decoder.weight)
        assert (again[level].cell, again[level].ridge, again[level].error) == (
            decoder.cell,
            decoder.ridge,
            decoder.error,
        )


def test_other_weights_sizes_and_colours_are_taught_anew(prior: Prior) -> None:
    encoder, other = small_encoder(), small_encoder()
    with torch.no_grad():
        next(other.module.parameters()).mul_(1.01)
    wider, larger = (Prior.natural((0.5,) * 3, (std,) * 3, size) for std, size in ((0.5, SIZE), (0.25, (16, 18))))
    cases = (
        (encoder, prior),
        (other, prior),
        (encoder, wider),
        (encoder, larger),
        (encoder.to(dtype=torch.float32), prior),
    )
    assert len({repr(taught.setting(e, p)) for e, p in cases}) == 5


@pytest.mark.usefixtures("few", "cache")
def test_networks_of_the_same_weights_are_not_the_same_network(prior: Prior) -> None:
    """A pooling has no weights: the decoder of one network is none for another."""

    class Pooled(nn.Module):
        def __init__(self, pool: nn.Module) -> None:
            super().__init__()
            self.conv, self.pool, self.fc = nn.Conv2d(3, 8, 3, padding=1), pool, nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.pool(self.conv(x).relu()).mean((2, 3)))

    largest, mean = (
        Encoder.from_module(randomised(Pooled(p), 0), stages=["pool"], input_shape=(3, *SIZE))
        for p in (nn.MaxPool2d(2), nn.AvgPool2d(2))
    )
    assert largest.weights_digest == mean.weights_digest
    assert not torch.equal(decoders(largest, prior)[1].weight, decoders(mean, prior)[1].weight)


def test_features_beyond_all_numbers_are_told() -> None:
    fitted, held = taught._Sums(), taught._Sums()
    for of in (fitted, held):
        of.add(torch.full((1, 5, 3), 1e30), torch.ones(1, 5, 2))
    with pytest.raises(NumericsError, match="start='mean'"):
        taught._solve(fitted, held, 1)


def test_the_draft_is_drawn_from_the_features_alone(prior: Prior) -> None:
    encoder = small_encoder()
    x, other = image(0), image(1)
    features = encoder.features(x, 1)
    inverter = Inverter(encoder, "decoder", prior=prior)
    with inverter(x) as own, inverter(other) as foreign:
        picture = own.stage(1)
        assert torch.equal(picture.tensor, foreign.from_features(features, 1).tensor)
        null = foreign.from_features(torch.zeros_like(features), 1)
    assert torch.equal(picture.null, null.tensor) and picture.called == "drawn from the features alone"
    assert correlation(picture.tensor, x) > correlation(picture.null, x) + 0.1
