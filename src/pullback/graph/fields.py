"""Structural receptive fields: boolean supports pulled back through a tape, operation by operation.

The result holds for every weight and every image: a position outside the field has derivative zero. It is made boolean
again at every value, so that nothing cancels. An operation without a rule means "everything", and is named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_iter, tree_map

from pullback.graph.recording import vjp
from pullback.graph.tape import INPUT, Op, Point, Ref, Tape, filled

aten = torch.ops.aten


@dataclass(frozen=True)
class Support:
    """Where a seed can reach: `mask` has the shape of the starting point's value (N, C, H, W)."""

    mask: Tensor
    unknown: tuple[str, ...]  # operations without a rule, taken as reaching everything
    everywhere: tuple[
        str, ...
    ]  # operations that look at all positions at once (squeeze-excite, LayerNorm over space ...)


# Linear maps with non-negative coefficients: the support of their adjoint is where the adjoint of the mask is positive.
_NON_NEGATIVE = {
    "view", "unsafe_view", "reshape", "reshape_alias", "permute", "transpose", "t", "slice", "select", "split",
    "split_with_sizes", "chunk", "unbind", "cat", "stack", "expand", "squeeze", "unsqueeze", "clone", "contiguous",
    "alias", "constant_pad_nd", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "flip", "roll",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_nearest_exact2d", "avg_pool2d", "adaptive_avg_pool2d",
    "mean", "sum", "as_strided", "index_select", "repeat", "to_copy", "reflection_pad2d", "replication_pad2d",
    "diagonal", "narrow", "unfold", "im2col", "col2im", "index", "gather",
}  # fmt: skip
_ELEMENTWISE = {
    "relu", "hardtanh", "sigmoid", "silu", "gelu", "hardswish", "hardsigmoid", "tanh", "leaky_relu", "elu", "celu", "selu",
    "softplus", "mish", "exp", "sqrt", "rsqrt", "pow", "neg", "abs", "clamp", "clamp_min", "clamp_max", "reciprocal", "log",
    "erf", "sin", "cos", "prelu", "prelu_kernel", "threshold", "square", "log_sigmoid", "log_sigmoid_forward", "softsign",
    "add", "sub", "rsub", "mul", "div", "maximum", "minimum", "where", "addcmul", "addcdiv", "lerp", "native_dropout", "round",
    "masked_fill",
}  # fmt: skip
# They can look at all positions at once; the others reach the whole image only by growing a window.
_MIXING = {
    "mean", "sum", "amax", "max", "adaptive_avg_pool2d", "adaptive_max_pool2d", "native_layer_norm", "native_group_norm", "softmax",
    "log_softmax", "mm", "bmm", "addmm", "baddbmm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm",
}  # fmt: skip
_OVERWRITING = {"copy", "zero", "fill"}  # nothing is left of what was there before
_INDEXED = {"index", "index_select", "gather"}  # linear where the places are constants
_POOLED_LIKE: dict[str, Callable[..., Any]] = {
    "max_pool2d_with_indices": lambda x, k, s=(), p=0, d=1, c=False: F.avg_pool2d(x, k, s or None, p, c),
    "adaptive_max_pool2d": F.adaptive_avg_pool2d,
    "amax": aten.sum.dim_IntList,
    "max": lambda x, *dim: aten.sum.dim_IntList(x, *dim) if dim else x.sum(),
}


@torch.inference_mode(False)  # adjoints come from autograd
def pull_support(tape: Tape, seed: Tensor, at: Point, start: Point | None = None) -> Support:
    """The support of `J^T seed` at `start` (default: the input), for a boolean `seed` of the shape of the value at `at`."""
    start = start or tape.input
    program = tape.program(start, [at])
    masks: dict[int, Tensor] = {at.tensor: seed.bool().cpu()}  # structure is followed on the CPU
    unknown: dict[str, None] = {}
    everywhere: dict[str, None] = {}
    for i, _ in reversed(program.steps):
        op = tape.ops[i]
        _share_written(tape, op, masks)
        if not op.grad or not any(t in masks for t in op.outputs):
            continue
        reaching = [p.tensor for p in tape.sources[i] if p.op == INPUT or tape.dependent[p.op]]
        out = [
            masks.pop(t) if t in masks else torch.zeros(tape.shapes[t], dtype=torch.bool, device="cpu")
            for t in op.outputs
        ]
        if not reaching or op.name == "detach":
            continue
        found = _pull(tape, op, out)
        if found is None:
            unknown[op.name] = None
            found = {t: torch.ones(tape.shapes[t], dtype=torch.bool, device="cpu") for t in reaching}
        for t in reaching:
            if t in found:
                mask = found[t].expand(tape.shapes[t])
                masks[t] = masks[t] | mask if t in masks else mask
                if op.name in _MIXING and _spread(out[0], mask):
                    everywhere[f"{op.name} in {op.module}" if op.module else op.name] = None
    mask = masks.get(start.tensor, torch.zeros(tape.shapes[start.tensor], dtype=torch.bool, device="cpu"))
    return Support(mask.to(seed.device), tuple(unknown), tuple(everywhere))


def _share_written(tape: Tape, op: Op, masks: dict[int, Tensor]) -> None:
    """What is read later of a tensor that shares storage with a written one is read, where they overlap, of the written one."""
    for w in op.writes:
        for t in [t for t in masks if t != w and tape.storages[t] == tape.storages[w]]:
            places = _places(tape, t, w)
            if places is None:
                mask = torch.ones(tape.shapes[w], dtype=torch.bool, device="cpu")
            else:
                flat = masks[t].flatten()
                mask = flat[places]
                if op.name in _OVERWRITING:
                    masks[t] = flat.index_fill(0, places.flatten(), False).view(tape.shapes[t])
            masks[w] = masks[w] | mask if w in masks else mask


def _places(tape: Tape, base: int, view: int) -> Tensor | None:
    """Where in `base`, flattened, each entry of `view` lies; None where `view` was not made from `base` by plain views."""
    chain: list[tuple[Op, int]] = []
    t = view
    while t != base:
        op = next((o for o in tape.ops if t in o.outputs and t not in o.inputs), None)
        if op is None or not op.inputs or op.name == "as_strided" or tape.storages[op.inputs[0]] != tape.storages[t]:
            return None
        chain.append((op, op.outputs.index(t)))
        t = op.inputs[0]
    shape = torch.Size(tape.shapes[base])
    places = torch.arange(shape.numel(), device="cpu").view(shape)
    for op, which in reversed(chain):
        args, kwargs = tree_map(lambda a, p=places: p if isinstance(a, Ref) else a, (op.args, op.kwargs))
        places = [o for o in tree_iter(op.func(*args, **kwargs)) if isinstance(o, Tensor)][which]
    return places


def _spread(before: Tensor, after: Tensor) -> bool:
    """Whether an operation turned a partial support, or a single pooled value, into all positions of a feature map."""
    if after.ndim != 4 or after.shape[-1] * after.shape[-2] < 2 or not after.any(1).all():
        return False
    if before.ndim == 4 and before.shape[-2:] == after.shape[-2:]:
        return not before.any(1).all()
    return before.ndim != 4 or before.shape[-1] * before.shape[-2] == 1


def _pull(tape: Tape, op: Op, out: list[Tensor]) -> dict[int, Tensor] | None:
    """The masks of an operation's inputs given those of its outputs; None when there is no rule."""
    name, first = op.name, op.inputs[0]
    if name in _INDEXED and not all(t in tape.constants for t in op.inputs[1:]):
        return None
    if name in _NON_NEGATIVE:
        return _adjoint_of(tape, op, op.func, out)
    if name in _ELEMENTWISE:
        return {t: _broadcast_from(out[0], tape.shapes[t]) for t in op.inputs}
    if name == "convolution":
        return _convolution(tape, op, out[0])
    if name in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"):
        statistics_of_the_batch = op.args[5]  # instance norm, or no running statistics
        return {first: _any(out[0], (0, 2, 3)).expand_as(out[0]) if statistics_of_the_batch else out[0]}
    if name == "native_batch_norm_legit_no_training":
        return {first: out[0]}
    if name in ("zero", "fill"):
        return {t: out[0].any() for t in op.inputs[1:]}
    if name == "copy":
        return {op.inputs[1]: _broadcast_from(out[0], tape.shapes[op.inputs[1]])}
    if name in _POOLED_LIKE:
        if name == "max_pool2d_with_indices" and set(_pair(op.args[4] if len(op.args) > 4 else 1)) != {1}:
            return None
        return _adjoint_of(tape, op, _POOLED_LIKE[name], out[:1])
    if name == "native_layer_norm":
        return {first: _any(out[0], range(out[0].ndim - len(op.args[1]), out[0].ndim))}
    if name == "native_group_norm":
        n, groups = out[0].shape[0], op.args[6]
        grouped = out[0].reshape(n, groups, -1).any(-1, keepdim=True).expand(n, groups, out[0][0].numel() // groups)
        return {first: grouped.reshape(out[0].shape)}
    if name in ("softmax", "log_softmax"):
        return {first: _any(out[0], [op.args[1]])}
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        added, (a, b) = op.inputs[:-2], op.inputs[-2:]
        found = {t: _broadcast_from(out[0], tape.shapes[t]) for t in added}
        rows, columns = _any(out[0], [-1]).expand(tape.shapes[a]), _any(out[0], [-2]).expand(tape.shapes[b])
        found[a] = rows
        found[b] = found[b] | columns if b in found else columns
        return found
    return None


def _broadcast_from(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mask of an operand of this shape, given that of the result."""
    return mask if mask.shape == shape else mask.float().sum_to_size(shape) > 0


def _any(mask: Tensor, dims: Any) -> Tensor:
    for d in dims:
        mask = mask.any(d, keepdim=True)
    return mask


def _pair(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value, value)


def _adjoint_of(tape: Tape, op: Op, func: Callable[..., Any], out: list[Tensor]) -> dict[int, Tensor]:
    """Adjoint of a non-negative linear operation applied to the masks, by autograd on zeros."""
    with torch.enable_grad():
        places = {t: tape.constants[t].cpu() for t in op.inputs[1:]} if op.name in _INDEXED else {}
        stand_in = {
            t: torch.zeros(tape.shapes[t], requires_grad=True, device="cpu")
            for t in dict.fromkeys(op.inputs)
            if t not in places
        }
        given = {t: s.clone() for t, s in stand_in.items()} | places  # an operation may write where a leaf refuses it
        args, kwargs = filled(op.args, given), filled(op.kwargs, given)
        made = [o for o in tree_iter(func(*args, **kwargs)) if isinstance(o, Tensor)]
        # As in `vjp`, since given cotangents torch loads a compiler.
        product = torch.stack([(o * m).sum() for o, m in zip(made, out, strict=False)]).sum()
        grads = torch.autograd.grad(product, list(stand_in.values()), allow_unused=True)
    return {t: g > 0 for t, g in zip(stand_in, grads, strict=True) if g is not None}


def _convolution(tape: Tape, op: Op, out: Tensor) -> dict[int, Tensor]:
    """All-ones kernel with the operation's stride, padding, dilation and groups; channels collapse within each group."""
    x, weight = op.inputs[:2]
    _, _, _, stride, padding, dilation, transposed, output_padding, groups = op.args[:9]
    n, channels = tape.shapes[x][:2]
    kernel = tape.shapes[weight][2:]
    with torch.enable_grad():
        stand_in = torch.zeros(n, groups, *tape.shapes[x][2:], requires_grad=True, device="cpu")
        made = aten.convolution.default(
            stand_in,
            torch.ones(groups, 1, *kernel, device="cpu"),
            None,
            stride,
            padding,
            dilation,
            transposed,
            output_padding,
            groups,
        )
        seed = out.reshape(n, groups, -1, *out.shape[2:]).any(2).float()
        grad = vjp(made, stand_in, seed)
    grouped = (grad > 0).unsqueeze(2).expand(n, groups, channels // groups, *tape.shapes[x][2:])
    return {x: grouped.reshape(tape.shapes[x])}
