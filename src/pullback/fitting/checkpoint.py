"""The state of a fit between two steps, in a safetensors file: all that the next step needs, and what it belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pullback.errors import OptionError
from pullback.images import write_whole
from pullback.inversion.kept import Tensors, tensors_digest

SCHEMA = 2

_METADATA = "pullback.fit"
_DIGEST = "digest"
_TENSORS = ("parameters", "first", "second", "running")


@dataclass(frozen=True, eq=False)
class State:
    """After `step` steps: the parameters (P,), Adam's moments (P,), and the sum of (loss, floor, zero) since the last validation.

    history: a row a validation. What is drawn at random depends on the seed and the place alone (`draws.py`), so that the
    step is all there is to keep of generators and data order.
    """

    step: int
    parameters: Tensor
    first: Tensor
    second: Tensor
    running: Tensor
    history: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def begin(cls, parameters: Tensor) -> State:
        first, second = torch.zeros_like(parameters), torch.zeros_like(parameters)
        running = torch.zeros(3, dtype=torch.float64, device="cpu")
        return cls(0, parameters, first, second, running)

    def save(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Whole or not at all. Raises OutputError."""
        about = {
            "schema": SCHEMA,
            "settings": settings,
            "step": self.step,
            "history": self.history,
        }
        tensors = {name: getattr(self, name) for name in _TENSORS}
        text = json.dumps(about, sort_keys=True)
        write_whole(path, save(tensors, {_METADATA: text, _DIGEST: _digest(text, tensors)}))

    @classmethod
    def load(cls, path: Path, settings: Mapping[str, Any]) -> State | None:
        """What `save` wrote for the same settings; None where there is no file. Raises OptionError for all else."""
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                said = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
            text = said[_METADATA]
        except (OSError, SafetensorError, KeyError) as error:
            raise OptionError(
                f"{path} is damaged or no checkpoint of a fit ({type(error).__name__});"
                " move it away, or begin anew with overwrite"
            ) from error
        if said.get(_DIGEST) != _digest(text, tensors):
            raise OptionError(f"the checkpoint {path} is damaged; move it away, or begin anew with overwrite")
        about = json.loads(text)
        schema = about["schema"]
        differing = (
            difference(about["settings"], settings) if schema == SCHEMA else f"its schema is {schema!r}, not {SCHEMA}"
        )
        if differing:
            raise OptionError(
                f"{path} is the checkpoint of another fit: {differing}; carry on with its settings, or begin anew with overwrite"
            )
        return cls(about["step"], **tensors, history=tuple(about["history"]))


def _digest(text: str, tensors: Tensors) -> str:
    """SHA-256 of all that a checkpoint holds: a state with one bit flipped would be carried on from like any other."""
    return hashlib.sha256(f"{tensors_digest(tensors)} {text}".encode()).hexdigest()


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The first settings in which two fits differ, in words; empty where there are none."""
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    return "; ".join(f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here" for name in names[:2])
