"""One PNG per image for slides and papers: the picture, the stages three ways, the class inversion, the saliency.

Each picture beside its null, with its mode, value range and clamped share below. At most 2400 x 4000 pixels.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from pullback import __version__
from pullback.pictures import Picture
from pullback.pictures.lettering import Font, wrapped
from pullback.pictures.plain import facts, number, readable, share, span
from pullback.report.explanation import Explanation
from pullback.report.overlay import saliency_view
from pullback.report.words import METHODS

_LARGEST = (2400, 4000)
_CELL, _GAP, _BETWEEN, _MARGIN, _LABEL = 176, 6, 26, 24, 150  # pixels
_TITLE, _HEADING, _TEXT, _LINE = 20, 14, 12, 16
_PAIR = 2 * _CELL + _GAP
_WIDTH = 2 * _MARGIN + _LABEL + 3 * (_PAIR + _BETWEEN)
_COLUMNS = [_MARGIN + _LABEL + _BETWEEN + i * (_PAIR + _BETWEEN) for i in range(3)]

Pair = tuple[str, Picture | str]  # a heading, and the picture or the reason why there is none


def panel(explanation: Explanation) -> Image.Image:
    """The panel of one image, RGB on white."""
    e = explanation
    bands = [_header(e)]
    for stage in e.spectrum:
        missing = {m.key: f"not drawn: {stage.skipped.get(m.key, 'not asked for')}" for m in METHODS}
        pairs = [(m.title, getattr(stage, m.key) or missing[m.key]) for m in METHODS]
        bands.append(_band(f"Stage {stage.number}", stage.name, pairs))
    if e.class_picture is not None:
        c = e.class_picture
        parts: list[Pair] = [("full", c.full), ("positive", c.positive), ("negative", c.negative)]
        bands.append(_band("Class", f"weights {c.weights}, {facts(c.figures)}; {c.name}", parts))
    if e.saliency is not None:
        bands.append(_saliency(e))
    canvas = Image.new("RGB", (_WIDTH, sum(band.height for band in bands) + 2 * _MARGIN), "white")
    top = _MARGIN
    for band in bands:
        canvas.paste(band, (0, top))
        top += band.height
    canvas.thumbnail(_LARGEST)
    return canvas


@lru_cache
def _font(size: int, bold: bool = False) -> Font:
    """DejaVu, which comes with matplotlib: many scripts, and the same letters on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _fitted(image: Image.Image) -> Image.Image:
    """`image` in a square cell: reduced by averaging, or enlarged by a whole factor without smoothing."""
    if max(image.size) > _CELL:
        factor = _CELL / max(image.size)
        return image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.BOX)
    factor = _CELL // max(image.size)
    return image.resize([side * factor for side in image.size], Image.Resampling.NEAREST)


def _lines(text: str, width: int, most: int, *, size: int = _TEXT, bold: bool = False) -> list[str]:
    """`text` in at most `most` lines of `width` pixels."""
    return wrapped(readable(text), _font(size, bold), width, most)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], lines: list[str], size: int = _TEXT, bold: bool = False
) -> int:
    """Write `lines` one below the other, the first at `at`; returns the height that they take."""
    for index, line in enumerate(lines):
        draw.text((at[0], at[1] + index * _LINE), line, fill="black", font=_font(size, bold))
    return len(lines) * _LINE


def _packed(parts: list[str], width: int) -> list[str]:
    """`parts`, separated by commas, as many on each line as fit; broken between two of them, so that none is torn."""
    lines: list[str] = []
    for part in parts:
        if lines and _font(_TEXT).getlength(f"{lines[-1]}, {part},") <= width:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return [f"{line}," for line in lines[:-1]] + lines[-1:]


def _below(picture: Picture) -> list[str]:
    """What is said below a pair, in lines of its width."""
    null = ""
    if picture.null_range is not None and picture.null_clamped_share is not None:
        null = f"null {span(picture.null_range)}, clamped {share(picture.null_clamped_share)}"
    scale = "" if picture.natural else f"grey 0, black and white ±{', '.join(number(s) for s in picture.scales)}"
    own = f"range {span(picture.value_range)}, clamped {share(picture.clamped_share)}"
    measured = _packed([readable(facts({key: value})) for key, value in picture.figures.items()], _PAIR)
    said = (f"{picture.called}: {picture.mode}", own, scale, null, *measured)
    return [line for text in said for line in _lines(text, _PAIR, 3)]


def _band(title: str, about: str, pairs: list[Pair]) -> Image.Image:
    """One row: its label, then three pairs of picture and null; as high as the highest of them."""
    columns = [_column(heading, picture) for heading, picture in pairs]
    label, top = _lines(about, _LABEL, 12), 2 * _LINE + 6
    height = max(top + len(label) * _LINE, *(column.height for column in columns))
    band = Image.new("RGB", (_WIDTH, height + _GAP), "white")
    draw = ImageDraw.Draw(band)
    _write(draw, (_MARGIN, _LINE), [title], _HEADING, bold=True)
    _write(draw, (_MARGIN, top), label)
    for left, column in zip(_COLUMNS, columns, strict=True):
        band.paste(column, (left, 0))
    return band


def _column(heading: str, picture: Picture | str) -> Image.Image:
    """A heading, a pair of picture and null or the reason why there is none, and what is said below."""
    top = 2 * _LINE + 4
    images: list[Image.Image] = []
    if isinstance(picture, str):
        below, words = top, _lines(picture, _PAIR, 6)
    else:
        images = [_fitted(image) for image in (picture.rgb(), picture.null_rgb()) if image is not None]
        below, words = top + images[0].height + 4, _below(picture)
    column = Image.new("RGB", (_PAIR, below + len(words) * _LINE), "white")
    draw = ImageDraw.Draw(column)
    _write(draw, (0, _LINE), _lines(heading, _CELL, 1))
    _write(draw, (0, below), words)
    if images:
        _write(draw, (_CELL + _GAP, _LINE), ["its null" if len(images) > 1 else "no null"])
    for index, image in enumerate(images):
        column.paste(image, (index * (_CELL + _GAP), top))
    return column


def _header(e: Explanation) -> Image.Image:
    image = _fitted(e.picture)
    band = Image.new("RGB", (_WIDTH, max(image.height, 9 * _LINE) + 2 * _LINE), "white")
    draw = ImageDraw.Draw(band)
    band.paste(image, (_MARGIN, 0))
    left = _MARGIN + _CELL + _BETWEEN
    width = _WIDTH - left - _MARGIN
    _write(draw, (left, 0), _lines(e.file_name, width, 1, size=_TITLE, bold=True), _TITLE, bold=True)
    top = 2 * _LINE
    top += _write(draw, (left, top), _lines(f"{e.encoder}; {e.origin}", width, 2))
    for guess in e.guesses:
        top += _write(draw, (left, top), _lines(f"{share(guess.probability)}  {guess.name}", width, 1))
    if e.target is not None:
        target = _lines(f"explained: {e.target[1]} (class {e.target[0]})", width, 1, bold=True)
        top += _write(draw, (left, top), target, bold=True)
    words = f"Each picture beside its null: the same method without the image's features. pullback {__version__}"
    _write(draw, (left, top), _lines(words, width, 1))
    return band


def _saliency(e: Explanation) -> Image.Image:
    assert e.saliency is not None
    view = saliency_view(e.picture, e.saliency)
    colours, overlay = _fitted(view.colours), _fitted(view.overlay)
    said = (
        f"0 to {number(view.top)}; {share(view.above)} of pixels lie beyond",
        f"range {span((view.low, view.high))}",
        "left: the map; right: over the grey image, for orientation",
        "a summary of the class picture, no proof that these pixels decided",
    )
    lines = [line for text in said for line in _lines(text, _PAIR, 2)]
    top, legend = 2 * _LINE + 4, 16
    band = Image.new("RGB", (_WIDTH, top + max(colours.height, legend + len(lines) * _LINE)), "white")
    draw = ImageDraw.Draw(band)
    _write(draw, (_MARGIN, _LINE), ["Saliency"], _HEADING, bold=True)
    band.paste(colours, (_COLUMNS[0], top))
    band.paste(overlay, (_COLUMNS[0] + _CELL + _GAP, top))
    band.paste(view.legend.resize((_CELL, 12), Image.Resampling.NEAREST), (_COLUMNS[1], top))
    _write(draw, (_COLUMNS[1], top + legend), lines)
    return band
