"""Ways to draw a stage at one image that solve or search step by step: the Wiener and the blind inverse (spec 3b, 3c).

And the decoder that the blind inverse may start from, as a draft of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from pullback.errors import OptionError
from pullback.graph import plain_autograd
from pullback.inversion.blind import START, BlindResult, Recipe, blind_inverse, near_zero, recipe_for
from pullback.inversion.kept import kept
from pullback.inversion.leaky import search_rules
from pullback.inversion.methods import NOTHING, Drawn, combined
from pullback.inversion.opened import Opened
from pullback.inversion.prior import Prior
from pullback.inversion.seeds import channel_seeds
from pullback.inversion.taught import VERSION, decoders, setting, synthetic
from pullback.inversion.wiener import WienerSolver

# Shares of the gradient let through shut gates in the blind inverse's backward pass. In a deep chain of gates without shortcuts
# (MobileNetV2) the bold one's shares add up until they point uphill; the careful one did not on any network tried, and goes
# further than none at all.
BOLD, CAREFUL = 0.2, 0.05
_NULLS = 3  # the way of making null pictures; counted up when it changes, since they are kept on disk
SCATTER = 0.3  # standard deviations of the prior: how far from its start a further search begins
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
    caption = (
        "signal space at this image: what a linear solve through its own gates and bias makes of the features, under a "
        "natural-image prior"
    )
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


class _WholeStages:
    """What features alone draw: no channel and no class has features of its own for a search to meet."""

    def channels(self, level: int, channels: Tensor) -> Drawn:
        raise self._only("channels")

    def directions(self, level: int, omega: Tensor) -> Drawn:
        raise self._only("class directions")

    def seeded(self, seed: Tensor, level: int) -> Drawn:
        raise self._only("single seeds (read-outs, certificates)")

    @staticmethod
    def _only(what: str) -> OptionError:
        return OptionError(f"the blind inverse draws whole stages only; for {what} use method='cascade' or 'vjp'")


@dataclass
class BlindMethod(_WholeStages):
    """The blind inverse (spec 3c): features only, no gate of the image. Null: the blind inverse of zero features.

    Of `prior` the mean, the colours and the size count; the spectrum is that of the stage's recipe. start: "taught", what the
    stage's decoder draws from the features, or "mean", the mean colour. Of several `starts`, scattered around that, the
    picture that meets the features best is shown, with how far the pictures lie apart; its null is that of the first start.
    """

    opened: Opened
    prior: Prior
    start: str
    starts: int
    steps: int | None
    seconds: float | None
    seed: int

    called = "drawn from the features alone"
    natural = True
    confined = False

    def __post_init__(self) -> None:
        taught = self.start == "taught"
        self.mode = "blind" if taught else "blind, from the mean colour"
        begun = "what a decoder taught on synthetic pictures draws from them" if taught else "the mean colour"
        self.caption = (
            f"an image searched for features as near as possible to these, from {begun}, under a natural-image prior; "
            "the feature misfit says how near"
        )

    def whole(self, level: int, features: Tensor | None = None) -> Drawn:
        target = self.opened.measure(level).features if features is None else features
        scale = self._scale(level, target, self.opened.levels[level])
        found = self._search(level, target, scale, self.steps, self.seconds, BOLD, CAREFUL, self.starts)
        nearest = int(found.misfit.argmin())
        leak = CAREFUL if found.retreated else BOLD
        null = self._null(level, found.steps, leak)
        misfit, start = float(found.misfit[nearest]), float(found.history[0, nearest])
        null_misfit = float(null["norm"].to(scale) / scale)
        planned, taken = found.steps, len(found.history)
        notes = (
            [] if bool(target.any()) else ["these features are zero: this is a search for none, as the null picture is"]
        )
        if misfit >= min(start, 1):
            notes.append(
                f"the search met nothing of the features (steps: {taken}; misfit: {misfit:.2f}, that of its start {start:.2f}, "
                "that of no features at all 1): this picture does not show them; more steps may"
            )
        elif misfit > 0.5:
            notes.append(
                f"the search met only a part of the features (misfit {misfit:.2f}): not an inverse of this stage"
            )
        if null["norm"] >= null["start"]:
            notes.append("the null picture is no more than its start: nothing came nearer to zero features")
        if taken < planned:
            notes.append(
                f"the machine slowed down: the search ended after {taken} of {planned} steps; steps={planned} gives them all"
            )
        figures = {"steps": taken, "feature misfit": misfit, "null: feature misfit": null_misfit, "leak": leak}
        if self.starts > 1:
            figures |= {"starts": self.starts, "spread of starts": spread(found.x)}
        return Drawn(found.x[nearest], null["picture"].to(found.x), figures, tuple(notes))

    def _null(self, level: int, steps: int, leak: float) -> dict[str, Tensor]:
        """The search for zero features: its picture, and the norms of the features there and at its start.

        It knows nothing of the image, so it is made once for a network and a number of steps. What the features of an image
        are for the scale of its misfit, those of a sample of the prior are here.
        """
        encoder, recipe = self.opened.encoder, self._recipe(level)

        def make() -> dict[str, Tensor]:
            scale = self._scale(level)
            found = self._search(level, torch.zeros_like(self.opened.levels[level]), scale, steps, None, leak)
            return {"picture": found.x[0], "norm": found.misfit[0] * scale, "start": found.history[0, 0] * scale}

        made_by = setting(encoder, self.prior), (self.prior.power, self.prior.f0), str(encoder.device)
        return kept(("null", _NULLS, VERSION, *made_by, self.start, level, recipe, steps, leak, self.seed), make)

    def _scale(self, level: int, *features: Tensor) -> Tensor:
        """What a misfit is counted in: the norm of the first of these features that are not zero.

        Without any, that of features of a sample of the prior, or of a synthetic picture where that leaves the stage silent.
        """
        norms = chain((f.norm() for f in features), (f.norm() for f in self._examples(level)))
        return next((norm for norm in norms if norm > 0), self.opened.image.new_ones(()))

    def _examples(self, level: int) -> Iterator[Tensor]:
        """Features of pictures that know nothing of the image, each calculated when it is asked for."""
        encoder, image = self.opened.encoder, self.opened.image
        source = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(image.shape, generator=source, dtype=torch.float32, device="cpu")
        yield encoder.features(self.prior.mu(image) + self.prior.root(noise.to(image)), level)
        for n in range(4):
            yield encoder.features(synthetic(n, encoder, self.prior).to(image), level)

    def _recipe(self, level: int) -> Recipe:
        stride = self.opened.image.shape[-2] / self.opened.levels[level].shape[-2]
        return recipe_for(stride, taught=self.start == "taught")

    def _search(
        self,
        level: int,
        target: Tensor,
        scale: Tensor,
        steps: int | None,
        seconds: float | None,
        leak: float,
        retreat: float | None = None,
        starts: int = 1,
    ) -> BlindResult:
        """The blind inverse of one target (C, H, W), without neighbours but for its own further starts."""
        encoder = self.opened.encoder
        batch = target.expand(starts, *target.shape).contiguous(memory_format=torch.channels_last)  # as features come

        def leaking(slope: float) -> Callable[[Tensor], Tensor]:
            return encoder.stretch(level, rules=partial(search_rules, slope=slope))

        taught = self.start == "taught"
        start = decoders(encoder, self.prior)[level](batch, self.prior.size) if taught else None
        with plain_autograd(encoder.device):
            return blind_inverse(
                leaking(leak),
                batch,
                self.prior,
                self._recipe(level),
                scale=scale.expand(starts),
                steps=steps,
                seconds=seconds,
                seed=self.seed,
                start=start,
                origin=scattered(self.prior, self.seed, starts).to(self.opened.image),
                retreat=None if retreat is None else leaking(retreat),
            )


def scattered(prior: Prior, seed: int, starts: int) -> Tensor:
    """Where the searches begin, (starts, c, H, W): the first where a single one does."""
    further = [near_zero(prior, (seed + k) % 2**63, SCATTER) for k in range(1, starts)]
    return torch.stack([near_zero(prior, seed, START), *further])


def spread(pictures: Tensor) -> float:
    """How far pictures (N, c, H, W) of N starts lie apart: root mean variance of a pixel over the contrast of their mean."""
    apart = pictures.var(0).mean().sqrt()
    if not apart:
        return 0.0
    mean = pictures.mean(0)
    return float(apart / (mean - mean.mean((1, 2), keepdim=True)).square().mean().sqrt())


@dataclass
class DecoderMethod(_WholeStages):
    """The start of the blind inverse alone: one matrix product, an instant draft. Null: what it draws from zero features."""

    opened: Opened
    prior: Prior

    mode = "decoder"
    called = "drawn from the features alone"
    caption = (
        "what a linear decoder, taught on synthetic pictures, draws from the features: a draft of the blind inverse"
    )
    natural = True
    confined = False

    def whole(self, level: int, features: Tensor | None = None) -> Drawn:
        target = self.opened.levels[level] if features is None else features
        decoder = decoders(self.opened.encoder, self.prior)[level]
        own, null = decoder(torch.stack([target, torch.zeros_like(target)]), self.prior.size)
        notes = () if bool(target.any()) else (NOTHING,)
        return Drawn(own, null, {"ridge": decoder.ridge, "error on synthetic pictures": decoder.error}, notes)
