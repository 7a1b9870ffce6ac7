"""Loading a picture: any readable file becomes upright 8-bit RGB, with a note for what was changed or chosen."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from pullback.errors import ImageError
from pullback.images.decoding import EIGHT_BIT, Decoded, decode

_SCALED = "16-bit grey scaled to 8 bits"
_ON_WHITE = "transparent parts shown on white"
_CMYK = "CMYK turned into RGB without a colour profile"


@dataclass(frozen=True)
class Loaded:
    """A picture ready for preprocessing.

    image: RGB, 8 bit, upright; a copy of its own, without metadata.
    stored_size: (width, height) in the file, before it was turned upright.
    orientation: the file's EXIF orientation, 1..8.
    digest: SHA-256 (hex) of the size and the upright RGB bytes: equal pixels, equal digest, whatever the file.
    notes: what was changed or chosen, in words.
    name: the file's name, or "image".
    """

    image: Image.Image
    stored_size: tuple[int, int]
    orientation: int
    digest: str
    notes: tuple[str, ...]
    name: str


def load_image(source: str | Path | Image.Image) -> Loaded:
    """Load a picture from a file or take a Pillow image, which is left as it is.

    EXIF orientation is obeyed; 16-bit grey is scaled to 8 bits (65535 becomes 255); grey becomes three equal channels;
    transparency is laid on white; of an animation the first frame is used; colour profiles are ignored.

    Raises ImageError for everything that is not one readable picture: a folder, a URL, a missing, empty, damaged or
    oversized file, or pixels without a defined white (32-bit integers, floats, Lab).
    """
    decoded = decode(source)
    rgb, notes = _rgb(decoded)
    pixels = rgb.tobytes()
    width, height = rgb.size
    return Loaded(
        image=Image.frombytes("RGB", rgb.size, pixels),  # drops the metadata, above all an orientation already obeyed
        stored_size=decoded.stored_size,
        orientation=decoded.orientation,
        digest=sha256(f"{width}x{height}:".encode() + pixels).hexdigest(),
        notes=decoded.notes + notes,
        name=decoded.name,
    )


def _rgb(decoded: Decoded) -> tuple[Image.Image, tuple[str, ...]]:
    image = decoded.image
    # Older Pillow and its PPM reader hold 16-bit grey in 32-bit integers; elsewhere those have no defined white.
    if image.mode.startswith("I;16") or (image.mode == "I" and decoded.format in ("PNG", "PPM")):
        return _from_sixteen_bits(image)
    if image.mode not in EIGHT_BIT:
        raise ImageError(f"{decoded.name} has pixels of mode {image.mode}, without a defined white: save it as RGB")
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB"), (_CMYK,) if image.mode == "CMYK" else ()


def _from_sixteen_bits(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    values = np.asarray(image).astype(np.uint32)
    grey = ((values + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257, rounded to the nearest
    transparent = values == image.info.get("transparency", -1)
    grey[transparent] = 255
    notes = (_SCALED, _ON_WHITE) if transparent.any() else (_SCALED,)
    return Image.fromarray(grey).convert("RGB"), notes


def _on_white(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    opaque = image.getchannel("A").getextrema() == (255, 255)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB"), () if opaque else (_ON_WHITE,)
