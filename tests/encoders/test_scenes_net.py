"""The shipped network of procedural scenes: loads strictly, names unseen scenes, is small, and its card tells the truth."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from pullback.encoders.scenes_net import Residual, scenes_net
from pullback.images.scenes import CLASSES, scene

WEIGHTS = files("pullback.encoders") / "weights"


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return json.loads((WEIGHTS / "scenes.json").read_text())


@pytest.fixture(scope="module")
def net() -> nn.Module:
    built = scenes_net().eval()
    built.load_state_dict(load((WEIGHTS / "scenes.safetensors").read_bytes()), strict=True)
    return built


def batch(seeds: range, card: dict[str, Any]) -> tuple[Tensor, Tensor]:
    drawn = [scene(seed) for seed in seeds]
    images = torch.from_numpy(np.stack([one.image for one in drawn])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(card["preprocessing"][key])[:, None, None] for key in ("mean", "std"))
    return (images - mean) / std, torch.tensor([one.label for one in drawn])


def test_stages_have_the_promised_shapes_and_come_out_of_a_relu() -> None:
    net, x, shapes = scenes_net().eval(), torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)), []
    for name in ("stem", "layer1", "layer2", "layer3", "layer4"):
        stage = net.get_submodule(name)
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
        assert isinstance(stage.relu2 if isinstance(stage, Residual) else stage[-1], nn.ReLU)
        assert x.min() == 0 < x.max()
    assert shapes == [(32, 64, 64), (32, 64, 64), (64, 32, 32), (128, 16, 16), (256, 8, 8)]
    assert net.fc(x.mean((2, 3))).shape == (2, len(CLASSES)) == (2, scenes_net(len(CLASSES)).fc.out_features)


def test_it_is_small() -> None:
    assert 1.2e6 < sum(parameter.numel() for parameter in scenes_net().parameters()) < 1.6e6
    assert len((WEIGHTS / "scenes.safetensors").read_bytes()) < 3.5e6


def test_shipped_weights_are_float16_and_finite(net: nn.Module) -> None:
    for name, value in load((WEIGHTS / "scenes.safetensors").read_bytes()).items():
        assert value.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float16)
        assert value.isfinite().all()


@torch.no_grad()
def test_unseen_scenes_are_named(net: nn.Module, card: dict[str, Any]) -> None:
    images, labels = batch(range(40_000_000, 40_000_300), card)
    top1 = torch.cat([net(part).argmax(1) for part in images.split(50)])
    assert (top1 == labels).float().mean() >= 0.93


def test_the_card_belongs_to_the_weights_and_the_generator(card: dict[str, Any]) -> None:
    assert card["weights_sha256"] == hashlib.sha256((WEIGHTS / "scenes.safetensors").read_bytes()).hexdigest()
    assert (
        card["generator_sha256"]
        == hashlib.sha256(b"".join(scene(seed).image.tobytes() for seed in range(16))).hexdigest()
    )
    assert tuple(card["classes"]) == CLASSES


def test_the_card_states_the_promised_accuracy(card: dict[str, Any]) -> None:
    test = card["accuracy"]["test"]
    assert test["scenes"] >= 2_000
    assert test["interval"][0] < test["top1"] < test["interval"][1]
    assert test["top1"] >= 0.95
    assert set(test["per_class"]) == set(CLASSES)
    first = card["training"]["first_seeds"]
    assert first["training"] + card["training"]["scenes"] <= first["validation"] < first["test"]
