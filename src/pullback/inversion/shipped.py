"""Correctors that come with the package, for the embedded encoder."""

from __future__ import annotations

from pathlib import Path

from pullback import encoders
from pullback.encoders import Encoder
from pullback.inversion.correctors import Correctors


def shipped_correctors(encoder: Encoder) -> Correctors | None:
    """The fitted correctors that come with this encoder's own weights, or None; they fit its own stages alone."""
    if not encoder.name.startswith("builtin:"):
        return None
    path = (
        Path(encoders.__file__).with_name("weights") / f"{encoder.name.removeprefix('builtin:')}.correctors.safetensors"
    )
    if not path.is_file():
        return None
    found = Correctors.load(path)
    fits = found.fits([encoder.input_shape[0], *(s.channels for s in encoder.stages[:-1])])
    return found if fits and found.card.get("weights") == encoder.weights_digest else None
