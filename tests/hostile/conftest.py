"""A network of the user's own beside the working folder, and the real command in the test's own process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from oracles.command import NET, TINY, Ran, Run, assert_whole

import pullback.explain.run
from pullback.cli import main
from pullback.explain import explain
from pullback.explain.options import SECONDS


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of the user's own beside the working folder, and no time at all for the iterative inverses."""
    (tmp_path / "hostile_tiny_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hostile_tiny_net", raising=False)
    monkeypatch.setitem(SECONDS, "draft", 1e-6)
    monkeypatch.delenv("PULLBACK_TRACEBACK", raising=False)
    monkeypatch.setenv("COLUMNS", "4000")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """run(...): the real command into the folder `out`, with the tiny network where no other is named."""

    def with_arguments(*arguments: object) -> Ran:
        words = ["explain", "--out", "out", "--quality", "draft", *TINY, *map(os.fspath, arguments)]
        with pytest.raises(SystemExit) as left:
            main(words)
        assert isinstance(left.value.code, int)
        assert_whole(tmp_path)
        return Ran(left.value.code, *capsys.readouterr())

    return with_arguments


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are really explained, in order."""
    names: list[str] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        names.append(options["file_name"])
        return explain(*arguments, **options)

    monkeypatch.setattr(pullback.explain.run, "explain", counted)
    return names
