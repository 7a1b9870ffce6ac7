"""How long an iterative inverse may take: a number of steps, or seconds that a ladder of step counts turns into one."""

from __future__ import annotations

from collections.abc import Sequence

from pullback.errors import OptionError


def check_budget(steps: int | None, seconds: float | None) -> None:
    """Raises OptionError unless exactly one of the two is given, and positive."""
    if (steps is None) == (seconds is None):
        raise OptionError(f"give either steps or seconds, but got steps={steps} and seconds={seconds}")
    if (steps is not None and steps < 1) or (seconds is not None and not seconds > 0):
        raise OptionError(f"steps and seconds must be positive, but got steps={steps} and seconds={seconds}")


def rung(ladder: Sequence[int], fitting: float) -> int:
    """The largest count of a rising ladder that fits, or its lowest: few counts, so that equal runs get equal ones."""
    return max((n for n in ladder if n <= fitting), default=ladder[0])
