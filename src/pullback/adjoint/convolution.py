"""The adjoint of a convolution with frozen weights: a convolution with flipped kernels, wherever the stride is one.

The scales of evaluated batch norms on either side are folded into the kernels. A strided convolution that makes many
channels of few (a stem) is pulled back as one dense convolution to all phases of its stride, then interleaved.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pullback.adjoint.maps import Map, Scale, Shape, laid_out

aten = torch.ops.aten

Packed = MutableMapping[Any, Tensor]
_FEW = 16  # channels: one vector of float32, which phases of so few fill


@dataclass(frozen=True)
class Geometry:
    """Of one convolution in the order of its ATen arguments, and the shapes (N, C, ...) of its input and output."""

    stride: Shape
    padding: Shape
    dilation: Shape
    transposed: bool
    output_padding: Shape
    groups: int
    inner: Shape
    outer: Shape

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups

    @property
    def planar(self) -> bool:
        return len(self.inner) == 4 and not self.transposed


@dataclass(frozen=True, eq=False)
class Convolution(Map):
    """weight: as the operation has it. outer, inner: scales per channel on its output's and its input's side, folded in.

    operation: its number in the recording. packed: a store of kernels made ready, shared by all images. dtype: precision.
    """

    weight: Tensor
    geometry: Geometry
    operation: int
    packed: Packed
    dtype: torch.dtype
    outer: Scale | None = None
    inner: Scale | None = None

    def pull(self, w: Tensor, own: bool) -> Tensor:
        g = self.geometry
        rows = laid_out(w.flatten(0, 1))
        way = _way(self.weight, g)
        kernel = self._ready(way)
        if way == "flipped":
            pulled = F.conv2d(rows, kernel, None, 1, _margin(self.weight, g), g.dilation, g.groups)
        elif way == "phases":
            pulled = _interleaved(F.conv2d(rows, kernel, None, 1, _reach(self.weight, g)), g)
        else:
            like = laid_out(rows.new_empty(len(rows), *g.inner[1:]))  # only its shape and layout count
            only_input = [True, False, False]
            pulled = aten.convolution_backward.default(rows, like, kernel, None, *g.arguments, only_input)[0]
        return pulled.unflatten(0, w.shape[:2])

    def push(self, v: Tensor, own: bool) -> Tensor:
        rows = laid_out(v.flatten(0, 1))
        pushed: Tensor = aten.convolution.default(rows, self._ready("native"), None, *self.geometry.arguments)
        return pushed.unflatten(0, v.shape[:2])

    def to(self, dtype: torch.dtype) -> Map:
        return replace(self, dtype=dtype)

    def _ready(self, way: str) -> Tensor:
        """The kernel for a way, with the scales in it, made once and rounded last."""
        scales = tuple(None if s is None else s.source for s in (self.outer, self.inner))
        key = (self.operation, way, self.dtype, scales)
        if key not in self.packed:
            kernel = _PREPARED[way](_folded(self.weight, self.geometry, self.outer, self.inner), self.geometry)
            self.packed[key] = laid_out(kernel.to(self.dtype))
        return self.packed[key]


def _way(weight: Tensor, g: Geometry) -> str:
    if not g.planar:
        return "native"
    if set(g.stride) == {1} and min(_margin(weight, g)) >= 0:
        return "flipped"
    few = g.inner[1] * g.stride[0] ** 2 <= _FEW
    if len(set(g.stride)) == 1 and set(g.dilation) == {1} and g.groups == 1 and few:
        return "phases"
    return "native"


def _folded(weight: Tensor, g: Geometry, outer: Scale | None, inner: Scale | None) -> Tensor:
    """The kernel times the scales of the channels that it makes (`outer`) and reads (`inner`)."""
    first, second = (inner, outer) if g.transposed else (outer, inner)  # by the weight's axes
    grouped = weight.unflatten(0, (g.groups, -1))  # the second axis counts channels within a group
    if first is not None:
        scales = first.factor.reshape(-1).expand(weight.shape[0])
        grouped = grouped * scales.reshape(*grouped.shape[:2], *[1] * (grouped.dim() - 2))
    if second is not None:
        scales = second.factor.reshape(-1).expand(g.groups * weight.shape[1])
        grouped = grouped * scales.reshape(g.groups, 1, -1, *[1] * (grouped.dim() - 3))
    return grouped.flatten(0, 1)


def _margin(weight: Tensor, g: Geometry) -> Shape:
    """The padding of the flipped convolution."""
    return tuple(d * (k - 1) - p for d, k, p in zip(g.dilation, weight.shape[2:], g.padding, strict=True))


def _flipped(weight: Tensor, g: Geometry) -> Tensor:
    """(O, I/g, ...) to (I, O/g, ...), each kernel turned over."""
    grouped = weight.view(g.groups, -1, *weight.shape[1:]).transpose(1, 2)
    return grouped.reshape(-1, grouped.shape[2], *weight.shape[2:]).flip(tuple(range(2, weight.dim())))


def _reach(weight: Tensor, g: Geometry) -> Shape:
    """Taps before the first: positions of the output that reach one input position, less one."""
    return tuple(-(-k // s) - 1 for k, s in zip(weight.shape[2:], g.stride, strict=True))


def _phases(weight: Tensor, g: Geometry) -> Tensor:
    """The dense kernel (s * s * I, O, j, j) from the output to all s * s phases of the padded input.

    x[s q + r - p] = sum_j y[q - j] w[s j + r] along either axis.
    """
    s = g.stride[0]
    taps = [r + 1 for r in _reach(weight, g)]
    full = F.pad(weight, (0, taps[1] * s - weight.shape[3], 0, taps[0] * s - weight.shape[2]))
    split = full.view(*weight.shape[:2], taps[0], s, taps[1], s)  # o, i, j, r, j', r'
    return split.permute(1, 3, 5, 0, 2, 4).reshape(-1, weight.shape[0], *taps).flip(2, 3)


def _interleaved(phases: Tensor, g: Geometry) -> Tensor:
    """The input (N, I, H, W) from its phases (N, s * s * I, h', w'): interleaved, without the padding."""
    whole = F.pixel_shuffle(phases, g.stride[0])
    (top, left), (height, width) = g.padding, g.inner[2:]
    missing = [max(0, top + height - whole.shape[2]), max(0, left + width - whole.shape[3])]
    if any(missing):  # positions that no kernel reached
        whole = F.pad(whole, (0, missing[1], 0, missing[0]))
    return whole[:, :, top : top + height, left : left + width]


_PREPARED = {"flipped": _flipped, "phases": _phases, "native": lambda weight, geometry: weight}
