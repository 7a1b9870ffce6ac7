"""The Jacobian of max-pooling: from each window the number that is largest at the image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pullback.adjoint.maps import Map, Shape, laid_out


@dataclass(frozen=True, eq=False)
class MaxPool(Map):
    """where: for each number of the output (N, C, h, w) its source in the input (N, C, H, W); both counted channels last.

    gate: a factor for each output, or None. inner, outer: the two shapes.
    """

    where: Tensor
    inner: Shape
    outer: Shape
    gate: Tensor | None = None

    @classmethod
    def from_indices(cls, indices: Tensor, inner: Shape) -> MaxPool:
        """indices: (N, C, h, w) as torch gives them, each into its plane (H, W)."""
        samples, channels, _, _ = indices.shape
        plane = indices + torch.arange(samples, device=indices.device).view(-1, 1, 1, 1) * inner[2] * inner[3]
        where = plane * channels + torch.arange(channels, device=indices.device).view(-1, 1, 1)
        return cls(_flat(where[None])[0].clone(), inner, tuple(indices.shape))

    def pull(self, w: Tensor, own: bool) -> Tensor:
        if self.gate is not None:
            w = w.mul_(self.gate) if own else w * self.gate
        samples, channels, height, width = self.inner
        summed = torch.promote_types(w.dtype, torch.float32)  # sums in half precision are slow as well as coarse
        pulled = w.new_zeros(len(w), samples, height, width, channels, dtype=summed)
        pulled.flatten(1).scatter_add_(1, self.where.expand(len(w), -1), _flat(w).to(summed))
        return pulled.movedim(-1, 2).to(w.dtype)

    def push(self, v: Tensor, own: bool) -> Tensor:
        samples, channels, height, width = self.outer
        pushed = _flat(v).gather(1, self.where.expand(len(v), -1))
        pushed = pushed.view(len(v), samples, height, width, channels).movedim(-1, 2)
        return pushed if self.gate is None else pushed.mul_(self.gate)

    def gated(self, factor: Tensor) -> MaxPool:
        """This map after a product of its input with `factor`."""
        gate = replace(self, gate=None).push(factor.expand(self.inner)[None], False)[0]
        return replace(self, gate=laid_out(gate if self.gate is None else gate * self.gate))

    def to(self, dtype: torch.dtype) -> Map:
        return self if self.gate is None else replace(self, gate=self.gate.to(dtype))

    @property
    def kept(self) -> tuple[Tensor, ...]:
        return (self.where,) if self.gate is None else (self.where, self.gate)


def _flat(batch: Tensor) -> Tensor:
    """(K, N, C, H, W) as (K, N * H * W * C)."""
    return batch.movedim(2, -1).flatten(1)
