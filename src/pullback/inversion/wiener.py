"""The Wiener inverse (specification, 3b): the posterior mean of an image under a Gaussian prior and linearised features.

    Xhat - mu = C J^T z,    (J C J^T + ridge * m * I) z = r,    r = F - b - J mu,    m = mean diagonal of J C J^T

The same picture is S y with C = S S^T and y the minimum of `||J S y - r||^2 + ridge * m * ||y||^2`. That is how it is solved, by
conjugate gradients on the least-squares problem (CGLS; Hestenes and Stiefel 1952, Bjorck 1996) in the white DCT coefficients y of
the image, for several right-hand sides at once: each step lowers the objective, so that a few already explain most of the
features, whereas the same algorithm in feature space, on z, is still far off after a hundred. Needs only `J v`, `J^T w` and the
prior. With an image's own features `r = J (x - mu)` and the picture is the signal space of the stage at `x`: gates and `b` come
from `x` too, so it is not a picture drawn from the features alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.errors import NumericsError, OptionError
from pullback.inversion.budget import check_budget, rung
from pullback.inversion.prior import Prior

Map = Callable[[Tensor], Tensor]

RIDGE = 1e-3  # features have no noise but rounding, so little of it; ten times less changed no SSIM by more than .002
LADDER = (2, 3, 5, 8, 12, 20, 30, 50, 80, 130, 200, 320, 500)


@dataclass(frozen=True, eq=False)
class Solution:
    """What conjugate gradients reached for K right-hand sides.

    delta (K, *in) = S y is the picture without mu. misfit (K,) is ||J delta - r|| / ||r||, which at the solution is what the
    ridge leaves unexplained. relative_residual (K,) is the gradient of the objective at y over that at 0, computed anew at the
    end: 0 at the solution. Both are 0 for r = 0. `steps` were taken; asking for that number gives the same bits again.
    iterations (K,) says where each right-hand side stopped.
    """

    delta: Tensor
    misfit: Tensor
    relative_residual: Tensor
    steps: int
    iterations: Tensor
    seconds: float


class WienerSolver:
    """Wiener inverses at one linearisation point, for any number of right-hand sides.

    mv maps (K, *in) to (K, *out), vm maps (K, *out) to (K, *in), its adjoint; ridge is the noise-to-signal ratio lambda, m is
    estimated by Hutchinson's method from `probes` random signs drawn with `seed`.
    """

    def __init__(
        self,
        mv: Map,
        vm: Map,
        prior: Prior,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        *,
        ridge: float = RIDGE,
        seed: int = 0,
        probes: int = 4,
    ) -> None:
        if not ridge > 0 or probes < 1:
            raise OptionError(
                f"the Wiener inverse needs ridge > 0 and probes >= 1, but got ridge={ridge}, probes={probes}"
            )
        expected = (prior.mean.numel(), *prior.size)
        if tuple(in_shape) != expected:
            raise OptionError(f"the prior is one of pictures {expected}, but the operator takes {tuple(in_shape)}")
        self.mv, self.vm, self.prior = mv, vm, prior
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.ridge, self.seed, self.probes = ridge, seed, probes
        self._scale: dict[tuple[torch.dtype, torch.device], float] = {}

    def scale(self, like: Tensor) -> float:
        """`m`, the mean diagonal of J C J^T: `E ||S^T J^T v||^2 / size(v)` over random signs v; one `vm` for all probes."""
        key = (like.dtype, like.device)
        if key not in self._scale:
            generator = torch.Generator().manual_seed(self.seed)
            shape = (self.probes, *self.out_shape)
            signs = torch.randint(0, 2, shape, generator=generator, device="cpu").to(like) * 2 - 1
            m = float(self.prior.analysis(self.vm(signs)).square().sum() / signs.numel())
            if not 0 < m < float("inf"):
                raise NumericsError(f"the mean diagonal of J C J^T is {m}: this stage does not react to the image here")
            self._scale[key] = m
        return self._scale[key]

    @torch.no_grad()
    def solve(
        self, residuals: Tensor, *, steps: int | None = None, seconds: float | None = None, tolerance: float = 1e-7
    ) -> Solution:
        """Solve for residuals (K, *out) in a number of `steps`, or in as many of the ladder as fit into about `seconds`;
        with both, in no more than `steps`.

        The time of the second step fixes the count; if the machine slows down afterwards, the solve ends where `seconds` end.
        Either way the answer depends on the number of steps taken alone, which the solution names. Each right-hand side stops
        by itself once its relative residual falls to `tolerance`. A step costs one `mv` and one `vm` for the whole batch; one
        more pair at the end yields the true misfit and residual.
        """
        steps = check_budget(steps, seconds)
        if tuple(residuals.shape[1:]) != self.out_shape:
            raise OptionError(f"residuals must be (K, *{self.out_shape}), but have shape {tuple(residuals.shape)}")
        start = time.perf_counter()
        ridge = self.ridge * self.scale(residuals)
        second = start
        left = residuals.clone()  # r - J S y
        descent = self.prior.analysis(self.vm(left))  # -1/2 gradient: S^T J^T left - ridge y
        y, p = torch.zeros_like(descent), descent.clone()
        power = first = _dot(descent, descent)  # (K,)
        goal = tolerance**2 * first
        active = power > 0
        iterations = torch.zeros_like(active, dtype=torch.long)
        done, limit = 0, (steps or 2) if seconds is None else min(steps or 2, 2)
        while done < limit and bool(active.any()):
            q = self.mv(self.prior.synthesis(p))
            alpha = _where(active, power / (_dot(q, q) + ridge * _dot(p, p)))
            y += _spread(alpha, y) * p
            left -= _spread(alpha, left) * q
            descent = self.prior.analysis(self.vm(left)) - ridge * y
            new = _dot(descent, descent)
            p = torch.where(_spread(active, p), descent + _spread(_where(active, new / power), p) * p, p)
            power = torch.where(active, new, power)
            iterations += active
            active = active & (power > goal)
            done += 1
            if seconds is not None and done == 1:
                second = _now(y)  # the first step also pays for what is made once
            if seconds is not None and done == 2:
                fitting = (seconds - (_now(y) - start)) / max(_now(y) - second, 1e-9) + 1  # one pair closes
                limit = rung(LADDER, fitting, steps)
            if seconds is not None and done > 2 and _now(y) - start > seconds:
                break
        delta = self.prior.synthesis(y)
        left = residuals - self.mv(delta)
        descent = self.prior.analysis(self.vm(left)) - ridge * y
        misfit = _ratio(left, _dot(residuals, residuals))
        relative = _ratio(descent, first)
        if not bool((torch.isfinite(relative) & torch.isfinite(misfit)).all()):
            raise NumericsError(
                f"conjugate gradients left the finite numbers after {done} steps; try float64 or a larger ridge"
            )
        return Solution(delta, misfit, relative, done, iterations, _now(y) - start)


def _ratio(a: Tensor, square: Tensor) -> Tensor:
    """||a|| / sqrt(square) for each item, 0 where there is nothing."""
    return _where(square != 0, (_dot(a, a) / square).sqrt())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product (K,) of each item of two batches."""
    return (a * b).flatten(1).sum(1)


def _spread(coefficients: Tensor, like: Tensor) -> Tensor:
    return coefficients.reshape(-1, *(1,) * (like.ndim - 1))


def _where(condition: Tensor, value: Tensor) -> Tensor:
    return torch.where(condition, value, torch.zeros_like(value))


def _now(result: Tensor) -> float:
    """The clock once `result` is really computed (accelerators run behind)."""
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
    return time.perf_counter()
