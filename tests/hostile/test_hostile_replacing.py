"""What a report of `pullback explain` may replace: earlier reports, and nothing that is read or somebody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from oracles.command import Run, outputs, picture, record, saved
from PIL import Image


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_no_report_replaces_the_picture_or_the_mask_that_it_is_of(
    linked: bool, overwrite: tuple[str, ...], run: Run
) -> None:
    """`--out .` beside them, or a folder in which a link has the name of a report's file."""
    Path("photo.png").write_bytes(Path(saved("made.png", picture())).read_bytes())
    Path("shot.jpg").write_bytes(Path(saved("made.jpg", picture(seed=1))).read_bytes())
    Image.new("L", (40, 36), 255).save("shot.png")
    out = Path("reports") if linked else Path()
    if linked:
        out.mkdir()
        for name in ("photo.png", "shot.png"):
            os.link(name, out / name)
    before = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    for asked in (["photo.png"], ["shot.jpg", "--mask", "shot.png"]):
        ran = run(*asked, "--out", out, *overwrite)
        assert ran.status == 2 and "give another folder to --out" in ran.error and asked[-1] in ran.error
    assert {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", ["photo.html", "photo.json", "photo.png", "index.html"])
def test_no_report_replaces_a_file_of_somebody_elses(name: str, run: Run) -> None:
    saved("in/photo.jpg")
    saved("in/second.jpg", picture(seed=1))
    Path("site").mkdir()
    foreign = Path("site", name)
    foreign.write_bytes(b'{"schema": 1, "run": "marathon", "footer": "Made by pullback"}')
    ran = run("in", "--out", "site")
    assert ran.status == 2 and f"site/{name} is no report of pullback" in ran.error and "--overwrite" in ran.error
    assert outputs(Path("site")) == [name] and b"marathon" in foreign.read_bytes()
    assert run("in", "--out", "site", "--overwrite").status == 0
    assert len(outputs(Path("site"))) == 7 and b"marathon" not in foreign.read_bytes()


@pytest.mark.parametrize("suffix", ["html", "json"])
def test_nor_one_that_lies_beside_our_own_half_of_a_report(suffix: str, run: Run) -> None:
    saved("photo.jpg")
    assert run("photo.jpg", "--out", "site").status == 0
    foreign = Path(f"site/photo.{suffix}")
    foreign.write_text("somebody else's")
    ran = run("photo.jpg", "--target", "1", "--out", "site")
    assert ran.status == 2 and f"site/photo.{suffix} is no report of pullback" in ran.error
    assert foreign.read_text() == "somebody else's"


@pytest.mark.parametrize("lost", [["html"], ["png"], ["json"], ["json", "png"]])
def test_reports_of_other_settings_are_replaced_and_halves_of_them_too(lost: list[str], run: Run) -> None:
    saved("photo.jpg")
    assert run("photo.jpg", "--target", "0").status == 0
    for suffix in lost:
        Path(f"out/photo.{suffix}").unlink()
    said = "photo: the report that stands there is of other settings or another picture: made anew"
    again = run("photo.jpg", "--target", "1")
    assert again.status == 0 and (said in again.err) == ("json" not in lost)
    assert record("photo")["target"]["index"] == 1
    again = run("photo.jpg", "--target", "0")
    assert again.status == 0 and said in again.err
    assert record("photo")["target"]["index"] == 0
    again = run("photo.jpg", "--target", "1", "--overwrite")
    assert again.status == 0 and said not in again.err


def test_a_half_of_the_same_report_is_made_whole_without_a_word(run: Run) -> None:
    saved("photo.jpg")
    assert run("photo.jpg").status == 0
    Path("out/photo.png").unlink()
    again = run("photo.jpg")
    assert again.status == 0 and "made anew" not in again.err and Path("out/photo.png").is_file()


def test_an_index_says_of_what_run_it_is_and_that_a_later_one_may_have_other_reports(run: Run) -> None:
    saved("in/a.png")
    saved("in/b.png", picture(seed=1))
    assert run("in", "--seed", "3").status == 0
    digest = record("a")["provenance"]["weights (SHA-256)"]
    index = Path("out/index.html").read_text()
    assert f"weights {digest[:12]}, quality draft, start taught, seed 3. This page is of that run alone" in index
