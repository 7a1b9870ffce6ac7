"""How long an iterative inverse may take: a number of steps, or seconds that a ladder of step counts turns into one, or both."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from pullback.errors import OptionError


def check_budget(steps: int | None, seconds: float | None) -> int | None:
    """`steps` as a plain int, or None; raises OptionError unless one of the two is given, and what is given a positive number."""
    if steps is None and seconds is None:
        raise OptionError("a budget needs steps, seconds, or both (then no more than these steps)")
    if steps is not None and (isinstance(steps, bool) or not _positive(steps, operator.index)):
        raise OptionError(f"steps must be a positive whole number, but got steps={steps!r}")
    if seconds is not None and (isinstance(seconds, bool | str | bytes) or not _positive(seconds, float)):
        raise OptionError(f"seconds must be a positive number, but got seconds={seconds!r}")
    return None if steps is None else operator.index(steps)


def _positive(value: Any, convert: Callable[[Any], float]) -> bool:
    """Whether `value` converts to a number above 0."""
    try:
        return convert(value) > 0
    except (TypeError, ValueError, OverflowError):
        return False


def rung(ladder: Sequence[int], fitting: float, most: int | None = None) -> int:
    """The largest count of a rising ladder that fits, or its lowest: few counts, so that equal runs get equal ones.

    most: where that is more, this number of steps instead.
    """
    found = max((n for n in ladder if n <= fitting), default=ladder[0])
    return found if most is None else min(found, most)
