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
    out, leaves = a.on_leaves()
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
