"""The blind inverse (specification, 3c): the image that the features alone point to, without any gate of the original.

    min over z of  || F(x) - F || / ||F||  +  tau ||z||^2,    x = mu + amplitude * R z,    R R^T = C

from z near 0 with Adam and a cosine schedule: Mahendran & Vedaldi (2015) in the prior's whitened coordinates, where smooth changes
of the picture are as easy to reach as fine ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pullback.errors import NumericsError, OptionError
from pullback.inversion.budget import check_budget, rung
from pullback.inversion.prior import Prior

Map = Callable[[Tensor], Tensor]

RATE = 0.1
BETAS = (0.9, 0.99)
START = (
    1e-3  # of a standard deviation of the prior: at mu itself a network without biases has every gate shut, for ever
)
LATE = 1.25
TRIAL, FALL = (
    10,
    0.95,
)  # a search that leads anywhere has brought the misfit below FALL of the start's after TRIAL steps
LADDER = (10, 15, 25, 40, 60, 100, 150, 250, 400)


@dataclass(frozen=True)
class Recipe:
    """How one stage is inverted: spectrum of the prior (power, f0), step length in its units (amplitude), and tau."""

    power: float
    f0: float
    amplitude: float
    tau: float


def recipe_for(stride: float) -> Recipe:
    """The recipe for a stage whose cells are about `stride` pixels apart.

    Tuned on a few photographs at 160 px through ResNet-18, SqueezeNet 1.1, MobileNetV2 and the embedded encoder. Deeper stages
    determine less, so they want a smoother prior and more weight on it.
    """
    if stride < 5.7:
        return Recipe(power=2.5, f0=1.0, amplitude=1.0, tau=1e-5)
    if stride < 11.3:
        return Recipe(power=3.0, f0=4.0, amplitude=1.0, tau=3e-5)
    return Recipe(power=2.5, f0=2.0, amplitude=0.6, tau=2e-4)


@dataclass(frozen=True, eq=False)
class BlindResult:
    """The step of smallest loss, for each item.

    x (B, c, H, W) in preprocessed units; misfit (B,) = ||F(x) - F|| / scale at x; history (taken, B), the misfit before each
    step; `steps` is the number to ask for to get the same bits again, unless fewer were taken (`len(history)`): given_up says
    that an impatient search saw no descent.
    """

    x: Tensor
    misfit: Tensor
    history: Tensor
    steps: int
    seconds: float
    given_up: bool


def blind_inverse(
    features: Map,
    target: Tensor,
    prior: Prior,
    recipe: Recipe,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    scale: Tensor | None = None,
    seed: int = 0,
    impatient: bool = False,
) -> BlindResult:
    """Images whose features come close to target (B, *out), each found independently of its neighbours.

    features maps (B, c, H, W) to (B, *out), differentiably and item by item; mean, colour and size of the prior are used with the
    spectrum of the recipe. scale (B,) divides the misfit of each item and defaults to `||F||`; zero features, the null
    picture, need the scale of the features they stand beside. `seconds` picks the largest number of steps of the ladder that
    should fit, after timing two gradients; the answer depends on the number and on `seed` alone, unless the machine slows down
    so much that the search has to be cut off at `LATE` times its seconds. An impatient search gives up after `TRIAL` steps that
    have not brought the first item nearer. A step costs one forward and one backward pass. Works under `torch.no_grad` and leaves
    no gradients behind.
    """
    check_budget(steps, seconds)
    scale = _norms(target) if scale is None else scale.to(target)
    if scale.shape != target.shape[:1] or not bool((scale > 0).all()):
        raise OptionError(
            f"each of the {len(target)} targets needs a positive scale, but they are {scale.tolist()}: "
            "give scale= (the norm of the image's own features) with zero features"
        )
    prior = replace(prior, power=recipe.power, f0=recipe.f0)

    def picture(z: Tensor) -> Tensor:
        return prior.mu(z) + recipe.amplitude * prior.root(z)

    def losses(z: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and misfit of each item, (B,) both."""
        misfit = _norms(features(picture(z)) - target) / scale
        return misfit + recipe.tau * z.square().flatten(1).sum(1), misfit

    def gradient(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Derivative of the summed loss in z, loss and misfit (B,): a sum, so no item feels another."""
        with torch.enable_grad():
            loss, misfit = losses(z)
            return torch.autograd.grad(loss.sum(), z)[0], loss.detach(), misfit.detach()

    start = time.perf_counter()
    noise = torch.randn(prior.mean.numel(), *prior.size, generator=torch.Generator().manual_seed(seed), device="cpu")
    z = (START * noise).to(target).expand(len(target), -1, -1, -1).clone().requires_grad_()
    if steps is None:
        assert seconds is not None
        steps = _affordable(lambda: gradient(z), seconds)
    optimiser = torch.optim.Adam([z], lr=RATE, betas=BETAS)
    history = []
    best, least, given_up = z.detach().clone(), torch.full_like(scale, torch.inf), False
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        z.grad, loss, misfit = gradient(z)
        history.append(misfit)
        given_up = impatient and step == TRIAL and not bool(misfit[0] < FALL * history[0][0])
        if given_up:
            break
        best, least = _better(z, loss, best, least)
        optimiser.step()
        if seconds is not None and step + 1 >= LADDER[0] and time.perf_counter() - start > LATE * seconds:
            break
    with torch.no_grad():
        x = picture(_better(z, losses(z)[0], best, least)[0])
        misfit = _norms(features(x) - target) / scale
    if not bool(torch.isfinite(misfit).all()):
        raise NumericsError(f"the blind inverse left the finite numbers: misfits {misfit.tolist()} after {steps} steps")
    return BlindResult(x, misfit, torch.stack(history), steps, time.perf_counter() - start, given_up)


def _better(z: Tensor, loss: Tensor, best: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """For each item the one of two points with the smaller loss: a search that runs away still shows how far it came."""
    lower = loss < least
    return torch.where(lower[:, None, None, None], z.detach(), best), torch.where(lower, loss, least)


def _norms(features: Tensor) -> Tensor:
    return torch.linalg.vector_norm(features.flatten(1), dim=1)


def _affordable(evaluate: Callable[[], tuple[Tensor, Tensor, Tensor]], seconds: float) -> int:
    """The largest number of steps of the ladder within `seconds`, two trial gradients included; the first one warms up."""
    start = time.perf_counter()
    evaluate()[1].tolist()  # reading the numbers waits for an accelerator
    warm = time.perf_counter()
    evaluate()[1].tolist()
    end = time.perf_counter()
    fitting = (end - warm) and (seconds - (end - start)) / (end - warm)
    return rung(LADDER, fitting)
