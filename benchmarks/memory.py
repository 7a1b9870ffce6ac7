"""Peak memory of one way at one setting, in a process of its own: bytes above what stands once the network is loaded.

python -m benchmarks.memory '{"network": "resnet18", "way": "pullback", "chunk": 8, "layout": "own", ...}'
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.peers import STREAMED, WAYS, Setting
from benchmarks.work import NETWORKS, prepare

_ROOT = Path(__file__).resolve().parents[1]
_STATUS = Path("/proc/self/status")
_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
_AT_MOST = 900  # seconds
# Tensors go back to the system when they are freed, so that what loading held is not taken for free memory.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class ProbeError(RuntimeError):
    """The process that should have measured did not; the message is its last line."""


@dataclass(frozen=True)
class Probe:
    """What is measured. size: pixels a side, or None for the network's own."""

    network: str
    way: str
    chunk: int | None
    layout: str
    cotangents: int
    size: int | None
    device: str
    threads: int


def peak(probe: Probe) -> int:
    """Peak bytes, measured in a fresh process. Raises ProbeError."""
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(asdict(probe))]
    try:
        done = subprocess.run(
            command,
            cwd=_ROOT,
            env=os.environ | _ALLOCATOR,
            capture_output=True,
            text=True,
            timeout=_AT_MOST,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProbeError(f"not done within {_AT_MOST} s") from error
    if done.returncode:
        raise ProbeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return int(done.stdout.strip().splitlines()[-1])


def _measure(probe: Probe) -> int:
    torch.set_num_threads(probe.threads)
    # Autograd loads it with its first cotangent: it belongs to no way.
    import_module("torch.fx.experimental.symbolic_shapes")
    way = next(way for way in (*WAYS, STREAMED) if way.name == probe.way)
    work = prepare(NETWORKS[probe.network], probe.cotangents, size=probe.size, device=probe.device)
    if probe.layout != "own":
        work.trunk(probe.layout)
    gc.collect()
    cuda = probe.device != "cpu"
    _forget_peak(cuda)
    before = _peak(cuda)
    way.pull(work, work.seeds, Setting(probe.chunk, probe.layout))
    return _peak(cuda) - before


def _forget_peak(cuda: bool) -> None:
    """Let the peak start anew from what is in use. Where the system cannot, the peak of loading stays: less is seen."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    elif _STATUS.exists():
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def _peak(cuda: bool) -> int:
    if cuda:
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():  # on Linux, where ru_maxrss would be inherited from the process that started this one
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


if __name__ == "__main__":
    print(_measure(Probe(**json.loads(sys.argv[1]))))
