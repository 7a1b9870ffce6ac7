"""The named cotangents: what is asked of features or logits before J^T carries the question to the pixels.

Sources: adjoint inversion, equation (3) (`channel_feature`); the sibling methods (`logit`, `margin`, `log_prob`,
`energy`). Every one is an exact gradient: J^T of it is the gradient of the scalar that its docstring names.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.errors import ClassError, StageError


def channel(
    k: int, shape: tuple[int, ...], *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Ones on channel k of features of `shape` (C, ...), zero elsewhere: the gradient of the channel's sum.

    Raises StageError when there is no channel k.
    """
    seed = torch.zeros(shape, dtype=dtype, device=device)
    seed[_channel_index(k, shape[0])] = 1
    return seed


def channel_feature(features: Tensor, k: int) -> Tensor:
    """F * 1_k, equation (3): features (C, ...) with all channels but k zero; the gradient of 1/2 |F_k|^2.

    Raises StageError when there is no channel k.
    """
    k = _channel_index(k, features.shape[0])
    seed = torch.zeros_like(features)
    seed[k] = features[k]
    return seed


def logit(
    y: int, classes: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """e_y, (classes,): the gradient of logit y. Raises ClassError when there is no class y."""
    cotangent = torch.zeros(classes, dtype=dtype, device=device)
    cotangent[_class_index(y, classes)] = 1
    return cotangent


def margin(
    t: int, s: int, classes: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """e_t - e_s, (classes,): the gradient of logit t minus logit s.

    Raises ClassError when there is no such class, or t is s.
    """
    if t == s:
        raise ClassError(f"the margin of class {t} over itself is always zero: name two classes")
    return logit(t, classes, dtype=dtype, device=device) - logit(s, classes, dtype=dtype, device=device)


def log_prob(logits: Tensor, y: int) -> Tensor:
    """e_y - p with p = softmax(logits), logits (..., classes): the gradient of log p_y, same shape.

    Differentiable in the logits. Raises ClassError when there is no class y.
    """
    classes = logits.shape[-1]
    return logit(y, classes, dtype=logits.dtype, device=logits.device) - logits.softmax(-1)


def energy(logits: Tensor) -> Tensor:
    """p * (p - |p|^2) = (diag p - p p^T) p with p = softmax(logits), logits (..., classes): the gradient of 1/2 |p|^2.

    Same shape, differentiable in the logits. Pulled back, it equals J_p^T p with J_p the Jacobian of the probabilities.
    """
    p = logits.softmax(-1)
    return p * (p - p.square().sum(-1, keepdim=True))


def _channel_index(k: int, channels: int) -> int:
    if isinstance(k, bool) or not 0 <= k < channels:
        raise StageError(f"no channel {k!r}: these features have channels 0 to {channels - 1}")
    return k


def _class_index(y: int, classes: int) -> int:
    if isinstance(y, bool) or not 0 <= y < classes:
        raise ClassError(f"no class {y!r}: these logits have classes 0 to {classes - 1}")
    return y
