"""What is made once for a network and kept for next time: in memory, and in the user's cache folder."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pullback.errors import PullbackError
from pullback.images import write_whole

_log = logging.getLogger("pullback")

Tensors = dict[str, Tensor]

_IN_MEMORY = 16
_memory: OrderedDict[Path, Tensors] = OrderedDict()
_making = threading.RLock()  # what is made may need something else that is kept


def kept(said: object, make: Callable[[], Tensors]) -> Tensors:
    """The tensors that `make` gives, made once for all that is said of them: `repr(said)` must tell all that decides them.

    In the folder $PULLBACK_CACHE, or the one that this system has for caches. A folder that cannot be written, or a file
    that is not whole, is no obstacle: then they are made again.
    """
    path = _folder() / f"{hashlib.sha256(repr(said).encode()).hexdigest()[:32]}.safetensors"
    with _making:
        if path not in _memory:
            found = _read(path)
            if found is None:
                found = make()
                _write(path, found)
            _memory[path] = found
            while len(_memory) > _IN_MEMORY:
                _memory.popitem(last=False)
        _memory.move_to_end(path)
        return _memory[path]


def _folder() -> Path:
    return Path(os.environ.get("PULLBACK_CACHE") or platformdirs.user_cache_path("pullback", appauthor=False))


def _read(path: Path) -> Tensors | None:
    try:
        found = load_file(path)
    except (OSError, SafetensorError):
        return None
    return found if all(bool(torch.isfinite(t).all()) for t in found.values()) else None


def _write(path: Path, made: Tensors) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, save({name: t.detach().cpu().contiguous() for name, t in made.items()}))
    except (OSError, PullbackError) as error:
        _log.info("%s is not kept for next time: %s", path.name, error)
