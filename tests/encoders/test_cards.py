from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import nn

from pullback.encoders.cards import amended, bare_card, parsed, settle, sidecar, timm_card, torchvision_card
from pullback.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from pullback.encoders.torchvision_ops import import_timm, import_torchvision
from pullback.errors import EncoderError, OptionError, WeightsError

CARD = Preprocessing((224, 224), 256, source="a library's card")


def test_torchvisions_original_and_default_recipes_differ() -> None:
    torchvision = import_torchvision()
    original = torchvision_card(torchvision, "resnet50", default=False)
    default = torchvision_card(torchvision, "resnet50", default=True)
    assert (original.size, original.resize, original.mean, original.std) == (
        (224, 224),
        256,
        IMAGENET_MEAN,
        IMAGENET_STD,
    )
    assert default.resize == 232
    assert "IMAGENET1K_V1" in original.source
    assert "IMAGENET1K_V2" in default.source


def test_timms_card_follows_the_number_of_input_channels() -> None:
    timm = import_timm()
    card = timm_card(timm, timm.create_model("resnet18", in_chans=1))
    assert card.channels == 1
    assert card.mean == pytest.approx([sum(IMAGENET_MEAN) / 3])
    assert card.interpolation == "bicubic"
    assert "resnet18.a1_in1k" in card.source


def test_timms_padded_crop_is_owned_up_to() -> None:
    timm = import_timm()

    class Padded(nn.Module):
        pretrained_cfg: ClassVar = {"input_size": (3, 64, 64), "crop_mode": "border", "crop_pct": 0.9}

    assert "border crop" in timm_card(timm, Padded()).assumed[0]


@pytest.mark.parametrize(
    ("stated", "channels", "size"),
    [(None, 3, (224, 224)), (32, 3, (32, 32)), ((20, 30), 1, (20, 30)), ((1, 28, 28), 1, (28, 28))],
)
def test_a_network_without_card_is_taken_for_imagenets(stated: Any, channels: int, size: tuple[int, int]) -> None:
    card = bare_card(nn.Sequential(nn.Conv2d(channels, 4, 3)), stated)
    assert (card.size, card.channels, len(card.mean)) == (size, channels, channels)
    assert ("states no input_size" in card.source) == (stated is None)


def test_pictures_have_one_or_three_channels() -> None:
    with pytest.raises(EncoderError, match="takes 4 channels"):
        bare_card(nn.Conv2d(4, 4, 3), None)


# ---- what is stated, and what is assumed --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"mean": 0.5, "std": [0.1, 0.2, 0.3]}, {"mean": (0.5,) * 3, "std": (0.1, 0.2, 0.3), "resize": 256}),
        ({"size": 112}, {"size": (112, 112), "resize": 128}),  # the ratio of crop and resize stays
        ({"size": [32, 64], "resize": None}, {"size": (32, 64), "resize": None}),
        (
            parsed("size=32x64; resize=none; interpolation=nearest"),
            {"size": (32, 64), "resize": None, "interpolation": "nearest"},
        ),
        (parsed("mean=0.1,0.2,0.3;size=299"), {"mean": (0.1, 0.2, 0.3), "size": (299, 299), "resize": 342}),
        ({"channels": 1}, {"channels": 1, "mean": (sum(IMAGENET_MEAN) / 3,)}),
        ({"channels": 1, "mean": [0.1], "std": 0.3}, {"mean": (0.1,), "std": (0.3,)}),
    ],
)
def test_stated_entries_replace_the_cards(stated: dict[str, Any], expected: dict[str, Any]) -> None:
    result = amended(CARD, stated, "here")
    assert {key: getattr(result, key) for key in expected} == expected
    assert result.source == "here"


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"colour": 3}, "no entry 'colour'"),
        ({"size": "wide"}, "size='wide'"),
        ({"size": 22.5}, "whole number"),
        ({"size": "224, 192"}, "height and width are written 224x192"),
        ({"size": 1e999}, "whole number"),
        ({"size": 10**400}, "too large"),
        ({"size": 1_000_000}, r"size=\(1000000, 1000000\).*16,777,216 pixels"),
        ({"size": 1e308}, "size=.*pixels"),
        ({"size": []}, "size=.*a height and a width"),
        ({"size": 32, "resize": 7072}, "resize=7072.*1 to 7071"),
        ({"mean": [0.5, 0.5]}, "mean=.*3 numbers"),
        ({"mean": "a,b,c"}, "mean='a,b,c'"),
        ({"std": 0}, "std=.*above 0"),
        ({"channels": True}, "channels=True"),
        ({"channels": 10**11}, "channels=.*at most 1024"),
    ],
)
def test_stated_nonsense_is_named(stated: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        amended(CARD, stated, "here")


@pytest.mark.parametrize("text", ["", "mean", "mean=0.5;size", "0.5", "mean=0.5;mean=0.4"])
def test_text_that_is_no_list_of_options(text: str) -> None:
    with pytest.raises(OptionError, match="expected text such as"):
        parsed(text)


def test_what_nobody_stated_about_a_file_is_assumed() -> None:
    both = settle(CARD, {}, None, certain=False).assumed
    assert "mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225 from a library's card" in both[0]
    assert "pass preprocessing=" in both[0]
    assert both[1] == "size, resize, interpolation from a library's card"
    (geometry,) = settle(CARD, {"mean": 0.5, "std": 0.5, "size": 100}, None, certain=False).assumed
    assert geometry.startswith("resize, interpolation")
    everything = {"mean": 0.5, "std": 0.5, "size": 100, "resize": 120, "interpolation": "bicubic"}
    assert settle(CARD, everything, None, certain=False).assumed == ()
    assert settle(CARD, {}, None, certain=True) == CARD


# ---- cards beside weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net.card.json", "net.json"])
def test_explicit_options_come_before_the_card_beside_the_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps({"preprocessing": {"mean": 0.5, "std": 0.25}, "licence": "own"}))
    beside = sidecar(tmp_path / "net.safetensors")
    assert beside is not None
    assert beside.classes is None
    result = settle(CARD, {"mean": 0.1}, beside, certain=False)
    assert (result.mean, result.std) == ((0.1,) * 3, (0.25,) * 3)
    for giver in (name, "preprocessing=", "a library's card"):
        assert giver in result.source


def test_other_json_files_beside_the_weights_are_no_cards(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text('{"loss": [3, 2, 1]}')
    assert sidecar(tmp_path / "net.pt") is None
    assert sidecar(tmp_path / "other.pt") is None


@pytest.mark.parametrize(
    ("content", "said"), [('{"classes": ', "no readable JSON"), ('{"preprocessing": [1]}', "an object")]
)
def test_a_broken_card_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "net.card.json").write_text(content)
    with pytest.raises(WeightsError, match=said):
        sidecar(tmp_path / "net.pt")
