"""Captions stay inside their picture, whatever the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullback.pictures.lettering import default_font, spelled, wrapped


@given(st.text(), st.integers(40, 400), st.integers(1, 5))
def test_lines_fit_and_are_few(text, width, lines):
    font = default_font(13)
    result = wrapped(spelled(text), font, width, lines)
    assert len(result) <= lines
    assert all(font.getlength(line) <= width for line in result)
    if not result or not result[-1].endswith("..."):  # nothing was cut: every word is there
        assert "".join("".join(result).split()) == "".join(spelled(text).split())


def test_text_breaks_at_spaces_and_shows_what_was_cut():
    font = default_font(13)
    assert wrapped("one two", font, 400, 3) == ["one two"]
    assert wrapped("one two", font, int(font.getlength("one t")), 3) == ["one", "two"]
    cut = wrapped("many words " * 50, font, 100, 2)
    assert len(cut) == 2
    assert cut[1].endswith("...")
    assert wrapped("", font, 100, 2) == []


def test_a_huge_word_is_no_burden():
    assert len(wrapped("W" * 1_000_000, default_font(13), 200, 4)) == 4


@pytest.mark.parametrize(
    ("text", "letters"), [("café ±2", "cafe +/-2"), ("漢", "\\u6f22"), ("ω·α", "omega,alpha"), ("a…", "a...")]
)
def test_letters_that_the_font_lacks_are_spelled(text, letters):
    assert spelled(text) == letters
