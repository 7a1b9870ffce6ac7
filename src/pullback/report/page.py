"""The HTML pages: one self-contained report for each image (no script, no second file), and an index of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from PIL import Image

from pullback import __version__
from pullback.pictures import Picture
from pullback.pictures.plain import figure, number, readable, share, span
from pullback.pictures.shown import data_uri, shown_width
from pullback.report.explanation import Explanation, Guess
from pullback.report.overlay import outlined, saliency_view
from pullback.report.words import METHODS

_THUMBNAIL = 112
_MADE = b"<footer>Made by pullback "


@dataclass(frozen=True, eq=False)
class IndexEntry:
    """One image in the index: its files relative to the index page, or the error that stopped it, in words."""

    name: str
    thumbnail: Image.Image | None = None
    guess: Guess | None = None
    page: str | None = None
    panel: str | None = None
    record: str | None = None
    error: str | None = None


def page(explanation: Explanation) -> str:
    """The report of one image as HTML; everything that came from outside is shown as text."""
    e = explanation
    unknown = 0.0 if e.mask is None else e.mask.isnan().double().mean().item()
    return _render(
        "report.html.j2",
        e=e,
        methods=METHODS,
        rows={row.number: row for row in e.stages},
        saliency=None if e.saliency is None else saliency_view(e.picture, e.saliency),
        mask_image=None if e.mask is None else outlined(e.picture, e.mask == 1),
        unknown=unknown,
        certificates=[(c, outlined(e.picture, c.field)) for c in e.certificates],
        version=__version__,
    )


def is_page(path: Path) -> bool:
    """Whether the file is there and is a page that this module made, of whatever version: each ends by saying so."""
    try:
        return _MADE in path.read_bytes()
    except OSError:
        return False


def index(entries: Sequence[IndexEntry], encoder: str, settings: Mapping[str, Any]) -> str:
    """The page that leads to the reports of several images; images that failed are listed with their reasons.

    settings: what else tells this run from others, by name; a later run may put other reports behind the same links.
    """
    return _render(
        "index.html.j2",
        entries=entries,
        explained=[entry for entry in entries if entry.error is None],
        failed=[entry for entry in entries if entry.error is not None],
        encoder=encoder,
        settings=settings,
        thumbnail=_THUMBNAIL,
        version=__version__,
    )


def thumbnail(image: Image.Image) -> Image.Image:
    """`image` reduced for the index; an image that is smaller stays as it is."""
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return small


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> jinja2.Environment:
    """Made once, so that each template is compiled once."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pullback.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {
        "uri": lambda image: Markup(data_uri(image)),
        "shown_width": shown_width,
        "number": number,
        "figure": figure,
        "share": share,
        "span": span,
        "percent": _percent,
        "mapping": _mapping,
        "spaced": lambda key: str(key).replace("_", " "),
        "href": _href,
    }
    return environment


def _shown(value: Any) -> Any:
    """What the page prints of a value: text without characters that break a page, everything else as it is."""
    return readable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _percent(value: float) -> float:
    """Length of a bar, in percent; an unknown share has none."""
    return 0.0 if math.isnan(value) else round(100 * min(max(value, 0.0), 1.0), 2)


def _mapping(picture: Picture) -> str:
    if picture.natural:
        return "colours, de-normalised and clamped"
    return "signed map: grey 0, " + ", ".join(f"white +{number(s)}, black -{number(s)}" for s in picture.scales)


def _href(path: str) -> str:
    """A relative link to a file of any name."""
    return quote(path.encode("utf-8", "surrogateescape"))
