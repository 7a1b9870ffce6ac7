"""The recipe for one image: which results are drawn, in which mode and within which time."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pullback import __version__
from pullback.encoders import Encoder, Stage
from pullback.errors import PullbackError
from pullback.explain.options import SECONDS, STEPS
from pullback.inversion import Correctors, Inversion, Inverter
from pullback.measures import correlation, foreground_energy
from pullback.pictures import Certificate, ClassPicture, Picture
from pullback.report import ChannelEntry, Explanation, Foreground, Guess, StageRow, StageSpectrum

CHANNELS = 6  # drawn one by one with normalisers of their own (additive); everything else shares one frozen pass
GUESSES = 5
MEMORY = "1GB"
BLIND_SHARE = 0.8  # of the time for iterative pictures; the Wiener inverse, which needs few steps, gets the rest


def explain(
    encoder: Encoder,
    image: Tensor,
    *,
    picture: Image.Image,
    file_name: str,
    origin: str,
    digest: str,
    target: int | None = None,
    mask: Tensor | None = None,
    correctors: Correctors | None = None,
    quality: str = "standard",
    start: str = "taught",
    seed: int = 0,
    notes: tuple[str, ...] = (),
    told: Callable[[str], None] = lambda part: None,
) -> Explanation:
    """Explain one preprocessed image (C, H, W); `mask` (H, W): 1 object, 0 background, NaN unknown.

    `told` hears the name of each part before it begins (`parts` counts them). Raises what the methods raise.
    """
    clock = _Clock(told)
    frozen = Inverter(encoder, "cascade", "frozen", correctors=correctors, memory=MEMORY, seed=seed)
    additive = Inverter(frozen.encoder, "cascade", "additive", correctors=correctors, seed=seed)
    with frozen(image) as session:
        if start == "taught":
            # What cannot be taught is told where it would be drawn from.
            with suppress(PullbackError), clock.part("start of the blind inverse (kept for next time)"):
                session.through(Inverter(frozen.encoder, "decoder")).stage(1)
        guesses, target = _guesses(encoder, session, target)
        dead = {s.number: session.dead(s.number) for s in encoder.stages}  # a stage without features is found out here
        spectrum = []
        for stage in encoder.stages:
            drawn: dict[str, Picture] = {}
            skipped: dict[str, str] = {}
            for name in ("blind", "wiener", "cascade"):
                try:
                    with clock.part(f"stage {stage.number}: {name}"):
                        if name == "cascade":
                            found = session.stage(stage.number)
                        else:
                            found = _iterative(session, stage, name, quality, start, seed)
                        drawn[name] = _compared(found, image)
                except PullbackError as error:
                    skipped[name] = str(error)
            spectrum.append(StageSpectrum(stage.number, stage.name, skipped=skipped, **drawn))
        class_picture: ClassPicture | None = None
        channels: tuple[ChannelEntry, ...] = ()
        if target is not None:
            with clock.part("class and channels"):
                class_picture = session.cls(target)
                channels = _channels(session, session.through(additive), target)
        with clock.part("certificates"):
            certificates = _certificates(encoder, session, mask)
        return Explanation(
            picture=picture,
            file_name=file_name,
            origin=origin,
            digest=digest,
            encoder=encoder.title,
            stages=tuple(_row(s) for s in encoder.stages),
            assumptions=(*encoder.preprocessing.assumed, *encoder.notes),
            guesses=guesses,
            target=None if target is None else (target, encoder.class_name(target)),
            spectrum=tuple(spectrum),
            class_picture=class_picture,
            channels=channels,
            saliency=None if class_picture is None else class_picture.saliency().cpu(),
            certificates=certificates,
            foreground=None if mask is None or class_picture is None else _foreground(class_picture, mask),
            mask=mask,
            dead=dead,
            notes=notes,
            provenance={
                "pullback": __version__, "torch": torch.__version__, "python": platform.python_version(),
                "device": str(encoder.device), "threads": torch.get_num_threads(), "encoder": encoder.name,
                "weights (SHA-256)": encoder.weights_digest, "preprocessing": str(encoder.preprocessing.source),
                "head": encoder.head.kind, "correctors": frozen.correctors.label,
                "correctors (SHA-256)": frozen.correctors.digest, "quality": quality, "start": start, "seed": seed,
            },
            seconds=clock.seconds,
        )  # fmt: skip


def parts(encoder: Encoder) -> int:
    """How many parts `explain` tells of, where there is something to do for each."""
    return 3 * encoder.depth + 3


class _Clock:
    """Tells each part as it begins and keeps its wall-clock seconds, where it comes to an end."""

    def __init__(self, told: Callable[[str], None]) -> None:
        self.told = told
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.told(name)
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun


def _iterative(session: Inversion, stage: Stage, method: str, quality: str, start: str, seed: int) -> Picture:
    """A blind or Wiener picture within its share of the quality's budget; deeper stages cost more, so they get more."""
    encoder, blind = session.encoder, method == "blind"
    rank = (stage.number + 1) / sum(s.number + 1 for s in encoder.stages)
    seconds = rank * SECONDS[quality] * (BLIND_SHARE if blind else 1 - BLIND_SHARE)
    steps = STEPS[quality][0 if blind else 1]
    inverter = Inverter(encoder, method, start=start if blind else "taught", steps=steps, seconds=seconds, seed=seed)
    return session.through(inverter).stage(stage.number)


def _compared(picture: Picture, image: Tensor) -> Picture:
    """The picture with its own and its null's correlation with the image among the figures."""
    figures = {"correlation with the image": correlation(picture.tensor, image)}
    if picture.null is not None:
        figures["null: correlation"] = correlation(picture.null, image)
    return replace(picture, figures={**figures, **picture.figures})


def _guesses(encoder: Encoder, session: Inversion, target: int | None) -> tuple[tuple[Guess, ...], int | None]:
    if encoder.class_count is None:
        return (), None
    probabilities = session.logits.double().softmax(0)
    best = probabilities.argsort(descending=True, stable=True)[:GUESSES].tolist()
    guesses = tuple(Guess(i, encoder.class_name(i), float(probabilities[i])) for i in best)
    return guesses, best[0] if target is None else target


def _channels(session: Inversion, one_by_one: Inversion, target: int) -> tuple[ChannelEntry, ...]:
    """The channels with the largest |omega|, each drawn by a cascade of its own."""
    weights, omega, alpha = session.class_weights(target), session.importance(target), session.alpha()
    strongest = omega.abs().argsort(descending=True, stable=True)[:CHANNELS].tolist()
    return tuple(
        ChannelEntry(
            c, float(omega[c]), float(alpha[c]), float(weights[c]), one_by_one.channel(session.encoder.depth, c)
        )
        for c in strongest
        if omega[c] != 0
    )


def _certificates(encoder: Encoder, session: Inversion, mask: Tensor | None) -> tuple[Certificate, ...]:
    """The strongest unit of every stage, the deepest stage as a whole, and the mask's region."""
    found = []
    for stage in encoder.stages:
        features = session.features(stage.number)
        c, i, j = (int(n) for n in np.unravel_index(int(features.abs().argmax()), tuple(features.shape)))
        found.append(session.certificate(stage.number, unit=(c, i, j)))
        if mask is not None and bool((mask > 0.5).any()):
            found.append(session.certificate(stage.number, region=mask > 0.5))
    found.append(session.certificate())
    return tuple(found)


def _foreground(picture: ClassPicture, mask: Tensor) -> Foreground:
    mass = picture.saliency().sqrt()  # its energy is the saliency itself: the full picture's magnitude, not its square
    full, positive, negative, saliency = (
        foreground_energy(x, mask) for x in (picture.full, picture.positive, picture.negative, mass)
    )
    return Foreground(full.share, positive.share, negative.share, saliency.share, full.area)


def _row(stage: Stage) -> StageRow:
    seen = f"{stage.field[0]} x {stage.field[1]} px"
    if stage.global_reason:
        seen += f", global through {stage.global_reason}"
    return StageRow(stage.number, stage.name, stage.shape, f"{stage.stride:g}", seen, stage.channels, stage.gate)
