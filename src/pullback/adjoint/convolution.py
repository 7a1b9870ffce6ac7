"""The adjoint of a convolution with frozen weights: a convolution with flipped kernels, wherever the stride is one.

The scales of evaluated batch norms on either side are folded into the kernels. A strided convolution that makes many
channels of few (a stem) is pulled back as one dense convolution to all phases of its stride, then interleaved.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pullback.adjoint.maps import Map, Scale, Shape, empty, laid_out

aten = torch.ops.aten

Packed = MutableMapping[Any, Tensor]
_has_onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
_add_conv2d: Any = torch.ops.mkldnn._convolution_pointwise_.binary if _has_onednn else None
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

    @classmethod
    def of(cls, named: Mapping[str, Any], inner: Shape, outer: Shape) -> Geometry:
        """named: the operation's arguments; where one number stands for all axes, it has one alone."""
        stride, padding, dilation, extra = (
            tuple(named[k]) * (1 if len(named[k]) > 1 else len(inner) - 2)
            for k in ("stride", "padding", "dilation", "output_padding")
        )
        return cls(stride, padding, dilation, named["transposed"], extra, named["groups"], inner, outer)

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
    blocked: kernels as oneDNN has them inside, where it serves: worth it for many products on single rows, which otherwise
    spend most of their time on rearranging them (512 to 512 channels on 5 x 5 positions: 0.5 ms instead of 1.3).
    """

    weight: Tensor
    geometry: Geometry
    operation: int
    packed: Packed
    dtype: torch.dtype
    outer: Scale | None = None
    inner: Scale | None = None
    blocked: bool = False

    def run(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution itself, scales included, and then the bias (O,): x (N, I, ...) to (N, O, ...)."""
        g = self.geometry
        rows = laid_out(x)
        if not g.planar:
            made: Tensor = aten.convolution.default(rows, self._ready("native"), bias, *g.arguments)
            return made
        return _conv2d(rows, self._ready("native", blocked=True), bias, g.stride, g.padding, g)

    def pull(self, w: Tensor, own: bool) -> Tensor:
        g = self.geometry
        rows = laid_out(w.flatten(0, 1))
        way = _way(self.weight, g)
        if way == "flipped":
            pulled = _conv2d(rows, self._ready(way, blocked=True), None, (1, 1), _margin(self.weight, g), g)
        elif way == "spread":
            whole = empty(w, g.inner).zero_()
            self.add_pull(whole, w, own)
            return whole
        elif way == "phases":
            pulled = _interleaved(rows, self._ready(way), self.weight, g)
        else:
            like = empty(w, g.inner).flatten(0, 1)  # only its shape and layout count
            only_input = [True, False, False]
            pulled = aten.convolution_backward.default(rows, like, self._ready(way), None, *g.arguments, only_input)[0]
        return pulled.unflatten(0, w.shape[:2])

    @property
    def sparse_pull(self) -> bool:  # type: ignore[override]
        return _way(self.weight, self.geometry) == "spread"

    def add_pull(self, total: Tensor, w: Tensor, own: bool) -> None:
        g = self.geometry
        way = _way(self.weight, g)
        if way == "spread":
            kernel = self._ready(way, blocked=True)
            reached = _conv2d(laid_out(w.flatten(0, 1)), kernel, None, (1, 1), (0, 0), g)
            total[..., :: g.stride[0], :: g.stride[1]] += reached.unflatten(0, w.shape[:2])
        elif way == "flipped" and _summing(total):
            _sum_up(total, w, self._ready(way, blocked=True), _margin(self.weight, g), (1, 1), g)
        else:
            super().add_pull(total, w, own)

    def push(self, v: Tensor, own: bool) -> Tensor:
        return self.run(v.flatten(0, 1)).unflatten(0, v.shape[:2])

    def add_push(self, total: Tensor, v: Tensor, own: bool) -> None:
        g = self.geometry
        if g.planar and _summing(total):
            _sum_up(total, v, self._ready("native", blocked=True), g.padding, g.stride, g)
        else:
            super().add_push(total, v, own)

    def to(self, dtype: torch.dtype) -> Map:
        return replace(self, dtype=dtype)

    @property
    def in_phases(self) -> bool:
        """Whether its pull is one dense convolution to all phases of its stride: a stem's."""
        return _way(self.weight, self.geometry) == "phases"

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

    def kernel(self) -> Tensor:
        """That of `run`, (O, I/g, ...) with the channels innermost."""
        return self._ready("native")

    def by_channel(self) -> Tensor:
        """The flipped kernel by the channels of the output: (O, taps, I)."""
        return self._ready("by channel")

    def _ready(self, way: str, *, blocked: bool = False) -> Tensor:
        """The kernel for a way, with the scales in it, made once and rounded last. blocked: for `_conv2d`, if it may be."""
        scales = tuple(None if s is None else s.source for s in (self.outer, self.inner))
        blocked = blocked and self.blocked and self._has_blocks
        key = (self.operation, way, self.dtype, scales, blocked)
        if key not in self.packed:
            kernel = _PREPARED[way](_folded(self.weight, self.geometry, self.outer, self.inner), self.geometry)
            kernel = kernel.to(self.dtype)
            self.packed[key] = self._in_blocks(kernel, way) if blocked else laid_out(kernel)
        return self.packed[key]

    @property
    def _has_blocks(self) -> bool:
        return _has_onednn and self.geometry.planar and self.dtype == torch.float32 and self.weight.device.type == "cpu"

    def _in_blocks(self, kernel: Tensor, way: str) -> Tensor:
        g = self.geometry
        stride, padding, shape = {
            "native": (g.stride, g.padding, g.inner),
            "flipped": ((1, 1), _margin(self.weight, g), g.outer),
            "spread": ((1, 1), (0, 0), g.outer),
        }[way]
        dense = kernel.contiguous().to_mkldnn()
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        blocks: Tensor = reorder(dense, padding, stride, g.dilation, g.groups, [1, *shape[1:]])
        return blocks


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


def _conv2d(rows: Tensor, kernel: Tensor, bias: Tensor | None, stride: Shape, padding: Shape, g: Geometry) -> Tensor:
    """The convolution of rows (N, C, H, W) with a kernel of either layout."""
    if not kernel.is_mkldnn:
        return F.conv2d(rows, kernel, bias, stride, padding, g.dilation, g.groups)
    # Without an activation after it.
    made: Tensor = torch.ops.mkldnn._convolution_pointwise(
        rows, kernel, bias, padding, stride, g.dilation, g.groups, "none", [], None
    )
    return made


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
