"""Imports torchvision, and timm which needs it, also where torchvision's compiled operators do not fit the torch build.

Such a pair (a CUDA torchvision beside a CPU torch, say) stops with "operator torchvision::nms does not exist", because
the Python half of torchvision describes operators that its compiled half failed to declare. Classification networks
never call them; declaring their schemas, without any implementation, lets the import finish. Nothing is declared where
the import works.

torchvision's operators also load torch's compiler, a second of every start, for one question that they put when they are
called. Where nothing else has loaded it, that question waits until then.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import ModuleType
from typing import Any, TypeVar

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
    with _compiler_put_off():
        return mended(lambda: importlib.import_module("torchvision"))


def import_timm() -> ModuleType:
    """The module `timm`."""
    return mended(lambda: importlib.import_module("timm"))


@contextmanager
def _compiler_put_off() -> Iterator[None]:
    """Within this scope `from torch._dynamo.utils import is_compile_supported` gives a function that imports it when called.

    Whatever else is asked of torch's compiler loads it. Nothing is changed where it is loaded already, or where another thread
    might ask for it meanwhile.
    """
    package, utils = ModuleType("torch._dynamo"), ModuleType("torch._dynamo.utils")
    stand_ins = {module.__name__: module for module in (package, utils)}

    def withdraw() -> None:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]

    def real(module: str, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        withdraw()
        return getattr(importlib.import_module(module), name)

    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    for name, module in stand_ins.items():
        module.__getattr__ = partial(real, name)  # type: ignore[method-assign]
    if any(name in sys.modules for name in stand_ins) or threading.active_count() > 1:
        yield
        return
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        withdraw()


def _is_compile_supported(device: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device))


@cache
def _declare() -> torch.library.Library:
    """Declare the schemas once; the cache keeps the library alive, for they would vanish with it."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library
