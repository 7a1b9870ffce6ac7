from __future__ import annotations

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
