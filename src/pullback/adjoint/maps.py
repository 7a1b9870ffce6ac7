"""The local Jacobians that a network's Jacobian is a product of: each a linear map with `pull` (J^T w) and `push` (J v).

Cotangents and tangents carry one leading axis more than the tensors of the run: (K, *out) and (K, *in). The caller says
whether it gives its argument away (`own`); only then may a map write into it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

Shape = tuple[int, ...]
Result = Literal["fresh", "same", "given", "constant"]
"""What a product returns: memory of its own; its argument's; its argument's where that was given away, else its own; or
memory that must not be written (an expanded tensor), and may be its argument's."""
Product = Callable[[Tensor], Tensor]


class Map(ABC):
    """The Jacobian of one operation's output with respect to one of its inputs, at one point."""

    pulled: Result = "fresh"
    pushed: Result = "fresh"
    sparse_pull: bool = False
    sparse_push: bool = False
    """Whether the product fills only a part of its result: added to another it costs that part alone."""

    @abstractmethod
    def pull(self, w: Tensor, own: bool) -> Tensor:
        """J^T w for cotangents (K, *out): (K, *in)."""

    @abstractmethod
    def push(self, v: Tensor, own: bool) -> Tensor:
        """J v for tangents (K, *in): (K, *out)."""

    def add_pull(self, total: Tensor, w: Tensor, own: bool) -> None:
        """total += J^T w, where `total` may be written."""
        total.add_(self.pull(w, own))

    def add_push(self, total: Tensor, v: Tensor, own: bool) -> None:
        """total += J v, where `total` may be written."""
        total.add_(self.push(v, own))

    def to(self, dtype: torch.dtype) -> Map:
        """The same map in another precision."""
        return self

    @property
    def kept(self) -> tuple[Tensor, ...]:
        """The tensors that belong to this point and that the map keeps."""
        return ()


class Identity(Map):
    """The input itself."""

    pulled = pushed = "same"

    def pull(self, w: Tensor, own: bool) -> Tensor:
        return w

    def push(self, v: Tensor, own: bool) -> Tensor:
        return v


class Scale(Map):
    """A diagonal Jacobian: a product with `factor`, which has the axes of the tensors (a single entry where it is constant).

    source: the recorded operations that make it from parameters alone; None where it depends on the image.
    """

    pulled = pushed = "given"

    def __init__(self, factor: Tensor, source: tuple[int, ...] | None = None) -> None:
        self.factor, self.source = laid_out(factor), source

    def pull(self, w: Tensor, own: bool) -> Tensor:
        # Of a part of a tensor the product is dense, which convolutions need: written elsewhere, it saves their copy.
        return w.mul_(self.factor) if own and _dense(w) else w * self.factor

    def push(self, v: Tensor, own: bool) -> Tensor:
        return self.pull(v, own)

    def per_channel(self) -> bool:
        """Whether it comes from parameters, with one number for each channel."""
        entries = self.factor.numel()
        return self.source is not None and (entries == 1 or (self.factor.dim() > 1 and entries == self.factor.shape[1]))

    def to(self, dtype: torch.dtype) -> Map:
        return Scale(self.factor.to(dtype), self.source)

    @property
    def kept(self) -> tuple[Tensor, ...]:
        return (self.factor,) if self.source is None else ()


class Broadcast(Map):
    """Broadcasting from `inner` (*in) to `outer` (*out), then a product with `factor`, if any; its adjoint sums."""

    pushed = "constant"

    def __init__(self, factor: Tensor | None, inner: Shape, outer: Shape) -> None:
        self.factor = None if factor is None else laid_out(factor)
        self.inner, self.outer = inner, outer
        self.aligned = (1,) * (len(outer) - len(inner)) + inner
        self.summed = tuple(i + 1 for i, (a, b) in enumerate(zip(self.aligned, outer, strict=True)) if a != b)
        self.pulled = "fresh" if self.summed else "same"

    def pull(self, w: Tensor, own: bool) -> Tensor:
        if self.factor is not None:
            w = w.mul_(self.factor) if own else w * self.factor
        summed = w.sum(self.summed, keepdim=True) if self.summed else w
        return summed.reshape(len(w), *self.inner)

    def push(self, v: Tensor, own: bool) -> Tensor:
        aligned = v.reshape(len(v), *self.aligned)
        return (aligned if self.factor is None else aligned * self.factor).expand(len(v), *self.outer)

    def to(self, dtype: torch.dtype) -> Map:
        return Broadcast(None if self.factor is None else self.factor.to(dtype), self.inner, self.outer)

    @property
    def kept(self) -> tuple[Tensor, ...]:
        return () if self.factor is None else (self.factor,)


class Linear(Map):
    """An operation that is linear and keeps no number of the image: a view, a permutation, an average."""

    def __init__(self, pull: Product, push: Product, pulled: Result = "same", pushed: Result = "same") -> None:
        self._pull, self._push, self.pulled, self.pushed = pull, push, pulled, pushed

    def pull(self, w: Tensor, own: bool) -> Tensor:
        return self._pull(w)

    def push(self, v: Tensor, own: bool) -> Tensor:
        return self._push(v)


class Part(Map):
    """x[index], a view of a tensor (*inner); its adjoint puts the part where it came from, among zeros."""

    pushed = "same"
    sparse_pull = True

    def __init__(self, index: tuple[Any, ...], inner: Shape) -> None:
        self.index, self.inner = (slice(None), *index), inner

    def pull(self, w: Tensor, own: bool) -> Tensor:
        whole = empty(w, self.inner).zero_()
        whole[self.index] = w
        return whole

    def add_pull(self, total: Tensor, w: Tensor, own: bool) -> None:
        total[self.index] += w

    def push(self, v: Tensor, own: bool) -> Tensor:
        return v[self.index]


class Piece(Map):
    """One of the tensors that are concatenated: the adjoint of `part`, which takes it out again."""

    pulled = "same"
    sparse_push = True

    def __init__(self, part: Part) -> None:
        self.part = part

    def pull(self, w: Tensor, own: bool) -> Tensor:
        return self.part.push(w, own)

    def push(self, v: Tensor, own: bool) -> Tensor:
        return self.part.pull(v, own)

    def add_push(self, total: Tensor, v: Tensor, own: bool) -> None:
        self.part.add_pull(total, v, own)


class Matrix(Map):
    """A product with fixed matrices: `pull` multiplies by `left @ w @ right` with the transposed ones, `push` with them.

    left: (..., m, m') or None, right: (..., n', n) or None: out = left @ in @ right.
    """

    def __init__(self, left: Tensor | None, right: Tensor | None) -> None:
        self.left, self.right = left, right

    def pull(self, w: Tensor, own: bool) -> Tensor:
        w = w if self.left is None else self.left.transpose(-1, -2) @ w
        return w if self.right is None else w @ self.right.transpose(-1, -2)

    def push(self, v: Tensor, own: bool) -> Tensor:
        v = v if self.left is None else self.left @ v
        return v if self.right is None else v @ self.right

    def to(self, dtype: torch.dtype) -> Map:
        return Matrix(*(m if m is None else m.to(dtype) for m in (self.left, self.right)))

    @property
    def kept(self) -> tuple[Tensor, ...]:
        return tuple(m for m in (self.left, self.right) if m is not None)


class LayerNorm(Map):
    """d/dx of gamma * (x - mean) / std over the last axes: gamma std^-1 (1 - 11^T/n - z z^T/n) with z the normalised x."""

    def __init__(self, normal: Tensor, rstd: Tensor, gamma: Tensor | None, axes: tuple[int, ...]) -> None:
        self.normal, self.rstd, self.gamma, self.axes = normal, rstd, gamma, axes

    def _inner(self, g: Tensor) -> Tensor:
        along = (g * self.normal).mean(self.axes, keepdim=True)
        return (g - g.mean(self.axes, keepdim=True)).sub_(self.normal * along).mul_(self.rstd)

    def pull(self, w: Tensor, own: bool) -> Tensor:
        return self._inner(w if self.gamma is None else w * self.gamma)

    def push(self, v: Tensor, own: bool) -> Tensor:
        inner = self._inner(v)
        return inner if self.gamma is None else inner.mul_(self.gamma)

    def to(self, dtype: torch.dtype) -> Map:
        gamma = None if self.gamma is None else self.gamma.to(dtype)
        return LayerNorm(self.normal.to(dtype), self.rstd.to(dtype), gamma, self.axes)

    @property
    def kept(self) -> tuple[Tensor, ...]:
        return self.normal, self.rstd


class Softmax(Map):
    """d/dx softmax(x) = diag(y) - y y^T along an axis, which is its own adjoint."""

    def __init__(self, y: Tensor, axis: int) -> None:
        self.y, self.axis = y, axis

    def pull(self, w: Tensor, own: bool) -> Tensor:
        g = w * self.y
        return g.sub_(self.y * g.sum(self.axis, keepdim=True))

    def push(self, v: Tensor, own: bool) -> Tensor:
        return self.pull(v, own)

    def to(self, dtype: torch.dtype) -> Map:
        return Softmax(self.y.to(dtype), self.axis)

    @property
    def kept(self) -> tuple[Tensor, ...]:
        return (self.y,)


class Recorded(Map):
    """An operation that has no rule: its own autograd graph on one input, each product batched over the leading axis."""

    def __init__(self, output: Tensor, leaf: Tensor) -> None:
        self.output, self.leaf = output, leaf
        self._adjoint: tuple[Tensor, Tensor] | None = None

    def pull(self, w: Tensor, own: bool) -> Tensor:
        with torch.enable_grad():
            return _batched(self.output, self.leaf, w)

    def push(self, v: Tensor, own: bool) -> Tensor:
        with torch.enable_grad():
            if self._adjoint is None:  # w -> J^T w, linear in w
                zero = torch.zeros_like(self.output).requires_grad_()
                (pulled,) = torch.autograd.grad(self.output, self.leaf, zero, create_graph=True)
                self._adjoint = zero, pulled
            zero, pulled = self._adjoint
            return _batched(pulled, zero, v)

    pulled = pushed = "constant"  # a batched product may return an expanded tensor

    @property
    def kept(self) -> tuple[Tensor, ...]:
        return self.output, self.leaf


def _batched(output: Tensor, leaf: Tensor, rows: Tensor) -> Tensor:
    """The gradient at `leaf` for each of the rows (K, *output), in their type.

    The rows are made dense: formulas of torch have misread other strides.
    """
    w = rows.to(output.dtype).contiguous()
    (found,) = torch.autograd.grad(output, leaf, w, retain_graph=True, is_grads_batched=True)
    return found.detach().to(rows.dtype)


def empty(like: Tensor, shape: Shape) -> Tensor:
    """Memory for (K, *shape), in the type of `like` (K, ...), with the channels innermost where there are channels."""
    size = (len(like) * shape[0], *shape[1:]) if shape else (len(like),)
    layout = torch.channels_last if len(size) == 4 else torch.contiguous_format
    made = torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout)
    return made.unflatten(0, (len(like), shape[0])) if shape else made


def laid_out(tensor: Tensor) -> Tensor:
    """A dense copy of (N, C, H, W) with the channels innermost, as convolutions like it; other tensors dense."""
    return tensor.contiguous(memory_format=torch.channels_last if tensor.dim() == 4 else torch.contiguous_format)


def _dense(tensor: Tensor) -> bool:
    """Whether its entries fill a stretch of memory, in whatever order."""
    return sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1 == tensor.numel()
