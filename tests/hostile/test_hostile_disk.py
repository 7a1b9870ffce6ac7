"""`pullback explain` when the disk is full or somebody presses Ctrl-C: nothing half-written, and the next run carries on."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from oracles.command import TINY, Run, assert_whole, outputs, picture, record, saved

from pullback.cli import main
from pullback.cli.progress import Progress


def stop_at(count: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `count`-th sync of a file fails: 1 is the probe of the output folder, then three for each picture."""
    left = iter(range(count - 1))
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if next(left, None) is None:
            raise error
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def folder() -> Path:
    for n, name in enumerate(("a", "b", "c")):
        saved(f"in/{name}.png", picture(seed=n))
    return Path("in")


WHOLE_A = ["a.html", "a.json", "a.png"]


@pytest.mark.parametrize("count", range(1, 8))
def test_a_full_disk_is_one_line_and_keeps_what_is_whole(
    count: int, folder: Path, explained: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as disk:
        stop_at(count, full(), disk)
        ran = run(folder)
    assert (ran.status, ran.out) == (2, "")
    assert "No space left on device; free some space" in ran.error
    assert "folder out" in ran.error if count == 1 else re.search(r"out/[ab]\.(html|png|json) cannot", ran.error)
    assert outputs() == (WHOLE_A if count > 4 else [])
    assert Path("out").exists() is (count > 4)
    explained.clear()
    if count in (1, 5):
        assert run(folder).status == 0
        assert explained == (["b.png", "c.png"] if count > 4 else ["a.png", "b.png", "c.png"])


def test_a_disk_that_is_really_full(run: Run) -> None:
    """A tmpfs that holds the page but not the panel."""
    Path("small").mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", "small"], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        ran = run(saved("p.png"), "--out", "small/out")
        assert ran.status == 2
        assert "small/out/p." in ran.error and "No space left on device" in ran.error
        assert outputs(Path("small")) == []
    finally:
        subprocess.run(["umount", "small"], check=True)


@pytest.mark.parametrize("moment", ["stage 1: blind", "stage 2: wiener", "certificates", "page", "panel", "record"])
def test_an_interrupt_in_the_second_picture_leaves_the_first_and_the_next_run_carries_on(
    moment: str, folder: Path, explained: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        if moment in ("page", "panel", "record"):
            stop_at(5 + ("page", "panel", "record").index(moment), KeyboardInterrupt(), patched)
        else:
            advance = Progress.advance

            def pressed(self: Progress, n: int = 1, description: str | None = None) -> None:
                if description == f"b, {moment}":
                    raise KeyboardInterrupt
                advance(self, n, description)

            patched.setattr(Progress, "advance", pressed)
        ran = run(folder)
    assert (ran.status, ran.out) == (130, "")
    assert "interrupted: what is finished stays" in ran.err and "Traceback" not in ran.err
    assert outputs() == WHOLE_A
    kept = {name: Path("out", name).read_bytes() for name in WHOLE_A}
    assert explained == ["a.png", "b.png"]

    explained.clear()
    again = run(folder)
    assert (again.status, again.out) == (0, "out/index.html\n")
    assert explained == ["b.png", "c.png"] and "a: done before" in again.err
    assert {name: Path("out", name).read_bytes() for name in WHOLE_A} == kept
    assert len(outputs()) == 10


def test_what_is_done_is_done_again_only_for_another_question(folder: Path, explained: list[str], run: Run) -> None:
    (folder / "c.png").unlink()
    for options, expected in (
        ([], ["a.png", "b.png"]),
        ([], []),
        (["--target", "1"], ["a.png", "b.png"]),
        (["--target", "1"], []),
        (["--target", "1", "--overwrite"], ["a.png", "b.png"]),
    ):
        explained.clear()
        assert run(folder, *options).status == 0
        assert explained == expected
    closely = "size=32;resize=32;std=0.25;mean="
    for mean, expected in (("0.485001", ["a.png", "b.png"]), ("0.485049", ["a.png", "b.png"]), ("0.485049", [])):
        explained.clear()
        assert run(folder, "--preprocessing", closely + mean).status == 0
        assert explained == expected
    assert run(folder, "--target", "1").status == 0
    Path("out/a.png").unlink()
    saved("in/b.png", picture(seed=7))
    explained.clear()
    assert run(folder, "--target", "1").status == 0
    assert explained == ["a.png", "b.png"]


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), full()], ids=["interrupt", "full disk"])
def test_a_rewrite_that_stops_leaves_the_old_report_whole(
    count: int, error: BaseException, explained: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never the page of one run beside the record of another, which the next run would take for its own."""
    saved("p.png")
    assert run("p.png", "--target", "0").status == 0
    before = {name: Path("out", name).read_bytes() for name in outputs()}
    with monkeypatch.context() as patched:
        stop_at(count, error, patched)
        assert run("p.png", "--target", "1").status == (2 if isinstance(error, OSError) else 130)
    assert {name: Path("out", name).read_bytes() for name in outputs()} == before
    explained.clear()
    assert run("p.png", "--target", "0").status == 0
    assert explained == []


def test_an_interrupt_between_two_renames_leaves_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("p.png")
    assert run("p.png", "--target", "0").status == 0
    replace, left = Path.replace, iter(range(1))

    def interrupted(self: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", interrupted)
        with pytest.raises(SystemExit):
            main(["explain", "p.png", "--out", "out", "--quality", "draft", *TINY, "--target", "1"])
    assert outputs() == ["p.json", "p.png"]  # the page of the new run is gone; without it, nothing counts as done
    assert run("p.png", "--target", "0").status == 0
    assert record("p")["target"]["index"] == 0
    assert "class 0" in Path("out/p.html").read_text()


# ---- in a process of its own --------------------------------------------------------------------------------------

PROGRAM = """
import sys
from pullback.explain.options import SECONDS
SECONDS["draft"] = 1e-6
from pullback.cli import main
main(sys.argv[1:])
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, "explain", "--out", "out", "--quality", "draft", *TINY, *arguments]


def test_a_real_interrupt(tmp_path: Path) -> None:
    for n in range(40):
        saved(f"in/{n}.png", picture(seed=n))
    # A shell that starts a job in the background has it ignore Ctrl-C, and children inherit that.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        running = subprocess.Popen(command("in"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, heard)
    assert running.stderr is not None
    told = []
    for line in running.stderr:
        told.append(line)
        if "] 2, stage 1" in line:
            running.send_signal(signal.SIGINT)
            break
    out, rest = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, ""), "".join(told) + rest
    assert "Traceback" not in "".join(told) + rest and "interrupted: what is finished stays" in rest
    assert_whole(tmp_path)
    assert {"0.json", "1.json"} <= set(outputs())
    assert "index.html" not in outputs()


def test_file_names_that_are_no_text_come_through(tmp_path: Path) -> None:
    """What is printed names the page that was written, byte for byte, whatever the terminal's encoding."""
    name = os.fsdecode(b"caf\xe9.png")
    try:
        saved("plain.png")
        Path("plain.png").rename(name)
    except OSError:
        pytest.skip("this disk takes no such name")
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    ran = subprocess.run(command(name), capture_output=True, env=environment, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == b"out/caf\xe9.html\n"
    assert os.path.isfile(b"out/caf\xe9.html") and b"Traceback" not in ran.stderr  # noqa: PTH113 - a name in bytes
    assert_whole(tmp_path)


def test_a_clear_error_of_the_real_program(tmp_path: Path) -> None:
    ran = subprocess.run(command("none.jpg"), capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "pullback: none.jpg does not exist: check the name\n"
    assert not Path("out").exists()
