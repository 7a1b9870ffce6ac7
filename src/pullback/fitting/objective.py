"""The objective of a fit, `|| Xhat_L - x ||` of equation (9), and its derivative through the cascade.

The derivative of w -> J^T w is J, whatever the image: no gradient is taken for the encoder, and the Jacobian's own
dependence on the image is a constant of the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pullback.encoders import Encoder
from pullback.fitting.draws import draw_channels
from pullback.fitting.recipe import Recipe
from pullback.fitting.standing import Losses
from pullback.graph import plain_autograd
from pullback.inversion import Corrector, Correctors
from pullback.inversion.cascade import Cascade
from pullback.inversion.seeds import Measure, measure
from pullback.operator import Jacobian


class _PullBack(torch.autograd.Function):
    """w -> J^T w, whose own adjoint is J: the derivative that reaches the deeper levels' parameters."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, jacobian: Jacobian) -> Tensor:
        ctx.jacobian = jacobian
        return jacobian.vm(w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.jacobian.mv(grads[0]), None


class _Differentiable:
    """A Jacobian whose `vm` takes part in a graph."""

    def __init__(self, jacobian: Jacobian) -> None:
        self.jacobian = jacobian
        self.in_shape, self.out_shape, self.value = jacobian.in_shape, jacobian.out_shape, jacobian.value

    def vm(self, w: Tensor) -> Tensor:
        return _PullBack.apply(w, self.jacobian) if w.requires_grad else self.jacobian.vm(w)


def levels_of(encoder: Encoder) -> list[int]:
    """Channels of the levels 0..L-1 that have correctors. Raises EncoderError for an encoder without stages."""
    return [encoder.input_shape[0], *(s.channels for s in encoder.stages[:-1])]


def start_of(channels: Sequence[int]) -> Tensor:
    """gamma 1 and beta 0 of all levels as one vector: gamma, beta of level 0, then of level 1, ...; float64 on the CPU."""
    ones, zeros = torch.ones(sum(channels), device="cpu"), torch.zeros(sum(channels), device="cpu")
    pairs = zip(ones.split(list(channels)), zeros.split(list(channels)), strict=True)
    return torch.cat([part for pair in pairs for part in pair]).double()


def correctors_of(parameters: Tensor, channels: Sequence[int], like: Tensor) -> Correctors:
    """The correctors that a vector of parameters stands for, on the device and in the type of `like`; differentiable."""
    parts = parameters.to(like).split([c for c in channels for _ in "gb"])
    return Correctors(tuple(Corrector(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)))


@dataclass(frozen=True, eq=False)
class Picture:
    """One image (C, H, W) with all that every cascade at it shares, from one forward pass."""

    image: Tensor
    chain: tuple[Jacobian, ...]
    at: Measure

    @classmethod
    def open(cls, encoder: Encoder, image: Tensor, chunk: int) -> Picture:
        """Raises StageError where every deepest feature is zero."""
        chain: list[Jacobian] = []
        for k in range(encoder.depth):
            reached = chain[-1].value if chain else image
            chain.append(encoder.jacobian(image, k + 1, k, at=reached, chunk=chunk))
        deepest = f"{encoder.depth} ({encoder.stages[-1].name})"
        return cls(image, tuple(chain), measure(chain[-1].value, deepest))

    def close(self) -> None:
        """Give what the Jacobians keep back."""
        for jacobian in self.chain:
            jacobian.close()

    def estimate(self, correctors: Correctors, recipe: Recipe, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """What a step takes for the deepest stage's picture, and the zero seed's picture: (C, H, W) each.

        The first is differentiable in the correctors' parameters.
        """
        chain = cast(Sequence[Jacobian], [_Differentiable(j) for j in self.chain])
        cascade, level = Cascade(chain, correctors), len(chain)
        if recipe.mode == "additive":
            drawn, shares = draw_channels(self.at.alpha, recipe.channels, source)
            own = torch.einsum("k,kchw->chw", shares, cascade.pull(self.at.seeds(drawn), level))
        elif recipe.mode == "fused":
            own = cascade.pull(self.at.features[None], level)[0]
        else:
            kept: dict[int, Tensor] = {}

            def measuring(k: int, v: Tensor) -> Tensor:
                kept[k] = correctors.rms(v.detach())
                return correctors.correct_with(k, v, kept[k])

            own = cascade.pull(self.at.features[None], level, measuring)[0]
        with torch.no_grad():
            with_kept = None if recipe.mode != "frozen" else lambda k, v: correctors.correct_with(k, v, kept[k])
            zero = cascade.pull(cascade.zero_seed(level), level, with_kept)[0]
        return own, zero

    def whole(self, correctors: Correctors, chunk: int) -> Tensor:
        """The additive picture of the deepest stage from all of its live channels, equation (8): (C, H, W)."""
        cascade, picture = Cascade(self.chain, correctors), torch.zeros_like(self.image)
        for c in self.at.live.split(chunk):
            pulled = cascade.pull(self.at.seeds(c), len(self.chain))
            picture += torch.einsum("k,kchw->chw", self.at.alpha[c], pulled)
        return picture


def distance(picture: Tensor, image: Tensor, loss: str) -> Tensor:
    """Mean absolute ("l1") or mean square ("l2") difference of two images; a number."""
    difference = picture - image
    return difference.abs().mean() if loss == "l1" else difference.square().mean()


def floor(image: Tensor, loss: str) -> Tensor:
    """The distance of an image (C, H, W) from the one colour that is nearest to it: its median for l1, its mean for l2."""
    values = image.flatten(1)
    nearest = values.median(1).values if loss == "l1" else values.mean(1)
    return distance(nearest[:, None, None].expand_as(image), image, loss)


def sample(
    picture: Picture, parameters: Tensor, channels: Sequence[int], recipe: Recipe, source: torch.Generator
) -> tuple[Losses, Tensor]:
    """The losses at one picture, and the gradient of the objective there: (P,) like the parameters, float64 on the CPU."""
    with plain_autograd(picture.image.device):
        at = parameters.detach().clone().requires_grad_()
        own, zero = picture.estimate(correctors_of(at, channels, picture.image), recipe, source)
        loss = distance(own, picture.image, recipe.loss)
        (gradient,) = torch.autograd.grad(loss, at)
    return _losses(picture, loss.detach(), zero, recipe), gradient


@torch.no_grad()
def judge(
    picture: Picture, parameters: Tensor, channels: Sequence[int], recipe: Recipe, source: torch.Generator
) -> Losses:
    """The losses at one picture, with channels drawn as in a step."""
    own, zero = picture.estimate(correctors_of(parameters, channels, picture.image), recipe, source)
    return _losses(picture, distance(own, picture.image, recipe.loss), zero, recipe)


@torch.no_grad()
def judge_whole(picture: Picture, parameters: Tensor, channels: Sequence[int], recipe: Recipe) -> float:
    """The loss of the additive picture from all live channels."""
    own = picture.whole(correctors_of(parameters, channels, picture.image), recipe.drawn)
    return float(distance(own, picture.image, recipe.loss))


def _losses(picture: Picture, loss: Tensor, zero: Tensor, recipe: Recipe) -> Losses:
    image = picture.image
    return Losses(float(loss), float(floor(image, recipe.loss)), float(distance(zero, image, recipe.loss)))
