"""Opening one picture safely: known formats, a pixel limit before decoding, one frame, upright (EXIF 2.32, tag 274)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.Image import Transpose

from pullback.errors import ImageError
from pullback.images.listing import FORMATS, existing_file

PIXEL_LIMIT = 178_956_970
"""Pixels of the largest picture that is decoded: 512 MiB as RGB, the size at which Pillow's own default refuses too."""

EIGHT_BIT = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"})
"""Pillow's modes of at most 8 bits a channel that turn into RGB with no choice left open."""

UPRIGHT: Mapping[int, Transpose] = MappingProxyType(
    {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
)
"""The turn that makes stored pixels upright, for each EXIF orientation but 1."""


@dataclass(frozen=True)
class Decoded:
    """A picture as its file holds it, but upright: pixels in the file's own mode, with what was done to them."""

    image: Image.Image
    format: str | None
    stored_size: tuple[int, int]  # width, height before the turn
    orientation: int  # EXIF 1..8
    name: str
    notes: tuple[str, ...]


def decode(source: str | Path | Image.Image) -> Decoded:
    """Decode a file, or take a Pillow image as it stands; Pillow's settings and the warning filters are left alone.

    Raises ImageError when it is no picture, is damaged, or has more than `PIXEL_LIMIT` pixels.
    """
    if isinstance(source, Image.Image):
        name = Path(str(getattr(source, "filename", "") or "image")).name
        with _one_error(name):
            return _upright(source, name)
    if not isinstance(source, (str, Path)):
        raise ImageError(f"a picture is a path or a Pillow image, not {type(source).__name__}: try PIL.Image.fromarray")
    path = existing_file(source)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ImageError(f"{path} cannot be opened: {error.strerror}") from error
    with stream, _one_error(str(path)):
        if not stream.peek(1):
            raise ImageError(f"{path} is empty (0 bytes): copy or download it again")
        with _opened(stream) as image:
            return _upright(image, path.name)


def _opened(stream: BinaryIO) -> Image.Image:
    """By the formats that Pillow has at hand, which takes it no time, or else by all of them."""
    Image.preinit()
    with suppress(UnidentifiedImageError):
        return Image.open(stream, formats=_known())
    Image.init()
    return Image.open(stream, formats=_known())


def _known() -> list[str]:
    """An older Pillow lacks some formats, and `Image.open` fails on a name that it does not know."""
    return [name for name in FORMATS if name in Image.OPEN]


def _upright(image: Image.Image, name: str) -> Decoded:
    width, height = image.size
    if not 0 < width * height <= PIXEL_LIMIT:
        limits = f"1 to {PIXEL_LIMIT} pixels are expected"
        raise ImageError(f"{name} has {width} x {height} = {width * height} pixels: {limits}, scale it first")
    frames = getattr(image, "n_frames", 1)
    notes = [f"frame {image.tell() + 1} of {frames} is used"] if frames > 1 else []
    # Pillow turns a TIFF itself while loading it, and forgets the tag; a PNG may hold its tag after the pixels.
    turned = _orientation(image) if image.format == "TIFF" else 1
    image.load()
    pending = _orientation(image)
    upright = image.transpose(UPRIGHT[pending]) if pending != 1 else image.copy()
    orientation = pending if pending != 1 else turned
    if orientation != 1:
        notes.append(f"turned upright from EXIF orientation {orientation}")
    stored = upright.size if orientation < 5 else upright.size[::-1]
    return Decoded(upright, image.format, stored, orientation, name, tuple(notes))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 when there is none, when it has no meaning, or when the tags are damaged."""
    try:
        tag = image.getexif().get(Base.Orientation)
    except Exception:  # the pixels are whole all the same
        return 1
    return tag if isinstance(tag, int) and tag in UPRIGHT else 1


@contextmanager
def _one_error(name: str) -> Iterator[None]:
    """Whatever a decoder raises on foreign bytes leaves as one ImageError."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a picture that can be read: save it as one of {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = str(error).partition(",")[0]  # "Image size (... pixels) exceeds limit of ... pixels"
        raise ImageError(f"{name} is too large: {reason}; scale it down first") from error
    except Exception as error:  # OSError, SyntaxError, struct.error, zlib.error and more: each says the same
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name} is damaged or cut off ({reason}): copy or save it again") from error
