"""The table of adjoint rules: for each ATen operation the Jacobian of its outputs with respect to its live inputs.

A rule runs the operation and returns its output with `edges` (output, input, map); inputs are counted as the operation's
tensors are, in order. What has no rule is differentiated by autograd, one operation at a time (`recorded`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_iter, tree_map

from pullback.adjoint.convolution import Convolution, Geometry, Packed
from pullback.adjoint.maps import (
    Broadcast,
    Identity,
    LayerNorm,
    Linear,
    Map,
    Matrix,
    Recorded,
    Scale,
    Shape,
    Softmax,
    empty,
    laid_out,
)
from pullback.adjoint.pooling import MaxPool
from pullback.graph import Op

aten = torch.ops.aten
Edge = tuple[int, int, Map]


@dataclass(frozen=True, eq=False)
class Applied:
    """An operation with its arguments at the image.

    number: its place in the recording. live, fixed: for each of its tensors whether it depends on the point of departure,
    and whether it comes from parameters alone. packed: a store for kernels.
    """

    op: Op
    number: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    live: tuple[bool, ...]
    fixed: tuple[bool, ...]
    packed: Packed = field(default_factory=dict)

    @cached_property
    def tensors(self) -> list[Tensor]:
        return [a for a in tree_iter((self.args, self.kwargs)) if isinstance(a, Tensor)]

    @cached_property
    def named(self) -> dict[str, Any]:
        """The arguments by the names of the operation's schema."""
        declared = self.op.func._schema.arguments
        given = {d.name: d.default_value for d in declared if d.has_default_value()}
        given.update({d.name: a for d, a in zip(declared, self.args, strict=False)})
        return {**given, **self.kwargs}

    def run(self) -> Any:
        """The operation's output; what it would change in place is left as it is."""
        if not self.op.writes:
            return self.op.func(*self.args, **self.kwargs)
        args, kwargs = tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, (self.args, self.kwargs))
        return self.op.func(*args, **kwargs)

    def only_first(self) -> bool:
        """Whether nothing but the first tensor is live."""
        return self.live[0] and not any(self.live[1:])


Rule = Callable[[Applied], tuple[Any, list[Edge]]]


class NoRule(Exception):
    """The rule does not cover these arguments."""


def lowered(a: Applied) -> tuple[Any, list[Edge], bool]:
    """The operation's output, its edges, and whether a rule of the table covered it."""
    known = RULES.get(a.op.name) if a.op.func.namespace == "aten" else None
    for rule in (known, pointwise if torch.Tag.pointwise in a.op.func.tags else None):
        if rule is not None:
            try:
                return *rule(a), True
            except NoRule:
                continue
    return *recorded(a), False


# ---- one number to one number ----------------------------------------------------------------------------------------


def pointwise(a: Applied) -> tuple[Any, list[Edge]]:
    """f(x, ...) entry by entry: a diagonal, whose entries autograd knows."""
    leaves: dict[int, Tensor] = {}
    shape = torch.broadcast_shapes(*(t.shape for t in a.tensors))
    positions = iter(range(len(a.tensors)))

    def fed(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        j = next(positions)
        if not a.live[j]:
            return argument
        leaves[j] = argument.detach().expand(shape).clone().requires_grad_()
        return leaves[j].clone()  # which an operation in place may write

    with torch.enable_grad():
        out = a.op.func(*tree_map(fed, a.args), **tree_map(fed, a.kwargs))
        if not isinstance(out, Tensor) or out.shape != shape:
            raise NoRule
        if not out.requires_grad:  # a comparison, a sign
            return out.detach(), []
        slopes = torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out), materialize_grads=True)
    return out.detach(), [(0, j, _diagonal(s, a.tensors[j].shape)) for j, s in zip(leaves, slopes, strict=True)]


def _diagonal(factor: Tensor, inner: Shape) -> Map:
    outer = tuple(factor.shape)
    return Scale(factor) if tuple(inner) == outer else Broadcast(factor, tuple(inner), outer)


def identity(a: Applied) -> tuple[Any, list[Edge]]:
    return a.run(), [(0, 0, Identity())]


def add(a: Applied) -> tuple[Any, list[Edge]]:
    """x + alpha y, x - alpha y."""
    if not isinstance(a.args[0], Tensor):
        raise NoRule
    out, alpha = a.run(), a.named["alpha"]
    outer = tuple(out.shape)
    edges: list[Edge] = []
    for j, weight in enumerate((1, -alpha if a.op.name == "sub" else alpha)[: len(a.tensors)]):
        if a.live[j]:
            inner = tuple(a.tensors[j].shape)
            factor = None if weight == 1 else out.new_full([1] * out.dim(), weight)
            if inner != outer:
                edges.append((0, j, Broadcast(factor, inner, outer)))
            else:
                edges.append((0, j, Identity() if factor is None else Scale(factor, (a.number,))))
    return out, edges


def multiply(a: Applied) -> tuple[Any, list[Edge]]:
    """x y, or x / y with respect to x: either factor is the other's slope."""
    divided = a.op.name == "div"
    if divided and (a.named.get("rounding_mode") is not None or any(a.live[1:])):
        raise NoRule
    out = a.run()
    edges: list[Edge] = []
    for j in range(len(a.tensors)):
        if a.live[j]:
            other = a.args[1 - j]
            slope = other if isinstance(other, Tensor) else out.new_tensor(other)
            slope = 1 / slope.to(out.dtype) if divided else slope.to(out.dtype)
            slope = slope.reshape((1,) * (out.dim() - slope.dim()) + tuple(slope.shape))
            inner, outer = tuple(a.tensors[j].shape), tuple(out.shape)
            fixed = not isinstance(other, Tensor) or a.fixed[1 - j]
            whole = Scale(slope, (a.number,) if fixed else None)
            edges.append((0, j, whole if inner == outer else Broadcast(slope, inner, outer)))
    return out, edges


def cut_off(a: Applied) -> tuple[Any, list[Edge]]:
    """Operations that end the gradient."""
    return a.run(), []


# ---- from places to places -------------------------------------------------------------------------------------------


def reshape(a: Applied) -> tuple[Any, list[Edge]]:
    out = a.run()
    inner, outer = a.tensors[0].shape, out.shape
    return out, [(0, 0, Linear(lambda w: w.reshape(len(w), *inner), lambda v: v.reshape(len(v), *outer)))]


def permute(a: Applied) -> tuple[Any, list[Edge]]:
    out, n = a.run(), a.tensors[0].dim()
    if a.op.name == "permute":
        order = [d % n for d in a.named["dims"]]
    else:
        first, second = (0, n - 1) if a.op.name == "t" else (a.named["dim0"] % n, a.named["dim1"] % n)
        order = list(range(n))
        order[first], order[second] = order[second], order[first]
    forward = [0, *(d + 1 for d in order)]
    back = [forward.index(d) for d in range(n + 1)]
    return out, [(0, 0, Linear(lambda w: w.permute(back), lambda v: v.permute(forward)))]


def restride(a: Applied) -> tuple[Any, list[Edge]]:
    """as_strided that shows the same numbers, as channels-last convolutions leave it."""
    out, x = a.run(), a.tensors[0]
    seen, given = ([s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1] for t in (out, x))
    if out.shape != x.shape or seen != given or a.named["storage_offset"] not in (None, x.storage_offset()):
        raise NoRule
    return out, [(0, 0, Identity())]


def expand(a: Applied) -> tuple[Any, list[Edge]]:
    out = a.run()
    return out, [(0, 0, Broadcast(None, tuple(a.tensors[0].shape), tuple(out.shape)))]


def _part(index: tuple[Any, ...], inner: Shape) -> Map:
    """x[index], a view of a tensor (*inner)."""
    whole = (slice(None), *index)

    def embedded(w: Tensor) -> Tensor:
        made = empty(w, inner).zero_()
        made[whole] = w
        return made

    return Linear(embedded, lambda v: v[whole], pulled="fresh")


def part(a: Applied) -> tuple[Any, list[Edge]]:
    """slice, select, narrow."""
    out, inner = a.run(), tuple(a.tensors[0].shape)
    before = (slice(None),) * (a.named["dim"] % len(inner))
    if a.op.name == "select":
        index: Any = a.named["index"]
    elif a.op.name == "narrow":
        index = slice(a.named["start"], a.named["start"] + a.named["length"])
    else:
        index = slice(a.named["start"], a.named["end"], a.named["step"])
    return out, [(0, 0, _part((*before, index), inner))]


def split(a: Applied) -> tuple[Any, list[Edge]]:
    outs, inner = a.run(), tuple(a.tensors[0].shape)
    dim = a.named["dim"] % len(inner)
    edges: list[Edge] = []
    start = 0
    for k, out in enumerate(outs):
        piece = (*(slice(None),) * dim, slice(start, start + out.shape[dim]))
        edges.append((k, 0, _part(piece, inner)))
        start += out.shape[dim]
    return outs, edges


def cat(a: Applied) -> tuple[Any, list[Edge]]:
    out = a.run()
    outer = tuple(out.shape)
    dim = a.named["dim"] % len(outer)
    if any(t.dim() != len(outer) for t in a.tensors):  # an empty tensor of one axis, which cat lets pass
        raise NoRule
    edges: list[Edge] = []
    start = 0
    for j, t in enumerate(a.tensors):
        piece = (*(slice(None),) * dim, slice(start, start + t.shape[dim]))
        if a.live[j]:
            edges.append((0, j, _transposed(_part(piece, outer))))
        start += t.shape[dim]
    return out, edges


def _transposed(part: Map) -> Map:
    return Linear(lambda w: part.push(w, False), lambda v: part.pull(v, False), pushed="fresh")


def pad(a: Applied) -> tuple[Any, list[Edge]]:
    out, amounts = a.run(), list(a.named["pad"])
    kept = [slice(max(first, 0), n - max(last, 0)) for first, last, n in _ends(amounts, tuple(out.shape))]
    lost = [-max(-n, 0) for n in amounts]

    def pull(w: Tensor) -> Tensor:
        shown = w[(slice(None), *kept)]
        return F.pad(shown, [-n for n in lost]) if any(lost) else shown

    # A part of a tensor is no memory to write into: what comes next makes it dense by writing elsewhere.
    return out, [(0, 0, Linear(pull, lambda v: F.pad(v, amounts), "constant", "fresh"))]


def _ends(amounts: list[int], outer: Shape) -> Iterator[tuple[int, int, int]]:
    """For each axis the padding before and after it, listed from the last axis, and the padded size."""
    whole = [*amounts, *[0] * (2 * len(outer) - len(amounts))]
    for axis, n in enumerate(outer):
        at = 2 * (len(outer) - 1 - axis)
        yield whole[at], whole[at + 1], n


def roll(a: Applied) -> tuple[Any, list[Edge]]:
    out, n = a.run(), a.tensors[0].dim()
    if not a.named["dims"]:
        raise NoRule
    shifts, dims = list(a.named["shifts"]), [d % n + 1 for d in a.named["dims"]]
    back = [-s for s in shifts]
    return out, [(0, 0, Linear(lambda w: w.roll(back, dims), lambda v: v.roll(shifts, dims), "fresh", "fresh"))]


# ---- averages --------------------------------------------------------------------------------------------------------


def mean(a: Applied) -> tuple[Any, list[Edge]]:
    """mean or sum over axes."""
    out, inner = a.run(), tuple(a.tensors[0].shape)
    if not inner:
        raise NoRule
    given = a.named.get("dim")
    axes = [d % len(inner) for d in given] if given else list(range(len(inner)))
    kept = tuple(1 if d in axes else n for d, n in enumerate(inner))
    share = 1 / (a.tensors[0].numel() / out.numel()) if a.op.name == "mean" else 1.0
    shifted = [d + 1 for d in axes]

    def spread(w: Tensor) -> Tensor:
        return (w * share).reshape(len(w), *kept).expand(len(w), *inner)

    def gathered(v: Tensor) -> Tensor:
        return (v.sum(shifted) * share).reshape(len(v), *out.shape)

    return out, [(0, 0, Linear(spread, gathered, "constant", "fresh"))]


def average_pool(a: Applied) -> tuple[Any, list[Edge]]:
    """avg_pool2d and adaptive_avg_pool2d on (N, C, H, W)."""
    x = a.tensors[0]
    if x.dim() != 4:
        raise NoRule
    out = a.run()
    adaptive = "adaptive" in a.op.name
    backward = aten._adaptive_avg_pool2d_backward.default if adaptive else aten.avg_pool2d_backward.default
    settings: tuple[Any, ...] = ()
    if not adaptive:
        others = (a.named[k] for k in ("padding", "ceil_mode", "count_include_pad", "divisor_override"))
        settings = a.named["kernel_size"], a.named["stride"] or a.named["kernel_size"], *others

    def pull(w: Tensor) -> Tensor:
        rows = laid_out(w.flatten(0, 1))
        like = empty(w, tuple(x.shape)).flatten(0, 1)  # only its shape and layout count
        pulled: Tensor = backward(rows, like, *settings)
        return pulled.unflatten(0, w.shape[:2])

    def push(v: Tensor) -> Tensor:
        pushed: Tensor = a.op.func(v.flatten(0, 1), *a.args[1:], **a.kwargs)
        return pushed.unflatten(0, v.shape[:2])

    return out, [(0, 0, Linear(pull, push, "fresh", "fresh"))]


def max_pool(a: Applied) -> tuple[Any, list[Edge]]:
    x = a.tensors[0]
    if x.dim() != 4:
        raise NoRule
    out, indices = a.run()
    return (out, indices), [(0, 0, MaxPool.from_indices(indices, tuple(x.shape)))]


# ---- affine layers ---------------------------------------------------------------------------------------------------


def convolution(a: Applied) -> tuple[Any, list[Edge]]:
    if not a.only_first():
        raise NoRule
    x, weight = a.tensors[:2]
    if x.dim() < 3 or x.shape[0] == 0:
        raise NoRule
    out, n = a.run(), a.named
    stride, padding, dilation, extra = (
        tuple(n[k]) * (1 if len(n[k]) > 1 else x.dim() - 2) for k in ("stride", "padding", "dilation", "output_padding")
    )
    shapes = tuple(x.shape), tuple(out.shape)
    geometry = Geometry(stride, padding, dilation, n["transposed"], extra, n["groups"], *shapes)
    packed = a.packed if a.fixed[1] else {}  # kernels made from the image are not shared
    return out, [(0, 0, Convolution(weight, geometry, a.number, packed, weight.dtype))]


def batch_norm(a: Applied) -> tuple[Any, list[Edge]]:
    """Evaluated: a product with gamma / sqrt(variance + eps) per channel."""
    n = a.named
    if n.get("training") or n.get("running_var") is None or not a.only_first():
        raise NoRule
    scale = (n["running_var"].double() + n.get("eps", n.get("epsilon"))).rsqrt()
    scale = scale if n["weight"] is None else scale * n["weight"].double()
    factor = scale.to(a.tensors[0].dtype).reshape(1, -1, *[1] * (a.tensors[0].dim() - 2))
    return a.run(), [(0, 0, Scale(factor, (a.number,) if all(a.fixed[1:]) else None))]


def layer_norm(a: Applied) -> tuple[Any, list[Edge]]:
    if not a.only_first():
        raise NoRule
    outs = a.run()
    x, gamma = a.tensors[0], a.named["weight"]
    axes = tuple(range(-len(a.named["normalized_shape"]), 0))
    mean = x.mean(axes, keepdim=True)
    rstd = ((x - mean).square().mean(axes, keepdim=True) + a.named["eps"]).rsqrt()
    return outs, [(0, 0, LayerNorm((x - mean) * rstd, rstd, gamma, axes))]


def softmax(a: Applied) -> tuple[Any, list[Edge]]:
    out = a.run()
    if not out.dim():
        raise NoRule
    return out, [(0, 0, Softmax(out, a.named["dim"] % out.dim() - out.dim()))]


def matrix_product(a: Applied) -> tuple[Any, list[Edge]]:
    """mm, bmm, and addmm(bias, x, y) = beta bias + alpha x y."""
    out = a.run()
    first = len(a.tensors) - 2
    alpha = a.named.get("alpha", 1)
    left, right = a.tensors[first:]
    edges: list[Edge] = []
    if a.live[first]:
        edges.append((0, first, Matrix(None, right * alpha)))
    if a.live[first + 1]:
        edges.append((0, first + 1, Matrix(left * alpha, None)))
    if first and a.live[0]:
        bias = out.new_full([1] * out.dim(), a.named["beta"])
        edges.append((0, 0, Broadcast(bias, tuple(a.tensors[0].shape), tuple(out.shape))))
    return out, edges


# ---- everything else -------------------------------------------------------------------------------------------------


def recorded(a: Applied) -> tuple[Any, list[Edge]]:
    """By autograd, of this operation alone."""
    leaves: dict[int, Tensor] = {}
    positions = iter(range(len(a.tensors)))

    def fed(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        j = next(positions)
        if not a.live[j]:
            return argument.clone() if a.op.writes else argument
        leaves[j] = argument.detach().clone().requires_grad_()
        return leaves[j].clone()

    with torch.enable_grad():
        out = a.op.func(*tree_map(fed, a.args), **tree_map(fed, a.kwargs))
    flat = [o for o in tree_iter(out) if isinstance(o, Tensor)]
    edges: list[Edge] = [
        (k, j, Recorded(o, leaf)) for k, o in enumerate(flat) for j, leaf in leaves.items() if _connected(o, leaf)
    ]
    return tree_map(lambda o: o.detach() if isinstance(o, Tensor) else o, out), edges


def _connected(output: Tensor, leaf: Tensor) -> bool:
    if not output.requires_grad:
        return False
    zero = torch.zeros_like(output)
    return torch.autograd.grad(output, leaf, zero, retain_graph=True, allow_unused=True)[0] is not None


RULES: dict[str, Rule] = {
    # entry by entry; whatever else carries torch's tag "pointwise" needs no line here
    **dict.fromkeys(
        ("hardswish", "leaky_relu", "hardtanh", "hardsigmoid", "elu", "silu", "mish", "prelu_kernel"), pointwise
    ),
    **dict.fromkeys(("clone", "alias", "contiguous", "lift_fresh"), identity),
    **dict.fromkeys(("add", "sub"), add),
    **dict.fromkeys(("mul", "div"), multiply),
    "detach": cut_off,
    # places
    **dict.fromkeys(("view", "unsafe_view", "reshape", "squeeze", "unsqueeze", "flatten"), reshape),
    **dict.fromkeys(("permute", "transpose", "t"), permute),
    "as_strided": restride,
    "expand": expand,
    **dict.fromkeys(("slice", "select", "narrow"), part),
    **dict.fromkeys(("split", "split_with_sizes"), split),
    "cat": cat,
    "constant_pad_nd": pad,
    "roll": roll,
    # averages and pools
    **dict.fromkeys(("mean", "sum"), mean),
    **dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d"), average_pool),
    "max_pool2d_with_indices": max_pool,
    # affine layers
    "convolution": convolution,
    **dict.fromkeys(("native_batch_norm", "native_batch_norm_legit_no_training", "cudnn_batch_norm"), batch_norm),
    "native_layer_norm": layer_norm,
    **dict.fromkeys(("softmax", "safe_softmax"), softmax),
    **dict.fromkeys(("mm", "bmm", "addmm"), matrix_product),
}
"""By the operation's plain name, without the underscores that mark a change in place or an inner variant."""
