"""A photograph of all that a call must leave as it was: the user's module, and the interpreter's global switches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_HOOKS = (
    "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks", "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)  # fmt: skip


def photograph(module: nn.Module) -> dict[str, Any]:
    """Everything about `module` that can be compared: identities, values, flags, gradients, hooks, attributes."""
    seen: dict[str, Any] = {}
    for kind, tensors in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, tensor in tensors:
            seen[f"{kind} {name}"] = (
                id(tensor), tensor.data_ptr(), tensor.dtype, tensor.stride(), tensor.requires_grad, tensor.is_leaf,
                _bytes(tensor), id(tensor.grad), None if tensor.grad is None else _bytes(tensor.grad),
            )  # fmt: skip
    for name, child in module.named_modules():
        hooks = [[id(hook) for hook in vars(child)[kind].values()] for kind in _HOOKS]
        attributes = {key: id(value) for key, value in vars(child).items()}
        seen[f"module {name}"] = (type(child), id(child), child.training, hooks, attributes)
    return seen


def switches() -> dict[str, Any]:
    """The global state of torch, numpy and Python that a library could leave changed, the generators that nobody should use too."""
    return {
        "torch generator": torch.random.get_rng_state().tolist(),
        "numpy generator": str(np.random.get_state()),  # noqa: NPY002
        "python generator": random.getstate(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "precision": (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32),
        "modes": (torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()),
        "stance": _stance(),
    }


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Fails when the block, however it ends, leaves `module` or a global switch changed."""
    before, around = photograph(module), switches()
    try:
        yield
    finally:
        after, now = photograph(module), switches()
        changed = [key for key in before | after if before.get(key) != after.get(key)]
        assert not changed, f"changed in the module: {changed}"
        changed = [key for key in around if around[key] != now[key]]
        assert not changed, f"changed globally: {changed}"


def _stance() -> str:
    """What torch.compile does at the moment; only asked where it is loaded."""
    import sys

    if "torch._dynamo" not in sys.modules:
        return "default"
    from torch._dynamo import eval_frame

    return str(eval_frame._stance.stance)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().clone().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
