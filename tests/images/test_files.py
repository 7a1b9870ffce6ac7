"""Files appear whole or not at all; whatever stops a write is one OutputError, and nothing remains behind."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from pullback.errors import OutputError
from pullback.images import output_folder, write_whole


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: files with their bytes, folders with None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def failing(code: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    write_whole(target, b"first, and longer")
    write_whole(str(target), b"second")
    assert tree(tmp_path) == {"report.html": b"second"}


def test_a_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    """Not the 0600 of temporary files: a report on a shared disk is for others too."""
    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "report.html", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o644


def test_a_name_of_full_length_can_be_written(tmp_path: Path) -> None:
    write_whole(tmp_path / ("n" * 255), b"x")
    assert len(tree(tmp_path)) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    target = tmp_path / "report.html"
    write_whole(target, b"old")
    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[step], failing(code))
    with pytest.raises(OutputError, match=rf"report\.html cannot be written: {os.strerror(code)}"):
        write_whole(target, b"new")
    assert tree(tmp_path) == {"report.html": b"old"}


def test_a_write_that_stops_half_way_leaves_nothing(tmp_path: Path) -> None:
    """A real short write, by the limit on the size of files: the first MiB fits, the rest does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"):
            write_whole(tmp_path / "report.html", bytes(2**20 + 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path) == {}


def test_an_interrupt_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        assert len(tree(tmp_path)) == 2  # the new file lies beside the old one
        raise KeyboardInterrupt

    write_whole(tmp_path / "report.html", b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "report.html", b"new")
    assert tree(tmp_path) == {"report.html": b"old"}


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        ("missing/report.html", "make its folder first"),
        ("folder", "a folder stands there"),
        ("file/report.html", "a file stands where a folder is needed"),
        ("n" * 256, "choose a shorter name"),
        ("nul\0", "null byte"),
    ],
)
def test_an_impossible_target_is_one_error(tmp_path: Path, target: str, advice: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(OutputError, match=advice):
        write_whole(tmp_path / target, b"new")
    assert tree(tmp_path) == {"folder": None, "file": b"kept"}


def test_an_output_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    with output_folder(str(tmp_path / "a" / "b")) as folder:
        assert folder == tmp_path / "a" / "b"
        assert tree(tmp_path) == {"a": None, "a/b": None}
        write_whole(folder / "report.html", b"x")
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/report.html": b"x"}


def test_an_output_folder_by_way_of_one_that_goes_again(tmp_path: Path) -> None:
    with output_folder(tmp_path / "way" / ".." / "b") as folder:
        write_whole(folder / "report.html", b"x")
    assert folder / "report.html" == tmp_path.resolve() / "b" / "report.html"
    assert tree(tmp_path) == {"b": None, "b/report.html": b"x"}


@pytest.mark.parametrize("error", [None, OSError("a picture"), OutputError("a report"), KeyboardInterrupt()])
def test_folders_that_stay_empty_go_again(tmp_path: Path, error: BaseException | None) -> None:
    (tmp_path / "mine").mkdir()
    with nullcontext() if error is None else pytest.raises(type(error)) as caught, output_folder(tmp_path / "mine/a/b"):
        if error is not None:
            raise error
    assert error is None or caught.value is error
    assert tree(tmp_path) == {"mine": None}
    with output_folder(tmp_path / "mine"):
        pass
    assert tree(tmp_path) == {"mine": None}


def test_an_output_folder_keeps_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "earlier.png").write_bytes(b"kept")
    with output_folder(tmp_path):
        pass
    assert tree(tmp_path) == {"earlier.png": b"kept"}


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        ("file", "a file stands where a folder is needed"),
        ("file/below", "a file stands where a folder is needed"),
        ("new/" + "n" * 256, "choose a shorter name"),
        ("new/nul\0", "null byte"),
    ],
)
def test_an_impossible_output_folder_is_one_error(tmp_path: Path, target: str, advice: str) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(OutputError, match=advice):
        output_folder(tmp_path / target).__enter__()
    assert tree(tmp_path) == {"file": b"kept"}


def test_a_file_in_the_way_of_an_output_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(OutputError, match=f"{tmp_path}/file/a/b cannot be used because of {tmp_path}/file: "):
        output_folder(tmp_path / "file" / "a" / "b").__enter__()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_an_output_folder_on_a_failing_disk_goes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(code))
    with pytest.raises(OutputError, match=os.strerror(code)):
        output_folder(tmp_path / "a" / "b").__enter__()
    assert tree(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_one_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    for attempt in (output_folder(tmp_path).__enter__, lambda: write_whole(tmp_path / "report.html", b"x")):
        with pytest.raises(OutputError, match="choose a folder that you may write to"):
            attempt()


def test_an_output_error_is_an_os_error() -> None:
    assert issubclass(OutputError, OSError)
