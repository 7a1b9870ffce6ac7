"""Cotangents of one channel each, such as F 1_c: the first convolution that they meet reads one of its many channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pullback.adjoint.convolution import Convolution
from pullback.adjoint.maps import Identity, Map, Scale
from pullback.adjoint.pooling import MaxPool
from pullback.adjoint.schedule import Edge
from pullback.graph import Point


@dataclass(frozen=True, eq=False)
class SingleChannel(Map):
    """The pull of a convolution of stride one for cotangents (K, 1, O, h, w) that have one channel each."""

    whole: Convolution

    def pull(self, w: Tensor, own: bool) -> Tensor:
        margin, dilation, size = self.whole.reach
        channel = (w[:, 0].flatten(2) != 0).any(2).float().argmax(1)
        plane = w[torch.arange(len(w), device=w.device), 0, channel][:, None]
        patches = F.unfold(plane, size, dilation, margin)  # (K, taps, H * W)
        pulled = patches.mT @ self.whole.by_channel()[channel]  # (K, H * W, I)
        return pulled.unflatten(1, (1, *self.whole.geometry.inner[2:])).movedim(-1, 2)

    def push(self, v: Tensor, own: bool) -> Tensor:
        return self.whole.push(v, own)


def sharpened(edges: Sequence[Edge], end: Point) -> list[Edge]:
    """The edges, with the convolutions that a cotangent of one channel meets first taken channel by channel."""
    narrow, mixed = {end}, set[Point]()  # values to which a cotangent of one channel comes, and others come as well
    found = []
    for e in sorted(edges, key=lambda e: -e.outer.op):
        one = e.outer in narrow and e.outer not in mixed
        (narrow if one and isinstance(e.map, Identity | Scale | MaxPool) else mixed).add(e.inner)
        if one and isinstance(e.map, Convolution) and e.map.takes_single_channels:
            e = replace(e, map=SingleChannel(e.map))
        found.append(e)
    return found


def one_channel_each(cotangents: Tensor) -> bool:
    """Whether every cotangent (K, C, H, W) has at most one channel that is not zero."""
    if cotangents.dim() != 4:
        return False
    return bool(((cotangents.flatten(2) != 0).any(2).sum(1) <= 1).all())
