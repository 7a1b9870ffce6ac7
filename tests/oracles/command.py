"""Running the real `pullback explain` on a network of the user's own, and looking at what it left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SPEC = "module:hostile_tiny_net:factory"
NET = """
import torch
from torch import nn
from torch.nn import functional as F


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.level1, self.level2 = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.gate1, self.gate2, self.fc = nn.ReLU(), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.gate2(self.level2(self.gate1(self.level1(x)))).mean((2, 3)))


class OtherNet(Tiny):
    def __init__(self):
        super().__init__()
        self.level2 = nn.Conv2d(6, 9, 3, 2, 1)


def factory():
    return Tiny()


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))


def broken():
    raise RuntimeError("no luck today")
"""
TINY = ["--encoder", SPEC, "--stages", "gate1,gate2", "--preprocessing", "size=32;resize=32;mean=0.5;std=0.25"]


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what is wrong; all else on stderr is progress."""
        lines = self.err.splitlines()
        told = [line for line in lines if line.startswith("pullback: ")]
        assert told == lines[-1:], self.err
        assert "Traceback" not in self.err and "Warning" not in self.err and "unexpected" not in told[0][:20]
        return told[0]


Run = Callable[..., Ran]
"""The fixture `run`: options of the command in; exit status, stdout and stderr out."""


def assert_whole(folder: Path) -> None:
    """No half-written file anywhere, and every report with its panel and its record."""
    names = {p for p in folder.rglob("*") if p.is_file()}
    assert not [p for p in names if p.suffix == ".part" or p.name.startswith((".", "tmp"))]
    for record in folder.rglob("out/*.json"):
        assert json.loads(record.read_text(encoding="utf-8"))["schema"] == 1
        assert {record.with_suffix(".html"), record.with_suffix(".png")} <= names
    for panel in folder.rglob("out/*.png"):
        with Image.open(panel) as opened:
            opened.load()
        assert panel.with_suffix(".json") in names
    for page in folder.rglob("out/*.html"):
        assert page.read_text(encoding="utf-8").rstrip().endswith("</html>")
        assert page.name == "index.html" or page.with_suffix(".json") in names


def outputs(folder: Path = Path("out")) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def record(stem: str) -> dict[str, Any]:
    return json.loads(Path("out", f"{stem}.json").read_text(encoding="utf-8"))


def picture(size: tuple[int, int] = (40, 36), seed: int = 0) -> Image.Image:
    """A smooth coloured picture of (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def saved(name: str, made: Image.Image | None = None, **options: Any) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    (made or picture()).save(name, **options)
    return name


def bytes_in(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    return name
