from __future__ import annotations

import subprocess
import sys

import pytest

from pullback.encoders import torchvision_ops
from pullback.encoders.torchvision_ops import import_timm, import_torchvision, mended


def test_both_libraries_import_whatever_their_build() -> None:
    assert import_torchvision().models.list_models()
    assert import_timm().is_model("resnet18")


def test_only_the_known_failure_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    declared, calls = [], []
    monkeypatch.setattr(torchvision_ops, "_declare", lambda: declared.append(True))

    def fails_once(message: str) -> str:
        calls.append(message)
        if len(calls) == 1:
            raise RuntimeError(message)
        return "imported"

    assert mended(lambda: fails_once("operator torchvision::nms does not exist")) == "imported"
    assert len(declared) == 1
    calls.clear()
    with pytest.raises(RuntimeError, match="something else"):
        mended(lambda: fails_once("something else"))
    assert mended(lambda: "imported") == "imported"
    assert len(declared) == 1


def test_the_compiler_is_loaded_when_it_is_asked_for_and_not_before() -> None:
    """In a process of its own: the import leaves no stand-in behind, and the compiler is the real one afterwards."""
    program = """
import sys
from pullback.encoders.torchvision_ops import import_torchvision
vision = import_torchvision()
assert not [name for name in sys.modules if name.startswith("torch._dynamo")], "loaded"
asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported
from torch._dynamo.utils import is_compile_supported
assert asked is not is_compile_supported and asked("cpu") == is_compile_supported("cpu")
import torch
assert torch._dynamo.utils.is_compile_supported is is_compile_supported
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_nothing_stands_in_where_the_compiler_is_loaded() -> None:
    program = """
import torch._dynamo.utils
from pullback.encoders.torchvision_ops import import_torchvision
import_torchvision()
import sys
assert sys.modules["torchvision.ops.roi_align"].is_compile_supported is torch._dynamo.utils.is_compile_supported
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_whatever_else_is_asked_of_the_compiler_loads_it() -> None:
    program = """
import torch
from pullback.encoders import torchvision_ops
with torchvision_ops._compiler_put_off():
    from torch._dynamo import disable
    assert torch.compiler.disable(lambda x: x + 1)(1) == 2
    import torch._dynamo.config
import torch._dynamo
assert disable is torch._dynamo.disable
"""
    subprocess.run([sys.executable, "-c", program], check=True)
