"""Convolution and batch normalisation with frozen parameters: same values, derivatives with respect to the input alone.

PyTorch's own second derivative of a convolution also computes the part that belongs to the weights, wanted or not, and
that of an evaluated batch normalisation assembles a dozen whole tensors. Both are linear in their input here, so that
the adjoint of the adjoint is one convolution, or one product per channel. `mv` through a kept graph gets several times
faster by it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _get_current_dispatch_mode

aten = torch.ops.aten


class FrozenParameters(TorchFunctionMode):
    """Within this scope, convolutions and evaluated batch norms with frozen parameters know their input's derivative only.

    Whatever does not fit (trainable or differently typed parameters, padding by name, autocast) runs as it always does,
    and so does everything while a dispatch mode records the operations.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _FROZEN and _get_current_dispatch_mode() is None:
            func = _FROZEN[func]
        return func(*args, **(kwargs or {}))


class _Convolution(Function):
    """settings: stride, padding, dilation, transposed, output_padding, groups."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...]) -> Tensor:
        out: Tensor = aten.convolution.default(x, weight, bias, *settings)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.settings = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return _ConvolutionAdjoint.apply(cotangent, x.detach(), weight, ctx.settings), None, None, None


class _ConvolutionAdjoint(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(cotangent: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...]) -> Tensor:
        only_input = [True, False, False]
        pulled: Tensor = aten.convolution_backward.default(cotangent, x, weight, None, *settings, only_input)[0]
        return pulled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, weight, ctx.settings = inputs
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _Convolution.apply(tangent, weight, None, ctx.settings), None, None, None


class _Scaling(Function):
    """An affine map per channel: `run(x)`, whose derivative is a product with `scale`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        return run(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        return cotangent * scale, None, None


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or input.dim() != 4 or not _frozen(input, weight, bias):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _convolution(input, weight, bias, _pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups)


def _convolution(input: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    plain: Callable[..., Tensor] = aten.convolution.default
    if not _frozen(input, weight, bias):
        return plain(input, weight, bias, *settings)
    out: Tensor = _Convolution.apply(input, weight, bias, settings)
    return out


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    def run(x: Tensor) -> Tensor:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)

    if training or running_var is None or not _frozen(input, running_mean, running_var, weight, bias):
        return run(input)
    return _scaled(input, running_var, weight, eps, run)


def _native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made: tuple[Tensor, Tensor, Tensor] = aten.native_batch_norm.default(
            x, weight, bias, running_mean, running_var, training, momentum, eps
        )
        return made

    if training or running_var is None or not _frozen(input, running_mean, running_var, weight, bias):
        return run(input)
    out = _scaled(input, running_var, weight, eps, lambda x: run(x)[0])
    return out, input.new_empty(0), input.new_empty(0)  # saved statistics: evaluation has none


def _scaled(x: Tensor, variance: Tensor, weight: Tensor | None, eps: float, run: Callable[[Tensor], Tensor]) -> Tensor:
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    out: Tensor = _Scaling.apply(x, scale.view(-1, *[1] * (x.dim() - 2)), run)
    return out


def _frozen(x: Tensor, *parameters: Tensor | None) -> bool:
    given = [p for p in parameters if p is not None]
    return (
        x.requires_grad
        and all(p.dtype == x.dtype and not p.requires_grad for p in given)
        and not torch.is_autocast_enabled(x.device.type)
    )


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


_FROZEN: dict[Callable[..., Any], Callable[..., Any]] = {
    F.conv2d: _conv2d,
    aten.convolution.default: _convolution,
    F.batch_norm: _batch_norm,
    aten.native_batch_norm.default: _native_batch_norm,
}
