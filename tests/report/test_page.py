"""The HTML pages: self-contained, complete for every picture, and nothing from outside becomes markup."""

from __future__ import annotations

import dataclasses
import re
from base64 import b64decode
from html import escape as html_escape
from html.parser import HTMLParser
from io import BytesIO
from urllib.parse import unquote

import jinja2
import numpy as np
import pytest
from PIL import Image

from pullback.pictures.plain import number, share, span
from pullback.report import Foreground, Guess, IndexEntry, StageSpectrum, index, is_page, page, thumbnail
from pullback.report.words import METHODS

HOSTILE = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'\x00\udc80"
RUN = {"weights": "0123abcd", "quality": "draft"}
_VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.words += "" if tag in {"b", "bdi"} else " "

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open, "tags left open"
    return reader


def text(html: str) -> str:
    return " ".join(read(html).words.split())


def test_page_needs_no_other_file_and_runs_no_script(explain):
    reader = read(page(explain()))
    for tag, attributes in reader.tags:
        assert tag not in {"script", "link", "iframe", "object", "base", "form"}
        assert not [name for name in attributes if name.startswith("on") or name in {"href", "srcset"}]
        if "src" in attributes:
            Image.open(BytesIO(b64decode(attributes["src"].removeprefix("data:image/png;base64,")))).load()
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in reader.tags)


def test_the_number_of_channels_is_no_share_of_the_image(explain):
    made = explain()
    areas = {"channels": 8.0, "smallest": 0.25, "median": 0.5, "largest": 1.0}
    certificates = (dataclasses.replace(made.certificates[0], areas=areas),)
    said = text(page(dataclasses.replace(made, certificates=certificates)))
    assert "areas of the strongest channels channels 8, smallest 25.0 %, median 50.0 %, largest 100 %" in said


def test_what_comes_from_outside_is_shown_as_text(explain):
    plain, hostile = explain(), explain(name=HOSTILE)
    picture = dataclasses.replace(
        hostile.spectrum[0].blind,
        mode=HOSTILE,
        called=HOSTILE,
        caption=HOSTILE,
        notes=(HOSTILE,),
        figures={HOSTILE: HOSTILE},
    )
    stage = dataclasses.replace(hostile.spectrum[0], name=HOSTILE, blind=picture)
    stages = tuple(dataclasses.replace(row, name=HOSTILE, field=HOSTILE, gate=HOSTILE) for row in hostile.stages)
    certificates = tuple(dataclasses.replace(c, words=HOSTILE, seed=HOSTILE, areas={}) for c in hostile.certificates)
    hostile = dataclasses.replace(
        hostile, file_name=HOSTILE, origin=HOSTILE, encoder=HOSTILE, notes=(HOSTILE,), assumptions=(HOSTILE,),
        stages=stages, spectrum=(stage, *hostile.spectrum[1:]), provenance={HOSTILE: {HOSTILE: HOSTILE}},
        seconds={HOSTILE: 1.0}, digest=HOSTILE, certificates=certificates,
    )  # fmt: skip
    html = page(hostile)
    html.encode()
    reader = read(html)
    assert "\x00" not in html
    assert reader.words.count("<script>alert(1)</script>") > 20
    count = [sum(tag == "img" for tag, _ in read(h).tags) for h in (page(plain), html)]
    assert count[0] == count[1]
    assert not [tag for tag, _ in reader.tags if tag == "script"]
    for tag, attributes in reader.tags:
        assert set(attributes) <= {
            "lang",
            "charset",
            "name",
            "content",
            "http-equiv",
            "class",
            "src",
            "alt",
            "width",
            "style",
        }, tag


def test_every_picture_has_its_null_mode_range_and_clamped_share(explain):
    e = explain()
    words = text(page(e))
    methods = [p for stage in e.spectrum for p in (stage.blind, stage.wiener, stage.cascade)]
    pictures = [
        *methods,
        e.class_picture.full,
        e.class_picture.positive,
        e.class_picture.negative,
        *(c.picture for c in e.channels),
    ]
    for p in pictures:
        ranges = f"range {span(p.value_range)}; null {span(p.null_range)} shown as "
        clamped = f"clamped {share(p.clamped_share)}; null {share(p.null_clamped_share)}"
        start = words.index(f"{p.called} {p.caption} mode {p.mode} {ranges}")
        assert clamped in words[start : start + 300]
        if not p.natural:
            assert f"white +{number(p.scales[0])}, black -{number(p.scales[0])}" in words
    assert words.count("own its null") == len(pictures)
    assert "misfit 0.0831" in words
    assert "residual 0.500" in words


def test_templates_are_compiled_once(explain, monkeypatch):
    first = page(explain()), index([], "net", RUN)
    monkeypatch.setattr(jinja2.Environment, "compile", None)
    assert (page(explain()), index([], "net", RUN)) == first


def test_picture_and_null_are_the_pixels_of_the_result(explain):
    e = explain()
    sources = {a["alt"]: a["src"] for tag, a in read(page(e)).tags if tag == "img"}
    wiener = e.spectrum[1].wiener
    for alt, image in (
        ("Wiener inverse of stage 2", wiener.rgb()),
        ("Wiener inverse of stage 2, null picture", wiener.null_rgb()),
    ):
        shown = Image.open(BytesIO(b64decode(sources[alt].split(",")[1])))
        assert np.array_equal(np.asarray(shown), np.asarray(image))


def test_tiny_pictures_are_shown_large_and_unsmoothed(explain):
    for size, width, kind in ((32, "128", "pixels"), (120, "120", None)):
        images = [
            a for tag, a in read(page(explain(size, size, stages=1))).tags if tag == "img" and "stage" in a["alt"]
        ]
        assert images
        assert all(a["width"] == width and a.get("class") == kind for a in images)


@pytest.mark.parametrize("stages", [1, 7])
def test_stages_are_rows(explain, stages):
    reader = read(page(explain(32, 32, stages=stages)))
    assert sum(tag == "img" and "Blind inverse" in (a["alt"] or "") for tag, a in reader.tags) == 2 * stages


def test_what_was_not_drawn_says_why(explain):
    spectrum = (StageSpectrum(1, "layer1", skipped={"cascade": "one position only"}),)
    words = text(page(explain(spectrum=spectrum)))
    assert "Not drawn: one position only" in words
    assert words.count("Not drawn: not asked for") == 2


def test_parts_that_are_missing_leave_no_empty_section(explain):
    words = text(page(explain(
        guesses=(), target=None, class_picture=None, channels=(), saliency=None, certificates=(), foreground=None,
        mask=None, notes=(), assumptions=(), dead={},
    )))  # fmt: skip
    assert "names no classes" in words
    assert "No class is explained" in words
    for heading in ("Class inversion:", "Channels with", "Share of each picture", "Certified fields"):
        assert heading not in words


def test_a_class_that_is_not_the_first_answer_is_named_so(explain):
    assert "tench (class 0, the most probable)" in text(page(explain()))
    assert "goldfish (class 1, chosen; not the network's first answer)" in text(page(explain(target=(1, "goldfish"))))


def test_a_class_without_a_name_is_numbered_once(explain):
    first = explain(guesses=(Guess(1, "class 1", 0.9),), target=(1, "class 1"))
    assert "Explained here: class 1 (the most probable)." in text(page(first))
    other = dataclasses.replace(first, target=(0, "class 0"))
    assert "Explained here: class 0 (chosen; not the network's first answer)." in text(page(other))


def test_a_flat_picture_has_no_correlation_and_says_why(explain):
    e = explain(stages=1)
    figures = {"null: correlation": float("nan"), "steps": 3}
    stage = dataclasses.replace(e.spectrum[0], cascade=dataclasses.replace(e.spectrum[0].cascade, figures=figures))
    words = text(page(dataclasses.replace(e, spectrum=(stage,))))
    assert "null: correlation none (flat) steps 3" in words
    assert "unknown" not in words.replace("pixels unknown", "")


def test_the_words_of_a_method_hold_for_every_start():
    """Where a search began stands in the caption of its picture; the words above all pictures name no one start."""
    blind = next(m for m in METHODS if m.key == "blind")
    assert "taught" not in blind.lead and "decoder" not in blind.lead and "start" in blind.lead


def test_foreground_energy_stands_beside_the_area_share(explain):
    words = text(page(explain()))
    assert "full 41.2 % positive 39.0 % negative 40.5 % saliency, not squared 33.0 %" in words
    assert "Area share: 25.0 %" in words
    assert "2.1 % of pixels unknown, left out" in words
    nan = float("nan")
    assert "full unknown" in text(page(explain(foreground=Foreground(nan, nan, nan, nan, nan))))


def test_how_to_read_says_what_the_pictures_do_not_show(explain):
    words = text(page(explain()))
    for part in ("beside its null", "features alone", "own gates", "beta", "not faithful evidence", "vacuous"):
        assert part in words


def test_certificates_are_told_in_words(explain):
    words = text(page(explain()))
    assert "Inside a quarter." in words
    assert "field 25.0 % of the image" in words
    assert "field 100 % of the image (vacuous)" in words


def test_index_lists_pages_and_failures(explain):
    name = "a b#?%:<i>ä\udc80.jpg"
    picture = explain().picture
    entries = [
        IndexEntry(
            name, thumbnail(picture), Guess(0, HOSTILE, 0.9), page=name + ".html", panel="p.png", record="r.json"
        ),
        IndexEntry("javascript:alert(1)", page="javascript:alert(1)"),
        IndexEntry("broken.jpg", error="not a picture: <b>empty</b>"),
    ]
    html = index(entries, "net", RUN)
    html.encode()
    reader = read(html)
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    assert [unquote(link, errors="surrogateescape") for link in links[:4]] == [name + ".html"] * 2 + ["p.png", "r.json"]
    assert all(re.fullmatch(r"[\w.%/~-]+", link, re.ASCII) for link in links)
    assert not [tag for tag, _ in reader.tags if tag in {"script", "i"}]
    assert "not a picture: <b>empty</b>" in reader.words
    assert "1 could not be explained" in reader.words


def test_index_says_of_what_run_it_is(explain):
    words = text(index([], HOSTILE, {"quality": "high", "seed": 7, HOSTILE: HOSTILE}))
    assert "quality high, seed 7, " in words
    assert "a later one may have put other reports behind these links" in words


@pytest.mark.parametrize("made", ["page", "index", "other", "none"])
def test_pages_are_known_again_and_nothing_else_is(made, explain, tmp_path):
    """A page that only tells of the mark is none: what comes from outside is no markup."""
    mark = "<footer>Made by pullback 0.1.0.</footer>"
    made_here = {"page": page(explain(name=mark)), "index": index([IndexEntry(mark, error=mark)], mark, RUN)}
    if made != "none":
        (tmp_path / "x.html").write_text(made_here.get(made, f"<p>{html_escape(mark)}</p>"))
    assert is_page(tmp_path / "x.html") == (made in made_here)
    assert not is_page(tmp_path)


def test_index_of_none_and_of_one(explain):
    assert "0 images" in text(index([], "net", RUN))
    assert "1 image," in text(index([IndexEntry("a", page="a.html")], "net", RUN))


def test_thumbnails_are_small_and_never_enlarged():
    assert max(thumbnail(Image.new("RGB", (900, 300))).size) == 112
    assert thumbnail(Image.new("L", (20, 30))).size == (20, 30)
