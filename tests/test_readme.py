"""The README keeps its word: its Python runs, its commands exist, its version is the package's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pullback

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


BLOCKS = list(re.finditer(r"(?<=```python\n).*?(?=```)", README, re.DOTALL))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"at {block.start()}")
def test_python_blocks_run(block: re.Match[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blank_lines = "\n" * README.count("\n", 0, block.start())  # so that a traceback points into the README
    exec(compile(blank_lines + block.group(), str(ROOT / "README.md"), "exec"), {})


def test_options_and_make_targets_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from pullback.cli import main

    for command in ("explain", "encoders"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z-]+", README)) <= known
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+) ", README)) <= targets


def test_pictures_and_linked_files_are_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {pullback.__version__}\n" in citation
    assert f"\n## {pullback.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
