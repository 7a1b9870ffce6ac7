"""Adjoint rules of averages, pools, convolutions, norms and matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.adjoint.applied import Applied, Local, NoRule
from pullback.adjoint.convolution import Convolution, Geometry
from pullback.adjoint.maps import (
    Broadcast,
    LayerNorm,
    Linear,
    Matrix,
    Scale,
    Softmax,
    empty,
    laid_out,
)
from pullback.adjoint.pooling import MaxPool

aten = torch.ops.aten


def mean(a: Applied) -> tuple[Any, list[Local]]:
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


def average_pool(a: Applied) -> tuple[Any, list[Local]]:
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


def max_pool(a: Applied) -> tuple[Any, list[Local]]:
    x = a.tensors[0]
    if x.dim() != 4:
        raise NoRule
    out, indices = a.run()
    return (out, indices), [(0, 0, MaxPool.from_indices(indices, tuple(x.shape)))]


def convolution(a: Applied) -> tuple[Any, list[Local]]:
    if not a.only_first():
        raise NoRule
    x, weight = a.tensors[:2]
    if x.dim() < 3 or x.shape[0] == 0:
        raise NoRule
    out, n = a.run(), a.named
    geometry = Geometry.of(n, tuple(x.shape), tuple(out.shape))
    packed = a.packed if a.fixed[1] else {}  # kernels made from the image are not shared
    return out, [(0, 0, Convolution(weight, geometry, a.number, packed, weight.dtype))]


def batch_norm(a: Applied) -> tuple[Any, list[Local]]:
    """Evaluated: a product with gamma / sqrt(variance + eps) per channel."""
    n = a.named
    if n.get("training") or n.get("running_var") is None or not a.only_first():
        raise NoRule
    factor = norm_scale(n).to(a.tensors[0].dtype).reshape(1, -1, *[1] * (a.tensors[0].dim() - 2))
    return a.run(), [(0, 0, Scale(factor, (a.number,) if all(a.fixed[1:]) else None))]


def norm_scale(named: dict[str, Any]) -> Tensor:
    """gamma / sqrt(variance + eps) of an evaluated batch norm's arguments: (C,), float64."""
    scale: Tensor = (named["running_var"].double() + named.get("eps", named.get("epsilon"))).rsqrt()
    return scale if named["weight"] is None else scale * named["weight"].double()


def layer_norm(a: Applied) -> tuple[Any, list[Local]]:
    if not a.only_first():
        raise NoRule
    outs = a.run()
    x, gamma = a.tensors[0], a.named["weight"]
    axes = tuple(range(-len(a.named["normalized_shape"]), 0))
    mean = x.mean(axes, keepdim=True)
    rstd = ((x - mean).square().mean(axes, keepdim=True) + a.named["eps"]).rsqrt()
    return outs, [(0, 0, LayerNorm((x - mean) * rstd, rstd, gamma, axes))]


def softmax(a: Applied) -> tuple[Any, list[Local]]:
    out = a.run()
    if not out.dim():
        raise NoRule
    return out, [(0, 0, Softmax(out, a.named["dim"] % out.dim() - out.dim()))]


def matrix_product(a: Applied) -> tuple[Any, list[Local]]:
    """mm, bmm, and addmm(bias, x, y) = beta bias + alpha x y."""
    out = a.run()
    first = len(a.tensors) - 2
    alpha = a.named.get("alpha", 1)
    left, right = a.tensors[first:]
    edges: list[Local] = []
    if a.live[first]:
        edges.append((0, first, Matrix(None, right * alpha)))
    if a.live[first + 1]:
        edges.append((0, first + 1, Matrix(left * alpha, None)))
    if first and a.live[0]:
        bias = out.new_full([1] * out.dim(), a.named["beta"])
        edges.append((0, 0, Broadcast(bias, tuple(a.tensors[0].shape), tuple(out.shape))))
    return out, edges
