"""Whether a recording has a derivative, and whether it is that of the network's own autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.errors import EncoderError
from pullback.graph import Tape, plain_autograd, vjp


def own_discrepancy(tape: Tape, example: Tensor, leaf: Tensor, logits: Tensor) -> tuple[float, str]:
    """|v - v'| / |v'| of one random VJP of the replay, v, and of the network's own graph from leaf to logits, v'.

    Where the network's own graph refuses, nan and the reason. Raises EncoderError where there is no derivative.
    """
    if logits.grad_fn is None:
        raise EncoderError(
            "the network's output has no gradient with respect to its input, so nothing can be pulled back: it runs under"
            " no_grad or inference_mode, or through detach, numpy, integers or argmax; use a forward pass without them"
        )
    refusal = ""
    with plain_autograd(example.device):
        w = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), device="cpu").to(logits)
        x = example.detach().clone().requires_grad_()
        try:
            got = vjp(tape.replay(x, [tape.output])[0], x, w)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as refused:  # a value that a derivative needs is overwritten, or an operation has none
            raise EncoderError(
                f"nothing can be pulled back through this network, since autograd says: {_first_sentence(refused)};"
                " write into no tensor that an activation returned (y = y + 1 instead of y += 1 after y = relu(x)), and use"
                " operations that have a derivative"
            ) from refused
        try:
            expected = vjp(logits, leaf, w)
        except RuntimeError as refused:  # reentrant checkpointing refuses this
            expected, refusal = torch.full_like(got, torch.nan), _first_sentence(refused)
    return float((got - expected).double().norm() / expected.double().norm().clamp_min(1e-300)), refusal


def _first_sentence(error: RuntimeError) -> str:
    return str(error).strip().partition(". ")[0]
