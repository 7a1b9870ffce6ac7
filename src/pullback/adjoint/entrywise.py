"""Adjoint rules of operations that act entry by entry: diagonals, whose entries autograd knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.adjoint.applied import Applied, Local, NoRule
from pullback.adjoint.maps import (
    Broadcast,
    Identity,
    Map,
    Scale,
    Shape,
)


def pointwise(a: Applied) -> tuple[Any, list[Local]]:
    """f(x, ...) entry by entry: a diagonal, whose entries autograd knows."""
    shape = torch.broadcast_tensors(*a.tensors)[0].shape  # torch.broadcast_shapes would load sympy: half a second
    out, leaves = a.on_leaves(shape)
    if not isinstance(out, Tensor) or out.shape != shape or out.is_complex():
        raise NoRule
    if not out.requires_grad:  # a comparison, a sign
        return out.detach(), []
    with torch.enable_grad():
        slopes = torch.autograd.grad(out.sum(), list(leaves.values()), materialize_grads=True)
    return out.detach(), [(0, j, _diagonal(s, a.tensors[j].shape)) for j, s in zip(leaves, slopes, strict=True)]


def _diagonal(factor: Tensor, inner: Shape) -> Map:
    outer = tuple(factor.shape)
    return Scale(factor) if tuple(inner) == outer else Broadcast(factor, tuple(inner), outer)


def identity(a: Applied) -> tuple[Any, list[Local]]:
    return a.run(), [(0, 0, Identity())]


def add(a: Applied) -> tuple[Any, list[Local]]:
    """x + alpha y, x - alpha y."""
    if not isinstance(a.args[0], Tensor):
        raise NoRule
    out, alpha = a.run(), a.named["alpha"]
    outer = tuple(out.shape)
    edges: list[Local] = []
    for j, weight in enumerate((1, -alpha if a.op.name == "sub" else alpha)[: len(a.tensors)]):
        if a.live[j]:
            inner = tuple(a.tensors[j].shape)
            factor = None if weight == 1 else out.new_full([1] * out.dim(), weight)
            if inner != outer:
                edges.append((0, j, Broadcast(factor, inner, outer)))
            else:
                edges.append((0, j, Identity() if factor is None else Scale(factor, (a.number,))))
    return out, edges


def multiply(a: Applied) -> tuple[Any, list[Local]]:
    """x y, or x / y with respect to x: either factor is the other's slope."""
    divided = a.op.name == "div"
    if divided and (a.named.get("rounding_mode") is not None or any(a.live[1:])):
        raise NoRule
    out = a.run()
    edges: list[Local] = []
    for j in range(len(a.tensors)):
        if a.live[j]:
            other = a.args[1 - j]
            slope = other if isinstance(other, Tensor) else out.new_tensor(other)
            slope = 1 / slope.to(out.dtype) if divided else slope.to(out.dtype)
            slope = slope.reshape((1,) * (out.dim() - slope.dim()) + tuple(slope.shape))
            inner, outer = tuple(a.tensors[j].shape), tuple(out.shape)
            fixed = not isinstance(other, Tensor) or a.fixed[1 - j]
            whole = Scale(slope, (a.number,) if fixed else None)
            edges.append((0, j, whole if inner == outer else Broadcast(slope, inner, outer)))
    return out, edges


def cut_off(a: Applied) -> tuple[Any, list[Local]]:
    """Operations that end the gradient."""
    return a.run(), []
