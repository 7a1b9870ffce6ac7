"""Local adjoint correctors: per-channel GroupNorm with an affine map on cotangents, equation (6).

    corrector(v) = gamma * sqrt(N) * P v / sqrt(||P v||^2 + N * eps) + beta,    P = I - 11^T / N

with eps relative to the mean square of P v over one whole cotangent (spec section 3): at depth cotangents fall to 1e-6
and below, where an absolute eps turns normalisation into a scaling.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pullback.errors import OptionError, WeightsError
from pullback.images import write_whole

EPS = 1e-6
SCHEMA = 1
PICTURES = "picture digests"  # entry of a card: 16 hex digits a picture, between spaces

_POSITIONS = (-2, -1)
_COTANGENT = (-3, -2, -1)
_METADATA = "pullback.correctors"
_SETTINGS = {"eps": (float, int), "absolute": (bool,), "centred": (bool,), "label": (str,)}
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def mark_of(digest: str) -> str:
    """What a card keeps of a picture's digest."""
    return digest[:16]


def skipped(shape: tuple[int, ...]) -> bool:
    """Whether a level (C, H, W) has one position: mean removal would erase everything, so it gets no corrector."""
    return shape[-1] * shape[-2] == 1


def rms(v: Tensor, eps: float = EPS, *, absolute: bool = False, centred: bool = True) -> Tensor:
    """The normaliser of every channel of cotangents v (..., C, H, W): sqrt(mean of (P v)^2 + eps), (..., C, 1, 1).

    eps counts in units of the mean square over (C, H, W) of the cotangent itself, or `absolute`ly. centred=False takes v
    for P v. Leading axes are independent: a neighbour in the batch never matters. Zero where there is nothing to divide
    by. Squares neither overflow nor vanish, since they are taken in units of the cotangent's largest value.
    """
    part = _part(v, centred)
    unit = part.detach().abs().amax(_COTANGENT, keepdim=True)
    if absolute:
        unit = unit.clamp_min(eps**0.5)
    unit = torch.where(unit == 0, 1, unit)
    square = (part / unit).square().mean(_POSITIONS, keepdim=True)
    square = square + ((eps**0.5 / unit).square() if absolute else eps * square.mean(-3, keepdim=True))
    empty = square == 0  # the root has no derivative at zero
    return unit * torch.where(empty, 0, torch.where(empty, 1, square).sqrt())


def correct_with(v: Tensor, gamma: Tensor, beta: Tensor, normaliser: Tensor, *, centred: bool = True) -> Tensor:
    """gamma * P v / normaliser + beta for cotangents v (..., C, H, W) and a normaliser (..., C, 1, 1) measured before.

    Affine in v; its linear part has beta = 0. gamma, beta: (C,). A channel whose normaliser is zero gives beta alone.
    """
    empty = normaliser == 0
    contrast = torch.where(empty, 0, _part(v, centred) / torch.where(empty, 1, normaliser))
    return gamma[:, None, None] * contrast + beta[:, None, None]


def correct(
    v: Tensor, gamma: Tensor, beta: Tensor, eps: float = EPS, *, absolute: bool = False, centred: bool = True
) -> Tensor:
    """The corrector (6) on cotangents v (..., C, H, W) with gamma and beta (C,), same shape; differentiable in all three.

    `P v = 0` gives beta alone, never NaN. eps, absolute, centred: see `rms`.
    """
    return correct_with(v, gamma, beta, rms(v, eps, absolute=absolute, centred=centred), centred=centred)


def _part(v: Tensor, centred: bool) -> Tensor:
    """P v, or v itself. What rounding leaves of a constant channel is zero: it would be blown up to full contrast."""
    if not centred:
        return v
    mean = v.mean(_POSITIONS, keepdim=True)
    part = v - mean
    constant = part.detach().abs().amax(_POSITIONS, keepdim=True) <= 8 * torch.finfo(v.dtype).eps * mean.detach().abs()
    return torch.where(constant, 0, part)


@dataclass(frozen=True, eq=False)
class Corrector:
    """gamma and beta (C,) of one level."""

    gamma: Tensor
    beta: Tensor


@dataclass(frozen=True, eq=False)
class Correctors:
    """The correctors of levels 0..L-1 (level 0 is the image), indexed by the channels of the level that they act on.

    eps: relative to each cotangent, or `absolute`, the paper's. centred: False for the rms-only variant. label: "unfitted",
    or what they were fitted on, in a few words; card: what else is known about them ("encoder", "weights", ...), as JSON.
    Raises OptionError for an eps below zero.
    """

    levels: tuple[Corrector, ...]
    eps: float = EPS
    label: str = "fitted"
    card: Mapping[str, Any] = field(default_factory=dict)
    absolute: bool = field(default=False, kw_only=True)
    centred: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.eps < float("inf"):
            raise OptionError(f"eps={self.eps} must be a number, zero or above")

    @classmethod
    def unfitted(cls, channels: Sequence[int], eps: float = EPS, *, absolute: bool = False) -> Correctors:
        """gamma 1 and beta 0 for levels with these channel counts."""
        levels = tuple(Corrector(torch.ones(c, device="cpu"), torch.zeros(c, device="cpu")) for c in channels)
        return cls(levels, eps, "unfitted", absolute=absolute)

    def correct(self, level: int, v: Tensor) -> Tensor:
        """The corrector of a level on cotangents v (..., C, H, W)."""
        return self.correct_with(level, v, self.rms(v))

    def correct_with(self, level: int, v: Tensor, normaliser: Tensor) -> Tensor:
        """The same with a kept normaliser (..., C, 1, 1)."""
        at = self.levels[level]
        return correct_with(v, at.gamma, at.beta, normaliser, centred=self.centred)

    def rms(self, v: Tensor) -> Tensor:
        """The normaliser of cotangents v (..., C, H, W), whatever their level: (..., C, 1, 1)."""
        return rms(v, self.eps, absolute=self.absolute, centred=self.centred)

    def bias_free(self) -> Correctors:
        """The same with beta = 0 everywhere: the zero seed then draws nothing."""
        return self.scaled_bias(0)

    def scaled_bias(self, factor: float) -> Correctors:
        """The same with every beta times `factor` (dose, spec section 5), and a label that says so."""
        levels = tuple(Corrector(c.gamma, factor * c.beta) for c in self.levels)
        words = "" if factor == 1 or self.label == "unfitted" else f", beta x {factor:g}" if factor else ", bias-free"
        return replace(self, levels=levels, label=self.label + words)

    def rms_only(self) -> Correctors:
        """No mean removal and no bias: the only variant whose support stays inside a channel's own field."""
        return replace(self.bias_free(), centred=False, label=f"{self.label}, rms only")

    def to(self, like: Tensor) -> Correctors:
        """On the device and in the type of `like`."""
        return replace(self, levels=tuple(Corrector(c.gamma.to(like), c.beta.to(like)) for c in self.levels))

    @property
    def confined(self) -> bool:
        """Whether they only scale, adding nothing anywhere: pictures then stay inside the seed's field."""
        return not self.centred and not any(bool(c.beta.any()) for c in self.levels)

    @property
    def finite(self) -> bool:
        """Whether every gamma and beta is a finite number."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self._tensors().values())

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides what they do."""
        digest = hashlib.sha256(repr((self.eps, self.absolute, self.centred)).encode())
        for parameter in self._tensors().values():
            digest.update(parameter.double().numpy().tobytes())
        return digest.hexdigest()

    @property
    def pictures(self) -> frozenset[str] | None:
        """The mark (`mark_of`) of every picture of the fit, held back or not; None: the card does not say."""
        said = self.card.get(PICTURES)
        return None if said is None else frozenset(said.split())

    def fits(self, channels: Sequence[int]) -> bool:
        """Whether these correctors are for levels with these channel counts."""
        return [len(c.gamma) for c in self.levels] == list(channels)

    def check(self, encoder: str, channels: Sequence[int]) -> None:
        """Raise WeightsError unless these correctors are for levels with these channel counts."""
        if not self.fits(channels):
            own = [len(c.gamma) for c in self.levels]
            fitted_on = self.card.get("encoder", "an encoder not named")
            raise WeightsError(
                f"these correctors are for levels with {own} channels ({fitted_on}), but {encoder} has {list(channels)};"
                " fit some for this encoder, or leave correctors out (unfitted)"
            )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with the card in its metadata; whole or not at all. Raises OutputError."""
        about = {
            "schema": SCHEMA,
            "settings": {name: getattr(self, name) for name in _SETTINGS},
            "card": dict(self.card),
        }
        write_whole(path, save(self._tensors(), {_METADATA: json.dumps(about, sort_keys=True)}))

    @classmethod
    def load(cls, path: str | Path) -> Correctors:
        """Read what `save` wrote. Raises WeightsError when the file is no such thing, or its numbers are not finite."""
        if not Path(path).is_file():
            what = "is a folder" if Path(path).is_dir() else "does not exist"
            raise WeightsError(f"correctors file {path} {what}; give a file made by Correctors.save")
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_METADATA])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            schema = about["schema"]
            found = cls._parsed(about, tensors) if schema == SCHEMA else None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise WeightsError(
                f"{path} holds no correctors of pullback ({type(error).__name__}); give a file made by Correctors.save"
            ) from error
        if found is None:
            raise WeightsError(f"{path} has schema {schema!r}, this version reads {SCHEMA}; fit the correctors again")
        if not found.finite:
            raise WeightsError(f"correctors file {path} holds numbers that are not finite; fit them again")
        return found

    @classmethod
    def _parsed(cls, about: dict[str, Any], tensors: dict[str, Tensor]) -> Correctors:
        levels = tuple(Corrector(tensors[f"{k}.gamma"], tensors[f"{k}.beta"]) for k in range(len(tensors) // 2))
        if len(tensors) % 2 or any(c.gamma.ndim != 1 or c.gamma.shape != c.beta.shape for c in levels):
            raise ValueError("tensors that make no levels")
        if not all(parameter.dtype in _DTYPES for parameter in tensors.values()):
            raise TypeError("tensors that hold no real numbers")
        settings, card = {name: about["settings"][name] for name in _SETTINGS}, about["card"]
        if any(type(settings[name]) not in types for name, types in _SETTINGS.items()) or not isinstance(card, dict):
            raise TypeError("entries of other types than save writes")
        if not isinstance(card.get(PICTURES, ""), str):
            raise TypeError("pictures that are not named as save writes them")
        return cls(levels, card=card, **settings)

    def _tensors(self) -> dict[str, Tensor]:
        named = ((f"{k}.{name}", p) for k, c in enumerate(self.levels) for name, p in vars(c).items())
        return {name: p.detach().cpu().contiguous() for name, p in named}
