"""Where a network splits into stages: single-tensor cuts at the ends of its resolution levels."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pullback.errors import EncoderError, StageError
from pullback.graph import INPUT, Call, Point, Tape, channels_first

_DROP = 1.5  # a side that shrinks by this factor between two cuts is a drop; padding and unpadded kernels stay below

_POOLING = {
    "mean", "sum", "amax", "max", "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d_with_indices",
}  # fmt: skip


@dataclass(frozen=True)
class Boundary:
    """The end of a stage: a cut of the tape and the name that a person would give it."""

    point: Point
    name: str
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class _Drop:
    """The resolution falls between two consecutive spatial cuts; `op` makes the first small one."""

    op: int
    before: int  # index of the last cut of the finer level


def split(tape: Tape, names: Sequence[str] | None = None) -> tuple[Boundary, ...]:
    """The stage boundaries of a recorded run, shallow to deep; `names`: module names that replace the automatic rule.

    Raises EncoderError when the network has no spatial stages, StageError when a name is unknown, no cut or out of order.
    """
    if names is not None:
        return _chosen(tape, names)
    spatial, drops = _levels(tape)
    used_until = _last_parameter(tape)
    found: list[Point] = []
    for i, drop in enumerate(drops):
        first = drops[i - 1].before + 1 if i else 0
        level = [p for p in spatial[first : drop.before + 1] if p.op < used_until and p != tape.input]
        found += _end_of_level(tape, level, drop, drops)
    tail = [p for p in spatial[drops[-1].before + 1 if drops else 0 :] if p.op < used_until and p != tape.input]
    if tail:
        found.append(tail[-1])
    kept = _merged(tape, found)
    if not kept:
        raise EncoderError(
            "the network has no spatial stages: no feature map in (N, C, H, W) order that every path from image to logits"
            " crosses; its Jacobian works (encoder.jacobian(image, 'logits') or a module's name), inversions do not"
        )
    starts = [tape.input, *kept]
    return tuple(
        Boundary(p, name_of(tape, p, after=before.op), _chw(tape, p)) for before, p in zip(starts, kept, strict=False)
    )


def split_alike(tape: Tape, names: Sequence[str] | None, expected: Sequence[tuple[str, int]]) -> tuple[Boundary, ...]:
    """`split` of one image's run, where stages are expected that have these names and channels.

    A stage may end in another branch here, or after another number of calls. Raises StageError where the channels differ, or
    where a stage would not be the output of the module that it is named after, though that module runs.
    """
    found = split(tape, names)
    differing = [b.shape[0] for b in found] != [channels for _, channels in expected]
    if differing or any(_takes_the_place(tape, b.name, name) for b, (name, _) in zip(found, expected, strict=True)):
        raise StageError(
            f"this image takes another path through the network: stages {_listed((b.name, b.shape[0]) for b in found)} instead"
            f" of {_listed(expected)}; name stages that every path crosses with stages="
        )
    return found


def _takes_the_place(tape: Tape, name: str, expected: str) -> bool:
    """Whether a stage is the output of another module than the expected one, though that runs too."""
    own, other = (n.partition("#")[0] for n in (expected, name))
    return own != other and bool(tape.returned_by(own))


def _listed(stages: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({channels} channels)" for name, channels in stages)


def _chw(tape: Tape, p: Point) -> tuple[int, int, int]:
    _, c, h, w = tape.shapes[p.tensor]
    return c, h, w


def _levels(tape: Tape) -> tuple[list[Point], list[_Drop]]:
    """The spatial cuts in order, and the drops between them; a drop to one position by pooling ends the spatial part."""
    natural = channels_first(tape)
    spatial: list[Point] = []
    drops: list[_Drop] = []
    for p in tape.cuts:
        if p.tensor not in natural or len(tape.shapes[p.tensor]) != 4:
            if spatial and len(tape.shapes[p.tensor]) == 2:  # flattened: the head
                drops.append(_Drop(p.op, len(spatial) - 1))
                break
            continue
        if spatial:
            old, new = tape.shapes[spatial[-1].tensor][2:], tape.shapes[p.tensor][2:]
            # Pooling to one position is a drop even where one position was left, of a small image.
            pooled = new == (1, 1) and tape.ops[p.op].name in _POOLING
            if pooled or max(o / n for o, n in zip(old, new, strict=True)) >= _DROP:
                drops.append(_Drop(p.op, len(spatial) - 1))
            if pooled:
                break
        spatial.append(p)
    return spatial, drops


def _learned_between(tape: Tape, after: int, until: int) -> bool:
    return any(set(tape.ops[i].inputs) & tape.parameters for i in tape.live if after < i <= until)


def _end_of_level(tape: Tape, level: list[Point], drop: _Drop, drops: list[_Drop]) -> list[Point]:
    """The last cut of the level outside the outermost call that holds this one drop and begins inside the level."""
    holders = [
        c
        for c in tape.calls
        if c.start <= drop.op < c.end
        and sum(c.start <= d.op < c.end for d in drops) == 1
        and any(p.op < c.start for p in level)
    ]
    begin = min((c.start for c in holders), default=drop.op)
    return [p for p in level if p.op < begin][-1:]


def _merged(tape: Tape, found: list[Point]) -> list[Point]:
    """Levels with fewer than two convolutions join the next (the stem), those without parameters their neighbour."""
    depth = _convolutions(tape)
    kept: list[Point] = []
    for p in found:
        if not kept or _learned_between(tape, kept[-1].op, p.op):
            kept.append(p)
    deep = [p for p in kept if depth[p.op] >= 2]
    if len(deep) >= 2:
        return deep
    # A lone convolution of the pixels, without a gate, embeds patches for something else than a CNN.
    return [
        p for p in kept if depth[p.op] >= 2 or (depth[p.op] == 1 and not tape.ops[p.op].name.endswith("convolution"))
    ]


def _convolutions(tape: Tape) -> dict[int, int]:
    """For each live operation the largest number of convolutions on a path from the input."""
    depth: dict[int, int] = {INPUT: 0}
    for i in tape.live:
        depth[i] = max(depth.get(p.op, 0) for p in tape.sources[i]) + tape.ops[i].name.endswith("convolution")
    return depth


def _last_parameter(tape: Tape) -> int:
    return max((i for i in tape.live if set(tape.ops[i].inputs) & tape.parameters), default=-1)


def name_of(tape: Tape, p: Point, after: int = INPUT) -> str:
    """The outermost module that returned this value and began after operation `after`, or else the innermost that did.

    Functional code has no module to name: then the operation and the module that it follows.
    """
    returned = _calls_that_returned(tape, p) or _calls_that_returned(tape, _handed_on(tape, p))
    if returned:  # calls are listed as they end: inner ones first
        inside = [c for c in returned if c.start > after]
        name = min(reversed(inside), key=lambda c: c.start).module if inside else returned[0].module
        calls = [c for c in tape.calls if c.module == name]
        which = next(i for i, c in enumerate(calls) if c in returned)
        return name if len(calls) == 1 else f"{name}#{which + 1}"
    op = tape.ops[p.op]
    before = [c for c in tape.calls if c.end <= p.op + 1 and c.module and c.module != op.module]
    last = max(before, key=lambda c: (c.end, -c.start)) if before else None
    since = last.end if last else 0
    count = sum(since <= i <= p.op and tape.ops[i].name == op.name for i in tape.live)
    name = op.name if count == 1 and last else f"{op.name}#{count}"
    return f"{name} after {last.module}" if last else name


def _calls_that_returned(tape: Tape, p: Point) -> list[Call]:
    return [
        c for c in tape.calls if c.output == p.tensor and c.end - 1 >= p.op and c.module and not _rewritten(tape, p, c)
    ]


def _handed_on(tape: Tape, p: Point) -> Point:
    """The value itself where `p` is a mere view of the whole of it (backward hooks make such views), or it in another type."""
    while p.op != INPUT and tape.ops[p.op].name in ("view", "alias", "to_copy") and len(tape.sources[p.op]) == 1:
        (source,) = tape.sources[p.op]
        if tape.shapes[source.tensor] != tape.shapes[p.tensor]:
            break
        p = source
    return p


def _rewritten(tape: Tape, p: Point, call: Call) -> bool:
    """Whether an operation between the point and the end of the call changes the value in place."""
    storage = tape.storages[p.tensor]
    return any(tape.storages[t] == storage for i in range(p.op + 1, call.end) for t in tape.ops[i].writes)


def _chosen(tape: Tape, names: Sequence[str]) -> tuple[Boundary, ...]:
    if not names:
        raise StageError("stages= names no module; name one or more, or leave it out")
    chosen = tuple(_named(tape, name) for name in names)
    for before, after in pairwise(chosen):
        if before.point.op >= after.point.op:
            raise StageError(f"stages= goes from shallow to deep: {after.name!r} does not come after {before.name!r}")
    return chosen


def _named(tape: Tape, name: str) -> Boundary:
    point = find(tape, name)
    if point not in tape.cuts:
        raise StageError(
            f"module {name!r} is no stage boundary: some path from image to logits goes around its output;"
            " choose a module whose output everything passes through"
        )
    if len(tape.shapes[point.tensor]) != 4:
        raise StageError(
            f"module {name!r} returns shape {tape.shapes[point.tensor]}; a stage is a feature map (N, C, H, W)"
        )
    return Boundary(point, name, _chw(tape, point))


def find(tape: Tape, name: str) -> Point:
    """The output of the module called `name` (`name#2`: of its second call). Raises StageError with the nearest names."""
    module, _, which = name.partition("#")
    points = tape.returned_by(module)
    number = int(which) if which.isdigit() else 1
    if not points or number > len(points) or (which and not which.isdigit()):
        names = sorted({c.module for c in tape.calls if c.output is not None and c.module})
        near = difflib.get_close_matches(module, names, 3, 0.4) or names[:3]
        raise StageError(
            f"no module {name!r} returned a tensor in this run; nearest: {', '.join(near) or 'none'};"
            " use a stage number, a module's name or 'logits'"
        )
    if len(points) > 1 and not which:
        raise StageError(f"module {name!r} was called {len(points)} times; say which: {name}#1 to {name}#{len(points)}")
    return points[number - 1]
