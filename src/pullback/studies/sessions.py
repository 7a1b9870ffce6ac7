"""What the study asks of every method: open an image, draw a stage beside its null, draw foreign features under its gates.

An `Inverter` does this already. `FeatureMethod` is for methods that draw from the features alone, as the rivals do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from pullback import __version__
from pullback.encoders import Encoder
from pullback.pictures import Display, Picture, Provenance


class Session(Protocol):
    """One preprocessed image (C, H, W), opened by a method."""

    def stage(self, stage: int) -> Picture: ...

    def from_features(self, features: Tensor, stage: int) -> Picture: ...


Opener = Callable[[Tensor], AbstractContextManager[Session]]


@dataclass(frozen=True)
class Sketch:
    """A picture and its null (C, H, W), and what was measured while they were made."""

    own: Tensor
    null: Tensor
    figures: Mapping[str, float | int | str | bool]


Draw = Callable[[Tensor, int, tuple[int, int]], Sketch]
"""From features (C, H, W), the number of their stage and the size (height, width) of the picture."""


@dataclass(frozen=True)
class FeatureMethod:
    """A method that needs nothing but features: its pictures under another image's gates are the same."""

    encoder: Encoder
    draw: Draw
    mode: str
    caption: str
    settings: Mapping[str, Any]
    seed: int

    def __call__(self, image: Tensor) -> AbstractContextManager[Session]:
        return nullcontext(_FeatureSession(self, image))


@dataclass(frozen=True)
class _FeatureSession:
    method: FeatureMethod
    image: Tensor

    def stage(self, stage: int) -> Picture:
        return self.from_features(self.method.encoder.features(self.image, stage), stage)

    def from_features(self, features: Tensor, stage: int) -> Picture:
        m = self.method
        found = m.draw(features, stage, (self.image.shape[-2], self.image.shape[-1]))
        return Picture(
            tensor=found.own,
            null=found.null,
            mode=m.mode,
            called="drawn from the features alone",
            caption=f"stage {stage} ({m.encoder.stage(stage).name}): {m.caption}",
            natural=True,
            display=Display(m.encoder.preprocessing.mean, m.encoder.preprocessing.std),
            figures=found.figures,
            notes=(),
            provenance=Provenance(
                m.encoder.name, m.encoder.weights_digest, "features", m.settings, __version__, m.seed
            ),
        )
