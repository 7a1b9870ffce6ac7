"""Which positions a convolution reads for which: lists by the position that is made, for the kernels of gated.c."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pullback.adjoint.convolution import Geometry, Packed
from pullback.adjoint.maps import Shape
from pullback.adjoint.schedule import Way


def nearby(g: Geometry, kernel: Shape, way: Way, packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """Lists near (positions + 1) and from, int32, and tap, int16, kept in `packed`.

    Position p of the result reads positions from[e] by taps tap[e] of the kernel, for e = near[p] .. near[p + 1] - 1, positions
    and taps counted row by row. For a pull the kernel is turned over.
    """
    key = ("nearby", way, kernel, g.stride, g.padding, g.dilation, g.inner[2:], g.outer[2:])
    names = [(*key, part) for part in ("near", "from", "tap")]
    if names[0] not in packed:
        for name, made in zip(names, _lists(g, kernel, way), strict=True):
            packed[name] = made
    near, from_, tap = (packed[name] for name in names)
    return near, from_, tap


def _lists(g: Geometry, kernel: Shape, way: Way) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = (
        _along(*sizes) for sizes in zip(kernel, g.stride, g.padding, g.dilation, g.inner[2:], g.outer[2:], strict=True)
    )
    outer, inner, tap = (
        (y[:, None] * width + x).reshape(-1)
        for y, x, width in zip(rows, columns, (g.outer[3], g.inner[3], kernel[1]), strict=True)
    )
    into, from_, positions = (inner, outer, g.inner) if way == "pull" else (outer, inner, g.outer)
    if way == "pull":
        tap = kernel[0] * kernel[1] - 1 - tap
    order = np.argsort(into, kind="stable")
    near = np.zeros(positions[2] * positions[3] + 1, np.int32)
    np.cumsum(np.bincount(into, minlength=len(near) - 1), out=near[1:])
    return torch.from_numpy(near), torch.from_numpy(from_[order]), torch.from_numpy(tap[order].astype(np.int16))


def _along(kernel: int, stride: int, padding: int, dilation: int, inner: int, outer: int) -> tuple[np.ndarray, ...]:
    """Along one axis, all triples of a position outside, the position inside that it reads, and the tap."""
    out, tap = (a.reshape(-1) for a in np.meshgrid(np.arange(outer), np.arange(kernel), indexing="ij"))
    read = out * stride - padding + tap * dilation
    inside = (read >= 0) & (read < inner)
    return tuple(a[inside].astype(np.int32) for a in (out, read, tap))
