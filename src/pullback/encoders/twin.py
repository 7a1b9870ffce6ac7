"""The twin of the user's module: a frozen copy in eval mode, on shared parameters, so that the original is never touched."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pullback.errors import EncoderError, OptionError


def unwrap(module: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and torch.compile wrappers."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def twin(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy in eval mode: parameters share storage and need no gradient, buffers are copied, compilation is undone.

    memo: an empty one of `copy.deepcopy`, for who wants to know what was copied (functions never are). Raises EncoderError
    when the module cannot be copied or has no input to differentiate.
    """
    if not isinstance(module, nn.Module):
        raise EncoderError(
            f"expected a torch.nn.Module, got {type(module).__name__}; wrap a function in a small module, and give a network's"
            " name to load_encoder, whose result has it as .module"
        )
    module = unwrap(module)
    with torch.inference_mode(False), torch.no_grad():
        memo = {} if memo is None else memo
        for parameter in module.parameters():
            if is_lazy(parameter):
                raise EncoderError(
                    "the network has lazy modules without parameters yet; run it once on an example image first"
                )
            if parameter.is_meta:
                raise EncoderError(
                    "the network's parameters are on the device 'meta', where tensors have no numbers; give them values on"
                    " another one: network.to_empty(device='cpu'), then network.load_state_dict(...)"
                )
            shared = parameter.detach()
            memo[id(parameter)] = nn.Parameter(shared.clone() if shared.is_inference() else shared, requires_grad=False)
        for child in module.modules():
            # Tensors kept as plain attributes (old weight_norm, caches) and inference tensors refuse deepcopy.
            for value in (*vars(child).values(), *child._buffers.values()):
                if isinstance(value, Tensor) and id(value) not in memo and (value.is_inference() or not value.is_leaf):
                    memo[id(value)] = value.detach().clone()
        try:
            copied = copy.deepcopy(module, memo)
        except Exception as error:
            raise EncoderError(
                f"the network ({type(module).__name__}) cannot be copied: {type(error).__name__}: {error};"
                " pullback works on a copy so that yours stays untouched: remove open files, locks, generators or graph tensors"
                " from its attributes, or pass a module that can be deep-copied"
            ) from error
        for parent in copied.modules():
            children = {name: child for name, child in parent._modules.items() if child is not None}
            for name, child in children.items():
                if (inner := unwrap(child)) is not child:
                    setattr(parent, name, inner)
    copied = unwrap(copied).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return copied


def buffers_of(module: nn.Module, memo: Mapping[int, Any]) -> list[tuple[Tensor, Tensor]]:
    """The buffers of a module whose later changes torch counts, each with its copy; memo: that of its `twin` call."""
    return [(b, memo[id(b)]) for b in unwrap(module).buffers() if not b.is_inference() and id(b) in memo]


@torch.inference_mode(False)
@torch.no_grad()
def renew(buffers: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy the buffers of a module into their copies again: all, for torch does not count what training does to statistics."""
    for original, own in buffers:
        own.copy_(original)


def tensors_of(copied: nn.Module, memo: Mapping[int, Any]) -> list[Tensor]:
    """Every tensor that a twin holds, those outside its parameters and buffers too; memo: that of its `twin` call."""
    return [*copied.parameters(), *copied.buffers(), *(value for value in memo.values() if isinstance(value, Tensor))]


def hook_notes(module: nn.Module) -> Iterator[str]:
    """A note where hooks of the user's own (not torch's, of weight_norm and the like) run on the twin too."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    hooks = [hook for child in module.modules() for kind in kinds for hook in getattr(child, kind, {}).values()]
    if any(not str(getattr(hook, "__module__", "")).startswith("torch.") for hook in hooks):
        yield (
            "the network's own hooks run on the copy too, each time it is recorded: what they keep elsewhere (a list, a"
            " dictionary) then comes from pullback's run"
        )


def moved(module: nn.Module, device: str | torch.device | None, dtype: torch.dtype | None) -> nn.Module:
    """`module.to(...)`. Raises OptionError for a device that is not there or has no numbers, and for a type that is no float."""
    try:
        if device is not None:
            torch.zeros((), device=device).item()  # "meta" makes tensors without numbers
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError("expected a floating-point type")
        return module.to(device=device, dtype=dtype)
    except (RuntimeError, AssertionError, TypeError, AttributeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]  # the rest lists what torch was built with
        raise OptionError(f"device={str(device)!r}, dtype={dtype} cannot be had here: {reason}") from error


def read_logits(output: Any) -> Tensor:
    """The class scores in a module's output: itself, `.logits`, a mapping's "logits", or its (a sequence's) first tensor."""
    if isinstance(output, Tensor):
        return output
    for found in (getattr(output, "logits", None), output.get("logits") if isinstance(output, Mapping) else None):
        if isinstance(found, Tensor):
            return found
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if tensors:
        return tensors[0]
    raise EncoderError(
        f"the network returned {type(output).__name__}, which holds no tensor that could be the logits;"
        " return a tensor, an object with .logits, a mapping with 'logits', or a tuple whose first tensor is the logits"
    )
