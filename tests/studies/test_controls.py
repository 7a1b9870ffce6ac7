"""Transplants with planted methods, and what a random-weight encoder keeps and loses."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles.small_nets import SmallNet, image, randomised, small_encoder
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from pullback.encoders import Encoder
from pullback.errors import EncoderError
from pullback.studies.controls import paste, random_encoder, transplant


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    return image(1, 40), image(2, 40)


@pytest.mark.parametrize("seed", range(5))
def test_the_patch_is_thirty_per_cent_of_each_side_and_comes_from_its_own_place(seed: int) -> None:
    a, b = image(1, 40), image(2, 40)
    patch = paste(a, b, seed)
    assert patch.area == pytest.approx(0.09)
    rows, columns = patch.inside.any(1), patch.inside.any(0)
    assert (int(rows.sum()), int(columns.sum())) == (12, 12)
    assert torch.equal(patch.pasted[:, patch.inside], b[:, patch.inside])
    assert torch.equal(patch.pasted[:, ~patch.inside], a[:, ~patch.inside])


def test_the_place_depends_on_the_seed_alone(pair: tuple[Tensor, Tensor]) -> None:
    places = [tuple(paste(*pair, seed).inside.nonzero()[0].tolist()) for seed in range(12)]
    assert len(set(places)) > 6
    assert torch.equal(paste(*pair, 3).inside, paste(*pair, 3).inside)


def test_a_method_that_paints_the_patch_scores_one(pair: tuple[Tensor, Tensor]) -> None:
    patch = paste(*pair, 0)
    found = transplant(0.3 * (patch.pasted - pair[0]), pair[0], patch)
    assert found.correlation == pytest.approx(1)
    assert found.energy == pytest.approx(1)


def test_a_method_that_ignores_the_features_scores_nothing_and_the_area(pair: tuple[Tensor, Tensor]) -> None:
    patch = paste(*pair, 0)
    found = transplant(torch.zeros_like(pair[0]), pair[0], patch)
    assert (found.correlation, found.energy) == (0, patch.area)


def test_a_change_without_a_place_scores_about_nothing_and_about_the_area(pair: tuple[Tensor, Tensor]) -> None:
    patch = paste(*pair, 0)
    found = transplant(image(9, 40), pair[0], patch)
    assert abs(found.correlation) < 0.15
    assert found.energy == pytest.approx(0.09, abs=0.02)


def test_a_flat_change_inside_the_patch_correlates_with_nothing(pair: tuple[Tensor, Tensor]) -> None:
    patch = paste(*pair, 0)
    found = transplant(patch.inside.double().expand(3, -1, -1), pair[0], patch)
    assert (found.correlation, found.energy) == (0, 1)


@pytest.mark.parametrize("shade", [0.0, 0.7])
def test_a_patch_that_differs_by_no_more_than_a_shade_asks_nothing(pair: tuple[Tensor, Tensor], shade: float) -> None:
    patch = paste(pair[0], pair[0] + shade, 0)
    assert transplant(patch.pasted - pair[0], pair[0], patch) is None


def test_random_weights_leave_the_users_network_as_it_was_and_keep_its_stages() -> None:
    net = randomised(SmallNet(), 0)
    before = copy.deepcopy(net.state_dict())
    encoder = Encoder.from_module(net, stages=["layer1", "layer2", "layer3"], input_shape=(3, 16, 16))
    stranger = random_encoder(encoder, [image(s) for s in range(6)], seed=0)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [s.name for s in stranger.stages] == ["layer1", "layer2", "layer3"]
    assert stranger.weights_digest != encoder.weights_digest
    assert stranger.weights_digest == random_encoder(encoder, [image(s) for s in range(6)], seed=0).weights_digest
    assert stranger.weights_digest != random_encoder(encoder, [image(s) for s in range(6)], seed=1).weights_digest


def test_batch_norms_of_the_random_encoder_are_those_of_the_images() -> None:
    images = torch.stack([image(s) for s in range(12)])
    module = random_encoder(small_encoder(), list(images), seed=0).module
    first = module.get_submodule("layer1.bn1")
    seen = module.get_submodule("layer1.conv1")(images)
    assert torch.allclose(first.get_buffer("running_mean"), seen.mean((0, 2, 3)))
    assert torch.allclose(first.get_buffer("running_var"), seen.var((0, 2, 3)))
    assert not any(m.training for m in module.modules())


class Bare(nn.Module):
    """A convolution whose kernel is a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.kernel, padding=1)


def chain(first: nn.Module) -> Encoder:
    net = nn.Sequential(first, nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 5))
    return Encoder.from_module(net.eval(), stages=["1", "3"], input_shape=(3, 8, 8))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", ["old weight_norm", "new weight_norm", "bare"])
def test_a_network_that_would_stay_trained_is_refused_and_left_as_it_was(kind: str) -> None:
    plain = nn.Conv2d(3, 4, 3, padding=1)
    normed = {"old weight_norm": weight_norm, "new weight_norm": parametrizations.weight_norm}
    encoder = chain(normed[kind](plain) if kind in normed else Bare())
    x = image(0, 8).float()
    before = encoder.features(x, 2)
    with pytest.raises(EncoderError, match=r"\d% of the network's weights cannot be drawn anew, .* '0\."):
        random_encoder(encoder, [x], seed=0)
    assert torch.equal(encoder.features(x, 2), before)


def test_a_batch_norm_that_sees_one_value_is_refused_and_more_images_help() -> None:
    layers = (nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    encoder = Encoder.from_module(nn.Sequential(*layers).eval(), stages=["2"], input_shape=(3, 8, 8))
    images = [image(s, 8).float() for s in range(2)]
    with pytest.raises(EncoderError, match=r"on 1 image\(s\): .* give more images"):
        random_encoder(encoder, images[:1], seed=0)
    assert random_encoder(encoder, images, seed=0).weights_digest != encoder.weights_digest
