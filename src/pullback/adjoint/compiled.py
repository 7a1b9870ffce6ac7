"""The kernels of gated.c, compiled for this machine when first needed and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import platformdirs
import torch

_log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("gated.c")
_FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
_FOR_THIS_MACHINE = ("-march=native", "-mcpu=native", "")  # the first that the compiler takes
_REALS = {torch.float32: "float", torch.float64: "double"}
_SECONDS = 120

Address = ctypes.c_void_p
_Number = ctypes.c_int64


class Step(ctypes.Structure):
    """As in gated.c."""

    _fields_ = (
        *((name, _Number) for name in ("kind", "add", "positions", "source", "target")),
        *((name, Address) for name in ("source_begin", "source_end", "target_begin", "target_end")),
        *((name, Address) for name in ("source_channel", "target_channel", "near", "from_", "tap", "weight")),
        *((name, _Number) for name in ("taps", "source_channels", "span")),
        ("before", Address),
        ("groups", _Number),
        *((name, Address) for name in ("start", "origin", "scale")),
    )


class Outside(ctypes.Structure):
    """As in gated.c."""

    _fields_ = (
        ("given", Address),
        ("made", Address),
        *((f"{side}_{axis}", _Number) for side in ("given", "made") for axis in ("column", "channel", "position")),
        ("columns", _Number),
    )


@cache
def kernels(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled kernels for numbers of this type; None where there are none: no compiler, or another type.

    The compiler is $CC, or cc, gcc or clang. The folder is $PULLBACK_CACHE, or the one that this system has for caches.
    """
    real = _REALS.get(dtype)
    found = shutil.which(shlex.split(os.environ["CC"])[0]) if os.environ.get("CC") else None
    compiler = found or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if real is None or compiler is None or os.name != "posix":
        _log.info("no C compiler for the kernels of gated products: products run dense")
        return None
    try:
        try:
            library = ctypes.CDLL(str(_compiled(compiler, real)))
        except OSError:  # the file that is kept is damaged
            library = ctypes.CDLL(str(_compiled(compiler, real, anew=True)))
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("the kernels of gated products could not be compiled, so products run dense: %s", error)
        return None
    library.run.argtypes = (
        ctypes.POINTER(Step), _Number, Address, ctypes.POINTER(Outside), ctypes.c_int, Address,
    )  # fmt: skip
    library.widen.argtypes = (Address, _Number)
    library.run.restype = library.widen.restype = None
    return library


def _compiled(compiler: str, real: str, anew: bool = False) -> Path:
    """The library's file, made where it is missing, or `anew`."""
    said = (_SOURCE.read_bytes(), compiler, real, _FLAGS, platform.machine(), _processor())
    name = f"gated-{real}-{hashlib.sha256(repr(said).encode()).hexdigest()[:24]}.so"
    given = os.environ.get("PULLBACK_CACHE")
    folder = (Path(given) if given else platformdirs.user_cache_path("pullback", appauthor=False)).expanduser()
    if (folder / name).is_file() and not anew:
        return folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".compiling-", dir=folder))
    except OSError:  # not to be written: for this process alone
        folder = beside = Path(tempfile.mkdtemp(prefix="pullback-"))
    try:
        _compile(compiler, real, beside / "made.so")
        (beside / "made.so").replace(folder / name)  # whole or not at all
    finally:
        if beside != folder:
            shutil.rmtree(beside, ignore_errors=True)
    return folder / name


def _compile(compiler: str, real: str, target: Path) -> None:
    for machine in _FOR_THIS_MACHINE:
        command = [compiler, *_FLAGS, *filter(None, [machine]), f"-DREAL={real}", str(_SOURCE), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode == 0:
            return
    raise OSError(f"{compiler} ended with {done.returncode}: {done.stderr.strip()[:300]}")


def _processor() -> str:
    """What decides which instructions `native` stands for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))
