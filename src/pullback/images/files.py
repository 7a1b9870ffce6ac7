"""Writing results: a file appears whole or not at all (written beside, synced, renamed), a failure is one error."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from pullback.errors import OptionError, OutputError

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


def cache_folder() -> Path:
    """Where what is made once is kept for next time: $PULLBACK_CACHE, or the folder that this system has for caches.

    Neither made nor tried here. Raises RuntimeError where the system names none, for want of a home.
    """
    given = os.environ.get("PULLBACK_CACHE")
    return Path(given) if given else platformdirs.user_cache_path("pullback", appauthor=False)


def write_whole(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, replacing a file that is there; after a failure or an interrupt the old file stands.

    Raises OutputError when the file cannot be written; nothing half-written remains, neither at `path` nor beside it.
    """
    write_together({Path(path): data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all of them, or none.

    All are written beside their places before the first is put there, so that after a failure or an interrupt the old
    files stand. Stopped while they are put there, those that were are taken away again: no mixture of old and new.
    Raises OutputError.
    """
    beside = {path: path.parent / f".{secrets.token_hex(8)}.part" for path in files}
    path, written = Path(), False
    try:
        try:
            for path, part in beside.items():
                with part.open("xb") as stream:
                    stream.write(files[path])
                    stream.flush()
                    os.fsync(stream.fileno())
            written = True
            for path, part in beside.items():
                part.replace(path)
        except BaseException:
            placed = [path for path, part in beside.items() if written and not part.exists()]
            for rest in (*beside.values(), *(placed if len(placed) < len(files) else ())):
                with suppress(OSError):
                    rest.unlink()
            raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _refusal(f"{path} cannot be written", error) from error


@contextmanager
def output_folder(path: str | Path) -> Iterator[Path]:
    """The folder `path`, made with its parents where needed, and tried: a file can be created and filled in it.

    Folders that were made here and are empty at the end, however that comes, are taken away again. Raises OutputError
    when the folder cannot be made or written to. A path with ".." in it is resolved: what it leads through may go again.
    """
    folder = Path(path)
    made: list[Path] = []
    try:
        try:
            if ".." in folder.parts:
                folder = folder.resolve()
            for parent in (*reversed(folder.parents), folder):
                if not parent.is_dir():
                    parent.mkdir(exist_ok=True)
                    made.append(parent)
            # Permission bits do not tell (root, read-only and full disks): only a real write does.
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"\0")
                probe.flush()
                os.fsync(probe.fileno())
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            what = f"output folder {folder} cannot be used"
            if isinstance(error, FileExistsError) and Path(error.filename) != folder:
                what += f" because of {error.filename}"
            raise _refusal(what, error) from error
        yield folder
    finally:
        for parent in reversed(made):
            with suppress(OSError):  # something is in it
                parent.rmdir()


def check_inputs_stay(written: Iterable[Path], read: Iterable[Path]) -> None:
    """Raise OptionError where a file that will be written is, under this name or another, one of those that are read."""
    inputs = {_file(path) for path in read} - {None}
    for path in written:
        if _file(path) in inputs:
            raise OptionError(
                f"{path} is a file that is read here, and what is written would replace it: give another"
                " folder to --out, or another name"
            )


def _file(path: Path) -> tuple[int, int] | None:
    """The same for all names of one file; None where there is none, or cannot be one of this name."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _refusal(what: str, error: OSError | ValueError) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error)
    advice = _ADVICE.get(getattr(error, "errno", None) or 0)
    return OutputError(f"{what}: {reason}" + (f"; {advice}" if advice else ""))
