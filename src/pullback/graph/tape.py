"""One recorded run of a network as a tape of tensor operations that can be replayed from any of its single-tensor points.

Replaying runs the recorded operations through autograd again, which makes every stretch of the network an ordinary
differentiable function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

from pullback.errors import EncoderError

INPUT = -1  # the "operation" that makes the network's input

aten = torch.ops.aten

# Their result depends on the numbers in the tensor, so a tape that uses them on the image's path holds for that image alone.
_READS_NUMBERS = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
}


@dataclass(frozen=True)
class Ref:
    """Stands for the tensor with this index in an operation's arguments."""

    index: int


@dataclass(frozen=True)
class Point:
    """The value of one tensor right after one operation (in-place operations may change it later)."""

    op: int
    tensor: int


@dataclass(frozen=True)
class Op:
    """One recorded operation."""

    func: Any  # torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    writes: tuple[int, ...]  # tensors changed in place
    module: str  # innermost module whose call was open
    grad: bool  # False: run under the network's own torch.no_grad

    @property
    def name(self) -> str:
        """The operation's plain name, for example `relu` for `aten.relu_.default`."""
        return str(self.func.overloadpacket._qualified_op_name).split("::")[-1].strip("_")


@dataclass(frozen=True)
class Call:
    """One call of a module: operations `start <= op < end`, and the single tensor that it returned, if it was one."""

    module: str
    kind: str
    start: int
    end: int
    output: int | None


Rule = Callable[..., Any]  # what the operation returns: a tensor or several


@dataclass(eq=False)
class Tape:
    """The operations of one run, in order; tensors are numbered by first appearance.

    `shapes[i]`, `dtypes[i]` and `storages[i]` describe tensor i; `constants[i]` holds tensors that do not depend on the input.
    """

    ops: list[Op]
    calls: list[Call]
    input: Point
    output: Point
    shapes: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    storages: list[int]
    constants: dict[int, Tensor]
    parameters: set[int]  # constants that are, or come from, the module's parameters
    read: set[int] = field(default_factory=set)  # tensors that depend on the input and whose numbers left for Python
    notes: tuple[str, ...] = ()
    _programs: dict[tuple[Point, tuple[Point, ...]], _Program] = field(default_factory=dict)

    @cached_property
    def sources(self) -> list[tuple[Point, ...]]:
        """For each operation the points whose values it reads: each tensor as its last writer left it.

        A write through one view is a write to all tensors that share its storage, and reads what it leaves of the whole.
        """
        whole: dict[int, int] = {}  # storage -> the tensor that it was made for
        for t, storage in enumerate(self.storages):
            whole.setdefault(storage, t)
        made: dict[int, int] = {self.input.tensor: INPUT}  # tensor -> operation that made it
        written: dict[int, int] = {}  # storage -> last operation that wrote into it
        found: list[tuple[Point, ...]] = []
        for i, op in enumerate(self.ops):
            read: dict[Point, None] = {}
            for t in (*op.inputs, *(whole[self.storages[w]] for w in op.writes)):
                writers = [w for w in (made.get(t), written.get(self.storages[t])) if w is not None]
                if writers:
                    read[Point(max(writers), t)] = None
            found.append(tuple(read))
            made.update(dict.fromkeys(op.outputs, i))
            written.update({self.storages[t]: i for t in op.writes})
        return found

    @cached_property
    def dependent(self) -> list[bool]:
        """Whether each operation depends on the network's input."""
        found: list[bool] = []
        for read in self.sources:
            found.append(any(p.op == INPUT or found[p.op] for p in read))
        return found

    @cached_property
    def live(self) -> list[int]:
        """The operations on some path from the input to the output, in order."""
        needed = self._needed(self.output.op, INPUT)
        return [i for i in sorted(needed) if self.dependent[i]]

    @cached_property
    def data_dependent(self) -> bool:
        """True when the run read numbers of the image (a branch, `.item()`): the tape then holds for this image alone."""
        return bool(self.read) or any(
            self.dependent[i]
            and (
                op.func in _READS_NUMBERS
                or (op.name == "index" and any(self.dtypes[t] == torch.bool for t in op.inputs))
            )
            for i, op in enumerate(self.ops)
        )

    @cached_property
    def draws(self) -> tuple[str, ...]:
        """Operations on the way to the output that draw random numbers, with their modules."""
        needed = [self.ops[i] for i in sorted(self._needed(self.output.op, INPUT))]
        drawing = [op for op in needed if torch.Tag.nondeterministic_seeded in op.func.tags]
        return tuple(dict.fromkeys(f"{op.name} in {op.module or 'the network'}" for op in drawing))

    def _needed(self, last: int, first: int) -> set[int]:
        """Operations after `first` that operation `last` needs, itself included."""
        queue = [last] if last > first else []
        needed = set(queue)
        while queue:
            for p in self.sources[queue.pop()]:
                if p.op > first and p.op not in needed:
                    needed.add(p.op)
                    queue.append(p.op)
        return needed

    def program(self, start: Point, points: Sequence[Point]) -> _Program:
        """The operations to run from `start` to `points` (in order of time), planned once."""
        key = (start, tuple(points))
        if key not in self._programs:
            self._programs[key] = _plan(self, start, points)
        return self._programs[key]

    def replay(
        self, x: Tensor, points: Sequence[Point], *, start: Point | None = None, rules: Mapping[int, Rule] | None = None
    ) -> list[Tensor]:
        """Run from `start` (default: the input) with value `x` and return the values at `points`.

        `points` are in order of time and all but the last must be cuts. `rules` maps operation numbers to functions
        that are called in their stead with the same arguments. Differentiable in `x` wherever grad mode is on.
        """
        start = start or self.input
        program = self.program(start, points)
        values: dict[int, Tensor] = {t: self.constants[t] for t in program.constants}
        values.update({t: self.constants[t].clone() for t in program.written_constants})
        values[start.tensor] = x.clone() if start in program.overwritten else x
        taken: dict[Point, Tensor] = {start: x}
        with ExitStack() as stack:
            if not torch.is_grad_enabled():
                stack.enter_context(torch.no_grad())
            for i, released in program.steps:
                op = self.ops[i]
                func = rules[i] if rules and i in rules else op.func
                args, kwargs = filled(op.args, values), filled(op.kwargs, values)
                if op.grad:
                    out = func(*args, **kwargs)
                else:
                    with torch.no_grad():
                        out = func(*args, **kwargs)
                flat = [o for o in tree_iter(out) if isinstance(o, Tensor)]
                values.update(zip(op.outputs, flat, strict=True))
                for p in program.captures.get(i, ()):
                    taken[p] = values[p.tensor]
                    if p in program.overwritten:
                        values[p.tensor] = values[p.tensor].clone()
                for t in released:
                    values.pop(t, None)
        return [taken[p] for p in points]

    @cached_property
    def cuts(self) -> list[Point]:
        """Points that every path from input to output crosses, in order, input and output included.

        A value is a cut when no live edge jumps over its operation and that operation has one live output.
        """
        reach: dict[int, int] = {}
        used: dict[int, set[int]] = {}
        live = set(self.live)
        for j in self.live:
            for p in self.sources[j]:
                if p.op == INPUT or p.op in live:
                    reach[p.op] = max(reach.get(p.op, p.op), j)
                    used.setdefault(p.op, set()).add(p.tensor)
        reach[self.output.op], used[self.output.op] = self.output.op, {self.output.tensor}
        found, furthest = [], INPUT
        for i in [INPUT, *self.live]:
            if furthest <= i and len(used.get(i, ())) == 1:
                found.append(Point(i, next(iter(used[i]))))
            furthest = max(furthest, reach.get(i, i))
        return found

    def returned_by(self, module: str) -> list[Point]:
        """The outputs of a module's calls, one for each call, in order of time."""
        return [self.value(c.output, c.end) for c in self.calls if c.module == module and c.output is not None]

    def value(self, tensor: int, before: int) -> Point:
        """A tensor as the operations before number `before` left it."""
        storage = self.storages[tensor]
        for i in reversed(range(before)):
            op = self.ops[i]
            if tensor in op.outputs or any(self.storages[t] == storage for t in op.writes):
                return Point(i, tensor)
        return Point(INPUT, tensor)


@dataclass(frozen=True)
class _Program:
    steps: tuple[tuple[int, tuple[int, ...]], ...]  # operation, tensors whose last use it is
    constants: tuple[int, ...]
    written_constants: tuple[int, ...]
    captures: dict[int, list[Point]]
    overwritten: frozenset[Point]  # points whose storage a later step writes


def filled(arguments: Any, values: Mapping[int, Tensor]) -> Any:
    """The arguments with tensors for their references; they nest in lists, tuples and dictionaries alone."""
    if isinstance(arguments, Ref):
        return values[arguments.index]
    if isinstance(arguments, (list, tuple)):
        return type(arguments)([filled(a, values) for a in arguments])
    if isinstance(arguments, dict):
        return {name: filled(a, values) for name, a in arguments.items()}
    return arguments


def _plan(tape: Tape, start: Point, points: Sequence[Point]) -> _Program:
    last = max((p.op for p in points), default=start.op)
    needed: set[int] = set()
    for p in points:
        if p.op > start.op:
            needed |= tape._needed(p.op, start.op)
    written = {tape.storages[t] for i in needed for t in tape.ops[i].writes}
    # A constant whose storage the run writes must be made afresh: its operation is run again.
    run = sorted(
        i for i in needed if tape.dependent[i] or any(tape.storages[t] in written for t in tape.ops[i].outputs)
    )
    for i in run:
        for p in tape.sources[i]:
            reaches_back = p.op == INPUT or tape.dependent[p.op]
            if reaches_back and p.op <= start.op and p != start and start.op != INPUT:
                raise EncoderError(
                    f"operation {tape.ops[i].name} in {tape.ops[i].module or 'the network'} reads a value from before the"
                    " starting point; start from a stage boundary that every path crosses"
                )
    made: set[int] = {start.tensor}
    constants: set[int] = set()
    for i in run:
        constants |= {t for t in tape.ops[i].inputs if t not in made and t in tape.constants}
        made.update(tape.ops[i].outputs)
    written_constants = {t for t in constants if tape.storages[t] in written}
    use: dict[int, int] = {}
    for i in run:
        for t in (*tape.ops[i].inputs, *tape.ops[i].outputs):
            use[t] = i
    for p in points:
        use[p.tensor] = max(p.op, use.get(p.tensor, p.op))
    release: dict[int, list[int]] = {}
    for t, i in use.items():
        release.setdefault(i, []).append(t)
    captures: dict[int, list[Point]] = {}
    for p in points:
        captures.setdefault(p.op, []).append(p)
    overwritten = frozenset(
        p
        for p in (start, *points)
        if p.op < last
        and any(tape.storages[t] == tape.storages[p.tensor] for i in run if i > p.op for t in tape.ops[i].writes)
    )
    return _Program(
        tuple((i, tuple(release.get(i, ()))) for i in run),
        tuple(constants - written_constants),
        tuple(written_constants),
        captures,
        overwritten,
    )
