"""Preprocessing from cards: what timm and torchvision state about a network, a card beside a file, explicit options.

A library's card describes the library's own weights. For a file it is a guess (its mean and std may be others), so
whatever no one stated about that very file is listed in `Preprocessing.assumed`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pullback.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, listed
from pullback.errors import EncoderError, OptionError, WeightsError

_MOST_CHANNELS = 1024  # of an input: mean and std are written out for each

Given = Preprocessing | Mapping[str, Any] | str


def torchvision_card(torchvision: ModuleType, name: str, *, default: bool) -> Preprocessing:
    """What torchvision states of its DEFAULT weights (often a later recipe), or else of the original ones."""
    weights = torchvision.models.get_model_weights(name)
    chosen = weights.DEFAULT if default else next(iter(weights))  # the original ones are listed first
    preset = chosen.transforms()
    return Preprocessing(
        size=(preset.crop_size[0],) * 2,
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        source=f"torchvision's {chosen.name} card",
    )


def timm_card(timm: ModuleType, module: Any) -> Preprocessing:
    """What timm's `pretrained_cfg` states of this network, built with its own number of input channels."""
    config = timm.data.resolve_data_config(pretrained_cfg=module.pretrained_cfg)
    _, height, width = config["input_size"]
    stretched = config["crop_mode"] == "squash"
    assumed: tuple[str, ...] = ()
    if config["crop_mode"] == "border" or (stretched and config["crop_pct"] != 1):
        assumed = (f"timm's {config['crop_mode']} crop at {config['crop_pct']} is replaced by a plain one",)
    card = Preprocessing(
        size=(height, width),
        resize=None if stretched else int(min(height, width) / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        source=f"timm's card of {'.'.join(filter(None, map(module.pretrained_cfg.get, ('architecture', 'tag'))))}",
        assumed=assumed,
    )
    return card.for_channels(input_channels(module))


def bare_card(module: nn.Module, stated_size: Any) -> Preprocessing:
    """For a network that comes without a card: ImageNet's mean and std, at the size its maker states, or 224.

    stated_size: a side, (H, W), (C, H, W), or None.
    """
    sides = tuple(stated_size)[-2:] if isinstance(stated_size, list | tuple) else stated_size or 224
    source = "ImageNet's habits" + ("" if stated_size else " (the network states no input_size)")
    base = Preprocessing((224, 224), 256, mean=IMAGENET_MEAN, std=IMAGENET_STD).for_channels(input_channels(module))
    return amended(base, {"size": sides}, source)


def input_channels(module: nn.Module) -> int:
    """How many channels the first convolution takes: 1 or 3, else EncoderError. 3 for a network without any."""
    first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    if channels not in (1, 3):
        raise EncoderError(f"the network takes {channels} channels, a photograph has 1 or 3: use Encoder.from_module")
    return channels


# ---- what was given for these very weights ------------------------------------------------------------------------


@dataclass(frozen=True)
class Sidecar:
    """A JSON card beside a weights file: `x.card.json` or `x.json` beside `x.safetensors`."""

    path: Path
    preprocessing: Mapping[str, Any]
    classes: Any


def sidecar(weights: Path) -> Sidecar | None:
    """The card beside `weights`, if there is one with a "preprocessing" or "classes" entry. Raises WeightsError."""
    for path in (weights.with_suffix(".card.json"), weights.with_suffix(".json")):
        if not path.is_file() or path == weights:
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WeightsError(f"the card {path} beside the weights is no readable JSON ({error}): mend it") from error
        if isinstance(content, dict) and {"preprocessing", "classes"} & set(content):
            stated = content.get("preprocessing") or {}
            if not isinstance(stated, dict):
                raise WeightsError(f'the card {path}: expected "preprocessing" to be an object with size, mean, std')
            return Sidecar(path, stated, content.get("classes"))
    return None


def settle(card: Preprocessing, explicit: Mapping[str, Any], beside: Sidecar | None, *, certain: bool) -> Preprocessing:
    """The library's `card`, with what is stated about these very weights: explicit options before the card beside them.

    certain: whether the library's card is itself about these weights; if not, what nothing else states is in `assumed`.
    """
    sidecar_entries = beside.preprocessing if beside is not None else {}
    stated = {**sidecar_entries, **explicit}
    givers = [beside.path.name] if beside is not None and sidecar_entries else []
    givers += ["preprocessing="] if explicit else []
    left = [key for key in ("size", "resize", "interpolation", "mean", "std") if key not in stated]
    settled = amended(card, stated, ", ".join([*givers, *([card.source] if left else [])]))
    if certain:
        return settled
    assumed = list(card.assumed)
    if unsure := [key for key in left if key in ("mean", "std")]:
        numbers = " and ".join(f"{key} {listed(getattr(settled, key))}" for key in unsure)
        assumed.append(f"{numbers} from {card.source}; the weights may want others: pass preprocessing=")
    if unsure := [key for key in left if key not in ("mean", "std")]:
        assumed.append(f"{', '.join(unsure)} from {card.source}")
    return replace(settled, assumed=tuple(assumed))


def amended(card: Preprocessing, stated: Mapping[str, Any], source: str) -> Preprocessing:
    """`card` with the stated entries in place of its own; a new size without a new resize keeps their ratio.

    stated: any of size, resize, interpolation, mean, std, channels, as in a JSON card (one number stands for both
    sides, or for all channels). Raises OptionError.
    """
    entries: dict[str, Any] = {}
    for key, value in stated.items():
        if key not in _READERS:
            raise OptionError(f"preprocessing ({source}) has no entry {key!r}: expected {', '.join(_READERS)}")
        try:
            entries[key] = _READERS[key](value)
        except (TypeError, ValueError, OverflowError) as error:
            raise OptionError(f"preprocessing {key}={value!r} ({source}) cannot be read: {error}") from error
    card = card.for_channels(entries.get("channels", card.channels))
    for key in ("mean", "std"):
        if len(entries.get(key, ())) == 1:
            entries[key] *= card.channels
    if "size" in entries and "resize" not in entries and card.resize is not None:
        checked = replace(card, size=entries["size"], source=source).size  # reckoned with only where it makes sense
        entries["resize"] = round(min(checked) * card.resize / min(card.size))
    return replace(card, **entries, source=source)


def parsed(given: Given) -> Preprocessing | Mapping[str, Any]:
    """Explicit preprocessing, where text such as "mean=0.5,0.5,0.5;std=0.5;size=224;resize=256" becomes a mapping."""
    if not isinstance(given, str):
        return given
    pairs = [entry.partition("=") for entry in given.split(";") if entry.strip()]
    stated = {key.strip(): value.strip() for key, _, value in pairs}
    if not pairs or not all(separator for _, separator, _ in pairs) or len(stated) < len(pairs):
        raise OptionError(
            f'preprocessing {given!r} cannot be read: expected text such as "mean=0.5;size=224;resize=256", each name once'
        )
    return stated


def _sides(value: Any) -> tuple[int, ...]:
    """Height and width from 224, "224", "128x256" or [128, 256]."""
    if isinstance(value, str) and "," in value:
        raise ValueError(f"height and width are written {value.replace(' ', '').replace(',', 'x')}")
    whole = tuple(map(_whole, value.lower().split("x") if isinstance(value, str) else _many(value)))
    return whole * 2 if len(whole) == 1 else whole


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not float(value).is_integer():
        raise ValueError("expected a whole number")
    return int(float(value))


def _channel_count(value: Any) -> int:
    count = _whole(value)
    if not 1 <= count <= _MOST_CHANNELS:
        raise ValueError(f"expected 1 (grey), 3 (RGB), or at most {_MOST_CHANNELS} for tensors")
    return count


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value.split(",") if isinstance(value, str) else _many(value)))


def _many(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _whole_or_none(value: Any) -> int | None:
    return None if value is None or str(value).lower() == "none" else _whole(value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "size": _sides,
    "resize": _whole_or_none,
    "interpolation": str,
    "mean": _numbers,
    "std": _numbers,
    "channels": _channel_count,
}
