"""How a result shows itself: rows of pictures with their words, as a captioned PNG sheet or as self-contained HTML."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from base64 import b64encode
from dataclasses import dataclass
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from pullback.errors import OptionError
from pullback.images.files import write_whole
from pullback.pictures.display import png
from pullback.pictures.lettering import default_font, spelled, wrapped
from pullback.pictures.plain import readable

_NARROW = 112  # pictures narrower than this are enlarged, by whole factors and without smoothing
_GAP, _LINE, _LETTERS, _SHEET = 8, 17, 13, 320  # pixels; no sheet is narrower than the last
_LINES = 6  # a sentence takes no more lines than this


@dataclass(frozen=True)
class Row:
    """Pictures that belong side by side, each under its heading, and what is said below them."""

    cells: tuple[tuple[str, Image.Image], ...]
    lines: tuple[str, ...]


def data_uri(image: Image.Image) -> str:
    """`image` as a PNG inside a URI, for pages that need no second file."""
    return "data:image/png;base64," + b64encode(png(image)).decode()


def shown_width(image: Image.Image) -> int:
    """Width in pixels at which `image` is shown: its own, or for a narrow one a whole multiple."""
    return image.width * -(-_NARROW // image.width)


def enlarged(image: Image.Image) -> Image.Image:
    """`image` at its shown width, each pixel repeated, nothing smoothed."""
    factor = shown_width(image) // image.width
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def sheet(rows: tuple[Row, ...]) -> Image.Image:
    """One picture of all rows: headings above, pictures side by side, the words below, black on white."""
    widths = [sum(shown_width(image) + _GAP for _, image in row.cells) - _GAP for row in rows]
    pieces = [_drawn(row, max(_SHEET, *widths)) for row in rows]
    canvas = Image.new("RGB", (pieces[0].width + 2 * _GAP, sum(piece.height + 2 * _GAP for piece in pieces)), "white")
    top = _GAP
    for piece in pieces:
        canvas.paste(piece, (_GAP, top))
        top += piece.height + 2 * _GAP
    return canvas


def _drawn(row: Row, width: int) -> Image.Image:
    font = default_font(_LETTERS)
    cells = [(heading, enlarged(image)) for heading, image in row.cells]
    words = [part for line in row.lines for part in wrapped(spelled(line), font, width, _LINES)]
    below = _LINE + max(image.height for _, image in cells) + _GAP if cells else 0
    piece = Image.new("RGB", (width, below + _LINE * len(words)), "white")
    draw = ImageDraw.Draw(piece)
    left = 0
    for heading, image in cells:
        draw.text((left, 0), "".join(wrapped(spelled(heading), font, image.width, 1)), fill="black", font=font)
        piece.paste(image, (left, _LINE))
        left += image.width + _GAP
    for index, part in enumerate(words):
        draw.text((0, below + _LINE * index), part, fill="black", font=font)
    return piece


def html(rows: tuple[Row, ...]) -> str:
    """The rows as HTML that needs no other file and runs no script; every word is escaped."""
    parts = []
    for row in rows:
        cells = "".join(
            f'<figure style="margin:0"><div>{escape(readable(heading))}</div>'
            f'<img src="{data_uri(image)}" alt="{escape(readable(heading))}" width="{shown_width(image)}" '
            f'style="max-width:100%;image-rendering:{"auto" if shown_width(image) == image.width else "pixelated"}">'
            "</figure>"
            for heading, image in row.cells
        )
        words = "".join(f"<div>{escape(readable(line))}</div>" for line in row.lines)
        parts.append(
            f'<div style="margin:0 0 12px"><div style="display:flex;flex-wrap:wrap;gap:8px">{cells}</div>'
            f'<div style="font-size:smaller">{words}</div></div>'
        )
    return "".join(parts)


class Shown(ABC):
    """A result that can be looked at: it says its rows, and is saved, shown and displayed by them."""

    @abstractmethod
    def rows(self) -> tuple[Row, ...]:
        """The pictures and words of this result."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """What JSON can carry of this result: no tensors."""

    def save(self, path: str | Path) -> None:
        """Write the captioned sheet as PNG, whole or not at all; `to_dict()` travels inside the file as text.

        Raises OptionError for a suffix other than .png, OutputError when the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise OptionError(
                f"pictures are saved as .png; {path.name!r} ends in {path.suffix or 'no suffix'}: rename it"
            )
        write_whole(path, png(sheet(self.rows()), json.dumps(self.to_dict())))

    def show(self) -> None:
        """Show in the notebook that runs this code, or in the system's picture viewer."""
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if getattr(shell, "kernel", None) is not None:
            import_module("IPython.display").display(self)
        else:
            sheet(self.rows()).show()

    def _repr_html_(self) -> str:
        return html(self.rows())
