"""A cache folder of a test's own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a planted fault draws is kept for no other test."""
    monkeypatch.setenv("PULLBACK_CACHE", str(tmp_path))
