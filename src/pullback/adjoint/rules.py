"""The table of adjoint rules: for each ATen operation the Jacobian of its outputs with respect to its live inputs.

A rule runs the operation and returns its output with `edges` (output, input, map); inputs are counted as the operation's
tensors are, in order. What has no rule is differentiated by autograd, one operation at a time (`recorded`).
"""

from __future__ import annotations

from typing import Any

import torch

from pullback.adjoint.applied import Applied, Local, NoRule, Rule
from pullback.adjoint.entrywise import add, cut_off, identity, multiply, pointwise
from pullback.adjoint.layers import (
    average_pool,
    batch_norm,
    convolution,
    layer_norm,
    matrix_product,
    max_pool,
    mean,
    softmax,
)
from pullback.adjoint.places import cat, expand, pad, part, permute, reshape, restride, roll, split
from pullback.adjoint.unruled import recorded


def lowered(a: Applied) -> tuple[Any, list[Local], bool]:
    """The operation's output, its edges, and whether a rule of the table covered it."""
    known = RULES.get(a.op.name) if a.op.func.namespace == "aten" else None
    for rule in (known, pointwise if torch.Tag.pointwise in a.op.func.tags else None):
        if rule is not None:
            try:
                return *rule(a), True
            except NoRule:
                continue
    return *recorded(a), False


RULES: dict[str, Rule] = {
    # entry by entry; whatever else carries torch's tag "pointwise" needs no line here
    **dict.fromkeys(
        ("hardswish", "leaky_relu", "hardtanh", "hardsigmoid", "elu", "silu", "mish", "prelu_kernel"), pointwise
    ),
    **dict.fromkeys(("clone", "alias", "contiguous", "lift_fresh"), identity),
    **dict.fromkeys(("add", "sub"), add),
    **dict.fromkeys(("mul", "div"), multiply),
    "detach": cut_off,
    # places
    **dict.fromkeys(("view", "unsafe_view", "reshape", "squeeze", "unsqueeze", "flatten"), reshape),
    **dict.fromkeys(("permute", "transpose", "t"), permute),
    "as_strided": restride,
    "expand": expand,
    **dict.fromkeys(("slice", "select", "narrow"), part),
    **dict.fromkeys(("split", "split_with_sizes"), split),
    "cat": cat,
    "constant_pad_nd": pad,
    "roll": roll,
    # averages and pools
    **dict.fromkeys(("mean", "sum"), mean),
    **dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d"), average_pool),
    "max_pool2d_with_indices": max_pool,
    # affine layers
    "convolution": convolution,
    **dict.fromkeys(("native_batch_norm", "native_batch_norm_legit_no_training", "cudnn_batch_norm"), batch_norm),
    "native_layer_norm": layer_norm,
    **dict.fromkeys(("softmax", "safe_softmax"), softmax),
    **dict.fromkeys(("mm", "bmm", "addmm"), matrix_product),
}
"""By the operation's plain name, without the underscores that mark a change in place or an inner variant."""
