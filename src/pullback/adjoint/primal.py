"""The frozen network's own run in a quick form, for many passes at changing images: the same function up to rounding.

Batch norms are folded into the convolutions before them, kernels are laid out for channels-last tensors once, and of the
derivatives only the one with respect to the image is computed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pullback.adjoint.applied import named_arguments
from pullback.adjoint.convolution import Convolution, Geometry, Packed
from pullback.adjoint.layers import norm_scale
from pullback.adjoint.maps import Scale
from pullback.graph import Op, Point, Rule, Tape
from pullback.graph.tape import filled

# Whatever acts entry by entry counts as well. Other operations may insist on the layout that was recorded, or read it.
_TAKES_ANY_LAYOUT = {
    "convolution", "max_pool2d_with_indices", "avg_pool2d", "adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
    "mean", "sum", "amax", "hardswish", "cat", "split", "split_with_sizes", "slice", "select", "squeeze", "unsqueeze", "expand",
    "permute", "transpose", "t", "constant_pad_nd", "detach", "alias", "mm", "bmm", "addmm",
}  # fmt: skip
_VIEWS = {"view", "unsafe_view", "reshape_alias"}
_NORMS = {"native_batch_norm", "native_batch_norm_legit_no_training", "cudnn_batch_norm"}
_WORTH = 1e8
"""Operations of a convolution from which on our products are quicker than autograd's, Python's part included."""
_LARGE = 2**18
"""Numbers in a kernel from which on they are quicker in any case: autograd rearranges it for every image."""


@torch.inference_mode(False)  # kernels made under it could not take part in a later backward pass
def primal_rules(tape: Tape, start: Point, end: Point) -> dict[int, Rule]:
    """Rules for a replay from `start` to `end` and no other point: for convolutions, evaluated batch norms and views.

    They hold for parameters and running statistics as they are now, and keep kernels of their own. First derivatives only: a
    second one lacks parts or raises. Empty for a recording that holds for one image alone, which is replayed once, and for
    networks with an operation that may depend on how its tensors lie in memory.
    """
    run = [i for i, _ in tape.program(start, [end]).steps]
    readers: defaultdict[int, list[int]] = defaultdict(list)
    for i in run:
        for p in tape.sources[i]:
            readers[p.op].append(i)
    written = {s for i in run for s in _written(tape, i)}
    frozen = {i for i in run if all(_is_constant(tape, t, written) for t in tape.ops[i].inputs[1:])}
    if tape.data_dependent or not all(_takes_any_layout(tape, i, run, readers[i], i in frozen) for i in run):
        return {}
    packed: Packed = {}
    rules: dict[int, Rule] = {}
    for i in run:
        op = tape.ops[i]
        if op.name in _VIEWS:
            rules[i] = _viewing(op)
        elif op.name in _NORMS and i not in rules:
            rules[i] = _scaling(tape, op)
        elif op.name == "convolution" and i in frozen:
            norm = _folded_norm(tape, i, end, readers)
            made = _convolution(tape, i, norm, packed)
            if made is None:
                continue
            rules[i] = made
            if norm is not None:
                rules[norm] = _passing_on(tape.ops[norm])
    return rules


def _takes_any_layout(tape: Tape, i: int, run: list[int], readers: list[int], frozen: bool) -> bool:
    op = tape.ops[i]
    if not tape.dependent[i]:
        return True
    if op.name in _NORMS:
        named = _named(tape, op)
        only_result = all(p.tensor == op.outputs[0] for j in readers for p in tape.sources[j] if p.op == i)
        evaluated = not named.get("training") and named.get("running_var") is not None
        return frozen and evaluated and only_result
    if op.name in _VIEWS:  # a copy serves unless somebody writes through it afterwards
        return not any(tape.storages[op.outputs[0]] == s for j in run if j > i for s in _written(tape, j))
    return op.name in _TAKES_ANY_LAYOUT or torch.Tag.pointwise in op.func.tags


def _is_constant(tape: Tape, tensor: int, written: set[int]) -> bool:
    """Whether the run leaves it as it is."""
    return tensor in tape.constants and tape.storages[tensor] not in written


def _written(tape: Tape, i: int) -> Iterator[int]:
    return (tape.storages[t] for t in tape.ops[i].writes)


def _named(tape: Tape, op: Op) -> dict[str, Any]:
    """The operation's arguments by name; its first tensor stands for itself."""
    values: dict[int, Any] = {t: tape.constants.get(t) for t in op.inputs}
    return named_arguments(op, filled(op.args, values), filled(op.kwargs, values))


def _affine(tape: Tape, op: Op) -> tuple[Tensor, Tensor]:
    """scale and shift (C,), float64, of an evaluated batch norm."""
    named = _named(tape, op)
    scale = norm_scale(named)
    shift = -named["running_mean"].double() * scale
    return scale, shift if named["bias"] is None else shift + named["bias"].double()


def _folded_norm(tape: Tape, i: int, end: Point, readers: dict[int, list[int]]) -> int | None:
    """The batch norm that alone reads convolution i."""
    found = readers[i][0] if len(readers[i]) == 1 and i != end.op else None
    alike = found is not None and tape.ops[found].name in _NORMS and tape.ops[found].grad == tape.ops[i].grad
    return found if alike else None


def _convolution(tape: Tape, i: int, norm: int | None, packed: Packed) -> Rule | None:
    op = tape.ops[i]
    named = _named(tape, op)
    weight, bias = named["weight"], named["bias"]
    geometry = Geometry.of(named, tape.shapes[op.inputs[0]], tape.shapes[op.outputs[0]])
    if not geometry.planar:
        return None
    factor: Scale | None = None
    if norm is not None:
        scale, shift = _affine(tape, tape.ops[norm])
        bias = (shift if bias is None else shift + bias.double() * scale).to(weight.dtype)
        factor = Scale(scale.to(weight.dtype).reshape(1, -1, 1, 1), (norm,))
    return _convolving(Convolution(weight, geometry, i, packed, weight.dtype, factor, blocked=True), bias)


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
    ours = large or map.in_phases  # twice as quick as autograd's
    kernel, arguments = None if ours else map.kernel(), map.geometry.arguments

    def run(x: Tensor, *args: Any) -> Tensor:
        if kernel is not None:
            return torch.ops.aten.convolution.default(x, kernel, bias, *arguments)
        return _Convolve.apply(x, map, bias)

    return run


def _viewing(op: Op) -> Rule:
    def run(x: Tensor, *args: Any) -> Tensor:
        return op.func(x.contiguous(), *args)

    return run


def _scaling(tape: Tape, op: Op) -> Rule:
    """A batch norm by itself: autograd's own goes wrong on some layouts of a single image (torch 2.13)."""
    shape = 1, -1, *[1] * (len(tape.shapes[op.inputs[0]]) - 2)
    dtype = _named(tape, op)["running_var"].dtype
    scale, shift = (t.to(dtype).reshape(shape) for t in _affine(tape, op))

    def run(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return _with_statistics(op, x * scale + shift)

    return run


def _passing_on(op: Op) -> Rule:
    def run(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return _with_statistics(op, x)

    return run


def _with_statistics(op: Op, x: Tensor) -> tuple[Tensor, ...]:
    return x, *[x.new_empty(0)] * (len(op.outputs) - 1)  # which nobody reads
