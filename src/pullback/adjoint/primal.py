"""The frozen network's own run, for many passes at changing images: batch norms folded into the convolutions before them,

kernels rearranged once, and of the derivatives only the one with respect to the image. The same function up to rounding.
"""

from __future__ import annotations

from collections import defaultdict
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pullback.adjoint.applied import Applied
from pullback.adjoint.convolution import Convolution, Geometry, Packed
from pullback.adjoint.layers import norm_scale
from pullback.adjoint.maps import Scale
from pullback.graph import Op, Point, Rule, Tape
from pullback.graph.tape import filled


def primal_rules(tape: Tape, end: Point) -> dict[int, Rule]:
    """Rules for a replay from the input to `end`, for its convolutions and the batch norms behind them.

    They hold for the parameters as they are now, and keep kernels of their own; values are laid out with their channels
    innermost. Differentiable once. None where the path depends on the image's numbers, since such a recording is replayed
    once, and none where the layout of memory is a part of the computation.
    """
    run = [i for i, _ in tape.program(tape.input, [end]).steps]
    written = {tape.storages[t] for i in run for t in tape.ops[i].writes}
    views = [i for i in run if tape.dependent[i] and tape.ops[i].name in _VIEWS]
    if tape.data_dependent or any(
        tape.ops[i].name == "as_strided" or tape.storages[tape.ops[i].outputs[0]] in written for i in views
    ):
        return {}
    readers: defaultdict[int, list[int]] = defaultdict(list)
    for i in run:
        for p in tape.sources[i]:
            readers[p.op].append(i)
    rules: dict[int, Rule] = {i: _viewing(tape.ops[i]) for i in views}
    packed: Packed = {}
    for i in run:
        op = tape.ops[i]
        if op.func is not torch.ops.aten.convolution.default or not _is_fixed(tape, i, written):
            continue
        named = _named(tape, op)
        shapes = tape.shapes[op.inputs[0]], tape.shapes[op.outputs[0]]
        if named["transposed"] or len(shapes[0]) != 4:
            continue
        factor: Scale | None = None
        bias = named["bias"]
        norm = readers[i][0] if len(readers[i]) == 1 and i != end.op else None
        if norm is not None and _folds(tape, norm, written, readers[norm]):
            its = _named(tape, tape.ops[norm])
            scale = norm_scale(its)
            shift = -its["running_mean"].double() if bias is None else bias.double() - its["running_mean"].double()
            shift = shift * scale if its["bias"] is None else shift * scale + its["bias"].double()
            bias = shift.to(named["weight"].dtype)
            factor = Scale(scale.to(bias.dtype).reshape(1, -1, 1, 1), (norm,))
            rules[norm] = _passed_on(tape.ops[norm])
        stride, padding, dilation = (_pair(named[k]) for k in ("stride", "padding", "dilation"))
        geometry = Geometry(stride, padding, dilation, False, (0, 0), named["groups"], *shapes)
        rules[i] = _convolving(
            Convolution(named["weight"], geometry, i, packed, named["weight"].dtype, factor, blocked=True), bias
        )
    return rules


_VIEWS = {"view", "unsafe_view", "reshape_alias", "as_strided"}
_WORTH = 1e8
"""Operations of a convolution from which on our products are quicker than autograd's, Python's part included."""
_LARGE = 2**18
"""Numbers in a kernel from which on they are quicker in any case: autograd rearranges it for every image."""


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, map: Convolution, bias: Tensor | None) -> Tensor:
        ctx.map = map
        return map.run(x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.map.pull(grads[0][None], False)[0], None, None


def _convolving(map: Convolution, bias: Tensor | None) -> Rule:
    large = map.weight.numel() >= _LARGE or 2 * map.weight.numel() * prod(map.geometry.outer[2:]) >= _WORTH
    kernel, arguments = None if large else map.kernel(), map.geometry.arguments

    def run(x: Tensor, *args: Any) -> Tensor:
        if kernel is not None:
            return torch.ops.aten.convolution.default(x, kernel, bias, *arguments)
        return _Convolve.apply(x, map, bias)

    return run


def _viewing(op: Op) -> Rule:
    """Of the layout that was recorded: nobody writes through the view, so that a copy serves."""

    def run(x: Tensor, *args: Any) -> Tensor:
        return op.func(x.contiguous(), *args)

    return run


def _passed_on(op: Op) -> Rule:
    def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return x, *[x.new_empty(0)] * (len(op.outputs) - 1)  # nobody reads the statistics

    return run


def _folds(tape: Tape, i: int, written: set[int], readers: list[int]) -> bool:
    """Whether operation i is an evaluated batch norm of frozen statistics, of which only the result is read."""
    op = tape.ops[i]
    if not op.name.endswith(("batch_norm", "batch_norm_legit_no_training")) or not _is_fixed(tape, i, written):
        return False
    named = _named(tape, op)
    only_result = all(p.tensor == op.outputs[0] for j in readers for p in tape.sources[j] if p.op == i)
    return not named.get("training") and named.get("running_var") is not None and only_result


def _is_fixed(tape: Tape, i: int, written: set[int]) -> bool:
    """Whether all that the operation reads but its first tensor are constants, which the run leaves as they are."""
    others = tape.ops[i].inputs[1:]
    return tape.dependent[i] and all(t in tape.constants and tape.storages[t] not in written for t in others)


def _named(tape: Tape, op: Op) -> dict[str, Any]:
    """The operation's arguments by name; its first tensor stands for itself."""
    values = {**tape.constants, op.inputs[0]: torch.empty(0, device="cpu")}
    flags = (True,) + (False,) * (len(op.inputs) - 1)
    return Applied(op, 0, filled(op.args, values), filled(op.kwargs, values), flags, flags).named


def _pair(given: Any) -> tuple[int, ...]:
    return tuple(given) * (2 // len(given))
