"""The rows of a study: one for each method, stage and image, each a small file written whole, so that a killed study goes on."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pullback.encoders import Encoder
from pullback.errors import OptionError
from pullback.images import write_together, write_whole
from pullback.pictures.display import png
from pullback.pictures.plain import plain

SCHEMA = 2


OWNER = "study.json"  # tells whose study is in a folder


def check_owner(folder: Path, encoder: Encoder) -> None:
    """Raise OptionError where the folder holds the study of another network, whose pages would be lost."""
    path = folder / OWNER
    if path.is_file() and path.read_bytes() != _owner(encoder):
        raise OptionError(f"{folder} holds a study of another network or of other weights: choose another folder")


def claim(folder: Path, encoder: Encoder) -> None:
    """Say in the folder whose study it holds. Raises OutputError."""
    write_whole(folder / OWNER, _owner(encoder))


def _owner(encoder: Encoder) -> bytes:
    return json.dumps({"encoder": encoder.name, "weights": encoder.weights_digest}).encode()


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
    """Write the row beside its pictures, all or none; run: the fingerprint of what decided them. Raises OutputError.

    The folder of the rows is made here, with the first one. Pictures of an older row, of other settings, are taken away.
    """
    drawn = {name: png(picture) for name, picture in pictures.items()}
    record = plain({
        "schema": SCHEMA, "run": run, "method": row.method, "stage": row.stage, "image": row.image, "values": row.values,
        "error": row.error, "pictures": {name: hashlib.sha256(data).hexdigest() for name, data in drawn.items()},
    })  # fmt: skip
    files = {_beside(path, name): data for name, data in drawn.items()}
    path.parent.mkdir(exist_ok=True)
    for old in set(path.parent.glob(f"{path.stem}.*.png")) - set(files):
        old.unlink()
    write_together({**files, path: json.dumps(record, indent=1).encode()})


def kept(path: Path, run: str) -> Row | None:
    """The row that `keep` wrote for the same fingerprint, or None; None too where a picture of it is lost or damaged."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        if found["run"] != run or found["schema"] != SCHEMA:
            return None
        for name, digest in found["pictures"].items():
            if hashlib.sha256(_beside(path, name).read_bytes()).hexdigest() != digest:
                return None
        values = {str(name): float("nan") if v is None else float(v) for name, v in found["values"].items()}
        return Row(found["method"], found["stage"], found["image"], values, found["error"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def picture_of(path: Path, name: str) -> Image.Image | None:
    """One of the pictures beside a row, or None."""
    try:
        with Image.open(io.BytesIO(_beside(path, name).read_bytes())) as opened:
            return opened.convert("RGB")
    except OSError:
        return None


def _beside(path: Path, name: str) -> Path:
    """The file of one of a row's pictures."""
    return path.with_name(f"{path.stem}.{name}.png")
