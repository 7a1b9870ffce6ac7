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


def skipped(shape: tuple[int, ...]) -> bool:
    """Whether a level (C, H, W) has a single position: mean removal would erase everything, so it gets no corrector."""
    return shape[-1] * shape[-2] == 1


def normalised(v: Tensor, eps: float = EPS, *, absolute: bool = False) -> tuple[Tensor, Tensor]:
    """Zero-mean part of cotangents v (..., C, H, W) and their normaliser (..., C, 1, 1), the root of the mean square plus eps.

    Both are divided by the largest absolute value of each cotangent's zero-mean part, so that squares neither overflow
    nor vanish. Leading axes are independent: a neighbour in the batch never matters.
    """
    centred = v - v.mean((-2, -1), keepdim=True)
    largest = centred.detach().abs().amax((-3, -2, -1), keepdim=True)
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    scaled = centred / unit
    square = scaled.square().mean((-2, -1), keepdim=True)
    floor = eps / unit.square() if absolute else eps * square.mean(-3, keepdim=True)
    return scaled, (square + floor).sqrt()


def rms(v: Tensor, eps: float = EPS) -> Tensor:
    """The normaliser of each channel of cotangents v (..., C, H, W) in the units of v: (..., C, 1, 1); zero for a zero cotangent."""
    centred = v - v.mean((-2, -1), keepdim=True)
    largest = centred.abs().amax((-3, -2, -1), keepdim=True)
    return normalised(v, eps)[1] * largest


def correct(v: Tensor, gamma: Tensor, beta: Tensor, eps: float = EPS, *, absolute: bool = False) -> Tensor:
    """The corrector (6) on cotangents v (..., C, H, W) with gamma, beta (C,). `P v = 0` gives beta alone, never NaN."""
    scaled, normaliser = normalised(v, eps, absolute=absolute)
    return _affine(scaled, normaliser, gamma, beta)


def correct_with(v: Tensor, gamma: Tensor, beta: Tensor, normaliser: Tensor) -> Tensor:
    """The corrector with a kept normaliser (..., C, 1, 1): affine in v; where it is zero, beta alone."""
    return _affine(v - v.mean((-2, -1), keepdim=True), normaliser, gamma, beta)


def rms_only(v: Tensor, eps: float = EPS) -> Tensor:
    """No mean removal and no bias: the only variant whose support stays inside the channel's own field (spec section 4)."""
    largest = v.abs().amax((-3, -2, -1), keepdim=True)
    scaled = v / torch.where(largest > 0, largest, torch.ones_like(largest))
    square = scaled.square().mean((-2, -1), keepdim=True)
    normaliser = (square + eps * square.mean(-3, keepdim=True)).sqrt()
    return torch.where(normaliser > 0, scaled / normaliser, torch.zeros_like(scaled))


def _affine(centred: Tensor, normaliser: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    alive = normaliser > 0
    contrast = torch.where(
        alive, centred / torch.where(alive, normaliser, torch.ones_like(normaliser)), torch.zeros_like(centred)
    )
    return gamma[:, None, None] * contrast + beta[:, None, None]


@dataclass(frozen=True, eq=False)
class Corrector:
    """gamma and beta (C,) of one level."""

    gamma: Tensor
    beta: Tensor


@dataclass(frozen=True, eq=False)
class Correctors:
    """The correctors of levels 0..L-1 (level 0 is the image), indexed by the channels of the level that they act on.

    label: "unfitted", or what they were fitted on, in a few words; card: everything else that is known about them.
    """

    levels: tuple[Corrector, ...]
    eps: float = EPS
    label: str = "fitted"
    card: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def unfitted(cls, channels: Sequence[int], eps: float = EPS) -> Correctors:
        """gamma 1 and beta 0 for levels with these channel counts."""
        return cls(tuple(Corrector(torch.ones(c), torch.zeros(c)) for c in channels), eps, "unfitted")

    def bias_free(self) -> Correctors:
        """The same with beta = 0 everywhere: the zero seed then draws nothing."""
        return (
            self.scaled_bias(0.0)
            if self.label == "unfitted"
            else replace(self.scaled_bias(0.0), label=f"{self.label}, bias-free")
        )

    def scaled_bias(self, factor: float) -> Correctors:
        """The same with every beta times `factor` (dose, spec section 5)."""
        return replace(self, levels=tuple(Corrector(c.gamma, factor * c.beta) for c in self.levels))

    def to(self, like: Tensor) -> Correctors:
        """On the device and in the type of `like`."""
        return replace(self, levels=tuple(Corrector(c.gamma.to(like), c.beta.to(like)) for c in self.levels))

    @property
    def digest(self) -> str:
        """SHA-256 of eps and all parameters."""
        digest = hashlib.sha256(repr(self.eps).encode())
        for c in self.levels:
            for p in (c.gamma, c.beta):
                digest.update(p.detach().double().cpu().numpy().tobytes())
        return digest.hexdigest()

    def check(self, encoder: str, channels: Sequence[int]) -> None:
        """Raise WeightsError unless these correctors are for levels with these channel counts."""
        own = [len(c.gamma) for c in self.levels]
        if own != list(channels):
            raise WeightsError(
                f"these correctors are for levels with {own} channels ({self.card.get('encoder', 'encoder not named')}), but {encoder}"
                f" has {list(channels)}; fit some for this encoder, or leave correctors out (unfitted)"
            )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with the card in its metadata; whole or not at all. Raises OutputError."""
        tensors = {
            f"{k}.{name}": p.detach().cpu().contiguous()
            for k, c in enumerate(self.levels)
            for name, p in vars(c).items()
        }
        card = {"schema": SCHEMA, "eps": self.eps, "label": self.label, "card": dict(self.card)}
        write_whole(path, save(tensors, {"pullback.correctors": json.dumps(card, sort_keys=True)}))

    @classmethod
    def load(cls, path: str | Path) -> Correctors:
        """Read what `save` wrote. Raises WeightsError when the file is no such thing, or its numbers are not finite."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {})["pullback.correctors"])
                names = sorted({int(key.split(".")[0]) for key in file.keys()})  # noqa: SIM118 - not a mapping
                levels = tuple(Corrector(file.get_tensor(f"{k}.gamma"), file.get_tensor(f"{k}.beta")) for k in names)
        except FileNotFoundError as error:
            raise WeightsError(f"correctors file {path} does not exist; check the name") from error
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise WeightsError(
                f"{path} holds no correctors of pullback ({type(error).__name__}); give a file made by Correctors.save"
            ) from error
        if metadata.get("schema") != SCHEMA:
            raise WeightsError(
                f"{path} has schema {metadata.get('schema')!r}, this version reads {SCHEMA}; fit the correctors again"
            )
        if not all(bool(torch.isfinite(p).all()) for c in levels for p in (c.gamma, c.beta)):
            raise WeightsError(f"correctors file {path} holds numbers that are not finite; fit them again")
        return cls(levels, metadata["eps"], metadata["label"], metadata["card"])

    def __post_init__(self) -> None:
        if not self.eps >= 0:
            raise OptionError(f"eps={self.eps} must be zero or above")
