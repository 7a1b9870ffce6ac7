"""The kernels of gated.c, compiled for this machine when first needed and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from pullback.images import cache_folder, write_whole

_log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("gated.c")
_FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
_FOR_THIS_MACHINE = ("-march=native", "-mcpu=native", "")  # the first that the compiler takes
_REALS = {torch.float32: "float", torch.float64: "double"}
_SECONDS = 120
_DIGEST = hashlib.sha256().digest_size

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
    """The compiled kernels for numbers of this type; None where there are none: another type, no compiler, not POSIX.

    The compiler is $CC, with its arguments, or cc, gcc or clang, whichever first succeeds. The folder is $PULLBACK_CACHE, or
    the one that this system has for caches; where it cannot be written, or others could write there, the kernels are made for
    this process alone.
    """
    real = _REALS.get(dtype)
    if real is None or os.name != "posix":
        return None
    reasons = []
    for command in _compilers():
        try:
            library = _library(command, real)
            library.run.argtypes = (
                ctypes.POINTER(Step), _Number, Address, ctypes.POINTER(Outside), ctypes.c_int, Address,
            )  # fmt: skip
            library.widen.argtypes = (Address, _Number)
            library.run.restype = library.widen.restype = None
        except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as error:
            reasons.append(f"{shlex.join(command)}: {error}")
        else:
            return library
    _log.info("products run dense, for want of a C compiler: %s", "; ".join(reasons) or "none was found")
    return None


def _compilers() -> Iterator[list[str]]:
    try:
        given = shlex.split(os.environ.get("CC", ""))
    except ValueError:  # no closing quotation
        given = []
    for command in (given, ["cc"], ["gcc"], ["clang"]):
        found = shutil.which(command[0]) if command else None
        if found is not None:
            yield [found, *command[1:]]


def _library(command: list[str], real: str) -> ctypes.CDLL:
    said = (_SOURCE.read_bytes(), command, real, _FLAGS, platform.machine(), _processor())
    kept = _folder()
    path = kept and kept / f"gated-{real}-{hashlib.sha256(repr(said).encode()).hexdigest()[:24]}.so"
    if path is not None and _is_whole(path):
        with suppress(OSError):  # from some folders nothing may be run
            return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory(prefix="pullback-") as folder:  # what is loaded stays loaded when its file is gone
        made = Path(folder) / "made.so"
        _compile(command, real, made)
        library = ctypes.CDLL(str(made))
        if path is not None:
            content = made.read_bytes()
            with suppress(OSError):
                write_whole(path, content + hashlib.sha256(content).digest())
        return library


def _folder() -> Path | None:
    """The cache folder, if it is ours and not for everybody to write in."""
    try:
        folder = cache_folder().expanduser().resolve()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if _is_ours(folder) else None
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None


def _is_ours(path: Path) -> bool:
    status = path.stat()
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & stat.S_IWOTH


def _is_whole(path: Path) -> bool:
    """Whether the file is ours and ends with the digest of the rest: a library that is cut off would end the process."""
    try:
        content = path.read_bytes() if _is_ours(path) else b""
    except OSError:
        return False
    return len(content) > _DIGEST and hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


def _compile(command: list[str], real: str, target: Path) -> None:
    for machine in _FOR_THIS_MACHINE:
        whole = [*command, *_FLAGS, *filter(None, [machine]), f"-DREAL={real}", str(_SOURCE), "-o", str(target)]
        done = subprocess.run(
            whole, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False, errors="replace"
        )
        if done.returncode == 0:
            return
    raise OSError(f"ended with {done.returncode}: {done.stderr.strip()[:300]}")


def _processor() -> str:
    """What decides which instructions `native` stands for; the machine's name where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.node()
    told = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))
