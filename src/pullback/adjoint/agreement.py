"""The check of an adjoint program against autograd: one random VJP, and one random pair for its other direction."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.adjoint.program import Program
from pullback.graph import Point, Tape, plain_autograd, vjp


def vjp_discrepancy(program: Program, tape: Tape, start: Point, end: Point, x: Tensor) -> float:
    """|program.pull(w) - J^T w| / |J^T w| for one Gaussian w, with J^T w by autograd through the same recorded run.

    x: the program's point (*in_shape). Not a number where either is not.
    """
    w = gaussian(program.value.shape, x)
    with plain_autograd(x.device):
        leaf = x.detach().clone()[None].requires_grad_()
        out = tape.replay(leaf.clone(), [end], start=start)[0]
        expected = vjp(out, leaf, w[None])
    gap = float((program.pull(w[None]) - expected).double().norm())
    norm = float(expected.double().norm())
    return gap / norm if norm else gap


def adjoint_discrepancy(program: Program) -> float:
    """|<J v, w> - <v, J^T w>| / (|J v| |w|) with w = J v: whether `push` belongs to `pull`. Infinite where it has no way."""
    v = gaussian(program.in_shape, program.value)[None]
    try:
        pushed = program.push(v)
    except RuntimeError:  # an operation without a rule and without a second derivative
        return float("inf")
    square = float(pushed.double().square().sum())
    product = float((v.double() * program.pull(pushed).double()).sum())
    return abs(square - product) / square if square else abs(product)


def gaussian(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Numbers (*shape) from the normal distribution, always the same, in the type of `like` and on its device."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64, device="cpu")
    return drawn.to(like)
