"""A recorded operation with its arguments at the image, as the adjoint rules are given it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map

from pullback.adjoint.convolution import Packed
from pullback.adjoint.maps import Map
from pullback.graph import Op

Local = tuple[int, int, Map]
"""Output, input, and the Jacobian between them."""


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
        return named_arguments(self.op, self.args, self.kwargs)

    def run(self) -> Any:
        """The operation's output; what it would change in place is left as it is."""
        if not self.op.writes:
            return self.op.func(*self.args, **self.kwargs)
        args, kwargs = tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, (self.args, self.kwargs))
        return self.op.func(*args, **kwargs)

    def on_leaves(self, shape: tuple[int, ...] | None = None) -> tuple[Any, dict[int, Tensor]]:
        """The output as a function that autograd follows, and its leaves: copies of the live tensors, by number.

        shape: what the leaves are broadcast to.
        """
        leaves: dict[int, Tensor] = {}
        positions = iter(range(len(self.tensors)))

        def fed(argument: Any) -> Any:
            if not isinstance(argument, Tensor):
                return argument
            j = next(positions)
            if not self.live[j]:
                return argument.clone() if self.op.writes else argument
            value = argument.detach()
            leaves[j] = (value if shape is None else value.expand(shape)).clone().requires_grad_()
            return leaves[j].clone()  # which an operation in place may write

        with torch.enable_grad():
            return self.op.func(*tree_map(fed, self.args), **tree_map(fed, self.kwargs)), leaves

    def only_first(self) -> bool:
        """Whether nothing but the first tensor is live."""
        return self.live[0] and not any(self.live[1:])


def named_arguments(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by the names of the operation's schema."""
    declared = op.func._schema.arguments
    given = {d.name: d.default_value for d in declared if d.has_default_value()}
    given.update({d.name: a for d, a in zip(declared, args, strict=False)})
    return {**given, **kwargs}


Rule = Callable[[Applied], tuple[Any, list[Local]]]


class NoRule(Exception):
    """The rule does not cover these arguments."""
