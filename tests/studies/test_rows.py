"""Rows on disk: whole, found again for the same settings alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pullback.studies.rows import Row, keep, kept, picture_of

ROW = Row("blind", 2, "a.jpg", {"ssim": 0.25, "correlation": math.nan})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    keep(tmp_path / "row.json", ROW, "run", {"own": Image.new("RGB", (4, 3), "red")})
    return tmp_path / "row.json"


def test_a_row_comes_back_with_its_pictures(path: Path) -> None:
    found = kept(path, "run")
    assert found is not None
    assert (found.method, found.stage, found.image, found.error) == ("blind", 2, "a.jpg", None)
    assert found.get("ssim") == 0.25 and math.isnan(found.values["correlation"]) and found.get("lpips") is None
    picture = picture_of(path, "own")
    assert picture is not None and picture.size == (4, 3) and picture.getpixel((0, 0)) == (255, 0, 0)
    assert picture_of(path, "null") is None
    assert sorted(p.name for p in path.parent.iterdir()) == ["row.json", "row.own.png"]


def test_other_settings_other_schemas_and_torn_files_are_no_row(path: Path) -> None:
    assert kept(path, "another run") is None
    text = path.read_text(encoding="utf-8")
    path.write_text(text[:-20], encoding="utf-8")
    assert kept(path, "run") is None
    path.write_text(json.dumps({**json.loads(text), "schema": 99}), encoding="utf-8")
    assert kept(path, "run") is None
    path.write_text("[]", encoding="utf-8")
    assert kept(path, "run") is None
    assert kept(path.with_name("none.json"), "run") is None


def test_a_failed_row_says_why(tmp_path: Path) -> None:
    keep(tmp_path / "row.json", Row("wiener", 1, "b.jpg", {}, "no luck"), "run", {})
    found = kept(tmp_path / "row.json", "run")
    assert found is not None and found.error == "no luck" and found.values == {}


def test_a_row_of_other_settings_takes_the_older_pictures_away(path: Path) -> None:
    keep(path.with_name("row-mean.json"), ROW, "run", {"own": Image.new("RGB", (4, 3))})
    keep(path, ROW, "another run", {"null": Image.new("RGB", (4, 3))})
    assert picture_of(path, "own") is None and picture_of(path, "null") is not None
    keep(path, Row("blind", 2, "a.jpg", {}, "no luck"), "third run", {})
    assert sorted(p.name for p in path.parent.iterdir()) == ["row-mean.json", "row-mean.own.png", "row.json"]


@pytest.mark.parametrize(
    "change", [Path.unlink, lambda p: p.write_bytes(p.read_bytes()[:-9]), lambda p: p.write_bytes(b"")]
)
def test_a_row_whose_picture_is_lost_or_damaged_is_drawn_anew(change: Callable[[Path], object], path: Path) -> None:
    assert kept(path, "run") is not None
    change(path.with_name("row.own.png"))
    assert kept(path, "run") is None
