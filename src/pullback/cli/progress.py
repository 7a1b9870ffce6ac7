"""Progress on stderr: a bar with the time left on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Tells a person how far the work is and how long it will still take; a context manager.

    Args:
        console: where to write; stderr by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        # Descriptions hold file names: no markup in them.
        words = TextColumn("{task.description}", markup=False)
        columns = (words, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task: TaskID | None = None
        self._total = self._done = 0
        self._since = 0.0
        self._told = ""

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def start(self, total: int, description: str) -> None:
        """Begin `total` steps; what was begun before counts as finished."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(description, total=total)
        self._total, self._done, self._since = total, 0, time.monotonic()
        self._line(description)

    def advance(self, n: int = 1, description: str | None = None) -> None:
        """`n` further steps are done; `description` says what comes now."""
        if self._task is None:
            raise RuntimeError("advance() before start(): call start(total, description) first")
        self._done += n
        self._bar.update(self._task, advance=n, description=description)
        self._line(description)

    def note(self, text: str) -> None:
        """A line that stays, above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _line(self, description: str | None) -> None:
        """The same in a log: a line whenever the description changes."""
        if not self._bar.disable or not description or description == self._told:
            return
        self._told = description
        self.note(f"[{self._done}/{self._total}] {description}{self._left()}")

    def _left(self) -> str:
        if not 0 < self._done < self._total:
            return ""
        seconds = (time.monotonic() - self._since) / self._done * (self._total - self._done)
        return f" (about {seconds:.0f} s left)" if seconds < 120 else f" (about {seconds / 60:.0f} min left)"
