"""The blind inverse (specification, 3c): the image that the features alone point to, without any gate of the original.

    min over z of  || F(x) - F || / ||F||  +  tau ||z||^2,    x = m + amplitude * R z,    R R^T = C

from z near 0 with Adam and a cosine schedule: Mahendran & Vedaldi (2015) in the prior's whitened coordinates, where smooth changes
of the picture are as easy to reach as fine ones. The start m is the mean colour, or what a decoder draws from F (`taught.py`).
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

BETAS, EPS = (0.9, 0.99), 1e-8
START = (
    1e-3  # of a standard deviation of the prior: at mu itself a network without biases has every gate shut, for ever
)
LATE = 1.25
TRIAL, FALL = 10, 0.95  # a search that leads anywhere is below FALL of the start's misfit and of 1 after TRIAL steps
LADDER = (10, 15, 25, 40, 60, 100, 150, 250, 400)


@dataclass(frozen=True)
class Recipe:
    """How one stage is inverted: spectrum of the prior (power, f0), its scale (amplitude), tau, and Adam's rate at the start."""

    power: float
    f0: float
    amplitude: float
    tau: float
    rate: float = 0.1


def recipe_for(stride: float, *, taught: bool = False) -> Recipe:
    """The recipe for a stage whose cells are about `stride` pixels apart, from the mean colour or from a taught start.

    Tuned on a few photographs at 160 px (docs/blind.md). Deeper stages determine less, so they want more weight on the prior.
    What a taught start leaves out of synthetic pictures has a spectrum of power 2.6 above f0 2.7, and half of their contrast.
    """
    if taught:
        octaves = min(max(round(math.log2(stride / 4)), 0), 3)
        return Recipe(power=2.6, f0=2.7, amplitude=0.5, tau=(3e-6, 1e-5, 3e-5, 1e-4)[octaves], rate=0.05)
    if stride < 5.7:
        return Recipe(power=2.5, f0=1.0, amplitude=1.0, tau=1e-5)
    if stride < 11.3:
        return Recipe(power=3.0, f0=4.0, amplitude=1.0, tau=3e-5)
    return Recipe(power=2.5, f0=2.0, amplitude=0.6, tau=2e-4)


@dataclass(frozen=True, eq=False)
class BlindResult:
    """The step of smallest misfit, for each item; of equal ones the last, on which the prior has worked longest.

    x (B, c, H, W) in preprocessed units; misfit (B,) = ||F(x) - F|| / scale at x; history (taken, B), the misfit before each
    step: where misfit is not below history[0], no step came nearer to the features than the start. `steps` is the number to
    ask for to get the same bits again, unless the machine slowed down and fewer were taken (`len(history)`). retreated: the
    search with the gradients of `features` led nowhere, so this is that of the `retreat`.
    """

    x: Tensor
    misfit: Tensor
    history: Tensor
    steps: int
    seconds: float
    retreated: bool


@dataclass(frozen=True, eq=False)
class _Search:
    """The nearest z of each item, its misfit (B,), the misfits on the way, the steps planned, and whether item 0 is lost."""

    z: Tensor
    misfit: Tensor
    history: Tensor
    steps: int
    lost: bool


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
    start: Tensor | None = None,
    origin: Tensor | None = None,
    retreat: Map | None = None,
) -> BlindResult:
    """Images whose features come close to target (B, *out), each found independently of its neighbours.

    features maps (B, c, H, W) to (B, *out), differentiably and item by item; mean, colour and size of the prior are used with the
    spectrum of the recipe. scale (B,) divides the misfit of each item and defaults to `||F||`; zero features, the null
    picture, need the scale of the features they stand beside. start: m, images (B, c, H, W), the prior's mean colour by default.
    origin: z at the beginning (B, c, H, W), by default `near_zero` for all items. A step costs one forward and one backward pass.

    retreat computes the same features with safer gradients. A search that has brought the first item no nearer in `TRIAL`
    steps is given up for one with the retreat, of the same number of steps. One of no more than `TRIAL` steps goes to its end
    first, and then the nearer of the two counts.

    `seconds` picks the largest number of steps of the ladder that should fit, no more than `steps`, from the time that the
    second one takes; a retreat costs `TRIAL` steps more. The answer depends on that number and on `seed` alone, unless the
    machine slows down so much that the search has to be cut off at `LATE` times its seconds. Works under `torch.no_grad` and
    leaves no gradients behind.
    """
    most = check_budget(steps, seconds)
    scale = _norms(target) if scale is None else scale.to(target)
    if scale.shape != target.shape[:1] or not bool((scale > 0).all()):
        raise OptionError(
            f"each of the {len(target)} targets needs a positive scale, but they are {scale.tolist()}: "
            "give scale= (the norm of the image's own features) with zero features"
        )
    prior = replace(prior, power=recipe.power, f0=recipe.f0)

    def picture(z: Tensor) -> Tensor:
        return (prior.mu(z) if start is None else start) + recipe.amplitude * prior.root(z)

    def misfits(x: Tensor, run: Map) -> Tensor:
        return _norms(run(x) - target) / scale

    def gradient(z: Tensor, run: Map) -> tuple[Tensor, Tensor]:
        """Derivative of the summed loss in z, and the misfit (B,): a sum, so no item feels another."""
        x = picture(z).requires_grad_()
        with torch.enable_grad():
            found = run(x.clone())  # a network may begin with an operation in place, which a leaf refuses
            missing = found.detach() - target
            norms = _norms(missing)
            weights = torch.where(norms > 0, 1 / (norms * scale), 0).reshape(-1, *(1,) * (missing.ndim - 1))
            loss = (found * (weights * missing)).sum()  # with the gradient of ||missing|| / scale
            (slope,) = torch.autograd.grad(loss, x) if loss.requires_grad else (torch.zeros_like(x),)
        return recipe.amplitude * prior.root_transpose(slope) + 2 * recipe.tau * z, norms / scale

    @torch.no_grad()
    def search(run: Map, patient: bool, steps: int | None) -> _Search:
        """steps: None for as many as `seconds` allow. The first one, which warms up, is the same for any number."""
        z = begin.clone()
        mean, square = torch.zeros_like(begin), torch.zeros_like(begin)
        best, least, history = begin, torch.full_like(scale, torch.inf), []
        step, clock = 0, [time.perf_counter()]
        while steps is None or step < steps:
            slope, misfit = gradient(z, run)
            history.append(misfit)
            if steps is None:
                misfit.tolist()  # reading the numbers waits for an accelerator
                clock.append(time.perf_counter())
                steps = _affordable(clock, budget, most) if step else None
            best, least = _nearer(z, misfit, best, least)
            if step == TRIAL and not patient and _lost(history[0], misfit):
                assert steps is not None  # since the second step
                return _Search(best, least, torch.stack(history), steps, lost=True)
            rate = recipe.rate * (1 + math.cos(math.pi * (step / steps if steps else 0))) / 2
            step += 1
            z -= rate * _adam(slope, mean, square, step)
            if step >= LADDER[0] and time.perf_counter() > deadline:
                break
        misfit = misfits(picture(z), run)
        best, least = _nearer(z, misfit, best, least)
        assert steps is not None
        lost = steps <= TRIAL and _lost(history[0], misfit)
        return _Search(best, least, torch.stack(history), steps, lost)

    begun = time.perf_counter()
    budget = math.inf if seconds is None else seconds
    deadline = begun + LATE * budget
    begin = near_zero(prior, seed, START).to(target).expand(len(target), -1, -1, -1) if origin is None else origin
    planned = most if seconds is None or (most is not None and most <= LADDER[0]) else None
    found, retreated = search(features, retreat is None, planned), False
    if found.lost and retreat is not None:
        deadline += time.perf_counter() - begun  # what the trial took, so that the steps planned can all be taken
        second = search(retreat, True, found.steps)
        retreated = len(found.history) < found.steps or bool(second.misfit[0] < found.misfit[0])
        found = second if retreated else found
    if not bool(torch.isfinite(found.misfit).all()):
        raise NumericsError(
            f"the blind inverse left the finite numbers: misfits {found.misfit.tolist()} after {found.steps} steps"
        )
    with torch.no_grad():
        x = picture(found.z)
    return BlindResult(x, found.misfit, found.history, found.steps, time.perf_counter() - begun, retreated)


def near_zero(prior: Prior, seed: int, deviation: float) -> Tensor:
    """Noise (c, H, W), float32, of so many standard deviations of the prior."""
    source = torch.Generator().manual_seed(seed)
    return deviation * torch.randn(prior.mean.numel(), *prior.size, generator=source, dtype=torch.float32, device="cpu")


def _adam(slope: Tensor, mean: Tensor, square: Tensor, step: int) -> Tensor:
    """Adam's direction (Kingma & Ba 2015) from the running averages, which take this slope in. step: counted from 1.

    Not `torch.optim`, which loads torch's compiler: a second or more.
    """
    first, second = BETAS
    mean.lerp_(slope, 1 - first)
    square.mul_(second).addcmul_(slope, slope, value=1 - second)
    spread = (square / (1 - second**step)).sqrt_().add_(EPS)
    return mean / (1 - first**step) / spread


def _nearer(z: Tensor, misfit: Tensor, best: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """For each item the one of two points with the smaller misfit, the newer of equals.

    Not the smaller loss: the penalty sums over every value of z, so after Adam's first steps it outweighs any misfit.
    """
    nearer = misfit <= least
    return torch.where(nearer[:, None, None, None], z, best), torch.where(nearer, misfit, least)


def _lost(start: Tensor, misfit: Tensor) -> bool:
    """Whether the first item has not come nearer than the start and than zero features, whose misfit is 1."""
    return not bool(misfit[0] < FALL * start[0].clamp(max=1))


def _norms(features: Tensor) -> Tensor:
    return torch.linalg.vector_norm(features, dim=tuple(range(1, features.ndim)))


def _affordable(clock: list[float], seconds: float, most: int | None) -> int:
    """The largest number of steps of the ladder within `seconds`; clock: at the beginning and after each of two steps."""
    begun, first, second = clock
    left, each = seconds - (second - begun), second - first
    return rung(LADDER, 2 + left / each if each else 0, most)
