"""A leaky backward pass for the blind inverse: exact ReLU forward, a share of the gradient let through where a unit is off (spec 3c)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.encoders.stages import is_relu
from pullback.graph import Point, Tape
from pullback.graph.tape import Rule


class _LeakyBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(x == out)
        ctx.slope = slope
        return out.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (open_,) = ctx.saved_tensors
        return torch.where(open_, grads[0], ctx.slope * grads[0]), None, None


def leaky_rules(tape: Tape, end: Point, slope: float = 0.2) -> dict[int, Rule]:
    """Rules for every ReLU-type gate before `end`, the gate that makes `end` itself left exact (opening it does not help)."""

    def rule(i: int) -> Rule:
        func = _out_of_place(tape.ops[i].func)

        def run(x: Tensor, *args: Any) -> Tensor:
            return _LeakyBackward.apply(x, func(x.detach(), *args), slope)  # type: ignore[no-any-return]

        return run

    return {i: rule(i) for i in tape.live if i < end.op and is_relu(tape.ops[i])}


def _out_of_place(func: Any) -> Any:
    name = func._schema.name.split("::")[1]
    return getattr(getattr(torch.ops.aten, name.removesuffix("_")), func._overloadname)
