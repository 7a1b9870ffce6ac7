"""What `pullback explain` was asked to do, and how much time each quality gives the iterative inverses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Seconds for all iterative pictures of one image together (Wiener and blind, every stage), without what is made once for a
# network and kept: the decoders that the blind inverse starts from, and its null pictures.
SECONDS = {"draft": 4.0, "standard": 10.0, "high": 120.0}
# No more steps than these of the blind and of the Wiener inverse, however small the network; 40 are those of docs/whose.md.
STEPS = {"draft": (15, 5), "standard": (40, 20), "high": (400, 100)}


@dataclass(frozen=True)
class Options:
    """The command line's options; `images` empty means the bundled scene."""

    images: tuple[str, ...]
    out: Path
    mask: Path | None = None
    target: str | None = None
    encoder: str = "builtin:scenes"
    weights: str | None = None
    classes: Path | None = None
    preprocessing: str | None = None
    stages: tuple[str, ...] | None = None
    correctors: Path | None = None
    device: str = "cpu"
    quality: str = "standard"
    start: str = "taught"
    seed: int = 0
    overwrite: bool = False


class Progress(Protocol):
    """Who is told how far the work is."""

    def start(self, total: int, description: str) -> None: ...

    def advance(self, n: int = 1, description: str | None = None) -> None: ...

    def note(self, text: str) -> None: ...
