"""Adjoint rules of operations that move numbers from places to places: views, permutations, parts, padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from pullback.adjoint.applied import Applied, Local, NoRule
from pullback.adjoint.maps import (
    Broadcast,
    Identity,
    Linear,
    Part,
    Piece,
    Shape,
)


def reshape(a: Applied) -> tuple[Any, list[Local]]:
    out = a.run()
    inner, outer = a.tensors[0].shape, out.shape
    return out, [(0, 0, Linear(lambda w: w.reshape(len(w), *inner), lambda v: v.reshape(len(v), *outer)))]


def permute(a: Applied) -> tuple[Any, list[Local]]:
    out, n = a.run(), a.tensors[0].dim()
    if a.op.name == "permute":
        order = [d % n for d in a.named["dims"]]
    else:
        first, second = (0, n - 1) if a.op.name == "t" else (a.named["dim0"] % n, a.named["dim1"] % n)
        order = list(range(n))
        order[first], order[second] = order[second], order[first]
    forward = [0, *(d + 1 for d in order)]
    back = [forward.index(d) for d in range(n + 1)]
    return out, [(0, 0, Linear(lambda w: w.permute(back), lambda v: v.permute(forward)))]


def restride(a: Applied) -> tuple[Any, list[Local]]:
    """as_strided that shows the same numbers, as channels-last convolutions leave it."""
    out, x = a.run(), a.tensors[0]
    seen, given = ([s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1] for t in (out, x))
    if out.shape != x.shape or seen != given or a.named["storage_offset"] not in (None, x.storage_offset()):
        raise NoRule
    return out, [(0, 0, Identity())]


def expand(a: Applied) -> tuple[Any, list[Local]]:
    out = a.run()
    return out, [(0, 0, Broadcast(None, tuple(a.tensors[0].shape), tuple(out.shape)))]


def part(a: Applied) -> tuple[Any, list[Local]]:
    """slice, select, narrow."""
    out, inner = a.run(), tuple(a.tensors[0].shape)
    before = (slice(None),) * (a.named["dim"] % len(inner))
    if a.op.name == "select":
        index: Any = a.named["index"]
    elif a.op.name == "narrow":
        index = slice(a.named["start"], a.named["start"] + a.named["length"])
    else:
        index = slice(a.named["start"], a.named["end"], a.named["step"])
    return out, [(0, 0, Part((*before, index), inner))]


def split(a: Applied) -> tuple[Any, list[Local]]:
    outs, inner = a.run(), tuple(a.tensors[0].shape)
    dim = a.named["dim"] % len(inner)
    edges: list[Local] = []
    start = 0
    for k, out in enumerate(outs):
        piece = (*(slice(None),) * dim, slice(start, start + out.shape[dim]))
        edges.append((k, 0, Part(piece, inner)))
        start += out.shape[dim]
    return outs, edges


def cat(a: Applied) -> tuple[Any, list[Local]]:
    out = a.run()
    outer = tuple(out.shape)
    dim = a.named["dim"] % len(outer)
    if any(t.dim() != len(outer) for t in a.tensors):  # an empty tensor of one axis, which cat lets pass
        raise NoRule
    edges: list[Local] = []
    start = 0
    for j, t in enumerate(a.tensors):
        piece = (*(slice(None),) * dim, slice(start, start + t.shape[dim]))
        if a.live[j]:
            edges.append((0, j, Piece(Part(piece, outer))))
        start += t.shape[dim]
    return out, edges


def pad(a: Applied) -> tuple[Any, list[Local]]:
    out, amounts = a.run(), list(a.named["pad"])
    outer = tuple(out.shape)
    kept = tuple(slice(max(first, 0), n - max(last, 0)) for first, last, n in _ends(amounts, outer))
    if min(amounts) >= 0:
        return out, [(0, 0, Piece(Part(kept, outer)))]
    lost = [-max(-n, 0) for n in amounts]

    def pull(w: Tensor) -> Tensor:
        return F.pad(w[(slice(None), *kept)], [-n for n in lost])

    return out, [(0, 0, Linear(pull, lambda v: F.pad(v, amounts), "same", "fresh"))]


def _ends(amounts: list[int], outer: Shape) -> Iterator[tuple[int, int, int]]:
    """For each axis the padding before and after it, listed from the last axis, and the padded size."""
    whole = [*amounts, *[0] * (2 * len(outer) - len(amounts))]
    for axis, n in enumerate(outer):
        at = 2 * (len(outer) - 1 - axis)
        yield whole[at], whole[at + 1], n


def roll(a: Applied) -> tuple[Any, list[Local]]:
    out, n = a.run(), a.tensors[0].dim()
    if not a.named["dims"]:
        raise NoRule
    shifts, dims = list(a.named["shifts"]), [d % n + 1 for d in a.named["dims"]]
    back = [-s for s in shifts]
    return out, [(0, 0, Linear(lambda w: w.roll(back, dims), lambda v: v.roll(shifts, dims), "fresh", "fresh"))]
