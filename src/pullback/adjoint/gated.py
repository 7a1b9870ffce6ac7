"""Products on live entries alone: a stretch of a schedule for the kernels of gated.c, many cotangents at a time.

A value's entry is live where it can be reached from the stretch's beginning and is needed for its end: where no gate on
either side is shut. All cotangents share the gates, so each live entry is a row with a column for each cotangent, and a
convolution costs its operations times the live share of what it reads times the live share of what it makes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pullback.adjoint.compiled import Outside, Step, kernels
from pullback.adjoint.convolution import Convolution
from pullback.adjoint.live import (
    Rows,
    Support,
    entries,
    live_entries,
    open_entries,
    operations,
    place_of,
    shown_by,
    takes_out,
)
from pullback.adjoint.maps import Identity, Part, Piece, Scale, Shape, empty
from pullback.adjoint.nearby import nearby
from pullback.adjoint.pooling import MaxPool
from pullback.adjoint.schedule import Edge, Segment, Way, read_and_made, scheduled, stretches
from pullback.graph import Point

FEWEST = 8
"""Rows of cotangents from which on half a vector of them is worth it."""
_WORTH = 0.75
"""Of the operations, live ones; where more are left, dense convolutions are as quick."""
_VECTOR = 64  # bytes
_GROUP = 64  # as in gated.c
_TAPS = 128
"""Of a kernel; the lists of larger ones cost more than they save."""
_GROUPS = 64
"""Groups of a convolution, each a step of its own; of more, dense convolutions are as quick."""
_HANDY = 320 * 2**10
"""Bytes of weights that a core keeps at hand."""
_LOAD, _STORE, _CONVOLVE, _DEPTHWISE, _GATHER = range(5)


def mixed(edges: Sequence[Edge], way: Way, entries: int | None, dtype: torch.dtype) -> list[Segment | Gated] | None:
    """The segments of a product, on live entries wherever the kernels know how; None where they nowhere do.

    dtype: one for which there are `kernels`.
    """
    found: list[Segment | Gated] = []
    for known, group in groupby(stretches(edges, way), lambda stretch: all(map(gates, stretch))):
        together = [e for stretch in group for e in stretch]
        gated = _worth_it(together, way, dtype) if known else None
        found += scheduled(together, way, entries) if gated is None else [gated]
    return found if any(isinstance(s, Gated) for s in found) else None


def _worth_it(edges: Sequence[Edge], way: Way, dtype: torch.dtype) -> Gated | None:
    live = live_entries(edges, way)
    whole, left = operations(edges, live)
    return Gated(edges, way, live, left, dtype) if left < _WORTH * whole else None


def columns(dtype: torch.dtype) -> int:
    """Rows of cotangents that go through the kernels together."""
    return _VECTOR // dtype.itemsize


def gates(edge: Edge) -> bool:
    """Whether the kernels know this local Jacobian."""
    if any(len(shape) != 4 or shape[0] != 1 or shape[1] >= 2**16 for shape in (edge.inner_shape, edge.outer_shape)):
        return False
    match edge.map:
        case Convolution(weight=weight, geometry=g) as c:
            return g.planar and (c.depthwise or g.groups <= _GROUPS) and prod(weight.shape[2:]) <= _TAPS
        case Scale() | Identity() | MaxPool():
            return True
        case Part() | Piece():
            return place_of(edge.map) is not None
    return False


@dataclass
class _Plan:
    """Steps in the making, and what they point at."""

    steps: list[Step] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)  # arrays whose addresses the steps hold
    memories: list[int] = field(default_factory=list)  # rows of each memory
    used: list[tuple[int, int]] = field(default_factory=list)  # of each step: memories of its source and target, or -1

    def rows(self, live: Support) -> Rows:
        made = Rows.of(live, len(self.memories))
        self.memories.append(made.rows)
        return made

    def address(self, array: NDArray[Any] | Tensor | None) -> int | None:
        if array is None:
            return None
        self.kept.append(array)
        return array.data_ptr() if isinstance(array, Tensor) else array.ctypes.data

    def add(self, kind: int, source: Rows | None, target: Rows | None, **fields: Any) -> None:
        if source is not None:
            fields |= {"source_begin": source.begin, "source_end": source.end, "source_channel": source.channel}
        if target is not None:
            fields |= {"target_begin": target.begin, "target_end": target.end, "target_channel": target.channel}
        some = target if target is not None else source
        assert some is not None
        numbers = {k: v for k, v in fields.items() if isinstance(v, int)}
        addresses = {k: self.address(v) for k, v in fields.items() if k not in numbers}
        self.steps.append(Step(kind=kind, positions=len(some.begin), **numbers, **addresses))
        self.used.append((-1 if source is None else source.memory, -1 if target is None else target.memory))

    def placed(self) -> int:
        """Give each memory its place in the arena, where it stands from its first step to its last; rows of the arena."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for i, pair in enumerate(self.used):
            for m in pair:
                first.setdefault(m, i)
                last[m] = i
        place: dict[int, int] = {}
        size = 0
        for m in sorted(set(first) - {-1}, key=first.__getitem__):
            beside = sorted((place[o], self.memories[o]) for o in place if last[o] >= first[m])
            at = 0
            for start, length in beside:
                if at + self.memories[m] <= start:
                    break
                at = max(at, start + length)
            place[m] = at
            size = max(size, at + self.memories[m])
        for step, (source, target) in zip(self.steps, self.used, strict=True):
            step.source, step.target = place.get(source, 0), place.get(target, 0)
        return size


class Gated:
    """A stretch of a schedule, from one single value to another, on live entries.

    batch: rows that it takes at a time. operations: about how many each row costs.
    """

    def __init__(
        self, edges: Sequence[Edge], way: Way, live: dict[Point, Support], operations: int, dtype: torch.dtype
    ) -> None:
        """edges: in the order of the product; all are `gates`. live: as `live_entries` says."""
        self.operations, self.dtype = operations, dtype
        ends = [read_and_made(e, way) for e in edges]
        shapes = {e.inner: e.inner_shape for e in edges} | {e.outer: e.outer_shape for e in edges}
        self.shape = shapes[ends[-1][1]]
        plan = _Plan()
        values = {ends[0][0]: plan.rows(live[ends[0][0]])}
        plan.add(_LOAD, None, values[ends[0][0]], source_channels=shapes[ends[0][0]][1])
        made = [target for _, target in ends]
        for edge, (source, target) in zip(edges, ends, strict=True):
            if target not in values and made.count(target) == 1:
                same = shown_by(edge.map, way, values[source], live[target], edge.outer_shape)
                if same is not None:
                    values[target] = same
                    continue
            add = target in values
            if not add:
                values[target] = plan.rows(live[target])
            _product(plan, edge, way, values[source], values[target], add)
        plan.add(_STORE, values[ends[-1][1]], None, source_channels=self.shape[1])
        self.arena = plan.placed()
        self._steps, self._kept = (Step * len(plan.steps))(*plan.steps), plan.kept
        self.batch = columns(dtype)
        self._spare: list[Tensor] = []

    def carry(self, rows: Tensor, made: Tensor | None = None) -> Tensor:
        """The value at the end (K, *shape) for `rows` (K, 1, C, H, W) at the beginning, at most `batch` of them.

        rows: in the type of the program. made: dense memory for the result, if there is any.
        """
        rows = rows.resolve_neg()
        if not _evenly_laid(rows):
            rows = rows.contiguous()
        made = empty(rows, self.shape) if made is None else made
        library = kernels(self.dtype)
        assert library is not None
        outside = Outside(rows.data_ptr(), made.data_ptr(), *_strides(rows), *_strides(made), len(rows))
        try:
            arena = self._spare.pop()
        except IndexError:
            arena = torch.empty((self.arena + 1) * self.batch, dtype=self.dtype, device="cpu")
            library.widen(arena.data_ptr(), arena.nbytes)
        start = arena.data_ptr() + -arena.data_ptr() % _VECTOR
        count = len(self._steps)
        taken = (ctypes.c_int * count)()
        library.run(self._steps, count, start, ctypes.byref(outside), torch.get_num_threads(), taken)
        self._spare.append(arena)
        return made

    @property
    def kept_bytes(self) -> int:
        """Bytes of what the steps point at, lists and weights that other images share included."""
        return sum(array.nbytes for array in self._kept)

    def rest(self) -> None:
        """Give working memory back."""
        self._spare.clear()


def _evenly_laid(rows: Tensor) -> bool:
    """Whether one step of memory leads from each position to the next, row by row."""
    height, width = rows.shape[3:]
    return height == 1 or width == 1 or rows.stride(3) == width * rows.stride(4)


def _strides(rows: Tensor) -> tuple[int, int, int]:
    """Of columns, channels and positions; an axis of one position may have any."""
    return rows.stride(0), rows.stride(2), rows.stride(4 if rows.shape[4] > 1 else 3)


def _product(plan: _Plan, edge: Edge, way: Way, source: Rows, target: Rows, add: bool) -> None:
    if isinstance(edge.map, Convolution):
        _convolution(plan, edge.map, way, source, target, add)
        return
    plan.add(_GATHER, source, target, add=int(add), **_origins(edge, way, source, target))


def _convolution(plan: _Plan, map: Convolution, way: Way, source: Rows, target: Rows, add: bool) -> None:
    near, from_, tap = nearby(map.geometry, tuple(map.weight.shape[2:]), way, map.packed)
    weight = map.by_rows(way)
    fields: dict[str, Any] = {"near": near, "from_": from_, "tap": tap, "add": int(add)}
    fields |= {"taps": weight.shape[-2], "source_channels": weight.shape[-1]}
    if map.depthwise:
        before = _before(source)
        plan.add(_DEPTHWISE, source, target, **fields, weight=weight, before=before, groups=before.shape[1] - 1)
        return
    fields["span"] = max(_HANDY // (weight[0].numel() * weight.element_size()), 1)
    groups = map.geometry.groups
    if groups == 1:
        plan.add(_CONVOLVE, source, target, **fields, weight=weight)
        return
    read, made = (rows.live.shape[2] // groups for rows in (source, target))
    address = plan.address(weight)
    assert address is not None
    for k in range(groups):  # by weights whose first is that of the channel 0, which the group may not have
        own = address - k * read * weight.element_size()
        few = source.among(slice(k * read, (k + 1) * read)), target.among(slice(k * made, (k + 1) * made))
        plan.add(_CONVOLVE, *few, **fields, weight=own)


def _origins(edge: Edge, way: Way, source: Rows, target: Rows) -> dict[str, NDArray[Any] | None]:
    """From which rows of the source those of the target come, and by which factors: as GATHER has it."""
    map, number = edge.map, source.numbers()
    if isinstance(map, MaxPool) and way == "pull":
        where, open_ = map.where.numpy(), open_entries(map)
        chosen = np.flatnonzero(source.live.reshape(-1) & open_)
        into = target.numbers()[where[chosen]]
        order = np.argsort(into, kind="stable")
        order = order[np.count_nonzero(into < 0) :]
        start = np.zeros(target.rows + 1, np.int32)
        np.cumsum(np.bincount(into[order], minlength=target.rows), out=start[1:])
        chosen = chosen[order]
        factor = None if map.gate is None else entries(map.gate, map.outer).reshape(-1)[chosen]
        return {"start": start, "origin": number[chosen], "scale": _scale(factor)}
    at = np.flatnonzero(target.live)
    factor = None
    match map:
        case MaxPool():
            origin = number[map.where.numpy()[at]]
            factor = None if map.gate is None else entries(map.gate, map.outer).reshape(-1)[at]
        case Scale():
            origin, factor = number[at], entries(map.factor, edge.outer_shape).reshape(-1)[at]
        case Part() | Piece():
            moved = _moved(map, way, source.live.shape, target.live.shape)[at]
            origin = np.where(moved < 0, np.int32(-1), number[moved])
        case _:
            origin = number[at]
    return {"origin": origin, "scale": _scale(factor)}


def _scale(factor: NDArray[Any] | None) -> NDArray[Any] | None:
    return None if factor is None or bool((factor == 1).all()) else np.ascontiguousarray(factor)


def _before(rows: Rows) -> NDArray[np.int32]:
    """For each position where the rows of each group of channels begin, and where the last ends."""
    flat = rows.live.reshape(len(rows.begin), -1)
    groups = -(-flat.shape[1] // _GROUP)
    padded = np.zeros((len(flat), groups * _GROUP), bool)
    padded[:, : flat.shape[1]] = flat
    count = np.count_nonzero(padded.reshape(len(flat), groups, _GROUP), 2)
    before = np.zeros((len(flat), groups + 1), np.int32)
    np.cumsum(count, 1, out=before[:, 1:])
    return before + rows.begin[:, None]


def _moved(map: Part | Piece, way: Way, source: Shape, target: Shape) -> NDArray[np.int64]:
    """For each entry of the target (H, W, C) the number of the source's; -1 where there is none."""
    numbers = np.arange(prod(source)).reshape(source)
    place = place_of(map)
    assert place is not None
    if takes_out(map, way):
        return numbers[place].reshape(-1)
    made = np.full(target, -1)
    made[place] = numbers
    return made.reshape(-1)
