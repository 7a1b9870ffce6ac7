"""Writing results: a file appears whole or not at all (written beside, synced, renamed), a failure is one error."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from pullback.errors import OutputError

_ADVICE = {
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "free some space or choose another disk",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOENT: "make its folder first",
    errno.EEXIST: "a file stands where a folder is needed, choose another name",
    errno.ENOTDIR: "a file stands where a folder is needed, choose another name",
    errno.EISDIR: "a folder stands there, choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_whole(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, replacing a file that is there; after a failure or an interrupt the old file stands.

    Raises OutputError when the file cannot be written; nothing half-written remains, neither at `path` nor beside it.
    """
    path = Path(path)
    beside = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        try:
            with beside.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(path)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _refusal(f"{path} cannot be written", error) from error


def output_folder(path: str | Path) -> Path:
    """The folder `path`, made with its parents where needed, and tried: a file can be created and filled in it.

    Raises OutputError when it cannot be made or written to; folders made on the way are taken away again.
    """
    folder = Path(path)
    made: list[Path] = []
    try:
        try:
            for parent in (*reversed(folder.parents), folder):
                if not parent.is_dir():
                    parent.mkdir(exist_ok=True)
                    made.append(parent)
            # Permission bits do not tell (root, read-only and full disks): only a real write does.
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"\0")
                probe.flush()
                os.fsync(probe.fileno())
        except BaseException:
            for parent in reversed(made):
                with suppress(OSError):
                    parent.rmdir()
            raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _refusal(f"output folder {folder} cannot be used", error) from error
    return folder


def _refusal(what: str, error: OSError | ValueError) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error)
    advice = _ADVICE.get(getattr(error, "errno", None) or 0)
    return OutputError(f"{what}: {reason}" + (f"; {advice}" if advice else ""))
