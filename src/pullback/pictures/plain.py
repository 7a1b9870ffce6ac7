"""Results in words and in JSON: numbers in few digits, text that can be encoded, values without tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch


def number(value: float | int | str | bool | None) -> str:
    """A value in the digits that a reader needs: three significant ones, an exponent only outside 0.001 .. 100000."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, str)):
        return str(value)
    if not math.isfinite(value):
        return "unknown" if math.isnan(value) else "infinite"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, 2 - magnitude)}f}" if -4 < magnitude < 5 else f"{value:.2e}"


def share(value: float) -> str:
    """A share in [0, 1] as a percentage, never rounded to nothing or to everything when it is neither."""
    if not math.isfinite(value):
        return "unknown"
    if 0 < value < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= value < 1:
        return "> 99.9 %"
    return f"{100 * value:.0f} %" if value in (0, 1) else f"{100 * value:.1f} %"


def span(bounds: tuple[float, float]) -> str:
    """A value range, "-1.23 to 4.50"."""
    return f"{number(float(bounds[0]))} to {number(float(bounds[1]))}"


def figure(value: float | int | str | bool) -> str:
    """What was measured of a picture; one without contrast has no correlation with anything."""
    return "none (flat)" if isinstance(value, float) and math.isnan(value) else number(value)


def facts(figures: Mapping[str, float | int | str | bool]) -> str:
    """What was measured, in one line: "misfit 0.0831, steps 250"."""
    return ", ".join(f"{key.replace('_', ' ')} {figure(value)}" for key, value in figures.items())


def readable(text: str) -> str:
    """`text` on one line, with what no file or page can show as meant (control characters, lone surrogates, changes of
    the writing direction) as U+FFFD."""
    joiners = "\u200c\u200d"  # invisible, yet part of the spelling in several scripts
    return "".join(c if c.isprintable() or c in joiners else " " if c.isspace() else "\ufffd" for c in text)


def plain(value: Any) -> Any:
    """`value` as JSON carries it: tuples become lists, numbers that are not finite become null, the rest its words."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {readable(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)):
        return [plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, PathLike):
        return readable(str(value))
    return plain(value.item()) if hasattr(value, "item") else readable(str(value))
