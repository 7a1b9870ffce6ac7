"""The order in which local Jacobians are applied, and what is statically known about it: whose memory may be written, and

where a single value crosses, so that everything before it may run on another batch size than everything after it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import Tensor

from pullback.adjoint.folding import composed
from pullback.adjoint.maps import Map, Shape
from pullback.graph import Point

Way = Literal["pull", "push"]
WAYS: tuple[Way, ...] = ("pull", "push")


@dataclass(frozen=True, eq=False)
class Edge:
    """The local Jacobian between two values of the run, and their shapes (N, ...)."""

    inner: Point
    outer: Point
    map: Map
    inner_shape: Shape
    outer_shape: Shape


@dataclass(frozen=True)
class Step:
    """One product: `map` applied to the value `source`, added to `target`."""

    map: Map
    source: Point
    target: Point
    last: bool  # nobody reads the source afterwards
    own: bool  # the map may write into it
    into: Literal["nothing", "result", "target", "new"]  # where the sum goes; "nothing": the target has no value so far


@dataclass(frozen=True)
class Segment:
    """Steps from one single value to the next.

    batch: rows that they take at a time, None for any number. peak, end: entries per row that are alive at most, and of
    the value at the end.
    """

    way: Way
    steps: tuple[Step, ...]
    batch: int | None
    peak: int
    end: int

    def carry(self, rows: Tensor) -> Tensor:
        """The value at the end for `rows` (K, ...) at the beginning."""
        values = {self.steps[0].source: rows}
        for step in self.steps:
            value = values.pop(step.source) if step.last else values[step.source]
            if step.into == "target":
                add = step.map.add_pull if self.way == "pull" else step.map.add_push
                add(values[step.target], value, step.own)
                continue
            result = step.map.pull(value, step.own) if self.way == "pull" else step.map.push(value, step.own)
            del value
            if step.into == "nothing":
                values[step.target] = result
            elif step.into == "result":
                values[step.target] = result.add_(values[step.target])
            else:
                values[step.target] = values[step.target] + result
        return values[self.steps[-1].target]


def simplified(edges: Sequence[Edge], start: Point, end: Point) -> list[Edge]:
    """Only what lies between start and end, with maps in a row composed where that is one map."""
    after, before = {start}, {end}
    for e in edges:  # recorded in order of time
        if e.inner in after:
            after.add(e.outer)
    for e in reversed(edges):
        if e.outer in before:
            before.add(e.inner)
    found = [e for e in edges if e.inner in after and e.outer in before]
    made, read = Counter(e.outer for e in found), Counter(e.inner for e in found)
    kept: dict[Edge, None] = {}
    arriving: dict[Point, Edge] = {}
    for e in found:
        between = e.inner not in (start, end) and made[e.inner] == read[e.inner] == 1
        both = composed(arriving[e.inner].map, e.map) if between else None
        if both is not None:
            first = arriving[e.inner]
            del kept[first]
            e = Edge(first.inner, e.outer, both, first.inner_shape, e.outer_shape)
        kept[e] = None
        arriving[e.outer] = e
    return list(kept)


def scheduled(edges: Sequence[Edge], way: Way, entries: int | None) -> list[Segment]:
    """The steps of a product, in segments whose batches hold tensors of at most `entries` entries (None: no limit)."""
    pulling = way == "pull"
    memory: dict[Point, int] = {}  # value -> the memory that it lies in
    segments: list[Segment] = []
    sizes = {p: prod(s) for e in edges for p, s in ((e.inner, e.inner_shape), (e.outer, e.outer_shape))}
    number = 0
    for stretch in stretches(edges, way):
        steps: list[Step] = []
        ends = [read_and_made(e, way) for e in stretch]
        last_read = {source: i for i, (source, _) in enumerate(ends)}
        memory = memory or {ends[0][0]: _FOREIGN}
        peak = 1
        for i, (edge, (source, target)) in enumerate(zip(stretch, ends, strict=True)):
            number += 1
            last = last_read[source] == i
            lying = memory.pop(source) if last else memory[source]
            own = lying != _FOREIGN and lying not in memory.values()
            kind = edge.map.pulled if pulling else edge.map.pushed
            result = {"fresh": number, "same": lying, "given": lying if own else number, "constant": _FOREIGN}[kind]
            if kind == "constant":  # which may show its argument's memory: nobody writes that from now on
                memory |= {point: _FOREIGN for point, m in memory.items() if m == lying}
            into: Literal["nothing", "result", "target", "new"] = "nothing"
            if target in memory:
                others = [m for point, m in memory.items() if point != target]
                if memory[target] not in (*others, _FOREIGN, lying, result):
                    into, result = "target", memory[target]
                elif result != _FOREIGN and result not in memory.values():
                    into = "result"
                else:
                    into, result = "new", number
            memory[target] = result
            steps.append(Step(edge.map, source, target, last, own, into))
            peak = max(peak, sum(sizes[point] for point in {*memory, source}) + sizes[target])
        largest = max(sizes[point] for pair in ends for point in pair)
        batch = None if entries is None else _rows(entries // largest)
        segments.append(Segment(way, tuple(steps), batch, peak, sizes[ends[-1][1]]))
    return _merged(segments)


def stretches(edges: Sequence[Edge], way: Way) -> list[list[Edge]]:
    """The edges in the order of a product, from one single value to the next."""
    found: list[list[Edge]] = [[]]
    order = _ordered(edges, way)
    last_read = {read_and_made(e, way)[0]: e for e in order}
    alive: set[Point] = set()
    for e in order:
        source, target = read_and_made(e, way)
        alive.add(target)
        if last_read[source] is e:
            alive.discard(source)
        found[-1].append(e)
        if alive == {target} and last_read[source] is e:
            found.append([])
    return found[:-1]


def read_and_made(edge: Edge, way: Way) -> tuple[Point, Point]:
    """The value that a product reads and the one that it adds to."""
    return (edge.outer, edge.inner) if way == "pull" else (edge.inner, edge.outer)


def _ordered(edges: Sequence[Edge], way: Way) -> list[Edge]:
    """Against the order of the run, or along it; what fills only a part of a value comes after what fills it."""
    pulling = way == "pull"
    order = sorted(edges, key=lambda e: -e.outer.op if pulling else e.inner.op)
    filling = Counter(read_and_made(e, way)[1] for e in order if not _sparse(e, way))
    waiting: defaultdict[Point, list[Edge]] = defaultdict(list)
    found: list[Edge] = []
    for e in order:
        target = read_and_made(e, way)[1]
        if _sparse(e, way) and filling[target]:
            waiting[target].append(e)
            continue
        found.append(e)
        if not _sparse(e, way):
            filling[target] -= 1
        if not filling[target]:
            found += waiting.pop(target, [])
    return found


def _sparse(edge: Edge, way: Way) -> bool:
    return edge.map.sparse_pull if way == "pull" else edge.map.sparse_push


_FOREIGN = -1  # memory that is not ours to write


def _rows(fitting: int) -> int:
    """The largest power of two that fits, at least 1."""
    return 1 << max(fitting, 1).bit_length() - 1


def _merged(segments: Sequence[Segment]) -> list[Segment]:
    """Neighbours joined where the later could take no fewer rows, since it is given no more than the earlier takes."""
    found: list[Segment] = []
    for s in segments:
        if found and (s.batch is None or (found[-1].batch is not None and found[-1].batch <= s.batch)):
            before = found[-1]
            found[-1] = Segment(s.way, (*before.steps, *s.steps), before.batch, max(before.peak, s.peak), s.end)
        else:
            found.append(s)
    return found
