"""How long an iterative inverse may take: a number of steps, or seconds that a ladder of step counts turns into one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from pullback.errors import OptionError


def check_budget(steps: int | None, seconds: float | None) -> int | None:
    """`steps` as a plain int; raises OptionError unless exactly one of the two is given, a number, and positive."""
    if (steps is None) == (seconds is None):
        raise OptionError(f"give either steps or seconds, but got steps={steps} and seconds={seconds}")
    if steps is not None:
        if isinstance(steps, bool) or not _positive(steps, operator.index):
            raise OptionError(f"steps must be a positive whole number, but got steps={steps!r}")
        return operator.index(steps)
    if isinstance(seconds, bool | str) or not _positive(seconds, float):
        raise OptionError(f"seconds must be a positive number, but got seconds={seconds!r}")
    return None


def _positive(value: Any, convert: Callable[[Any], float]) -> bool:
    """Whether `value` converts to a number above 0."""
    try:
        return convert(value) > 0
    except (TypeError, ValueError):
        return False


def rung(ladder: Sequence[int], fitting: float) -> int:
    """The largest count of a rising ladder that fits, or its lowest: few counts, so that equal runs get equal ones."""
    return max((n for n in ladder if n <= fitting), default=ladder[0])
