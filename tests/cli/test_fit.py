"""`pullback fit`: real runs on a tiny network, what a person is told, and one line for a mistake."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from oracles.command import NET, TINY, picture, saved
from PIL import Image

import pullback as pb
import pullback.fitting
from pullback.fitting import checkpoint_of

Run = Callable[..., Any]  # the fixture `run`: a command line in; exit status, stdout and stderr out
OUT = Path("fitted.safetensors")
QUICK = ["--out", str(OUT), *TINY, "--steps", "3", "--batch", "2", "--channels", "2", "--held-back", "2"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a network and six pictures of several kinds."""
    (tmp_path / "hostile_tiny_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hostile_tiny_net", raising=False)
    monkeypatch.delenv("PULLBACK_TRACEBACK", raising=False)
    monkeypatch.setenv("COLUMNS", "4000")
    for seed, mode in enumerate(["RGB", "L", "RGBA", "P", "LA", "RGB"]):
        saved(f"pictures/{seed}.png", picture(seed=seed).convert(mode))


def outputs() -> list[str]:
    return sorted(p.name for p in Path().iterdir() if p.name not in ("pictures", "hostile_tiny_net.py", "__pycache__"))


def test_fits_and_tells_loss_lift_and_zero_seed(run: Run) -> None:
    ran = run("fit", "pictures", *QUICK)
    assert (ran.status, ran.out) == (0, f"{OUT}\n")
    lines = ran.err.splitlines()
    told = [line for line in lines if line.startswith("[") and "step" in line]
    assert len(told) == 3
    for line in told:
        assert line.count("loss ") == line.count("lift ") == line.count("zero seed ") == 2
    assert "left)" in told[0]
    assert sum("before the first step, held back: loss" in line for line in lines) == 1
    assert sum("whole pictures: loss" in line for line in lines) == 1
    card = pb.Correctors.load(OUT).card
    assert (card["pictures"]["count"], card["preset"]) == (4, "paper with other steps, batch, channels, held_back")
    assert outputs() == [str(OUT)]


def test_the_same_command_again_does_nothing_more(run: Run) -> None:
    run("fit", "pictures", *QUICK)
    before = OUT.stat().st_mtime_ns
    ran = run("fit", "pictures", *QUICK)
    assert (ran.status, OUT.stat().st_mtime_ns) == (0, before)
    assert "done before" in ran.err


@pytest.mark.parametrize("anew", [False, True])
def test_interrupted_it_says_how_to_carry_on_and_does(anew: bool, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    true = pullback.fitting.steps.Fit.stepped

    def interrupted(self: Any, state: Any) -> Any:
        if state.step == 2:
            raise KeyboardInterrupt
        return true(self, state)

    with monkeypatch.context() as during:
        during.setattr(pullback.fitting.steps.Fit, "stepped", interrupted)
        ran = run("fit", "pictures", *QUICK, *(["--overwrite"] if anew else []))
    assert (ran.status, ran.out) == (130, "")
    assert f"the same command {'without --overwrite ' if anew else ''}carries on from the last step" in ran.err
    assert outputs() == [checkpoint_of(OUT).name]
    ran = run("fit", str(Path("pictures").resolve()), *QUICK)
    assert ran.status == 0
    assert "carrying on from step 2" in ran.err
    assert outputs() == [str(OUT)]


def test_every_option_arrives(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []

    def stand_in(encoder: pb.Encoder, images: list[str], preset: str, **options: Any) -> pb.Correctors:
        heard.extend([encoder, images, preset, options])
        return pb.Correctors.unfitted([3])

    monkeypatch.setattr(pullback.fitting, "fit_correctors", stand_in)
    monkeypatch.setattr("pullback.cli.fit._summary", lambda card: [])
    options = {
        "--mode": "fused", "--loss": "l2", "--steps": "7", "--batch": "3", "--channels": "5", "--rate": "0.5",
        "--held-back": "0", "--seed": "9", "--preset": "paper", "--device": "cpu",
    }  # fmt: skip
    words = [word for pair in options.items() for word in pair]
    assert run("fit", "a.png", "folder", *TINY, *words, "--overwrite", "--out", "x").status == 0
    encoder, images, preset, given = heard
    given.pop("told")
    assert ([s.name for s in encoder.stages], images, preset) == (["gate1", "gate2"], ["a.png", "folder"], "paper")
    assert given == {
        "mode": "fused", "loss": "l2", "steps": 7, "batch": 3, "channels": 5, "rate": 0.5, "held_back": 0, "seed": 9,
        "out": Path("x"), "overwrite": True,
    }  # fmt: skip


@pytest.mark.parametrize("leads", [True, False])
def test_a_picture_without_features_is_named_by_the_process_that_meets_it(
    leads: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("hostile_tiny_net.py").write_text(NET.replace("self.level2(", "0 * self.level2("))
    monkeypatch.setattr(pullback.fitting, "joined", lambda device: nullcontext((device, leads)))
    ran = run("fit", "pictures", *QUICK)
    assert ran.status == 2
    assert "png cannot be fitted on, leave it out: every feature of stage 2 (gate2) is zero" in ran.err.splitlines()[-1]


def test_a_mistake_that_all_processes_meet_is_told_by_the_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pullback.fitting, "joined", lambda device: nullcontext((device, False)))
    ran = run("fit", "missing", *QUICK)
    assert (ran.status, ran.err) == (2, "")


def damaged() -> None:
    Path("pictures/3.png").write_bytes(Path("pictures/3.png").read_bytes()[:60])


def other_checkpoint() -> None:
    checkpoint_of(OUT).write_bytes(b"anything")


def other_result() -> None:
    OUT.write_bytes(b"anything")


def nothing() -> None:
    """The folder is as it is."""


@pytest.mark.parametrize(
    ("arguments", "before", "word"),
    [
        (["missing"], nothing, "missing"),
        (["."], nothing, "its subfolder pictures has some"),
        (["pictures/0.png", "pictures/1.png"], nothing, "hold back fewer (--held-back), or give more"),
        (["pictures/0.png"], nothing, "held back"),
        (["pictures", "--batch", "5"], nothing, "a batch of 5"),
        (["pictures", "--batch", "5"], nothing, "hold back fewer (--held-back), or take a smaller batch (--batch)"),
        (["pictures", "--held-back", "6"], nothing, "6 held back of 6"),
        (["pictures", "--steps", "0"], nothing, "steps=0"),
        (["pictures", "--rate", "0"], nothing, "rate=0"),
        (["pictures", "--mode", "blind"], nothing, "additive, fused, frozen"),
        (["pictures", "--loss", "l0"], nothing, "l1, l2"),
        (["pictures", "--preset", "published"], nothing, "choose one of paper"),
        (["pictures", "--device", "abacus"], nothing, "abacus"),
        (["pictures", "--encoder", "module:hostile_tiny_net:nothing"], nothing, "nothing"),
        (["pictures", "--out", "pictures"], nothing, "is a folder"),
        (["pictures", "--out", "hostile_tiny_net.py/x"], nothing, "cannot be used"),
        (["pictures"], damaged, "3.png"),
        (["pictures"], other_checkpoint, "no checkpoint of a fit"),
        (["pictures"], other_result, "holds no correctors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else getattr(value, "__name__", None),
)
def test_mistakes_are_one_line_with_2(arguments: list[str], before: Callable[[], None], word: str, run: Run) -> None:
    before()
    there = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file() and p.suffix != ".pyc"}
    ran = run("fit", *QUICK, *arguments)
    assert (ran.status, ran.out) == (2, "")
    told = [line for line in ran.err.splitlines() if not line.startswith("note: ")]
    assert len(told) == 1
    assert told[0].startswith("pullback: ")
    assert word in told[0]
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file() and p.suffix != ".pyc"} == there


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize(
    "out", ["pictures/1.png", "linked", "pictures/../pictures/1.png", "symbolic", "state", "pictures/copy.png"]
)
def test_no_result_replaces_a_picture_that_is_fitted_on(out: str, overwrite: tuple[str, ...], run: Run) -> None:
    """Under whatever name, nor does its checkpoint; without --overwrite nothing advises to take it."""
    Path("linked").hardlink_to("pictures/1.png")
    Path("symbolic").symlink_to("pictures/1.png")
    Path("pictures/copy.png").write_bytes(Path("pictures/1.png").read_bytes())  # which counts once, and is read
    checkpoint_of("state").hardlink_to("pictures/2.png")
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file() and p.suffix != ".pyc"}
    ran = run("fit", "pictures", *QUICK, "--out", out, *overwrite)
    assert ran.status == 2
    assert "is a file that is read here" in ran.err.splitlines()[-1]
    assert "overwrite" not in ran.err
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file() and p.suffix != ".pyc"} == before


@pytest.mark.parametrize("option", ["--weights", "--classes"])
def test_no_result_replaces_the_weights_or_the_class_names(option: str, run: Run) -> None:
    Path("given").write_bytes(b"kept")
    ran = run("fit", "pictures", *QUICK, option, "given", "--out", "given", "--overwrite")
    assert (ran.status, Path("given").read_bytes()) == (2, b"kept")
    assert "given is a file that is read here" in ran.err.splitlines()[-1]


def test_a_network_without_stages_is_refused(run: Run) -> None:
    words = ["--encoder", "module:hostile_tiny_net:perceptron", "--preprocessing", "size=32;resize=32"]
    ran = run("fit", "pictures", "--out", str(OUT), *words)
    assert ran.status == 2
    assert "stage" in ran.err.splitlines()[-1]
    assert outputs() == []


def test_a_picture_too_odd_for_a_white_is_named(run: Run) -> None:
    Image.new("F", (9, 9)).save("pictures/odd.tiff")
    ran = run("fit", "pictures", *QUICK)
    assert ran.status == 2
    assert "odd.tiff" in ran.err.splitlines()[-1]
