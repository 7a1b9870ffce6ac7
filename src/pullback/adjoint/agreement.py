"""The checks of an adjoint program: one random VJP against autograd, and each other way to a product against what is known."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.adjoint.gated import FEWEST
from pullback.adjoint.program import Asked, Program
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
    return relative_gap(program.pull(w[None]), expected)


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


def discrepancy(program: Program, asked: Asked) -> float:
    """How far a way to a product is off: "push" as the adjoint of `pull`, products on live entries from dense ones."""
    if asked == "push":
        return adjoint_discrepancy(program)
    product, shape = (
        (program.pull, tuple(program.value.shape)) if asked == "live pull" else (program.push, program.in_shape)
    )
    w = gaussian(shape, program.value)
    return relative_gap(product(w.expand(FEWEST, *shape))[-1], product(w[None])[0])


def relative_gap(found: Tensor, exact: Tensor) -> float:
    """|found - exact| / |exact|, and |found| where there is nothing to be found."""
    gap, norm = float((found - exact).double().norm()), float(exact.double().norm())
    return gap / norm if norm else gap


def gaussian(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Numbers (*shape) from the normal distribution, always the same, in the type of `like` and on its device."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64, device="cpu")
    return drawn.to(like)
