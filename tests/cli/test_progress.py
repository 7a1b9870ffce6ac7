"""Progress: lines in a log, a bar on a terminal, and file names that are never read as markup."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pullback.cli.progress import Progress


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=200, color_system=None)


def written(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def test_in_a_log_a_line_for_each_new_description() -> None:
    log = console(terminal=False)
    with Progress(log) as progress:
        progress.start(4, "photo.jpg: stages")
        progress.advance(1, "photo.jpg: Wiener")
        progress.advance()
        progress.advance(1, "photo.jpg: Wiener")
        progress.advance(1, "photo.jpg: report")
    assert [line.split(" (about")[0] for line in written(log).splitlines()] == [
        "[0/4] photo.jpg: stages",
        "[1/4] photo.jpg: Wiener",
        "[4/4] photo.jpg: report",
    ]


def test_time_left_is_the_mean_step_times_the_steps_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 20.0, 300.0])
    monkeypatch.setattr("pullback.cli.progress.time.monotonic", lambda: next(clock))
    log = console(terminal=False)
    progress = Progress(log)
    progress.start(4, "one")
    progress.advance(1, "two")
    progress.advance(1, "three")
    assert written(log).splitlines() == ["[0/4] one", "[1/4] two (about 60 s left)", "[2/4] three (about 5 min left)"]


def test_on_a_terminal_a_bar_that_counts_and_notes_that_stay() -> None:
    terminal = console(terminal=True)
    with Progress(terminal) as progress:
        progress.start(2, "photo.jpg")
        progress.advance(1, "[bold]other[/bold].jpg")
        progress.note("preprocessing was assumed: [0.5, 0.5, 0.5]")
    text = written(terminal)
    assert "1/2" in text
    assert "[bold]other[/bold].jpg" in text
    assert "preprocessing was assumed: [0.5, 0.5, 0.5]\n" in text.replace("\r\n", "\n")


def test_a_second_start_replaces_the_first() -> None:
    log = console(terminal=False)
    with Progress(log) as progress:
        progress.start(2, "first")
        progress.advance(2)
        progress.start(3, "second")
        progress.advance(1, "second, goes on")
    assert written(log).splitlines()[-2:][0] == "[0/3] second"
    assert written(log).splitlines()[-1].startswith("[1/3] second, goes on")


def test_advance_before_start_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(RuntimeError, match="call start"):
        Progress(console(terminal=False)).advance()
