"""The Wiener inverse (specification, 3b): the posterior mean of an image under a Gaussian prior and linearised features.

    Xhat - mu = C J^T z,    (J C J^T + ridge * m * I) z = r,    r = F - b - J mu,    m = mean diagonal of J C J^T

solved by conjugate gradients in feature space for several right-hand sides `r` at once. Needs only `J v`, `J^T w` and the prior.
With an image's own features `r = J (x - mu)` and the picture is the signal space of the stage at `x`: gates and `b` come from `x`
too, so it is not a picture drawn from the features alone.
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

LADDER = (2, 3, 5, 8, 12, 20, 30, 50, 80, 130, 200, 320, 500)


@dataclass(frozen=True, eq=False)
class Solution:
    """What conjugate gradients reached for K right-hand sides.

    z (K, *out) solves the system up to relative_residual (K,), the true `||r - A z|| / ||r||` of the last iterate (CG's
    residual is not monotone; 0 for r = 0). delta (K, *in) = C J^T z is the picture without mu. `steps` were taken; asking for
    that number gives the same bits again. iterations (K,) says where each right-hand side stopped, and broken (K,) which of
    them stopped because rounding made the operator look indefinite.
    """

    z: Tensor
    delta: Tensor
    relative_residual: Tensor
    steps: int
    iterations: Tensor
    broken: Tensor
    seconds: float


class WienerSolver:
    """Wiener inverses at one linearisation point, for any number of right-hand sides.

    mv maps (K, *in) to (K, *out), vm maps (K, *out) to (K, *in), its adjoint; ridge is the noise-to-signal ratio lambda
    (1e-2 .. 1e-4), m is estimated by Hutchinson's method from `probes` random signs drawn with `seed`.
    """

    def __init__(
        self,
        mv: Map,
        vm: Map,
        prior: Prior,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        *,
        ridge: float = 1e-2,
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
        """`m`, the mean diagonal of J C J^T: `E ||C^(1/2) J^T v||^2 / size(v)` over random signs v; one `vm` for all probes."""
        key = (like.dtype, like.device)
        if key not in self._scale:
            generator = torch.Generator().manual_seed(self.seed)
            shape = (self.probes, *self.out_shape)
            signs = torch.randint(0, 2, shape, generator=generator, device="cpu").to(like) * 2 - 1
            m = float(self.prior.root_transpose(self.vm(signs)).square().sum() / signs.numel())
            if not 0 < m < float("inf"):
                raise NumericsError(f"the mean diagonal of J C J^T is {m}: this stage does not react to the image here")
            self._scale[key] = m
        return self._scale[key]

    def operator(self, w: Tensor) -> Tensor:
        """`(J C J^T + ridge * m * I) w` for w (K, *out): symmetric positive definite."""
        return self.mv(self.prior.covariance(self.vm(w))) + self.ridge * self.scale(w) * w

    @torch.no_grad()
    def solve(
        self, residuals: Tensor, *, steps: int | None = None, seconds: float | None = None, tolerance: float = 1e-6
    ) -> Solution:
        """Solve for residuals (K, *out) in a number of `steps`, or in as many of the ladder as fit into about `seconds`.

        The time of the second step fixes the count; if the machine slows down afterwards, the solve ends where `seconds` end.
        Either way the answer depends on the number of steps taken alone, which the solution names. Each right-hand side stops
        by itself once its residual falls below `tolerance * ||r||`. A step costs one `vm` and one `mv` for the whole batch;
        one more pair at the end yields the picture and the true residual.
        """
        check_budget(steps, seconds)
        if tuple(residuals.shape[1:]) != self.out_shape:
            raise OptionError(f"residuals must be (K, *{self.out_shape}), but have shape {tuple(residuals.shape)}")
        start = time.perf_counter()
        self.scale(residuals)
        second = start
        r = residuals.clone()
        z, p = torch.zeros_like(r), r.clone()
        power = _dot(r, r)  # (K,) squared residual norms
        goal = tolerance**2 * power
        active = power > 0
        broken = torch.zeros_like(active)
        iterations = torch.zeros_like(active, dtype=torch.long)
        done, limit = 0, steps or 2
        while done < limit and bool(active.any()):
            curved = self.operator(p)
            curvature = _dot(p, curved)
            broken |= active & ~(curvature > 0)
            active = active & ~broken
            alpha = _where(active, power / curvature)
            z += _spread(alpha, z) * p
            r -= _spread(alpha, r) * curved
            new = _dot(r, r)
            p = torch.where(_spread(active, p), r + _spread(_where(active, new / power), p) * p, p)
            power = torch.where(active, new, power)
            iterations += active
            active = active & (power > goal)
            done += 1
            if seconds is not None and done == 1:
                second = _now(z)  # the first step also pays for what is made once
            if seconds is not None and done == 2:
                fitting = (seconds - (_now(z) - start)) / max(_now(z) - second, 1e-9) + 1  # one pair closes
                limit = rung(LADDER, fitting)
            if seconds is not None and done > 2 and _now(z) - start > seconds:
                break
        delta = self.prior.covariance(self.vm(z))
        left = residuals - self.mv(delta) - self.ridge * self.scale(z) * z
        norm = _dot(residuals, residuals).sqrt()
        relative = _where(norm != 0, _dot(left, left).sqrt() / norm)
        if not bool(torch.isfinite(relative).all()):
            raise NumericsError(
                f"conjugate gradients left the finite numbers after {done} steps; try float64 or a larger ridge"
            )
        return Solution(z, delta, relative, done, iterations, broken, _now(z) - start)


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
