"""The command line's face: exit statuses, one line for an error, and options that arrive as they were written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import pullback
import pullback.explain
from pullback.cli import main
from pullback.errors import ImageError, OutputError
from pullback.explain import Options

Run = Callable[..., Any]  # the fixture `run`: a command line in; exit status, stdout and stderr out


@dataclass
class Recipe:
    """Stands for explain_all: keeps the options it was given, then does what the test says."""

    action: Callable[[Any], Path] = lambda progress: Path("out/report.html")
    options: list[Options] = field(default_factory=list)

    def __call__(self, options: Options, progress: Any) -> Path:
        self.options.append(options)
        return self.action(progress)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    stand_in = Recipe()
    monkeypatch.setattr(pullback.explain, "explain_all", stand_in)
    return stand_in


def raising(error: BaseException) -> Callable[[Any], Path]:
    def action(progress: Any) -> Path:
        raise error

    return action


def test_done_prints_what_to_open_and_leaves_with_0(recipe: Recipe, run: Run) -> None:
    assert run("explain", "photo.jpg", "--out", "out") == (0, "out/report.html\n", "")


def test_defaults(recipe: Recipe, run: Run) -> None:
    run("explain", "--out", "out")
    assert recipe.options == [
        Options(
            images=(),
            out=Path("out"),
            mask=None,
            target=None,
            encoder="builtin:scenes",
            weights=None,
            classes=None,
            preprocessing=None,
            stages=None,
            correctors=None,
            device="cpu",
            quality="standard",
            start="taught",
            seed=0,
            overwrite=False,
        )
    ]


def test_every_option_arrives(recipe: Recipe, run: Run) -> None:
    options = {
        "--out": "out", "--mask": "masks", "--target": "tabby, tabby cat", "--encoder": "module:pkg.mod:factory",
        "--weights": "net.safetensors", "--classes": "names.txt", "--preprocessing": "mean=0.5;std=0.5",
        "--stages": "layer1, layer2", "--correctors": "fitted.safetensors", "--device": "cuda:1", "--quality": "high",
        "--start": "mean", "--seed": "7",
    }  # fmt: skip
    words = [word for pair in options.items() for word in pair]
    assert run("explain", "a.jpg", "folder", "http://x/y.jpg", *words, "--overwrite").status == 0
    assert recipe.options == [
        Options(
            images=("a.jpg", "folder", "http://x/y.jpg"),
            out=Path("out"),
            mask=Path("masks"),
            target="tabby, tabby cat",
            encoder="module:pkg.mod:factory",
            weights="net.safetensors",
            classes=Path("names.txt"),
            preprocessing="mean=0.5;std=0.5",
            stages=("layer1", "layer2"),
            correctors=Path("fitted.safetensors"),
            device="cuda:1",
            quality="high",
            start="mean",
            seed=7,
            overwrite=True,
        )
    ]


@pytest.mark.parametrize("error", [ImageError("photo.jpg is\n  empty"), OutputError("no room left in out")])
def test_a_clear_error_is_one_line_on_stderr_with_2(recipe: Recipe, run: Run, error: Exception) -> None:
    recipe.action = raising(error)
    assert run("explain", "--out", "out") == (2, "", f"pullback: {' '.join(str(error).split())}\n")


def test_interrupt_leaves_with_130_and_says_how_to_carry_on(recipe: Recipe, run: Run) -> None:
    recipe.action = raising(KeyboardInterrupt())
    ran = run("explain", "--out", "out")
    assert (ran.status, ran.out) == (130, "")
    assert ran.err.startswith("interrupted: ") and "--overwrite" not in ran.err
    assert ran.err.count("\n") == 1
    assert "the same command without --overwrite carries on" in run("explain", "--out", "out", "--overwrite").err


def test_a_fault_is_one_line_with_1(recipe: Recipe, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PULLBACK_TRACEBACK", raising=False)
    recipe.action = raising(ZeroDivisionError("division\nby zero"))
    ran = run("explain", "--out", "out")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("pullback: unexpected ZeroDivisionError: division by zero (")
    assert "PULLBACK_TRACEBACK=1" in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("name", ["n" * 300 + ".safetensors", "file/out.safetensors"])
def test_a_path_that_the_system_refuses_is_a_clear_error(
    name: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PULLBACK_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    ran = run("fit", "file", "--out", name, "--weights", name)
    assert (ran.status, ran.out) == (2, "")
    assert name in ran.err and "unexpected" not in ran.err
    assert ran.err.count("\n") == 1
    assert [p.name for p in Path().iterdir()] == ["file"]


def test_a_fault_is_raised_whole_on_request(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULLBACK_TRACEBACK", "1")
    recipe.action = raising(ZeroDivisionError("division by zero"))
    with pytest.raises(ZeroDivisionError):
        main(["explain", "--out", "out"])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["explain"], "--out"),
        (["explain", "--out", "out", "--quality", "best"], "best"),
        (["explain", "--out", "out", "--seed", "-1"], "--seed"),
        (["explain", "--out", "out", "--seed", str(2**63)], "--seed"),
        (["explain", "--out", "out", "--colour"], "--colour"),
        (["explane"], "explane"),
    ],
)
def test_a_wrong_command_line_leaves_with_2_before_any_work(
    recipe: Recipe, run: Run, arguments: list[str], word: str
) -> None:
    ran = run(*arguments)
    assert (ran.status, ran.out, recipe.options) == (2, "", [])
    assert word in ran.err
    assert "Traceback" not in ran.err


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"pullback {pullback.__version__}\n", "")


@pytest.mark.parametrize("command", ["explain", "encoders"])
def test_help_names_every_command_and_option(run: Run, command: str) -> None:
    assert command in run("--help").out
    assert "--weights" in run(command, "--help").out


def test_progress_and_notes_go_to_stderr(recipe: Recipe, run: Run) -> None:
    def action(progress: Any) -> Path:
        progress.start(2, "photo.jpg: stages")
        progress.advance(1, "photo.jpg: report")
        progress.note("nothing was assumed")
        return Path("index.html")

    recipe.action = action
    ran = run("explain", "--out", "out")
    assert ran.out == "index.html\n"
    assert ran.err.splitlines()[0] == "[0/2] photo.jpg: stages"
    assert ran.err.splitlines()[-1] == "nothing was assumed"


PROCESS = """
import atexit, sys
from pullback.cli import program
class Late:
    def __del__(self): print("taken apart")
late = Late()
atexit.register(print, "farewell")
sys.argv[1:] = {arguments}
program()
"""


@pytest.mark.parametrize(
    ("arguments", "status", "out", "err"),
    [
        (["--version"], 0, f"pullback {pullback.__version__}\nfarewell\n", ""),
        (
            ["explain", "none.png", "--out", "{folder}"],
            2,
            "farewell\n",
            "pullback: none.png does not exist: check the name\n",
        ),
    ],
)
def test_a_process_says_farewell_and_ends_without_taking_python_apart(
    arguments: list[str], status: int, out: str, err: str, tmp_path: Path
) -> None:
    arguments = [a.format(folder=tmp_path / "out") for a in arguments]
    code = PROCESS.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)


def test_a_process_without_streams_ends_as_python_does() -> None:
    code = "import sys; sys.stdout = sys.stderr = None; sys.argv[1:] = ['--version']; from pullback.cli import program; program()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
