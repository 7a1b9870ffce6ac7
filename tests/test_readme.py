"""README and docs keep their word: their Python runs, their commands exist, their pictures are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pullback
from pullback.explain.run import BUNDLED_SCENE

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, one after the other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for block in re.finditer(r"(?<=```python\n).*?(?=```)", text, re.DOTALL):
        blank_lines = "\n" * text.count("\n", 0, block.start())  # so that a traceback points into the page
        exec(compile(blank_lines + block.group(), str(page), "exec"), names)


def test_the_scene_of_the_pictures_page_is_the_bundled_one() -> None:
    made = re.findall(
        r"pb\.scene\((\d+)\).*save\('scene\.png'\)", (ROOT / "docs" / "pictures.md").read_text(encoding="utf-8")
    )
    assert [int(seed) for seed in made] == [BUNDLED_SCENE]


def test_options_and_make_targets_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from pullback.cli import main

    for command in ("explain", "encoders"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z-]+", README)) <= known
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+) ", README)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_linked_files_are_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).is_file()] == []


def test_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {pullback.__version__}\n" in citation
    assert f"\n## {pullback.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
