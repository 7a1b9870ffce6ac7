"""How much memory a computation may use: an explicit budget such as "2GB", or a share of what is free."""

from __future__ import annotations

import os
import re

import torch

from pullback.errors import OptionError

_SHARE_OF_FREE = 0.25
_WHEN_UNKNOWN = 2 * 10**9
_UNITS = {"": 1, "B": 1} | {
    prefix.upper() + infix + "B": base**power
    for infix, base in (("", 1000), ("I", 1024))
    for power, prefix in enumerate("kmgt", start=1)
}


def memory_budget(memory: int | str | None, device: torch.device | str) -> int:
    """The budget in bytes.

    memory: bytes, or a number with a unit ("500MB", "2GB", "1.5 GiB"; capitals do not matter), or None for a quarter of
    what is free on `device` now. Raises OptionError for anything else, and for less than one byte.
    """
    if memory is None:
        return int(_SHARE_OF_FREE * _free(torch.device(device)))
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", memory)
        unit = _UNITS.get(match[2].upper()) if match else None
        size = int(float(match[1]) * unit) if match and unit else 0
    else:
        size = memory if isinstance(memory, int) and not isinstance(memory, bool) else 0
    if size < 1:
        raise OptionError(f"memory={memory!r} is no size: give bytes, or a text like '500MB', '2GB' or '1.5GiB'")
    return size


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return int(_WHEN_UNKNOWN / _SHARE_OF_FREE)
