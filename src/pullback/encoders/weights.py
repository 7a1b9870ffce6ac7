"""Weights from a file into a network: safetensors, or torch files read without unpickling; checked before use."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pullback.errors import WeightsError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module")
_COUNTER = "num_batches_tracked"  # absent from files older than torch 0.4.1, and never used in eval mode


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weights file, all finite, by the names that the file gives them, and how they were found."""

    path: Path
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read .safetensors; any other suffix with `torch.load(weights_only=True)`, which executes nothing from the file.

    A state_dict inside {"state_dict": ...}, {"model": ...} and the like is unwrapped. Raises WeightsError for a
    missing, damaged or pickled file, for entries that are no dense tensors, and for a tensor with NaN or infinity.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file here"
        raise WeightsError(f"weights {str(path)!r} {what}: give a .safetensors, .pt or .pth file, or 'pretrained'")
    content: Any = _safetensors(path) if path.suffix.lower() == ".safetensors" else _torch_file(path)
    wrappers = []
    while isinstance(content, Mapping) and (inner := _wrapped(content)) is not None:
        wrappers.append(inner)
        content = content[inner]
    _check(content, path)
    notes = (f"the weights are the file's {'/'.join(wrappers)} entry",) if wrappers else ()
    return Checkpoint(path, dict(content), notes)


def renamed(checkpoint: Checkpoint, names: Collection[str]) -> Checkpoint:
    """The checkpoint with its names brought to the network's `names`, where a prefix is all that keeps them apart.

    So "module.", "_orig_mod." or "model." in front of every name is removed (or put there, where the network has it),
    and tensors outside the prefix that holds the whole network are dropped with a note. The rest is left as it is.
    """
    stored = checkpoint.tensors
    wanted = {name for name in names if not name.endswith(_COUNTER)}
    if not wanted or wanted <= set(stored):
        return checkpoint
    root = _common_prefix(wanted)
    probe = min(wanted)[len(root) :]
    prefixes = sorted({name[: -len(probe)] for name in stored if name.endswith(probe)}, key=len)
    for prefix in prefixes:
        inside = {root + name[len(prefix) :]: tensor for name, tensor in stored.items() if name.startswith(prefix)}
        if wanted <= set(inside):
            notes = [f"the prefix {prefix!r} of the weights' names was read as {root!r}"]
            if outside := [name for name in stored if not name.startswith(prefix)]:
                notes.append(f"the weights file's tensors outside {prefix!r} were ignored: {_some(outside)}")
            return Checkpoint(checkpoint.path, inside, (*checkpoint.notes, *notes))
    return checkpoint


def classifier(module: nn.Module) -> str | None:
    """The name of the last linear or convolutional layer, whose outputs are the classes of most networks."""
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return layers[-1] if layers else None


def class_count(checkpoint: Checkpoint, module: nn.Module) -> int | None:
    """How many classes the checkpoint's last layer has, where `module` has another number of them; else None."""
    name = f"{classifier(module)}.weight"
    stored, own = checkpoint.tensors.get(name), module.state_dict().get(name)
    if stored is None or own is None or stored.shape[1:] != own.shape[1:] or stored.shape[:1] == own.shape[:1]:
        return None
    return int(stored.shape[0])


def fill(module: nn.Module, checkpoint: Checkpoint, network: str) -> None:
    """Copy the checkpoint into `module`, cast to the module's own types. network: its name, for the message.

    Raises WeightsError when names or shapes differ (the module is then half filled: throw it away).
    """
    own, stored = module.state_dict(), checkpoint.tensors
    clashes = []
    for name in own.keys() & stored.keys():
        if own[name].shape != stored[name].shape:
            clashes.append(f"{name} is {_shape(stored[name])} where the network has {_shape(own[name])}")
        elif own[name].is_floating_point() and not stored[name].is_floating_point():
            clashes.append(f"{name} holds {stored[name].dtype} where the network has {own[name].dtype}")
    if clashes:
        missing, unexpected = sorted(own.keys() - stored.keys()), sorted(stored.keys() - own.keys())
    else:  # load_state_dict knows more than names: some modules rename what older versions of them stored
        missing, unexpected = module.load_state_dict(dict(stored), strict=False)
    missing = [name for name in missing if not name.endswith(_COUNTER)]
    problems = [f"{word} {_some(names)}" for word, names in (("missing", missing), ("unexpected", unexpected)) if names]
    if problems or clashes:
        raise WeightsError(
            f"the weights {checkpoint.path} do not fit {network}: {'; '.join((*problems, *_few(sorted(clashes))))}. "
            "Give the weights of this very network, or name the network (and its options) that they belong to"
        )


def digest(module: nn.Module) -> str:
    """SHA-256 over the names and bytes of the module's parameters and buffers: the same for any file they came from."""
    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):
            total.update(name.encode())
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is no whole safetensors file ({error}): copy or download it again") from error


def _torch_file(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles, which it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged, or cannot be read without unpickling, which could run code from it and is refused. "
            "Where you trust it, save its weights alone: torch.save(network.state_dict(), PATH)"
        ) from error
    except Exception as error:  # a damaged archive fails in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{path} cannot be read as torch weights ({reason}): "
            "expected a file made by torch.save(network.state_dict(), PATH), or safetensors"
        ) from error


def _wrapped(content: Mapping[str, Any]) -> str | None:
    return next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)


def _check(content: Any, path: Path) -> None:
    if not isinstance(content, Mapping) or not content:
        what = type(content).__name__ if content else "nothing"
        raise WeightsError(f"{path} holds {what}: expected a state_dict, name -> tensor")
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            what = type(tensor).__name__
            raise WeightsError(f"{path}: entry {name!r} is of type {what}, expected a state_dict, name -> tensor")
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise WeightsError(f"{path}: {name} is sparse or quantised, expected a dense tensor; convert it first")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            count = int((~torch.isfinite(tensor.float())).sum())
            raise WeightsError(f"{path}: {name} holds {count} NaN or infinite numbers; give a sound checkpoint")


def _common_prefix(names: Iterable[str]) -> str:
    """The longest prefix, whole modules only, that all names share: "" or one that ends with a dot."""
    parents = (name.split(".")[:-1] for name in names)
    return "".join(
        f"{level[0]}." for level in takewhile(lambda level: len(set(level)) == 1, zip(*parents, strict=False))
    )


def _few(items: list[str]) -> list[str]:
    return items if len(items) <= 3 else [*items[:3], f"and {len(items) - 3} more"]


def _some(items: list[str]) -> str:
    return ", ".join(_few(items))


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"
