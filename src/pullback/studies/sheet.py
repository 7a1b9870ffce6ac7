"""The contact sheet of a stage: what every method draws of an image, of nothing, of a pasted patch and of another image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from pullback.pictures.lettering import default_font, spelled, wrapped

_CELL, _GAP, _MARGIN, _LABEL = 132, 6, 16, 128  # pixels
_TITLE, _TEXT, _LINE = 18, 13, 16
_HEAD = 2 * _LINE + 6
_BETWEEN = 22
_OUTLINE = (230, 30, 30)

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in parts of the picture's width and height."""


@dataclass(frozen=True)
class Strip:
    """One row: what was asked for, the picture that it was asked of, and each method's answer by its key."""

    label: str
    source: Image.Image | None
    answers: Mapping[str, Image.Image | None]
    box: Box | None = None


@dataclass(frozen=True)
class Block:
    """The strips of one image, under its name."""

    name: str
    strips: Sequence[Strip]


def sheet(title: str, words: str, methods: Mapping[str, str], blocks: Sequence[Block]) -> Image.Image:
    """The sheet, black on white. words: below the title. methods: headings by key, in the order of the columns."""
    width = 2 * _MARGIN + _LABEL + (len(methods) + 1) * (_CELL + _GAP) - _GAP
    heights = [_LINE + 4 + len(block.strips) * (_CELL + _GAP) + _BETWEEN for block in blocks]
    top = _MARGIN + 2 * _LINE + _LINE * len(_lines(words, width - 2 * _MARGIN, 6)) + _GAP
    canvas = Image.new("RGB", (width, top + _HEAD + sum(heights) - _BETWEEN + _MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN), spelled(title), fill="black", font=default_font(_TITLE))
    _write(draw, _MARGIN, _MARGIN + 2 * _LINE - 6, words, width - 2 * _MARGIN, 6)
    for column, heading in enumerate(("features of", *methods.values())):
        _write(draw, _left(column), top, heading, _CELL, 2)
    top += _HEAD
    for block, height in zip(blocks, heights, strict=True):
        _write(draw, _MARGIN, top, block.name, width - 2 * _MARGIN, 1)
        below = top + _LINE + 4
        for strip in block.strips:
            _write(draw, _MARGIN, below + 4, strip.label, _LABEL - _GAP, 5)
            cells = [strip.source, *(strip.answers.get(key) for key in methods)]
            for column, picture in enumerate(cells):
                if picture is not None:
                    canvas.paste(_cell(picture, strip.box), (_left(column), below))
                else:
                    _write(draw, _left(column) + _CELL // 2 - 3, below + _CELL // 2 - 8, "-", _CELL, 1)
            below += _CELL + _GAP
        top += height
    return canvas


def _left(column: int) -> int:
    return _MARGIN + _LABEL + column * (_CELL + _GAP)


def _write(draw: ImageDraw.ImageDraw, left: int, top: int, text: str, width: int, lines: int) -> None:
    for index, line in enumerate(_lines(text, width, lines)):
        draw.text((left, top + index * _LINE), line, fill="black", font=default_font(_TEXT))


def _lines(text: str, width: int, lines: int) -> list[str]:
    return wrapped(spelled(text), default_font(_TEXT), width, lines)


def _cell(picture: Image.Image, box: Box | None) -> Image.Image:
    """In a square cell: reduced by averaging, or enlarged without smoothing; the box outlined."""
    factor = _CELL / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    cell = Image.new("RGB", (_CELL, _CELL), "white")
    cell.paste(picture.resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST))
    if box is not None:
        corners = [round(share * size[axis % 2]) for axis, share in enumerate(box)]
        ImageDraw.Draw(cell).rectangle(corners, outline=_OUTLINE)
    return cell
