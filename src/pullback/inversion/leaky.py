"""A leaky backward pass for the blind inverse (spec 3c): exact ReLU forward, some gradient where a unit is off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback.adjoint import primal_rules
from pullback.encoders.stages import is_relu, last_gates
from pullback.graph import Op, Point, Tape
from pullback.graph.tape import Rule


class _LeakyReLU(torch.autograd.Function):
    """The plain ReLU, in one pass over memory each way; shut at 0 itself, as its derivative there has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        out = x.relu()
        ctx.save_for_backward(out)
        ctx.slope = slope
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.leaky_relu_backward.default(grads[0], out, ctx.slope, True), None


class _LeakyGate(torch.autograd.Function):
    """Any other gate; open where it passes its input on, 0 itself included."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Callable[[Tensor], Tensor], slope: float) -> Tensor:
        out = gate(x)
        # 1 where the gate is open and passed its input on; as numbers, since `torch.where` takes five times as long as a product.
        passed = torch.eq(x, out, out=torch.empty_like(x)).clamp_min_(slope)
        ctx.save_for_backward(passed)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (passed,) = ctx.saved_tensors
        return grads[0] * passed, None, None


def leaky_rules(tape: Tape, start: Point, end: Point, slope: float) -> dict[int, Rule]:
    """Rules for every ReLU-type gate between start and end; those that make `end` itself stay exact: opening them does not help."""

    def rule(op: Op) -> Rule:
        func, plain = _out_of_place(op.func), op.name == "relu"
        seen_elsewhere = any(tape.storages.count(tape.storages[t]) > 1 for t in op.writes)  # through views

        def run(x: Tensor, *args: Any) -> Tensor:
            leaky: Tensor = (
                _LeakyReLU.apply(x, slope) if plain else _LeakyGate.apply(x, lambda v: func(v, *args), slope)
            )
            return x.copy_(leaky) if seen_elsewhere else leaky

        return run

    exact = last_gates(tape, end)
    return {
        i: rule(tape.ops[i]) for i in tape.live if start.op < i < end.op and i not in exact and is_relu(tape.ops[i])
    }


def search_rules(tape: Tape, start: Point, end: Point, slope: float) -> dict[int, Rule]:
    """Leaky gates, and between them the network's own operations in their quick form."""
    return {**primal_rules(tape, start, end), **leaky_rules(tape, start, end, slope)}


def _out_of_place(func: Any) -> Any:
    name = func._schema.name.split("::")[1]
    return getattr(getattr(torch.ops.aten, name.removesuffix("_")), func._overloadname)
