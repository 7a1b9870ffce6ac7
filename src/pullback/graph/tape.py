"""One recorded run of a network as a tape of tensor operations that can be replayed from any of its single-tensor points.

Recording sits below autograd (`TorchDispatchMode`), so it takes what tracing compilers refuse: data-dependent branches,
dataclass outputs, modules that are used twice, functional code. Replaying runs the recorded operations through
autograd again, which makes every stretch of the network an ordinary differentiable function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

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


def storage_of(tensor: Tensor) -> int:
    """The same number for all tensors that share memory, while they live."""
    return int(tensor.untyped_storage()._cdata)


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


Rule = Callable[..., Tensor]


@dataclass(eq=False)
class Tape:
    """The operations of one run, in order; tensors are numbered by first appearance.

    `shapes[i]` and `storages[i]` describe tensor i, `boolean` names those of bool type; `constants[i]` holds tensors that do
    not depend on the input.
    """

    ops: list[Op]
    calls: list[Call]
    input: Point
    output: Point
    shapes: list[tuple[int, ...]]
    storages: list[int]
    boolean: set[int]
    constants: dict[int, Tensor]
    parameters: set[int]  # constants that are, or come from, the module's parameters
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
        return any(
            self.dependent[i]
            and (op.func in _READS_NUMBERS or (op.name == "index" and any(t in self.boolean for t in op.inputs)))
            for i, op in enumerate(self.ops)
        )

    @cached_property
    def draws(self) -> tuple[str, ...]:
        """Operations on the way to the output that draw random numbers, with their modules."""
        needed = [self.ops[i] for i in sorted(self._needed(self.output.op, INPUT))]
        return tuple(dict.fromkeys(f"{op.name} in {op.module or 'the network'}" for op in needed if _is_random(op)))

    def _needed(self, last: int, first: int) -> set[int]:
        """Operations after `first` that operation `last` needs, itself included."""
        needed, queue = {last}, [last]
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
                args, kwargs = tree_map(lambda a: values[a.index] if isinstance(a, Ref) else a, (op.args, op.kwargs))
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


def _is_random(op: Op) -> bool:
    """Whether the operation draws from a generator; fused attention is able to, but only with dropout."""
    if torch.Tag.nondeterministic_seeded not in op.func.tags:
        return False
    declared = op.func._schema.arguments
    given = dict(zip((a.name for a in declared), op.args, strict=False)) | op.kwargs
    return all(given.get(a.name, a.default_value) != 0 for a in declared if a.name == "dropout_p")


@dataclass(frozen=True)
class _Program:
    steps: tuple[tuple[int, tuple[int, ...]], ...]  # operation, tensors whose last use it is
    constants: tuple[int, ...]
    written_constants: tuple[int, ...]
    captures: dict[int, list[Point]]
    overwritten: frozenset[Point]  # points whose storage a later step writes


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


class _Recorder(TorchDispatchMode):
    """Numbers every tensor that passes and writes down every operation; holds all tensors so that no address is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.calls: list[Call] = []
        self.open: list[tuple[str, int]] = []
        self.tensors: list[Tensor] = []
        self.index: dict[int, int] = {}
        self.born_without_grad: dict[int, int] = {}
        self.custom: dict[str, None] = {}
        self.own: set[int] = set()  # storages that the run made
        self.initial: dict[int, Tensor] = {}  # tensors of the module that the run writes, as they were

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled while recording, and to say so torch would load its compiler, which takes a second

    def number(self, tensor: Tensor) -> int:
        if id(tensor) not in self.index:
            self.index[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
        return self.index[id(tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [self.number(a) for a in tree_iter((args, kwargs)) if isinstance(a, Tensor)]
        for t in inputs:
            self._adopt_custom_function(t)
        writes = [
            self.number(a)
            for a, declared in zip(args, func._schema.arguments, strict=False)
            if isinstance(a, Tensor) and declared.alias_info is not None and declared.alias_info.is_write
        ]
        writes += [self.number(a) for k, a in kwargs.items() if k == "out" and isinstance(a, Tensor)]
        for t in writes:
            self._keep_initial(storage_of(self.tensors[t]))
        read = {storage_of(self.tensors[t]) for t in inputs}
        out = func(*args, **kwargs)
        outputs = [self.number(o) for o in tree_iter(out) if isinstance(o, Tensor)]
        self.own.update({storage_of(self.tensors[t]) for t in outputs} - read)
        grad = torch.is_grad_enabled()
        kept, named = tree_map(
            lambda a: Ref(self.number(a)) if isinstance(a, Tensor) else a, (tuple(args), dict(kwargs))
        )
        module = self.open[-1][0] if self.open else ""
        self.ops.append(Op(func, kept, named, tuple(inputs), tuple(outputs), tuple(writes), module, grad))
        if not grad:
            self.born_without_grad.update({t: len(self.ops) - 1 for t in outputs})
        return out

    def _keep_initial(self, storage: int) -> None:
        """Keep what a tensor that the run did not make (a counter in a buffer) holds before the run first writes to it."""
        if storage not in self.own:
            self.own.add(storage)
            self.initial.update({t: v.detach().clone() for t, v in enumerate(self.tensors) if storage_of(v) == storage})

    def _adopt_custom_function(self, t: int) -> None:
        """A tensor made without grad that has a grad_fn now left a custom autograd.Function: differentiate what it ran."""
        tensor = self.tensors[t]
        if t not in self.born_without_grad or tensor.grad_fn is None:
            return
        if (name := type(tensor.grad_fn).__name__) != "BackwardHookFunctionBackward":  # hooks of the user's, an identity
            self.custom[name] = None
        queue = [self.born_without_grad[t]]
        while queue:
            i = queue.pop()
            op = self.ops[i]
            if not op.grad:
                self.ops[i] = Op(op.func, op.args, op.kwargs, op.inputs, op.outputs, op.writes, op.module, True)
                queue += [self.born_without_grad.pop(u) for u in op.inputs if u in self.born_without_grad]

    def enter(self, name: str) -> None:
        self.open.append((name, len(self.ops)))

    def leave(self, name: str, kind: str, output: Any) -> None:
        while self.open and self.open[-1][0] != name:
            self.open.pop()
        if self.open:
            _, start = self.open.pop()
            known = isinstance(output, Tensor) and id(output) in self.index
            self.calls.append(Call(name, kind, start, len(self.ops), self.index[id(output)] if known else None))


@contextmanager
def _named_calls(module: nn.Module, recorder: _Recorder) -> Iterator[None]:
    handles: list[Any] = []
    try:
        for name, child in module.named_modules():
            if isinstance(child, torch.jit.ScriptModule):
                continue
            kind = type(child).__name__
            handles.append(child.register_forward_pre_hook(lambda m, a, name=name: recorder.enter(name), prepend=True))
            handles.append(
                child.register_forward_hook(lambda m, a, out, name=name, kind=kind: recorder.leave(name, kind, out))
            )
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def plain_autograd(device: torch.device) -> Iterator[None]:
    """Ordinary autograd whatever the caller has switched: inference mode off, grad on, autocast off, compilation off, RNG kept."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if "torch._dynamo" in sys.modules:  # loading it costs a second, and without it nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        yield


def record(
    module: nn.Module, x: Tensor, read_logits: Callable[[Any], Tensor] = lambda out: out
) -> tuple[Tape, Tensor, Tensor]:
    """Run `module` once on a batch `x` (N, C, H, W) and return the tape, the input leaf and the logits with their graph.

    `module` must be a twin whose parameters need no gradient; `read_logits` picks the tensor from the module's output.
    The graph of the returned logits is the network's own autograd graph: an independent oracle for replays.
    """
    with plain_autograd(x.device):
        leaf = x.detach().clone().requires_grad_(x.is_floating_point())
        fed = leaf.clone()  # a network may begin with an in-place operation, which a leaf refuses
        recorder = _Recorder()
        first = recorder.number(fed)
        try:
            with _named_calls(module, recorder), recorder:
                result = module(fed)
        except EncoderError:
            raise
        except Exception as error:
            text = str(error).strip().splitlines()
            raise EncoderError(
                f"the network failed on an input of shape {tuple(x.shape)} ({x.dtype}): {type(error).__name__}: "
                f"{text[0] if text else 'no message'}; check the input size, channels and dtype that it expects"
            ) from error
        logits = read_logits(result)
        if id(logits) not in recorder.index:
            raise EncoderError(
                "the network's output does not come from a tensor operation on its input, so nothing can be pulled back through it"
            )
    return _tape(module, recorder, first, logits), leaf, logits


def _tape(module: nn.Module, recorder: _Recorder, first: int, logits: Tensor) -> Tape:
    shapes = [tuple(t.shape) for t in recorder.tensors]
    storages = [storage_of(t) for t in recorder.tensors]
    boolean = {i for i, t in enumerate(recorder.tensors) if t.dtype == torch.bool}
    out = recorder.index[id(logits)]
    begin = Point(INPUT, first)
    tape = Tape(recorder.ops, recorder.calls, begin, begin, shapes, storages, boolean, {}, set())
    tape.output = tape.value(out, len(tape.ops))
    tape.notes = (
        *(
            f"the network defines its own backward pass ({name}); pullback differentiates what its forward pass computes"
            for name in recorder.custom
        ),
        *(f"the network draws random numbers ({name}); each recorded run keeps its own draw" for name in tape.draws),
    )
    made = {t for i, op in enumerate(recorder.ops) if tape.dependent[i] for t in (*op.outputs, *op.writes)}
    tape.constants = {t: v.detach() for t, v in enumerate(recorder.tensors) if t != first and t not in made} | recorder.initial
    owned = {storage_of(p) for p in module.parameters()}
    tape.parameters = {t for t in tape.constants if storages[t] in owned}
    for i, op in enumerate(recorder.ops):
        if not tape.dependent[i] and any(t in tape.parameters for t in op.inputs):
            tape.parameters.update(op.outputs)
    return tape
