"""What a reconstruction study will do, settled before the first picture: encoder, images and their guests, methods, controls."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from torch import Tensor

from pullback import __version__
from pullback.encoders import Encoder, load_encoder
from pullback.errors import EncoderError, OptionError
from pullback.explain.options import Progress
from pullback.images import Loaded, load_image
from pullback.inversion import Correctors, shipped_correctors
from pullback.inversion.correctors import mark_of
from pullback.inversion.inverter import MODES
from pullback.studies.contenders import Budget, Contender, contenders
from pullback.studies.controls import Guest, paste, random_encoder
from pullback.studies.metrics import WINDOW, lpips
from pullback.studies.options import CONTROLS, METHODS, StudyOptions
from pullback.studies.rows import check_owner
from pullback.studies.training import trained
from pullback.studies.trial import Bench
from pullback.studies.upconvnet import Decoder

SECONDS = 10.0  # of an iterative inverse, unless said otherwise
ESTIMATED = 16  # images that the batch norms of the random encoder see


@dataclass(frozen=True, eq=False)
class Subject:
    """One image of the study; digest: of its pixels as loaded."""

    name: str
    digest: str
    image: Tensor
    guest: Guest | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that was settled before the first picture."""

    bench: Bench
    methods: Sequence[Contender]
    stages: Sequence[int]
    subjects: Sequence[Subject]
    run: str  # fingerprint of what all rows share
    seed: int
    notes: Sequence[str]  # what a reader of the page must know

    def path(self, folder: Path, subject: Subject, stage: int, method: str) -> Path:
        return folder / "rows" / f"{subject.digest[:16]}-{stage}-{method}.json"


def check(options: StudyOptions) -> None:
    """Raise OptionError for options that contradict each other or name what is not there."""
    for chosen, known, what in ((options.methods or (), METHODS, "method"), (options.controls, CONTROLS, "control")):
        for name in chosen:
            if name not in known:
                raise OptionError(f"unknown {what} {name!r}; choose among {', '.join(known)}")
    methods = options.methods
    if methods is not None and len(set(methods)) != len(methods):
        raise OptionError(f"methods {', '.join(methods)}: name each one once")
    if methods is not None and ("upconvnet" in methods) != bool(options.train):
        raise OptionError("the method upconvnet and the pictures that it is trained on, --train FOLDER, go together")
    if methods is not None and options.correctors and not set(methods) & set(MODES):
        raise OptionError(f"correctors belong to the methods {', '.join(MODES)}; name one of them, or leave them out")
    if options.steps is not None and options.seconds is not None:
        raise OptionError(f"steps={options.steps} and seconds={options.seconds} were both given; give one of them")
    for name in ("steps", "seconds", "limit", "train_seconds"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise OptionError(f"{name}={value} must be above 0 and finite")


def planned(options: StudyOptions, files: Sequence[Path], folder: Path, progress: Progress) -> Plan:
    """The plan for picture files; trains what has to be trained, into the folder. Raises what loading raises."""
    encoder = load_encoder(
        options.encoder,
        weights=options.weights,
        classes=options.classes,
        preprocessing=options.preprocessing,
        stages=options.stages,
        device=options.device,
    )
    notes: list[str] = []

    def tell(found: Sequence[str]) -> None:
        notes.extend(found)
        for note in found:
            progress.note(f"note: {note}")

    tell((*encoder.preprocessing.assumed, *encoder.notes))
    if min(encoder.input_shape[1:]) < WINDOW:
        height, width = encoder.input_shape[1:]
        raise OptionError(
            f"images of {height} x {width} pixels are too small for SSIM: give a size of {WINDOW} or more"
        )
    check_owner(folder, encoder)
    budget = Budget(options.steps, None if options.steps is not None else options.seconds or SECONDS)
    subjects, told = _subjects(encoder, files, options.seed)
    tell(told)
    named = [s.number for s in encoder.stages] if options.at is None else [_stage(encoder, s) for s in options.at]
    stages = list(dict.fromkeys(named))
    chosen = options.methods or tuple(m for m in METHODS if m != "upconvnet" or options.train)
    fitted = _correctors(options, encoder) if set(chosen) & set(MODES) else []  # nothing else is drawn with them
    for c in fitted:
        c.check(encoder.name, [encoder.input_shape[0], *(s.channels for s in encoder.stages[:-1])])
        tell(_apart(c, subjects))
    distance = None if options.lpips_backbone is None else lpips(options.lpips_backbone)
    training: dict[str, object] = {}
    decoders: dict[int, Decoder] = {}
    if "upconvnet" in chosen:
        decoders, training = trained(
            encoder,
            options.train,
            stages,
            folder / "decoders",
            progress,
            seconds=options.train_seconds,
            seed=options.seed,
            without={s.digest: s.name for s in subjects},
        )
    stranger = None
    if "random" in options.controls:
        try:
            stranger = random_encoder(encoder, [s.image for s in subjects[:ESTIMATED]], options.seed)
        except EncoderError as error:
            tell([f"the control of random weights is left out: {error}"])
    methods = contenders(chosen, correctors=fitted, decoders=decoders, training=training, seed=options.seed)
    backbone = (
        None if options.lpips_backbone is None else hashlib.sha256(options.lpips_backbone.read_bytes()).hexdigest()
    )
    shared = (
        __version__, encoder.name, encoder.weights_digest, repr(encoder.preprocessing), [s.name for s in encoder.stages],
        str(encoder.device), tuple(c for c in CONTROLS if c in options.controls), backbone, options.seed,
        None if stranger is None else stranger.weights_digest,
    )  # fmt: skip
    bench = Bench(encoder, budget, options.controls, distance, stranger)
    return Plan(bench, methods, stages, subjects, repr(shared), options.seed, notes)


def _subjects(encoder: Encoder, files: Sequence[Path], seed: int) -> tuple[list[Subject], list[str]]:
    """The images, each with its guest: the one before it, which costs least, or the second one for the first.

    And what was done to them, in words. Their names are as long as tells them apart.
    """
    loaded: dict[str, tuple[Path, Loaded]] = {}
    repeated, changed = [], []
    for file in files:
        one = load_image(file)
        if one.digest in loaded:  # a copy would count one picture twice
            repeated.append(str(file))
            continue
        loaded[one.digest] = file, one
        changed += [f"{file.name} ({said})" for said in one.notes]
    tails = next(
        t for t in ([Path(*f.parts[-n:]) for f, _ in loaded.values()] for n in count(1)) if len({*t}) == len(t)
    )
    found = [
        Subject(str(tail), digest, encoder.preprocess(one.image))
        for tail, (digest, (_, one)) in zip(tails, loaded.items(), strict=True)
    ]
    notes = [
        f"{what}: {', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}"
        for what, names in (
            ("left out, since their pixels are those of others", repeated),
            ("as they were read", changed),
        )
        if names
    ]
    if len(found) < 2:
        return found, notes
    return [_with_guest(s, found[i - 1 if i else 1], seed) for i, s in enumerate(found)], notes


def _correctors(options: StudyOptions, encoder: Encoder) -> list[Correctors]:
    """Those that were named, or else those that come with the encoder, if any."""
    if options.correctors:
        return [Correctors.load(path) for path in options.correctors]
    shipped = shipped_correctors(encoder)
    return [] if shipped is None else [shipped]


def _apart(correctors: Correctors, subjects: Sequence[Subject]) -> list[str]:
    """Raise OptionError where the correctors were fitted on one of the images; a note where nobody knows."""
    known = correctors.pictures
    if known is None:
        return ["the fitted correctors do not say which pictures they were fitted on: perhaps on some of these"]
    for subject in subjects:
        if mark_of(subject.digest) in known:
            raise OptionError(
                f"{subject.name} is to be studied, but the correctors were fitted on it: take it out, or fit without it"
            )
    return []


def _with_guest(subject: Subject, other: Subject, seed: int) -> Subject:
    place = (seed + int(subject.digest[:12], 16)) % 2**63
    return replace(subject, guest=Guest(other.image, paste(subject.image, other.image, place)))


def _stage(encoder: Encoder, name: str) -> int:
    return encoder.stage(int(name) if name.isdecimal() else name).number
