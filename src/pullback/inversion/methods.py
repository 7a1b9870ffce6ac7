"""The four ways to draw a stage at one image: corrected cascade, raw VJP, Wiener inverse, blind inverse.

Each draws whole stages beside their null; the first three also draw channels, class directions and any seed.
With B_c the picture of channel c, a direction is `sum_c omega_c B_c`, equation (12).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from pullback.errors import OptionError
from pullback.inversion.blind import blind_inverse, recipe_for
from pullback.inversion.cascade import Cascade, Frozen
from pullback.inversion.correctors import Correctors
from pullback.inversion.leaky import leaky_rules
from pullback.inversion.opened import Opened
from pullback.inversion.prior import Prior
from pullback.inversion.seeds import Measure, measure
from pullback.inversion.wiener import WienerSolver

ROWS = 8  # channel pictures held at a time


@dataclass(frozen=True)
class Drawn:
    """What a method drew: `own` and `null` (K, C, H, W), or (C, H, W) for a whole stage; figures and notes about how."""

    own: Tensor
    null: Tensor
    figures: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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
        self.confined = self.correctors.confined
        self._frozen: dict[int, Frozen] = {}

    @cached_property
    def cascade(self) -> Cascade:
        return Cascade(self.opened.chain, self.correctors)

    def whole(self, level: int, features: Tensor | None = None) -> Drawn:
        at = self.opened.measure(level) if features is None else measure(features, str(level))
        if self.kind == "additive":
            own = torch.zeros_like(self.opened.image)
            for c, b in self._additive(level, at):
                own += torch.einsum("k,kchw->chw", at.alpha[c], b)
        elif self.kind == "fused":
            own = self.cascade.pull(at.features[None], level)[0]
        else:
            frozen = self._freeze(level)
            own = frozen.linear(at.features[None])[0] + frozen.offset()
        return Drawn(own, self._null(level), self._figures(level, at), self._notes(level))

    def channels(self, level: int, channels: Tensor) -> Drawn:
        at = self.opened.measure(level)
        if self.kind == "additive":
            own = self.cascade.pull(at.seeds(channels), level)
        else:
            frozen = self._freeze(level)
            own = frozen.linear(_equalised(at, channels)) + frozen.offset()
        return Drawn(own, self._null(level).expand_as(own), self._figures(level, at), self._notes(level))

    def directions(self, level: int, omega: Tensor) -> Drawn:
        at = self.opened.measure(level)
        null = omega.sum(1)[:, None, None, None] * self._null(level)
        if self.kind == "additive":
            own = torch.zeros_like(null)
            for c, b in self._additive(level, at):
                own += torch.einsum("dk,kchw->dchw", omega[:, c], b)
        else:
            frozen = self._freeze(level)
            own = frozen.linear(_combined(at, omega)) + omega.sum(1)[:, None, None, None] * frozen.offset()
        return Drawn(own, null, self._figures(level, at), self._notes(level))

    def seeded(self, seed: Tensor, level: int) -> Drawn:
        own = self.cascade.pull(seed[None], level)[0]
        return Drawn(own, self._zero(level), {}, self._notes(level))

    def _additive(self, level: int, at: Measure) -> Iterator[tuple[Tensor, Tensor]]:
        for c in at.live.split(ROWS):
            yield c, self.cascade.pull(at.seeds(c), level)

    def _freeze(self, level: int) -> Frozen:
        if level not in self._frozen:
            self._frozen[level] = self.cascade.freeze(self.opened.measure(level).features, level)[0]
        return self._frozen[level]

    def _null(self, level: int) -> Tensor:
        """A_l(0): with the kept normalisers in frozen mode, with its own otherwise."""
        return self._freeze(level).offset() if self.kind == "frozen" else self._zero(level)

    def _zero(self, level: int) -> Tensor:
        return self.cascade.pull(self.cascade.zero_seed(level), level)[0]

    def _figures(self, level: int, at: Measure) -> dict[str, float | int | str | bool]:
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


def _combined(at: Measure, omega: Tensor, base: Tensor | None = None) -> Tensor:
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
        at = self.opened.measure(level)
        return self._pull((at.features if features is None else features)[None], level, single=True)

    def channels(self, level: int, channels: Tensor) -> Drawn:
        return self._pull(self.opened.measure(level).seeds(channels), level)

    def directions(self, level: int, omega: Tensor) -> Drawn:
        return self._pull(_combined(self.opened.measure(level), omega), level)

    def seeded(self, seed: Tensor, level: int) -> Drawn:
        return self._pull(seed[None], level, single=True)

    def _pull(self, seeds: Tensor, level: int, single: bool = False) -> Drawn:
        own = self.opened.whole(level).vm(seeds)
        own = own[0] if single else own
        return Drawn(own, torch.zeros_like(own))


@dataclass
class WienerMethod:
    """The Wiener inverse (spec 3b): the signal space of the stage at the image. Null: the picture of F = 0.

    With delta_c drawn from the channel's residual r * 1_c: B_c = mu + delta_c, and directions are sum_c (omega_c / alpha_c) delta_c.
    """

    opened: Opened
    prior: Prior
    ridge: float
    steps: int | None
    seconds: float | None
    seed: int

    mode = "Wiener"
    called = "signal space"
    caption = "the part of the image that the stage is sensitive to; gates and bias come from the image itself"
    natural = True
    confined = True  # before the prior spreads it

    def whole(self, level: int, features: Tensor | None = None) -> Drawn:
        own, nothing = (
            self._residual(level, features),
            self._residual(level, torch.zeros_like(self.opened.levels[level])),
        )
        return self._solve(torch.stack([own, nothing]), level, pairs=True)

    def channels(self, level: int, channels: Tensor) -> Drawn:
        residual = self._residual(level)
        seeds = residual.new_zeros(len(channels), *residual.shape)
        seeds[torch.arange(len(channels)), channels] = residual[channels]
        return self._solve(seeds, level)

    def directions(self, level: int, omega: Tensor) -> Drawn:
        return self._solve(_combined(self.opened.measure(level), omega, self._residual(level)), level, centre=False)

    def seeded(self, seed: Tensor, level: int) -> Drawn:
        raise OptionError(
            "a scalar's gradient is no feature, so the Wiener inverse cannot draw it; use method='cascade' or 'vjp'"
        )

    def _residual(self, level: int, features: Tensor | None = None) -> Tensor:
        """r = F - b - J mu = F - F(x) + J (x - mu)."""
        jacobian = self.opened.whole(level)
        sensed = jacobian.mv(self.opened.image - self.prior.mu(self.opened.image))
        return sensed if features is None else features - self.opened.levels[level] + sensed

    def _solve(self, residuals: Tensor, level: int, pairs: bool = False, centre: bool = True) -> Drawn:
        jacobian = self.opened.whole(level)
        solver = WienerSolver(
            jacobian.mv,
            jacobian.vm,
            self.prior,
            jacobian.in_shape,
            jacobian.out_shape,
            ridge=self.ridge,
            seed=self.seed,
        )
        solution = solver.solve(residuals, steps=self.steps, seconds=self.seconds)
        pictures = solution.delta + self.prior.mu(solution.delta) if centre else solution.delta
        figures: dict[str, float | int | str | bool] = {
            "steps": solution.steps,
            "relative residual": float(solution.relative_residual[0]),
            "ridge": self.ridge,
        }
        if pairs:
            figures["null: relative residual"] = float(solution.relative_residual[1])
            return Drawn(pictures[0], pictures[1], figures)
        null = self.prior.mu(pictures).expand_as(pictures) if centre else torch.zeros_like(pictures)
        figures["relative residual"] = float(solution.relative_residual.max())
        return Drawn(pictures, null, figures, ("the null of a seed is r = 0: the mean colour",))


@dataclass
class BlindMethod:
    """The blind inverse (spec 3c): features only, no gate of the image. Null: the blind inverse of zero features."""

    opened: Opened
    prior: Prior
    steps: int | None
    seconds: float | None

    mode = "blind"
    called = "drawn from the features alone"
    caption = "an image whose features match, searched from the mean colour under a natural-image prior"
    natural = True
    confined = False

    def whole(self, level: int, features: Tensor | None = None) -> Drawn:
        target = self.opened.levels[level] if features is None else features
        encoder = self.opened.encoder
        found = blind_inverse(
            encoder.stretch(level, rules=leaky_rules),
            torch.stack([target, torch.zeros_like(target)]),
            self.prior,
            recipe_for(round(encoder.stage(level).stride)),
            scale=target.norm().expand(2),
            steps=self.steps,
            seconds=self.seconds,
        )
        figures = {
            "steps": found.steps,
            "feature misfit": float(found.misfit[0]),
            "null: feature misfit": float(found.misfit[1]),
        }
        return Drawn(found.x[0], found.x[1], figures)

    def channels(self, level: int, channels: Tensor) -> Drawn:
        raise OptionError(
            "the blind inverse draws whole stages only; for channels use method='cascade', 'vjp' or 'wiener'"
        )

    def directions(self, level: int, omega: Tensor) -> Drawn:
        raise OptionError(
            "the blind inverse draws whole stages only; for class directions use method='cascade', 'vjp' or 'wiener'"
        )

    def seeded(self, seed: Tensor, level: int) -> Drawn:
        raise OptionError("the blind inverse draws whole stages only; for a scalar use method='cascade' or 'vjp'")
