"""The Jacobian of max-pooling: from each window the number that is largest at the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.adjoint.maps import Map, Shape, laid_out

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class MaxPool(Map):
    """One number of the input for each of the output: indices (N, C, h, w) into a plane of the input (N, C, H, W).

    gate: a factor for each output, or None. settings: kernel, stride, padding, dilation, ceil mode.
    """

    indices: Tensor
    inner: Shape
    settings: tuple[Any, ...]
    gate: Tensor | None = None

    def pull(self, w: Tensor, own: bool) -> Tensor:
        if self.gate is not None:
            w = w.mul_(self.gate) if own else w * self.gate
        rows = laid_out(w.flatten(0, 1))
        like = laid_out(rows.new_empty(len(rows), *self.inner[1:]))  # only its shape and layout count
        indices = laid_out(self.indices.repeat(len(w), 1, 1, 1))
        pulled: Tensor = aten.max_pool2d_with_indices_backward.default(rows, like, *self.settings, indices)
        return pulled.unflatten(0, w.shape[:2])

    def push(self, v: Tensor, own: bool) -> Tensor:
        pushed = self.gathered(v)
        return pushed if self.gate is None else pushed.mul_(self.gate)

    def gathered(self, v: Tensor) -> Tensor:
        """The entries of v (K, N, C, H, W) at the indices: (K, N, C, h, w)."""
        where = self.indices.flatten(2).expand(len(v), *self.indices.shape[:2], -1)
        return v.flatten(3).gather(3, where).unflatten(3, self.indices.shape[2:])

    def to(self, dtype: torch.dtype) -> Map:
        return MaxPool(self.indices, self.inner, self.settings, None if self.gate is None else self.gate.to(dtype))

    @property
    def kept(self) -> tuple[Tensor, ...]:
        return (self.indices,) if self.gate is None else (self.indices, self.gate)
