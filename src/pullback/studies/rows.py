"""The rows of a study: one for each method, stage and image, each a small file written whole, so that a killed study goes on."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pullback.images import write_together
from pullback.pictures.display import png
from pullback.pictures.plain import plain

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One method at one stage of one image. values: figures by name; error: why there are none, or None."""

    method: str
    stage: int
    image: str
    values: Mapping[str, float]
    error: str | None = None

    def get(self, name: str) -> float | None:
        return self.values.get(name)


def keep(path: Path, row: Row, run: str, pictures: Mapping[str, Image.Image]) -> None:
    """Write the row beside its pictures, all or none; run: the fingerprint of what decided them. Raises OutputError."""
    record = plain({
        "schema": SCHEMA, "run": run, "method": row.method, "stage": row.stage, "image": row.image, "values": row.values,
        "error": row.error,
    })  # fmt: skip
    files = {path.with_name(f"{path.stem}.{name}.png"): png(picture) for name, picture in pictures.items()}
    write_together({**files, path: json.dumps(record, indent=1).encode()})


def kept(path: Path, run: str) -> Row | None:
    """The row that `keep` wrote for the same fingerprint, or None."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        if found["run"] != run or found["schema"] != SCHEMA:
            return None
        values = {str(name): float("nan") if v is None else float(v) for name, v in found["values"].items()}
        return Row(found["method"], found["stage"], found["image"], values, found["error"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def picture_of(path: Path, name: str) -> Image.Image | None:
    """One of the pictures beside a row, or None."""
    try:
        with Image.open(io.BytesIO(path.with_name(f"{path.stem}.{name}.png").read_bytes())) as opened:
            return opened.convert("RGB")
    except OSError:
        return None
