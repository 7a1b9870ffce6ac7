"""The reconstruction study (specification, section 7): every method beside floors, rivals, nulls and transplants, to a verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pullback import __version__
from pullback.errors import OptionError, PullbackError
from pullback.explain.options import Progress
from pullback.images import image_files, output_folder, write_whole
from pullback.inversion import Inverter
from pullback.pictures.display import png, to_image
from pullback.studies.bootstrap import FEW
from pullback.studies.contenders import Budget, Contender
from pullback.studies.options import StudyOptions
from pullback.studies.plan import Plan, Subject, check, planned
from pullback.studies.results import Results
from pullback.studies.rows import Row, claim, keep, kept, picture_of
from pullback.studies.sheet import Block, Box, Strip, sheet
from pullback.studies.tables import page, table
from pullback.studies.trial import Tried, floor_values, try_method

SHOWN = 4  # images on the sheets
_ASKED = {
    "own": "its own features",
    "null": "no features (null)",
    "transplant": "features of the image with a pasted patch",
    "swap": "all features from another image",
    "random": "own features, random weights",
}
_WORDS = (
    "Left: the picture whose features each method was given; the gates are always those of the block's first picture. Pictures are "
    "de-normalised and clamped, with nothing stretched; a raw VJP is a signed map around grey, to its own scale; -: no "
    "such picture."
)


def study_reconstruction(options: StudyOptions, progress: Progress) -> Path:
    """Do what the options say and return the page to open: `reconstruction.md`, beside a CSV table and a sheet for each stage.

    What cannot work raises before the first picture is drawn. Rows that are there from the same settings are kept, so the
    same command carries on after an interrupt. Settings include the number of steps that the first picture settled, so rows of
    another number are drawn anew; a new folder is for changed code, which is told apart by its version alone. A
    method that fails on an image is counted in the tables.
    """
    check(options)
    files = image_files(options.images)
    if any(file.resolve().parent == options.out.resolve() for file in files):
        raise OptionError(f"out={options.out} is a folder of the pictures, which its sheets would join: choose another")
    if options.limit is not None:
        count = min(options.limit, len(files))
        files = [files[i * len(files) // count] for i in range(count)]
    with output_folder(options.out) as folder:
        plan = planned(options, files, folder, progress)
        claim(folder, plan.bench.encoder)
        floors = [floor_values(plan.bench, s.image) for s in plan.subjects]
        rows = _rows(plan, [max(f["ssim"] for f in found.values()) for found in floors], folder, progress)
        return _written(plan, rows, floors, folder)


def _rows(plan: Plan, floors: Sequence[float], folder: Path, progress: Progress) -> dict[tuple[str, int], list[Row]]:
    """Every row, drawn or kept; images outermost, so that an interrupted study has whole images. floors: best SSIM of each."""
    rows: dict[tuple[str, int], list[Row]] = {(m.key, s): [] for s in plan.stages for m in plan.methods}
    progress.start(len(rows) * len(plan.subjects), "reading")
    _teach(plan, progress)
    before: dict[tuple[str, int], Tensor] = {}
    budgets: dict[tuple[str, int], Budget] = {}
    for index, subject in enumerate(plan.subjects):
        drawn: dict[tuple[str, int], Tensor] = {}
        for stage in plan.stages:
            for method in plan.methods:
                path = plan.path(folder, subject, stage, method.key)
                budget = budgets.get((method.key, stage), plan.bench.budget)
                run = _fingerprint(plan, method, subject, budget, shown=index < SHOWN)
                row = kept(path, run)
                if row is None:
                    progress.advance(0, f"{subject.name}, stage {stage}: {method.title}")
                    donor = before.get((method.key, stage))
                    row, tried = _row(plan, method, stage, subject, budget, floors[index], donor)
                    keep(path, row, run, tried.shown if tried is not None and index < SHOWN else {})
                    if tried is not None:
                        drawn[method.key, stage] = tried.picture
                rows[method.key, stage].append(row)
                # The first picture turns seconds into steps, and all others take as many: they are to be compared.
                if row.get("steps") is not None:
                    budgets.setdefault((method.key, stage), plan.bench.budget.at(row.get("steps")))
                progress.advance(1)
        before = drawn
    return rows


def _row(
    plan: Plan,
    method: Contender,
    stage: int,
    subject: Subject,
    budget: Budget,
    floor: float,
    donor_picture: Tensor | None,
) -> tuple[Row, Tried | None]:
    try:
        found = try_method(
            replace(plan.bench, budget=budget),
            method,
            stage,
            subject.image,
            subject.guest,
            floor=floor,
            donor_picture=donor_picture,
        )
    except PullbackError as error:
        return Row(method.key, stage, subject.name, {}, str(error)), None
    return Row(method.key, stage, subject.name, found.values), found


def _teach(plan: Plan, progress: Progress) -> None:
    """Teach the decoders of the stages, once and before the first clock starts, where a method begins with them."""
    if {"blind", "decoder"} & {m.key for m in plan.methods}:
        progress.advance(0, "teaching decoders on synthetic pictures")
        # A network that cannot be taught fails again in its rows, where it is counted.
        with suppress(PullbackError), Inverter(plan.bench.encoder, "decoder")(plan.subjects[0].image) as session:
            session.stage(plan.stages[0])


def _fingerprint(plan: Plan, method: Contender, subject: Subject, budget: Budget, shown: bool) -> str:
    guest = b"" if subject.guest is None else subject.guest.patch.pasted.cpu().numpy().tobytes()
    said = (plan.run, budget, method.key, method.about, subject.digest, hashlib.sha256(guest).hexdigest(), shown)
    return hashlib.sha256(repr(said).encode()).hexdigest()


def _written(
    plan: Plan,
    rows: Mapping[tuple[str, int], Sequence[Row]],
    floors: Sequence[Mapping[str, Mapping[str, float]]],
    folder: Path,
) -> Path:
    encoder, bench = plan.bench.encoder, plan.bench
    results = Results(
        images=[s.name for s in plan.subjects],
        titles={m.key: m.title for m in plan.methods},
        stages={n: encoder.stage(n).name for n in plan.stages},
        rows=rows,
        floors={name: [found[name] for found in floors] for name in floors[0]},
        seed=plan.seed,
    )
    sheets = {f"stage-{n}.png": _sheet(plan, n, folder) for n in plan.stages}
    for old in {p.name for p in folder.glob("stage-*.png")} - set(sheets):
        (folder / old).unlink()  # of a study that the page no longer tells of
    for name, made in sheets.items():
        write_whole(folder / name, png(made))
    write_whole(folder / "reconstruction.csv", table(results).encode())
    about = {
        "encoder": f"{encoder.title}, weights {encoder.weights_digest[:12]}, preprocessing {encoder.preprocessing.geometry}",
        "stages": ", ".join(f"{n} ({encoder.stage(n).name})" for n in plan.stages),
        "images": f"{len(plan.subjects)}: {', '.join(results.images[:6])}{' ...' if len(plan.subjects) > 6 else ''}",
        "budget of iterative inverses": _said(bench.budget),
        "machine": f"{encoder.device}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "pullback": f"{__version__}, seed {plan.seed}",
    }
    path = folder / "reconstruction.md"
    write_whole(path, page(results, about, _notes(plan, results), list(sheets)).encode())
    return path


def _said(budget: Budget) -> str:
    if budget.steps is not None:
        return f"{budget.steps} steps for each picture and for its null"
    return (
        f"{budget.seconds:g} s for the first picture (Wiener, Mahendran & Vedaldi: and its null; the null of the blind inverse is "
        "searched once more beside), which is then drawn again in the number of steps that this gave, and so are all others"
    )


def _notes(plan: Plan, results: Results) -> list[str]:
    notes = list(plan.notes)
    if plan.bench.distance is None:
        notes.append(
            "LPIPS was not measured: it needs the weights of torchvision's squeezenet1_1 (--lpips-backbone FILE)."
        )
    if len(plan.subjects) < 2:
        notes.append("With a single image nothing can be transplanted, and no interval can be given.")
    elif len(plan.subjects) < FEW:
        notes.append(
            f"With fewer than {FEW} images the intervals are too narrow (of 3 they cover 76 %, not 95 %): nothing is concluded."
        )
    if "random" not in plan.bench.controls:
        notes.append("The random-weight encoder was not asked for.")
    if "vjp" in results.titles:
        notes.append(
            "The raw VJP is no picture but a signed map: the sheets show it around grey, each to its own scale, while SSIM is "
            "taken of it de-normalised and clamped like all others."
        )
    learned = [m.title for m in plan.methods if m.learned]
    if learned and plan.bench.stranger is not None:
        notes.append(
            f"No figure for random weights: {'; '.join(learned)}. What they learnt is for these features alone."
        )
    for (method, stage), rows in results.rows.items():
        for error, failed in groupby(sorted((r.error, r.image) for r in rows if r.error), key=itemgetter(0)):
            names = [image for _, image in failed]
            notes.append(
                f"{results.titles[method]}, stage {stage}, {len(names)} of {len(rows)} images ({names[0]}): {error}"
            )
    return notes


def _sheet(plan: Plan, stage: int, folder: Path) -> Image.Image:
    colours = plan.bench.display.colours
    blocks = []
    for subject in plan.subjects[:SHOWN]:
        sources: dict[str, Image.Image | None] = {"own": to_image(colours(subject.image)), "null": None}
        box: Box | None = None
        if subject.guest is not None:
            sources["transplant"] = to_image(colours(subject.guest.patch.pasted))
            sources["swap"] = to_image(colours(subject.guest.donor))
            box = _box(subject.guest.patch.inside)
        sources["random"] = sources["own"]
        strips = []
        for name, source in sources.items():
            answers = {m.key: picture_of(plan.path(folder, subject, stage, m.key), name) for m in plan.methods}
            if any(answers.values()):
                strips.append(Strip(_ASKED[name], source, answers, box if name == "transplant" else None))
        blocks.append(Block(subject.name, strips))
    name = plan.bench.encoder.stage(stage).name
    title = f"Stage {stage} ({name}) of {plan.bench.encoder.name}"
    return sheet(title, _WORDS, {m.key: m.title for m in plan.methods}, blocks)


def _box(inside: Tensor) -> Box:
    rows, columns = (inside.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    height, width = inside.shape
    return columns[0] / width, rows[0] / height, columns[-1] / width, rows[-1] / height
