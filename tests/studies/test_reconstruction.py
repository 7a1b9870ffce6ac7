"""The study as a whole on a tiny network: every method has its rows, a killed study ends with the same tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.command import NET, SPEC, picture
from PIL import Image

from pullback.encoders import Encoder
from pullback.errors import EncoderError, OptionError, StageError
from pullback.images import load_image, scene
from pullback.inversion import Correctors, Inverter
from pullback.inversion.correctors import PICTURES
from pullback.studies import StudyOptions, plan, study_reconstruction
from pullback.studies import mahendran as rival
from pullback.studies import reconstruction as room
from pullback.studies.results import LEFT, LOST_WITH_FEATURES, LOST_WITH_GATES
from pullback.studies.trial import Bench

ALL = ("additive", "fused", "frozen", "vjp", "wiener", "blind", "blind-mean", "decoder", "mahendran")


class Silent:
    """Progress that counts, and stops the study after so many steps."""

    def __init__(self, stop: float = float("inf")) -> None:
        self.total, self.done, self.stop = 0, 0, stop
        self.notes: list[str] = []

    def start(self, total: int, description: str) -> None:
        self.total = total

    def advance(self, n: int = 1, description: str | None = None) -> None:
        assert self.total > 0, "advance() before start()"
        self.done += n
        if self.done >= self.stop:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyOptions:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("hostile_tiny_net.py").write_text(NET, encoding="utf-8")
    Path("in").mkdir()
    for index in range(3):
        picture((40, 40), seed=index).save(f"in/{index}.png")
    return StudyOptions(
        images=("in",),
        out=Path("out"),
        encoder=SPEC,
        stages=("gate1", "gate2"),
        preprocessing="size=32;resize=32;mean=0.5;std=0.25",
        methods=("frozen", "vjp", "blind"),
        steps=3,
    )


def figures(folder: Path) -> dict[tuple[str, str, str], str]:
    """The CSV without what a clock or the system's memory decides."""
    with (folder / "reconstruction.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return {
        (line["method"], line["stage"], line["quantity"]): line["mean"]
        for line in lines
        if line["quantity"] not in ("seconds", "memory")
    }


def test_every_method_has_its_figures_at_every_stage(options: StudyOptions) -> None:
    progress = Silent()
    Path("train").mkdir()
    for index in range(3):
        picture((40, 40), seed=100 + index).save(f"train/{index}.png")
    path = study_reconstruction(
        replace(options, images=("in/0.png", "in/1.png"), methods=None, train=("train",), train_seconds=0.2), progress
    )
    assert path == Path("out/reconstruction.md")
    found = figures(Path("out"))
    methods = {method for method, _, _ in found}
    assert methods == {f"{m}-unfitted" for m in ALL[:3]} | set(ALL[3:]) | {"upconvnet"}
    for method in methods:
        for stage in ("1", "2"):
            for quantity in ("SSIM", "SSIM over the best floor", "feature misfit", "transplant: correlation"):
                assert (method, stage, quantity) in found
            assert ((method, stage, "SSIM over random weights") in found) == (method != "upconvnet")
            parts = [float(found[method, stage, name]) for name in (LOST_WITH_FEATURES, LOST_WITH_GATES, LEFT)]
            assert sum(parts) == pytest.approx(float(found[method, stage, "SSIM"]), abs=1e-4)
    for method in ("blind", "blind-mean", "decoder", "mahendran", "upconvnet"):  # these never see the gates
        assert float(found[method, "1", LOST_WITH_GATES]) == pytest.approx(0, abs=0.02)
    assert progress.done == progress.total == 10 * 2 * 2
    assert {p.name for p in Path("out").iterdir()} == {
        "reconstruction.md", "reconstruction.csv", "stage-1.png", "stage-2.png", "rows", "decoders", "study.json",
    }  # fmt: skip
    text = path.read_text(encoding="utf-8")
    assert "LPIPS was not measured" in text and "| UpConvNet | ResNet" not in text
    with Image.open("out/stage-1.png") as sheet:
        assert sheet.width > 8 * 132


def test_a_killed_study_goes_on_and_ends_with_the_same_table(options: StudyOptions) -> None:
    study_reconstruction(options, Silent())
    expected = figures(Path("out"))
    killed = replace(options, out=Path("again"))
    for stop in (1, 7, 16):
        with pytest.raises(KeyboardInterrupt):
            study_reconstruction(killed, Silent(stop))
    written = {p: p.stat().st_mtime_ns for p in Path("again/rows").glob("*.json")}
    assert len(written) == 16
    study_reconstruction(killed, Silent())
    assert figures(Path("again")) == expected
    assert all(p.stat().st_mtime_ns == when for p, when in written.items())
    assert (Path("again") / "stage-2.png").read_bytes() == (Path("out") / "stage-2.png").read_bytes()


def test_sheets_show_the_pictures_of_this_run_alone(options: StudyOptions) -> None:
    """Of a folder that held a run with more controls, in other steps, and was torn, the same sheets come as of a new one."""
    study_reconstruction(replace(options, steps=2), Silent())
    fewer = replace(options, methods=("vjp", "blind"), controls=("swap",), at=("1",))
    study_reconstruction(fewer, Silent())
    study_reconstruction(replace(fewer, out=Path("new")), Silent())
    expected = Path("new/stage-1.png").read_bytes()
    assert Path("out/stage-1.png").read_bytes() == expected
    for number, file in enumerate(sorted(Path("out/rows").glob("*-1-*.png"))[::3]):
        file.write_bytes(file.read_bytes()[:50]) if number % 2 else file.unlink()
    study_reconstruction(fewer, Silent())
    assert Path("out/stage-1.png").read_bytes() == expected


def test_seconds_become_steps_once_and_an_interrupt_does_not_change_them(options: StudyOptions) -> None:
    timed = replace(options, steps=None, seconds=0.3, methods=("mahendran",), at=("1",), controls=("swap",))
    with pytest.raises(KeyboardInterrupt):
        study_reconstruction(timed, Silent(1))
    study_reconstruction(timed, Silent())
    rows = [json.loads(p.read_text(encoding="utf-8"))["values"] for p in Path("out/rows").glob("*.json")]
    assert len(rows) == 3 and len({row["steps"] for row in rows}) == 1
    # The method sees no gates: under another image's they draw the same, if they take the same steps.
    assert all(row["swap ssim to image"] == pytest.approx(row["foreign ssim"], abs=1e-4) for row in rows)


def test_rows_of_another_number_of_steps_are_drawn_anew(options: StudyOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = replace(options, steps=None, seconds=1e-6, methods=("mahendran",), at=("1",), controls=())
    for fewest, images in ((2, ("in/1.png", "in/2.png")), (4, ("in/0.png", "in/1.png", "in/2.png"))):
        monkeypatch.setattr(rival, "FEWEST", fewest)  # what the first picture affords
        study_reconstruction(replace(timed, images=images), Silent())
        rows = [json.loads(p.read_text(encoding="utf-8"))["values"] for p in Path("out/rows").glob("*.json")]
        assert [row["steps"] for row in rows] == [fewest] * len(images)


def test_decoders_are_taught_before_the_first_clock_starts(
    options: StudyOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    inverter, trial = room.Inverter, room.try_method

    def taught(encoder: Encoder, method: str) -> Inverter:
        done.append(method)
        return inverter(encoder, method)

    def tried(*args: Any, **named: Any) -> Any:
        done.append("trial")
        return trial(*args, **named)

    monkeypatch.setattr(room, "Inverter", taught)
    monkeypatch.setattr(room, "try_method", tried)
    study_reconstruction(replace(options, images=("in/0.png",), methods=("blind",), controls=(), at=("1",)), Silent())
    assert done == ["decoder", "trial"]


def test_other_settings_draw_anew_and_the_same_ones_do_not(
    options: StudyOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    real: Callable[..., Any] = room.try_method

    def counted(bench: Bench, contender: Any, *args: Any, **kwargs: Any) -> Any:
        drawn.append(contender.key)
        return real(bench, contender, *args, **kwargs)

    monkeypatch.setattr(room, "try_method", counted)
    quick = replace(options, methods=("vjp", "frozen"), at=("1",))
    for changed, expected in (
        (quick, 6),
        (quick, 0),
        (replace(quick, methods=("vjp",)), 0),
        (replace(quick, seed=1), 6),
        (replace(quick, controls=("swap",), seed=1), 6),
    ):
        drawn.clear()
        study_reconstruction(changed, Silent())
        assert len(drawn) == expected


def test_a_network_that_cannot_be_randomised_is_studied_without_that_control(
    options: StudyOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> Encoder:
        raise EncoderError("half of it stays trained")

    monkeypatch.setattr(plan, "random_encoder", refused)
    progress = Silent()
    path = study_reconstruction(replace(options, methods=("vjp",), at=("1",)), progress)
    assert "random weights is left out: half of it stays trained" in path.read_text(encoding="utf-8")
    assert any("half of it stays trained" in note for note in progress.notes)
    assert not any(quantity == "SSIM over random weights" for _, _, quantity in figures(Path("out")))


def test_a_single_picture_has_no_exchange_and_a_copy_counts_once(options: StudyOptions) -> None:
    picture((40, 40), seed=0).save("in/copy.png")
    study_reconstruction(replace(options, images=("in/0.png", "in/copy.png"), methods=("vjp",)), Silent())
    text = Path("out/reconstruction.md").read_text(encoding="utf-8")
    assert "With a single image nothing can be transplanted" in text
    assert "- images: 1: 0.png" in text
    assert "left out, since their pixels are those of others: in/copy.png" in text


def test_the_page_says_what_was_done_to_pictures_and_tells_equal_names_apart(options: StudyOptions) -> None:
    Path("more").mkdir()
    picture((40, 40), seed=7).convert("RGBA").save("more/0.png")
    grey = Image.new("I;16", (40, 40))
    grey.paste(900, (5, 5, 30, 20))
    grey.save("more/deep.png")
    study_reconstruction(replace(options, images=("in", "more"), methods=("vjp",), at=("1",)), Silent())
    text = Path("out/reconstruction.md").read_text(encoding="utf-8")
    assert "- images: 5: in/0.png, in/1.png, in/2.png, more/0.png, more/deep.png" in text
    assert "as they were read: deep.png (16-bit grey scaled to 8 bits)" in text


def test_random_weights_are_named_on_the_page(options: StudyOptions) -> None:
    study_reconstruction(
        replace(options, encoder="torchvision:squeezenet1_1", stages=None, methods=("vjp",), at=("1",), controls=()),
        Silent(),
    )
    text = Path("out/reconstruction.md").read_text(encoding="utf-8")
    assert "torchvision:squeezenet1_1 with RANDOM weights" in text and "random weights" in text.split("## Notes")[1]


def test_a_folder_of_another_networks_study_and_one_of_the_pictures_are_refused(options: StudyOptions) -> None:
    shallow = replace(options, methods=("vjp",), at=("1",), controls=())
    study_reconstruction(replace(shallow, at=("1", "2")), Silent())
    before = {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}
    other = replace(shallow, encoder="builtin:scenes", stages=None, preprocessing=None)
    with pytest.raises(OptionError, match="holds a study of another network"):
        study_reconstruction(other, Silent())
    assert {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()} == before
    for images in (("in",), ("in/0.png", "in/1.png")):
        with pytest.raises(OptionError, match="is a folder of the pictures"):
            study_reconstruction(replace(shallow, images=images, out=Path("in/../in")), Silent())
    assert sorted(p.name for p in Path("in").iterdir()) == ["0.png", "1.png", "2.png"]
    study_reconstruction(shallow, Silent())  # the same network's folder may be used again
    assert not Path("out/stage-2.png").exists()


def test_correctors_fitted_on_a_studied_picture_are_refused(options: StudyOptions) -> None:
    fitted = Path("fitted.safetensors")
    unfitted = Correctors.unfitted([3, 6])
    digests = [load_image(f"in/{i}.png").digest for i in range(2)]
    study = replace(options, methods=("fused",), correctors=(fitted,), controls=(), at=("1",))
    for marks, said in ((digests[1][:16], "1.png is to be studied"), ("0" * 16, None), (None, None)):
        replace(unfitted, card={} if marks is None else {PICTURES: marks}).save(fitted)
        if said is not None:
            with pytest.raises(OptionError, match=said):
                study_reconstruction(study, Silent())
            continue
        study_reconstruction(study, Silent())
        unknown = "do not say which pictures" in Path("out/reconstruction.md").read_text(encoding="utf-8")
        assert unknown == (marks is None)


@pytest.mark.parametrize("seed", [30_000_000, 30_000_967])
def test_the_shipped_correctors_know_the_scenes_that_they_were_fitted_on(seed: int, options: StudyOptions) -> None:
    study = StudyOptions(images=("fitted.png",), out=Path("out"), methods=("fused",), controls=(), at=("1",))
    Image.fromarray(scene(seed).image).save("fitted.png")
    with pytest.raises(OptionError, match=r"fitted\.png is to be studied, but the correctors were fitted on it"):
        study_reconstruction(study, Silent())
    Image.fromarray(scene(30_000_968).image).save("new.png")
    progress = Silent()
    study_reconstruction(replace(study, images=("new.png",)), progress)
    assert not any("were fitted on" in note for note in progress.notes)
    study_reconstruction(replace(study, methods=("vjp",)), progress)  # no cascade, so no correctors to be fitted on it


def test_rows_of_another_training_are_drawn_anew(options: StudyOptions) -> None:
    Path("train").mkdir()
    picture((40, 40), seed=100).save("train/0.png")
    learned = replace(options, methods=("upconvnet",), train=("train",), train_seconds=0.1, at=("1",), controls=())
    study_reconstruction(learned, Silent())
    rows = {p: json.loads(p.read_text(encoding="utf-8"))["run"] for p in Path("out/rows").glob("*.json")}
    Path("out/decoders/stage-1.safetensors").unlink()
    study_reconstruction(learned, Silent())  # as many steps as the clock allows: never the same decoder
    assert all(json.loads(p.read_text(encoding="utf-8"))["run"] != run for p, run in rows.items())


def test_a_picture_too_small_for_ssim_is_refused_by_its_size(options: StudyOptions) -> None:
    with pytest.raises(OptionError, match="8 x 8 pixels are too small for SSIM"):
        study_reconstruction(replace(options, preprocessing="size=8;resize=8;mean=0.5;std=0.25"), Silent())


def test_fitted_correctors_stand_beside_the_unfitted(options: StudyOptions) -> None:
    unfitted = Correctors.unfitted([3, 6])
    levels = tuple(replace(c, beta=torch.full_like(c.beta, 0.5)) for c in unfitted.levels)
    replace(unfitted, levels=levels, label="planted").save("planted.safetensors")
    study_reconstruction(replace(options, methods=("fused",), correctors=(Path("planted.safetensors"),)), Silent())
    found = figures(Path("out"))
    assert {method for method, _, _ in found} == {"fused-unfitted", "fused-fitted"}
    # What was fitted to this encoder's features means nothing to random ones.
    assert {m for m, _, quantity in found if quantity == "SSIM over random weights"} == {"fused-unfitted"}
    text = Path("out/reconstruction.md").read_text(encoding="utf-8")
    assert "No figure for random weights: cascade fused, fitted." in text
    assert found["fused-unfitted", "2", "SSIM"] != found["fused-fitted", "2", "SSIM"]


def test_a_method_that_fails_is_counted_and_the_others_go_on(
    options: StudyOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = room.try_method

    def broken(bench: Bench, contender: Any, *args: Any, **kwargs: Any) -> Any:
        if contender.key == "vjp":
            raise StageError("nothing to pull back here")
        return real(bench, contender, *args, **kwargs)

    monkeypatch.setattr(room, "try_method", broken)
    path = study_reconstruction(replace(options, methods=("frozen", "vjp"), at=("gate2",)), Silent())
    text = path.read_text(encoding="utf-8")
    assert "raw VJP (vanilla) (3 failed)" in text
    assert "- raw VJP (vanilla), stage 2, 3 of 3 images (0.png): nothing to pull back here" in text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"methods": ("blnd",)}, "unknown method 'blnd'; choose among additive"),
        ({"controls": ("swop",)}, "unknown control 'swop'; choose among transplant"),
        ({"methods": ("vjp", "vjp")}, "name each one once"),
        ({"methods": ("upconvnet",)}, "--train FOLDER"),
        ({"train": ("in",), "methods": ("vjp",)}, "--train FOLDER, go together"),
        ({"methods": ("vjp",), "correctors": (Path("fitted"),)}, "correctors belong to the methods additive"),
        ({"seconds": 2.0}, "give one of them"),
        ({"limit": 0}, "limit=0 must be above 0"),
        ({"steps": None, "seconds": float("inf")}, "seconds=inf must be above 0 and finite"),
        ({"steps": None, "seconds": float("nan")}, "seconds=nan must be above 0 and finite"),
        ({"train": ("in",), "methods": ("upconvnet",)}, "is to be trained on, but is 0.png of the study"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_picture(
    options: StudyOptions, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        study_reconstruction(replace(options, **changed), Silent())
    assert not list(Path().glob("out/rows/*"))


def test_limit_spreads_over_the_pictures(options: StudyOptions) -> None:
    for index in range(3, 9):
        picture((40, 40), seed=index).save(f"in/{index}.png")
    study_reconstruction(replace(options, methods=("vjp",), at=("2",), limit=3), Silent())
    rows = [json.loads(p.read_text(encoding="utf-8"))["image"] for p in Path("out/rows").glob("*.json")]
    assert sorted(rows) == ["0.png", "3.png", "6.png"]
