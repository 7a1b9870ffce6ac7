"""Linear maps between shaped spaces: products, transposes, the dense matrix, and the way into scipy."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from pullback.errors import OptionError

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

Shape = tuple[int, ...]


class LinearMap(ABC):
    """A linear map from tensors of `in_shape` to tensors of `out_shape`; results have its own dtype and device."""

    in_shape: Shape
    out_shape: Shape
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def mv(self, v: Tensor) -> Tensor:
        """The map: v (..., *in_shape) -> (..., *out_shape)."""

    @abstractmethod
    def vm(self, w: Tensor) -> Tensor:
        """Its adjoint: w (..., *out_shape) -> (..., *in_shape)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out_size, in_size), as a matrix."""
        return math.prod(self.out_shape), math.prod(self.in_shape)

    @property
    def T(self) -> LinearMap:
        """The adjoint as a map: `J.T @ w` is `J.vm(w)`."""
        return _Adjoint(self)

    @overload
    def __matmul__(self, other: LinearMap) -> LinearMap: ...

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...

    def __matmul__(self, other: LinearMap | Tensor) -> LinearMap | Tensor:
        """`J @ K` is the map J after K; `J @ v` is `J.mv(v)` for v (..., *in_shape). OptionError if shapes differ."""
        if isinstance(other, LinearMap):
            return _Product(self, other)
        if isinstance(other, Tensor):
            return self.mv(other)
        return NotImplemented

    def dense(self) -> Tensor:
        """The matrix (out_size, in_size), row by row through the adjoint: for small maps and tests."""
        rows, columns = self.shape
        unit = torch.eye(rows, dtype=self.dtype, device=self.device)
        return self.vm(unit.reshape(rows, *self.out_shape)).reshape(rows, columns)

    def as_scipy(self) -> LinearOperator:
        """The map as a `scipy.sparse.linalg.LinearOperator` on flattened vectors.

        Arrays are float64 for a float64 map and float32 for every other one.
        """
        from scipy.sparse.linalg import LinearOperator

        numbers = torch.float64 if self.dtype == torch.float64 else torch.float32

        def through(product: Any, shape: Shape) -> Any:
            def columns(block: Any) -> Any:
                vectors = torch.as_tensor(block.T.copy(), device=self.device)
                result: Tensor = product(vectors.reshape(-1, *shape))
                return result.reshape(len(vectors), -1).T.to("cpu", numbers).numpy()

            return columns

        forward, backward = through(self.mv, self.in_shape), through(self.vm, self.out_shape)
        return LinearOperator(
            shape=self.shape,
            dtype={torch.float64: "float64", torch.float32: "float32"}[numbers],
            matvec=lambda v: forward(v.reshape(-1, 1)),
            rmatvec=lambda w: backward(w.reshape(-1, 1)),
            matmat=forward,
            rmatmat=backward,
        )

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__.lstrip('_')} {self.in_shape} -> {self.out_shape}, {dtype} on {self.device}"


class _Adjoint(LinearMap):
    def __init__(self, of: LinearMap) -> None:
        self._of = of
        self.in_shape, self.out_shape = of.out_shape, of.in_shape
        self.dtype, self.device = of.dtype, of.device

    def mv(self, v: Tensor) -> Tensor:
        return self._of.vm(v)

    def vm(self, w: Tensor) -> Tensor:
        return self._of.mv(w)

    @property
    def T(self) -> LinearMap:
        return self._of


class _Product(LinearMap):
    def __init__(self, left: LinearMap, right: LinearMap) -> None:
        if left.in_shape != right.out_shape:
            raise OptionError(
                f"these maps do not chain: the left one takes {left.in_shape}, the right one gives {right.out_shape}"
            )
        self._left, self._right = left, right
        self.in_shape, self.out_shape = right.in_shape, left.out_shape
        self.dtype, self.device = left.dtype, left.device

    def mv(self, v: Tensor) -> Tensor:
        return self._left.mv(self._right.mv(v))

    def vm(self, w: Tensor) -> Tensor:
        return self._right.vm(self._left.vm(w))


def flat_batch(tensor: Tensor, shape: Shape, dtype: torch.dtype, device: torch.device, called: str) -> Tensor:
    """`tensor` (..., *shape) as (M, *shape) in `dtype` on `device`; OptionError on others, and on what is no tensor of reals."""
    if not isinstance(tensor, Tensor):
        raise OptionError(
            f"{called} is a {type(tensor).__name__}, where a tensor was expected: pass torch.as_tensor(it)"
        )
    leading = tensor.dim() - len(shape)
    if leading < 0 or tuple(tensor.shape[leading:]) != shape:
        wanted = ", ".join(["...", *map(str, shape)])
        raise OptionError(f"{called} has shape {tuple(tensor.shape)}, where ({wanted}) was expected")
    if tensor.is_complex():
        raise OptionError(
            f"{called} is complex ({tensor.dtype}), where real numbers were expected: pass .real and .imag"
        )
    return tensor.detach().to(device, dtype).reshape((math.prod(tensor.shape[:leading]), *shape))
