"""Mahendran & Vedaldi (2015): an image whose features match, sought in pixels under an alpha-norm and total variation.

    || F(x) - F ||^2 / ||F||^2  +  0.009 mean(u^6)  +  lambda mean(|grad u|^2),    u = (rgb - mean colour) / s

Their normalisation, written without the image's size: s is the root mean square of a mean-free photograph (their sigma over
the root of the number of values: 69 of 255), alpha = 6 and 0.009 = lambda_alpha / n^2 of theirs (2.16e8 at 227 x 227 x 3),
beta = 2 and lambda = 0.5, 5 and 50 from shallow to deep. Theirs too: white noise as the start. Adam takes the place of their
gradient descent with momentum, which needs many times the steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.adjoint import primal_rules
from pullback.encoders import Encoder
from pullback.errors import NumericsError
from pullback.graph import plain_autograd
from pullback.studies.sessions import FeatureMethod, Sketch

SCALE = 69 / 255
ALPHA, ALPHA_WEIGHT = 6, 0.009
RATE, BETAS, START = 0.5, (0.9, 0.99), 0.1  # of some fifteen settings, two photographs, 100 steps
FEWEST = 10  # steps

Map = Callable[[Tensor], Tensor]


def variation_weight(stride: float) -> float:
    """lambda of the total variation for a stage whose cells are `stride` pixels apart."""
    return 0.5 if stride < 5.7 else 5.0 if stride < 22.6 else 50.0


def penalty(u: Tensor, weight: float) -> Tensor:
    """0.009 mean(u^6) + weight * mean(|grad u|^2) of u (B, C, H, W): (B,). Forward differences, zero beyond the border."""
    n = u[0].numel()
    across, down = (d.square().flatten(1).sum(1) for d in (u.diff(dim=3), u.diff(dim=2)))
    return ALPHA_WEIGHT * u.pow(ALPHA).flatten(1).mean(1) + weight * (across + down) / n


@dataclass(frozen=True, eq=False)
class Found:
    """u (B, C, H, W) after `steps` steps, and its misfit (B,) = ||F(x) - F|| / scale."""

    u: Tensor
    misfit: Tensor
    steps: int


def search(
    features: Map,
    target: Tensor,
    scale: Tensor,
    start: Tensor,
    weight: float,
    *,
    steps: int | None,
    seconds: float | None,
) -> Found:
    """Minimise from `start` (B, C, H, W); features maps u to (B, *out), item by item; scale (B,) divides the misfit.

    `seconds` picks the number of steps, after two gradients that tell their pace and are not counted. Raises NumericsError.
    """

    def misfits(u: Tensor) -> Tensor:
        return torch.linalg.vector_norm((features(u) - target).flatten(1), dim=1) / scale

    def gradient(u: Tensor) -> Tensor:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            (found,) = torch.autograd.grad((misfits(u).square() + penalty(u, weight)).sum(), u)
        return found

    if steps is None:
        assert seconds is not None
        gradient(start).sum().item()  # the first one warms up; reading a number waits for an accelerator
        warm = time.perf_counter()
        gradient(start).sum().item()
        each = time.perf_counter() - warm
        steps = max(FEWEST, int(seconds / each))
    u = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([u], lr=RATE, betas=BETAS)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        u.grad = gradient(u)
        optimiser.step()
    with torch.no_grad():
        misfit = misfits(u)
    if not bool(torch.isfinite(misfit).all()):
        raise NumericsError(f"the search of Mahendran & Vedaldi left the finite numbers after {steps} steps")
    return Found(u.detach(), misfit, steps)


def mahendran(
    encoder: Encoder, *, steps: int | None = None, seconds: float | None = None, seed: int = 0
) -> FeatureMethod:
    """The method on an encoder; steps or seconds for one picture and its null, the search for zero features, together."""
    std = torch.tensor(encoder.preprocessing.std, device="cpu").to(encoder.device, encoder.dtype)[:, None, None]

    def draw(features: Tensor, stage: int, size: tuple[int, int]) -> Sketch:
        run = encoder.stretch(stage, rules=primal_rules)

        def mapped(u: Tensor) -> Tensor:
            x = u * SCALE / std
            return torch.cat([run(one) for one in x.split(1)]) if encoder.data_dependent else run(x)

        target = torch.stack([features, torch.zeros_like(features)])
        noise = torch.randn(
            len(std), *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu"
        )
        start = (START * noise).to(features).expand(2, -1, -1, -1)
        weight = variation_weight(size[0] / features.shape[-2])
        with plain_autograd(encoder.device):
            scale = features.norm().expand(2)
            found = search(mapped, target, scale, start, weight, steps=steps, seconds=seconds)
        own, null = found.u * SCALE / std
        misfit, null_misfit = found.misfit.tolist()
        return Sketch(own, null, {"steps": found.steps, "feature misfit": misfit, "null: feature misfit": null_misfit})

    return FeatureMethod(
        encoder,
        draw,
        mode="Mahendran & Vedaldi",
        caption=(
            "an image searched for features as near as possible to these, from noise, under an alpha-norm and total "
            "variation; the feature misfit says how near"
        ),
        settings={"method": "mahendran", "steps": steps, "seconds": seconds},
        seed=seed,
    )
