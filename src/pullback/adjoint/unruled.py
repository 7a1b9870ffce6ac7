"""What has no adjoint rule: autograd, of one operation alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map

from pullback.adjoint.applied import Applied, Local
from pullback.adjoint.maps import Recorded


def recorded(a: Applied) -> tuple[Any, list[Local]]:
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
    edges: list[Local] = [
        (k, j, Recorded(o, leaf)) for k, o in enumerate(flat) for j, leaf in leaves.items() if _connected(o, leaf)
    ]
    return tree_map(lambda o: o.detach() if isinstance(o, Tensor) else o, out), edges


def _connected(output: Tensor, leaf: Tensor) -> bool:
    if not output.requires_grad:
        return False
    zero = torch.zeros_like(output)
    return torch.autograd.grad(output, leaf, zero, retain_graph=True, allow_unused=True)[0] is not None
