"""Recording one run of a network: every tensor operation, with the module that it runs in and what it reads and writes.

Recording sits below autograd (`TorchDispatchMode`), so it takes what tracing compilers refuse: data-dependent branches,
dataclass outputs, modules that are used twice, functional code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from pullback.errors import EncoderError
from pullback.graph.tape import INPUT, Call, Op, Point, Ref, Tape


def storage_of(tensor: Tensor) -> int:
    """The same number for all tensors that share memory, while they live."""
    return int(tensor.untyped_storage()._cdata)


class _Recorder(TorchDispatchMode):
    """Numbers every tensor that passes and writes down every operation; holds all tensors so that no address is used twice."""

    def __init__(self, reach: Iterable[Tensor] | None = None) -> None:
        super().__init__()
        self.reach = None if reach is None else list(reach)
        self.ops: list[Op] = []
        self.calls: list[Call] = []
        self.open: list[tuple[str, int]] = []
        self.tensors: list[Tensor] = []
        self.index: dict[int, int] = {}
        self.born_without_grad: dict[int, int] = {}
        self.read: set[int] = set()
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
        self._stay_in_reach(inputs, writes)
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

    def _stay_in_reach(self, inputs: list[int], writes: list[int]) -> None:
        """Refuse an operation, before it runs, that would use a parameter or write to a tensor of somebody else's."""
        if self.reach is None:
            return
        for t in inputs:
            tensor = self.tensors[t]
            if storage_of(tensor) in self.own or not (t in writes or isinstance(tensor, nn.Parameter)):
                continue
            if isinstance(tensor, nn.Parameter):  # the twin's share their storage with the user's
                known = any(tensor is own for own in self.reach)
            else:
                known = any(own.layout is torch.strided and storage_of(tensor) == storage_of(own) for own in self.reach)
            if not known:
                module = self.open[-1][0] if self.open else ""
                raise EncoderError(
                    f"the network's forward{f' (in {module})' if module else ''} reaches back to a tensor of shape"
                    f" {tuple(tensor.shape)} that its copy does not hold: a closure, a patched forward or a hook uses a module"
                    " of yours, which would not stay untouched; make it a method or a submodule"
                )

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
        name = type(tensor.grad_fn).__name__
        if name != "BackwardHookFunctionBackward":  # backward hooks of the user's: an identity
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


class _Readings(TorchFunctionMode):
    """Notes tensors whose numbers leave for Python or NumPy by ways that no operation shows."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READINGS:
            self.recorder.read.add(self.recorder.number(args[0]))
        return func(*args, **(kwargs or {}))


_READINGS = {Tensor.tolist, Tensor.numpy, Tensor.__array__}


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


def vjp(output: Tensor, leaf: Tensor, w: Tensor) -> Tensor:
    """J^T w of an output with its graph, which is freed. By the gradient of <output, w>: given w, torch loads a compiler."""
    with torch.enable_grad():
        (pulled,) = torch.autograd.grad((output * w).sum(), leaf)
    return pulled


def record(
    module: nn.Module,
    x: Tensor,
    read_logits: Callable[[Any], Tensor] = lambda out: out,
    *,
    reach: Iterable[Tensor] | None = None,
) -> tuple[Tape, Tensor, Tensor]:
    """Run `module` once on a batch `x` (N, C, H, W) and return the tape, the input leaf and the logits with their graph.

    `module` must be a twin whose parameters need no gradient; `read_logits` picks the tensor from the module's output.
    reach: the twin's own tensors, where a parameter outside, or a write to a tensor outside, is to raise EncoderError.
    The graph of the returned logits is the network's own autograd graph: an independent oracle for replays.
    """
    with plain_autograd(x.device):
        leaf = x.detach().clone().requires_grad_(x.is_floating_point())
        fed = leaf.clone()  # a network may begin with an in-place operation, which a leaf refuses
        recorder = _Recorder(reach)
        first = recorder.number(fed)
        recorder.own.add(storage_of(fed))
        try:
            # Fused attention has no second derivative, and hides what it is made of.
            with sdpa_kernel(SDPBackend.MATH), _named_calls(module, recorder), recorder, _Readings(recorder):
                result = module(fed)
        except EncoderError:
            raise
        except Exception as error:
            text = str(error).strip().splitlines()
            raise EncoderError(
                f"the network failed on an input of shape {tuple(x.shape)} ({x.dtype}): {type(error).__name__}: "
                f"{text[0] if text else 'no message'}; check the input size, channels and dtype that it expects, and say them:"
                ' input_shape=(C, H, W), or on the command line --preprocessing "mean=0.5;std=0.5;size=28", a mean for each channel'
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
    dtypes = [t.dtype for t in recorder.tensors]
    out = recorder.index[id(logits)]
    begin = Point(INPUT, first)
    tape = Tape(recorder.ops, recorder.calls, begin, begin, shapes, dtypes, storages, {}, set())
    tape.output = tape.value(out, len(tape.ops))
    tape.notes = (
        *(
            f"the network defines its own backward pass ({name}); pullback differentiates what its forward pass computes"
            for name in recorder.custom
        ),
        *(f"the network draws random numbers ({name}); each recorded run keeps its own draw" for name in tape.draws),
    )
    made = {t for i, op in enumerate(recorder.ops) if tape.dependent[i] for t in (*op.outputs, *op.writes)}
    tape.constants = {t: v.detach() for t, v in enumerate(recorder.tensors) if t != first and t not in made}
    tape.constants |= recorder.initial
    tape.read = recorder.read & (made | {first})
    owned = {storage_of(p) for p in module.parameters()}
    tape.parameters = {t for t in tape.constants if storages[t] in owned}
    for i, op in enumerate(recorder.ops):
        if not tape.dependent[i] and any(t in tape.parameters for t in op.inputs):
            tape.parameters.update(op.outputs)
    return tape
