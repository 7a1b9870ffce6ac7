"""`pullback study reconstruction`: what it refuses in one line, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oracles.command import NET, TINY, saved


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("hostile_tiny_net.py").write_text(NET, encoding="utf-8")
    saved("in/a.png")


def test_it_writes_the_page_and_prints_its_name(run: Callable[..., Any]) -> None:
    options = ["--methods", "vjp, frozen", "--at", "gate1", "--controls", "none"]
    left = run("study", "reconstruction", "in", "--out", "out", *TINY, *options)
    assert (left.status, left.out) == (0, "out/reconstruction.md\n")
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "reconstruction.csv", "reconstruction.md", "rows", "stage-1.png", "study.json",
    ]  # fmt: skip
    assert "random-weight encoder was not asked for" in Path("out/reconstruction.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--methods", "blend"], "unknown method 'blend'; choose among additive, fused"),
        (["--controls", "all"], "unknown control 'all'"),
        (["--at", "gate9"], "no stage 'gate9'; stages are 1 (gate1), 2 (gate2)"),
        (["--lpips-backbone", "hostile_tiny_net.py"], "cannot be read"),
        (["--lpips-backbone", "none.safetensors"], "is no file here"),
        (["--correctors", "none.safetensors"], "none.safetensors does not exist"),
        (["--methods", "upconvnet"], "--train FOLDER"),
        (["--steps", "5", "--seconds", "1"], "give one of them"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_wrong_options_are_told_in_one_line(run: Callable[..., Any], options: list[str], said: str) -> None:
    left = run("study", "reconstruction", "in", "--out", "out", *TINY, *options)
    assert left.status == 2
    assert left.err.splitlines()[-1].startswith("pullback: ") and said in left.err.splitlines()[-1]
    assert not Path("out").exists()


def test_no_pictures_are_told_too(run: Callable[..., Any]) -> None:
    Path("empty").mkdir()
    left = run("study", "reconstruction", "empty", "--out", "out", *TINY)
    assert left.status == 2 and "empty has no picture directly in it" in left.err
    assert run("study", "reconstruction", "--out", "out").status == 2


def test_help_names_the_study(run: Callable[..., Any]) -> None:
    assert "reconstruction" in run("study", "--help").out
    assert "--lpips-backbone" in run("study", "reconstruction", "--help").out
