"""The forward measure of a stage and the weights of a class direction: equations (2), (3) and (12)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.encoders import Encoder
from pullback.errors import NumericsError, OptionError, StageError
from pullback.graph import plain_autograd

WEIGHTS = ("w*alpha", "w", "w*gap")


@dataclass(frozen=True)
class Measure:
    """Energies and simplex weights of one stage's channels at one image.

    features (C, H, W); energy (C,): mean over positions of |F|, equation (2); alpha (C,): energy over its sum;
    live: indices of channels with a non-zero seed, in order.
    """

    features: Tensor
    energy: Tensor
    alpha: Tensor
    live: Tensor

    @property
    def dead(self) -> int:
        return len(self.energy) - len(self.live)

    def seeds(self, channels: Tensor) -> Tensor:
        """Channel seeds S_c = F * 1_c, equation (3): (K, C, H, W) for K channel indices."""
        return channel_seeds(self.features, channels)


def channel_seeds(values: Tensor, channels: Tensor) -> Tensor:
    """values * 1_c for each of K channel indices, values (C, H, W): (K, C, H, W)."""
    made = values.new_zeros(len(channels), *values.shape)
    made[torch.arange(len(channels), device=values.device), channels] = values[channels]
    return made


def measure(features: Tensor, stage: str) -> Measure:
    """The forward measure of features (C, H, W) of a stage, which the errors name.

    Raises NumericsError where some are not finite, StageError where all are zero.
    """
    strange = int((~torch.isfinite(features)).sum())
    if strange:
        raise NumericsError(
            f"{strange} of {features.numel()} features of stage {stage} are NaN or infinite at this image; expected "
            "finite numbers: check the weights and the image, or compute in float32 or float64"
        )
    energy = features.abs().mean((1, 2))
    total = energy.sum()
    if not total > 0:
        raise StageError(
            f"every feature of stage {stage} is zero at this image, so there is nothing to pull back; try another image"
        )
    return Measure(features, energy, energy / total, energy.nonzero()[:, 0])


def class_weights(encoder: Encoder, image: Tensor, deepest: Tensor, target: int) -> Tensor:
    """Class weights w_y (C,) at the deepest features (C, H, W) of one preprocessed image.

    Exact rows of the classifier where the head is linear after global average pooling; otherwise the gradient of the
    class score summed over positions, which is the same thing for a linear head.
    """
    if encoder.head.weight is not None:
        return encoder.head.weight[target].to(deepest)
    return score_gradient(encoder, image, deepest, target).sum((1, 2))


def score_gradient(encoder: Encoder, image: Tensor, deepest: Tensor, target: int) -> Tensor:
    """d logit_y / d F_L at the deepest features (C, H, W): the same shape."""
    head = encoder.stretch("logits", encoder.depth, along=image)
    with plain_autograd(deepest.device):
        at = deepest.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(head(at[None])[0, target], at)
    return gradient


def importance(weights: Tensor, at: Measure, kind: str) -> Tensor:
    """Channel importance omega (C,) of equation (12), `w * alpha`, or the alternatives `w` and `w * gap(F)`."""
    if kind == "w*alpha":
        return weights * at.alpha
    if kind == "w":
        return torch.where(at.energy > 0, weights, torch.zeros_like(weights))
    if kind == "w*gap":
        return weights * at.features.mean((1, 2))
    raise OptionError(f"unknown class weights {kind!r}; choose one of {', '.join(WEIGHTS)}")
