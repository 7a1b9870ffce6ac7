"""The machine that a benchmark ran on: its name, its threads, and whether it calculates in bfloat16."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16")  # the last is ARM's


def describe(device: str) -> dict[str, str | int]:
    """What a reader must know of the machine to read the table."""
    found: dict[str, str | int] = {
        "processor": _cpu_field("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": ", ".join(_bfloat16_flags()) or "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device != "cpu":
        found["device"] = torch.cuda.get_device_name(device)
    return found


def finish(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def _bfloat16_flags() -> list[str]:
    flags = (_cpu_field("flags") or _cpu_field("Features")).split()
    return [flag for flag in _BFLOAT16_FLAGS if flag in flags]


def _cpu_field(name: str) -> str:
    """The first line of this name in Linux's description of the processors; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.is_file() else ():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
