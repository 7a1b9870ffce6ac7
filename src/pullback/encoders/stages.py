"""Stages and head of an encoder: what they are, how far they see, and the table that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.encoders.splitting import Boundary
from pullback.graph import INPUT, Op, Point, Tape, pull_support

# Activation functions by operation, as people call them.
_GATES = {
    "relu": "ReLU", "hardtanh": "ReLU6", "silu": "SiLU", "gelu": "GELU", "hardswish": "Hardswish", "hardsigmoid": "Hardsigmoid",
    "sigmoid": "Sigmoid", "tanh": "Tanh", "leaky_relu": "LeakyReLU", "elu": "ELU", "celu": "CELU", "selu": "SELU", "mish": "Mish",
    "softplus": "Softplus", "prelu": "PReLU", "prelu_kernel": "PReLU", "clamp_min": "clamp", "clamp": "clamp",
}  # fmt: skip
# They pass zeros of a rectified map on as zeros without derivative.
_PASS_ZEROS = {
    "cat", "view", "reshape", "unsafe_view", "transpose", "permute", "clone", "slice", "split", "max_pool2d_with_indices",
    "avg_pool2d", "native_dropout", "alias", "contiguous", "channel_shuffle", "to_copy",
}  # fmt: skip
# They change how the pooled numbers lie in memory, not what they are.
_MOVING = {
    "view", "reshape", "unsafe_view", "flatten", "squeeze", "unsqueeze", "clone", "alias", "expand", "as_strided", "permute",
    "transpose", "to_copy", "native_dropout",
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One stage of an encoder.

    shape: (C, H, W); stride: pixels per position; field: extent (height, width) in pixels of what the central unit can see,
    clipped by the image; global_reason: the operation that lets a unit see everything at once, if there is one;
    gate: the activation functions inside and what the boundary tensor is; rectified: the boundary is the output of a ReLU.
    """

    number: int
    name: str
    shape: tuple[int, int, int]
    stride: float
    field: tuple[int, int]
    global_reason: str | None
    gate: str
    rectified: bool

    @property
    def channels(self) -> int:
        return self.shape[0]


@dataclass(frozen=True)
class Head:
    """Everything after the deepest stage. kind: in words; weight (K, C): exact class weights where the head is linear after GAP."""

    kind: str
    weight: Tensor | None


def describe_stages(tape: Tape, boundaries: Sequence[Boundary]) -> tuple[Stage, ...]:
    """The stages of a tape that was recorded on a single image."""
    height, width = tape.shapes[tape.input.tensor][2:]
    stages, before = [], INPUT
    for number, b in enumerate(boundaries, start=1):
        seed = torch.zeros(1, *b.shape, dtype=torch.bool, device="cpu")
        seed[:, :, b.shape[1] // 2, b.shape[2] // 2] = True
        support = pull_support(tape, seed, b.point)
        seen = support.mask[0].any(0)
        field = (_extent(seen.any(1)), _extent(seen.any(0)))
        reason = ", ".join((*support.unknown, *support.everywhere[-1:])) if field == (height, width) else ""
        rectified = bool(last_gates(tape, b.point))
        inside = _gates_between(tape, before, b.point.op)
        gate = f"{' + '.join(inside) or 'none'}, {'rectified' if rectified else 'signed'} output"
        stages.append(
            Stage(number, b.name, b.shape, round(height / b.shape[1], 1), field, reason or None, gate, rectified)
        )
        before = b.point.op
    return tuple(stages)


def _extent(line: Tensor) -> int:
    on = line.nonzero()
    return int(on.max() - on.min()) + 1 if len(on) else 0


def _gates_between(tape: Tape, after: int, until: int) -> list[str]:
    return list(
        dict.fromkeys(_gate_name(tape.ops[i]) for i in tape.live if after < i <= until and tape.ops[i].name in _GATES)
    )


def _gate_name(op: Op) -> str:
    if op.name == "hardtanh" and op.args[1:3] != (0.0, 6.0):
        return "Hardtanh"
    return _GATES[op.name]


def is_relu(op: Op) -> bool:
    """Whether the operation is zero, with derivative zero, for every input below zero."""
    if op.name == "hardtanh":
        return len(op.args) > 1 and op.args[1] == 0
    if op.name in ("clamp", "clamp_min"):
        return len(op.args) > 1 and op.args[1] == 0
    return op.name == "relu"


def last_gates(tape: Tape, p: Point) -> frozenset[int]:
    """The ReLU-type operations whose outputs, moved or pooled at most, are the value at `p`; empty if anything else is in it."""
    if p.op == INPUT:
        return frozenset()
    op = tape.ops[p.op]
    if p.tensor not in op.outputs:  # written through a view, perhaps in part
        return frozenset()
    if is_relu(op):
        return frozenset((p.op,))
    if {tape.dtypes[q.tensor] for q in tape.sources[p.op]} != {tape.dtypes[p.tensor]} == {torch.float16}:
        return frozenset()  # the cast rounds small values of open gates to zero
    found = [last_gates(tape, q) for q in tape.sources[p.op]] if op.name in _PASS_ZEROS else []
    return frozenset().union(*found) if all(found) else frozenset()


def describe_head(tape: Tape, deepest: Point) -> Head:
    """Recognise a linear head after global average pooling by its operations; anything else is linearised at the image."""
    after = [tape.ops[i] for i in tape.live if i > deepest.op]
    pooled = [i for i, op in enumerate(after) if _averages_everything(tape, op)]
    rest = [i for i, op in enumerate(after) if op.name not in _MOVING and i not in pooled]
    names = [after[i].name for i in rest]
    if len(pooled) == 1 and rest and rest[-1] > pooled[0] and names[-1] in ("addmm", "mm"):
        weight = tape.constants.get(after[rest[-1]].inputs[-1])
        if len(rest) == 1 and weight is not None and weight.shape[0] == tape.shapes[deepest.tensor][1]:
            return Head("linear after global average pooling: exact class weights", weight.t())
        if all("norm" in name for name in names[:-1]):
            return Head("linear after global average pooling and a norm: the norm is linearised at the image", None)
    described = ", ".join(dict.fromkeys(names)) or "none"
    return Head(f"not linear ({described}): class weights are its gradient at the image", None)


def _averages_everything(tape: Tape, op: Op) -> bool:
    """Whether the operation is the mean over all positions of a feature map."""
    read, made = tape.shapes[op.inputs[0]] if op.inputs else (), tape.shapes[op.outputs[0]]
    if len(read) != 4:
        return False
    if op.name == "mean":
        dims = op.args[1] if len(op.args) > 1 else None
        return isinstance(dims, list | tuple) and sorted(d % 4 for d in dims) == [2, 3]
    whole = op.name == "avg_pool2d" and tuple(op.args[1]) == read[2:] and made[2:] == (1, 1)
    return whole or (op.name == "adaptive_avg_pool2d" and made[2:] == (1, 1))


def stage_table(stages: Sequence[Stage]) -> str:
    """The stages as a table in plain text."""
    head = ("stage", "name", "channels", "height x width", "stride", "a unit sees", "gates")
    rows = [head]
    for s in stages:
        sees = f"{s.field[0]} x {s.field[1]} px" + (f" (global: {s.global_reason})" if s.global_reason else "")
        rows.append(
            (str(s.number), s.name, str(s.channels), f"{s.shape[1]} x {s.shape[2]}", f"{s.stride:g}", sees, s.gate)
        )
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)
