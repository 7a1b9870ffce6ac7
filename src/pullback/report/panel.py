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


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, font: Font, width: int, lines: int) -> int:
    """Write `text` at `at` in at most `lines` lines; returns the height that it took."""
    parts = wrapped(readable(text), font, width, lines)
    for index, part in enumerate(parts):
        draw.text((at[0], at[1] + index * _LINE), part, fill="black", font=font)
    return len(parts) * _LINE


def _below(picture: Picture) -> list[str]:
    """What is said below a pair, one line each."""
    null = ""
    if picture.null_range is not None and picture.null_clamped_share is not None:
        null = f"null {span(picture.null_range)}, clamped {share(picture.null_clamped_share)}"
    scale = "" if picture.natural else f"grey 0, black and white ±{', '.join(number(s) for s in picture.scales)}"
    own = f"range {span(picture.value_range)}, clamped {share(picture.clamped_share)}"
    return [t for t in (f"{picture.called}: {picture.mode}", own, scale, null, facts(picture.figures)) if t]


def _band(title: str, about: str, pairs: list[Pair]) -> Image.Image:
    """One row: its label, then three pairs of picture and null."""
    font, bold = _font(_TEXT), _font(_HEADING, bold=True)
    band = Image.new("RGB", (_WIDTH, 3 * _LINE + _CELL + 7 * _LINE), "white")
    draw = ImageDraw.Draw(band)
    draw.text((_MARGIN, _LINE), title, fill="black", font=bold)
    _write(draw, (_MARGIN, 2 * _LINE + 6), about, font, _LABEL, 8)
    bottom = 0
    for left, (heading, picture) in zip(_COLUMNS, pairs, strict=True):
        _write(draw, (left, _LINE), heading, font, _CELL, 1)
        below = 2 * _LINE + 4
        if isinstance(picture, str):
            bottom = max(bottom, below + _write(draw, (left, below), picture, font, _PAIR, 6))
            continue
        own = _fitted(picture.rgb())
        band.paste(own, (left, below))
        null = picture.null_rgb()
        draw.text((left + _CELL + _GAP, _LINE), "its null" if null is not None else "no null", fill="black", font=font)
        if null is not None:
            band.paste(_fitted(null), (left + _CELL + _GAP, below))
        below += own.height + 4
        for line in _below(picture):
            below += _write(draw, (left, below), line, font, _PAIR, 2)
        bottom = max(bottom, below)
    return band.crop((0, 0, _WIDTH, max(bottom, 4 * _LINE) + _GAP))


def _header(e: Explanation) -> Image.Image:
    image = _fitted(e.picture)
    band = Image.new("RGB", (_WIDTH, max(image.height, 9 * _LINE) + 2 * _LINE), "white")
    draw = ImageDraw.Draw(band)
    band.paste(image, (_MARGIN, 0))
    left = _MARGIN + _CELL + _BETWEEN
    width = _WIDTH - left - _MARGIN
    _write(draw, (left, 0), e.file_name, _font(_TITLE, bold=True), width, 1)
    top = 2 * _LINE
    top += _write(draw, (left, top), f"{e.encoder}; {e.origin}", _font(_TEXT), width, 2)
    for guess in e.guesses:
        top += _write(draw, (left, top), f"{share(guess.probability)}  {guess.name}", _font(_TEXT), width, 1)
    if e.target is not None:
        target = f"explained: {e.target[1]} (class {e.target[0]})"
        top += _write(draw, (left, top), target, _font(_TEXT, bold=True), width, 1)
    words = f"Each picture beside its null: the same method without the image's features. pullback {__version__}"
    _write(draw, (left, top), words, _font(_TEXT), width, 1)
    return band


def _saliency(e: Explanation) -> Image.Image:
    assert e.saliency is not None
    view = saliency_view(e.picture, e.saliency)
    colours, overlay = _fitted(view.colours), _fitted(view.overlay)
    band = Image.new("RGB", (_WIDTH, 2 * _LINE + 4 + colours.height), "white")
    draw = ImageDraw.Draw(band)
    draw.text((_MARGIN, _LINE), "Saliency", fill="black", font=_font(_HEADING, bold=True))
    top, left = 2 * _LINE + 4, _COLUMNS[0]
    band.paste(colours, (left, top))
    band.paste(overlay, (left + _CELL + _GAP, top))
    left = _COLUMNS[1]
    band.paste(view.legend.resize((_CELL, 12), Image.Resampling.NEAREST), (left, top))
    for index, words in enumerate((
        f"0 to {number(view.top)}; {share(view.above)} of pixels lie beyond",
        f"range {span((view.low, view.high))}",
        "left: the map; right: over the grey image, for orientation",
        "a summary of the class picture, no proof that these pixels decided",
    )):  # fmt: skip
        _write(draw, (left, top + 16 + index * _LINE), words, _font(_TEXT), _PAIR, 1)
    return band
