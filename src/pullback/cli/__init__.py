"""The command line: thin commands over the rooms below. `pullback --help` imports none of them."""

from __future__ import annotations

from pullback.cli.program import main, program

__all__ = ["main", "program"]
