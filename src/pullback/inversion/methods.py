"""Ways to draw a stage at one image by pulling back: the corrected cascade and the raw VJP.

Each draws whole stages beside their null, channels, class directions and any seed (`iterative.py`: what solves or searches).
With B_c the picture of channel c, a direction is `sum_c omega_c B_c`, equation (12).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from pullback.inversion.cascade import Cascade, Frozen
from pullback.inversion.correctors import Correctors
from pullback.inversion.opened import Opened
from pullback.inversion.seeds import Measure, measure

ROWS = 8  # channel pictures held at a time
NOTHING = "these features are zero, so this is the null picture"


@dataclass(frozen=True)
class Drawn:
    """What a method drew: `own` and `null` (K, C, H, W), or (C, H, W) for one picture; figures and notes about how.

    mode and natural: of this drawing, where they differ from the method's.
    """

    own: Tensor
    null: Tensor
    figures: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    mode: str | None = None
    natural: bool | None = None


class Method(Protocol):
    """One way to draw, bound to one opened image.

    natural: whole-stage pictures are images, not signed maps. confined: what it pulls back stays inside the seed's field,
    whatever the network and the image, because nothing is added on the way (spec section 4).
    """

    mode: str
    called: str
    caption: str
    natural: bool
    confined: bool

    def whole(self, level: int, features: Tensor | None = None) -> Drawn:
        """The picture of a whole stage; `features` (C, H, W): foreign features under this image's gates."""
        ...

    def channels(self, level: int, channels: Tensor) -> Drawn:
        """B_c of each channel index in `channels` (K,)."""
        ...

    def directions(self, level: int, omega: Tensor) -> Drawn:
        """`sum_c omega_c B_c` for each row of `omega` (D, C)."""
        ...

    def seeded(self, seed: Tensor, level: int) -> Drawn:
        """The picture of any seed (C, H, W)."""
        ...


@dataclass
class CascadeMethod:
    """The corrected cascade, equations (6) to (8). In fused mode channels and directions are the frozen ones."""

    opened: Opened
    correctors: Correctors
    kind: str  # "additive" | "fused" | "frozen"

    called = "adjoint picture"
    natural = True

    def __post_init__(self) -> None:
        self.mode = f"cascade, {self.kind}, {self.correctors.label}"
        self.caption = (
            "cotangents of the features, normalised at every level and pulled back through the image's own gates"
        )
        if any(bool(c.beta.any()) for c in self.correctors.levels):
            self.caption += (
                "; the correctors' biases draw too, through the same gates: the null is what they draw alone"
            )
        else:
            self.caption += "; without biases the zero seed draws nothing, so its null cannot show what the gates draw"
        self.confined = self.correctors.confined
        self._frozen: dict[int, Frozen] = {}
        self._zeros: dict[int, Tensor] = {}
        self._offsets: dict[int, Tensor] = {}

    @cached_property
    def cascade(self) -> Cascade:
        return Cascade(self.opened.chain, self.correctors)

    def whole(self, level: int, features: Tensor | None = None) -> Drawn:
        null = self._null(level)
        if features is not None and not bool(features.any()):
            return Drawn(null, null, {}, (NOTHING, *self._notes(level)))
        at = self.opened.measure(level) if features is None else measure(features, str(level))
        if self.kind == "additive":
            own = torch.zeros_like(self.opened.image)
            for c, b in self._additive(level, at):
                own += torch.einsum("k,kchw->chw", at.alpha[c].to(b), b)
        elif self.kind == "fused":
            own = self.cascade.pull(at.features[None], level)[0]
        else:
            own = self._freeze(level).linear(at.features[None])[0] + null
        return Drawn(own, null, self._figures(at), self._notes(level))

    def channels(self, level: int, channels: Tensor) -> Drawn:
        at = self.opened.measure(level)
        if self.kind == "additive":
            own, null = self.cascade.pull(at.seeds(channels), level), self._null(level)
            return Drawn(own, null.expand_as(own), self._figures(at), self._notes(level))
        null = self._offset(level)
        own = self._freeze(level).linear(_equalised(at, channels)) + null
        return self._as_frozen(own, null.expand_as(own), at, level)

    def directions(self, level: int, omega: Tensor) -> Drawn:
        at = self.opened.measure(level)
        total = omega.sum(1)[:, None, None, None]
        if self.kind == "additive":
            own = self.opened.image.new_zeros(len(omega), *self.opened.image.shape)
            for c, b in self._additive(level, at):
                own += torch.einsum("dk,kchw->dchw", omega[:, c].to(b), b)
            return Drawn(own, total * self._null(level), self._figures(at), self._notes(level), natural=False)
        null = total * self._offset(level)
        return self._as_frozen(self._freeze(level).linear(combined(at, omega)) + null, null, at, level)

    def seeded(self, seed: Tensor, level: int) -> Drawn:
        null = self._null(level)
        if self.kind != "frozen":
            own = self.cascade.pull(seed[None], level)[0]
            mode = f"cascade of one seed, {self.correctors.label}"
            return Drawn(own, null, {}, self._notes(level), mode)
        own = self._freeze(level).linear(seed[None])[0] + null
        return Drawn(own, null, {}, self._notes(level), natural=False)

    def _as_frozen(self, own: Tensor, null: Tensor, at: Measure, level: int) -> Drawn:
        mode = f"cascade, frozen, {self.correctors.label}"
        return Drawn(own, null, self._figures(at), self._notes(level), mode, natural=False)

    def _additive(self, level: int, at: Measure) -> Iterator[tuple[Tensor, Tensor]]:
        for c in at.live.split(ROWS):
            yield c, self.cascade.pull(at.seeds(c), level)

    def _freeze(self, level: int) -> Frozen:
        if level not in self._frozen:
            self._frozen[level] = self.cascade.freeze(self.opened.measure(level).features, level)[0]
        return self._frozen[level]

    def _null(self, level: int) -> Tensor:
        """A_l(0): with the kept normalisers in frozen mode, with its own otherwise."""
        return self._offset(level) if self.kind == "frozen" else self._zero(level)

    # The same for every seed, so drawn once; each picture gets a copy of its own.

    def _zero(self, level: int) -> Tensor:
        if level not in self._zeros:
            self._zeros[level] = self.cascade.pull(self.cascade.zero_seed(level), level)[0]
        return self._zeros[level].clone()

    def _offset(self, level: int) -> Tensor:
        if level not in self._offsets:
            self._offsets[level] = self._freeze(level).offset()
        return self._offsets[level].clone()

    def _figures(self, at: Measure) -> dict[str, float | int | str | bool]:
        return {"channels": len(at.energy), "dead channels": at.dead}

    def _notes(self, level: int) -> tuple[str, ...]:
        skipped = self.cascade.skipped_levels(level)
        return (
            (f"corrector left out at level {', '.join(map(str, skipped))}: a single position has no contrast",)
            if skipped
            else ()
        )


def _equalised(at: Measure, channels: Tensor) -> Tensor:
    """Channel seeds S_c / alpha_c, each brought to the same energy; zero for dead channels."""
    alpha = at.alpha[channels]
    scale = torch.where(alpha > 0, 1 / alpha, torch.zeros_like(alpha))
    return at.seeds(channels) * scale[:, None, None, None]


def combined(at: Measure, omega: Tensor, base: Tensor | None = None) -> Tensor:
    """`sum_c (omega_c / alpha_c) S_c` for each row of omega (D, C): (D, C, H, W)."""
    scale = torch.where(at.alpha > 0, omega / at.alpha, torch.zeros_like(omega))
    return scale[:, :, None, None] * (at.features if base is None else base)


@dataclass
class VjpMethod:
    """The raw pull-back V = J^T S, equation (3); directions take B_c = V_c / alpha_c: omega = w * alpha gives J^T (w * F)."""

    opened: Opened

    mode = "raw VJP"
    called = "raw VJP"
    caption = "the features pulled back through the image's own gates, nothing corrected"
    natural = False
    confined = True

    def whole(self, level: int, features: Tensor | None = None) -> Drawn:
        given = self.opened.measure(level).features if features is None else features
        return self._pull(given[None], level, single=True)

    def channels(self, level: int, channels: Tensor) -> Drawn:
        return self._pull(self.opened.measure(level).seeds(channels), level)

    def directions(self, level: int, omega: Tensor) -> Drawn:
        return self._pull(combined(self.opened.measure(level), omega), level)

    def seeded(self, seed: Tensor, level: int) -> Drawn:
        return self._pull(seed[None], level, single=True)

    def _pull(self, seeds: Tensor, level: int, single: bool = False) -> Drawn:
        own = self.opened.whole(level).vm(seeds)
        own = own[0] if single else own
        return Drawn(own, torch.zeros_like(own))
