"""Loading an object mask: it follows its picture's geometry; its pixels become 0 to 1, or NaN for unknown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pullback.errors import ImageError, MaskError
from pullback.images.decoding import EIGHT_BIT, UPRIGHT, Decoded, decode
from pullback.images.loading import Loaded

_SOFT_LEVELS = 8
"""A mask with fewer grey levels is taken for labels, whose meaning must be known: anti-aliased edges have more."""

_CONVENTIONS = (
    "0 background, 1 object, 255 unknown; or 0 background, 255 object, 128 unknown; "
    f"or a soft mask of {_SOFT_LEVELS} or more grey levels up to white; or floats in [0, 1] with NaN unknown"
)


@dataclass(frozen=True)
class Mask:
    """Where the object is in a picture.

    values: (H, W) float32 of the upright picture's size: 1 object, 0 background, between for a soft mask, NaN unknown.
    notes: how the file was read, in words.
    """

    values: NDArray[np.float32]
    notes: tuple[str, ...]


def load_mask(source: str | Path | Image.Image, like: Loaded) -> Mask:
    """Load the mask of the picture `like`.

    Geometry: the mask's own EXIF orientation is obeyed. A mask of the upright picture's size is taken as upright; one
    that has only the size of the pixels as stored is turned as the picture was.

    Values, told apart by which ones occur: {0, 1, 255} with a 1 among them: 1 object, 255 unknown; {0, 255}: 255
    object; {0, 128, 255}: 128 unknown; many grey levels: soft; floats in [0, 1]: as they are, NaN unknown. In files of
    16 bits 65535 stands for 255. A coloured palette gives its indices, a grey one its greys.

    Raises MaskError when the mask cannot be read, has another size, differing channels, transparency, or other values.
    """
    try:
        decoded = decode(source)
    except ImageError as error:
        raise MaskError(f"mask: {error}") from error
    placed, geometry = _placed(decoded, like)
    values, reading = _values(_levels(placed), placed.name)
    empty = () if (values > 0).any() else ("the mask is empty: no pixel of it is object",)
    return Mask(values, decoded.notes + geometry + (reading,) + empty)


def _placed(mask: Decoded, like: Loaded) -> tuple[Decoded, tuple[str, ...]]:
    """The mask over the upright picture, and what was assumed."""
    if mask.image.size == like.image.size:
        doubtful = like.orientation != 1 and mask.orientation == 1 and like.stored_size == like.image.size
        return mask, ("its picture was turned upright; the mask is taken to be upright already",) if doubtful else ()
    if mask.image.size == like.stored_size and mask.orientation == 1:
        turned = replace(mask, image=mask.image.transpose(UPRIGHT[like.orientation]))
        return turned, (f"turned as its picture is, EXIF orientation {like.orientation}",)
    raise MaskError(
        f"mask {mask.name} is {_by(mask.image.size)} (width x height), its picture {like.name} {_by(like.image.size)}: "
        "resize the mask to the picture's size without interpolation, or give the picture that it was drawn on"
    )


def _levels(mask: Decoded) -> NDArray[Any]:
    """(H, W) numbers as stored: grey levels, or the labels of a coloured palette."""
    image = mask.image
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode not in EIGHT_BIT:
        raise MaskError(f"mask {mask.name} has pixels of mode {image.mode}: save it as one grey channel")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise MaskError(f"mask {mask.name} has transparent pixels, whose meaning is not known: save it as plain grey")
    channels = np.asarray(image.convert("RGB"))
    if (channels == channels[..., :1]).all():
        return channels[..., 0]
    if image.mode == "P":
        return np.asarray(image)
    raise MaskError(f"mask {mask.name} is coloured, its channels differ: save it as one grey channel; {_CONVENTIONS}")


def _values(levels: NDArray[Any], name: str) -> tuple[NDArray[np.float32], str]:
    """Mask values of stored levels, and the convention they were read by."""
    occurring = np.unique(levels[~np.isnan(levels)])
    low, high = min(occurring, default=0), max(occurring, default=0)
    if levels.dtype.kind == "f" and low >= 0 and high <= 1:
        return levels.astype(np.float32), "read as floats in [0, 1], NaN unknown"
    if levels.dtype.kind != "f" and low >= 0 and high <= 65535:
        white = 255 if high <= 255 else 65535
        present = {int(level) for level in occurring}
        if 1 in present and present <= {0, 1, white}:
            values = np.where(levels == white, np.nan, levels)
            return values.astype(np.float32), f"read as 0 background, 1 object, {white} unknown"
        if present <= {0, white}:
            return (levels == white).astype(np.float32), f"read as 0 background, {white} object"
        for grey in (white // 2, white // 2 + 1):
            if present <= {0, grey, white}:
                values = np.where(levels == grey, np.nan, levels == white)
                return values.astype(np.float32), f"read as 0 background, {white} object, {grey} unknown"
        if len(present) >= _SOFT_LEVELS and high > white // 2:
            return (levels / white).astype(np.float32), f"read as a soft mask, 0 background to {white} object"
    shown = ", ".join(f"{level:g}" for level in occurring[:6]) + (", ..." if len(occurring) > 6 else "")
    raise MaskError(f"mask {name} has the values {shown}, whose meaning is not known; a mask has {_CONVENTIONS}")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
