"""Which entries of each value a product needs: those that its beginning reaches and that its end depends on.

A gate that is shut on either side of a value takes an entry out. What is left are its rows of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pullback.adjoint.convolution import Convolution
from pullback.adjoint.maps import Identity, Map, Part, Piece, Scale, Shape
from pullback.adjoint.pooling import MaxPool
from pullback.adjoint.schedule import Edge, Way, read_and_made
from pullback.graph import Point

Support = NDArray[np.bool_]  # (H, W, C)
Place = tuple[slice, slice, slice]  # of (H, W, C)


def place_of(map: Part | Piece) -> Place | None:
    """Where in the whole the part lies; None where an axis is lost or turned over."""
    part = map.part if isinstance(map, Piece) else map
    chosen = [*part.index[1:], *[slice(None)] * (5 - len(part.index))]
    if not all(isinstance(c, slice) for c in chosen):
        return None
    bounds = [c.indices(n) for c, n in zip(chosen, part.inner, strict=True)]
    if bounds[0] != (0, 1, 1) or any(step < 1 or stop <= start for start, stop, step in bounds):
        return None
    channels, rows, columns = (slice(*b) for b in bounds[1:])
    return rows, columns, channels


def takes_out(map: Part | Piece, way: Way) -> bool:
    """Whether the product takes the part out of the whole, or else puts it there."""
    return isinstance(map, Part) == (way == "push")


@dataclass(frozen=True, eq=False)
class Rows:
    """The live entries of a value, and the rows of memory that hold them.

    live: (H, W, C). begin, end: (H * W), the rows of each position, end not included. memory: the number of the memory that it
    lies in. rows: how many that has. channel: of each of those.
    """

    live: Support
    begin: NDArray[np.int32]
    end: NDArray[np.int32]
    channel: NDArray[np.uint16]
    memory: int
    rows: int

    @classmethod
    def of(cls, live: Support, memory: int) -> Rows:
        positions, channels = live.shape[0] * live.shape[1], live.shape[2]
        bounds = np.zeros(positions + 1, np.int32)
        np.cumsum(np.count_nonzero(live.reshape(positions, channels), 1), out=bounds[1:])
        channel = (np.flatnonzero(live) % channels).astype(np.uint16)
        return cls(live, bounds[:-1], bounds[1:], channel, memory, len(channel))

    def among(self, channels: slice) -> Rows:
        """Some of the channels, which lie side by side, in the same memory and under their old numbers."""
        flat = self.live.reshape(len(self.begin), -1)
        begin = self.begin + np.count_nonzero(flat[:, : channels.start], 1).astype(np.int32)
        end = begin + np.count_nonzero(flat[:, channels], 1).astype(np.int32)
        return replace(self, live=self.live[..., channels], begin=begin, end=end)

    def part(self, place: Place) -> Rows:
        """Some of the positions, and some of the channels, which lie side by side, in the same memory."""
        rows, columns, channels = place
        shape = self.live.shape[:2]
        begin, end = (a.reshape(shape)[rows, columns].reshape(-1) for a in (self.begin, self.end))
        found = replace(self, live=self.live[rows, columns], begin=begin, end=end).among(channels)
        return replace(found, channel=self.channel - np.uint16(channels.start))

    def within(self, place: Place, live: Support) -> Rows:
        """The same rows as part of a whole whose other entries are not live: `live`, (H, W, C)."""
        rows, columns, channels = place
        begin, end = np.zeros((2, *live.shape[:2]), np.int32)
        begin[rows, columns] = self.begin.reshape(self.live.shape[:2])
        end[rows, columns] = self.end.reshape(self.live.shape[:2])
        channel = self.channel + np.uint16(channels.start)
        return Rows(live, begin.reshape(-1), end.reshape(-1), channel, self.memory, self.rows)

    def numbers(self) -> NDArray[np.int32]:
        """The row of each entry (H * W * C), -1 where it is not live."""
        found = np.full(self.live.size, -1, np.int32)
        at = np.flatnonzero(self.live)
        count = self.end - self.begin
        found[at] = np.arange(len(at), dtype=np.int32) + np.repeat(self.begin - (np.cumsum(count) - count), count)
        return found


def live_entries(edges: Sequence[Edge], way: Way) -> dict[Point, Support]:
    """Of each value the entries that the beginning reaches and that the end needs; edges in the order of the product."""
    ends = [read_and_made(e, way) for e in edges]
    shapes = {e.inner: e.inner_shape for e in edges} | {e.outer: e.outer_shape for e in edges}

    def all_of(point: Point) -> Support:
        _, channels, height, width = shapes[point]
        return np.ones((height, width, channels), bool)

    back: Way = "push" if way == "pull" else "pull"
    reached, needed = {ends[0][0]: all_of(ends[0][0])}, {ends[-1][1]: all_of(ends[-1][1])}
    for edge, (source, target) in zip(edges, ends, strict=True):
        found = spread(edge.map, way, reached[source], shapes[target])
        reached[target] = reached[target] | found if target in reached else found
    for edge, (source, target) in zip(reversed(edges), reversed(ends), strict=True):
        found = spread(edge.map, back, needed[target], shapes[source])
        needed[source] = needed[source] | found if source in needed else found
    return {point: reached[point] & needed[point] for point in reached}


def operations(edges: Sequence[Edge], live: dict[Point, Support]) -> tuple[int, int]:
    """Of the convolutions for one cotangent, 2 for a product and its sum: all, and about those between live entries."""
    whole = left = 0.0
    for edge in edges:
        if isinstance(edge.map, Convolution):
            size = 2 * edge.map.weight[0].numel() * prod(edge.map.geometry.outer)
            whole += size
            left += size * float(live[edge.inner].mean() * live[edge.outer].mean())
    return int(whole), int(left)


def spread(map: Map, way: Way, support: Support, shape: Shape) -> Support:
    """Where the product can be other than zero, (H, W, C) for a result (1, C, H, W), when its argument is so on `support`."""
    made = np.zeros((*shape[2:], shape[1]), bool)
    match map:
        case Convolution():
            made[:] = support.any()
        case Identity():
            made |= support
        case Scale():
            made |= support
            made &= entries(map.factor, shape) != 0
        case MaxPool():
            where, open_ = map.where.numpy(), open_entries(map)
            if way == "pull":
                made.reshape(-1)[where[support.reshape(-1) & open_]] = True
            else:
                made |= (support.reshape(-1)[where] & open_).reshape(made.shape)
        case Part() | Piece():
            place = place_of(map)
            if takes_out(map, way):
                made |= support[place]
            else:
                made[place] = support
    return made


def entries(factor: Tensor, shape: Shape) -> NDArray[Any]:
    """(1, C, H, W) or what broadcasts to it as (H, W, C)."""
    found: NDArray[Any] = factor.expand(shape)[0].permute(1, 2, 0).numpy()
    return found


def open_entries(pool: MaxPool) -> NDArray[np.bool_]:
    if pool.gate is None:
        return np.ones(pool.where.shape, bool)
    return entries(pool.gate, pool.outer).reshape(-1) != 0


def shown_by(map: Map, way: Way, source: Rows, live: Support, outer: Shape) -> Rows | None:
    """The rows of the source itself, where they are all that the product shows."""
    match map:
        case Identity():
            found = source
        case Scale():
            factor = entries(map.factor, outer)
            if not ((factor == 0) | (factor == 1)).all():
                return None
            found = source
        case Part() | Piece():
            place = place_of(map)
            if place is None or place[2].step != 1:
                return None
            if not takes_out(map, way):
                alike = np.array_equal(live[place], source.live) and np.count_nonzero(live) == np.count_nonzero(
                    source.live
                )
                return source.within(place, live) if alike else None
            found = source.part(place)
        case _:
            return None
    return found if np.array_equal(found.live, live) else None
