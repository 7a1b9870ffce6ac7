"""The scripts that print the tables of the documents: what a study says, and what the inverter draws."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles.command import picture
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

import pullback as pb
from pullback.studies.results import Results
from pullback.studies.rows import Row, keep
from pullback.studies.tables import page, table
from scripts import draw_blind, measure_blind, measure_pictures, study_table

Script = Callable[..., list[str]]


@pytest.fixture
def short_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    def run(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["study_table.py", *arguments])
        study_table.main()
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def blind_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Of the mean start, for which no decoder is taught, in two steps, with three pictures to choose from."""
    monkeypatch.chdir(tmp_path)
    for index in range(2):
        picture(seed=index).save(f"{index}.png")
    Image.new("RGB", (40, 36)).save("black.png")

    def run(*arguments: str) -> list[str]:
        settings = ("--start", "mean", "--steps", "2", "--threads", "1")
        monkeypatch.setattr(sys, "argv", ["measure_blind.py", "builtin:scenes", *settings, *arguments])
        measure_blind.main()
        return capsys.readouterr().out.splitlines()

    return run


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


def study(folder: Path, values: dict[str, float]) -> None:
    """Of ten images: the Wiener inverse has these values, the fitted cascade draws none."""
    names = [f"{index}.png" for index in range(10)]
    rows = {
        ("frozen-fitted", 1): [Row("frozen-fitted", 1, name, {}, "no luck") for name in names],
        # The first picture takes long: it may have paid for what is made once.
        ("wiener", 1): [
            Row("wiener", 1, name, {**values, "seconds": 2.0 if n else 60.0}) for n, name in enumerate(names)
        ],
    }
    titles = {"frozen-fitted": "cascade frozen, fitted", "wiener": "Wiener"}
    results = Results(names, titles, {1: "layer1"}, rows, {"grey": [{"ssim": 0.2}] * 10}, seed=0)
    (folder / "reconstruction.csv").write_text(table(results), encoding="utf-8")
    (folder / "reconstruction.md").write_text(page(results, {}, [], []), encoding="utf-8")


def test_the_short_table_has_the_lines_of_its_study(tmp_path: Path, short_table: Script) -> None:
    study(tmp_path, {"ssim": 0.5, "floor": 0.2, "null ssim": 0.1, "correlation": 0.8})
    (tmp_path / "rows").mkdir()
    keep(tmp_path / "rows" / "other.json", Row("wiener", 1, "other.png", {"seconds": 90.0}), "another study", {})
    _, _, failed, wiener = map(cells, short_table(str(tmp_path)))
    assert failed[:2] == ["1", "cascade frozen, fitted"] and set(failed[2:-1]) == {"–", "–, –"}
    assert failed[-1] == "inconclusive (10 of 10 images failed)"
    assert wiener[:4] == ["1", "Wiener", "+30.0 [+30.0, +30.0]", "0.80 [0.80, 0.80]"]
    assert wiener[-2:] == ["2.0", "inconclusive (not tried: swap, transplant)"]
    assert [cells(line)[1] for line in short_table(str(tmp_path), "frozen-fitted")[2:]] == ["cascade frozen, fitted"]


def test_the_short_table_calls_a_null_by_its_number(tmp_path: Path, short_table: Script) -> None:
    study(tmp_path, {"ssim": 0.5, "floor": 0.2, "null ssim": 0.5})
    assert cells(short_table(str(tmp_path))[-1])[-1] == "explained by null 1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("nowhere",), "holds no finished study"), ((".", "frozen"), "'frozen'"), ((".", "wat"), "'wat'")],
)
def test_the_short_table_refuses_in_one_line(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    short_table: Script,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    study(tmp_path, {"ssim": 0.5})
    with pytest.raises(SystemExit) as left:
        short_table(*arguments)
    out, err = capsys.readouterr()
    assert left.value.code == 2 and out == "" and err.count("\n") == 1 and said in err


@pytest.mark.parametrize("starts", [1, 2])
def test_each_picture_is_searched_as_the_inverter_does(
    starts: int, blind_table: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, found = measure_blind.blind_inverse, []

    def noted(*arguments: object, **options: object) -> object:
        result = search(*arguments, **options)  # type: ignore[arg-type]
        found.append(result)
        return result

    monkeypatch.setattr(measure_blind, "blind_inverse", noted)
    blind_table("0.png", "1.png", "--starts", str(starts))
    encoder = pb.load_encoder("builtin:scenes")
    inverter = pb.Inverter(encoder, "blind", start="mean", starts=starts, steps=2)
    expected: list[Tensor] = []
    for stage in encoder.stages:
        for name in ("0.png", "1.png"):
            with inverter(name) as session:
                expected.append(session.stage(stage.number).tensor)
    assert len(found) == len(expected)
    for result, tensor in zip(found, expected, strict=True):
        assert len(result.x) == starts and torch.equal(result.x[int(result.misfit.argmin())], tensor)


def test_copies_count_once_and_flat_pictures_are_told(blind_table: Script) -> None:
    Path("copy.png").write_bytes(Path("0.png").read_bytes())
    lines = blind_table("0.png", "black.png", "copy.png", "--sheet", "sheet.png")
    assert "2 pictures" in lines[0] and lines[2] == "Copies, left out: 1 of 3 files."
    assert lines[-1].endswith("without correlation: 1 of 2 pictures, which count in the other columns.")
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (5 * 128, 2 * 128)


@pytest.mark.parametrize("starts", ["1", "2"])
def test_the_stages_that_are_asked_for(starts: str, blind_table: Script) -> None:
    lines = blind_table("0.png", "1.png", "--starts", starts, "--at", "layer3, 1")
    names = [cells(line)[0] for line in lines if line.startswith("| ")][2:]
    beside = ["constant 0.5", "mean colour", "8x8 thumbnail"] if starts == "1" else []
    assert names == [*beside, "3 layer3", "1 layer1"]


def test_the_floors_stand_beside_the_stages_by_the_same_measures(blind_table: Script) -> None:
    """By hand, of one picture: what its mean colour and its block means tell of it."""
    rows = {name: rest for name, *rest in map(cells, blind_table("0.png", "--at", "1"))}
    with Image.open("0.png") as opened:
        x = pb.load_encoder("builtin:scenes").preprocess(opened).double()
    blocks = x.unflatten(1, (8, -1)).unflatten(3, (8, -1)).mean((2, 4))
    enlarged = interpolate(blocks[None], x.shape[1:], mode="bicubic")[0]
    for name, floor in (("mean colour", x.mean((1, 2), keepdim=True).expand_as(x)), ("8x8 thumbnail", enlarged)):
        near = torch.corrcoef(torch.stack([floor.flatten(), x.flatten()]))[0, 1]
        assert float(rows[name][0]) == pytest.approx(float(near), abs=6e-4)
    best = max(float(rows[name][1]) for name in ("constant 0.5", "mean colour", "8x8 thumbnail"))
    assert float(rows["mean colour"][2]) == float(rows["1 layer1"][2]) == best
    assert rows["mean colour"][4:] == ["–", "–"]


@pytest.mark.parametrize("starts", ["1", "2"])
def test_one_picture_has_no_interval(starts: str, blind_table: Script) -> None:
    for name in ("0.png", "black.png"):
        text = "\n".join(blind_table(name, "--starts", starts))
        assert "nan" not in text and "inf" not in text and "[" not in text


def refuses(script: Script, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, nothing on stdout, and one line that names what is wrong."""
    with pytest.raises(SystemExit) as left:
        script(*arguments)
    out, err = capsys.readouterr()
    assert left.value.code == 2 and out == "" and err.count("\n") == 1 and said in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.png",), "nowhere.png"),
        (("0.png", "--weights", "nowhere.pt"), "nowhere.pt"),
        (("0.png", "--steps", "0"), "steps=0"),
        (("0.png", "--at", "5"), "5"),
        (("0.png", "--sheet", "nowhere/sheet.png"), "nowhere/sheet.png"),
    ],
)
def test_careless_input_is_met_before_the_work_in_one_line(
    arguments: tuple[str, ...], said: str, blind_table: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    refuses(blind_table, arguments, said, capsys)


@pytest.fixture
def pictures_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    monkeypatch.chdir(tmp_path)
    picture().save("0.png")

    def run(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["measure_pictures.py", "builtin:scenes", *arguments])
        measure_pictures.main()
        return capsys.readouterr().out.splitlines()

    return run


def test_few_steps_leave_the_wiener_inverse_one(pictures_table: Script) -> None:
    lines = pictures_table("0.png", "--steps", "3", "--methods", "wiener")
    assert lines[0].endswith("blind 3 steps, Wiener 1 steps")
    assert [cells(line)[0] for line in lines if line.startswith("| ")][2:] == [f"{n} layer{n}" for n in range(1, 5)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.png",), "nowhere.png"),
        (("0.png", "--steps", "0"), "steps=0"),
        (("0.png", "--weights", "n.pt"), "n.pt"),
    ],
)
def test_the_table_of_pictures_refuses_in_one_line(
    arguments: tuple[str, ...], said: str, pictures_table: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    refuses(pictures_table, arguments, said, capsys)


def test_the_figure_holds_what_the_inverter_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows below each other: photograph and thumbnail, starts, blind pictures, nulls, with a column for each stage."""
    encoder, drawn = pb.load_encoder("builtin:scenes"), []
    monkeypatch.setattr(draw_blind, "sheet", lambda rows: drawn.extend(rows) or Image.new("RGB", (8, 8)))
    x = encoder.preprocess(picture())
    draw_blind.figure(encoder, x, 2)
    with pb.Inverter(encoder, "blind", steps=2)(x) as session:
        blind = [session.stage(n) for n in range(1, 5)]
    with pb.Inverter(encoder, "decoder")(x) as session:
        starts = [session.stage(n) for n in range(1, 5)]
    for row, expected in zip(
        drawn[1:], ([p.rgb() for p in starts], [p.rgb() for p in blind], [p.null_rgb() for p in blind]), strict=True
    ):
        assert [image.tobytes() for _, image in row.cells] == [image.tobytes() for image in expected]
    near = pb.measures.correlation(blind[2].tensor, x)
    assert drawn[2].cells[2][0].startswith(f"stage 3: {near:.2f} / ")
    assert drawn[0].cells[0][1].tobytes() == encoder.preprocessing.crop(picture()).tobytes()
