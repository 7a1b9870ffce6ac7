"""Text on pictures: measured, wrapped, cut with a visible ellipsis; in the one font that comes with Pillow."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from PIL import ImageFont

from pullback.pictures.plain import readable

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Pillow's own font has ASCII and little more; what a caption needs beyond that is spelled out.
_SPELLED = str.maketrans({
    "\N{MINUS SIGN}": "-", "\N{MULTIPLICATION SIGN}": "x", "…": "...", "·": ",", "±": "+/-",
    "≤": "<=", "≥": ">=", "→": "->",
    "\N{GREEK SMALL LETTER ALPHA}": "alpha", "β": "beta", "\N{GREEK SMALL LETTER GAMMA}": "gamma", "ω": "omega",
})  # fmt: skip


@lru_cache
def default_font(size: int) -> Font:
    """Pillow's own font: the same letters on every machine."""
    return ImageFont.load_default(size)


def spelled(text: str) -> str:
    """`text` in letters that Pillow's font has: accents dropped, other scripts as their code points (`\\u6f22`)."""
    letters = unicodedata.normalize("NFKD", readable(text).translate(_SPELLED))
    letters = "".join(c for c in letters if not unicodedata.combining(c))
    return letters.encode("ascii", "backslashreplace").decode()


def wrapped(text: str, font: Font, width: int, lines: int) -> list[str]:
    """`text` in at most `lines` lines of at most `width` pixels; what does not fit is cut, marked by "..."."""
    result: list[str] = []
    rest = " ".join(text.split())
    while rest:
        if len(result) == lines - 1:
            return [*result, _cut(rest, font, width)]
        fits = _longest(rest, font, width)
        if fits < len(rest):
            fits = rest.rfind(" ", 1, fits + 1) if " " in rest[1 : fits + 1] else fits
        result.append(rest[:fits].rstrip())
        rest = rest[fits:].lstrip()
    return result


def _longest(text: str, font: Font, width: int) -> int:
    """How many leading characters of `text` fit into `width` pixels: at least one, found by halving."""
    low, high = 1, min(len(text), width)  # no letter is narrower than one pixel
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


def _cut(text: str, font: Font, width: int) -> str:
    if len(text) <= width and font.getlength(text) <= width:
        return text
    return text[: _longest(text, font, width - int(font.getlength("...")) - 1)].rstrip() + "..."
