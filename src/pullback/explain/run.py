"""From the command's options to files: every picture explained, a report, a panel and a record for each, an index for several."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pullback import __version__
from pullback.encoders import Encoder, load_encoder
from pullback.errors import ImageError, OptionError, PullbackError
from pullback.explain.options import SECONDS, STEPS, Options, Progress
from pullback.explain.recipe import explain, parts
from pullback.images import (
    Loaded,
    Mask,
    check_inputs_stay,
    find_masks,
    image_files,
    load_image,
    load_mask,
    output_folder,
    scene,
    write_together,
    write_whole,
)
from pullback.inversion import Correctors, shipped_correctors
from pullback.inversion.wiener import RIDGE
from pullback.pictures.display import png
from pullback.report import Guess, IndexEntry, index, is_page, is_record, page, panel, record_json, thumbnail

BUNDLED_SCENE = 20_000_007  # a seed that the embedded encoder was never trained on
INDEX = "index"
_SUFFIXES = ("html", "png", "json")  # of a report's files
_LONGEST_STEM = 255 - len(".html")  # bytes; what is written first, beside it, has a short name of its own


@dataclass(frozen=True)
class _Job:
    """One picture to explain, its mask, and the stem of its files."""

    source: Path | None  # None: the bundled scene
    mask: Path | None
    stem: str

    @property
    def name(self) -> str:
        return self.source.name if self.source else self.stem


def explain_all(options: Options, progress: Progress) -> Path:
    """Do what the options say and return the page to open. What cannot work raises before the first picture is drawn.

    In a folder, pictures that fail are listed in the index and raise one ImageError at the end; reports that are there
    already, from the same picture and the same settings, are kept unless `overwrite` is set. Without it files that are no
    report of pullback are not replaced either, but raise OptionError.
    """
    if options.quality not in SECONDS:
        raise OptionError(f"unknown quality {options.quality!r}; choose one of {', '.join(SECONDS)}")
    device = _device(options.device)
    jobs = _jobs(options)
    with output_folder(options.out) as folder:
        check_inputs_stay(
            (folder / f"{job.stem}.{suffix}" for job in jobs for suffix in _SUFFIXES),
            (path for job in jobs for path in (job.source, job.mask) if path is not None),
        )
        if not options.overwrite:
            _check_reports(folder, [job.stem for job in jobs])
        return _explain_into(folder, jobs, options, device, progress)


def _explain_into(folder: Path, jobs: list[_Job], options: Options, device: torch.device, progress: Progress) -> Path:
    encoder = load_encoder(
        options.encoder,
        weights=options.weights,
        classes=options.classes,
        preprocessing=options.preprocessing,
        stages=options.stages,
        device=device,
    )
    target = None if options.target is None else encoder.class_index(options.target)
    correctors = shipped_correctors(encoder) if options.correctors is None else Correctors.load(options.correctors)
    if correctors is not None:
        correctors.check(encoder.name, [encoder.input_shape[0], *(s.channels for s in encoder.stages[:-1])])
    unfitted = () if correctors else ("no fitted correctors come with these stages: adjoint pictures are unfitted",)
    for note in (*encoder.preprocessing.assumed, *encoder.notes, *unfitted):
        progress.note(f"note: {note}")
    progress.start(len(jobs) * parts(encoder), "reading")
    entries, failed = [], []
    for job in jobs:
        try:
            entries.append(_one(job, options, encoder, correctors, target, folder, progress))
        except PullbackError as error:
            if len(jobs) == 1 or isinstance(error, OSError):
                raise
            progress.advance(parts(encoder))
            progress.note(f"{job.stem}: {error}")
            failed.append(job.stem)
            entries.append(IndexEntry(job.name, error=str(error)))
    if len(jobs) == 1:
        return folder / f"{jobs[0].stem}.html"
    settings = {
        "weights": encoder.weights_digest[:12], "quality": options.quality, "start": options.start, "seed": options.seed,
    }  # fmt: skip
    write_whole(folder / f"{INDEX}.html", index(entries, encoder.name, settings).encode())
    if failed:
        named = ", ".join(failed[:3]) + (" ..." if len(failed) > 3 else "")
        raise ImageError(
            f"{len(failed)} of {len(jobs)} pictures could not be explained ({named}); the others are done, reasons in"
            f" {folder / f'{INDEX}.html'}"
        )
    return folder / f"{INDEX}.html"


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" makes tensors without numbers
    except (RuntimeError, AssertionError, ImportError) as error:  # ImportError: a device of another package's
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise OptionError(
            f"device {name!r} cannot be used here ({reason}); use cpu, or a device that torch sees"
        ) from error
    return device


def _jobs(options: Options) -> list[_Job]:
    """One job a picture; stems made different where two pictures have the same one, or the index's, and short enough."""
    if not options.images:
        return [_Job(None, options.mask, "scene")]
    files = image_files(options.images)
    masks = [None] * len(files) if options.mask is None else find_masks(files, options.mask)
    shared = Counter(f.stem.casefold() for f in files)  # some disks take two names for one that differ in capitals
    taken = {INDEX}
    jobs = []
    for file, mask in zip(files, masks, strict=True):
        stem = file.stem if shared[file.stem.casefold()] == 1 else file.name.replace(".", "-")
        numbered = (_short(stem if n == 1 else f"{stem}-{n}") for n in count(1))
        free = (s for s in numbered if s.casefold() not in taken)
        jobs.append(_Job(file, mask, next(free)))
        taken.add(jobs[-1].stem.casefold())
    return jobs


def _check_reports(folder: Path, stems: list[str]) -> None:
    """Raise OptionError where a file that is no earlier report of pullback's, nor an index of some, would be replaced."""
    foreign = [folder / f"{INDEX}.html"] if len(stems) > 1 and not is_page(folder / f"{INDEX}.html") else []
    for stem in stems:
        ours = {"html": is_page(folder / f"{stem}.html"), "json": is_record(_record(folder, stem))}
        # Where a report was killed as it was written, one of its two texts may be missing, and the other tells.
        foreign += [folder / f"{stem}.{suffix}" for suffix in _SUFFIXES if not ours.get(suffix, any(ours.values()))]
    for path in foreign:
        if path.is_file():
            raise OptionError(
                f"{path} is no report of pullback, and one would replace it: give another folder to --out, or --overwrite"
            )


def _short(stem: str) -> str:
    """`stem`, cut to the bytes that a file name has room for beside its suffix; a digest keeps cut ones apart."""
    name = os.fsencode(stem)
    if len(name) <= _LONGEST_STEM:
        return stem
    mark = f"-{hashlib.sha256(name).hexdigest()[:12]}"
    while len(os.fsencode(stem)) + len(mark) > _LONGEST_STEM:
        stem = stem[:-1]  # whole letters, which may take several bytes
    return stem + mark


def _one(
    job: _Job,
    options: Options,
    encoder: Encoder,
    correctors: Correctors | None,
    target: int | None,
    folder: Path,
    progress: Progress,
) -> IndexEntry:
    loaded, mask, origin = _read(job)
    shown = encoder.preprocessing.crop(loaded.image)
    run = _fingerprint(options, encoder, correctors, loaded, mask)
    before = None if options.overwrite else _record(folder, job.stem)
    if is_record(before) and before["run"] == run and _drawn(folder, job.stem):
        progress.advance(parts(encoder), f"{job.stem}: done before")
        return _entry(job, shown, before)
    if is_record(before) and before["run"] != run:
        progress.note(
            f"note: {job.stem}: the report that stands there is of other settings or another picture: made anew"
        )
    notes = (*loaded.notes, *encoder.preprocessing.notes(loaded.image), *(mask.notes if mask else ()))

    begun = 0

    def told(part: str) -> None:
        nonlocal begun
        progress.advance(min(begun, 1), f"{job.stem}, {part}")
        begun += 1

    explanation = explain(
        encoder,
        encoder.preprocess(loaded.image),
        picture=shown,
        file_name=loaded.name if job.source else job.stem,
        origin=origin,
        digest=loaded.digest,
        target=target,
        mask=None if mask is None else encoder.preprocessing.mask(mask.values),
        correctors=correctors,
        quality=options.quality,
        start=options.start,
        seed=options.seed,
        notes=notes,
        told=told,
    )
    text = record_json(explanation, run=run)
    with ThreadPoolExecutor(1) as beside:  # most of both is the packing of pictures, which leaves Python to the other
        drawn = beside.submit(lambda: png(panel(explanation)))
        html = page(explanation).encode()
    files = {
        folder / f"{job.stem}.html": html,
        folder / f"{job.stem}.png": drawn.result(),
        folder / f"{job.stem}.json": text.encode(),
    }
    write_together(files)
    progress.advance(parts(encoder) - max(begun - 1, 0))  # what there was nothing to do for is done too
    return _entry(job, shown, json.loads(text))


def _read(job: _Job) -> tuple[Loaded, Mask | None, str]:
    if job.source is None:
        made = scene(BUNDLED_SCENE)
        loaded = load_image(Image.fromarray(made.image))
        mask = load_mask(job.mask or Image.fromarray(made.mask), loaded)
        return loaded, mask, f"a bundled scene ({made.name}, seed {made.seed}), since no image was given"
    loaded = load_image(job.source)
    return loaded, None if job.mask is None else load_mask(job.mask, loaded), "your own file"


def _fingerprint(
    options: Options, encoder: Encoder, correctors: Correctors | None, loaded: Loaded, mask: Mask | None
) -> str:
    """What decides the result: equal fingerprints need no second run."""
    said = (
        __version__, loaded.digest, None if mask is None else hashlib.sha256(mask.values.tobytes()).hexdigest(), encoder.name,
        encoder.weights_digest, encoder.classes, repr(encoder.preprocessing), [s.name for s in encoder.stages], options.target,
        None if correctors is None else correctors.digest, str(encoder.device), options.quality, SECONDS[options.quality],
        STEPS[options.quality], RIDGE, options.start, options.seed,
    )  # fmt: skip
    return hashlib.sha256(repr(said).encode()).hexdigest()


def _drawn(folder: Path, stem: str) -> bool:
    """Whether the page and the panel of a report are there."""
    return all((folder / f"{stem}.{suffix}").is_file() for suffix in ("html", "png"))


def _record(folder: Path, stem: str) -> Any:
    """What stands in the place of a report's record; None where that is no JSON."""
    try:
        return json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _entry(job: _Job, shown: Image.Image, found: dict[str, object]) -> IndexEntry:
    classes = found.get("classes")
    guess = Guess(**classes[0]) if isinstance(classes, list) and classes else None
    return IndexEntry(
        job.name,
        thumbnail(shown),
        guess,
        f"{job.stem}.html",
        f"{job.stem}.png",
        f"{job.stem}.json",
    )
