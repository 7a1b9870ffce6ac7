"""What is made once for a network and kept for next time: in memory, and in the user's cache folder."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pullback.errors import PullbackError
from pullback.images import cache_folder, write_whole

_log = logging.getLogger("pullback")

Tensors = dict[str, Tensor]

_IN_MEMORY = 16
_memory: OrderedDict[Path, Tensors] = OrderedDict()
_refused: set[Path] = set()  # folders that could not be written, which was said
_making = threading.RLock()  # what is made may need something else that is kept


def kept(said: object, make: Callable[[], Tensors]) -> Tensors:
    """The tensors that `make` gives, made once for all that is said of them: `repr(said)` must tell all that decides them.

    In the folder $PULLBACK_CACHE, or the one that this system has for caches. A folder that is not to be found or cannot be
    written, or a file that is not whole or tells of something else, is no obstacle: then they are made again. That nothing
    can be kept in a folder is logged as a warning, once.
    """
    name = hashlib.sha256(repr(said).encode()).hexdigest()
    path = cache_folder() / f"{name[:32]}.safetensors"
    with _making:
        if path not in _memory:
            found = _read(path, name)
            if found is None:
                # Laid out as they will be read next time: products with other strides are rounded in another way.
                found = storable(make())
                _write(path, name, found)
            _memory[path] = found
            while len(_memory) > _IN_MEMORY:
                _memory.popitem(last=False)
        _memory.move_to_end(path)
        return _memory[path]


def _read(path: Path, name: str) -> Tensors | None:
    try:
        with safe_open(path.expanduser(), framework="pt") as file:
            told = file.metadata() or {}
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, RuntimeError, SafetensorError):  # RuntimeError: no such user's home
        return None
    return found if told == {"for": name, "numbers": tensors_digest(found)} else None


def _write(path: Path, name: str, made: Tensors) -> None:
    whole = save(made, {"for": name, "numbers": tensors_digest(made)})
    try:
        path = path.expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, whole)
    except (OSError, RuntimeError, PullbackError) as error:  # RuntimeError: no such user's home
        if path.parent not in _refused:
            _refused.add(path.parent)
            _log.warning(
                "what was made for this network is not kept for next time (%s); name a folder that you may write to in"
                " PULLBACK_CACHE",
                error,
            )


def storable(tensors: Tensors) -> Tensors:
    """Without a graph, on the CPU, dense by rows: as files hold them."""
    return {key: t.detach().cpu().contiguous() for key, t in tensors.items()}


def tensors_digest(tensors: Tensors) -> str:
    """SHA-256 of names, shapes, types and numbers."""
    digest = hashlib.sha256()
    for key, t in sorted(tensors.items()):
        digest.update(f"{key} {tuple(t.shape)} {t.dtype}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
