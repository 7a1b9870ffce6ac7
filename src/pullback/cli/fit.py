"""`pullback fit`: pictures in, correctors of one encoder out; under torchrun on several processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pullback.cli.loading import loading
from pullback.cli.options import Classes, Preprocessing, Spec, Stages, Weights, listed
from pullback.errors import NumericsError, PullbackError, StageError

if TYPE_CHECKING:
    from pullback.cli.progress import Progress
    from pullback.fitting import Standing


def fit(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE|FOLDER...", help="Pictures to fit on, or folders of them.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the correctors go, as safetensors.")],
    encoder: Spec = "builtin:scenes",
    weights: Weights = None,
    classes: Classes = None,
    preprocessing: Preprocessing = None,
    stages: Stages = None,
    device: Annotated[
        str,
        typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps; under torchrun cuda is a GPU for each process."),
    ] = "cpu",
    preset: Annotated[str, typer.Option(metavar="paper", help="The recipe that the options below change.")] = "paper",
    mode: Annotated[
        str | None, typer.Option(metavar="additive|fused|frozen", help="Which picture of the deepest stage is fitted.")
    ] = None,
    loss: Annotated[str | None, typer.Option(metavar="l1|l2", help="Mean absolute or mean square error.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of Adam.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures a step.")] = None,
    channels: Annotated[int | None, typer.Option(help="Channels drawn for each picture, in additive mode.")] = None,
    rate: Annotated[float | None, typer.Option(help="Adam's rate at the start; it falls to zero.")] = None,
    held_back: Annotated[int | None, typer.Option(help="Pictures that are not fitted on, for validation.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn at random.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew; default: a stopped fit carries on where it was.")
    ] = False,
) -> None:
    """Fit the correctors of an encoder to pictures, and say how much of their loss the zero seed draws as well.

    Each line of progress has the loss, its lift over the best single colour, and the loss of the zero seed beside it.
    """
    with loading():
        from pullback.cli.progress import Progress
        from pullback.encoders import load_encoder
        from pullback.fitting import fit_correctors, joined
        from pullback.images import check_inputs_stay

    with joined(device) as (own_device, leads), Progress() if leads else nullcontext() as progress:
        telling = Telling(progress)
        try:
            check_inputs_stay([out], [Path(path) for path in (weights, classes) if path is not None])
            net = load_encoder(
                encoder,
                weights=weights,
                classes=classes,
                preprocessing=preprocessing,
                stages=listed(stages),
                device=own_device,
            )
            telling.note(*(f"note: {text}" for text in (*net.preprocessing.assumed, *net.notes)))
            found = fit_correctors(
                net,
                images,
                preset,
                mode=mode,
                loss=loss,
                steps=steps,
                batch=batch,
                channels=channels,
                rate=rate,
                held_back=held_back,
                seed=seed,
                out=out,
                overwrite=overwrite,
                told=telling,
            )
        except PullbackError as error:
            if leads or telling.begun or isinstance(error, StageError | NumericsError):
                raise  # a picture's own fault is met by one process alone
            # All else before the first step all processes meet, and the first one tells it.
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            again = "the same command without --overwrite" if overwrite else "the same command"
            telling.note(f"interrupted: {again} carries on from the last step")
            raise
        telling.note(*([] if telling.begun else ["done before: the same fit stands there"]), *_summary(found.card))
    if leads:
        typer.echo(os.fsencode(out))  # the very bytes of the name, whatever the terminal's encoding


class Telling:
    """What a person is told of a fit: a bar that moves with every step, new numbers at every validation; else silent."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self.begun = False

    def note(self, *lines: str) -> None:
        for line in lines:
            if self._progress is not None:
                self._progress.note(line)

    def __call__(self, standing: Standing) -> None:
        first, self.begun = not self.begun, True
        if self._progress is None:
            return
        held = f"held back: {_words(asdict(standing.held))}" if standing.held else ""
        if first:
            self.note(*([f"before the first step, {held}"] if held else []))
            begun = f"carrying on from step {standing.step}" if standing.step else "fitting"
            self._progress.start(standing.steps - standing.step, begun)
        else:
            numbers = (f"step {standing.step}: {_words(asdict(standing.fitted))}" if standing.fitted else "", held)
            self._progress.advance(1, " | ".join(filter(None, numbers)) if standing.due else None)


def _words(losses: Mapping[str, float]) -> str:
    """Three numbers of `Losses`."""
    lift = losses["floor"] - losses["loss"]
    return f"loss {losses['loss']:.4f}, lift {lift:+.4f}, zero seed {losses['zero']:.4f}"


def _summary(card: Mapping[str, Any]) -> list[str]:
    """What the numbers of a card come to."""
    if "held back" not in card["history"][-1]:
        return ["nothing was held back: the losses are those of pictures that were fitted on"]
    last = card["history"][-1]["held back"]
    lines = []
    if "gap" in card:
        last = card["held back, whole"]
        lines.append(
            f"held back, whole pictures: {_words(last)}; pictures of {card['channels']} drawn channels lose"
            f" {card['gap']:+.4f} against them"
        )
    if last["lift"] <= 0:
        lines.append("the best single colour of each picture comes nearer to it than what the correctors draw")
    if last["zero"] <= last["loss"]:
        lines.append("the zero seed alone comes as near: the loss says nothing about the features")
    return lines
