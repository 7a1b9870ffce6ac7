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

from pullback.adjoint.maps import Map, Scale, Shape, empty, laid_out

aten = torch.ops.aten

Packed = MutableMapping[Any, Tensor]
_add_conv2d: Any = (
    torch.ops.mkldnn._convolution_pointwise_.binary
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
    else None
)
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
        elif way == "spread":
            whole = empty(w, g.inner).zero_()
            self.add_pull(whole, w, own)
            return whole
        elif way == "phases":
            pulled = _interleaved(rows, kernel, self.weight, g)
        else:
            like = empty(w, g.inner).flatten(0, 1)  # only its shape and layout count
            only_input = [True, False, False]
            pulled = aten.convolution_backward.default(rows, like, kernel, None, *g.arguments, only_input)[0]
        return pulled.unflatten(0, w.shape[:2])

    @property
    def sparse_pull(self) -> bool:  # type: ignore[override]
        return _way(self.weight, self.geometry) == "spread"

    def add_pull(self, total: Tensor, w: Tensor, own: bool) -> None:
        g = self.geometry
        way = _way(self.weight, g)
        if way == "spread":
            reached = F.conv2d(laid_out(w.flatten(0, 1)), self._ready(way), None, 1, 0, 1, g.groups)
            total[..., :: g.stride[0], :: g.stride[1]] += reached.unflatten(0, w.shape[:2])
        elif way == "flipped" and _summing(total):
            _sum_up(total, w, self._ready(way), _margin(self.weight, g), (1, 1), g)
        else:
            super().add_pull(total, w, own)

    def push(self, v: Tensor, own: bool) -> Tensor:
        rows = laid_out(v.flatten(0, 1))
        pushed: Tensor = aten.convolution.default(rows, self._ready("native"), None, *self.geometry.arguments)
        return pushed.unflatten(0, v.shape[:2])

    def add_push(self, total: Tensor, v: Tensor, own: bool) -> None:
        g = self.geometry
        if g.planar and _summing(total):
            _sum_up(total, v, self._ready("native"), g.padding, g.stride, g)
        else:
            super().add_push(total, v, own)

    def to(self, dtype: torch.dtype) -> Map:
        return replace(self, dtype=dtype)

    @property
    def takes_single_channels(self) -> bool:
        """Whether `by_channel` and `reach` say all of its pull."""
        return _way(self.weight, self.geometry) == "flipped" and self.geometry.groups == self.geometry.inner[0] == 1

    @property
    def reach(self) -> tuple[Shape, Shape, Shape]:
        """Padding, dilation and size of the flipped kernel."""
        return _margin(self.weight, self.geometry), self.geometry.dilation, tuple(self.weight.shape[2:])

    @property
    def depthwise(self) -> bool:
        """Whether each channel is made of one, and makes one."""
        return 1 < self.geometry.groups == self.geometry.inner[1] == self.geometry.outer[1]

    def by_rows(self, way: str) -> Tensor:
        """The kernel as (channels that are made, taps, channels that are read), or (taps, channels) where it is depthwise.

        For a pull its taps are turned over.
        """
        kernel = self._ready("flipped" if way == "pull" else "native")
        if self.depthwise:
            return kernel.flatten(1).T.contiguous()
        return kernel.permute(0, 2, 3, 1).flatten(1, 2)

    def by_channel(self) -> Tensor:
        """The flipped kernel by the channels of the output: (O, taps, I)."""
        return self._ready("by channel")

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
    if set(weight.shape[2:]) == {1} and not any(g.padding):
        return "spread"
    few = g.inner[1] * g.stride[0] ** 2 <= _FEW
    if len(set(g.stride)) == 1 and set(g.dilation) == {1} and g.groups == 1 and few:
        return "phases"
    return "native"


def _summing(total: Tensor) -> bool:
    """Whether oneDNN adds to `total` (K, N, C, H, W) in one pass over memory: it wants it dense, channels innermost."""
    if _add_conv2d is None or total.device.type != "cpu" or not total.movedim(2, -1).is_contiguous():
        return False
    half = total.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return half or total.dtype == torch.float32


def _sum_up(total: Tensor, rows: Tensor, kernel: Tensor, padding: Shape, stride: Shape, g: Geometry) -> None:
    """total += the convolution of the rows (K, N, C', H', W'), both in one pass."""
    sums, given = total.flatten(0, 1), laid_out(rows.flatten(0, 1))
    # Without a bias before the sum and without an activation after it.
    _add_conv2d(sums, given, kernel, None, padding, stride, g.dilation, g.groups, "add", 1.0, None, [], None)


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


@dataclass(frozen=True)
class _Axis:
    """Along one axis, position `s q + r` of the input reads position `q + d` of the output by tap `r + p - s d`.

    first, last: the range of d. cells: how many q there are.
    """

    first: int
    last: int
    cells: int


def _axes(weight: Tensor, g: Geometry) -> list[_Axis]:
    s = g.stride[0]
    return [
        _Axis(-((k - 1 - p) // s), (s - 1 + p) // s, -(-size // s))
        for k, p, size in zip(weight.shape[2:], g.padding, g.inner[2:], strict=True)
    ]


def _phases(weight: Tensor, g: Geometry) -> Tensor:
    """The dense kernel (I * s * s, O, taps, taps) from the output to the s * s phases of the input."""
    s = g.stride[0]
    made = weight.transpose(0, 1)
    for axis, (along, p) in enumerate(zip(_axes(weight, g), g.padding, strict=True), start=2):
        missing = weight.shape[axis]  # stands for a tap that the kernel lacks
        wanted = [[r + p - s * d for d in range(along.first, along.last + 1)] for r in range(s)]
        taps = torch.tensor([[t if 0 <= t < missing else missing for t in row] for row in wanted], device=weight.device)
        position = made.dim() - 2 + axis - 2  # counted from behind, since phases come in front
        made = F.pad(made, (0, 1) if axis == 3 else (0, 0, 0, 1))
        made = made.index_select(position, taps.flatten()).unflatten(position, taps.shape).movedim(position, axis - 1)
    return made.flatten(0, 2)


def _interleaved(rows: Tensor, kernel: Tensor, weight: Tensor, g: Geometry) -> Tensor:
    """The input (N, I, H, W): all phases by one convolution, then interleaved."""
    axes = _axes(weight, g)
    margins = [max(-a.first, a.cells - h + a.last, 0) for a, h in zip(axes, g.outer[2:], strict=True)]
    phases = F.conv2d(rows, kernel, None, 1, margins)
    for axis, (along, margin) in enumerate(zip(axes, margins, strict=True), start=2):
        phases = phases.narrow(axis, margin + along.first, along.cells)
    s, (height, width) = g.stride[0], g.inner[2:]
    split = phases.unflatten(1, (g.inner[1], s, s)).permute(0, 1, 4, 2, 5, 3)  # n, i, q, r, q', r'
    whole = torch.empty(split.shape, dtype=rows.dtype, device=rows.device).copy_(split)
    return whole.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


def _by_channel(weight: Tensor, g: Geometry) -> Tensor:
    """(O, taps, I)."""
    return _flipped(weight, g).flatten(2).permute(1, 2, 0)


_PREPARED = {
    "by channel": _by_channel,
    "flipped": _flipped,
    "native": lambda weight, geometry: weight,
    "phases": _phases,
    "spread": _flipped,
}
