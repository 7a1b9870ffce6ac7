"""Imports torchvision, and timm which needs it, also where torchvision's compiled operators do not fit the torch build.

Such a pair (a CUDA torchvision beside a CPU torch, say) stops with "operator torchvision::nms does not exist", because
the Python half of torchvision describes operators that its compiled half failed to declare. Classification networks
never call them; declaring their schemas, without any implementation, lets the import finish. Nothing is declared where
the import works.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import TypeVar

import torch

_SYMPTOM = "operator torchvision::nms does not exist"
_SCHEMAS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))

Result = TypeVar("Result")


def mended(action: Callable[[], Result]) -> Result:
    """Run `action`, which imports something; if torchvision's operators are missing, declare them and run it again."""
    try:
        return action()
    except RuntimeError as error:
        if _SYMPTOM not in str(error):
            raise
    _declare()
    return action()


def import_torchvision() -> ModuleType:
    """The module `torchvision`, whole, or without its detection operators where its build does not match torch's."""
    return mended(lambda: importlib.import_module("torchvision"))


def import_timm() -> ModuleType:
    """The module `timm`."""
    return mended(lambda: importlib.import_module("timm"))


@cache
def _declare() -> torch.library.Library:
    """Declare the schemas once; the cache keeps the library alive, for they would vanish with it."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library
