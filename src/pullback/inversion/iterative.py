"""Ways to draw a stage at one image that solve or search step by step: the Wiener and the blind inverse (spec 3b, 3c)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pullback.errors import OptionError
from pullback.graph import plain_autograd
from pullback.inversion.blind import BlindResult, blind_inverse, recipe_for
from pullback.inversion.leaky import leaky_rules
from pullback.inversion.methods import Drawn, combined
from pullback.inversion.opened import Opened
from pullback.inversion.prior import Prior
from pullback.inversion.seeds import channel_seeds
from pullback.inversion.wiener import WienerSolver

# Shares of the gradient let through shut gates in the blind inverse's backward pass. In a deep chain of gates without shortcuts
# (MobileNetV2) the bold one's shares add up until they point uphill; the careful one did not on any network tried, and goes
# further than none at all.
BOLD, CAREFUL = 0.2, 0.05
CONVERGED = 0.1  # relative residual up to which a picture goes without a warning


@dataclass
class WienerMethod:
    """The Wiener inverse (spec 3b): the signal space of the stage at the image. Null: the same with F = 0.

    With delta_c drawn from a channel's residual r * 1_c, a channel's picture is mu + delta_c, and a direction is
    `sum_c (omega_c / alpha_c) delta_c`.
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
        own, null = self._residuals(level, features)
        drawn = self._solve(own[None], null[None], level)
        return Drawn(drawn.own[0], drawn.null[0], drawn.figures, drawn.notes)

    def channels(self, level: int, channels: Tensor) -> Drawn:
        own, null = (channel_seeds(r, channels) for r in self._residuals(level))
        return self._solve(own, null, level)

    def directions(self, level: int, omega: Tensor) -> Drawn:
        at = self.opened.measure(level)
        own, null = (combined(at, omega, r) for r in self._residuals(level))
        return self._solve(own, null, level, centred=False)

    def seeded(self, seed: Tensor, level: int) -> Drawn:
        raise OptionError(
            "a scalar's gradient is no feature, so the Wiener inverse cannot draw it; use method='cascade' or 'vjp'"
        )

    def _residuals(self, level: int, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """r = F - b - J mu = F - F(x) + J (x - mu), of the given features (default: the image's own) and of F = 0."""
        at = self.opened.levels[level]
        sensed = self.opened.whole(level).mv(self.opened.image - self.prior.mu(self.opened.image))
        return sensed if features is None else features - at + sensed, sensed - at

    def _solve(self, own: Tensor, null: Tensor, level: int, centred: bool = True) -> Drawn:
        """Solve for residuals (K, C, H, W) and those of their nulls in one batch."""
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
        solution = solver.solve(torch.cat([own, null]), steps=self.steps, seconds=self.seconds)
        pictures = solution.delta + self.prior.mu(solution.delta) if centred else solution.delta
        k = len(own)
        worst = {
            "relative residual": solution.relative_residual[:k],
            "null: relative residual": solution.relative_residual[k:],
        }
        residuals = {name: float(values.max()) for name, values in worst.items()}
        notes: tuple[str, ...] = ()
        if max(residuals.values()) > CONVERGED:
            notes = (
                "not converged: what the remaining residual would still change is not shown; more steps or seconds bring it down",
            )
        misfit = {"data misfit": solution.misfit[:k].max(), "null: data misfit": solution.misfit[k:].max()}
        unexplained = {name: float(value) for name, value in misfit.items()}
        figures = {"steps": solution.steps, **unexplained, **residuals, "ridge": self.ridge}
        return Drawn(pictures[:k], pictures[k:], figures, notes, natural=None if centred else False)


@dataclass
class BlindMethod:
    """The blind inverse (spec 3c): features only, no gate of the image. Null: the blind inverse of zero features.

    Of `prior` the mean, the colours and the size count; the spectrum is that of the stage's recipe.
    """

    opened: Opened
    prior: Prior
    steps: int | None
    seconds: float | None
    seed: int

    mode = "blind"
    called = "drawn from the features alone"
    caption = "an image whose features match, searched from the mean colour under a natural-image prior"
    natural = True
    confined = False

    def whole(self, level: int, features: Tensor | None = None) -> Drawn:
        self.opened.measure(level)  # an image without features has nothing to be searched for
        target = self.opened.levels[level] if features is None else features
        nothing = torch.zeros_like(target)
        scale = target.norm() if bool(target.any()) else self.opened.levels[level].norm()
        # The numbers in the image may choose the path through the network: then own and null must not share a run.
        batches = [[target], [nothing]] if self.opened.encoder.data_dependent else [[target, nothing]]
        seconds = None if self.seconds is None else self.seconds / len(batches)
        first = self._search(level, torch.stack(batches[0]), scale, self.steps, seconds, BOLD, CAREFUL)
        leak = CAREFUL if first.retreated else BOLD
        found = [first, *(self._search(level, torch.stack(b), scale, first.steps, None, leak) for b in batches[1:])]
        own, null = torch.cat([f.x for f in found])
        misfit, null_misfit = torch.cat([f.misfit for f in found]).tolist()
        start, null_start = torch.cat([f.history[0] for f in found]).tolist()
        planned, taken = first.steps, len(first.history)
        notes = []
        if misfit >= min(start, 1):
            notes.append(
                f"the search met nothing of the features (steps: {taken}; misfit: {misfit:.2f}, that of its start, the mean "
                f"colour, {start:.2f}, that of no features at all 1): this picture does not show them; more steps may"
            )
        elif misfit > 0.5:
            notes.append(
                f"the search met only a part of the features (misfit {misfit:.2f}): not an inverse of this stage"
            )
        if null_misfit >= null_start:
            notes.append("the null picture is no more than its start: nothing came nearer to zero features")
        if taken < planned:
            notes.append(
                f"the machine slowed down: the search ended after {taken} of {planned} steps; steps={planned} gives them all"
            )
        figures = {"steps": taken, "feature misfit": misfit, "null: feature misfit": null_misfit, "leak": leak}
        return Drawn(own, null, figures, tuple(notes))

    def _search(
        self,
        level: int,
        target: Tensor,
        scale: Tensor,
        steps: int | None,
        seconds: float | None,
        leak: float,
        retreat: float | None = None,
    ) -> BlindResult:
        encoder = self.opened.encoder

        def leaking(slope: float) -> Callable[[Tensor], Tensor]:
            return encoder.stretch(level, rules=partial(leaky_rules, slope=slope))

        with plain_autograd(encoder.device):
            return blind_inverse(
                leaking(leak),
                target,
                self.prior,
                recipe_for(self.opened.image.shape[-2] / target.shape[-2]),
                scale=scale.expand(len(target)),
                steps=steps,
                seconds=seconds,
                seed=self.seed,
                retreat=None if retreat is None else leaking(retreat),
            )

    def channels(self, level: int, channels: Tensor) -> Drawn:
        raise _whole_stages_only("channels")

    def directions(self, level: int, omega: Tensor) -> Drawn:
        raise _whole_stages_only("class directions")

    def seeded(self, seed: Tensor, level: int) -> Drawn:
        raise _whole_stages_only("single seeds (read-outs, certificates)")


def _whole_stages_only(what: str) -> OptionError:
    return OptionError(f"the blind inverse draws whole stages only; for {what} use method='cascade' or 'vjp'")
