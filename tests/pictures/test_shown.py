"""Saving, notebooks and sheets: picture and null side by side, nothing smoothed, every word as text."""

from __future__ import annotations

import json
import re
import sys
from base64 import b64decode
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pullback.errors import OptionError, OutputError
from pullback.pictures.shown import enlarged, sheet, shown_width


def test_sheet_has_picture_and_null_side_by_side_above_the_words(make, noise):
    picture = make(noise(3, 120, 130), noise(3, 120, 130) / 9)
    drawn = np.asarray(sheet(picture.rows()))
    own, null = (np.asarray(image) for image in (picture.rgb(), picture.null_rgb()))
    assert np.array_equal(drawn[25:145, 8:138], own)
    assert np.array_equal(drawn[25:145, 146:276], null)
    below = drawn[150:]
    assert (below < 128).any()
    assert (drawn[:, :8] == 255).all()


def test_small_pictures_are_enlarged_pixel_by_pixel(make, noise):
    image = make(noise(3, 32, 32)).rgb()
    large = enlarged(image)
    assert large.size == (128, 128)
    assert shown_width(image) == 128
    assert np.array_equal(np.asarray(large)[::4, ::4], np.asarray(image))
    assert set(map(tuple, np.asarray(large).reshape(-1, 3))) == set(map(tuple, np.asarray(image).reshape(-1, 3)))
    assert enlarged(large).size == (128, 128)


def test_sheets_stay_bounded_with_hostile_words(make, noise):
    picture = make(noise(3, 64, 64), caption="W" * 100_000, called="漢" * 1000, notes=("\x00\n\udc80",))
    assert max(sheet(picture.rows()).size) < 600


def test_save_writes_a_png_that_carries_the_record(make, noise, tmp_path):
    picture = make(noise(3, 8, 8), noise(3, 8, 8))
    picture.save(tmp_path / "a.PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.PNG"]
    with Image.open(tmp_path / "a.PNG") as image:
        assert np.array_equal(np.asarray(image), np.asarray(sheet(picture.rows())))
        assert json.loads(image.text["pullback"]) == picture.to_dict()


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.exe"])
def test_save_refuses_another_suffix(make, noise, tmp_path, name):
    with pytest.raises(OptionError, match=re.escape(name)):
        make(noise(3, 8, 8)).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_save_says_where_it_cannot_write(make, noise, tmp_path):
    with pytest.raises(OutputError, match="missing"):
        make(noise(3, 8, 8)).save(tmp_path / "missing" / "a.png")
    assert not list(tmp_path.iterdir())


def test_html_is_self_contained_and_escapes_every_word(make, noise):
    hostile = "<script>alert(1)</script>\"'&"
    picture = make(
        noise(3, 8, 8),
        noise(3, 8, 8),
        mode=hostile,
        called=hostile,
        caption=hostile,
        notes=(hostile,),
        figures={hostile: hostile},
    )
    html = picture._repr_html_()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 6
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    own = Image.open(BytesIO(b64decode(sources[0].split(",")[1])))
    assert np.array_equal(np.asarray(own), np.asarray(picture.rgb()))
    assert "http" not in html


def test_show_uses_the_notebook_where_there_is_one(make, noise, monkeypatch):
    shown = []
    picture = make(noise(3, 8, 8))
    for kernel in (object(), None):
        shell = SimpleNamespace(kernel=kernel)
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
        monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(image.size))
        picture.show()
    assert shown == [picture, sheet(picture.rows()).size]
